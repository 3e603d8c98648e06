// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! What can be asked of every tool without privileges: its command line, its objects, and that the
//! generated documentation is up to date.

#[path = "support/schema.rs"]
mod schema;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use libbpf_rs::MapType;
use libbpf_rs::ObjectBuilder;
use serde_json::Value;
use serde_json::json;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn bpfscope(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bpfscope")).args(args).output().expect("run")
}

fn stdout(args: &[&str]) -> String {
    let output = bpfscope(args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && stderr.is_empty(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn tools() -> Vec<String> {
    stdout(&["list"]).lines().map(|l| l.split(' ').next().expect("a name").to_string()).collect()
}

/// The objects as build.rs left them: the newest of each name.
fn objects() -> BTreeMap<String, PathBuf> {
    let out = PathBuf::from(env!("OUT_DIR"));
    tools().into_iter().map(|tool| (tool.clone(), out.join(format!("{tool}.o")))).collect()
}

/// Asserts a usage error: status 2, one sentence that contains `word`, nothing on stdout.
fn usage_error(args: &[&str], word: &str) {
    let output = bpfscope(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    assert!(stderr.contains(word), "{args:?}: {stderr}");
}

#[test]
fn every_tool_is_found_and_described() {
    let sources: Vec<String> = {
        let mut names: Vec<String> = fs::read_dir(root().join("bpf"))
            .expect("bpf/")
            .filter_map(|entry| {
                let name = entry.ok()?.file_name().into_string().ok()?;
                name.strip_suffix(".bpf.c").map(String::from)
            })
            .collect();
        names.sort();
        names
    };
    assert_eq!(tools(), sources);
    for line in stdout(&["list"]).lines() {
        let (name, about) = line.split_once(' ').expect("a description");
        assert!(!about.trim().is_empty() && !about.trim().ends_with('.'), "{name}: {about}");
    }
}

/// clap also checks in debug builds that no option is declared twice.
#[test]
fn help_and_version_of_every_tool() {
    for tool in tools() {
        for flag in ["--help", "-h"] {
            let help = stdout(&[&tool, flag]);
            assert!(help.contains("Usage:") && help.contains("--output"), "{tool} {flag}");
            assert!(help.lines().all(|line| line.chars().count() <= 100), "{tool}: a wide line");
        }
        assert_eq!(stdout(&[&tool, "--version"]), stdout(&[&tool, "-V"]));
        assert!(stdout(&[&tool, "-V"]).starts_with(&format!("{tool} ")));
    }
    assert!(stdout(&["help"]).contains("Usage:"));
}

#[test]
fn links_to_the_multi_call_binary_are_the_tool() {
    let directory = tempdir("links");
    for tool in tools() {
        for name in [tool.clone(), format!("bpf-{tool}")] {
            let link = directory.join(&name);
            symlink(env!("CARGO_BIN_EXE_bpfscope"), &link).expect("link");
            let output = Command::new(&link).arg("--version").output().expect("run");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.starts_with(&format!("{tool} ")), "{name}: {text}");
        }
        let alone = Path::new(env!("CARGO_BIN_EXE_bpfscope")).with_file_name(&tool);
        let output = Command::new(&alone).arg("--version").output().expect("the stand-alone tool");
        assert!(String::from_utf8_lossy(&output.stdout).starts_with(&format!("{tool} ")));
    }
    fs::remove_dir_all(directory).expect("clean up");
}

#[test]
fn bad_input_is_a_usage_error_in_every_tool() {
    for tool in tools() {
        let tool = tool.as_str();
        let needs = needs(tool);
        let usage_error = |args: &[&str], word: &str| {
            let mut needs: Vec<&str> = needs.iter().map(String::as_str).collect();
            if args.contains(&"--from") {
                needs.clear();
            }
            usage_error(&[&args[..1], &needs, &args[1..]].concat(), word);
        };
        usage_error(&[tool, "--no-such-option"], "--no-such-option");
        usage_error(&[tool, "--output", "xml"], "xml");
        usage_error(&[tool, "--fields", "no_such_field"], "no_such_field");
        usage_error(&[tool, "--cgroup", "/no/such/cgroup"], "/no/such/cgroup");
        for bad in ["", "a b", "web,", "../x", "a/b/c"] {
            usage_error(&[tool, "--container", bad], "--container");
        }
        usage_error(&[tool, "--btf", "/no/such/file"], "/no/such/file");
        usage_error(&[tool, "--btf", "/etc/hostname"], "BTF");
        usage_error(&[tool, "--ready-fd", "1"], "--ready-fd");
        usage_error(&[tool, "--uid", "no-such-user"], "no-such-user");
        usage_error(&[tool, "--comm", "a-name-of-more-than-fifteen-bytes"], "15");
        usage_error(&[tool, "--color", "red"], "red");
        usage_error(&[tool, "--filter", "pid"], "FIELD OP VALUE");
        usage_error(&[tool, "--from", "/no/such/file"], "--from");
        usage_error(&[tool, "--from", "/dev/null", "--pid", "1"], "--pid");
        usage_error(&[tool, "--from", "/dev/null", "--", "true"], "COMMAND");
        usage_error(&[tool, "--filter", "no_such_field = 1"], "no_such_field");
        usage_error(&[tool, "--filter", "boot_ns = x"], "'x' is not a number");
        usage_error(&[tool, "--filter", "ts ~ ("], "regular expression");
        usage_error(&[tool, "--filter", "ts < 1"], "compare numbers");
        let no_file =
            if events_or_rows(tool).is_empty() { "events and tables" } else { "nothing in it" };
        usage_error(&[tool, "--from", "/dev/null"], no_file);
        // Nor is there a brake for what is counted in the kernel.
        if !events_or_rows(tool).iter().any(|of| of["properties"]["type"]["const"] == "event") {
            usage_error(&[tool, "--max-rate", "1"], "--max-rate");
        }
        // Tools without tables have nothing to sort.
        if !stdout(&[tool, "--help"]).contains("--sort") {
            usage_error(&[tool, "--sort", "pid"], "--sort");
            usage_error(&[tool, "--rows", "5"], "--rows");
            usage_error(&[tool, "--no-clear"], "--no-clear");
        }
        for option in ["--pid", "--tid", "--ppid", "--limit", "--duration", "--buffer-size"] {
            for value in ["abc", "5x", "0", ""] {
                usage_error(&[tool, option, value], option);
            }
            usage_error(&[tool, &format!("{option}=-1")], option);
        }
    }
    usage_error(&["man", "no-such-tool"], "no-such-tool");
    usage_error(&["schema"], "schema");
    usage_error(&["schema", "no-such-tool"], "no-such-tool");
    usage_error(&["completions"], "bash");
    usage_error(&["completions", "csh"], "bash");
    usage_error(&[], "which tool");
    usage_error(&["no-such-tool"], "no-such-tool");
    usage_error(&["docs", "nonsense"], "docs");
}

/// The options that a tool does not start without.
fn needs(tool: &str) -> Vec<String> {
    stdout(&["docs", "needs", tool]).split_whitespace().map(String::from).collect()
}

/// Objects open without privileges, and hold what every tool needs.
#[test]
fn every_object_opens() {
    for (tool, path) in objects() {
        let open = ObjectBuilder::default().open_file(&path).expect("open");
        let maps: Vec<String> = open.maps().map(|m| m.name().to_string_lossy().into()).collect();
        assert!(maps.iter().any(|name| name == "losses"), "{tool} counts no losses: {maps:?}");
        assert!(maps.iter().any(|name| name == "filter_ids"), "{tool} has no filters: {maps:?}");
        assert!(open.progs().count() > 0, "{tool}");
        for map in open.maps() {
            // An event or a table of a fixed tiny size is a silent loss waiting to happen.
            let fixed = map.max_entries();
            let sized = fixed > 0 || map.map_type() == MapType::TaskStorage;
            assert!(sized || map.name() == "events", "{tool}: {:?}", map.name());
        }
    }
}

/// 5.10 knows one atomic instruction, addition without a result ("BPF_STX uses reserved fields"
/// otherwise); newer compilers make others of the same source at -mcpu=v3.
#[test]
fn no_object_has_atomics_that_5_10_refuses() {
    const STX_ATOMIC: [u8; 2] = [0xc3, 0xdb];
    for (tool, path) in objects() {
        let open = ObjectBuilder::default().open_file(&path).expect("open");
        for program in open.progs() {
            for insn in program.insns() {
                let atomic = STX_ATOMIC.contains(&insn.code);
                assert!(!atomic || insn.imm == 0, "{tool}: {:?}", program.name());
            }
        }
    }
}

#[test]
fn the_generated_documentation_is_up_to_date() {
    let output = fs::read_to_string(root().join("docs/output.md")).expect("docs/output.md");
    assert!(output == stdout(&["docs", "output"]), "docs/output.md is old: make docs");
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let table = stdout(&["docs", "readme"]);
    assert!(readme.contains(&table), "the table in README.md is old: make docs");
}

/// Words in backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The part of a document below this heading.
fn section_of(path: &str, heading: &str) -> String {
    let text = fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    let (_, rest) = text.split_once(&format!("\n{heading}\n")).expect(heading);
    rest.split("\n## ").next().unwrap_or(rest).to_string()
}

/// The README's table of common options has all of them, and no others.
#[test]
fn the_readme_has_every_common_option() {
    let section = section_of("README.md", "## Options that every tool has");
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let named: Vec<&str> = rows
        .flat_map(|row| quoted(row.split(" | ").next().unwrap_or(row)))
        .map(|form| form.split(' ').next().unwrap_or(form))
        .collect();
    let mut known: Vec<String> = Vec::new();
    for tool in tools() {
        for line in stdout(&["docs", "options", &tool]).lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let Some(("common", letter)) = words.first().copied().zip(words.get(1)) else {
                continue;
            };
            let spellings = words[2..].iter().filter(|word| word.starts_with("--"));
            known.extend(spellings.clone().map(|word| (*word).to_string()));
            known.push((*letter).to_string());
            let is_there = words[2] == "COMMAND" && named.contains(&"--")
                || named.contains(letter)
                || spellings.clone().any(|word| named.contains(word))
                // Said beside --output.
                || words[2] == "--json" && section.contains("`-j` is `--output json`");
            assert!(is_there, "README.md: the table of options lacks {line}");
        }
    }
    for name in named.into_iter().filter(|name| *name != "--") {
        assert!(known.iter().any(|known| known == name), "README.md: {name} is no common option");
    }
}

/// The modules that may have unsafe code are those that docs/architecture.md names.
#[test]
fn unsafe_code_is_where_it_is_said_to_be() {
    let section = section_of("docs/architecture.md", "## Where unsafe code is");
    let (_, rest) = section.split_once("allowed in ").expect("a list");
    let (list, generated) = rest.split_once(", in the modules that ").expect("a list");
    let (mut whole, mut parts) = (Vec::new(), Vec::new());
    for directory in ["src/common", "src/common/symbols", "src/bin"] {
        for entry in fs::read_dir(root().join(directory)).expect("directory").flatten() {
            let path = entry.path();
            if !path.is_file() {
                continue;
            }
            let text = fs::read_to_string(&path).expect("text");
            let module = path.file_stem().expect("a name").to_string_lossy().into_owned();
            if text.contains("\n#![allow(unsafe_code") {
                whole.push(module);
            } else if text.contains("unsafe_code") {
                parts.push(module);
            }
        }
    }
    whole.sort();
    parts.sort();
    assert_eq!(quoted(list), whole);
    // `bpf!` is made in `tool`.
    assert_eq!(parts, ["shared", "tool"]);
    let named = quoted(generated);
    assert!(named.contains(&"bpf!") && named.contains(&"shared"), "{named:?}");
}

/// Fields are only ever added: tests/fields/TOOL holds every field that was ever released, as
/// `bpfscope docs fields TOOL` prints them.
#[test]
fn no_field_disappears_or_changes_its_type() {
    for tool in tools() {
        let recorded = fs::read_to_string(root().join(format!("tests/fields/{tool}")))
            .unwrap_or_else(|error| panic!("tests/fields/{tool}: {error}"));
        let now = stdout(&["docs", "fields", &tool]);
        for line in recorded.lines() {
            assert!(now.lines().any(|field| field == line), "{tool}: gone or changed: {line}");
        }
        for line in now.lines() {
            let known = recorded.lines().any(|field| field == line);
            assert!(known, "add to tests/fields/{tool}: {line}");
        }
    }
}

/// Each tool says what it does, what it costs and what it cannot see, and has a live test and the
/// ways that the kernels are expected to take.
#[test]
fn every_tool_has_tests_and_a_manual() {
    for tool in tools() {
        assert!(root().join(format!("tests/live/{tool}.rs")).is_file(), "{tool}: no live test");
        let expect = fs::read_to_string(root().join(format!("tests/expect/{tool}")));
        let expect = expect.unwrap_or_else(|error| panic!("tests/expect/{tool}: {error}"));
        for kernel in ["5.10", "6.1", "6.12", "newest"] {
            let known = expect.lines().any(|line| line.split_whitespace().next() == Some(kernel));
            assert!(known, "tests/expect/{tool} does not know {kernel}");
        }
        let manual = stdout(&["man", &tool]);
        for heading in ["DESCRIPTION", "EXAMPLES", "OVERHEAD", "LIMITS"] {
            let (_, text) = manual
                .split_once(&format!(".SH {heading}\n"))
                .unwrap_or_else(|| panic!("{tool}: {heading}"));
            assert!(text.lines().next().is_some_and(|line| line.len() > 20), "{tool}: {heading}");
        }
        // Worked examples: commands, and of one at least what it shows.
        let (_, examples) = manual.split_once(".SH EXAMPLES\n").expect("examples");
        let (examples, _) = examples.split_once("\n.SH ").expect("more sections");
        let shown = examples.split("\n.nf\n").skip(1).flat_map(|part| {
            part.split("\n.fi").next().unwrap_or(part).lines().collect::<Vec<_>>()
        });
        let (commands, output): (Vec<&str>, Vec<&str>) =
            shown.partition(|line| line.starts_with("# "));
        assert!(!commands.is_empty(), "{tool}: no example of a command");
        let mut output = output.iter().filter(|line| !line.trim().is_empty());
        assert!(output.next().is_some(), "{tool}: no example has its output");
    }
}

/// The manual says what each tool's own hooks need: those that the object has, and no others.
#[test]
fn manuals_say_what_the_hooks_need() {
    let kinds = [
        ("fentry", "fentry, fexit"),
        ("fexit", "fentry, fexit"),
        ("tp_btf", "BTF tracepoints"),
        ("raw_tp", "raw tracepoints"),
        ("iter", "iterators"),
        ("kprobe.multi", "kprobes, many at once"),
        ("kretprobe.multi", "kprobes, many at once"),
        ("kprobe", "kprobes"),
        ("kretprobe", "kprobes"),
        ("uprobe.multi", "probes in programs, many at once"),
        ("uretprobe.multi", "probes in programs, many at once"),
        ("uprobe", "probes in programs (uprobes)"),
        ("uretprobe", "probes in programs (uprobes)"),
        ("perf_event", "sampling of CPUs"),
    ];
    let needs: BTreeMap<String, BTreeMap<String, String>> = objects()
        .into_iter()
        .map(|(tool, path)| {
            let manual = stdout(&["man", &tool]);
            let (_, section) = manual.split_once(".SH \"KERNEL AND PRIVILEGES\"\n").expect("it");
            let (section, _) = section.split_once("\n.SH ").expect("more sections");
            assert!(section.contains("Linux 5.10") && section.contains("CAP_BPF"), "{tool}");
            let said: BTreeMap<String, String> = section
                .split("\n.TP\n\\fB")
                .skip(1)
                .map(|item| item.split_once("\\fR\n").expect("a name and its text"))
                .map(|(name, text)| (name.to_string(), text.to_string()))
                .collect();
            let open = ObjectBuilder::default().open_file(&path).expect("open");
            let mut has: Vec<&str> = open
                .progs()
                .map(|program| {
                    let section = program.section().to_string_lossy().into_owned();
                    let section = section.trim_start_matches('?');
                    let of = section.split('/').next().unwrap_or(section);
                    let kind = kinds.iter().find(|(known, _)| *known == of);
                    kind.unwrap_or_else(|| panic!("{tool}: {section}")).1
                })
                .collect();
            has.sort_unstable();
            has.dedup();
            assert_eq!(said.keys().map(String::as_str).collect::<Vec<_>>(), has, "{tool}");
            for (name, text) in &said {
                let by_perf = ["kprobes", "probes in programs (uprobes)", "sampling of CPUs"];
                let told = text.contains("perf_event_paranoid") && text.contains("CAP_SYS_ADMIN");
                assert_eq!(told, by_perf.contains(&name.as_str()), "{tool}: {name}: {text}");
            }
            (tool, said)
        })
        .collect();
    let says = |tool: &str, kind: &str, words: &str| {
        let text = &needs[tool][kind];
        assert!(text.contains(words), "{tool}: {kind}: {text}");
    };
    let dead = "without that the tool does not run";
    says("profile", "sampling of CPUs", dead);
    says("gethostlatency", "probes in programs (uprobes)", dead);
    says("memleak", "probes in programs (uprobes)", "with some arguments only");
    says("memleak", "kprobes", "does without them");
    says("funclatency", "probes in programs (uprobes)", "takes another way");
    says("funclatency", "kprobes", "with some arguments only");
    says("execsnoop", "kprobes", "with some arguments only");
    says("opensnoop", "kprobes", "takes another way");
    says("syncsnoop", "kprobes", "takes another way");
    says("fsdist", "fentry, fexit", "of a module they take CAP_SYS_ADMIN");
    says("fsslower", "kprobes", "of a module takes the same");
    assert!(!needs["opensnoop"]["fentry, fexit"].contains("module"));
}

/// No tool file names another tool's, and nothing but its own files names a tool.
#[test]
fn nothing_else_names_a_tool() {
    let mut shared: Vec<PathBuf> = vec![root().join("build.rs"), root().join("Cargo.toml")];
    for directory in ["src/common", "bpf", "bpf/shared"] {
        for entry in fs::read_dir(root().join(directory)).expect("directory").flatten() {
            let path = entry.path();
            let name = path.to_string_lossy().into_owned();
            let is_tool = name.ends_with(".bpf.c") && !name.ends_with("shared.bpf.c");
            if path.is_file() && !is_tool {
                shared.push(path);
            }
        }
    }
    let tools = tools();
    for path in shared {
        let text = fs::read_to_string(&path).expect("text");
        for (number, line) in text.lines().enumerate() {
            // A section of Cargo's own, [profile.dev], is no tool.
            let comment = line.trim_start().starts_with(['/', '*', '[']);
            for tool in &tools {
                let named = line
                    .split(|c: char| !c.is_alphanumeric() && c != '_')
                    .any(|w| w == tool.as_str());
                assert!(comment || !named, "{}:{}: {line}", path.display(), number + 1);
            }
        }
    }
}

/// The schemas of a tool's events and rows.
fn events_or_rows(tool: &str) -> Vec<Value> {
    let schema: Value = serde_json::from_str(&stdout(&["schema", tool])).expect("JSON");
    let all = schema["oneOf"].as_array().expect("records").clone();
    let is_own = |record: &Value| {
        let ty = &record["properties"]["type"]["const"];
        ty == "event" || ty == "row"
    };
    all.into_iter().filter(is_own).collect()
}

/// Lines of a tool's JSON as it could have written them: of each kind one record with values, and
/// one in which nothing could be read.
fn sample(tool: &str) -> Vec<Value> {
    let fields = stdout(&["docs", "fields", tool]);
    let times = json!({"ts": "2026-01-02T03:04:05.123456789+00:00", "boot_ns": "7000000000"});
    let record = |ty: &str, more: Value| {
        let mut record = json!({"type": ty});
        for (name, value) in times.as_object().into_iter().chain(more.as_object()).flatten() {
            record[name] = value.clone();
        }
        record
    };
    let mut lines = vec![record(
        "ready",
        json!({"schema": 1, "tool": tool, "version": "1", "way": "a", "programs": []}),
    )];
    for schema in events_or_rows(tool) {
        let ty = schema["properties"]["type"]["const"].as_str().expect("a type");
        let title = schema["title"].as_str().expect("a title");
        let (_, kind) = title.split_once(": ").expect("a kind");
        let mut full = json!({});
        let mut empty = json!({});
        for own in [&mut full, &mut empty] {
            if schema["properties"]["kind"].is_object() {
                own["kind"] = kind.into();
            }
            if ty == "row" {
                own["report"] = 0.into();
            }
        }
        for line in fields.lines().filter(|line| line.starts_with(&format!("{kind} "))) {
            let words: Vec<&str> = line.split(' ').collect();
            let (name, raw) = (words[1], format!("{}_raw", words[1]));
            if times.get(name).is_some() {
                continue;
            }
            empty[name] = Value::Null;
            if ["Errno", "Name", "Flags"].contains(&words[2]) {
                empty[&raw] = Value::Null;
                full[&raw] = 2.into();
            }
            full[name] = match words[2] {
                "Bool" => true.into(),
                "Int" => (-5).into(),
                "Uint" => 7.into(),
                "Id" => "18446744073709551615".into(),
                "String" => "a\nb\\".into(),
                "List" => json!(["a", "b c"]),
                "Errno" => "ENOENT".into(),
                "Name" | "Flags" => "TWO".into(),
                "Ip" => "192.0.2.1".into(),
                "Stack" => json!([{"addr": "1", "sym": "f", "off": 3, "module": null}]),
                other => panic!("{line}: a type that is not known here: {other}"),
            };
        }
        lines.push(record(ty, full));
        lines.push(record(ty, empty));
    }
    if lines.iter().any(|line| line["type"] == "row") {
        let start = times["ts"].clone();
        lines.push(record("report", json!({"report": 0, "start_ts": start})));
    }
    lines.push(record(
        "end",
        json!({"reason": "SIGINT", "events": 2, "filtered": 1, "lost": 0, "map_full": 0,
               "missed": null, "rate_limited": 0}),
    ));
    lines
}

/// Runs a tool with `--from -` on these lines.
fn from(tool: &str, lines: &str, args: &[&str]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_bpfscope"))
        .args([tool, "--from", "-"])
        .args(args)
        .env("TZ", "UTC")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawn");
    // It may have refused before it read anything.
    let _ = child.stdin.take().expect("piped").write_all(lines.as_bytes());
    child.wait_with_output().expect("wait")
}

fn lines_of(output: &Output) -> Vec<String> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{}: {stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).lines().map(String::from).collect()
}

/// What a tool has saved it shows again, in every form; as JSON it stays what it was.
#[test]
fn saved_records_are_shown_again() {
    let mut tried = 0;
    for tool in tools().iter().filter(|tool| !events_or_rows(tool).is_empty()) {
        let sample = sample(tool);
        let text: String = sample.iter().map(|line| format!("{line}\n")).collect();
        let shown: Vec<Value> = lines_of(&from(tool, &text, &["--output", "json"]))
            .iter()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let (end, before) = shown.split_last().expect("lines");
        let own = |lines: &[Value]| -> Vec<Value> {
            let mut own = lines.to_vec();
            own.retain(|line| line["type"] == "event" || line["type"] == "row");
            // Rows of a table are sorted.
            own.sort_by_key(ToString::to_string);
            own
        };
        assert_eq!(own(&shown), own(&sample), "{tool}");
        assert_eq!(before.len() + 1, sample.len(), "{tool}");
        assert_eq!((&end["type"], &end["filtered"]), (&"end".into(), &1.into()), "{tool}");
        tried += own(&shown).len();

        let columns = lines_of(&from(tool, &text, &["--color", "never"]));
        assert!(columns.iter().any(|line| line.contains('?')), "{tool}: {columns:?}");
        let csv = lines_of(&from(tool, &text, &["--output", "csv", "--fields", "ts,boot_ns"]));
        assert_eq!(csv[..2], ["ts,boot_ns", "2026-01-02T03:04:05.123456789+00:00,7000000000"]);

        // Filters, limits and other times.
        let none = from(tool, &text, &["--output", "json", "--filter", "boot_ns < 7000000000"]);
        let none = lines_of(&none);
        assert!(!none.iter().any(|line| line.contains("\"event\"") || line.contains("\"row\"")));
        let filtered = own(&sample).len() + 1;
        assert!(none.last().expect("end").contains(&format!("\"filtered\":{filtered}")), "{tool}");
        let args = ["--limit", "1", "--fields", "ts", "--time-format", "since-start", "--output"];
        let one = lines_of(&from(tool, &text, &[&args[..], &["json"]].concat()));
        assert_eq!(
            one.iter()
                .filter(|line| line.starts_with("{\"type\":\"event\"")
                    || line.starts_with("{\"type\":\"row\""))
                .count(),
            1,
            "{tool}: {one:?}"
        );
        let since = lines_of(&from(tool, &text, &[&args[..], &["columns"]].concat()));
        let is_zero =
            |line: &String| line.trim().parse::<f64>().is_ok_and(|seconds| seconds == 0.0);
        assert!(since.iter().any(is_zero), "{tool}: {since:?}");
    }
    assert!(tried > 0);
}

/// What a tool has saved in a PID namespace has the numbers of the host as well, and keeps them.
#[test]
fn saved_numbers_of_the_host_stay() {
    let mut tried = 0;
    for tool in tools() {
        let schemas = events_or_rows(&tool);
        let title = |record: &Value| {
            let kind = record["kind"].as_str().map(|kind| format!(": {kind}"));
            format!("{}{}", record["type"].as_str().expect("a type"), kind.unwrap_or_default())
        };
        let mut sample = sample(&tool);
        let plain: String = sample.iter().map(|line| format!("{line}\n")).collect();
        sample[0]["pid_namespace"] = 4_026_532_000_u64.into();
        let mut numbered = 0;
        for record in &mut sample {
            // The only kind of a tool is not named in its records.
            let of_it = |schema: &&Value| {
                let known = schema["title"].as_str().expect("a title");
                schema["properties"]["type"]["const"] == record["type"]
                    && (schemas.len() == 1 || known == title(record))
            };
            let Some(schema) = schemas.iter().find(of_it) else { continue };
            let full = record["boot_ns"].is_string()
                && record.as_object().expect("fields").values().filter(|v| v.is_null()).count()
                    == 0;
            for (name, number) in [("host_pid", 7001), ("host_tid", 7002)] {
                if schema["properties"][name].is_object() {
                    record[name] = if full { number.into() } else { Value::Null };
                    numbered += usize::from(full && name == "host_pid");
                }
            }
        }
        if numbered == 0 {
            continue;
        }
        tried += numbered;
        let text: String = sample.iter().map(|line| format!("{line}\n")).collect();
        let own = |lines: Vec<Value>| -> Vec<String> {
            let mut own = lines;
            own.retain(|line| line["type"] == "event" || line["type"] == "row");
            let mut own: Vec<String> = own.iter().map(ToString::to_string).collect();
            own.sort();
            own
        };
        let json = |text: &str, args: &[&str]| -> Vec<Value> {
            lines_of(&from(&tool, text, &[&["--output", "json"], args].concat()))
                .iter()
                .map(|line| serde_json::from_str(line).expect("JSON"))
                .collect()
        };
        assert_eq!(own(json(&text, &[])), own(sample.clone()), "{tool}");
        let chosen = own(json(&text, &["--filter", "host_pid=7001"]));
        assert_eq!(chosen.len(), numbered, "{tool}: {chosen:?}");
        assert!(chosen.iter().all(|line| line.contains("\"host_pid\":7001")), "{tool}: {chosen:?}");
        for form in ["columns", "csv"] {
            let args = ["--output", form, "--color", "never", "--fields", "host_pid"];
            let shown = lines_of(&from(&tool, &text, &args));
            let lines = shown.iter().filter(|line| line.contains("7001")).count();
            assert_eq!(lines, numbered, "{tool}: {shown:?}");
        }
        // Of what was saved elsewhere nothing is made up.
        let header = |text: &str| lines_of(&from(&tool, text, &["--output", "csv"]))[0].clone();
        assert!(header(&text).split(',').any(|name| name.starts_with("host_")), "{tool}");
        assert!(!header(&plain).contains("host_"), "{tool}: {}", header(&plain));
        assert!(own(json(&plain, &["--filter", "host_pid=7001"])).is_empty(), "{tool}");
    }
    assert!(tried > 0);
}

/// Where a tool has a table only with an option, there is nothing to sort without it.
#[test]
fn tables_of_an_option() {
    for args in [&["--sort", "connects"], &["--rows", "3"]] {
        usage_error(&[&["tcpconnect"][..], args].concat(), "--count");
    }
}

/// Every tool that has tables sorts them by any field and cuts them, in JSON and CSV as well.
#[test]
fn tables_are_sorted_and_cut() {
    let mut tried = 0;
    for tool in tools() {
        // Upstream has options of that name which mean something else.
        let options = stdout(&["docs", "options", &tool]);
        let has = |name: &str| {
            options
                .lines()
                .any(|line| line.starts_with("common") && line.split(' ').any(|word| word == name))
        };
        if !has("--sort") {
            assert!(!has("--rows"), "{tool}");
            continue;
        }
        usage_error(&[&tool, "--rows", "0"], "--rows");
        // A tool may have tables only with an option of its own.
        let error = from(&tool, "", &["--sort", "no_such_field"]);
        assert_eq!(error.status.code(), Some(2), "{tool}");
        assert!(String::from_utf8_lossy(&error.stderr).contains("no_such_field"), "{tool}");
        let mut lines = sample(&tool);
        let place = lines.iter().position(|line| line["type"] == "row").expect("a row");
        let row = lines.remove(place);
        // The one in which nothing could be read stays: it comes last.
        let fields = stdout(&["docs", "fields", &tool]);
        for line in fields.lines().filter(|line| line.ends_with(" Uint")) {
            let field = line.split(' ').nth(1).expect("a name");
            if row.get(field).is_none() {
                continue;
            }
            let mut all = lines.clone();
            for number in [5, 9, 7] {
                let mut row = row.clone();
                row[field] = number.into();
                all.insert(place, row);
            }
            let text: String = all.iter().map(|line| format!("{line}\n")).collect();
            let shown = |args: &[&str]| -> Vec<Value> {
                let args = [&["--output", "json", "--sort", field], args].concat();
                let lines = lines_of(&from(&tool, &text, &args));
                let lines = lines.iter().map(|line| serde_json::from_str(line).expect("JSON"));
                let mut rows: Vec<Value> = lines.collect();
                rows.retain(|line| line["type"] == "row");
                rows.iter().map(|row| row[field].clone()).collect()
            };
            assert_eq!(shown(&[]), [9.into(), 7.into(), 5.into(), Value::Null], "{tool} {field}");
            assert_eq!(shown(&["--rows", "2"]), [Value::from(9), 7.into()], "{tool} {field}");
            tried += 1;
        }
    }
    assert!(tried > 0);
}

/// The clock starts with the tool or with the first event.
#[test]
fn times_since_the_start_and_the_first_event() {
    let mut sample = sample("opensnoop");
    assert_eq!(sample[0]["ts"], "2026-01-02T03:04:05.123456789+00:00");
    let times = [("07", "9000000000"), ("08.5", "10500000000")];
    for (event, (seconds, boot)) in sample[1..3].iter_mut().zip(times) {
        assert_eq!(event["type"], "event");
        event["boot_ns"] = boot.into();
        event["ts"] = format!("2026-01-02T03:04:{seconds}+00:00").into();
    }
    // Two seconds before the first of them.
    sample[0]["ts"] = "2026-01-02T03:04:05+00:00".into();
    sample[0]["boot_ns"] = "7000000000".into();
    let text: String = sample.iter().map(|line| format!("{line}\n")).collect();
    let times = |format: &str| -> Vec<f64> {
        let args = ["--fields", "ts", "--timestamp", "--time-format", format];
        let lines = lines_of(&from("opensnoop", &text, &args));
        lines.iter().filter_map(|line| line.trim().parse().ok()).collect()
    };
    assert_eq!(times("since-first"), [0.0, 1.5]);
    assert_eq!(times("since-start"), [2.0, 3.5]);
}

/// As with getopt and argp: the beginning of a long name that only one has, and their help.
#[test]
fn long_names_may_be_abbreviated() {
    for tool in tools() {
        let help = stdout(&[&tool, "--help"]);
        for flag in ["-?", "--usage", "--hel"] {
            assert_eq!(stdout(&[&tool, flag]), help, "{tool} {flag}");
        }
        // --fields, --filter and --from.
        usage_error(&[&tool, "--f", "x"], "--f");
        usage_error(&[&tool, "--ready", "x"], "--ready-fd");
    }
}

/// A file that is another tool's, of another schema, damaged or cut.
#[test]
fn files_that_are_none_of_ours() {
    let refused = |lines: &str, status: i32, word: &str| {
        let output = from("opensnoop", lines, &[]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{lines}: {stderr}");
        assert!(stderr.lines().count() == 1 && stderr.contains(word), "{lines}: {stderr}");
    };
    let lines: Vec<String> = sample("opensnoop").iter().map(ToString::to_string).collect();
    let ready = &lines[0];
    refused(&ready.replace("opensnoop", "othersnoop"), 2, "othersnoop");
    refused(&ready.replace("\"schema\":1", "\"schema\":2"), 2, "schema");
    refused(&lines[1], 2, "line 1: the `ready` record is missing");
    refused(&format!("{ready}\n{{\"type\":"), 1, "line 2");
    refused(&format!("{ready}\n\n"), 1, "line 2");
    refused(&format!("{ready}\n[]\n"), 1, "line 2");
    let bad = lines[1].replace("\"pid\":7", "\"pid\":\"7\"");
    refused(&format!("{ready}\n{}\n{bad}\n", lines[1]), 1, "line 3: pid is not of its type");
    let bad = lines[1].replace("2026-01-02T", "yesterday");
    refused(&format!("{ready}\n{bad}\n"), 1, "line 2: ts is no time");
    refused(&format!("{ready}\n{{\"type\":\"row\"}}\n"), 1, "has no such record");
    // What is missing at the end is said; loss is, and counts for --strict.
    let cut = from("opensnoop", &format!("{ready}\n{}\n", lines[1]), &[]);
    assert!(cut.status.success());
    assert!(String::from_utf8_lossy(&cut.stderr).contains("no `end` record"));
    let lossy = lines.join("\n").replace("\"lost\":0", "\"lost\":3");
    let lossy = from("opensnoop", &lossy, &["--strict"]);
    assert_eq!(lossy.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&lossy.stderr).contains("lost 3"));
    // Options of the tool that only choose columns are fine; others are not.
    let all = lines.join("\n");
    let extended = lines_of(&from("opensnoop", &all, &["-e", "-U", "-T"]));
    assert!(extended[0].starts_with("TIME") && extended[0].contains("FLAGS"), "{extended:?}");
    let failed = from("opensnoop", &all, &["-x"]);
    assert_eq!(failed.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("--failed"));
}

/// What `docs fields` lists is in the schema, and the schema allows what it should.
#[test]
fn schemas_have_every_field() {
    for tool in tools() {
        let text = stdout(&["schema", &tool]);
        let schema: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        let records = schema["oneOf"].as_array().expect("records");
        for line in stdout(&["docs", "fields", &tool]).lines() {
            let (kind, rest) = line.split_once(' ').expect("a field");
            let name = rest.split(' ').next().expect("a name");
            let of = |record: &&Value| {
                record["title"].as_str().is_some_and(|title| title.ends_with(&format!(": {kind}")))
            };
            let record = records.iter().find(of).unwrap_or_else(|| panic!("{tool}: {line}"));
            let own = &record["properties"];
            let key = &own["key"]["properties"];
            assert!(own[name].is_object() || key[name].is_object(), "{tool}: {line}");
        }
        let few = stdout(&["schema", &tool, "--fields", "ts"]);
        let few: Value = serde_json::from_str(&few).expect("JSON");
        for record in few["oneOf"].as_array().expect("records") {
            let ty = &record["properties"]["type"]["const"];
            let fields = record["properties"].as_object().expect("fields");
            assert!((ty != "event" && ty != "row") || !fields.contains_key("boot_ns"), "{tool}");
        }
    }
}

/// The live tests hold each line against the schema: what is right passes, and what is not does
/// not.
#[test]
fn lines_are_held_against_the_schema() {
    for tool in tools() {
        let schema: Value = serde_json::from_str(&stdout(&["schema", &tool])).expect("JSON");
        for line in sample(&tool) {
            assert_eq!(schema::check(&schema, &line), Ok(()), "{tool}");
            let refused = |change: &dyn Fn(&mut Value)| {
                let mut bad = line.clone();
                change(&mut bad);
                assert!(schema::check(&schema, &bad).is_err(), "{tool}: {bad}");
            };
            refused(&|line| line["unknown"] = Value::Null);
            refused(&|line| line["boot_ns"] = 5.into());
            refused(&|line| line["ts"] = "yesterday".into());
            refused(&|line| line["type"] = "other".into());
            for name in line.as_object().expect("an object").keys() {
                refused(&|line| {
                    line.as_object_mut().expect("an object").remove(name);
                });
                refused(&|line| line[name] = json!({}));
            }
        }
    }
}

/// Runs a program on this input, and returns whether it went well, with what it said.
fn feed(program: &str, args: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("write");
    let output = child.wait_with_output().expect("wait");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// Manual pages are good roff, and have every option.
#[test]
fn manual_pages() {
    let mut pages = vec![("bpfscope".to_string(), stdout(&["man"]))];
    assert_eq!(pages[0].1, stdout(&["man", "bpfscope"]));
    pages.extend(tools().into_iter().map(|tool| (tool.clone(), stdout(&["man", &tool]))));
    for (name, page) in &pages {
        let (fine, said) = feed("mandoc", &["-T", "lint", "-W", "warning"], page);
        assert!(fine && said.is_empty(), "{name}: {said}");
        let (_, text) = feed("mandoc", &["-T", "ascii", "-O", "width=100"], page);
        // Bold and underlined are letters over letters here.
        let mut plain = String::new();
        for c in text.chars() {
            if c == '\u{8}' {
                plain.pop();
            } else {
                plain.push(c);
            }
        }
        for heading in ["NAME", "SYNOPSIS", "EXIT STATUS", "KERNEL AND PRIVILEGES", "SEE ALSO"] {
            assert!(plain.contains(&format!("\n{heading}\n")), "{name}: no {heading}");
        }
        if name == "bpfscope" {
            assert!(tools().iter().all(|tool| plain.contains(tool.as_str())), "{plain}");
            continue;
        }
        let help = stdout(&[name, "--help"]);
        let words = help.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        let options = words.filter(|word| word.starts_with("--"));
        for option in options.filter(|option| option.len() > 2) {
            assert!(plain.contains(option), "{name}: {option} is not in the manual");
        }
        for line in stdout(&["docs", "fields", name]).lines() {
            let field = line.split(' ').nth(1).expect("a field");
            assert!(plain.contains(field), "{name}: {field} is not in the manual");
        }
    }
}

/// Shells read the completions, and bash completes.
#[test]
fn completions() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&["completions", shell]);
        for tool in tools() {
            assert!(script.contains(&tool), "{shell}: {tool}");
        }
        let file = tempdir("completions").join(shell);
        fs::write(&file, &script).expect("write");
        let (fine, said) = feed(shell, &["-n", file.to_str().expect("UTF-8")], "");
        assert!(fine && said.is_empty(), "{shell}: {said}");
    }
    let complete = |words: &[&str]| -> Vec<String> {
        let script = stdout(&["completions", "bash"]);
        let line: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let call = format!(
            "COMP_WORDS=({}); COMP_CWORD={}; _bpfscope; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            line.join(" "),
            words.len() - 1
        );
        let (fine, said) = feed("bash", &["--norc"], &format!("{script}\n{call}\n"));
        assert!(fine, "{said}");
        said.lines().filter(|line| !line.is_empty()).map(String::from).collect()
    };
    assert_eq!(complete(&["opensnoop", "--du"]), ["--duration"]);
    assert_eq!(complete(&["/usr/sbin/opensnoop", "-x", "--full"]), ["--full-path"]);
    assert_eq!(complete(&["bpfscope", "opensnoop", "--du"]), ["--duration"]);
    assert_eq!(complete(&["bpfscope", "opens"]), ["opensnoop"]);
    assert_eq!(complete(&["bpfscope", "man", "opens"]), ["opensnoop"]);
    assert_eq!(complete(&["bpfscope", "compl"]), ["completions"]);
    assert_eq!(complete(&["opensnoop", "--output", "j"]), ["json"]);
    assert_eq!(complete(&["opensnoop", "-o", "c"]), ["columns", "csv"]);
    assert_eq!(complete(&["opensnoop", "--output", "=", "j"]), ["json"]);
    assert_eq!(complete(&["opensnoop", "--fields", "full"]), ["full_path"]);
    assert_eq!(complete(&["opensnoop", "--btf", "/etc/hostn"]), ["/etc/hostname"]);
    assert_eq!(complete(&["opensnoop", "--pid", ""]), [""; 0]);
    assert!(complete(&["opensnoop", "--", "bas"]).contains(&"bash".to_string()));
    assert_eq!(complete(&["bpf-opensnoop", "--du"]), [""; 0], "only where it is registered");
}

/// A kernel's package, made up: what its BTF names, and its configuration.
fn kernel_package(name: &str, btf: &[u8], config: &str) -> PathBuf {
    let root = tempdir(name);
    fs::create_dir_all(root.join("boot")).expect("directory");
    fs::write(root.join("boot/config-9.9-test"), config).expect("write");
    fs::write(root.join("boot/vmlinuz-9.9-test"), elf_with_btf(btf)).expect("write");
    root
}

/// BTF of these functions, tracepoints and structures, with one member each
/// (include/uapi/linux/btf.h).
fn btf(functions: &[String], tracepoints: &[String], members: &[(String, String)]) -> Vec<u8> {
    const STRUCT: u32 = 4;
    const TYPEDEF: u32 = 8;
    const FUNC: u32 = 12;
    let mut strings = vec![0u8];
    let mut types: Vec<u8> = Vec::new();
    let mut name = |name: &str| {
        let at = u32::try_from(strings.len()).expect("small");
        strings.extend(name.bytes());
        strings.push(0);
        at
    };
    let mut add = |words: &[u32]| types.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    for function in functions {
        add(&[name(function), FUNC << 24, 0]);
    }
    for tracepoint in tracepoints {
        add(&[name(&format!("btf_trace_{tracepoint}")), TYPEDEF << 24, 0]);
    }
    // By this one it is known that there are probes of many functions of a program at once.
    add(&[name("bpf_uprobe_multi_link"), STRUCT << 24, 0]);
    for (structure, member) in members {
        add(&[name(structure), STRUCT << 24 | 1, 0, name(member), 0, 0]);
    }
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("small");
    let mut out = vec![0x9f, 0xeb, 1, 0];
    for word in [24, 0, length(&types), length(&types), length(&strings)] {
        out.extend(word.to_le_bytes());
    }
    [out, types, strings].concat()
}

/// An ELF file with nothing but a section .BTF.
fn elf_with_btf(btf: &[u8]) -> Vec<u8> {
    let names = b"\0.BTF\0.shstrtab\0";
    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(64, 0);
    let (btf_at, names_at) = (64, 64 + btf.len());
    let headers_at = (names_at + names.len()).next_multiple_of(8);
    // Type EXEC, machine x86-64, version; section headers; their size, number and names.
    out[16..20].copy_from_slice(&[2, 0, 62, 0]);
    out[20] = 1;
    out[40..48].copy_from_slice(&(headers_at as u64).to_le_bytes());
    out[52..54].copy_from_slice(&64u16.to_le_bytes());
    out[58..64].copy_from_slice(&[64, 0, 3, 0, 2, 0]);
    out.extend_from_slice(btf);
    out.extend_from_slice(names);
    out.resize(headers_at, 0);
    out.resize(headers_at + 64, 0);
    for (name, kind, at, size) in [(1u32, 1u32, btf_at, btf.len()), (6, 3, names_at, names.len())] {
        out.extend(name.to_le_bytes());
        out.extend(kind.to_le_bytes());
        for word in [0u64, 0, at as u64, size as u64, 0, 1, 0] {
            out.extend(word.to_le_bytes());
        }
    }
    out
}

/// What is recorded of the verifier names programs that the tool has, on each of the kernels.
#[test]
fn recorded_verifier_counts_are_of_the_tools_own_programs() {
    for (tool, path) in objects() {
        let open = ObjectBuilder::default().open_file(path).expect("open");
        let programs: BTreeSet<String> =
            open.progs().map(|program| program.name().to_string_lossy().into_owned()).collect();
        let text = fs::read_to_string(root().join("tests/verifier").join(&tool)).expect(&tool);
        let mut kernels = BTreeSet::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let words: Vec<&str> = line.split(' ').collect();
            let [kernel, program, count] = words[..] else { panic!("{tool}: {line}") };
            assert!(programs.contains(program), "{tool} has no program {program}");
            assert!(count.parse::<u64>().is_ok(), "{tool}: {line}");
            kernels.insert(kernel);
        }
        assert_eq!(kernels, BTreeSet::from(["5.10", "6.1", "6.12", "newest"]), "{tool}");
    }
}

/// The doctor's records, each of them JSON, and its status.
fn doctor(args: &[&str]) -> (Vec<serde_json::Value>, Option<i32>) {
    let output = bpfscope(&[&["doctor", "-j"], args].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.is_empty(), "{args:?}: {stderr}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let records = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    (records, output.status.code())
}

fn tool_records(records: &[serde_json::Value]) -> Vec<&serde_json::Value> {
    records.iter().filter(|record| record["type"] == "tool").collect()
}

/// Functions and tracepoints that the programs of all tools attach to.
fn targets() -> (Vec<String>, Vec<String>) {
    let (mut functions, mut tracepoints) = (Vec::new(), Vec::new());
    for path in objects().values() {
        let open = ObjectBuilder::default().open_file(path).expect("open");
        for program in open.progs() {
            let section = program.section().to_string_lossy().into_owned();
            match section.trim_start_matches('?').split_once('/') {
                Some(("fentry" | "fexit" | "kprobe" | "kretprobe", name)) => {
                    functions.push(name.to_string());
                }
                Some(("iter", name)) => functions.push(format!("bpf_iter_{name}")),
                Some((_, name)) => {
                    tracepoints.push(name.rsplit('/').next().unwrap_or(name).to_string());
                }
                None => {}
            }
        }
    }
    for names in [&mut functions, &mut tracepoints] {
        names.sort();
        names.dedup();
    }
    (functions, tracepoints)
}

const CONFIG: &str = "CONFIG_BPF_SYSCALL=y\nCONFIG_BPF_EVENTS=y\nCONFIG_BPF_JIT=y\n\
                      CONFIG_FTRACE_SYSCALLS=y\n";
const TRAMPOLINES: &str = "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS=y\n";
const KPROBES: &str = "CONFIG_KPROBE_EVENTS=y\n";

/// Without privileges, every tool is said not to run, and why.
#[test]
fn doctor_runs_without_privileges() {
    let bare = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        if nix::unistd::geteuid().is_root() {
            command.args(["--bounding-set=-all", "--inh-caps=-all"]);
        } else {
            command = Command::new("env");
        }
        command.arg(env!("CARGO_BIN_EXE_bpfscope")).arg("doctor").args(args);
        command.output().expect("run")
    };
    for args in [&["-j"][..], &["-j", "--report"], &["-j", "--", "opensnoop", "-x"]] {
        let output = bare(args);
        assert_eq!(output.status.code(), Some(3), "{args:?}");
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let records: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
        assert_eq!((&records[0]["type"], &records[0]["schema"]), (&"doctor".into(), &1.into()));
        let named = |record: &serde_json::Value| record["reason"].to_string().contains("CAP_BPF");
        assert!(tool_records(&records).into_iter().all(named), "{text}");
        assert_eq!(text.contains("\"fact\""), args.contains(&"--report"));
        // Every field is documented.
        let manual = fs::read_to_string(root().join("docs/doctor.md")).expect("docs/doctor.md");
        for record in &records {
            let kind = record["type"].as_str().expect("a type");
            let (_, section) = manual.split_once(&format!("\n`{kind}`, ")).expect(kind);
            let section = section.split("\n`").next().expect("text");
            for field in record.as_object().expect("an object").keys() {
                assert!(
                    field == "type" || section.contains(&format!("| `{field}` |")),
                    "docs/doctor.md does not know {field} of {kind}"
                );
            }
            let check = format!("| `{}` |", record["name"].as_str().unwrap_or_default());
            assert!(kind != "check" || manual.contains(&check), "{check}");
        }
    }
    let text = String::from_utf8(bare(&[]).stdout).expect("UTF-8");
    for tool in tools() {
        let line = text.lines().find(|line| line.split(' ').next() == Some(&tool)).expect("a line");
        assert!(line.contains("does not run: ") && line.contains("CAP_PERFMON"), "{line}");
    }
}

#[test]
fn doctor_refuses_what_makes_no_sense() {
    usage_error(&["doctor", "no-such-tool"], "no-such-tool");
    usage_error(&["doctor", "--no-such-option"], "--no-such-option");
    usage_error(&["doctor", "--", "opensnoop", "--no-such-option"], "--no-such-option");
    usage_error(&["doctor", "--", "opensnoop", "--", "true"], "command");
    assert!(stdout(&["doctor", "--help"]).contains("Usage: bpfscope doctor"));
}

/// What a package has and lacks decides which way is judged to be taken.
#[test]
fn doctor_judges_a_kernel_by_its_package() {
    let (functions, tracepoints) = targets();
    let judge = |name: &str, btf: &[u8], config: &str| {
        let package = kernel_package(name, btf, config);
        let result = doctor(&["--kernel", package.to_str().expect("UTF-8")]);
        fs::remove_dir_all(package).expect("clean up");
        result
    };
    let config = [CONFIG, TRAMPOLINES, KPROBES].concat();

    // What tools ask of the kernel's types stands in no object, but in why they refuse a way.
    let (records, _) = judge("typeless", &btf(&functions, &tracepoints, &[]), &config);
    let members: BTreeSet<(String, String)> = tool_records(&records)
        .into_iter()
        .flat_map(|record| record["refused"].as_array().expect("an array"))
        .filter_map(|refused| {
            let reason = refused["reason"].as_str().expect("a reason");
            let (structure, member) = reason.rsplit_once(' ')?.1.split_once('.')?;
            reason.contains("has no").then(|| (structure.to_string(), member.to_string()))
        })
        .collect();
    assert!(
        members.contains(&("bpf_insn_aux_data".to_string(), "loop_inline_state".to_string())),
        "{members:?}"
    );
    let whole = btf(&functions, &tracepoints, &members.into_iter().collect::<Vec<_>>());

    let (records, status) = judge("whole", &whole, &config);
    assert_eq!((status, &records[0]["kernel"]), (Some(0), &"9.9-test".into()));
    for record in tool_records(&records) {
        assert_eq!(record["verdict"], "probably", "{record}");
        assert_eq!(record["refused"], serde_json::json!([]), "{record}");
    }

    let (records, status) = judge("empty", &btf(&[], &[], &[]), &config);
    assert_eq!(status, Some(3));
    // Probes in programs and sampling need none of it.
    let in_kernel = |record: &&serde_json::Value| {
        !["uprobe", "uprobe_hash", "perf"].iter().any(|way| record["way"] == *way)
    };
    for record in tool_records(&records).into_iter().filter(in_kernel) {
        assert_eq!((&record["verdict"], &record["way"]), (&"no".into(), &().into()), "{record}");
        assert!(record["reason"].as_str().expect("a reason").contains("has no"), "{record}");
    }

    // The same functions, and a kernel that cannot attach to them in the one way or the other.
    let way = |records: &[serde_json::Value], tool: &str| {
        let record = tool_records(records).into_iter().find(|record| record["tool"] == tool);
        record.expect("the tool").clone()
    };
    let kprobes = [CONFIG, KPROBES].concat();
    let (records, _) = judge("kprobes", &whole, &kprobes);
    let opensnoop = way(&records, "opensnoop");
    assert_eq!(opensnoop["way"], "kprobe");
    assert!(opensnoop["refused"].to_string().contains("DIRECT_CALLS"), "{opensnoop}");
    let (records, _) = judge("neither", &whole, CONFIG);
    assert_eq!(way(&records, "opensnoop")["way"], "rawtp");
    let (records, status) = judge("nothing", &whole, "CONFIG_BPF_SYSCALL=y\n");
    assert_eq!(status, Some(3));
    assert!(way(&records, "opensnoop")["reason"].to_string().contains("CONFIG_BPF_EVENTS"));
}

/// A kernel without types, or compressed in a way that is not read, is no crash and no guess.
#[test]
fn doctor_says_why_a_package_cannot_be_judged() {
    usage_error(&["doctor", "--kernel", "/no/such/directory"], "/no/such/directory");
    usage_error(&["doctor", "--kernel", "/proc", "--report"], "--report");
    let two = kernel_package("two", &btf(&[], &[], &[]), "");
    fs::copy(two.join("boot/vmlinuz-9.9-test"), two.join("boot/vmlinuz-9.8")).expect("copy");
    usage_error(&["doctor", "--kernel", two.to_str().expect("UTF-8")], "9.8, 9.9-test");
    fs::remove_dir_all(two).expect("clean up");
    let package = kernel_package("odd", &btf(&[], &[], &[]), "");
    let image = package.join("boot/vmlinuz-9.9-test");
    let directory = package.to_str().expect("UTF-8");
    let try_with = |bytes: &[u8]| {
        fs::write(&image, bytes).expect("write");
        let output = bpfscope(&["doctor", "--kernel", directory]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.stdout.is_empty() && stderr.lines().count() == 1, "{stderr}");
        (output.status.code(), stderr)
    };
    let mut untyped = elf_with_btf(&btf(&[], &[], &[]));
    let at = untyped.windows(5).rposition(|window| window == b".BTF\0").expect("the name");
    untyped[at..at + 4].copy_from_slice(b".xyz");
    let (status, stderr) = try_with(&untyped);
    assert!(status == Some(3) && stderr.contains("CONFIG_DEBUG_INFO_BTF"), "{stderr}");
    let (status, stderr) = try_with(b"\x02\x21\x4c\x18 and so on");
    assert!(status == Some(1) && stderr.contains("lz4"), "{stderr}");
    let (status, stderr) = try_with(b"\xfd7zXZ\0 and not much more");
    assert!(status == Some(1) && stderr.contains("xz"), "{stderr}");
    let (status, _) = try_with(b"");
    assert_eq!(status, Some(1));
    fs::remove_dir_all(package).expect("clean up");
}

fn tempdir(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("bpfscope-{}-{name}", std::process::id()));
    fs::create_dir_all(&path).expect("directory");
    path
}

/// A system with these packages to be had, as scripts/setup sees it through apt: what it installs,
/// whether it then has a Rust that is new enough, and what it says.
struct System {
    directory: PathBuf,
}

impl System {
    /// `apt` has a line `PACKAGE VERSION` for each package that could be installed.
    fn with(name: &str, apt: &str) -> Self {
        let directory = tempdir(name);
        let program = |name: &str, text: &str| {
            let path = directory.join("bin").join(name);
            fs::write(&path, format!("#!/bin/bash\nhere={}\n{text}\n", directory.display()))
                .expect("write");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("permissions");
        };
        fs::create_dir_all(directory.join("bin")).expect("directory");
        fs::write(directory.join("apt"), apt).expect("write");
        // Nothing else is found: this machine may have rustup.
        for name in "awk bash cat cp env grep head ln mkdir sed sort tail tr".split(' ') {
            let there = ["/usr/bin", "/bin"].map(|at| Path::new(at).join(name));
            let there = there.iter().find(|path| path.exists()).expect(name);
            symlink(there, directory.join("bin").join(name)).expect("link");
        }
        // Everything but Rust is there.
        program(
            "dpkg-query",
            "sed -n 's/^build=(\\(.*\\))$/\\1/p' scripts/setup | tr ' ' '\\n' | sed 's/.*/ii  &, /'",
        );
        program("sudo", "exec \"$@\"");
        program(
            "apt-cache",
            "case $1 in
            policy) version=$(awk -v p=\"$2\" '$1 == p { print $2 }' $here/apt)
                echo \"$2:\"; echo '  Installed: (none)'; echo \"  Candidate: ${version:-(none)}\" ;;
            pkgnames) awk -v p=\"$2\" 'index($1, p) == 1 { print $1 }' $here/apt ;;
            esac",
        );
        // What is installed is noted; the distribution's own Rust is then of the version it has.
        program(
            "apt-get",
            "echo \"apt-get $*\" >>$here/done
            [[ \" $* \" == *' install '* ]] || exit 0
            for package in \"$@\"; do case $package in
                rustc) awk '$1 == \"rustc\" { print $2 }' $here/apt >$here/rust ;;
                rustup) cp $here/rustup.kept $here/bin/rustup ;;
            esac; done",
        );
        program(
            "rustup.kept",
            "echo \"rustup $*\" >>$here/done
            [[ $1 != default ]] || echo 1.99.0 >$here/rust",
        );
        fs::rename(directory.join("bin/rustup.kept"), directory.join("rustup.kept")).expect("move");
        program(
            "cargo",
            "[[ -s $here/rust ]] || exit 1\necho \"cargo $(cat $here/rust) (0 2026-01-01)\"",
        );
        Self { directory }
    }

    /// Runs it: whether it went well, what it did, what it said.
    fn setup(&self) -> (bool, String, String) {
        let _ = fs::remove_file(self.directory.join("done"));
        let output = Command::new(root().join("scripts/setup"))
            .arg("build")
            .current_dir(root())
            .env("PATH", self.directory.join("bin"))
            .env("CARGO_HOME", self.directory.join("cargo"))
            .output()
            .expect("scripts/setup");
        let done = fs::read_to_string(self.directory.join("done")).unwrap_or_default();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), done, stderr)
    }
}

impl Drop for System {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Where Rust comes from on systems that have none: the distribution's own, a newer one beside it,
/// rustup, or nowhere. Run again, it does nothing.
#[test]
fn setup_finds_a_rust_that_is_new_enough() {
    // Debian's next, and Ubuntu's newest.
    let system = System::with("setup-own", "rustc 1.90.0+dfsg1-1\ncargo 1.90.0\nrustup 1.27\n");
    let (fine, done, stderr) = system.setup();
    assert!(fine && done.contains("cargo rustc") && !done.contains("rustup"), "{done}{stderr}");
    assert_eq!(system.setup(), (true, String::new(), String::new()));

    // Debian 13: rustup takes nobody's Rust away.
    let system = System::with("setup-rustup", "rustc 1.85.0+dfsg3-1\ncargo 1.85.0\nrustup 1.27\n");
    let (fine, done, stderr) = system.setup();
    assert!(fine && done.contains("--no-remove rustup\n"), "{done}{stderr}");
    assert!(done.contains("rustup toolchain install") && done.contains("rustup default stable"));
    assert_eq!(system.setup(), (true, String::new(), String::new()));

    // Debian 12: neither, in one sentence.
    let system = System::with("setup-none", "rustc 1.63.0+dfsg1-2\ncargo 0.66.0\n");
    let (fine, done, stderr) = system.setup();
    assert!(!fine && !done.contains("install"), "{done}");
    assert!(stderr.lines().count() == 1 && stderr.contains("install it with rustup"), "{stderr}");

    // Ubuntu: the newest of several; its programs are not where others' are.
    let apt = "rustc 1.75.0\ncargo 1.75.0\nrustc-1.89 1.89\nrustc-1.100 1.100\nrustc-1.76 1.76\n\
               cargo-1.89 1.89\ncargo-1.100 1.100\nrustc-1.89-doc 1.89\nrustup 1.26\n";
    let system = System::with("setup-versions", apt);
    let (_, done, stderr) = system.setup();
    assert!(done.contains("install --no-install-recommends cargo-1.100 rustc-1.100\n"), "{done}");
    assert!(!done.contains("rustup"), "{done}{stderr}");

    // An old one that somebody has installed is said to be in the way, and left alone.
    let system = System::with("setup-old", "rustc 1.75.0\ncargo 1.75.0\n");
    fs::write(system.directory.join("rust"), "1.75.0").expect("write");
    let (fine, done, stderr) = system.setup();
    assert!(!fine && !done.contains("install"), "{done}");
    assert!(stderr.lines().count() == 1 && stderr.contains("is 1.75: "), "{stderr}");
}
