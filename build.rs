// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Finds every tool (`bpf/NAME.bpf.c` with `src/bin/NAME.rs` or `src/bin/NAME/main.rs`), compiles
//! its kernel side and describes it to Rust:
//!
//! * `OUT_DIR/NAME.rs`: the skeleton under uniform names, for the `bpf!` macro; with the object
//!   packed, and unpacked when a tool starts (`src/common/packed.rs`);
//! * `OUT_DIR/shared.rs`: the structs that `src/common` shares with every tool;
//! * `OUT_DIR/tools.rs`: every tool as a module and a table of them, for the multi-call binary.
//!
//! `CLANG` names another compiler. With `BPFSCOPE_LINE_INFO` set, the objects keep what says which
//! line of C each instruction is of, so that what the verifier says is easier to read.

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
    println!("cargo::rerun-if-env-changed=BPFSCOPE_LINE_INFO");

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
        line_info: env::var_os("BPFSCOPE_LINE_INFO").is_some(),
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
    /// Whether objects say which line each instruction is of.
    line_info: bool,
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
        let lines = if self.line_info { ".lines" } else { "" };
        let skeleton = out.join(format!("{name}{lines}.skel.rs"));
        let packed = out.join(format!("{name}{lines}.packed"));

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
            self.pack(&object, &skeleton, &packed).with_context(|| format!("bpf/{file}"))?;
        }

        let text = fs::read_to_string(&skeleton)?;
        describe(name, &skeleton, &text)
    }

    /// Packs an object, and lets its skeleton unpack it.
    fn pack(&self, object: &Path, skeleton: &Path, packed: &Path) -> Result<()> {
        let mut bytes = fs::read(object)?;
        if !self.line_info {
            line_info::thin(&mut bytes).context("its line information")?;
        }
        let calls = calls::optional(&bytes).context("its calls")?;
        let size = u32::try_from(bytes.len())?;
        let count = u32::try_from(calls.len())?;
        bytes.extend(calls.iter().flatten().flat_map(|word| word.to_le_bytes()));
        let deflated = miniz_oxide::deflate::compress_to_vec(&bytes, 9);
        fs::write(packed, [&size.to_le_bytes()[..], &count.to_le_bytes(), &deflated].concat())?;

        let text = fs::read_to_string(skeleton)?;
        let (before, rest) = text.split_once("static DATA: [u8;").context("no DATA")?;
        let (_, after) = rest.split_once(";\n").context("DATA does not end")?;
        let (head, tail) = before.split_once("SkeletonConfigBuilder::new(&DATA)").context("use")?;
        let library = if object.ends_with("shared.o") { "crate" } else { "::bpfscope" };
        let text = format!(
            "{head}SkeletonConfigBuilder::new({library}::packed::unpack(PACKED)?){tail}\
             static PACKED: &[u8] = include_bytes!({packed:?});\n{after}"
        );
        fs::write(skeleton, text)?;
        Ok(())
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

/// What says which line of C an instruction is of is a third of an object, and the kernel looks at
/// every record of it when a program is loaded. Only where functions begin it stays: libbpf complains
/// when there is nothing. libbpf keeps what remains for as long as a tool runs.
///
/// Layout: include/uapi/linux/btf.h, and struct `btf_ext_header` of libbpf.
mod line_info {
    use std::collections::HashMap;
    use std::collections::HashSet;
    use std::mem::offset_of;
    use std::ops::Range;

    use anyhow::Context as _;
    use anyhow::Result;
    use anyhow::ensure;
    use object::LittleEndian as Le;
    use object::elf;
    use object::read::elf::FileHeader as _;
    use object::read::elf::SectionHeader as _;

    /// Removes the records from `.BTF.ext`, and from `.BTF` the strings that only they refer to. Both
    /// sections become shorter and stay where they are.
    pub fn thin(object: &mut [u8]) -> Result<()> {
        let (btf, ext) = (Section::find(object, b".BTF")?, Section::find(object, b".BTF.ext")?);
        let (types, lines) = strip(&object[btf.place.clone()], &object[ext.place.clone()])?;
        btf.replace(object, &types)?;
        ext.replace(object, &lines)
    }

    /// Where a section of the object stands, and where its size is written.
    struct Section {
        place: Range<usize>,
        size_at: usize,
    }

    impl Section {
        fn find(object: &[u8], name: &[u8]) -> Result<Self> {
            let header = elf::FileHeader64::<Le>::parse(object)?;
            let sections = header.sections(Le, object)?;
            let (index, section) = sections
                .enumerate()
                .find(|(_, section)| sections.section_name(Le, section) == Ok(name))
                .with_context(|| format!("no {}", name.escape_ascii()))?;
            let (start, size) = section.file_range(Le).context("a section without bytes")?;
            let headers = usize::try_from(header.e_shoff(Le))?;
            let own = headers + index.0 * size_of::<elf::SectionHeader64<Le>>();
            Ok(Self {
                place: usize::try_from(start)?..usize::try_from(start + size)?,
                size_at: own + offset_of!(elf::SectionHeader64<Le>, sh_size),
            })
        }

        fn replace(self, object: &mut [u8], bytes: &[u8]) -> Result<()> {
            let place = object.get_mut(self.place).context("cut short")?;
            ensure!(bytes.len() <= place.len(), "a section has become longer");
            let (used, unused) = place.split_at_mut(bytes.len());
            used.copy_from_slice(bytes);
            unused.fill(0);
            let size = u64::try_from(bytes.len())?.to_le_bytes();
            object[self.size_at..self.size_at + size.len()].copy_from_slice(&size);
            Ok(())
        }
    }

    fn word(bytes: &[u8], at: usize) -> Result<usize> {
        let word = bytes.get(at..at + 4).context("cut short")?;
        Ok(u32::from_le_bytes(word.try_into()?) as usize)
    }

    fn set_word(bytes: &mut [u8], at: usize, word: usize) -> Result<()> {
        let place = bytes.get_mut(at..at + 4).context("cut short")?;
        place.copy_from_slice(&u32::try_from(word)?.to_le_bytes());
        Ok(())
    }

    /// What is left of `.BTF` and of `.BTF.ext`.
    fn strip(btf: &[u8], ext: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
        ensure!(btf.starts_with(&[0x9f, 0xeb]) && ext.starts_with(&[0x9f, 0xeb]), "no magic");
        let strings = word(btf, 4)? + word(btf, 16)?;
        ensure!(strings + word(btf, 20)? == btf.len(), "the strings do not end where they should");
        let (mut types, mut lines) = (btf[..strings].to_vec(), only_beginnings(ext)?);

        // The first string is the empty one.
        let mut left = vec![0];
        let mut moved = HashMap::from([(0, 0)]);
        let places = [type_names(btf)?, texts(&lines)?];
        for (bytes, places) in [&mut types, &mut lines].into_iter().zip(places) {
            for at in places {
                let old = word(bytes, at)?;
                let new = *moved.entry(old).or_insert(left.len());
                if new == left.len() {
                    let text = btf.get(strings + old..).context("a string that is not there")?;
                    let length = text.iter().position(|b| *b == 0).context("an open string")?;
                    left.extend(&text[..=length]);
                }
                set_word(bytes, at, new)?;
            }
        }
        set_word(&mut types, 20, left.len())?;
        types.extend(left);
        Ok((types, lines))
    }

    /// Where the three parts of `.BTF.ext` are described in its header.
    const FUNCTIONS: usize = 8;
    const LINES: usize = 16;
    const RELOCATIONS: usize = 24;

    fn part(ext: &[u8], described: usize) -> Result<&[u8]> {
        let start = word(ext, 4)? + word(ext, described)?;
        ext.get(start..start + word(ext, described + 4)?).context("cut short")
    }

    /// `.BTF.ext` with the lines where functions begin.
    fn only_beginnings(ext: &[u8]) -> Result<Vec<u8>> {
        let functions = part(ext, FUNCTIONS)?;
        let mut begins = HashSet::new();
        for (section, record) in records(functions)? {
            begins.insert((word(functions, section)?, word(functions, record)?));
        }
        let lines = part(ext, LINES)?;
        let size = word(lines, 0)?;
        // By section, as they stand there.
        let mut left: Vec<(usize, Vec<&[u8]>)> = Vec::new();
        for (section, record) in records(lines)? {
            let section = word(lines, section)?;
            if begins.contains(&(section, word(lines, record)?)) {
                let record = &lines[record..record + size];
                match left.last_mut().filter(|(name, _)| *name == section) {
                    Some((_, records)) => records.push(record),
                    None => left.push((section, vec![record])),
                }
            }
        }
        let mut thin = lines[..4].to_vec();
        for (section, records) in left {
            thin.extend(u32::try_from(section)?.to_le_bytes());
            thin.extend(u32::try_from(records.len())?.to_le_bytes());
            thin.extend(records.concat());
        }

        let mut all = ext[..word(ext, 4)?].to_vec();
        let header = all.len();
        let parts =
            [(FUNCTIONS, functions), (LINES, &thin), (RELOCATIONS, part(ext, RELOCATIONS)?)];
        for (described, bytes) in parts {
            let start = all.len() - header;
            set_word(&mut all, described, start)?;
            set_word(&mut all, described + 4, bytes.len())?;
            all.extend(bytes);
        }
        Ok(all)
    }

    /// Of each record of a part: where the name of its section stands, and where itself begins.
    fn records(part: &[u8]) -> Result<Vec<(usize, usize)>> {
        let mut records = Vec::new();
        if part.is_empty() {
            return Ok(records);
        }
        let size = word(part, 0)?;
        let mut at = 4;
        while at < part.len() {
            let (section, count) = (at, word(part, at + 4)?);
            at += 8;
            for _ in 0..count {
                ensure!(at + size <= part.len(), "cut short");
                records.push((section, at));
                at += size;
            }
        }
        Ok(records)
    }

    /// Where `.BTF.ext` refers to strings.
    fn texts(ext: &[u8]) -> Result<Vec<usize>> {
        let mut places = Vec::new();
        // File and text of a line; where a field is that is relocated.
        for (described, texts) in
            [(FUNCTIONS, &[][..]), (LINES, &[4, 8][..]), (RELOCATIONS, &[8][..])]
        {
            let start = word(ext, 4)? + word(ext, described)?;
            let mut last = None;
            for (section, record) in records(part(ext, described)?)? {
                if last.replace(section) != Some(section) {
                    places.push(start + section);
                }
                places.extend(texts.iter().map(|text| start + record + text));
            }
        }
        Ok(places)
    }

    /// Where `.BTF` refers to strings: the names of all types and of their members.
    fn type_names(btf: &[u8]) -> Result<Vec<usize>> {
        let mut names = Vec::new();
        let start = word(btf, 4)? + word(btf, 8)?;
        let end = start + word(btf, 12)?;
        let mut at = start;
        while at < end {
            names.push(at);
            let info = word(btf, at + 4)?;
            let count = info & 0xffff;
            at += 12;
            // What follows: records of this size, and whether each begins with a name.
            let (records, size, named) = match info >> 24 & 0x1f {
                // INT, VAR, DECL_TAG
                1 | 14 | 17 => (1, 4, false),
                // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
                2 | 7..=12 | 16 | 18 => (0, 0, false),
                // ARRAY
                3 => (1, 12, false),
                // STRUCT, UNION, ENUM64
                4 | 5 | 19 => (count, 12, true),
                // ENUM, FUNC_PROTO
                6 | 13 => (count, 8, true),
                // DATASEC
                15 => (count, 12, false),
                kind => anyhow::bail!("types of kind {kind}"),
            };
            for _ in 0..records {
                if named {
                    names.push(at);
                }
                at += size;
            }
        }
        ensure!(at == end, "the types do not end where they should");
        Ok(names)
    }
}

/// Finds the calls of functions that are there for an option, so that they can be left out when the
/// option is not given (`src/common/packed.rs`): the verifier does not enter a function that cannot
/// be reached, but newer kernels (seen on 7.2) take time for whatever is loaded.
mod calls {
    use std::collections::HashMap;

    use anyhow::Context as _;
    use anyhow::Result;
    use object::LittleEndian as Le;
    use object::elf;
    use object::read::elf::FileHeader as _;
    use object::read::elf::Rel as _;
    use object::read::elf::SectionHeader as _;
    use object::read::elf::Sym as _;

    /// `R_BPF_64_32` of LLVM: the call of a function in another section.
    const R_BPF_64_32: elf::RelocationType = elf::RelocationType(10);
    /// `BPF_JMP | BPF_CALL`, with `BPF_PSEUDO_CALL` as the source register.
    const CALL: [u8; 2] = [0x85, 0x10];
    const INSTRUCTION: usize = 8;

    /// What a function belongs to, by the beginning of its name: `Optional` of `src/common/packed.rs`.
    fn group(name: &[u8]) -> Option<u32> {
        [(&b"filter_"[..], 1), (b"pidns_", 2)]
            .into_iter()
            .find_map(|(start, group)| name.starts_with(start).then_some(group))
    }

    /// A call: its function's group; where its instruction is; where its relocation is, and the
    /// header of the section of that, or zeros where it needs none. All as offsets in the object,
    /// the last relocation first.
    pub fn optional(object: &[u8]) -> Result<Vec<[u32; 4]>> {
        let header = elf::FileHeader64::<Le>::parse(object)?;
        let sections = header.sections(Le, object)?;
        let symbols = sections.symbols(Le, object, elf::SHT_SYMTAB)?;
        let Some((text, text_header)) = sections.section_by_name(Le, b".text") else {
            return Ok(Vec::new());
        };
        let mut functions = HashMap::new();
        for (index, symbol) in symbols.enumerate() {
            if symbol.st_type() == elf::STT_FUNC
                && symbols.symbol_section(Le, symbol, index)? == Some(text)
                && let Some(group) = group(symbols.symbol_name(Le, symbol)?)
            {
                functions.insert(symbol.st_value(Le), group);
            }
        }
        let target = |instruction: &[u8], from: u64| -> Result<u64> {
            let number = i32::from_le_bytes(instruction[4..8].try_into()?);
            let bytes = (i64::from(number) + 1) * i64::try_from(INSTRUCTION)?;
            from.checked_add_signed(bytes).context("a call to nowhere")
        };
        let at = |section: &elf::SectionHeader64<Le>, offset: u64| -> Result<usize> {
            Ok(usize::try_from(section.sh_offset(Le) + offset)?)
        };

        let mut calls = Vec::new();
        for (index, section) in sections.iter().enumerate() {
            let Some((relocations, _)) = section.rel(Le, object)? else { continue };
            let code = sections.section(section.info_link(Le))?;
            let place = header.e_shoff.get(Le) + (index * size_of_val(section)) as u64;
            for (number, relocation) in relocations.iter().enumerate() {
                if relocation.r_type(Le) != R_BPF_64_32 {
                    continue;
                }
                let symbol = relocation.symbol(Le).context("a call of nothing")?;
                let symbol_value = symbols.symbol(symbol)?.st_value(Le);
                let instruction = at(code, relocation.r_offset(Le))?;
                let called = target(&object[instruction..][..INSTRUCTION], symbol_value)?;
                if let Some(group) = functions.get(&called) {
                    let entry = at(section, (number * size_of_val(relocation)) as u64)?;
                    calls.push([
                        *group,
                        u32::try_from(instruction)?,
                        u32::try_from(entry)?,
                        u32::try_from(place)?,
                    ]);
                }
            }
        }
        // Within .text they are relative, and there is no relocation: in a call with one the number
        // is that of a function.
        let with_one: Vec<u32> = calls.iter().map(|call| call[1]).collect();
        let code = text_header.data(Le, object)?;
        for (number, instruction) in code.chunks_exact(INSTRUCTION).enumerate() {
            if instruction[..2] != CALL {
                continue;
            }
            let offset = (number * INSTRUCTION) as u64;
            let place = u32::try_from(at(text_header, offset)?)?;
            if let Some(group) = functions.get(&target(instruction, offset)?)
                && !with_one.contains(&place)
            {
                calls.push([*group, place, 0, 0]);
            }
        }
        calls.sort_by_key(|call| std::cmp::Reverse(call[2]));
        Ok(calls)
    }
}
