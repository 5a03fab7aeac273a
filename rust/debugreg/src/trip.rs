//! Which slots an access trips.
//!
//! Data: a hit if any byte of the access lies in the slot's block. Execute: only the first byte of the instruction
//! counts. I/O: with CR4.DE set only. A slot that matches but is not enabled trips nothing by itself; hardware may
//! still show its B bit when another slot raises #DB. Source: Intel SDM vol. 3, "Breakpoint Field Recognition" and
//! "Debug Status Register (DR6)".

use crate::bank::Registers;
use crate::{Breakpoint, Dr7, Kind, Slot};

/// What an instruction does to memory or to a port.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum What {
    /// Fetches the instruction whose first byte (prefixes included) is at the address.
    Execute,
    /// Reads.
    Load,
    /// Writes, or reads and writes (one trap either way).
    Store,
    /// IN or OUT.
    Io {
        /// CR4.DE: without it R/W=10b is undefined, and nothing trips here.
        debug_extensions: bool,
    },
}

/// One access.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Access {
    /// Of which sort.
    pub what: What,
    /// First byte (or port).
    pub address: u64,
    /// Number of bytes; for an execution only the first counts.
    pub bytes: u64,
}

impl Access {
    /// Whether the conditions of a slot that holds `bp` are met.
    pub const fn matches(self, bp: Breakpoint) -> bool {
        match self.what {
            What::Execute => self.is_for(bp.kind) && self.address == bp.address,
            _ => self.is_for(bp.kind) && self.overlaps(bp.block(), bp.length.bytes()),
        }
    }

    /// Whether breakpoints of a kind are about accesses like this.
    pub const fn is_for(self, kind: Kind) -> bool {
        matches!(
            (self.what, kind),
            (What::Execute, Kind::Execute)
                | (What::Load, Kind::ReadWrite)
                | (What::Store, Kind::Write | Kind::ReadWrite)
                | (What::Io { debug_extensions: true }, Kind::Io)
        )
    }

    /// Whether an access touches one of these bytes. Two ranges on the ring of addresses overlap iff one starts inside
    /// the other.
    pub const fn overlaps(self, start: u64, bytes: u64) -> bool {
        self.address.wrapping_sub(start) < bytes || start.wrapping_sub(self.address) < self.bytes
    }
}

/// The slots whose conditions an access meets, as masks in the layout of DR6.B0-B3.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Tripped {
    /// Enabled ones: each is a reason for #DB.
    pub armed: u8,
    /// Matching but disabled ones.
    pub disabled: u8,
}

/// Which slots an access trips, given the registers.
pub fn trip(registers: &Registers, access: Access) -> Tripped {
    let dr7 = Dr7(registers.dr7);
    let mut tripped = Tripped::default();
    for slot in Slot::ALL {
        if access.matches(dr7.breakpoint(slot, registers.dr[slot.index()])) {
            if dr7.is_armed(slot) {
                tripped.armed |= slot.bit();
            } else {
                tripped.disabled |= slot.bit();
            }
        }
    }
    tripped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Enable, Length};

    fn watch(kind: Kind, length: u64, address: u64) -> Registers {
        let length = Length::from_bytes(length).expect("1, 2, 4 or 8");
        Registers {
            dr: [address, 0, 0, 0],
            dr7: Dr7::RESET.arm(Slot::ZERO, Enable::Global, kind, length).0,
            ..Registers::RESET
        }
    }

    fn hits(registers: &Registers, what: What, address: u64, bytes: u64) -> bool {
        trip(registers, Access { what, address, bytes }).armed != 0
    }

    #[test]
    fn every_data_watch_agrees_with_byte_by_byte_overlap() {
        for length in [1u64, 2, 4, 8] {
            for at in 0..24u64 {
                let registers = watch(Kind::Write, length, at);
                let watched = at & !(length - 1)..(at & !(length - 1)) + length;
                for address in 0..24u64 {
                    for bytes in 1..=16u64 {
                        let expected = (address..address + bytes).any(|byte| watched.contains(&byte));
                        assert_eq!(hits(&registers, What::Store, address, bytes), expected, "W{length}@{at}");
                    }
                }
            }
        }
    }

    #[test]
    fn kinds_see_their_own_accesses_only() {
        let io = What::Io { debug_extensions: true };
        let table = [
            (Kind::Execute, [true, false, false, false]),
            (Kind::Write, [false, false, true, false]),
            (Kind::Io, [false, false, false, true]),
            (Kind::ReadWrite, [false, true, true, false]),
        ];
        for (kind, expected) in table {
            for (what, expected) in [What::Execute, What::Load, What::Store, io].into_iter().zip(expected) {
                assert_eq!(hits(&watch(kind, 1, 0x1000), what, 0x1000, 1), expected, "{kind:?} {what:?}");
            }
        }
        assert!(!hits(&watch(Kind::Io, 1, 0x30), What::Io { debug_extensions: false }, 0x30, 1));
    }

    #[test]
    fn execution_counts_at_the_first_byte_only() {
        let registers = watch(Kind::Execute, 1, 0x1001);
        assert!(!hits(&registers, What::Execute, 0x1000, 4));
        assert!(hits(&registers, What::Execute, 0x1001, 4));
    }

    #[test]
    fn the_top_of_the_address_space_does_not_wrap_into_a_miss() {
        assert!(hits(&watch(Kind::Write, 8, u64::MAX - 7), What::Store, u64::MAX, 1));
        assert!(hits(&watch(Kind::Write, 1, 0), What::Store, u64::MAX, 2));
        assert!(!hits(&watch(Kind::Write, 1, 0), What::Store, u64::MAX, 1));
    }

    #[test]
    fn several_at_once_and_disabled_ones_apart() {
        let mut registers = watch(Kind::Write, 8, 0x1000);
        registers.dr = [0x1000, 0x1000, 0x1004, 0x2000];
        let slot = |n| Slot::new(n).expect("0 to 3");
        registers.dr7 = Dr7(registers.dr7)
            .arm(slot(1), Enable::None, Kind::Write, Length::One)
            .arm(slot(2), Enable::Local, Kind::ReadWrite, Length::One)
            .0;
        let tripped = trip(&registers, Access { what: What::Store, address: 0x1000, bytes: 8 });
        assert_eq!(tripped, Tripped { armed: 0b0101, disabled: 0b0010 });
    }

    /// `linux-host.md` 1.2, the vectors that need no special instruction, as measured on a live CPU.
    #[test]
    fn measured_vectors() {
        use Kind::{Execute, ReadWrite, Write};
        let base = 0x10_0000;
        let vectors: [(Kind, u64, u64, What, i64, u64, bool); 13] = [
            (Write, 1, 0, What::Load, 0, 1, false),
            (ReadWrite, 1, 0, What::Load, 0, 1, true),
            (Write, 1, 7, What::Store, 0, 8, true),
            (Write, 1, 8, What::Store, 0, 8, false),
            (Write, 1, 0, What::Store, -7, 8, true),
            (Write, 8, 8, What::Store, 1, 8, true),
            (Write, 8, 8, What::Store, 15, 1, true),
            (Write, 8, 8, What::Store, 16, 1, false),
            (Write, 1, 4096, What::Store, 4092, 8, true),
            (Write, 1, 31, What::Store, 0, 32, true),
            (Write, 1, 32, What::Store, 0, 32, false),
            (ReadWrite, 1, 0, What::Execute, 0, 1, false),
            (Execute, 1, 0, What::Load, 0, 1, false),
        ];
        for (kind, length, at, what, offset, bytes, expected) in vectors {
            let registers = watch(kind, length, base + at);
            let address = base.wrapping_add_signed(offset);
            assert_eq!(hits(&registers, what, address, bytes), expected, "{kind:?}{length}@{at} {what:?} {offset}");
        }
    }
}
