//! Tasks: birth, death, exec, migration, and what each does to breakpoints.
//!
//! Source: `perf_event_init_task`, `perf_event_exit_task` (kernel/events/core.c), `flush_thread`, `copy_thread`
//! (arch/x86/kernel/process*.c), 6.17; behaviour measured on 6.18.

use crate::counter::{Origin, parse};
use crate::event::{Errno, Misuse, Outcome, Refusal};
use crate::machine::Machine;
use crate::policy::HostHalf;
use crate::step::Probe;
use crate::thread::Thread;
use crate::{ContextId, CounterId, CpuId, TaskId};

/// What a task may do; each may what those before it may.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Capabilities {
    /// Nothing.
    None,
    /// CAP_PERFMON only.
    Perfmon,
    /// Everything.
    Root,
}

/// Where a task stands.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Life {
    /// Its fork is still to come, or was refused.
    Unborn,
    /// It can run.
    Alive,
    /// It has exited.
    Exited,
}

/// A task.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Task {
    /// The CPU on which it runs when it runs.
    pub cpu: CpuId,
    /// What it may do.
    pub capabilities: Capabilities,
    /// A 32-bit program: as a tracer it writes and reads the lower halves of registers.
    pub is_32bit: bool,
    /// Where it stands between its fork and its exit.
    pub life: Life,
    /// Who traces it.
    pub tracer: Option<TaskId>,
    pub(crate) context: Option<ContextId>,
    /// The first thread of its process: itself, if it is that.
    pub(crate) process: TaskId,
    /// Counters that its process has a descriptor of, if it is the first thread.
    pub(crate) descriptors: Vec<CounterId>,
    /// `thread.ptrace_bps`: the counters that a tracer made, by the tracer's register number.
    pub(crate) ptrace_bps: [Option<CounterId>; 4],
    /// `thread.virtual_dr6`, in positive polarity.
    pub(crate) virtual_dr6: u64,
    /// `thread.ptrace_dr7`: the last accepted value, verbatim.
    pub(crate) ptrace_dr7: u64,
    /// The registers of the task itself, which kernels up to 2.6.32 kept.
    pub(crate) thread: Thread,
}

impl Task {
    /// Whether it has been born and has not exited.
    pub fn is_alive(&self) -> bool {
        self.life == Life::Alive
    }

    pub(crate) fn new(id: TaskId, cpu: CpuId, capabilities: Capabilities) -> Task {
        Task {
            process: id,
            cpu,
            capabilities,
            is_32bit: false,
            life: Life::Alive,
            tracer: None,
            context: None,
            descriptors: Vec::new(),
            ptrace_bps: [None; 4],
            virtual_dr6: 0,
            ptrace_dr7: 0,
            thread: Thread::default(),
        }
    }
}

impl Machine {
    /// The counters that a task's process has a descriptor of.
    pub(crate) fn descriptors(&self, task: TaskId) -> &[CounterId] {
        &self.task(self.task(task).process).descriptors
    }

    /// The threads of a task's process that are alive, other than it.
    fn other_threads(&self, task: TaskId) -> Vec<TaskId> {
        let process = self.task(task).process;
        let all = (0..self.tasks.len()).map(TaskId::from);
        all.filter(|&id| id != task && self.task(id).process == process && self.task(id).is_alive()).collect()
    }

    /// fork: counters with `inherit` are copied, each with a slot of its own and validated again with the parent's
    /// rights; ptrace's are not, but the child's DR6 and DR7 read as the parent's (M4).
    pub(crate) fn fork(&mut self, parent: TaskId, child: TaskId, thread: bool) -> Result<Outcome, Misuse> {
        self.running_on(parent)?;
        let outcome = self.copy_process(parent, child, thread);
        if outcome == Outcome::Ok {
            if thread {
                self.tasks[child.index()].process = self.task(parent).process;
            } else {
                let descriptors = self.descriptors(parent).to_vec();
                self.tasks[child.index()].descriptors = descriptors;
            }
        }
        Ok(outcome)
    }

    /// What fork does with breakpoints, whoever calls it: the kernel makes threads of a task by itself, too. Such a
    /// thread has no descriptors of its own.
    pub fn copy_process(&mut self, parent: TaskId, child: TaskId, thread: bool) -> Outcome {
        // `inherit_task_group`: group by group, each leader before those who follow it.
        let mut copies = Vec::new();
        for id in self.inherited(parent, thread) {
            let leader = self.counter(id).leader.map(|leader| Self::copy_among(&copies, leader));
            match self.copy_for(id, parent, child) {
                Ok(copy) => {
                    self.counters[copy.index()].leader = leader;
                    copies.push((id, copy));
                }
                Err(refusal) => {
                    // Nothing half-made: the copies that came before go too.
                    for (_, copy) in copies {
                        self.release(copy, &mut ());
                    }
                    return Outcome::Refused(refusal);
                }
            }
        }
        let copies: Vec<_> = copies.into_iter().map(|(_, copy)| copy).collect();
        self.inherit_context(parent, child, &copies);
        let parent = self.task(parent).clone();
        let child = &mut self.tasks[child.index()];
        child.life = Life::Alive;
        child.cpu = parent.cpu;
        child.capabilities = parent.capabilities;
        child.is_32bit = parent.is_32bit;
        child.virtual_dr6 = parent.virtual_dr6;
        child.ptrace_dr7 = parent.ptrace_dr7;
        Outcome::Ok
    }

    /// The counters that a child gets, in the order in which it gets them: pinned groups before flexible ones, each class
    /// by CPU and then by addition.
    fn inherited(&self, parent: TaskId, thread: bool) -> Vec<CounterId> {
        let (HostHalf::Perf, Some(context)) = (self.policy.host, self.task(parent).context) else { return Vec::new() };
        let all: Vec<CounterId> = self.context(context).counters().collect();
        let mut leaders: Vec<_> = all.iter().copied().filter(|&id| self.counter(id).leader.is_none()).collect();
        leaders.retain(|&id| {
            let attr = self.counter(id).attr;
            attr.inherit && (thread || !attr.inherit_thread)
        });
        leaders.sort_by_key(|&id| (!self.counter(id).attr.pinned, self.counter(id).cpu));
        let group = |&leader: &CounterId| {
            let follows = all.iter().copied().filter(move |&id| self.counter(id).leader == Some(leader));
            std::iter::once(leader).chain(follows).collect::<Vec<_>>()
        };
        leaders.iter().flat_map(group).collect()
    }

    fn copy_among(copies: &[(CounterId, CounterId)], leader: CounterId) -> CounterId {
        let found = copies.iter().find(|&&(of, _)| of == leader).map(|&(_, copy)| copy);
        found.expect("a leader is copied before those who follow it")
    }

    fn copy_for(&mut self, id: CounterId, parent: TaskId, child: TaskId) -> Result<CounterId, Refusal> {
        let counter = *self.counter(id);
        self.reserve(Some(child), counter.cpu)?;
        let info = parse(&counter.attr, self.task(parent).capabilities, &self.options);
        let info = info.map_err(|refusal| self.refused_after_slot(refusal, Some(child), counter.cpu))?;
        let original = match counter.origin {
            Origin::Inherited(original) => original,
            _ => id,
        };
        let copy = self.create(counter.attr, info, Some(child), counter.cpu, Origin::Inherited(original));
        // A copy starts as its original is, not as the original was created.
        self.counters[copy.index()].enabled = counter.enabled;
        self.counters[copy.index()].state =
            if counter.enabled { crate::counter::State::Inactive } else { crate::counter::State::Off };
        Ok(copy)
    }

    /// execve: ptrace's counters go (`flush_thread`), perf's stay unless they asked not to (`perf_event_exec`).
    pub(crate) fn exec<P: Probe>(&mut self, task: TaskId, probe: &mut P) -> Result<Outcome, Misuse> {
        self.running_on(task)?;
        // `de_thread`: only the one who calls is left.
        for other in self.other_threads(task) {
            self.leave_cpu(other, probe);
            self.exit_breakpoints(other, probe);
        }
        // `flush_thread` comes before `perf_event_exec`.
        self.flush_ptrace(task, probe);
        self.tasks[task.index()].virtual_dr6 = 0;
        self.tasks[task.index()].ptrace_dr7 = 0;
        if self.policy.host == HostHalf::Perf {
            self.perf_exec(task, probe);
        }
        Ok(Outcome::Ok)
    }

    /// exit: the task's counters leave the registers before its last switch. Its descriptors are closed; a counter that
    /// nobody else has a descriptor of ends.
    pub(crate) fn exit<P: Probe>(&mut self, task: TaskId, probe: &mut P) -> Result<Outcome, Misuse> {
        self.running_on(task)?;
        self.end_task(task, probe);
        Ok(Outcome::Ok)
    }

    /// What `exit` does, wherever the task is. The last thread of a process closes its descriptors.
    pub fn end_task<P: Probe>(&mut self, task: TaskId, probe: &mut P) {
        self.exit_breakpoints(task, probe);
        if self.other_threads(task).is_empty() {
            // The last one first: `fput` leaves them to the end of the exit, which takes them as a stack (task_work, 4.3).
            for id in self.descriptors(task).iter().rev().copied().collect::<Vec<_>>() {
                self.close_descriptor(task, id, probe);
            }
        }
    }

    /// What a deadly signal does: every thread of the process ends.
    pub(crate) fn kill<P: Probe>(&mut self, task: TaskId, probe: &mut P) {
        for other in self.other_threads(task) {
            self.leave_cpu(other, probe);
            self.end_task(other, probe);
        }
        self.end_task(task, probe);
    }

    /// A task that another one ends leaves the CPU that it runs on.
    fn leave_cpu<P: Probe>(&mut self, task: TaskId, probe: &mut P) {
        if self.is_running(task) {
            let cpu = self.task(task).cpu;
            self.interrupt(cpu, probe, |machine, probe| machine.sched_switch(cpu, TaskId::IDLE, probe));
        }
    }

    /// The first half of exit: the task's counters leave the registers and their context, a tracer's end, and it is
    /// nobody's tracer any more. Its descriptors are closed later.
    pub fn exit_breakpoints<P: Probe>(&mut self, task: TaskId, probe: &mut P) {
        if self.policy.host == HostHalf::Perf {
            self.perf_exit(task, probe);
        }
        self.flush_ptrace(task, probe);
        self.tasks[task.index()].life = Life::Exited;
        self.tasks[task.index()].tracer = None;
        for other in &mut self.tasks {
            other.tracer = other.tracer.filter(|&tracer| tracer != task);
        }
    }

    /// A task closes its descriptor of a counter: the counter ends if it was the last.
    pub fn close_descriptor<P: Probe>(&mut self, task: TaskId, id: CounterId, probe: &mut P) {
        let process = self.task(task).process;
        self.tasks[process.index()].descriptors.retain(|&other| other != id);
        self.close_if_unused(id, probe);
    }

    fn close_if_unused<P: Probe>(&mut self, id: CounterId, probe: &mut P) {
        let used = self.tasks.iter().any(|task| task.descriptors.contains(&id));
        if !used && self.counter(id).is_live() {
            self.release(id, probe);
        }
    }

    /// A task moves: it leaves the CPU it runs on, and runs on the other if that is idle.
    pub(crate) fn migrate<P: Probe>(&mut self, task: TaskId, to: CpuId, probe: &mut P) -> Result<Outcome, Misuse> {
        self.alive(task)?;
        let from = self.task(task).cpu;
        if self.is_running(task) {
            self.host_cpu(from)?;
        }
        if from != to {
            if self.is_running(task) {
                self.sched_switch(from, TaskId::IDLE, probe);
            }
            self.tasks[task.index()].cpu = to;
            if self.running(to) == TaskId::IDLE && self.is_online(to) {
                self.sched_switch(to, task, probe);
            }
        }
        Ok(Outcome::Ok)
    }

    /// Puts a task that is not running on another CPU's books, as a trace's `sched_migrate_task` says.
    pub fn place(&mut self, task: TaskId, cpu: CpuId) {
        self.tasks[task.index()].cpu = cpu;
    }

    /// A refusal of a task-to-task call for lack of rights: the tracee's capabilities must be among the tracer's
    /// (`cap_ptrace_access_check`).
    pub(crate) fn may_trace(&self, tracer: TaskId, tracee: TaskId) -> Result<(), Refusal> {
        if tracer == tracee || self.task(tracer).capabilities < self.task(tracee).capabilities {
            return Err(Refusal::new(Errno::EPERM, "a task cannot trace itself, nor one with more rights"));
        }
        Ok(())
    }
}
