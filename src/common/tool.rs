// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! The contract between a tool and the runner.

use anyhow::Result;
use libbpf_rs::skel::OpenSkel;
use libbpf_rs::skel::SkelBuilder;

use crate::aside::Asides;
use crate::cli::Common;
use crate::record::Records;
use crate::session::Session;
use crate::table::Table;

/// A tool's kernel side, as `bpf!` describes it.
pub trait Bpf {
    /// The tool's name.
    const NAME: &'static str;
    /// The skeleton's builder.
    type Builder: Default + for<'o> SkelBuilder<'o>;
}

/// The skeleton of `T` before the load: constants and map sizes can be set.
pub type OpenSkelOf<'o, T> = <<<T as Tool>::Bpf as Bpf>::Builder as SkelBuilder<'o>>::Output;

/// The skeleton of `T` after the load.
pub type SkelOf<'o, T> = <OpenSkelOf<'o, T> as OpenSkel<'o>>::Output;

/// One way to hook: programs that together see everything. In C, the programs and maps of a way
/// are named `ROLE__WAY`; names without `__` belong to every way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Its name, as `-v`, the `ready` record and the tests show it.
    pub name: &'static str,
    /// Programs that it cannot do without, in the order in which they are attached: the end of a
    /// pair before its beginning.
    pub programs: Vec<&'static str>,
    /// Programs that it cannot do without and that [`Tool::attach`] attaches.
    pub by_hand: Vec<&'static str>,
    /// Programs that run only when the tool reads them: [`crate::iterator`].
    pub iterators: Vec<&'static str>,
    /// Programs that are left out where the kernel lacks what they attach to.
    pub optional: Vec<&'static str>,
    /// Programs that are only needed where a struct lacks a member: (struct, member, program).
    /// Others leave them out.
    pub lacking: Vec<(&'static str, &'static str, &'static str)>,
    /// Programs for kernels with a tracepoint, and those for kernels without it.
    pub by_tracepoint: Vec<(&'static str, Vec<&'static str>, Vec<&'static str>)>,
    /// What a kernel must have to take it at all: (struct, member).
    pub only_where: Vec<(&'static str, &'static str)>,
    /// Programs of which the second does what the kernel skipped of the first: bpf/twin.h.
    pub twins: Vec<(&'static str, &'static str)>,
    /// Programs that are of use only together, and are left out together where the kernel lacks
    /// what one of them attaches to. Where there are groups, one must be there.
    pub groups: Vec<Vec<&'static str>>,
    /// Programs whose function is another one than their section names.
    pub aims: Vec<Aim>,
    /// Why groups are left out, once that has been settled.
    pub left_out: Vec<String>,
}

/// What a program attaches to that is chosen at run time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aim {
    /// The program.
    pub program: &'static str,
    /// The kernel function.
    pub function: String,
    /// The module that has it where the kernel itself has not.
    pub module: &'static str,
}

impl Way {
    /// A way that needs these programs.
    pub fn new(name: &'static str, programs: &[&'static str]) -> Self {
        Self {
            name,
            programs: programs.to_vec(),
            by_hand: Vec::new(),
            iterators: Vec::new(),
            optional: Vec::new(),
            lacking: Vec::new(),
            by_tracepoint: Vec::new(),
            only_where: Vec::new(),
            twins: Vec::new(),
            groups: Vec::new(),
            aims: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// All of its programs, whether they are there or not.
    pub fn all(&self) -> Vec<&'static str> {
        let groups = self.groups.iter().flatten();
        let one_by_one = [&self.programs, &self.by_hand, &self.iterators, &self.optional];
        one_by_one.into_iter().flatten().chain(groups).copied().collect()
    }

    /// Everything that it names, also what only some kernels need.
    pub(crate) fn named(&self) -> Vec<&'static str> {
        let mut names = self.all();
        names.extend(self.lacking.iter().map(|(_, _, program)| program));
        names.extend(self.by_tracepoint.iter().flat_map(|(_, a, b)| a.iter().chain(b)));
        names.extend(self.twins.iter().flat_map(|(first, second)| [first, second]));
        names.extend(self.aims.iter().map(|aim| aim.program));
        names
    }

    /// Adds programs that the tool attaches itself, in [`Tool::attach`].
    #[must_use]
    pub fn by_hand(mut self, programs: &[&'static str]) -> Self {
        self.by_hand.extend(programs);
        self
    }

    /// Adds iterators that it cannot do without, which run when the tool reads them.
    #[must_use]
    pub fn iterators(mut self, programs: &[&'static str]) -> Self {
        self.iterators.extend(programs);
        self
    }

    /// Adds programs that are left out where the kernel lacks what they attach to.
    #[must_use]
    pub fn optional(mut self, programs: &[&'static str]) -> Self {
        self.optional.extend(programs);
        self
    }

    /// Adds programs that are left out together: see [`Way::groups`].
    #[must_use]
    pub fn group(mut self, programs: &[&'static str]) -> Self {
        self.groups.push(programs.to_vec());
        self
    }

    /// Says which function one of its programs attaches to: a fentry, fexit, kprobe or kretprobe
    /// program, whose section then names only an example. `module` has it where the kernel itself
    /// has not.
    #[must_use]
    pub fn aim(
        mut self,
        program: &'static str,
        function: impl Into<String>,
        module: &'static str,
    ) -> Self {
        self.aims.push(Aim { program, function: function.into(), module });
        self
    }

    /// Adds an optional program for kernels whose `structure` has no `member`.
    #[must_use]
    pub fn where_lacking(
        mut self,
        structure: &'static str,
        member: &'static str,
        program: &'static str,
    ) -> Self {
        self.lacking.push((structure, member, program));
        self
    }

    /// Says that it is only for kernels whose `structure` has `member`, where no function or
    /// tracepoint tells.
    #[must_use]
    pub fn only_where(mut self, structure: &'static str, member: &'static str) -> Self {
        self.only_where.push((structure, member));
        self
    }

    /// Adds the twin of one of its programs: bpf/twin.h. Only what both skip is missed.
    #[must_use]
    pub fn twin(mut self, program: &'static str, twin: &'static str) -> Self {
        self.programs.push(twin);
        self.twins.push((program, twin));
        self
    }

    /// Says that two of its programs are twins, wherever they were added.
    #[must_use]
    pub fn twins(mut self, pairs: &[(&'static str, &'static str)]) -> Self {
        self.twins.extend(pairs);
        self
    }

    /// Adds programs for kernels that have a tracepoint, which one of the object's own
    /// tp_btf or raw_tp programs must name, and others for those that have not. They are attached last.
    #[must_use]
    pub fn by_tracepoint(
        mut self,
        tracepoint: &'static str,
        having: &[&'static str],
        lacking: &[&'static str],
    ) -> Self {
        self.by_tracepoint.push((tracepoint, having.to_vec(), lacking.to_vec()));
        self
    }

    /// Adds programs that it needs when `wanted`.
    #[must_use]
    pub fn with(mut self, wanted: bool, programs: &[&'static str]) -> Self {
        if wanted {
            self.programs.extend(programs);
        }
        self
    }
}

/// What a tool's manual says beside its options: plain paragraphs, separated by empty lines.
#[derive(Clone, Copy, Debug)]
pub struct Doc {
    /// What it does and how to read its output.
    pub description: &'static str,
    /// Worked examples: command, output, what it shows.
    pub examples: &'static str,
    /// What it costs, and on what.
    pub overhead: &'static str,
    /// What it cannot see.
    pub limits: &'static str,
}

/// The tool's row in the README's table.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// The heading it stands under ("Files", "Processes", "Block I/O", "Network").
    pub heading: &'static str,
    /// What a user would ask.
    pub question: &'static str,
}

/// Another name of a tool, under which some arguments are already given.
#[derive(Clone, Copy, Debug)]
pub struct Alias {
    /// The name.
    pub name: &'static str,
    /// What stands before the user's own arguments.
    pub args: &'static [&'static str],
}

/// A tool. The type that implements it is its `clap::Args`, with the tool's own options only; the
/// doc comment on it is the one-line description in help and manual.
pub trait Tool: clap::Args + Sized + 'static {
    /// The kernel side: `bpf::Object`.
    type Bpf: Bpf;

    /// The manual.
    const DOC: Doc;
    /// The README's table.
    const QUESTION: Question;
    /// Which letter each common option has in this tool: `("pid", 'p')`. Options that upstream
    /// does not have here have no letter.
    const LETTERS: &'static [(&'static str, char)] = &[];
    /// That it shows tables, and how they are sorted unless the user says otherwise: gives the tool
    /// `--sort`, `--rows` and `--no-clear`, and its rows an order.
    const TABLE: Option<Table> = None;
    /// Other names of the tool.
    const ALIASES: &'static [Alias] = &[];
    /// Arguments for where a user gives none and it cannot do without (doctor, tests over all
    /// tools): something that can be traced on any machine, and rarely happens.
    const NEEDS: &'static [&'static str] = &[];
    /// Common options that make no sense here, each with the reason as a sentence's end: "it
    /// counts requests, not calls".
    const REFUSED: &'static [(&'static str, &'static str)] = &[];

    /// The ways to hook under these options, best first.
    fn ways(&self) -> Vec<Way>;

    /// Usage errors, before anything is opened; and other spellings of common options.
    ///
    /// # Errors
    /// What [`crate::error::usage`] makes.
    fn check(&mut self, common: &mut Common) -> Result<()> {
        let _ = common;
        Ok(())
    }

    /// What the records are. From the arguments alone.
    fn records(&self) -> Records;

    /// Sets constants and map sizes; called for each way that is tried.
    ///
    /// # Errors
    /// Whatever stops the tool.
    fn configure(&self, open: &mut OpenSkelOf<'_, Self>, way: &Way) -> Result<()> {
        let _ = (open, way);
        Ok(())
    }

    /// Attaches what the runner does not ([`Way::by_hand`]), and sets up what goes on beside the
    /// events. Everything else of the way is attached by then.
    ///
    /// # Errors
    /// Why this kernel does not take this way.
    fn attach(&self, skel: &SkelOf<'_, Self>, common: &Common, asides: &mut Asides) -> Result<()> {
        let _ = (skel, common, asides);
        Ok(())
    }

    /// Does the work: streams, counts, reports.
    ///
    /// # Errors
    /// Whatever stops the tool.
    fn run(&self, skel: &SkelOf<'_, Self>, session: &mut Session<'_>) -> Result<()>;
}

/// Makes `mod bpf` with the kernel side of the tool `NAME`: `bpf::Object`, `bpf::OpenSkel`,
/// `bpf::Skel` and the structs in `bpf::types`.
#[macro_export]
macro_rules! bpf {
    ($name:literal) => {
        /// The kernel side, as generated from C.
        // The skeleton's plumbing and the `Plain` implementations are unsafe by nature.
        #[allow(
            unsafe_code,
            missing_docs,
            unused,
            clippy::all,
            clippy::pedantic,
            clippy::undocumented_unsafe_blocks
        )]
        mod bpf {
            include!(concat!(env!("OUT_DIR"), "/", $name, ".rs"));
        }
    };
}
