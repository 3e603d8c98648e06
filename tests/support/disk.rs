// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Block devices of a test's own, and I/O on them of which every request is known.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use io_uring::IoUring;
use io_uring::opcode;
use io_uring::types;
use nix::libc;

use super::patience;
use super::scratch;

/// Bytes of one request of [`Direct`].
pub const BLOCK: usize = 4096;

/// A device, removed when it goes out of scope.
pub struct Disk {
    /// Its name, as in /sys/block.
    pub name: String,
    made: Made,
}

enum Made {
    /// A directory of null_blk's configuration.
    Null(PathBuf),
    /// A file that a loop device shows.
    Loop(PathBuf),
}

/// Whether this kernel has null_blk, or why not.
fn null_blk() -> Result<(), String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    LOADED
        .get_or_init(|| {
            let modprobe = Command::new("modprobe").args(["null_blk", "nr_devices=0"]).output();
            let modprobe = modprobe.map_err(|error| format!("modprobe: {error}"))?;
            if !modprobe.status.success() {
                return Err("this kernel has no null_blk".into());
            }
            if !Path::new("/sys/kernel/config/nullb").exists() {
                let mount = Command::new("mount")
                    .args(["-t", "configfs", "none", "/sys/kernel/config"])
                    .status();
                assert!(mount.expect("mount").success(), "configfs");
            }
            Ok(())
        })
        .clone()
}

impl Disk {
    /// A null_blk device of 64 MB with these settings, or why there can be none.
    pub fn null(settings: &[(&str, &str)]) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        null_blk()?;
        let id = format!("bs{}n{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let config = Path::new("/sys/kernel/config/nullb").join(&id);
        fs::create_dir(&config).expect("null_blk directory");
        let base = [("size", "64"), ("blocksize", "512")];
        for (name, value) in base.iter().chain(settings).chain(&[("power", "1")]) {
            fs::write(config.join(name), value)
                .unwrap_or_else(|error| panic!("null_blk {name}={value}: {error}"));
        }
        // Devices have had the directory's name since 49c3b9266a71 "block: null_blk: Improve
        // device creation with configfs" (5.19), and their number before.
        let name = if Path::new("/sys/block").join(&id).exists() {
            id
        } else {
            let index = fs::read_to_string(config.join("index")).expect("index");
            format!("nullb{}", index.trim())
        };
        Ok(Self { name, made: Made::Null(config) })
    }

    /// A zoned device of 64 zones: the first can be written anywhere, the others only from their
    /// start on.
    pub fn zoned() -> Result<Self, String> {
        Self::null(&[
            ("size", "256"),
            ("blocksize", "4096"),
            ("zoned", "1"),
            ("zone_size", "4"),
            ("zone_nr_conv", "1"),
            ("memory_backed", "1"),
            ("irqmode", "0"),
        ])
    }

    /// A loop device over a file of 64 MB, with partitions.
    pub fn in_file() -> Self {
        let file = scratch("loop").join("image");
        File::create(&file).expect("image").set_len(64 << 20).expect("image");
        let made = Command::new("losetup").args(["-P", "--show", "-f"]).arg(&file).output();
        let made = made.expect("losetup");
        assert!(made.status.success(), "losetup: {}", String::from_utf8_lossy(&made.stderr));
        let path = String::from_utf8_lossy(&made.stdout).trim().to_string();
        let name = path.trim_start_matches("/dev/").to_string();
        Self { name, made: Made::Loop(file) }
    }

    /// A device that keeps what is written, takes discards, and has a cache that is flushed: on
    /// null_blk, or where there is none, in a file.
    pub fn any() -> Self {
        let settings =
            [("memory_backed", "1"), ("discard", "1"), ("cache_size", "16"), ("irqmode", "0")];
        Self::null(&settings).unwrap_or_else(|_| Self::in_file())
    }

    /// Its device file.
    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// A file in its directory in sysfs.
    pub fn sys(&self, file: &str) -> PathBuf {
        Path::new("/sys/block").join(&self.name).join(file)
    }

    /// Makes a partition and returns its name.
    pub fn partition(&self, number: u32, start: u64, sectors: u64) -> String {
        let status = Command::new("addpart")
            .arg(self.path())
            .args([number.to_string(), start.to_string(), sectors.to_string()])
            .status();
        assert!(status.expect("addpart").success(), "addpart");
        let between = if self.name.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
        format!("{}{between}{number}", self.name)
    }

    /// Chooses its I/O scheduler; false where the kernel does not have it.
    pub fn scheduler(&self, name: &str) -> bool {
        fs::write(self.sys("queue/scheduler"), name).is_ok()
    }

    /// What the kernel counts itself, when nothing is under way: requests completed (reads,
    /// writes) and bios that were merged into others (reads, writes).
    pub fn statistics(&self) -> ([u64; 2], [u64; 2]) {
        let until = Instant::now() + patience();
        let numbers = |file: &str| -> Vec<u64> {
            let text = fs::read_to_string(self.sys(file)).expect("sysfs");
            text.split_whitespace().map(|word| word.parse().expect("a number")).collect()
        };
        while numbers("inflight").iter().any(|n| *n > 0) {
            assert!(Instant::now() < until, "I/O on {} does not end", self.name);
            thread::sleep(Duration::from_millis(5));
        }
        let stat = numbers("stat");
        ([stat[0], stat[4]], [stat[1], stat[5]])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        match &self.made {
            Made::Null(config) => {
                let _ = fs::write(config.join("power"), "0");
                let _ = fs::remove_dir(config);
            }
            Made::Loop(file) => {
                let _ = Command::new("losetup").arg("-d").arg(self.path()).status();
                let _ = fs::remove_file(file);
            }
        }
    }
}

/// Blocks of a zone of [`Disk::zoned`].
pub const ZONE: usize = (4 << 20) / BLOCK;

/// A mounted device.
pub struct Mounted(pub PathBuf);

impl Mounted {
    /// Mounts a device, or says why it cannot be done.
    pub fn new(kind: &str, disk: &Disk) -> Result<Self, String> {
        let directory = scratch(kind);
        let mut mount = Command::new("mount");
        mount.args(["-t", kind]).arg(disk.path()).arg(&directory);
        let output = mount.output().expect("mount");
        if !output.status.success() {
            return Err(format!(
                "{kind} is not there: {}",
                String::from_utf8_lossy(&output.stderr)
            ));
        }
        Ok(Self(directory))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// A file of a zoned device to which direct writes are appended by the device. Of the file systems,
/// zonefs did so before 16d7fd3cfa72 "zonefs: use iomap for synchronous direct writes" (6.6), and
/// btrfs has known zones since 5.12.
pub fn file_that_appends(disk: &Disk) -> Result<(Mounted, File), String> {
    let (mounted, path, flags) = if super::kernel() == "5.10" {
        // The superblock: magic number, checksum, and no features.
        let mut block = [0u8; BLOCK];
        block[..4].copy_from_slice(&0x5a4f_4653u32.to_le_bytes());
        let mut crc = u32::MAX;
        for byte in block {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
            }
        }
        block[4..8].copy_from_slice(&crc.to_le_bytes());
        let mut direct = Direct::open(&disk.path());
        direct.block().copy_from_slice(&block);
        direct.write(0);
        drop(direct);
        let mounted = Mounted::new("zonefs", disk)?;
        let path = mounted.0.join("seq/3");
        (mounted, path, 0)
    } else {
        let mut mkfs = Command::new("mkfs.btrfs");
        mkfs.args(["-q", "-f", "-m", "single", "-d", "single"]).arg(disk.path());
        match mkfs.output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => return Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(_) => return Err("there is no mkfs.btrfs".into()),
        }
        let mounted = Mounted::new("btrfs", disk)?;
        let path = mounted.0.join("file");
        (mounted, path, libc::O_CREAT)
    };
    let mut options = OpenOptions::new();
    let file = options.write(true).custom_flags(libc::O_DIRECT | flags).mode(0o600).open(&path);
    Ok((mounted, file.unwrap_or_else(|error| panic!("{}: {error}", path.display()))))
}

/// A device opened for I/O past the page cache: each call is one request.
pub struct Direct {
    /// The open device.
    pub file: File,
    buffer: Vec<u8>,
}

impl Direct {
    /// Opens a device file.
    pub fn open(path: &Path) -> Self {
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path);
        let file = file.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { file, buffer: vec![0; 2 * BLOCK] }
    }

    fn block(&mut self) -> &mut [u8] {
        let at = self.buffer.as_ptr().align_offset(BLOCK);
        &mut self.buffer[at..at + BLOCK]
    }

    /// Reads the block of this number.
    pub fn read(&mut self, number: usize) {
        let file = self.file.try_clone().expect("a descriptor");
        file.read_exact_at(self.block(), (number * BLOCK) as u64).expect("read");
    }

    /// Reads `blocks` blocks from this byte on, as one request where the device takes so many.
    pub fn read_from(&self, byte: u64, blocks: usize) -> io::Result<usize> {
        let mut memory = vec![0u8; (blocks + 1) * BLOCK];
        let at = memory.as_ptr().align_offset(BLOCK);
        self.file.read_at(&mut memory[at..at + blocks * BLOCK], byte)
    }

    /// Writes the block of this number.
    pub fn write(&mut self, number: usize) {
        let file = self.file.try_clone().expect("a descriptor");
        file.write_all_at(self.block(), (number * BLOCK) as u64).expect("write");
    }

    /// Flushes the device's cache.
    pub fn flush(&self) {
        self.file.sync_data().expect("fdatasync");
    }

    /// Discards `blocks` blocks from this one on.
    pub fn discard(&self, number: usize, blocks: usize) {
        self.range(Range::DISCARD, number, blocks).expect("BLKDISCARD");
    }

    /// Asks for something to be done to `blocks` blocks from this one on.
    pub fn range(&self, what: Range, number: usize, blocks: usize) -> io::Result<()> {
        let unit = if what.in_sectors { BLOCK / 512 } else { BLOCK };
        let range = [(number * unit) as u64, (blocks * unit) as u64];
        // SAFETY: the request takes two u64.
        let result =
            unsafe { libc::ioctl(self.file.as_raw_fd(), what.request.into(), range.as_ptr()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// What can be asked for a range of a device: numbers of linux/fs.h and linux/blkzoned.h.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    request: u32,
    in_sectors: bool,
}

impl Range {
    const fn bytes(number: u32) -> Self {
        Self { request: 0x1200 | number, in_sectors: false }
    }

    const fn zones(number: u32) -> Self {
        // _IOW(0x12, number, struct blk_zone_range)
        Self { request: 0x4010_1200 | number, in_sectors: true }
    }

    /// Its content is not needed any more.
    pub const DISCARD: Self = Self::bytes(119);
    /// The same, and nobody may ever read it again.
    pub const SECURE_ERASE: Self = Self::bytes(125);
    /// Zeroes are written.
    pub const ZEROES: Self = Self::bytes(127);
    /// Zones are emptied.
    pub const RESET_ZONES: Self = Self::zones(131);
    /// Zones are opened.
    pub const OPEN_ZONES: Self = Self::zones(134);
    /// Zones are closed.
    pub const CLOSE_ZONES: Self = Self::zones(135);
    /// Zones are made full.
    pub const FINISH_ZONES: Self = Self::zones(136);
}

/// Appends so many blocks to a file, each with a write of its own.
pub fn append(file: &File, blocks: usize) {
    let memory = vec![1u8; 2 * BLOCK];
    let at = memory.as_ptr().align_offset(BLOCK);
    for i in 0..blocks {
        file.write_all_at(&memory[at..at + BLOCK], (i * BLOCK) as u64).expect("write");
    }
}

/// Puts reads of these blocks into the ring; the memory that they read to, which must outlive them.
fn prepare(ring: &mut IoUring, direct: &Direct, blocks: &[usize]) -> Vec<u8> {
    let mut memory = vec![0u8; (blocks.len() + 1) * BLOCK];
    let start_of = memory.as_ptr().align_offset(BLOCK);
    for (i, block) in blocks.iter().enumerate() {
        let at = memory[start_of + i * BLOCK..].as_mut_ptr();
        let fd = types::Fd(direct.file.as_raw_fd());
        let length = u32::try_from(BLOCK).expect("small");
        let entry = opcode::Read::new(fd, at, length).offset((block * BLOCK) as u64);
        let entry = entry.build().user_data(*block as u64);
        // SAFETY: the callers keep the memory until the reads are over.
        unsafe { ring.submission().push(&entry).expect("room") };
    }
    memory
}

/// Submits reads of these blocks at once and waits for them.
pub fn read_at_once(ring: &mut IoUring, direct: &Direct, blocks: &[usize]) {
    let _memory = prepare(ring, direct, blocks);
    ring.submit_and_wait(blocks.len()).expect("submit");
    let done: Vec<_> = ring.completion().map(|done| done.result()).collect();
    assert_eq!(done, vec![i32::try_from(BLOCK).expect("small"); blocks.len()]);
}

/// The same; how long the submission took, and which block was read when, counted from before it.
pub fn read_timed(
    ring: &mut IoUring,
    direct: &Direct,
    blocks: &[usize],
) -> (Duration, Vec<(usize, Duration)>) {
    let _memory = prepare(ring, direct, blocks);
    let started = Instant::now();
    ring.submit().expect("submit");
    let submission = started.elapsed();
    let mut all = Vec::new();
    while all.len() < blocks.len() {
        ring.submit_and_wait(1).expect("wait");
        for done in ring.completion() {
            assert_eq!(done.result(), i32::try_from(BLOCK).expect("small"));
            all.push((usize::try_from(done.user_data()).expect("a block"), started.elapsed()));
        }
    }
    (submission, all)
}
