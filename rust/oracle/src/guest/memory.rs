//! Memory that the driver shares with an agent, its guest, or KVM.

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A file's pages. Others write them at any time, hence every access is atomic.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<std::ffi::c_void>,
    bytes: usize,
}

#[allow(unsafe_code)]
impl Mapping {
    pub(super) fn new(file: impl AsFd, bytes: usize) -> nix::Result<Mapping> {
        let length = NonZeroUsize::new(bytes).expect("something is mapped");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Mapping { base, bytes })
    }

    fn at<T>(&self, at: usize) -> *mut T {
        let size = size_of::<T>();
        assert!(at.is_multiple_of(size) && at + size <= self.bytes, "{at:#x} is not inside the mapping");
        // SAFETY: inside the mapping, as has just been asserted.
        unsafe { self.base.as_ptr().cast::<u8>().add(at) }.cast()
    }

    pub(super) fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: aligned, inside the mapping, which lives as long as this.
        unsafe { AtomicU64::from_ptr(self.at(at)) }
    }

    pub(super) fn half(&self, at: usize) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(self.at(at)) }
    }

    pub(super) fn byte(&self, at: usize) -> &AtomicU8 {
        // SAFETY: as above.
        unsafe { AtomicU8::from_ptr(self.at(at)) }
    }

    pub(super) fn write(&self, at: usize, bytes: &[u8]) {
        for (at, &byte) in (at..).zip(bytes) {
            self.byte(at).store(byte, Ordering::Relaxed);
        }
    }

    pub(super) fn read(&self, at: usize, bytes: &mut [u8]) {
        for (at, byte) in (at..).zip(bytes) {
            *byte = self.byte(at).load(Ordering::Relaxed);
        }
    }
}

#[allow(unsafe_code)]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: what `new` has mapped, and nobody has a reference into it any more.
        let _ = unsafe { munmap(self.base, self.bytes) };
    }
}
