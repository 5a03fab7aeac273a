//! The form of the steps that drives the real registers: x86-64, ring 0.
//!
//! The words are atomics behind a shared reference, because an NMI handler on the same CPU uses them too.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::{Dr, Steps, Word};

/// One CPU's words; place one per CPU, zeroed.
#[derive(Debug, Default)]
pub struct Words {
    owner: [AtomicU64; 4],
    address: [AtomicU64; 4],
    control: AtomicU64,
    announced: AtomicU64,
    lent: AtomicU64,
}

impl Words {
    /// Nobody holds anything.
    pub const fn new() -> Words {
        Words {
            owner: [const { AtomicU64::new(0) }; 4],
            address: [const { AtomicU64::new(0) }; 4],
            control: AtomicU64::new(0),
            announced: AtomicU64::new(0),
            lent: AtomicU64::new(0),
        }
    }

    #[inline]
    fn word(&self, word: Word) -> &AtomicU64 {
        match word {
            Word::Owner(slot) => &self.owner[slot.index()],
            Word::Address(slot) => &self.address[slot.index()],
            Word::Control => &self.control,
            Word::Announced => &self.announced,
            Word::Lent => &self.lent,
        }
    }
}

/// The steps on the CPU that is running.
#[derive(Debug)]
pub struct Hardware<'a>(&'a Words);

impl<'a> Hardware<'a> {
    /// # Safety
    ///
    /// For as long as the value lives: the caller runs at CPL 0, stays on the CPU that `words` belongs to, and lets
    /// nothing but these transitions program that CPU's debug registers.
    pub const unsafe fn new(words: &'a Words) -> Hardware<'a> {
        Hardware(words)
    }
}

impl Steps for Hardware<'_> {
    #[inline]
    fn load(&mut self, word: Word) -> u64 {
        self.0.word(word).load(Relaxed)
    }

    #[inline]
    fn store(&mut self, word: Word, value: u64) {
        self.0.word(word).store(value, Relaxed);
    }

    #[inline]
    fn or(&mut self, word: Word, bits: u64) {
        self.0.word(word).fetch_or(bits, Relaxed);
    }

    #[inline]
    fn compare_exchange(&mut self, word: Word, old: u64, new: u64) -> bool {
        self.0.word(word).compare_exchange(old, new, Relaxed, Relaxed).is_ok()
    }

    #[inline]
    fn write_dr(&mut self, dr: Dr, value: u64) {
        // SAFETY: `new`'s caller promised CPL 0. Without `nomem` the compiler keeps the order of these instructions and
        // the atomics around them, which the transitions rely on; without `preserves_flags` because a MOV DR leaves the
        // flags undefined (SDM vol. 2, "MOV, Move to/from Debug Registers").
        unsafe {
            match dr.number() {
                0 => asm!("mov dr0, {}", in(reg) value, options(nostack)),
                1 => asm!("mov dr1, {}", in(reg) value, options(nostack)),
                2 => asm!("mov dr2, {}", in(reg) value, options(nostack)),
                3 => asm!("mov dr3, {}", in(reg) value, options(nostack)),
                6 => asm!("mov dr6, {}", in(reg) value, options(nostack)),
                _ => asm!("mov dr7, {}", in(reg) value, options(nostack)),
            }
        }
    }

    #[inline]
    fn read_dr(&mut self, dr: Dr) -> u64 {
        let value: u64;
        // SAFETY: as in `write_dr`.
        unsafe {
            match dr.number() {
                0 => asm!("mov {}, dr0", out(reg) value, options(nostack)),
                1 => asm!("mov {}, dr1", out(reg) value, options(nostack)),
                2 => asm!("mov {}, dr2", out(reg) value, options(nostack)),
                3 => asm!("mov {}, dr3", out(reg) value, options(nostack)),
                6 => asm!("mov {}, dr6", out(reg) value, options(nostack)),
                _ => asm!("mov {}, dr7", out(reg) value, options(nostack)),
            }
        }
        value
    }
}
