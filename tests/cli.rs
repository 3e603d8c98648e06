// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! What can be asked of every tool without privileges: its command line, its objects, and that the
//! generated documentation is up to date.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;

use libbpf_rs::ObjectBuilder;

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
        usage_error(&[tool, "--no-such-option"], "--no-such-option");
        usage_error(&[tool, "--output", "xml"], "xml");
        usage_error(&[tool, "--fields", "no_such_field"], "no_such_field");
        usage_error(&[tool, "--cgroup", "/no/such/cgroup"], "/no/such/cgroup");
        usage_error(&[tool, "--btf", "/no/such/file"], "/no/such/file");
        usage_error(&[tool, "--btf", "/etc/hostname"], "BTF");
        usage_error(&[tool, "--ready-fd", "1"], "--ready-fd");
        usage_error(&[tool, "--uid", "no-such-user"], "no-such-user");
        usage_error(&[tool, "--comm", "a-name-of-more-than-fifteen-bytes"], "15");
        for option in ["--pid", "--tid", "--ppid", "--limit", "--duration", "--buffer-size"] {
            for value in ["abc", "5x", "0", ""] {
                usage_error(&[tool, option, value], option);
            }
            usage_error(&[tool, &format!("{option}=-1")], option);
        }
    }
    usage_error(&[], "which tool");
    usage_error(&["no-such-tool"], "no-such-tool");
    usage_error(&["docs", "nonsense"], "docs");
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
            assert!(fixed > 0 || map.name() == "events", "{tool}: {:?}", map.name());
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
        let manual = stdout(&["docs", "manual", &tool]);
        for heading in ["DESCRIPTION", "EXAMPLES", "OVERHEAD", "LIMITS"] {
            let (_, text) =
                manual.split_once(heading).unwrap_or_else(|| panic!("{tool}: {heading}"));
            assert!(text.lines().nth(1).is_some_and(|line| line.len() > 20), "{tool}: {heading}");
        }
    }
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
    for path in shared {
        let text = fs::read_to_string(&path).expect("text");
        for (number, line) in text.lines().enumerate() {
            // A section of Cargo's own, [profile.dev], is no tool.
            let comment = line.trim_start().starts_with(['/', '*', '[']);
            for tool in tools() {
                let named =
                    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == tool);
                assert!(comment || !named, "{}:{}: {line}", path.display(), number + 1);
            }
        }
    }
}

fn tempdir(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("bpfscope-{}-{name}", std::process::id()));
    fs::create_dir_all(&path).expect("directory");
    path
}
