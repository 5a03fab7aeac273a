//! A steps file laid beside the lines of its trace.
//!
//! Both tell of the same VM entries, installs, uninstalls and restores ([`Anchor`]s), CPU by CPU in the same order; the
//! order across CPUs may differ, since a line is printed a little before or after what it tells of. Where one file lacks
//! a part, head or tail, what is left of it is found in the other.

use std::fmt;

use memchr::memmem;

use crate::input::{Done, Input, Trace};
use crate::steps::{MarkName, Step, What};
use crate::truth::{self, Anchor, Segment};
use crate::{guest, guest::Guests};

/// What a steps file adds to a trace.
#[derive(Clone, Debug)]
pub struct Tied {
    /// By CPU: what it did.
    pub(crate) cpus: Vec<Observed>,
    /// What guests did.
    pub(crate) guests: Guests,
    /// Nothing happened before the first line: what is not shown to be set is not set.
    pub(crate) from_power_on: bool,
}

/// What a CPU did.
#[derive(Clone, Default, Debug)]
pub(crate) struct Observed {
    /// In order.
    pub(crate) segments: Vec<Segment>,
    /// The steps begin before the lines do: the first segment holds more than these tell.
    pub(crate) begins_before: bool,
    /// The steps go on after the last line.
    pub(crate) ends_after: bool,
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
#[derive(Default)]
struct Marks {
    /// A letter for each.
    kinds: Vec<u8>,
    /// The address of each install, where it is known.
    addresses: Vec<Option<u64>>,
}

impl Marks {
    fn push(&mut self, kind: u8, address: Option<u64>) {
        self.kinds.push(kind);
        self.addresses.push(address);
    }
}

/// Where the marks of a CPU's lines are among those of its steps.
#[derive(Clone, Default, Debug)]
pub(crate) struct Place {
    /// What the lines tell of.
    anchors: Vec<Anchor>,
    /// Of the steps' marks, those before the first of the lines'.
    before: usize,
    /// Of the lines' marks, those before the first of the steps'.
    missing: usize,
}

impl Place {
    /// The anchor that the steps' mark of this number is.
    pub(crate) fn anchor(&self, mark: usize) -> Option<Anchor> {
        self.anchors.get((mark + self.missing).checked_sub(self.before)?).copied()
    }

    /// Whether that mark comes after all lines of its CPU.
    pub(crate) fn is_after(&self, mark: usize) -> bool {
        mark + self.missing >= self.before + self.anchors.len()
    }
}

/// Lays a steps file beside a trace.
pub(crate) fn tie(trace: &Trace, steps: &[Step]) -> Result<Tied, Untied> {
    let cpus = steps.iter().map(|step| usize::from(step.cpu) + 1).max().unwrap_or(0).max(trace.cpus);
    let (anchors, told) = of_lines(trace, cpus);
    let logged = of_steps(steps, cpus);
    let mut places = Vec::new();
    let mut from_power_on = true;
    for (cpu, anchors) in anchors.into_iter().enumerate() {
        let (before, missing) = place(&told[cpu], &logged[cpu]).ok_or(Untied(cpu as u16))?;
        from_power_on &= before == 0 && missing == 0 && (!anchors.is_empty() || logged[cpu].kinds.is_empty());
        places.push(Place { anchors, before, missing });
    }
    let guests = guest::guests(trace, steps, &places);
    Ok(Tied { cpus: truth::observed(steps, &places), guests, from_power_on })
}

fn of_lines(trace: &Trace, cpus: usize) -> (Vec<Vec<Anchor>>, Vec<Marks>) {
    let mut lines: Vec<(u32, usize, Anchor, u8, Option<u64>)> = Vec::new();
    for row in trace.rows.iter().filter(|row| matches!(row.input, Input::Entry { .. })) {
        lines.push((row.line, usize::from(row.cpu), Anchor::Entry { window: row.line }, b'e', None));
    }
    for truth in &trace.truth {
        let (kind, address) = match truth.done {
            Done::Install(address) => (b'i', Some(address)),
            Done::Uninstall(_) => (b'u', None),
            Done::Restore => (b'r', None),
            // The steps do not mark it.
            Done::Sync => continue,
        };
        let anchor = Anchor::Done { window: truth.window, done: truth.done };
        lines.push((truth.line, usize::from(truth.cpu), anchor, kind, address));
    }
    lines.sort_unstable_by_key(|&(line, ..)| line);
    let mut anchors = vec![Vec::new(); cpus];
    let mut marks: Vec<Marks> = (0..cpus).map(|_| Marks::default()).collect();
    for (_, cpu, anchor, kind, address) in lines {
        anchors[cpu].push(anchor);
        marks[cpu].push(kind, address);
    }
    (anchors, marks)
}

fn of_steps(steps: &[Step], cpus: usize) -> Vec<Marks> {
    let mut marks: Vec<Marks> = (0..cpus).map(|_| Marks::default()).collect();
    for step in steps {
        let marks = &mut marks[usize::from(step.cpu)];
        match step.what {
            What::VmRun => marks.push(b'e', None),
            What::Mark { name: MarkName::Install, .. } => marks.push(b'i', None),
            What::Mark { name: MarkName::Uninstall, .. } => marks.push(b'u', None),
            What::Mark { name: MarkName::Restore, .. } => marks.push(b'r', None),
            // I3, the first that an install writes.
            What::Write { dr: 0..=3, value } if step.is_kernel() && marks.kinds.last() == Some(&b'i') => {
                let address = marks.addresses.last_mut().expect("as many as kinds");
                *address = address.or(Some(value));
            }
            _ => {}
        }
    }
    marks
}

/// How many marks the steps have before the lines begin, or the lines before the steps do. The recordings end together,
/// or begin together, or there is one place only where the shorter fits: by its kinds, or else by its addresses.
fn place(lines: &Marks, steps: &Marks) -> Option<(usize, usize)> {
    let steps_are_longer = steps.kinds.len() >= lines.kinds.len();
    let (short, long) = if steps_are_longer { (lines, steps) } else { (steps, lines) };
    let last = long.kinds.len() - short.kinds.len();
    let at = if short.kinds.is_empty() {
        0
    } else if long.kinds.ends_with(&short.kinds) {
        last
    } else if long.kinds.starts_with(&short.kinds) {
        0
    } else {
        let places = places(&long.kinds, &short.kinds);
        match *places {
            [at] => at,
            _ => {
                let mut fitting = places.into_iter().filter(|&at| {
                    let pairs = short.addresses.iter().zip(&long.addresses[at..]);
                    pairs.into_iter().all(|(a, b)| a.is_none() || b.is_none() || a == b)
                });
                let at = fitting.next()?;
                if fitting.next().is_some() {
                    return None;
                }
                at
            }
        }
    };
    Some(if steps_are_longer { (at, 0) } else { (0, at) })
}

/// Where a needle is found, overlapping places included.
fn places(haystack: &[u8], needle: &[u8]) -> Vec<usize> {
    let finder = memmem::Finder::new(needle);
    let (mut places, mut from) = (Vec::new(), 0);
    while let Some(at) = finder.find(&haystack[from..]) {
        places.push(from + at);
        from += at + 1;
    }
    places
}
