//! A live machine with names: what performs a scenario's lines, and those of a user who types them.

use super::lex::words;
use super::parse::{Line, parse_line};
use super::run::{Performed, perform_line};
use super::{Names, ScenarioError};
use crate::laws::Laws;
use crate::{Capabilities, CounterId, CpuId, Event, Machine, Misuse, Options, Outcome, Policy, Probe, TaskId, VcpuId};

/// A machine, what its things are called, and which counter each name is bound to.
#[derive(Clone, Debug)]
pub struct Session {
    /// The machine.
    pub machine: Machine,
    /// The names.
    pub names: Names,
    /// The laws that every line is held to.
    pub laws: Laws,
    /// By symbol: the counter, once an open has made it.
    bound: Vec<Option<CounterId>>,
}

impl Session {
    /// A machine without tasks.
    pub fn new(options: Options, policy: Policy) -> Session {
        Session {
            machine: Machine::new(options, policy),
            names: Names::new(options.cpus),
            laws: Laws::NONE,
            bound: Vec::new(),
        }
    }

    /// Adds a task.
    ///
    /// # Errors
    ///
    /// The name is taken or is no name.
    pub fn add_task(&mut self, name: &str, cpu: CpuId, capabilities: Capabilities) -> Result<TaskId, ScenarioError> {
        self.names.add_task(super::lex::Word { text: name, line: 1, column: 1 })?;
        Ok(self.machine.add_task(cpu, capabilities))
    }

    /// Adds a vCPU.
    ///
    /// # Errors
    ///
    /// The name is taken or is no name.
    pub fn add_vcpu(&mut self, name: &str, task: TaskId) -> Result<VcpuId, ScenarioError> {
        self.names.add_vcpu(super::lex::Word { text: name, line: 1, column: 1 })?;
        Ok(self.machine.add_vcpu(task))
    }

    /// Names a counter that was opened without a line of the language.
    ///
    /// # Errors
    ///
    /// The name is taken or is no name.
    pub fn name_counter(&mut self, name: &str, id: CounterId) -> Result<(), ScenarioError> {
        let symbol = self.names.add_counter(super::lex::Word { text: name, line: 1, column: 1 })?;
        self.bind(symbol, id);
        Ok(())
    }

    /// Reads one line against the names that there are.
    ///
    /// # Errors
    ///
    /// The first mistake in it; nothing is named then.
    pub fn parse(&mut self, text: &str) -> Result<Line, ScenarioError> {
        let words = words(text, 1);
        if words.is_empty() {
            return Err(ScenarioError { line: 1, column: 1, message: "the line has no event".to_owned() });
        }
        parse_line(&words, &mut self.names)
    }

    /// Reads a line and performs it, with its steps. A name that came to nothing is free again.
    ///
    /// # Errors
    ///
    /// The line is wrong, or makes no sense now: nothing was done.
    pub fn line(&mut self, text: &str) -> Result<(Line, Performed), ScenarioError> {
        let names = self.names.clone();
        let line = self.parse(text)?;
        let performed = perform_line(self, &line, true);
        let made = |performed: &Performed| match line.event {
            Event::PerfEventOpen { .. } | Event::RegisterHwBreakpoint { .. } => {
                matches!(performed.outcome, Some(Outcome::Bound(_)))
            }
            Event::Fork { .. } => performed.outcome == Some(Outcome::Ok),
            _ => true,
        };
        if !performed.as_ref().is_ok_and(made) {
            self.names = names;
        }
        performed.map(|performed| (line, performed))
    }

    /// Performs an event whose counters are symbols. `None` if it names a counter that was never opened.
    ///
    /// # Errors
    ///
    /// [`Misuse`]; nothing was done.
    pub fn perform<P: Probe>(&mut self, event: &Event, probe: &mut P) -> Result<Option<Outcome>, Misuse> {
        let Some(event) = self.resolve(event) else { return Ok(None) };
        if let Event::Fork { child, .. } = event {
            self.add_child(child);
        }
        self.machine.apply(&event, probe).map(Some)
    }

    /// Binds a symbol to a counter.
    pub fn bind(&mut self, symbol: CounterId, id: CounterId) {
        if self.bound.len() <= symbol.index() {
            self.bound.resize(symbol.index() + 1, None);
        }
        self.bound[symbol.index()] = Some(id);
    }

    /// The symbol of a counter, or of the one that it is a copy of.
    pub fn symbol(&self, id: CounterId) -> Option<CounterId> {
        let original = self.machine.original(id);
        self.bound.iter().position(|&bound| bound == Some(original)).map(CounterId::from)
    }

    /// What a counter is called: a copy as its original.
    pub fn counter_name(&self, id: CounterId) -> String {
        match (self.symbol(id), self.machine.counter(id).origin) {
            (Some(symbol), _) => self.names.counter(symbol).to_owned(),
            (None, crate::Origin::Ptrace(dr)) => format!("ptrace-DR{dr}"),
            (None, crate::Origin::Kgdb(_)) => "kgdb".to_owned(),
            (None, _) => format!("counter {}", self.machine.original(id).0),
        }
    }

    /// The event with counters instead of symbols.
    pub fn resolve(&self, event: &Event) -> Option<Event> {
        let bound = |symbol: CounterId| self.bound.get(symbol.index()).copied().flatten();
        Some(match *event {
            Event::Close(symbol) => Event::Close(bound(symbol)?),
            Event::Enable(symbol) => Event::Enable(bound(symbol)?),
            Event::Disable(symbol) => Event::Disable(bound(symbol)?),
            Event::Count(symbol) => Event::Count(bound(symbol)?),
            Event::Modify(symbol, changes) => Event::Modify(bound(symbol)?, changes),
            Event::PerfEventOpen { by, attr, task, cpu, group: Some(symbol) } => {
                Event::PerfEventOpen { by, attr, task, cpu, group: Some(bound(symbol)?) }
            }
            Event::UnregisterHwBreakpoint(symbol) => Event::UnregisterHwBreakpoint(bound(symbol)?),
            Event::ModifyWideLocal { cpu, counter, attr } => {
                Event::ModifyWideLocal { cpu, counter: bound(counter)?, attr }
            }
            ref other => other.clone(),
        })
    }

    /// A child that `fork` names is in the table from then on, running nowhere.
    pub(super) fn add_child(&mut self, child: TaskId) {
        while self.machine.tasks.len() <= child.index() {
            self.machine.add_unborn_task();
        }
    }

    /// A mistake in an event, in the words of its names.
    pub fn explain(&self, misuse: &Misuse) -> String {
        let runs = |cpu: CpuId| match self.machine.guest(cpu) {
            Some(guest) => format!("cpu{} runs the guest of {}", cpu.0, self.names.vcpu(guest)),
            None => format!("cpu{} runs {}", cpu.0, self.names.task(self.machine.running(cpu))),
        };
        match *misuse {
            Misuse::NotRunning(task) => {
                format!("{} is not running: {}", self.names.task(task), runs(self.machine.task(task).cpu))
            }
            Misuse::NotInGuest(vcpu) => {
                let cpu = self.machine.task(self.machine.thread(vcpu)).cpu;
                format!("the guest of {} is not running: {}; vm_entry comes first", self.names.vcpu(vcpu), runs(cpu))
            }
            Misuse::InGuest(cpu, _) => format!("{}: vm_exit comes first", runs(cpu)),
            Misuse::Exited(task) => format!("{} has exited", self.names.task(task)),
            Misuse::Unborn(task) => format!("{} was never born: its fork was refused", self.names.task(task)),
            Misuse::Closed(counter) => format!("{} is closed", self.counter_name(counter)),
            Misuse::OtherCpu(task, cpu) => {
                format!("{} belongs to cpu{}: migrate comes first", self.names.task(task), cpu.0)
            }
            Misuse::Offline(cpu) => format!("cpu{} is offline: online comes first", cpu.0),
            Misuse::InKgdb(cpu) => {
                format!("kgdb has the machine since cpu{} entered it: kgdb_resume comes first", cpu.0)
            }
            Misuse::NotWide(counter) => {
                format!("{} was not registered by register_wide_hw_breakpoint", self.counter_name(counter))
            }
            Misuse::NotInKgdb | Misuse::NotExpressible(_) => misuse.to_string(),
        }
    }
}
