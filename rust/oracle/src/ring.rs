//! The samples of a counter: when it was hit last.

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

const PAGE: usize = 4096;
const RECORD_SAMPLE: u32 = 9;

/// A counter's ring buffer: a page about it and a page of records.
#[derive(Debug)]
pub(crate) struct Ring(NonNull<std::ffi::c_void>);

#[allow(unsafe_code)]
impl Ring {
    /// `None` if the counter cannot have one, as inherited ones of any CPU cannot.
    pub(crate) fn new(counter: impl AsFd) -> Option<Ring> {
        let length = NonZeroUsize::new(2 * PAGE).expect("not zero");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, counter, 0) }.ok().map(Ring)
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        debug_assert!(at.is_multiple_of(8) && at < 2 * PAGE);
        // SAFETY: aligned, inside the mapping, which lives as long as this; the kernel writes it at any time, hence atomic.
        unsafe { AtomicU64::from_ptr(self.0.as_ptr().cast::<u8>().add(at).cast()) }
    }

    /// Time of the last sample that has not been taken yet; all are taken.
    pub(crate) fn take_last(&self) -> Option<u64> {
        let (head, tail) = (self.word(1024), self.word(1032));
        let end = head.load(Ordering::Acquire);
        let mut at = tail.load(Ordering::Relaxed);
        let data = |position: u64| self.word(PAGE + position as usize % PAGE).load(Ordering::Relaxed);
        let mut last = None;
        while at < end {
            let header = data(at);
            if header as u32 == RECORD_SAMPLE {
                last = Some(data(at + 8));
            }
            at += (header >> 48).max(8);
        }
        tail.store(end, Ordering::Release);
        last
    }
}

#[allow(unsafe_code)]
impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: what `new` has mapped, and nobody has a reference into it any more.
        let _ = unsafe { munmap(self.0, 2 * PAGE) };
    }
}
