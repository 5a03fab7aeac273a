//! The slot rule: how many breakpoints may exist, counted at creation, long before a register is chosen.
//!
//! C\[c\] is the number of counters bound to CPU c without a task, T\[t\]\[c\] the number with target t that may run on c.
//!
//! | new counter | accepted iff |
//! |---|---|
//! | CPU c, no task | C\[c\] + max over t of T\[t\]\[c\] + 1 <= slots |
//! | task t on CPU c | C\[c\] + T\[t\]\[c\] + 1 <= slots |
//! | task t, any CPU | max over c of (C\[c\] + T\[t\]\[c\]) + 1 <= slots |
//!
//! Source: `__reserve_bp_slot` (kernel/events/hw_breakpoint.c, 6.17); agreed with a live 6.18 in 13,414 random opens.
//! A slot that kgdb announced counts as one of C.

use crate::event::{Errno, Refusal};
use crate::machine::Machine;
use crate::{CounterId, CpuId, TaskId};
use debugreg::Owner;

impl Machine {
    /// Whether one more counter fits, or who stands in the way.
    ///
    /// # Errors
    ///
    /// ENOSPC, with the counters that fill the CPU that is full.
    pub fn reserve(&mut self, target: Option<TaskId>, cpu: Option<CpuId>) -> Result<(), Refusal> {
        if self.policy.keeps_numbers() {
            let admits = self.histogram_admits(target, cpu);
            let counted = self.count(target, cpu);
            return match counted {
                _ if admits => Ok(()),
                Err(refusal) => Err(refusal),
                // Nobody is in the way but the numbers.
                Ok(()) => Err(Refusal::new(Errno::ENOSPC, SLOT_RULE)),
            };
        }
        self.count(target, cpu)
    }

    pub(crate) fn count(&self, target: Option<TaskId>, cpu: Option<CpuId>) -> Result<(), Refusal> {
        let cpus = match cpu {
            Some(cpu) => cpu..CpuId(cpu.0 + 1),
            None => CpuId(0)..CpuId::from(self.cpus.len()),
        };
        for cpu in (cpus.start.0..cpus.end.0).map(CpuId) {
            let mut holders = self.bound_to(cpu);
            holders.extend(match target {
                Some(task) => self.of_task(task, cpu),
                None => self.greediest_task(cpu),
            });
            if holders.len() + self.announced(cpu) + 1 > self.options.slots {
                return Err(Refusal { errno: Some(Errno::ENOSPC), rule: SLOT_RULE, holders });
            }
        }
        Ok(())
    }

    /// C: the counters bound to a CPU without a task.
    fn bound_to(&self, cpu: CpuId) -> Vec<CounterId> {
        self.live().filter(|&id| self.counter(id).target.is_none() && self.counter(id).fits(cpu)).collect()
    }

    /// T: a task's counters that may run on a CPU.
    fn of_task(&self, task: TaskId, cpu: CpuId) -> Vec<CounterId> {
        self.live().filter(|&id| self.counter(id).target == Some(task) && self.counter(id).fits(cpu)).collect()
    }

    /// T of the task that has most.
    fn greediest_task(&self, cpu: CpuId) -> Vec<CounterId> {
        let mut counts = std::collections::BTreeMap::new();
        for id in self.live().filter(|&id| self.counter(id).fits(cpu)) {
            if let Some(task) = self.counter(id).target {
                *counts.entry(task).or_insert(0usize) += 1;
            }
        }
        // The first of several equals, so that the answer does not depend on the order of the table.
        let most = counts.iter().max_by_key(|&(task, count)| (count, std::cmp::Reverse(task)));
        most.map(|(&task, _)| self.of_task(task, cpu)).unwrap_or_default()
    }

    pub(crate) fn announced(&self, cpu: CpuId) -> usize {
        self.cpu(cpu).bank.owner.iter().filter(|&&owner| owner == Owner::KGDB).count()
    }

    pub(crate) fn live(&self) -> impl Iterator<Item = CounterId> + '_ {
        (0..self.counters.len()).map(CounterId::from).filter(|&id| self.counter(id).is_live())
    }
}

const SLOT_RULE: &str =
    "every slot of a CPU is spoken for: counters bound to it, the task's own, one more (reserve_bp_slot)";
