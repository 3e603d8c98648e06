// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! execsnoop against execs that the tests make.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::CStr;
use std::ffi::CString;
use std::ffi::OsStr;
use std::fs;
use std::fs::File;
use std::io::BufRead as _;
use std::io::BufReader;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::ptr;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use nix::sys::mman::mmap_anonymous;
use nix::sys::wait::WaitStatus;
use nix::sys::wait::waitpid;
use nix::unistd::ForkResult;
use nix::unistd::Pid;
use nix::unistd::fork;
use serde_json::Value;
use serde_json::json;

use crate::support::Case;
use crate::support::Cgroup;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::losses::assert_counted;
use crate::support::scratch;
use crate::support::start;
use crate::support::wait_until_in_call;

pub const CASES: &[Case] = &[
    Case::alone("every exec of a burst once", burst),
    Case::new("every way to exec", every_way),
    Case::new("scripts", scripts),
    Case::new("failures", failures),
    Case::new("many that wait at once", waiting),
    Case::new("callers of 32-bit calls", compat),
    Case::new("a thread that is not the first", other_thread).in_turn(),
    Case::new("long lists are cut and marked", long_lists).in_turn(),
    Case::new("hostile arguments", hostile).in_turn(),
    Case::new("filters", filters),
    Case::new("a command of its own", own_command).in_turn(),
    Case::new("text columns", text_columns).in_turn(),
    Case::new("what does not fit is counted", no_room).in_turn(),
];

/// A program of a few bytes that does nothing.
fn program(path: &Path) {
    #[cfg(target_arch = "x86_64")]
    {
        // mov eax, SYS_exit; xor edi, edi; syscall
        executable(path, &elf64(0x40_0000, &[0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05]));
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        fs::copy("/bin/true", path).expect("copy");
    }
}

fn executable(path: &Path, content: &[u8]) {
    fs::write(path, content).expect("file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
}

/// A 64-bit x86 ELF file with this code, loaded at this address.
fn elf64(address: u64, code: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let size = 64 + 56 + code.len() as u64;
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    for word in [address + 64 + 56, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // PT_LOAD, readable and executable.
    file.extend(1u32.to_le_bytes());
    file.extend(5u32.to_le_bytes());
    for word in [0, address, address, size, size, 4096] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

/// A 32-bit x86 ELF file that exits.
fn elf32() -> Vec<u8> {
    // mov eax, SYS_exit; xor ebx, ebx; int 0x80
    let code = [0xb8, 1, 0, 0, 0, 0x31, 0xdb, 0xcd, 0x80];
    let (address, size) = (0x0804_8000u32, 52 + 32 + 9u32);
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2u16, 3] {
        file.extend(half.to_le_bytes());
    }
    for word in [1, address + 52 + 32, 52, 0, 0] {
        file.extend(word.to_le_bytes());
    }
    for half in [52u16, 32, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [1, 0, address, address, size, size, 5, 4096] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

fn c_string(bytes: impl AsRef<OsStr>) -> CString {
    CString::new(bytes.as_ref().as_bytes()).expect("no NUL")
}

/// An argument list as the kernel takes it.
struct Argv {
    _strings: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

fn argv(args: &[&str]) -> Argv {
    let strings: Vec<CString> = args.iter().map(c_string).collect();
    let pointers = strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect();
    Argv { _strings: strings, pointers }
}

/// Runs `act` as [`fork_child`] does, and waits for its end.
fn child(act: impl Fn()) -> (u64, WaitStatus) {
    let child = fork_child(act);
    let status = waitpid(child, None).expect("waitpid");
    (u64::try_from(child.as_raw()).expect("pid"), status)
}

/// Runs `act` in a child process, which then exits with 77. `act` may only make system calls:
/// other threads of the tests may hold locks.
fn fork_child(act: impl Fn()) -> Pid {
    // SAFETY: the child makes system calls only.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Child => {
            act();
            // SAFETY: ends the child without running anything of the tests.
            unsafe { libc::_exit(77) }
        }
        ForkResult::Parent { child } => child,
    }
}

fn execve(path: *const libc::c_char, argv: *const *const libc::c_char) {
    let environment: [*const libc::c_char; 1] = [ptr::null()];
    // SAFETY: the kernel checks its pointers.
    unsafe { libc::syscall(libc::SYS_execve, path, argv, environment.as_ptr()) };
}

fn execveat(fd: i32, path: &CStr, argv: *const *const libc::c_char, flags: i32) {
    let environment: [*const libc::c_char; 1] = [ptr::null()];
    // SAFETY: the kernel checks its pointers.
    unsafe {
        libc::syscall(libc::SYS_execveat, fd, path.as_ptr(), argv, environment.as_ptr(), flags)
    };
}

const AT_EMPTY_PATH: i32 = libc::AT_EMPTY_PATH;
const AT_EXECVE_CHECK: i32 = 0x10000;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The events of one process.
fn of_pid(finished: &Finished, pid: u64) -> Vec<&Value> {
    finished.of("event").filter(|event| event["pid"] == pid).collect()
}

/// The only event of one process.
fn only(finished: &Finished, pid: u64) -> &Value {
    let events = of_pid(finished, pid);
    assert_eq!(events.len(), 1, "{events:?}");
    events[0]
}

fn assert_success(event: &Value) {
    assert_eq!(event["ret"], 0, "{event}");
    assert_eq!((&event["error"], &event["error_raw"]), (&Value::Null, &Value::Null), "{event}");
    for absent in ["path_cut", "args_cut", "command_cut"] {
        assert!(event.get(absent).is_none(), "{event}");
    }
}

/// 2,000 execs as fast as two threads can make them: each is there, once, with everything.
fn burst() -> Outcome {
    const EXECS: usize = 1000;
    let directory = scratch("burst");
    let path = directory.join("prog");
    program(&path);
    let tool = start("execsnoop", &[]);
    let made = thread::scope(|scope| {
        let run = |which: usize| {
            let path = &path;
            move || -> Vec<(u64, usize)> {
                let number = |i: usize| which * EXECS + i;
                (0..EXECS)
                    .map(|i| {
                        let n = number(i);
                        let mut command = Command::new(path);
                        command.args([format!("n{n}"), "x".repeat(n % 200), String::new()]);
                        let mut child = command.spawn().expect("exec");
                        assert!(child.wait().expect("wait").success());
                        (child.id().into(), n)
                    })
                    .collect()
            }
        };
        let threads = [scope.spawn(run(0)), scope.spawn(run(1))];
        threads.into_iter().flat_map(|t| t.join().expect("thread")).collect::<Vec<_>>()
    });
    let finished = tool.stop();
    finished.assert_clean();
    let mut seen: HashMap<String, Vec<&Value>> = HashMap::new();
    for event in finished.of("event").filter(|event| event["path"] == text(&path)) {
        let name = event["args"][1].as_str().expect("second argument");
        seen.entry(name.into()).or_default().push(event);
    }
    assert_eq!(seen.values().map(Vec::len).sum::<usize>(), 2 * EXECS);
    for (pid, n) in made {
        let events = &seen[&format!("n{n}")];
        assert_eq!(events.len(), 1, "{events:?}");
        let event = events[0];
        assert_success(event);
        assert_eq!((&event["pid"], &event["tid"]), (&pid.into(), &pid.into()));
        assert_eq!((&event["ppid"], &event["comm"]), (&std::process::id().into(), &"prog".into()));
        let args = json!([text(&path), format!("n{n}"), "x".repeat(n % 200), ""]);
        assert_eq!((&event["args"], &event["command"]), (&args, &args));
    }
    Outcome::Passed
}

fn every_way() -> Outcome {
    let directory = scratch("ways");
    let path = directory.join("prog");
    program(&path);
    let c_path = c_string(&path);
    let dir = File::open(&directory).expect("directory");
    // Left open over the exec: a program is executed through it.
    let file = File::open(&path).expect("file");
    let tool = start("execsnoop", &[]);

    let list = argv(&["other-name", "one", "", "three words here"]);
    let (by_execve, status) = child(|| execve(c_path.as_ptr(), list.pointers.as_ptr()));
    assert_eq!(status, WaitStatus::Exited(Pid::from_raw(by_execve as i32), 0));
    let fd = file.as_raw_fd();
    let (by_fd, _) = child(|| execveat(fd, c"", list.pointers.as_ptr(), AT_EMPTY_PATH));
    let dirfd = dir.as_raw_fd();
    let (at_dir, _) = child(|| execveat(dirfd, c"prog", list.pointers.as_ptr(), 0));
    let (at_cwd, _) = child(|| execveat(libc::AT_FDCWD, &c_path, list.pointers.as_ptr(), 0));
    // Failures, and questions whether something could be executed, are not shown without -x.
    let (failed, _) = child(|| execve(c"/no/such/program".as_ptr(), list.pointers.as_ptr()));
    let (asked, _) =
        child(|| execveat(fd, c"", list.pointers.as_ptr(), AT_EMPTY_PATH | AT_EXECVE_CHECK));
    // One process, two programs; on a CPU of its choice.
    let cpu = nix::sched::sched_getaffinity(Pid::from_raw(0))
        .map(|set| (0..64).rev().find(|cpu| set.is_set(*cpu).unwrap_or(false)).expect("a CPU"))
        .expect("affinity");
    let mut pinned = nix::sched::CpuSet::new();
    pinned.set(cpu).expect("CPU");
    let shell = argv(&["sh", "-c", "exec \"$0\" last", text(&path)]);
    let (twice, _) = child(|| {
        let _ = nix::sched::sched_setaffinity(Pid::from_raw(0), &pinned);
        execve(c"/bin/sh".as_ptr(), shell.pointers.as_ptr());
    });
    #[cfg(target_arch = "x86_64")]
    let narrow = {
        executable(&directory.join("narrow"), &elf32());
        let narrow = c_string(directory.join("narrow"));
        child(|| execve(narrow.as_ptr(), list.pointers.as_ptr()))
    };
    let finished = tool.stop();
    finished.assert_clean();

    let me = u64::from(std::process::id());
    let my_comm = fs::read_to_string("/proc/self/comm").expect("comm");
    let given = json!(["other-name", "one", "", "three words here"]);
    let shown = |path: &str| json!([path, "one", "", "three words here"]);
    for (pid, path, comm) in [
        (by_execve, text(&path).to_string(), Some("prog")),
        // The name is that of the descriptor or, since 6.14, that of the file.
        (by_fd, format!("/dev/fd/{fd}"), None),
        (at_dir, format!("/dev/fd/{dirfd}/prog"), Some("prog")),
        (at_cwd, text(&path).to_string(), Some("prog")),
    ] {
        let event = only(&finished, pid);
        assert_success(event);
        assert_eq!(event["path"], path);
        assert_eq!((&event["args"], &event["command"]), (&given, &shown(&path)));
        assert_eq!(event["interpreter"], Value::Null);
        assert_eq!((&event["tid"], &event["caller_tid"]), (&pid.into(), &pid.into()));
        assert_eq!((&event["ppid"], &event["uid"]), (&me.into(), &0.into()));
        assert_eq!(event["parent_comm"], my_comm.trim_end());
        assert!(comm.is_none_or(|comm| event["comm"] == comm), "{event}");
    }
    assert!(of_pid(&finished, failed).is_empty() && of_pid(&finished, asked).is_empty());
    let twice = of_pid(&finished, twice);
    let paths: Vec<_> = twice.iter().map(|event| event["path"].as_str().expect("path")).collect();
    assert_eq!(paths, ["/bin/sh", text(&path)]);
    assert!(twice.iter().all(|event| event["cpu"] == cpu), "{twice:?}");
    #[cfg(target_arch = "x86_64")]
    {
        let (pid, status) = narrow;
        // Without 32-bit programs in the kernel it fails, and is not to be shown.
        if status == WaitStatus::Exited(Pid::from_raw(pid as i32), 0) {
            assert_eq!(only(&finished, pid)["args"], given);
        } else {
            assert!(of_pid(&finished, pid).is_empty());
        }
    }
    Outcome::Passed
}

fn scripts() -> Outcome {
    let directory = scratch("scripts");
    let path = |name: &str| directory.join(name).to_str().expect("UTF-8").to_string();
    program(&directory.join("prog"));
    executable(&directory.join("plain"), format!("#!{}\n", path("prog")).as_bytes());
    executable(&directory.join("option"), format!("#!{} -e some more\n", path("prog")).as_bytes());
    executable(&directory.join("nested"), format!("#!{} inner\n", path("option")).as_bytes());
    let tool = start("execsnoop", &[]);
    let made: Vec<(u64, &str)> = ["plain", "option", "nested"]
        .into_iter()
        .map(|name| {
            let c_path = c_string(path(name));
            // An argument that looks like the path must not confuse it.
            let list = argv(&["given-name", "one", &path(name), ""]);
            (child(|| execve(c_path.as_ptr(), list.pointers.as_ptr())).0, name)
        })
        .collect();
    let file = File::open(directory.join("plain")).expect("script");
    let fd = file.as_raw_fd();
    let list = argv(&["given-name", "one"]);
    let (by_fd, _) = child(|| {
        // The interpreter opens the script once more, through the descriptor.
        // SAFETY: takes integers.
        unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
        execveat(fd, c"", list.pointers.as_ptr(), AT_EMPTY_PATH);
    });
    let finished = tool.stop();
    finished.assert_clean();
    for (pid, name) in made {
        let event = only(&finished, pid);
        assert_success(event);
        assert_eq!((&event["path"], &event["comm"]), (&path(name).into(), &name.into()));
        assert_eq!(event["interpreter"], path("prog"));
        assert_eq!(event["command"], json!([path(name), "one", path(name), ""]));
        let before = match name {
            "plain" => vec![path("prog")],
            "option" => vec![path("prog"), "-e some more".into()],
            _ => vec![path("prog"), "-e some more".into(), path("option"), "inner".into()],
        };
        let after = [path(name), "one".into(), path(name), String::new()];
        assert_eq!(event["args"], json!([&before[..], &after[..]].concat()));
    }
    let event = only(&finished, by_fd);
    let name = format!("/dev/fd/{fd}");
    assert_eq!((&event["path"], &event["command"]), (&name.clone().into(), &json!([name, "one"])));
    assert_eq!(event["interpreter"], path("prog"));
    Outcome::Passed
}

fn failures() -> Outcome {
    let directory = scratch("failures");
    let path = |name: &str| directory.join(name).to_str().expect("UTF-8").to_string();
    program(&directory.join("prog"));
    fs::write(directory.join("forbidden"), "").expect("file");
    executable(&directory.join("nonsense"), b"neither ELF nor script");
    executable(&directory.join("orphan"), b"#!/no/such/interpreter -x\n");
    // Its only segment lies where no program can be: the kernel notices when the old one is gone.
    executable(&directory.join("killed"), &elf64(0xffff_8000_0000_0000, &[0xf4]));
    let dir = File::open(&directory).expect("directory");
    let (dirfd, file) = (dir.as_raw_fd(), File::open(directory.join("forbidden")).expect("file"));
    let fd = file.as_raw_fd();
    let tool = start("execsnoop", &["-x"]);

    let list = argv(&["given-name", "one", "", "last"]);
    let list = list.pointers.as_ptr();
    let mut made = Vec::new();
    for (name, error) in [
        ("missing", "ENOENT"),
        ("forbidden", "EACCES"),
        ("nonsense", "ENOEXEC"),
        ("orphan", "ENOENT"),
    ] {
        let c_path = c_string(path(name));
        made.push((child(|| execve(c_path.as_ptr(), list)), path(name), error));
    }
    let at = child(|| execveat(dirfd, c"missing", list, 0));
    made.push((at, format!("/dev/fd/{dirfd}/missing"), "ENOENT"));
    let at = child(|| execveat(fd, c"", list, AT_EMPTY_PATH));
    made.push((at, format!("/dev/fd/{fd}"), "EACCES"));
    let c_path = c_string(path("missing"));
    let absolute = child(|| execveat(dirfd, &c_path, list, 0));
    made.push((absolute, path("missing"), "ENOENT"));

    let (asked, _) = child(|| execveat(fd, c"", list, AT_EMPTY_PATH | AT_EXECVE_CHECK));
    let (no_path, _) = child(|| execve(ptr::without_provenance(8), list));
    let (no_list, _) = child(|| execve(c_path.as_ptr(), ptr::null()));
    let (bad_list, _) = child(|| execve(c_path.as_ptr(), ptr::without_provenance(8)));
    let page = NonZeroUsize::new(4096).expect("not zero");
    // SAFETY: a fresh mapping that nobody reads.
    let none = unsafe { mmap_anonymous(None, page, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) }
        .expect("mapping");
    let mut holed = argv(&["given-name", "one", "", "last"]);
    holed.pointers[2] = none.as_ptr().cast::<libc::c_char>().cast_const();
    let (hole, _) = child(|| execve(c_path.as_ptr(), holed.pointers.as_ptr()));
    let long = c_string("/".to_string() + &"x".repeat(5000));
    let (long, _) = child(|| execve(long.as_ptr(), list));
    let killed = c_string(path("killed"));
    let (killed, status) = child(|| execve(killed.as_ptr(), list));
    // And a success that follows failures, as a search along PATH makes it.
    let prog = c_string(path("prog"));
    let (searched, _) = child(|| {
        execve(c_path.as_ptr(), list);
        execve(prog.as_ptr(), list);
    });
    let finished = tool.stop();
    finished.assert_clean();

    let me = u64::from(std::process::id());
    let my_comm = fs::read_to_string("/proc/thread-self/comm").expect("comm");
    let given = json!(["given-name", "one", "", "last"]);
    for ((pid, status), path, error) in made {
        assert_eq!(status, WaitStatus::Exited(Pid::from_raw(pid as i32), 77));
        let event = only(&finished, pid);
        assert_eq!((&event["path"], &event["error"]), (&path.clone().into(), &error.into()));
        let number = event["error_raw"].as_i64().expect("number");
        assert_eq!(event["ret"], -number);
        assert_eq!(
            (&event["args"], &event["command"]),
            (&given, &json!([path, "one", "", "last"]))
        );
        assert!(event.get("args_cut").is_none() && event.get("path_cut").is_none(), "{event}");
        assert_eq!((&event["ppid"], &event["caller_tid"]), (&me.into(), &pid.into()));
        assert_eq!(
            (&event["comm"], &event["args_unread"]),
            (&my_comm.trim_end().into(), &0.into())
        );
    }
    assert!(of_pid(&finished, asked).is_empty());
    let event = only(&finished, no_path);
    assert_eq!((&event["path"], &event["error"]), (&Value::Null, &"EFAULT".into()));
    assert_eq!((&event["args"], &event["command"]), (&given, &json!(["?", "one", "", "last"])));
    let event = only(&finished, no_list);
    assert_eq!((&event["error"], &event["args"]), (&"ENOENT".into(), &json!([])));
    assert_eq!(event["command"], json!([path("missing")]));
    let event = only(&finished, bad_list);
    assert_eq!((&event["args"], &event["command"]), (&Value::Null, &json!([path("missing"), "?"])));
    let event = only(&finished, hole);
    assert_eq!(
        (&event["args"], &event["args_unread"]),
        (&json!(["given-name", "one", "?", "last"]), &1.into())
    );
    assert_eq!(event["command"], json!([path("missing"), "one", "?", "last"]));
    let event = only(&finished, long);
    assert_eq!((&event["error"], &event["path_cut"]), (&"ENAMETOOLONG".into(), &true.into()));
    assert!(event["path"].as_str().is_some_and(|path| path.len() > 4096));
    #[cfg(target_arch = "x86_64")]
    {
        assert!(matches!(status, WaitStatus::Signaled(..)), "{status:?}");
        let event = only(&finished, killed);
        assert!(event["ret"].as_i64().is_some_and(|ret| ret < 0), "{event}");
        for unknown in ["path", "args", "command"] {
            assert_eq!(event[unknown], Value::Null, "{event}");
        }
    }
    let searched: Vec<_> = of_pid(&finished, searched)
        .into_iter()
        .map(|event| (event["ret"].as_i64(), event["path"].as_str().map(String::from)))
        .collect();
    assert_eq!(searched, [(Some(-2), Some(path("missing"))), (Some(0), Some(path("prog")))]);
    Outcome::Passed
}

/// 32-bit system calls: `int 0x80` with pointers below 4 GiB.
#[cfg(target_arch = "x86_64")]
fn compat() -> Outcome {
    use std::arch::asm;

    let directory = scratch("compat");
    let path = |name: &str| directory.join(name).to_str().expect("UTF-8").to_string();
    program(&directory.join("prog"));
    let size = NonZeroUsize::new(8192).expect("not zero");
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_32BIT;
    // SAFETY: a fresh mapping, used by nobody else.
    let low =
        unsafe { mmap_anonymous(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }
            .expect("memory below 4 GiB");
    let base = u32::try_from(low.as_ptr() as usize).expect("below 4 GiB");
    let mut used = 0usize;
    let mut put = |bytes: &[u8]| -> u32 {
        assert!(used + bytes.len() <= 8192);
        // SAFETY: inside the mapping.
        unsafe {
            low.as_ptr()
                .cast::<u8>()
                .add(used)
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
        let address = base + u32::try_from(used).expect("small");
        used += bytes.len();
        address
    };
    let there = put(c_string(path("prog")).as_bytes_with_nul());
    let missing = put(c_string(path("missing")).as_bytes_with_nul());
    let relative = put(b"missing\0");
    let words = [put(b"given-name\0"), put(b"one\0"), put(b"\0"), put(b"last\0"), 0];
    let list = put(&words.map(u32::to_le_bytes).concat());
    let environment = put(&[0; 4]);

    let call = |number: u32, args: [u32; 5]| {
        let result: i32;
        // SAFETY: the 32-bit execve and execveat; int 0x80 preserves what is not named here.
        unsafe {
            asm!(
                "push rbx", "mov ebx, {a:e}", "int 0x80", "pop rbx",
                a = in(reg) args[0], inlateout("eax") number => result, in("ecx") args[1],
                in("edx") args[2], in("esi") args[3], in("edi") args[4],
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        result
    };
    let execve = |path: u32| child(|| _ = call(11, [path, list, environment, 0, 0]));
    let dir = File::open(&directory).expect("directory");
    let dirfd = dir.as_raw_fd().cast_unsigned();
    let execveat = |path: u32| child(|| _ = call(358, [dirfd, path, list, environment, 0]));
    if call(11, [0, 0, 0, 0, 0]) == -libc::ENOSYS {
        return Outcome::Skipped("this kernel has no 32-bit system calls".into());
    }
    let tool = start("execsnoop", &["-x"]);
    let made = [
        (execve(there).0, path("prog"), 0),
        (execveat(there).0, path("prog"), 0),
        (execve(missing).0, path("missing"), -2),
        (execveat(relative).0, format!("/dev/fd/{dirfd}/missing"), -2),
    ];
    let finished = tool.stop();
    finished.assert_clean();
    for (pid, path, ret) in made {
        let event = only(&finished, pid);
        assert_eq!((&event["path"], &event["ret"]), (&path.clone().into(), &ret.into()));
        assert_eq!(event["args"], json!(["given-name", "one", "", "last"]));
        assert_eq!(event["command"], json!([path, "one", "", "last"]));
    }
    Outcome::Passed
}

#[cfg(not(target_arch = "x86_64"))]
fn compat() -> Outcome {
    Outcome::Skipped("32-bit calls are made with x86 instructions".into())
}

/// Failing execs that are all under way at the same time: they wait for a lease on the file that
/// is not a program.
fn waiting() -> Outcome {
    const EXECS: usize = 32;
    let directory = scratch("waiting");
    let path = directory.join("leased");
    executable(&path, b"");
    let file = File::open(&path).expect("open");
    let c_path = c_string(&path);
    let list = argv(&["given-name"]);
    let tool = start("execsnoop", &["-x"]);
    // The lease's holder gets SIGIO when somebody waits for it; the test looks for itself.
    // SAFETY: ignoring a signal.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    // SAFETY: plain system calls on a descriptor that is open.
    let lease =
        |kind: libc::c_int| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    assert_eq!(lease(libc::F_WRLCK), 0, "a lease: {}", Errno::last());
    let pids: Vec<Pid> = (0..EXECS)
        .map(|_| fork_child(|| execve(c_path.as_ptr(), list.pointers.as_ptr())))
        .collect();
    for pid in &pids {
        wait_until_in_call(u64::try_from(pid.as_raw()).expect("pid"), libc::SYS_execve);
    }
    assert_eq!(lease(libc::F_UNLCK), 0);
    for pid in &pids {
        assert_eq!(waitpid(*pid, None), Ok(WaitStatus::Exited(*pid, 77)));
    }
    let finished = tool.stop();
    finished.assert_clean();
    for pid in pids {
        let events = of_pid(&finished, u64::try_from(pid.as_raw()).expect("pid"));
        let seen: Vec<_> = events.iter().map(|e| e["ret"].as_i64()).collect();
        assert_eq!(seen, [Some(-i64::from(libc::ENOEXEC))], "{pid}");
    }
    Outcome::Passed
}

/// What the second thread of [`other_thread`]'s child has.
struct Second<'a> {
    missing: &'a CStr,
    path: &'a CStr,
    list: *const *const libc::c_char,
    tid: &'a AtomicU32,
}

extern "C" fn second(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: points to the Second that its parent keeps until the end.
    let this = unsafe { &*argument.cast::<Second<'_>>() };
    // SAFETY: gettid takes nothing.
    let tid = unsafe { libc::syscall(libc::SYS_gettid) };
    this.tid.store(u32::try_from(tid).unwrap_or(0), Ordering::SeqCst);
    execve(this.missing.as_ptr(), this.list);
    execve(this.path.as_ptr(), this.list);
    0
}

/// The thread that calls becomes the process: its own id is gone.
fn other_thread() -> Outcome {
    let directory = scratch("thread");
    program(&directory.join("prog"));
    let path = c_string(directory.join("prog"));
    let missing = c_string(directory.join("missing"));
    let list = argv(&["given-name", "one"]);
    let page = NonZeroUsize::new(1 << 16).expect("not zero");
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: fresh mappings; the first is shared with the child, the second its thread's stack.
    let (shared, stack) = unsafe {
        (
            mmap_anonymous(None, page, access, MapFlags::MAP_SHARED).expect("mapping"),
            mmap_anonymous(None, page, access, MapFlags::MAP_PRIVATE).expect("mapping"),
        )
    };
    // SAFETY: zeroed memory that is never unmapped.
    let tid = unsafe { &*shared.as_ptr().cast::<AtomicU32>() };
    let top = stack.as_ptr().wrapping_byte_add(1 << 16);
    let given = Second { missing: &missing, path: &path, list: list.pointers.as_ptr(), tid };
    let tool = start("execsnoop", &["-x"]);
    for _ in 0..20 {
        let (pid, status) = child(|| {
            let flags = libc::CLONE_VM
                | libc::CLONE_FS
                | libc::CLONE_FILES
                | libc::CLONE_SIGHAND
                | libc::CLONE_THREAD
                | libc::CLONE_SYSVSEM;
            let argument: *const Second<'_> = &given;
            // SAFETY: the thread has a stack of its own and makes system calls only; this one
            // sleeps until the exec ends it.
            unsafe {
                libc::clone(second, top, flags, argument.cast_mut().cast());
                loop {
                    libc::pause();
                }
            }
        });
        assert_eq!(status, WaitStatus::Exited(Pid::from_raw(pid as i32), 0));
        let caller = tid.swap(0, Ordering::SeqCst);
        assert!(caller != 0 && u64::from(caller) != pid);
        MADE.with_borrow_mut(|made| made.push((pid, caller)));
    }
    let finished = tool.stop();
    finished.assert_clean();
    for (pid, caller) in MADE.take() {
        let events = of_pid(&finished, pid);
        let seen: Vec<_> = events
            .iter()
            .map(|e| (e["ret"].as_i64(), e["tid"].as_u64(), e["caller_tid"].as_u64()))
            .collect();
        let caller = u64::from(caller);
        let failed = (Some(-2), Some(caller), Some(caller));
        assert_eq!(seen, [failed, (Some(0), Some(pid), Some(caller))]);
        assert!(events.iter().all(|e| e["args"] == json!(["given-name", "one"])), "{events:?}");
    }
    Outcome::Passed
}

thread_local! {
    static MADE: std::cell::RefCell<Vec<(u64, u32)>> = const { std::cell::RefCell::new(Vec::new()) };
}

fn long_lists() -> Outcome {
    let directory = scratch("long");
    let path = directory.join("prog");
    program(&path);
    let c_path = c_string(&path);
    let missing = c_string(directory.join("missing"));
    let start = |args: &[&str]| {
        start("execsnoop", &[&["--ppid", &std::process::id().to_string()], args].concat())
    };
    let default = start(&["-x"]);
    let few = start(&["-x", "--max-args", "3"]);
    let small = start(&["-x", "--args-size", "100", "--max-args", "60"]);
    let whole = start(&["--args-size", "1M", "--max-args", "1024"]);

    let words = |count: usize, size: usize| -> Vec<String> {
        (0..count).map(|i| format!("{i:0size$}")).collect()
    };
    // Each list once as a success and once as a failure.
    let lists =
        [words(3, 5), words(4, 5), words(20, 5), words(21, 5), words(10, 10), words(1000, 250)];
    let made: Vec<[u64; 2]> = lists
        .iter()
        .map(|list| {
            let list = argv(&list.iter().map(String::as_str).collect::<Vec<_>>());
            let list = list.pointers.as_ptr();
            [child(|| execve(c_path.as_ptr(), list)).0, child(|| execve(missing.as_ptr(), list)).0]
        })
        .collect();
    let (default, few) = (default.stop(), few.stop());
    let (small, whole) = (small.stop(), whole.stop());
    let check = |finished: &Finished, which: usize, kept: &[String], cut: bool| {
        for pid in made[which] {
            let event = only(finished, pid);
            assert_eq!(event["args"], json!(kept), "list {which}");
            let shown = [&[event["path"].as_str().expect("path").to_string()], &kept[1..]].concat();
            assert_eq!(event["command"], json!(shown));
            for mark in ["args_cut", "command_cut"] {
                assert_eq!(
                    event.get(mark),
                    cut.then_some(&Value::Bool(true)),
                    "list {which}: {mark}"
                );
            }
        }
    };
    for finished in [&default, &few, &small, &whole] {
        finished.assert_clean();
    }
    check(&few, 0, &lists[0], false);
    check(&few, 1, &lists[1][..3], true);
    check(&default, 2, &lists[2], false);
    check(&default, 3, &lists[3][..20], true);
    check(&default, 5, &lists[5][..20], true);
    // 16 times six bytes fit into 100, and four bytes of the next.
    let mut cut = lists[2][..16].to_vec();
    cut.push("0000".into());
    for pid in made[2] {
        let event = only(&small, pid);
        assert_eq!(event["args_cut"], true);
        let mut expected = cut.clone();
        // Without its NUL it is one byte shorter where the kernel side follows the pointers.
        let last = event["args"].as_array().and_then(|args| args.last()).and_then(Value::as_str);
        let last = last.expect("the last").to_string();
        assert!("00016".starts_with(&last) && (3..=4).contains(&last.len()), "{last}");
        *expected.last_mut().expect("not empty") = last;
        assert_eq!(event["args"], json!(expected));
    }
    // Nine times eleven bytes, and one: not one argument too many, not one too few.
    for pid in made[4] {
        let event = only(&small, pid);
        assert_eq!(
            (&event["args_cut"], event["args"].as_array().map(Vec::len)),
            (&true.into(), Some(10))
        );
    }
    let event = only(&whole, made[5][0]);
    assert_eq!(event["args"], json!(lists[5]));
    assert!(event.get("args_cut").is_none());
    assert!(of_pid(&whole, made[5][1]).is_empty());
    Outcome::Passed
}

fn hostile() -> Outcome {
    let directory = scratch("hostile");
    let path = directory.join("prog");
    program(&path);
    let hostile: [&[u8]; 5] = [
        b"esc\x1b[2J\x07",
        b"line\nbreak\ttab\\",
        b"bytes\xff\xfe",
        "bidi\u{202e}\u{9b}".as_bytes(),
        b"say \"hi\"",
    ];
    let run = || {
        let args = hostile.iter().map(|bytes| OsStr::from_bytes(bytes));
        assert!(Command::new(&path).args(args).status().expect("exec").success());
    };
    let me = std::process::id().to_string();
    let tool = start("execsnoop", &["--ppid", &me, "--comm", "prog"]);
    run();
    let finished = tool.stop();
    finished.assert_clean();
    let events: Vec<_> = finished.of("event").filter(|e| e["path"] == text(&path)).collect();
    assert_eq!(events.len(), 1);
    let lossy = hostile.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert_eq!(
        events[0]["args"].as_array().expect("args")[1..],
        json!(lossy).as_array().expect("array")[..]
    );
    assert_eq!(events[0]["args_b64"][3], "Ynl0ZXP//g==");

    let lines = text_run(&["-P", &me, "-l", text(&path), "--limit", "1"], run);
    let shown = "esc\\x1b[2J\\x07 line\\nbreak\\ttab\\\\ bytes\\xff\\xfe \
                 bidi\\xe2\\x80\\xae\\xc2\\x9b say \"hi\"";
    assert!(lines[1].ends_with(&format!("{} {shown}", text(&path))), "{lines:?}");
    let lines = text_run(&["-q", "-P", &me, "-l", text(&path), "--limit", "1"], run);
    let quoted = "\"line\\nbreak\\ttab\\\\\" \"bytes\\xff\\xfe\"";
    assert!(lines[1].contains(quoted) && lines[1].ends_with(" \"say \\\"hi\\\"\""), "{lines:?}");
    assert!(lines[1].contains(&format!(" \"{}\" ", text(&path))), "{lines:?}");
    Outcome::Passed
}

/// Runs execsnoop in text form around `act` and returns its lines. It ends by its own limit.
fn text_run(args: &[&str], act: impl Fn()) -> Vec<String> {
    let mut command = crate::support::command("execsnoop", args);
    let mut tool = command.stdout(Stdio::piped()).spawn().expect("execsnoop");
    let mut lines = BufReader::new(tool.stdout.take().expect("piped")).lines();
    // The header comes when everything is attached.
    let header = lines.next().and_then(Result::ok).expect("header");
    act();
    let all = std::iter::once(header).chain(lines.map_while(Result::ok)).collect();
    assert!(tool.wait().expect("wait").success());
    all
}

fn filters() -> Outcome {
    let directory = scratch("filters");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).expect("chmod");
    let path = |name: &str| -> PathBuf { directory.join(name) };
    for name in ["alpha", "beta", "gamma"] {
        program(&path(name));
    }
    let cgroup = Cgroup::new("execs");
    let inner = cgroup.path.join("inner");
    fs::create_dir(&inner).expect("inner cgroup");
    let me = std::process::id().to_string();
    let here = text(&directory);

    let by_ppid = start("execsnoop", &["--ppid", &format!("{me},4194300")]);
    let by_uid = start("execsnoop", &["-u", "nobody"]);
    let by_comm = start("execsnoop", &["--comm", "al*"]);
    let by_name = start("execsnoop", &["--ppid", &me, "-n", "^(alpha|bet)"]);
    let by_line = start("execsnoop", &["--ppid", &me, "-l", "(beta|gamma) first sec.nd$"]);
    let by_late_line =
        start("execsnoop", &["--ppid", &me, "-x", "--max-args", "1", "-l", "filters/.* second$"]);
    let by_cgroup = start("execsnoop", &["-c", text(&cgroup.path)]);

    for name in ["alpha", "beta", "gamma", "missing"] {
        let _ = Command::new(path(name)).args(["first", "second"]).status();
    }
    let grandchild =
        Command::new("sh").args(["-c", "\"$0\" grandchild; :", text(&path("alpha"))]).status();
    assert!(grandchild.expect("sh").success());
    let other = Command::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups", text(&path("beta")), "nobody"])
        .status();
    assert!(other.expect("setpriv").success());
    let within = Command::new("sh")
        .args(["-c", "echo $$ > \"$1/cgroup.procs\"; exec \"$2\" cgroup"])
        .args(["sh", text(&inner), text(&path("gamma"))])
        .status();
    assert!(within.expect("sh").success());

    let seen = |finished: Finished| -> (Vec<String>, u64) {
        finished.assert_clean();
        let names = finished
            .of("event")
            .filter(|event| event["path"].as_str().is_some_and(|path| path.starts_with(here)))
            .map(|event| {
                let name = event["path"].as_str().and_then(|path| path.rsplit('/').next());
                format!("{} {}", name.expect("name"), event["args"][1].as_str().unwrap_or("-"))
            })
            .collect();
        (names, finished.end()["filtered"].as_u64().expect("filtered"))
    };
    let (names, filtered) = seen(by_ppid.stop());
    assert_eq!(names, ["alpha first", "beta first", "gamma first", "beta nobody", "gamma cgroup"]);
    assert_eq!(filtered, 0);
    assert_eq!(seen(by_uid.stop()).0, ["beta nobody"]);
    assert_eq!(seen(by_comm.stop()).0, ["alpha first", "alpha grandchild"]);
    assert_eq!(seen(by_cgroup.stop()).0, ["gamma cgroup"]);
    let (names, filtered) = seen(by_name.stop());
    assert_eq!(names, ["alpha first", "beta first", "beta nobody"]);
    assert!(filtered >= 3, "{filtered}");
    assert_eq!(seen(by_line.stop()).0, ["beta first", "gamma first"]);
    // Tested on the whole line, also where less of it is shown, and on failures.
    let late = seen(by_late_line.stop()).0;
    assert_eq!(late, ["alpha -", "beta -", "gamma -", "missing -"]);
    fs::remove_dir(inner).expect("inner cgroup");
    Outcome::Passed
}

/// `-- COMMAND`: only the command and what it starts, from its own exec on.
fn own_command() -> Outcome {
    let directory = scratch("command");
    let path = directory.join("prog");
    program(&path);
    let mut command =
        crate::support::command("execsnoop", &["--output", "json", "--", "/bin/sh", "-c"]);
    command.args(["\"$0\" inside; exit 3", text(&path)]);
    let tool = crate::support::start_command(command);
    assert!(Command::new(&path).arg("outside").status().expect("exec").success());
    let finished = tool.finish();
    finished.assert_clean();
    let seen: Vec<_> = finished.of("event").map(|event| event["path"].clone()).collect();
    assert_eq!(seen, ["/bin/sh", text(&path)]);
    assert_eq!(finished.end()["child_status"], 3);
    Outcome::Passed
}

fn text_columns() -> Outcome {
    let directory = scratch("text");
    let path = directory.join("prog");
    program(&path);
    let me = std::process::id().to_string();
    let started = Instant::now();
    let pid = Cell::new(0);
    let act = || {
        let mut child = Command::new(&path).args(["one", "two"]).spawn().expect("exec");
        pid.set(child.id());
        assert!(child.wait().expect("wait").success());
        Command::new(directory.join("missing")).arg("x").status().expect_err("missing");
    };
    let line = format!("^{}/(prog|missing) ", text(&directory));
    let args = ["-P", &me, "-l", &line, "-x", "--limit", "2"];
    let row = |line: &str| line.split_whitespace().map(String::from).collect::<Vec<_>>();
    let plain = text_run(&args, act);
    assert_eq!(plain[0], "PCOMM            PID    PPID   RET ARGS");
    let first = row(&plain[1]);
    let pid = pid.get().to_string();
    assert_eq!(first[..4], ["prog", &pid, &me, "0"]);
    assert_eq!(first[4..], [text(&path), "one", "two"]);
    let second = row(&plain[2]);
    let missing = directory.join("missing");
    assert_eq!(second[second.len() - 3..], ["-2", text(&missing), "x"]);

    let wide =
        text_run(&[&args[..], &["-T", "-t", "-U", "-C", "-M", "--max-args", "2"]].concat(), act);
    assert_eq!(
        wide[0],
        "TIME     TIME(s)  UID    CPU PCOMM            COMM             PID    PPID   RET ARGS"
    );
    // The columns begin where their headers do.
    let at = |header: &str| wide[0].find(header).expect("header");
    let line = &wide[1];
    assert_eq!(line[..8].matches(':').count(), 2);
    let seconds: f64 =
        line[at("TIME(s)")..].split(' ').next().expect("time").parse().expect("seconds");
    assert!(seconds <= started.elapsed().as_secs_f64());
    assert!(
        line[at("TIME(s)")..]
            .split(' ')
            .next()
            .is_some_and(|t| t.len() == t.find('.').expect("point") + 4)
    );
    assert!(line[at("UID")..].starts_with("0 ") && line[at(" COMM") + 1..].starts_with("prog "));
    let cpu: usize = row(&line[at("CPU")..])[0].parse().expect("a CPU");
    assert!(cpu < libbpf_rs::num_possible_cpus().expect("CPUs"), "{line}");
    let comm = fs::read_to_string("/proc/self/comm").expect("comm");
    assert!(line[at("PCOMM")..].starts_with(comm.trim_end()), "{line}");
    assert!(line.ends_with(&format!("{} one ...", text(&path))), "{line}");
    Outcome::Passed
}

/// A buffer too small: see [`assert_counted`].
fn no_room() -> Outcome {
    let program = scratch("no-room").join("no-room-exec");
    symlink("/bin/true", &program).expect("a link");
    assert_counted("execsnoop", &["--comm", "no-room-exec"], 60, || {
        (0..60).for_each(|_| assert!(Command::new(&program).status().expect("true").success()));
    });
    Outcome::Passed
}
