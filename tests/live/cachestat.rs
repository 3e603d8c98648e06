// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! cachestat against reads and writes whose pages are known.
//!
//! What is to be counted is done by threads of their own, which have done the same before: what the
//! test program itself is mapped from is read by page faults, too.

use std::fs::File;
use std::fs::OpenOptions;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::fcntl::PosixFadviseAdvice;
use nix::fcntl::posix_fadvise;
use nix::libc;
use nix::time::ClockId;
use nix::time::clock_gettime;
use serde_json::Value;

use crate::support::Case;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::Running;
use crate::support::disk::Disk;
use crate::support::file_system::mounted;
use crate::support::gettid;
use crate::support::patience;
use crate::support::runs;
use crate::support::start;
use crate::support::text::assert_usage_errors;
use crate::support::text::text_run;

/// Alone, as far as they count: when another program attaches to a function or detaches from it, the
/// kernel lets calls that are under way pass by programs on fexit.
pub const CASES: &[Case] = &[
    Case::alone("ext4", || on("ext4")),
    Case::alone("xfs", || on("xfs")),
    Case::alone("btrfs", || on("btrfs")),
    Case::alone("mapped files", mapped),
    Case::alone("what is mapped around a fault", around),
    Case::alone("large reads", large).in_turn(),
    Case::alone("block devices", devices).in_turn(),
    Case::alone("who reads first", first).in_turn(),
    Case::alone("nothing is lost between reports", intervals).in_turn(),
    Case::alone("several threads at once", threads).in_turn(),
    Case::new("memory", memory).in_turn(),
    Case::alone("text", text).in_turn(),
    Case::new("usage errors", usage_errors).in_turn(),
];

const PAGE: usize = 4096;

/// A thread that does what it is told.
struct Worker {
    tid: u64,
    jobs: Sender<Box<dyn FnOnce() + Send>>,
    done: Receiver<()>,
}

impl Worker {
    fn new() -> Self {
        let (jobs, take) = channel::<Box<dyn FnOnce() + Send>>();
        let (tell, done) = channel();
        let (tell_tid, tid) = channel();
        thread::spawn(move || {
            tell_tid.send(gettid()).expect("send");
            for job in take {
                job();
                tell.send(()).expect("send");
            }
        });
        Self { tid: tid.recv().expect("tid"), jobs, done }
    }

    fn begin(&self, job: impl FnOnce() + Send + 'static) {
        self.jobs.send(Box::new(job)).expect("send");
    }

    fn end(&self) {
        self.done.recv().expect("the worker lives");
    }

    fn run(&self, job: impl FnOnce() + Send + 'static) {
        self.begin(job);
        self.end();
    }
}

/// Why the tool does not run here.
fn lacks() -> Option<Outcome> {
    runs("cachestat", &[]).err().map(Outcome::Skipped)
}

/// Steps with what is expected of each: hits, misses, dirties.
struct Steps {
    tool: Option<Running>,
    done: Vec<(&'static str, [u64; 3], u64)>,
}

impl Steps {
    /// A step is over; `None` of the tool is a rehearsal.
    fn over(&mut self, name: &'static str, expected: [u64; 3]) {
        let Some(tool) = &mut self.tool else { return };
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("clock");
        let now = u64::try_from(now.tv_sec() * 1_000_000_000 + now.tv_nsec()).expect("positive");
        tool.wait_for(|record| {
            let at = record["boot_ns"].as_str().map(|ns| ns.parse().expect("a number"));
            record["type"] == "report" && at > Some(now)
        });
        // That one may have been read before, and written after.
        let report = tool.wait_for(|record| record["type"] == "report");
        self.done.push((name, expected, report["report"].as_u64().expect("a number")));
    }

    /// Compares all steps with what was shown.
    fn check(self, what: &str) {
        let Some(tool) = self.tool else { return };
        let finished = tool.stop();
        finished.assert_clean();
        let mut from = 0;
        let (mut seen, mut wanted) = (Vec::new(), Vec::new());
        for (name, expected, to) in self.done {
            let rows = finished
                .of("row")
                .filter(|row| (from..=to).contains(&row["report"].as_u64().expect("a number")));
            seen.push((name, sums(rows)));
            wanted.push((name, expected));
            from = to + 1;
        }
        assert_eq!(seen, wanted, "{what}");
    }
}

/// Hits, misses and dirties of rows, each of which must have the ratio that follows.
fn sums<'a>(rows: impl Iterator<Item = &'a Value>) -> [u64; 3] {
    let mut all = [0; 3];
    for row in rows {
        let number = |field: &str| row[field].as_u64().expect("a number");
        let (hits, misses) = (number("hits"), number("misses"));
        let ratio = (hits * 1_000_000).checked_div(hits + misses);
        assert_eq!(row["hit_ratio_ppm"], ratio.map_or(Value::Null, Value::from), "{row}");
        for (sum, n) in all.iter_mut().zip([hits, misses, number("dirties")]) {
            *sum += n;
        }
    }
    all
}

fn all_of(finished: &Finished) -> [u64; 3] {
    finished.assert_clean();
    sums(finished.of("row"))
}

/// Makes a file of this many bytes, which is on the disk and not in the cache.
fn uncached(path: &Path, bytes: usize) -> File {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
    let file = file.expect("create");
    file.write_all_at(&vec![5; bytes], 0).expect("write");
    forget(&file);
    file
}

/// Takes a file out of the cache. btrfs holds on to pages for a moment after they are on the disk.
fn forget(file: &File) {
    file.sync_all().expect("fsync");
    let until = Instant::now() + patience();
    loop {
        posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("fadvise");
        let left = cached(file);
        if left == 0 {
            break;
        }
        assert!(Instant::now() < until, "{left} pages of the file are still in the cache");
        thread::sleep(Duration::from_millis(5));
    }
}

/// How many pages of a file are in the cache and can be read.
fn cached(file: &File) -> usize {
    let bytes = usize::try_from(file.metadata().expect("stat").len()).expect("small");
    let mut there = vec![0u8; bytes.div_ceil(PAGE)];
    // SAFETY: a mapping of its own, of which nothing is touched.
    unsafe {
        let (none, fd) = (std::ptr::null_mut(), file.as_raw_fd());
        let map = libc::mmap(none, bytes, libc::PROT_READ, libc::MAP_SHARED, fd, 0);
        assert_ne!(map, libc::MAP_FAILED, "mmap");
        assert_eq!(libc::mincore(map, bytes, there.as_mut_ptr()), 0, "mincore");
        libc::munmap(map, bytes);
    }
    there.iter().filter(|page| **page & 1 == 1).count()
}

/// Reads a file from its beginning in pieces of whole pages.
fn read_all(file: &File, pages: usize) {
    let mut buffer = vec![0; pages * PAGE];
    let mut at = 0;
    loop {
        let read = file.read_at(&mut buffer, at).expect("read");
        if read == 0 {
            break;
        }
        at += read as u64;
    }
}

fn read_pages(file: &File, pages: &[u64]) {
    for page in pages {
        assert_eq!(file.read_at(&mut [0; PAGE], page * PAGE as u64).expect("read"), PAGE);
    }
}

fn send_all(file: &File) {
    let null = OpenOptions::new().write(true).open("/dev/null").expect("/dev/null");
    let mut offset = 0;
    // SAFETY: descriptors that are open, and the file's own position.
    let mut send = || unsafe {
        libc::sendfile(null.as_raw_fd(), file.as_raw_fd(), &raw mut offset, 16 * PAGE)
    };
    while send() > 0 {}
}

fn on(kind: &'static str) -> Outcome {
    if let Some(outcome) = lacks() {
        return outcome;
    }
    let worker = Worker::new();
    let directory = mounted(kind);
    steps(kind, &directory.join("cachestat-rehearsal"), &worker, None);
    let tool = start("cachestat", &["--tid", &worker.tid.to_string(), "0.1"]);
    steps(kind, &directory.join("cachestat"), &worker, Some(tool));
    Outcome::Passed
}

fn steps(kind: &str, path: &Path, worker: &Worker, tool: Option<Running>) {
    /// The last page is there in part.
    const PAGES: usize = 600;
    const N: u64 = PAGES as u64;
    let file = uncached(path, PAGES * PAGE - 100);
    let mut steps = Steps { tool, done: Vec::new() };
    let job = |act: fn(&File)| {
        let file = file.try_clone().expect("a descriptor");
        worker.run(move || act(&file));
    };

    // What happened before does not belong to the first step.
    steps.over("nothing", [0; 3]);
    job(|file| read_all(file, 16));
    steps.over("uncached", [0, N, 0]);
    job(|file| read_all(file, 16));
    steps.over("cached", [N, 0, 0]);
    job(|file| read_all(file, 1024));
    steps.over("all at once", [N, 0, 0]);
    job(|file| {
        for _ in 0..5 {
            assert_eq!(file.read_at(&mut [0; 10], 4090).expect("read"), 10);
        }
        for _ in 0..7 {
            assert_eq!(file.read_at(&mut [0; 1], 8191).expect("read"), 1);
        }
    });
    steps.over("parts of pages", [17, 0, 0]);
    job(send_all);
    steps.over("sendfile, cached", [N, 0, 0]);
    forget(&file);
    job(send_all);
    steps.over("sendfile, uncached", [0, N, 0]);

    forget(&file);
    job(|file| read_pages(file, &[5, 300, 17, 598, 123]));
    steps.over("at random, uncached", [0, 5, 0]);
    job(|file| read_pages(file, &[123, 5, 598, 300, 17]));
    steps.over("at random, cached", [5, 0, 0]);
    // Some of these pages have been read ahead.
    job(|file| read_all(file, 1));
    steps.over("the others", [5, N - 5, 0]);

    job(|file| file.write_all_at(&[6; PAGES * PAGE], 0).expect("write"));
    steps.over("written, cached", [0, 0, N]);
    job(|file| file.write_all_at(&[7; PAGES * PAGE], 0).expect("write"));
    steps.over("written once more", [0, 0, 0]);
    job(|file| read_all(file, 16));
    steps.over("read after it", [N, 0, 0]);
    forget(&file);
    job(|file| file.write_all_at(&[8; PAGES * PAGE], 0).expect("write"));
    steps.over("written, uncached", [0, 0, N]);
    job(|file| read_all(file, 16));
    steps.over("what was written", [N, 0, 0]);
    file.sync_all().expect("fsync");
    job(|file| read_all(file, 16));
    steps.over("what was written out", [N, 0, 0]);
    steps.check(kind);
}

/// Faults in a mapped file, further apart than what the kernel maps around each.
fn mapped() -> Outcome {
    if let Some(outcome) = lacks() {
        return outcome;
    }
    const APART: usize = 32;
    const FAULTS: usize = 18;
    const N: u64 = FAULTS as u64;
    fn touch(file: &File) {
        let bytes = FAULTS * APART * PAGE;
        // SAFETY: a mapping of its own, read within its bounds.
        unsafe {
            let (none, fd) = (std::ptr::null_mut(), file.as_raw_fd());
            let map = libc::mmap(none, bytes, libc::PROT_READ, libc::MAP_SHARED, fd, 0);
            assert_ne!(map, libc::MAP_FAILED, "mmap");
            // No huge pages, and nothing read ahead.
            libc::madvise(map, bytes, libc::MADV_NOHUGEPAGE);
            assert_eq!(libc::madvise(map, bytes, libc::MADV_RANDOM), 0, "madvise");
            for fault in 0..FAULTS {
                let at = map.byte_add(fault * APART * PAGE).cast::<u8>();
                assert_eq!(at.read_volatile(), 5);
            }
            libc::munmap(map, bytes);
        }
    }
    let worker = Worker::new();
    let run = |tool| {
        let path = mounted("ext4").join("cachestat-mapped");
        let file = uncached(&path, FAULTS * APART * PAGE);
        let mut steps = Steps { tool, done: Vec::new() };
        let job = |act: fn(&File)| {
            let file = file.try_clone().expect("a descriptor");
            worker.run(move || act(&file));
        };
        steps.over("nothing", [0; 3]);
        job(touch);
        steps.over("uncached", [0, N, 0]);
        job(touch);
        steps.over("cached", [N, 0, 0]);
        job(|file| read_all(file, 16));
        steps.over("read", [N, (FAULTS * (APART - 1)) as u64, 0]);
        job(touch);
        steps.over("mapped after it", [N, 0, 0]);
        steps.check("mapped");
    };
    run(None);
    run(Some(start("cachestat", &["--tid", &worker.tid.to_string(), "0.1"])));
    Outcome::Passed
}

/// Pages that were read ahead and then mapped beside the one that was asked for are no misses when
/// they are read later.
fn around() -> Outcome {
    if let Some(outcome) = lacks() {
        return outcome;
    }
    const PAGES: usize = 320;
    fn touch(file: &File) {
        let bytes = PAGES * PAGE;
        // SAFETY: a mapping of its own, read within its bounds.
        unsafe {
            let (none, fd) = (std::ptr::null_mut(), file.as_raw_fd());
            let map = libc::mmap(none, bytes, libc::PROT_READ, libc::MAP_SHARED, fd, 0);
            assert_ne!(map, libc::MAP_FAILED, "mmap");
            libc::madvise(map, bytes, libc::MADV_NOHUGEPAGE);
            for page in 0..PAGES {
                assert_eq!(map.byte_add(page * PAGE).cast::<u8>().read_volatile(), 5);
            }
            libc::munmap(map, bytes);
        }
    }
    let worker = Worker::new();
    let file = uncached(&mounted("ext4").join("cachestat-around"), PAGES * PAGE);
    let act = || {
        forget(&file);
        let until = Instant::now() + patience();
        while cached(&file) < PAGES {
            assert!(Instant::now() < until, "the file is not read ahead");
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_WILLNEED).expect("fadvise");
        }
        let file = file.try_clone().expect("a descriptor");
        worker.run(move || {
            touch(&file);
            read_pages(&file, &(0..PAGES as u64).collect::<Vec<_>>());
        });
    };
    act();
    let tool = start("cachestat", &["--tid", &worker.tid.to_string(), "3600"]);
    act();
    let [hits, misses, dirties] = all_of(&tool.stop());
    assert_eq!((hits, dirties), (PAGES as u64, 0), "{misses} misses");
    // One for each fault.
    assert!((1..=PAGES as u64 / 8).contains(&misses), "{misses}");
    Outcome::Passed
}

/// Reads of many pages each, over all sizes of the parts that the kernel side makes of them.
fn large() -> Outcome {
    if let Some(outcome) = lacks() {
        return outcome;
    }
    const PAGES: usize = 9_000;
    const N: u64 = PAGES as u64;
    let worker = Worker::new();
    let run = |tool| {
        let path = mounted("xfs").join("cachestat-large");
        let file = uncached(&path, PAGES * PAGE);
        let mut steps = Steps { tool, done: Vec::new() };
        let job = |act: fn(&File)| {
            let file = file.try_clone().expect("a descriptor");
            worker.run(move || act(&file));
        };
        steps.over("nothing", [0; 3]);
        job(|file| read_all(file, 256));
        steps.over("a MiB each, uncached", [0, N, 0]);
        job(|file| read_all(file, 256));
        steps.over("a MiB each, cached", [N, 0, 0]);
        forget(&file);
        job(|file| read_pages(file, &[63, 64, 4095, 4096, 8191]));
        steps.over("some", [0, 5, 0]);
        job(|file| read_all(file, PAGES));
        steps.over("one read, uncached", [5, N - 5, 0]);
        job(|file| {
            let mut buffer = vec![0; 8_999 * PAGE];
            let read = file.read_at(&mut buffer, 100).expect("read");
            assert_eq!(read, buffer.len());
        });
        steps.over("one read from the middle of a page", [N, 0, 0]);
        steps.check("large");
        std::fs::remove_file(path).expect("remove");
    };
    run(None);
    run(Some(start("cachestat", &["--tid", &worker.tid.to_string(), "0.1"])));
    Outcome::Passed
}

/// A disk is read like a file.
fn devices() -> Outcome {
    if let Some(outcome) = lacks() {
        return outcome;
    }
    let disk = Disk::any();
    let file = File::open(disk.path()).expect("open");
    let worker = Worker::new();
    let read = || {
        let file = file.try_clone().expect("a descriptor");
        worker.run(move || read_pages(&file, &(700..740).collect::<Vec<_>>()));
    };
    let forget = || {
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("fadvise");
    };
    read();
    let tool = start("cachestat", &["--tid", &worker.tid.to_string(), "3600"]);
    forget();
    (0..3).for_each(|_| read());
    assert_eq!(all_of(&tool.stop()), [80, 40, 0]);
    Outcome::Passed
}

/// What another process has read is cached for all, although it is not counted itself.
fn first() -> Outcome {
    if let Some(outcome) = lacks() {
        return outcome;
    }
    let path = mounted("ext4").join("cachestat-first");
    let file = uncached(&path, 50 * PAGE);
    let worker = Worker::new();
    let job = || {
        let file = file.try_clone().expect("a descriptor");
        worker.run(move || read_all(&file, 16));
    };
    job();
    let tid = worker.tid.to_string();
    let mine = start("cachestat", &["--tid", &tid, "3600"]);
    let nobody = start("cachestat", &["--tid", &tid, "--comm", "cs-nobody", "3600"]);
    forget(&file);
    let cat = Command::new("cat").arg(&path).output().expect("cat");
    assert_eq!(cat.stdout.len(), 50 * PAGE);
    job();
    let (mine, nobody) = (mine.stop(), nobody.stop());
    assert_eq!(all_of(&mine), [50, 0, 0]);
    assert_eq!(all_of(&nobody), [0; 3]);
    Outcome::Passed
}

/// Reads go on while reports are made; together they are all.
fn intervals() -> Outcome {
    if let Some(outcome) = lacks() {
        return outcome;
    }
    static ENOUGH: AtomicBool = AtomicBool::new(false);
    let file = uncached(&mounted("ext4").join("cachestat-intervals"), PAGE);
    let worker = Worker::new();
    let begin = || {
        let (tell, made) = channel();
        let file = file.try_clone().expect("a descriptor");
        worker.begin(move || {
            let mut made = 0u64;
            loop {
                read_pages(&file, &[0]);
                made += 1;
                if ENOUGH.load(Ordering::Relaxed) {
                    break;
                }
            }
            tell.send(made).expect("send");
        });
        made
    };
    ENOUGH.store(true, Ordering::Relaxed);
    let rehearsal = begin();
    worker.end();
    assert_eq!(rehearsal.recv(), Ok(1));

    ENOUGH.store(false, Ordering::Relaxed);
    let mut tool = start("cachestat", &["--tid", &worker.tid.to_string(), "0.02"]);
    let made = begin();
    // With reads in them.
    for _ in 0..8 {
        tool.wait_for(|record| record["hits"].as_u64() > Some(0));
    }
    ENOUGH.store(true, Ordering::Relaxed);
    worker.end();
    assert_eq!(all_of(&tool.stop()), [made.recv().expect("a number"), 0, 0]);

    let counted = start("cachestat", &["0.1", "2"]).finish();
    assert_eq!((counted.of("report").count(), &counted.end()["reason"]), (2, &"count".into()));
    Outcome::Passed
}

/// Threads that are preempted while they read: what is counted and what is known to be missed are
/// all.
fn threads() -> Outcome {
    if let Some(outcome) = lacks() {
        return outcome;
    }
    const READS: u64 = 3000;
    let workers: Vec<Worker> = (0..6).map(|_| Worker::new()).collect();
    let file = uncached(&mounted("ext4").join("cachestat-threads"), 8 * PAGE);
    let all = |reads: u64| {
        for worker in &workers {
            let file = file.try_clone().expect("a descriptor");
            worker.begin(move || (0..reads).for_each(|i| read_pages(&file, &[i % 8])));
        }
        workers.iter().for_each(Worker::end);
    };
    all(8);
    let tids: Vec<String> = workers.iter().map(|worker| worker.tid.to_string()).collect();
    let tool = start("cachestat", &["--tid", &tids.join(","), "0.1"]);
    all(READS);
    let finished = tool.stop();
    let [hits, misses, dirties] = all_of(&finished);
    let missed = finished.end()["missed"].as_u64().unwrap_or(0);
    let wanted = READS * workers.len() as u64;
    assert!(hits <= wanted && hits + missed >= wanted, "{hits} of {wanted}, {missed} missed");
    assert_eq!((misses, dirties), (0, 0));
    Outcome::Passed
}

/// The sizes are those that the kernel says, within what may change between two looks.
fn memory() -> Outcome {
    if let Some(outcome) = lacks() {
        return outcome;
    }
    let finished = start("cachestat", &["0.1", "1"]).finish();
    let row = finished.of("row").next().expect("a row").clone();
    let text = std::fs::read_to_string("/proc/meminfo").expect("meminfo");
    let kib = |name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name)).expect(name);
        line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
    };
    for (field, name) in [("buffers_bytes", "Buffers:"), ("cached_bytes", "Cached:")] {
        let shown = row[field].as_u64().expect("a number");
        assert!(shown.abs_diff(kib(name) * 1024) < 64 << 20, "{field}: {row}");
    }
    assert!(row["cached_bytes"].as_u64() > row["buffers_bytes"].as_u64(), "{row}");
    Outcome::Passed
}

fn text() -> Outcome {
    if let Some(outcome) = lacks() {
        return outcome;
    }
    let worker = Worker::new();
    // It keeps none of its own data in the cache of its disk.
    let path = mounted("xfs").join("cachestat-text");
    let act = || {
        let file = uncached(&path, 3 * PAGE);
        worker.run(move || {
            // Not at the end, where old kernels add a page behind it.
            read_pages(&file, &[0, 1, 2]);
            read_pages(&file, &[0, 1, 2, 0]);
            file.write_all_at(&[1; 2 * PAGE], 0).expect("write");
        });
    };
    act();
    for (args, header) in [
        (&[][..], "    HITS   MISSES  DIRTIES HITRATIO   BUFFERS_MB  CACHED_MB"),
        (
            &["-T", "--fields", "+added"][..],
            "TIME         HITS   MISSES  DIRTIES HITRATIO   BUFFERS_MB    ADDED  CACHED_MB",
        ),
    ] {
        let tid = worker.tid.to_string();
        let args = [args, &["--tid", &tid, "3600"]].concat();
        let lines = text_run("cachestat", &args, 1, act);
        assert_eq!((lines[0].as_str(), lines.len()), (header, 2), "{lines:?}");
        let mut words: Vec<&str> = lines[1].split_whitespace().collect();
        assert_eq!(lines[1].len(), header.len(), "{lines:?}");
        if args[0] == "-T" {
            assert_eq!(words.remove(0).split(':').count(), 3, "{lines:?}");
            // Read by the kernel for this thread.
            assert_eq!(words.remove(5), "3", "{lines:?}");
        }
        assert_eq!(words[..4], ["4", "3", "2", "57.14%"], "{lines:?}");
        assert!(words[4..].iter().all(|word| word.parse::<u64>().is_ok()), "{lines:?}");
        assert_eq!(words.len(), 6, "{lines:?}");
    }
    let idle = text_run("cachestat", &["--comm", "cs-nobody", "3600"], 1, || ());
    let words: Vec<&str> = idle[1].split_whitespace().take(4).collect();
    assert_eq!(words, ["0", "0", "0", "-"], "{idle:?}");
    Outcome::Passed
}

fn usage_errors() -> Outcome {
    assert_usage_errors(
        "cachestat",
        &[&["0"][..], &["abc"], &["-1"], &["1", "0"], &["1", "2", "3"]],
    );
    Outcome::Passed
}
