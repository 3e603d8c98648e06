// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! A program whose functions take known shares of the time: burner.c.

use std::fs;
use std::io::BufRead as _;
use std::io::BufReader;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;
use std::time::Instant;

use nix::libc;
use serde_json::Value;

use super::Finished;
use super::scratch;
use super::start;

/// The program.
pub fn burner() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/burner.c");
        let path = scratch("burner").join("burner");
        let status = Command::new("cc")
            .args(["-O1", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls", "-pie", "-o"])
            .args([path.as_path(), Path::new(source)])
            .status();
        assert!(status.expect("cc").success(), "compiling burner.c");
        path
    })
}

/// A copy without symbols.
pub fn stripped(name: &str) -> PathBuf {
    let copy = scratch(name).join("stripped");
    fs::copy(burner(), &copy).expect("copy");
    assert!(Command::new("strip").arg(&copy).status().expect("strip").success());
    copy
}

/// It runs, and is killed when it goes out of scope.
pub struct Burning {
    /// The process.
    pub child: Child,
}

impl Burning {
    /// Starts a command and waits until the program in it says that it is ready.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("burner");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n");
        Self { child }
    }

    /// Starts the program with these arguments.
    pub fn new(args: &[&str]) -> Self {
        Self::start(Command::new(burner()).args(args))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whoever wants its CPU comes first from now on.
    pub fn give_way(&self) {
        // SAFETY: only numbers go in.
        let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, self.pid(), 19) };
        assert_eq!(result, 0, "setpriority: {}", std::io::Error::last_os_error());
    }

    /// Waits for its end.
    pub fn finish(mut self) {
        assert!(self.child.wait().expect("wait").success());
    }
}

impl Drop for Burning {
    fn drop(&mut self) {
        // Harmless when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a tool said about naps, and what is known of them.
pub struct Naps {
    /// The tool's records.
    pub finished: Finished,
    /// How often the program slept, as the kernel counted.
    pub count: u64,
    /// The least time that it slept altogether. The alarm is set before a thread goes to sleep, so
    /// what is not sleep is missing from it.
    pub least: Duration,
    /// How long all of it took.
    pub most: Duration,
}

/// Runs a tool around so many naps of so many milliseconds.
///
/// Where others want the same CPU, a nap can be preempted on its way to sleep, and be two times off
/// the CPU then. What is known of naps holds for a run in which that did not happen.
pub fn around_naps(tool: &str, args: &[&str], ms: u32, count: u32) -> Naps {
    let path = burner().to_str().expect("UTF-8");
    let (for_ms, for_count) = (ms.to_string(), count.to_string());
    for _ in 0..20 {
        let began = Instant::now();
        let command = ["--", path, "nap", &for_ms, &for_count];
        let finished = start(tool, &[args, &command].concat()).finish();
        let most = began.elapsed();
        finished.assert_clean();
        let line = finished.stderr.lines().find_map(|line| line.strip_prefix("naps: "));
        let mut numbers = line
            .expect("what is known of the naps")
            .split(' ')
            .map(|number| number.parse::<u64>().expect("a number"));
        let mut next = || numbers.next().expect("four numbers");
        let (preempted, slept, cpu_us, stolen_ms) = (next(), next(), next(), next());
        if preempted != 0 {
            continue;
        }
        // Stolen time is told in ticks of ten milliseconds, where it is told at all.
        let stolen = if stolen_ms == 0 { 0 } else { stolen_ms + 10 };
        let other = Duration::from_micros(cpu_us) + Duration::from_millis(stolen);
        let asked = Duration::from_millis(u64::from(ms) * slept);
        assert!(slept <= u64::from(count) && slept >= u64::from(count) / 2, "{slept} naps");
        return Naps { finished, count: slept, least: asked.saturating_sub(other), most };
    }
    panic!("preempted in each of twenty runs");
}

/// The names of a stack field, leaf first; empty where it is null.
pub fn names(stack: &Value) -> Vec<String> {
    let frames = stack.as_array().map(Vec::as_slice).unwrap_or_default();
    frames.iter().map(|frame| frame["sym"].as_str().unwrap_or("?").to_string()).collect()
}
