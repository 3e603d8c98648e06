// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! execsnoop: which programs are started, by whom and with which arguments.

use std::borrow::Cow;

use bpfscope::cli;
use bpfscope::prelude::*;
use bpfscope::value::list_items;
use nix::libc;
use regex_lite::Regex;

bpf!("execsnoop");
use bpf::types;

/// Trace new programs and their arguments
#[derive(clap::Args)]
pub struct Args {
    /// Show the time of day
    #[arg(short = 'T', long)]
    time: bool,
    /// Show the seconds since the start
    #[arg(short, long)]
    timestamp: bool,
    /// Show execs that failed as well
    #[arg(short = 'x', long)]
    fails: bool,
    /// Put each argument in double quotes
    #[arg(short, long)]
    quote: bool,
    /// Only command names that match this regular expression
    #[arg(short, long, value_name = "REGEX", value_parser = regex)]
    name: Option<Regex>,
    /// Only command lines that match this regular expression
    #[arg(short, long, value_name = "REGEX", value_parser = regex)]
    line: Option<Regex>,
    /// Show the user id
    #[arg(short = 'U', long)]
    print_uid: bool,
    /// Show the CPU
    #[arg(short = 'C', long)]
    print_cpu: bool,
    /// Show the parent's command name
    #[arg(short = 'M', long)]
    print_pcomm: bool,
    /// Show this many arguments, the program counted
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=MAX_ARGS))]
    max_args: u32,
    /// Keep this many bytes of arguments, up to 1M
    #[arg(long, value_name = "SIZE", default_value = "8k", value_parser = args_size)]
    args_size: u32,
}

const MAX_ARGS: i64 = 1024;
/// Arguments of a failed exec that `--line` sees, however few are shown. The kernel checks the loop
/// over them step by step before it takes the program, which is not to take long.
const LINE_ARGS: u32 = 128;

fn regex(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| error.to_string())
}

fn args_size(text: &str) -> Result<u32, String> {
    let size = u32::try_from(cli::size(text)?).ok().filter(|size| (64..=1 << 20).contains(size));
    size.ok_or_else(|| "64 to 1M".into())
}

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Shows each program that is started: the process, its parent, and the command line. execve and \
execveat are seen, from 64-bit and 32-bit programs and from any thread, and programs that the \
kernel itself starts. With -x also those that failed, with the error as a negative number.

The command line is the path as it was given, and the arguments after the first. What execveat \
starts through a descriptor is /dev/fd/N, as the kernel calls it. A script is shown as it was \
called; in JSON, args is what the interpreter got. Text ends in ... where arguments are left out: \
--max-args and --args-size say how much is kept.",
        examples: "\
What does a shell start, and with which arguments?

    # execsnoop -P 4242

What does a script start?

    # execsnoop -T -- sh -c 'ls -l / | grep -c usr; date +%s >stamp'
    TIME     PCOMM            PID    PPID   RET ARGS
    20:02:46 sh               221    220      0 /usr/bin/sh -c ls -l / | grep -c usr; date +%s >stamp
    20:02:46 ls               222    221      0 /usr/bin/ls -l /
    20:02:46 grep             223    221      0 /usr/bin/grep -c usr
    20:02:47 date             224    221      0 /usr/bin/date +%s

The shell itself, and three programs whose parent (PPID) it is.

Which commands are looked for in vain, and by whom?

    # execsnoop -x -U -- sh -c './missing; env no-such-program'
    UID    PCOMM            PID    PPID   RET ARGS
    0      execsnoop        226    225     -2 /usr/sbin/sh -c ./missing; env no-such-program
    0      sh               226    225      0 /usr/bin/sh -c ./missing; env no-such-program
    0      sh               227    226     -2 ./missing
    0      env              228    226      0 /usr/bin/env no-such-program
    0      env              228    226     -2 /usr/sbin/no-such-program
    0      env              228    226     -2 /usr/bin/no-such-program
    0      env              228    226     -2 /sbin/no-such-program
    0      env              228    226     -2 /bin/no-such-program

-2 is ENOENT: there is no such file. env tries each directory of PATH, and so did execsnoop itself \
for the shell that it was to start.

Every start of a compiler, with everything it is told:

    # execsnoop -n 'cc1|clang' -q --max-args 1024 --args-size 128k",
        overhead: "\
One probe at the end of each exec, a small part of what an exec costs. With -x another one where \
the system call returns; where no kernel function can be probed (way rawtp), that is on every \
system call of the machine.",
        limits: "\
The arguments of an exec that failed are read from the memory of the caller; a ? stands for what \
is not in memory at that moment. An exec that fails after the old program is gone, which kills the \
process, has no path and no arguments. Failures of programs that the kernel itself starts are not \
seen. --line sees the arguments that --args-size lets through, and of a failed exec 128, unless \
--max-args is more. A call that only asks whether a file could be executed (AT_EXECVE_CHECK) is not shown. \
--tid and --comm test the thread and the name as they are after the exec.",
    };
    const QUESTION: Question =
        Question { heading: "Processes", question: "Which programs are started, and by whom?" };
    const LETTERS: &'static [(&'static str, char)] =
        &[("cgroup", 'c'), ("ppid", 'P'), ("uid", 'u')];

    fn ways(&self) -> Vec<Way> {
        if !self.fails {
            return vec![Way::new("rawtp", &["exec"]).twin("exec", "exec_twin")];
        }
        vec![
            Way::new("kprobe", &["execve_exit__kprobe", "execve_enter__kprobe", "exec__kprobe"])
                .twin("exec__kprobe", "exec_twin")
                .optional(&[
                    "execveat_exit__kprobe",
                    "execveat_enter__kprobe",
                    "compat_execve_exit__kprobe",
                    "compat_execve_enter__kprobe",
                    "compat_execveat_exit__kprobe",
                    "compat_execveat_enter__kprobe",
                ]),
            Way::new("rawtp", &["exec_exit__rawtp", "exec"]).twin("exec", "exec_twin"),
        ]
    }

    fn records(&self) -> Records {
        let comm = if self.print_pcomm { "COMM" } else { "PCOMM" };
        let format = if self.quote { Format::Quoted } else { Format::Plain };
        let kind = Kind::event("exec")
            .field("ret", Type::Int, "What the call returned: 0, or a negative errno.")
            .field("error", Type::Errno, "Why it failed; null when it did not.")
            .field("path", Type::String, "The path as given, behind /dev/fd/N where it is relative to a descriptor; null when it could not be read.")
            .field("args", Type::List, "The arguments as the new program has them, or as given when the exec failed; null when they could not be read.")
            .field("args_unread", Type::Uint, "How many of args could not be read; a ? stands for each.")
            .field("interpreter", Type::String, "What executes the file: the interpreter of a script or of binfmt_misc; null when it is executed itself.")
            .field("command", Type::List, "The path, and the given arguments after the first: what the text shows; null when neither could be read.")
            .field("caller_tid", Type::Uint, "The thread that called; a success gives it the id of the process. In a PID namespace null when that changed it.")
            .field("parent_comm", Type::String, "Command name of the parent.")
            .field("cpu", Type::Uint, "The CPU.")
            .columns([
                time_column("TIME", 8, TimeFormat::Wall).when(self.time),
                time_column("TIME(s)", 8, TimeFormat::SinceStart).when(self.timestamp),
                column("uid", "UID", 6).when(self.print_uid),
                column("cpu", "CPU", 3).when(self.print_cpu),
                column("parent_comm", "PCOMM", 16).when(self.print_pcomm),
                column("comm", comm, 16),
                column("pid", "PID", 6),
                column("ppid", "PPID", 6),
                column("ret", "RET", 3).right(),
                column("command", "ARGS", 0).format(format),
            ]);
        Records::new([kind])
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, way: &Way) -> Result<()> {
        let settings = open.maps.rodata_data.as_deref_mut().context("no .rodata")?;
        settings.args_limit = self.args_size;
        // One more than is shown tells whether there are more.
        settings.walk_limit =
            1 + self.max_args.max(if self.line.is_some() { LINE_ARGS } else { 0 });

        let slot = u32::try_from(size_of::<types::exec_slot>())? + 2 * self.args_size;
        let cpus = u32::try_from(libbpf_rs::num_possible_cpus()?)?;
        let functions = self.fails && way.name != "rawtp";
        let maps = &mut open.maps;
        for (map, wanted) in [
            (&mut maps.slot_exec, true),
            (&mut maps.slot_exec_twin, true),
            (&mut maps.slot_failed_execve, self.fails),
            (&mut maps.slot_failed_execveat, functions),
            (&mut maps.slot_failed_compat_execve, functions),
            (&mut maps.slot_failed_compat_execveat, functions),
        ] {
            map.set_autocreate(wanted)?;
            map.set_value_size(slot)?;
            map.set_max_entries(cpus)?;
        }
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let mut command = Vec::new();
        session.stream(&skel.maps.events, |record, out| {
            let event: &types::event = record.body()?;
            let (path, rest) = split(record.tail::<types::event>(), event.path_size);
            let (interpreter, rest) = split(rest, event.interpreter_size);
            let (args, _) = split(rest, event.args_size);

            let path = path.strip_suffix(b"\0").map(|path| whole_path(path, event.dirfd));
            let path = path.as_deref();
            let interpreter = interpreter.strip_suffix(b"\0");
            let args = Some(args).filter(|_| event.args_unknown == 0);
            let cut = event.args_cut != 0;

            command.clear();
            command.extend_from_slice(path.unwrap_or(b"?"));
            command.extend_from_slice(if event.path_cut == 0 { b"\0" } else { b"...\0" });
            command.extend_from_slice(match (args, interpreter, path) {
                (None, ..) => b"?\0",
                (Some(args), None, _) => after(args, 1),
                (Some(args), ..) => called_with(args, path, event.keeps_argv0 != 0),
            });
            if !self.wants(&event.head.comm, &command) {
                out.filtered += 1;
                return Ok(());
            }

            let list = |items| {
                let kept = before(items, self.max_args);
                Value::List(kept, cut || kept.len() < items.len())
            };
            out.event(
                0,
                record.head()?,
                &[
                    Value::Int(event.result.into()),
                    if event.result < 0 { Value::Errno(event.result) } else { Value::Null },
                    match path {
                        Some(path) if event.path_cut != 0 => Value::Cut(path),
                        Some(path) => Value::Bytes(path),
                        None => Value::Null,
                    },
                    args.map_or(Value::Null, list),
                    Value::Uint(event.args_unread.into()),
                    interpreter.map_or(Value::Null, Value::Bytes),
                    if path.is_none() && args.is_none() { Value::Null } else { list(&command) },
                    match event.caller_tid {
                        0 => Value::Null,
                        tid => Value::Uint(tid.into()),
                    },
                    Value::Bytes(&name(&event.parent_comm)),
                    Value::Uint(event.cpu.into()),
                ],
            );
            Ok(())
        })
    }
}

impl Args {
    /// Whether the filters that the kernel side cannot do let this pass.
    fn wants(&self, comm: &[i8; 16], command: &[u8]) -> bool {
        let matches = |regex: &Option<Regex>, text: &dyn Fn() -> Vec<u8>| {
            let found = |regex: &Regex| regex.is_match(&String::from_utf8_lossy(&text()));
            regex.as_ref().is_none_or(found)
        };
        matches(&self.name, &|| name(comm))
            && matches(&self.line, &|| list_items(command).collect::<Vec<_>>().join(&b' '))
    }
}

fn name(comm: &[i8; 16]) -> Vec<u8> {
    comm.iter().map(|c| c.to_ne_bytes()[0]).take_while(|b| *b != 0).collect()
}

/// A path as the kernel puts it together for execveat.
fn whole_path(path: &[u8], dirfd: i32) -> Cow<'_, [u8]> {
    if dirfd == libc::AT_FDCWD || path.starts_with(b"/") {
        return Cow::Borrowed(path);
    }
    let mut whole = format!("/dev/fd/{dirfd}").into_bytes();
    if !path.is_empty() {
        whole.push(b'/');
        whole.extend_from_slice(path);
    }
    Cow::Owned(whole)
}

/// The first `count` strings of a list, each with its NUL.
fn before(list: &[u8], count: u32) -> &[u8] {
    list.strip_suffix(after(list, count)).unwrap_or(list)
}

/// What follows the first `count` strings of a list.
fn after(list: &[u8], count: u32) -> &[u8] {
    let mut rest = list;
    for _ in 0..count {
        let end = rest.iter().position(|b| *b == 0).map_or(rest.len(), |nul| nul + 1);
        rest = &rest[end..];
    }
    rest
}

/// What a program was called with that an interpreter executes. Its argv[0] is replaced by the
/// interpreter, at most one word for it, and the program's path; binfmt_misc can keep it behind.
fn called_with<'a>(args: &'a [u8], path: Option<&[u8]>, keeps_argv0: bool) -> &'a [u8] {
    let mut rest = after(args, 1);
    while !rest.is_empty() {
        let is_path = path.is_some_and(|path| rest.split(|b| *b == 0).next() == Some(path));
        rest = after(rest, 1);
        if is_path {
            return after(rest, keeps_argv0.into());
        }
    }
    rest
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_cut_between_strings() {
        let list = b"a\0\0bc\0";
        assert_eq!((before(list, 2), after(list, 2)), (&b"a\0\0"[..], &b"bc\0"[..]));
        assert_eq!((before(list, 9), after(list, 9)), (&list[..], &b""[..]));
        assert_eq!((before(b"", 1), after(b"", 1)), (&b""[..], &b""[..]));
        assert_eq!((before(b"cu", 1), after(b"cu", 1)), (&b"cu"[..], &b""[..]));
    }

    #[test]
    fn relative_to_a_descriptor() {
        assert_eq!(&*whole_path(b"x", libc::AT_FDCWD), b"x");
        assert_eq!(&*whole_path(b"/x", 7), b"/x");
        assert_eq!(&*whole_path(b"x", 7), b"/dev/fd/7/x");
        assert_eq!(&*whole_path(b"", 7), b"/dev/fd/7");
    }

    #[test]
    fn scripts_as_they_were_called() {
        let called = |args, keeps| called_with(args, Some(b"./s"), keeps);
        assert_eq!(called(b"/bin/sh\0./s\0one\0two\0", false), b"one\0two\0");
        assert_eq!(called(b"/bin/sh\0-e\0./s\0./s\0", false), b"./s\0");
        assert_eq!(called(b"/bin/sh\0/bin/x\0-e\0./s\0", false), b"");
        assert_eq!(called(b"/usr/bin/qemu\0./s\0name\0one\0", true), b"one\0");
        assert_eq!(called(b"./s\0./", false), b"");
    }
}
