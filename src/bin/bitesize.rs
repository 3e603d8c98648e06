// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! bitesize: how large block I/O is, as a histogram for each command name.

use bpfscope::block;
use bpfscope::block::OnlyDisk;
use bpfscope::cli::Comm;
use bpfscope::cli::Reports;
use bpfscope::escape;
use bpfscope::filter::filters_tree;
use bpfscope::histogram;
use bpfscope::histogram::Intervals;
use bpfscope::histogram::Unit;
use bpfscope::prelude::*;
use bpfscope::tracked_requests;

bpf!("bitesize");
use bpf::types;

/// Show the sizes of block I/O by process name as histograms
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    reports: Reports,
    /// Only command names that begin with this
    #[arg(short, long, value_name = "COMM", value_parser = beginning)]
    comm: Option<Comm>,
    #[command(flatten)]
    only: OnlyDisk,
    /// Count in bytes instead of Kbytes
    #[arg(short, long)]
    bytes: bool,
    /// Whether requests are told apart by who submitted them.
    #[arg(skip)]
    by_owner: bool,
}

fn beginning(text: &str) -> Result<Comm, String> {
    let name = text.strip_suffix('*').unwrap_or(text);
    if name.is_empty() {
        return Err("an empty command name".into());
    }
    if name.len() > 15 {
        return Err("the kernel keeps only 15 bytes of a command name".into());
    }
    Ok(Comm { name: name.as_bytes().to_vec(), prefix: true })
}

impl Args {
    fn unit(&self) -> Unit {
        if self.bytes { histogram::BYTES } else { histogram::KBYTES }
    }
}

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Counts the sizes of block requests, as they are given to the device, in a histogram for each \
command name, whose rows are powers of two. Small requests that could have been merged are often \
the reason why a disk is slow although it does little.

Each request is counted once; requests that were merged before they were issued are one, and belong \
to the first submitter. The name is that of the task that submitted the I/O, not of the one that \
happened to run when it was issued; filters (--pid, --cgroup and the others) mean that task too. \
Data that was written to a file without O_DIRECT or O_SYNC is written back later by a kernel \
thread, and counted under its name. A discard counts with the size of what is discarded, a flush \
with 0.",
        examples: "\
Who does small I/O? One histogram for each name, until Ctrl-C:

    # bitesize

The names that begin with dd, for two seconds:

    # bitesize -c dd 2 1
    Tracing block device I/O... Hit Ctrl-C to end.

    Process Name = dd
         Kbytes              : count    distribution
             0 -> 1          : 0        |                                        |
             2 -> 3          : 0        |                                        |
             4 -> 7          : 744      |********                                |
             8 -> 15         : 0        |                                        |
            16 -> 31         : 0        |                                        |
            32 -> 63         : 0        |                                        |
            64 -> 127        : 3688     |****************************************|

Most of the I/O is in requests of about as much as this disk takes at once (128 KiB), and every sixth \
is a small one, which costs the disk nearly as much.

What size are the requests of all postgres processes on sdb, every 10 seconds with the time?

    # bitesize -T -c postgres -d sdb 10",
        overhead: "\
Three short programs a request: where it is submitted, issued and completed, each followed by a \
still shorter one that steps in where the kernel skipped it. They count in the kernel; what is read \
at each report is only the histograms.",
        limits: "\
A row of the histogram in Kbytes is no finer than that: requests below 2 KiB share the first one \
(--bytes tells them apart). Requests without a known submitter are counted under the name ?, and \
left out by filters on the task: those that were submitted before the tool was ready, and on \
kernels before 6.5 those that a program sends directly to the driver (SG_IO) and those that a \
multipath device makes of others. Up to 4,096 names are told apart; more are counted as map_full.",
    };
    const QUESTION: Question =
        Question { heading: "Block I/O", question: "How large is the disk I/O of each program?" };
    const LETTERS: &'static [(&'static str, char)] = &[("pid", 'p'), ("timestamp", 'T')];

    fn ways(&self) -> Vec<Way> {
        vec![
            tracked_requests!("btf", queued: false, done: true),
            tracked_requests!("rawtp", queued: false, done: true),
        ]
    }

    fn check(&mut self, common: &mut Common) -> Result<()> {
        common.comm.clone_from(&self.comm);
        self.by_owner = common.filters_tasks() || filters_tree(common);
        Ok(())
    }

    fn records(&self) -> Records {
        let kind = Kind::histogram("size_bytes").field(
            "comm",
            Type::String,
            "Command name of the submitters; null where they are not known.",
        );
        Records::new([kind]).banner("Tracing block device I/O... Hit Ctrl-C to end.")
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, way: &Way) -> Result<()> {
        self.only.configure(open)?;
        let settings = open.maps.rodata_data.as_deref_mut().context("no .rodata")?;
        settings.want_owner = self.by_owner;
        settings.bytes_per_slot_unit = self.unit().scale;
        open.maps.submitted_bios.set_autocreate(block::by_bio(way))?;
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let unit = self.unit();
        let timestamp = session.common.choice.timestamp;
        let mut intervals = Intervals::default();
        let mut report = |out: &mut Output| -> Result<()> {
            out.line("");
            if timestamp {
                out.time_line();
            }
            let sizes = histogram::read(&skel.maps.sizes, |key: &types::size_key| {
                let comm = key.comm.map(|c| c.to_ne_bytes()[0]);
                comm.into_iter().take_while(|c| *c != 0).collect::<Vec<u8>>()
            })?;
            for (comm, sizes) in intervals.next(sizes) {
                let (shown, key) = if comm.is_empty() {
                    ("?".into(), Value::Null)
                } else {
                    (escape::printable(&comm), Value::Bytes(&comm))
                };
                let title = format!("\nProcess Name = {shown}");
                out.histogram(0, Some(&title), &[key], &sizes, unit);
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
