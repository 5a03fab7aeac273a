//! What a KVM half is asked, and who answers: the defaults are what the newest Linux does.

use super::{
    Delta, KvmHalf, Policy, bhyve, lean, linux_2_6_30, linux_2_6_32, linux_2_6_33, linux_3_15, linux_5_15, none,
    perf_sched, pvm, sev_es, skip, tdx, user, virtualbox, xen,
};
use crate::event::Misuse;
use crate::machine::Vendor;
use crate::step::{Kvm, Probe};

/// What the exit handler of a guest's MOV DR does.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum DrHandling {
    /// Stops intercepting until the next exit; the guest executes the instruction again.
    Open,
    /// Performs this one access and skips the instruction.
    Emulate,
}

/// A MOV DR of a guest, as far as intercepts tell them apart.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct MovDr {
    /// 0 to 7.
    pub(crate) number: u8,
    /// To the register.
    pub(crate) is_write: bool,
}

/// Who switches a guest's registers where KVM does not.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum World {
    /// VMX or SVM.
    Virtualised,
    /// Nobody.
    Software,
    /// The TDX module.
    Tdx,
    /// SVM with encrypted state, without DebugSwap.
    SevEs,
    /// With it.
    DebugSwap,
}

impl World {
    /// KVM cannot see the guest's registers (`guest_state_protected`).
    pub(crate) const fn is_protected(self) -> bool {
        matches!(self, World::Tdx | World::SevEs | World::DebugSwap)
    }
}

/// A KVM half.
pub(super) trait Half {
    /// Who switches what it does not.
    const WORLD: World = World::Virtualised;

    /// Whether it is KVM, with its ioctls and its emulator.
    const IS_KVM: bool = true;

    /// Whether it has `KVM_GET_DEBUGREGS` and `KVM_SET_DEBUGREGS` (2.6.34).
    const HAS_DEBUGREGS: bool = true;

    /// Whether the first MOV DR of a guest lets those that follow it run without an exit (3.15).
    const OPENS_WINDOWS: bool = false;

    /// On the way in, from `vcpu_enter_guest` to the entry itself.
    fn vm_entry<P: Probe>(kvm: &mut Kvm<'_, P>);

    /// A re-entry inside the run loop.
    fn vm_reentry<P: Probe>(_: &mut Kvm<'_, P>) {}

    /// On the way out, with interrupts still off.
    fn vm_exit<P: Probe>(kvm: &mut Kvm<'_, P>);

    /// `kvm_arch_vcpu_load`: the thread takes the vCPU up.
    fn vcpu_load<P: Probe>(_: &mut Kvm<'_, P>) {}

    /// `kvm_arch_vcpu_put`: the thread leaves its CPU, or returns to user space.
    fn vcpu_put<P: Probe>(_: &mut Kvm<'_, P>) {}

    /// The exit handler of a guest's MOV DR.
    fn dr_access<P: Probe>(kvm: &mut Kvm<'_, P>) -> DrHandling {
        if Self::OPENS_WINDOWS { super::common::open_window(kvm) } else { DrHandling::Emulate }
    }

    /// Whether a guest's MOV DR exits while no window is open.
    fn intercepts(_: Policy, _: Vendor, _: MovDr) -> bool {
        true
    }

    /// Whether a guest's #DB exits although nobody debugs it.
    fn intercepts_db(policy: Policy, vendor: Vendor) -> bool {
        vendor == Vendor::Intel || !policy.has(Delta::H18)
    }
}

/// Evaluates an expression with `$half` standing for the type that implements a [`KvmHalf`].
macro_rules! with_half {
    ($kvm:expr, $half:ident => $body:expr) => {
        match $kvm {
            KvmHalf::Linux2_6_30 => {
                type $half = linux_2_6_30::Linux2_6_30;
                $body
            }
            KvmHalf::Linux2_6_32 => {
                type $half = linux_2_6_32::Linux2_6_32;
                $body
            }
            KvmHalf::Linux2_6_33 => {
                type $half = linux_2_6_33::Linux2_6_33;
                $body
            }
            KvmHalf::Linux3_15 => {
                type $half = linux_3_15::Linux3_15;
                $body
            }
            KvmHalf::Linux5_15 => {
                type $half = linux_5_15::Linux5_15;
                $body
            }
            KvmHalf::PerfSched => {
                type $half = perf_sched::PerfSched;
                $body
            }
            KvmHalf::Skip => {
                type $half = skip::Skip;
                $body
            }
            KvmHalf::Lean => {
                type $half = lean::Lean;
                $body
            }
            KvmHalf::Pvm => {
                type $half = pvm::Pvm;
                $body
            }
            KvmHalf::Tdx => {
                type $half = tdx::Tdx;
                $body
            }
            KvmHalf::SevEs => {
                type $half = sev_es::SevEs;
                $body
            }
            KvmHalf::DebugSwap => {
                type $half = sev_es::DebugSwap;
                $body
            }
            KvmHalf::Bhyve => {
                type $half = bhyve::Bhyve;
                $body
            }
            KvmHalf::Xen => {
                type $half = xen::Xen;
                $body
            }
            KvmHalf::VirtualBox => {
                type $half = virtualbox::VirtualBox;
                $body
            }
            KvmHalf::Nothing => {
                type $half = none::Nothing;
                $body
            }
            KvmHalf::User => {
                type $half = user::Users;
                $body
            }
        }
    };
}

impl Policy {
    /// On the way in, from `vcpu_enter_guest` to the entry itself.
    #[inline]
    pub(crate) fn vm_entry<P: Probe>(self, kvm: &mut Kvm<'_, P>) {
        with_half!(self.kvm, Half => Half::vm_entry(kvm));
    }

    /// A re-entry inside the run loop.
    pub(crate) fn vm_reentry<P: Probe>(self, kvm: &mut Kvm<'_, P>) {
        with_half!(self.kvm, Half => Half::vm_reentry(kvm));
    }

    /// On the way out, with interrupts still off.
    #[inline]
    pub(crate) fn vm_exit<P: Probe>(self, kvm: &mut Kvm<'_, P>) {
        with_half!(self.kvm, Half => Half::vm_exit(kvm));
    }

    /// The thread takes the vCPU up.
    #[inline]
    pub(crate) fn vcpu_load<P: Probe>(self, kvm: &mut Kvm<'_, P>) {
        with_half!(self.kvm, Half => Half::vcpu_load(kvm));
    }

    /// The thread leaves its CPU, or returns to user space.
    #[inline]
    pub(crate) fn vcpu_put<P: Probe>(self, kvm: &mut Kvm<'_, P>) {
        with_half!(self.kvm, Half => Half::vcpu_put(kvm));
    }

    /// The exit handler of a guest's MOV DR.
    pub(crate) fn dr_access<P: Probe>(self, kvm: &mut Kvm<'_, P>) -> DrHandling {
        with_half!(self.kvm, Half => Half::dr_access(kvm))
    }

    /// Whether the first MOV DR of a guest lets those that follow it run without an exit.
    pub(crate) fn opens_windows(self) -> bool {
        with_half!(self.kvm, Half => Half::OPENS_WINDOWS) || self.user_opens_windows()
    }

    /// Whether a guest's MOV DR exits while no window is open.
    pub(crate) fn intercepts(self, vendor: Vendor, mov: MovDr) -> bool {
        with_half!(self.kvm, Half => Half::intercepts(self, vendor, mov))
    }

    /// Whether a guest's #DB exits although nobody debugs it: on VMX since 2.6.32, on SVM since 4.4.
    pub(crate) fn intercepts_db(self, vendor: Vendor) -> bool {
        with_half!(self.kvm, Half => Half::intercepts_db(self, vendor))
    }

    /// Who switches what KVM does not.
    #[inline]
    pub(crate) fn world(self) -> World {
        with_half!(self.kvm, Half => Half::WORLD)
    }

    /// What only KVM has: ioctls, an emulator of instructions, system management.
    pub(crate) fn is_kvm(self) -> Result<(), Misuse> {
        if with_half!(self.kvm, Half => Half::IS_KVM) {
            Ok(())
        } else {
            Err(Misuse::NotExpressible("this policy is not KVM: its guests are entered, run and left, nothing else"))
        }
    }

    /// `KVM_GET_DEBUGREGS` and `KVM_SET_DEBUGREGS` came with 2.6.34.
    pub(crate) fn has_debugregs(self) -> Result<(), Misuse> {
        if with_half!(self.kvm, Half => Half::HAS_DEBUGREGS) {
            Ok(())
        } else {
            Err(Misuse::NotExpressible("KVM_GET_DEBUGREGS and KVM_SET_DEBUGREGS came with 2.6.34"))
        }
    }

    /// KVM emulates system management since 4.2.
    pub(crate) fn has_smm(self) -> Result<(), Misuse> {
        if self.is_old() {
            return Err(Misuse::NotExpressible("KVM emulates system management since 4.2"));
        }
        Ok(())
    }

    /// Whether KVM predates `kvm_set_dr` and `kvm_get_dr` (2.6.35).
    pub(super) const fn is_old(self) -> bool {
        matches!(self.kvm, KvmHalf::Linux2_6_30 | KvmHalf::Linux2_6_32 | KvmHalf::Linux2_6_33)
    }

    /// Whether the emulator heeds execute breakpoints (3.11).
    pub(crate) const fn emulator_checks_code(self) -> bool {
        !self.is_old()
    }

    /// Whether the guest's DR6 is the VMCB's and nowhere else: on SVM to 5.6 (H-06).
    pub(crate) fn dr6_in_vmcb(self, vendor: Vendor) -> bool {
        vendor == Vendor::Amd && (self.is_old() || self.has(Delta::H06))
    }
}
