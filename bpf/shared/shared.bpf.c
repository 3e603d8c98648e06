// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Not a tool: brings the structs that src/common shares with every tool into BTF, so that the
 * library takes them from C as the tools take theirs.
 */
#include "block.h"
#include "events.h"
#include "filter.h"
#include "stack.h"
#include "thread_times.h"

EXPORT_STRUCT(cgroup_news);
EXPORT_STRUCT(event_head);
EXPORT_STRUCT(loss);
EXPORT_STRUCT(filter_key);
EXPORT_STRUCT(stack_key);
enum block_flag export_block_flag;
enum block_op export_block_op;
enum cgroup_what export_cgroup_what;
enum filter_kind export_filter_kind;
enum reader_state export_reader_state;
enum stack_id export_stack_id;
enum times_by export_times_by;
