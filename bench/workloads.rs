// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! What is done while a tool looks on. A workload does not know which tool that is.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::hint::black_box;
use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::ToSocketAddrs as _;
use std::net::UdpSocket;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use anyhow::Result;
use nix::fcntl::PosixFadviseAdvice;
use nix::fcntl::posix_fadvise;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;

use crate::disk::Disk;

/// Where a workload happens, and how fast.
pub struct Scene {
    /// A directory for files.
    pub directory: PathBuf,
    /// "paced" or "burst": goes into the names that a tool shows, so that both can be told apart.
    pub pace: &'static str,
}

impl Scene {
    fn is_burst(&self) -> bool {
        self.pace == "burst"
    }

    /// A file of this pace's own.
    fn file(&self) -> Result<PathBuf> {
        let path = self.directory.join(self.name());
        fs::write(&path, "0123456789")?;
        Ok(path)
    }

    fn name(&self) -> String {
        format!("bench-{}", self.pace)
    }

    /// A port of this pace's own, different for each workload, and not one that connections get when
    /// they ask for none (from 32768 on): what is left of one would keep it busy.
    fn port(&self, base: u16) -> u16 {
        base + u16::from(self.is_burst())
    }
}

/// A workload that is ready to go.
pub struct Act {
    /// Does one operation.
    pub once: Box<dyn FnMut() -> Result<()>>,
    /// What a line of output contains that shows one of its operations; there may be none.
    pub mark: String,
}

/// See the module.
pub struct Workload {
    /// Its name in the table.
    pub name: &'static str,
    /// How many operations, with a pause of a millisecond after each; 0 = not paced.
    pub paced: u32,
    /// How many operations without a pause; 0 = no burst.
    pub burst: u32,
    /// Prepares it.
    pub prepare: fn(&Scene) -> Result<Act>,
    /// What it leaves behind for a while, and would meet again: sockets in TIME_WAIT.
    pub rest: Duration,
}

const NO_REST: Duration = Duration::ZERO;

pub const OPENS: Workload = Workload {
    name: "open",
    paced: 4000,
    burst: 20_000,
    rest: NO_REST,
    prepare: |scene| {
        let path = scene.file()?;
        Ok(Act {
            mark: scene.name(),
            once: Box::new(move || {
                drop(File::open(&path)?);
                Ok(())
            }),
        })
    },
};

/// One program starts and ends: an exec and an exit.
pub const EXECS: Workload = Workload {
    name: "exec, exit",
    paced: 500,
    burst: 2000,
    rest: NO_REST,
    prepare: |scene| {
        // Which is what the process is called, too: at most 15 letters.
        let name = format!("run-{}", scene.pace);
        let path = scene.directory.join(&name);
        fs::write(&path, smallest_program())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Act {
            mark: name,
            once: Box::new(move || {
                Command::new(&path).status()?;
                Ok(())
            }),
        })
    },
};

/// A program that ends at once: one with a C library would take ten times as long to start as a
/// tool takes to tell of it. ELF header, one segment with everything, exit_group(0).
fn smallest_program() -> Vec<u8> {
    #[cfg(target_arch = "x86_64")]
    let (machine, code) = (62u16, [0x31, 0xff, 0xb8, 0xe7, 0, 0, 0, 0x0f, 0x05, 0, 0, 0]);
    #[cfg(target_arch = "aarch64")]
    let (machine, code) =
        (183u16, [0x00, 0x00, 0x80, 0xd2, 0xc8, 0x0b, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4]);
    const AT: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + code.len() as u64;
    let mut program = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |program: &mut Vec<u8>, numbers: &[u16]| {
        numbers.iter().for_each(|number| program.extend(number.to_le_bytes()));
    };
    let word = |program: &mut Vec<u8>, numbers: &[u32]| {
        numbers.iter().for_each(|number| program.extend(number.to_le_bytes()));
    };
    let long = |program: &mut Vec<u8>, numbers: &[u64]| {
        numbers.iter().for_each(|number| program.extend(number.to_le_bytes()));
    };
    // An executable for this machine; where it begins and where its segment is described.
    half(&mut program, &[2, machine]);
    word(&mut program, &[1]);
    long(&mut program, &[AT + HEADERS, 64, 0]);
    word(&mut program, &[0]);
    half(&mut program, &[64, 56, 1, 0, 0, 0]);
    // To be loaded, readable and executable.
    word(&mut program, &[1, 5]);
    long(&mut program, &[0, AT, AT, size, size, 0x1000]);
    program.extend(code);
    program
}

pub const STATS: Workload = Workload {
    name: "statx",
    paced: 4000,
    burst: 20_000,
    rest: NO_REST,
    prepare: |scene| {
        let path = scene.file()?;
        Ok(Act {
            mark: scene.name(),
            once: Box::new(move || {
                fs::metadata(&path)?;
                Ok(())
            }),
        })
    },
};

pub const CREATIONS: Workload = Workload {
    name: "create, unlink",
    paced: 2000,
    burst: 10_000,
    rest: NO_REST,
    prepare: |scene| {
        let path = scene.directory.join(scene.name());
        let _ = fs::remove_file(&path);
        Ok(Act {
            mark: scene.name(),
            once: Box::new(move || {
                drop(File::create(&path)?);
                fs::remove_file(&path)?;
                Ok(())
            }),
        })
    },
};

pub const READS: Workload = Workload {
    name: "read 1 byte",
    paced: 0,
    burst: 50_000,
    rest: NO_REST,
    prepare: |scene| {
        let file = File::open(scene.file()?)?;
        let mut byte = [0];
        Ok(Act {
            mark: scene.name(),
            once: Box::new(move || {
                file.read_exact_at(&mut byte, 0)?;
                Ok(())
            }),
        })
    },
};

/// The shortest system call there is.
pub const SYSTEM_CALLS: Workload = Workload {
    name: "getppid",
    paced: 0,
    burst: 100_000,
    rest: NO_REST,
    prepare: |_| {
        Ok(Act {
            mark: "getppid".into(),
            once: Box::new(|| {
                black_box(nix::unistd::getppid());
                Ok(())
            }),
        })
    },
};

/// A byte to another thread and back: two switches.
pub const SWITCHES: Workload = Workload {
    name: "thread switch",
    paced: 0,
    burst: 10_000,
    rest: NO_REST,
    prepare: |_| {
        let (mut near_in, mut far_out) = std::io::pipe()?;
        let (mut far_in, mut near_out) = std::io::pipe()?;
        thread::Builder::new().name("bench-switch".into()).spawn(move || {
            let mut byte = [0];
            while far_in.read_exact(&mut byte).is_ok() && far_out.write_all(&byte).is_ok() {}
        })?;
        let mut byte = [0];
        Ok(Act {
            mark: "bench-switch".into(),
            once: Box::new(move || {
                near_out.write_all(&byte)?;
                near_in.read_exact(&mut byte)?;
                Ok(())
            }),
        })
    },
};

const BLOCK: usize = 4096;

pub const BLOCK_READS: Workload = Workload {
    name: "block read",
    paced: 2000,
    burst: 5000,
    rest: NO_REST,
    prepare: |scene| {
        let disk = Disk::plain(scene.pace)?;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_DIRECT)
            .open(disk.path())
            .with_context(|| disk.path().display().to_string())?;
        let mut room = vec![0; 2 * BLOCK];
        let start = room.as_ptr().align_offset(BLOCK);
        let mut count = 0;
        Ok(Act {
            mark: disk.name.clone(),
            once: Box::new(move || {
                // The disk has 64 MB.
                let at = count % (64 << 20) as u64;
                count += BLOCK as u64;
                file.read_exact_at(&mut room[start..start + BLOCK], at)?;
                Ok(())
            }),
        })
    },
};

/// From page cache.
pub const CACHE_HITS: Workload = Workload {
    name: "cached read",
    paced: 0,
    burst: 20_000,
    rest: NO_REST,
    prepare: |_| cached_page(false),
};

/// Read and thrown away again.
pub const CACHE_MISSES: Workload = Workload {
    name: "uncached read",
    paced: 1000,
    burst: 3000,
    rest: NO_REST,
    prepare: |_| cached_page(true),
};

fn cached_page(forget: bool) -> Result<Act> {
    let path = Disk::file_system()?.join("bench-page");
    fs::write(&path, [0; BLOCK])?;
    let file = File::open(&path)?;
    file.sync_all()?;
    let mut page = vec![0; BLOCK];
    Ok(Act {
        mark: "bench-page".into(),
        once: Box::new(move || {
            if forget {
                posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
            }
            file.read_exact_at(&mut page, 0)?;
            Ok(())
        }),
    })
}

/// How long a socket stays in TIME_WAIT.
const TIME_WAIT: Duration = Duration::from_secs(61);

/// Connect, accept, close; both ends are ours.
pub const CONNECTIONS: Workload = Workload {
    name: "TCP connection",
    paced: 1000,
    burst: 3000,
    rest: TIME_WAIT,
    prepare: |scene| {
        let port = scene.port(17_010);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        Ok(Act {
            mark: format!(" {port}"),
            once: Box::new(move || {
                let near = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
                let far = listener.accept()?;
                drop(near);
                drop(far);
                Ok(())
            }),
        })
    },
};

/// A hundred bytes over a connection that stays.
pub const TRANSFERS: Workload = Workload {
    name: "TCP 100 bytes",
    paced: 2000,
    burst: 10_000,
    rest: TIME_WAIT,
    prepare: |scene| {
        let port = scene.port(17_020);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let mut near = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        let (mut far, _) = listener.accept()?;
        let mut bytes = [0; 100];
        Ok(Act {
            mark: format!(" {port}"),
            once: Box::new(move || {
                near.write_all(&bytes)?;
                far.read_exact(&mut bytes)?;
                Ok(())
            }),
        })
    },
};

pub const BINDS: Workload = Workload {
    name: "bind",
    paced: 2000,
    burst: 10_000,
    rest: NO_REST,
    prepare: |scene| {
        let port = scene.port(17_030);
        Ok(Act {
            mark: format!(" {port}"),
            once: Box::new(move || {
                drop(UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?);
                Ok(())
            }),
        })
    },
};

/// That of the C library, which Rust's allocator is.
pub const ALLOCATIONS: Workload = Workload {
    name: "malloc, free",
    paced: 0,
    burst: 5000,
    rest: NO_REST,
    prepare: |_| {
        Ok(Act {
            mark: String::new(),
            once: Box::new(|| {
                drop(black_box(Box::new([0u8; 100])));
                Ok(())
            }),
        })
    },
};

/// One thread holds a lock and sleeps, another waits for the lock.
pub const CONTENTION: Workload = Workload {
    name: "contended lock",
    paced: 0,
    burst: 2000,
    rest: NO_REST,
    prepare: |_| {
        let lock = Arc::new(Mutex::new(0u32));
        let (mut begin_out, mut begin_in) = std::io::pipe()?;
        let (mut end_out, mut end_in) = std::io::pipe()?;
        let other = Arc::clone(&lock);
        thread::Builder::new().name("bench-lock".into()).spawn(move || {
            let mut byte = [0];
            while begin_out.read_exact(&mut byte).is_ok() {
                if let Ok(mut guard) = other.lock() {
                    *guard += 1;
                }
                if end_in.write_all(&byte).is_err() {
                    break;
                }
            }
        })?;
        let mut byte = [0];
        Ok(Act {
            mark: "bench-lock".into(),
            once: Box::new(move || {
                let guard = lock.lock();
                begin_in.write_all(&byte)?;
                thread::sleep(Duration::from_micros(50));
                drop(guard);
                end_out.read_exact(&mut byte)?;
                Ok(())
            }),
        })
    },
};

/// A name that /etc/hosts knows.
pub const NAMES: Workload = Workload {
    name: "host name",
    paced: 500,
    burst: 0,
    rest: NO_REST,
    prepare: |_| {
        Ok(Act {
            mark: "localhost".into(),
            once: Box::new(|| {
                black_box(("localhost", 80).to_socket_addrs()?.count());
                Ok(())
            }),
        })
    },
};

/// To this process, which ignores them.
pub const SIGNALS: Workload = Workload {
    name: "signal",
    paced: 2000,
    burst: 20_000,
    rest: NO_REST,
    prepare: |scene| {
        let (signal, mark) = if scene.is_burst() {
            (Signal::SIGWINCH, "SIGWINCH")
        } else {
            (Signal::SIGURG, "SIGURG")
        };
        let pid = nix::unistd::getpid();
        Ok(Act {
            mark: mark.into(),
            once: Box::new(move || {
                kill(pid, signal)?;
                Ok(())
            }),
        })
    },
};

/// Computing, some hundred thousand instructions at a time: what sampling costs.
pub const COMPUTING: Workload = Workload {
    name: "computing",
    paced: 0,
    burst: 2000,
    rest: NO_REST,
    prepare: |_| {
        Ok(Act {
            mark: String::new(),
            once: Box::new(|| {
                let mut sum = 0u64;
                for number in 0..100_000u64 {
                    sum = black_box(sum.wrapping_add(number));
                }
                black_box(sum);
                Ok(())
            }),
        })
    },
};
