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

/// Runs a tool around so many naps of so many milliseconds, and returns what it said and how long
/// all of that took.
///
/// Where others want the same CPU, a nap can be preempted on its way to sleep, and the alarm may then
/// come before it sleeps at all. What is known of naps holds for a run in which that did not happen.
pub fn around_naps(tool: &str, args: &[&str], ms: &str, count: &str) -> (Finished, Duration) {
    let path = burner().to_str().expect("UTF-8");
    for _ in 0..20 {
        let began = Instant::now();
        let finished = start(tool, &[args, &["--", path, "nap", ms, count]].concat()).finish();
        let took = began.elapsed();
        finished.assert_clean();
        let said = finished.stderr.lines().find_map(|line| line.strip_prefix("preempted "));
        if said.expect("the program says how often it was preempted") == "0" {
            return (finished, took);
        }
    }
    panic!("preempted in each of twenty runs");
}

/// The names of a stack field, leaf first; empty where it is null.
pub fn names(stack: &Value) -> Vec<String> {
    let frames = stack.as_array().map(Vec::as_slice).unwrap_or_default();
    frames.iter().map(|frame| frame["sym"].as_str().unwrap_or("?").to_string()).collect()
}
