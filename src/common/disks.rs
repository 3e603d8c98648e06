// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Disks and partitions: from a name to what the kernel side compares, and from a number to a name.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::Path;

/// A disk or a partition that the user named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The number of the whole disk, as [`Disks::name`] takes it.
    pub number: u32,
    /// For a partition: its first sector, and the first one behind it, in units of 512 bytes.
    pub sectors: Option<(u64, u64)>,
}

impl Disk {
    /// Finds `sda`, `sda1`, `/dev/sda`; for clap.
    ///
    /// # Errors
    /// A sentence, when there is no such disk.
    pub fn find(name: &str) -> Result<Self, String> {
        Self::find_in(Path::new("/sys/class/block"), name)
    }

    fn find_in(class: &Path, name: &str) -> Result<Self, String> {
        let missing = || format!("there is no disk or partition '{name}'; lsblk shows them");
        // sysfs has `!` where a device's name has a slash (cciss/c0d0).
        let file = name.strip_prefix("/dev/").unwrap_or(name).replace('/', "!");
        if file.is_empty() || file.starts_with('.') {
            return Err(missing());
        }
        // The entry is a link into the device tree, where a partition is below its disk.
        let device = fs::canonicalize(class.join(file)).map_err(|_| missing())?;
        if !device.join("partition").exists() {
            let number = device_number(&device).ok_or_else(missing)?;
            return Ok(Self { number, sectors: None });
        }
        let number = device.parent().and_then(device_number).ok_or_else(missing)?;
        let read = |file: &str| -> Option<u64> {
            fs::read_to_string(device.join(file)).ok()?.trim().parse().ok()
        };
        let (Some(start), Some(size)) = (read("start"), read("size")) else {
            return Err(missing());
        };
        Ok(Self { number, sectors: Some((start, start + size)) })
    }
}

fn device_number(device: &Path) -> Option<u32> {
    let text = fs::read_to_string(device.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(number(major.parse().ok()?, minor.parse().ok()?))
}

/// As the kernel has it inside (`MKDEV`), not as `stat` shows it.
fn number(major: u32, minor: u32) -> u32 {
    major << 20 | minor
}

/// Names of disks by their numbers.
#[derive(Debug)]
pub struct Disks {
    names: BTreeMap<u32, String>,
}

impl Disks {
    /// Those that there are now. Read early, it also names what is gone when it is shown.
    pub fn read() -> Self {
        Self { names: parse(&fs::read_to_string("/proc/partitions").unwrap_or_default()) }
    }

    /// How many there are, with their partitions.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The name of a disk, also of one that came later.
    pub fn name(&mut self, number: u32) -> Option<&str> {
        let name = match self.names.entry(number) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                // Not every device is in /proc/partitions: those without a medium are not.
                let link = format!("/sys/dev/block/{}:{}", number >> 20, number & 0xf_ffff);
                let target = fs::read_link(link).ok()?;
                unknown.insert(target.file_name()?.to_str()?.replace('!', "/"))
            }
        };
        Some(name)
    }
}

/// /proc/partitions: a header, an empty line, then major, minor, blocks and name.
fn parse(partitions: &str) -> BTreeMap<u32, String> {
    partitions
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let major = words.next()?.parse().ok()?;
            let minor = words.next()?.parse().ok()?;
            Some((number(major, minor), words.nth(1)?.to_string()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_read() {
        let names = parse(
            "major minor  #blocks  name\n\n   8        0  268435456 sda\n \
             259   524289    1024 nvme0n1p2\n 104 0 5 cciss/c0d0\n",
        );
        assert_eq!(names.len(), 3);
        assert_eq!(names[&(8 << 20)], "sda");
        assert_eq!(names[&(259 << 20 | 524_289)], "nvme0n1p2");
        assert_eq!(names[&(104 << 20)], "cciss/c0d0");
    }

    #[test]
    fn a_partition_is_a_part_of_its_disk() {
        let root = std::env::temp_dir().join(format!("bpfscope-disks-{}", std::process::id()));
        let disk = root.join("devices/cciss!c0d0");
        let part = disk.join("cciss!c0d0p1");
        fs::create_dir_all(&part).expect("made");
        for (dir, file, text) in [
            (&disk, "dev", "104:0\n"),
            (&part, "dev", "104:1\n"),
            (&part, "partition", "1\n"),
            (&part, "start", "2048\n"),
            (&part, "size", "100\n"),
        ] {
            fs::write(dir.join(file), text).expect("written");
        }
        let class = root.join("class");
        fs::create_dir_all(&class).expect("made");
        for device in [&disk, &part] {
            let name = device.file_name().expect("a name");
            std::os::unix::fs::symlink(device, class.join(name)).expect("linked");
        }
        let whole = Disk { number: 104 << 20, sectors: None };
        assert_eq!(Disk::find_in(&class, "cciss/c0d0"), Ok(whole.clone()));
        assert_eq!(Disk::find_in(&class, "/dev/cciss/c0d0"), Ok(whole));
        let found = Disk::find_in(&class, "cciss/c0d0p1");
        assert_eq!(found, Ok(Disk { number: 104 << 20, sectors: Some((2048, 2148)) }));
        for bad in ["", "..", ".", "/dev/", "nope", "../devices"] {
            assert!(Disk::find_in(&class, bad).is_err(), "{bad}");
        }
        fs::remove_dir_all(root).expect("removed");
    }
}
