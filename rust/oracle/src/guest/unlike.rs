//! Where a guest's registers are not what the model says, for reasons that are this driver's or this machine's own: a line
//! that depends on them is unobserved, and says why.
//!
//! kvm-pvm has KVM's emulator perform every instruction of an ordinary guest. That is what real guests do, but that it
//! knows no data breakpoints, and what is said here of MOV DR (`check_dr_read`, `check_dr_write`, `em_dr_write` in
//! arch/x86/kvm/emulate.c, 6.18).

use debugreg::trip::{Access, What, trip};
use debugreg::{Dr, Dr7, Registers};
use debugreg_model::{Insn, Vcpu};

use super::Kind;

pub(super) const NO_DATA: &str =
    "this KVM emulates a guest's instructions (kvm-pvm), and its emulator knows no data breakpoints";
pub(super) const NO_ENTRY: &str = "guests are emulated here (kvm-pvm): no processor looks at what is loaded";
pub(super) const OPEN_WINDOW: &str =
    "in the model this follows from an exit for a MOV DR, which user space cannot choose";
pub(super) const STALE_DR6: &str = "in the model a guest's DR6 is still in the register and taken for the host's (Z-9), but no guest was executed here";
const MISSED_HIT: &str = "a breakpoint before it would have changed this, but was not to be had here";
pub(super) const GUESTS_OWN: &str = "guests are emulated here (kvm-pvm), and KVM's emulator heeds a guest's own breakpoints and GD, \
                         whoever has the registers (H-21)";
pub(super) const UNSTEPPED: &str =
    "guests are emulated here (kvm-pvm), and KVM's emulator does not step over what its user space does";
pub(super) const THROUGH_RF: &str =
    "guests are emulated here (kvm-pvm), and KVM's emulator heeds a debugger's execute breakpoint whatever RF says";
pub(super) const GUESTS_TF: &str =
    "guests are emulated here (kvm-pvm), and KVM's emulator tells the guest of its own TF, whoever has the registers";
const ORDER: &str = "guests are emulated here (kvm-pvm), and KVM's emulator looks at the value before GD";
const PRIVILEGE: &str =
    "guests are emulated here (kvm-pvm), and KVM's emulator looks at the privilege before the register's number";
const ALIAS: &str =
    "guests are emulated here (kvm-pvm), and KVM's emulator ignores a value with bits 63:32 for DR4 and DR5";
const RAW: &str =
    "guests are emulated here (kvm-pvm), and read what KVM_SET_DEBUGREGS has stored, bit 10 of DR7 or not";

/// A guest's registers, as far as they are not like the model's.
#[derive(Clone, Debug, Default)]
pub(super) struct Unlike {
    /// DR6 lacks the bits of hits.
    dr6: bool,
    /// DR7 is what was stored, not what a processor makes of it.
    dr7: bool,
    /// Nothing can be said of any register.
    pub(super) all: Option<&'static str>,
}

impl Unlike {
    /// A #DB that the guest should have got, or got and should not; DR7 was this.
    pub(super) fn missed(&mut self, dr7: u64) {
        self.dr6 = true;
        if dr7 & Dr7::GD != 0 {
            self.all = Some(MISSED_HIT);
        }
    }

    /// A #DB that it got: B0-B3 of a missed one are gone, and other bits do not come from one.
    pub(super) fn delivered(&mut self) {
        self.dr6 = false;
    }

    /// A register that the guest has written.
    pub(super) fn written(&mut self, dr: Dr) {
        match dr {
            Dr::Status => self.dr6 = false,
            Dr::Control => self.dr7 = false,
            Dr::Address(_) => {}
        }
    }

    /// What its VMM has set.
    pub(super) fn set(&mut self, dr6: Option<u64>, dr7: Option<u64>, kind: Kind) {
        self.dr6 &= dr6.is_none();
        self.dr7 = dr7.map_or(self.dr7, |dr7| kind == Kind::Emulated && dr7 & Dr7::FIXED == 0);
    }

    /// Why a register that the guest reads says nothing.
    pub(super) fn read(&self, dr: Dr) -> Option<&'static str> {
        match dr {
            Dr::Status if self.dr6 => Some(MISSED_HIT),
            Dr::Control if self.dr7 => Some(RAW),
            _ => None,
        }
    }

    /// Those that KVM keeps of which nothing can be said; the model has this as DR7, which a processor has completed or not.
    pub(super) fn registers(&self, dr7: u64) -> Vec<Dr> {
        let all = [(self.dr6, Dr::Status), (self.dr7 && dr7 & Dr7::FIXED != 0, Dr::Control)];
        all.into_iter().filter(|(unlike, _)| *unlike).map(|(_, dr)| dr).collect()
    }

    /// Why an emulated MOV DR is not what a real one would be.
    pub(super) fn mov_dr(&mut self, before: &Vcpu, number: u8, ring: u8, write: Option<u64>) -> Option<&'static str> {
        let upper = write.is_some_and(|value| value > u64::from(u32::MAX));
        let detects = before.own.dr7 & Dr7::GD != 0;
        let debuggers = before.debugger_intercepts_db() && (before.own.dr7 | before.debug.dr7) & Dr7::GD != 0;
        match number {
            4 | 5 if ring > 0 && before.debug_extensions => return Some(PRIVILEGE),
            8.. if ring > 0 => return Some(PRIVILEGE),
            8.. => return None,
            _ if debuggers => self.all = Some(GUESTS_OWN),
            6 | 7 if upper && detects && ring == 0 => self.all = Some(ORDER),
            4 | 5 if upper && !detects && ring == 0 => return Some(ALIAS),
            _ => {}
        }
        self.all
    }
}

/// Whether an emulated execution meets a breakpoint of the guest's, though a debugger has the registers.
pub(super) fn heeds_the_guests(before: &Vcpu, access: Access) -> bool {
    let meets = |registers| trip(registers, access).armed != 0;
    before.debugger_owns() && meets(&before.own) && !meets(&before.effective())
}

/// Whether an access meets a data breakpoint that is armed.
pub(super) fn hits(registers: &Registers, access: Access, insn: Insn) -> bool {
    let (what, bytes) = match insn {
        Insn::Xchg | Insn::Cmpxchg => (What::Store, access.bytes),
        Insn::Rep(count) => (access.what, access.bytes.saturating_mul(count)),
        _ => (access.what, access.bytes),
    };
    bytes > 0 && trip(registers, Access { what, bytes, ..access }).armed != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_hit_makes_dr6_unlike_until_something_else_fills_it() {
        let mut unlike = Unlike::default();
        assert_eq!(unlike.registers(0x400), []);
        for refill in [
            |unlike: &mut Unlike| unlike.delivered(),
            |unlike: &mut Unlike| unlike.written(Dr::Status),
            |unlike: &mut Unlike| unlike.set(Some(0), None, Kind::Emulated),
        ] {
            unlike.missed(0x401);
            assert_eq!((unlike.registers(0x400), unlike.read(Dr::Status)), (vec![Dr::Status], Some(MISSED_HIT)));
            assert_eq!((unlike.read(Dr::Control), unlike.all), (None, None));
            refill(&mut unlike);
            assert_eq!(unlike.registers(0x400), []);
        }
        // GD would have been cleared: what a MOV DR does is another thing from here on.
        unlike.missed(Dr7::GD);
        assert!(unlike.all.is_some());
    }

    #[test]
    fn a_raw_dr7_is_unlike_where_guests_are_emulated() {
        let mut unlike = Unlike::default();
        unlike.set(None, Some(0x1), Kind::Hardware);
        assert_eq!(unlike.registers(0x400), []);
        unlike.set(None, Some(0x1), Kind::Emulated);
        unlike.set(Some(0), None, Kind::Emulated);
        assert_eq!((unlike.registers(0x401), unlike.registers(0x1)), (vec![Dr::Control], vec![]));
        unlike.written(Dr::Control);
        assert_eq!(unlike.registers(0x400), []);
    }

    #[test]
    fn every_byte_of_a_repeated_access_counts_and_both_halves_of_an_exchange() {
        let registers = |dr7| Registers { dr: [0x1010, 0, 0, 0], dr6: 0, dr7 };
        let load = Access { what: What::Load, address: 0x1000, bytes: 4 };
        let (write, either) = (registers(0x0001_0401), registers(0x0003_0401));
        assert!(hits(&either, load, Insn::Rep(5)) && !hits(&either, load, Insn::Rep(4)));
        assert!(!hits(&write, load, Insn::Rep(5)) && !hits(&either, load, Insn::Rep(0)));
        let there = Access { address: 0x1010, ..load };
        assert!(hits(&write, there, Insn::Xchg) && !hits(&write, there, Insn::Plain));
    }
}
