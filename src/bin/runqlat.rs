// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! runqlat: how long threads that could run wait for a CPU.

use bpfscope::cli::Reports;
use bpfscope::histogram;
use bpfscope::histogram::Unit;
use bpfscope::prelude::*;
use bpfscope::thread_times;
use bpfscope::thread_times::By;
use bpfscope::thread_times::Times;
use bpfscope::threads;
use libbpf_rs::skel::OpenSkel as _;

bpf!("runqlat");

/// Show how long threads wait for a CPU as a histogram
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    reports: Reports,
    /// Count in milliseconds instead of microseconds
    #[arg(short, long)]
    milliseconds: bool,
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
Counts how long threads wait for a CPU although they could run, in a histogram whose rows are powers \
of two. A wait begins when a thread is woken, when it is new, and when it is taken off the CPU \
before it was done; it ends when it runs. Each wait is counted once, when it ends. A wait that had \
begun before the tool is not known and not counted.

On an idle machine nearly all waits take a few microseconds. Waits of milliseconds mean that there \
are more threads that want to run than CPUs to run them, or that a cgroup has used up its share \
(cpu.max), or that threads are tied to CPUs that others use.

With -P, -L, --pidnss, --by-cgroup and --by-container there is one histogram for each process, \
thread, PID namespace, cgroup (not with what is below it) or container. The name beside a process \
or thread is the one that it had at its last wait, and beside a PID namespace that of its first \
process. What runs in no container is shown as -.

Filters (-p, -c, --comm and the others) mean the thread that waits, not the one that wakes it.",
        examples: "\
Is there a shortage of CPUs? One second of it:

    # runqlat 1 1
    Tracing run queue latency... Hit Ctrl-C to end.

         usecs               : count    distribution
             0 -> 1          : 416      |****************************************|
             2 -> 3          : 57       |*****                                   |
             4 -> 7          : 43       |****                                    |
             8 -> 15         : 280      |**************************              |
            16 -> 31         : 150      |**************                          |
            32 -> 63         : 156      |***************                         |
            64 -> 127        : 35       |***                                     |
           128 -> 255        : 5        |                                        |
           256 -> 511        : 2        |                                        |
           512 -> 1023       : 5        |                                        |
          1024 -> 2047       : 26       |**                                      |
          2048 -> 4095       : 98       |*********                               |
          4096 -> 8191       : 139      |*************                           |
          8192 -> 16383      : 218      |********************                    |
         16384 -> 32767      : 161      |***************                         |
         32768 -> 65535      : 85       |********                                |
         65536 -> 131071     : 2        |                                        |

Yes: this machine was compiling. Above are threads that found a CPU free; below, from 2 milliseconds \
on, four out of ten, which waited until others had used up their time on it.

Which process waits, in milliseconds, every 5 seconds with the time?

    # runqlat -PTm 5

Do the threads of process 1234 wait?

    # runqlat -L -p 1234 10 1

Which container has too little CPU?

    # runqlat --by-container 10 1",
        overhead: "\
A short program at each wake-up and at each change of threads, which count in the kernel: some \
hundred nanoseconds each, which a machine that changes threads 100,000 times a second will feel. \
What is read at each report is only the histograms. The map of threads takes about 2 MiB of kernel \
memory, and more where there are more than 16,384 threads at the start; histograms by process and \
the like take 4 MiB more.",
        limits: "\
Time that a virtual machine waits for a CPU of its host is not seen in the virtual machine. A thread \
that runs and is interrupted does not wait. In one report, up to 10,240 processes, threads, \
namespaces or cgroups are told apart; waits of more are counted as map_full, as those of threads for \
which the map of threads has no room.",
    };
    const QUESTION: Question =
        Question { heading: "CPU", question: "How long do threads wait for a CPU?" };
    const LETTERS: &'static [(&'static str, char)] =
        &[("cgroup", 'c'), ("pid", 'p'), ("timestamp", 'T')];

    fn ways(&self) -> Vec<Way> {
        vec![
            Way::new("btf", &["switch__btf", "wakeup__btf", "wakeup_new__btf"]),
            Way::new("rawtp", &["switch__rawtp", "wakeup__rawtp", "wakeup_new__rawtp"]),
        ]
    }

    fn records(&self) -> Records {
        Records::new([thread_times::kind("latency_ns")])
            .banner("Tracing run queue latency... Hit Ctrl-C to end.")
            .naming_cgroups(self.by.names_cgroups())
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, _way: &Way) -> Result<()> {
        self.by.configure(open.open_object_mut(), self.unit())?;
        open.maps.waits.set_max_entries(threads::room())?;
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let maps = &skel.maps;
        let mut times =
            Times::new(&self.by, &maps.times_of_all, &maps.times_now, &maps.times_first);
        let timestamp = session.common.choice.timestamp;
        let mut report = |out: &mut Output| -> Result<()> {
            out.line("");
            if timestamp {
                out.time_line();
            }
            times.show(out, 0, self.unit())?;
            out.report_done();
            Ok(())
        };
        session.every(self.reports.every(&mut report))
    }
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}
