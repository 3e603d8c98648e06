// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! The common filters and the identity of containers, alike in tools of each kind: events of the
//! current task, events that are made elsewhere, counts whose owner is another task.

use std::fs;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

use crate::common::running_tools;
use crate::common::tools_in_turn;
use crate::support::Case;
use crate::support::Cgroup;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::PAUSE;
use crate::support::Running;
use crate::support::binary;
use crate::support::command;
use crate::support::disk::Disk;
use crate::support::go;
use crate::support::needs;
use crate::support::patience;
use crate::support::pinned::Pinned;
use crate::support::scratch;
use crate::support::share;
use crate::support::start;
use crate::support::start_command;
use crate::support::wait_until_stopped;

pub const CASES: &[Case] = &[
    Case::new("cgroups that are made later", later_cgroups),
    Case::new("process trees", trees),
    Case::new("users", users),
    Case::new("pinned maps", pinned_maps),
    Case::new("containers by name and id", containers).in_turn(),
    Case::new("no tool shows what is not in the container", nobody),
    Case::new("no tool shows what a filter leaves out", each_filter),
    Case::new("cgroups and containers that are gone", gone).in_turn(),
    Case::new("names that come later", late_names).in_turn(),
    Case::new("columns of containers", columns).in_turn(),
    Case::new("a tool leaves itself out", itself),
    Case::new("cgroups without privileges for handles", without_handles).in_turn(),
    Case::new("cgroup namespaces", cgroup_namespace).in_turn(),
    Case::new("no cgroup v2", no_hierarchy).in_turn(),
    Case::new("PID namespaces", pid_namespace),
    Case::new("PID namespaces and what is counted", pid_namespace_counts).in_turn(),
    Case::new("PID namespaces and filters", pid_namespace_filters).in_turn(),
];

/// Something to do so many times, and how often a tool has shown it.
struct Work {
    tool: &'static str,
    args: Vec<String>,
    /// The file that it opens or runs, which nobody else does.
    file: String,
    /// For sh; `$N` is how many times.
    script: String,
    /// Whether it is done by children of the shell.
    by_children: bool,
    count: Box<dyn Fn(&Finished) -> u64>,
    _disk: Option<Disk>,
}

/// Each of a kind of its own; what they do is told apart by how often it is done.
fn works() -> Vec<Work> {
    let directory = scratch("works");
    let program = directory.join("program");
    symlink("/bin/true", &program).expect("link");
    let file = directory.join("file");
    File::create(&file).expect("file");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = listener.local_addr().expect("address").port();
    // Takes them all, for as long as this process lives.
    thread::spawn(move || while listener.accept().is_ok() {});
    let disk = Disk::any();
    // For users that are not root.
    fs::set_permissions(disk.path(), fs::Permissions::from_mode(0o666)).expect("chmod");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).expect("chmod");

    let text = |path: &Path| path.to_str().expect("UTF-8").to_string();
    let repeat = |what: &str| format!("i=0; while [ $i -lt $N ]; do {what}; i=$((i+1)); done");
    let events = |field: &'static str, value: Value| -> Box<dyn Fn(&Finished) -> u64> {
        Box::new(move |finished| finished.of("event").filter(|e| e[field] == value).count() as u64)
    };
    vec![
        Work {
            tool: "execsnoop",
            args: Vec::new(),
            file: text(&program),
            script: repeat(&text(&program)),
            by_children: true,
            count: events("path", text(&program).into()),
            _disk: None,
        },
        Work {
            tool: "opensnoop",
            args: Vec::new(),
            file: text(&file),
            script: repeat(&format!(": <{}", text(&file))),
            by_children: false,
            count: events("path", text(&file).into()),
            _disk: None,
        },
        Work {
            tool: "tcpconnect",
            args: vec!["-P".into(), port.to_string()],
            file: String::new(),
            script: repeat(&format!("exec 3<>/dev/tcp/127.0.0.1/{port}")),
            by_children: false,
            count: events("dport", port.into()),
            _disk: None,
        },
        Work {
            tool: "biolatency",
            args: vec!["-d".into(), disk.name.clone()],
            file: text(&disk.path()),
            script: format!(
                "dd if={} of=/dev/null bs=4k count=$N iflag=direct status=none; :",
                text(&disk.path())
            ),
            by_children: true,
            count: Box::new(|finished| {
                finished.of("histogram").map(|h| h["count"].as_u64().expect("a count")).sum()
            }),
            _disk: Some(disk),
        },
    ]
}

impl Work {
    fn start(&self, args: &[&str]) -> Running {
        start(self.tool, &self.all(args))
    }

    fn all<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        self.args.iter().map(String::as_str).chain(args.iter().copied()).collect()
    }

    /// A shell that does it so many times after `first`.
    fn shell(&self, first: &str, times: u32) -> Command {
        let mut shell = Command::new("bash");
        shell.args(["-c", &format!("{first}\nN={times}; {}", self.script)]);
        shell
    }

    fn run(&self, first: &str, times: u32) {
        let status = self.shell(first, times).status().expect("bash");
        assert!(status.success(), "{}: {first}", self.tool);
    }

    fn assert(&self, tool: Running, expected: u64, what: &str) {
        let finished = tool.stop();
        finished.assert_clean();
        assert_eq!((self.count)(&finished), expected, "{} {what}: {:?}", self.tool, finished.end());
    }
}

fn enter(cgroup: &Path) -> String {
    format!("echo $$ >{}/cgroup.procs", cgroup.display())
}

/// In a cgroup made before the tool started, in one made below it later, and outside.
fn later_cgroups() -> Outcome {
    for work in works() {
        let outer = Cgroup::new(&format!("{}-outer", work.tool));
        let path = outer.path.to_str().expect("UTF-8");
        let tool = work.start(&["--cgroup", path]);
        // As /proc/PID/cgroup has it.
        let relative = format!("/{}", outer.path.file_name().expect("a name").display());
        let relative = work.start(&["--cgroup", &relative]);
        let inner = outer.path.join("inner");
        let deepest = inner.join("deepest");
        fs::create_dir_all(&deepest).expect("cgroups");
        work.run(&enter(&outer.path), 1);
        work.run(&enter(&inner), 3);
        work.run(&enter(&deepest), 9);
        work.run("", 27);
        work.assert(tool, 13, "--cgroup");
        work.assert(relative, 13, "--cgroup as /proc has it");
        fs::remove_dir(deepest).expect("empty");
        fs::remove_dir(inner).expect("empty");
    }
    Outcome::Passed
}

/// A process that was there with a child when the tool started, and those that they start.
fn trees() -> Outcome {
    for work in works() {
        let wait = "read go";
        // The child's child waits; its parent and it do the work of both.
        let mut root = Command::new("bash")
            .args(["-c", &format!("(({wait}; N=1; {0}); N=3; {0}) <&0; N=9; {0}", work.script)])
            .stdin(Stdio::piped())
            .spawn()
            .expect("bash");
        let pid = root.id().to_string();
        let tree = work.start(&["--tree", &pid]);
        let other = work.start(&["--tree", &pid, "--comm", "no-such-command"]);
        work.run("", 27);
        go(&mut root);
        assert!(root.wait().expect("wait").success());
        work.assert(tree, 13, "--tree");
        work.assert(other, 0, "--tree and --comm");
    }
    Outcome::Passed
}

fn users() -> Outcome {
    for work in works() {
        let as_user = |uid: u32, times: u32| {
            let mut command = Command::new("setpriv");
            command.args([format!("--reuid={uid}"), "--clear-groups".into(), "bash".into()]);
            command.args(["-c", &format!("N={times}; {}", work.script)]);
            assert!(command.status().expect("setpriv").success(), "{}", work.tool);
        };
        let one = work.start(&["--uid", "nobody"]);
        let two = work.start(&["--uid", "65534,65533"]);
        let both = work.start(&["--uid", "65533", "--comm", "no-such-command"]);
        as_user(65_534, 1);
        as_user(65_533, 3);
        work.run("", 9);
        work.assert(one, 1, "--uid nobody");
        work.assert(two, 4, "--uid 65534,65533");
        work.assert(both, 0, "--uid and --comm");
    }
    Outcome::Passed
}

/// Cgroups and mount namespaces that somebody else keeps a list of, in a map that he has pinned.
fn pinned_maps() -> Outcome {
    for work in works() {
        let cgroup = Cgroup::new(&format!("{}-pinned", work.tool));
        let id = fs::metadata(&cgroup.path).expect("cgroup").ino().to_ne_bytes();
        let cgroups = match Pinned::new(&id) {
            Ok(cgroups) => cgroups,
            Err(reason) => return Outcome::Skipped(reason),
        };
        // In a mount namespace of its own once it has said something.
        let mut apart = Command::new("unshare")
            .args(["--mount", "bash", "-c", &format!("echo; read go; N=9; {}", work.script)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare");
        apart.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("it runs");
        let namespace = fs::metadata(format!("/proc/{}/ns/mnt", apart.id())).expect("namespace");
        let namespace = u32::try_from(namespace.ino()).expect("32 bits").to_ne_bytes();
        let namespaces = Pinned::new(&namespace).expect("as before");
        let by_cgroup = work.start(&["--cgroupmap", &cgroups.path()]);
        let by_namespace = work.start(&["--mntnsmap", &namespaces.path()]);
        work.run("", 1);
        work.run(&enter(&cgroup.path), 3);
        go(&mut apart);
        assert!(apart.wait().expect("wait").success());
        // Whoever keeps the map may change it while the tool runs.
        cgroups.remove(&id);
        work.run(&enter(&cgroup.path), 27);
        work.assert(by_cgroup, 3, "--cgroupmap");
        work.assert(by_namespace, 9, "--mntnsmap");
    }
    Outcome::Passed
}

/// A machine's directories as a test would have them: a tool that is started here has them in
/// place of /var/lib/docker, /run/containerd and podman's.
struct Machine {
    root: PathBuf,
}

/// A container without a runtime: its cgroup and the file that tells its name.
struct Fake {
    id: String,
    cgroup: PathBuf,
}

impl Machine {
    fn new() -> Self {
        let root = scratch("machine");
        for part in ["docker", "containerd", "containers"] {
            fs::create_dir(root.join(part)).expect("directory");
        }
        Self { root }
    }

    fn command(&self, tool: &str, args: &[&str]) -> Command {
        let script = "mount -t tmpfs none /var/lib; mount -t tmpfs none /run
            mkdir /var/lib/docker /var/lib/containers /run/containerd
            mount --bind \"$1/docker\" /var/lib/docker
            mount --bind \"$1/containers\" /var/lib/containers
            mount --bind \"$1/containerd\" /run/containerd
            shift; exec \"$@\"";
        let mut command = Command::new("unshare");
        // /run may be where the scratch directory is not: bind before it is hidden.
        command.args(["--mount", "sh", "-ec", script, "sh"]).arg(&self.root).arg(binary());
        command.arg(tool).args(args);
        command.stdin(Stdio::null());
        command
    }

    fn start(&self, tool: &str, args: &[&str]) -> Running {
        start_command(self.command(tool, &[&["--output", "json"], args].concat()))
    }

    fn new_id() -> String {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        format!("{n:04x}{:08x}{}", std::process::id(), "0f".repeat(26))
    }

    fn config(&self, id: &str) -> PathBuf {
        self.root.join(format!("docker/containers/{id}/config.v2.json"))
    }

    /// First the file, then the cgroup, as docker does.
    fn docker(&self, name: &str) -> Fake {
        let id = Self::new_id();
        let config = self.config(&id);
        fs::create_dir_all(config.parent().expect("a parent")).expect("directory");
        fs::write(config, format!(r#"{{"ID":"{id}","Name":"/{name}"}}"#)).expect("config");
        Fake::new(&format!("docker-{id}.scope"), id)
    }
}

impl Fake {
    fn new(directory: &str, id: String) -> Self {
        let cgroup = crate::support::cgroup_root().expect("cgroup v2").join(directory);
        fs::create_dir_all(&cgroup).unwrap_or_else(|e| panic!("{}: {e}", cgroup.display()));
        Self { id, cgroup }
    }

    fn cgroup_id(&self) -> u64 {
        fs::metadata(&self.cgroup).expect("cgroup").ino()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        for below in fs::read_dir(&self.cgroup).into_iter().flatten().flatten() {
            if below.path().is_dir() {
                let _ = fs::remove_dir(below.path());
            }
        }
        let _ = fs::remove_dir(&self.cgroup);
    }
}

/// Waits until the tool's filter has this cgroup: until then the tool has not seen that it was
/// made. Asked of the kernel, through the maps that the tool has open.
fn wait_for_filter(tool: &Running, cgroup: u64) {
    let has = || {
        let descriptors = fs::read_dir(format!("/proc/{}/fdinfo", tool.pid())).expect("fdinfo");
        descriptors.flatten().any(|entry| {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let id = text.lines().find_map(|line| line.strip_prefix("map_id:\t")?.parse().ok());
            let map = id.and_then(|id| MapHandle::from_map_id(id).ok());
            map.is_some_and(|map| {
                map.name().to_string_lossy().starts_with("filter_contain")
                    && map
                        .lookup(&cgroup.to_ne_bytes(), MapFlags::ANY)
                        .is_ok_and(|value| value.is_some())
            })
        })
    };
    let until = Instant::now() + patience();
    while !has() {
        assert!(Instant::now() < until, "the filter does not learn of cgroup {cgroup}");
        thread::sleep(PAUSE);
    }
}

/// One that is there, one that comes later, one with another name; by name, by the beginning of
/// the id, and both.
fn containers() -> Outcome {
    for work in works() {
        let machine = Machine::new();
        let before = machine.docker("bs-web");
        let inner = before.cgroup.join("inner");
        fs::create_dir(&inner).expect("cgroup");
        let by_name = machine.start(work.tool, &work.all(&["--container", "bs-web"]));
        let by_id = machine.start(work.tool, &work.all(&["--container", &before.id[..12]]));
        let by_list = machine.start(work.tool, &work.all(&["--container", "bs-web,bs-later"]));
        let by_other = machine
            .start(work.tool, &work.all(&["--container", "bs-later", "--comm", "no-such-command"]));
        let later = machine.docker("bs-later");
        let deep = later.cgroup.join("deep");
        fs::create_dir(&deep).expect("cgroup");
        let other = machine.docker("bs-web-other");
        for tool in [&by_name, &by_id, &by_list] {
            if !std::ptr::eq(tool, &by_list) {
                continue;
            }
            wait_for_filter(tool, later.cgroup_id());
            wait_for_filter(tool, fs::metadata(&deep).expect("cgroup").ino());
        }
        // Made in a container that the filter has: the kernel side itself puts it in.
        let inmost = inner.join("inmost");
        fs::create_dir(&inmost).expect("cgroup");
        work.run(&enter(&before.cgroup), 1);
        work.run(&enter(&inmost), 3);
        work.run(&enter(&later.cgroup), 9);
        work.run(&enter(&deep), 27);
        work.run(&enter(&other.cgroup), 81);
        work.run("", 81);
        fs::remove_dir(inmost).expect("empty");
        let check = |tool: Running, expected: u64, waits: bool, what: &str| {
            let finished = tool.stop();
            finished.assert_clean();
            assert_eq!((work.count)(&finished), expected, "{} {what}", work.tool);
            let said = finished.stderr.matches("waiting for it").count();
            assert_eq!(said, usize::from(waits), "{} {what}: {}", work.tool, finished.stderr);
            for event in finished.of("event") {
                let name = event["container"].as_str();
                assert!(matches!(name, Some("bs-web" | "bs-later")), "{event}");
                assert_eq!(event["runtime"], "docker", "{event}");
                let id = event["container_id"].as_str().expect("an id");
                assert!(id == before.id || id == later.id, "{event}");
                let unit = format!("docker-{id}.scope");
                assert_eq!(event["unit"], unit, "{event}");
                let path = event["cgroup"].as_str().expect("a path");
                assert!(path.starts_with(&format!("/{unit}")), "{event}");
            }
        };
        check(by_name, 4, false, "by name");
        check(by_id, 4, false, "by id");
        check(by_list, 40, true, "by list");
        check(by_other, 0, true, "with another filter");
    }
    Outcome::Passed
}

/// Over the tools, while there is something for each of them: nothing is shown, and that it waits
/// is said once.
fn nobody() -> Outcome {
    let works = works();
    for tool in tools_in_turn(4) {
        let needs = needs(tool);
        let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
        let running = start(tool, &[&needs, &["--container", "no-such-container"][..]].concat());
        for work in &works {
            work.run("", 1);
        }
        let finished = running.stop();
        finished.assert_clean();
        assert_eq!(finished.of("event").count(), 0, "{tool}");
        let counted: u64 = finished.of("histogram").filter_map(|h| h["count"].as_u64()).sum();
        assert_eq!(counted, 0, "{tool}");
        let said = "there is no container 'no-such-container' yet: waiting for it";
        assert_eq!(finished.stderr.matches(said).count(), 1, "{tool}: {}", finished.stderr);
    }
    Outcome::Passed
}

/// How much a tool has shown. A table may have a row that says that there was nothing.
fn shown(finished: &Finished) -> u64 {
    let nothing = |row: &&Value| ["hits", "misses", "dirties"].iter().all(|n| row[*n] == 0);
    let rows = finished.of("row").filter(|row| !nothing(row)).count();
    let counted: u64 = finished.of("histogram").filter_map(|h| h["count"].as_u64()).sum();
    finished.of("event").count() as u64 + rows as u64 + counted
}

/// Over all tools, while there is something for each of them: under each common filter that whoever
/// does it does not pass, nothing is shown; and under those that he passes, something.
fn each_filter() -> Outcome {
    let works = works();
    // Waits for as long as its stdin is open: until this test has ended, in whatever way.
    let mut idle = Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat");
    let pid = idle.id().to_string();
    let (mine, other) = (Cgroup::new("each-mine"), Cgroup::new("each-other"));
    let path = |cgroup: &Cgroup| cgroup.path.to_str().expect("UTF-8").to_string();
    let (mine_path, other_path) = (path(&mine), path(&other));
    let filters = [
        ["--pid", &pid],
        ["--tid", &pid],
        ["--ppid", &pid],
        ["--tree", &pid],
        ["--uid", "65530"],
        ["--comm", "no-such-command"],
        ["--cgroup", &other_path],
    ];
    let (mut number, mut active, mut itself) = (0, 0, 0);
    for tool in tools_in_turn(2) {
        let needs = needs(tool);
        let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
        let begin = |args: &[&str]| start(tool, &[&needs, args].concat());
        // A shell becomes the tool, and so knows its number.
        let begin_by_itself = |args: &[&str]| {
            let mut shell = Command::new("sh");
            shell.args(["-c", "exec \"$@\" --pid $$", "sh"]).arg(binary()).arg(tool);
            shell.args(["--output", "json"]).args(&needs).args(args).stdin(Stdio::null());
            start_command(shell)
        };
        let options = Command::new(binary()).args(["docs", "options", tool]).output();
        let options = String::from_utf8(options.expect("docs").stdout).expect("UTF-8");
        // Upstream may mean something else by the name.
        let is_common = |name: &str| {
            options.lines().any(|line| line.starts_with("common") && line.ends_with(name))
        };
        let mut running = Vec::new();
        for filter in &filters {
            number += 1;
            // A tool has its turn on an older and on a newer kernel.
            let half = share(4).map(|kernel| kernel / 2);
            if is_common(filter[0]) && half.is_none_or(|half| number % 2 == half) {
                running.push((filter[0], begin(filter)));
            }
        }
        running.push(("the tool itself", begin_by_itself(&[])));
        let all = begin(&["--uid", "0", "--cgroup", &mine_path]);
        let include = begin_by_itself(&["--include-self"]);
        for work in &works {
            work.run(&enter(&mine.path), 1);
        }
        for (filter, running) in running {
            let finished = running.stop();
            finished.assert_clean();
            assert_eq!(shown(&finished), 0, "{tool} {filter}: {:?}", finished.records);
        }
        let all = all.stop();
        all.assert_clean();
        active += u32::from(shown(&all) > 0);
        let include = include.stop();
        include.assert_clean();
        itself += u32::from(shown(&include) > 0);
    }
    drop(idle.stdin.take());
    idle.wait().expect("wait");
    let count = u32::try_from(tools_in_turn(2).count()).expect("small");
    // What these do is not for all tools; but were it for few, nothing would have been tested.
    assert!(active * 2 > count, "{active} of {count} tools show what is done");
    // A tool opens files and takes time, and does little else.
    assert!(itself * 10 >= count, "{itself} of {count} tools show themselves");
    Outcome::Passed
}

/// Everything is over before the tool shows the first event.
fn gone() -> Outcome {
    let machine = Machine::new();
    let marks = scratch("gone");
    let old = machine.docker("bs-old");
    let tool = machine.start("opensnoop", &["--uid", "0"]);
    let new = machine.docker("bs-new");
    let file = |name: &str| marks.join(name).display().to_string();
    let open = |fake: &Fake, name: &str| {
        let script = format!("{}; : 2>/dev/null <{} || :", enter(&fake.cgroup), file(name));
        let status = Command::new("bash").args(["-c", &script]).status().expect("bash");
        assert!(status.success());
    };
    // The tool has seen that this one was made when it shows something of it.
    let mut tool = tool;
    open(&new, "first");
    tool.wait_for(|event| event["path"] == file("first"));
    tool.signal(Signal::SIGSTOP);
    wait_until_stopped(tool.pid());
    let unseen = machine.docker("bs-unseen");
    open(&old, "old");
    open(&new, "new");
    open(&unseen, "unseen");
    let plain = Cgroup::new("gone");
    let script = format!("{}; : 2>/dev/null <{} || :", enter(&plain.path), file("plain"));
    assert!(Command::new("bash").args(["-c", &script]).status().expect("bash").success());
    let plain_name = plain.path.file_name().expect("a name").to_str().expect("UTF-8").to_string();
    let ids = [&old, &new, &unseen].map(|fake| fake.id.clone());
    fs::remove_file(machine.config(&ids[1])).expect("config");
    fs::remove_file(machine.config(&ids[2])).expect("config");
    let paths = [&old, &new, &unseen].map(|fake| fake.cgroup.clone());
    drop((old, new, unseen, plain));
    for path in &paths {
        assert!(!path.exists(), "{} is not gone", path.display());
    }
    tool.signal(Signal::SIGCONT);
    tool.wait_for(|event| event["path"] == file("plain"));
    let finished = tool.stop();
    finished.assert_clean();
    let event = |name: &str| {
        let mut found = finished.of("event").filter(|event| event["path"] == file(name));
        let event = found.next().unwrap_or_else(|| panic!("{name} is not shown"));
        assert!(found.next().is_none(), "{name} twice");
        event
    };
    // One name was still on disk, one had been read in time, one can be known to nobody.
    let short = ids[2][..12].to_string();
    for (name, id, shown) in
        [("old", &ids[0], "bs-old"), ("new", &ids[1], "bs-new"), ("unseen", &ids[2], &short)]
    {
        let event = event(name);
        assert_eq!(event["cgroup"], format!("/docker-{id}.scope"), "{event}");
        assert_eq!(event["container_id"], **id, "{event}");
        assert_eq!(event["container"], shown, "{event}");
    }
    assert_eq!(event("plain")["cgroup"], format!("/{plain_name}"));
    assert_eq!(event("plain")["container"], Value::Null);
    Outcome::Passed
}

/// Of runtimes that write the file only after the cgroup; and of containerd, CRI-O and podman.
fn late_names() -> Outcome {
    let work = works().into_iter().find(|work| work.tool == "opensnoop").expect("a work");
    let machine = Machine::new();
    let names = "bs-docker,bs-pod/bs-app,bs-podman,bs-lxc";
    let tool = machine.start("opensnoop", &["--container", names]);

    let id = Machine::new_id();
    let docker = Fake::new(&format!("docker/{id}"), id.clone());
    let config = machine.config(&id);
    fs::create_dir_all(config.parent().expect("a parent")).expect("directory");
    fs::write(config, r#"{"Name":"/bs-docker"}"#).expect("config");

    let id = Machine::new_id();
    let task = machine.root.join("containerd/io.containerd.runtime.v2.task/k8s.io").join(&id);
    fs::create_dir_all(&task).expect("directory");
    let notes = r#"{"annotations":{"io.kubernetes.cri.container-name":"bs-app",
        "io.kubernetes.cri.sandbox-name":"bs-pod","io.kubernetes.cri.sandbox-namespace":"shop"}}"#;
    fs::write(task.join("config.json"), notes).expect("config");
    let slice = format!("kubepods.slice/kubepods-pod{}.slice", "ab12_cd34");
    let pod = Fake::new(&format!("{slice}/cri-containerd-{id}.scope"), id);

    let id = Machine::new_id();
    let store = machine.root.join("containers/storage/overlay-containers");
    fs::create_dir_all(&store).expect("directory");
    let list = format!(r#"[{{"id":"{id}","names":["bs-podman"]}}]"#);
    fs::write(store.join("containers.json"), list).expect("list");
    let podman = Fake::new(&format!("machine.slice/libpod-{id}.scope"), id);

    let lxc = Fake::new("lxc.payload.bs-lxc", "bs-lxc".into());
    let fakes = [&docker, &pod, &podman, &lxc];
    for fake in fakes {
        wait_for_filter(&tool, fake.cgroup_id());
        work.run(&enter(&fake.cgroup), 1);
    }
    let finished = tool.stop();
    finished.assert_clean();
    let shown: Vec<[&Value; 4]> = finished
        .of("event")
        .filter(|event| event["path"] == work.file)
        .map(|event| {
            [&event["container"], &event["container_id"], &event["runtime"], &event["pod"]]
        })
        .collect();
    let null = Value::Null;
    let text = |text: &str| Value::from(text);
    let expected = [
        [text("bs-docker"), text(&docker.id), text("docker"), null.clone()],
        [text("bs-app"), text(&pod.id), text("containerd"), text("shop/bs-pod")],
        [text("bs-podman"), text(&podman.id), text("podman"), null.clone()],
        [text("bs-lxc"), text("bs-lxc"), text("lxc"), null],
    ];
    let shown: Vec<[Value; 4]> = shown.into_iter().map(|row| row.map(Clone::clone)).collect();
    assert_eq!(shown, expected);
    let root = crate::support::cgroup_root().expect("cgroup v2");
    drop((docker, pod, podman, lxc));
    for path in [&slice, "kubepods.slice", "machine.slice", "docker"] {
        // Others of this machine may be in it.
        let _ = fs::remove_dir(root.join(path));
    }
    Outcome::Passed
}

/// To show an event of a container, a tool opens the file with its name: that is seen only where it
/// is asked for.
fn itself() -> Outcome {
    let work = works().into_iter().find(|work| work.tool == "opensnoop").expect("a work");
    let machine = Machine::new();
    let fake = machine.docker("bs-self");
    let own = |args: &[&str]| {
        let tool = machine.start("opensnoop", args);
        let pid = tool.pid();
        work.run(&enter(&fake.cgroup), 1);
        let finished = tool.stop();
        finished.assert_clean();
        assert_eq!((work.count)(&finished), 1);
        let mine = finished.of("event").filter(|event| event["pid"] == pid);
        mine.map(|event| event["path"].as_str().unwrap_or("?").to_string()).collect::<Vec<_>>()
    };
    let (without, with) = (own(&[]), own(&["--include-self"]));
    assert!(without.is_empty(), "{without:?}");
    assert!(with.iter().any(|path| path.ends_with("config.v2.json")), "{with:?}");
    Outcome::Passed
}

/// In text, on request.
fn columns() -> Outcome {
    let machine = Machine::new();
    let fake = machine.docker("bs-column");
    let work = works().into_iter().find(|work| work.tool == "opensnoop").expect("a work");
    let mut text =
        machine.command("opensnoop", &["--fields", "+container,+cgroup,-comm", "--ready-fd", "9"]);
    let fifo = scratch("ready").join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).expect("fifo");
    // The descriptor is opened by a shell that becomes the tool.
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$@\" 9>\"$0\""]).arg(&fifo).arg(text.get_program());
    shell.args(text.get_args());
    text = shell;
    let child = text.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawn");
    assert_eq!(fs::read_to_string(&fifo).expect("ready"), "ready\n");
    work.run(&enter(&fake.cgroup), 1);
    work.run("", 1);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("pid"));
    nix::sys::signal::kill(pid, Signal::SIGINT).expect("kill");
    let output = child.wait_with_output().expect("wait");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let header: Vec<&str> = text.lines().next().expect("a header").split_whitespace().collect();
    assert_eq!(header, ["PID", "FD", "ERR", "CONTAINER", "CGROUP", "PATH"]);
    let shown: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.ends_with(&work.file))
        .map(|line| line.split_whitespace().skip(3).take(2).collect())
        .collect();
    let path = format!("/docker-{}.scope", fake.id);
    let own = fs::read_to_string("/proc/self/cgroup").expect("own cgroup");
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).expect("v2");
    assert_eq!(shown, [["bs-column", path.as_str()], ["-", own]], "{text}");

    // Rows of a table have the container as a field of their own.
    let work = works().into_iter().find(|work| work.tool == "biolatency").expect("a work");
    let script = format!("(N=2; {0}); {1}; N=3; {0}", work.script, enter(&fake.cgroup));
    let args = ["60", "--fields", "+max_lat_ns,+container", "--", "bash", "-c", &script];
    let output = machine.command("biotop", &work.all(&args)).output().expect("biotop");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let header = lines.by_ref().find(|words| words.first() == Some(&"PID")).expect("a header");
    assert_eq!(header[6..], ["I/O", "Kbytes", "MAXms", "CONTAINER", "AVGms"]);
    let mut rows: Vec<(&str, &str)> = lines
        .take_while(|words| !words.is_empty())
        .map(|words| {
            let ms = |at: usize| words[at].parse::<f64>().expect("milliseconds");
            // The longest is no shorter than the average.
            assert!(ms(8) >= ms(10), "{text}");
            (words[6], words[9])
        })
        .collect();
    rows.sort_unstable();
    assert_eq!(rows, [("2", "-"), ("3", "bs-column")], "{text}");
    Outcome::Passed
}

/// Those who may not open a cgroup by its id look through all of them.
fn without_handles() -> Outcome {
    let cgroup = Cgroup::new("handles");
    let work = works().into_iter().find(|work| work.tool == "opensnoop").expect("a work");
    let mut bare = Command::new("setpriv");
    bare.args(["--bounding-set=-dac_read_search", "--inh-caps=-dac_read_search"]);
    bare.arg(binary()).args(["opensnoop", "--output", "json"]);
    let tool = start_command(bare);
    work.run(&enter(&cgroup.path), 1);
    let finished = tool.stop();
    finished.assert_clean();
    let name = format!("/{}", cgroup.path.file_name().expect("a name").display());
    let mut mine = finished.of("event").filter(|event| event["path"] == work.file);
    assert_eq!(mine.next().expect("an event")["cgroup"], name);
    Outcome::Passed
}

/// A tool in a cgroup namespace does not know how deep its cgroups lie.
fn cgroup_namespace() -> Outcome {
    let outer = Cgroup::new("namespace");
    let inner = outer.path.join("inner");
    fs::create_dir(&inner).expect("cgroup");
    let root = crate::support::cgroup_root().expect("cgroup v2");
    for work in works() {
        let script = "new=$(mktemp -d); mount -t cgroup2 none $new; umount \"$0\"
            mount --move $new \"$0\"; exec \"$@\"";
        let mut command = Command::new("sh");
        command.args([
            "-c",
            &format!(
                "{}; exec unshare --cgroup --mount sh -ec '{script}' \"$@\"",
                enter(&outer.path)
            ),
            "sh",
        ]);
        command.arg(&root).arg(binary());
        command.args([work.tool, "--output", "json"]);
        command.args(work.all(&["--cgroup", inner.to_str().expect("UTF-8")]));
        // The name in the namespace is the last component alone.
        let arguments: Vec<String> = command
            .get_args()
            .map(|arg| arg.to_str().expect("UTF-8").to_string())
            .map(|arg| if arg == inner.to_str().expect("UTF-8") { "/inner".into() } else { arg })
            .collect();
        let mut command = Command::new("sh");
        command.args(arguments).stdin(Stdio::null());
        let tool = start_command(command);
        work.run(&enter(&inner), 3);
        work.run(&enter(&outer.path), 9);
        let finished = tool.stop();
        finished.assert_clean();
        assert_eq!((work.count)(&finished), 3, "{}", work.tool);
        for event in finished.of("event") {
            assert_eq!(event["cgroup"], "/inner");
        }
    }
    fs::remove_dir(inner).expect("empty");
    Outcome::Passed
}

/// Hosts with cgroups of version 1 only.
fn no_hierarchy() -> Outcome {
    let root = crate::support::cgroup_root().expect("cgroup v2");
    for args in [["--cgroup", "/"], ["--container", "web"]] {
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-ec", "umount -l \"$1\"; shift; exec \"$@\"", "sh"])
            .arg(&root)
            .arg(binary())
            .arg("opensnoop")
            .args(args)
            .output()
            .expect("run");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{args:?}: {stderr}");
        assert!(stderr.lines().count() == 1 && stderr.contains("cgroup v2"), "{stderr}");
    }
    let bad = command("opensnoop", &["--container", "a b"]).output().expect("run");
    assert_eq!(bad.status.code(), Some(2), "{}", String::from_utf8_lossy(&bad.stderr));
    Outcome::Passed
}

/// A tool that is the first process of a PID namespace, and has a command run: that is number 2.
fn in_namespace(tool: &str, args: &[&str], script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]).arg(binary());
    command.args([tool, "--output", "json"]).args(args).args(["--", "bash", "-c", script]);
    command.stdin(Stdio::null());
    command
}

/// Numbers inside and outside, of processes inside and outside.
fn pid_namespace() -> Outcome {
    let marks = scratch("pidns");
    let fifo = marks.join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).expect("fifo");
    let file = |name: &str| marks.join(name).display().to_string();
    let open = |name: &str| format!(": 2>/dev/null <{} || :", file(name));
    // In the shell, in a child of it, and in a namespace further down.
    let script = format!(
        "{}; bash -c '{}; :'; unshare --pid --fork bash -c '{}; :'; read go <{}; :",
        open("shell"),
        open("child"),
        open("deeper"),
        fifo.display()
    );
    let mut tool = start_command(in_namespace("opensnoop", &["--uid", "0"], &script));
    let shell = tool.wait_for(|event| event["path"] == file("shell"));
    let child = tool.wait_for(|event| event["path"] == file("child"));
    let deeper = tool.wait_for(|event| event["path"] == file("deeper"));
    let host = shell["host_pid"].as_u64().expect("host_pid");
    let numbers = |pid: u64| -> Vec<u64> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).expect("NSpid");
        line.split_whitespace().map(|n| n.parse().expect("a number")).collect()
    };
    // It waits for the fifo, and can be looked at.
    let own = numbers(std::process::id().into());
    let seen = numbers(host);
    assert_eq!(seen.len(), own.len() + 1, "{seen:?}");
    assert_eq!((seen[0], seen[own.len()]), (host, 2), "{seen:?}");
    let inode = fs::metadata(format!("/proc/{host}/ns/pid")).expect("a namespace").ino();
    assert_eq!(tool.ready["pid_namespace"], inode);
    let three = |event: &Value| ["pid", "tid", "ppid"].map(|name| event[name].clone());
    assert_eq!(three(&shell), [2, 2, 1].map(Value::from), "{shell}");
    assert_eq!(shell["host_tid"], host);
    assert_eq!(three(&child), [3, 3, 2].map(Value::from), "{child}");
    assert!(child["host_pid"].as_u64().is_some_and(|pid| pid > 3), "{child}");
    // unshare is 4, and what it forked 5, whatever it is called in its own namespace.
    assert_eq!(three(&deeper), [5, 5, 4].map(Value::from), "{deeper}");

    // Filtered by the command's tree, because it was given nothing else, it would not be seen.
    let outside = File::open(marks.join("outside")).is_err();
    assert!(outside);
    let event = tool.wait_for(|event| event["path"] == file("outside"));
    assert_eq!(three(&event), [Value::Null, Value::Null, Value::Null], "{event}");
    assert_eq!(event["host_pid"], std::process::id());
    assert_eq!(event["host_tid"], crate::support::gettid());
    fs::write(&fifo, "go\n").expect("go");
    let finished = tool.finish();
    finished.assert_clean();
    assert_eq!(finished.end()["child_status"], 0);
    // Nobody else has these fields.
    let outside = start("opensnoop", &["--tid", &crate::support::gettid().to_string()]);
    let _ = File::open(marks.join("plain"));
    let finished = outside.stop();
    assert!(finished.of("event").all(|event| event.get("host_pid").is_none()));
    assert!(finished.records[0].get("pid_namespace").is_none());
    assert!(finished.of("event").count() > 0);
    Outcome::Passed
}

/// A process or thread in rows and in keys of histograms: in the namespace and there still when they
/// are shown, ended by then, and outside.
fn pid_namespace_counts() -> Outcome {
    let disk = Disk::any();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = listener.local_addr().expect("address").port();
    // Keeps them all open, for as long as this process lives.
    thread::spawn(move || {
        let mut open = Vec::new();
        while let Ok(connection) = listener.accept() {
            open.push(connection);
        }
    });
    let directory = scratch("pidns-counts");
    let fifo = directory.join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).expect("fifo");
    let path = |name: &str| directory.join(name).display().to_string();
    // A file that only this one opens, so that an opensnoop outside tells its number; time on the
    // CPU and off it, a connection, a direct read.
    let work = |name: &str| {
        format!(
            ": 2>/dev/null <{}; for ((i = 0; i < 10000; i++)); do :; done; read -t 0.1 <>{}; \
             exec 3<>/dev/tcp/127.0.0.1/{port}; echo hello >&3; \
             exec dd if={} of=/dev/null bs=4k count=1 iflag=direct status=none",
            path(name),
            path("nobody"),
            disk.path().display()
        )
    };
    mkfifo(&directory.join("nobody"), Mode::S_IRWXU).expect("fifo");
    for (tool, args, number, by_shell) in COUNTED {
        if !running_tools().any(|running| running == tool) {
            continue;
        }
        let names = ["ended", "there", "outside"].map(|name| format!("{tool}-{name}"));
        let script = format!(
            "bash -c '{}'; : 2>/dev/null <{}; for ((i = 0; i < 10000; i++)); do :; done; \
             read go <{}; :",
            work(&names[0]),
            path(&names[1]),
            fifo.display()
        );
        let mut host =
            start("opensnoop", &["--comm", "bash", "--filter", &format!("path ~ {tool}-")]);
        let args = [&["--uid", "0"], args].concat();
        let tool_inside = start_command(in_namespace(tool, &args, &script));
        let outside = Command::new("bash").args(["-c", &work(&names[2])]).status().expect("bash");
        assert!(outside.success());
        let mut numbers = [0; 3];
        while let Some(missing) = numbers.iter().position(|number| *number == 0) {
            let event = host.wait_for(|event| event["type"] == "event");
            let known = names.iter().position(|name| event["path"] == path(name));
            let place = known.unwrap_or_else(|| panic!("waiting for {missing}: {event}"));
            numbers[place] = event["pid"].as_u64().expect("pid");
        }
        host.stop();
        fs::write(&fifo, "go\n").expect("go");
        let finished = tool_inside.finish();
        assert!(finished.status.success(), "{tool}: {}", finished.stderr);
        let counted: Vec<&Value> = finished
            .records
            .iter()
            .filter_map(|record| match record["type"].as_str() {
                Some("row") => Some(record),
                Some("histogram") => Some(&record["key"]),
                _ => None,
            })
            .collect();
        let of_host = format!("host_{number}");
        // unshare's child is the tool, its command 2, and the command's first child 3.
        let expected = [(Value::from(3), true), (2.into(), by_shell), (Value::Null, true)];
        for ((expected, must), host) in expected.iter().zip(numbers) {
            let all = counted.iter().filter(|record| record[&of_host] == host);
            let shown: Vec<&Value> = all.map(|record| &record[number]).collect();
            assert!(!shown.is_empty() || !must, "{tool}: {host} is not shown: {counted:?}");
            assert!(shown.iter().all(|shown| *shown == expected), "{tool}: {host}: {shown:?}");
        }
        // No number without the other one; and it is in no record outside.
        assert!(counted.iter().all(|r| r[number].is_null() || r[&of_host].is_u64()), "{tool}");
    }
    Outcome::Passed
}

/// Tools with a process in what they count, what makes them tell processes apart, which number it
/// is, and whether they count something of a shell that waits.
const COUNTED: [(&str, &[&str], &str, bool); 8] = [
    ("syscount", &["-P"], "pid", true),
    ("cpudist", &["-P"], "pid", true),
    ("runqlat", &["-L"], "tid", true),
    ("offcputime", &[], "tid", true),
    ("profile", &["-F", "999"], "pid", true),
    ("biotop", &[], "pid", false),
    ("biostacks", &[], "pid", false),
    ("tcptop", &[], "pid", false),
];

/// Ids that are given on the command line are those of the namespace, in every filter.
fn pid_namespace_filters() -> Outcome {
    for work in works() {
        let run = |args: &[&str], expected: u64| {
            let script = format!("N=3; {0}; (N=9; {0}); :", work.script);
            let command = in_namespace(work.tool, &work.all(args), &script);
            let finished = start_command(command).finish();
            finished.assert_clean();
            assert_eq!((work.count)(&finished), expected, "{} {args:?}", work.tool);
        };
        if work.by_children {
            run(&["--ppid", "2"], 3);
        } else {
            run(&["--pid", "2"], 3);
            run(&["--tid", "2"], 3);
            run(&["--ppid", "2"], 9);
        }
        // The command's tree, without being asked to.
        run(&[], 12);
        run(&["--tree", "1"], 12);
        run(&["--tree", "4000000"], 0);
        // A number that is somebody's outside.
        run(&["--pid", &std::process::id().to_string()], 0);
    }
    Outcome::Passed
}
