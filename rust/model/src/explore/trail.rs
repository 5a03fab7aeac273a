//! A way from the start, told as a scenario.

use super::canon::{Renaming, canon};
use super::scope::Scope;
use super::search::Successor;
use crate::event::Event;
use crate::laws::Laws;
use crate::machine::Machine;
use crate::policy::Policy;
use crate::scenario::{At, Scenario, Told};
use crate::{CounterId, CpuId};

/// A way from the start, event by event, in the names that it had at the start.
#[derive(Debug)]
pub(super) struct Trail<'a> {
    scope: &'a Scope,
    policy: Policy,
    machine: Machine,
    /// By number of a counter now: its symbol.
    symbols: Vec<Option<CounterId>>,
    /// By number of an address now: what it was at the start.
    addresses: Vec<u64>,
    opened: u32,
    lines: Vec<Told>,
}

impl<'a> Trail<'a> {
    pub(super) fn new(scope: &'a Scope, policy: Policy) -> Trail<'a> {
        let mut machine = scope.machine(policy);
        canon(&mut machine, scope);
        let addresses = scope.all_addresses().collect();
        Trail { scope, policy, machine, symbols: Vec::new(), addresses, opened: 0, lines: Vec::new() }
    }

    pub(super) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Goes on by one event.
    pub(super) fn push(&mut self, step: Successor) {
        let Successor { event, interruption, machine, bound, .. } = step;
        let named = self.translate(&event);
        let inside = interruption.map(|(at, inside)| (At::Step(at), self.translate(&inside)));
        self.machine = machine;
        self.symbols.resize(self.machine.counters.len(), None);
        let binds = bound.map(|id| {
            let symbol = CounterId(self.opened);
            self.symbols[id.index()] = Some(symbol);
            self.opened += 1;
            symbol
        });
        self.lines.push(Told { event: named, interruption: inside, binds });
        let Renaming { counters, addresses } = canon(&mut self.machine, self.scope);
        self.symbols = counters.iter().map(|old| self.symbols[old.index()]).collect();
        let names = addresses.iter().map(|&old| self.address(old)).collect();
        self.addresses = names;
    }

    fn address(&self, now: u64) -> u64 {
        self.scope.number(now).map_or(now, |number| self.addresses[number])
    }

    fn translate(&self, event: &Event) -> Event {
        let counters = |id: CounterId| self.symbols.get(id.index()).copied().flatten().unwrap_or(id);
        event.renamed(&counters, &|address| self.address(address))
    }
}

/// The scenario.
pub(super) fn tell(trail: Trail<'_>) -> Scenario {
    let Trail { scope, policy, lines, .. } = trail;
    let tasks: Vec<CpuId> = scope.all_tasks().map(|task| scope.home(task)).collect();
    Scenario::told(scope.options, policy, Laws::ALL, &tasks, scope.vcpus, lines)
}
