//! The known faults of QEMU's emulation of debug registers: `cpu=tcg`.
//!
//! TCG keeps a list of the data breakpoints that are armed, in the order in which they were, and looks through it at
//! every access to a page that has one of its kind (loads: read-write). The first that matches ends the search and is marked as hit; those before it
//! lose their marks, those behind it keep whatever marks they have. DR6 then shows every mark. So one access reports one
//! of several breakpoints, and may report others that were hit earlier. Execute breakpoints are compared with all four
//! registers, enabled or not, and such a hit clears all marks. Where a data breakpoint is, is not aligned. A repeated instruction raises #DB once, when it has ended.
//!
//! At an exit of a guest the host's DR6 is as before the entry, and its DR7 too but for the enables. A guest's MOV DR
//! exits before GD is looked at, reserved bits keep what a guest writes, and INT1 goes past an intercept of #DB.
//!
//! Observed under QEMU 10.0.2 by scenarios; QEMU's accel/tcg/watchpoint.c, target/i386/tcg/system/bpt_helper.c
//! and svm_helper.c (10.0).

use debugreg::trip::{Access, Tripped, What, trip};
use debugreg::{Dr, Dr6, Dr7, Kind, Registers, Slot};

use crate::CpuId;
use crate::event::Insn;
use crate::guest::fixed;
use crate::hit::{self, Exception};
use crate::machine::{Machine, Processor};

/// A CPU's armed data breakpoints.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Watchpoints {
    /// In the order in which they were armed.
    order: [Option<Slot>; 4],
    /// Those that are marked as hit, in the layout of DR6.
    marked: u8,
    /// DR6 and DR7 of the host whose guest runs.
    host: (u64, u64),
}

impl Watchpoints {
    /// A MOV to a debug register that held `before`.
    pub(crate) fn write(&mut self, before: &Registers, dr: Dr, value: u64) {
        let (old, mut after) = (Dr7(before.dr7), *before);
        after.set(dr, if dr == Dr::Control { value | Dr7::FIXED } else { value });
        let new = Dr7(after.dr7);
        let again: [bool; 4] = match dr {
            Dr::Address(written) => Slot::ALL.map(|slot| slot == written),
            // If more changes than who is enabled, all of them are armed anew.
            Dr::Control if (old.0 ^ new.0) & !Dr7::ENABLES != 0 => [true; 4],
            Dr::Control => Slot::ALL.map(|slot| old.is_armed(slot) != new.is_armed(slot)),
            Dr::Status => return,
        };
        let again = Slot::ALL.into_iter().zip(again).filter_map(|(slot, again)| again.then_some(slot));
        for slot in again.clone() {
            self.remove(slot);
        }
        for slot in again.filter(|&slot| new.is_armed(slot) && is_data(new.kind(slot))) {
            let place = self.order.iter_mut().find(|place| place.is_none()).expect("four slots have four places");
            *place = Some(slot);
        }
    }

    fn remove(&mut self, slot: Slot) {
        self.marked &= !slot.bit();
        let mut rest = self.order.into_iter().flatten().filter(|&other| other != slot);
        self.order = std::array::from_fn(|_| rest.next());
    }

    /// Which slots an access trips.
    fn trip(&mut self, registers: &Registers, access: Access) -> Tripped {
        let mut tripped = trip(registers, access);
        match access.what {
            What::Io { .. } => {}
            What::Execute if tripped.armed == 0 => tripped = Tripped::default(),
            What::Execute => {
                // `cpu_handle_debug_exception`
                self.marked = 0;
                tripped = Tripped { armed: tripped.armed | tripped.disabled, disabled: 0 };
            }
            What::Load | What::Store => {
                let hit = pieces(access).any(|piece| self.search(registers, piece));
                tripped = Tripped { armed: if hit { self.marked } else { 0 }, disabled: 0 };
            }
        }
        tripped
    }

    /// Looks through the list for one piece of an access.
    fn search(&mut self, registers: &Registers, piece: Access) -> bool {
        let dr7 = Dr7(registers.dr7);
        let page = Access { address: piece.address & !0xfff, bytes: 0x1000, ..piece };
        // Not the aligned block: a debugger's may be anywhere (`cpu_watchpoint_insert`).
        let watched = |slot: Slot, by: Access| {
            by.is_for(dr7.kind(slot)) && by.overlaps(registers.dr[slot.index()], dr7.length(slot).bytes())
        };
        if !self.order.into_iter().flatten().any(|slot| watched(slot, page)) {
            return false;
        }
        for slot in self.order.into_iter().flatten() {
            if watched(slot, piece) {
                self.marked |= slot.bit();
                return true;
            }
            self.marked &= !slot.bit();
        }
        false
    }
}

/// The parts of an access that are looked at one by one: 16 bytes at most, and no page boundary inside.
fn pieces(access: Access) -> impl Iterator<Item = Access> {
    let parts = (0..access.bytes.div_ceil(16)).flat_map(move |at| {
        let address = access.address.wrapping_add(16 * at);
        let bytes = (access.bytes - 16 * at).min(16);
        let first = bytes.min(0x1000 - (address & 0xfff));
        [(address, first), (address.wrapping_add(first), bytes - first)]
    });
    parts.filter(|&(_, bytes)| bytes > 0).map(move |(address, bytes)| Access { address, bytes, ..access })
}

/// What a register holds after a MOV: no bit that reads as zero is dropped.
const fn kept(dr: Dr, value: u64) -> u64 {
    match dr {
        Dr::Address(_) => value,
        Dr::Status => value | Dr6::IDLE.0,
        Dr::Control => value | Dr7::FIXED,
    }
}

const fn is_data(kind: Kind) -> bool {
    matches!(kind, Kind::Write | Kind::ReadWrite)
}

impl Machine {
    pub(crate) fn is_tcg(&self) -> bool {
        self.options.processor == Processor::Tcg
    }

    /// MOV to a debug register: what the register makes of it.
    #[inline]
    pub(crate) fn write_hardware(&mut self, cpu: CpuId, dr: Dr, value: u64) {
        let value = if self.is_tcg() { kept(dr, value) } else { fixed(dr, value) };
        let is_tcg = self.is_tcg();
        let cpu = &mut *self.cpus[cpu.index()];
        if is_tcg {
            cpu.watchpoints.write(&cpu.bank.hardware, dr, value);
        }
        cpu.bank.hardware.set(dr, value);
    }

    /// What an entry has just put into DR7, given what was in the registers of the host.
    pub(crate) fn emulate_entry(&mut self, cpu: CpuId, host: Registers) {
        if self.is_tcg() {
            let cpu = &mut *self.cpus[cpu.index()];
            cpu.watchpoints.host = (host.dr6, host.dr7);
            cpu.watchpoints.write(&host, Dr::Control, cpu.bank.hardware.dr7);
        }
    }

    /// What an exit puts into DR6 and DR7, given what was in the registers of the guest.
    pub(crate) fn emulate_exit(&mut self, cpu: CpuId, guest: Registers) {
        if self.is_tcg() {
            let cpu = &mut *self.cpus[cpu.index()];
            let (dr6, dr7) = cpu.watchpoints.host;
            let dr7 = kept(Dr::Control, dr7 & !Dr7::ENABLES);
            cpu.watchpoints.write(&guest, Dr::Control, dr7);
            (cpu.bank.hardware.dr6, cpu.bank.hardware.dr7) = (dr6, dr7);
        }
    }

    /// The fault of an execute breakpoint on an instruction.
    pub(crate) fn fault(&mut self, cpu: CpuId, access: Access, insn: Insn) -> Option<Exception> {
        let options = self.options;
        let cpu = &mut *self.cpus[cpu.index()];
        if options.processor == Processor::Real || access.what != What::Execute {
            return hit::fault(&cpu.bank.hardware, access, insn, &options);
        }
        if insn == Insn::IretRf {
            return None;
        }
        let armed = cpu.watchpoints.trip(&cpu.bank.hardware, access).armed;
        (armed != 0).then_some(Exception { events: u64::from(armed), is_fault: true })
    }

    /// The traps of one part of an instruction.
    pub(crate) fn trap(&mut self, cpu: CpuId, part: Option<Access>, insn: Insn) -> Option<Exception> {
        let options = self.options;
        let cpu = &mut *self.cpus[cpu.index()];
        if options.processor == Processor::Real {
            return hit::trap(&cpu.bank.hardware, part, insn, &options);
        }
        let mut trip = |access| cpu.watchpoints.trip(&cpu.bank.hardware, access).armed;
        let armed = part.map_or(0, |access| {
            if !matches!(insn, Insn::Xchg | Insn::Cmpxchg) {
                return trip(access);
            }
            // One access that does both; or, if it is not aligned, two.
            let read = if access.address.is_multiple_of(access.bytes) {
                0
            } else {
                trip(Access { what: What::Load, ..access })
            };
            if read == 0 { trip(Access { what: What::Store, ..access }) } else { read }
        });
        let stepped = if insn == Insn::PopfTf { Dr6::BS } else { 0 };
        let happens = armed != 0 || stepped != 0 || insn == Insn::Icebp;
        happens.then(|| Exception { events: u64::from(armed) | stepped, is_fault: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use debugreg::{Enable, Length};

    const STORE: Access = Access { what: What::Store, address: 0x1000, bytes: 8 };

    /// Arms slots one by one, as Linux does: the address first, then DR7.
    fn armed(slots: &[(usize, Kind, u64)]) -> (Watchpoints, Registers) {
        let (mut watchpoints, mut registers) = (Watchpoints::default(), Registers::RESET);
        for &(slot, kind, address) in slots {
            let slot = Slot::new(slot).expect("0 to 3");
            let length = if kind == Kind::Execute { Length::One } else { Length::Eight };
            let dr7 = Dr7(registers.dr7).arm(slot, Enable::Global, kind, length).0;
            for (dr, value) in [(Dr::Address(slot), address), (Dr::Control, dr7)] {
                watchpoints.write(&registers, dr, value);
                registers.set(dr, value);
            }
        }
        (watchpoints, registers)
    }

    #[test]
    fn the_first_of_several_is_reported() {
        let (mut watchpoints, registers) = armed(&[(1, Kind::Write, 0x1000), (0, Kind::Write, 0x1000)]);
        // Arming slot 0 changed DR7's other bits: both were armed anew, slot 0 first.
        assert_eq!(watchpoints.trip(&registers, STORE).armed, 0b01);
        let (on, off) = (registers.dr7, registers.dr7 & !0b11);
        for (from, to) in [(on, off), (off, on)] {
            watchpoints.write(&Registers { dr7: from, ..registers }, Dr::Control, to);
        }
        // Only the enables changed: slot 0 is behind slot 1 now.
        assert_eq!(watchpoints.trip(&registers, STORE).armed, 0b10);
    }

    #[test]
    fn one_that_was_hit_earlier_is_reported_with_a_lower_one() {
        let armed = armed(&[(0, Kind::Write, 0x1000), (1, Kind::Write, 0x1100), (2, Kind::ReadWrite, 0x2100)]);
        let (mut watchpoints, registers) = armed;
        let other = Access { address: 0x1100, ..STORE };
        assert_eq!(watchpoints.trip(&registers, other).armed, 0b10);
        assert_eq!(watchpoints.trip(&registers, STORE).armed, 0b11);
        assert_eq!(watchpoints.trip(&registers, other).armed, 0b10);
        // One that hits nothing looks through the whole list and forgets it, if its page has one of its kind.
        let access = |what, address| Access { what, address, bytes: 1 };
        for (what, page, forgets) in [
            (What::Load, 0x1000, false),
            (What::Store, 0x1000, true),
            (What::Load, 0x2000, true),
            (What::Store, 0x3000, false),
        ] {
            assert_eq!(watchpoints.trip(&registers, other).armed, 0b10);
            assert_eq!(watchpoints.trip(&registers, access(what, page + 0x800)).armed, 0);
            assert_eq!(watchpoints.trip(&registers, STORE).armed, if forgets { 0b01 } else { 0b11 });
        }
    }

    #[test]
    fn execution_is_compared_with_disabled_registers_too() {
        let (mut watchpoints, mut registers) = armed(&[(2, Kind::Execute, 0x3000)]);
        registers.dr[3] = 0x3000;
        let execute = |address| Access { what: What::Execute, address, bytes: 1 };
        assert_eq!(watchpoints.trip(&registers, execute(0x3000)).armed, 0b1100);
        assert_eq!(watchpoints.trip(&registers, execute(0x3001)).armed, 0);
    }

    #[test]
    fn pieces_are_what_the_access_is() {
        for address in [0x0ff0, 0x0ff8, 0x0fff, 0x1000, 0x1001] {
            for bytes in [1, 2, 4, 8, 16, 32] {
                let covered: Vec<_> = pieces(Access { address, bytes, ..STORE })
                    .inspect(|piece| assert!(piece.address & 0xfff <= 0x1000 - piece.bytes && piece.bytes <= 16))
                    .flat_map(|piece| piece.address..piece.address + piece.bytes)
                    .collect();
                assert_eq!(covered, (address..address + bytes).collect::<Vec<_>>());
            }
        }
    }
}
