// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! What live tests are made of: starting a tool, reading its JSON, causing things.

#![allow(dead_code)]

pub mod burner;
pub mod compile;
pub mod debug_disk;
pub mod disk;
pub mod file_system;
pub mod fuse;
pub mod losses;
pub mod neighbours;
pub mod net;
pub mod pinned;
pub mod sched;
pub mod schema;
pub mod text;
pub mod uring;

use std::collections::HashMap;
use std::fs;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

/// What a test that did not fail came to. Failures are panics.
pub enum Outcome {
    /// Everything held.
    Passed,
    /// It cannot be tried here, and why.
    Skipped(String),
}

/// A live test.
pub struct Case {
    /// Its name, unique in its file.
    pub name: &'static str,
    /// Whether it needs the machine for itself: floods, timing.
    pub alone: bool,
    /// Whether it also runs where the clock is exact: see [`exact_time`].
    pub timed: bool,
    /// Whether every other kernel is enough: see [`Case::in_turn`].
    pub in_turn: bool,
    /// The test.
    pub run: fn() -> Outcome,
}

impl Case {
    /// A test that runs beside others.
    pub const fn new(name: &'static str, run: fn() -> Outcome) -> Self {
        Self { name, alone: false, timed: false, in_turn: false, run }
    }

    /// A test that runs alone.
    pub const fn alone(name: &'static str, run: fn() -> Outcome) -> Self {
        Self { name, alone: true, timed: false, in_turn: false, run }
    }

    /// A test of times that are known, which runs once more where the clock is exact.
    #[must_use]
    pub const fn timed(self) -> Self {
        Self { timed: true, ..self }
    }

    /// A test of what the kernel has no part in (text, options), of what other tools share and are
    /// tested for as well, or of a detail beside what the first tests of the file show. Of the
    /// kernels in virtual machines, two have it; a machine's own kernel has all.
    #[must_use]
    pub const fn in_turn(self) -> Self {
        Self { in_turn: true, ..self }
    }
}

/// Whether the clock counts instructions (`tests/vm/boot --icount`): a sleep is as long as it was
/// asked for, and how busy the host is changes nothing.
pub fn exact_time() -> bool {
    std::env::var_os("BPFSCOPE_ICOUNT").is_some()
}

/// Asserts that a time is what it is known to be at least, and at most what the test itself
/// measured around it; where the clock is exact, no more than a tenth above what is known.
pub fn assert_time(shown: Duration, known: Duration, measured: Duration) {
    assert!(shown >= known && shown <= measured, "{shown:?}, not {known:?} to {measured:?}");
    if exact_time() {
        assert!(shown <= known + known / 10, "{shown:?} is more than a tenth above {known:?}");
    }
}

/// The kernel under test as the VM runner names it, or `own`.
pub fn kernel() -> String {
    std::env::var("BPFSCOPE_KERNEL").unwrap_or_else(|_| "own".into())
}

/// Under emulation everything takes many times longer.
pub fn patience() -> Duration {
    Duration::from_secs(if kernel() == "own" { 20 } else { 120 })
}

/// Between two looks at what takes a while: whoever only looks takes the CPU from those that work.
pub const PAUSE: Duration = Duration::from_millis(1);

/// Which of so many shares of a test is this kernel's; `None` where all are. Together, any kernels
/// that follow one another do the whole; with `BPFSCOPE_ALL` each of them.
pub fn share(of: usize) -> Option<usize> {
    if std::env::var_os("BPFSCOPE_ALL").is_some() {
        return None;
    }
    let place = ["5.10", "6.1", "6.12", "newest"].iter().position(|name| *name == kernel())?;
    Some(place % of)
}

/// A directory of this test's own below /tmp, with a name that occurs nowhere else.
pub fn scratch(name: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = PathBuf::from(format!("/tmp/bpfscope-{}-{n}-{name}", std::process::id()));
    fs::create_dir_all(&path).expect("scratch directory");
    path
}

/// The multi-call binary that is tested: Cargo puts it one directory above this program.
pub fn binary() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let this = std::env::current_exe().expect("this program");
        this.parent().expect("a directory").with_file_name("bpfscope")
    })
}

/// Set in the environment, it makes the test program a multi-call binary of the tests' own tools.
pub const AS_TOOLS: &str = "BPFSCOPE_TEST_TOOLS";

/// The arguments that a tool cannot do without.
pub fn needs(tool: &str) -> Vec<String> {
    let output = Command::new(binary()).args(["docs", "needs", tool]).output().expect("bpfscope");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.split_whitespace().map(String::from).collect()
}

/// Whether tests/expect/NAME says that a machine's own kernel may have no way for a tool under these
/// arguments: a line `own none [ARGUMENTS]`.
pub fn may_lack(tool: &str, args: &[String]) -> bool {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/expect").join(tool);
    let text = fs::read_to_string(path).expect("tests/expect");
    let says = |line: &str| {
        let rest = line.strip_prefix("own")?.trim_start().strip_prefix("none")?;
        Some(rest.split_whitespace().eq(args.iter().map(String::as_str)))
    };
    kernel() == "own" && text.lines().filter_map(says).any(|same| same)
}

/// Whether a tool runs here with these arguments; otherwise what it said, in one line. Of kernels in
/// virtual machines that is known.
pub fn runs(tool: &str, args: &[&str]) -> Result<(), String> {
    if kernel() == "own" { tried(tool, args) } else { Ok(()) }
}

/// The same, tried out.
pub fn tried(tool: &str, args: &[&str]) -> Result<(), String> {
    let output = command(tool, args).args(["--duration", "0.01"]).output().expect("run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.code() {
        Some(0) => Ok(()),
        code => {
            assert_eq!((code, said.lines().count()), (Some(3), 1), "{said}");
            Err(said.trim().to_string())
        }
    }
}

/// A tool of the tests' own that has not been started yet.
pub fn own_command(tool: &str, args: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.env(AS_TOOLS, "1").arg(tool).args(args);
    command.stdin(Stdio::null());
    command
}

/// A tool that has not been started yet.
pub fn command(tool: &str, args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg(tool).args(args);
    command.stdin(Stdio::null());
    command
}

/// The schema that each line of this tool's JSON is held against. `fields` is what `--fields` says.
fn schema_of(tool: &str, fields: Option<&str>, own: bool) -> Arc<Value> {
    type Known = HashMap<(String, Option<String>), Arc<Value>>;
    static KNOWN: Mutex<Option<Known>> = Mutex::new(None);
    let key = (tool.to_string(), fields.map(String::from));
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    let schema = known.entry(key).or_insert_with(|| {
        let mut command =
            if own { own_command("schema", &[tool]) } else { command("schema", &[tool]) };
        command.args(fields.map(|fields| format!("--fields={fields}")));
        let output = command.output().expect("bpfscope schema");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {stderr}");
        Arc::new(serde_json::from_slice(&output.stdout).expect("a schema is JSON"))
    });
    Arc::clone(schema)
}

/// A tool that is running with `--output json`.
pub struct Running {
    /// What it was told with `--fields`.
    fields: Option<String>,
    /// Whether it is one of the tests' own.
    own: bool,
    child: Child,
    records: Receiver<Value>,
    seen: Vec<Value>,
    stderr: Option<JoinHandle<String>>,
    /// The `ready` record.
    pub ready: Value,
}

/// A tool that has ended.
pub struct Finished {
    /// Every record, in order.
    pub records: Vec<Value>,
    /// How it ended.
    pub status: ExitStatus,
    /// What it said beside.
    pub stderr: String,
}

impl Finished {
    /// The records of this type.
    pub fn of(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.records.iter().filter(move |record| record["type"] == kind)
    }

    /// The last record.
    pub fn end(&self) -> &Value {
        let end = self.records.last().expect("records");
        assert_eq!(end["type"], "end", "the last record: {end}; stderr: {}", self.stderr);
        end
    }

    /// Asserts that nothing was lost and that it ended well.
    pub fn assert_clean(&self) {
        assert!(self.status.success(), "status {}: {}", self.status, self.stderr);
        let end = self.end();
        assert_eq!((&end["lost"], &end["map_full"]), (&0.into(), &0.into()), "{end}");
    }
}

/// These arguments are refused with status 2 and one line, which has `word` in it.
pub fn usage_error(tool: &str, args: &[&str], word: &str) {
    let output = command(tool, args).output().expect("run");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert!(stderr.lines().count() == 1 && stderr.contains(word), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

/// Starts a tool with `--output json` and waits until it is ready. Panics with what it said if it
/// ends instead.
pub fn start(tool: &str, args: &[&str]) -> Running {
    start_command(command(tool, &[&["--output", "json"], args].concat()))
}

/// The same for a command that was made with [`command`].
pub fn start_command(mut command: Command) -> Running {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stdout = child.stdout.take().expect("piped");
    let mut stderr = child.stderr.take().expect("piped");
    let stderr = thread::spawn(move || {
        let mut text = Vec::new();
        // Ends when the tool does.
        let _ = stderr.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let (send, records) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::with_capacity(1 << 16, stdout).split(b'\n') {
            let Ok(line) = line else { break };
            let record = serde_json::from_slice(&line).unwrap_or_else(|error| {
                serde_json::json!({
                    "type": "NOT JSON",
                    "error": error.to_string(),
                    "line": String::from_utf8_lossy(&line),
                })
            });
            if send.send(record).is_err() {
                break;
            }
        }
    });
    let args: Vec<String> =
        command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let at = args.iter().position(|arg| arg == "--fields");
    let fields = at.and_then(|at| args.get(at + 1)).cloned();
    let own = command.get_envs().any(|(name, _)| name == AS_TOOLS);
    let mut running = Running {
        fields,
        own,
        child,
        records,
        seen: Vec::new(),
        stderr: Some(stderr),
        ready: Value::Null,
    };
    match running.records.recv_timeout(patience()) {
        Ok(record) => {
            assert_eq!(record["type"], "ready", "{record}");
            running.ready = record.clone();
            running.seen.push(record);
        }
        Err(RecvTimeoutError::Disconnected) => {
            let finished = running.finish();
            panic!("ended with {} before it was ready: {}", finished.status, finished.stderr);
        }
        Err(RecvTimeoutError::Timeout) => {
            let finished = running.stop_with(Signal::SIGKILL);
            panic!("not ready in time: {}", finished.stderr);
        }
    }
    running
}

impl Running {
    /// The tool's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The way to hook that it took.
    pub fn way(&self) -> &str {
        self.ready["way"].as_str().expect("way")
    }

    /// Waits for a record for which `wanted` holds, among those not yet seen.
    pub fn wait_for(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + patience();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.records.recv_timeout(left) {
                Ok(record) => {
                    let found = wanted(&record);
                    self.seen.push(record.clone());
                    if found {
                        return record;
                    }
                }
                Err(error) => panic!(
                    "the awaited record did not come ({error}); {} records, the last: {}",
                    self.seen.len(),
                    self.seen.last().expect("ready")
                ),
            }
        }
    }

    /// Whether a record for which `wanted` holds has come by now.
    pub fn has_shown(&mut self, wanted: impl Fn(&Value) -> bool) -> bool {
        self.seen.extend(self.records.try_iter());
        self.seen.iter().any(wanted)
    }

    /// Asks it to end, and collects everything.
    pub fn stop(self) -> Finished {
        self.stop_with(Signal::SIGINT)
    }

    /// The same with another signal.
    pub fn stop_with(self, signal: Signal) -> Finished {
        self.signal(signal);
        self.finish()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("pid");
        // Fails only if it has ended by itself, which finish() shows.
        let _ = kill(Pid::from_raw(pid), signal);
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Finished {
        let until = Instant::now() + patience();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.records.recv_timeout(left) {
                Ok(record) => self.seen.push(record),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    // What it says when it is told to end explains more.
                    self.signal(Signal::SIGINT);
                    while let Ok(record) = self.records.recv_timeout(Duration::from_secs(5)) {
                        self.seen.push(record);
                    }
                    let _ = self.child.kill();
                    let (count, last) = (self.seen.len(), self.seen.last());
                    panic!("the tool did not end by itself; {count} records, the last: {last:?}");
                }
            }
        }
        let status = self.child.wait().expect("wait");
        let stderr = self.stderr.take().expect("once").join().expect("stderr");
        let records = std::mem::take(&mut self.seen);
        if let Some(bad) = records.iter().find(|record| record["type"] == "NOT JSON") {
            panic!("a line of stdout is not JSON: {bad}");
        }
        let tool = self.ready["tool"].as_str().unwrap_or_default();
        if !tool.is_empty() {
            let schema = schema_of(tool, self.fields.as_deref(), self.own);
            for record in &records {
                if let Err(wrong) = schema::check(&schema, record) {
                    panic!("a line is not as `bpfscope schema {tool}` says: {wrong}");
                }
            }
        }
        Finished { records, status, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A test that failed must not leave its tool behind. Harmless when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where cgroup v2 is mounted, as /proc/self/mountinfo says.
pub fn cgroup_root() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").ok()?;
    text.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        right.starts_with("cgroup2 ").then(|| left.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// A cgroup of the test's own, removed when it goes out of scope.
pub struct Cgroup {
    /// Its directory.
    pub path: PathBuf,
}

impl Cgroup {
    /// Makes one below the root of the v2 hierarchy.
    pub fn new(name: &str) -> Self {
        let root = cgroup_root().expect("a cgroup v2 hierarchy");
        let path = root.join(format!("bpfscope-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { path }
    }

    /// Moves a process into it.
    pub fn adopt(&self, pid: u32) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).expect("cgroup.procs");
    }

    /// A command that moves itself in before it becomes `program`.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("sh");
        let script = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.path.display());
        command.args(["-c", &script, "sh", program]).args(args);
        command
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // What a test that failed has left in it would keep the directory, and the test's next run
        // would find it there.
        let until = Instant::now() + Duration::from_secs(10);
        while let Err(error) = fs::remove_dir(&self.path) {
            if error.kind() == std::io::ErrorKind::NotFound || Instant::now() > until {
                return;
            }
            let pids = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
            for pid in pids.lines().filter_map(|pid| pid.parse().ok().map(Pid::from_raw)) {
                if pid != Pid::this() {
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
            thread::sleep(PAUSE);
        }
    }
}

/// What a record says of its process, as a tuple for comparisons.
pub fn process(record: &Value) -> (u64, u64, u64, u64) {
    let number = |name: &str| {
        record[name].as_u64().unwrap_or_else(|| panic!("{name} is no number: {record}"))
    };
    (number("pid"), number("tid"), number("ppid"), number("uid"))
}

/// Runs a tool in text form around `act` and returns its lines, the header first. It must end by
/// itself (`--limit`).
pub fn lines_of(tool: &str, args: &[&str], act: impl FnOnce()) -> Vec<String> {
    let mut child = command(tool, args).stdout(Stdio::piped()).spawn().expect("a tool");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    // The header comes when everything is attached.
    let mut all = vec![lines.next().expect("a header").expect("text")];
    act();
    all.extend(lines.map_while(Result::ok));
    assert!(child.wait().expect("wait").success());
    all
}

/// A system call as 32-bit programs make it, with their number, by `int 0x80`. Its result, or a
/// negative errno; `-ENOSYS` where the kernel has no such calls.
///
/// # Safety
/// As that of the call: memory that it writes to must be there for it, below 4 GiB.
#[cfg(target_arch = "x86_64")]
pub unsafe fn call_32bit(number: u32, args: [u32; 6]) -> i32 {
    let result: i32;
    // SAFETY: int 0x80 preserves what is not named here; the caller answers for the call itself.
    unsafe {
        std::arch::asm!(
            "push rbx", "push rbp", "mov ebx, r12d", "mov ebp, r13d", "int 0x80",
            "pop rbp", "pop rbx",
            inlateout("eax") number => result, in("r12") args[0], in("ecx") args[1],
            in("edx") args[2], in("esi") args[3], in("edi") args[4], in("r13") args[5],
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result
}

/// Lets a process go on that waits for a line.
pub fn go(child: &mut Child) {
    child.stdin.take().expect("piped").write_all(b"\n").expect("go");
}

/// Waits until a thread is blocked in this system call.
pub fn wait_until_in_call(tid: u64, number: i64) {
    let until = Instant::now() + patience();
    let call = format!("{number} ");
    // The file says "running" while the thread is not blocked.
    while !fs::read_to_string(format!("/proc/{tid}/syscall")).is_ok_and(|s| s.starts_with(&call)) {
        assert!(Instant::now() < until, "thread {tid} did not come to wait in call {number}");
        thread::yield_now();
    }
}

/// Waits until a process that was sent SIGSTOP has stopped.
pub fn wait_until_stopped(pid: u32) {
    let until = Instant::now() + patience();
    let stopped = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    };
    while !stopped() {
        assert!(Instant::now() < until, "it does not stop");
        thread::yield_now();
    }
}

/// How long all CPUs together have been idle, in hundredths of a second.
pub fn idle_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/stat").expect("stat");
    let idle = stat.split_whitespace().nth(4).expect("idle time");
    idle.parse().expect("a number")
}

/// The thread id of the caller.
pub fn gettid() -> u64 {
    u64::try_from(nix::unistd::gettid().as_raw()).expect("tid")
}
