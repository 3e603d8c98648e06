/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Where a path leads: the names of a directory from itself up to the root, across mounts. */
#ifndef PATH_H
#define PATH_H

#include "bpfscope.h"

/*
 * Components and mounts that are followed; deeper ones are marked as cut. A tool may ask for fewer
 * before it includes this: the verifier takes its time for each, in each program.
 */
#ifndef PATH_DEPTH
#define PATH_DEPTH 96
#endif

/*
 * The directory that a relative name is resolved against: that of the descriptor, or the working
 * directory. False when the descriptor is not open.
 */
static __always_inline bool path_base(int dirfd, struct path *base)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	if (dirfd == AT_FDCWD) {
		BPF_CORE_READ_INTO(base, task, fs, pwd);
		return true;
	}

	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **slots = BPF_CORE_READ(table, fd);
	struct file *file = NULL;

	if (dirfd < 0 || (__u32)dirfd >= BPF_CORE_READ(table, max_fds))
		return false;
	bpf_probe_read_kernel(&file, sizeof(file), &slots[dirfd]);
	if (!file)
		return false;
	BPF_CORE_READ_INTO(base, file, f_path);
	return true;
}

/*
 * Writes the names of path, leaf first, each with its NUL, to buffer + offset. The buffer must
 * have NAME_MAX + 1 bytes beyond limit, a power of two; offset + what is written stays below it.
 * Returns the offset after the last name; *cut says whether names are missing.
 */
static __always_inline __u32 path_names(struct path *path, char *buffer, __u32 offset, __u32 limit,
					__u8 *cut)
{
	struct dentry *dentry = path->dentry;
	struct mount *mount = (void *)path->mnt - bpf_core_field_offset(struct mount, mnt);

	*cut = 1;
	for (int i = 0; i < PATH_DEPTH; i++) {
		struct dentry *parent = BPF_CORE_READ(dentry, d_parent);

		if (dentry == BPF_CORE_READ(mount, mnt.mnt_root)) {
			struct mount *above = BPF_CORE_READ(mount, mnt_parent);

			if (above == mount) {
				*cut = 0;
				break;
			}
			dentry = BPF_CORE_READ(mount, mnt_mountpoint);
			mount = above;
			continue;
		}
		/* A root that is not its mount's: a detached tree. What is known is shown. */
		if (parent == dentry)
			break;
		if (offset >= limit)
			break;

		const unsigned char *name = BPF_CORE_READ(dentry, d_name.name);
		long length = bpf_probe_read_kernel_str(buffer + (offset & (limit - 1)),
							NAME_MAX + 1, name);

		if (length <= 0)
			break;
		offset += length;
		dentry = parent;
	}
	return offset;
}

#endif
