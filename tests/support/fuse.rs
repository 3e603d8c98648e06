// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! A file system of the tests' own that takes as long as it is told to: one file, served by a
//! thread through /dev/fuse (include/uapi/linux/fuse.h).

use std::ffi::CString;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::Read as _;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::libc;

use super::file_system::load;
use super::scratch;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// Bytes of the file.
pub const SIZE: u64 = 1 << 20;

/// A mounted file system; gone when this is dropped.
pub struct Slow {
    at: PathBuf,
    /// Its only file.
    pub file: PathBuf,
    server: Option<JoinHandle<()>>,
}

impl Slow {
    /// Serves a file whose reads, syncs and attributes take at least so long, while everything else
    /// is done at once. Or why not.
    pub fn mount(delay: Duration) -> Result<Self, String> {
        load("fuse");
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let device = device.map_err(|error| format!("/dev/fuse: {error}"))?;
        let at = scratch("fuse");
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let text = |text: &[u8]| CString::new(text).expect("no NUL");
        let (target, data) = (text(at.as_os_str().as_bytes()), text(data.as_bytes()));
        // SAFETY: strings that live across the call.
        let mounted = unsafe {
            let kind = c"fuse".as_ptr();
            libc::mount(kind, target.as_ptr(), kind, 0, data.as_ptr().cast())
        };
        assert_eq!(mounted, 0, "mount: {}", std::io::Error::last_os_error());
        let server = Some(thread::spawn(move || serve(device, delay)));
        let file = at.join("slow");
        Ok(Self { at, file, server })
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        unmount(&self.at);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
        let _ = fs::remove_dir(&self.at);
    }
}

fn unmount(at: &Path) {
    let at = CString::new(at.as_os_str().as_bytes()).expect("no NUL");
    // SAFETY: a string that lives across the call.
    unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
}

/// `struct fuse_attr` of the directory or the file.
fn attributes(node: u64) -> Vec<u8> {
    let (mode, size): (u32, u64) = if node == 1 { (0o40755, 0) } else { (0o100_644, SIZE) };
    let mut out = Vec::new();
    for word in [node, size, 0, 0, 0, 0] {
        out.extend(word.to_ne_bytes());
    }
    for word in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        out.extend(word.to_ne_bytes());
    }
    out
}

/// Answers until it is unmounted.
fn serve(mut device: File, delay: Duration) {
    let mut request = vec![0u8; 1 << 18];
    while let Ok(length) = device.read(&mut request) {
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().expect("four"));
        let (operation, unique) = (word(4), &request[8..16]);
        let node = u64::from_ne_bytes(request[16..24].try_into().expect("eight"));
        if [READ, FSYNC, GETATTR].contains(&operation) {
            thread::sleep(delay);
        }
        let body: Result<Vec<u8>, i32> = match operation {
            INIT => {
                let mut out = Vec::new();
                // Version, readahead, flags; background; the largest write; granularity; and so on.
                for word in [7, 31, 0, 0, 0, 1 << 16, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0u32] {
                    out.extend(word.to_ne_bytes());
                }
                Ok(out)
            }
            LOOKUP if request[40..length].starts_with(b"slow\0") => {
                let mut out = Vec::new();
                for word in [2u64, 0, 0, 0, 0] {
                    out.extend(word.to_ne_bytes());
                }
                Ok([out, attributes(2)].concat())
            }
            LOOKUP => Err(libc::ENOENT),
            GETATTR => Ok([vec![0; 16], attributes(node)].concat()),
            // With its handle: FOPEN_DIRECT_IO, so that each call is a request.
            OPEN => Ok([0u64.to_ne_bytes(), 1u64.to_ne_bytes()].concat()),
            READ => Ok(vec![7; word(40 + 16) as usize]),
            WRITE => Ok(u64::from(word(40 + 16)).to_ne_bytes().to_vec()),
            FSYNC | FLUSH | RELEASE => Ok(Vec::new()),
            FORGET | BATCH_FORGET | INTERRUPT => continue,
            _ => Err(libc::ENOSYS),
        };
        let (error, body) = match body {
            Ok(body) => (0, body),
            Err(error) => (-error, Vec::new()),
        };
        let size = u32::try_from(16 + body.len()).expect("small");
        let head = [size.to_ne_bytes(), error.to_ne_bytes()].concat();
        // Nobody waits for it when it was interrupted.
        let _ = device.write_all(&[&head, unique, &body].concat());
    }
}
