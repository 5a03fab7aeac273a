//! A steps file laid beside the lines of its trace.
//!
//! Both tell of the same VM entries, installs, uninstalls and restores ([`Anchor`]s), CPU by CPU in the same order; the
//! order across CPUs may differ, since a line is printed a little before or after what it tells of. Where the lines lack
//! a part, head or tail, what is left of them is found in the steps.

use std::collections::HashMap;
use std::fmt;

use memchr::memmem;

use crate::input::{Done, Input, Trace, Truth, Why};
use crate::steps::{MarkName, Step, What};
use crate::truth::{self, Anchor, Observed};
use crate::{guest, guest::Guests};

/// What a steps file adds to a trace.
#[derive(Clone, Debug)]
pub struct Tied {
    /// By CPU: what it did.
    pub(crate) cpus: Vec<Observed>,
    /// What guests did.
    pub(crate) guests: Guests,
    /// Nothing happened before the first line but that the CPUs were brought up: what is not shown to be set is not set.
    pub(crate) from_power_on: bool,
}

/// A steps file that cannot be tied to its trace: on this CPU.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Untied(pub u16);

impl fmt::Display for Untied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Untied(cpu) = self;
        write!(
            f,
            "the steps file cannot be tied to the lines: those of cpu{cpu} that tell of entries, installs, uninstalls \
             and restores are found in it nowhere, or in several places"
        )
    }
}

/// The anchors of one CPU, as one of the two files has them.
#[derive(Clone, Default)]
struct Marks {
    /// A letter for each.
    kinds: Vec<u8>,
    /// What else is known of it.
    details: Vec<Detail>,
}

/// What else is known of an anchor.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Detail {
    Nothing,
    /// Of an install or uninstall: the address.
    Address(u64),
    /// Of an entry: the MOV DR that ended the stay, or in the steps the last one that was tried.
    Mov {
        dr: u8,
        is_write: bool,
    },
}

impl Marks {
    fn push(&mut self, kind: u8, detail: Detail) {
        self.kinds.push(kind);
        self.details.push(detail);
    }

    fn last(&mut self, kind: u8) -> Option<&mut Detail> {
        self.details.last_mut().filter(|_| self.kinds.last() == Some(&kind))
    }
}

/// Whether a line can tell of a step; the address is the kernel's word.
fn agree(line: Detail, step: Detail, addresses: bool) -> bool {
    match (line, step) {
        (Detail::Nothing, _) | (Detail::Address(_), Detail::Nothing) => true,
        (Detail::Address(line), Detail::Address(step)) => line == step || !addresses,
        (line, step) => line == step,
    }
}

/// Where the marks of a CPU's lines are among those of its steps.
#[derive(Clone, Default, Debug)]
pub(crate) struct Place {
    /// What the lines tell of.
    anchors: Vec<Anchor>,
    /// Of the steps' marks, those before the first of the lines'.
    before: usize,
}

impl Place {
    /// The anchor that the steps' mark of this number is.
    pub(crate) fn anchor(&self, mark: usize) -> Option<Anchor> {
        self.anchors.get(mark.checked_sub(self.before)?).copied()
    }

    /// Whether that mark comes after all lines of its CPU.
    pub(crate) fn is_after(&self, mark: usize) -> bool {
        mark >= self.before + self.anchors.len()
    }
}

/// Lays a steps file beside a trace.
pub(crate) fn tie(trace: &Trace, steps: &[Step]) -> Result<Tied, Untied> {
    let cpus = steps.iter().map(|step| usize::from(step.cpu) + 1).max().unwrap_or(0).max(trace.cpus);
    let (anchors, told) = of_lines(trace, cpus);
    let logged = of_steps(steps, cpus);
    let has_head = shows_first_entry(trace);
    let mut places = Vec::new();
    let mut from_power_on = shows_bring_up(steps, cpus);
    for (cpu, anchors) in anchors.into_iter().enumerate() {
        let before = place(&told[cpu], &logged[cpu], has_head).ok_or(Untied(cpu as u16))?;
        from_power_on &= before == 0 && (!anchors.is_empty() || logged[cpu].kinds.is_empty());
        places.push(Place { anchors, before });
    }
    let guests = guest::guests(trace, steps, &places);
    Ok(Tied { cpus: truth::observed(steps, &places, &guests), guests, from_power_on })
}

/// Whether each CPU clears DR0-DR3 before it does anything else.
fn shows_bring_up(steps: &[Step], cpus: usize) -> bool {
    let mut cleared = vec![0u8; cpus];
    let mut is_up = vec![false; cpus];
    for step in steps {
        let cpu = usize::from(step.cpu);
        match step.what {
            What::Write { dr: dr @ 0..=3, value: 0 } if !is_up[cpu] => cleared[cpu] |= 1 << dr,
            What::Write { dr: 6 | 7, .. } | What::Read { .. } => {}
            What::Mark { name: MarkName::Install | MarkName::Uninstall | MarkName::Restore, .. }
            | What::Write { .. }
            | What::VmRun => is_up[cpu] = true,
            What::Mark { .. } => {}
        }
    }
    cleared.iter().all(|&drs| drs == 0xf)
}

/// Whether no guest can have been entered before the first line: the vCPUs were created after it.
fn shows_first_entry(trace: &Trace) -> bool {
    let first = trace
        .rows
        .iter()
        .find(|row| matches!(row.input, Input::CreateVcpu { .. } | Input::Entry { .. } | Input::KvmExit { .. }));
    first.is_some_and(|row| matches!(row.input, Input::CreateVcpu { .. }))
}

fn of_lines(trace: &Trace, cpus: usize) -> (Vec<Vec<Anchor>>, Vec<Marks>) {
    let mut anchors = vec![Vec::new(); cpus];
    let mut marks = vec![Marks::default(); cpus];
    let mut truth = trace.truth.iter().peekable();
    for row in &trace.rows {
        while let Some(truth) = truth.next_if(|truth| truth.line < row.line) {
            truth_mark(truth, &mut anchors, &mut marks);
        }
        let cpu = usize::from(row.cpu);
        match row.input {
            Input::Entry { .. } => {
                anchors[cpu].push(Anchor::Entry { window: row.line });
                marks[cpu].push(b'e', Detail::Nothing);
            }
            Input::KvmExit { why: Why::DrAccess { dr, write }, .. } => {
                if let Some(detail) = marks[cpu].last(b'e') {
                    *detail = Detail::Mov { dr, is_write: write };
                }
            }
            _ => {}
        }
    }
    truth.for_each(|truth| truth_mark(truth, &mut anchors, &mut marks));
    (anchors, marks)
}

fn truth_mark(truth: &Truth, anchors: &mut [Vec<Anchor>], marks: &mut [Marks]) {
    let (kind, detail) = match truth.done {
        Done::Install(address) => (b'i', Detail::Address(address)),
        Done::Uninstall(address) => (b'u', Detail::Address(address)),
        Done::Restore => (b'r', Detail::Nothing),
        // The steps do not mark it.
        Done::Sync => return,
    };
    let cpu = usize::from(truth.cpu);
    anchors[cpu].push(Anchor::Done { window: truth.window, done: truth.done });
    marks[cpu].push(kind, detail);
}

fn of_steps(steps: &[Step], cpus: usize) -> Vec<Marks> {
    let mut marks = vec![Marks::default(); cpus];
    // By event: its address, since it was last installed.
    let mut addresses: HashMap<u64, u64> = HashMap::new();
    let mut installed = vec![0; cpus];
    for step in steps {
        let cpu = usize::from(step.cpu);
        let marks = &mut marks[cpu];
        match step.what {
            What::VmRun => marks.push(b'e', Detail::Nothing),
            What::Mark { name: MarkName::Install, rdi } => {
                installed[cpu] = rdi;
                marks.push(b'i', Detail::Nothing);
            }
            What::Mark { name: MarkName::Uninstall, rdi } => {
                marks.push(b'u', addresses.get(&rdi).map_or(Detail::Nothing, |&address| Detail::Address(address)));
            }
            What::Mark { name: MarkName::Restore, .. } => marks.push(b'r', Detail::Nothing),
            // I3, the first that an install writes.
            What::Write { dr: 0..=3, value } if step.is_kernel() => {
                if let Some(detail @ Detail::Nothing) = marks.last(b'i') {
                    *detail = Detail::Address(value);
                    addresses.insert(installed[cpu], value);
                }
            }
            What::Write { dr, .. } | What::Read { dr } if !step.is_kernel() => {
                if let Some(detail) = marks.last(b'e') {
                    *detail = Detail::Mov { dr, is_write: matches!(step.what, What::Write { .. }) };
                }
            }
            _ => {}
        }
    }
    marks
}

/// More places than this are not looked at: one among so many would not be told from the others.
const MOST_PLACES: usize = 1000;

/// How many marks the steps have before those of the lines.
///
/// These are at the end, where both recordings end together; at the beginning, if the lines show it; or in the one place
/// where they fit. An address of the lines that is not that of the steps does not untie them: it is a difference.
fn place(lines: &Marks, steps: &Marks, has_head: bool) -> Option<usize> {
    let last = steps.kinds.len().checked_sub(lines.kinds.len())?;
    let agrees = |at: usize, addresses: bool| {
        lines.details.iter().zip(&steps.details[at..]).all(|(&line, &step)| agree(line, step, addresses))
    };
    let at_start = has_head && steps.kinds.starts_with(&lines.kinds);
    let at_end = steps.kinds.ends_with(&lines.kinds);
    if lines.kinds.is_empty() || at_start && agrees(0, true) {
        return Some(0);
    }
    if at_end && agrees(last, true) {
        return Some(last);
    }
    let finder = memmem::Finder::new(&lines.kinds);
    let (mut places, mut from) = (Vec::new(), 0);
    while let Some(at) = finder.find(&steps.kinds[from..]) {
        if places.len() == MOST_PLACES {
            return None;
        }
        places.push(from + at);
        from += at + 1;
    }
    let agreeing = |addresses| places.iter().copied().filter(move |&at| agrees(at, addresses));
    let only = |places: &mut dyn Iterator<Item = usize>| places.next().filter(|_| places.next().is_none());
    if agreeing(true).next().is_some() {
        return only(&mut agreeing(true));
    }
    if at_start && agrees(0, false) {
        return Some(0);
    }
    if at_end && agrees(last, false) {
        return Some(last);
    }
    only(&mut agreeing(false))
}
