//! Announced slots: a proposal that Linux does not have. kgdb says from an NMI, at any moment, that it uses a slot, and
//! nobody else's update of the registers undoes that (Jan Kiszka, 2009-09-14: "those slots should simply be excluded
//! from hardware updates").
//!
//! One store does not do it: an install that was interrupted may have found the slot free already, and everybody who was
//! interrupted between reading the shadow and writing DR7 takes the new enable back. So it is a protocol:
//!
//! * **Claim.** A slot belongs to whoever brought its owner word from free to his own, by compare-and-swap. Nobody is
//!   moved and nobody loses what he has: an owned slot is refused, because its owner was promised a register.
//! * **Say so.** [`Word::Announced`] counts what is announced and withdrawn.
//! * **Notice and yield.** Whoever writes the registers looks at that word before and after, and writes again if it
//!   changed; the shadow of DR7 is changed by single instructions that keep everybody's bits.
//! * **Lend.** While the registers are not the host's to arm (an NMI or #DB handler, a guest from its entry to its exit),
//!   [`Word::Lent`] is set. An announcement then changes the shadow only, and whoever lent them catches up.
//!
//! The steps are numbered as in [`crate::bank`]. What it costs: two loads in an install and in a refresh, one
//! compare-and-swap in place of each plain store that it replaces, and five accesses to words around a guest.

use crate::bank::slots;
use crate::{Breakpoint, Dr, Dr6, Dr7, Owner, Slot, Steps, Word, encode_dr7, encode_slot};

/// Takes a slot for kgdb if it is free; whether it was. One compare-and-swap, without locks.
#[inline]
pub fn reserve<S: Steps>(cpu: &mut S, slot: Slot) -> bool {
    cpu.compare_exchange(Word::Owner(slot), Owner::NONE.word(), Owner::KGDB.word())
}

/// Gives a slot back that kgdb has; whether it had it.
#[inline]
pub fn release<S: Steps>(cpu: &mut S, slot: Slot) -> bool {
    cpu.compare_exchange(Word::Owner(slot), Owner::KGDB.word(), Owner::NONE.word())
}

/// Sets a breakpoint in a slot that [`reserve`] has given. The hardware follows when the registers are given back
/// ([`take_back`]): it is called from a context that has lent them.
pub fn set<S: Steps>(cpu: &mut S, slot: Slot, bp: Breakpoint) {
    // The address first: whoever finds the enable finds it.
    cpu.store(Word::Address(slot), bp.address);
    cpu.or(Word::Control, encode_dr7(slot, bp.kind, bp.length));
    say_so(cpu);
}

/// Removes the breakpoint of an announced slot, and gives the slot back; likewise from a context that has lent the
/// registers.
pub fn clear<S: Steps>(cpu: &mut S, slot: Slot, bp: Breakpoint) {
    let bits = encode_slot(slot, bp.kind, bp.length);
    loop {
        let control = cpu.load(Word::Control);
        if cpu.compare_exchange(Word::Control, control, control & !bits) {
            break;
        }
    }
    release(cpu, slot);
    say_so(cpu);
}

/// Announcements come from one context at a time (an NMI does not nest), so that a load and a store count.
fn say_so<S: Steps>(cpu: &mut S) {
    let count = cpu.load(Word::Announced);
    cpu.store(Word::Announced, count.wrapping_add(1));
}

/// [`crate::bank::install`] that yields to announcements.
pub fn install<S: Steps>(cpu: &mut S, owner: Owner, bp: Breakpoint) -> Option<Slot> {
    let announced = cpu.load(Word::Announced);
    // I1, I2: a slot that was announced after it was found free is passed over
    let slot = slots().find(|&slot| {
        let free = Owner::NONE.word();
        cpu.load(Word::Owner(slot)) == free && cpu.compare_exchange(Word::Owner(slot), free, owner.word())
    })?;
    // I3
    cpu.write_dr(Dr::Address(slot), bp.address);
    // I4
    cpu.store(Word::Address(slot), bp.address);
    // I5: shadow before register
    cpu.or(Word::Control, encode_dr7(slot, bp.kind, bp.length));
    // I6
    until_nothing_is_announced(cpu, announced, |cpu| {
        let control = cpu.load(Word::Control);
        cpu.write_dr(Dr::Control, control);
    });
    Some(slot)
}

/// [`crate::bank::uninstall`] that yields to announcements. The owner word is cleared last: a slot that is still armed
/// is nobody's to claim.
pub fn uninstall<S: Steps>(cpu: &mut S, owner: Owner, bp: Breakpoint) -> Option<Slot> {
    // U1
    let slot = slots().find(|&slot| cpu.load(Word::Owner(slot)) == owner.word())?;
    loop {
        // U3
        let control = cpu.load(Word::Control);
        let tmp = control & !encode_slot(slot, bp.kind, bp.length);
        // U4: register before shadow
        cpu.write_dr(Dr::Control, tmp);
        // U6: only if nobody has changed it meanwhile
        if cpu.compare_exchange(Word::Control, control, tmp) {
            break;
        }
    }
    // U2
    cpu.store(Word::Owner(slot), Owner::NONE.word());
    Some(slot)
}

/// [`crate::bank::refresh`] that yields to announcements.
pub fn refresh<S: Steps>(cpu: &mut S) {
    let announced = cpu.load(Word::Announced);
    until_nothing_is_announced(cpu, announced, |cpu| {
        // First: what is enabled here has its address in the shadow already.
        let control = cpu.load(Word::Control);
        for slot in Slot::ALL {
            let address = cpu.load(Word::Address(slot));
            cpu.write_dr(Dr::Address(slot), address);
        }
        cpu.write_dr(Dr::Status, Dr6::IDLE.0);
        cpu.write_dr(Dr::Control, control);
    });
}

/// Writes, and writes again as long as something was announced meanwhile.
#[inline]
fn until_nothing_is_announced<S: Steps>(cpu: &mut S, mut announced: u64, mut write: impl FnMut(&mut S)) {
    loop {
        write(cpu);
        let now = cpu.load(Word::Announced);
        if now == announced {
            return;
        }
        announced = now;
    }
}

/// What [`lend`] found.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Loan {
    announced: u64,
    outer: u64,
}

impl Loan {
    /// Whether nothing was announced or withdrawn since it began, given the count now.
    pub const fn is_settled(self, announced: u64) -> bool {
        self.announced == announced
    }

    /// The count that it has found.
    pub const fn announced(&mut self) -> &mut u64 {
        &mut self.announced
    }
}

/// Says that the registers are not the host's to arm from here on.
#[inline]
pub fn lend<S: Steps>(cpu: &mut S) -> Loan {
    let outer = cpu.load(Word::Lent);
    // First: what is announced from the store on is left to us, and must show as a change.
    let announced = cpu.load(Word::Announced);
    cpu.store(Word::Lent, 1);
    Loan { announced, outer }
}

/// Just before a guest is entered: if something was announced or withdrawn since the loan began, whoever looked at the
/// shadow to see whether the host has anything armed may have looked too late, and everything is disarmed.
#[inline]
pub fn settle<S: Steps>(cpu: &mut S, loan: Loan) {
    if cpu.load(Word::Announced) != loan.announced {
        cpu.write_dr(Dr::Control, Dr7::RESET.0);
    }
}

/// Takes the registers back after a handler that disarmed them, and arms again what [`crate::bank::local_db_save`] found
/// there, with what was announced or withdrawn since. Inside an outer loan the hardware is left as it was found.
pub fn take_back<S: Steps>(cpu: &mut S, loan: Loan, saved: u64) {
    cpu.store(Word::Lent, loan.outer);
    if loan.outer != 0 {
        return crate::bank::local_db_restore(cpu, saved);
    }
    let now = cpu.load(Word::Announced);
    if now == loan.announced {
        crate::bank::local_db_restore(cpu, saved);
        if cpu.load(Word::Announced) == now {
            return;
        }
    }
    until_nothing_is_announced(cpu, now, |cpu| {
        // Of the slots that kgdb has or may have had, what the shadow says; of the others, what was found.
        let mut ours = 0;
        for slot in slots() {
            let owner = cpu.load(Word::Owner(slot));
            if owner == Owner::KGDB.word() {
                let address = cpu.load(Word::Address(slot));
                cpu.write_dr(Dr::Address(slot), address);
            }
            if owner == Owner::KGDB.word() || owner == Owner::NONE.word() {
                ours |= fields(slot);
            }
        }
        let control = cpu.load(Word::Control);
        cpu.write_dr(Dr::Control, saved & !ours | control & (ours | Dr7::GE));
    });
}

/// Takes the registers back after a guest: `refresh` if something was announced meanwhile that the policy's own refresh
/// may have missed.
pub fn take_back_from_guest<S: Steps>(cpu: &mut S, loan: Loan) {
    cpu.store(Word::Lent, loan.outer);
    if cpu.load(Word::Announced) != loan.announced {
        refresh(cpu);
    }
}

/// The enable bits and the fields of DR7 that belong to a slot.
const fn fields(slot: Slot) -> u64 {
    0b11 << (2 * slot.index()) | 0xf << (16 + 4 * slot.index())
}
