//! The ioctls of /dev/kvm: numbers and structures.
//!
//! Source: Documentation/virt/kvm/api.rst (6.18).

use kvm_bindings as kvm;
use nix::{request_code_none, request_code_read, request_code_write};

const TYPE: u8 = kvm::KVMIO as u8;
pub(super) const CREATE_VM: u64 = request_code_none!(TYPE, 0x01);
pub(super) const GET_VCPU_MMAP_SIZE: u64 = request_code_none!(TYPE, 0x04);
pub(super) const CREATE_VCPU: u64 = request_code_none!(TYPE, 0x41);
pub(super) const SET_USER_MEMORY_REGION: u64 =
    request_code_write!(TYPE, 0x46, size_of::<kvm::kvm_userspace_memory_region>());
pub(super) const SET_TSS_ADDR: u64 = request_code_none!(TYPE, 0x47);
pub(super) const CREATE_IRQCHIP: u64 = request_code_none!(TYPE, 0x60);
pub(super) const RUN: u64 = request_code_none!(TYPE, 0x80);
pub(super) const SET_REGS: u64 = request_code_write!(TYPE, 0x82, size_of::<kvm::kvm_regs>());
pub(super) const GET_SREGS: u64 = request_code_read!(TYPE, 0x83, size_of::<kvm::kvm_sregs>());
pub(super) const SET_SREGS: u64 = request_code_write!(TYPE, 0x84, size_of::<kvm::kvm_sregs>());
pub(super) const SET_SIGNAL_MASK: u64 = request_code_write!(TYPE, 0x8b, 4);
pub(super) const GET_LAPIC: u64 = request_code_read!(TYPE, 0x8e, size_of::<kvm::kvm_lapic_state>());
pub(super) const SET_LAPIC: u64 = request_code_write!(TYPE, 0x8f, size_of::<kvm::kvm_lapic_state>());
pub(super) const GET_MP_STATE: u64 = request_code_read!(TYPE, 0x98, size_of::<kvm::kvm_mp_state>());
pub(super) const SET_GUEST_DEBUG: u64 = request_code_write!(TYPE, 0x9b, size_of::<kvm::kvm_guest_debug>());
pub(super) const GET_DEBUGREGS: u64 = request_code_read!(TYPE, 0xa1, size_of::<kvm::kvm_debugregs>());
pub(super) const SET_DEBUGREGS: u64 = request_code_write!(TYPE, 0xa2, size_of::<kvm::kvm_debugregs>());
pub(super) const SIGNAL_MSI: u64 = request_code_write!(TYPE, 0xa5, size_of::<kvm::kvm_msi>());

/// A structure of KVM's.
///
/// # Safety
///
/// There is no padding, and any bytes make a value.
#[allow(unsafe_code)]
pub(super) unsafe trait Plain: Copy {
    fn bytes(&self) -> &[u8] {
        // SAFETY: as the trait's implementer promises, all of it is initialised.
        unsafe { std::slice::from_raw_parts((&raw const *self).cast(), size_of::<Self>()) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and whatever is written there is a value.
        unsafe { std::slice::from_raw_parts_mut((&raw mut *self).cast(), size_of::<Self>()) }
    }
}

/// `struct kvm_signal_mask` with its set of signals.
#[repr(C)]
#[derive(Copy, Clone)]
pub(super) struct SignalMask {
    pub(super) length: u32,
    pub(super) set: [u32; 2],
}

macro_rules! plain {
    ($($structure:ty),*) => {
        $(
            // SAFETY: integers throughout, with what would be padding declared as fields.
            #[allow(unsafe_code)]
            unsafe impl Plain for $structure {}
        )*
    };
}
plain!(
    kvm::kvm_userspace_memory_region,
    kvm::kvm_regs,
    kvm::kvm_sregs,
    kvm::kvm_lapic_state,
    kvm::kvm_mp_state,
    kvm::kvm_guest_debug,
    kvm::kvm_debugregs,
    kvm::kvm_msi,
    SignalMask
);
