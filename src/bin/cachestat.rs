// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! cachestat: how much of what is read comes from the page cache.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use bpfscope::cli;
use bpfscope::cli::Reports;
use bpfscope::maps;
use bpfscope::prelude::*;
use nix::unistd::SysconfVar;
use nix::unistd::sysconf;

bpf!("cachestat");
use bpf::types;

/// Count hits and misses of the page cache, and pages made dirty
#[derive(clap::Args)]
pub struct Args {
    /// Seconds between reports
    #[arg(default_value = "1", value_parser = cli::seconds)]
    interval: Duration,
    /// End after this many reports
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

/// Pages, in an interval or since the start.
#[derive(Clone, Copy, Default)]
struct Count {
    hits: u64,
    misses: u64,
    dirties: u64,
    added: u64,
}

impl Count {
    fn since(self, earlier: Self) -> Self {
        Self {
            hits: self.hits.saturating_sub(earlier.hits),
            misses: self.misses.saturating_sub(earlier.misses),
            dirties: self.dirties.saturating_sub(earlier.dirties),
            added: self.added.saturating_sub(earlier.added),
        }
    }

    /// Which part of the reads were hits, in millionths.
    fn hit_ratio(self) -> Option<u64> {
        let all = u128::from(self.hits) + u128::from(self.misses);
        u64::try_from((u128::from(self.hits) * 1_000_000).checked_div(all)?).ok()
    }
}

/// What /proc/meminfo says under this name, in bytes.
fn memory(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

macro_rules! twins {
    ($way:literal, $($name:literal)*) => {
        &[$((concat!($name, "__", $way), concat!($name, "_twin__", $way))),*]
    };
}

/// The tracepoints of both ways.
macro_rules! tracepoints {
    ($way:expr, $name:literal) => {
        $way.with(true, &[concat!("added__", $name), concat!("added_twin__", $name)])
            .by_tracepoint(
                "writeback_dirty_folio",
                &[concat!("dirtied__", $name), concat!("dirtied_twin__", $name)],
                &[concat!("dirtied_old__", $name), concat!("dirtied_old_twin__", $name)],
            )
            .twins(twins!($name, "added" "dirtied" "dirtied_old"))
    };
}

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Shows how well the page cache serves what is read from files and block devices, one line an \
interval. All numbers are pages (of 4 KiB on most machines), whatever the size of the folios that \
the kernel keeps them in.

HITS and MISSES together are the pages that were read: of each read(2), sendfile(2), splice(2) and \
their like those that its bytes lie in, so that reading one byte is reading one page; and of mapped \
files one for each page fault that was served. A read of a page is a miss when it is the first one \
since the page was brought into the cache, also when it was brought in ahead of the read. So \
reading an uncached file once makes as many misses as it has pages and no hits, and reading it again \
makes as many hits and no misses. Pages that are read ahead but never used are neither. Data that \
was written is in the cache, and reading it is a hit. HITRATIO is the hits among both; it is - when \
nothing was read.

DIRTIES are pages that were clean and became dirty, by writing or otherwise; writing to a page that \
is dirty already does not count. It is what the kernel counts as nr_dirtied in /proc/vmstat, and \
like there, a folio becomes dirty as a whole: on file systems with large folios, a small write can \
make many pages dirty. That includes metadata that file systems keep in the cache. Writing is no \
miss, not even of a file that is not cached.

BUFFERS_MB and CACHED_MB are the sizes at the end of the interval, as /proc/meminfo has them: pages \
of block devices, and of files. They are of the whole machine.

The field added (--fields +added, and in JSON) has the pages that came into the cache, for whatever \
reason. What exceeds the misses was read ahead, or written.

With filters (--pid, --comm, --cgroup and the others), what such tasks read and made dirty is \
counted. Whether a page was read before is known of all tasks.",
        examples: "\
How well does the cache work, each second?

    # cachestat 1 3
        HITS   MISSES  DIRTIES HITRATIO   BUFFERS_MB  CACHED_MB
         508      141        0   78.27%            0        137
         537      172        0   75.74%            0        137
         982      255        0   79.39%            0        137

Of the 649 pages that were read in the first second, 141 had come from the disk for it; all of them \
together are 2.5 MB.

The same with the time, every 10 seconds, six times:

    # cachestat -T 10 6

How much of what this command reads comes from the cache?

    # cachestat 3600 -- grep -r pattern /usr/include",
        overhead: "\
One program for each read and each page fault in a mapped file, which does some work for each 64 \
pages of it, and one for each page or folio that comes into the cache or becomes dirty. Each is \
followed by a still shorter one that steps in where the kernel skipped it. Where fexit cannot be \
used (way kprobe) there are two for a read, and a busy cache costs noticeably more.",
        limits: "\
Reads past the cache (O_DIRECT, DAX) are not seen, nor are those of file systems with a way of their \
own to read (tmpfs, ZFS), and reads of the file system's own metadata are not counted. What is done \
with a mapped page after the fault is not seen by anybody: a fault maps up to 16 pages that are \
cached, of which one is counted. Pages that were brought in before the tool was started are hits. \
Where a file system writes through without making pages dirty (FUSE without writeback cache), the \
first read after a write is a miss. When several tasks wait for the same page at the same moment, \
each of them may have the miss. Up to 65,536 \
stretches of 64 pages of which some came in are remembered; of more, those whose last use is longest \
ago are forgotten, and the first reads of pages in them are hits.

When another program attaches to one of the functions (with fentry or fexit) or detaches from it, the \
kernel lets the calls that are under way in that moment pass without telling.",
    };
    const QUESTION: Question = Question {
        heading: "Files",
        question: "How much of what is read comes from the page cache?",
    };
    const LETTERS: &'static [(&'static str, char)] = &[("pid", 'p'), ("timestamp", 'T')];

    fn ways(&self) -> Vec<Way> {
        // The names of functions changed in one version, all of them.
        let fexit = Way::new("fexit", &["fault__fexit", "fault_twin__fexit"])
            .group(&["read__fexit", "read_twin__fexit", "around__fexit", "around_twin__fexit"])
            .group(&[
                "read_old__fexit",
                "read_old_twin__fexit",
                "around_old__fexit",
                "around_old_twin__fexit",
            ])
            .optional(&["splice__fexit", "splice_twin__fexit"])
            .twins(twins!("fexit", "fault" "read" "around" "read_old" "around_old" "splice"));
        let kprobe = Way::new("kprobe", &["fault_exit__kprobe", "fault_enter__kprobe"])
            .group(&[
                "read_exit__kprobe",
                "read_enter__kprobe",
                "around_exit__kprobe",
                "around_enter__kprobe",
            ])
            .group(&[
                "read_old_exit__kprobe",
                "read_old_enter__kprobe",
                "around_old_exit__kprobe",
                "around_enter__kprobe",
            ])
            .optional(&["splice_exit__kprobe", "splice_enter__kprobe"]);
        vec![tracepoints!(fexit, "fexit"), tracepoints!(kprobe, "kprobe")]
    }

    fn records(&self) -> Records {
        let kind = Kind::row("cache")
            .field(
                "hits",
                Type::Uint,
                "Pages read that had been read since they were cached, or written.",
            )
            .field(
                "misses",
                Type::Uint,
                "Pages read for the first time since they were brought into the cache.",
            )
            .field("dirties", Type::Uint, "Pages that became dirty.")
            .field(
                "hit_ratio_ppm",
                Type::Uint,
                "Hits among hits and misses, in millionths; null when nothing was read.",
            )
            .field(
                "added",
                Type::Uint,
                "Pages that came into the cache, to be read, ahead, or written.",
            )
            .field("buffers_bytes", Type::Uint, "Cached of block devices, by /proc/meminfo.")
            .field("cached_bytes", Type::Uint, "Cached of files, by /proc/meminfo.")
            .columns([
                time_column("TIME", 8, TimeFormat::Wall),
                column("hits", "HITS", 8).right(),
                column("misses", "MISSES", 8).right(),
                column("dirties", "DIRTIES", 8).right(),
                column("hit_ratio_ppm", "HITRATIO", 8).right().format(Format::Percent(2)).null("-"),
                column("added", "ADDED", 8).right().when(false),
                column("buffers_bytes", "BUFFERS_MB", 12).right().format(Format::Mib),
                column("cached_bytes", "CACHED_MB", 10).right().format(Format::Mib),
            ]);
        Records::new([kind])
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, _way: &Way) -> Result<()> {
        let settings = open.maps.rodata_data.as_deref_mut().context("no .rodata")?;
        let page = sysconf(SysconfVar::PAGE_SIZE)?.context("no page size")?;
        settings.page_shift = page.trailing_zeros();
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let mut seen = Count::default();
        session.output.header(0);
        let mut report = |out: &mut Output| -> Result<()> {
            let sums: HashMap<u32, Count> =
                maps::fold(&skel.maps.counts, |sum: &mut Count, part: &types::cache_count| {
                    sum.hits += part.hits;
                    sum.misses += part.misses;
                    sum.dirties += part.dirties;
                    sum.added += part.added;
                })?;
            let now = sums.into_values().next().unwrap_or_default();
            let count = now.since(seen);
            seen = now;
            let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
            let known = |number: Option<u64>| number.map_or(Value::Null, Value::Uint);
            out.row(
                0,
                &[
                    Value::Uint(count.hits),
                    Value::Uint(count.misses),
                    Value::Uint(count.dirties),
                    known(count.hit_ratio()),
                    Value::Uint(count.added),
                    known(memory(&meminfo, "Buffers")),
                    known(memory(&meminfo, "Cached")),
                ],
            );
            out.report_done();
            Ok(())
        };
        let reports = Reports { interval: Some(self.interval), count: self.count };
        session.every(reports.every(&mut report))
    }
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios() {
        let ratio = |hits, misses| Count { hits, misses, ..Count::default() }.hit_ratio();
        assert_eq!(ratio(0, 0), None);
        assert_eq!(ratio(0, 7), Some(0));
        assert_eq!(ratio(1, 2), Some(333_333));
        assert_eq!(ratio(u64::MAX, 0), Some(1_000_000));
    }

    #[test]
    fn memory_is_found_by_its_name() {
        let text =
            "SwapCached:       12 kB\nCached:         2048 kB\nBuffers: x kB\nHugePages: 3\n";
        assert_eq!(memory(text, "Cached"), Some(2 << 20));
        assert_eq!(memory(text, "Buffers"), None);
        assert_eq!(memory(text, "HugePages"), None);
        assert_eq!(memory(text, "Shmem"), None);
    }
}
