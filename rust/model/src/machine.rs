//! The machine: CPUs, tasks, counters, contexts and vCPUs as one value; an event in, an outcome out.

use debugreg::announce::{self, Loan};
use debugreg::{Bank, Cost, Dr7, Slot, bank};

use crate::context::Context;
use crate::counter::{Counter, Origin};
use crate::event::{Event, Holder, Kgdb, Misuse, Nmi, Outcome};
use crate::histogram::Histogram;
use crate::kgdb::Debugger;
use crate::mutant::Mutant;
use crate::part::Part;
use crate::policy::{Delta, HostHalf, Policy, WORDS};
use crate::step::{Mark, On, Probe, counter_of};
use crate::task::{Capabilities, Life, Task};
use crate::tcg::Watchpoints;
use crate::vcpu::Vcpu;
use crate::{ContextId, CounterId, CpuId, TaskId, VcpuId};

/// Whose virtualisation.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Vendor {
    /// VMX.
    Intel,
    /// SVM.
    Amd,
}

impl Vendor {
    /// DR7 as the exit of a #DB saves it: on SVM as a handler would have found it, without GD (APM vol. 2, 15.12.2); on VMX
    /// as it was.
    pub const fn dr7_after_db(self, dr7: u64) -> u64 {
        match self {
            Vendor::Intel => dr7,
            Vendor::Amd => dr7 & !Dr7::GD,
        }
    }

    /// As the command line writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Vendor::Intel => "intel",
            Vendor::Amd => "amd",
        }
    }
}

/// What the CPUs are.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Processor {
    /// As the manuals say.
    Real,
    /// QEMU's emulation (TCG), with its known faults: `cpu=tcg`.
    Tcg,
}

/// What kind of machine: the keys of a scenario's `machine` line.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "the keys of a machine line")]
pub struct Options {
    /// Number of CPUs.
    pub cpus: usize,
    /// Whose virtualisation.
    pub vendor: Vendor,
    /// Slots that counters may use, at most 4.
    pub slots: usize,
    /// `kernel.perf_event_paranoid`.
    pub paranoid: i32,
    /// X86_FEATURE_HYPERVISOR: the host itself is a guest.
    pub hypervisor: bool,
    /// Events are delivered by FRED: an NMI does not disarm, and #DB does not go through DR6.
    pub fred: bool,
    /// DR6 shows the bits of matching but disabled slots.
    pub disabled_match: bool,
    /// The kernel has kprobes, and thus a list of code that must not be probed; without it execute breakpoints on kernel
    /// addresses are refused altogether.
    pub kprobes: bool,
    /// The processor tells a #VMEXIT handler the operands (SVM's decode assists); without them KVM emulates a MOV DR.
    pub decode_assists: bool,
    /// `dbg_late_init` has not run yet: kgdb writes the registers itself.
    pub kgdb_early: bool,
    /// What the CPUs are.
    pub processor: Processor,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            cpus: 1,
            vendor: Vendor::Amd,
            slots: 4,
            paranoid: 2,
            hypervisor: true,
            fred: false,
            disabled_match: false,
            kprobes: true,
            decode_assists: true,
            kgdb_early: false,
            processor: Processor::Real,
        }
    }
}

/// One CPU.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Cpu {
    /// Its slots and registers.
    pub bank: Bank,
    /// The counters bound to it.
    pub(crate) context: ContextId,
    /// By slot: when kgdb took it.
    pub announced: [u64; 4],
    /// Under the delta `announce`: what a guest was lent, from its entry to its exit.
    pub(crate) loan: Option<Loan>,
    /// What a policy that is not of this crate remembers of it.
    pub(crate) words: [u64; WORDS],
    /// How an emulator has armed them (`cpu=tcg`).
    pub(crate) watchpoints: Watchpoints,
    /// The task context that is scheduled in (`cpuctx->task_ctx`).
    pub(crate) task_context: Option<ContextId>,
}

/// Who has a CPU.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Turn {
    /// Who runs.
    pub(crate) running: TaskId,
    /// The vCPU whose guest runs, between VM entry and VM exit.
    pub(crate) guest: Option<VcpuId>,
    /// Whether it is there.
    pub(crate) is_online: bool,
}

/// Everything.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine {
    /// What kind of machine.
    pub options: Options,
    /// Who decides when registers are switched.
    pub policy: Policy,
    /// What is wrong with it, on purpose.
    pub mutant: Option<Mutant>,
    pub(crate) cpus: Vec<Part<Cpu>>,
    /// By CPU.
    pub(crate) turns: Vec<Part<Turn>>,
    pub(crate) tasks: Vec<Part<Task>>,
    pub(crate) contexts: Part<Vec<Context>>,
    pub(crate) counters: Part<Vec<Counter>>,
    pub(crate) vcpus: Vec<Part<Vcpu>>,
    /// By vCPU: whether its thread is inside KVM_RUN, on its CPU, between `vcpu_load` and `vcpu_put`.
    pub(crate) in_run: Vec<Part<bool>>,
    /// By vCPU: the thread that runs it.
    threads: Vec<TaskId>,
    pub(crate) debugger: Part<Debugger>,
    pub(crate) histogram: Part<Histogram>,
    /// How many things have happened: additions of tasks and vCPUs, and events.
    pub(crate) clock: u64,
}

impl Machine {
    /// A machine after power-on: every CPU idle, nothing set.
    pub fn new(options: Options, policy: Policy) -> Machine {
        let cpus = (0..options.cpus).map(|cpu| {
            Part::new(Cpu {
                bank: Bank::RESET,
                watchpoints: Watchpoints::default(),
                words: [0; WORDS],
                context: ContextId::from(cpu),
                announced: [0; 4],
                loan: None,
                task_context: None,
            })
        });
        Machine {
            options,
            policy,
            cpus: cpus.collect(),
            turns: vec![Part::new(Turn { running: TaskId::IDLE, guest: None, is_online: true }); options.cpus],
            tasks: vec![Part::new(Task::new(TaskId::IDLE, CpuId(0), Capabilities::Root))],
            mutant: None,
            contexts: Part::new(vec![Context::new(None); options.cpus]),
            counters: Part::default(),
            vcpus: Vec::new(),
            in_run: Vec::new(),
            threads: Vec::new(),
            debugger: Part::default(),
            histogram: Part::new(Histogram::new(options.cpus)),
            clock: 0,
        }
    }

    /// A new task, which runs at once if its CPU is idle.
    pub fn add_task(&mut self, cpu: CpuId, capabilities: Capabilities) -> TaskId {
        let id = self.add_sleeping_task(cpu, capabilities);
        self.clock += 1;
        let turn = &mut self.turns[cpu.index()];
        if turn.running == TaskId::IDLE {
            turn.running = id;
        }
        id
    }

    /// A new task that runs nowhere yet.
    pub fn add_sleeping_task(&mut self, cpu: CpuId, capabilities: Capabilities) -> TaskId {
        let id = TaskId::from(self.tasks.len());
        self.tasks.push(Part::new(Task::new(id, cpu, capabilities)));
        id
    }

    /// A place for a child that fork will fill.
    pub fn add_unborn_task(&mut self) -> TaskId {
        let id = self.add_sleeping_task(CpuId(0), Capabilities::Root);
        self.tasks[id.index()].life = Life::Unborn;
        id
    }

    /// A new vCPU, whose thread is `task`.
    pub fn add_vcpu(&mut self, task: TaskId) -> VcpuId {
        self.clock += 1;
        let id = VcpuId::from(self.vcpus.len());
        self.vcpus.push(Part::default());
        self.in_run.push(Part::new(false));
        self.threads.push(task);
        id
    }

    /// A CPU.
    #[inline]
    pub fn cpu(&self, id: CpuId) -> &Cpu {
        &self.cpus[id.index()]
    }

    /// A task.
    #[inline]
    pub fn task(&self, id: TaskId) -> &Task {
        &self.tasks[id.index()]
    }

    /// A counter.
    #[inline]
    pub fn counter(&self, id: CounterId) -> &Counter {
        &self.counters[id.index()]
    }

    /// Every counter that there has been, those that have ended included.
    pub fn counters(&self) -> impl Iterator<Item = (CounterId, &Counter)> {
        (0..).map(CounterId).zip(self.counters.iter())
    }

    /// The counter that somebody opened, of which this one may be a copy that fork made.
    pub fn original(&self, id: CounterId) -> CounterId {
        match self.counter(id).origin {
            Origin::Inherited(original) | Origin::Wide(original) => original,
            Origin::Perf | Origin::Ptrace(_) | Origin::Kernel | Origin::Kgdb(_) => id,
        }
    }

    /// A vCPU.
    #[inline]
    pub fn vcpu(&self, id: VcpuId) -> &Vcpu {
        &self.vcpus[id.index()]
    }

    /// The thread that runs a vCPU.
    #[inline]
    pub fn thread(&self, id: VcpuId) -> TaskId {
        self.threads[id.index()]
    }

    /// The vCPUs of a thread.
    pub(crate) fn vcpus_of(&self, thread: TaskId) -> impl Iterator<Item = VcpuId> + use<'_> {
        (0..).map(VcpuId).zip(&self.threads).filter(move |&(_, &of)| of == thread).map(|(id, _)| id)
    }

    /// Who runs on a CPU.
    #[inline]
    pub fn running(&self, cpu: CpuId) -> TaskId {
        self.turns[cpu.index()].running
    }

    /// The vCPU whose guest runs on a CPU, between VM entry and VM exit.
    #[inline]
    pub fn guest(&self, cpu: CpuId) -> Option<VcpuId> {
        self.turns[cpu.index()].guest
    }

    /// Whether a CPU is there.
    #[inline]
    pub fn is_online(&self, cpu: CpuId) -> bool {
        self.turns[cpu.index()].is_online
    }

    #[inline]
    pub(crate) fn context(&self, id: ContextId) -> &Context {
        &self.contexts[id.index()]
    }

    /// One more thing has happened.
    #[inline]
    pub(crate) fn tick(&mut self) {
        self.clock += 1;
    }

    /// Whether a task is the thread of a vCPU, inside KVM_RUN.
    #[inline]
    pub(crate) fn is_in_run(&self, task: TaskId) -> bool {
        self.threads.iter().zip(&self.in_run).any(|(&thread, in_run)| thread == task && *in_run.unseen())
    }

    /// How many things have happened: additions of tasks and vCPUs, and events.
    pub fn clock(&self) -> u64 {
        self.clock
    }

    /// How many CPUs there are.
    pub fn cpu_count(&self) -> usize {
        self.cpus.len()
    }

    /// Whether a task is on its CPU.
    #[inline]
    pub fn is_running(&self, task: TaskId) -> bool {
        self.running(self.task(task).cpu) == task
    }

    /// The cheap test, as KVM asks it: whether the shadow of a CPU is active; up to 2.6.32, whether the thread that runs
    /// has TIF_DEBUG. Nothing else is looked at.
    #[inline]
    pub fn breakpoints_active(&self, cpu: CpuId) -> bool {
        match self.policy.host {
            HostHalf::Perf => debugreg::Dr7(self.cpu(cpu).bank.control).any_global(),
            HostHalf::Thread => self.task(self.running(cpu)).thread.is_debugged(),
        }
    }

    /// Whether the policy's kernel has a shadow to obtain the registers from.
    fn has_shadow(&self) -> Result<(), Misuse> {
        match self.policy.host {
            HostHalf::Perf => Ok(()),
            HostHalf::Thread => Err(Misuse::NotExpressible("the shadow and hw_breakpoint_restore came with 2.6.33")),
        }
    }

    /// Whether a vCPU's guest runs.
    pub fn guest_runs(&self, id: VcpuId) -> bool {
        self.guest(self.task(self.thread(id)).cpu) == Some(id)
    }

    /// Says that a task is a 32-bit program.
    pub fn set_32bit(&mut self, task: TaskId, is_32bit: bool) {
        self.tasks[task.index()].is_32bit = is_32bit;
    }

    /// Sets CR4.DE of a guest.
    pub fn set_debug_extensions(&mut self, vcpu: VcpuId, de: bool) {
        self.vcpus[vcpu.index()].debug_extensions = de;
    }

    /// What everything has cost so far.
    pub fn cost(&self) -> Cost {
        self.cpus.iter().fold(Cost::default(), |sum, cpu| sum + cpu.bank.cost)
    }

    /// What a CPU has cost so far, to be added to: nothing that happens depends on it.
    #[inline]
    pub(crate) fn cost_of(&mut self, cpu: CpuId) -> &mut Cost {
        &mut self.cpus[cpu.index()].aside().bank.cost
    }

    /// How many accesses to registers, VMCS or VMCB a CPU has made.
    #[inline]
    pub(crate) fn touched(&self, cpu: CpuId) -> u64 {
        self.cpus[cpu.index()].unseen().bank.cost.touched()
    }

    /// Performs an event.
    ///
    /// # Errors
    ///
    /// [`Misuse`] if the event makes no sense here; nothing was done then.
    pub fn apply<P: Probe>(&mut self, event: &Event, probe: &mut P) -> Result<Outcome, Misuse> {
        // Handed through as it is: taken apart and put together again, it is copied at every event.
        let outcome = self.perform(event, probe);
        On { machine: self, cpu: CpuId(0), probe }.catch_up();
        self.clock += u64::from(outcome.is_ok());
        outcome
    }

    fn perform<P: Probe>(&mut self, event: &Event, probe: &mut P) -> Result<Outcome, Misuse> {
        if let Some(master) = self.kgdb_master()
            && !matches!(
                event,
                Event::Kgdb(..)
                    | Event::Registers(_)
                    | Event::Hardware(_)
                    | Event::Owed(_)
                    | Event::Slots(_)
                    | Event::Count(_)
            )
        {
            return Err(Misuse::InKgdb(master));
        }
        match *event {
            Event::PerfEventOpen { by, attr, task, cpu, group } => {
                self.perf_event_open(by, attr, task, cpu, group, probe)
            }
            Event::Close(counter) => self.close(counter, probe),
            Event::Enable(counter) => self.enable(counter, probe),
            Event::Disable(counter) => self.disable(counter, probe),
            Event::Count(counter) => Ok(Outcome::Value(self.open_counter(counter)?.count)),
            Event::Modify(counter, changes) => self.modify(counter, changes, probe),
            Event::PtracePoke { tracer, tracee, dr, value } => self.ptrace_poke(tracer, tracee, dr, value, probe),
            Event::PtracePeek { tracer, tracee, dr } => self.ptrace_peek(tracer, tracee, dr),
            Event::Attach { tracer, tracee } => self.attach(tracer, tracee),
            Event::Detach { tracer, tracee } => self.detach(tracer, tracee),
            Event::Fork { parent, child, thread } => self.fork(parent, child, thread),
            Event::Exec(task) => self.exec(task, probe),
            Event::Exit(task) => self.exit(task, probe),
            Event::Migrate(task, cpu) => self.migrate(task, cpu, probe),
            Event::TaskAccess { task, access, insn, kernel } => self.task_access(task, access, insn, kernel, probe),
            Event::GuestAccess { vcpu, access, insn, emulated } => {
                self.guest_access(vcpu, access, insn, emulated, probe)
            }
            Event::MovToDr { vcpu, dr, value, cpl } => self.mov_to_dr(vcpu, dr, value, cpl, probe),
            Event::MovFromDr { vcpu, dr, cpl } => self.mov_from_dr(vcpu, dr, cpl, probe),
            Event::SchedSwitch(cpu, next) => {
                self.online(cpu)?;
                self.host_cpu(cpu)?;
                if next != TaskId::IDLE {
                    self.alive(next)?;
                    if self.task(next).cpu != cpu {
                        return Err(Misuse::OtherCpu(next, self.task(next).cpu));
                    }
                }
                self.sched_switch(cpu, next, probe);
                Ok(Outcome::Ok)
            }
            Event::Registers(cpu) => {
                self.has_shadow()?;
                Ok(Outcome::Registers(bank::registers(&mut On { machine: self, cpu, probe })))
            }
            Event::Refresh(cpu) => {
                self.has_shadow()?;
                self.online(cpu)?;
                self.host_cpu(cpu)?;
                self.refresh(cpu, probe);
                Ok(Outcome::Ok)
            }
            Event::Hardware(cpu) => Ok(Outcome::Registers(self.cpu(cpu).bank.hardware)),
            Event::Owed(cpu) => Ok(Outcome::Registers(self.owed_registers(cpu))),
            Event::Slots(cpu) => Ok(Outcome::Slots(self.slots(cpu))),
            Event::Offline(cpu) => self.offline(cpu, probe),
            Event::Online(cpu) => Ok(self.bring_online(cpu, probe)),
            Event::Nmi(cpu, what) => {
                self.online(cpu)?;
                if matches!(what, Nmi::KgdbSet(..) | Nmi::KgdbClear(_)) {
                    self.has_kgdb()?;
                }
                Ok(self.nmi(cpu, what, probe))
            }
            Event::Kgdb(cpu, command) => self.kgdb(cpu, command, probe),
            Event::RegisterHwBreakpoint { on, attr } => self.register_hw_breakpoint(on, attr, probe),
            Event::UnregisterHwBreakpoint(counter) => self.unregister(counter, probe),
            Event::ModifyWideLocal { cpu, counter, attr } => self.modify_wide_local(cpu, counter, attr, probe),
            Event::VmEntry(vcpu) => self.vm_entry(vcpu, probe),
            Event::VmExit(vcpu, reason) => self.vm_exit(vcpu, reason, probe),
            Event::SetGuestDebug(vcpu, debug) => self.set_guest_debug(vcpu, debug, probe),
            Event::GetDebugregs(vcpu) => self.get_debugregs(vcpu, probe),
            Event::SetDebugregs { vcpu, dr, dr6, dr7 } => self.set_debugregs(vcpu, dr, dr6, dr7, probe),
            Event::Init(vcpu) => self.init(vcpu, probe),
            Event::Smi(vcpu) => self.smi(vcpu, probe),
            Event::Rsm(vcpu) => self.rsm(vcpu, probe),
            Event::TaskSwitch(vcpu) => self.task_switch(vcpu, probe),
            Event::NestedEntry { vcpu, dr6, dr7, intercepts_db } => {
                self.nested_entry(vcpu, dr6, dr7, intercepts_db, probe)
            }
            Event::NestedExit(vcpu) => self.nested_exit(vcpu, probe),
        }
    }

    /// A task switch. The hook counts as skipped if it touched no register.
    pub fn sched_switch<P: Probe>(&mut self, cpu: CpuId, next: TaskId, probe: &mut P) {
        let prev = std::mem::replace(&mut self.turns[cpu.index()].running, next);
        let before = self.touched(cpu);
        if prev != next {
            self.preempt_vcpus(prev, cpu, probe);
            match self.policy.host {
                HostHalf::Perf => self.perf_switch(cpu, prev, next, probe),
                HostHalf::Thread => self.thread_switch(cpu, next, probe),
            }
        }
        self.count_skip(cpu, before);
    }

    /// Counts a hook call that neither executed a MOV DR nor accessed the VMCS or VMCB.
    #[inline]
    pub(crate) fn count_skip(&mut self, cpu: CpuId, touched_before: u64) {
        let cost = self.cost_of(cpu);
        cost.skips += u64::from(cost.touched() == touched_before);
    }

    /// Who holds which slot.
    pub fn slots(&self, cpu: CpuId) -> [Holder; 4] {
        let owners = match self.policy.host {
            HostHalf::Perf => self.cpu(cpu).bank.owner.map(counter_of),
            HostHalf::Thread => self.task(self.running(cpu)).thread.owner,
        };
        std::array::from_fn(|i| match owners[i] {
            Some(counter) if matches!(self.counter(counter).origin, Origin::Kgdb(_)) => Holder::Kgdb,
            Some(counter) => Holder::Counter(counter),
            None if self.is_announced(cpu, slot_of(i as u8)) => Holder::Kgdb,
            None => Holder::Nobody,
        })
    }

    /// An NMI. In a guest it is a VM exit, and its handler runs before KVM has given the host its registers back
    /// (`vmx_vcpu_enter_exit`, STGI in `svm_vcpu_run`).
    fn nmi<P: Probe>(&mut self, cpu: CpuId, what: Nmi, probe: &mut P) -> Outcome {
        match self.guest(cpu) {
            None => self.nmi_handler(cpu, what, probe),
            Some(guest) => {
                self.exit_and_enter(guest, cpu, probe, |machine, probe| machine.nmi_handler(cpu, what, probe))
            }
        }
    }

    /// With IDT delivery everything is disarmed while the handler runs (10); FRED lets it be.
    fn nmi_handler<P: Probe>(&mut self, cpu: CpuId, what: Nmi, probe: &mut P) -> Outcome {
        let saved = (!self.options.fred).then(|| self.db_save(cpu, probe));
        if saved.is_some() {
            probe.mark(self, cpu, Mark::Nmi);
        }
        let outcome = match what {
            Nmi::Plain => Outcome::Ok,
            Nmi::KgdbSet(kind, address, length) => self.kgdb_in_nmi(cpu, Kgdb::Set(kind, address, length), probe),
            Nmi::KgdbClear(address) => self.kgdb_in_nmi(cpu, Kgdb::Clear(address), probe),
            Nmi::KgdbAnnounce(slot) => self.kgdb_announce(cpu, slot_of(slot), probe),
            Nmi::KgdbRelease(slot) => self.kgdb_release(cpu, slot_of(slot), probe),
        };
        if let Some(saved) = saved {
            self.db_restore(cpu, saved, probe);
        }
        outcome
    }

    /// `hw_breakpoint_restore`.
    fn refresh<P: Probe>(&mut self, cpu: CpuId, probe: &mut P) {
        let announces = self.policy.has(Delta::Announce);
        let mut on = On { machine: self, cpu, probe };
        if announces { announce::refresh(&mut on) } else { bank::refresh(&mut on) }
    }

    /// Says that the hardware is refreshed, for those who compare with a traced kernel.
    pub(crate) fn refresh_marked<P: Probe>(on: &mut On<'_, P>) {
        on.mark(Mark::Restore);
        bank::refresh(on);
    }

    pub(crate) fn alive(&self, task: TaskId) -> Result<(), Misuse> {
        match self.task(task).life {
            Life::Alive => Ok(()),
            Life::Unborn => Err(Misuse::Unborn(task)),
            Life::Exited => Err(Misuse::Exited(task)),
        }
    }

    /// A task whose fork has come to something.
    pub(crate) fn born(&self, task: TaskId) -> Result<(), Misuse> {
        if self.task(task).life == Life::Unborn { Err(Misuse::Unborn(task)) } else { Ok(()) }
    }

    /// The CPU on which a task runs, in host context.
    pub(crate) fn running_on(&self, task: TaskId) -> Result<CpuId, Misuse> {
        self.alive(task)?;
        if !self.is_running(task) {
            return Err(Misuse::NotRunning(task));
        }
        let cpu = self.task(task).cpu;
        self.host_cpu(cpu)?;
        Ok(cpu)
    }

    /// A CPU is not inside a guest.
    pub(crate) fn host_cpu(&self, cpu: CpuId) -> Result<(), Misuse> {
        match self.guest(cpu) {
            Some(guest) => Err(Misuse::InGuest(cpu, guest)),
            None => Ok(()),
        }
    }

    pub(crate) fn open_counter(&self, id: CounterId) -> Result<&Counter, Misuse> {
        let counter = self.counter(id);
        if counter.is_live() { Ok(counter) } else { Err(Misuse::Closed(id)) }
    }
}

fn slot_of(index: u8) -> Slot {
    Slot::new(usize::from(index)).expect("the language has four slots")
}
