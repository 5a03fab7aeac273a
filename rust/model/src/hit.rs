//! A task's access to memory, and the #DB that it may raise.
//!
//! Source: `exc_debug_user`, `exc_debug_kernel` (arch/x86/kernel/traps.c), `hw_breakpoint_handler`
//! (arch/x86/kernel/hw_breakpoint.c), `perf_bp_event` (kernel/events/core.c), `ptrace_triggered`
//! (arch/x86/kernel/ptrace.c), 6.17.

use debugreg::trip::{Access, trip};
use debugreg::{Dr, Dr6, Slot, Steps, bank};

use crate::counter::State;
use crate::event::{Holder, Misuse, Outcome};
use crate::machine::{Machine, Options};
use crate::step::{On, Probe};
use crate::{CounterId, CpuId, TaskId};

impl Machine {
    pub(crate) fn task_access<P: Probe>(
        &mut self,
        task: TaskId,
        access: Access,
        kernel: bool,
        probe: &mut P,
    ) -> Result<Outcome, Misuse> {
        let cpu = self.running_on(task)?;
        let tripped = trip(&self.cpu(cpu).bank.hardware, access);
        if tripped.armed == 0 {
            return Ok(Outcome::Hits { counters: Vec::new(), sigtrap: None });
        }
        let shown = tripped.armed | if self.options.disabled_match { tripped.disabled } else { 0 };
        Ok(self.handle_db(task, cpu, u64::from(shown), kernel, probe))
    }

    /// The host's #DB handler. A kernel #DB runs with everything disarmed; a user one does not (5.9).
    fn handle_db<P: Probe>(
        &mut self,
        task: TaskId,
        cpu: CpuId,
        mut events: u64,
        kernel: bool,
        probe: &mut P,
    ) -> Outcome {
        let Options { hypervisor, fred, .. } = self.options;
        // FRED hands the events over; otherwise they come through DR6, with what is sticky there.
        if !fred {
            let hardware = &mut self.cpus[cpu.index()].bank.hardware;
            hardware.dr6 = Dr6(hardware.dr6).after_db(events).0;
            let mut on = On { machine: self, cpu, probe };
            events = Dr6(on.read_dr(Dr::Status)).events();
            on.write_dr(Dr::Status, Dr6::IDLE.0);
        }
        let saved = kernel.then(|| bank::local_db_save(&mut On { machine: self, cpu, probe }, hypervisor));
        if !kernel {
            // All trap bits are dropped, also those that a tracer poked.
            self.tasks[task.index()].virtual_dr6 = events & Dr6::BS;
        }
        let (mut counters, mut traced) = (Vec::new(), false);
        let slots = self.slots(cpu);
        for slot in Slot::ALL {
            if events & u64::from(slot.bit()) == 0 {
                continue;
            }
            // A matching but disabled slot has no owner, and its bit is nobody's.
            let Holder::Counter(id) = slots[slot.index()] else { continue };
            if self.perf_bp_event(id, kernel) {
                match self.ptrace_register(id) {
                    Some(dr) => {
                        self.tasks[task.index()].virtual_dr6 |= 1 << dr;
                        traced = true;
                    }
                    None => counters.push(self.original(id)),
                }
            }
        }
        if let Some(saved) = saved {
            bank::local_db_restore(&mut On { machine: self, cpu, probe }, saved);
        }
        let sigtrap = traced.then(|| Dr6::from_events(self.task(task).virtual_dr6).0);
        if sigtrap.is_some() && self.task(task).tracer.is_none() {
            // Nobody catches the SIGTRAP (M6).
            self.end_task(task, probe);
        }
        Outcome::Hits { counters, sigtrap }
    }

    /// `perf_bp_event`: whether the hit counts. A copy's hits are read through the descriptor of its original.
    fn perf_bp_event(&mut self, id: CounterId, kernel: bool) -> bool {
        let counter = self.counter(id);
        let excluded = if kernel { counter.attr.exclude_kernel } else { counter.attr.exclude_user };
        let counts = counter.state == State::Active && !excluded;
        let original = self.original(id);
        self.counters[original.index()].count += u64::from(counts);
        counts
    }
}
