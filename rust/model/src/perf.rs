//! `perf_event_open` and the ioctls of a breakpoint counter, with the checks in the kernel's order.
//!
//! Source: `perf_event_open`, `perf_event_modify_breakpoint` (kernel/events/core.c) and
//! `modify_user_hw_breakpoint_check` (kernel/events/hw_breakpoint.c), 6.17; precedence measured on 6.18: ENOSPC comes
//! before a bad length and before a forbidden target.

use crate::counter::{Attr, Changes, Counter, Origin, State, parse};
use crate::event::{Errno, Misuse, Outcome, Refusal};
use crate::machine::Machine;
use crate::policy::{Delta, HostHalf};
use crate::step::Probe;
use crate::task::Capabilities;
use crate::{CounterId, CpuId, TaskId};

impl Machine {
    /// Opens a breakpoint counter.
    ///
    /// # Errors
    ///
    /// [`Misuse`] if the caller has exited or the policy's kernel has no such counter.
    pub(crate) fn perf_event_open<P: Probe>(
        &mut self,
        by: TaskId,
        attr: Attr,
        task: Option<TaskId>,
        cpu: Option<CpuId>,
        group: Option<CounterId>,
        probe: &mut P,
    ) -> Result<Outcome, Misuse> {
        self.alive(by)?;
        if let Some(leader) = group {
            self.open_counter(leader)?;
        }
        if self.policy.host == HostHalf::Thread && task.is_none() {
            return Err(Misuse::NotExpressible("cpu-wide breakpoints came with perf in 2.6.33"));
        }
        Ok(match self.open(by, attr, task, cpu, group, probe) {
            Ok(counter) => Outcome::Bound(counter),
            Err(refusal) => Outcome::Refused(refusal),
        })
    }

    /// The numbers are those of the reference's table of checks (linux-host 6.1).
    fn open<P: Probe>(
        &mut self,
        by: TaskId,
        attr: Attr,
        task: Option<TaskId>,
        cpu: Option<CpuId>,
        group: Option<CounterId>,
        probe: &mut P,
    ) -> Result<CounterId, Refusal> {
        let caller = self.task(by).capabilities;
        // 2
        if attr.inherit_thread && !attr.inherit {
            return Err(Refusal::new(Errno::EINVAL, "inherit_thread says which children inherit: it needs inherit"));
        }
        // 4
        if !attr.exclude_kernel && self.options.paranoid > 1 && caller == Capabilities::None {
            return Err(Refusal::new(
                Errno::EACCES,
                "exclude_kernel=0 needs CAP_PERFMON while perf_event_paranoid is above 1",
            ));
        }
        // 7
        if group.is_some_and(|leader| !self.descriptors(by).contains(&leader)) {
            return Err(Refusal::new(Errno::EBADF, "the caller has no descriptor of the group's leader"));
        }
        let is_gone = group.is_some_and(|leader| self.counter(leader).state == State::Exit);
        if is_gone && !self.policy.has(Delta::LeaderGone) {
            return Err(Refusal::new(Errno::ENODEV, "the leader's task has exited, or has called execve"));
        }
        if task.is_some() && group.is_some_and(|leader| self.counter(leader).attr.inherit != attr.inherit) {
            return Err(Refusal::new(Errno::EINVAL, "a group is inherited as a whole or not at all"));
        }
        // 9
        if attr.sigtrap && task.is_none() {
            return Err(Refusal::new(Errno::EINVAL, "sigtrap needs a task to send it to"));
        }
        // 11, 12: a slot first, then everything about the address
        self.reserve(task, cpu)?;
        let info = parse(&attr, caller, &self.options);
        let info = info.map_err(|refusal| self.refused_after_slot(refusal, task, cpu))?;
        // 13
        let late = self.policy.has(Delta::LatePermission);
        if !late {
            self.check_permission(caller, task, &attr)?;
        }
        // 14
        if task.is_none() && self.options.paranoid > 0 && caller == Capabilities::None {
            return Err(Refusal::new(
                Errno::EACCES,
                "a cpu-wide counter needs CAP_PERFMON while perf_event_paranoid is above 0",
            ));
        }
        // 15
        if task.is_some_and(|task| !self.task(task).is_alive()) {
            return Err(Refusal::new(Errno::ESRCH, "the task has exited"));
        }
        if let (None, Some(cpu)) = (task, cpu)
            && !self.is_online(cpu)
        {
            return Err(Refusal::new(Errno::ENODEV, "the CPU is offline"));
        }
        // The task's context is fetched for an addition, and is nobody's clone from here on, whatever comes of it.
        if let Some(task) = task
            && self.policy.host == HostHalf::Perf
        {
            self.own_context(task);
        }
        // 16
        if let Some(leader) = group {
            self.may_follow(attr, task, cpu, leader)?;
        }
        if late {
            self.check_permission(caller, task, &attr)?;
        }
        let id = self.create(attr, info, task, cpu, Origin::Perf);
        self.counters[id.index()].leader = group;
        let process = self.task(by).process;
        self.tasks[process.index()].descriptors.push(id);
        self.activate(id, probe);
        Ok(id)
    }

    /// Row 13, `perf_check_permission`: CAP_PERFMON, with sigtrap CAP_KILL beside it, or else what ptrace asks for.
    fn check_permission(&self, caller: Capabilities, task: Option<TaskId>, attr: &Attr) -> Result<(), Refusal> {
        let may = task.is_none_or(|task| {
            caller == Capabilities::Root
                || caller == Capabilities::Perfmon && !attr.sigtrap
                || self.task(task).capabilities <= caller
        });
        let rule = "another user's task needs CAP_PERFMON, with sigtrap CAP_KILL too (perf_check_permission)";
        if may { Ok(()) } else { Err(Refusal::new(Errno::EACCES, rule)) }
    }

    /// Row 16: who may join a group.
    fn may_follow(
        &self,
        attr: Attr,
        task: Option<TaskId>,
        cpu: Option<CpuId>,
        leader: CounterId,
    ) -> Result<(), Refusal> {
        let invalid = |rule| Err(Refusal::new(Errno::EINVAL, rule));
        let Counter { leader: above, cpu: leads_on, target, context, .. } = *self.counter(leader);
        if above.is_some() {
            return invalid("a counter that follows a leader leads nobody");
        }
        if leads_on != cpu {
            return invalid("a group is of one CPU, or of any");
        }
        // By context, not by task: a swap (7.3) has given the leader's context to another. A counter of a CPU that was
        // offline since is in no context any more, and still of one.
        let leads = context.or_else(|| self.joins(target, leads_on));
        if leads.is_none() || leads != self.joins(task, cpu) {
            return invalid("a group is of one context");
        }
        if attr.pinned {
            return invalid("only the leader of a group can be pinned");
        }
        Ok(())
    }

    /// A refusal after a slot was reserved: the slot is given back. (HB-02: it is not, and nobody can ever close it.)
    pub(crate) fn refused_after_slot(&mut self, refusal: Refusal, task: Option<TaskId>, cpu: Option<CpuId>) -> Refusal {
        if self.policy.has(Delta::HB02) {
            let nothing =
                debugreg::Breakpoint { address: 0, kind: debugreg::Kind::Write, length: debugreg::Length::One };
            self.create(Attr { disabled: true, ..Attr::write(0, 1) }, nothing, task, cpu, Origin::Kernel);
        } else if self.policy.has(Delta::HB01) {
            self.histogram.global -= 1;
        }
        refusal
    }

    /// A new counter that holds its slot and is in no context yet.
    pub(crate) fn create(
        &mut self,
        attr: Attr,
        info: debugreg::Breakpoint,
        target: Option<TaskId>,
        cpu: Option<CpuId>,
        origin: Origin,
    ) -> CounterId {
        let id = CounterId::from(self.counters.len());
        self.counters.push(Counter {
            attr,
            info,
            target,
            cpu,
            context: None,
            leader: None,
            enabled: !attr.disabled,
            state: if attr.disabled { State::Off } else { State::Inactive },
            count: 0,
            origin,
            since: self.clock,
        });
        if self.policy.keeps_numbers() {
            self.toggle_slot(id, true);
        }
        id
    }

    /// A counter ends: its slot is free again.
    pub(crate) fn bury(&mut self, id: CounterId) {
        if self.policy.keeps_numbers() && self.counter(id).is_live() {
            self.toggle_slot(id, false);
        }
        let counter = &mut self.counters[id.index()];
        counter.state = State::Dead;
        counter.enabled = false;
    }

    /// Lets a new counter join those that are scheduled.
    pub(crate) fn activate<P: Probe>(&mut self, id: CounterId, probe: &mut P) {
        match self.policy.host {
            HostHalf::Perf => self.add_to_context(id, probe),
            HostHalf::Thread => self.thread_arm(id, probe),
        }
    }

    /// Closes the last descriptor of a counter.
    pub(crate) fn close<P: Probe>(&mut self, id: CounterId, probe: &mut P) -> Result<Outcome, Misuse> {
        self.open_counter(id)?;
        for task in &mut self.tasks {
            task.descriptors.retain(|&other| other != id);
        }
        self.release(id, probe);
        Ok(Outcome::Ok)
    }

    /// Ends a counter and the copies that fork made of it, and gives the slots back.
    pub(crate) fn release<P: Probe>(&mut self, id: CounterId, probe: &mut P) {
        let copies = (0..self.counters.len()).map(CounterId::from);
        let copies = copies.filter(|&copy| self.counter(copy).is_live() && self.is_copy_of(copy, id));
        for copy in copies.collect::<Vec<_>>() {
            self.end(copy, probe);
        }
        self.end(id, probe);
    }

    fn is_copy_of(&self, copy: CounterId, of: CounterId) -> bool {
        matches!(self.counter(copy).origin, Origin::Inherited(first) | Origin::Wide(first) if first == of)
    }

    fn end<P: Probe>(&mut self, id: CounterId, probe: &mut P) {
        match self.policy.host {
            HostHalf::Perf => self.remove_from_context(id, probe),
            HostHalf::Thread => self.thread_release(id, probe),
        }
        self.bury(id);
    }

    /// `PERF_EVENT_IOC_ENABLE`.
    pub(crate) fn enable<P: Probe>(&mut self, id: CounterId, probe: &mut P) -> Result<Outcome, Misuse> {
        self.open_counter(id)?;
        self.for_each_copy(id, |machine, copy| machine.enable_one(copy, probe));
        Ok(Outcome::Ok)
    }

    /// `PERF_EVENT_IOC_DISABLE`: the slot stays taken.
    pub(crate) fn disable<P: Probe>(&mut self, id: CounterId, probe: &mut P) -> Result<Outcome, Misuse> {
        self.open_counter(id)?;
        self.for_each_copy(id, |machine, copy| machine.disable_one(copy, probe));
        Ok(Outcome::Ok)
    }

    fn for_each_copy(&mut self, id: CounterId, mut act: impl FnMut(&mut Machine, CounterId)) {
        act(self, id);
        for copy in (0..self.counters.len()).map(CounterId::from) {
            if self.counter(copy).is_live() && self.is_copy_of(copy, id) {
                act(self, copy);
            }
        }
    }

    pub(crate) fn enable_one<P: Probe>(&mut self, id: CounterId, probe: &mut P) {
        match self.policy.host {
            HostHalf::Perf => self.perf_enable(id, probe),
            HostHalf::Thread => self.thread_arm_again(id, probe),
        }
    }

    pub(crate) fn disable_one<P: Probe>(&mut self, id: CounterId, probe: &mut P) {
        match self.policy.host {
            HostHalf::Perf => self.perf_disable(id, probe),
            HostHalf::Thread => {
                self.thread_disarm(id, probe);
                self.counters[id.index()].enabled = false;
                self.set_state(id, State::Off);
            }
        }
    }

    /// `PERF_EVENT_IOC_MODIFY_ATTRIBUTES`: the counter, then its copies, up to the first error.
    pub(crate) fn modify<P: Probe>(
        &mut self,
        id: CounterId,
        changes: Changes,
        probe: &mut P,
    ) -> Result<Outcome, Misuse> {
        let (wanted, fixed) = changes.applied_to(self.open_counter(id)?.attr);
        // The caller is one who has a descriptor.
        let caller = self.tasks.iter().find(|task| task.descriptors.contains(&id));
        let caller = caller.map_or(Capabilities::Root, |task| task.capabilities);
        let mut result = Outcome::Ok;
        self.for_each_copy(id, |machine, copy| {
            if result == Outcome::Ok
                && let Err(refusal) = machine.modify_one(copy, wanted, fixed, caller, probe)
            {
                result = Outcome::Refused(refusal);
            }
        });
        Ok(result)
    }

    /// `modify_user_hw_breakpoint`: disable, parse into a local, compare what is fixed for life, commit, enable. On an
    /// error the old settings stay, and the counter runs again only if its last accepted `attr.disabled` was 0: a counter
    /// that was enabled by ioctl stays off (M7).
    pub(crate) fn modify_one<P: Probe>(
        &mut self,
        id: CounterId,
        wanted: Attr,
        changes_fixed: bool,
        caller: Capabilities,
        probe: &mut P,
    ) -> Result<(), Refusal> {
        // 1
        self.disable_one(id, probe);
        // 2
        let parsed = parse(&wanted, caller, &self.options).and_then(|info| {
            const FIXED: &str =
                "only bp_addr, bp_type, bp_len and disabled may change in a life (modify_user_hw_breakpoint_check)";
            if changes_fixed { Err(Refusal::new(Errno::EINVAL, FIXED)) } else { Ok(info) }
        });
        // 3, 4
        if let Ok(info) = parsed {
            let counter = &mut self.counters[id.index()];
            counter.attr = wanted;
            counter.info = info;
        }
        // 5
        if !self.counter(id).attr.disabled {
            self.enable_one(id, probe);
        }
        parsed.map(|_| ())
    }
}
