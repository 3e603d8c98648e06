// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! A kernel that does not run here, from an unpacked package: its types, its configuration, and
//! those of its modules.
//!
//! Debian compresses its kernels with xz (5.10, 6.1) and zstd (6.12 and later), and modules with
//! xz (from 6.12 on); arm64 has a plain image. gzip is what the kernel takes unless told
//! otherwise.

use std::collections::HashMap;
use std::collections::HashSet;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::bail;
use memchr::memmem;
use object::Object as _;
use object::ObjectSection as _;
use object::ObjectSymbol as _;
use object::SymbolKind;
use xz2::stream::Action;
use xz2::stream::Status;
use xz2::stream::Stream;

use crate::btf::KernelBtf;
use crate::error::unsupported;
use crate::error::usage;
use crate::prerequisites;
use crate::prerequisites::Check;
use crate::prerequisites::check;
use crate::prerequisites::parse_config;
use crate::probe::Kernel;
use crate::probe::Program;

/// The most that a kernel or a module may be, decompressed.
const LIMIT: usize = 1 << 30;

/// A kernel's package.
pub struct Package {
    /// Its release, as `uname -r` would say.
    pub release: String,
    /// The lines of its configuration; `None` when the package has none.
    pub config: Option<HashMap<String, String>>,
    modules: Option<PathBuf>,
}

/// What a program attaches to, from its section name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target<'a> {
    /// A function, by a trampoline.
    Trampoline(&'a str),
    /// A function, by a kprobe or kretprobe.
    Kprobe(&'a str),
    Tracepoint(&'a str),
    /// The tracepoint of one system call, which is made otherwise than all others.
    Call,
    /// Many functions of the kernel by one probe.
    KprobeMulti,
    /// Many functions of programs by one probe.
    UprobeMulti,
    /// Nothing whose existence can be read in a package.
    Other,
}

impl<'a> Target<'a> {
    fn of(section: &'a str) -> Self {
        let section = section.strip_prefix('?').unwrap_or(section);
        match section.split_once('/') {
            None if section.starts_with("kprobe.multi") => Self::KprobeMulti,
            None if section.starts_with("kretprobe.multi") => Self::KprobeMulti,
            None if section.starts_with("uprobe.multi") => Self::UprobeMulti,
            None if section.starts_with("uretprobe.multi") => Self::UprobeMulti,
            Some(("fentry" | "fexit" | "fmod_ret", name)) => Self::Trampoline(name),
            Some(("kprobe" | "kretprobe", name)) => {
                Self::Kprobe(name.split_once('+').map_or(name, |(name, _)| name))
            }
            Some((
                "tp_btf" | "raw_tp" | "raw_tracepoint" | "raw_tp.w" | "raw_tracepoint.w",
                name,
            )) => Self::Tracepoint(name),
            Some(("tp" | "tracepoint", name)) => match name.split_once('/') {
                Some(("syscalls", _)) => Self::Call,
                Some((_, name)) => Self::Tracepoint(name),
                None => Self::Other,
            },
            _ => Self::Other,
        }
    }
}

/// The entries of a directory, by name.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Every kernel below an unpacked package: release and file.
fn images(root: &Path) -> Vec<(String, PathBuf)> {
    let in_boot = entries(&root.join("boot")).into_iter().filter_map(|path| {
        let name = name(&path);
        let release = name.strip_prefix("vmlinuz-").or_else(|| name.strip_prefix("vmlinux-"))?;
        Some((release.to_string(), path))
    });
    let modules = ["usr/lib/modules", "lib/modules"];
    let beside_modules = modules.iter().flat_map(|at| entries(&root.join(at))).flat_map(|path| {
        let release = name(&path);
        ["vmlinuz", "vmlinux"].map(|image| (release.clone(), path.join(image)))
    });
    let mut all: Vec<(String, PathBuf)> =
        in_boot.chain(beside_modules).filter(|(_, path)| path.is_file()).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all.dedup_by(|a, b| a.0 == b.0);
    all
}

impl Package {
    /// Opens an unpacked package, and reads the kernel's types.
    ///
    /// # Errors
    /// A usage error where there is no kernel, or several; another where it cannot be read.
    pub fn open(root: &Path) -> Result<(Self, KernelBtf)> {
        let images = images(root);
        let (release, image) = match images.as_slice() {
            [one] => one.clone(),
            [] => {
                return Err(usage(format!(
                    "there is no kernel in {}: boot/vmlinuz-RELEASE or \
                     usr/lib/modules/RELEASE/vmlinuz",
                    root.display()
                )));
            }
            several => {
                let releases: Vec<&str> = several.iter().map(|(name, _)| name.as_str()).collect();
                return Err(usage(format!(
                    "there are several kernels in {}: {}",
                    root.display(),
                    releases.join(", ")
                )));
            }
        };
        let bytes = fs::read(&image).with_context(|| image.display().to_string())?;
        let btf = kernel_btf(bytes).with_context(|| image.display().to_string())?;
        let modules = ["usr/lib/modules", "lib/modules"]
            .map(|at| root.join(at).join(&release))
            .into_iter()
            .find(|path| path.join("kernel").is_dir());
        let config = [
            root.join(format!("boot/config-{release}")),
            root.join(format!("usr/lib/modules/{release}/config")),
            root.join(format!("lib/modules/{release}/config")),
        ]
        .iter()
        .find_map(|path| fs::read_to_string(path).ok())
        .map(|text| parse_config(&text));
        Ok((Self { release, config, modules }, btf))
    }

    /// The value of an option of its configuration; `Some(None)` where it is not set, `None` where
    /// that is not known.
    pub fn option(&self, name: &str) -> Option<Option<&str>> {
        Some(self.config.as_ref()?.get(name).map(String::as_str))
    }

    /// What can be said of it beforehand.
    pub fn checks(&self, kernel: &Kernel) -> Vec<Check> {
        let types = check("btf", "in the kernel's image");
        let config = match &self.config {
            Some(_) => check("config", "in the package"),
            None => check("config", "not in the package").limits(
                true,
                "what is said of kprobes and fentry: that they exist is only supposed",
            ),
        };
        let modules = match &self.modules {
            Some(_) => check("modules", "in the package"),
            None => check("modules", "not in the package")
                .limits(true, "what is said of functions that modules have"),
        };
        let hazard = kernel.fentry_may_deadlock();
        let fentry = if hazard { prerequisites::FENTRY_HAZARD } else { "can be detached safely" };
        let fentry = check("fentry", fentry).limits(hazard, prerequisites::FENTRY_HAZARD_LIMITS);
        vec![types, config, modules, fentry]
    }

    /// The first of these options that is not set, in words. What is not known is supposed.
    fn unset(&self, names: &[&str]) -> Option<String> {
        let unset = |name: &&&str| self.option(name) == Some(None);
        names.iter().find(unset).map(|name| format!("it is built without {name}"))
    }

    /// Why a program with this section name cannot be attached there; `None` when nothing speaks
    /// against it.
    pub fn lacks(&self, kernel: &Kernel, section: &str) -> Option<String> {
        let target = Target::of(section);
        let mut options = vec!["CONFIG_BPF_SYSCALL", "CONFIG_BPF_EVENTS"];
        options.extend(match target {
            Target::Trampoline(_) => {
                vec!["CONFIG_BPF_JIT", "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS"]
            }
            Target::Kprobe(_) => vec!["CONFIG_KPROBE_EVENTS"],
            Target::Call => vec!["CONFIG_FTRACE_SYSCALLS"],
            // Debian's 6.1 knows the type and attaches none: without fprobes, it has no way to.
            Target::KprobeMulti => vec!["CONFIG_FPROBE"],
            Target::Tracepoint(_) | Target::UprobeMulti | Target::Other => vec![],
        });
        let (kind, name) = match target {
            Target::Trampoline(name) | Target::Kprobe(name) => ("function", name),
            Target::Tracepoint(name) => ("tracepoint", name),
            // 89ae89f53d20 "bpf: Add multi uprobe link" (6.6)
            Target::UprobeMulti if !kernel.has_struct("bpf_uprobe_multi_link") => {
                return Some("the kernel has no multi uprobe".into());
            }
            Target::Call | Target::KprobeMulti | Target::UprobeMulti | Target::Other => {
                return self.unset(&options);
            }
        };
        let missing = !kernel.describes(name, kind == "tracepoint");
        self.unset(&options).or_else(|| missing.then(|| format!("the kernel has no {kind} {name}")))
    }

    /// Functions and tracepoints of these programs that the kernel proper does not have, and a
    /// module does.
    pub fn from_modules(&self, kernel: &Kernel, programs: &[Program]) -> Vec<InModule> {
        let Some(btf) = kernel.btf() else { return Vec::new() };
        let names = programs.iter().filter_map(|program| match Target::of(&program.section) {
            Target::Trampoline(name) | Target::Kprobe(name) => Some((name, false)),
            Target::Tracepoint(name) => Some((name, true)),
            Target::Call | Target::KprobeMulti | Target::UprobeMulti | Target::Other => None,
        });
        let missing: HashSet<&str> = names
            .filter(|(name, tracepoint)| !kernel.describes(name, *tracepoint))
            .map(|(name, _)| name)
            .collect();
        if missing.is_empty() { Vec::new() } else { self.in_modules(btf, &missing) }
    }

    /// Which of these names are functions or tracepoints of modules. Reads every module, until all
    /// are found.
    fn in_modules(&self, kernel: &KernelBtf, names: &HashSet<&str>) -> Vec<InModule> {
        let mut found: Vec<InModule> = Vec::new();
        let mut directories: Vec<PathBuf> =
            self.modules.iter().map(|at| at.join("kernel")).collect();
        while let Some(directory) = directories.pop() {
            for path in entries(&directory) {
                // A link may lead anywhere, and round in circles.
                let Ok(kind) = fs::symlink_metadata(&path) else { continue };
                if kind.is_dir() {
                    directories.push(path);
                    continue;
                }
                let file = name(&path);
                let Some((module, "" | ".xz" | ".zst" | ".gz")) = file.split_once(".ko") else {
                    continue;
                };
                let Some((of_it, described)) = module_names(&path, kernel, names) else { continue };
                found.extend(of_it.into_iter().map(|name| InModule {
                    name,
                    module: module.to_string(),
                    described,
                }));
                if names.iter().all(|name| found.iter().any(|known| known.name == *name)) {
                    return found;
                }
            }
        }
        found
    }
}

/// What a module has.
pub struct InModule {
    /// The function or tracepoint.
    pub name: String,
    /// The module.
    pub module: String,
    /// Whether the module describes it; otherwise it is known from the module's symbols, can be
    /// probed, and has nothing for fentry and fexit to attach by (before 5.11, Debian's 5.10).
    pub described: bool,
}

/// Which of these names a module has, and whether it describes them.
fn module_names(
    path: &Path,
    kernel: &KernelBtf,
    names: &HashSet<&str>,
) -> Option<(Vec<String>, bool)> {
    let bytes = fs::read(path).ok()?;
    let bytes = if is_elf(&bytes) { bytes } else { decompress(&bytes).ok()? };
    if let Some(btf) = section(&bytes) {
        return Some((kernel.find_in_module(&KernelBtf::parse(btf)?, names), true));
    }
    let file = object::File::parse(&*bytes).ok()?;
    let functions = file.symbols().filter(|s| s.is_definition() && s.kind() == SymbolKind::Text);
    let known = functions.filter_map(|symbol| symbol.name().ok());
    Some((known.filter(|name| names.contains(name)).map(String::from).collect(), false))
}

fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

fn section(elf: &[u8]) -> Option<Vec<u8>> {
    let file = object::File::parse(elf).ok()?;
    Some(file.section_by_name(".BTF")?.data().ok()?.to_vec())
}

/// Takes off one layer of compression.
///
/// # Errors
/// Fails when it is of no kind that is known, or broken.
pub fn decompress(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let limit = LIMIT as u64;
    match bytes {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            out = unxz(bytes).context("xz")?;
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            ruzstd::decoding::StreamingDecoder::new(bytes)
                .map_err(|error| anyhow::anyhow!("zstd: {error}"))?
                .take(limit)
                .read_to_end(&mut out)
                .context("zstd")?;
        }
        [0x1f, 0x8b, ..] => {
            let body = gzip_body(bytes).context("gzip: a broken header")?;
            out = miniz_oxide::inflate::decompress_to_vec_with_limit(body, LIMIT)
                .map_err(|error| anyhow::anyhow!("gzip: {error}"))?;
        }
        [0x02, 0x21, 0x4c, 0x18, ..] => bail!("it is compressed with lz4, which is not read here"),
        [0x89, b'L', b'Z', b'O', ..] => bail!("it is compressed with lzo, which is not read here"),
        _ => bail!("its compression is not known here"),
    }
    Ok(out)
}

/// Reads one stream; a kernel has its size behind it.
fn unxz(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = Stream::new_stream_decoder(u64::MAX, 0)?;
    let mut out = Vec::new();
    loop {
        let rest = bytes.get(usize::try_from(stream.total_in())?..).unwrap_or_default();
        let before = (rest.len(), out.len());
        out.reserve(1 << 20);
        if stream.process_vec(rest, &mut out, Action::Run)? == Status::StreamEnd {
            return Ok(out);
        }
        let left = bytes.len() - usize::try_from(stream.total_in())?;
        if (left, out.len()) == before || out.len() > LIMIT {
            bail!("it ends in the middle, or does not end");
        }
    }
}

/// What follows the header of RFC 1952.
fn gzip_body(bytes: &[u8]) -> Option<&[u8]> {
    const CHECK: u8 = 2;
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    let flags = *bytes.get(3)?;
    let mut rest = bytes.get(10..)?;
    if flags & EXTRA != 0 {
        let length = u16::from_le_bytes([*rest.first()?, *rest.get(1)?]);
        rest = rest.get(2 + usize::from(length)..)?;
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            rest = rest.get(memchr::memchr(0, rest)? + 1..)?;
        }
    }
    if flags & CHECK != 0 { rest.get(2..) } else { Some(rest) }
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let word = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(word)).ok()
}

fn untyped() -> anyhow::Error {
    unsupported("it does not describe its types (CONFIG_DEBUG_INFO_BTF)")
}

/// The BTF in a kernel image of any of the forms that distributions have.
fn kernel_btf(mut bytes: Vec<u8>) -> Result<KernelBtf> {
    // A kernel is wrapped twice at most (an EFI image around a compressed one).
    for _ in 0..3 {
        if is_elf(&bytes) {
            let section = section(&bytes).ok_or_else(untyped)?;
            return KernelBtf::parse(section).context("its .BTF is no BTF");
        }
        if bytes.get(0x38..0x3c) == Some(b"ARM\x64") {
            return in_plain_image(&bytes).ok_or_else(untyped);
        }
        let inner = match (bytes.get(0x202..0x206), bytes.get(4..8)) {
            // Documentation/arch/x86/boot.rst: sectors of the setup code, 0 means 4; offset and
            // length of what is behind it.
            (Some(b"HdrS"), _) => {
                let sectors = match bytes[0x1f1] {
                    0 => 4,
                    sectors => usize::from(sectors),
                };
                let offset = word(&bytes, 0x248).map(|at| at + (sectors + 1) * 512);
                offset.zip(word(&bytes, 0x24c))
            }
            // drivers/firmware/efi/libstub/zboot-header.S
            (_, Some(b"zimg")) => word(&bytes, 8).zip(word(&bytes, 12)),
            _ => Some((0, bytes.len())),
        };
        let payload = inner
            .and_then(|(at, length)| bytes.get(at..at.checked_add(length)?))
            .context("it is shorter than its header says")?;
        bytes = decompress(payload)?;
    }
    bail!("it is no kernel")
}

/// BTF in an image without sections: where its header stands, and holds what it says.
fn in_plain_image(bytes: &[u8]) -> Option<KernelBtf> {
    // Magic, version 1, no flags, a header of 24 bytes.
    const HEADER: [u8; 8] = [0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
    memmem::find_iter(bytes, &HEADER).find_map(|at| {
        let length = 24 + word(bytes, at + 16)? + word(bytes, at + 20)?;
        let btf = KernelBtf::parse(bytes.get(at..at.checked_add(length)?)?.to_vec())?;
        // The kernel has other BTF of its own inside, but only one of that size.
        (length > 1 << 16).then_some(btf)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_data_is_read() {
        let plain = b"the same again and again and again and again".repeat(9);
        let xz = {
            let mut out = Vec::new();
            xz2::read::XzEncoder::new(plain.as_slice(), 6).read_to_end(&mut out).expect("xz");
            out
        };
        assert_eq!(decompress(&[&xz, b"size".as_slice()].concat()).expect("xz"), plain);
        let zstd = ruzstd::encoding::compress_to_vec(
            plain.as_slice(),
            ruzstd::encoding::CompressionLevel::Fastest,
        );
        assert_eq!(decompress(&zstd).expect("zstd"), plain);
        let mut gzip = vec![0x1f, 0x8b, 8, 8 | 4, 0, 0, 0, 0, 0, 3, 2, 0, b'e', b'x'];
        gzip.extend(b"name\0");
        gzip.extend(miniz_oxide::deflate::compress_to_vec(&plain, 6));
        // Check sum and size are not looked at.
        gzip.extend([0; 8]);
        assert_eq!(decompress(&gzip).expect("gzip"), plain);
        assert!(decompress(&xz[..40]).is_err() && decompress(b"plain").is_err());
    }

    #[test]
    fn sections_name_targets() {
        assert_eq!(Target::of("?fexit/f"), Target::Trampoline("f"));
        assert_eq!(Target::of("kretprobe/f+0x4"), Target::Kprobe("f"));
        assert_eq!(Target::of("tp/sched/switch"), Target::Tracepoint("switch"));
        assert_eq!(Target::of("raw_tp/exit"), Target::Tracepoint("exit"));
        assert_eq!(Target::of("tracepoint/syscalls/sys_enter_x"), Target::Call);
        assert_eq!(Target::of("perf_event"), Target::Other);
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        for bytes in [vec![], vec![0; 2000], b"\x7fELF".to_vec()] {
            assert!(kernel_btf(bytes).is_err());
        }
        let mut short = vec![0; 0x300];
        short[0x202..0x206].copy_from_slice(b"HdrS");
        short[0x24c] = 0xff;
        assert!(kernel_btf(short).is_err_and(|error| error.to_string().contains("shorter")));
    }
}
