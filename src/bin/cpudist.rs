// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! cpudist: how long threads are on the CPU at a time, or off it.

use bpfscope::cli::Reports;
use bpfscope::histogram;
use bpfscope::histogram::Unit;
use bpfscope::prelude::*;
use bpfscope::thread_times;
use bpfscope::thread_times::By;
use bpfscope::thread_times::Times;
use bpfscope::threads;
use libbpf_rs::skel::OpenSkel as _;

bpf!("cpudist");

/// Show how long threads are on the CPU at a time as a histogram
#[derive(clap::Args)]
// Each is a switch of its own on the command line.
#[allow(clippy::struct_excessive_bools)]
pub struct Args {
    #[command(flatten)]
    reports: Reports,
    /// How long they are off the CPU
    #[arg(short = 'O', long)]
    offcpu: bool,
    /// Count in milliseconds instead of microseconds
    #[arg(short, long)]
    milliseconds: bool,
    /// Include idle threads: how long CPUs are idle at a time
    #[arg(short = 'I', long)]
    include_idle: bool,
    /// Show the average, the total and the count below the histograms
    #[arg(short, long)]
    extension: bool,
    #[command(flatten)]
    by: By,
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
Counts how long threads are on the CPU at a time, from when they are switched to until they leave \
it, in a histogram whose rows are powers of two. Each stint is counted when it ends, however it \
ends: the thread waits for something, others take its place, or it ends itself. With -O it is the \
time between two stints that is counted, for whatever reason the thread left: waiting for a disk or \
a timer as well as waiting for the CPU (which runqlat shows alone).

What began before the tool is not known and not counted, and what has not ended is not either. Idle \
threads are left out; with -I they show how long CPUs are idle at a time (with -O: busy).

With -e a line below the histograms says the average, the total and the count of all of them. With \
-P, -L, --pidnss, --by-cgroup and --by-container there is one histogram for each process, thread, \
PID namespace, cgroup (not with what is below it) or container. The name beside a process or thread \
is the one that it had last, and beside a PID namespace that of its first process. What runs in no \
container is shown as -.",
        examples: "\
How long do threads run at a time, during one second?

    # cpudist -e 1 1
    Tracing on-CPU time... Hit Ctrl-C to end.

         usecs               : count    distribution
             0 -> 1          : 0        |                                        |
             2 -> 3          : 98       |*********                               |
             4 -> 7          : 108      |**********                              |
             8 -> 15         : 404      |****************************************|
            16 -> 31         : 392      |**************************************  |
            32 -> 63         : 248      |************************                |
            64 -> 127        : 31       |***                                     |
           128 -> 255        : 24       |**                                      |
           256 -> 511        : 26       |**                                      |
           512 -> 1023       : 121      |***********                             |
          1024 -> 2047       : 165      |****************                        |
          2048 -> 4095       : 381      |*************************************   |
          4096 -> 8191       : 47       |****                                    |

    avg = 987 usecs, total: 2019990 usecs, count: 2045

There are two kinds: threads that do a little and wait again, and others that compute for as long \
as they are let, some 3 milliseconds. The total says that two CPUs were busy all the time.

How long is each thread of process 1234 away from the CPU, in milliseconds?

    # cpudist -O -L -m -p 1234 10 1",
        overhead: "\
A short program at each change of threads, which counts in the kernel: some hundred nanoseconds, \
which a machine that changes threads 100,000 times a second will feel. What is read at each report \
is only the histograms. With -O the map of threads takes about 2 MiB of kernel memory, and more \
where there are more than 16,384 threads at the start; histograms by process and the like take 4 MiB \
more.",
        limits: "\
Interrupts count as time of the thread that they interrupt, and so does time that a virtual machine \
waits for a CPU of its host. A thread that is never taken off its CPU is never counted. In a PID \
namespace, the last stint of a thread that ends may have no id any more: filters on ids leave it \
out. In one report, up to 10,240 processes, threads, namespaces or cgroups are told apart; times of \
more are counted as map_full, as are with -O those of threads for which the map has no room.",
    };
    const QUESTION: Question =
        Question { heading: "CPU", question: "How long do threads run at a time?" };
    const LETTERS: &'static [(&'static str, char)] =
        &[("cgroup", 'c'), ("pid", 'p'), ("timestamp", 'T')];

    fn ways(&self) -> Vec<Way> {
        vec![Way::new("btf", &["switch__btf"]), Way::new("rawtp", &["switch__rawtp"])]
    }

    fn records(&self) -> Records {
        let which = if self.offcpu { "off" } else { "on" };
        Records::new([thread_times::kind("on_cpu_ns"), thread_times::kind("off_cpu_ns")])
            .banner(format!("Tracing {which}-CPU time... Hit Ctrl-C to end."))
            .naming_cgroups(self.by.names_cgroups())
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, _way: &Way) -> Result<()> {
        self.by.configure(open.open_object_mut(), self.unit())?;
        let settings = open.maps.rodata_data.as_deref_mut().context("no .rodata")?;
        settings.want_off_cpu = self.offcpu;
        settings.want_idle = self.include_idle;
        open.maps.waits.set_autocreate(self.offcpu)?;
        open.maps.waits.set_max_entries(threads::room())?;
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let maps = &skel.maps;
        let mut times =
            Times::new(&self.by, &maps.times_of_all, &maps.times_now, &maps.times_first);
        let unit = self.unit();
        let timestamp = session.common.choice.timestamp;
        let mut report = |out: &mut Output| -> Result<()> {
            out.line("");
            if timestamp {
                out.time_line();
            }
            let all = times.show(out, usize::from(self.offcpu), unit)?;
            if self.extension && all.count() > 0 {
                out.line(&all.summary(unit));
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
