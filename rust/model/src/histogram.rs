//! The slot rule as Linux has it since 6.1: numbers that are kept up to date, instead of a count when somebody asks.
//!
//! [`crate::constraints`] says what the rule is; this says how it is kept, so that mistakes in the keeping can be found
//! again. Switched on by the delta `histogram`. The two agree as long as nothing is broken; a law holds them together.
//!
//! Source: `max_bp_pinned_slots`, `toggle_bp_slot`, `__reserve_bp_slot` (kernel/events/hw_breakpoint.c, 6.17).

use crate::counter::Counter;
use crate::machine::Machine;
use crate::policy::Delta;
use crate::{CounterId, CpuId, TaskId};

/// How many tasks (or CPUs) have k+1 breakpoints, by k. A number below zero is the mark of a bug.
type Tally = [i64; 4];

/// Moves one from where `old` breakpoints are counted to where `old + d` are.
fn hist_add(tally: &mut Tally, old: i64, d: i64) {
    let mut add = |count: i64, d: i64| {
        if let Some(entry) = usize::try_from(count - 1).ok().and_then(|at| tally.get_mut(at)) {
            *entry += d;
        }
    };
    add(old, -1);
    add(old + d, 1);
}

/// The largest count that anybody has.
fn hist_max(tallies: [&Tally; 2]) -> i64 {
    (1..=4).rev().find(|&k: &usize| tallies[0][k - 1] + tallies[1][k - 1] > 0).map_or(0, signed)
}

/// A count, as the numbers are kept.
fn signed(count: usize) -> i64 {
    i64::try_from(count).expect("no machine has so many")
}

/// The numbers.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Histogram {
    /// By CPU: `bp_cpuinfo.cpu_pinned`.
    cpu_pinned: Vec<i64>,
    /// By CPU: `bp_cpuinfo.tsk_pinned`.
    tsk_pinned: Vec<Tally>,
    /// `cpu_pinned`, over all CPUs.
    all_cpu_pinned: Tally,
    /// `tsk_pinned_all`.
    tsk_pinned_all: Tally,
    /// The one counter that there was before the rule (HB-01).
    pub(crate) global: i64,
}

impl Histogram {
    pub(crate) fn new(cpus: usize) -> Histogram {
        Histogram {
            cpu_pinned: vec![0; cpus],
            tsk_pinned: vec![[0; 4]; cpus],
            all_cpu_pinned: [0; 4],
            tsk_pinned_all: [0; 4],
            global: 0,
        }
    }

    /// A counter without a task, or an announced slot, comes to a CPU or leaves it.
    pub(crate) fn toggle_cpu(&mut self, cpu: CpuId, d: i64) {
        let pinned = &mut self.cpu_pinned[cpu.index()];
        hist_add(&mut self.all_cpu_pinned, *pinned, d);
        *pinned += d;
    }
}

impl Machine {
    /// `__reserve_bp_slot`, steps 4 and 5: whether one more fits.
    pub(crate) fn histogram_admits(&mut self, target: Option<TaskId>, cpu: Option<CpuId>) -> bool {
        let slots = signed(self.options.slots);
        if self.policy.has(Delta::HB01) {
            self.histogram.global += 1;
            let refused = self.histogram.global == slots;
            self.histogram.global -= i64::from(refused);
            return !refused;
        }
        let histogram = &self.histogram;
        let most = match (target, cpu) {
            (Some(task), None) if self.n_any(task, None) >= 0 && !self.policy.has(Delta::HB03) => {
                self.n_any(task, None) + hist_max([&histogram.all_cpu_pinned, &[0; 4]])
            }
            _ => {
                let pinned = self.cpus_of(cpu).map(|cpu| {
                    let own = histogram.cpu_pinned[cpu.index()];
                    let greediest = hist_max([&histogram.tsk_pinned[cpu.index()], &histogram.tsk_pinned_all]);
                    own + match target {
                        Some(task) if !self.policy.has(Delta::HB03) => self.n_on(task, cpu, None),
                        _ => greediest,
                    }
                });
                pinned.max().unwrap_or(0)
            }
        };
        most < slots
    }

    /// `toggle_bp_slot` for a counter that has just been made, or is about to go.
    pub(crate) fn toggle_slot(&mut self, id: CounterId, on: bool) {
        let Counter { target, cpu, .. } = *self.counter(id);
        let (d, off) = (if on { 1 } else { -1 }, i64::from(!on));
        if !on && self.policy.has(Delta::HB01) {
            self.histogram.global -= 1;
        }
        let Some(task) = target else {
            self.histogram.toggle_cpu(cpu.expect("a counter without a task has a CPU"), d);
            return;
        };
        let possible: Vec<_> = self.cpus_of(None).collect();
        let n =
            if !on && self.policy.has(Delta::HB14) { self.n_in_context(task, id) } else { self.n_any(task, Some(id)) };
        match cpu {
            // 1
            None if n >= 0 => hist_add(&mut self.histogram.tsk_pinned_all, n + off, d),
            // 2a: the task leaves the class of those whose events may run anywhere
            Some(cpu) if n >= 0 && on => {
                for &cpu in &possible {
                    hist_add(&mut self.histogram.tsk_pinned[cpu.index()], 0, n);
                }
                hist_add(&mut self.histogram.tsk_pinned[cpu.index()], n, 1);
                hist_add(&mut self.histogram.tsk_pinned_all, n, -n);
            }
            // 2b: and comes back
            Some(cpu) if n >= 0 => {
                hist_add(&mut self.histogram.tsk_pinned[cpu.index()], n + 1, -1);
                for &cpu in &possible {
                    hist_add(&mut self.histogram.tsk_pinned[cpu.index()], n, -n);
                }
                hist_add(&mut self.histogram.tsk_pinned_all, 0, n);
            }
            // 3
            _ => {
                for cpu in self.cpus_of(cpu).collect::<Vec<_>>() {
                    let n = self.n_on(task, cpu, Some(id));
                    hist_add(&mut self.histogram.tsk_pinned[cpu.index()], n + off, d);
                }
            }
        }
    }

    /// The CPUs of an event: its own, or all possible ones (HB-22: those that are online).
    fn cpus_of(&self, cpu: Option<CpuId>) -> impl Iterator<Item = CpuId> + '_ {
        let online = self.policy.has(Delta::HB22);
        let all = (0..self.cpu_count()).map(CpuId::from);
        all.filter(move |&of| cpu.map_or(!online || self.is_online(of), |cpu| of == cpu))
    }

    /// A task's other events, or -1 if one of them is bound to a CPU.
    fn n_any(&self, task: TaskId, other_than: Option<CounterId>) -> i64 {
        let events: Vec<_> = self.live_of(task).filter(|&id| Some(id) != other_than).collect();
        if events.iter().any(|&id| self.counter(id).cpu.is_some()) { -1 } else { signed(events.len()) }
    }

    /// A task's other events that count on a CPU (HB-23: without those that may run on any).
    fn n_on(&self, task: TaskId, cpu: CpuId, other_than: Option<CounterId>) -> i64 {
        let forgets = self.policy.has(Delta::HB23);
        let events = self.live_of(task).filter(|&id| Some(id) != other_than && self.counter(id).fits(cpu));
        signed(events.filter(|&id| !forgets || self.counter(id).cpu.is_some()).count())
    }

    /// HB-14: the events that a task's context still has.
    fn n_in_context(&self, task: TaskId, other_than: CounterId) -> i64 {
        let context = self.task(task).context.map(|id| self.context(id));
        context.map_or(0, |context| signed(context.counters().filter(|&id| id != other_than).count()))
    }

    fn live_of(&self, task: TaskId) -> impl Iterator<Item = CounterId> + '_ {
        self.live().filter(move |&id| self.counter(id).target == Some(task))
    }

    /// Whether the numbers are what a count gives: the law that holds the two together.
    pub fn histogram_is_true(&self) -> bool {
        let mut fresh = self.clone();
        *fresh.histogram = Histogram::new(self.cpu_count());
        let counters = std::mem::take(&mut *fresh.counters);
        for counter in counters {
            fresh.counters.push(counter);
            if counter.is_live() {
                fresh.toggle_slot(CounterId::from(fresh.counters.len() - 1), true);
            }
        }
        for cpu in (0..self.cpu_count()).map(CpuId::from) {
            for _ in 0..self.announced(cpu) {
                fresh.histogram.toggle_cpu(cpu, 1);
            }
        }
        let but_global = |machine: &Machine| Histogram { global: 0, ..(*machine.histogram).clone() };
        but_global(&fresh) == but_global(self)
    }
}
