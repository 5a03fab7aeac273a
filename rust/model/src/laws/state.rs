//! What holds between events.

use debugreg::{Breakpoint, Dr7, Registers};

use super::{Breach, Law, Laws};
use crate::counter::State;
use crate::machine::{Cpu, Machine};
use crate::policy::HostHalf;
use crate::policy::hooks::World;
use crate::vcpu::Vcpu;
use crate::{CounterId, CpuId, VcpuId};

impl Machine {
    /// The first law that the machine breaks as it stands.
    pub fn breach(&self, laws: Laws) -> Option<Breach> {
        let mut all = (0..self.cpu_count()).map(|cpu| Some(CpuId::from(cpu))).chain([None]);
        all.find_map(|of| self.breach_of(of, laws))
    }

    /// What a CPU breaks, or the rule of slots.
    pub(crate) fn breach_of(&self, cpu: Option<CpuId>, laws: Laws) -> Option<Breach> {
        let breach = match cpu {
            None => self.slots_breach(),
            Some(cpu) if !self.is_online(cpu) => None,
            Some(cpu) => match self.guest(cpu) {
                Some(guest) => self.guest_breach(cpu, guest),
                None => self.host_breach(cpu),
            },
        };
        breach.filter(|breach| laws.has(breach.law))
    }

    fn host_breach(&self, cpu: CpuId) -> Option<Breach> {
        let (armed, owed) = (self.armed(cpu), self.owed(cpu));
        if armed != owed {
            let kgdbs = self.kgdb_owed(cpu);
            let is_kgdbs = kgdbs.iter().any(|bp| !armed.contains(bp));
            let law = if is_kgdbs { Law::KgdbUntouched } else { Law::HostArmed };
            return Some(Breach { law, why: differ(cpu, &armed, &owed) });
        }
        if self.policy.host == HostHalf::Thread || self.kgdb_master().is_some() {
            return None;
        }
        let bank = &self.cpu(cpu).bank;
        let shadow = Registers { dr: bank.address, dr6: 0, dr7: bank.control };
        // L and G are different bits.
        let same = shadow.armed().eq(bank.hardware.armed())
            && (bank.control ^ bank.hardware.dr7) & (Dr7::ENABLES | Dr7::GD) == 0;
        (!same).then(|| Breach {
            law: Law::ShadowTrue,
            why: format!(
                "cpu{} has dr7={:#x} in hardware, {:#x} in its shadow",
                cpu.0, bank.hardware.dr7, bank.control
            ),
        })
    }

    fn guest_breach(&self, cpu: CpuId, guest: VcpuId) -> Option<Breach> {
        let (armed, owed) = (self.armed(cpu), self.owed(cpu));
        if armed == owed {
            return None;
        }
        let vcpu = self.vcpu(guest);
        let of_guest: Vec<_> = vcpu.own.armed().map(|(_, bp)| bp).collect();
        let reaches = armed.iter().any(|bp| of_guest.contains(bp) && !owed.contains(bp));
        let law = if vcpu.debugger_owns() && reaches { Law::DebuggerOwns } else { Law::GuestArmed };
        Some(Breach { law, why: differ(cpu, &armed, &owed) })
    }

    /// What was admitted gets a register: nobody who should run is in perf's ERROR state.
    fn slots_breach(&self) -> Option<Breach> {
        let starved = self.counters().find(|(_, counter)| counter.enabled && counter.state == State::Error);
        starved.map(|(id, _)| Breach {
            law: Law::SlotsSound,
            why: format!("counter {} was admitted, and no register could be had for it", id.0),
        })
    }

    fn kgdb_owed(&self, cpu: CpuId) -> Vec<Breakpoint> {
        if self.kgdb_master().is_some() {
            return Vec::new();
        }
        self.kgdb_breakpoints(cpu).map(|(_, bp)| bp).collect()
    }

    /// Whether nobody has a breakpoint, or a window on the registers, anywhere.
    pub(super) fn has_nothing_set(&self) -> bool {
        let no_kgdb = |cpu| self.kgdb_breakpoints(cpu).next().is_none();
        let no_guest = |vcpu: &Vcpu| {
            !Dr7(vcpu.own.dr7).any_armed() && !vcpu.is_debugged() && vcpu.nested.is_none() && vcpu.vmcs.dr_intercept
        };
        let is_settled = |cpu: &Cpu| cpu.loan.is_none_or(|loan| loan.is_settled(cpu.bank.announced));
        self.counters().all(|(_, counter)| !counter.is_live())
            && (0..self.cpu_count()).map(CpuId::from).all(no_kgdb)
            && self.vcpus.iter().all(|vcpu| no_guest(vcpu))
            && self.cpus.iter().all(|cpu| is_settled(cpu))
    }

    /// Whether software arms a guest's breakpoints before the entry, behind a filter.
    pub(super) fn arms_early(&self) -> bool {
        self.policy.world() == World::Software
    }

    /// The breakpoints that an access meets, of those that a CPU owes its host side: counters, and whether kgdb's is among
    /// them.
    pub(super) fn met_by(&self, cpu: CpuId, access: debugreg::trip::Access) -> (Vec<CounterId>, bool) {
        let counters = self.owed_counters(cpu).filter(|&id| access.matches(self.counter(id).info));
        let kgdb = self.kgdb_owed(cpu).into_iter().any(|bp| access.matches(bp));
        (counters.collect(), kgdb)
    }
}

fn differ(cpu: CpuId, armed: &[Breakpoint], owed: &[Breakpoint]) -> String {
    format!("cpu{} has armed {}, and owes {}", cpu.0, list(armed), list(owed))
}

/// Breakpoints, in words.
pub(super) fn list(breakpoints: &[Breakpoint]) -> String {
    if breakpoints.is_empty() {
        return "nothing".to_owned();
    }
    let one = |bp: &Breakpoint| format!("{} {:#x} {}", bp.kind.name(), bp.address, bp.length.bytes());
    breakpoints.iter().map(one).collect::<Vec<_>>().join(", ")
}
