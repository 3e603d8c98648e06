// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! fsslower: each operation of a file system that took long.

use std::time::Duration;

use bpfscope::file_system_aliases;
use bpfscope::file_systems;
use bpfscope::file_systems::FileSystem;
use bpfscope::output::Form;
use bpfscope::prelude::*;

bpf!("fsslower");
use bpf::types;

/// Trace file system operations that are slower than a threshold
#[derive(clap::Args)]
pub struct Args {
    /// The same as --min
    #[arg(value_name = "MS", value_parser = millis)]
    threshold: Option<u64>,
    /// Only operations that took longer than this many milliseconds; 0 is all [default: 10]
    #[arg(short, long, value_name = "MS", value_parser = millis)]
    min: Option<u64>,
    /// The file system
    #[arg(id = "type", short, long, value_name = "NAME", value_parser = file_systems::parser())]
    file_system: Option<&'static FileSystem>,
    /// Show whole paths instead of names
    #[arg(short = 'F', long)]
    full_path: bool,
    /// The same as --output csv
    #[arg(short, long)]
    csv: bool,
    /// For the line above the header.
    #[arg(skip)]
    duration: Option<Duration>,
}

/// Upstream's threshold, in nanoseconds.
const TEN_MS: u64 = 10_000_000;

/// Milliseconds, also with a fraction, as nanoseconds.
fn millis(text: &str) -> Result<u64, String> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    match text.parse::<f64>() {
        Ok(n) if plain && n < 1e9 => {
            u64::try_from(Duration::from_secs_f64(n / 1e3).as_nanos()).map_err(|e| e.to_string())
        }
        _ => Err("not a number of milliseconds".into()),
    }
}

impl Args {
    fn min_ns(&self) -> u64 {
        self.min.or(self.threshold).unwrap_or(TEN_MS)
    }

    fn banner(&self) -> String {
        let mut text = "Tracing FS operations".to_string();
        if self.min_ns() > 0 {
            text += &format!(" slower than {} ms", self.min_ns() as f64 / 1e6);
        }
        match self.duration {
            Some(duration) => text + &format!(" for {} secs.", duration.as_secs_f64()),
            None => text + "... Hit Ctrl-C to end.",
        }
    }
}

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Shows each operation of one file system that took longer than 10 ms, or than -m says, from the call \
of the file system's function until its return. T is the operation: R read, W write, O open, F fsync, \
G getattr (what stat asks for), and with nfs C commit. BYTES is what a read or write has transferred, \
and how much a sync was to write, where LL_MAX is all of the file; OFF_KB is where in the file it \
began. FILENAME is the last part of the path, or with -F all of it, and ? where it could not be read. \
The time is that of the end.

The file system is chosen with -t, or by the name of the tool: ext4slower is fsslower -t ext4.

An operation inside another one is shown too: a write with O_SYNC that calls fsync is one of each. A \
read or write that the caller does not wait for (io_uring, libaio, a loop device) lasts until it is \
done, and is shown for the process that submitted it, with async true in JSON.",
        examples: "\
What of a write, a sync and a read of the same file takes longer than a millisecond?

    # fsslower -t ext4 -m 1 --run 'dd if=/dev/zero of=journal bs=64k count=30 conv=fsync; cat journal'
    Tracing FS operations slower than 1 ms... Hit Ctrl-C to end.
    TIME     COMM             PID     T BYTES   OFF_KB   LAT(ms) FILENAME
    11:07:36 dd               221     O 0       0           1.12 journal
    11:07:36 dd               221     W 65536   0           1.59 journal
    11:07:36 dd               221     W 65536   768         1.34 journal
    11:07:36 dd               221     F LL_MAX  0          10.61 journal
    11:07:36 cat              222     R 131072  0           3.68 journal
    11:07:36 cat              222     R 131072  128         3.21 journal

Two of the thirty writes, and the sync, which waited until all was on the disk. (Between the two \
commands the file was removed from memory; otherwise the reads would not be there.)

Everything that one command does on xfs, with full paths:

    # fsslower -t xfs -m 0 -F -- tar xf archive.tar

Failed operations of NFS, for ten seconds:

    # nfsslower -m 0 -d 10 --filter 'error != 0'",
        overhead: "\
Two short programs an operation, at entry and return, and a map entry in between; where they hook \
by fentry and fexit, each has a still shorter one behind it, which steps in where the kernel \
skipped it. The name is read only of what is shown. Following paths (-F) makes the start slower, \
since it makes the programs long. Reads from memory are frequent and fast, so that it is them that \
become slower. To stop can take a second or two, which is the time that the kernel takes to unhook \
the functions.",
        limits: "\
Memory mapped files are read and written without these functions; splice and sendfile read by \
others. Directories are not read by them, and on ext4 stat of a directory is another function. btrfs \
had no function of its own for reads before 5.10. Before 5.11 modules do not describe their types, \
so that kprobes are used. Of I/O that goes on after its submission, that of io_uring (not its polled kind), \
libaio and loop devices is followed to its end; others in the kernel (a target of NVMe over fabrics with files, a \
cache of a network file system) are not shown. A commit of NFS has no file name here, and its result \
is not known.",
    };
    const QUESTION: Question = Question {
        heading: "Files",
        question: "Which file system operations are slow, on which file, and who waits for them?",
    };
    const LETTERS: &'static [(&'static str, char)] = &[("duration", 'd'), ("pid", 'p')];
    const ALIASES: &'static [Alias] = file_system_aliases!("slower");
    const NEEDS: &'static [&'static str] = file_systems::NEEDS;

    fn ways(&self) -> Vec<Way> {
        file_systems::ways(self.file_system)
    }

    fn check(&mut self, common: &mut Common) -> Result<()> {
        file_systems::check(self.file_system, common)?;
        if self.min.is_some() && self.threshold.is_some() {
            return Err(usage("the threshold is given twice"));
        }
        if self.csv {
            common.choice.form = Form::Csv;
        }
        self.duration = common.duration;
        Ok(())
    }

    fn records(&self) -> Records {
        let kind = Kind::event("operation")
            .field("fs", Type::String, "The file system.")
            .field("op", Type::String, "The operation: read, write, open, fsync, getattr, commit.")
            .field("letter", Type::String, "Its letter.")
            .field(
                "size_bytes",
                Type::Uint,
                "What a read or write transferred, how much a sync was to write; null for all of the file.",
            )
            .field("offset_bytes", Type::Uint, "Where in the file it began.")
            .field("lat_ns", Type::Uint, "How long it took.")
            .field("file", Type::String, "The last part of the path.")
            .field("path", Type::String, "The path; null without --full-path.")
            .field("error", Type::Errno, "Why it failed; null when it did not.")
            .field("async", Type::Bool, "Whether it went on after it was submitted.")
            .columns([
                time_column("TIME", 8, TimeFormat::Wall).when(true),
                column("comm", "COMM", 16),
                column("pid", "PID", 7),
                column("letter", "T", 1),
                column("size_bytes", "BYTES", 7).null("LL_MAX"),
                column("offset_bytes", "OFF_KB", 8).format(Format::Kib),
                column("lat_ns", "LAT(ms)", 7).right().format(Format::Millis(2)),
                column(if self.full_path { "path" } else { "file" }, "FILENAME", 0),
            ]);
        Records::new([kind]).banner(self.banner())
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, way: &Way) -> Result<()> {
        let settings = open.maps.rodata_data.as_deref_mut().context("no .rodata")?;
        settings.want_min_ns = self.min_ns();
        settings.want_path = self.full_path;
        open.maps.fs_calls__fexit.set_autocreate(way.name == "fexit")?;
        open.maps.fs_calls__kprobe.set_autocreate(way.name == "kprobe")?;
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let fs = self.file_system.map_or(Value::Null, |fs| Value::Str(fs.name));
        session.stream(&skel.maps.events, |record, out| {
            let event: &types::event = record.body()?;
            let (names, _) = split(record.tail::<types::event>(), event.names_size);
            let cut = event.names_cut != 0;
            // The root of everything has no name.
            let root = (!cut).then_some(b"/".as_slice());
            let name = names.split(|b| *b == 0).next().filter(|name| !name.is_empty()).or(root);
            let name = name.filter(|_| event.has_path != 0);
            let path = name.filter(|_| self.full_path).and(file_systems::path_of(names, cut));
            let (operation, letter) = file_systems::operation(event.operation.into());
            let whole = operation == "fsync" && event.bytes == i64::MAX.unsigned_abs();
            out.event(
                0,
                record.head()?,
                &[
                    fs,
                    Value::Str(operation),
                    Value::Str(letter),
                    if whole { Value::Null } else { Value::Uint(event.bytes) },
                    Value::Uint(event.offset),
                    Value::Uint(event.lat_ns),
                    name.map_or(Value::Null, Value::Bytes),
                    path.as_deref().map_or(Value::Null, Value::Bytes),
                    Value::Errno(event.error),
                    Value::Bool(event.went_on != 0),
                ],
            );
            Ok(())
        })
    }
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}
