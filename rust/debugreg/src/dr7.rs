//! DR7, the control register, as a value.
//!
//! Source: Intel SDM vol. 3, "Debug Control Register (DR7)"; AMD APM vol. 2, section 13.1.1.4; the kernel's
//! `encode_dr7` and `decode_dr7` (arch/x86/kernel/hw_breakpoint.c, 6.17).

use core::fmt;

use crate::{Breakpoint, Kind, Length, Slot};

/// Who enabled a slot: its two bits L and G in DR7.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Enable {
    /// Neither bit: the slot is not armed, whatever its address.
    None = 0b00,
    /// L: cleared by a hardware task switch.
    Local = 0b01,
    /// G: the only one that Linux sets.
    Global = 0b10,
    /// Both.
    Both = 0b11,
}

impl Enable {
    /// All four, by encoding.
    pub const ALL: [Enable; 4] = [Enable::None, Enable::Local, Enable::Global, Enable::Both];

    /// The name that Python and the command line use.
    pub const fn name(self) -> &'static str {
        match self {
            Enable::None => "none",
            Enable::Local => "local",
            Enable::Global => "global",
            Enable::Both => "both",
        }
    }

    /// The enable of that name.
    pub fn from_name(name: &str) -> Option<Enable> {
        Enable::ALL.into_iter().find(|enable| enable.name() == name)
    }
}

/// A value of DR7. Any 64 bits can be held: what a field means and what is reserved can be asked.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dr7(pub u64);

impl Dr7 {
    /// Value after reset and INIT, and what Linux writes to disarm (since 6.16): only the fixed bit 10.
    pub const RESET: Dr7 = Dr7(0x400);
    /// LE, bit 8: ignored since P6.
    pub const LE: u64 = 1 << 8;
    /// GE, bit 9: ignored since P6; Linux sets it with its first breakpoint and never clears it.
    pub const GE: u64 = 1 << 9;
    /// Bit 10 always reads as one.
    pub const FIXED: u64 = 1 << 10;
    /// RTM, bit 11: advanced debugging of transactional regions.
    pub const RTM: u64 = 1 << 11;
    /// GD, bit 13: a MOV to or from any debug register raises #DB.
    pub const GD: u64 = 1 << 13;
    /// L0-L3 and G0-G3.
    pub const ENABLES: u64 = 0xff;
    /// G0-G3.
    pub const GLOBAL_ENABLES: u64 = 0xaa;
    /// Bits that always read as zero: 12, 14 and 15.
    pub const RESERVED_ZERO: u64 = 0xd000;
    /// Bits 63:32: MOV to DR7 raises #GP if one is set.
    pub const UPPER: u64 = 0xffff_ffff_0000_0000;

    /// The value, unless it has a bit that a MOV to DR7 refuses with #GP.
    pub const fn from_bits(bits: u64) -> Option<Dr7> {
        if bits & Dr7::UPPER == 0 { Some(Dr7::from_bits_truncate(bits)) } else { None }
    }

    /// What the register holds after a MOV of the lower half of `bits`: reserved bits as the hardware fixes them.
    pub const fn from_bits_truncate(bits: u64) -> Dr7 {
        Dr7(bits & !Dr7::UPPER & !Dr7::RESERVED_ZERO | Dr7::FIXED)
    }

    /// The L and G bits of a slot.
    #[inline]
    pub const fn enable(self, slot: Slot) -> Enable {
        Enable::ALL[(self.0 >> (2 * slot.index()) & 3) as usize]
    }

    /// Whether the slot is armed, by L or by G.
    #[inline]
    pub const fn is_armed(self, slot: Slot) -> bool {
        self.0 >> (2 * slot.index()) & 3 != 0
    }

    /// Whether any slot is armed.
    #[inline]
    pub const fn any_armed(self) -> bool {
        self.0 & Dr7::ENABLES != 0
    }

    /// Whether any slot is armed by G: the kernel's `hw_breakpoint_active`, asked of its shadow.
    #[inline]
    pub const fn any_global(self) -> bool {
        self.0 & Dr7::GLOBAL_ENABLES != 0
    }

    /// The R/W field of a slot, armed or not.
    #[inline]
    pub const fn kind(self, slot: Slot) -> Kind {
        Kind::from_bits_truncate(self.0 >> (16 + 4 * slot.index()))
    }

    /// The LEN field of a slot, armed or not.
    #[inline]
    pub const fn length(self, slot: Slot) -> Length {
        Length::from_bits_truncate(self.0 >> (18 + 4 * slot.index()))
    }

    /// What a slot watches, given its address register.
    #[inline]
    pub const fn breakpoint(self, slot: Slot, address: u64) -> Breakpoint {
        Breakpoint { address, kind: self.kind(slot), length: self.length(slot) }
    }

    /// This value with one slot's enable, R/W and LEN replaced.
    #[must_use]
    pub const fn arm(self, slot: Slot, enable: Enable, kind: Kind, length: Length) -> Dr7 {
        let i = slot.index();
        let fields = (length.bits() << 2 | kind.bits()) << (16 + 4 * i) | (enable as u64) << (2 * i);
        Dr7(self.disarm(slot).0 | fields)
    }

    /// This value with one slot's enable, R/W and LEN cleared.
    #[must_use]
    pub const fn disarm(self, slot: Slot) -> Dr7 {
        let i = slot.index();
        Dr7(self.0 & !(0xf << (16 + 4 * i)) & !(3 << (2 * i)))
    }

    /// Bits that are set although they always read as zero, or clear although they always read as one.
    pub const fn reserved(self) -> u64 {
        self.0 & (Dr7::UPPER | Dr7::RESERVED_ZERO) | !self.0 & Dr7::FIXED
    }

    /// The slots whose fields contradict the manual: an armed R/W=00 with LEN other than 00.
    pub fn invalid_slots(self) -> impl Iterator<Item = Slot> {
        Slot::ALL.into_iter().filter(move |&slot| {
            self.is_armed(slot) && self.kind(slot) == Kind::Execute && self.length(slot) != Length::One
        })
    }
}

impl Default for Dr7 {
    fn default() -> Self {
        Dr7::RESET
    }
}

impl fmt::Debug for Dr7 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dr7({:#010x})", self.0)
    }
}

/// One slot's bits in DR7 as Linux arms it: G, R/W and LEN (the kernel's `__encode_dr7`).
#[inline]
pub const fn encode_slot(slot: Slot, kind: Kind, length: Length) -> u64 {
    Dr7(0).arm(slot, Enable::Global, kind, length).0
}

/// The kernel's `encode_dr7`: [`encode_slot`] and GE.
#[inline]
pub const fn encode_dr7(slot: Slot, kind: Kind, length: Length) -> u64 {
    encode_slot(slot, kind, length) | Dr7::GE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arm_then_read_back_for_every_setting_of_every_slot() {
        for slot in Slot::ALL {
            for enable in Enable::ALL {
                for kind in Kind::ALL {
                    for length in Length::ALL {
                        let dr7 = Dr7(u64::MAX).arm(slot, enable, kind, length);
                        assert_eq!((dr7.enable(slot), dr7.kind(slot), dr7.length(slot)), (enable, kind, length));
                        for other in Slot::ALL.into_iter().filter(|&other| other != slot) {
                            assert_eq!(dr7.enable(other), Enable::Both, "{slot:?} leaves {other:?} alone");
                            assert_eq!((dr7.kind(other), dr7.length(other)), (Kind::ReadWrite, Length::Four));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn all_settings_of_the_lower_half_decode_and_encode_to_themselves() {
        // 8 enable bits, then 16 bits of R/W and LEN: both halves of the domain, exhaustively.
        for value in (0..=0xffu64).chain((0..=0xffffu64).map(|v| v << 16)) {
            let rebuilt = Slot::ALL.into_iter().fold(Dr7(0), |dr7, slot| {
                let from = Dr7(value);
                dr7.arm(slot, from.enable(slot), from.kind(slot), from.length(slot))
            });
            assert_eq!(rebuilt, Dr7(value));
        }
    }

    #[test]
    fn the_kernels_encoding() {
        let slot = |n| Slot::new(n).expect("0 to 3");
        assert_eq!(encode_dr7(slot(0), Kind::Write, Length::Eight), 0x0009_0202);
        assert_eq!(encode_dr7(slot(3), Kind::ReadWrite, Length::Four), 0xf000_0280);
        assert_eq!(encode_slot(slot(1), Kind::Execute, Length::One), 0x8);
    }

    #[test]
    fn reserved_bits_are_fixed_as_the_hardware_does() {
        // Measured: a guest's MOV of 0xffffffff reads back 0xffff2fff (12, 14, 15 dropped).
        assert_eq!(Dr7::from_bits_truncate(0xffff_ffff), Dr7(0xffff_2fff));
        assert_eq!(Dr7::from_bits(1 << 32), None);
        assert_eq!(Dr7(0x1000).reserved(), 0x1400);
        assert_eq!(Dr7::RESET.reserved(), 0);
    }
}
