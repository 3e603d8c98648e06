// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Tables: sorted, cut, printed one after another, and drawn on a screen. The rows are those of a
//! tool that exists only here; it hooks in as a real one does, and counts nothing.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use bpfscope::cli::seconds;
use bpfscope::multi::Entry;
use bpfscope::prelude::*;
use nix::libc;
use nix::pty::Winsize;
use nix::pty::openpty;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::sys::termios::LocalFlags;
use nix::sys::termios::tcgetattr;
use nix::unistd::Pid;

use crate::support::AS_TOOLS;
use crate::support::Case;
use crate::support::Outcome;
use crate::support::own_command;
use crate::support::patience;
use crate::support::start_command;

pub const CASES: &[Case] = &[
    Case::new("plain tables one after another", plain).in_turn(),
    Case::new("sorted and cut in every form", forms).in_turn(),
    Case::new("a screen is drawn over, resized and left with q", screen).in_turn(),
    Case::new("the terminal is restored on every way out", restored).in_turn(),
    Case::new("a stopped screen comes back", stopped).in_turn(),
    Case::new("no screen where none is wanted or possible", no_screen).in_turn(),
];

/// The tools of this file, for a process that runs as one.
pub static TOOLS: &[Entry] = &[Entry::of::<Args>()];

// Any tool's kernel side would do: this one loads everywhere, and has little to do.
bpf!("biolatency");

/// A kernel side under another name.
pub struct Kernel;

impl bpfscope::tool::Bpf for Kernel {
    const NAME: &'static str = "tabletest";
    type Builder = bpf::BiolatencySkelBuilder;
}

/// Show rows that are made up
#[derive(clap::Args)]
pub struct Args {
    #[arg(value_parser = seconds)]
    interval: Option<Duration>,
    count: Option<u64>,
    /// How many rows there are
    #[arg(long, default_value_t = 5)]
    have: u64,
    /// Fail at the second report
    #[arg(long)]
    fail: bool,
    /// Panic at the second report
    #[arg(long)]
    panic: bool,
}

impl Tool for Args {
    type Bpf = Kernel;

    const DOC: Doc = Doc { description: "", examples: "", overhead: "", limits: "" };
    const QUESTION: Question = Question { heading: "", question: "" };
    const LETTERS: &'static [(&'static str, char)] =
        &[("no-clear", 'C'), ("rows", 'r'), ("sort", 's')];
    const TABLE: Option<Table> = Some(Table {
        sorts: &[("all", &["reads", "writes"]), ("in", &["reads"])],
        rows: 3,
        names: &[("no-clear", "noclear"), ("rows", "maxrows")],
        ..Table::by("all")
    });

    fn ways(&self) -> Vec<Way> {
        vec![Way::new("rawtp", &["complete__rawtp", "issue__rawtp"])]
    }

    fn records(&self) -> Records {
        let kind = Kind::row("made")
            .field("comm", Type::String, "")
            .field("reads", Type::Uint, "")
            .field("writes", Type::Uint, "")
            .columns([
                column("comm", "COMM", 8),
                column("reads", "READS", 6).right(),
                column("writes", "WRITES", 6).right(),
            ]);
        Records::new([kind]).banner("Tracing... Hit Ctrl-C to end.")
    }

    fn run(&self, _skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let mut report = 0;
        let mut act = |out: &mut Output| -> Result<()> {
            report += 1;
            if report == 2 && self.fail {
                return Err(usage("asked to fail"));
            }
            assert!(report != 2 || !self.panic, "asked to panic");
            out.line(&format!("report {report}"));
            for i in 1..=self.have {
                let comm = format!("row{i}");
                // Reads fall while writes grow more.
                let values =
                    [Value::Str(&comm), Value::Uint(100 - i), Value::Uint(i * 1000 * report)];
                out.row(0, &values);
            }
            out.report_done();
            Ok(())
        };
        session.every(Every { interval: self.interval, count: self.count, act: &mut act })
    }
}

fn text_of(args: &[&str]) -> String {
    let output = own_command("tabletest", args).output().expect("run");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn plain() -> Outcome {
    let text = text_of(&["0.01", "2"]);
    let lines: Vec<&str> = text.lines().collect();
    let is_summary = |line: &str| {
        let (time, load) = line.split_once(" loadavg: ").expect("time and load average");
        assert_eq!(time.bytes().filter(|b| *b == b':').count(), 2, "{line}");
        assert_eq!(load.split(' ').count(), 5, "{line}");
    };
    assert_eq!(lines.len(), 1 + 2 * 8, "{text}");
    assert_eq!(lines[0], "Tracing... Hit Ctrl-C to end.");
    for (report, lines) in lines[1..].chunks(8).enumerate() {
        is_summary(lines[0]);
        let factor = 1000 * (report + 1);
        let row = |i: usize| format!("row{i}      {:>5} {:>6}", 100 - i, i * factor);
        let header = "COMM      READS WRITES".to_string();
        let title = format!("report {}", report + 1);
        let wanted = [String::new(), title, header, row(5), row(4), row(3), String::new()];
        assert_eq!(lines[1..], wanted);
    }
    Outcome::Passed
}

/// The rows of one report, by name.
fn rows(args: &[&str]) -> Vec<String> {
    let text = text_of(&[&["1000", "--duration", "0.01"], args].concat());
    let names = text.lines().filter_map(|line| line.split(' ').next());
    names.filter(|name| name.starts_with("row")).map(String::from).collect()
}

fn forms() -> Outcome {
    assert_eq!(rows(&["-s", "in"]), ["row1", "row2", "row3"]);
    assert_eq!(rows(&["--sort", "writes", "-r", "1"]), ["row5"]);
    assert_eq!(rows(&["--sort", "comm", "--maxrows", "9", "--noclear"]).len(), 5);
    assert_eq!(rows(&["--limit", "2"]), ["row5", "row4"]);

    let record = |args: &[&str]| {
        let args = [&["1000", "--duration", "0.01", "--output", "json"], args].concat();
        let finished = start_command(own_command("tabletest", &args)).finish();
        finished.assert_clean();
        finished.records
    };
    let shown = |records: &[serde_json::Value]| -> Vec<String> {
        let text = |record: &serde_json::Value| match record["type"].as_str() {
            Some("row") => record["comm"].as_str().expect("comm").to_string(),
            other => other.expect("type").to_string(),
        };
        records.iter().map(text).collect()
    };
    let all = record(&[]);
    // Everything, unless fewer are wanted.
    let names = ["ready", "row5", "row4", "row3", "row2", "row1", "report", "end"];
    assert_eq!(shown(&all), names);
    assert!(all[1..7].iter().all(|record| record["report"] == 0), "{all:?}");
    assert_eq!(shown(&record(&["-r2", "-sin"])), ["ready", "row1", "row2", "report", "end"]);

    let csv = text_of(&["0.01", "2", "--output", "csv", "--fields", "comm,reads", "-r", "1"]);
    assert_eq!(csv, "comm,reads\nrow5,95\nrow5,95\n");
    Outcome::Passed
}

/// A tool on a terminal of its own.
struct Terminal {
    child: Child,
    master: File,
    /// `None` once it has ended.
    slave: Option<OwnedFd>,
    found: LocalFlags,
    output: Receiver<Vec<u8>>,
    seen: Vec<u8>,
}

fn size(rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Terminal {
    fn start(mut command: Command, rows: u16) -> Self {
        let pty = openpty(&size(rows), None).expect("openpty");
        let found = tcgetattr(&pty.slave).expect("tcgetattr").local_flags;
        let end = || Stdio::from(pty.slave.try_clone().expect("dup"));
        command.stdin(end()).stdout(end()).stderr(end()).env("TERM", "xterm");
        if command.get_envs().all(|(name, _)| name != "NO_COLOR") {
            command.env("NO_COLOR", "1");
        }
        // SAFETY: setsid and ioctl are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("spawn");
        let master = File::from(pty.master);
        let mut reader = master.try_clone().expect("dup");
        let (send, output) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if send.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, master, slave: Some(pty.slave), found, output, seen: Vec::new() }
    }

    /// Reads on until `wanted` holds for what has come.
    fn wait_until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        let until = Instant::now() + patience();
        while !wanted(self) {
            let left = until.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left.min(Duration::from_millis(20))) {
                Ok(bytes) => self.seen.extend(bytes),
                Err(_) => assert!(!left.is_zero(), "{what}: {:?}", self.text()),
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// The lines of every whole frame.
    fn frames(&self) -> Vec<Vec<String>> {
        let text = self.text();
        let frames = text.split("\x1b[?7l\x1b[H").skip(1);
        frames
            .filter_map(|frame| Some(frame.split_once("\x1b[J\x1b[?7h")?.0))
            .map(|frame| {
                let lines = frame.split_terminator("\r\n");
                lines
                    .map(|line| line.strip_suffix("\x1b[K").expect("cleared").to_string())
                    .collect()
            })
            .collect()
    }

    fn flags(&self) -> LocalFlags {
        tcgetattr(self.slave.as_ref().expect("not ended")).expect("tcgetattr").local_flags
    }

    fn is_raw(&self) -> bool {
        !self.flags().intersects(LocalFlags::ICANON | LocalFlags::ECHO)
            && self.flags().contains(LocalFlags::ISIG)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("pid")), signal).expect("kill");
    }

    fn press(&mut self, keys: &[u8]) {
        self.master.write_all(keys).expect("write");
    }

    fn resize(&self, rows: u16) {
        let size = size(rows);
        // SAFETY: the structure lives across the call.
        let set = unsafe {
            libc::ioctl(self.master.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size)
        };
        assert_eq!(set, 0);
    }

    /// Waits for its end, and asserts that the terminal is as it was found.
    fn finish(&mut self) -> ExitStatus {
        let until = Instant::now() + patience();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                break status;
            }
            assert!(Instant::now() < until, "it does not end: {:?}", self.text());
            while let Ok(bytes) = self.output.try_recv() {
                self.seen.extend(bytes);
            }
            thread::yield_now();
        };
        assert_eq!(self.flags(), self.found, "the terminal is not restored");
        // Without our own end of it the terminal is hung up when all has been read.
        self.slave = None;
        while let Ok(bytes) = self.output.recv_timeout(patience()) {
            self.seen.extend(bytes);
        }
        assert!(!self.text().contains("\x1b[?25l"), "the cursor was hidden");
        status
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Harmless when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn has_rows(terminal: &Terminal, rows: usize) -> bool {
    terminal.frames().last().is_some_and(|frame| {
        let names = frame.iter().filter(|line| line.starts_with("row")).count();
        names == rows
    })
}

fn screen() -> Outcome {
    let mut terminal = Terminal::start(own_command("tabletest", &["0.05", "--have", "50"]), 12);
    // Time, gap, title and header stand above, and one line stays free.
    terminal.wait_until("two frames", |terminal| terminal.frames().len() > 1);
    assert!(terminal.is_raw());
    assert!(!terminal.text().contains("Tracing"), "the banner is on the screen");
    let frame = terminal.frames()[0].clone();
    assert_eq!(frame.len(), 11, "{frame:?}");
    assert!(frame[0].contains(" loadavg: ") && frame[1].is_empty(), "{frame:?}");
    assert_eq!(frame[2..5], ["report 1", "COMM      READS WRITES", "row50        50  50000"]);
    assert!(has_rows(&terminal, 7));
    terminal.resize(20);
    terminal.wait_until("more rows", |terminal| has_rows(terminal, 15));
    terminal.resize(6);
    terminal.wait_until("fewer rows", |terminal| has_rows(terminal, 1));
    // Other keys do nothing.
    terminal.press(b"x ");
    let before = terminal.frames().len();
    terminal.wait_until("more frames", |terminal| terminal.frames().len() > before + 1);
    terminal.press(b"q");
    assert!(terminal.finish().success());

    // A number of rows that the user chose.
    let mut terminal =
        Terminal::start(own_command("tabletest", &["0.05", "--have", "50", "--rows", "4"]), 24);
    terminal.wait_until("a frame", |terminal| !terminal.frames().is_empty());
    assert!(has_rows(&terminal, 4), "{:?}", terminal.frames());
    terminal.press(b"q");
    assert!(terminal.finish().success());

    // An empty NO_COLOR is none.
    let mut command = own_command("tabletest", &["0.05"]);
    command.env("NO_COLOR", "");
    let mut terminal = Terminal::start(command, 24);
    terminal.wait_until("a frame", |terminal| !terminal.frames().is_empty());
    assert_eq!(terminal.frames()[0][3], "\x1b[1mCOMM      READS WRITES\x1b[0m");
    terminal.press(b"q");
    assert!(terminal.finish().success());
    Outcome::Passed
}

fn restored() -> Outcome {
    let first = |args: &[&str]| {
        let mut terminal = Terminal::start(own_command("tabletest", args), 24);
        terminal.wait_until("a frame", |terminal| !terminal.frames().is_empty());
        terminal
    };
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut terminal = first(&["0.05"]);
        terminal.signal(signal);
        assert!(terminal.finish().success(), "{signal}");
    }
    // Ctrl-C as a key.
    let mut terminal = first(&["0.05"]);
    terminal.press(b"\x03");
    assert!(terminal.finish().success());
    let mut terminal = first(&["0.05", "3"]);
    assert!(terminal.finish().success());
    assert_eq!(terminal.frames().len(), 3);
    let mut terminal = first(&["0.05", "--fail"]);
    assert_eq!(terminal.finish().code(), Some(2));
    assert!(terminal.text().contains("asked to fail"));
    let mut terminal = first(&["0.05", "--panic"]);
    assert!(!terminal.finish().success());
    assert!(terminal.text().contains("asked to panic"));
    // Two signals while it is stopped: the second ends it at once.
    let mut terminal = first(&["0.05"]);
    terminal.signal(Signal::SIGSTOP);
    terminal.signal(Signal::SIGINT);
    terminal.signal(Signal::SIGTERM);
    terminal.signal(Signal::SIGCONT);
    assert_eq!(terminal.finish().code(), Some(130));
    Outcome::Passed
}

fn stopped() -> Outcome {
    let mut terminal = Terminal::start(own_command("tabletest", &["0.05"]), 24);
    terminal.wait_until("a frame", |terminal| !terminal.frames().is_empty() && terminal.is_raw());
    terminal.signal(Signal::SIGTSTP);
    let found = terminal.found;
    terminal.wait_until("a terminal for the shell", |terminal| terminal.flags() == found);
    let stat = format!("/proc/{}/stat", terminal.child.id());
    terminal.wait_until("a stop", |_| fs::read_to_string(&stat).expect("stat").contains(") T "));
    terminal.signal(Signal::SIGCONT);
    terminal.wait_until("a terminal for the screen", Terminal::is_raw);
    let before = terminal.frames().len();
    terminal.wait_until("more frames", |terminal| terminal.frames().len() > before + 1);
    terminal.press(b"q");
    assert!(terminal.finish().success());
    Outcome::Passed
}

fn no_screen() -> Outcome {
    let plain = |command: Command| {
        let mut terminal = Terminal::start(command, 24);
        assert!(terminal.finish().success(), "{}", terminal.text());
        assert_eq!(terminal.frames().len(), 0, "{}", terminal.text());
        assert!(terminal.text().contains("Tracing"));
        assert_eq!(terminal.text().matches("COMM ").count(), 2, "{}", terminal.text());
    };
    plain(own_command("tabletest", &["0.01", "2", "-C"]));
    let mut dumb = Command::new("sh");
    dumb.args(["-c", "TERM=dumb exec \"$@\"", "sh"]);
    dumb.arg(std::env::current_exe().expect("this program"));
    dumb.args(["tabletest", "0.01", "2"]).env(AS_TOOLS, "1");
    plain(dumb);
    // A command shares the terminal, so it is left alone.
    plain(own_command("tabletest", &["0.01", "2", "--", "sleep", "1000"]));
    Outcome::Passed
}
