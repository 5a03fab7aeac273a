//! What is owed: the breakpoints that should be armed on a CPU, computed from what was asked for and never from what
//! a policy has done.
//!
//! | window | host breakpoints | guest breakpoints | source |
//! |---|---|---|---|
//! | host task, outside transitions | the CPU's enabled counters and the running task's | none | linux-host 3.1 |
//! | guest instruction | none | the guest's own, or the debugger's under USE_HW_BP | kvm 5 |

use debugreg::{Breakpoint, Registers, Slot, encode_dr7};

use crate::counter::State;
use crate::event::Holder;
use crate::machine::Machine;
use crate::{CounterId, CpuId};

impl Machine {
    /// What should be armed on a CPU, in the context that it is in: sorted, duplicates kept.
    pub fn owed(&self, cpu: CpuId) -> Vec<Breakpoint> {
        sorted(match self.cpu(cpu).guest {
            Some(guest) => self.vcpu(guest).effective().armed().map(|(_, bp)| bp).collect(),
            None => self.owed_counters(cpu).map(|id| self.counter(id).info).collect(),
        })
    }

    /// [`Machine::owed`] as registers: a guest's in their slots; a host breakpoint in the slot that it has, or else in the
    /// lowest that is left.
    pub fn owed_registers(&self, cpu: CpuId) -> Registers {
        if let Some(guest) = self.cpu(cpu).guest {
            return self.vcpu(guest).effective();
        }
        let slots = self.slots(cpu);
        let mut owners = slots.map(|_| None);
        let (placed, waiting): (Vec<_>, Vec<_>) =
            self.owed_counters(cpu).partition(|&id| slots.contains(&Holder::Counter(id)));
        for (slot, owner) in slots.iter().zip(&mut owners) {
            *owner = placed.iter().copied().find(|&id| *slot == Holder::Counter(id));
        }
        for id in waiting {
            if let Some(free) = owners.iter_mut().find(|owner| owner.is_none()) {
                *free = Some(id);
            }
        }
        let mut registers = Registers::RESET;
        for (slot, id) in Slot::ALL.into_iter().zip(owners) {
            if let Some(id) = id {
                let info = self.counter(id).info;
                registers.dr[slot.index()] = info.address;
                registers.dr7 |= encode_dr7(slot, info.kind, info.length);
            }
        }
        registers
    }

    /// What is armed on a CPU, from DR0-DR3 and DR7 alone: sorted, duplicates kept.
    pub fn armed(&self, cpu: CpuId) -> Vec<Breakpoint> {
        sorted(self.cpu(cpu).bank.hardware.armed().map(|(_, bp)| bp).collect())
    }

    /// The counters that a CPU owes to whom it runs: its own and the task's. One that went to ERROR is owed nothing
    /// until it is enabled again: that is perf's word to its owner.
    fn owed_counters(&self, cpu: CpuId) -> impl Iterator<Item = CounterId> + '_ {
        let own = self.context(self.cpu(cpu).context);
        let task = self.task(self.cpu(cpu).running);
        let of_task = task.context.map(|id| self.context(id).counters().collect::<Vec<_>>());
        let of_thread = task.thread.owner.into_iter().flatten();
        own.counters().chain(of_task.into_iter().flatten()).chain(of_thread).filter(move |&id| {
            let counter = self.counter(id);
            counter.enabled && counter.state != State::Error && counter.fits(cpu)
        })
    }
}

fn sorted(mut breakpoints: Vec<Breakpoint>) -> Vec<Breakpoint> {
    breakpoints.sort_by_key(|bp| (bp.address, bp.kind.bits(), bp.length.bits()));
    breakpoints
}
