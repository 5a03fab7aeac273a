//! A trace under a policy: its rows as events on the model, and what they cost.

mod descriptors;
mod guests;
mod unseen;

use std::collections::{BTreeMap, HashMap, HashSet};

use debugreg::Cost;
use debugreg_model::{
    Capabilities, CounterId, CpuId, Event, GuestDebug, Machine, Mark, Misuse, Options, Outcome, Policy, Probe, Step,
    TaskId, VcpuId,
};

use crate::input::{Input, Row, Trace};
use crate::observe::{Observed, Observer};
use crate::predict::{Predictions, Window};
use crate::strangers::Unseen;
use crate::verify::{Verify, verify};
use descriptors::{Interrupt, changes, wanted};
use guests::{Stay, Told};

/// What a replay found.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Under which policy.
    pub policy: Policy,
    /// How many events the rows made.
    pub events: u64,
    /// What they cost.
    pub cost: Cost,
    /// What each phase cost.
    pub phases: Vec<PhaseCost>,
    /// The policy would have trapped accesses that the trace cannot show: the cost is a lower bound.
    pub lower_bound: bool,
    /// Events that the policy's kernel has no word for: the line and why.
    pub not_expressible: Vec<(u32, String)>,
    /// Lines whose effect the trace does not determine, and why: they predict nothing.
    pub undetermined: Vec<(u32, String)>,
    /// Its manners.
    pub observed: Observed,
    /// The comparison with the kernel, if it was asked for.
    pub verify: Option<Verify>,
}

/// What a phase cost.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PhaseCost {
    /// Its name; what comes before the first mark is "start".
    pub name: String,
    /// What it cost.
    pub cost: Cost,
    /// Whether something in it was not expressible under the policy.
    pub partial: bool,
}

/// Performs a trace. `going` is asked now and then with the number of rows done, and stops the replay by answering
/// false.
///
/// # Errors
///
/// `None` if it was stopped.
pub fn replay(
    trace: &Trace,
    policy: Policy,
    options: Options,
    with_verify: bool,
    mut going: impl FnMut(usize) -> bool,
) -> Option<Replay> {
    let options = Options { cpus: trace.cpus, ..options };
    let mut replayer = Replayer::new(trace, policy, options, with_verify);
    for (at, row) in trace.rows.iter().enumerate() {
        if at % 4096 == 0 && !going(at) {
            return None;
        }
        while let Some(&(_, acts)) = trace.acts.get(replayer.acted).filter(|&&(before, _)| before as usize == at) {
            replayer.acted += 1;
            replayer.act(&trace.rows[acts as usize], row, at);
        }
        replayer.row(row, at);
    }
    Some(replayer.finish())
}

/// Sees what the machine does, for whoever wants to compare.
struct Watch {
    line: u32,
    observer: Observer,
    predictions: Option<Predictions>,
}

impl Watch {
    /// The window that is open on a CPU, if somebody wants to compare.
    fn window(&mut self, cpu: CpuId) -> Option<&mut Window> {
        self.predictions.as_mut()?.window(cpu)
    }
}

impl Probe for Watch {
    fn step(&mut self, cpu: CpuId, step: Step) {
        if let Some(predictions) = &mut self.predictions {
            predictions.step(cpu, step);
        }
    }

    fn mark(&mut self, machine: &Machine, cpu: CpuId, mark: Mark) {
        if mark == Mark::Entry {
            self.observer.at_entry(machine, cpu, self.line);
        }
        if let Some(predictions) = &mut self.predictions {
            predictions.mark(machine, cpu, mark);
        }
    }
}

struct Replayer<'a> {
    trace: &'a Trace,
    machine: Machine,
    watch: Watch,
    /// The tasks of the pids that are alive.
    tasks: HashMap<i32, TaskId>,
    /// The highest pid that a fork line has announced.
    youngest: i32,
    /// The thread that last did something with a vCPU.
    vmm: Option<TaskId>,
    /// Before the first line nobody had a breakpoint, and there was no vCPU.
    quiet_before: bool,
    /// The row that is replayed.
    at: usize,
    /// How many of the trace's gaps are behind.
    gaps: usize,
    /// What may have been set without a line.
    unseen: Unseen,
    /// Of those who hold something that is not told: the counter that it is.
    altered: Vec<(usize, CounterId)>,
    /// Tasks that a fork line has announced.
    born: HashSet<i32>,
    /// By tracee: the registers into which its tracer has put addresses.
    poked: HashMap<i32, u8>,
    /// By thread and number: vCPUs that are to be used for the first time.
    created: HashSet<(i32, u32)>,
    /// By vCPU.
    told: Vec<Told>,
    /// By thread and number.
    vcpus: HashMap<(i32, u32), VcpuId>,
    /// The vCPU that a thread ran last.
    last_vcpu: HashMap<i32, VcpuId>,
    /// By pid: what its descriptors are, if they are breakpoints.
    descriptors: HashMap<i32, BTreeMap<i32, CounterId>>,
    /// How many of the trace's out-of-place acts have been done.
    acted: usize,
    /// What interrupts a CPU that runs a guest: done after its next VM exit.
    interrupts: Vec<(CpuId, Interrupt)>,
    /// By pid of a task that exits: the counters whose descriptors are still open.
    closing: HashMap<i32, Vec<CounterId>>,
    /// CPUs whose current task has been seen.
    known: Vec<bool>,
    /// How many entries are behind.
    entries: usize,
    /// By vCPU: the stay that it is in, and the access that its last exit was about.
    stays: HashMap<VcpuId, Stay>,
    phases: Vec<PhaseCost>,
    phase_start: Cost,
    lower_bound: bool,
    not_expressible: Vec<(u32, String)>,
    undetermined: Vec<(u32, String)>,
    events: u64,
}

impl<'a> Replayer<'a> {
    fn new(trace: &'a Trace, policy: Policy, options: Options, with_verify: bool) -> Self {
        let from_power_on = trace.steps.as_ref().is_some_and(|steps| steps.from_power_on);
        let quiet_before = from_power_on || trace.quiet_before;
        Replayer {
            trace,
            machine: Machine::new(options, policy),
            watch: Watch {
                line: 0,
                observer: Observer::default(),
                predictions: with_verify.then(|| Predictions::new(trace.cpus)),
            },
            tasks: HashMap::from([(0, TaskId::IDLE)]),
            youngest: 0,
            vmm: None,
            quiet_before,
            at: 0,
            gaps: 0,
            unseen: Unseen { spans: if quiet_before { Vec::new() } else { vec![(0, 0)] }, holders: Vec::new() },
            altered: Vec::new(),
            born: HashSet::new(),
            poked: HashMap::new(),
            created: HashSet::new(),
            told: Vec::new(),
            vcpus: HashMap::new(),
            last_vcpu: HashMap::new(),
            descriptors: HashMap::new(),
            acted: 0,
            interrupts: Vec::new(),
            closing: HashMap::new(),
            known: vec![false; trace.cpus],
            entries: 0,
            stays: HashMap::new(),
            phases: Vec::new(),
            phase_start: Cost::default(),
            lower_bound: false,
            not_expressible: Vec::new(),
            undetermined: Vec::new(),
            events: 0,
        }
    }

    fn row(&mut self, row: &Row, at: usize) {
        self.at = at;
        let cpu = CpuId(u32::from(row.cpu));
        self.watch.line = row.line;
        while self.trace.gaps.get(self.gaps).is_some_and(|&gap| gap <= row.line) {
            self.gaps += 1;
            self.unseen.spans.push((row.line, row.line));
            self.forget_guests();
        }
        self.know(cpu, row.pid);
        if let Some(predictions) = &mut self.watch.predictions {
            predictions.act(cpu, next_line(self.trace, cpu, at + 1));
            predictions.open_window(&self.machine, cpu, at);
        }
        self.input(row, cpu);
    }

    /// What a row does elsewhere than where it stands: in the window that `before` ends.
    fn act(&mut self, row: &Row, before: &Row, at: usize) {
        let cpu = CpuId(u32::from(before.cpu));
        if let Some(predictions) = &mut self.watch.predictions {
            let by = CpuId(u32::from(row.cpu));
            predictions.act(by, next_line(self.trace, by, at));
        }
        self.watch.line = before.line;
        self.know(cpu, before.pid);
        match row.input {
            Input::Exit { pid } => {
                let task = self.task(pid, cpu);
                self.machine.exit_breakpoints(task, &mut self.watch);
                self.events += 1;
            }
            Input::Exec { pid } => {
                let task = self.task(pid, cpu);
                self.apply(&Event::Exec(task));
            }
            _ => self.open(row),
        }
    }

    /// Who prints a line is who runs. A CPU's first line tells it; after a loss a later one corrects it.
    fn know(&mut self, cpu: CpuId, pid: i32) {
        let known = std::mem::replace(&mut self.known[cpu.index()], true);
        if known && pid == 0 {
            return;
        }
        let task = self.task(pid, cpu);
        if self.machine.running(cpu) != task && self.machine.guest(cpu).is_none() {
            self.machine.place(task, cpu);
            self.machine.sched_switch(cpu, task, &mut self.watch);
        }
    }

    fn task(&mut self, pid: i32, cpu: CpuId) -> TaskId {
        if let Some(&task) = self.tasks.get(&pid) {
            return task;
        }
        let task = self.machine.add_sleeping_task(cpu, Capabilities::Root);
        self.tasks.insert(pid, task);
        // A young pid that no fork line announces: `copy_process` was called by the kernel itself, for a thread of a VMM
        // (KVM's recovery of huge pages and vhost do, 6.12). Such a thread inherits breakpoints like any child.
        if pid > self.youngest
            && self.youngest > 0
            && let Some(vmm) = self.vmm
        {
            self.machine.copy_process(vmm, task, true);
        }
        task
    }

    fn input(&mut self, row: &Row, cpu: CpuId) {
        match row.input {
            Input::Switch { next, .. } => self.switch(cpu, next, row.line),
            Input::Migrate { pid, to } => {
                let task = self.task(pid, cpu);
                if !self.machine.is_running(task) && usize::from(to) < self.trace.cpus {
                    self.machine.place(task, CpuId(u32::from(to)));
                }
            }
            Input::Fork { parent, child } => {
                self.born.insert(child);
                let parent_task = self.task(parent, cpu);
                let child_task = self.machine.add_sleeping_task(cpu, Capabilities::Root);
                self.tasks.insert(child, child_task);
                self.youngest = self.youngest.max(child);
                if let Some(descriptors) = self.descriptors.get(&parent).cloned() {
                    self.descriptors.insert(child, descriptors);
                }
                self.apply(&Event::Fork { parent: parent_task, child: child_task, thread: false });
            }
            Input::Entry { vcpu, rip } => self.entry(row, cpu, vcpu, rip),
            Input::KvmExit { .. } => self.exit(row, cpu),
            Input::Open { result: None, .. } => {
                self.unseen.spans.push((row.line, u32::MAX));
                self.unknown(row, "the call does not return in this trace");
            }
            Input::OpenReturn => {
                // It was entered before the lines begin, or in the last gap.
                let entered = self.gaps.checked_sub(1).map_or(0, |gap| self.trace.gaps[gap]);
                self.unseen.spans.push((entered, row.line));
            }
            Input::Open { .. } | Input::Exec { .. } | Input::Nothing => {}
            Input::Exit { pid } => {
                let open = self.descriptors.remove(&pid).unwrap_or_default();
                self.closing.insert(pid, open.into_values().collect());
                self.close_files(pid, cpu);
                self.end_altered(row.line);
            }
            Input::Close { fd } => {
                if let Some(counter) = self.descriptors.get_mut(&row.pid).and_then(|fds| fds.remove(&fd)) {
                    let task = self.task(row.pid, cpu);
                    if let Some(predictions) = &mut self.watch.predictions {
                        let returned = next_row(self.trace, cpu, self.at + 1);
                        predictions.act_late(next_line(self.trace, cpu, returned + 1));
                    }
                    self.close(task, counter);
                    self.events += 1;
                    self.end_altered(row.line);
                }
            }
            Input::Enable { fd } => drop(self.on_counter(row, fd, Event::Enable)),
            Input::Disable { fd } => drop(self.on_counter(row, fd, Event::Disable)),
            Input::Modify { fd, attr } => {
                let changes = changes(attr);
                let counter = self.on_counter(row, fd, |counter| Event::Modify(counter, changes));
                if let Some(counter) = counter.filter(|_| wanted(attr).is_none()) {
                    self.alter(counter, row.line);
                }
            }
            Input::Poke { pid, dr, value } => {
                self.poke_of_unknown_address(pid, dr, value, row.line);
                let (tracer, tracee) = (self.task(row.pid, cpu), self.task(pid, cpu));
                if self.machine.task(tracee).tracer.is_none() {
                    self.apply(&Event::Attach { tracer, tracee });
                }
                self.apply(&Event::PtracePoke { tracer, tracee, dr, value });
            }
            Input::CreateVcpu { vcpu } => drop(self.created.insert((row.pid, vcpu))),
            Input::VcpuIoctl => self.vmm = Some(self.task(row.pid, cpu)),
            Input::DebugExit => self.debug_exit(row.pid),
            Input::SetGuestDebug { control, dr, dr7, guest_dr7 } => {
                if let Some(vcpu) = self.vcpu_of_caller(row, cpu) {
                    let debug =
                        GuestDebug { control, dr: dr.map(Option::unwrap_or_default), dr7: dr7.unwrap_or_default() };
                    self.set_guest_debug(vcpu, debug, guest_dr7);
                }
            }
            Input::SetDebugregs { db, dr6, dr7 } => {
                if let Some(vcpu) = self.vcpu_of_caller(row, cpu) {
                    self.set_debugregs(vcpu, db, dr6, dr7);
                }
            }
            Input::Phase(at) => self.phase(at),
        }
        if !matches!(row.input, Input::Nothing) {
            self.settled(cpu, row.line);
        }
    }

    /// Performs an event; what the policy's kernel cannot express is noted.
    fn apply(&mut self, event: &Event) -> Option<Outcome> {
        self.events += 1;
        match self.machine.apply(event, &mut self.watch) {
            Ok(outcome) => Some(outcome),
            Err(misuse) => {
                if let Misuse::NotExpressible(why) = misuse {
                    self.not_expressible.push((self.watch.line, why.to_owned()));
                    if let Some(phase) = self.phases.last_mut() {
                        phase.partial = true;
                    }
                }
                None
            }
        }
    }

    fn unknown(&mut self, row: &Row, why: &str) {
        self.undetermined.push((row.line, why.to_owned()));
    }

    fn switch(&mut self, cpu: CpuId, next_pid: i32, line: u32) {
        let next = self.task(next_pid, cpu);
        self.events += 1;
        let before = Observer::before(&self.machine, cpu);
        if next != TaskId::IDLE {
            self.machine.place(next, cpu);
        }
        self.machine.sched_switch(cpu, next, &mut self.watch);
        self.watch.observer.hook(&self.machine, cpu, line, before, false);
        if self.closing.contains_key(&next_pid) {
            self.close_files(next_pid, cpu);
        }
    }

    fn settled(&mut self, cpu: CpuId, line: u32) {
        let unknown = |vcpu: VcpuId| self.trace.steps.is_none() && self.machine.vcpu(vcpu).wont_exit;
        if !self.machine.guest(cpu).is_some_and(unknown) {
            self.watch.observer.settled(&self.machine, cpu, line);
        }
    }

    fn phase(&mut self, at: usize) {
        self.end_phase();
        self.phases.push(PhaseCost { name: self.trace.phases[at].clone(), cost: Cost::default(), partial: false });
    }

    fn end_phase(&mut self) {
        let cost = self.machine.cost();
        let spent = cost - self.phase_start;
        self.phase_start = cost;
        match self.phases.last_mut() {
            Some(phase) => phase.cost = spent,
            None => self.phases.push(PhaseCost { name: "start".to_owned(), cost: spent, partial: false }),
        }
    }

    fn finish(mut self) -> Replay {
        self.end_phase();
        let verify = self.watch.predictions.map(|predictions| verify(self.trace, &predictions, &self.unseen));
        let windows = verify.iter().flat_map(|verify| &verify.undetermined);
        self.undetermined.extend(windows.cloned());
        self.undetermined.sort();
        Replay {
            policy: self.machine.policy,
            events: self.events,
            cost: self.machine.cost(),
            phases: self.phases,
            lower_bound: self.lower_bound,
            not_expressible: self.not_expressible,
            undetermined: self.undetermined,
            observed: self.watch.observer.observed,
            verify,
        }
    }
}

/// The first row from this one on that a CPU prints for its task. (One that waits for others goes on balancing tasks.)
fn next_row(trace: &Trace, cpu: CpuId, at: usize) -> usize {
    let rows = trace.rows.get(at..).unwrap_or_default();
    let is_own = |row: &Row| usize::from(row.cpu) == cpu.index() && !matches!(row.input, Input::Migrate { .. });
    rows.iter().position(is_own).map_or(trace.rows.len(), |next| at + next)
}

fn next_line(trace: &Trace, cpu: CpuId, at: usize) -> u32 {
    trace.rows.get(next_row(trace, cpu, at)).map_or(u32::MAX, |row| row.line)
}
