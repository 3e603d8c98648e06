// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * cachestat: what of the page cache is read, what of that had to be brought in, and what is made
 * dirty. Everything in pages, however many of them a folio has.
 *
 * Reads are taken where they end, with the bytes that they returned: filemap_read() is common to
 * read(2) in all its forms, sendfile(2) of old and io_uring, filemap_splice_read() to splice(2) and
 * sendfile(2) since 6.5. Of mapped files there are the faults: those that filemap_fault() serves,
 * and those that filemap_map_pages() serves from what is there already ("fault-around").
 *
 * Whether a page that is read is a hit is remembered page by page: a page that comes into the cache
 * is marked as fresh, unless it is made dirty, that is, written; whoever reads it first takes the
 * mark away, and that read is the miss. So pages that are read ahead count when they are used, and
 * there is never a miss without a read.
 *
 * Ways: fexit, kprobe, for the functions; the tracepoints are the same in both. Those programs have
 * twins (twin.h) that can be preempted. The marks are kept whoever the task is, and filters decide
 * only what is counted.
 */
#include "bpfscope.h"
#include "filter.h"
#include "loss.h"
#include "twin.h"

const volatile __u32 page_shift = 12;

/* Since the tool was started. */
struct cache_count {
	__u64 hits;
	__u64 misses;
	__u64 dirties;
	/* Pages that came into the cache. */
	__u64 added;
};
EXPORT_STRUCT(cache_count);

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cache_count);
} counts SEC(".maps");

#define COUNT(field, pages)                                                                        \
	do {                                                                                       \
		__u32 zero = 0;                                                                    \
		struct cache_count *count = bpf_map_lookup_elem(&counts, &zero);                   \
                                                                                                   \
		/* Atomically: another program may have been preempted on this CPU. */             \
		if (count)                                                                         \
			add_atomically(&count->field, pages);                                      \
	} while (0)

/* ---- fresh pages ---- */

/* Pages of a word, words of a span, and spans of the largest read: of 2 GiB. */
#define WORD_SHIFT 6
#define SPAN_SHIFT (WORD_SHIFT + 6)
#define SPAN_WORDS (1 << (SPAN_SHIFT - WORD_SHIFT))
#define READ_SPANS ((1 << (19 - SPAN_SHIFT)) + 1)

/*
 * A bit for each page, which is fresh where the two differ. `set` is changed by who adds pages,
 * with atomic additions: of one page there is one at a time. `taken` is changed by who reads them,
 * plainly, since there is no atomic operation but addition on old kernels: two that read
 * neighbouring pages at the same moment may both see a page fresh that is so no more.
 */
struct fresh_pages {
	__u64 set;
	__u64 taken;
};

struct word_key {
	/* struct address_space * */
	__u64 mapping;
	__u64 word;
};

static const struct fresh_pages nothing_fresh;

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct word_key);
	__type(value, struct fresh_pages);
} fresh SEC(".maps");

/* The bits of pages that lie in one word. */
static __always_inline __u64 bits_of(__u64 first, __u64 last)
{
	return (~0ULL >> (63 - (last - first) % 64)) << (first % 64);
}

static __always_inline __u32 bits_set(__u64 word)
{
	word -= (word >> 1) & 0x5555555555555555ULL;
	word = (word & 0x3333333333333333ULL) + ((word >> 2) & 0x3333333333333333ULL);
	word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return (word * 0x0101010101010101ULL) >> 56;
}

/*
 * These functions are global, so that the verifier goes through each once and not at each call.
 * Pages of one word: they are fresh no more (how many of them were), or become so.
 */
__noinline int word_take(__u64 mapping, __u64 first, __u64 last)
{
	struct word_key key = { mapping, first >> WORD_SHIFT };
	struct fresh_pages *pages = bpf_map_lookup_elem(&fresh, &key);
	__u64 found;

	if (!pages)
		return 0;
	found = (pages->set ^ pages->taken) & bits_of(first, last);
	if (!found)
		return 0;
	pages->taken ^= found;
	return bits_set(found);
}

__noinline int word_set(__u64 mapping, __u64 first, __u64 last)
{
	struct word_key key = { mapping, first >> WORD_SHIFT };
	struct fresh_pages *pages = bpf_map_lookup_elem(&fresh, &key);
	__u64 set;
	__u64 change;

	if (!pages) {
		map_insert(&fresh, &key, &nothing_fresh, BPF_NOEXIST);
		pages = bpf_map_lookup_elem(&fresh, &key);
		if (!pages)
			return 0;
	}
	set = pages->set;
	change = ~(set ^ pages->taken) & bits_of(first, last);
	/* Turns each of these bits over: adds where it is 0, subtracts where it is 1. */
	if (change)
		add_atomically(&pages->set, (change & ~set) - (change & set));
	return 0;
}

/* The pages in parts, of which each lies in one word or span. */
#define IN_PARTS(first, last, shift, turns, act)                                                   \
	for (__u32 i = 0; i < (turns) && (first) <= (last); i++) {                                 \
		__u64 end = ((((first) >> (shift)) + 1) << (shift)) - 1;                           \
                                                                                                   \
		act(first, (last) < end ? (last) : end);                                           \
		(first) = end + 1;                                                                 \
	}

__noinline int span_take(__u64 mapping, __u64 first, __u64 last)
{
	__u32 found = 0;

#define TAKE_WORD(from, to) found += word_take(mapping, from, to)
	IN_PARTS(first, last, WORD_SHIFT, SPAN_WORDS, TAKE_WORD)
	return found;
}

/*
 * How many of these pages were fresh; they are so no more. A loop in a loop, each of few turns, is
 * much less for the verifier than one of many.
 */
__noinline int pages_take(__u64 mapping, __u64 first, __u64 last)
{
	__u32 found = 0;

	if (first >> WORD_SHIFT == last >> WORD_SHIFT)
		return word_take(mapping, first, last);
#define TAKE_SPAN(from, to) found += span_take(mapping, from, to)
	IN_PARTS(first, last, SPAN_SHIFT, READ_SPANS, TAKE_SPAN)
	return found;
}

/* Of a folio, which has no more pages than two spans. */
__noinline int pages_set(__u64 mapping, __u64 first, __u64 last)
{
#define SET_WORD(from, to) word_set(mapping, from, to)
	IN_PARTS(first, last, WORD_SHIFT, 2 * SPAN_WORDS, SET_WORD)
	return 0;
}

/* ---- pages that come in and are made dirty ---- */

/* The longer name was the first. */
struct folio___long_name {
	unsigned int _folio_nr_pages;
} __attribute__((preserve_access_index));

struct page___before_folios {
	struct address_space *mapping;
	unsigned long index;
} __attribute__((preserve_access_index));

/* Before there were folios these were pages, and of file systems on disks all of the same size. */
static __always_inline __u64 folio_pages(void *folio)
{
	__u64 flags = 0;
	__u32 pages = 1;

	if (!bpf_core_type_exists(struct folio))
		return 1;
	/* The first word of it in all kernels, but not always of the same type. */
	bpf_probe_read_kernel(&flags, sizeof(flags), folio);
	if (!(flags & 1ULL << bpf_core_enum_value(enum pageflags, PG_head)))
		return 1;
	if (bpf_core_field_exists(struct folio, _nr_pages)) {
		struct folio *now = folio;

		barrier_var(now);
		pages = BPF_CORE_READ(now, _nr_pages);
	} else {
		struct folio___long_name *before = folio;

		barrier_var(before);
		pages = BPF_CORE_READ(before, _folio_nr_pages);
	}
	return pages ?: 1;
}

static __always_inline __u64 folio_first(void *folio)
{
	if (bpf_core_type_exists(struct folio)) {
		struct folio *now = folio;

		barrier_var(now);
		return BPF_CORE_READ(now, index);
	}
	struct page___before_folios *page = folio;

	barrier_var(page);
	return BPF_CORE_READ(page, index);
}

static __always_inline __u64 folio_mapping(void *folio)
{
	if (bpf_core_type_exists(struct folio)) {
		struct folio *now = folio;

		barrier_var(now);
		return (__u64)BPF_CORE_READ(now, mapping);
	}
	struct page___before_folios *page = folio;

	barrier_var(page);
	return (__u64)BPF_CORE_READ(page, mapping);
}

static __always_inline bool is_first(bool is_twin)
{
	return twin_first((__u32)bpf_get_current_pid_tgid(), is_twin);
}

static __always_inline int page_added(__u64 *ctx, bool is_twin)
{
	void *folio = (void *)ctx[0];
	__u64 first;
	__u64 pages;

	if (!is_first(is_twin))
		return 0;
	first = folio_first(folio);
	pages = folio_pages(folio);
	pages_set(folio_mapping(folio), first, first + pages - 1);
	if (filter_current())
		COUNT(added, pages);
	return 0;
}

/*
 * What was clean before has become dirty. The kernel has no smaller unit of it than the folio, of
 * which the whole is accounted as dirty.
 */
static __always_inline int page_dirtied(__u64 *ctx, bool is_twin)
{
	void *folio = (void *)ctx[0];
	__u64 first;
	__u64 pages;

	if (!is_first(is_twin))
		return 0;
	first = folio_first(folio);
	pages = folio_pages(folio);
	pages_take(folio_mapping(folio), first, first + pages - 1);
	if (filter_current())
		COUNT(dirties, pages);
	return 0;
}

#define PAGE_HOOK(section, name, way, act)                                                         \
	SEC(section)                                                                               \
	int name##__##way(__u64 *ctx)                                                              \
	{                                                                                          \
		return act(ctx, false);                                                            \
	}                                                                                          \
	SEC(section)                                                                               \
	int name##_twin__##way(__u64 *ctx)                                                         \
	{                                                                                          \
		return act(ctx, true);                                                             \
	}

/* The tracepoint got another name with the folios. */
#define PAGE_HOOKS(section, way)                                                                   \
	PAGE_HOOK(section "/mm_filemap_add_to_page_cache", added, way, page_added)                 \
	PAGE_HOOK(section "/writeback_dirty_folio", dirtied, way, page_dirtied)                    \
	PAGE_HOOK(section "/writeback_dirty_page", dirtied_old, way, page_dirtied)

PAGE_HOOKS("tp_btf", fexit)
PAGE_HOOKS("raw_tp", kprobe)

/* ---- reads ---- */

/* A number and no pointer, which global functions do not take. */
static __always_inline __u64 file_mapping(struct file *file)
{
	return (__u64)BPF_CORE_READ(file, f_mapping);
}

static __always_inline void count_reads(__u64 pages, __u64 misses)
{
	__u32 zero = 0;
	struct cache_count *count;

	if (!filter_current())
		return;
	count = bpf_map_lookup_elem(&counts, &zero);
	if (!count)
		return;
	/* Of pages that others read at the same moment. */
	if (misses > pages)
		misses = pages;
	if (misses)
		add_atomically(&count->misses, misses);
	if (pages > misses)
		add_atomically(&count->hits, pages - misses);
}

/* A read has returned these bytes, up to that position. */
static __always_inline int bytes_read(__u64 mapping, __u64 end, __s64 bytes)
{
	if (bytes <= 0)
		return 0;

	__u64 first = (end - bytes) >> page_shift;
	__u64 last = (end - 1) >> page_shift;

	count_reads(last - first + 1, pages_take(mapping, first, last));
	return 0;
}

/* A fault has been served with this page. */
static __always_inline int page_faulted(__u64 mapping, __u64 page)
{
	count_reads(1, pages_take(mapping, page, page));
	return 0;
}

/*
 * The same by mapping what is there of the pages around it. What is done with these is not seen any
 * more, so they are not fresh any more either.
 */
static __always_inline int page_mapped(__u64 mapping, __u64 page, __u64 first, __u64 last)
{
	page_faulted(mapping, page);
	pages_take(mapping, first, last);
	return 0;
}

/* include/linux/mm_types.h; filemap_fault() has a page if it returns it locked. */
#define VM_FAULT_NOPAGE_BIT 0x100
#define VM_FAULT_LOCKED_BIT 0x200

static __always_inline __u64 fault_mapping(struct vm_fault *fault)
{
	return file_mapping(BPF_CORE_READ(fault, vma, vm_file));
}

/*
 * Until f9ce0be71d1f "mm: Cleanup faultaround and finish_fault() codepaths" (5.12) the function
 * returned nothing, and left the fault at the last page that it had mapped. The caller looked, as
 * is done here, whether the page that was asked for is among them.
 */
static __always_inline bool fault_is_solved(struct vm_fault *fault)
{
	struct vm_area_struct *vma = BPF_CORE_READ(fault, vma);
	__u64 pte = (__u64)BPF_CORE_READ(fault, pte);
	__u64 reached = BPF_CORE_READ(fault, address) >> page_shift;
	__u64 wanted = (BPF_CORE_READ(vma, vm_start) >> page_shift) + BPF_CORE_READ(fault, pgoff) -
		       BPF_CORE_READ(vma, vm_pgoff);
	__u64 entry = 0;

	if (!pte)
		return false;
	bpf_probe_read_kernel(&entry, sizeof(entry),
			      (void *)(pte - (reached - wanted) * sizeof(entry)));
	return entry;
}

/* ---- way fexit ---- */

#define READ_FEXIT(name, function)                                                                 \
	static __always_inline int name(struct kiocb *iocb, __s64 before, __s64 result,            \
					bool is_twin)                                              \
	{                                                                                          \
		if (result <= 0 || !is_first(is_twin))                                             \
			return 0;                                                                  \
		return bytes_read(file_mapping(iocb->ki_filp), iocb->ki_pos, result - before);     \
	}                                                                                          \
	SEC("fexit/" #function)                                                                    \
	int BPF_PROG(name##__fexit, struct kiocb *iocb, struct iov_iter *to, __s64 before,         \
		     __s64 result)                                                                 \
	{                                                                                          \
		return name(iocb, before, result, false);                                          \
	}                                                                                          \
	SEC("fexit/" #function)                                                                    \
	int BPF_PROG(name##_twin__fexit, struct kiocb *iocb, struct iov_iter *to, __s64 before,    \
		     __s64 result)                                                                 \
	{                                                                                          \
		return name(iocb, before, result, true);                                           \
	}

READ_FEXIT(read, filemap_read)
/* Its name until 87fa0f3eb267 "mm/filemap: rename generic_file_buffered_read to filemap_read"
 * (5.12). */
READ_FEXIT(read_old, generic_file_buffered_read)

static __always_inline int spliced(struct file *file, __u64 end, __s64 result, bool is_twin)
{
	if (result <= 0 || !is_first(is_twin))
		return 0;
	return bytes_read(file_mapping(file), end, result);
}

#define SPLICE_FEXIT(name, is_twin)                                                                \
	SEC("fexit/filemap_splice_read")                                                           \
	int BPF_PROG(name, struct file *file, loff_t *position, struct pipe_inode_info *pipe,      \
		     size_t size, unsigned int flags, __s64 result)                                \
	{                                                                                          \
		__u64 end = 0;                                                                     \
                                                                                                   \
		bpf_probe_read_kernel(&end, sizeof(end), position);                                \
		return spliced(file, end, result, is_twin);                                        \
	}

SPLICE_FEXIT(splice__fexit, false)
SPLICE_FEXIT(splice_twin__fexit, true)

#define FAULT_FEXIT(name, is_twin)                                                                 \
	SEC("fexit/filemap_fault")                                                                 \
	int BPF_PROG(name, struct vm_fault *fault, __u32 result)                                   \
	{                                                                                          \
		if (!(result & VM_FAULT_LOCKED_BIT) || !is_first(is_twin))                         \
			return 0;                                                                  \
		return page_faulted(fault_mapping(fault), BPF_CORE_READ(fault, pgoff));            \
	}

FAULT_FEXIT(fault__fexit, false)
FAULT_FEXIT(fault_twin__fexit, true)

#define AROUND_FEXIT(name, is_twin)                                                                \
	SEC("fexit/filemap_map_pages")                                                             \
	int BPF_PROG(name, struct vm_fault *fault, unsigned long first, unsigned long last,        \
		     __u32 result)                                                                 \
	{                                                                                          \
		if (!(result & VM_FAULT_NOPAGE_BIT) || !is_first(is_twin))                         \
			return 0;                                                                  \
		return page_mapped(fault_mapping(fault), BPF_CORE_READ(fault, pgoff), first,       \
				   last);                                                          \
	}

AROUND_FEXIT(around__fexit, false)
AROUND_FEXIT(around_twin__fexit, true)

#define AROUND_OLD_FEXIT(name, is_twin)                                                            \
	SEC("fexit/filemap_map_pages")                                                             \
	int BPF_PROG(name, struct vm_fault *fault, unsigned long first, unsigned long last)        \
	{                                                                                          \
		if (!is_first(is_twin) || !fault_is_solved(fault))                                 \
			return 0;                                                                  \
		return page_mapped(fault_mapping(fault), BPF_CORE_READ(fault, pgoff), first,       \
				   last);                                                          \
	}

AROUND_OLD_FEXIT(around_old__fexit, false)
AROUND_OLD_FEXIT(around_old_twin__fexit, true)

/* ---- way kprobe ---- */

/* A read may fault, so a thread can be in one of each at once. */
enum call_kind {
	CALL_READ,
	CALL_SPLICE,
	CALL_FAULT,
	CALL_AROUND,
};

struct call {
	/* The kiocb, the file or the fault. */
	__u64 what;
	/* What had been read before; where the position is; the first page around. */
	__u64 first;
	/* The last page around. */
	__u64 last;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct call);
} calls__kprobe SEC(".maps");

static __always_inline __u64 call_key(enum call_kind kind)
{
	return (__u64)kind << 32 | (__u32)bpf_get_current_pid_tgid();
}

static __always_inline int call_begins(enum call_kind kind, void *what, __u64 first, __u64 last)
{
	__u64 key = call_key(kind);
	struct call call = { (__u64)what, first, last };

	map_insert(&calls__kprobe, &key, &call, BPF_ANY);
	return 0;
}

static __always_inline bool call_ends(enum call_kind kind, struct call *call)
{
	__u64 key = call_key(kind);
	struct call *found = bpf_map_lookup_elem(&calls__kprobe, &key);

	if (!found)
		return false;
	*call = *found;
	bpf_map_delete_elem(&calls__kprobe, &key);
	return true;
}

#define READ_KPROBE(name, function)                                                                \
	SEC("kprobe/" #function)                                                                   \
	int BPF_KPROBE(name##_enter__kprobe, struct kiocb *iocb, struct iov_iter *to,              \
		       __s64 before)                                                               \
	{                                                                                          \
		return call_begins(CALL_READ, iocb, before, 0);                                    \
	}                                                                                          \
	SEC("kretprobe/" #function)                                                                \
	int BPF_KRETPROBE(name##_exit__kprobe, __s64 result)                                       \
	{                                                                                          \
		struct call call;                                                                  \
                                                                                                   \
		if (!call_ends(CALL_READ, &call) || result <= 0)                                   \
			return 0;                                                                  \
                                                                                                   \
		struct kiocb *iocb = (void *)call.what;                                            \
                                                                                                   \
		return bytes_read(file_mapping(BPF_CORE_READ(iocb, ki_filp)),                      \
				  BPF_CORE_READ(iocb, ki_pos), result - (__s64)call.first);        \
	}

READ_KPROBE(read, filemap_read)
READ_KPROBE(read_old, generic_file_buffered_read)

SEC("kprobe/filemap_splice_read")
int BPF_KPROBE(splice_enter__kprobe, struct file *file, loff_t *position)
{
	return call_begins(CALL_SPLICE, file, (__u64)position, 0);
}

SEC("kretprobe/filemap_splice_read")
int BPF_KRETPROBE(splice_exit__kprobe, __s64 result)
{
	struct call call;
	__u64 end = 0;

	if (!call_ends(CALL_SPLICE, &call) || result <= 0)
		return 0;

	struct file *file = (void *)call.what;

	bpf_probe_read_kernel(&end, sizeof(end), (void *)call.first);
	return bytes_read(file_mapping(file), end, result);
}

SEC("kprobe/filemap_fault")
int BPF_KPROBE(fault_enter__kprobe, struct vm_fault *fault)
{
	return call_begins(CALL_FAULT, fault, 0, 0);
}

SEC("kretprobe/filemap_fault")
int BPF_KRETPROBE(fault_exit__kprobe, __u32 result)
{
	struct call call;

	if (!call_ends(CALL_FAULT, &call) || !(result & VM_FAULT_LOCKED_BIT))
		return 0;

	struct vm_fault *fault = (void *)call.what;

	return page_faulted(fault_mapping(fault), BPF_CORE_READ(fault, pgoff));
}

SEC("kprobe/filemap_map_pages")
int BPF_KPROBE(around_enter__kprobe, struct vm_fault *fault, unsigned long first,
	       unsigned long last)
{
	return call_begins(CALL_AROUND, fault, first, last);
}

#define AROUND_KPROBE(name, solved)                                                                \
	SEC("kretprobe/filemap_map_pages")                                                         \
	int BPF_KRETPROBE(name, __u32 result)                                                      \
	{                                                                                          \
		struct call call;                                                                  \
                                                                                                   \
		if (!call_ends(CALL_AROUND, &call))                                                \
			return 0;                                                                  \
                                                                                                   \
		struct vm_fault *fault = (void *)call.what;                                        \
                                                                                                   \
		if (!(solved))                                                                     \
			return 0;                                                                  \
		return page_mapped(fault_mapping(fault), BPF_CORE_READ(fault, pgoff), call.first,  \
				   call.last);                                                     \
	}

AROUND_KPROBE(around_exit__kprobe, result &VM_FAULT_NOPAGE_BIT)
AROUND_KPROBE(around_old_exit__kprobe, fault_is_solved(fault))
