//! A guest's access to memory or to a port, by the processor.

use debugreg::Dr6;
use debugreg::trip::Access;

use crate::VcpuId;
use crate::event::{Insn, Misuse, Outcome};
use crate::hit::{Exception, parts};
use crate::machine::Machine;
use crate::step::Probe;

impl Machine {
    /// A memory or port access of the guest. Several #DBs of one instruction follow one another, and the first is told; one
    /// that the debugger hears of ends the guest's turn. A #DB that the delivery of a #DB raises is delivered at once, and
    /// raises another; what ends that is an exit.
    pub(crate) fn guest_access<P: Probe>(
        &mut self,
        id: VcpuId,
        access: Access,
        insn: Insn,
        emulated: bool,
        probe: &mut P,
    ) -> Result<Outcome, Misuse> {
        let cpu = self.in_guest(id)?;
        if emulated {
            self.can_emulate(insn)?;
        }
        let behind_mov_ss = std::mem::replace(&mut self.vcpus[id.index()].mov_ss, insn == Insn::MovSs);
        if emulated {
            return Ok(self.emulated_access(id, cpu, access, insn, behind_mov_ss, probe));
        }
        let mut first = None;
        // MOV SS holds the next instruction's fault off on Intel (SDM vol. 3, "Masking Exceptions and Interrupts When
        // Switching Stacks"), on AMD it does not.
        let held_off = behind_mov_ss && !self.is_amd();
        if let Some(exception) = self.fault(cpu, access, insn).filter(|_| !held_off) {
            first = Some(self.guest_db(id, cpu, exception, probe));
        }
        for part in parts(access, insn) {
            if self.guest(cpu) != Some(id) {
                break;
            }
            let trapped = self.trap(cpu, part, insn);
            // TF is set for every instruction while a debugger single-steps, whether the guest has set it or not.
            let stepped = self.vcpu(id).is_stepped().then_some(Exception { events: Dr6::BS, is_fault: false });
            if insn == Insn::Frame && trapped.is_some() && !self.db_exits(id) {
                return Ok(Outcome::Endless);
            }
            if let Some(exception) = trapped.into_iter().chain(stepped).reduce(merge) {
                let outcome = self.guest_db(id, cpu, exception, probe);
                first.get_or_insert(outcome);
                if self.is_tcg() {
                    break;
                }
            }
        }
        Ok(first.unwrap_or_else(Outcome::nothing))
    }
}

/// What happens at one boundary is reported at once.
fn merge(a: Exception, b: Exception) -> Exception {
    Exception { events: a.events | b.events, ..a }
}
