//! MOV to and from a debug register in a guest.
//!
//! SVM checks privilege, GD and the value before it intercepts; VMX exits first, and KVM repeats the checks
//! (`handle_dr`, vmx.c 6.12, in this order: the register exists, CPL 0, GD in GUEST_DR7; the value last, in `kvm_set_dr`).
//! The instruction emulator, which PVM has for all of them, looks at CPL and value first (`x86_emulate_insn`,
//! `check_dr_write`, `check_dr_read`).

use debugreg::{Dr, Dr6, Dr7};

use crate::event::{DrAccess, Misuse, Outcome, Vector};
use crate::hit::Exception;
use crate::machine::{Machine, Vendor};
use crate::policy::hooks::{DrHandling, MovDr, World};
use crate::policy::{Delta, common};
use crate::step::Probe;
use crate::vcpu::{DebugExit, Exit};
use crate::{CpuId, VcpuId};

use super::fixed;

impl Machine {
    /// MOV to a debug register in the guest.
    pub(crate) fn mov_to_dr<P: Probe>(
        &mut self,
        id: VcpuId,
        number: u8,
        value: u64,
        cpl: u8,
        probe: &mut P,
    ) -> Result<Outcome, Misuse> {
        self.mov_dr(id, number, Some(value), cpl, probe)
    }

    /// MOV from a debug register in the guest.
    pub(crate) fn mov_from_dr<P: Probe>(
        &mut self,
        id: VcpuId,
        number: u8,
        cpl: u8,
        probe: &mut P,
    ) -> Result<Outcome, Misuse> {
        self.mov_dr(id, number, None, cpl, probe)
    }

    /// Whether a MOV DR of the guest exits now.
    pub(super) fn mov_dr_exits(&self, id: VcpuId, number: u8, is_write: bool) -> bool {
        self.vcpu(id).vmcs.dr_intercept && self.policy.intercepts(self.options.vendor, MovDr { number, is_write })
    }

    fn mov_dr<P: Probe>(
        &mut self,
        id: VcpuId,
        number: u8,
        write: Option<u64>,
        cpl: u8,
        probe: &mut P,
    ) -> Result<Outcome, Misuse> {
        let cpu = self.in_guest(id)?;
        let missing = self.vcpu(id).debug_extensions && matches!(number, 4 | 5);
        let world = self.policy.world();
        let Some(dr) = Dr::from_number(number).filter(|_| !missing) else {
            let by_emulator = world == World::Software && (cpl > 0 || has_upper_half(number, write));
            let vector = if by_emulator || (missing && self.is_tcg() && cpl > 0) {
                Vector::GeneralProtection
            } else {
                Vector::InvalidOpcode
            };
            return Ok(self.exception(id, cpu, vector));
        };
        let intercepted = self.mov_dr_exits(id, number, write.is_some());
        let exits_first = intercepted && (self.options.vendor == Vendor::Intel || world == World::Software);
        // The emulator looks at GD and the value afterwards.
        let exits_early = intercepted && self.is_tcg() && cpl == 0;
        if !exits_first
            && !exits_early
            && let Some(outcome) = self.mov_dr_fault_found_by_hardware(id, cpu, dr, write, cpl, probe)
        {
            return Ok(outcome);
        }
        if intercepted && world == World::SevEs {
            return Ok(self.remembered_dr7(id, cpu, write));
        }
        if intercepted {
            self.vcpus[id.index()].exit = Exit::MovDr;
            self.leave(id, cpu, probe);
            if let Some(fault) = self.mov_dr_fault_found_by_kvm(id, number, write, cpl) {
                self.cost_of(cpu).vm_exits += 1;
                return Ok(self.inject(id, cpu, fault, probe));
            }
            let handling = self.handle_dr(id, cpu, DrAccess { dr: number, write }, probe);
            if handling == DrHandling::Emulate && self.vcpu(id).is_stepped() {
                return Ok(self.single_step(id, cpu, probe));
            }
            if handling == DrHandling::Emulate {
                let value = if self.is_lost(number) { 0 } else { self.kvm_get_dr(id, dr) };
                self.enter(id, cpu, probe);
                return Ok(match write {
                    Some(_) => Outcome::Ok,
                    None => Outcome::Value(value),
                });
            }
            self.enter(id, cpu, probe);
            if exits_early && let Some(outcome) = self.mov_dr_fault_found_by_hardware(id, cpu, dr, write, cpl, probe) {
                return Ok(outcome);
            }
        }
        // Not intercepted, or the window is open: the instruction runs natively.
        Ok(match write {
            Some(value) => {
                self.write_hardware(cpu, dr, value);
                self.vcpus[id.index()].own.set(dr, self.cpus[cpu.index()].bank.hardware.get(dr));
                Outcome::Ok
            }
            None => Outcome::Value(self.cpu(cpu).bank.hardware.get(dr)),
        })
    }

    /// What the processor checks of a MOV DR.
    fn mov_dr_fault_found_by_hardware<P: Probe>(
        &mut self,
        id: VcpuId,
        cpu: CpuId,
        dr: Dr,
        write: Option<u64>,
        cpl: u8,
        probe: &mut P,
    ) -> Option<Outcome> {
        let dr7 = self.cpu(cpu).bank.hardware.dr7;
        mov_dr_fault(dr.number(), write, cpl, dr7).map(|vector| match vector {
            Vector::Debug => self.guest_db(id, cpu, Exception { events: Dr6::BD, is_fault: true }, probe),
            vector => self.exception(id, cpu, vector),
        })
    }

    /// What KVM checks of a MOV DR that has exited.
    fn mov_dr_fault_found_by_kvm(&self, id: VcpuId, number: u8, write: Option<u64>, cpl: u8) -> Option<Fault> {
        let (policy, vcpu) = (self.policy, self.vcpu(id));
        // The emulator asks the guest's DR7 for GD, whoever has the registers (H-21).
        let asks_guest = policy.has(Delta::H21);
        let emulated = |vector| Fault { vector, by: if asks_guest { By::OldEmulator } else { By::Emulator } };
        if policy.world() == World::Software {
            let dr7 = if asks_guest { vcpu.dr7 } else { vcpu.effective_dr7() };
            let vector = if has_upper_half(number, write) {
                Some(Vector::GeneralProtection)
            } else {
                // A value of DR4 or DR5 is not looked at (and not stored).
                mov_dr_fault(number, write.filter(|_| !matches!(number, 4 | 5)), cpl, dr7)
            };
            return vector.map(emulated);
        }
        if !self.is_amd() {
            let cpl = if policy.has(Delta::H08) { 0 } else { cpl };
            return mov_dr_fault(number, write, cpl, vcpu.vmcs.dr7).map(|vector| Fault { vector, by: By::Vmx });
        }
        // The processor has looked already (QEMU's has not). Without decode assists KVM emulates the access for a
        // debugger's guest.
        if self.is_tcg() && vcpu.is_debugged() && has_upper_half(number, write) {
            return Some(emulated(Vector::GeneralProtection));
        }
        let emulates = !self.options.decode_assists && vcpu.is_debugged();
        (emulates && asks_guest && vcpu.dr7 & Dr7::GD != 0).then(|| emulated(Vector::Debug))
    }

    /// The #VC handler of an SEV-ES guest answers from its memory; a write makes it tell the host, which does nothing.
    fn remembered_dr7(&mut self, id: VcpuId, cpu: CpuId, write: Option<u64>) -> Outcome {
        let vcpu = &mut self.vcpus[id.index()];
        let Some(value) = write else { return Outcome::Value(vcpu.dr7) };
        vcpu.dr7 = fixed(Dr::Control, value);
        vcpu.own.dr7 = vcpu.dr7;
        self.cost_of(cpu).vm_exits += 1;
        Outcome::Ok
    }

    /// The exit handler of a MOV DR: opens the window and lets the guest try again, or emulates the one access.
    pub(super) fn handle_dr<P: Probe>(
        &mut self,
        id: VcpuId,
        cpu: CpuId,
        access: DrAccess,
        probe: &mut P,
    ) -> DrHandling {
        self.cost_of(cpu).vm_exits += 1;
        let (policy, lost, ignored) = (self.policy, self.is_lost(access.dr), self.is_ignored(access));
        let mut kvm = self.kvm(id, cpu, probe);
        let handling = policy.dr_access(&mut kvm);
        if let (DrHandling::Emulate, Some(value), Some(dr)) = (handling, access.write, Dr::from_number(access.dr))
            && !ignored
            && (u32::try_from(value).is_ok() || matches!(dr, Dr::Address(_)))
        {
            if !lost {
                common::set_dr(&mut kvm, dr, value);
            }
            self.vcpus[id.index()].own.set(dr, fixed(dr, value));
        }
        handling
    }

    /// Whether an access to DR4 or DR5 that KVM emulates comes to nothing.
    fn is_lost(&self, number: u8) -> bool {
        matches!(number, 4 | 5) && self.policy.has(Delta::H16)
    }

    /// Whether the emulator stores nothing and says nothing: `em_dr_write` takes the refusal of `kvm_set_dr` for success.
    fn is_ignored(&self, access: DrAccess) -> bool {
        let upper = access.write.is_some_and(|value| value > u64::from(u32::MAX));
        self.policy.world() == World::Software && matches!(access.dr, 4 | 5) && upper
    }

    /// A fault that KVM found goes to whom it concerns: #DB is the debugger's if it owns the registers.
    fn inject<P: Probe>(&mut self, id: VcpuId, cpu: CpuId, fault: Fault, probe: &mut P) -> Outcome {
        match (fault.vector, fault.by) {
            (Vector::Debug, By::OldEmulator) => {
                self.guests_emulated_db(id, cpu, Dr6::BD, !self.policy.has(Delta::H20), probe)
            }
            (Vector::Debug, By::Emulator) => self.emulated_db(id, cpu, Dr6::BD, true, probe),
            (Vector::Debug, By::Vmx) if self.vcpu(id).debugger_owns() => {
                let vcpu = self.vcpu(id);
                let dr6 = if self.policy.has(Delta::H07) { vcpu.dr6 } else { Dr6::BD | Dr6::IDLE.0 };
                // `handle_dr` has DR7 in an `int`.
                let dr7 = vcpu.vmcs.dr7;
                let extended = i64::from((dr7 as u32).cast_signed()).cast_unsigned();
                let dr7 = if self.policy.has(Delta::Z11) { extended } else { dr7 };
                self.exit_debug(id, cpu, DebugExit { dr6, dr7 }, probe)
            }
            (Vector::Debug, By::Vmx) => self.guests_emulated_db(id, cpu, Dr6::BD, true, probe),
            (vector, _) => {
                self.enter(id, cpu, probe);
                self.exception(id, cpu, vector)
            }
        }
    }

    /// #UD.
    pub(super) fn undefined(&self, id: VcpuId, cpu: CpuId) -> Outcome {
        self.exception(id, cpu, Vector::InvalidOpcode)
    }

    fn exception(&self, id: VcpuId, cpu: CpuId, vector: Vector) -> Outcome {
        Outcome::Exception { vector, dr6: self.guest_dr(id, cpu, Dr::Status), fault: true }
    }
}

/// A value that `check_dr_write` refuses.
fn has_upper_half(number: u8, write: Option<u64>) -> bool {
    matches!(number, 6 | 7) && write.is_some_and(|value| value > u64::from(u32::MAX))
}

/// A fault that KVM found, and where.
#[derive(Copy, Clone, Debug)]
struct Fault {
    vector: Vector,
    by: By,
}

#[derive(Copy, Clone, Debug)]
enum By {
    /// `handle_dr` of VMX.
    Vmx,
    /// The instruction emulator.
    Emulator,
    /// The instruction emulator to 7.1 (H-21).
    OldEmulator,
}

/// Why a MOV DR faults, given the DR7 whose GD counts: #GP for the privilege comes before #DB, and a value with bits
/// 63:32 set comes last.
fn mov_dr_fault(number: u8, write: Option<u64>, cpl: u8, dr7: u64) -> Option<Vector> {
    let upper = (4..=7).contains(&number) && write.is_some_and(|value| value > u64::from(u32::MAX));
    if cpl > 0 {
        Some(Vector::GeneralProtection)
    } else if dr7 & Dr7::GD != 0 {
        Some(Vector::Debug)
    } else {
        upper.then_some(Vector::GeneralProtection)
    }
}
