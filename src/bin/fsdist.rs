// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! fsdist: how long operations of a file system take, as histograms.

use bpfscope::cli::Reports;
use bpfscope::file_system_aliases;
use bpfscope::file_systems;
use bpfscope::file_systems::FileSystem;
use bpfscope::histogram;
use bpfscope::histogram::Intervals;
use bpfscope::histogram::Unit;
use bpfscope::prelude::*;

bpf!("fsdist");
use bpf::types;

/// Show the latency of file system operations as histograms
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    reports: Reports,
    /// Count in milliseconds instead of microseconds
    #[arg(short, long)]
    milliseconds: bool,
    /// The file system
    #[arg(id = "type", short, long, value_name = "NAME", value_parser = file_systems::parser())]
    file_system: Option<&'static FileSystem>,
}

impl Args {
    fn unit(&self) -> Unit {
        histogram::time_unit(self.milliseconds)
    }
}

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Counts how long the operations of one file system take, from the call of the file system's function \
until its return: read, write, open, fsync, getattr (what stat asks for), and with nfs commit. Each \
operation has a histogram whose rows are powers of two.

The file system is chosen with -t, or by the name of the tool: ext4dist is fsdist -t ext4. All \
mounted file systems of that kind are counted together.

What is served from memory counts as well as what waits for the disk, which is why reads mostly have \
two hills. An operation inside another one counts too: a write with O_SYNC that calls fsync is one of \
each. A read or write that the caller does not wait for (io_uring, libaio, a loop device) lasts until \
it is done, not only until it is submitted.",
        examples: "\
How long do operations on ext4 take? One report, on Ctrl-C:

    # fsdist -t ext4
    Tracing FS operation latency... Hit Ctrl-C to end.

    operation = 'read'
         usecs               : count    distribution
             0 -> 1          : 0        |                                        |
             2 -> 3          : 2        |******                                  |
             4 -> 7          : 11       |************************************    |
             8 -> 15         : 1        |***                                     |
            16 -> 31         : 0        |                                        |
            32 -> 63         : 2        |******                                  |
            64 -> 127        : 3        |**********                              |
           128 -> 255        : 0        |                                        |
           256 -> 511        : 12       |****************************************|
           512 -> 1023       : 2        |******                                  |
          1024 -> 2047       : 2        |******                                  |
          2048 -> 4095       : 1        |***                                     |
          4096 -> 8191       : 1        |***                                     |

and so on for write, open, fsync and getattr. The reads of up to 15 microseconds found nothing more \
to read, or very little in memory; those of some hundred copied 128 KiB each, and the last few waited \
for the disk.

The same for xfs, every second, five times, with the time, in milliseconds:

    # xfsdist -Tm 1 5

Only what one command does:

    # fsdist -t btrfs -- tar xf archive.tar",
        overhead: "\
Two short programs an operation, at entry and return, and a map entry in between; where they hook \
by fentry and fexit, each has a still shorter one behind it, which steps in where the kernel \
skipped it. Reads from memory are frequent and fast, so that it is them that become slower. To \
stop can take a second or two, which is the time that the kernel takes to unhook the functions.",
        limits: "\
Memory mapped files are read and written without these functions; splice and sendfile read by \
others. Directories are not read by them, and on ext4 stat of a directory is another function. btrfs \
had no function of its own for reads before 5.10. Before 5.11 modules do not describe their types, \
so that kprobes are used. Of I/O that goes on after its submission, that of io_uring (not its polled kind), \
libaio and loop devices is followed to its end; others in the kernel (a target of NVMe over fabrics with files, a \
cache of a network file system) are not, and do not count.",
    };
    const QUESTION: Question = Question {
        heading: "Files",
        question: "How long do reads, writes, opens and syncs of a file system take?",
    };
    const LETTERS: &'static [(&'static str, char)] = &[("pid", 'p'), ("timestamp", 'T')];
    const ALIASES: &'static [Alias] = file_system_aliases!("dist");
    const NEEDS: &'static [&'static str] = file_systems::NEEDS;

    fn ways(&self) -> Vec<Way> {
        file_systems::ways(self.file_system)
    }

    fn check(&mut self, common: &mut Common) -> Result<()> {
        file_systems::check(self.file_system, common)
    }

    fn records(&self) -> Records {
        let kind = Kind::histogram("latency_ns")
            .field("fs", Type::String, "The file system.")
            .field("op", Type::String, "The operation: read, write, open, fsync, getattr, commit.");
        Records::new([kind]).banner("Tracing FS operation latency... Hit Ctrl-C to end.")
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, way: &Way) -> Result<()> {
        let settings = open.maps.rodata_data.as_deref_mut().context("no .rodata")?;
        settings.ns_per_slot_unit = self.unit().scale;
        open.maps.latencies.set_max_entries(u32::try_from(file_systems::OPERATIONS.len())?)?;
        open.maps.fs_calls__fexit.set_autocreate(way.name == "fexit")?;
        open.maps.fs_calls__kprobe.set_autocreate(way.name == "kprobe")?;
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let timestamp = session.common.choice.timestamp;
        let name = self.file_system.map_or(Value::Null, |fs| Value::Str(fs.name));
        let mut intervals = Intervals::default();
        let mut report = |out: &mut Output| -> Result<()> {
            out.line("");
            if timestamp {
                out.time_line();
            }
            let latencies =
                histogram::read(&skel.maps.latencies, |key: &types::operation_key| key.operation)?;
            for (operation, latency) in intervals.next(latencies) {
                let operation = file_systems::operation(operation).0;
                let title = format!("operation = '{operation}'");
                out.histogram(
                    0,
                    Some(&title),
                    &[name, Value::Str(operation)],
                    &latency,
                    self.unit(),
                );
                out.line("");
            }
            out.report_done();
            Ok(())
        };
        session.every(self.reports.every(&mut report))
    }
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}
