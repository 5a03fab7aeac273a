//! Mutants: a machine in which one place of the code does one step wrong. A law that notices none of them would be worth
//! nothing, so the tests have each place of each policy mutated (`tests/mutants.rs`).
//!
//! A place is where in the source a step is written down, and so the same in every loop and for every caller.

use std::collections::BTreeSet;
use std::fmt;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use debugreg::{Dr, Dr7, Slot, Word};

use crate::CpuId;
use crate::machine::Machine;
use crate::step::{Field, Step};

/// Where a step is written down.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Site {
    /// The file, as the compiler names it.
    pub file: &'static str,
    /// Its line.
    pub line: u32,
    /// Its column.
    pub column: u32,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.file.rsplit(['/', '\\']).next().unwrap_or(self.file);
        write!(f, "{name}:{}:{}", self.line, self.column)
    }
}

impl From<&'static Location<'static>> for Site {
    fn from(at: &'static Location<'static>) -> Site {
        Site { file: at.file(), line: at.line(), column: at.column() }
    }
}

/// What is done wrong.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Change {
    /// Nothing; where steps are is noted down ([`recorded`]).
    Record,
    /// The step is left out.
    Drop,
    /// The step comes after the next one that writes.
    Swap,
    /// These bits of what is written are wrong.
    Flip(u64),
}

/// A mutant.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Mutant {
    site: Option<Site>,
    change: Change,
    /// A step that waits for the next one.
    held: Option<(CpuId, Step)>,
}

/// Whether a mutant has done anything wrong since somebody asked.
static APPLIED: AtomicBool = AtomicBool::new(false);

static RECORDED: Mutex<BTreeSet<(Site, Place)>> = Mutex::new(BTreeSet::new());

/// What a step writes.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Place {
    /// DR0-DR3.
    Address,
    /// DR6, in the register or a VMCB.
    Status,
    /// DR7, in the register, its shadow, a VMCS or VMCB.
    Control,
    /// Who owns a slot, and what else is a word of its own.
    Word,
}

fn place(step: Step) -> Place {
    match step {
        Step::WriteDr(Dr::Address(_), _) | Step::Store(Word::Address(_), _) => Place::Address,
        Step::WriteDr(Dr::Status, _) | Step::WriteField(Field::GuestDr6, _) => Place::Status,
        Step::WriteDr(Dr::Control, _)
        | Step::Store(Word::Control, _)
        | Step::Or(Word::Control, _)
        | Step::WriteField(Field::GuestDr7, _) => Place::Control,
        _ => Place::Word,
    }
}

/// The places that have been seen since the last time, and what is written there.
pub fn recorded() -> BTreeSet<(Site, Place)> {
    std::mem::take(&mut *RECORDED.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Whether a mutant has done anything wrong since this was asked last.
pub fn was_applied() -> bool {
    APPLIED.swap(false, Ordering::Relaxed)
}

impl Mutant {
    /// One in which `change` is done at `site`; without one at every place.
    pub const fn new(site: Option<Site>, change: Change) -> Mutant {
        Mutant { site, change, held: None }
    }

    /// What becomes of a step.
    pub(crate) fn alter(
        machine: &mut Machine,
        cpu: CpuId,
        step: Step,
        site: &'static Location<'static>,
    ) -> [Option<Step>; 2] {
        let Some(mutant) = &mut machine.mutant else { return [Some(step), None] };
        let site = Site::from(site);
        if mutant.change == Change::Record {
            RECORDED.lock().unwrap_or_else(PoisonError::into_inner).insert((site, place(step)));
            return [Some(step), None];
        }
        let held = mutant.held.take_if(|(on, _)| *on == cpu).map(|(_, step)| step);
        if held.is_some() {
            APPLIED.store(true, Ordering::Relaxed);
        }
        if mutant.site.is_some_and(|wanted| wanted != site) {
            return [Some(step), held];
        }
        let altered = match mutant.change {
            Change::Record => Some(step),
            Change::Drop => None,
            // Of two of one place the first is done, then.
            Change::Swap => {
                mutant.held = Some((cpu, step));
                return [held, None];
            }
            Change::Flip(bits) => Some(flipped(step, bits)),
        };
        if altered != Some(step) {
            APPLIED.store(true, Ordering::Relaxed);
        }
        [altered, held]
    }

    /// The step that waits, if there is nothing that it could wait for.
    pub(crate) fn release(machine: &mut Machine) -> Option<(CpuId, Step)> {
        machine.mutant.as_mut()?.held.take()
    }
}

/// R/W and LEN of a slot that is not enabled mean nothing, and stay.
fn flipped(step: Step, bits: u64) -> Step {
    if let Step::Or(Word::Control, value)
    | Step::Store(Word::Control, value)
    | Step::WriteDr(Dr::Control, value)
    | Step::WriteField(Field::GuestDr7, value) = step
        && Slot::ALL.into_iter().any(|slot| bits >> (16 + 4 * slot.index()) & 0xf != 0 && !Dr7(value).is_armed(slot))
    {
        return step;
    }
    match step {
        Step::Store(word, value) => Step::Store(word, value ^ bits),
        Step::Or(word, value) => Step::Or(word, value ^ bits),
        Step::CompareExchange(word, value, took) => Step::CompareExchange(word, value ^ bits, took),
        Step::WriteDr(dr, value) => Step::WriteDr(dr, value ^ bits),
        Step::WriteField(field, value) => Step::WriteField(field, value ^ bits),
        other => other,
    }
}
