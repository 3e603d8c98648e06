// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! mdflush: who asks software RAID to flush.

use bpfscope::block;
use bpfscope::disks::Disks;
use bpfscope::prelude::*;

bpf!("mdflush");
use bpf::types;

/// Trace flush requests that are sent to md devices (software RAID)
#[derive(clap::Args)]
pub struct Args {
    /// Show each flush when it is done, and how long it took
    #[arg(short, long)]
    latency: bool,
}

/// Both ways have the same programs under their own names.
macro_rules! way {
    ($args:ident, $way:literal) => {{
        let mut way = Way::new($way, &[]);
        if $args.latency {
            way = way
                .with(true, &[concat!("complete__", $way)])
                .twin(concat!("complete__", $way), concat!("complete_twin__", $way));
        }
        way.with(true, &[concat!("queue__", $way)])
            .twin(concat!("queue__", $way), concat!("queue_twin__", $way))
    }};
}

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Shows each flush that is sent to an md device: the time, the process that sent it, and the device. \
A flush makes all members of the array write out their caches, which can take long; many of them \
are a reason why everything on an array is slow.

A flush is sent by fsync and its like, by the journal of a file system, and by other block devices \
that lie on the array (dm, loop); these show the kernel thread that does it.

With -l a flush is shown when it is done, with LAT(ms), the time since it was sent; TIME is still \
when that was. A flush that has data with it takes also as long as the data.",
        examples: "\
Who flushes the array?

    # mdflush

How long does each of them take?

    # mdflush -l
    Tracing md flush requests... Hit Ctrl-C to end.
    TIME     PID     COMM             LAT(ms) DEVICE
    20:00:13 756     dd                 0.525 md0
    20:00:13 757     mkfs.ext4          0.544 md0
    20:00:13 757     mkfs.ext4          0.380 md0
    20:00:13 764     umount             0.636 md0
    20:00:13 764     umount             0.412 md0

A dd with conv=fsync flushes once, at its end; to make a file system and to unmount it takes several \
flushes each.",
        overhead: "\
One short program for each bio that enters the block layer of any disk, which looks at its flags; \
with -l one more when a bio is done. Each is followed by a still shorter one that steps in where \
the kernel skipped it.",
        limits: "\
Arrays are known by their disk's name (md0, md127, md_home). Flushes that the kernel drops because \
the array has no member with a cache are not sent, and so not shown.",
    };
    const QUESTION: Question =
        Question { heading: "Block I/O", question: "Who makes software RAID flush its disks?" };
    const LETTERS: &'static [(&'static str, char)] = &[("pid", 'p')];

    fn ways(&self) -> Vec<Way> {
        vec![way!(self, "btf"), way!(self, "rawtp")]
    }

    fn records(&self) -> Records {
        let kind = Kind::event("flush")
            .field("device", Type::String, "The md device; null when it has no name.")
            .field("size_bytes", Type::Uint, "Data that is to be written after the flush.")
            .field("lat_ns", Type::Uint, "Until it was done; null without --latency.")
            .field(
                "error",
                Type::Errno,
                "Why it failed; null when it did not, or without --latency.",
            )
            .columns([
                time_column("TIME", 8, TimeFormat::Wall).when(true),
                column("pid", "PID", 7),
                column("comm", "COMM", 16),
                column("lat_ns", "LAT(ms)", 7).right().format(Format::Millis(3)).when(self.latency),
                column("device", "DEVICE", 0).null("Unknown"),
            ]);
        Records::new([kind]).banner("Tracing md flush requests... Hit Ctrl-C to end.")
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, _way: &Way) -> Result<()> {
        let settings = open.maps.rodata_data.as_deref_mut().context("no .rodata")?;
        settings.want_latency = self.latency;
        open.maps.flushes.set_autocreate(self.latency)?;
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let mut disks = Disks::read();
        session.stream(&skel.maps.events, |record, out| {
            let event: &types::event = record.body()?;
            let status = i32::try_from(event.status).unwrap_or(i32::MAX);
            let error = Value::Errno(block::errno(status));
            out.event(
                0,
                record.head()?,
                &[
                    disks.name(event.disk).map_or(Value::Null, Value::Str),
                    Value::Uint(event.bytes.into()),
                    if self.latency { Value::Uint(event.lat_ns) } else { Value::Null },
                    if self.latency { error } else { Value::Null },
                ],
            );
            Ok(())
        })
    }
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}
