// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! memleak against allocations of which every one is known.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;
use std::time::Instant;

use libbpf_rs::MapHandle;
use libbpf_rs::MapType;
use serde_json::Value;

use crate::support::Case;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::burner::names;
use crate::support::command;
use crate::support::compile::compile;
use crate::support::gettid;
use crate::support::scratch;
use crate::support::start;
use crate::support::usage_error;

pub const CASES: &[Case] = &[
    Case::new("every function of the C library", functions),
    Case::new("allocators that call each other", nested),
    Case::new("C++", cplusplus),
    Case::new("musl", musl),
    Case::new("ages", ages),
    Case::new("sizes and samples", sizes),
    Case::new("processes that come and end", processes).in_turn(),
    Case::new("releases that are not seen", missing_free).in_turn(),
    Case::new("threads", threads).in_turn(),
    Case::new("single calls", calls).in_turn(),
    Case::new("a full table", full_table).in_turn(),
    Case::new("room for stacks", stack_storage).in_turn(),
    Case::new("pipes and pages of the kernel", kernel),
    Case::new("memory of each CPU", percpu).in_turn(),
    Case::new("text", text).in_turn(),
    Case::new("usage", usage).in_turn(),
];

/// Does what it is told, a line each: WHAT COUNT SIZE [KEEP], and answers with a line. Each WHAT is
/// a function of its own, so that the stacks tell them apart.
const ALLOCATOR: &str = r#"
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define APART __attribute__((noinline, noclone))
#define PAGE 4096ul

static volatile long sink;
static char *kept[65536];

/* Makes COUNT and releases all but KEEP of them. */
#define ALLOCATES(name, ...)                                                     \
	APART void do_##name(long count, long size, long keep)                   \
	{                                                                        \
		for (long i = 0; i < count; i++)                                 \
			kept[i] = __VA_ARGS__;                                   \
		for (long i = keep; i < count; i++)                              \
			free(kept[i]);                                           \
		sink++;                                                          \
	}

static void *aligned(long size)
{
	void *answer = NULL;

	return posix_memalign(&answer, 64, size) ? NULL : answer;
}

ALLOCATES(malloc, malloc(size))
ALLOCATES(calloc, calloc(2, size / 2))
ALLOCATES(posix_memalign, aligned(size))
ALLOCATES(aligned_alloc, aligned_alloc(64, size))
ALLOCATES(memalign, memalign(64, size))
#ifdef __GLIBC__
ALLOCATES(reallocarray, reallocarray(NULL, 2, size / 2))
ALLOCATES(valloc, valloc(size))
ALLOCATES(pvalloc, pvalloc(size))
#endif

APART void *first(long size)
{
	void *made = malloc(size);

	sink++;
	return made;
}

/* Larger, smaller, moved, and once so large that it fails. */
APART void do_realloc(long count, long size, long keep)
{
	for (long i = 0; i < count; i++) {
		char *p = first(10);

		p = realloc(p, 100);
		p = realloc(p, 300000);
		kept[i] = realloc(p, size);
		if (realloc(kept[i], PTRDIFF_MAX))
			abort();
	}
	for (long i = keep; i < count; i++)
		free(kept[i]);
	sink++;
}

/* One that cannot be made larger is still the one that it was. */
APART void do_fail(long count, long size, long keep)
{
	for (long i = 0; i < count; i++) {
		kept[i] = first(size);
		if (realloc(kept[i], PTRDIFF_MAX) || malloc(PTRDIFF_MAX))
			abort();
	}
	sink++;
}

/* realloc() to nothing gives back, as free() does. */
APART void do_zero(long count, long size, long keep)
{
	for (long i = 0; i < count; i++) {
		char *p = first(size);

		if (realloc(p, 0))
			abort();
	}
	sink++;
}

static char *map(long size)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

APART void do_mmap(long count, long size, long keep)
{
	for (long i = 0; i < count; i++)
		kept[i] = map(size);
	for (long i = keep; i < count; i++)
		munmap(kept[i], size);
	/* Fails, and is not there. */
	if (mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED)
		abort();
	sink++;
}

/* Twice as large, elsewhere; and one that cannot be. */
APART void do_mremap(long count, long size, long keep)
{
	for (long i = 0; i < count; i++) {
		kept[i] = mremap(map(size / 2), size / 2, size, MREMAP_MAYMOVE);
		if (mremap(kept[i], size, 1ul << 50, 0) != MAP_FAILED)
			abort();
	}
	sink++;
}

/* The first page of each is given back. */
APART void do_trim(long count, long size, long keep)
{
	for (long i = 0; i < count; i++)
		munmap(map(size), PAGE);
	sink++;
}

/* Given back past the C library, and made again at the same place. */
APART void do_past(long count, long size, long keep)
{
	char *place = (char *)0x200000000000;

	for (long i = 0; i < count; i++) {
		if (mmap(place, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != place)
			abort();
		syscall(SYS_munmap, place, size);
	}
	sink++;
}

static void *worker(void *argument)
{
	long *task = argument;
	char *mine[64];

	for (long round = 0; round < task[0]; round++) {
		for (int i = 0; i < 64; i++)
			mine[i] = i % 2 ? malloc(task[1]) : calloc(1, task[1]);
		for (int i = 0; i < 64; i++)
			if (round + 1 < task[0] || i >= task[2])
				free(mine[i]);
	}
	return NULL;
}

/* Four at once, each with so many rounds of 64, of the last of which KEEP stay. */
APART void do_threads(long count, long size, long keep)
{
	long task[3] = { count, size, keep };
	pthread_t threads[4];

	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, worker, task);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	sink++;
}

/* A child of its own, which keeps what it allocates until its end. */
APART void do_fork(long count, long size, long keep)
{
	pid_t child = fork();

	if (!child) {
		/* The parent's: not the child's to give back. */
		free(kept[0]);
		do_malloc(count, size, keep);
		_exit(0);
	}
	waitpid(child, NULL, 0);
	sink++;
}

/* Gives back what the last command kept. */
APART void do_free(long count, long size, long keep)
{
	for (long i = 0; i < count; i++)
		free(kept[i]);
	sink++;
}

/* Pipes, each with a page in it; the first KEEP stay open. */
APART void do_pipes(long count, long size, long keep)
{
	static char page[PAGE];
	int ends[2];

	for (long i = 0; i < count; i++) {
		if (pipe(ends) || write(ends[1], page, sizeof(page)) != sizeof(page))
			abort();
		if (i >= keep) {
			close(ends[0]);
			close(ends[1]);
		}
	}
}

static int run(const char *what, long count, long size, long keep)
{
#define DO(name)                            \
	if (!strcmp(what, #name)) {         \
		do_##name(count, size, keep); \
		return 0;                   \
	}
	DO(malloc) DO(calloc) DO(realloc) DO(fail) DO(zero) DO(posix_memalign) DO(aligned_alloc)
	DO(memalign) DO(mmap) DO(mremap) DO(trim) DO(past) DO(threads) DO(fork) DO(free) DO(pipes)
#ifdef __GLIBC__
	DO(reallocarray) DO(valloc) DO(pvalloc)
#endif
	if (!strcmp(what, "pause"))
		return pause();
	return 1;
}

int main(int argc, char **argv)
{
	static char line[256], what[64];

	/* The streams' own memory is not to be among what is counted. */
	setbuf(stdout, NULL);
	setbuf(stdin, NULL);
	for (int i = 1; i < argc; i++) {
		long count, size, keep;

		if (!strcmp(argv[i], "exec"))
			return execv(argv[0], (char *[]){ argv[0], argv[i + 1], NULL });
		if (sscanf(argv[i], "%63[^,],%ld,%ld,%ld", what, &count, &size, &keep) != 4 ||
		    run(what, count, size, keep))
			return 2;
	}
	if (argc > 1)
		return 0;
	puts("ready");
	for (;;) {
		long count, size, keep;
		size_t used = 0;

		while (used < sizeof(line) - 1 && read(0, &line[used], 1) == 1 && line[used] != '\n')
			used++;
		if (!used)
			return 0;
		line[used] = 0;
		if (sscanf(line, "%63s %ld %ld %ld", what, &count, &size, &keep) != 4)
			return 2;
		printf("%d\n", run(what, count, size, keep));
	}
}
"#;

/// An allocator of its own, whose functions call each other, and do not need the C library's.
const NESTED: &str = r#"
#include <stddef.h>
#include <string.h>

#define APART __attribute__((noinline, noclone, visibility("default")))

static char memory[1 << 20] __attribute__((aligned(64)));
static size_t used;
static volatile int sink;

APART void je_free(void *p)
{
	sink++;
}

APART void *je_malloc(size_t size)
{
	void *p = memory + used;

	used += (size + 63) / 64 * 64;
	sink++;
	return p;
}

APART void *je_calloc(size_t count, size_t size)
{
	void *p = je_malloc(count * size);

	memset(p, 0, count * size);
	return p;
}

APART void *je_aligned_alloc(size_t alignment, size_t size)
{
	void *p = je_malloc(size);

	sink++;
	return p;
}

APART int je_posix_memalign(void **answer, size_t alignment, size_t size)
{
	*answer = je_aligned_alloc(alignment, size);
	return 0;
}

/* Always moves. */
APART void *je_realloc(void *old, size_t size)
{
	void *p = je_calloc(1, size);

	je_free(old);
	return p;
}

/* operator new(unsigned long), operator new[](unsigned long), operator delete(void *) */
APART void *_Znwm(size_t size)
{
	void *p = je_malloc(size);

	sink++;
	return p;
}

APART void *_Znam(size_t size)
{
	return _Znwm(size);
}

APART void _ZdlPv(void *p)
{
	je_free(p);
	sink++;
}
"#;

/// Uses it.
const USER: &str = r#"
#include <stddef.h>
#include <unistd.h>

void je_free(void *);
void *je_malloc(size_t);
void *je_calloc(size_t, size_t);
int je_posix_memalign(void **, size_t, size_t);
void *je_realloc(void *, size_t);
void *_Znwm(size_t);
void *_Znam(size_t);
void _ZdlPv(void *);

static volatile int sink;
static void *kept;
#define USES(name, ...)                                              \
	__attribute__((noinline, noclone)) void do_##name(void)      \
	{                                                            \
		__VA_ARGS__;                                         \
		sink++;                                              \
	}

USES(malloc, kept = je_malloc(11))
USES(calloc, kept = je_calloc(3, 7))
USES(posix_memalign, je_posix_memalign(&kept, 64, 31))
USES(realloc, kept = je_realloc(je_malloc(1), 41))
USES(new, kept = _Znwm(51))
USES(new_array, kept = _Znam(61))
USES(delete, _ZdlPv(_Znwm(71)))
USES(free, je_free(je_calloc(1, 81)))

int main(void)
{
	char line[16];

	if (write(1, "ready\n", 6) != 6 || read(0, line, sizeof(line)) <= 0)
		return 1;
	for (int i = 0; i < 5; i++) {
		do_malloc();
		do_calloc();
		do_posix_memalign();
		do_realloc();
		do_new();
		do_new_array();
		do_delete();
		do_free();
	}
	return write(1, "0\n", 2) == 2 && read(0, line, sizeof(line)) == 0 ? 0 : 1;
}
"#;

const CPLUSPLUS: &str = r"
#include <new>

static void *volatile kept;

__attribute__((noinline, noclone)) void make(int count)
{
	for (int i = 0; i < count; i++) {
		kept = new char[100];
		kept = new long;
		long *released = new long[3];
		kept = released;
		delete[] released;
	}
}

int main()
{
	make(20);
	return 0;
}
";

const OPTIONS: [&str; 5] =
    ["-O1", "-fno-builtin", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls", "-pthread"];

/// The first program, made with the C compiler.
fn allocator() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        compile("cc", &scratch("memleak"), "allocator", ALLOCATOR, &OPTIONS).expect("cc")
    })
}

/// The same while it runs.
struct Allocating {
    child: Child,
    lines: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
}

impl Allocating {
    fn start(program: &Path) -> Self {
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("allocator");
        let stdout = child.stdout.take().expect("piped");
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stdout));
        assert_eq!(lines.next().expect("a line").expect("UTF-8"), "ready");
        Self { child, lines }
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }

    fn tell(&mut self, what: &str) {
        writeln!(self.child.stdin.as_ref().expect("piped"), "{what}").expect("it reads");
        assert_eq!(self.lines.next().expect("a line").expect("UTF-8"), "0", "{what}");
    }
}

impl Drop for Allocating {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The rows of stacks in the last report, in which this function of the program occurs.
fn stacks<'a>(finished: &'a Finished, function: &str) -> Vec<&'a Value> {
    let last = finished.of("report").count() as u64 - 1;
    let of = |row: &&Value| {
        row["kind"] == "stack"
            && row["report"] == last
            && names(&row["user_stack"]).iter().any(|name| name == function)
    };
    finished.of("row").filter(of).collect()
}

fn sum(rows: &[&Value], field: &str) -> u64 {
    rows.iter().map(|row| row[field].as_u64().expect("a number")).sum()
}

/// Bytes and allocations of the stacks with this function.
fn outstanding(finished: &Finished, function: &str) -> (u64, u64) {
    let rows = stacks(finished, function);
    (sum(&rows, "size_bytes"), sum(&rows, "allocations"))
}

/// Each function: what is kept, with its name, its size and its caller.
fn functions() -> Outcome {
    // The functions of the program: command, its function in the report, allocations, bytes each.
    let all = [
        ("malloc 50 100 7", "do_malloc", "malloc", 7, 100),
        ("calloc 50 200 6", "do_calloc", "calloc", 6, 200),
        ("realloc 50 300 5", "do_realloc", "realloc", 5, 300),
        ("reallocarray 50 400 4", "do_reallocarray", "reallocarray", 4, 400),
        ("posix_memalign 50 512 3", "do_posix_memalign", "posix_memalign", 3, 512),
        ("aligned_alloc 50 640 2", "do_aligned_alloc", "", 2, 640),
        ("memalign 50 704 8", "do_memalign", "", 8, 704),
        ("valloc 50 800 9", "do_valloc", "valloc", 9, 800),
        ("pvalloc 50 900 10", "do_pvalloc", "pvalloc", 10, 900),
        ("fail 50 130 50", "do_fail", "malloc", 50, 130),
        ("zero 50 140 0", "do_zero", "", 0, 0),
        ("mmap 50 8192 11", "do_mmap", "mmap", 11, 8192),
        ("mremap 12 16384 12", "do_mremap", "mremap", 12, 16384),
        ("trim 13 12288 13", "do_trim", "mmap", 13, 8192),
    ];
    let mut program = Allocating::start(allocator());
    // Was there before, and is given back under the tool's eyes: nothing is less for it.
    program.tell("malloc 100 64 100");
    let tool = start("memleak", &["3600", "-o", "0", "-p", &program.pid()]);
    let totals = start("memleak", &["3600", "-C", "-p", &program.pid()]);
    program.tell("free 100 0 0");
    for (what, ..) in &all {
        program.tell(what);
    }
    for (finished, has_ages) in [(tool.stop(), true), (totals.stop(), false)] {
        finished.assert_clean();
        for (what, caller, function, count, size) in &all {
            let rows = stacks(&finished, caller);
            let seen = (sum(&rows, "size_bytes"), sum(&rows, "allocations"));
            assert_eq!(seen, (count * size, *count), "{what}: {rows:?}");
            let named = |row: &&Value| function.is_empty() || row["function"] == *function;
            assert!(rows.iter().all(named), "{what}: {rows:?}");
            for row in rows {
                let process = (&row["pid"], &row["comm"]);
                assert_eq!(process, (&program.child.id().into(), &"allocator".into()));
                assert!(row["kernel_stack"].is_null(), "{row}");
                assert_eq!(row["oldest_ns"].is_number(), has_ages, "{row}");
            }
        }
        // And nothing else.
        let rows: Vec<&Value> = finished.of("row").collect();
        let wanted: u64 = all.iter().map(|(.., count, _)| count).sum();
        assert_eq!(sum(&rows, "allocations"), wanted, "{rows:?}");
        // The largest first.
        let sizes: Vec<u64> = rows.iter().filter_map(|row| row["size_bytes"].as_u64()).collect();
        assert!(sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
    }
    Outcome::Passed
}

/// Of calls inside of calls the outer one counts, once; also of the operators of C++ in the library
/// of the allocator.
fn nested() -> Outcome {
    let directory = scratch("nested");
    let library = compile(
        "cc",
        &directory,
        "libnested.so.1",
        NESTED,
        &[&OPTIONS[..], &["-shared", "-fPIC"]].concat(),
    )
    .expect("cc");
    let library = library.to_str().expect("UTF-8");
    let options = [&OPTIONS[..], &[library, "-Wl,-rpath", directory.to_str().expect("UTF-8")]];
    let user = compile("cc", &directory, "user", USER, &options.concat()).expect("cc");
    // By its path, and by its name, without the version; with all calls and those of one size.
    for (args, calls) in [
        (&["-O", library, "-S", "je_"][..], true),
        (&["-O", "libnested.so", "--symbols-prefix", "je_", "-z", "41", "-Z", "51"], false),
    ] {
        let mut user = Allocating::start(&user);
        let pid = user.pid();
        let tool = start("memleak", &[&["3600", "-o", "0", "-p", &pid], args].concat());
        user.tell("go");
        let finished = tool.stop();
        finished.assert_clean();
        for (caller, function, size) in [
            ("do_malloc", "malloc", 11),
            ("do_calloc", "calloc", 21),
            ("do_posix_memalign", "posix_memalign", 31),
            ("do_realloc", "realloc", 41),
            ("do_new", "new", 51),
            ("do_new_array", "new[]", 61),
            ("do_delete", "", 0),
            ("do_free", "", 0),
        ] {
            let rows = stacks(&finished, caller);
            let counted = size > 0 && (calls || (41..=51).contains(&size));
            let wanted = if counted { (5 * size, 5) } else { (0, 0) };
            assert_eq!(outstanding(&finished, caller), wanted, "{caller}: {rows:?}");
            for row in rows {
                assert_eq!(row["function"], function, "{row}");
                // Its caller, and not what it calls.
                assert_eq!(names(&row["user_stack"])[0], caller, "{row}");
            }
        }
    }
    Outcome::Passed
}

/// new and delete end in malloc() and free(), and count once.
fn cplusplus() -> Outcome {
    let directory = scratch("memleak");
    let Some(program) = compile("c++", &directory, "plusplus", CPLUSPLUS, &OPTIONS) else {
        return Outcome::Skipped("there is no C++ compiler".into());
    };
    let program = program.to_str().expect("UTF-8");
    let finished = start("memleak", &["-o", "0", "3600", "-c", program]).finish();
    finished.assert_clean();
    // Where the C++ library keeps no frame pointers, the stacks of both are one. It has memory of
    // its own, too, once.
    let rows: Vec<&Value> =
        finished.of("row").filter(|row| row["allocations"].as_u64() >= Some(20)).collect();
    let seen = (sum(&rows, "allocations"), sum(&rows, "size_bytes"));
    assert_eq!(seen, (20 + 20, 20 * 100 + 20 * 8), "{rows:?}");
    for row in finished.of("row") {
        assert_eq!(row["function"], "malloc", "{row}");
    }
    Outcome::Passed
}

/// There calloc(), realloc() and the aligned ones call malloc() and free().
fn musl() -> Outcome {
    let directory = scratch("memleak");
    let Some(program) = compile("musl-gcc", &directory, "allocator", ALLOCATOR, &OPTIONS) else {
        return Outcome::Skipped("there is no musl-gcc (package musl-tools)".into());
    };
    let mut program = Allocating::start(&program);
    let tool = start("memleak", &["3600", "-o", "0", "-p", &program.pid()]);
    let all = [
        ("malloc 50 100 7", "do_malloc", 7, 100),
        ("calloc 50 200 6", "do_calloc", 6, 200),
        ("realloc 50 300 5", "do_realloc", 5, 300),
        ("posix_memalign 50 512 3", "do_posix_memalign", 3, 512),
        ("aligned_alloc 50 640 2", "do_aligned_alloc", 2, 640),
        ("memalign 50 704 8", "do_memalign", 8, 704),
        ("mmap 50 8192 11", "do_mmap", 11, 8192),
    ];
    for (what, ..) in all {
        program.tell(what);
    }
    let finished = tool.stop();
    finished.assert_clean();
    for (what, caller, count, size) in all {
        assert_eq!(outstanding(&finished, caller), (count * size, count), "{what}");
    }
    Outcome::Passed
}

fn ages_of(finished: &Finished) -> Vec<u64> {
    let rows = finished.of("row").filter(|row| row["kind"] == "allocation");
    rows.map(|row| row["age_ns"].as_u64().expect("an age")).collect()
}

/// Half a second unless told otherwise, and the age is that of the last change.
fn ages() -> Outcome {
    const HALF: u64 = 500_000_000;
    let mut program = Allocating::start(allocator());
    let pid = program.pid();
    let usual = start("memleak", &["3600", "-a", "-p", &pid]);
    let hour = start("memleak", &["3600", "--show-allocs", "--older", "3600000", "-p", &pid]);
    let begun = Instant::now();
    // As long as it takes until some are old enough and others have just been made.
    let mut made = 0;
    while begun.elapsed() < Duration::from_millis(1500) {
        program.tell("malloc 1 1000 1");
        made += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    let until_first = begun.elapsed();
    let (usual, hour) = (usual.stop(), hour.stop());
    usual.assert_clean();
    hour.assert_clean();
    let ages = ages_of(&usual);
    assert!(!ages.is_empty() && ages.len() < made, "{} of {made}", ages.len());
    assert!(ages.iter().all(|age| *age >= HALF), "{ages:?}");
    assert!(ages.iter().max().is_some_and(|age| *age > 2 * HALF), "{ages:?}");
    assert!(Duration::from_nanos(ages[0]) <= until_first + Duration::from_secs(60));
    let row = stacks(&usual, "do_malloc");
    assert_eq!(sum(&row, "allocations"), ages.len() as u64);
    assert_eq!(row[0]["oldest_ns"].as_u64(), ages.iter().max().copied());
    for one in usual.of("row").filter(|row| row["kind"] == "allocation") {
        assert_eq!((&one["stack_id"], &one["size_bytes"]), (&row[0]["stack_id"], &1000.into()));
        assert!(one["address"].as_str().is_some_and(|address| address != "0"), "{one}");
    }
    assert_eq!(hour.of("row").count(), 0);
    Outcome::Passed
}

fn sizes() -> Outcome {
    const COUNT: u64 = 2000;
    const RATE: u64 = 4;
    let mut program = Allocating::start(allocator());
    let pid = program.pid();
    let args = |more: &[&'static str]| -> Vec<String> {
        ["3600", "-o", "0", "-p", &pid].iter().chain(more).map(|word| (*word).into()).collect()
    };
    let run =
        |args: Vec<String>| start("memleak", &args.iter().map(String::as_str).collect::<Vec<_>>());
    let between = run(args(&["--min-size", "100", "--max-size", "200"]));
    let sampled = run(args(&["-s", "4"]));
    program.tell("malloc 30 99 3");
    program.tell("calloc 30 100 4");
    program.tell("memalign 30 200 5");
    program.tell("aligned_alloc 30 256 6");
    program.tell(&format!("posix_memalign {COUNT} 64 {COUNT}"));
    let (between, sampled) = (between.stop(), sampled.stop());
    between.assert_clean();
    sampled.assert_clean();
    let of = |caller| outstanding(&between, caller).1;
    assert_eq!(
        (of("do_malloc"), of("do_calloc"), of("do_memalign"), of("do_aligned_alloc")),
        (0, 4, 5, 0)
    );
    // Of a binomial distribution, six standard deviations around its mean.
    let (mean, spread) = (COUNT / RATE, (COUNT as f64 * 0.25 * 0.75).sqrt() * 6.0);
    let (bytes, count) = outstanding(&sampled, "do_posix_memalign");
    assert!((count as f64 - mean as f64).abs() < spread, "{count} of {COUNT}");
    assert_eq!(bytes, count * 64);
    Outcome::Passed
}

/// A command and its children, which have all ended before the report; and what was there before
/// another program was executed.
fn processes() -> Outcome {
    let program = allocator().to_str().expect("UTF-8");
    let line = format!("{program} malloc,10,100,4 fork,10,100,3 calloc,10,50,2");
    let finished = start("memleak", &["3600", "-o", "0", "--command", &line]).finish();
    finished.assert_clean();
    assert_eq!(finished.end()["child_status"], 0);
    let mine = stacks(&finished, "do_malloc");
    // The parent's four, and the three of the child.
    let of_child = |row: &&&Value| names(&row["user_stack"]).contains(&"do_fork".to_string());
    let child: Vec<&Value> = mine.iter().filter(of_child).copied().collect();
    assert_eq!((sum(&mine, "allocations"), sum(&child, "allocations")), (7, 3), "{mine:?}");
    assert_ne!(child[0]["pid"], stacks(&finished, "do_calloc")[0]["pid"]);
    assert_eq!(outstanding(&finished, "do_calloc"), (100, 2));

    // Some other process meanwhile, and one that becomes another program.
    let name = "becomes-another";
    let copy = scratch("memleak").join(name);
    fs::copy(program, &copy).expect("copy");
    let args = ["3600", "-o", "0", "--user", "--comm", name];
    let tool = start("memleak", &args);
    let status = Command::new(&copy).args(["malloc,9,100,9", "exec", "calloc,9,60,5"]).status();
    assert!(status.expect("run").success());
    let finished = tool.stop();
    finished.assert_clean();
    assert_eq!(outstanding(&finished, "do_malloc"), (0, 0));
    assert_eq!(outstanding(&finished, "do_calloc"), (300, 5));
    assert!(finished.of("row").all(|row| row["comm"] == name));
    Outcome::Passed
}

/// Five mappings at one place, of which four were given back past the library.
fn missing_free() -> Outcome {
    let mut program = Allocating::start(allocator());
    let pid = program.pid();
    let tools = [
        (start("memleak", &["3600", "-C", "-p", &pid]), 5),
        (start("memleak", &["3600", "-C", "-F", "-p", &pid]), 1),
        (start("memleak", &["3600", "-o", "0", "-p", &pid]), 1),
    ];
    program.tell("past 5 8192 0");
    for (tool, count) in tools {
        let finished = tool.stop();
        finished.assert_clean();
        assert_eq!(outstanding(&finished, "do_past"), (count * 8192, count));
    }
    Outcome::Passed
}

/// Four threads at once that allocate and release the same sizes.
fn threads() -> Outcome {
    let mut program = Allocating::start(allocator());
    let pid = program.pid();
    let single = start("memleak", &["3600", "-o", "0", "-p", &pid]);
    let totals = start("memleak", &["3600", "--combined-only", "-p", &pid]);
    program.tell("threads 20 70 9");
    for tool in [single, totals] {
        let finished = tool.stop();
        finished.assert_clean();
        let rows = stacks(&finished, "worker");
        assert_eq!(sum(&rows, "size_bytes"), 4 * 9 * 70, "{rows:?}");
        assert_eq!(sum(&rows, "allocations"), 4 * 9, "{rows:?}");
        // calloc() and malloc() take turns, and are called from two places.
        let mut by: BTreeMap<&str, u64> = BTreeMap::new();
        for row in rows {
            let count = row["allocations"].as_u64().expect("a number");
            *by.entry(row["function"].as_str().expect("a name")).or_default() += count;
        }
        assert_eq!((by["calloc"], by["malloc"]), (20, 16));
    }
    Outcome::Passed
}

/// Each call and each release, in their order.
fn calls() -> Outcome {
    let mut program = Allocating::start(allocator());
    let pid = program.pid();
    let tool = start("memleak", &["3600", "-o", "0", "-t", "-p", &pid]);
    program.tell("malloc 2 123 1");
    program.tell("realloc 1 456 1");
    program.tell("mmap 2 8192 1");
    let finished = tool.stop();
    finished.assert_clean();
    let events: Vec<(&str, u64, &str)> = finished
        .of("event")
        .map(|event| {
            assert_eq!(
                (&event["kind"], &event["pid"]),
                (&"call".into(), &program.child.id().into())
            );
            let text = |field: &str| event[field].as_str().expect("text");
            (text("function"), event["size_bytes"].as_u64().expect("a size"), text("address"))
        })
        .collect();
    let seen: Vec<(&str, u64)> = events.iter().map(|(what, size, _)| (*what, *size)).collect();
    assert_eq!(
        seen,
        [
            ("malloc", 123),
            ("malloc", 123),
            ("free", 123),
            ("malloc", 10),
            ("free", 10),
            ("realloc", 100),
            ("free", 100),
            ("realloc", 300_000),
            ("free", 300_000),
            ("realloc", 456),
            ("mmap", 8192),
            ("mmap", 8192),
            ("munmap", 8192),
        ]
    );
    assert_eq!((events[1].2, events[11].2), (events[2].2, events[12].2));
    // The stack of an event is one of the report.
    let stack = &finished.of("event").next().expect("an event")["stack_id"];
    assert_eq!(*stack, stacks(&finished, "do_malloc")[0]["stack_id"]);
    Outcome::Passed
}

/// What finds no place is counted as such, and no more.
fn full_table() -> Outcome {
    let mut program = Allocating::start(allocator());
    let tool = start(
        "memleak",
        &["3600", "-o", "0", "--allocations", "100", "-p", &program.pid(), "--strict"],
    );
    program.tell("malloc 150 10 150");
    let finished = tool.stop();
    assert_eq!(finished.status.code(), Some(4), "{}", finished.stderr);
    let (bytes, count) = outstanding(&finished, "do_malloc");
    assert_eq!((bytes, finished.end()["map_full"].as_u64()), (count * 10, Some(150 - count)));
    assert_eq!(count, 100);
    Outcome::Passed
}

/// Where there is room for one stack only, the others are counted without; and a depth of one frame
/// is the caller alone.
fn stack_storage() -> Outcome {
    let mut program = Allocating::start(allocator());
    let pid = program.pid();
    let args = ["3600", "-o", "0", "-p", &pid];
    let one = start("memleak", &[&args[..], &["--stack-storage-size", "1"]].concat());
    let flat = start("memleak", &[&args[..], &["--perf-max-stack-depth", "1"]].concat());
    program.tell("malloc 5 10 5");
    program.tell("calloc 6 20 6");
    let (one, flat) = (one.stop(), flat.stop());
    flat.assert_clean();
    assert_eq!(outstanding(&one, "do_malloc"), (50, 5));
    let rows: Vec<&Value> = one.of("row").collect();
    assert_eq!(sum(&rows, "allocations"), 11, "{rows:?}");
    let without: Vec<&Value> =
        rows.iter().filter(|row| row["user_stack"].is_null()).copied().collect();
    assert_eq!(sum(&without, "size_bytes"), 120, "{rows:?}");
    assert!(one.stderr.contains("--stack-storage-size"), "{}", one.stderr);
    assert_eq!(one.end()["map_full"], 6, "{}", one.end());
    for (caller, count) in [("do_malloc", 5), ("do_calloc", 6)] {
        let rows = stacks(&flat, caller);
        assert_eq!(sum(&rows, "allocations"), count);
        assert_eq!(names(&rows[0]["user_stack"]), [caller]);
    }
    Outcome::Passed
}

/// What a kernel row says: function, bytes, allocations, names of the stack.
fn kernel_rows<'a>(finished: &'a Finished, function: &str, caller: &str) -> Vec<&'a Value> {
    let last = finished.of("report").count() as u64 - 1;
    finished
        .of("row")
        .filter(|row| row["kind"] == "stack" && row["report"] == last)
        .filter(|row| row["function"] == function)
        .filter(|row| names(&row["kernel_stack"]).iter().any(|name| name.contains(caller)))
        .collect()
}

/// A pipe is two pieces of memory from kmalloc(), and a page when there is something in it.
fn kernel() -> Outcome {
    const PIPES: u64 = 60;
    const OPEN: u64 = 23;
    let mut program = Allocating::start(allocator());
    let mut other = Allocating::start(allocator());
    let pid = program.pid();
    let args = ["3600", "--allocations", "100000", "--kernel", "-p", &pid];
    let single = start("memleak", &[&args[..], &["-o", "0"]].concat());
    let totals = start("memleak", &[&args[..], &["-C"]].concat());
    other.tell(&format!("pipes {PIPES} 0 {PIPES}"));
    program.tell(&format!("pipes {PIPES} 0 {OPEN}"));
    for tool in [single, totals] {
        let finished = tool.stop();
        finished.assert_clean();
        for (function, caller, each) in
            [("kmalloc", "alloc_pipe_info", 2), ("page_alloc", "pipe_write", 1)]
        {
            let mut rows = kernel_rows(&finished, function, caller);
            // Not what the allocator itself allocates to do so: its caller is another.
            let near = |row: &&Value| {
                let stack = names(&row["kernel_stack"]);
                let place = stack.iter().position(|name| name.contains(caller));
                function != "kmalloc" || place == Some(1)
            };
            rows.retain(near);
            assert_eq!(sum(&rows, "allocations"), each * OPEN, "{function}: {rows:?}");
            if function == "page_alloc" {
                assert_eq!(sum(&rows, "size_bytes"), 4096 * OPEN);
            }
            for row in rows {
                assert!(row["pid"].is_null() && row["user_stack"].is_null(), "{row}");
                let leaf = names(&row["kernel_stack"])[0].clone();
                // Of tracing itself nothing is left.
                let of_tracing = ["__traceiter", "__bpf_trace", "bpf_", "perf_trace"];
                assert!(!of_tracing.iter().any(|start| leaf.starts_with(start)), "{row}");
            }
        }
    }
    Outcome::Passed
}

/// A BPF map of each CPU has a piece of such memory for each of its entries.
fn percpu() -> Outcome {
    const ENTRIES: u32 = 37;
    let tid = gettid().to_string();
    let args = ["3600", "-o", "0", "--allocations", "100000", "--tid", &tid];
    let with = start("memleak", &[&args[..], &["-P"]].concat());
    let without = start("memleak", &args);
    let make = || {
        let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as _,
            ..Default::default()
        };
        let name = Some("memleak_test");
        MapHandle::create(MapType::PercpuArray, name, 4, 64, ENTRIES, &options).expect("a map")
    };
    let kept = make();
    drop(make());
    let (with, without) = (with.stop(), without.stop());
    with.assert_clean();
    without.assert_clean();
    let rows = kernel_rows(&with, "percpu_alloc", "array_map_alloc");
    let cpus = libbpf_rs::num_possible_cpus().expect("CPUs") as u64;
    // The second one goes when nobody looks at it any more, which may be later.
    let count = sum(&rows, "allocations");
    let entries = u64::from(ENTRIES);
    assert!(count == entries || count == 2 * entries, "{rows:?}");
    let bytes = sum(&rows, "size_bytes");
    // With what is needed to charge them to a cgroup: 8 bytes for each 4.
    assert!(bytes >= count * 64 * cpus && bytes <= count * (64 * cpus + 128), "{rows:?}");
    assert!(kernel_rows(&without, "percpu_alloc", "").is_empty());
    drop(kept);
    Outcome::Passed
}

fn text() -> Outcome {
    let program = allocator().to_str().expect("UTF-8");
    let run = |args: &[&str]| {
        let work = [program, "malloc,9,100,5", "calloc,9,60,7", "memalign,9,64,1"];
        let all = [&["3600", "-o", "0"], args, &["--"], &work[..]].concat();
        let output = command("memleak", &all).output().expect("run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let shown = run(&["-a"]);
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[0], "Attaching to processes, Ctrl+C to quit.");
    let (time, rest) = lines[1].split_once("] ").expect("a time");
    assert!(time.len() == 9 && time.starts_with('[') && time.matches(':').count() == 2, "{time}");
    assert_eq!(rest, "Top 10 stacks with outstanding allocations:");
    assert_eq!(lines[2], "500 bytes in 5 allocations from stack");
    for line in &lines[3..8] {
        assert!(line.starts_with("\taddr = 0x") && line.ends_with(" size = 100"), "{line}");
    }
    let frame = lines[8].strip_prefix("\t0 [<").and_then(|rest| rest.split_once(">] "));
    let (address, name) = frame.expect("a frame");
    assert!(address.len() == 16 && u64::from_str_radix(address, 16).is_ok(), "{}", lines[8]);
    assert!(name.starts_with("do_malloc+0x") && name.ends_with(&format!(" [{program}]")), "{name}");
    assert!(lines[9].starts_with("\t1 [<"), "{}", lines[9]);
    assert!(shown.contains("420 bytes in 7 allocations"), "{shown}");

    let heads = |text: &str| -> Vec<String> {
        text.lines().filter(|line| line.contains(" bytes in ")).map(String::from).collect()
    };
    let few = run(&["--top", "2", "--sort", "count"]);
    assert!(few.contains("Top 2 stacks"), "{few}");
    assert_eq!(
        heads(&few),
        ["420 bytes in 7 allocations from stack", "500 bytes in 5 allocations from stack"]
    );
    assert!(!few.contains("addr = "), "{few}");
    // With an interval there are several reports, of which the second ends it.
    let own = std::process::id().to_string();
    let args = ["0.2", "2", "-p", &own];
    let output = command("memleak", &args).output().expect("run");
    assert!(output.status.success(), "{output:?}");
    let shown = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(shown.starts_with(&format!("Attaching to pid {own}, Ctrl+C to quit.\n")), "{shown}");
    assert_eq!(shown.matches("] Top 10 stacks").count(), 2, "{shown}");
    // A call a line.
    let traced = run(&["-t", "-z", "100", "-Z", "100"]);
    let line = traced.lines().nth(2).expect("a call");
    assert!(traced.lines().nth(1).is_some_and(|header| header.starts_with("PID ")), "{traced}");
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!((words.len(), words[1], words[2], words[4]), (5, "allocator", "malloc", "100"));
    assert!(words[3].starts_with("0x"), "{line}");
    Outcome::Passed
}

fn usage() -> Outcome {
    for (args, word) in [
        (&["0"][..], "INTERVAL"),
        (&["1", "0"], "INTERVALS"),
        (&["-o", "x"], "older"),
        (&["-T", "0"], "top"),
        (&["-s", "0"], "sample-rate"),
        (&["-z", "9", "-Z", "8"], "max-size"),
        (&["-C", "-a"], "show-allocs"),
        (&["-C", "-o", "9"], "older"),
        (&["-P", "-p", "1"], "percpu"),
        (&["--kernel", "-O", "libc.so.6"], "obj"),
        (&["-O", "/no/such/library"], "/no/such/library"),
        (&["-c", " "], "command"),
        (&["-c", "true", "--", "true"], "command"),
        (&["--timestamp"], "--trace"),
        (&["--max-rate", "5"], "--trace"),
        (&["--allocations", "0"], "allocations"),
    ] {
        usage_error("memleak", args, word);
    }
    // A library that is none.
    let output = command("memleak", &["-O", "/etc/passwd"]).output().expect("run");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(3), 1), "{stderr}");
    Outcome::Passed
}
