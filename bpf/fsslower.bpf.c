// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* fsslower: each operation of a file system that took longer than so much. */
#include "bpfscope.h"
#include "events.h"
/* Eight programs follow paths. */
#define PATH_DEPTH 40
#include "path.h"

/* Only what took longer; 0 = all. */
const volatile __u64 want_min_ns = 0;
/* The whole path instead of the name. */
const volatile bool want_path = false;

struct event {
	struct event_head head;
	__u64 lat_ns;
	__u64 offset;
	__u64 bytes;
	/* A negative errno, or 0. */
	__s32 error;
	/* Bytes after the struct: the name, or those of the path, leaf first, each with its NUL. */
	__u32 names_size;
	/* enum fs_operation */
	__u8 operation;
	/* Whether names are missing at the top of the path. */
	__u8 names_cut;
	/* Whether it went on after the function had returned. */
	__u8 went_on;
	/* Whether there is a path at all. */
	__u8 has_path;
	__u8 pad[4];
};
EXPORT_STRUCT(event);

/* Room for a path with one name's overhang. */
struct fs_slot {
	struct event event;
	char names[PATH_MAX + NAME_MAX + 1];
};

struct fs_call;
static __always_inline int fs_done(void *slots, struct fs_call *call, __u64 now, long result);

#define FS_DETAILS
#define FS_SLOT(name) EVENT_SLOT(name, struct fs_slot);
#include "fs_ops.h"

static __always_inline int fs_done(void *slots, struct fs_call *call, __u64 now, long result)
{
	__u64 latency = now > call->start_ns ? now - call->start_ns : 0;

	if (want_min_ns && latency <= want_min_ns)
		return 0;

	struct fs_slot *slot = event_slot(slots);

	if (!slot)
		return 0;

	struct event *event = &slot->event;

	event->head = call->head;
	event->lat_ns = latency;
	event->offset = call->offset;
	event->bytes = call->bytes;
	if (call->operation <= FS_WRITE)
		event->bytes = result > 0 ? result : 0;
	event->error = result < 0 ? result : 0;
	event->names_size = 0;
	event->operation = call->operation;
	event->names_cut = 0;
	event->went_on = call->went_on;
	event->has_path = call->path != 0;
	if (call->path) {
		struct path path = {};

		bpf_probe_read_kernel(&path, sizeof(path), (void *)call->path);
		if (want_path) {
			path_names(&path, slot->names, PATH_MAX, &event->names_size,
				   &event->names_cut);
		} else {
			const unsigned char *name = BPF_CORE_READ(path.dentry, d_name.name);
			long size = bpf_probe_read_kernel_str(slot->names, NAME_MAX + 1, name);

			event->names_size = size > 0 ? size : 0;
			event->names_cut = 1;
		}
	}

	__u64 size = sizeof(*event) + event->names_size;

	if (size <= sizeof(*slot))
		event_output(slot, size);
	return 0;
}
