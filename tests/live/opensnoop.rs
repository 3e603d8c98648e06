// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! opensnoop against opens that the tests make.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::CString;
use std::ffi::OsStr;
use std::fs;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::fcntl::OFlag;
use nix::fcntl::OpenHow;
use nix::fcntl::open;
use nix::fcntl::openat;
use nix::fcntl::openat2;
use nix::libc;
use nix::mount::MntFlags;
use nix::mount::MsFlags;
use nix::mount::mount;
use nix::mount::umount2;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

use crate::support::Case;
use crate::support::Cgroup;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::gettid;
use crate::support::losses::assert_counted;
use crate::support::scratch;
use crate::support::start;
use crate::support::uring;
use crate::support::wait_until_in_call;
use crate::support::wait_until_stopped;

pub const CASES: &[Case] = &[
    Case::alone("every open of a burst once", burst),
    Case::new("every way to open", every_way),
    // Another tool that attaches meanwhile would take the ends of these calls away, on fexit.
    Case::alone("many that wait at once", waiting),
    Case::new("callers of 32-bit calls", compat),
    Case::new("io_uring", io_uring),
    Case::new("full paths", full_paths).in_turn(),
    Case::new("hostile names", hostile_names).in_turn(),
    Case::new("filters", filters),
    Case::new("flag filter and failures", flag_filter).in_turn(),
    Case::new("a command of its own", own_command).in_turn(),
    Case::new("callers", callers).in_turn(),
    Case::new("text columns", text_columns).in_turn(),
    Case::new("a buffer of few pages", few_pages).in_turn(),
    Case::new("what does not fit is counted", no_room).in_turn(),
];

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no NUL")
}

/// Events whose path begins with this directory.
fn below<'a>(finished: &'a Finished, directory: &Path) -> Vec<&'a Value> {
    let start = directory.to_str().expect("UTF-8").to_string();
    finished
        .of("event")
        .filter(move |event| event["path"].as_str().is_some_and(|path| path.starts_with(&start)))
        .collect()
}

/// Opens that wait all at the same time, more than any kernel has return probes for by default.
fn waiting() -> Outcome {
    const OPENS: usize = 64;
    let directory = scratch("waiting");
    let fifo = directory.join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).expect("mkfifo");
    let tool = start("opensnoop", &[]);
    let (tell, told) = mpsc::channel();
    let waiters: Vec<JoinHandle<()>> = (0..OPENS)
        .map(|_| {
            let (tell, fifo) = (tell.clone(), fifo.clone());
            thread::spawn(move || {
                tell.send(gettid()).expect("told");
                drop(open(&fifo, OFlag::O_RDONLY, Mode::empty()).expect("opened"));
            })
        })
        .collect();
    let mut tids: Vec<u64> = (0..OPENS).map(|_| told.recv().expect("a thread")).collect();
    for tid in &tids {
        wait_until_in_call(*tid, libc::SYS_openat);
    }
    let writer = open(&fifo, OFlag::O_WRONLY | OFlag::O_NONBLOCK, Mode::empty()).expect("writer");
    for waiter in waiters {
        waiter.join().expect("joined");
    }
    drop(writer);
    let finished = tool.stop();
    finished.assert_clean();
    let shown = |event: &&Value| event["fd"].as_i64().is_some_and(|fd| fd >= 0);
    let mut seen: Vec<u64> = below(&finished, &fifo)
        .into_iter()
        .filter(shown)
        .map(|event| event["tid"].as_u64().expect("tid"))
        .collect();
    tids.push(gettid());
    tids.sort_unstable();
    seen.sort_unstable();
    assert_eq!(seen, tids);
    Outcome::Passed
}

/// 20,000 opens in a tight loop: every one is there, once, with its result, or counted as lost;
/// and with the default buffer none is lost.
fn burst() -> Outcome {
    const OPENS: usize = 20_000;
    let directory = scratch("burst");
    File::create(directory.join("there")).expect("file");
    // Prepared beforehand, so that the loop does nothing but open.
    let paths: Vec<CString> = (0..OPENS)
        .map(|i| {
            c_path(&directory.join(if i % 4 == 0 { "there".into() } else { format!("no-{i}") }))
        })
        .collect();
    let tool = start("opensnoop", &[]);
    let mut expected: HashMap<String, Vec<i64>> = HashMap::new();
    for path in &paths {
        let result = match open(path.as_c_str(), OFlag::O_RDONLY, Mode::empty()) {
            Ok(fd) => i64::from(fd.as_raw_fd()),
            Err(error) => -(error as i64),
        };
        expected.entry(path.to_string_lossy().into_owned()).or_default().push(result);
    }
    let finished = tool.stop();
    finished.assert_clean();
    let mut seen: HashMap<String, Vec<i64>> = HashMap::new();
    for event in below(&finished, &directory) {
        let path = event["path"].as_str().expect("path").to_string();
        let error = event["error_raw"].as_i64().expect("errno");
        seen.entry(path).or_default().push(event["fd"].as_i64().unwrap_or(-error));
        assert_eq!(event["pid"], std::process::id());
        assert_eq!(event["tid"], gettid());
    }
    assert_eq!(seen.values().map(Vec::len).sum::<usize>(), OPENS);
    assert_eq!(seen, expected);
    Outcome::Passed
}

fn every_way() -> Outcome {
    let directory = scratch("ways");
    let path = |name: &str| directory.join(name);
    let tool = start("opensnoop", &[]);

    let create = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let mode = Mode::from_bits_truncate(0o640);
    let opened = openat(AT_FDCWD, &path("openat"), create, mode).expect("openat");
    // The C library makes openat of every open; the older calls are made directly.
    let direct = |number: libc::c_long, name: &str, a: libc::c_int, b: libc::c_int| {
        let path = c_path(&path(name));
        // SAFETY: open and creat take a path that lives across the call, and two integers.
        let fd = unsafe { libc::syscall(number, path.as_ptr(), a, b) };
        assert!(fd >= 0, "{name}: {}", Errno::last());
        fd
    };
    #[cfg(target_arch = "x86_64")]
    let old = [
        ("open", direct(libc::SYS_open, "open", libc::O_CREAT | libc::O_RDWR, 0o600)),
        ("creat", direct(libc::SYS_creat, "creat", 0o604, 0)),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let old: [(&str, libc::c_long); 0] = [];
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY);
    let by_how = openat2(AT_FDCWD, &directory, how).expect("openat2");
    let missing = open(&path("missing"), OFlag::O_RDWR, Mode::empty()).expect_err("missing");
    assert_eq!(missing, Errno::ENOENT);
    // A path that the kernel itself refuses to read.
    // SAFETY: openat checks its pointer.
    let wild = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, 8, 0) };
    assert_eq!((wild, Errno::last()), (-1, Errno::EFAULT));
    let empty = open("", OFlag::O_RDONLY, Mode::empty()).expect_err("empty");
    assert_eq!(empty, Errno::ENOENT);
    // As long as can be, and one byte too long.
    let long = format!("/{}", "x".repeat(4095));
    let too_long = open(long.as_str(), OFlag::O_RDONLY, Mode::empty()).expect_err("too long");
    assert_eq!(too_long, Errno::ENAMETOOLONG);

    let finished = tool.stop();
    finished.assert_clean();
    let events = below(&finished, &directory);
    let named = |name: &str| {
        let wanted = path(name);
        let wanted = wanted.to_str().expect("UTF-8");
        let found: Vec<_> = events.iter().filter(|event| event["path"] == wanted).collect();
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        found[0]
    };
    let event = named("openat");
    assert_eq!(event["fd"], opened.as_raw_fd());
    assert_eq!(
        (event["flags"].as_str(), event["mode"].as_u64()),
        (Some("O_WRONLY|O_CREAT|O_CLOEXEC"), Some(0o640))
    );
    assert_eq!((event["error"].clone(), event["error_raw"].as_i64()), (Value::Null, Some(0)));
    for (name, fd) in old {
        assert_eq!(named(name)["fd"], fd);
    }
    #[cfg(target_arch = "x86_64")]
    {
        assert_eq!(named("creat")["flags"], "O_WRONLY|O_CREAT|O_TRUNC");
        assert_eq!(
            (named("open")["mode"].as_u64(), named("creat")["mode"].as_u64()),
            (Some(0o600), Some(0o604))
        );
    }
    let at =
        events.iter().find(|e| e["path"] == directory.to_str().expect("UTF-8")).expect("openat2");
    assert_eq!(
        (at["fd"].as_i64(), at["flags"].as_str()),
        (Some(by_how.as_raw_fd().into()), Some("O_RDONLY|O_DIRECTORY|O_PATH"))
    );
    let event = named("missing");
    assert_eq!(
        (event["fd"].clone(), event["error"].as_str(), event["error_raw"].as_i64()),
        (Value::Null, Some("ENOENT"), Some(2))
    );
    assert_eq!((event["flags"].as_str(), event["mode"].clone()), (Some("O_RDWR"), Value::Null));

    let mine: Vec<_> = finished
        .of("event")
        .filter(|e| e["pid"] == std::process::id() && e["tid"] == gettid())
        .collect();
    let wild: Vec<_> = mine.iter().filter(|e| e["error"] == "EFAULT").collect();
    assert_eq!(wild.len(), 1, "{wild:?}");
    assert_eq!(wild[0]["path"], Value::Null);
    assert_eq!(mine.iter().filter(|e| e["path"] == "").count(), 1);
    let long: Vec<_> = mine.iter().filter(|e| e["error"] == "ENAMETOOLONG").collect();
    assert_eq!(long.len(), 1);
    assert_eq!(
        (long[0]["path_cut"].as_bool(), long[0]["path"].as_str().map(str::len)),
        (Some(true), Some(4095))
    );
    Outcome::Passed
}

/// A 32-bit system call from this process: `int 0x80` with pointers below 4 GiB.
#[cfg(target_arch = "x86_64")]
fn compat() -> Outcome {
    use std::arch::asm;
    use std::num::NonZeroUsize;

    use nix::sys::mman::MapFlags;
    use nix::sys::mman::ProtFlags;
    use nix::sys::mman::mmap_anonymous;

    let directory = scratch("compat");
    let path = directory.join("file");
    File::create(&path).expect("file");
    let bytes = c_path(&path);
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_32BIT;
    let size = NonZeroUsize::new(4096).expect("not zero");
    // SAFETY: a fresh mapping, used by nobody else.
    let low =
        unsafe { mmap_anonymous(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }
            .expect("memory below 4 GiB");
    // SAFETY: the mapping has room for the path.
    unsafe {
        low.as_ptr()
            .cast::<u8>()
            .copy_from_nonoverlapping(bytes.as_ptr().cast(), bytes.as_bytes_with_nul().len());
    };
    let address = u32::try_from(low.as_ptr() as usize).expect("below 4 GiB");
    let call = |number: u32, a: u32, b: u32, c: u32| -> i32 {
        let result: i32;
        // SAFETY: the 32-bit open, openat and creat; int 0x80 preserves what is not named here.
        unsafe {
            asm!(
                "push rbx", "mov ebx, {a:e}", "int 0x80", "pop rbx",
                a = in(reg) a, inlateout("eax") number => result, in("ecx") b, in("edx") c,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        result
    };
    let tool = start("opensnoop", &["--tid", &gettid().to_string()]);
    let by_open = call(5, address, 0, 0);
    if by_open == -libc::ENOSYS {
        return Outcome::Skipped("this kernel has no 32-bit system calls".into());
    }
    let by_openat =
        call(295, libc::AT_FDCWD.cast_unsigned(), address, libc::O_RDWR.cast_unsigned());
    // SAFETY: as above.
    unsafe { low.as_ptr().cast::<u8>().add(bytes.as_bytes().len()).write(b'x') };
    let failed = call(5, address, 0, 0);
    let finished = tool.stop();
    finished.assert_clean();
    let seen: Vec<_> = finished
        .of("event")
        .filter(|e| {
            e["path"].as_str().is_some_and(|p| p.starts_with(path.to_str().expect("UTF-8")))
        })
        .map(|e| (e["fd"].as_i64(), e["error_raw"].as_i64(), e["flags"].as_str().map(String::from)))
        .collect();
    let fd = |n: i32| Some(i64::from(n));
    assert_eq!(failed, -libc::ENOENT);
    assert_eq!(
        seen,
        [
            (fd(by_open), Some(0), Some("O_RDONLY".into())),
            (fd(by_openat), Some(0), Some("O_RDWR".into())),
            (None, Some(2), Some("O_RDONLY".into())),
        ]
    );
    Outcome::Passed
}

#[cfg(not(target_arch = "x86_64"))]
fn compat() -> Outcome {
    Outcome::Skipped("32-bit calls are made with x86 instructions".into())
}

fn io_uring() -> Outcome {
    let mut ring = match uring::ring() {
        Ok(ring) => ring,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let directory = scratch("uring");
    let there = directory.join("there");
    File::create(&there).expect("file");
    let missing = directory.join("missing");
    let tool = start("opensnoop", &["--pid", &std::process::id().to_string()]);
    let results = [
        uring::open(&mut ring, &c_path(&there), libc::O_RDONLY, false),
        uring::open(&mut ring, &c_path(&there), libc::O_RDWR, true),
        uring::open(&mut ring, &c_path(&missing), libc::O_RDONLY, false),
        uring::open(&mut ring, &c_path(&missing), libc::O_RDONLY, true),
    ];
    assert!(results[0] >= 0 && results[1] >= 0, "{results:?}");
    assert_eq!(results[2..], [-libc::ENOENT, -libc::ENOENT]);
    let finished = tool.stop();
    finished.assert_clean();
    let seen: Vec<_> = below(&finished, &directory)
        .into_iter()
        .filter(|event| event["via"] == "io_uring")
        .map(|e| {
            assert_eq!(e["pid"], std::process::id());
            let name = e["path"].as_str().expect("path").rsplit('/').next().map(String::from);
            (name.expect("name"), e["fd"].as_i64(), e["error"].as_str().map(String::from))
        })
        .collect();
    let fd = |n: i32| Some(i64::from(n));
    let none = Some("ENOENT".to_string());
    assert_eq!(
        seen,
        [
            ("there".into(), fd(results[0]), None),
            ("there".into(), fd(results[1]), None),
            ("missing".into(), None, none.clone()),
            ("missing".into(), None, none),
        ]
    );
    Outcome::Passed
}

fn full_paths() -> Outcome {
    let directory = scratch("full");
    let inside = directory.join("mounted/inner");
    fs::create_dir_all(directory.join("mounted")).expect("mount point");
    mount(Some("none"), &directory.join("mounted"), Some("tmpfs"), MsFlags::empty(), None::<&str>)
        .expect("tmpfs");
    fs::create_dir_all(&inside).expect("directory on the mount");
    let dir = File::open(&inside).expect("directory");
    symlink(&directory, directory.join("link")).expect("link");
    // The working directory belongs to the process: a child has its own.
    let tool = start("opensnoop", &["-F"]);
    let at = openat(&dir, "at-descriptor", OFlag::O_CREAT | OFlag::O_RDWR, Mode::S_IRUSR);
    let shell = Command::new("sh")
        .args(["-c", ": > from-cwd; : > ../parent"])
        .current_dir(&inside)
        .status()
        .expect("sh");
    let absolute = directory.join("link/absolute");
    File::create(&absolute).expect("file");
    let finished = tool.stop();
    drop((at.expect("openat"), dir));
    umount2(&directory.join("mounted"), MntFlags::MNT_DETACH).expect("umount");
    assert!(shell.success());
    finished.assert_clean();
    let full = |path: &str| {
        let found: Vec<_> = finished.of("event").filter(|e| e["path"] == path).collect();
        assert_eq!(found.len(), 1, "{path}: {found:?}");
        found[0]["full_path"].as_str().expect("full path").to_string()
    };
    let inside = inside.to_str().expect("UTF-8");
    assert_eq!(full("at-descriptor"), format!("{inside}/at-descriptor"));
    assert_eq!(full("from-cwd"), format!("{inside}/from-cwd"));
    assert_eq!(full("../parent"), format!("{inside}/../parent"));
    let absolute = absolute.to_str().expect("UTF-8");
    assert_eq!(full(absolute), absolute);
    Outcome::Passed
}

fn hostile_names() -> Outcome {
    let directory = scratch("hostile");
    let names: [&[u8]; 4] =
        [b"esc\x1b[2J\x07", b"line\nbreak\ttab", b"bytes\xff\xfe", "bidi\u{202e}\u{9b}".as_bytes()];
    let tool = start("opensnoop", &["--tid", &gettid().to_string()]);
    for name in names {
        let path = directory.join(OsStr::from_bytes(name));
        File::create(&path).expect("file");
    }
    let finished = tool.stop();
    finished.assert_clean();
    let events = below(&finished, &directory);
    assert_eq!(events.len(), names.len());
    for (event, name) in events.iter().zip(names) {
        let path = directory.join(OsStr::from_bytes(name));
        let lossy = String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned();
        assert_eq!(event["path"].as_str(), Some(lossy.as_str()));
        assert_eq!(event.get("path_b64").is_some(), std::str::from_utf8(name).is_err());
    }

    // The same as text: one line each, nothing that a terminal would act on.
    let (ready, lines) = text_run(&["--limit", "4", "--tid", &gettid().to_string()], || {
        for name in names {
            File::open(directory.join(OsStr::from_bytes(name))).expect("file");
        }
    });
    assert!(ready);
    let shown: Vec<_> = lines.iter().filter(|line| line.contains("hostile")).collect();
    assert_eq!(shown.len(), names.len(), "{lines:?}");
    assert!(lines.iter().all(|line| line.bytes().all(|b| (0x20..0x7f).contains(&b))), "{lines:?}");
    assert!(shown[0].ends_with("esc\\x1b[2J\\x07") && shown[1].ends_with("line\\nbreak\\ttab"));
    Outcome::Passed
}

/// Runs opensnoop in text form around `act` and returns its lines. It ends by its own limit.
fn text_run(args: &[&str], act: impl Fn()) -> (bool, Vec<String>) {
    use std::io::BufRead as _;
    use std::io::BufReader;
    use std::process::Stdio;
    let mut child = crate::support::command("opensnoop", args)
        .stdout(Stdio::piped())
        .spawn()
        .expect("opensnoop");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    // The header comes when everything is attached.
    let header = lines.next().and_then(Result::ok).unwrap_or_default();
    act();
    let mut all = vec![header.clone()];
    all.extend(lines.map_while(Result::ok));
    assert!(child.wait().expect("wait").success());
    (header.contains("COMM"), all)
}

fn filters() -> Outcome {
    let directory = scratch("filters");
    let cgroup = Cgroup::new("opens");
    let inner = cgroup.path.join("inner");
    fs::create_dir(&inner).expect("inner cgroup");
    let path = |name: &str| directory.join(name).to_str().expect("UTF-8").to_string();
    let touch = |name: &str| {
        let status = Command::new("touch").arg(path(name)).status().expect("touch");
        assert!(status.success());
    };
    let seen = |finished: Finished| -> Vec<String> {
        finished.assert_clean();
        let mut names: Vec<String> = below(&finished, &directory)
            .iter()
            .filter_map(|e| e["path"].as_str()?.rsplit('/').next().map(String::from))
            .collect();
        names.sort();
        names
    };

    // Two pids at once, a uid, and a command name with a prefix: all from inside the kernel.
    let me = std::process::id().to_string();
    let by_ppid = start("opensnoop", &["--ppid", &format!("{me},4194300")]);
    let by_uid = start("opensnoop", &["--uid", "nobody"]);
    let by_comm = start("opensnoop", &["--comm", "tou*"]);
    let by_cgroup = start("opensnoop", &["--cgroup", cgroup.path.to_str().expect("UTF-8")]);
    // Not at the beginning of the name, and not of every name.
    let by_name = start("opensnoop", &["-n", "etpri"]);
    fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .expect("chmod");

    touch("child");
    let grandchild =
        Command::new("sh").args(["-c", "touch \"$1\"; :", "sh", &path("grandchild")]).status();
    assert!(grandchild.expect("sh").success());
    let other = Command::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups", "touch", &path("nobody")])
        .status();
    assert!(other.expect("setpriv").success());
    let odd = directory.join("betpriest");
    symlink("/bin/touch", &odd).expect("link");
    assert!(Command::new(&odd).arg(path("by-name")).status().expect("touch").success());
    let within = Command::new("sh")
        .args(["-c", "echo $$ > \"$1/cgroup.procs\"; exec touch \"$2\""])
        .args(["sh", inner.to_str().expect("UTF-8"), &path("cgroup")])
        .status();
    assert!(within.expect("sh").success());
    let own = thread::spawn({
        let own = path("own");
        move || File::create(own).map(|_| ())
    });
    own.join().expect("thread").expect("file");

    let children = seen(by_ppid.stop());
    assert_eq!(children, ["by-name", "cgroup", "child", "nobody"]);
    assert_eq!(seen(by_uid.stop()), ["nobody"]);
    assert_eq!(seen(by_comm.stop()), ["cgroup", "child", "grandchild", "nobody"]);
    assert_eq!(seen(by_cgroup.stop()), ["cgroup"]);
    let by_name = by_name.stop();
    assert!(by_name.end()["filtered"].as_u64() > Some(0), "{}", by_name.end());
    assert_eq!(seen(by_name), ["by-name"]);
    fs::remove_dir(inner).expect("inner cgroup");
    Outcome::Passed
}

fn flag_filter() -> Outcome {
    let directory = scratch("flags");
    let tid = gettid().to_string();
    let flagged =
        start("opensnoop", &["--tid", &tid, "-f", "O_TRUNC", "--flag_filter", "O_APPEND"]);
    let failed = start("opensnoop", &["--tid", &tid, "-x"]);
    let open = |name: &str, flags: OFlag| {
        open(&directory.join(name), flags | OFlag::O_WRONLY, Mode::S_IRUSR).map(|_| ())
    };
    open("created", OFlag::O_CREAT).expect("open");
    open("created", OFlag::O_TRUNC).expect("open");
    open("created", OFlag::O_APPEND).expect("open");
    open("missing", OFlag::empty()).expect_err("missing");
    let flags: Vec<_> =
        below(&flagged.stop(), &directory).iter().map(|e| e["flags"].clone()).collect();
    assert_eq!(flags, ["O_WRONLY|O_TRUNC", "O_WRONLY|O_APPEND"]);
    let failed = failed.stop();
    let errors: Vec<_> = below(&failed, &directory).iter().map(|e| e["error"].clone()).collect();
    assert_eq!(errors, ["ENOENT"]);
    Outcome::Passed
}

/// `-- COMMAND` and `--exec COMMAND`: only the command and what it starts, from its first open to
/// its last.
fn own_command() -> Outcome {
    let directory = scratch("command");
    let path = |name: &str| directory.join(name).to_str().expect("UTF-8").to_string();
    let (one, two) = (path("one"), path("two"));
    for before in ["--", "--exec"] {
        let args = ["--output", "json", before, "sh", "-c"];
        let mut command = crate::support::command("opensnoop", &args);
        command.args([": > \"$1\"; touch \"$2\"; exit 3", "sh", &one, &two]);
        let tool = crate::support::start_command(command);
        File::create(directory.join("outsider")).expect("file");
        let finished = tool.finish();
        finished.assert_clean();
        let seen: Vec<_> = below(&finished, &directory).iter().map(|e| e["path"].clone()).collect();
        assert_eq!(seen, [&one, &two].map(String::as_str), "{before}");
        let end = finished.end();
        let how = (end["reason"].as_str(), end["child_status"].as_i64());
        assert_eq!(how, (Some("command"), Some(3)), "{before}");
        // The dynamic loader's opens come before anything the command itself does.
        let loader =
            |e: &Value| e["path"].as_str().is_some_and(|path| path.contains("ld.so.cache"));
        assert!(finished.of("event").any(loader), "{before}");
    }
    Outcome::Passed
}

#[inline(never)]
fn opener_with_a_name(path: &Path) {
    let path = c_path(path);
    // SAFETY: the path lives across the call.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY) };
    assert_eq!(fd, -1);
}

fn callers() -> Outcome {
    let directory = scratch("callers");
    let tool = start("opensnoop", &["--callers", "-x", "--pid", &std::process::id().to_string()]);
    opener_with_a_name(&directory.join("missing"));
    let finished = tool.stop();
    let events = below(&finished, &directory);
    assert_eq!(events.len(), 1);
    let stack = events[0]["user_stack"].as_array().expect("a stack");
    let named: Vec<_> = stack.iter().filter_map(|frame| frame["sym"].as_str()).collect();
    // The innermost frame is the C library's open, which every build of it names.
    assert!(named.iter().any(|name| name.contains("open")), "{stack:?}");
    Outcome::Passed
}

/// A tool that is stopped does not read: what does not fit into its buffer is lost, and counted.
fn few_pages() -> Outcome {
    const OPENS: u64 = 1000;
    let path = scratch("pages").join("x".repeat(200));
    let tid = gettid().to_string();
    for (args, fits) in [(&["-b", "1"][..], false), (&[], true)] {
        let tool = start("opensnoop", &[args, &["--tid", &tid]].concat());
        tool.signal(Signal::SIGSTOP);
        wait_until_stopped(tool.pid());
        for _ in 0..OPENS {
            File::open(&path).expect_err("missing");
        }
        tool.signal(Signal::SIGCONT);
        let finished = tool.stop();
        let shown = below(&finished, &path).len() as u64;
        let lost = finished.end()["lost"].as_u64().expect("lost");
        // More than fits into a page for each CPU, and less than into what there is by default.
        assert_eq!((lost == 0, shown + lost), (fits, OPENS), "{args:?}: {}", finished.end());
    }
    Outcome::Passed
}

fn text_columns() -> Outcome {
    let directory = scratch("text");
    let tid = gettid().to_string();
    let fd = Cell::new(0);
    let act = || {
        let file = File::create(directory.join("file")).expect("file");
        fd.set(file.as_raw_fd());
        File::open(directory.join("none")).expect_err("missing");
    };
    let (_, plain) = text_run(&["--tid", &tid, "--limit", "2"], act);
    assert_eq!(plain[0], "PID    COMM              FD ERR PATH");
    let row = |line: &str| line.split_whitespace().map(String::from).collect::<Vec<_>>();
    let pid = std::process::id().to_string();
    let first = row(&plain[1]);
    let comm = fs::read_to_string("/proc/thread-self/comm").expect("comm");
    assert_eq!(first[..4], [&pid, comm.trim_end(), &fd.get().to_string(), "0"]);
    let second = row(&plain[2]);
    assert_eq!((second[2].as_str(), second[3].as_str()), ("-1", "2"));
    assert_eq!(second[4], directory.join("none").to_str().expect("UTF-8"));

    let args = ["--tid", &tid, "--limit", "2", "-T", "-U", "-e", "--fields", "+tid"];
    let (_, wide) = text_run(&args, act);
    assert_eq!(
        wide[0],
        "TIME     UID     PID    COMM              FD ERR FLAGS    MODE  TID    PATH"
    );
    let first = row(&wide[1]);
    assert_eq!(first[0].len(), "00:00:00".len());
    assert_eq!(first[1..3], ["0", &pid]);
    assert_eq!(first[6..9], ["02001101", "0666", &tid]);
    assert_eq!(row(&wide[2])[7], "n/a");

    let (_, called) = text_run(&["--tid", &tid, "--limit", "1", "-x", "-c"], act);
    assert_eq!(called[0], "PID    COMM              FD ERR PATH/CALLER");
    assert!(called[1].ends_with("/none"), "{called:?}");
    // Two functions, the innermost of which is the C library's open.
    assert_eq!(called.len(), 4, "{called:?}");
    assert!(called[2..].iter().all(|line| line.starts_with("      ")), "{called:?}");
    assert!(called[2].contains("open"), "{called:?}");
    Outcome::Passed
}

/// A buffer too small: see [`assert_counted`].
fn no_room() -> Outcome {
    let path = scratch("no-room").join("missing");
    // This thread itself opens files while it waits for the tool.
    assert_counted("opensnoop", &["--comm", "no-room-open"], 200, || {
        let opens = || (0..200).for_each(|_| drop(File::open(&path).expect_err("missing")));
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("no-room-open".into());
            thread.spawn_scoped(scope, opens).expect("a thread").join().expect("opens");
        });
    });
    Outcome::Passed
}
