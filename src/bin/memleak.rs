// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! memleak: memory that is allocated and not given back, by the stack that asked for it.

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use bpfscope::cli::seconds;
use bpfscope::escape;
use bpfscope::filter::filters_tree;
use bpfscope::interrupt;
use bpfscope::maps;
use bpfscope::prelude::*;
use bpfscope::shared::StackKey;
use bpfscope::stacks;
use bpfscope::stacks::Entry;
use bpfscope::stacks::Stack;
use bpfscope::stacks::Stacks;
use bpfscope::stacks::Storage;
use bpfscope::stacks::Taken;
use bpfscope::uprobe::Function;
use bpfscope::uprobe::Libraries;
use clap::ValueEnum;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use libbpf_rs::skel::OpenSkel as _;
use nix::time::ClockId;

bpf!("memleak");
use bpf::types;

/// Show memory that is allocated and not given back, by stack
#[derive(clap::Args)]
// Each is a switch of its own on the command line.
#[allow(clippy::struct_excessive_bools)]
pub struct Args {
    /// Seconds between reports
    #[arg(value_parser = seconds, default_value = "5")]
    interval: Duration,
    /// End after this many reports
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    intervals: Option<u64>,
    /// Show each allocation and each release as it happens
    #[arg(short, long)]
    trace: bool,
    /// Show each outstanding allocation, below its stack
    #[arg(short = 'a', long)]
    show_allocs: bool,
    /// Only allocations that are at least so many milliseconds old
    #[arg(short, long, value_name = "MS", conflicts_with = "combined_only",
          value_parser = clap::value_parser!(u64).range(..=u64::MAX / 1_000_000))]
    older: Option<u64>,
    /// Run this and trace its processes: a program and its arguments, separated by spaces
    #[arg(short, long = "command", value_name = "COMMAND", id = "command_line")]
    command: Option<String>,
    /// Only sum up by stack, in the kernel: neither ages nor single allocations
    #[arg(short = 'C', long, conflicts_with = "show_allocs")]
    combined_only: bool,
    /// Where an address is allocated again, take it that its release was not seen
    #[arg(short = 'F', long)]
    wa_missing_free: bool,
    /// Take one allocation of N, by chance
    #[arg(short, long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..))]
    sample_rate: u32,
    /// Show at most N stacks (default: 10; all of them in JSON and CSV)
    #[arg(short = 'T', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    top: Option<u64>,
    /// Only allocations of at least so many bytes
    #[arg(short = 'z', long, value_name = "BYTES", default_value_t = 0)]
    min_size: u64,
    /// Only allocations of at most so many bytes
    #[arg(short = 'Z', long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    max_size: Option<u64>,
    /// The library with the allocator, by name or path, instead of the C library
    #[arg(short = 'O', long, value_name = "OBJECT", conflicts_with = "kernel",
          value_parser = clap::builder::NonEmptyStringValueParser::new())]
    obj: Option<String>,
    /// Also memory that the kernel allocates for each CPU
    #[arg(short = 'P', long)]
    percpu: bool,
    /// What the names of the allocator's functions begin with: je_ for je_malloc
    #[arg(short = 'S', long, value_name = "PREFIX", conflicts_with = "kernel",
          value_parser = clap::builder::NonEmptyStringValueParser::new())]
    symbols_prefix: Option<String>,
    /// Order of the stacks: size or count
    #[arg(long, value_name = "ORDER", default_value = "size", hide_possible_values = true)]
    sort: Order,
    /// The allocators of the kernel, also where processes or a command are named
    #[arg(long, conflicts_with = "user")]
    kernel: bool,
    /// The allocators of programs, also where no process is named
    #[arg(long)]
    user: bool,
    /// How many allocations can be outstanding at a time
    #[arg(long, value_name = "N", default_value_t = 1_000_000,
          value_parser = clap::value_parser!(u32).range(1..=1 << 26))]
    allocations: u32,
    #[command(flatten)]
    storage: Storage,
    /// Whether it is about programs; else about the kernel.
    #[arg(skip)]
    of_programs: bool,
    /// Whether a task is asked for.
    #[arg(skip)]
    of_tasks: bool,
    /// Whether the kernel side can tell interrupts from tasks.
    #[arg(skip)]
    knows_interrupts: Cell<bool>,
    #[arg(skip)]
    banner: String,
    /// When the table was frozen.
    #[arg(skip)]
    stopped: Rc<Cell<u64>>,
}

/// What the stacks of a report are sorted by; the largest stands first.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Size,
    Count,
}

const OLDER_MS: u64 = 500;
const TOP: u64 = 10;

/// In the order of `enum function`.
const FUNCTIONS: [&str; 24] = [
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "posix_memalign",
    "aligned_alloc",
    "memalign",
    "valloc",
    "pvalloc",
    "new",
    "new[]",
    "mmap",
    "mremap",
    "free",
    "delete",
    "munmap",
    "kmalloc",
    "kmem_cache_alloc",
    "page_alloc",
    "percpu_alloc",
    "kfree",
    "kmem_cache_free",
    "page_free",
    "percpu_free",
];

fn function(number: types::function) -> Value<'static> {
    FUNCTIONS.get(number.0 as usize).map_or(Value::Null, |name| Value::Str(name))
}

/// Symbols, and the programs at their beginning and end. First the allocator's own, which a prefix
/// stands before.
const ALLOCATOR: [(&str, &str, &str); 13] = [
    ("free", "free_enter", ""),
    ("cfree", "free_enter", ""),
    ("free_sized", "free_enter", ""),
    ("free_aligned_sized", "free_enter", ""),
    ("malloc", "malloc_enter", "call_exit"),
    ("calloc", "calloc_enter", "call_exit"),
    ("realloc", "realloc_enter", "call_exit"),
    ("reallocarray", "reallocarray_enter", "call_exit"),
    ("posix_memalign", "posix_memalign_enter", "call_exit"),
    ("aligned_alloc", "aligned_alloc_enter", "call_exit"),
    ("memalign", "memalign_enter", "call_exit"),
    ("valloc", "valloc_enter", "call_exit"),
    ("pvalloc", "pvalloc_enter", "call_exit"),
];
/// The others: memory maps, and the operators new and delete where the allocator's library has
/// them.
const OTHERS: [(&str, &str, &str); 24] = [
    ("munmap", "munmap_enter", ""),
    ("mmap", "mmap_enter", "call_exit"),
    ("mmap64", "mmap_enter", "call_exit"),
    ("mremap", "mremap_enter", "call_exit"),
    ("_ZdlPv", "delete_enter", ""),
    ("_ZdaPv", "delete_enter", ""),
    ("_ZdlPvm", "delete_enter", ""),
    ("_ZdaPvm", "delete_enter", ""),
    ("_ZdlPvRKSt9nothrow_t", "delete_enter", ""),
    ("_ZdaPvRKSt9nothrow_t", "delete_enter", ""),
    ("_ZdlPvSt11align_val_t", "delete_enter", ""),
    ("_ZdaPvSt11align_val_t", "delete_enter", ""),
    ("_ZdlPvmSt11align_val_t", "delete_enter", ""),
    ("_ZdaPvmSt11align_val_t", "delete_enter", ""),
    ("_ZdlPvSt11align_val_tRKSt9nothrow_t", "delete_enter", ""),
    ("_ZdaPvSt11align_val_tRKSt9nothrow_t", "delete_enter", ""),
    ("_Znwm", "new_enter", "call_exit"),
    ("_ZnwmRKSt9nothrow_t", "new_enter", "call_exit"),
    ("_ZnwmSt11align_val_t", "new_enter", "call_exit"),
    ("_ZnwmSt11align_val_tRKSt9nothrow_t", "new_enter", "call_exit"),
    ("_Znam", "new_array_enter", "call_exit"),
    ("_ZnamRKSt9nothrow_t", "new_array_enter", "call_exit"),
    ("_ZnamSt11align_val_t", "new_array_enter", "call_exit"),
    ("_ZnamSt11align_val_tRKSt9nothrow_t", "new_array_enter", "call_exit"),
];

/// The C libraries of GNU and musl, by the names of their files.
fn is_libc(name: &[u8]) -> bool {
    name == b"libc.so"
        || [&b"libc.so."[..], b"libc-", b"ld-musl-", b"libc.musl-"]
            .iter()
            .any(|start| name.starts_with(start))
}

/// Whether a file is the library `wanted`, with or without the version behind the name.
fn is_named(name: &[u8], wanted: &str) -> bool {
    let rest = name.strip_prefix(wanted.as_bytes());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b".") || rest.starts_with(b"-"))
}

/// Freezes the table at the end, so that taking down the probes changes nothing any more.
struct Freeze {
    frozen: MapHandle,
    at: Rc<Cell<u64>>,
}

fn now_ns() -> u64 {
    let now = ClockId::CLOCK_BOOTTIME.now().map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(0)
}

impl Aside for Freeze {
    fn descriptors(&self, _: &mut dyn FnMut(BorrowedFd<'_>)) {}

    fn act(&mut self) -> Result<()> {
        Ok(())
    }

    fn stop(&mut self) {
        let (zero, one) = (0u32.to_ne_bytes(), 1u32.to_ne_bytes());
        // Nothing but a closed map could refuse it; then the probes end a moment later.
        let _ = self.frozen.update(&zero, &one, MapFlags::ANY);
        self.at.set(now_ns());
    }
}

/// One allocation of a report.
#[derive(Clone, Copy)]
struct One {
    address: u64,
    size: u64,
    age_ns: u64,
}

/// What is outstanding of a stack.
#[derive(Clone, Default)]
struct Outstanding {
    bytes: u64,
    count: u64,
    oldest_ns: Option<u64>,
    /// Each of them, where they are to be shown.
    all: Vec<One>,
}

impl std::ops::AddAssign for Outstanding {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.count += other.count;
        self.oldest_ns = self.oldest_ns.max(other.oldest_ns);
        self.all.extend(other.all);
    }
}

/// A stack of one process, or of the kernel, and the function that was called.
type Group = (u64, u32, u32);

/// Programs and their twins.
macro_rules! pairs {
    ($($name:literal),+) => {
        [$((concat!($name, "__rawtp"), concat!($name, "_twin__rawtp"))),+]
    };
}

/// The way to hook into the kernel's allocators. `twins` is whether what is skipped is made up for.
fn kernel_way(percpu: bool, twins: bool) -> Way {
    let pairs = pairs!("kfree", "kmem_cache_free", "mm_page_free")
        .into_iter()
        .chain(pairs!("percpu_free_percpu", "percpu_alloc_percpu").into_iter().filter(|_| percpu))
        .chain(pairs!("kmalloc", "kmem_cache_alloc", "mm_page_alloc"));
    let mut way = Way::new("rawtp", &[]);
    for (program, twin) in pairs {
        way = way.with(true, &[program]);
        if twins {
            way = way.twin(program, twin);
        }
    }
    // Gone since 11e9734bcb6a "mm/slab_common: unify NUMA and UMA version of tracepoints" (6.1).
    let node = pairs!("kmalloc_node", "kmem_cache_alloc_node");
    for (tracepoint, (program, twin)) in
        ["kmalloc_node", "kmem_cache_alloc_node"].into_iter().zip(node)
    {
        let having = if twins { vec![program, twin] } else { vec![program] };
        way = way.by_tracepoint(tracepoint, &having, &[]).twins(&[(program, twin)]);
    }
    way.optional(&["free_bulk"])
}

impl Args {
    fn older_ns(&self) -> u64 {
        self.older.unwrap_or(OLDER_MS) * 1_000_000
    }

    /// Of [`OTHERS`], what there can be: no C library has operators.
    fn others(&self) -> impl Iterator<Item = &'static (&'static str, &'static str, &'static str)> {
        let operators = self.obj.is_some();
        OTHERS.iter().filter(move |(symbol, ..)| operators || !symbol.starts_with("_Z"))
    }

    /// What is probed in the allocator's library.
    fn functions(&self) -> Vec<Function> {
        let named = |(symbol, enter, exit): &(&str, &'static str, &'static str)| {
            let prefix = self.symbols_prefix.as_deref().unwrap_or_default();
            // Some names, once, for as long as the tool runs.
            Function { symbol: format!("{prefix}{symbol}").leak(), enter, exit }
        };
        let others = self.others().map(|(symbol, enter, exit)| Function { symbol, enter, exit });
        ALLOCATOR.iter().map(named).chain(others).collect()
    }

    fn libraries(&self, object: &libbpf_rs::Object, only: &[u32]) -> Result<Libraries> {
        let functions = self.functions();
        match &self.obj {
            Some(path) if path.contains('/') => File::open(path)
                .map_err(anyhow::Error::from)
                .and_then(|file| Libraries::in_file(object, &functions, &file, only))
                .with_context(|| path.clone()),
            Some(name) => {
                let name = name.clone();
                Libraries::everywhere(object, &functions, move |file| is_named(file, &name), only)
            }
            None => Libraries::everywhere(object, &functions, is_libc, only),
        }
    }
}

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Remembers each allocation of memory until it is given back, and shows every five seconds, and at \
the end, what is outstanding, summed up by the stack that asked for it. What grows from report to \
report, with the same stack, is a leak.

With -p PID, with a command (-c, or after --), and with --user, the allocators of programs are \
traced: malloc() and its family, mmap() and mremap(). Without, it is those of the kernel: kmalloc(), \
the slab caches, pages, and with -P the memory that each CPU has its own copy of. The other filters \
choose tasks in both; --kernel -p PID shows what the kernel allocates while it works for a process.

Functions that call each other are one: of a calloc() that calls malloc() inside of the library the \
calloc() counts, once. Memory that is made larger or smaller by realloc() is one allocation, with \
the stack and the age of the last change; where realloc() fails, it stays what it was. Operators \
new and delete of C++ end in malloc() and free(), and are probed themselves only in a library that \
is named with -O and has them.

Allocations younger than 500 ms (-o) are left out, since most memory is given back soon. Those of a \
process that has ended are still shown: it has not given them back itself. What a process had before \
it executed another program is not.

Each stack is shown with the number of bytes and of allocations, the function that called the \
allocator first, and its callers below it. A release of what was not seen to be allocated changes \
nothing, so no sum is ever too small.",
        examples: "\
What does process 1234 not give back?

    # memleak -p 1234
    Attaching to pid 1234, Ctrl+C to quit.
    [09:14:27] Top 10 stacks with outstanding allocations:
    1048576 bytes in 256 allocations from stack
    	0 [<000055d0c4f2a1c9>] read_request+0x29 [/usr/bin/server]
    	1 [<000055d0c4f2a2f0>] serve+0x40 [/usr/bin/server]
    	2 [<000055d0c4f2a0e5>] main+0x55 [/usr/bin/server]

Each of the 256 was made in read_request(), 41 bytes behind its beginning.

A program from its start to its end, whatever the age, as JSON:

    # memleak -o 0 --output json -- ./program argument

Which kernel functions allocate large amounts that stay, one look after a minute?

    # memleak -o 30000 60 1

A program with an allocator of its own:

    # memleak -p 1234 -O libjemalloc.so.2",
        overhead: "\
High. A program pays some microseconds for each call of its allocator, which itself takes a tenth of \
one: programs that allocate much become several times slower. -s takes only one allocation of N, \
which saves the walk of the stack and its place in the table. With -p only these processes pay; \
without, all processes that use the library enter the probes, also those that no filter wants. In \
the kernel, hundreds of thousands of allocations a second are usual. The table has room for a \
million allocations (--allocations), and takes about 110 bytes of kernel memory for each place.",
        limits: "\
A stack of a program is followed by frame pointers: programs and libraries that are compiled \
without them have wrong or missing callers. Allocators that are linked into the program itself are \
seen with -O PROGRAM. 32-bit programs are not seen. What a process allocates in the first moments \
after it was the first to map a library is not seen; with the path of the library (-O PATH) it is. Of a memory map that is given back in parts, the \
beginning is taken off, and other parts are not. An allocator whose call is left by an exception \
cannot be probed at its end: operator new of a library of -O ends a program that catches bad_alloc. \
What one process allocates and another one gives back (shared memory) stays.

Of the kernel, memory that the slab caches take from the page allocator is shown with both. Objects \
that are allocated many at a time are not seen. Those that are given back many at a time, or after a \
grace period of RCU, are seen where kmem_cache_free_bulk() can be probed and is called; elsewhere \
they seem to stay (-F helps where their places are used again). With a filter on tasks, allocations \
of interrupts are left out, where /proc/kallsyms says where the kernel counts them (x86 kernels with \
CONFIG_KALLSYMS_ALL, unless kernel.kptr_restrict hides it; arm64 always).

-C has no ages, and counts what is very young, too. With -s the numbers are those of the sample.",
    };
    const QUESTION: Question = Question {
        heading: "Memory",
        question: "Which code allocates memory and does not free it?",
    };
    const LETTERS: &'static [(&'static str, char)] = &[("pid", 'p')];

    fn ways(&self) -> Vec<Way> {
        if !self.of_programs {
            return vec![kernel_way(self.percpu, self.sample_rate == 1)];
        }
        let all = ALLOCATOR.iter().chain(self.others());
        let mut programs: Vec<&'static str> = all
            .flat_map(|(_, enter, exit)| [*exit, *enter])
            .filter(|name| !name.is_empty())
            .collect();
        programs.sort_unstable();
        programs.dedup();
        vec![Way::new("uprobe", &[]).by_hand(&programs).optional(&["exec__uprobe"])]
    }

    fn check(&mut self, common: &mut Common) -> Result<()> {
        if let Some(command) = &self.command {
            if !common.command.is_empty() {
                return Err(usage("--command and a command after -- exclude each other"));
            }
            common.command = command.split_whitespace().map(OsString::from).collect();
            if common.command.is_empty() {
                return Err(usage("--command: there is no command"));
            }
        }
        if self.max_size.is_some_and(|max| max < self.min_size) {
            return Err(usage("--max-size is less than --min-size"));
        }
        if common.max_rate.is_some() && !self.trace {
            return Err(usage("--max-rate makes no sense without --trace"));
        }
        if common.choice.timestamp && !self.trace {
            return Err(usage(
                "--timestamp makes no sense without --trace: reports have their time",
            ));
        }
        let named = self.obj.is_some() || self.symbols_prefix.is_some();
        self.of_programs = !self.kernel
            && (self.user || named || !common.pid.is_empty() || !common.command.is_empty());
        if self.percpu && self.of_programs {
            return Err(usage("--percpu is about the kernel, not about programs"));
        }
        if let Some(path) = self.obj.as_deref().filter(|path| path.contains('/'))
            && !Path::new(path).is_file()
        {
            return Err(usage(format!("--obj {path}: there is no such file")));
        }
        self.of_tasks = common.filters_tasks() || filters_tree(common);
        let pids: Vec<String> = common.pid.iter().map(u32::to_string).collect();
        self.banner = match (self.of_programs, pids.is_empty()) {
            (true, false) => format!("Attaching to pid {}, Ctrl+C to quit.", pids.join(",")),
            (true, true) => "Attaching to processes, Ctrl+C to quit.".into(),
            (false, _) => "Attaching to kernel allocators, Ctrl+C to quit.".into(),
        };
        Ok(())
    }

    fn records(&self) -> Records {
        let stack = Kind::row("stack")
            .field("pid", Type::Uint, "Process id; null for the kernel's allocators.")
            .field("comm", Type::String, "Command name of the process; null for the kernel's allocators.")
            .field("function", Type::String, "What was called: malloc, mmap, kmalloc and so on.")
            .field("size_bytes", Type::Uint, "How many bytes are outstanding.")
            .field("allocations", Type::Uint, "In how many allocations.")
            .field("oldest_ns", Type::Uint, "Age of the oldest of them; null with --combined-only.")
            .field("stack_id", Type::Id, "Number of the stack in this run.")
            .field("kernel_stack", Type::Stack, "Where in the kernel they were made, leaf first; null for programs, or when it could not be kept.")
            .field("user_stack", Type::Stack, "Where in the program they were made, leaf first; null for the kernel, or when it could not be kept.")
            .columns([
                column("size_bytes", "BYTES", 12).right(),
                column("allocations", "COUNT", 8).right(),
                column("pid", "PID", 7).null("-"),
                column("comm", "COMM", 16).null("-"),
                column("function", "FUNCTION", 16),
                column("kernel_stack", "KERNEL", 0).null("-").when(false),
                column("user_stack", "USER", 0).null("-").when(false),
            ]);
        let allocation = Kind::row("allocation")
            .field("pid", Type::Uint, "Process id; null for the kernel's allocators.")
            .field("address", Type::Id, "Where it is; of pages, where the kernel describes them.")
            .field("size_bytes", Type::Uint, "Its size.")
            .field("age_ns", Type::Uint, "How long ago it was made.")
            .field("stack_id", Type::Id, "Number of its stack; the row of it stands before.")
            .columns([
                column("address", "ADDRESS", 18).format(Format::Hex),
                column("size_bytes", "BYTES", 12).right(),
                column("age_ns", "AGE(ms)", 12).right().format(Format::Millis(3)),
                column("pid", "PID", 7).null("-"),
            ]);
        let call = Kind::event("call")
            .field("function", Type::String, "What was called.")
            .field(
                "address",
                Type::Id,
                "What was allocated or released; of pages, where the kernel describes them.",
            )
            .field("size_bytes", Type::Uint, "Its size.")
            .field("stack_id", Type::Id, "Number of the stack that it was allocated with.")
            .columns([
                time_column("TIME", 8, TimeFormat::Wall),
                column("pid", "PID", 7),
                column("tid", "TID", 7).when(false),
                column("comm", "COMM", 16),
                column("function", "FUNCTION", 16),
                column("address", "ADDRESS", 18).format(Format::Hex),
                column("size_bytes", "SIZE", 0),
            ]);
        Records::new([stack, allocation, call]).banner(self.banner.clone())
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, _way: &Way) -> Result<()> {
        self.storage.configure(open.open_object_mut())?;
        if !self.of_programs && self.of_tasks {
            self.knows_interrupts.set(interrupt::configure(open.open_object_mut())?);
        }
        let settings = open.maps.rodata_data.as_deref_mut().context("no .rodata")?;
        settings.want_min_size = self.min_size;
        settings.want_max_size = self.max_size.unwrap_or(u64::MAX);
        settings.want_sample = self.sample_rate;
        settings.want_calls = self.trace;
        settings.want_totals = self.combined_only;
        settings.want_missing_free = self.wa_missing_free;
        settings.want_tasks = self.of_tasks;
        settings.want_user_stacks = self.of_programs;
        settings.possible_cpus = u32::try_from(libbpf_rs::num_possible_cpus()?)?;
        if let Ok(Some(bytes)) = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE) {
            settings.page_bytes = u64::try_from(bytes)?;
        }
        open.maps.allocations.set_max_entries(self.allocations)?;
        if self.combined_only {
            open.maps.totals.set_max_entries(self.storage.stack_storage_size)?;
        }
        Ok(())
    }

    fn attach(&self, skel: &bpf::Skel<'_>, common: &Common, asides: &mut Asides) -> Result<()> {
        use libbpf_rs::skel::Skel as _;
        // First, so that nothing changes while the others stop.
        let frozen = MapHandle::try_from(&skel.maps.frozen).context("the table's state")?;
        asides.add(Freeze { frozen, at: Rc::clone(&self.stopped) });
        if !self.of_programs {
            if self.of_tasks && !self.knows_interrupts.get() {
                asides.remark(
                    "the kernel does not say where it counts interrupts (kernel.kptr_restrict, \
                     CONFIG_KALLSYMS_ALL): what they allocate counts as their task's",
                );
            }
            return Ok(());
        }
        // Attaching takes seconds on some kernels, in which more could be mapped than is kept for
        // those who look later.
        let libraries = self.libraries(skel.object(), &common.pid)?;
        if let Err(error) = asides.note_mappings(&common.pid)
            && common.verbose
        {
            asides.remark(format!("processes that end will lack names: {error:#}"));
        }
        if libraries.count() == 0 && common.command.is_empty() {
            let name = self.obj.as_deref().unwrap_or("the C library");
            asides.remark(format!("no process has mapped {name} yet: waiting for it"));
        }
        asides.add(libraries);
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let stacks = RefCell::new(Stacks::default());
        let symbols = Rc::clone(&session.symbols);
        let mut report = |out: &mut Output| -> Result<()> {
            let now = match self.stopped.get() {
                0 => now_ns(),
                stopped => stopped,
            };
            let counted =
                if self.combined_only { self.totals(skel)? } else { self.outstanding(skel, now)? };
            let mut symbols = symbols.borrow_mut();
            let mut entries = stacks.borrow().resolve(counted, Taken::AtTracepoint, &mut symbols);
            entries.sort_by(|a, b| {
                let key = |entry: &Entry<Outstanding>| match self.sort {
                    Order::Size => (entry.value.bytes, entry.value.count, entry.key.pid),
                    Order::Count => (entry.value.count, entry.value.bytes, entry.key.pid),
                };
                key(b).cmp(&key(a))
            });
            self.show(out, &entries);
            out.report_done();
            stacks::complain_of("memleak", &entries, &symbols);
            Ok(())
        };
        session.stream_and(
            &skel.maps.events,
            |record, out| {
                if stacks::is_stack(record) {
                    return stacks.borrow_mut().take(record);
                }
                show_call(record, out)
            },
            Every { interval: Some(self.interval), count: self.intervals, act: &mut report },
        )
    }
}

fn show_call(record: Event<'_>, out: &mut Output) -> Result<()> {
    let event: &types::event = record.body()?;
    out.event(
        2,
        record.head()?,
        &[
            function(event.function),
            Value::Id(event.address),
            Value::Uint(event.size),
            Value::Id(event.stack),
        ],
    );
    Ok(())
}

/// What was allocated, and the processes that did it, by the host's numbers.
type Processes = HashMap<u32, types::process>;

fn processes(map: &dyn libbpf_rs::MapCore) -> Result<Processes> {
    maps::read_all(map)?
        .iter()
        .map(|(pid, values)| {
            let value = values.first().context("a process without a value")?;
            Ok((maps::copy(pid)?, maps::copy(value)?))
        })
        .collect()
}

impl Args {
    fn processes(&self, skel: &bpf::Skel<'_>) -> Result<Processes> {
        if self.of_programs { processes(&skel.maps.processes__uprobe) } else { Ok(HashMap::new()) }
    }

    /// What a sum is about, as the report names it. The function stands in the place of the
    /// thread, of which there is none here.
    fn key(&self, group: Group, processes: &Processes) -> StackKey {
        let (stack, owner, function) = group;
        let process = processes.get(&owner);
        StackKey {
            kernel: if self.of_programs { 0 } else { stack },
            user: if self.of_programs { stack } else { 0 },
            pid: process.map_or(0, |_| owner),
            tid: function,
            comm: process.map_or([0; 16], |process| process.comm),
        }
    }

    /// The sums of the kernel side.
    fn totals(&self, skel: &bpf::Skel<'_>) -> Result<Vec<(StackKey, Outstanding)>> {
        let processes = self.processes(skel)?;
        let mut counted = Vec::new();
        for (key, values) in maps::read_all(&skel.maps.totals)?.iter() {
            let key: types::total_key = maps::copy(key)?;
            let total: types::total = maps::copy(values.first().context("a sum without a value")?)?;
            if total.count > 0 {
                let group = (key.stack, key.owner, key.function.0);
                let sum = Outstanding {
                    bytes: total.bytes,
                    count: total.count,
                    ..Outstanding::default()
                };
                counted.push((self.key(group, &processes), sum));
            }
        }
        Ok(counted)
    }

    /// The sums of the single allocations.
    fn outstanding(&self, skel: &bpf::Skel<'_>, now: u64) -> Result<Vec<(StackKey, Outstanding)>> {
        let processes = self.processes(skel)?;
        let mut groups: HashMap<Group, Outstanding> = HashMap::new();
        for (key, values) in maps::read_all(&skel.maps.allocations)?.iter() {
            let key: types::allocation_key = maps::copy(key)?;
            let value = values.first().context("an allocation without a value")?;
            let allocation: types::allocation = maps::copy(value)?;
            // It went with the program that the process was before.
            let gone = processes.get(&key.owner).is_some_and(|p| allocation.since_ns < p.since_ns);
            let age_ns = now.saturating_sub(allocation.since_ns);
            if gone || allocation.since_ns > now || age_ns < self.older_ns() {
                continue;
            }
            let owner = if self.of_programs { key.owner } else { 0 };
            let sum = groups.entry((allocation.stack, owner, allocation.function.0)).or_default();
            sum.bytes += allocation.size;
            sum.count += 1;
            sum.oldest_ns = sum.oldest_ns.max(Some(age_ns));
            if self.show_allocs {
                sum.all.push(One { address: key.address, size: allocation.size, age_ns });
            }
        }
        Ok(groups.into_iter().map(|(group, sum)| (self.key(group, &processes), sum)).collect())
    }

    fn show(&self, out: &mut Output, entries: &[Entry<Outstanding>]) {
        let is_text = out.form() == bpfscope::output::Form::Columns;
        let top = match self.top {
            None if is_text => TOP,
            top => top.unwrap_or(u64::MAX),
        };
        if is_text {
            let mut line = b"[".to_vec();
            let now = out.clock.now();
            out.clock.push(&mut line, now, TimeFormat::Wall, 0);
            line.extend_from_slice(
                format!("] Top {top} stacks with outstanding allocations:").as_bytes(),
            );
            out.line(&String::from_utf8_lossy(&line));
        }
        for entry in entries.iter().take(usize::try_from(top).unwrap_or(usize::MAX)) {
            self.show_stack(out, entry);
        }
    }

    fn show_stack(&self, out: &mut Output, entry: &Entry<Outstanding>) {
        let comm = stacks::comm(&entry.key);
        let of_process = |value| if self.of_programs { value } else { Value::Null };
        let pid = of_process(Value::Uint(entry.key.pid.into()));
        let stack_id = Value::Id(if self.of_programs { entry.key.user } else { entry.key.kernel });
        let sum = &entry.value;
        let mut all = sum.all.clone();
        all.sort_by_key(|one| (std::cmp::Reverse(one.age_ns), one.address));
        let values = [
            pid,
            of_process(Value::Bytes(&comm)),
            function(types::function(entry.key.tid)),
            Value::Uint(sum.bytes),
            Value::Uint(sum.count),
            sum.oldest_ns.map_or(Value::Null, Value::Uint),
            stack_id,
            entry.kernel.value(!self.of_programs),
            entry.user.value(self.of_programs),
        ];
        let stack = if self.of_programs { &entry.user } else { &entry.kernel };
        out.entry(0, &values, |text| {
            let (bytes, count) = (sum.bytes, sum.count);
            let head = format!("{bytes} bytes in {count} allocations from stack\n");
            text.extend_from_slice(head.as_bytes());
            for one in &all {
                let line = format!("\taddr = 0x{:x} size = {}\n", one.address, one.size);
                text.extend_from_slice(line.as_bytes());
            }
            frames(text, stack);
        });
        for one in &all {
            let values = [
                pid,
                Value::Id(one.address),
                Value::Uint(one.size),
                Value::Uint(one.age_ns),
                stack_id,
            ];
            // In plain text they stand above, with their stack.
            out.entry(1, &values, |_| {});
        }
    }
}

/// The frames of a stack, each with number, address, name and file.
fn frames(text: &mut Vec<u8>, stack: &Stack) {
    if *stack == Stack::Missed {
        text.extend_from_slice(b"\t[Missed Stack]\n");
    }
    for (number, frame) in stack.frames().iter().enumerate() {
        text.extend_from_slice(format!("\t{number} [<{:016x}>] ", frame.addr).as_bytes());
        match &frame.sym {
            Some(name) => {
                escape::text(text, name.as_bytes());
                text.extend_from_slice(format!("+0x{:x}", frame.off).as_bytes());
            }
            None => text.extend_from_slice(b"<null sym>"),
        }
        if let Some(module) = &frame.module {
            text.extend_from_slice(b" [");
            escape::text(text, module.as_bytes());
            if frame.sym.is_none() {
                text.extend_from_slice(format!("+0x{:x}", frame.off).as_bytes());
            }
            text.push(b']');
        }
        text.push(b'\n');
    }
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_by_name() {
        assert!(is_named(b"libjemalloc.so.2", "libjemalloc.so.2"));
        assert!(is_named(b"libjemalloc.so.2", "libjemalloc") && is_named(b"libc-2.31.so", "libc"));
        assert!(!is_named(b"libc++.so.1", "libc") && !is_named(b"libcrypt.so.1", "libc"));
        assert!(is_libc(b"libc.so.6") && is_libc(b"ld-musl-x86_64.so.1"));
        assert!(!is_libc(b"libcrypt.so.1") && !is_libc(b"ld-linux-x86-64.so.2"));
    }
}
