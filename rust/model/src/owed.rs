//! What is owed: the breakpoints that should be armed on a CPU, computed from what was asked for and never from what
//! a policy has done.
//!
//! | window | host breakpoints | guest breakpoints | source |
//! |---|---|---|---|
//! | host task, outside transitions | the CPU's enabled counters and the running task's, kgdb's | none | linux-host 3.1 |
//! | kgdb has the machine | none | none | linux-host 12 |
//! | guest instruction | none | the guest's own, or the debugger's under USE_HW_BP | kvm 5 |

use debugreg::{Breakpoint, Registers, Slot, encode_dr7};

use crate::counter::State;
use crate::event::Holder;
use crate::machine::Machine;
use crate::{CounterId, CpuId};

impl Machine {
    /// What should be armed on a CPU, in the context that it is in: sorted, duplicates kept.
    pub fn owed(&self, cpu: CpuId) -> Vec<Breakpoint> {
        match self.guest(cpu) {
            Some(guest) => sorted(self.effective(guest).armed().map(|(_, bp)| bp).collect()),
            None => self.host_owed(cpu),
        }
    }

    /// What should be armed on a CPU outside guests.
    pub(crate) fn host_owed(&self, cpu: CpuId) -> Vec<Breakpoint> {
        if self.kgdb_master().is_some() {
            return Vec::new();
        }
        let counters = self.owed_counters(cpu).map(|id| self.counter(id).info);
        sorted(counters.chain(self.kgdb_breakpoints(cpu).map(|(_, bp)| bp)).collect())
    }

    /// [`Machine::owed`] as registers: a guest's in their slots; a host breakpoint in the slot that it has, or else in the
    /// lowest that is left.
    pub fn owed_registers(&self, cpu: CpuId) -> Registers {
        if let Some(guest) = self.guest(cpu) {
            return self.effective(guest);
        }
        if self.kgdb_master().is_some() {
            return Registers::RESET;
        }
        let slots = self.slots(cpu);
        let place = |id| slots.iter().position(|&slot| slot == Holder::Counter(id)).and_then(Slot::new);
        let counters = self.owed_counters(cpu).map(|id| (place(id), self.counter(id).info));
        let (mut in_slots, mut waiting) = ([None; 4], Vec::new());
        for (slot, bp) in counters.chain(self.kgdb_breakpoints(cpu)) {
            match slot {
                Some(slot) => in_slots[slot.index()] = Some(bp),
                None => waiting.push(bp),
            }
        }
        for bp in waiting {
            if let Some(free) = in_slots.iter_mut().find(|bp| bp.is_none()) {
                *free = Some(bp);
            }
        }
        let mut registers = Registers::RESET;
        for (slot, bp) in Slot::ALL.into_iter().zip(in_slots) {
            if let Some(bp) = bp {
                registers.dr[slot.index()] = bp.address;
                registers.dr7 |= encode_dr7(slot, bp.kind, bp.length);
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
    pub(crate) fn owed_counters(&self, cpu: CpuId) -> impl Iterator<Item = CounterId> + '_ {
        let own = self.context(self.cpu(cpu).context);
        let task = self.task(self.running(cpu));
        let of_task = task.context.map(|id| self.context(id).counters().collect::<Vec<_>>());
        let of_thread = task.thread.owner.into_iter().flatten();
        own.counters().chain(of_task.into_iter().flatten()).chain(of_thread).filter(move |&id| {
            let counter = self.counter(id);
            // Who follows a leader is on only with it.
            let leads = counter.leader.map(|leader| self.counter(leader));
            let led = leads.is_none_or(|leader| leader.enabled && leader.state != State::Error);
            counter.enabled && counter.state != State::Error && counter.fits(cpu) && led
        })
    }
}

fn sorted(mut breakpoints: Vec<Breakpoint>) -> Vec<Breakpoint> {
    breakpoints.sort_by_key(|bp| (bp.address, bp.kind.bits(), bp.length.bits()));
    breakpoints
}
