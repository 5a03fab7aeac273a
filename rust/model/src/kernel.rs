//! Breakpoints of users inside the kernel, and CPUs that come and go.
//!
//! Source: `register_user_hw_breakpoint`, `register_wide_hw_breakpoint`, `unregister_hw_breakpoint`
//! (kernel/events/hw_breakpoint.c), `perf_event_create_kernel_counter`, `perf_event_exit_cpu_context`
//! (kernel/events/core.c), `cpu_init` (arch/x86/kernel/cpu/common.c), 6.17.

use debugreg::bank;

use crate::counter::{Attr, Origin, State, parse};
use crate::event::{Errno, Misuse, Outcome, Refusal, Scope};
use crate::machine::Machine;
use crate::policy::{Delta, HostHalf};
use crate::step::{On, Probe, owner};
use crate::task::Capabilities;
use crate::{CounterId, CpuId, TaskId};

impl Machine {
    /// Registers a breakpoint of the kernel. What `perf_event_open` checks of its caller is not asked here.
    pub(crate) fn register_hw_breakpoint<P: Probe>(
        &mut self,
        on: Scope,
        attr: Attr,
        probe: &mut P,
    ) -> Result<Outcome, Misuse> {
        if self.policy.host == HostHalf::Thread {
            return Err(Misuse::NotExpressible("the kernel's own breakpoints came with 2.6.33"));
        }
        if let Scope::Task(task) = on {
            self.alive(task)?;
        }
        let made = match on {
            Scope::Cpu(cpu) => self.kernel_counter(attr, None, Some(cpu), Origin::Kernel, probe),
            Scope::Task(task) => self.kernel_counter(attr, Some(task), None, Origin::Kernel, probe),
            Scope::Wide => self.register_wide(attr, probe),
        };
        Ok(match made {
            Ok(id) => Outcome::Bound(id),
            Err(refusal) => Outcome::Refused(refusal),
        })
    }

    /// One for each CPU that is online, or none at all.
    fn register_wide<P: Probe>(&mut self, attr: Attr, probe: &mut P) -> Result<CounterId, Refusal> {
        let mut first = None;
        for cpu in self.online_cpus() {
            let origin = first.map_or(Origin::Kernel, Origin::Wide);
            match self.kernel_counter(attr, None, Some(cpu), origin, probe) {
                Ok(id) => first = first.or(Some(id)),
                Err(refusal) => {
                    if let Some(first) = first {
                        self.release(first, probe);
                    }
                    return Err(refusal);
                }
            }
        }
        Ok(first.expect("the CPU that registers is online"))
    }

    /// `perf_event_create_kernel_counter`.
    fn kernel_counter<P: Probe>(
        &mut self,
        attr: Attr,
        task: Option<TaskId>,
        cpu: Option<CpuId>,
        origin: Origin,
        probe: &mut P,
    ) -> Result<CounterId, Refusal> {
        self.reserve(task, cpu)?;
        let info = parse(&attr, Capabilities::Root, &self.options)
            .map_err(|refusal| self.refused_after_slot(refusal, task, cpu))?;
        if cpu.is_some_and(|cpu| !self.is_online(cpu)) {
            return Err(Refusal::new(Errno::ENODEV, "the CPU is offline"));
        }
        let id = self.create(attr, info, task, cpu, origin);
        self.activate(id, probe);
        Ok(id)
    }

    /// `unregister_hw_breakpoint`, `unregister_wide_hw_breakpoint`.
    pub(crate) fn unregister<P: Probe>(&mut self, id: CounterId, probe: &mut P) -> Result<Outcome, Misuse> {
        self.open_counter(id)?;
        if self.counter(id).origin != Origin::Kernel {
            return Err(Misuse::NotExpressible("what perf_event_open made is closed, not unregistered"));
        }
        self.release(id, probe);
        Ok(Outcome::Ok)
    }

    /// `modify_wide_hw_breakpoint_local`: from any context, on the CPU where it runs.
    pub(crate) fn modify_wide_local<P: Probe>(
        &mut self,
        cpu: CpuId,
        id: CounterId,
        attr: Attr,
        probe: &mut P,
    ) -> Result<Outcome, Misuse> {
        self.open_counter(id)?;
        self.online(cpu)?;
        self.host_cpu(cpu)?;
        let parts = (0..self.counters.len()).map(CounterId::from).filter(|&part| self.counter(part).is_live());
        let mut parts = parts.filter(|&part| part == id || self.counter(part).origin == Origin::Wide(id));
        let Some(part) = parts.find(|&part| self.counter(part).cpu == Some(cpu)) else {
            return Err(Misuse::NotWide(id));
        };
        if self.counter(id).origin != Origin::Kernel {
            return Err(Misuse::NotWide(id));
        }
        let info = match parse(&attr, Capabilities::Root, &self.options) {
            Ok(info) => info,
            Err(refusal) => return Ok(Outcome::Refused(refusal)),
        };
        let (old, state) = (self.counter(part).info, self.counter(part).state);
        if state == State::Active {
            let clears = !self.policy.has(Delta::WprobeOr);
            bank::repoint(&mut On { machine: self, cpu, probe }, owner(part), old, info, clears);
        }
        let counter = &mut self.counters[part.index()];
        counter.info = info;
        counter.attr = Attr { disabled: counter.attr.disabled, ..attr };
        Ok(Outcome::Ok)
    }

    /// A CPU goes offline: who runs there runs nowhere, and the CPU's own counters leave their context for good, though
    /// not their slots.
    pub(crate) fn offline<P: Probe>(&mut self, cpu: CpuId, probe: &mut P) -> Result<Outcome, Misuse> {
        if !self.is_online(cpu) {
            return Ok(Outcome::Ok);
        }
        self.host_cpu(cpu)?;
        if self.online_cpus().len() == 1 {
            return Ok(Outcome::Refused(Refusal::new(Errno::EBUSY, "the last CPU cannot go offline")));
        }
        self.sched_switch(cpu, TaskId::IDLE, probe);
        let context = self.cpu(cpu).context;
        for id in self.context(context).counters().collect::<Vec<_>>() {
            self.remove_from_context(id, probe);
        }
        self.turns[cpu.index()].is_online = false;
        Ok(Outcome::Ok)
    }

    /// A CPU comes up. Nothing that was bound to it comes back.
    pub(crate) fn bring_online<P: Probe>(&mut self, cpu: CpuId, probe: &mut P) -> Outcome {
        if !self.is_online(cpu) {
            bank::bring_up(&mut On { machine: self, cpu, probe });
            self.turns[cpu.index()].is_online = true;
        }
        Outcome::Ok
    }

    /// The CPUs that are there.
    pub(crate) fn online_cpus(&self) -> Vec<CpuId> {
        (0..self.cpu_count()).map(CpuId::from).filter(|&cpu| self.is_online(cpu)).collect()
    }

    /// A CPU is online.
    pub(crate) fn online(&self, cpu: CpuId) -> Result<(), Misuse> {
        if self.is_online(cpu) { Ok(()) } else { Err(Misuse::Offline(cpu)) }
    }
}
