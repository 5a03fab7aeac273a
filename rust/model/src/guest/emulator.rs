//! An instruction of a guest that KVM's emulator performs.
//!
//! It meets execute breakpoints, GD and single-stepping; data and I/O breakpoints it does not meet (acknowledged on the
//! list in June 2021, by nobody filled). Source: `kvm_vcpu_check_code_breakpoint`, `kvm_vcpu_do_singlestep` (x86.c, 6.12),
//! `kvm_inject_emulated_db` (the 2025-12 series), `check_dr_read`, `check_dr_write` (emulate.c).

use debugreg::trip::{Access, What, trip};
use debugreg::{Dr, Dr6, Registers};

use crate::event::{Insn, Misuse, Outcome, Vector};
use crate::machine::Machine;
use crate::policy::Delta;
use crate::step::Probe;
use crate::vcpu::DebugExit;
use crate::{CpuId, VcpuId};

impl Machine {
    /// Whether there is an instruction for the emulator to perform.
    pub(super) fn can_emulate(&self, insn: Insn) -> Result<(), Misuse> {
        self.unprotected()?;
        match insn {
            Insn::Icebp => Err(Misuse::NotExpressible("KVM's emulator does not know INT1")),
            Insn::Frame => Err(Misuse::NotExpressible("it is the processor that pushes the frame of a #DB")),
            _ => Ok(()),
        }
    }

    pub(super) fn emulated_access<P: Probe>(
        &mut self,
        id: VcpuId,
        cpu: CpuId,
        access: Access,
        insn: Insn,
        behind_mov_ss: bool,
        probe: &mut P,
    ) -> Outcome {
        let policy = self.policy;
        self.leave(id, cpu, probe);
        let vcpu = *self.vcpu(id);
        if access.what == What::Execute && policy.emulator_checks_code() {
            let hits = |dr: [u64; 4], dr7| u64::from(trip(&Registers { dr, dr6: 0, dr7 }, access).armed);
            // The debugger's come first, and nothing holds them off.
            if vcpu.debugger_owns() {
                let events = hits(vcpu.eff_db, vcpu.guest_debug_dr7);
                if events != 0 {
                    return self.emulated_db(id, cpu, events, true, probe);
                }
            }
            let minds_guests = !vcpu.debugger_owns() || policy.has(Delta::H21);
            // `kvm_is_code_breakpoint_inhibited`.
            let behind_mov_ss = behind_mov_ss && !self.is_amd() && !policy.has(Delta::H20);
            let held_off = behind_mov_ss || insn == Insn::IretRf;
            let events = if minds_guests && !held_off { hits(vcpu.db, vcpu.dr7) } else { 0 };
            if events != 0 {
                return self.guests_emulated_db(id, cpu, events, !policy.has(Delta::H20), probe);
            }
        }
        if vcpu.is_stepped() || insn == Insn::PopfTf {
            return self.single_step(id, cpu, probe);
        }
        self.enter(id, cpu, probe);
        Outcome::nothing()
    }

    /// The end of an instruction that KVM has performed under TF (`kvm_vcpu_do_singlestep`).
    pub(super) fn single_step<P: Probe>(&mut self, id: VcpuId, cpu: CpuId, probe: &mut P) -> Outcome {
        if self.vcpu(id).is_stepped() {
            self.tell_debugger(id, cpu, Dr6::BS, probe)
        } else {
            self.guests_emulated_db(id, cpu, Dr6::BS, false, probe)
        }
    }

    /// A #DB that KVM makes, after the exit (`kvm_inject_emulated_db`): the debugger's if it has the registers.
    pub(super) fn emulated_db<P: Probe>(
        &mut self,
        id: VcpuId,
        cpu: CpuId,
        events: u64,
        fault: bool,
        probe: &mut P,
    ) -> Outcome {
        if self.vcpu(id).debugger_owns() {
            self.tell_debugger(id, cpu, events, probe)
        } else {
            self.guests_emulated_db(id, cpu, events, fault, probe)
        }
    }

    fn tell_debugger<P: Probe>(&mut self, id: VcpuId, cpu: CpuId, events: u64, probe: &mut P) -> Outcome {
        let vcpu = self.vcpu(id);
        let dr7 = if self.policy.has(Delta::Z6) { vcpu.debug_exit.dr7 } else { vcpu.effective_dr7() };
        self.exit_debug(id, cpu, DebugExit { dr6: events | Dr6::IDLE.0, dr7 }, probe)
    }

    /// Likewise, but the guest's whoever has the registers.
    pub(super) fn guests_emulated_db<P: Probe>(
        &mut self,
        id: VcpuId,
        cpu: CpuId,
        events: u64,
        fault: bool,
        probe: &mut P,
    ) -> Outcome {
        self.queue_db(id, events, events);
        self.enter(id, cpu, probe);
        Outcome::Exception { vector: Vector::Debug, dr6: self.guest_dr(id, cpu, Dr::Status), fault }
    }
}
