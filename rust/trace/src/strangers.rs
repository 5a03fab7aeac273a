//! Breakpoints that no line asks for: of a trace that begins in the middle, that has a hole, or in which a probe could
//! not read its argument.
//!
//! What the input lines show is predicted on the presumption that nothing else is set. Where the kernel is seen to do
//! all that was predicted and something more, somebody has a breakpoint that the trace does not tell of: a *stranger*,
//! until it is seen to go. Nothing of a stranger's task (or CPU) is determined meanwhile. What is predicted and does not
//! happen is a difference all the same, and so is a breakpoint of which an earlier line shows that it was not there.
//!
//! At the other end, a task takes its breakpoints out when it exits, and the line that says so comes later: where the
//! trace ends in between, it does not determine what becomes of that task.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use crate::input::{Done, Input, Row, Trace};
use crate::verify::Compared;

/// Whose breakpoints are not told.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Who {
    /// A task's.
    Task(i32),
    /// Those of whoever runs on a CPU.
    Cpu(u16),
    /// Nobody's any more: this task is exiting.
    Exiting(i32),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Task(pid) => write!(f, "task {pid} has a breakpoint that no line asks for"),
            Who::Cpu(cpu) => write!(f, "cpu{cpu} has a breakpoint that no line asks for"),
            Who::Exiting(pid) => write!(f, "task {pid} gives its breakpoints up, and no line tells why"),
        }
    }
}

/// Somebody has a breakpoint that no line asks for.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Stranger {
    pub(crate) who: Who,
    /// From this line.
    pub(crate) from: u32,
    /// To this line, which is included.
    pub(crate) to: u32,
}

impl Stranger {
    /// Whether what happens in the window of a row depends on it.
    pub(crate) fn bears_on(&self, row: &Row) -> bool {
        (self.from..=self.to).contains(&row.line)
            && match self.who {
                Who::Cpu(cpu) => row.cpu == cpu,
                Who::Task(pid) | Who::Exiting(pid) => {
                    row.pid == pid
                        || matches!(row.input, Input::Switch { prev, next, .. } if prev == pid || next == pid)
                }
            }
    }
}

/// What a trace does not show.
#[derive(Clone, Default, Debug)]
pub(crate) struct Unseen {
    /// From which line to which something may have been set unseen, in the order of the lines that tell of it.
    pub(crate) spans: Vec<(u32, u32)>,
    /// Who is known to have something of which the lines do not tell what.
    pub(crate) holders: Vec<Stranger>,
}

/// What one stranger was seen to do.
#[derive(Copy, Clone)]
struct Life {
    first: u32,
    last: u32,
    cpu: u16,
    /// Its last going was not its task's.
    is_gone: bool,
}

/// Finds the strangers.
pub(crate) fn find(cpus: &[Vec<Compared<'_>>], trace: &Trace, unseen: &Unseen) -> Vec<Stranger> {
    let mut strangers = unseen.holders.clone();
    let surplus: Vec<Surplus<'_>> = cpus.iter().flatten().filter_map(|window| Surplus::of(window)).collect();
    if !surplus.is_empty() {
        strangers.extend(exiting(cpus, &trace.exiting));
        seen(&mut strangers, surplus, cpus, unseen);
    }
    // A task takes its breakpoints with it.
    for stranger in &mut strangers {
        let exits = |row: &&Row| matches!(row.input, Input::Exit { pid } if stranger.who == Who::Task(pid));
        if let Some(exit) = trace.rows.iter().find(|row| row.line >= stranger.from && exits(row)) {
            stranger.to = stranger.to.min(exit.line);
        }
    }
    strangers
}

/// Adds those that are seen where something was done and not predicted.
fn seen(strangers: &mut Vec<Stranger>, mut surplus: Vec<Surplus<'_>>, cpus: &[Vec<Compared<'_>>], unseen: &Unseen) {
    let stranger = |(&(who, _), life): (&(Who, u64), &Life)| stranger(who, life, cpus, unseen);
    surplus.retain(|surplus| !strangers.iter().any(|stranger| stranger.bears_on(surplus.row)));
    strangers.extend(lives(&surplus).iter().filter_map(stranger));
    // A refresh says that something is set, and not whose it is.
    surplus.retain(|surplus| surplus.refreshes && !strangers.iter().any(|stranger| stranger.bears_on(surplus.row)));
    let mut lives = Lives::new();
    for Surplus { row, .. } in &surplus {
        live(&mut lives, (Who::Cpu(row.cpu), 0), row, false);
    }
    strangers.extend(lives.iter().filter_map(stranger));
}

/// Tasks that are seen to give up, while they run, what by the lines they have, and may be exiting.
fn exiting(cpus: &[Vec<Compared<'_>>], since: &HashMap<i32, u32>) -> Vec<Stranger> {
    let mut exiting: BTreeMap<i32, u32> = BTreeMap::new();
    for windows in cpus {
        // By address: how many are in registers, by the lines.
        let mut active: HashMap<u64, i32> = HashMap::new();
        for window in windows {
            for done in window.predicted() {
                match done {
                    Done::Install(address) => *active.entry(address).or_default() += 1,
                    Done::Uninstall(address) => *active.entry(address).or_default() -= 1,
                    Done::Restore | Done::Sync => {}
                }
            }
            let Some(Surplus { row, balance, refreshes: false, .. }) = Surplus::of(window) else { continue };
            let runs = if let Input::Switch { next, .. } = row.input { next } else { row.pid };
            let may_exit = since.get(&runs).is_some_and(|&since| since <= row.line);
            let has = |address| active.get(address).is_some_and(|&active| active > 0);
            if may_exit && balance.iter().all(|(address, &balance)| balance < 0 && has(address)) {
                let from = exiting.entry(runs).or_insert(row.line);
                *from = row.line.min(*from);
            }
        }
    }
    exiting.into_iter().map(|(pid, from)| Stranger { who: Who::Exiting(pid), from, to: u32::MAX }).collect()
}

/// What was done in a window beyond all that was predicted.
struct Surplus<'a> {
    row: &'a Row,
    /// Addresses that came and went, and how often more the one than the other.
    balance: BTreeMap<u64, i32>,
    refreshes: bool,
    /// The last thing done to each address was to take it out.
    gone: BTreeSet<u64>,
}

impl Surplus<'_> {
    fn of<'a>(window: &Compared<'a>) -> Option<Surplus<'a>> {
        let row = window.row?;
        let more = window.surplus()?;
        let mut surplus = Surplus { row, balance: BTreeMap::new(), refreshes: false, gone: BTreeSet::new() };
        for done in more {
            match done {
                Done::Install(address) => {
                    *surplus.balance.entry(address).or_default() += 1;
                    surplus.gone.remove(&address);
                }
                Done::Uninstall(address) => {
                    *surplus.balance.entry(address).or_default() -= 1;
                    surplus.gone.insert(address);
                }
                Done::Restore => surplus.refreshes = true,
                Done::Sync => {}
            }
        }
        Some(surplus)
    }
}

type Lives = BTreeMap<(Who, u64), Life>;

fn live(lives: &mut Lives, of: (Who, u64), row: &Row, is_gone: bool) {
    let new = Life { first: row.line, last: row.line, cpu: row.cpu, is_gone };
    let life = lives.entry(of).or_insert(new);
    life.first = life.first.min(row.line);
    if life.last <= row.line {
        (life.last, life.is_gone) = (row.line, is_gone);
    }
}

/// Whose they are shows at task switches: a task takes its own along. What a switch takes out and puts in again is the
/// CPU's, which made room, or both tasks have it. What is never seen to go with a task is the CPU's.
fn lives(surplus: &[Surplus<'_>]) -> Lives {
    let mut owners: HashMap<u64, BTreeSet<i32>> = HashMap::new();
    let mut swapped: HashSet<u64> = HashSet::new();
    for Surplus { row, balance, .. } in surplus {
        let Input::Switch { prev, next, .. } = row.input else { continue };
        for (&address, &balance) in balance {
            match balance {
                0 => drop(swapped.insert(address)),
                // It may have ended after the switch, by the last hand of a task that exits.
                ..0 if swapped.contains(&address) && !owners.contains_key(&address) => {}
                ..0 => drop(owners.entry(address).or_default().insert(prev)),
                1.. => drop(owners.entry(address).or_default().insert(next)),
            }
        }
    }
    let owns = |address: u64, pid: i32| owners.get(&address).is_some_and(|owners| owners.contains(&pid));
    let mut lives = Lives::new();
    for Surplus { row, balance, gone, .. } in surplus {
        let mut by_task = false;
        let (tasks, is_switch) = match row.input {
            Input::Switch { prev, next, .. } => ([prev, next], true),
            _ => ([row.pid, row.pid], false),
        };
        for &address in balance.keys() {
            for pid in tasks.into_iter().filter(|&pid| owns(address, pid)) {
                by_task = true;
                live(&mut lives, (Who::Task(pid), address), row, !is_switch && gone.contains(&address));
            }
        }
        if !by_task {
            for &address in balance.keys() {
                live(&mut lives, (Who::Cpu(row.cpu), address), row, gone.contains(&address));
            }
        }
    }
    lives
}

/// A stranger from what it was seen to do, unless it came after it was seen not to be there. It is there until it goes,
/// or until it is seen to be gone.
fn stranger(who: Who, life: &Life, cpus: &[Vec<Compared<'_>>], unseen: &Unseen) -> Option<Stranger> {
    let there = &cpus[usize::from(life.cpu)];
    let without = |after: u32, before: u32, shows: fn(Who, &Row, &Compared<'_>) -> bool| {
        let rows = there.iter().filter_map(|window| Some((window.row?, window)));
        let mut between = rows.filter(|(row, _)| after < row.line && row.line < before);
        between.find(|&(row, window)| window.is_exact() && shows(who, row, window)).map(|(row, _)| row.line)
    };
    let mut before = unseen.spans.iter().rev().filter(|&&(from, _)| from <= life.first);
    let &(from, _) = before.find(|&&(_, to)| to >= life.first || without(to, life.first, shows).is_none())?;
    let to = if life.is_gone { life.last } else { without(life.last, u32::MAX, comes).unwrap_or(u32::MAX) };
    Some(Stranger { who, from, to })
}

/// Whether a row would show a breakpoint that is set: a task's when it leaves for the idle task or comes after it (two
/// tasks that have the same may swap them, without a trace), a CPU's when a guest's exit refreshes nothing.
fn shows(who: Who, row: &Row, window: &Compared<'_>) -> bool {
    match (who, row.input) {
        (Who::Task(pid), Input::Switch { prev, next, .. }) => (prev, next) == (pid, 0) || (prev, next) == (0, pid),
        (Who::Cpu(_), Input::KvmExit { .. }) => window.observed.iter().all(|truth| truth.done != Done::Restore),
        _ => false,
    }
}

/// As [`shows`], or its task comes and does not bring it along. Should that be because two tasks swapped what they have,
/// it is seen again when the other leaves.
fn comes(who: Who, row: &Row, window: &Compared<'_>) -> bool {
    matches!((who, row.input), (Who::Task(pid), Input::Switch { next, .. }) if next == pid) || shows(who, row, window)
}
