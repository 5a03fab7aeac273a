//! What changes DR6 and DR7 without a MOV DR of the guest's: system management, and a task switch by hardware.
//!
//! Source: `enter_smm`, `rsm_load_state_64` (smm.c, 6.12); `emulator_do_task_switch` (emulate.c, 3.19),
//! `handle_task_switch` (vmx.c to 3.18).

use debugreg::{Dr, Dr7};

use crate::event::{GuestDebug, Misuse, Outcome};
use crate::machine::Machine;
use crate::policy::{Delta, common};
use crate::step::{Field, Probe};
use crate::{CpuId, VcpuId};

/// L0-L3 and LE: what a task switch by hardware clears.
const LOCAL: u64 = 0x55 | Dr7::LE;

impl Machine {
    /// An SMI: DR6 and DR7 go to SMRAM, DR7 takes its reset value; DR0-DR3 stay. The handler's own SMIs wait for its end,
    /// and a debugger can hold all of them off (KVM_GUESTDBG_BLOCKIRQ).
    pub(crate) fn smi<P: Probe>(&mut self, id: VcpuId, probe: &mut P) -> Result<Outcome, Misuse> {
        self.unprotected()?;
        self.policy.has_smm()?;
        let vcpu = *self.vcpu(id);
        let held_off = vcpu.smram.is_some() || vcpu.debug.control & GuestDebug::BLOCKIRQ != 0;
        self.outside(id, probe, |machine, cpu, probe| {
            if !held_off {
                machine.vcpus[id.index()].smram =
                    Some([Dr::Status, Dr::Control].map(|dr| machine.kvm_get_dr(id, dr)).into());
                machine.load_dr(id, cpu, Dr::Control, Dr7::RESET.0, probe);
            }
        });
        Ok(Outcome::Ok)
    }

    /// RSM: both come back.
    pub(crate) fn rsm<P: Probe>(&mut self, id: VcpuId, probe: &mut P) -> Result<Outcome, Misuse> {
        let cpu = self.in_guest(id)?;
        let Some((dr6, dr7)) = self.vcpus[id.index()].smram.take() else {
            return Ok(self.undefined(id, cpu));
        };
        self.outside(id, probe, |machine, cpu, probe| {
            machine.load_dr(id, cpu, Dr::Status, dr6, probe);
            machine.load_dr(id, cpu, Dr::Control, dr7, probe);
        });
        Ok(Outcome::Ok)
    }

    /// A task switch by hardware, which KVM emulates: the local enables go.
    pub(crate) fn task_switch<P: Probe>(&mut self, id: VcpuId, probe: &mut P) -> Result<Outcome, Misuse> {
        self.unprotected()?;
        self.in_guest(id)?;
        self.outside(id, probe, |machine, cpu, probe| {
            let is_amd = machine.is_amd();
            if !machine.policy.has(Delta::H14) {
                let dr7 = machine.kvm_get_dr(id, Dr::Control) & !LOCAL;
                machine.load_dr(id, cpu, Dr::Control, dr7, probe);
                return;
            }
            if !is_amd {
                // A decimal mask, and whoever's DR7 is in the VMCS.
                let mut kvm = machine.kvm(id, cpu, probe);
                let dr7 = kvm.read_field(Field::GuestDr7);
                kvm.write_field(Field::GuestDr7, dr7 & !0x37);
            }
            machine.vcpus[id.index()].own.dr7 &= !LOCAL;
        });
        Ok(Outcome::Ok)
    }

    /// Does something with a vCPU outside its guest, which leaves for it if it runs.
    fn outside<P: Probe>(&mut self, id: VcpuId, probe: &mut P, what: impl FnOnce(&mut Machine, CpuId, &mut P)) {
        match self.in_guest(id) {
            Ok(cpu) => {
                self.leave(id, cpu, probe);
                what(self, cpu, probe);
                self.enter(id, cpu, probe);
            }
            Err(_) => what(self, self.task(self.thread(id)).cpu, probe),
        }
    }

    /// KVM loads a register of the guest's on its behalf.
    pub(super) fn load_dr<P: Probe>(&mut self, id: VcpuId, cpu: CpuId, dr: Dr, value: u64, probe: &mut P) {
        common::set_dr(&mut self.kvm(id, cpu, probe), dr, value);
        self.vcpus[id.index()].own.set(dr, super::fixed(dr, value));
    }
}
