// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! What a tool has of the one whose name it bears, and which test would notice if it were gone:
//! tests/parity/TOOL names every option and every column of upstream's, and for each a test in
//! which it changes the result. Here is checked that all of that exists, and that no option of the
//! tool's own is without a test. That a test does test what it is named for, only its reader can
//! say.
//!
//! Lines, beside empty ones and comments (#):
//!
//! ```text
//! option LETTER LONG : TEST[; TEST…]     -p --pid; - for what it lacks; for what is given by its
//!                                        place, - and its name in the help (INTERVAL)
//! column HEADER : TEST[; TEST…]
//! extra FREE TEXT : TEST[; TEST…]        behaviour that is neither
//! refused LETTER LONG : REASON           upstream's option that cannot be had
//! ```
//!
//! TEST is FILE::CASE, a case of tests/live/FILE.rs, or cli::FUNCTION, a test of tests/cli.rs.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn lines_of(args: &[&str]) -> Vec<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_bpfscope")).args(args).output().expect("run");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).expect("UTF-8").lines().map(String::from).collect()
}

fn tools() -> Vec<String> {
    let name = |line: &String| line.split(' ').next().expect("a name").to_string();
    lines_of(&["list"]).iter().map(name).collect()
}

/// An option as `bpfscope docs options` prints it.
struct Opt {
    is_own: bool,
    /// With its dash; `-` where it has none.
    letter: String,
    /// Its long names with their dashes, or the name of a value that is given by its place.
    names: Vec<String>,
}

impl Opt {
    fn parse(line: &str) -> Self {
        let words: Vec<&str> = line.split(' ').collect();
        let [whose @ ("own" | "common"), letter, names @ ..] = &words[..] else {
            panic!("not an option: {line}");
        };
        let names = names.iter().map(|name| (*name).to_string()).collect();
        Self { is_own: *whose == "own", letter: (*letter).to_string(), names }
    }

    fn is(&self, letter: &str, name: &str) -> bool {
        self.letter == letter
            && (self.names.iter().any(|known| known == name)
                || name == "-" && self.names.is_empty())
    }
}

/// What a tool has.
struct Has {
    options: Vec<Opt>,
    columns: Vec<String>,
}

/// Every test by its name, `FILE::CASE`.
fn tests() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let read = |path: &Path| fs::read_to_string(path).expect("a source file");
    for entry in fs::read_dir(root().join("tests/live")).expect("tests/live").flatten() {
        let path = entry.path();
        let file = path.file_stem().and_then(|stem| stem.to_str()).expect("UTF-8");
        all.extend(cases(&read(&path)).iter().map(|case| format!("{file}::{case}")));
    }
    let functions = functions(&read(&root().join("tests/cli.rs")));
    all.extend(functions.iter().map(|function| format!("cli::{function}")));
    all
}

/// The names of the cases that a file of live tests lists, whichever way they are written down.
fn cases(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    for start in ["Case::new(", "Case::alone("] {
        for rest in source.split(start).skip(1) {
            // Behind the constructors' own definitions stands no text.
            let Some(rest) = rest.trim_start().strip_prefix('"') else { continue };
            names.extend(rest.split('"').next().map(String::from));
        }
    }
    names
}

/// The names of the functions behind #[test].
fn functions(source: &str) -> Vec<String> {
    let tests = source.split("#[test]\nfn ").skip(1);
    tests.filter_map(|rest| rest.split('(').next().map(String::from)).collect()
}

/// All that is wrong with a file of tests/parity.
fn wrongs(text: &str, has: &Has, tests: &BTreeSet<String>) -> Vec<String> {
    let mut wrongs = Vec::new();
    let mut named: Vec<(String, String)> = Vec::new();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut wrong = |what: String| wrongs.push(format!("line {}: {what}", number + 1));
        let Some((what, why)) = line.split_once(" : ") else {
            wrong(format!("'{line}' is no line of such a file"));
            continue;
        };
        let (what, why) = (what.trim(), why.trim());
        if seen.insert(what.into(), number).is_some() {
            wrong(format!("'{what}' stands there twice"));
        }
        let words: Vec<&str> = what.split_whitespace().collect();
        match words[..] {
            ["option", letter, name] => {
                if !has.options.iter().any(|option| option.is(letter, name)) {
                    wrong(format!("there is no option {letter} {name}"));
                }
                named.push((letter.into(), name.into()));
            }
            ["refused", letter, name] => {
                if has.options.iter().any(|option| option.is_own && option.is(letter, name)) {
                    wrong(format!("{letter} {name} is not refused"));
                }
                if why.is_empty() {
                    wrong("a refusal needs a reason".into());
                }
                continue;
            }
            ["column", _, ..] => {
                let header = words[1..].join(" ");
                if !has.columns.contains(&header) {
                    wrong(format!("there is no column {header}: {:?}", has.columns));
                }
            }
            ["extra", _, ..] => {}
            _ => {
                wrong(format!("'{what}' is neither option, column, extra nor refused"));
                continue;
            }
        }
        for test in why.split(';').map(str::trim) {
            if !tests.contains(test) {
                wrong(format!("there is no test '{test}'"));
            }
        }
    }
    for option in has.options.iter().filter(|option| option.is_own) {
        if !named.iter().any(|(letter, name)| option.is(letter, name)) {
            wrongs.push(format!("no line for {} {}", option.letter, option.names.join(" ")));
        }
    }
    wrongs
}

#[test]
fn every_option_and_column_has_a_test() {
    let tests = tests();
    let mut all = Vec::new();
    for tool in tools() {
        let path = format!("tests/parity/{tool}");
        let Ok(text) = fs::read_to_string(root().join(&path)) else {
            all.push(format!("there is no {path}"));
            continue;
        };
        let options = lines_of(&["docs", "options", &tool]);
        let has = Has {
            options: options.iter().map(|line| Opt::parse(line)).collect(),
            columns: lines_of(&["docs", "columns", &tool]),
        };
        all.extend(wrongs(&text, &has, &tests).iter().map(|wrong| format!("{path}: {wrong}")));
    }
    assert!(all.is_empty(), "\n{}", all.join("\n"));
}

/// What is lost is counted by common code, which each tool has to call: those that show events have
/// a test of it under this name.
#[test]
fn every_stream_has_a_test_of_its_losses() {
    let tests = tests();
    let mut streams = 0;
    for tool in tools() {
        let schema = lines_of(&["schema", &tool]).join("\n");
        let schema: serde_json::Value = serde_json::from_str(&schema).expect("JSON");
        let records = schema["oneOf"].as_array().expect("records");
        let types = records.iter().map(|record| &record["properties"]["type"]["const"]);
        // What a tool shows unless it is told otherwise comes first.
        let own =
            types.into_iter().find(|ty| ["event", "row", "histogram"].iter().any(|own| ty == own));
        if own.is_some_and(|own| own == "event") {
            assert!(tests.contains(&format!("{tool}::what does not fit is counted")), "{tool}");
            streams += 1;
        }
    }
    assert!(streams > 0);
}

/// Files of tools that are gone would look as if something were tested.
#[test]
fn every_file_is_of_a_tool() {
    let tools = tools();
    for entry in fs::read_dir(root().join("tests/parity")).expect("tests/parity").flatten() {
        let name = entry.file_name().into_string().expect("UTF-8");
        assert!(tools.contains(&name), "tests/parity/{name}");
    }
}

#[test]
fn what_is_wrong_is_said() {
    let has = Has {
        options: ["own -q --quick --fast", "own - INTERVAL", "common -p --pid", "common - --limit"]
            .map(Opt::parse)
            .into(),
        columns: ["PID".into(), "LAT(ms)".into()].into(),
    };
    let tests = ["a::one", "a::more words", "cli::a_function"].map(String::from).into();
    let of = |text: &str| wrongs(text, &has, &tests);
    let right = "# A comment.\n\noption -q --quick : a::one\noption - INTERVAL : a::one\n";
    let more = "option -p --pid : a::one; cli::a_function\ncolumn LAT(ms) : a::more words\n\
                extra anything : a::one\nrefused -x --odd : nobody can\n";
    assert_eq!(of(&format!("{right}{more}")), [""; 0]);
    assert_eq!(of(&right.replace("--quick", "--fast")), [""; 0]);
    for (line, said) in [
        ("option -z --quick : a::one", "no option -z --quick"),
        ("option - --quick : a::one", "no option - --quick"),
        ("option -q --slow : a::one", "no option -q --slow"),
        ("option - --pid : a::one", "no option - --pid"),
        ("option - COUNT : a::one", "no option - COUNT"),
        ("column COMM : a::one", "no column COMM"),
        ("column PID : a::two", "no test 'a::two'"),
        ("column PID : a::one; ", "no test ''"),
        ("extra anything : cli::another", "no test 'cli::another'"),
        ("column PID : a::one\ncolumn PID : a::one", "twice"),
        ("refused -q --quick : never", "-q --quick is not refused"),
        ("column PID", "no line of such a file"),
        ("columns PID : a::one", "neither option"),
    ] {
        let wrongs = of(&format!("{right}{line}\n"));
        assert!(wrongs.len() == 1 && wrongs[0].contains(said), "{line}: {wrongs:?}");
    }
    assert_eq!(of("option -q --quick : a::one\n"), ["no line for - INTERVAL"]);
    assert_eq!(of("option - INTERVAL : a::one\n"), ["no line for -q --quick --fast"]);
}

#[test]
fn tests_are_found_in_sources() {
    let source = "pub const fn new(name: &str) {}\n\
                  const CASES: &[Case] = &[\n    Case::new(\"one\", one),\n    Case::alone(\n        \
                  \"a long name\",\n        long,\n    ),\n];\n";
    assert_eq!(cases(source), ["one", "a long name"]);
    assert_eq!(functions("fn no() {}\n\n#[test]\nfn yes() {}\n"), ["yes"]);
    // And in the real ones.
    let all = tests();
    assert!(all.contains("common::a brake") && all.contains("cli::every_object_opens"), "{all:?}");
}
