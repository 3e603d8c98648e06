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

/* What the current task's descriptor stands for, or NULL when it is not open. */
static __always_inline struct file *path_file(int fd)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **slots = BPF_CORE_READ(table, fd);
	struct file *file = NULL;

	if (fd >= 0 && (__u32)fd < BPF_CORE_READ(table, max_fds))
		bpf_probe_read_kernel(&file, sizeof(file), &slots[fd]);
	return file;
}

/*
 * The directory that a relative name is resolved against: that of the descriptor, or the working
 * directory. False when the descriptor is not open.
 */
static __always_inline bool path_base(int dirfd, struct path *base)
{
	if (dirfd == AT_FDCWD) {
		struct task_struct *task = (struct task_struct *)bpf_get_current_task();

		BPF_CORE_READ_INTO(base, task, fs, pwd);
		return true;
	}

	struct file *file = path_file(dirfd);

	if (!file)
		return false;
	BPF_CORE_READ_INTO(base, file, f_path);
	return true;
}

/*
 * Writes the names of path, leaf first, each with its NUL, to buffer. The buffer must have
 * NAME_MAX + 1 bytes beyond limit, a power of two. *size gets the bytes that were written; *cut
 * says whether names are missing.
 *
 * *size must lie in a map. What stands there the verifier does not remember, so that all that can
 * have happened until one component looks the same to it. Of a variable it would know the bounds,
 * others for each number of names and mounts so far, and follow them all to the end.
 */
static __always_inline void path_names(struct path *path, char *buffer, __u32 limit, __u32 *size,
				       __u8 *cut)
{
	struct dentry *dentry = path->dentry;
	struct mount *mount = (void *)path->mnt - bpf_core_field_offset(struct mount, mnt);

	*cut = 1;
	WRITE_ONCE(*size, 0);
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

		__u32 offset = READ_ONCE(*size);

		if (offset >= limit)
			break;

		const unsigned char *name = BPF_CORE_READ(dentry, d_name.name);
		long length = bpf_probe_read_kernel_str(buffer + (offset & (limit - 1)),
							NAME_MAX + 1, name);

		if (length <= 0)
			break;
		WRITE_ONCE(*size, offset + length);
		dentry = parent;
	}
}

#endif
