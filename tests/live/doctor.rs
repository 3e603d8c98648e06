// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! What `bpfscope doctor` says of each tool, against what the tool does: on this machine as it is,
//! and where something is taken away from it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::io::BufRead as _;
use std::io::BufReader;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::sync::OnceLock;
use std::thread;
use std::time::Instant;

use libbpf_rs::query::LinkInfoIter;
use libbpf_rs::query::MapInfoIter;
use libbpf_rs::query::ProgInfoIter;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

use crate::support;
use crate::support::Case;
use crate::support::Outcome;
use crate::support::PAUSE;
use crate::support::binary;
use crate::support::kernel;
use crate::support::patience;
use crate::support::scratch;
use crate::support::share;
use crate::support::start_command;

pub const CASES: &[Case] = &[
    Case::new("what it says of a tool is what the tool does", as_it_is),
    Case::new("without capabilities", no_capabilities).in_turn(),
    Case::new("with half of the capabilities", half).in_turn(),
    Case::new("an ordinary user with CAP_BPF and CAP_PERFMON", ordinary_user),
    Case::new("file capabilities", file_capabilities).in_turn(),
    Case::new("in a user namespace", user_namespace).in_turn(),
    Case::new("without tracefs", no_tracefs).in_turn(),
    Case::new("without kernel types", no_types).in_turn(),
    Case::new("little locked memory", locked_memory),
    Case::new("the command has its own limit of locked memory", limit_of_the_command).in_turn(),
    Case::new("kernels that do not run here", packages).in_turn(),
    Case::new("settings of the kernel", settings).in_turn(),
    Case::new("without the hierarchy of cgroups", no_cgroups).in_turn(),
    Case::alone("perf_event_paranoid", paranoid).in_turn(),
    Case::alone("hidden addresses of the kernel", hidden_addresses),
    Case::alone("nothing is left behind", nothing_left),
    Case::alone("a signal ends it and leaves nothing behind", signal),
];

/// Words that stand before the program: another user, another view of the machine.
type Around = Vec<String>;

fn words(words: &[&str]) -> Around {
    words.iter().map(|word| (*word).to_string()).collect()
}

fn run(around: &Around, program: &Path, args: &[&str]) -> Command {
    let mut all = around.clone();
    all.push(program.display().to_string());
    let mut command = Command::new(&all[0]);
    command.args(&all[1..]).args(args).stdin(Stdio::null());
    command
}

/// The records of a doctor that ended by itself, and its status.
fn doctor(around: &Around, program: &Path, args: &[&str]) -> (Vec<Value>, i32) {
    let args = [&["doctor", "--json"], args].concat();
    let output = run(around, program, &args).output().expect("run");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.is_empty(), "{args:?}: {stderr}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
    let records: Vec<Value> = text.lines().map(parse).collect();
    let status = output.status.code().expect("a status");
    assert_eq!(records.last().expect("records")["status"], status);
    (records, status)
}

fn of<'a>(records: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    records.iter().filter(move |record| record["type"] == kind)
}

fn check<'a>(records: &'a [Value], name: &str) -> &'a Value {
    of(records, "check").find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}"))
}

/// Tools and their arguments whose ways tests/expect tells apart: kernel, tool, arguments, way.
fn expectations() -> Vec<(String, String, Vec<String>, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/expect");
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).expect("tests/expect").flatten() {
        let tool = entry.file_name().to_string_lossy().into_owned();
        let text = fs::read_to_string(entry.path()).expect("text");
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let mut words = line.split_whitespace().map(String::from);
            let (name, way) = words.next().zip(words.next()).expect("kernel and way");
            all.push((name, tool.clone(), words.collect(), way));
        }
    }
    all.sort();
    all
}

/// Tools, each with arguments.
type Subjects = BTreeSet<(String, Vec<String>)>;

/// Tools with all arguments that make a difference.
fn subjects() -> Subjects {
    expectations().into_iter().map(|(_, tool, args, _)| (tool, args)).collect()
}

/// Of these, every other one on the older kernels, the rest on the newer ones; all on a machine's
/// own. (A test that has its turn on every other kernel is on one of both.)
fn in_turn(subjects: Subjects) -> Subjects {
    let share = share(4).map(|kernel| kernel / 2);
    let numbered = subjects.into_iter().enumerate();
    numbered
        .filter(|(place, _)| share.is_none_or(|share| place % 2 == share))
        .map(|(_, subject)| subject)
        .collect()
}

/// Of the tools that take the same ways on every kernel, the first: for what is the same for them.
fn kinds() -> Subjects {
    let mut ways: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (kernel, tool, args, way) in expectations() {
        ways.entry((tool, args)).or_default().insert((kernel, way));
    }
    let mut known = BTreeSet::new();
    let first = ways.into_iter().filter(|(_, ways)| known.insert(ways.clone()));
    in_turn(first.map(|(line, _)| line).collect())
}

/// Asserts that these tools do what the doctor says of them, and returns what that was.
fn compare(around: &Around, program: &Path, subjects: Subjects) -> Vec<Value> {
    let mut said = Vec::new();
    for (tool, mut args) in subjects {
        // The same for both, since a filter may need programs of its own.
        args.extend(["--comm", "no-such-command"].map(String::from));
        let line: Vec<&str> =
            std::iter::once(tool.as_str()).chain(args.iter().map(String::as_str)).collect();
        let (records, status) = doctor(around, program, &[&["--"], line.as_slice()].concat());
        let found: Vec<&Value> = of(&records, "tool").collect();
        let [found] = found.as_slice() else { panic!("{records:?}") };
        assert_eq!(found["tool"], *tool);
        assert_eq!(found["args"], serde_json::json!(args));
        let mut command = run(around, program, &[line.as_slice(), &["--output", "json"]].concat());
        if found["verdict"] == "runs" {
            assert_eq!(status, 0, "{found}");
            let running = start_command(command);
            assert_eq!(found["way"], running.ready["way"], "{found}");
            assert_eq!(found["programs"], running.ready["programs"], "{found}");
            assert_eq!(found["reason"], Value::Null);
            running.stop().assert_clean();
        } else {
            assert_eq!((status, &found["verdict"]), (3, &"no".into()), "{found}");
            assert_eq!(found["way"], Value::Null);
            let output = command.output().expect("run");
            let stderr = String::from_utf8_lossy(&output.stderr);
            let reason = found["reason"].as_str().expect("a reason");
            // What the trial took of the locked memory comes back a little later.
            let limit = "limit of locked memory";
            let same = stderr == format!("{tool}: {reason}\n");
            assert!(
                same || reason.contains(limit) && stderr.contains(limit),
                "{stderr} and {reason}"
            );
            assert_eq!(output.status.code(), Some(3), "{stderr}");
        }
        said.push((*found).clone());
    }
    said
}

/// A doctor that was asked for all tools: its status says whether all of them run, and those that do
/// not are those that a machine's own kernel may lack.
fn assert_all_asked(records: &[Value], status: i32) {
    let tools: Vec<Value> = of(records, "tool").cloned().collect();
    all_run(&tools);
    let all = tools.iter().all(|tool| tool["verdict"] == "runs");
    assert_eq!(status, if all { 0 } else { 3 }, "{tools:?}");
}

fn all_run(said: &[Value]) {
    let not = said.iter().find(|tool| tool["verdict"] != "runs" && !may_lack(tool));
    assert!(not.is_none(), "{not:?}");
}

/// Whether the expectations say so of a tool and its arguments; without the filter behind them.
fn may_lack(said: &Value) -> bool {
    let args = said["args"].as_array().expect("arguments");
    let args: Vec<String> =
        args.iter().map(|arg| arg.as_str().expect("text").to_string()).collect();
    let own = args.strip_suffix(&["--comm", "no-such-command"].map(String::from)[..]);
    support::may_lack(said["tool"].as_str().expect("a name"), own.unwrap_or(&args))
}

/// Every tool runs for an ordinary user, but those that need perf events, where the kernel keeps
/// these from such users, because they take no other way or because the other one is in a module.
fn ordinary_run(said: &[Value]) {
    let level = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").expect("a level");
    let kept = level.trim().parse::<i32>().expect("a number") > 2;
    let mut by_perf: BTreeMap<(String, Vec<String>), bool> = BTreeMap::new();
    for (_, tool, args, way) in expectations().into_iter().filter(|(.., way)| way != "none") {
        let takes = ["perf", "uprobe", "kprobe"].iter().any(|start| way.starts_with(start));
        *by_perf.entry((tool, args)).or_insert(true) &= takes;
    }
    for tool in said.iter().filter(|tool| tool["verdict"] != "runs" && !may_lack(tool)) {
        let reason = tool["reason"].as_str().expect("a reason");
        let is_it = |(name, args): &&(String, Vec<String>)| {
            let said = tool["args"].as_array().expect("arguments");
            tool["tool"] == **name
                && said.len() == args.len() + 2
                && said.iter().zip(args).all(|(said, arg)| said == arg.as_str())
        };
        let only_perf = by_perf.keys().filter(is_it).all(|key| by_perf[key]);
        let in_module = reason.contains("BTF of the module ext4");
        assert!(kept && (only_perf || in_module), "{tool}");
        assert!(reason.contains("perf_event"), "{tool}");
    }
}

/// Whether a tool runs and nothing but perf events was kept from it: functions of a module are for
/// root alone.
fn comparable(mine: &Value) -> bool {
    mine["verdict"] == "runs" && !mine["refused"].to_string().contains("that takes CAP_SYS_ADMIN")
}

fn none_runs(said: &[Value], word: &str) {
    let other = said.iter().find(|tool| {
        tool["verdict"] != "no" || !tool["reason"].as_str().is_some_and(|r| r.contains(word))
    });
    assert!(other.is_none(), "{word}: {other:?}");
}

/// Everything at once, as a user would call it, and each tool by itself.
fn as_it_is() -> Outcome {
    let here = words(&["env"]);
    let said = to_root();
    all_run(said);
    for (name, tool, mut args, way) in expectations() {
        args.extend(["--comm", "no-such-command"].map(String::from));
        let is_it =
            |said: &&Value| said["tool"] == *tool && said["args"] == serde_json::json!(args);
        let said = said.iter().find(is_it).expect("every tool");
        let is_this = name == kernel() && name != "own";
        assert!(!is_this || said["way"] == way, "{way}: {said}");
    }
    let (records, status) = doctor(&here, binary(), &[]);
    assert_all_asked(&records, status);
    let named: Vec<&str> =
        of(&records, "tool").map(|tool| tool["tool"].as_str().expect("a name")).collect();
    let tools: BTreeSet<String> = subjects().into_iter().map(|(tool, _)| tool).collect();
    assert_eq!(named, tools.into_iter().collect::<Vec<_>>());
    assert_eq!(check(&records, "capabilities")["state"], "ok");
    assert_eq!(check(&records, "btf")["state"], "ok");
    // Where fentry is not to be detached, the doctor keeps its hands off it too.
    let fentry = check(&records, "fentry");
    let hazard = fentry["found"].as_str().expect("text").contains("hang");
    assert_eq!(hazard, kernel() == "6.1", "{fentry}");
    if kernel() != "own" {
        assert_eq!(check(&records, "kprobes")["state"], "ok");
        assert_eq!(check(&records, "tracefs")["state"], "ok");
        assert_eq!(fentry["state"] == "ok", kernel() != "6.1", "{fentry}");
    }
    Outcome::Passed
}

fn no_capabilities() -> Outcome {
    let bare = words(&["setpriv", "--bounding-set=-all", "--inh-caps=-all"]);
    none_runs(
        &compare(&bare, binary(), in_turn(subjects())),
        "CAP_BPF and CAP_PERFMON are missing",
    );
    let (records, status) = doctor(&bare, binary(), &[]);
    assert_eq!((status, check(&records, "capabilities")["state"].as_str()), (3, Some("missing")));
    Outcome::Passed
}

fn half() -> Outcome {
    let partly = words(&["setpriv", "--bounding-set=-all,+perfmon", "--inh-caps=-all"]);
    none_runs(&compare(&partly, binary(), in_turn(subjects())), "CAP_BPF is missing");
    Outcome::Passed
}

/// The binary where any user can reach it.
fn public_copy(directory: &Path) -> PathBuf {
    let copy = directory.join("bpfscope");
    fs::copy(binary(), &copy).expect("copy");
    for path in [directory, &copy] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("permissions");
    }
    copy
}

/// An ordinary user with these capabilities and no others, and with this limit of locked memory in
/// bytes.
fn user(capabilities: &str, locked_memory: &str) -> Around {
    words(&[
        "prlimit",
        &format!("--memlock={locked_memory}"),
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        &format!("--inh-caps=-all,{capabilities}"),
        &format!("--ambient-caps=-all,{capabilities}"),
        &format!("--bounding-set=-all,{capabilities}"),
    ])
}

const BOTH: &str = "+bpf,+perfmon";

/// A limit that no kernel is stopped by, and any test may set: as large as it already may be.
fn enough() -> String {
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK)
        .expect("limits");
    // Where the kernel counts, the tests run with all capabilities.
    if kernel() == "5.10" { "unlimited".into() } else { hard.to_string() }
}

/// What the doctor says of every tool to root, and the tools do. Nothing that a test sets makes a
/// difference to that.
fn to_root() -> &'static [Value] {
    static TO_ROOT: OnceLock<Vec<Value>> = OnceLock::new();
    TO_ROOT.get_or_init(|| compare(&words(&["env"]), binary(), subjects()))
}

/// The same of a tool of which somebody else was told.
fn as_root(mine: &Value) -> &'static Value {
    let same = |root: &&Value| root["tool"] == mine["tool"] && root["args"] == mine["args"];
    to_root().iter().find(same).expect("every tool")
}

/// Every tool runs, and as root's does, but for kprobes, which Debian keeps from such users.
fn ordinary_user() -> Outcome {
    let directory = scratch("user");
    let program = public_copy(&directory);
    let around = user(BOTH, &enough());
    let said = compare(&around, &program, in_turn(subjects()));
    ordinary_run(&said);
    let (records, _) = doctor(&around, &program, &["opensnoop"]);
    let refused = check(&records, "kprobes")["state"] != "ok";
    for mine in said.iter().filter(|mine| comparable(mine)) {
        let roots = as_root(mine);
        let other = roots["way"] == "kprobe" && refused;
        assert_eq!(mine["way"] != roots["way"], other, "{mine} {roots}");
        if kernel() != "own" && other {
            let why = mine["refused"].to_string();
            assert!(why.contains("perf_event_paranoid") && why.contains("CAP_SYS_ADMIN"), "{why}");
        }
    }
    let _ = fs::remove_dir_all(directory);
    Outcome::Passed
}

/// Capabilities of the file: the kernel then hides more of the process from itself.
fn file_capabilities() -> Outcome {
    // Not below /tmp, which may be mounted without them.
    let directory = PathBuf::from(format!("/var/tmp/bpfscope-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("directory");
    let program = public_copy(&directory);
    let set = Command::new("setcap").arg("cap_bpf,cap_perfmon+ep").arg(&program).status();
    let outcome = match set {
        Ok(status) if status.success() => {
            let around = words(&[
                "prlimit",
                &format!("--memlock={}", enough()),
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "--inh-caps=-all",
            ]);
            ordinary_run(&compare(&around, &program, kinds()));
            Outcome::Passed
        }
        _ => Outcome::Skipped("setcap is not there, or may not".into()),
    };
    let _ = fs::remove_dir_all(directory);
    outcome
}

fn user_namespace() -> Outcome {
    let around = words(&["unshare", "--user", "--map-root-user"]);
    if !run(&around, Path::new("true"), &[]).status().is_ok_and(|status| status.success()) {
        return Outcome::Skipped("user namespaces are not to be had".into());
    }
    none_runs(&compare(&around, binary(), in_turn(subjects())), "user namespace");
    let (records, _) = doctor(&around, binary(), &["opensnoop"]);
    assert_eq!(check(&records, "user_namespace")["state"], "missing");
    Outcome::Passed
}

/// Words that run a shell's commands in a mount namespace first.
fn apart(prepare: &str) -> Around {
    words(&["unshare", "--mount", "sh", "-ec", &format!("{prepare}; exec \"$@\""), "sh"])
}

fn no_tracefs() -> Outcome {
    let around = apart(
        "for at in /sys/kernel/tracing /sys/kernel/debug; do \
         while mountpoint -q $at; do umount -l $at; done; done",
    );
    let said = compare(&around, binary(), kinds());
    all_run(&said);
    let (records, status) = doctor(&around, binary(), &[]);
    let tracefs = check(&records, "tracefs");
    assert_all_asked(&records, status);
    assert_eq!(tracefs["found"], "not mounted", "{tracefs}");
    // The return probes that then have little room are spoken of.
    for tool in &said {
        // By their names: what is hooked in where a function returns.
        let programs = tool["programs"].to_string();
        let returns = tool["way"] == "kprobe" && programs.contains("exit");
        assert_eq!(tool["remarks"].to_string().contains("tracefs"), returns, "{tool}");
    }
    Outcome::Passed
}

fn no_types() -> Outcome {
    let directory = scratch("types");
    let empty = directory.join("empty");
    fs::write(&empty, "").expect("write");
    // No file, and one that is no BTF.
    let hidden = apart("mount -t tmpfs none /sys/kernel/btf");
    none_runs(&compare(&hidden, binary(), in_turn(subjects())), "CONFIG_DEBUG_INFO_BTF");
    let (records, status) = doctor(&hidden, binary(), &[]);
    assert_eq!((status, check(&records, "btf")["state"].as_str()), (3, Some("missing")));
    let broken = apart(&format!("mount --bind {} /sys/kernel/btf/vmlinux", empty.display()));
    let (records, _) = doctor(&broken, binary(), &["opensnoop"]);
    assert_eq!(check(&records, "btf")["state"], "missing");
    Outcome::Passed
}

/// Before 5.11 BPF memory counts; later it does not, and a small limit stops nothing.
fn locked_memory() -> Outcome {
    let directory = scratch("memory");
    let program = public_copy(&directory);
    let around = user(BOTH, "65536:65536");
    let said = compare(&around, &program, kinds());
    let (records, _) = doctor(&around, &program, &["opensnoop"]);
    let memory = check(&records, "locked_memory");
    assert!(memory["found"].as_str().expect("text").contains("64 KiB"), "{memory}");
    if kernel() == "5.10" {
        none_runs(&said, "CAP_SYS_RESOURCE");
        none_runs(&said, "64 KiB");
        assert_eq!(memory["state"], "limited", "{memory}");
        // With the capability, the limit is raised.
        ordinary_run(&compare(
            &user("+bpf,+perfmon,+sys_resource", "65536:65536"),
            &program,
            kinds(),
        ));
    } else {
        ordinary_run(&said);
        assert_eq!(memory["state"], "ok", "{memory}");
    }
    // As far as it may be raised without the capability, it is.
    let around = user(BOTH, "65536:1073741824");
    if kernel() != "own" {
        ordinary_run(&compare(&around, &program, kinds()));
    }
    let _ = fs::remove_dir_all(directory);
    Outcome::Passed
}

/// What a tool needs of locked memory, the command after `--` does not inherit.
fn limit_of_the_command() -> Outcome {
    let around = words(&["prlimit", "--memlock=65536:131072"]);
    let args = ["opensnoop", "--output", "json", "--", "sh", "-c", "ulimit -Sl; ulimit -Hl"];
    let output = run(&around, binary(), &args).output().expect("run");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), stderr.as_ref()), (Some(0), "64\n128\n"));
    Outcome::Passed
}

/// The packages that the virtual machines' kernels come from, against what those kernels do.
fn packages() -> Outcome {
    if kernel() != "own" {
        return Outcome::Skipped("the same everywhere, and slow under emulation".into());
    }
    let home = std::env::var("HOME").unwrap_or_default();
    let cache = std::env::var("BPFSCOPE_CACHE").unwrap_or(format!("{home}/.cache/bpfscope"));
    let mut seen = 0;
    for name in ["5.10", "6.1", "6.12", "newest"] {
        let from = Path::new(&cache).join("kernels").join(name);
        let Ok(version) = fs::read_to_string(from.join("version")) else { continue };
        seen += 1;
        let release = version.lines().next().expect("a release");
        // As Debian lays it out: until 7.x, and since.
        let root = scratch("package");
        let modules = if name == "newest" { "usr/lib/modules" } else { "lib/modules" };
        fs::create_dir_all(root.join("boot")).expect("directory");
        fs::create_dir_all(root.join(modules).join(release)).expect("directory");
        let image = match name {
            "newest" => root.join(modules).join(release).join("vmlinuz"),
            _ => root.join(format!("boot/vmlinuz-{release}")),
        };
        symlink(from.join("vmlinuz"), image).expect("link");
        symlink(from.join("config"), root.join(format!("boot/config-{release}"))).expect("link");
        let kernel_modules = from.join("lib/modules").join(release).join("kernel");
        symlink(kernel_modules, root.join(modules).join(release).join("kernel")).expect("link");
        let root = root.to_str().expect("UTF-8");
        for (of_kernel, tool, args, way) in expectations() {
            if of_kernel != name {
                continue;
            }
            let line: Vec<&str> = ["--kernel", root, "--", &tool]
                .into_iter()
                .chain(args.iter().map(String::as_str))
                .collect();
            let (records, status) = doctor(&words(&["env"]), binary(), &line);
            let found = of(&records, "tool").next().expect("the tool");
            assert_eq!((status, &found["verdict"]), (0, &"probably".into()), "{found}");
            assert_eq!(records[0]["kernel"], release);
            assert_eq!(found["way"], way, "{name}: {found}");
        }
    }
    match seen {
        0 => Outcome::Skipped(format!("there are no kernels in {cache}")),
        _ => Outcome::Passed,
    }
}

/// A setting of the kernel, put back when it goes out of scope.
struct Setting {
    path: &'static str,
    before: String,
}

impl Setting {
    fn set(path: &'static str, value: &str) -> Self {
        let before = fs::read_to_string(path).expect("the setting");
        fs::write(path, value).expect("set");
        Self { path, before }
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(self.path, &self.before);
    }
}

/// The check of this name, as a doctor finds it that looks at one tool only.
fn one_check(around: &Around, program: &Path, name: &str) -> [String; 3] {
    let (records, _) = doctor(around, program, &["opensnoop"]);
    let found = check(&records, name);
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_string();
    ["state", "found", "stops"].map(text)
}

/// What the kernel's settings say, by other files in their places.
fn settings() -> Outcome {
    const JIT: &str = "/proc/sys/net/core/bpf_jit_enable";
    const UNPRIVILEGED: &str = "/proc/sys/kernel/unprivileged_bpf_disabled";
    let directory = scratch("settings");
    let told = |path: &str, value: &str, name: &str, privileged: bool| {
        if !Path::new(path).exists() {
            return None;
        }
        let file = directory.join(value);
        fs::write(&file, format!("{value}\n")).expect("write");
        let mut around = apart(&format!("mount --bind {} {path}", file.display()));
        if !privileged {
            around.extend(words(&["setpriv", "--bounding-set=-all", "--inh-caps=-all"]));
        }
        Some(one_check(&around, binary(), name))
    };
    let mut seen = 0;
    if let Some([state, found, stops]) = told(JIT, "0", "bpf_jit", true) {
        assert_eq!((state.as_str(), found.as_str()), ("limited", "0"));
        assert!(stops.contains("fexit") && stops.contains("bpf_jit_enable"), "{stops}");
        assert_eq!(told(JIT, "1", "bpf_jit", true).expect("it")[..], ["ok", "1", ""]);
        seen += 1;
    }
    // To tracing it is all the same, which is said where there are no capabilities.
    if let Some(found) = told(UNPRIVILEGED, "2", "unprivileged_bpf_disabled", true) {
        assert_eq!(found[..], ["ok", "2", ""]);
        let [state, found, stops] =
            told(UNPRIVILEGED, "0", "unprivileged_bpf_disabled", false).expect("it");
        assert_eq!((state.as_str(), stops.as_str()), ("ok", ""));
        assert_eq!(found, "0; it makes no difference to tracing");
        seen += 1;
    }
    let _ = fs::remove_dir_all(directory);
    match seen {
        0 => Outcome::Skipped("this kernel has none of these settings".into()),
        _ => Outcome::Passed,
    }
}

/// Not mounted, and there but not for this user.
fn no_cgroups() -> Outcome {
    const AT: &str = "/sys/fs/cgroup";
    let without = apart(&format!("while mountpoint -q {AT}; do umount -l {AT}; done"));
    let [state, found, stops] = one_check(&without, binary(), "cgroup_v2");
    assert_eq!((state.as_str(), found.as_str()), ("limited", "not mounted"));
    assert!(stops.contains("--cgroup"), "{stops}");
    if kernel() == "own" {
        return Outcome::Passed;
    }
    let [state, found, _] = one_check(&words(&["env"]), binary(), "cgroup_v2");
    assert_eq!((state.as_str(), found.as_str()), ("ok", AT));
    let directory = scratch("cgroups");
    let program = public_copy(&directory);
    let [state, found, stops] = one_check(&user(BOTH, &enough()), &program, "cgroup_v2");
    assert_eq!((state.as_str(), found.as_str()), ("limited", AT));
    assert!(stops.contains("CAP_DAC_READ_SEARCH"), "{stops}");
    let _ = fs::remove_dir_all(directory);
    Outcome::Passed
}

/// kernel.kptr_restrict: 1 hides addresses from whoever lacks CAP_SYSLOG, 2 from everybody.
fn hidden_addresses() -> Outcome {
    const PATH: &str = "/proc/sys/kernel/kptr_restrict";
    if kernel() == "own" {
        return Outcome::Skipped("a setting of the whole machine".into());
    }
    let directory = scratch("addresses");
    let program = public_copy(&directory);
    let root = words(&["env"]);
    let without = user(BOTH, &enough());
    let with = user("+bpf,+perfmon,+syslog", &enough());
    for (level, around, state) in [
        ("0", &root, "ok"),
        ("1", &root, "ok"),
        ("1", &with, "ok"),
        ("1", &without, "limited"),
        ("2", &without, "limited"),
        ("2", &root, "limited"),
    ] {
        let _set = Setting::set(PATH, level);
        let [judged, found, stops] = one_check(around, &program, "kptr_restrict");
        assert_eq!((judged.as_str(), found.as_str()), (state, level), "{around:?}");
        assert_eq!(stops.contains("CAP_SYSLOG"), state == "limited", "{stops}");
    }
    let _ = fs::remove_dir_all(directory);
    Outcome::Passed
}

/// Where Debian's level is lowered to the kernel's own, CAP_PERFMON is enough for kprobes.
fn paranoid() -> Outcome {
    if kernel() == "own" {
        return Outcome::Skipped("a setting of the whole machine".into());
    }
    let directory = scratch("paranoid");
    let program = public_copy(&directory);
    let around = user(BOTH, &enough());
    let (records, _) = doctor(&around, &program, &["opensnoop"]);
    let level = check(&records, "perf_event_paranoid");
    assert_eq!((level["found"].as_str(), level["state"].as_str()), (Some("3"), Some("limited")));
    assert_eq!(check(&records, "kprobes")["found"], "refused: EACCES");
    let events = check(&records, "perf_events");
    assert_eq!(
        (&events["state"], &events["found"]),
        (&"limited".into(), &"refused: EACCES".into())
    );
    let _lower = Setting::set("/proc/sys/kernel/perf_event_paranoid", "2");
    let (records, _) = doctor(&around, &program, &["opensnoop"]);
    assert_eq!(check(&records, "perf_event_paranoid")["state"], "ok");
    assert_eq!(check(&records, "kprobes")["state"], "ok");
    assert_eq!(check(&records, "perf_events")["state"], "ok");
    let said = compare(&around, &program, kinds());
    for mine in said.iter().filter(|mine| comparable(mine)) {
        let roots = as_root(mine);
        assert_eq!(mine["way"], roots["way"], "{mine} {roots}");
    }
    let _ = fs::remove_dir_all(directory);
    Outcome::Passed
}

/// Everything of BPF that there is now.
fn objects() -> BTreeSet<(&'static str, u32)> {
    let programs = ProgInfoIter::default().map(|program| ("program", program.id));
    let links = LinkInfoIter::default().map(|link| ("link", link.id));
    let maps = MapInfoIter::default().map(|map| ("map", map.id));
    programs.chain(links).chain(maps).collect()
}

/// What is pinned, and which probes there are.
fn traces() -> (Vec<String>, String) {
    let pinned = fs::read_dir("/sys/fs/bpf")
        .map(|entries| {
            entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    let probes = fs::read_to_string("/sys/kernel/tracing/kprobe_events").unwrap_or_default();
    (pinned, probes)
}

/// Waits until nothing is left of what came while `act` ran; the kernel frees with a delay. What
/// came from elsewhere meanwhile goes away as well, since only tests make such things.
fn leaves_nothing(act: impl FnOnce()) {
    let (before, traces_before) = (objects(), traces());
    act();
    let mut new: BTreeSet<_> = objects().difference(&before).copied().collect();
    let until = Instant::now() + patience();
    while !new.is_empty() {
        assert!(Instant::now() < until, "still there: {new:?}");
        new = new.intersection(&objects()).copied().collect();
        thread::sleep(PAUSE);
    }
    let mine = |probes: &str| probes.lines().filter(|l| l.contains("bpfscope")).count();
    assert_eq!(traces().0, traces_before.0);
    assert_eq!(mine(&traces().1), mine(&traces_before.1), "{}", traces().1);
}

fn nothing_left() -> Outcome {
    leaves_nothing(|| {
        let mine = in_turn(subjects());
        let tools: BTreeSet<String> = mine.iter().map(|(tool, _)| tool.clone()).collect();
        let tools: Vec<&str> = tools.iter().map(String::as_str).collect();
        doctor(&words(&["env"]), binary(), &tools);
        for (tool, args) in mine.into_iter().filter(|(_, args)| !args.is_empty()) {
            let line: Vec<&str> =
                ["--", &tool].into_iter().chain(args.iter().map(String::as_str)).collect();
            doctor(&words(&["env"]), binary(), &line);
        }
    });
    Outcome::Passed
}

/// It would go on for long, is told to end, and takes out first what it has hooked in.
fn signal() -> Outcome {
    leaves_nothing(|| {
        let many = ["tcpconnect"; 500];
        let mut child = run(&words(&["env"]), binary(), &["doctor", "--json"])
            .args(many)
            .stdout(Stdio::piped())
            .spawn()
            .expect("spawn");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let reached = lines.by_ref().map(|line| line.expect("a line"));
        let tool = reached.into_iter().find(|line| line.contains("\"tool\""));
        assert!(tool.is_some(), "it ended before");
        kill(Pid::from_raw(child.id().try_into().expect("pid")), Signal::SIGINT).expect("kill");
        let last = lines.map(|line| line.expect("a line")).last();
        assert_eq!(child.wait().expect("wait").code(), Some(130));
        assert_eq!(last.as_deref(), Some("{\"type\":\"end\",\"status\":130}"));
    });
    Outcome::Passed
}
