// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Disks that have nothing behind them, by the module null_blk.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::OnceLock;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::anyhow;
use anyhow::ensure;

/// A disk of 64 MB. It stays until the machine ends.
#[derive(Clone)]
pub struct Disk {
    /// Its name, as in /sys/block.
    pub name: String,
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program).args(args).output().with_context(|| program.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", args.join(" "), said.trim());
    Ok(())
}

fn load() -> Result<()> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    let load = || -> Result<()> {
        run("modprobe", &["null_blk", "nr_devices=0"])?;
        if !Path::new("/sys/kernel/config/nullb").exists() {
            run("mount", &["-t", "configfs", "none", "/sys/kernel/config"])?;
        }
        Ok(())
    };
    LOADED
        .get_or_init(|| load().map_err(|error| format!("no null_blk: {error:#}")))
        .clone()
        .map_err(|error| anyhow!(error))
}

impl Disk {
    /// One that takes everything and keeps nothing; the same one for the same label.
    ///
    /// # Errors
    /// Fails where there is no null_blk.
    pub fn plain(label: &str) -> Result<Self> {
        Self::make(&format!("bench{label}"), &[("irqmode", "0")])
    }

    /// A directory that is an ext4 file system on such a disk, which keeps what is written.
    ///
    /// # Errors
    /// Fails where there is no null_blk, or nothing to make a file system with.
    pub fn file_system() -> Result<PathBuf> {
        static MOUNTED: Mutex<Option<PathBuf>> = Mutex::new(None);
        let mut mounted = MOUNTED.lock().map_err(|_| anyhow!("mounting has failed before"))?;
        if let Some(path) = mounted.as_ref() {
            return Ok(path.clone());
        }
        let disk = Self::make("benchext4", &[("irqmode", "0"), ("memory_backed", "1")])?;
        let device = disk.path().display().to_string();
        run("mkfs.ext4", &["-q", "-O", "^has_journal", &device])?;
        let path = PathBuf::from("/tmp/bpfscope-bench-ext4");
        fs::create_dir_all(&path)?;
        run("mount", &["-t", "ext4", "-o", "noatime", &device, "/tmp/bpfscope-bench-ext4"])?;
        Ok(mounted.insert(path).clone())
    }

    fn make(id: &str, settings: &[(&str, &str)]) -> Result<Self> {
        load()?;
        let config = Path::new("/sys/kernel/config/nullb").join(id);
        if !config.exists() {
            fs::create_dir(&config)?;
            let base = [("size", "64"), ("blocksize", "4096")];
            for (name, value) in base.iter().chain(settings).chain(&[("power", "1")]) {
                fs::write(config.join(name), value).with_context(|| format!("null_blk {name}"))?;
            }
        }
        // Devices have had the directory's name since 49c3b9266a71 "block: null_blk: Improve
        // device creation with configfs" (5.19), and their number before.
        let name = if Path::new("/sys/block").join(id).exists() {
            id.to_string()
        } else {
            format!("nullb{}", fs::read_to_string(config.join("index"))?.trim())
        };
        Ok(Self { name })
    }

    /// Its device file.
    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }
}
