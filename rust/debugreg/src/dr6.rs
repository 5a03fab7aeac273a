//! DR6, the status register, as a value.
//!
//! BLD (bit 11) and RTM (bit 16) are active low: 0 means that it happened. Writing 0 to DR6 is therefore wrong on
//! parts that have them. Source: Intel SDM vol. 3, "Debug Status Register (DR6)"; AMD APM vol. 2, 13.1.1.3.

use core::fmt;

use crate::Slot;

/// A value of DR6.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dr6(pub u64);

impl Dr6 {
    /// Nothing happened: fixed ones, BLD and RTM high, all events low. Value after reset.
    pub const IDLE: Dr6 = Dr6(0xffff_0ff0);
    /// B0-B3.
    pub const TRAPS: u64 = 0xf;
    /// BLD, bit 11, active low: a bus lock.
    pub const BLD: u64 = 1 << 11;
    /// BD, bit 13: the next instruction accesses a debug register while DR7.GD is set.
    pub const BD: u64 = 1 << 13;
    /// BS, bit 14: single step.
    pub const BS: u64 = 1 << 14;
    /// BT, bit 15: task switch with the T bit.
    pub const BT: u64 = 1 << 15;
    /// RTM, bit 16, active low: inside a transactional region.
    pub const RTM: u64 = 1 << 16;
    /// Bits that always read as one: 4 to 10 and 17 to 31.
    pub const FIXED_ONE: u64 = 0xfffe_07f0;
    /// Bit 12 always reads as zero.
    pub const RESERVED_ZERO: u64 = 1 << 12;
    /// Bits 63:32: MOV to DR6 raises #GP if one is set.
    pub const UPPER: u64 = 0xffff_ffff_0000_0000;

    /// The value, unless it has a bit that a MOV to DR6 refuses with #GP.
    pub const fn from_bits(bits: u64) -> Option<Dr6> {
        if bits & Dr6::UPPER == 0 { Some(Dr6::from_bits_truncate(bits)) } else { None }
    }

    /// What the register of a part with bus-lock detection and RTM holds after a MOV of the lower half of `bits`.
    pub const fn from_bits_truncate(bits: u64) -> Dr6 {
        Dr6(bits & !Dr6::UPPER & !Dr6::RESERVED_ZERO | Dr6::FIXED_ONE)
    }

    /// The value whose events are `events` in positive polarity (1 = it happened, for BLD and RTM too).
    pub const fn from_events(events: u64) -> Dr6 {
        Dr6(events ^ Dr6::IDLE.0)
    }

    /// Every bit that happened, in positive polarity: what Linux works with after its one exclusive-or.
    pub const fn events(self) -> u64 {
        self.0 ^ Dr6::IDLE.0
    }

    /// B`n`: the condition of that slot was met (armed or not, see [`crate::trip`]).
    pub const fn trap(self, slot: Slot) -> bool {
        self.0 & slot.bit() as u64 != 0
    }

    /// BS.
    pub const fn single_step(self) -> bool {
        self.0 & Dr6::BS != 0
    }

    /// BD.
    pub const fn debug_register_access(self) -> bool {
        self.0 & Dr6::BD != 0
    }

    /// BT.
    pub const fn task_switch(self) -> bool {
        self.0 & Dr6::BT != 0
    }

    /// A bus lock: BLD is **clear**.
    pub const fn bus_lock(self) -> bool {
        self.0 & Dr6::BLD == 0
    }

    /// Inside a transactional region: RTM is **clear**.
    pub const fn transaction(self) -> bool {
        self.0 & Dr6::RTM == 0
    }

    /// The register after a #DB with these events (positive polarity, neither BLD nor RTM among them): B0-B3 are
    /// replaced; BD, BS and BT accumulate until software clears them; RTM goes high; BLD stays as it was.
    #[must_use]
    pub const fn after_db(self, events: u64) -> Dr6 {
        Dr6(self.0 & !Dr6::TRAPS | events | Dr6::RTM)
    }

    /// Bits that are set although they always read as zero, or clear although they always read as one.
    pub const fn reserved(self) -> u64 {
        self.0 & (Dr6::UPPER | Dr6::RESERVED_ZERO) | !self.0 & Dr6::FIXED_ONE
    }
}

impl Default for Dr6 {
    fn default() -> Self {
        Dr6::IDLE
    }
}

impl fmt::Debug for Dr6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dr6({:#010x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_means_that_nothing_happened() {
        assert_eq!(Dr6::IDLE.events(), 0);
        assert!(!Dr6::IDLE.bus_lock() && !Dr6::IDLE.transaction());
        assert_eq!(Dr6::IDLE.reserved(), 0);
        // Zero asserts both active-low bits: why Linux no longer writes it.
        assert!(Dr6(0).bus_lock() && Dr6(0).transaction());
    }

    #[test]
    fn polarity_is_its_own_inverse_for_all_writable_bits() {
        for value in 0..=0x1_ffffu64 {
            assert_eq!(Dr6::from_events(Dr6(value).events()), Dr6(value));
        }
    }

    #[test]
    fn reserved_bits_are_fixed_as_the_hardware_does() {
        // Measured on a guest of a real CPU model: 0 reads back as the idle pattern less BLD and RTM,
        // 0xffffffff as 0xffffefff.
        assert_eq!(Dr6::from_bits_truncate(0xffff_ffff), Dr6(0xffff_efff));
        assert_eq!(Dr6::from_bits_truncate(0), Dr6(0xfffe_07f0));
        assert_eq!(Dr6::from_bits(1 << 32), None);
    }

    #[test]
    fn traps_are_replaced_and_the_rest_is_sticky() {
        let before = Dr6::from_events(Dr6::BS | 0b0010);
        assert_eq!(before.after_db(0b0001), Dr6::from_events(Dr6::BS | 0b0001));
        assert!(Dr6(0xfffe_0ff0).transaction() && !Dr6(0xfffe_0ff0).after_db(1).transaction());
        assert!(Dr6(0xffff_07f0).after_db(1).bus_lock());
    }
}
