// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! mdflush against flushes that the tests send to an array of their own.

use std::fs;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use nix::libc;
use nix::sys::stat::Mode;
use nix::sys::stat::SFlag;
use nix::sys::stat::makedev;
use nix::sys::stat::mknod;

use crate::support::Case;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::disk::Direct;
use crate::support::disk::Disk;
use crate::support::exact_time;
use crate::support::gettid;
use crate::support::losses::assert_counted;
use crate::support::patience;
use crate::support::process;
use crate::support::start;
use crate::support::text::assert_usage_errors;
use crate::support::text::text_run;

pub const CASES: &[Case] = &[
    // One after the other, since there is one array.
    Case::alone("every flush once", flushes),
    Case::alone("latency", latency).timed(),
    Case::alone("text", text).in_turn(),
    Case::new("usage errors", usage_errors).in_turn(),
    Case::alone("what does not fit is counted", no_room).in_turn(),
];

/// A mirror of two disks with caches, without metadata on them; taken down when it goes.
struct Array {
    name: String,
    path: PathBuf,
    _disks: [Disk; 2],
}

const MAJOR: u64 = 9;
const MINOR: u64 = 93;

/// The array's requests, from include/uapi/linux/raid/md_u.h.
const fn request(number: u64, size: usize) -> libc::c_ulong {
    (1 << 30) | (size as u64) << 16 | MAJOR << 8 | number
}

/// `mdu_array_info_t`, 18 numbers; `mdu_disk_info_t`, 5.
type ArrayInfo = [i32; 18];
type DiskInfo = [i32; 5];

impl Array {
    fn new(settings: &[(&str, &str)]) -> Result<Self, String> {
        for module in ["md_mod", "raid1"] {
            let _ = Command::new("modprobe").args(["-q", module]).status();
        }
        let devices = fs::read_to_string("/proc/mdstat").unwrap_or_default();
        if !devices.contains("[raid1]") {
            return Err("this kernel has no md".into());
        }
        let settings = [&[("memory_backed", "1"), ("cache_size", "16")], settings].concat();
        let disk = || Disk::null(&settings).unwrap_or_else(|_| Disk::in_file());
        let disks = [disk(), disk()];
        // Newer kernels do not make an array when a device of its number is opened.
        let _ = fs::write("/sys/module/md_mod/parameters/new_array", format!("md{MINOR}"));
        // In /tmp a device may not be opened.
        let path = PathBuf::from(format!("/dev/md{MINOR}"));
        if !path.exists() {
            let number = makedev(MAJOR, MINOR);
            mknod(&path, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, number).expect("mknod");
        }
        assert!(fs::metadata(&path).expect("a device").file_type().is_block_device());
        let file = File::options().read(true).write(true).open(&path);
        let Ok(file) = file else { return Err("this kernel makes no array on opening it".into()) };
        let ioctl = |number, size, argument: *const i32| {
            // SAFETY: the argument has the size that the request says.
            let result =
                unsafe { libc::ioctl(file.as_raw_fd(), request(number, size) as _, argument) };
            assert_eq!(result, 0, "md {number:#x}: {}", std::io::Error::last_os_error());
        };
        // Version 0.90.3, level 1, 32 MB, two disks, without a superblock.
        let mut info: ArrayInfo = [0; 18];
        info[1] = 90;
        info[2] = 3;
        info[4] = 1;
        info[5] = 32 << 10;
        info[6] = 2;
        info[7] = 2;
        info[9] = i32::try_from(MINOR).expect("small");
        info[10] = 1;
        // In order: nothing is to be copied first.
        info[12] = 1;
        info[13] = 2;
        info[14] = 2;
        ioctl(0x23, size_of::<ArrayInfo>(), info.as_ptr());
        for (i, disk) in disks.iter().enumerate() {
            let device = fs::metadata(disk.path()).expect("a disk").rdev();
            let [major, minor] = [libc::major(device), libc::minor(device)];
            let number = i32::try_from(i).expect("small");
            // Active and in order.
            let disk: DiskInfo = [number, major as i32, minor as i32, number, 2 | 4];
            ioctl(0x21, size_of::<DiskInfo>(), disk.as_ptr());
        }
        ioctl(0x30, 12, std::ptr::null());
        Ok(Self { name: format!("md{MINOR}"), path, _disks: disks })
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        let Ok(file) = File::options().read(true).write(true).open(&self.path) else { return };
        // Others (udev) may have it open for a moment.
        let until = Instant::now() + patience();
        // SAFETY: takes no memory.
        while unsafe { libc::ioctl(file.as_raw_fd(), (MAJOR << 8 | 0x32) as _, 0) } != 0
            && Instant::now() < until
        {
            std::thread::yield_now();
        }
        let _ = fs::remove_file(&self.path);
    }
}

macro_rules! array {
    ($settings:expr) => {
        match Array::new($settings) {
            Ok(array) => array,
            Err(reason) => return Outcome::Skipped(reason),
        }
    };
}

fn mine(finished: &Finished) -> Vec<&serde_json::Value> {
    finished.assert_clean();
    finished.of("event").filter(|event| event["pid"] == std::process::id()).collect()
}

/// The tool is there before the array, and perhaps before the module.
fn flushes() -> Outcome {
    let all = start("mdflush", &[]);
    let own = start("mdflush", &["-p", &std::process::id().to_string()]);
    let nobody = start("mdflush", &["--comm", "mf-nobody"]);
    let array = array!(&[]);
    let other = Disk::any();
    let mut direct = Direct::open(&array.path);
    for i in 0..23 {
        direct.write(i);
        direct.flush();
    }
    // Without anything to be written: a flush all the same.
    (0..4).for_each(|_| direct.flush());
    // No flushes of an array: reads, and another disk's.
    direct.read(3);
    Direct::open(&other.path()).flush();
    let (all, own, nobody) = (all.stop(), own.stop(), nobody.stop());
    for finished in [&all, &own] {
        let events = mine(finished);
        assert_eq!(events.len(), 27, "{:?}", events.last());
        for event in &events {
            let (pid, tid, ..) = process(event);
            assert_eq!((pid, tid), (std::process::id().into(), gettid()));
            assert_eq!(
                (&event["device"], &event["size_bytes"]),
                (&array.name.as_str().into(), &0.into())
            );
            assert!(event["lat_ns"].is_null() && event["error"].is_null(), "{event}");
        }
    }
    assert_eq!(own.of("event").count(), 27);
    assert_eq!(nobody.of("event").count(), 0);
    Outcome::Passed
}

/// Disks that take 20 ms for everything: so does a flush, or longer, and no longer than fdatasync.
fn latency() -> Outcome {
    let slow = [("irqmode", "2"), ("completion_nsec", "20000000")];
    if let Err(reason) = Disk::null(&slow) {
        return Outcome::Skipped(reason);
    }
    let array = array!(&slow);
    let tool = start("mdflush", &["-l"]);
    let direct = Direct::open(&array.path);
    let waited: Vec<Duration> = (0..5)
        .map(|_| {
            let started = Instant::now();
            direct.flush();
            started.elapsed()
        })
        .collect();
    let finished = tool.stop();
    let events = mine(&finished);
    assert_eq!(events.len(), 5, "{events:?}");
    for (event, waited) in events.iter().zip(&waited) {
        let latency = Duration::from_nanos(event["lat_ns"].as_u64().expect("lat_ns"));
        assert!(latency >= Duration::from_millis(20) && latency <= *waited, "{event}, {waited:?}");
        // The array takes time of its own, which counts; the caller's, before and after, is short.
        let short = *waited / 10;
        assert!(!exact_time() || latency + short >= *waited, "{event}, {waited:?}");
    }
    Outcome::Passed
}

fn text() -> Outcome {
    let array = array!(&[]);
    let direct = Direct::open(&array.path);
    let own = std::process::id().to_string();
    for (args, header) in [
        (vec!["-p", &own], "TIME     PID     COMM             DEVICE"),
        (vec!["-l", "-p", &own], "TIME     PID     COMM             LAT(ms) DEVICE"),
    ] {
        let lines = text_run("mdflush", &args, 2, || direct.flush());
        let banner = "Tracing md flush requests... Hit Ctrl-C to end.";
        assert_eq!(lines[..2], [banner, header], "{lines:?}");
        assert_eq!(lines.len(), 3, "{lines:?}");
        let comm = fs::read_to_string("/proc/thread-self/comm").expect("comm");
        let middle = format!(" {own:<7} {:<16} ", comm.trim());
        assert_eq!(lines[2].get(8..8 + middle.len()), Some(middle.as_str()), "{lines:?}");
        let time: Vec<_> = lines[2][..8].split(':').map(str::len).collect();
        assert_eq!(time, [2, 2, 2], "{lines:?}");
        let rest: Vec<_> = lines[2][8 + middle.len()..].split_whitespace().collect();
        assert_eq!(
            (rest.last(), rest.len()),
            (Some(&array.name.as_str()), args.len() - 1),
            "{lines:?}"
        );
        if let [latency, _] = rest[..] {
            assert_eq!(latency.split('.').nth(1).map(str::len), Some(3), "{lines:?}");
        }
    }
    assert!(Path::new("/sys/block").join(&array.name).exists());
    Outcome::Passed
}

fn usage_errors() -> Outcome {
    assert_usage_errors("mdflush", &[&["5"][..], &["-p", "0"], &["-d", "md0"]]);
    Outcome::Passed
}

/// A buffer too small: see [`assert_counted`].
fn no_room() -> Outcome {
    let array = array!(&[]);
    let direct = Direct::open(&array.path);
    assert_counted("mdflush", &["-p", &std::process::id().to_string()], 200, || {
        (0..200).for_each(|_| direct.flush());
    });
    Outcome::Passed
}
