// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! opensnoop: who opens which file, and what came of it.

use std::ffi::OsString;

use bpfscope::path::of_names;
use bpfscope::prelude::*;
use bpfscope::symbols::Symbols;
use bpfscope::value::Flag;
use nix::libc;

bpf!("opensnoop");
use bpf::types;

/// Trace file opens and their results
#[derive(clap::Args)]
pub struct Args {
    /// Show the flags and the mode of each open
    #[arg(short, long)]
    extended_fields: bool,
    /// Only command names that contain this
    #[arg(short, long)]
    name: Option<String>,
    /// Show the user id
    #[arg(short = 'U', long)]
    print_uid: bool,
    /// Only opens that failed
    #[arg(short = 'x', long)]
    failed: bool,
    /// Show relative paths from the root, through the directory that they are relative to
    #[arg(short = 'F', long)]
    full_path: bool,
    /// Show the two innermost functions of the caller
    #[arg(short, long)]
    callers: bool,
    /// Only opens with this flag (O_CREAT, O_TRUNC, …); repeated, with any of them
    #[arg(short, long, alias = "flag_filter", value_name = "O_FLAG", value_parser = flag)]
    flag_filter: Vec<u32>,
    /// Event buffer in pages for each CPU; another way to say --buffer-size
    #[arg(short, long, value_name = "PAGES", value_parser = clap::value_parser!(u64).range(1..=65536))]
    buffer_pages: Option<u64>,
    /// Run this command and trace only it and its children; another way to say -- COMMAND
    #[arg(long, num_args = 1.., allow_hyphen_values = true, value_name = "COMMAND",
          conflicts_with_all = ["pid", "command"])]
    exec: Vec<OsString>,
}

/// Frames that the text output shows of a caller's stack.
const CALLERS: usize = 2;

const fn bit(value: libc::c_int, name: &'static str) -> Flag {
    Flag::bit(value as u64, name)
}

/// include/uapi/asm-generic/fcntl.h and the architecture's own, through libc.
static FLAGS: [Flag; 19] = [
    Flag::field(3, 0, "O_RDONLY"),
    Flag::field(3, 1, "O_WRONLY"),
    Flag::field(3, 2, "O_RDWR"),
    bit(libc::O_CREAT, "O_CREAT"),
    bit(libc::O_EXCL, "O_EXCL"),
    bit(libc::O_NOCTTY, "O_NOCTTY"),
    bit(libc::O_TRUNC, "O_TRUNC"),
    bit(libc::O_APPEND, "O_APPEND"),
    bit(libc::O_NONBLOCK, "O_NONBLOCK"),
    // Before the flags that they contain.
    bit(libc::O_SYNC, "O_SYNC"),
    bit(libc::O_TMPFILE, "O_TMPFILE"),
    bit(libc::O_DSYNC, "O_DSYNC"),
    bit(libc::O_ASYNC, "O_ASYNC"),
    bit(libc::O_DIRECT, "O_DIRECT"),
    bit(libc::O_DIRECTORY, "O_DIRECTORY"),
    bit(libc::O_NOFOLLOW, "O_NOFOLLOW"),
    bit(libc::O_NOATIME, "O_NOATIME"),
    bit(libc::O_CLOEXEC, "O_CLOEXEC"),
    bit(libc::O_PATH, "O_PATH"),
];

fn flag(name: &str) -> Result<u32, String> {
    let known = FLAGS.iter().find(|flag| flag.name == name && flag.value != 0);
    known.and_then(|flag| u32::try_from(flag.value).ok()).ok_or_else(|| {
        let names: Vec<&str> = FLAGS.iter().filter(|f| f.value != 0).map(|f| f.name).collect();
        format!("one of {}", names.join(", "))
    })
}

/// Whether an open with these flags may create a file, and so uses its mode.
fn creates(flags: u32) -> bool {
    let has = |bits: libc::c_int| flags & bits.unsigned_abs() == bits.unsigned_abs();
    has(libc::O_CREAT) || has(libc::O_TMPFILE)
}

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Shows each open of a file: the process, the file descriptor it got or the error, and the path as \
the process gave it. open, openat, openat2, creat, the calls of 32-bit programs and opens through \
io_uring are all seen.

The path is read when the call returns, so that it is also there when its page was not in memory \
before. A path that is relative is shown as given; -F puts the directory in front that it is \
relative to, that of the descriptor or the working directory, across mounts.",
        examples: "\
Which files does a failing program look for in vain?

    # opensnoop -x -n sshd

Which files are created, and with which mode?

    # opensnoop -e -f O_CREAT -- sh -c 'echo a >notes; touch b; cp notes copy; mktemp'
    PID    COMM              FD ERR FLAGS    MODE  PATH
    232    sh                 3   0 00001101 0666  notes
    233    touch              3   0 00004501 0666  b
    234    cp                 4   0 00000301 0644  copy
    235    mktemp             3   0 00000302 0600  /tmp/tmp.sj5nZIPGdY

FLAGS and MODE are octal: 00000302 is O_RDWR, O_CREAT and O_EXCL, and only mktemp makes a file that \
nobody else may read (0600).

All opens of one command:

    # opensnoop -- ls /srv
    PID    COMM              FD ERR PATH
    230    ls                 3   0 /etc/ld.so.cache
    230    ls                 3   0 /lib/x86_64-linux-gnu/libselinux.so.1
    230    ls                 3   0 /lib/x86_64-linux-gnu/libc.so.6
    230    ls                 3   0 /lib/x86_64-linux-gnu/libpcre2-8.so.0
    230    ls                 3   0 /proc/filesystems
    230    ls                 3   0 /srv

Only the last one is what ls was asked for; the others are what every start of it takes.",
        overhead: "\
One probe at the end of each open, which costs a fraction of the open itself. Where no kernel \
function can be probed (way rawtp), every system call of the machine pays for it.",
        limits: "\
The path is that of the moment when the call returned: another thread can change it while the \
kernel reads it. Opens by handle (open_by_handle_at) have no path and are not shown. In way rawtp, opens \
through io_uring are seen only where the kernel has the tracepoint io_uring_submit_req (6.1 and \
older have not). O_LARGEFILE \
is left out of the flags, because the kernel adds it for every 64-bit program. In way fexit, an open \
that waits (for the other end of a FIFO, for a network file system) is not shown, and not counted as \
missed, if another tracing program attaches to the same function while the call waits (seen on Linux \
5.10 and 6.12, not on 7.2).",
    };
    const QUESTION: Question =
        Question { heading: "Files", question: "Which files are opened, and which are not found?" };
    const LETTERS: &'static [(&'static str, char)] =
        &[("duration", 'd'), ("pid", 'p'), ("tid", 't'), ("timestamp", 'T'), ("uid", 'u')];

    fn ways(&self) -> Vec<Way> {
        let full = |plain, full| if self.full_path { full } else { plain };
        vec![
            Way::new("fexit", &[full("open__fexit", "open_full__fexit")])
                .twin(
                    full("open__fexit", "open_full__fexit"),
                    full("open_twin__fexit", "open_full_twin__fexit"),
                )
                .where_lacking("io_kiocb", "cmd", "uring_complete__old")
                .optional(&[
                    "uring_exit__fexit",
                    full("uring_enter__fexit", "uring_enter_full__fexit"),
                ]),
            Way::new(
                "kprobe",
                &[full("open_exit__kprobe", "open_exit_full__kprobe"), "open_enter__kprobe"],
            )
            .where_lacking("io_kiocb", "cmd", "uring_complete__old")
            .optional(&[
                "uring_exit__kprobe",
                full("uring_enter__kprobe", "uring_enter_full__kprobe"),
            ]),
            Way::new("rawtp", &[full("open_exit__rawtp", "open_exit_full__rawtp")]).optional(&[
                "uring_complete__rawtp",
                full("uring_submit__rawtp", "uring_submit_full__rawtp"),
            ]),
        ]
    }

    fn check(&mut self, common: &mut Common) -> Result<()> {
        if let Some(pages) = self.buffer_pages {
            let cpus = u64::try_from(libbpf_rs::num_possible_cpus()?)?;
            let bytes = pages * 4096 * cpus;
            common.buffer_size.get_or_insert(bytes.next_power_of_two().min(1 << 30));
        }
        if !self.exec.is_empty() {
            common.command.clone_from(&self.exec);
        }
        Ok(())
    }

    fn records(&self) -> Records {
        let path = if self.full_path { "full_path" } else { "path" };
        let kind = Kind::event("open")
            .field("fd", Type::Int, "The new descriptor; null when the open failed.")
            .field("error", Type::Errno, "Why it failed; null when it did not.")
            .field("flags", Type::Flags, "Flags of the open, without O_LARGEFILE.")
            .field("mode", Type::Uint, "Permission bits for a new file; null when none can be created.")
            .field("dirfd", Type::Int, "Directory descriptor that a relative path starts from; -100 is the working directory.")
            .field("path", Type::String, "The path as given; null when it could not be read.")
            .field("full_path", Type::String, "The path from the root; null unless -F was given, or when it is not known.")
            .field("via", Type::String, "How the open came: syscall or io_uring.")
            .field("user_stack", Type::Stack, "The caller's stack; null unless --callers was given.")
            .columns([
                time_column("TIME", 8, TimeFormat::Wall),
                column("uid", "UID", 7).when(self.print_uid),
                column("pid", "PID", 6),
                column("tid", "TID", 6).when(false),
                column("comm", "COMM", 16),
                column("fd", "FD", 3).right().null("-1"),
                column("error", "ERR", 3).right(),
                column("flags", "FLAGS", 8).format(Format::Octal(8)).when(self.extended_fields),
                column("mode", "MODE", 5).format(Format::Octal(4)).null("n/a").when(self.extended_fields),
                column(path, if self.callers { "PATH/CALLER" } else { "PATH" }, 0),
            ]);
        Records::new([kind])
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, _way: &Way) -> Result<()> {
        let settings = open.maps.rodata_data.as_deref_mut().context("no .rodata")?;
        settings.want_failed_only = self.failed;
        settings.want_stack = self.callers;
        settings.want_flags = self.flag_filter.iter().fold(0, |all, flag| all | flag);
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let mut symbols = Symbols::default();
        session.stream(&skel.maps.events, |record, out| {
            let event: &types::event = record.body()?;
            if self.name.as_ref().is_some_and(|name| !comm_contains(&event.head.comm, name)) {
                out.filtered += 1;
                return Ok(());
            }
            let (path, rest) = split(record.tail::<types::event>(), event.path_size);
            let (base, rest) = split(rest, event.base_size);
            let stack: Vec<u64> = rest
                .chunks_exact(8)
                .map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default()))
                .collect();
            let frames =
                if self.callers { symbols.user(event.head.pid, &stack) } else { Vec::new() };

            let path = path.strip_suffix(b"\0");
            let full = path.filter(|_| self.full_path).map(|path| join(path, base, event.base_cut));
            let failed = event.result < 0;
            out.event(
                0,
                record.head()?,
                &[
                    if failed { Value::Null } else { Value::Int(event.result.into()) },
                    Value::Errno(event.result.min(0)),
                    Value::Flags(&FLAGS, event.flags.into()),
                    if creates(event.flags) { Value::Uint(event.mode.into()) } else { Value::Null },
                    Value::Int(event.dirfd.into()),
                    match path {
                        Some(path) if event.result == -libc::ENAMETOOLONG => Value::Cut(path),
                        Some(path) => Value::Bytes(path),
                        None => Value::Null,
                    },
                    full.as_deref().map_or(Value::Null, Value::Bytes),
                    Value::Str(if event.via_uring == 0 { "syscall" } else { "io_uring" }),
                    if self.callers { Value::Stack(&frames) } else { Value::Null },
                ],
            );
            out.frames("      ", &frames[..frames.len().min(CALLERS)]);
            Ok(())
        })
    }
}

fn comm_contains(comm: &[i8; 16], name: &str) -> bool {
    let comm = comm.map(|c| c.to_ne_bytes()[0]);
    name.is_empty() || comm.windows(name.len()).any(|window| window == name.as_bytes())
}

/// A relative path behind the names of its directory, which come leaf first, each with its NUL.
fn join(path: &[u8], base: &[u8], base_cut: u8) -> Vec<u8> {
    if path.starts_with(b"/") {
        return path.to_vec();
    }
    let mut full = of_names(base, base_cut != 0);
    full.push(b'/');
    full.extend_from_slice(path);
    full
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_get_their_directory() {
        assert_eq!(join(b"x", b"leaf\0dir\0", 0), b"/dir/leaf/x");
        assert_eq!(join(b"/abs", b"leaf\0", 0), b"/abs");
        assert_eq!(join(b"x", b"", 0), b"/x");
        assert_eq!(join(b"x", b"leaf\0", 1), b"/.../leaf/x");
    }
}
