//! A guest's memory before it runs: descriptor tables, page tables, and a page wherever the scenario touches something.
//!
//! The guest is in long mode with all protection rings. Its own pages lie high, the scenario's lie where the scenario
//! says; both are reachable from every ring. Source: Intel SDM vol. 3, "4-Level Paging", "Interrupt and Exception
//! Handling", "TSS in 64-bit Mode".

use std::collections::BTreeSet;

use crate::agent::RET;

/// Guest-physical addresses, which are offsets in the guest's file.
pub(super) mod physical {
    /// What driver and guest tell each other: see `code.rs`.
    pub(crate) const BOARD: usize = 0x1000;
    /// GDT, TSS and IDT.
    pub(crate) const TABLES: usize = 0x2000;
    pub(crate) const STACK: usize = 0x3000;
    pub(crate) const CODE: usize = 0x4000;
    pub(crate) const CODE_END: usize = 0x8000;
    /// Arguments of system calls; the guest does not have this page.
    pub(crate) const SCRATCH: usize = 0x8000;
    pub(super) const ROOT: usize = 0x9000;
    pub(super) const FREE: usize = 0xa000;
}

const PAGE: usize = 0x1000;

/// Where the guest's own pages are. Scenarios have no business here.
const BASE: u64 = 0xffff_adeb_0000_0000;

/// Present, writable, for every ring.
const EVERYBODY: u64 = 7;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

const TSS: usize = 0x100;
const IDT: usize = 0x200;
/// Exceptions; nothing else comes.
pub(super) const VECTORS: usize = 32;

/// The linear address of one of the guest's own pages.
pub(super) const fn linear(physical: usize) -> u64 {
    BASE + physical as u64
}

/// The selector of a ring's 64-bit code.
pub(super) const fn code_selector(ring: u8) -> u16 {
    (1 + 2 * ring as u16) << 3 | ring as u16
}

/// The selector of a ring's data and stack.
pub(super) const fn data_selector(ring: u8) -> u16 {
    (2 + 2 * ring as u16) << 3 | ring as u16
}

pub(super) const TSS_SELECTOR: u16 = 9 << 3;
pub(super) const STACK_TOP: u64 = linear(physical::STACK) + PAGE as u64;

/// A descriptor table: its linear address and its limit.
pub(super) const GDT: (u64, u16) = (linear(physical::TABLES), TSS_SELECTOR + 15);
pub(super) const IDT_REGISTER: (u64, u16) = (linear(physical::TABLES + IDT), (16 * VECTORS - 1) as u16);
/// The task state: its linear address and its limit.
pub(super) const TASK_STATE: (u64, u32) = (linear(physical::TABLES + TSS), 0x67);
pub(super) const PAGE_TABLES: u64 = physical::ROOT as u64;

/// The memory, as bytes.
#[derive(Debug)]
pub(super) struct Image {
    bytes: Vec<u8>,
    mapped: BTreeSet<u64>,
}

impl Image {
    pub(super) fn new() -> Image {
        let mut image = Image { bytes: vec![0; physical::FREE], mapped: BTreeSet::new() };
        for page in (physical::BOARD..physical::CODE_END).step_by(PAGE) {
            image.point(linear(page), page);
        }
        image.put(physical::TABLES, &descriptors());
        image.set(physical::TABLES + TSS + 4, STACK_TOP); // RSP0
        image
    }

    /// The harness, and the handler of each exception in it.
    pub(super) fn install(&mut self, code: &[u8], handlers: [u64; VECTORS]) {
        const INTERRUPT_GATE: u64 = 0x8e00;
        self.put(physical::CODE, code);
        for (vector, handler) in handlers.into_iter().enumerate() {
            let at = physical::TABLES + IDT + 16 * vector;
            let selector = u64::from(code_selector(0));
            let low = handler & 0xffff | selector << 16 | INTERRUPT_GATE << 32 | (handler >> 16 & 0xffff) << 48;
            self.set(at, low);
            self.set(at + 8, handler >> 32);
        }
    }

    /// Gives the guest a page of `ret` instructions, if its paging can.
    pub(super) fn map(&mut self, page: u64) -> bool {
        // Canonical: bits 63:47 are all alike.
        let canonical = matches!(page.cast_signed() >> 47, 0 | -1);
        let own = (linear(0)..linear(physical::CODE_END)).contains(&page);
        if !canonical || own {
            return false;
        }
        if self.mapped.insert(page) {
            let frame = self.frame();
            self.bytes[frame..].fill(RET);
            self.point(page, frame);
        }
        true
    }

    pub(super) fn is_mapped(&self, page: u64) -> bool {
        self.mapped.contains(&page)
    }

    /// Where a byte of the scenario is in the guest's file.
    pub(super) fn offset(&self, address: u64) -> Option<usize> {
        let mut table = physical::ROOT;
        for level in (0..4).rev() {
            let entry = self.get(table + index(address, level));
            if entry & 1 == 0 {
                return None;
            }
            table = (entry & FRAME) as usize;
        }
        Some(table + (address & 0xfff) as usize)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn frame(&mut self) -> usize {
        let frame = self.bytes.len();
        self.bytes.resize(frame + PAGE, 0);
        frame
    }

    fn point(&mut self, page: u64, frame: usize) {
        let mut table = physical::ROOT;
        for level in (1..4).rev() {
            let at = table + index(page, level);
            if self.get(at) == 0 {
                let next = self.frame();
                self.set(at, next as u64 | EVERYBODY);
            }
            table = (self.get(at) & FRAME) as usize;
        }
        self.set(table + index(page, 0), frame as u64 | EVERYBODY);
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn set(&mut self, at: usize, word: u64) {
        self.put(at, &word.to_le_bytes());
    }

    fn get(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().expect("eight bytes"))
    }
}

/// The offset of an address's entry in a table of that level.
fn index(address: u64, level: u32) -> usize {
    (address >> (12 + 9 * level) & 0x1ff) as usize * 8
}

/// The GDT.
fn descriptors() -> Vec<u8> {
    const CODE: u64 = 0x00af_9b00_0000_ffff;
    const DATA: u64 = 0x00cf_9300_0000_ffff;
    const BUSY_TSS: u64 = 0x8b;
    let rings = (0..4).flat_map(|ring| [CODE | ring << 45, DATA | ring << 45]);
    let (base, limit) = TASK_STATE;
    let tss = u64::from(limit) | (base & 0xff_ffff) << 16 | BUSY_TSS << 40 | (base >> 24 & 0xff) << 56;
    [0].into_iter().chain(rings).chain([tss, base >> 32]).flat_map(u64::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_that_can_be_had_is_where_the_scenario_says() {
        let pages = [0, 0x1000, 0x20_0000, 0x4000_0000, 0x7fff_ffff_f000, 0xffff_8000_0000_0000, 0xffff_ffff_ffff_f000];
        let mut image = Image::new();
        assert!(pages.iter().all(|&page| image.map(page)));
        let found: BTreeSet<_> = pages.iter().map(|&page| image.offset(page + 0x123)).collect();
        assert_eq!(found.len(), pages.len());
        for at in found {
            let at = at.expect("mapped");
            assert!(at >= physical::FREE);
            assert_eq!((at & 0xfff, image.bytes()[at]), (0x123, 0xc3));
        }
        assert_eq!(image.offset(0x2000), None);
    }

    #[test]
    fn a_page_is_given_once() {
        let mut image = Image::new();
        assert!(image.map(0x5000));
        let (size, at) = (image.bytes().len(), image.offset(0x5000));
        assert!(image.map(0x5000) && image.is_mapped(0x5000));
        assert_eq!((image.bytes().len(), image.offset(0x5000)), (size, at));
    }

    #[test]
    fn what_is_not_canonical_or_the_guests_own_cannot_be_had() {
        let mut image = Image::new();
        for page in [0x8000_0000_0000, 0xffff_7fff_ffff_f000, linear(physical::BOARD), linear(physical::CODE)] {
            assert!(!image.map(page), "{page:#x}");
        }
    }

    #[test]
    fn the_guests_own_pages_are_where_its_code_thinks() {
        let image = Image::new();
        for page in [physical::BOARD, physical::TABLES, physical::STACK, physical::CODE, physical::CODE_END - PAGE] {
            assert_eq!(image.offset(linear(page) + 8), Some(page + 8));
        }
        assert_eq!(image.offset(linear(physical::SCRATCH)), None);
        assert_eq!(image.offset(STACK_TOP - 8), Some(physical::STACK + PAGE - 8));
    }

    #[test]
    fn descriptors_have_the_manuals_fields() {
        let mut image = Image::new();
        image.install(&[0x90], std::array::from_fn(|vector| 0x1234_5678_9abc_0000 + vector as u64));
        let gdt = |selector: u16| image.get(physical::TABLES + usize::from(selector & !7));
        for ring in 0..4 {
            let (code, data) = (gdt(code_selector(ring)), gdt(data_selector(ring)));
            assert_eq!((code >> 45 & 3, data >> 45 & 3), (u64::from(ring), u64::from(ring)));
            assert_eq!(code >> 53 & 1, 1, "64-bit code");
        }
        let (low, high) = (gdt(TSS_SELECTOR), gdt(TSS_SELECTOR + 8));
        assert_eq!(low >> 16 & 0xff_ffff | (low >> 56) << 24 | high << 32, TASK_STATE.0);
        let gate = physical::TABLES + IDT + 16 * 13;
        let (low, high) = (image.get(gate), image.get(gate + 8));
        assert_eq!(low & 0xffff | (low >> 48) << 16 | high << 32, 0x1234_5678_9abc_000d);
        assert_eq!(low >> 16 & 0xffff, u64::from(code_selector(0)));
        const { assert!(IDT + 16 * VECTORS <= PAGE && TSS + 0x68 <= IDT) };
    }
}
