//! What one slot can watch: an address, a kind of access, a length.
//!
//! The two odd encodings of DR7 (8 bytes is `10`, 4 bytes is `11`; I/O is `10`, read or write is `11`) stand here
//! and nowhere else. Source: Intel SDM vol. 3, "Debug Control Register (DR7)"; AMD APM vol. 2, section 13.1.1.4.

/// One of the four breakpoint registers DR0-DR3, with its fields in DR6 and DR7.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(u8);

impl Slot {
    /// DR0.
    pub const ZERO: Slot = Slot(0);
    /// All four, in the order in which Linux looks for a free one.
    pub const ALL: [Slot; 4] = [Slot(0), Slot(1), Slot(2), Slot(3)];

    /// The slot of DR`n`, or `None` from 4 on.
    #[inline]
    pub const fn new(n: usize) -> Option<Slot> {
        if n < 4 { Some(Slot(n as u8)) } else { None }
    }

    /// 0 to 3.
    #[inline]
    pub const fn index(self) -> usize {
        (self.0 & 3) as usize
    }

    /// This slot's bit in a mask of four (DR6.B0-B3 have this layout).
    #[inline]
    pub const fn bit(self) -> u8 {
        1 << self.index()
    }
}

/// The R/W field of a slot: which accesses it watches.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Instruction execution, at the first byte; its length must be one byte.
    Execute = 0b00,
    /// Data writes.
    Write = 0b01,
    /// I/O port accesses; needs CR4.DE, undefined without it.
    Io = 0b10,
    /// Data reads and writes, never instruction fetches.
    ReadWrite = 0b11,
}

impl Kind {
    /// All four, by encoding.
    pub const ALL: [Kind; 4] = [Kind::Execute, Kind::Write, Kind::Io, Kind::ReadWrite];

    /// From the two bits of an R/W field; higher bits are ignored.
    #[inline]
    pub const fn from_bits_truncate(bits: u64) -> Kind {
        Kind::ALL[(bits & 3) as usize]
    }

    /// The two bits of the R/W field.
    #[inline]
    pub const fn bits(self) -> u64 {
        self as u64
    }

    /// The short name that scenarios, Python and the command line use.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Execute => "x",
            Kind::Write => "w",
            Kind::Io => "io",
            Kind::ReadWrite => "rw",
        }
    }

    /// The kind of that short name.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// The LEN field of a slot: how many bytes it watches.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Length {
    /// One byte (`00`), the only one for [`Kind::Execute`].
    One = 0b00,
    /// Two bytes (`01`).
    Two = 0b01,
    /// Eight bytes (`10`, on 64-bit capable parts).
    Eight = 0b10,
    /// Four bytes (`11`).
    Four = 0b11,
}

impl Length {
    /// All four, by encoding.
    pub const ALL: [Length; 4] = [Length::One, Length::Two, Length::Eight, Length::Four];

    /// From the two bits of a LEN field; higher bits are ignored.
    #[inline]
    pub const fn from_bits_truncate(bits: u64) -> Length {
        Length::ALL[(bits & 3) as usize]
    }

    /// From a number of bytes: 1, 2, 4 or 8.
    pub const fn from_bytes(bytes: u64) -> Option<Length> {
        match bytes {
            1 => Some(Length::One),
            2 => Some(Length::Two),
            4 => Some(Length::Four),
            8 => Some(Length::Eight),
            _ => None,
        }
    }

    /// The two bits of the LEN field.
    #[inline]
    pub const fn bits(self) -> u64 {
        self as u64
    }

    /// 1, 2, 4 or 8.
    #[inline]
    pub const fn bytes(self) -> u64 {
        match self {
            Length::One => 1,
            Length::Two => 2,
            Length::Four => 4,
            Length::Eight => 8,
        }
    }
}

/// What is programmed into a slot.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Breakpoint {
    /// Linear address (or port, for [`Kind::Io`]). The hardware takes any 64-bit value.
    pub address: u64,
    /// Which accesses.
    pub kind: Kind,
    /// How many bytes.
    pub length: Length,
}

impl Breakpoint {
    /// The first byte that the hardware watches: LEN masks the low address bits, so an unaligned address
    /// silently watches its aligned block (SDM vol. 3, "Breakpoint Field Recognition").
    #[inline]
    pub const fn block(self) -> u64 {
        self.address & !(self.length.bytes() - 1)
    }

    /// Whether the hardware watches exactly the bytes from `address` on.
    pub const fn is_aligned(self) -> bool {
        self.block() == self.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_odd_encodings_are_the_manuals() {
        assert_eq!(Length::from_bytes(8).map(Length::bits), Some(0b10));
        assert_eq!(Length::from_bytes(4).map(Length::bits), Some(0b11));
        assert_eq!(Kind::from_name("io").map(Kind::bits), Some(0b10));
        assert_eq!(Kind::from_name("rw").map(Kind::bits), Some(0b11));
        assert_eq!(Length::from_bytes(3), None);
    }

    #[test]
    fn encodings_and_names_round_trip() {
        for bits in 0..4 {
            assert_eq!(Kind::from_bits_truncate(bits).bits(), bits);
            assert_eq!(Length::from_bits_truncate(bits).bits(), bits);
        }
        for kind in Kind::ALL {
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
        }
        for length in Length::ALL {
            assert_eq!(Length::from_bytes(length.bytes()), Some(length));
        }
    }
}
