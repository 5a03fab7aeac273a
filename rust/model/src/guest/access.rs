//! A guest's access to memory or to a port.

use debugreg::trip::{Access, What, trip};

use crate::VcpuId;
use crate::event::{Insn, Misuse, Outcome};
use crate::machine::Machine;
use crate::step::Probe;

impl Machine {
    /// A memory or port access of the guest.
    pub(crate) fn guest_access<P: Probe>(
        &mut self,
        id: VcpuId,
        access: Access,
        insn: Insn,
        emulated: bool,
        probe: &mut P,
    ) -> Result<Outcome, Misuse> {
        let cpu = self.in_guest(id)?;
        if insn != Insn::Plain {
            return Err(Misuse::NotExpressible("insn= in a guest"));
        }
        let mut registers = self.cpu(cpu).bank.hardware;
        if emulated {
            // KVM's emulator compares code breakpoints with the effective registers, and nothing else.
            let vcpu = self.vcpu(id);
            registers.dr = vcpu.eff_db;
            registers.dr7 = vcpu.effective_dr7();
        }
        let execute = access.what == What::Execute;
        let tripped = trip(&registers, access);
        if tripped.armed == 0 || emulated && !execute {
            return Ok(Outcome::nothing());
        }
        let shown = tripped.armed | if self.options.disabled_match { tripped.disabled } else { 0 };
        Ok(self.guest_db(id, cpu, u64::from(shown), execute, probe))
    }
}
