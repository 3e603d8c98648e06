// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Tools as people run them: what they write as text, and how they refuse a command line.

use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::command;

/// Runs a tool around `act`, ends it with a signal, and returns its lines, of which the first so
/// many come when everything is attached.
pub fn text_run(tool: &str, args: &[&str], before: usize, act: impl FnOnce()) -> Vec<String> {
    let mut child = command(tool, args).stdout(Stdio::piped()).spawn().expect(tool);
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mut text = String::new();
    for _ in 0..before {
        stdout.read_line(&mut text).expect("a line");
    }
    act();
    kill(Pid::from_raw(i32::try_from(child.id()).expect("pid")), Signal::SIGTERM).expect("kill");
    stdout.read_to_string(&mut text).expect("text");
    assert!(child.wait().expect("wait").success(), "{tool} {args:?}: {text}");
    text.lines().map(String::from).collect()
}

/// Asserts that a tool refuses each of these command lines: status 2, one sentence, nothing shown.
pub fn assert_usage_errors(tool: &str, wrong: &[&[&str]]) {
    for args in wrong {
        let output = command(tool, args).output().expect(tool);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert_eq!((said.lines().count(), output.stdout.len()), (1, 0), "{args:?}: {said}");
    }
}
