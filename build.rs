// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Finds every tool (`bpf/NAME.bpf.c` with `src/bin/NAME.rs` or `src/bin/NAME/main.rs`), compiles
//! its kernel side and describes it to Rust:
//!
//! * `OUT_DIR/NAME.rs`: the skeleton under uniform names, for the `bpf!` macro;
//! * `OUT_DIR/shared.rs`: the structs that `src/common` shares with every tool;
//! * `OUT_DIR/tools.rs`: every tool as a module and a table of them, for the multi-call binary.
//!
//! `CLANG` names another compiler.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::anyhow;
use anyhow::ensure;
use libbpf_cargo::SkeletonBuilder;

fn main() -> Result<()> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let vmlinux = root.join("vmlinux").join(&arch);
    ensure!(
        vmlinux.join("vmlinux.h").is_file(),
        "there is no vmlinux/{arch}/vmlinux.h: bpfscope does not know this architecture yet"
    );

    // Not src/bin: editing the user side must not rebuild the kernel side.
    for watched in ["bpf", "vmlinux", "build.rs"] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo::rerun-if-env-changed=CLANG");

    let compiler = Compiler {
        clang: env::var_os("CLANG").unwrap_or_else(|| "clang".into()).into(),
        args: vec![
            // v3 has 32-bit jumps; what it also has, fetching atomics, 5.10 refuses: see
            // docs/conventions.md and tests/cli.rs.
            "-mcpu=v3".to_string(),
            "-Wall".to_string(),
            "-Wno-unused-function".to_string(),
            // DWARF never reaches the object; this keeps paths of this machine out of BTF.
            format!("-ffile-prefix-map={}=.", root.display()),
            format!("-I{}", vmlinux.display()),
            format!("-I{}", root.join("bpf").display()),
            // <bpf/usdt.bpf.h> wants <linux/errno.h>, which wants the multiarch <asm/errno.h>.
            format!("-idirafter/usr/include/{arch}-linux-gnu"),
        ],
        depends: vec![vmlinux.join("vmlinux.h"), root.join("build.rs")],
    };

    let shared = compiler.skeleton(&root.join("bpf/shared/shared.bpf.c"), &out)?;
    fs::write(out.join("shared.rs"), shared)?;

    let mut tools = Vec::new();
    for entry in fs::read_dir(root.join("bpf"))? {
        let source = entry?.path();
        let file = source.file_name().and_then(|n| n.to_str()).unwrap_or("");
        if let Some(name) = file.strip_suffix(".bpf.c") {
            tools.push((name.to_string(), source.clone()));
        }
    }
    tools.sort();

    let mut modules = String::new();
    let mut table = String::new();
    for (name, source) in &tools {
        let user_side = [
            root.join("src/bin").join(format!("{name}.rs")),
            root.join("src/bin").join(name).join("main.rs"),
        ]
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| anyhow!("bpf/{name}.bpf.c has no src/bin/{name}.rs"))?;

        let skeleton = compiler.skeleton(source, &out)?;
        fs::write(out.join(format!("{name}.rs")), skeleton)?;
        writeln!(modules, "#[path = {user_side:?}]\n#[allow(dead_code)]\nmod {name};")?;
        writeln!(table, "    bpfscope::multi::Entry::of::<{name}::Args>(),")?;
    }
    fs::write(
        out.join("tools.rs"),
        format!(
            "{modules}\n/// Every tool of the suite, by name.\n\
             pub static TOOLS: &[bpfscope::multi::Entry] = &[\n{table}];\n"
        ),
    )?;
    live_tests(&root, &out)
}

/// Writes `OUT_DIR/live_tests.rs`: every file of tests/live as a module, and all their cases. A
/// new file is found when bpf/ changes, which a new tool does; tests/live/main.rs checks the list.
fn live_tests(root: &Path, out: &Path) -> Result<()> {
    let mut modules = String::new();
    let mut cases = String::new();
    let mut names: Vec<PathBuf> = match fs::read_dir(root.join("tests/live")) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        // Not in a packaged source without tests.
        Err(_) => Vec::new(),
    };
    names.sort();
    for path in names {
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if name != "main" && path.extension().is_some_and(|e| e == "rs") {
            writeln!(modules, "#[path = {path:?}]\nmod {name};")?;
            writeln!(cases, "    ({name:?}, {name}::CASES),")?;
        }
    }
    let table = format!("static ALL: &[(&str, &[support::Case])] = &[\n{cases}];\n");
    fs::write(out.join("live_tests.rs"), modules + &table)?;
    Ok(())
}

struct Compiler {
    clang: PathBuf,
    args: Vec<String>,
    depends: Vec<PathBuf>,
}

impl Compiler {
    /// Compiles `source` unless its object is newer than everything it was made from, and returns
    /// the Rust text that describes it.
    fn skeleton(&self, source: &Path, out: &Path) -> Result<String> {
        let file = source.file_name().and_then(|n| n.to_str()).unwrap_or("");
        let name = file.strip_suffix(".bpf.c").unwrap_or(file);
        // libbpf-cargo takes names in the generated code from the object file's name.
        let object = out.join(format!("{name}.o"));
        let depfile = out.join(format!("{name}.d"));
        let skeleton = out.join(format!("{name}.skel.rs"));

        if !self.is_fresh(&skeleton, &depfile) {
            let mut args = self.args.clone();
            args.extend(["-MD".into(), "-MF".into(), depfile.display().to_string()]);
            SkeletonBuilder::new()
                .source(source)
                .obj(&object)
                .clang(&self.clang)
                .clang_args(args)
                // Our own formatting does not matter in OUT_DIR, and rustfmt may be missing.
                .rustfmt("no-rustfmt")
                .reference_obj(true)
                .build_and_generate(&skeleton)
                .with_context(|| format!("bpf/{file}"))?;
        }

        let text = fs::read_to_string(&skeleton)?;
        describe(name, &skeleton, &text)
    }

    fn is_fresh(&self, product: &Path, depfile: &Path) -> bool {
        let modified =
            |path: &Path| -> Option<SystemTime> { fs::metadata(path).ok()?.modified().ok() };
        let (Some(made), Ok(depends)) = (modified(product), fs::read_to_string(depfile)) else {
            return false;
        };
        let (_, listed) = depends.split_once(':').unwrap_or(("", ""));
        listed
            .split_whitespace()
            .filter(|word| *word != "\\")
            .map(PathBuf::from)
            .chain(self.depends.iter().cloned())
            // libbpf's headers are unpacked to a directory that is gone again.
            .filter(|path| !path.to_string_lossy().contains("/bpf/src/bpf/"))
            .all(|path| modified(&path).is_some_and(|t| t <= made))
    }
}

/// The skeleton under the names that every tool uses, and its structs as plain data.
fn describe(name: &str, skeleton: &Path, text: &str) -> Result<String> {
    let mut camel = String::new();
    for word in name.split('_') {
        let mut letters = word.chars();
        camel.extend(letters.next().map(|c| c.to_ascii_uppercase()));
        camel.extend(letters);
    }
    let mut rust = format!(
        "include!({skeleton:?});\n\
         pub use self::Open{camel}Skel as OpenSkel;\n\
         pub use self::{camel}Skel as Skel;\n\
         /// The skeleton of this tool, for the runner.\n\
         pub struct Object;\n\
         impl ::bpfscope::tool::Bpf for Object {{\n\
             const NAME: &'static str = {name:?};\n\
             type Builder = self::{camel}SkelBuilder;\n\
         }}\n"
    );
    if name == "shared" {
        rust = format!("include!({skeleton:?});\n");
    }
    // EXPORT_STRUCT(x) leaves a variable `export_x`: these are the structs that user space decodes.
    for word in text.split(|c: char| !c.is_alphanumeric() && c != '_') {
        let Some(ident) = word.strip_prefix("export_") else { continue };
        let safety = "// SAFETY: generated from a C struct of bpf/ of integers and arrays of \
                      them, for which every bit pattern is valid.\n";
        let line = format!("{safety}unsafe impl ::plain::Plain for types::{ident} {{}}\n");
        if text.contains(&format!("pub struct {ident} {{")) && !rust.contains(&line) {
            rust.push_str(&line);
        }
    }
    Ok(rust)
}
