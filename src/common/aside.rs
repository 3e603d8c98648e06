// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! What goes on beside a tool's events: CPUs that come online, mappings that are noted.

use std::cell::RefCell;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use anyhow::Result;

use crate::symbols::Symbols;

/// Something that the loop wakes up for.
pub trait Aside {
    /// Hands each descriptor that it waits for to `watch`. Asked again after each
    /// [`Aside::act`], since there may be new ones.
    fn descriptors(&self, watch: &mut dyn FnMut(BorrowedFd<'_>));

    /// One of them is readable.
    ///
    /// # Errors
    /// Whatever stops the tool.
    fn act(&mut self) -> Result<()>;

    /// The tool comes to its end: nothing that happens after this counts.
    fn stop(&mut self);

    /// How many hits of what it has attached the kernel skipped, as far as is known; also asked
    /// after [`Aside::stop`].
    fn missed(&self) -> Option<u64> {
        None
    }
}

/// The names of addresses, shared by the loop, which lets them note what processes map, and the
/// tool, which asks for them.
pub type SharedSymbols = Rc<RefCell<Symbols>>;

struct Noting(SharedSymbols);

impl Aside for Noting {
    fn descriptors(&self, watch: &mut dyn FnMut(BorrowedFd<'_>)) {
        self.0.borrow().descriptors().for_each(watch);
    }

    fn act(&mut self) -> Result<()> {
        self.0.borrow_mut().note();
        Ok(())
    }

    fn stop(&mut self) {
        self.0.borrow_mut().note();
    }
}

/// What a tool sets up by itself, beside the programs that the runner attaches.
#[derive(Default)]
pub struct Asides {
    /// Names of addresses.
    pub symbols: SharedSymbols,
    pub(crate) all: Vec<Box<dyn Aside>>,
    /// What the user should know when the tool runs; `doctor` asks for it, too.
    pub(crate) remarks: Vec<String>,
}

impl Asides {
    /// Says something about how the tool runs here, once it does.
    pub fn remark(&mut self, text: impl Into<String>) {
        self.remarks.push(text.into());
    }

    /// Adds one.
    pub fn add(&mut self, aside: impl Aside + 'static) {
        self.all.push(Box::new(aside));
    }

    /// From now on, what processes map is noted, so that addresses in those that have ended can be
    /// named; `only` these processes, or all. Where the kernel does not permit it, only processes
    /// that still live are named.
    ///
    /// # Errors
    /// Fails for other reasons than that.
    pub fn note_mappings(&mut self, only: &[u32]) -> Result<()> {
        self.symbols.borrow_mut().watch(only)?;
        self.add(Noting(Rc::clone(&self.symbols)));
        Ok(())
    }
}
