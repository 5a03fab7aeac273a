//! What descriptors of breakpoints are opened, and what is done through them.

use debugreg_model::{Attr, BpType, Changes, CounterId, CpuId, Event, Outcome, State, TaskId};

use super::Replayer;
use crate::ftrace::BpAttr;
use crate::input::{Input, Row};

/// What one CPU asks of another.
pub(super) enum Interrupt {
    Event(Event),
    Close(TaskId, CounterId),
}

impl Replayer<'_> {
    /// An exiting task closes its descriptors, the highest first (each close is queued as task work, last in, first out).
    /// Closing one of a CPU-wide counter may sleep after the uninstall (`bp_cpuinfo_sem` is taken for writing): if it
    /// does, the next one comes when the task runs again.
    pub(super) fn close_files(&mut self, pid: i32, cpu: CpuId) {
        let task = self.task(pid, cpu);
        while let Some(counter) = self.closing.get_mut(&pid).and_then(Vec::pop) {
            self.close(task, counter);
            let closed = self.machine.counter(counter);
            if closed.target.is_none() && closed.state == State::Dead && self.sleeps_next(pid, cpu) {
                return;
            }
        }
        self.closing.remove(&pid);
    }

    /// Whether the next switch of this CPU is that of a task going to sleep.
    fn sleeps_next(&self, pid: i32, cpu: CpuId) -> bool {
        let mut rows = self.trace.rows[self.at..].iter().skip(1).filter(|row| usize::from(row.cpu) == cpu.index());
        let next = rows.find_map(|row| match row.input {
            Input::Switch { prev, sleeps, .. } => Some((prev, sleeps)),
            _ => None,
        });
        next == Some((pid, true))
    }

    /// An open acts here, whatever the row: on its own task, on another's, or on a CPU.
    pub(super) fn open(&mut self, row: &Row) {
        let Input::Open { attr, pid, cpu: on, group, result } = row.input else { return };
        let here = CpuId(u32::from(row.cpu));
        let by = self.task(row.pid, here);
        let Some(wanted) = wanted(attr) else {
            self.unseen.spans.push((row.line, row.line));
            return self.unknown(row, "the probe could not read what was asked for");
        };
        let task = match pid {
            0 => Some(by),
            -1 => None,
            pid => Some(self.task(pid, here)),
        };
        let cpu = u32::try_from(on).ok().map(CpuId).filter(|cpu| cpu.index() < self.trace.cpus);
        if task.is_none() && cpu.is_none() {
            return;
        }
        // A refusal that the model has no grounds for (another user's rights, say) is the kernel's word all the same.
        let refused = result.is_some_and(|result| result < 0);
        if refused && self.machine.reserve(task, cpu).is_ok() && wanted.is_valid() {
            return;
        }
        // A leader that is no breakpoint does not matter to the registers.
        let descriptors = self.descriptors.get(&row.pid);
        let group = group.and_then(|fd| descriptors.and_then(|descriptors| descriptors.get(&fd))).copied();
        let outcome = self.apply(&Event::PerfEventOpen { by, attr: wanted, task, cpu, group });
        if let (Some(Outcome::Bound(counter)), Some(Ok(fd))) = (outcome, result.map(i32::try_from)) {
            self.descriptors.entry(row.pid).or_default().insert(fd, counter);
        }
    }

    /// Performs an event on a counter, if the descriptor is known to be one.
    pub(super) fn on_counter(
        &mut self,
        row: &Row,
        fd: i32,
        event: impl FnOnce(CounterId) -> Event,
    ) -> Option<CounterId> {
        let counter = self.descriptors.get(&row.pid).and_then(|fds| fds.get(&fd)).copied();
        if counter.is_none() {
            self.unseen.spans.push((row.line, row.line));
        }
        let counter = counter.filter(|&id| self.machine.counter(id).state != State::Dead)?;
        self.apply_or_interrupt(counter, event(counter));
        Some(counter)
    }

    /// Closes a descriptor; that interrupts the counter's CPU, too.
    pub(super) fn close(&mut self, task: TaskId, counter: CounterId) {
        match self.machine.runs_on(counter).filter(|&cpu| self.machine.guest(cpu).is_some()) {
            Some(cpu) => self.interrupts.push((cpu, Interrupt::Close(task, counter))),
            None => self.machine.close_descriptor(task, counter, &mut self.watch),
        }
    }

    /// Performs an event on a counter, after the next VM exit if its CPU runs a guest: the interrupt causes one.
    pub(super) fn apply_or_interrupt(&mut self, counter: CounterId, event: Event) {
        match self.machine.runs_on(counter).filter(|&cpu| self.machine.guest(cpu).is_some()) {
            Some(cpu) => self.interrupts.push((cpu, Interrupt::Event(event))),
            None => drop(self.apply(&event)),
        }
    }
}

// Bits of `perf_event_attr`'s flags (include/uapi/linux/perf_event.h).
const EXCLUDE_USER: u64 = 1 << 4;
const EXCLUDE_KERNEL: u64 = 1 << 5;
const INHERIT_THREAD: u64 = 1 << 35;
const REMOVE_ON_EXEC: u64 = 1 << 36;
const SIGTRAP: u64 = 1 << 37;

/// The attributes that a probe printed, unless it could not read them.
pub(super) fn wanted(attr: BpAttr) -> Option<Attr> {
    let flags = attr.flags?;
    Some(Attr {
        bp_type: BpType::from_number(attr.bp_type?)?,
        bp_addr: attr.bp_addr?,
        bp_len: attr.bp_len?,
        disabled: flags & 1 != 0,
        inherit: flags & 2 != 0,
        inherit_thread: flags & INHERIT_THREAD != 0,
        pinned: flags & 4 != 0,
        exclude_user: flags & EXCLUDE_USER != 0,
        exclude_kernel: flags & EXCLUDE_KERNEL != 0,
        sigtrap: flags & SIGTRAP != 0,
        remove_on_exec: flags & REMOVE_ON_EXEC != 0,
    })
}

/// What a modify asks for, as far as a probe could read it.
pub(super) fn changes(attr: BpAttr) -> Changes {
    Changes {
        bp_type: attr.bp_type.and_then(BpType::from_number),
        bp_addr: attr.bp_addr,
        bp_len: attr.bp_len,
        disabled: attr.flags.map(|flags| flags & 1 != 0),
        pinned: attr.flags.map(|flags| flags & 4 != 0),
        exclude_user: attr.flags.map(|flags| flags & EXCLUDE_USER != 0),
        exclude_kernel: attr.flags.map(|flags| flags & EXCLUDE_KERNEL != 0),
    }
}
