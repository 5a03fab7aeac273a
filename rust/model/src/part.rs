//! A part of the machine that knows whether anybody has looked at it.
//!
//! What comes of an event depends on the parts that were looked at, and on nothing else: the explorer performs an event
//! once for all states that are alike there (`explore/memo.rs`).

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{BitOr, BitOrAssign, Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::machine::Machine;

/// A part: behaves as what it holds.
#[derive(Default)]
pub(crate) struct Part<T> {
    value: T,
    /// Shared borrows look, too. Not a `Cell`, because a machine may be shared by threads; never more than a plain store.
    read: AtomicBool,
    written: bool,
}

impl<T> Part<T> {
    pub(crate) const fn new(value: T) -> Part<T> {
        Part { value, read: AtomicBool::new(false), written: false }
    }

    /// What it holds, without a look: for those who know that nothing depends on it.
    pub(crate) const fn unseen(&self) -> &T {
        &self.value
    }

    /// What it holds, to change what nothing ever depends on.
    pub(crate) const fn aside(&mut self) -> &mut T {
        &mut self.value
    }

    /// Holds something else, and nobody has looked at it.
    pub(crate) fn set_unseen(&mut self, value: &T)
    where
        T: Clone,
    {
        self.value.clone_from(value);
        self.written = false;
        *self.read.get_mut() = false;
    }
}

impl<T> Deref for Part<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.read.store(true, Ordering::Relaxed);
        &self.value
    }
}

impl<T> DerefMut for Part<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        *self.read.get_mut() = true;
        self.written = true;
        &mut self.value
    }
}

/// A copy has not been looked at.
impl<T: Clone> Clone for Part<T> {
    fn clone(&self) -> Part<T> {
        Part::new(self.value.clone())
    }
}

impl<T: PartialEq> PartialEq for Part<T> {
    fn eq(&self, other: &Part<T>) -> bool {
        **self == **other
    }
}

impl<T: Eq> Eq for Part<T> {}

impl<T: Hash> Hash for Part<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl<T: fmt::Debug> fmt::Debug for Part<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

/// Some of a machine's parts: a bit for each, tasks first, then contexts, counters, what kgdb remembers, the histogram, who
/// has which CPU, which vCPUs are inside KVM_RUN, CPUs and vCPUs.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Footprint(pub(crate) u64);

impl BitOr for Footprint {
    type Output = Footprint;

    fn bitor(self, other: Footprint) -> Footprint {
        Footprint(self.0 | other.0)
    }
}

impl BitOrAssign for Footprint {
    fn bitor_assign(&mut self, other: Footprint) {
        self.0 |= other.0;
    }
}

impl Footprint {
    /// The numbers of the parts.
    pub(crate) fn iter(self) -> impl Iterator<Item = usize> + Clone {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let part = (left != 0).then(|| left.trailing_zeros() as usize)?;
            left &= left - 1;
            Some(part)
        })
    }
}

impl<T> Part<T> {
    fn is_read(&self) -> bool {
        self.read.load(Ordering::Relaxed)
    }
}

/// Does something with every part of a machine, in the order of a [`Footprint`].
macro_rules! each_part {
    ($machine:ident, $part:ident => $act:expr) => {{
        each_part!(@ $machine.tasks.iter(), $part => $act);
        each_part!(@ [&$machine.contexts], $part => $act);
        each_part!(@ [&$machine.counters], $part => $act);
        each_part!(@ [&$machine.debugger], $part => $act);
        each_part!(@ [&$machine.histogram], $part => $act);
        each_part!(@ $machine.turns.iter(), $part => $act);
        each_part!(@ $machine.in_run.iter(), $part => $act);
        each_part!(@ $machine.cpus.iter(), $part => $act);
        each_part!(@ $machine.vcpus.iter(), $part => $act);
    }};
    (@ $parts:expr, $part:ident => $act:expr) => {
        for $part in $parts {
            $act;
        }
    };
}

impl Machine {
    /// The parts that have been looked at.
    pub(crate) fn parts_read(&self) -> Footprint {
        let (mut parts, mut bit) = (0, 1u64);
        each_part!(self, part => {
            parts |= if part.is_read() { bit } else { 0 };
            bit <<= 1;
        });
        Footprint(parts)
    }

    /// The parts that have been changed.
    pub(crate) fn parts_written(&self) -> Footprint {
        let (mut parts, mut bit) = (0, 1u64);
        each_part!(self, part => {
            parts |= if part.written { bit } else { 0 };
            bit <<= 1;
        });
        Footprint(parts)
    }

    /// Whether everything but vCPUs is as it was.
    pub(crate) fn host_is_unchanged(&self) -> bool {
        let vcpus = self.vcpus.iter().filter(|vcpu| vcpu.written).count() as u32;
        self.parts_written().0.count_ones() == vcpus
    }

    /// These parts have been looked at, too.
    pub(crate) fn notice(&self, parts: Footprint) {
        let mut left = parts.0;
        each_part!(self, part => {
            if left & 1 != 0 {
                part.read.store(true, Ordering::Relaxed);
            }
            left >>= 1;
        });
    }

    /// Nobody has looked at anything.
    pub(crate) fn unnotice(&self) {
        each_part!(self, part => part.read.store(false, Ordering::Relaxed));
    }

    /// What somebody sees, and what he looks at for it: whoever uses it notices that. On a machine that is too large to
    /// be explored everything counts as looked at.
    pub(crate) fn apart<R>(&self, see: impl FnOnce(&Machine) -> R) -> (R, Footprint) {
        if self.tasks.len() > 16 {
            return (see(self), Footprint::default());
        }
        let before = self.parts_read();
        self.unnotice();
        let seen = see(self);
        let looked = self.parts_read();
        self.unnotice();
        self.notice(before);
        (seen, looked)
    }
}
