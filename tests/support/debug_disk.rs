// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! The disk of the kernel's own tests of SCSI (`scsi_debug`), which does what disks rarely do.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use super::disk::BLOCK;
use super::disk::Direct;
use super::kernel;
use super::patience;

/// The disk, for one test at a time.
pub struct DebugDisk {
    /// Its name, as in /sys/block.
    pub name: String,
    _only_one: MutexGuard<'static, ()>,
}

/// Blocks of one of the reads of [`DebugDisk::read_in_halves`].
pub const IN_HALVES: usize = 4;

/// A read that the disk may have done by halves.
pub struct Halves {
    /// Its first sector.
    pub sector: u64,
    /// How long the disk needed at the least: it takes that long for each part.
    pub least: Duration,
    /// How long the reader waited.
    pub waited: Duration,
}

impl DebugDisk {
    /// The disk, or why there is none. It waits for the test that has it now.
    pub fn get() -> Result<Self, String> {
        static ONLY_ONE: Mutex<()> = Mutex::new(());
        if kernel() == "own" {
            return Err("it would add a disk to this machine".into());
        }
        let only_one = ONLY_ONE.lock().unwrap_or_else(PoisonError::into_inner);
        for module in ["scsi_debug", "sd_mod"] {
            let modprobe = Command::new("modprobe").arg(module).output();
            if !modprobe.is_ok_and(|output| output.status.success()) {
                return Err(format!("this kernel has no {module}"));
            }
        }
        let until = Instant::now() + patience();
        loop {
            let disks = fs::read_dir("/sys/block").expect("/sys/block").flatten();
            let mut names = disks.map(|disk| disk.file_name().to_string_lossy().into_owned());
            let model = |name: &String| {
                fs::read_to_string(format!("/sys/block/{name}/device/model")).unwrap_or_default()
            };
            let there = |name: &String| Path::new("/dev").join(name).exists();
            if let Some(name) = names.find(|name| model(name).trim() == "scsi_debug" && there(name))
            {
                let disk = Self { name, _only_one: only_one };
                // Who opens it waits until it has been looked through for partitions.
                drop(Direct::open(&disk.path()));
                return Ok(disk);
            }
            assert!(Instant::now() < until, "the disk does not come");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its device file.
    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// What the module is told while it runs. It refuses while a command is under way.
    fn set(name: &str, value: &str) {
        let path = Path::new("/sys/bus/pseudo/drivers/scsi_debug").join(name);
        let until = Instant::now() + patience();
        while let Err(error) = fs::write(&path, value) {
            assert!(Instant::now() < until, "scsi_debug {name}={value}: {error}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// From now on its sectors 0x1234 to 0x123d cannot be read: what is read before them is done
    /// first, and then the rest fails.
    pub fn goes_bad(&self) {
        Self::set("opts", "2");
    }

    /// How many commands the disk has been given.
    fn commands(&self) -> u32 {
        let path = format!("/sys/block/{}/device/iorequest_cnt", self.name);
        let text = fs::read_to_string(path).expect("iorequest_cnt");
        let digits = text.trim().trim_start_matches("0x");
        u32::from_str_radix(digits, 16).expect("a hexadecimal number")
    }

    /// So many reads of [`IN_HALVES`] blocks, one behind the other from the start of the disk, which
    /// says of every other command that it did the first half of it, and is given the second half
    /// anew: a request then takes two commands, and for each of these the disk takes 30 ms.
    pub fn read_in_halves(&self, reads: usize) -> Vec<Halves> {
        const EACH: Duration = Duration::from_millis(30);
        Self::set("ndelay", &EACH.as_nanos().to_string());
        Self::set("opts", "0x100");
        Self::set("every_nth", "2");
        let direct = Direct::open(&self.path());
        let read = |i: usize| {
            let byte = (i * IN_HALVES * BLOCK) as u64;
            let before = self.commands();
            let started = Instant::now();
            let read = direct.read_from(byte, IN_HALVES).expect("read");
            let waited = started.elapsed();
            assert_eq!(read, IN_HALVES * BLOCK);
            Halves { sector: byte / 512, least: EACH * (self.commands() - before), waited }
        };
        let all: Vec<_> = (0..reads).map(read).collect();
        let halved = all.iter().filter(|read| read.least == 2 * EACH).count();
        assert!(halved + 1 >= reads, "the disk did {halved} of {reads} requests by halves");
        all
    }
}

impl Drop for DebugDisk {
    fn drop(&mut self) {
        // The next test finds it as it was. After a panic the disk may be busy for ever.
        for (name, value) in [("every_nth", "0"), ("opts", "0"), ("ndelay", "0")] {
            let _ = fs::write(Path::new("/sys/bus/pseudo/drivers/scsi_debug").join(name), value);
        }
    }
}
