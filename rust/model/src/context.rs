//! perf contexts: which counters a task or a CPU has, and when they go into registers and out again.
//!
//! The order is always: CPU pinned, task pinned, CPU flexible, task flexible; inside a class by creation. The register
//! is the lowest free one. Source: kernel/events/core.c (6.12): `ctx_sched_in`, `ctx_sched_out`, `ctx_resched`,
//! `perf_event_sched_in`, `perf_event_context_sched_out`, `__perf_install_in_context`; order of slots measured on 6.18.

use std::cmp::Reverse;

use debugreg::{announce, bank};

use crate::counter::{Counter, Origin, State};
use crate::machine::Machine;
use crate::policy::Delta;
use crate::step::{Mark, On, Probe, owner};
use crate::{ContextId, CounterId, CpuId, TaskId};

/// Which counters of a context: pinned ones, flexible ones, or both (the kernel's EVENT_PINNED and EVENT_FLEXIBLE).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Class(u8);

impl Class {
    pub(crate) const NONE: Class = Class(0);
    pub(crate) const PINNED: Class = Class(1);
    pub(crate) const FLEXIBLE: Class = Class(2);
    pub(crate) const ALL: Class = Class(3);

    const fn and(self, other: Class) -> Class {
        Class(self.0 & other.0)
    }

    const fn or(self, other: Class) -> Class {
        Class(self.0 | other.0)
    }

    const fn without(self, other: Class) -> Class {
        Class(self.0 & !other.0)
    }

    const fn has(self, other: Class) -> bool {
        self.0 & other.0 != 0
    }
}

/// The counters of a task or of a CPU.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Context {
    /// Whose; `None` for a CPU's.
    pub(crate) task: Option<TaskId>,
    /// The leaders of its groups, each class by addition. A counter without a group is its own leader.
    pinned: Vec<CounterId>,
    flexible: Vec<CounterId>,
    /// Those that follow a leader, by addition.
    siblings: Vec<CounterId>,
    /// Leaders in registers, in the order in which they were put there.
    pinned_active: Vec<CounterId>,
    flexible_active: Vec<CounterId>,
    /// What has been scheduled in.
    active: Class,
    /// The context that this one is a clone of, and that one's generation when it was cloned.
    pub(crate) parent: Option<(ContextId, u64)>,
    /// Counts additions and removals.
    pub(crate) generation: u64,
}

impl Context {
    pub(crate) fn new(task: Option<TaskId>) -> Context {
        Context {
            task,
            pinned: Vec::new(),
            flexible: Vec::new(),
            siblings: Vec::new(),
            pinned_active: Vec::new(),
            flexible_active: Vec::new(),
            active: Class::NONE,
            parent: None,
            generation: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pinned.is_empty() && self.flexible.is_empty()
    }

    /// All counters: leaders, pinned ones first, each class by addition; then those that follow one.
    pub(crate) fn counters(&self) -> impl Iterator<Item = CounterId> + '_ {
        self.pinned.iter().chain(&self.flexible).chain(&self.siblings).copied()
    }

    /// Calls its counters otherwise.
    pub(crate) fn rename_counters(&mut self, new: impl Fn(CounterId) -> CounterId) {
        let active = [&mut self.pinned_active, &mut self.flexible_active];
        for list in [&mut self.pinned, &mut self.flexible, &mut self.siblings].into_iter().chain(active) {
            for id in list {
                *id = new(*id);
            }
        }
    }

    fn leaders(&mut self, pinned: bool) -> &mut Vec<CounterId> {
        if pinned { &mut self.pinned } else { &mut self.flexible }
    }

    fn active_leaders(&mut self, pinned: bool) -> &mut Vec<CounterId> {
        if pinned { &mut self.pinned_active } else { &mut self.flexible_active }
    }
}

impl Machine {
    /// The part of a task switch that changes debug registers (7.2): everything the leaving task's context has, out;
    /// everything the coming task's has, in. Two clones of one context are swapped instead, without a register write.
    pub(crate) fn perf_switch<P: Probe>(&mut self, cpu: CpuId, prev: TaskId, next: TaskId, probe: &mut P) {
        let (out, into) = (self.task(prev).context, self.task(next).context);
        if let (Some(out), Some(into)) = (out, into)
            && self.are_clones(out, into)
        {
            self.tasks[prev.index()].context = Some(into);
            self.tasks[next.index()].context = Some(out);
            self.contexts[into.index()].task = Some(prev);
            self.contexts[out.index()].task = Some(next);
            return;
        }
        if let Some(out) = out {
            self.sched_out(cpu, out, Class::ALL, probe);
        }
        if let Some(into) = into
            && !self.context(into).is_empty()
        {
            // CPU-wide flexible counters make room for the task's pinned ones.
            if !self.context(into).pinned.is_empty() {
                self.sched_out(cpu, self.cpu(cpu).context, Class::FLEXIBLE, probe);
            }
            self.sched_in_all(cpu, Some(into), probe);
        }
    }

    /// `context_equiv`: one is the other's clone, or both are clones of a third, and nothing was added since.
    fn are_clones(&self, a: ContextId, b: ContextId) -> bool {
        let (left, right) = (self.context(a), self.context(b));
        match (left.parent, right.parent) {
            (_, Some((parent, generation))) if parent == a => generation == left.generation,
            (Some((parent, generation)), _) if parent == b => generation == right.generation,
            (Some(left), Some(right)) => left == right,
            _ => false,
        }
    }

    /// `perf_event_sched_in`: what is not in yet, in the order of the classes.
    fn sched_in_all<P: Probe>(&mut self, cpu: CpuId, task: Option<ContextId>, probe: &mut P) {
        let own = self.cpu(cpu).context;
        for class in [Class::PINNED, Class::FLEXIBLE] {
            self.sched_in(cpu, own, class, probe);
            if let Some(task) = task {
                self.sched_in(cpu, task, class, probe);
            }
        }
    }

    /// `ctx_sched_in`.
    fn sched_in<P: Probe>(&mut self, cpu: CpuId, id: ContextId, class: Class, probe: &mut P) {
        let context = &mut self.contexts[id.index()];
        if context.is_empty() {
            return;
        }
        let new = class.without(context.active);
        context.active = context.active.or(class);
        if context.task.is_some() {
            self.cpus[cpu.index()].task_context = Some(id);
        }
        for class in [Class::PINNED, Class::FLEXIBLE] {
            if new.has(class) {
                let mut at = 0;
                while let Some(&counter) = self.class(id, class).get(at) {
                    self.sched_in_group(cpu, id, counter, probe);
                    // An interruption may have closed a counter; the next one then stands where this one stood.
                    if self.class(id, class).get(at) == Some(&counter) {
                        at += 1;
                    }
                }
            }
        }
    }

    fn class(&self, id: ContextId, class: Class) -> &[CounterId] {
        let context = self.context(id);
        if class == Class::PINNED { &context.pinned } else { &context.flexible }
    }

    /// `merge_sched_in`: a group without registers goes to ERROR if it is pinned, and waits if it is flexible.
    fn sched_in_group<P: Probe>(&mut self, cpu: CpuId, context: ContextId, leader: CounterId, probe: &mut P) {
        let Counter { state, attr, .. } = *self.counter(leader);
        if state != State::Inactive || !self.counter(leader).fits(cpu) {
            return;
        }
        if self.group_sched_in(cpu, context, leader, probe) {
            self.contexts[context.index()].active_leaders(attr.pinned).push(leader);
        } else if attr.pinned {
            self.set_state(leader, State::Error);
        }
    }

    /// `group_sched_in`: the leader and all that follow it, or none of them.
    fn group_sched_in<P: Probe>(&mut self, cpu: CpuId, id: ContextId, leader: CounterId, probe: &mut P) -> bool {
        if !self.install(cpu, leader, probe) {
            return false;
        }
        let siblings = self.siblings(id, leader);
        for (at, &sibling) in siblings.iter().enumerate() {
            if self.counter(sibling).state == State::Inactive && !self.install(cpu, sibling, probe) {
                for &installed in &siblings[..at] {
                    self.uninstall_active(cpu, installed, probe);
                }
                self.uninstall_active(cpu, leader, probe);
                return false;
            }
        }
        true
    }

    /// Those that follow a leader. Most follow nobody, and nothing is allocated then.
    fn siblings(&self, context: ContextId, leader: CounterId) -> Vec<CounterId> {
        let siblings = self.context(context).siblings.iter().copied();
        siblings.filter(|&id| self.counter(id).leader == Some(leader)).collect()
    }

    /// Where perf has a counter from here on, unless an interruption has ended it meanwhile: what is dead stays dead.
    pub(crate) fn set_state(&mut self, id: CounterId, state: State) {
        let counter = &mut self.counters[id.index()];
        if counter.is_live() {
            counter.state = state;
        }
    }

    /// `event_sched_in`: whether there was a register.
    fn install<P: Probe>(&mut self, cpu: CpuId, id: CounterId, probe: &mut P) -> bool {
        let info = self.counter(id).info;
        let announces = self.policy.has(Delta::Announce);
        let mut on = On { machine: self, cpu, probe };
        on.mark(Mark::Install(id));
        let slot = if announces {
            announce::install(&mut on, owner(id), info)
        } else {
            bank::install(&mut on, owner(id), info)
        };
        if slot.is_some() {
            self.set_state(id, State::Active);
        }
        slot.is_some()
    }

    /// `ctx_sched_out`: pinned ones first, each class in the order in which it went in.
    pub(crate) fn sched_out<P: Probe>(&mut self, cpu: CpuId, id: ContextId, class: Class, probe: &mut P) {
        let context = &mut self.contexts[id.index()];
        let leaving = context.active.and(class);
        context.active = context.active.without(class);
        if context.task.is_some() && context.active == Class::NONE && self.cpus[cpu.index()].task_context == Some(id) {
            self.cpus[cpu.index()].task_context = None;
        }
        for (class, pinned) in [(Class::PINNED, true), (Class::FLEXIBLE, false)] {
            if leaving.has(class) {
                // Handed back, so that it is not allocated anew at every switch.
                let mut leaders = std::mem::take(self.contexts[id.index()].active_leaders(pinned));
                for leader in leaders.drain(..) {
                    self.group_sched_out(cpu, id, leader, probe);
                }
                *self.contexts[id.index()].active_leaders(pinned) = leaders;
            }
        }
    }

    /// `group_sched_out`.
    fn group_sched_out<P: Probe>(&mut self, cpu: CpuId, id: ContextId, leader: CounterId, probe: &mut P) {
        self.uninstall_active(cpu, leader, probe);
        for sibling in self.siblings(id, leader) {
            self.uninstall_active(cpu, sibling, probe);
        }
    }

    /// `event_sched_out`.
    fn uninstall_active<P: Probe>(&mut self, cpu: CpuId, id: CounterId, probe: &mut P) {
        let Counter { state, info, .. } = *self.counter(id);
        if state != State::Active {
            return;
        }
        let announces = self.policy.has(Delta::Announce);
        let mut on = On { machine: self, cpu, probe };
        on.mark(Mark::Uninstall(id));
        if announces {
            announce::uninstall(&mut on, owner(id), info);
        } else {
            bank::uninstall(&mut on, owner(id), info);
        }
        self.set_state(id, State::Inactive);
    }

    /// `ctx_resched`, on the CPU itself.
    pub(crate) fn resched<P: Probe>(&mut self, cpu: CpuId, id: CounterId, probe: &mut P) {
        self.interrupt(cpu, probe, |machine, probe| machine.resched_here(cpu, id, probe));
    }

    /// Makes room for a counter of its class and schedules everything in again.
    fn resched_here<P: Probe>(&mut self, cpu: CpuId, id: CounterId, probe: &mut P) {
        // What counts is the class of the group (`get_event_type`).
        let leader = self.counter(self.leader(id));
        let class = if leader.attr.pinned { Class::ALL } else { Class::FLEXIBLE };
        let (cpu_wide, pinned) = (leader.target.is_none(), leader.attr.pinned);
        let task = self.cpu(cpu).task_context.or_else(|| {
            let context = self.task(self.running(cpu)).context;
            context.filter(|_| !cpu_wide)
        });
        if let Some(task) = task {
            self.sched_out(cpu, task, class, probe);
        }
        let own = self.cpu(cpu).context;
        if cpu_wide {
            self.sched_out(cpu, own, class, probe);
        } else if pinned {
            self.sched_out(cpu, own, Class::FLEXIBLE, probe);
        }
        self.sched_in_all(cpu, task, probe);
    }

    /// `perf_install_in_context`: a new counter joins its context, and is scheduled in if that is running. A disabled one
    /// reschedules nobody, unless it is the context's first.
    pub(crate) fn add_to_context<P: Probe>(&mut self, id: CounterId, probe: &mut P) {
        let counter = *self.counter(id);
        let context = match (counter.target, counter.cpu) {
            (Some(task), _) => self.own_context(task),
            (None, Some(cpu)) => self.cpu(cpu).context,
            (None, None) => unreachable!("a counter has a task or a CPU"),
        };
        // `__perf_effective_state`: the state of a leader that is off is that of all who follow it.
        let leader = self.counter(self.leader(id)).state;
        let effective = if matches!(leader, State::Off | State::Error) { leader } else { counter.state };
        let quiet = effective == State::Off && !self.context(context).is_empty();
        self.link(id, context);
        if quiet {
            return;
        }
        if let Some(cpu) = self.runs_on(id) {
            self.resched(cpu, id, probe);
        }
    }

    /// The context of a task for an addition: it is nobody's clone any more (`find_get_context`, `unclone_ctx`).
    pub(crate) fn own_context(&mut self, task: TaskId) -> ContextId {
        let id = self.task(task).context.unwrap_or_else(|| {
            let id = ContextId::from(self.contexts.len());
            self.contexts.push(Context::new(Some(task)));
            self.tasks[task.index()].context = Some(id);
            id
        });
        let context = &mut self.contexts[id.index()];
        if context.parent.take().is_some() {
            context.generation += 1;
        }
        id
    }

    /// The context that a new counter would join, if there is one yet.
    pub(crate) fn joins(&self, task: Option<TaskId>, cpu: Option<CpuId>) -> Option<ContextId> {
        match task {
            Some(task) => self.task(task).context,
            None => cpu.map(|cpu| self.cpu(cpu).context),
        }
    }

    fn link(&mut self, id: CounterId, to: ContextId) {
        let Counter { attr, leader, .. } = *self.counter(id);
        let context = &mut self.contexts[to.index()];
        match leader {
            Some(_) => context.siblings.push(id),
            None => context.leaders(attr.pinned).push(id),
        }
        context.generation += 1;
        self.counters[id.index()].context = Some(to);
    }

    /// The leader of a counter's group: itself, if it follows nobody.
    fn leader(&self, id: CounterId) -> CounterId {
        self.counter(id).leader.unwrap_or(id)
    }

    /// `perf_group_detach`: who followed this counter follows nobody any more, and who is in a register stays there.
    fn detach_group(&mut self, id: CounterId, from: ContextId) {
        self.counters[id.index()].leader = None;
        for sibling in self.siblings(from, id) {
            let Counter { attr, state, .. } = *self.counter(sibling);
            self.counters[sibling.index()].leader = None;
            let context = &mut self.contexts[from.index()];
            context.siblings.retain(|&other| other != sibling);
            context.leaders(attr.pinned).push(sibling);
            if state == State::Active {
                context.active_leaders(attr.pinned).push(sibling);
            }
        }
    }

    /// Takes a counter off its CPU, if it is on one; with `group`, all who follow it too. The others stay where they are.
    fn deactivate<P: Probe>(&mut self, id: CounterId, group: bool, probe: &mut P) {
        let Counter { state, context, cpu, leader, attr, .. } = *self.counter(id);
        let (State::Active, Some(context)) = (state, context) else { return };
        let cpu = match self.context(context).task {
            Some(task) => self.task(task).cpu,
            None => cpu.expect("a CPU's counter has a CPU"),
        };
        self.interrupt(cpu, probe, |machine, probe| {
            if group {
                machine.group_sched_out(cpu, context, id, probe);
            } else {
                machine.uninstall_active(cpu, id, probe);
            }
        });
        if leader.is_none() {
            self.contexts[context.index()].active_leaders(attr.pinned).retain(|&other| other != id);
        }
    }

    /// The CPU whose registers a change of this counter reaches: the one that it is bound to, or that its task is on.
    pub fn runs_on(&self, id: CounterId) -> Option<CpuId> {
        let counter = self.counter(id);
        match self.context(counter.context?).task {
            Some(task) if self.is_running(task) => Some(self.task(task).cpu),
            Some(_) => None,
            None => counter.cpu,
        }
    }

    /// `perf_event_disable`.
    pub(crate) fn perf_disable<P: Probe>(&mut self, id: CounterId, probe: &mut P) {
        // One that is in ERROR stays there.
        if !matches!(self.counter(id).state, State::Inactive | State::Active) {
            return;
        }
        self.deactivate(id, true, probe);
        self.counters[id.index()].enabled = false;
        self.set_state(id, State::Off);
    }

    /// `perf_event_enable`: also brings a counter back from ERROR.
    pub(crate) fn perf_enable<P: Probe>(&mut self, id: CounterId, probe: &mut P) {
        let counter = &mut self.counters[id.index()];
        if !matches!(counter.state, State::Off | State::Error) {
            return;
        }
        counter.enabled = true;
        counter.state = State::Inactive;
        // One that follows a leader is not put on unless the group is on.
        let leader = self.leader(id);
        if leader != id && self.counter(leader).state != State::Active {
            return;
        }
        if let Some(cpu) = self.runs_on(id).filter(|&cpu| self.counter(id).fits(cpu)) {
            self.resched(cpu, id, probe);
        }
    }

    /// Takes a counter out of its context (`perf_remove_from_context`). Closing moves nobody else.
    pub(crate) fn remove_from_context<P: Probe>(&mut self, id: CounterId, probe: &mut P) {
        self.deactivate(id, false, probe);
        let Some(from) = self.counters[id.index()].context.take() else { return };
        self.detach_group(id, from);
        let context = &mut self.contexts[from.index()];
        for list in [&mut context.pinned, &mut context.flexible, &mut context.siblings] {
            list.retain(|&other| other != id);
        }
        context.generation += 1;
        if context.is_empty() {
            context.active = Class::NONE;
            for cpu in &mut self.cpus {
                cpu.task_context = cpu.task_context.filter(|&task| task != from);
            }
        }
        self.set_state(id, State::Off);
    }

    /// Everything of a dying task, out of the registers and out of its context (`perf_event_exit_task`); copies that
    /// fork made end here, others when their descriptors are closed.
    pub(crate) fn perf_exit<P: Probe>(&mut self, task: TaskId, probe: &mut P) {
        let Some(id) = self.tasks[task.index()].context.take() else { return };
        let cpu = self.task(task).cpu;
        self.sched_out(cpu, id, Class::ALL, probe);
        let counters: Vec<_> = self.context(id).counters().collect();
        for counter in counters {
            self.exit_counter(counter, probe);
        }
    }

    /// `perf_event_exit_event`: a copy that fork made ends, another keeps its slot until its descriptors are closed.
    fn exit_counter<P: Probe>(&mut self, id: CounterId, probe: &mut P) {
        self.remove_from_context(id, probe);
        if matches!(self.counter(id).origin, Origin::Inherited(_)) {
            self.bury(id);
        } else {
            self.set_state(id, State::Exit);
        }
    }

    /// `perf_event_remove_on_exec`; the context is nobody's clone any more if there was one.
    pub(crate) fn perf_exec<P: Probe>(&mut self, task: TaskId, probe: &mut P) {
        let Some(context) = self.task(task).context else { return };
        let leaving = self.context(context).counters().filter(|&id| self.counter(id).attr.remove_on_exec);
        let mut leaving: Vec<_> = leaving.collect();
        if !leaving.is_empty() {
            self.own_context(task);
        }
        // Newest first: `event_list` is filled at its head.
        leaving.sort_unstable_by_key(|&id| Reverse(id));
        for id in leaving {
            self.exit_counter(id, probe);
        }
    }

    /// All host counters out of the registers and back in: what Frederic's mail does around a guest.
    pub(crate) fn perf_sched_out_cpu<P: Probe>(&mut self, cpu: CpuId, probe: &mut P) {
        if let Some(task) = self.cpu(cpu).task_context {
            self.sched_out(cpu, task, Class::ALL, probe);
        }
        self.sched_out(cpu, self.cpu(cpu).context, Class::ALL, probe);
    }

    /// See [`Machine::perf_sched_out_cpu`].
    pub(crate) fn perf_sched_in_cpu<P: Probe>(&mut self, cpu: CpuId, probe: &mut P) {
        let task = self.task(self.running(cpu)).context;
        self.sched_in_all(cpu, task, probe);
    }

    /// The child's context after fork: copies of the counters with `inherit`, by CPU and then by creation
    /// (`perf_event_init_context`). A clone if everything was inherited. `copies` are the child's counters.
    pub(crate) fn inherit_context(&mut self, parent: TaskId, child: TaskId, copies: &[CounterId]) {
        let Some(from) = self.task(parent).context.filter(|_| !copies.is_empty()) else { return };
        let to = self.own_context(child);
        for &copy in copies {
            self.link(copy, to);
        }
        let source = self.context(from);
        if source.counters().count() == copies.len() {
            self.contexts[to.index()].parent = Some(source.parent.unwrap_or((from, source.generation)));
        }
    }
}
