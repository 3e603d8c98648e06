// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! gethostlatency against lookups that the tests make, in mount namespaces with a hosts file of
//! their own, so that the answers are known and nobody is asked.

use std::fs;
use std::io::Write as _;
use std::net::ToSocketAddrs as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Instant;

use serde_json::Value;
use serde_json::json;

use crate::support::Case;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::Running;
use crate::support::command;
use crate::support::compile::compile;
use crate::support::gettid;
use crate::support::losses::assert_counted;
use crate::support::patience;
use crate::support::scratch;
use crate::support::start;

pub const CASES: &[Case] = &[
    Case::new("calls and results", calls),
    Case::new("every call once", every_call),
    Case::new("a copy of the library", own_copy),
    Case::new("musl", musl),
    Case::new("processes and files", processes_and_files).in_turn(),
    Case::new("names from outside", names).in_turn(),
    Case::new("text", text).in_turn(),
    Case::new("what does not fit is counted", no_room).in_turn(),
];

/// Looks up what it is told to, a line each: FUNCTION NAME [TIMES], and answers with a line.
const LOOKUP: &str = r#"
#define _GNU_SOURCE
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static int look_up(const char *what, const char *name)
{
	struct hostent host, *found = NULL;
	static char buffer[8192];
	int error = 0;

	if (!strncmp(what, "getaddrinfo", 11)) {
		struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *info;

		if (!strcmp(what, "getaddrinfo4"))
			hints.ai_family = AF_INET;
		if (!strcmp(what, "getaddrinfo6"))
			hints.ai_family = AF_INET6;
		error = getaddrinfo(name, NULL, strcmp(what, "getaddrinfo") ? &hints : NULL, &info);
		if (!error)
			freeaddrinfo(info);
		return error;
	}
	if (!strcmp(what, "gethostbyname"))
		found = gethostbyname(name);
	if (!strcmp(what, "gethostbyname2"))
		found = gethostbyname2(name, AF_INET6);
	if (!strcmp(what, "gethostbyname_r"))
		gethostbyname_r(name, &host, buffer, sizeof(buffer), &found, &error);
	if (!strcmp(what, "gethostbyname2_r"))
		gethostbyname2_r(name, AF_INET, &host, buffer, sizeof(buffer), &found, &error);
	return found ? 0 : error ? error : h_errno;
}

int main(void)
{
	static char line[70000], what[64], name[66000];
	int times;

	setbuf(stdout, NULL);
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		int result = 0;

		times = 1;
		sscanf(line, "%63s %65999s %d", what, name, &times);
		for (int i = 0; i < times; i++)
			result = look_up(what, name);
		printf("%d\n", result);
	}
	return 0;
}
"#;

/// The program above, made with this compiler; `None` where there is none.
fn build(compiler: &str, directory: &Path) -> Option<PathBuf> {
    compile(compiler, directory, "lookup", LOOKUP, &["-O2"])
}

/// The program while it runs.
struct Lookups {
    child: Child,
    lines: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
}

impl Lookups {
    /// Runs it with its own /etc/hosts and without name servers. `before` is a shell command that
    /// prepares its mount namespace.
    fn start(program: &Path, directory: &Path, before: &str) -> Self {
        let (hosts, switch) = (directory.join("hosts"), directory.join("nsswitch.conf"));
        fs::write(&hosts, "192.0.2.7 seven.test\n2001:db8::7 seven.test\n192.0.2.9 nine.test\n")
            .expect("hosts");
        fs::write(&switch, "hosts: files\n").expect("nsswitch.conf");
        let script = format!(
            "set -e; mount --bind '{}' /etc/hosts; mount --bind '{}' /etc/nsswitch.conf; {before}; \
             exec '{}'",
            hosts.display(),
            switch.display(),
            program.display()
        );
        let mut child = Command::new("unshare")
            .args(["--mount", "--net", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare");
        let stdout = child.stdout.take().expect("piped");
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stdout));
        assert_eq!(lines.next().expect("a line").expect("UTF-8"), "ready");
        Self { child, lines }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// One lookup, and what it came to.
    fn look_up(&mut self, what: &str) -> i64 {
        writeln!(self.child.stdin.as_ref().expect("piped"), "{what}").expect("it reads");
        let line = self.lines.next().expect("a line").expect("UTF-8");
        line.parse().expect("a number")
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().expect("wait").success());
    }
}

fn is_of(event: &Value, pid: u32, function: &str) -> bool {
    event["pid"] == pid && event["function"] == function
}

fn of(finished: &Finished, pid: u32) -> Vec<Value> {
    finished.of("event").filter(|event| event["pid"] == pid).cloned().collect()
}

/// Function, name, family, failed, error, its number, and the first address.
fn facts(event: &Value) -> Value {
    json!([
        event["function"],
        event["host"],
        event["family"],
        event["failed"],
        event["error"],
        event["error_raw"],
        event["address"]
    ])
}

fn compiler() -> Result<&'static str, Outcome> {
    let found = Command::new("cc").arg("--version").output().is_ok();
    if found { Ok("cc") } else { Err(Outcome::Skipped("there is no C compiler".into())) }
}

/// Each function, with a name that is known and one that is not: what was called, once, with what
/// came of it.
fn calls_of(lookups: &mut Lookups, start: impl FnOnce(u32) -> Running) -> Vec<Value> {
    let tool = start(lookups.pid());
    assert_eq!(lookups.look_up("getaddrinfo4 seven.test"), 0);
    assert_eq!(lookups.look_up("getaddrinfo6 seven.test"), 0);
    assert_ne!(lookups.look_up("getaddrinfo missing.test"), 0);
    for function in ["gethostbyname", "gethostbyname2_r", "gethostbyname_r"] {
        assert_eq!(lookups.look_up(&format!("{function} nine.test")), 0, "{function}");
        assert_ne!(lookups.look_up(&format!("{function} missing.test")), 0, "{function}");
    }
    assert_eq!(lookups.look_up("gethostbyname2 seven.test"), 0);
    let finished = tool.stop();
    finished.assert_clean();
    let events = of(&finished, lookups.pid());
    for event in &events {
        let lat = event["lat_ns"].as_u64().expect("lat_ns");
        assert!(lat > 0 && lat < 60_000_000_000, "{event}");
        assert_eq!(event["comm"], "lookup");
    }
    events.iter().map(facts).collect()
}

fn calls() -> Outcome {
    let directory = scratch("gethostlatency");
    let cc = match compiler() {
        Ok(cc) => cc,
        Err(skipped) => return skipped,
    };
    let program = build(cc, &directory).expect("a compiler");
    let mut lookups = Lookups::start(&program, &directory, ":");
    let seen = calls_of(&mut lookups, |_| start("gethostlatency", &[]));
    lookups.end();
    let wanted = |function: &str, name: &str, address: &str| {
        let failed = address.is_empty();
        let error = if failed { (Value::from("HOST_NOT_FOUND"), 1) } else { (Value::Null, 0) };
        let address: Value = if failed { Value::Null } else { address.into() };
        json!([function, name, "inet", failed, error.0, error.1, address])
    };
    let both = |function: &str| {
        [wanted(function, "nine.test", "192.0.2.9"), wanted(function, "missing.test", "")]
    };
    let mut all = vec![
        json!(["getaddrinfo", "seven.test", "inet", false, null, 0, "192.0.2.7"]),
        json!(["getaddrinfo", "seven.test", "inet6", false, null, 0, "2001:db8::7"]),
        json!(["getaddrinfo", "missing.test", "any", true, "EAI_NONAME", -2, null]),
    ];
    all.extend(both("gethostbyname"));
    all.extend(both("gethostbyname2_r"));
    all.extend(both("gethostbyname_r"));
    all.push(json!(["gethostbyname2", "seven.test", "inet6", false, null, 0, "2001:db8::7"]));
    assert_eq!(seen, all);
    Outcome::Passed
}

/// A thousand lookups are a thousand lines, of a process that was there and of one that comes.
fn every_call() -> Outcome {
    let directory = scratch("gethostlatency");
    let cc = match compiler() {
        Ok(cc) => cc,
        Err(skipped) => return skipped,
    };
    let program = build(cc, &directory).expect("a compiler");
    let mut before = Lookups::start(&program, &directory, ":");
    let tool = start("gethostlatency", &["--comm", "lookup"]);
    let mut after = Lookups::start(&program, &directory, ":");
    for lookups in [&mut before, &mut after] {
        lookups.look_up("getaddrinfo4 seven.test 500");
        lookups.look_up("gethostbyname nine.test 500");
    }
    let finished = tool.stop();
    finished.assert_clean();
    for lookups in [before, after] {
        let events = of(&finished, lookups.pid());
        let count = |function: &str| events.iter().filter(|e| e["function"] == function).count();
        assert_eq!((count("getaddrinfo"), count("gethostbyname"), events.len()), (500, 500, 1000));
        lookups.end();
    }
    Outcome::Passed
}

/// The path of the C library that this program has mapped.
fn libc_path() -> Option<String> {
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    let path = maps.split_whitespace().find(|word| word.ends_with("/libc.so.6"))?;
    Some(path.to_string())
}

/// A process whose library is another file in its own mount namespace, as in a container; one that
/// is there before the tool, and one that comes later with yet another file.
fn own_copy() -> Outcome {
    let directory = scratch("gethostlatency");
    let cc = match compiler() {
        Ok(cc) => cc,
        Err(skipped) => return skipped,
    };
    let Some(libc) = libc_path() else {
        return Outcome::Skipped("the C library here is not GNU's".into());
    };
    let program = build(cc, &directory).expect("a compiler");
    let copied = |name: &str| {
        let copy = directory.join(name);
        format!("cp '{libc}' '{0}'; mount --bind '{0}' '{libc}'", copy.display())
    };
    let mut before = Lookups::start(&program, &directory, &copied("first"));
    let mut tool = start("gethostlatency", &["--comm", "lookup"]);
    let mut after = Lookups::start(&program, &directory, &copied("second"));
    before.look_up("getaddrinfo4 seven.test 20");
    // The file that is probed is gone from the host's directory.
    fs::remove_file(directory.join("second")).ok();
    // A library that is mapped while the tool runs is probed as soon as the tool has been told,
    // which takes a busy machine a while. From then on, nothing is missing.
    let pid = after.pid();
    let until = Instant::now() + patience();
    let functions = ["getaddrinfo", "gethostbyname"];
    while functions.iter().any(|function| !tool.has_shown(|event| is_of(event, pid, function))) {
        assert!(Instant::now() < until, "the library that came later is not probed");
        after.look_up("getaddrinfo4 early.test");
        after.look_up("gethostbyname early.test");
    }
    after.look_up("getaddrinfo4 seven.test 15");
    after.look_up("gethostbyname seven.test 15");
    let finished = tool.stop();
    finished.assert_clean();
    assert_eq!(of(&finished, before.pid()).len(), 20);
    let events = of(&finished, pid);
    for function in functions {
        let hosts = events.iter().filter(|event| event["function"] == function);
        let hosts: Vec<_> = hosts.map(|event| event["host"].as_str().expect("host")).collect();
        let early = hosts.iter().take_while(|host| **host == "early.test").count();
        assert_eq!(hosts[early..], ["seven.test"; 15], "{function}");
    }
    before.end();
    after.end();
    Outcome::Passed
}

fn musl() -> Outcome {
    let directory = scratch("gethostlatency");
    let Some(program) = build("musl-gcc", &directory) else {
        return Outcome::Skipped("there is no musl-gcc (package musl-tools)".into());
    };
    let mut lookups = Lookups::start(&program, &directory, ":");
    let seen = calls_of(&mut lookups, |pid| start("gethostlatency", &["-p", &pid.to_string()]));
    lookups.end();
    assert_eq!(seen.len(), 10);
    assert_eq!(seen[0], json!(["getaddrinfo", "seven.test", "inet", false, null, 0, "192.0.2.7"]));
    // Without a name server it tries again and gives up, or is told that there is none.
    for (at, function) in [(2, "getaddrinfo"), (4, "gethostbyname"), (6, "gethostbyname2_r")] {
        assert_eq!((&seen[at][0], &seen[at][3]), (&function.into(), &true.into()), "{seen:?}");
        assert!(seen[at][4].is_string(), "{}", seen[at]);
    }
    assert_eq!(seen[3], json!(["gethostbyname", "nine.test", "inet", false, null, 0, "192.0.2.9"]));
    Outcome::Passed
}

/// -p and -l choose what is probed.
fn processes_and_files() -> Outcome {
    let directory = scratch("gethostlatency");
    let cc = match compiler() {
        Ok(cc) => cc,
        Err(skipped) => return skipped,
    };
    let Some(libc) = libc_path() else {
        return Outcome::Skipped("the C library here is not GNU's".into());
    };
    let program = build(cc, &directory).expect("a compiler");
    let mut one = Lookups::start(&program, &directory, ":");
    let copy = directory.join("copy");
    let bind = format!("cp '{libc}' '{0}'; mount --bind '{0}' '{libc}'", copy.display());
    let mut other = Lookups::start(&program, &directory, &bind);
    let by_pid = start("gethostlatency", &["-p", &one.pid().to_string()]);
    let by_file = start("gethostlatency", &["--libc", copy.to_str().expect("UTF-8")]);
    one.look_up("getaddrinfo seven.test 3");
    other.look_up("getaddrinfo seven.test 4");
    let (by_pid, by_file) = (by_pid.stop(), by_file.stop());
    by_pid.assert_clean();
    by_file.assert_clean();
    assert_eq!((of(&by_pid, one.pid()).len(), of(&by_pid, other.pid()).len()), (3, 0));
    assert_eq!((of(&by_file, one.pid()).len(), of(&by_file, other.pid()).len()), (0, 4));
    one.end();
    other.end();

    for (path, status) in [("/no/such/file", 2), ("/", 2), ("/etc/passwd", 3)] {
        let output = command("gethostlatency", &["-l", path]).output().expect("gethostlatency");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), text.lines().count()), (Some(status), 1), "{text}");
    }
    Outcome::Passed
}

/// Long names are cut and say so; what could drive a terminal is escaped.
fn names() -> Outcome {
    let directory = scratch("gethostlatency");
    let cc = match compiler() {
        Ok(cc) => cc,
        Err(skipped) => return skipped,
    };
    let program = build(cc, &directory).expect("a compiler");
    let mut lookups = Lookups::start(&program, &directory, ":");
    let tool = start("gethostlatency", &["--comm", "lookup"]);
    let long = "x".repeat(5000);
    let just = "y".repeat(511);
    for name in [&long, &just, "e\u{1b}[2J"] {
        lookups.look_up(&format!("getaddrinfo4 {name}"));
    }
    let finished = tool.stop();
    finished.assert_clean();
    let events = of(&finished, lookups.pid());
    let seen: Vec<_> = events.iter().map(|e| (e["host"].clone(), e["host_cut"] == true)).collect();
    assert_eq!(
        seen,
        [(json!("x".repeat(511)), true), (json!(just), false), (json!("e\u{1b}[2J"), false)]
    );
    lookups.end();
    Outcome::Passed
}

fn text() -> Outcome {
    let directory = scratch("gethostlatency");
    let cc = match compiler() {
        Ok(cc) => cc,
        Err(skipped) => return skipped,
    };
    let program = build(cc, &directory).expect("a compiler");
    let mut lookups = Lookups::start(&program, &directory, ":");
    let pid = lookups.pid().to_string();
    let mut tool = command("gethostlatency", &["-p", &pid, "--limit", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("gethostlatency");
    let stdout = tool.stdout.take().expect("piped");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stdout));
    assert_eq!(
        lines.next().expect("a header").expect("UTF-8"),
        "TIME     PID     COMM             LATms      HOST"
    );
    let fields = ["-p", &pid, "--limit", "1", "--fields", "+error,+address"];
    let mut other =
        command("gethostlatency", &fields).stdout(Stdio::piped()).spawn().expect("spawn");
    let stdout = other.stdout.take().expect("piped");
    let mut more = std::io::BufRead::lines(std::io::BufReader::new(stdout));
    assert_eq!(
        more.next().expect("a header").expect("UTF-8"),
        "TIME     PID     COMM             LATms      ERROR          ADDRESS         HOST"
    );
    lookups.look_up("gethostbyname nine.test");
    let line = more.next().expect("a line").expect("UTF-8");
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[4..], ["0", "192.0.2.9", "nine.test"], "{line}");
    assert!(other.wait().expect("wait").success());
    let line = lines.next().expect("a line").expect("UTF-8");
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!((words.len(), words[1], words[2], words[4]), (5, &*pid, "lookup", "nine.test"));
    assert!(words[3].split_once('.').is_some_and(|(_, decimals)| decimals.len() == 3), "{line}");
    assert!(tool.wait().expect("wait").success());
    lookups.end();
    Outcome::Passed
}

/// A buffer too small: see [`assert_counted`].
fn no_room() -> Outcome {
    assert_counted("gethostlatency", &["--tid", &gettid().to_string()], 100, || {
        // What comes of it does not matter.
        (0..100).for_each(|_| drop(("localhost", 1).to_socket_addrs()));
    });
    Outcome::Passed
}
