//! The host half of kernels up to 2.6.32: registers belong to the thread.
//!
//! A task switch loads all six when the coming task has TIF_DEBUG, and clears nothing otherwise: a breakpoint of the
//! task that left stays armed, and `do_debug` masks a stale hit. Source: `__switch_to_xtra`
//! (arch/x86/kernel/process_64.c, 2.6.32). perf counters did not exist; a breakpoint of a task is a register of its
//! thread, and one on a CPU is not expressible.

use debugreg::{Breakpoint, Dr, Dr6, Dr7, Slot, Steps, encode_dr7, encode_slot};

use crate::counter::State;
use crate::machine::Machine;
use crate::step::{On, Probe};
use crate::{CounterId, CpuId, TaskId};

/// `thread.debugreg0-3,6,7`, and who asked for each.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Thread {
    pub(crate) dr: [u64; 4],
    pub(crate) dr6: u64,
    pub(crate) dr7: u64,
    pub(crate) owner: [Option<CounterId>; 4],
}

impl Default for Thread {
    fn default() -> Thread {
        Thread { dr: [0; 4], dr6: Dr6::IDLE.0, dr7: 0, owner: [None; 4] }
    }
}

impl Thread {
    /// TIF_DEBUG.
    pub(crate) fn is_debugged(&self) -> bool {
        Dr7(self.dr7).any_armed()
    }
}

impl Machine {
    /// `__switch_to_xtra`.
    pub(crate) fn thread_switch<P: Probe>(&mut self, cpu: CpuId, next: TaskId, probe: &mut P) {
        let thread = self.task(next).thread;
        if thread.is_debugged() {
            let mut on = On { machine: self, cpu, probe };
            for slot in Slot::ALL {
                on.write_dr(Dr::Address(slot), thread.dr[slot.index()]);
            }
            on.write_dr(Dr::Status, thread.dr6);
            on.write_dr(Dr::Control, thread.dr7);
        }
    }

    /// A counter takes the lowest free register of its task.
    pub(crate) fn thread_arm<P: Probe>(&mut self, id: CounterId, probe: &mut P) {
        let counter = *self.counter(id);
        let task = counter.target.expect("a counter without a task was refused");
        let thread = &mut self.tasks[task.index()].thread;
        let Some(slot) = Slot::ALL.into_iter().find(|slot| thread.owner[slot.index()].is_none()) else { return };
        thread.owner[slot.index()] = Some(id);
        if counter.enabled {
            self.thread_program(id, slot, Some(counter.info), probe);
        }
    }

    /// A counter that kept its register is enabled again.
    pub(crate) fn thread_arm_again<P: Probe>(&mut self, id: CounterId, probe: &mut P) {
        let counter = *self.counter(id);
        if let Some(slot) = self.thread_slot(id) {
            self.counters[id.index()].enabled = true;
            self.thread_program(id, slot, Some(counter.info), probe);
        }
    }

    /// A counter is disarmed, and keeps its register.
    pub(crate) fn thread_disarm<P: Probe>(&mut self, id: CounterId, probe: &mut P) {
        if let Some(slot) = self.thread_slot(id) {
            self.thread_program(id, slot, None, probe);
        }
    }

    /// A counter gives its register back.
    pub(crate) fn thread_release<P: Probe>(&mut self, id: CounterId, probe: &mut P) {
        self.thread_disarm(id, probe);
        if let (Some(slot), Some(task)) = (self.thread_slot(id), self.counter(id).target) {
            self.tasks[task.index()].thread.owner[slot.index()] = None;
        }
    }

    fn thread_slot(&self, id: CounterId) -> Option<Slot> {
        let task = self.counter(id).target?;
        let owner = self.task(task).thread.owner;
        Slot::ALL.into_iter().find(|slot| owner[slot.index()] == Some(id))
    }

    /// Writes the thread's registers, and the hardware's if the thread is running.
    fn thread_program<P: Probe>(&mut self, id: CounterId, slot: Slot, bp: Option<Breakpoint>, probe: &mut P) {
        let counter = *self.counter(id);
        let task = counter.target.expect("it has a slot");
        let thread = &mut self.tasks[task.index()].thread;
        thread.dr7 &= !encode_slot(slot, counter.info.kind, counter.info.length);
        if let Some(bp) = bp {
            thread.dr[slot.index()] = bp.address;
            thread.dr7 |= encode_dr7(slot, bp.kind, bp.length);
        }
        self.set_state(id, if bp.is_some() { State::Active } else { State::Inactive });
        let thread = self.task(task).thread;
        if self.is_running(task) {
            let cpu = self.task(task).cpu;
            let mut on = On { machine: self, cpu, probe };
            if let Some(bp) = bp {
                on.write_dr(Dr::Address(slot), bp.address);
            }
            on.write_dr(Dr::Control, thread.dr7);
        }
    }
}
