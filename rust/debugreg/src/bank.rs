//! One CPU's four slots: the transitions of Linux's breakpoint layer, step by step, and the plain form that
//! performs them on arrays.
//!
//! Numbered as in arch/x86/kernel/hw_breakpoint.c (6.17): I1-I6 `arch_install_hw_breakpoint`, U1-U6
//! `arch_uninstall_hw_breakpoint`, R1-R6 `hw_breakpoint_restore`, S1-S3 and T1 `local_db_save` and
//! `local_db_restore`. Left out: AMD's address-mask MSRs (I7, U5).
//!
//! The order is the point. Arming: shadow, then register (I5 before I6). Disarming: register, then shadow (U4 before
//! U6). An NMI in between can then err only on the side of "active" (Linux 5.8, 84b6a3491567).

use crate::{Breakpoint, Cost, Dr, Dr6, Dr7, Slot, Steps, Word, encode_dr7, encode_slot};

/// Who holds a slot, as a word of memory.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Owner(pub u32);

impl Owner {
    /// Nobody.
    pub const NONE: Owner = Owner(0);
    /// Announced: kgdb uses the slot, everybody else keeps off it.
    pub const KGDB: Owner = Owner(u32::MAX);

    #[inline]
    pub(crate) const fn word(self) -> u64 {
        self.0 as u64
    }
}

/// The six registers: what is in them, or what should be.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Registers {
    /// DR0-DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
}

impl Registers {
    /// After reset and INIT.
    pub const RESET: Registers = Registers { dr: [0; 4], dr6: Dr6::IDLE.0, dr7: Dr7::RESET.0 };

    /// What is armed: a slot that DR7 does not enable arms nothing, whatever its address.
    pub fn armed(&self) -> impl Iterator<Item = (Slot, Breakpoint)> + use<> {
        let Registers { dr, dr7, .. } = *self;
        let dr7 = Dr7(dr7);
        Slot::ALL.into_iter().filter(move |&i| dr7.is_armed(i)).map(move |i| (i, dr7.breakpoint(i, dr[i.index()])))
    }

    /// The value of one register.
    #[inline]
    pub fn get(&self, dr: Dr) -> u64 {
        match dr {
            Dr::Address(slot) => self.dr[slot.index()],
            Dr::Status => self.dr6,
            Dr::Control => self.dr7,
        }
    }

    /// Replaces one register.
    #[inline]
    pub fn set(&mut self, dr: Dr, value: u64) {
        match dr {
            Dr::Address(slot) => self.dr[slot.index()] = value,
            Dr::Status => self.dr6 = value,
            Dr::Control => self.dr7 = value,
        }
    }
}

/// Puts a breakpoint into the lowest free slot, or returns `None` and changes nothing.
#[inline]
pub fn install<S: Steps>(cpu: &mut S, owner: Owner, bp: Breakpoint) -> Option<Slot> {
    // I1
    let slot = find(cpu, Owner::NONE)?;
    // I2
    cpu.store(Word::Owner(slot), owner.word());
    // I3
    cpu.write_dr(Dr::Address(slot), bp.address);
    // I4
    cpu.store(Word::Address(slot), bp.address);
    // I5: shadow before register
    cpu.or(Word::Control, encode_dr7(slot, bp.kind, bp.length));
    // I6
    let control = cpu.load(Word::Control);
    cpu.write_dr(Dr::Control, control);
    Some(slot)
}

/// Takes a breakpoint out of its slot, or returns `None` and changes nothing. The address stays in the register and
/// in the shadow, and GE stays in DR7.
#[inline]
pub fn uninstall<S: Steps>(cpu: &mut S, owner: Owner, bp: Breakpoint) -> Option<Slot> {
    // U1
    let slot = find(cpu, owner)?;
    // U2
    cpu.store(Word::Owner(slot), Owner::NONE.word());
    // U3: only the bits that the breakpoint itself has
    let tmp = cpu.load(Word::Control) & !encode_slot(slot, bp.kind, bp.length);
    // U4: register before shadow
    cpu.write_dr(Dr::Control, tmp);
    // U6
    cpu.store(Word::Control, tmp);
    Some(slot)
}

/// I1 and U1: the lowest slot that `owner` holds.
#[inline]
fn find<S: Steps>(cpu: &mut S, owner: Owner) -> Option<Slot> {
    slots().find(|&slot| cpu.load(Word::Owner(slot)) == owner.word())
}

/// Counted, not taken from `Slot::ALL`: the plain form then keeps one index (tests/test_callgrind.py).
#[inline]
pub(crate) fn slots() -> impl Iterator<Item = Slot> {
    (0..4).filter_map(Slot::new)
}

/// Points an installed breakpoint elsewhere without taking it out (`modify_wide_hw_breakpoint_local` of the wprobe
/// patches, 2025-2026, not merged), or returns `None` and changes nothing. As posted, the new R/W and LEN are or-ed to
/// the old ones; with `clears`, those are cleared first.
pub fn repoint<S: Steps>(cpu: &mut S, owner: Owner, old: Breakpoint, new: Breakpoint, clears: bool) -> Option<Slot> {
    let slot = find(cpu, owner)?;
    if clears {
        // Disarmed meanwhile, or the new address would be watched in the old way; register before shadow.
        let tmp = cpu.load(Word::Control) & !encode_slot(slot, old.kind, old.length);
        cpu.write_dr(Dr::Control, tmp);
        cpu.store(Word::Control, tmp);
    }
    cpu.write_dr(Dr::Address(slot), new.address);
    cpu.store(Word::Address(slot), new.address);
    cpu.or(Word::Control, encode_dr7(slot, new.kind, new.length));
    let control = cpu.load(Word::Control);
    cpu.write_dr(Dr::Control, control);
    Some(slot)
}

/// Brings the registers to their reset values as a CPU comes up (`cpu_init`, 6.17): DR7 first, and the shadows are left.
pub fn bring_up<S: Steps>(cpu: &mut S) {
    cpu.write_dr(Dr::Control, Dr7::RESET.0);
    cpu.write_dr(Dr::Status, Dr6::IDLE.0);
    for slot in Slot::ALL.into_iter().rev() {
        cpu.write_dr(Dr::Address(slot), 0);
    }
}

/// The skip test, `hw_breakpoint_active`: one load and a mask. GE alone is not active.
#[inline]
pub fn is_active<S: Steps>(cpu: &mut S) -> bool {
    Dr7(cpu.load(Word::Control)).any_global()
}

/// Obtains the register content without reading the hardware: what [`refresh`] would put there.
#[inline]
pub fn registers<S: Steps>(cpu: &mut S) -> Registers {
    let dr = Slot::ALL.map(|slot| cpu.load(Word::Address(slot)));
    Registers { dr, dr6: Dr6::IDLE.0, dr7: cpu.load(Word::Control) | Dr7::FIXED }
}

/// Refreshes the hardware from the shadow (R1-R6): six writes, no reads, DR7 last.
#[inline]
pub fn refresh<S: Steps>(cpu: &mut S) {
    for slot in Slot::ALL {
        // R1-R4
        let address = cpu.load(Word::Address(slot));
        cpu.write_dr(Dr::Address(slot), address);
    }
    // R5
    cpu.write_dr(Dr::Status, Dr6::IDLE.0);
    // R6
    let control = cpu.load(Word::Control);
    cpu.write_dr(Dr::Control, control);
}

/// Refreshes only the slots that are enabled, then DR7: what `lean` does instead of [`refresh`].
#[inline]
pub fn refresh_enabled<S: Steps>(cpu: &mut S) {
    let control = Dr7(cpu.load(Word::Control));
    for slot in Slot::ALL {
        if control.is_armed(slot) {
            let address = cpu.load(Word::Address(slot));
            cpu.write_dr(Dr::Address(slot), address);
        }
    }
    let control = cpu.load(Word::Control);
    cpu.write_dr(Dr::Control, control);
}

/// Disarms everything on the way into an NMI, #MC or kernel #DB handler (S1-S3), and returns what
/// [`local_db_restore`] needs. Under a hypervisor the shadow alone decides whether DR7 is read at all.
#[inline]
pub fn local_db_save<S: Steps>(cpu: &mut S, hypervisor: bool) -> u64 {
    // S1
    if hypervisor && !is_active(cpu) {
        return 0;
    }
    // S2
    let saved = cpu.read_dr(Dr::Control) & !Dr7::FIXED;
    // S3
    if saved != 0 {
        cpu.write_dr(Dr::Control, Dr7::RESET.0);
    }
    saved
}

/// Arms again what [`local_db_save`] found (T1). A snapshot: what was reprogrammed in between is lost.
#[inline]
pub fn local_db_restore<S: Steps>(cpu: &mut S, saved: u64) {
    if saved != 0 {
        cpu.write_dr(Dr::Control, saved);
    }
}

/// The plain form of one CPU: owners, shadow, registers and counters, as arrays.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Bank {
    /// [`Word::Owner`].
    pub owner: [Owner; 4],
    /// [`Word::Address`].
    pub address: [u64; 4],
    /// [`Word::Control`].
    pub control: u64,
    /// [`Word::Announced`].
    pub announced: u64,
    /// [`Word::Lent`].
    pub lent: u64,
    /// What the registers hold.
    pub hardware: Registers,
    /// What it has cost so far.
    pub cost: Cost,
}

impl Bank {
    /// After reset: nobody holds anything.
    pub const RESET: Bank = Bank {
        owner: [Owner::NONE; 4],
        address: [0; 4],
        control: 0,
        announced: 0,
        lent: 0,
        hardware: Registers::RESET,
        cost: Cost { dr_writes: 0, dr_reads: 0, vmcs: 0, vm_exits: 0, skips: 0 },
    };
}

impl Default for Bank {
    fn default() -> Self {
        Bank::RESET
    }
}

impl Steps for Bank {
    #[inline]
    fn load(&mut self, word: Word) -> u64 {
        match word {
            Word::Owner(slot) => self.owner[slot.index()].word(),
            Word::Address(slot) => self.address[slot.index()],
            Word::Control => self.control,
            Word::Announced => self.announced,
            Word::Lent => self.lent,
        }
    }

    #[inline]
    fn store(&mut self, word: Word, value: u64) {
        match word {
            Word::Owner(slot) => self.owner[slot.index()] = Owner(value as u32),
            Word::Address(slot) => self.address[slot.index()] = value,
            Word::Control => self.control = value,
            Word::Announced => self.announced = value,
            Word::Lent => self.lent = value,
        }
    }

    #[inline]
    fn or(&mut self, word: Word, bits: u64) {
        let value = self.load(word);
        self.store(word, value | bits);
    }

    #[inline]
    fn compare_exchange(&mut self, word: Word, old: u64, new: u64) -> bool {
        let holds = self.load(word) == old;
        if holds {
            self.store(word, new);
        }
        holds
    }

    #[inline]
    fn write_dr(&mut self, dr: Dr, value: u64) {
        self.cost.dr_writes += 1;
        // Bit 10 of DR7 reads as one whatever is written.
        self.hardware.set(dr, if dr == Dr::Control { value | Dr7::FIXED } else { value });
    }

    #[inline]
    fn read_dr(&mut self, dr: Dr) -> u64 {
        self.cost.dr_reads += 1;
        self.hardware.get(dr)
    }
}
