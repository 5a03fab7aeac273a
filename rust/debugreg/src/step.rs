//! The steps that a transition is made of.
//!
//! A transition (install, refresh, VM entry, ...) touches the world only through [`Steps`]: a load or a store of a
//! memory word that others can see, a one-instruction read-modify-write of it, a MOV to or from a debug register.
//! An NMI may come between any two of them, so a transition keeps nothing but locals across a step, and what its
//! source reads again it loads again.

use crate::Slot;

/// A debug register that MOV can name (DR4 and DR5 are aliases or #UD).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Dr {
    /// DR0-DR3.
    Address(Slot),
    /// DR6.
    Status,
    /// DR7.
    Control,
}

impl Dr {
    /// The number in the instruction: 0-3, 6 or 7.
    #[inline]
    pub const fn number(self) -> u8 {
        match self {
            Dr::Address(slot) => slot.index() as u8,
            Dr::Status => 6,
            Dr::Control => 7,
        }
    }

    /// The register of that number; 4 and 5 alias 6 and 7 (as with CR4.DE clear), anything above is `None`.
    pub const fn from_number(number: u8) -> Option<Dr> {
        match number {
            4 | 6 => Some(Dr::Status),
            5 | 7 => Some(Dr::Control),
            n => match Slot::new(n as usize) {
                Some(slot) => Some(Dr::Address(slot)),
                None => None,
            },
        }
    }
}

/// A per-CPU memory word that others (an NMI handler, KVM) can see.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Word {
    /// Who holds a slot (Linux: `bp_per_reg[i]`).
    Owner(Slot),
    /// Shadow of DR0-DR3 (Linux: `cpu_debugreg[i]`): written when a slot is taken, left when it is given back.
    Address(Slot),
    /// Shadow of DR7 without bit 10 (Linux: `cpu_dr7`).
    Control,
    /// How often a slot was announced or withdrawn ([`crate::announce`]; Linux has none).
    Announced,
    /// Whether the registers are lent: to a handler that disarmed them, to a guest ([`crate::announce`]; Linux has none).
    Lent,
}

/// One step at a time. Every method is one instruction as far as an NMI on this CPU can tell.
pub trait Steps {
    /// Loads a word.
    fn load(&mut self, word: Word) -> u64;
    /// Stores a word.
    fn store(&mut self, word: Word, value: u64);
    /// `word |= bits`, in one instruction.
    fn or(&mut self, word: Word, bits: u64);
    /// Stores `new` if the word is `old`; whether it did. One (locked) instruction.
    fn compare_exchange(&mut self, word: Word, old: u64, new: u64) -> bool;
    /// MOV to a debug register.
    fn write_dr(&mut self, dr: Dr, value: u64);
    /// MOV from a debug register.
    fn read_dr(&mut self, dr: Dr) -> u64;
}

/// What a policy has cost, counted in steps.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Cost {
    /// MOV to a debug register.
    pub dr_writes: u64,
    /// MOV from a debug register.
    pub dr_reads: u64,
    /// Accesses to fields of a VMCS or VMCB.
    pub vmcs: u64,
    /// VM exits that the policy caused.
    pub vm_exits: u64,
    /// Hook calls (task switch, VM entry, VM exit) that performed no MOV DR and no VMCS or VMCB access.
    pub skips: u64,
}

impl Cost {
    /// Writes + reads + `weight` times the exits: what policies are ranked by.
    pub const fn weighted(&self, weight: u64) -> u64 {
        self.dr_writes + self.dr_reads + weight * self.vm_exits
    }

    /// Debug-register instructions and VMCS/VMCB accesses: zero if the hardware was not touched.
    #[inline]
    pub const fn touched(&self) -> u64 {
        self.dr_writes + self.dr_reads + self.vmcs
    }
}

impl core::ops::Add for Cost {
    type Output = Cost;
    fn add(self, other: Cost) -> Cost {
        Cost {
            dr_writes: self.dr_writes + other.dr_writes,
            dr_reads: self.dr_reads + other.dr_reads,
            vmcs: self.vmcs + other.vmcs,
            vm_exits: self.vm_exits + other.vm_exits,
            skips: self.skips + other.skips,
        }
    }
}

impl core::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        *self = *self + other;
    }
}

impl core::ops::Sub for Cost {
    type Output = Cost;
    fn sub(self, earlier: Cost) -> Cost {
        Cost {
            dr_writes: self.dr_writes - earlier.dr_writes,
            dr_reads: self.dr_reads - earlier.dr_reads,
            vmcs: self.vmcs - earlier.vmcs,
            vm_exits: self.vm_exits - earlier.vm_exits,
            skips: self.skips - earlier.skips,
        }
    }
}
