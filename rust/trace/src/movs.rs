//! Every MOV DR, with its value, between two anchors that both sides have.
//!
//! What a MOV writes is determined by the lines if they tell what went into the register that it comes from: a host's
//! address by the last install into that slot, a guest's by the guest's last write. Which slot an install takes is
//! determined if all are told that are taken. Of a MOV whose value is not determined, place and register are compared
//! all the same; of a window of which nothing is, neither.

use std::collections::BTreeSet;

use crate::input::{Done, Input};
use crate::predict::{Item, Window};
use crate::tie::Observed;
use crate::truth::{Anchor, Mov, Segment};
use crate::verify::{Compared, Difference, Reason, Score, common, list};

/// What the lines say will be executed.
#[derive(Copy, Clone, Debug)]
enum Expected {
    /// This MOV.
    Told(Mov),
    /// A MOV to or from this register.
    Some(Mov, Reason),
    /// Anything.
    Any { line: u32, reason: Reason },
}

impl PartialEq<Mov> for Expected {
    fn eq(&self, mov: &Mov) -> bool {
        match self {
            Expected::Told(told) => told == mov,
            Expected::Some(some, _) => some.dr == mov.dr && some.value.is_some() == mov.value.is_some(),
            Expected::Any { .. } => false,
        }
    }
}

/// An anchor, and what is expected up to the next.
struct Expectation {
    anchor: Anchor,
    expected: Vec<Expected>,
}

/// The comparison of all CPUs.
#[derive(Default)]
pub(crate) struct Comparison {
    /// What is not shown to be set before the first line is not set.
    pub(crate) from_power_on: bool,
    pub(crate) score: Score,
    pub(crate) differences: Vec<Difference>,
    pub(crate) undetermined: BTreeSet<(u32, Reason)>,
}

impl Comparison {
    /// Compares one CPU.
    pub(crate) fn cpu(&mut self, cpu: u32, windows: &[Compared<'_>], observed: &Observed) {
        let mut expectations = Expecting::new(self.from_power_on).windows(windows);
        if observed.begins_before {
            let any = Expected::Any { line: 0, reason: Reason::Before };
            expectations.first_mut().expect("never empty").expected.insert(0, any);
        }
        if observed.ends_after {
            let line = windows.last().map_or(0, Compared::line);
            let any = Expected::Any { line, reason: Reason::End };
            expectations.last_mut().expect("never empty").expected.push(any);
        }
        let segments = in_the_open(&observed.segments, windows);
        let (mut p, mut o) = (0, 0);
        while p < expectations.len() && o < segments.len() {
            let (left, right) = (&expectations[p], &segments[o]);
            if left.anchor == right.anchor {
                let next = segments.get(o + 1).map(|segment| segment.anchor);
                self.segment(cpu, left, &right.movs, next);
                (p, o) = (p + 1, o + 1);
            } else if left.anchor.window() < right.anchor.window() || !ahead(&segments[o..], left.anchor) {
                self.lacks(left);
                p += 1;
            } else {
                self.score.observed += right.movs.len() as u64;
                o += 1;
            }
        }
        expectations[p..].iter().for_each(|left| self.lacks(left));
        self.score.observed += segments[o..].iter().map(|segment| segment.movs.len() as u64).sum::<u64>();
    }

    /// An anchor that only the model has.
    fn lacks(&mut self, expectation: &Expectation) {
        let told = expectation.expected.iter().filter(|expected| !matches!(expected, Expected::Any { .. }));
        self.score.predicted += told.count() as u64;
    }

    fn segment(&mut self, cpu: u32, expectation: &Expectation, movs: &[Mov], next: Option<Anchor>) {
        let expected = &*expectation.expected;
        let is_any = |expected: &Expected| matches!(expected, Expected::Any { .. });
        let (first, last) = (expected.iter().position(is_any), expected.iter().rposition(is_any));
        let (Some(first), Some(last)) = (first, last) else {
            return self.compare(cpu, expectation.anchor, expected, movs, next);
        };
        let (before, after) = (&expected[..first], &expected[last + 1..]);
        let (head, rest) = movs.split_at(before.len().min(movs.len()));
        let (any, tail) = rest.split_at(rest.len() - after.len().min(rest.len()));
        self.compare(cpu, expectation.anchor, before, head, None);
        self.compare(cpu, expectation.anchor, after, tail, next);
        if !any.is_empty() || last > first {
            self.score.undetermined += any.len() as u64;
            self.undetermined.extend(expected[first..=last].iter().filter_map(|expected| match *expected {
                Expected::Any { line, reason } => Some((line, reason)),
                _ => None,
            }));
        }
    }

    fn compare(&mut self, cpu: u32, anchor: Anchor, expected: &[Expected], movs: &[Mov], next: Option<Anchor>) {
        let pairs = common(expected, movs);
        let (mut some, mut told) = (0, 0);
        for &(at, _) in &pairs {
            match expected[at] {
                Expected::Some(mov, reason) => {
                    some += 1;
                    self.undetermined.insert((mov.line, reason));
                }
                _ => told += 1,
            }
        }
        self.score.undetermined += some;
        self.score.matched += told;
        self.score.predicted += expected.len() as u64 - some;
        self.score.observed += movs.len() as u64 - some;
        if pairs.len() != expected.len() || pairs.len() != movs.len() {
            self.differences.push(difference(cpu, anchor, expected, movs, next));
        }
    }
}

/// What is told of a CPU's registers as its windows pass.
struct Expecting {
    /// What is in DR0-DR3 by the host's word.
    addresses: [bool; 4],
    /// All slots that are taken are taken by those of whom the lines tell, in the places that the model has.
    slots: bool,
    expectations: Vec<Expectation>,
}

impl Expecting {
    fn new(from_power_on: bool) -> Expecting {
        let start = Expectation { anchor: Anchor::Start, expected: Vec::new() };
        Expecting { addresses: [from_power_on; 4], slots: true, expectations: vec![start] }
    }

    fn windows(mut self, windows: &[Compared<'_>]) -> Vec<Expectation> {
        for window in windows {
            match window.hidden {
                Some(reason) => self.hidden(window, reason),
                None => self.window(window),
            }
        }
        self.expectations
    }

    fn expect(&mut self, expected: Expected) {
        self.expectations.last_mut().expect("never empty").expected.push(expected);
    }

    fn anchor(&mut self, anchor: Anchor) {
        self.expectations.push(Expectation { anchor, expected: Vec::new() });
    }

    /// Nothing is known of it but that a guest is entered; whoever it hides may leave anything in any slot.
    fn hidden(&mut self, window: &Compared<'_>, reason: Reason) {
        let line = window.line();
        if matches!(reason, Reason::Stranger(_) | Reason::Before) && window.row.is_some() {
            (self.slots, self.addresses) = (false, [false; 4]);
        }
        self.expect(Expected::Any { line, reason });
        if window.items.iter().any(|item| matches!(item, Item::Entry)) {
            self.anchor(Anchor::Entry { window: line });
        }
    }

    fn window(&mut self, window: &Compared<'_>) {
        let (Some(row), Some(told)) = (window.row, window.window) else { return };
        let line = row.line;
        self.slots |= told.is_empty;
        let is_entry = matches!(row.input, Input::Entry { .. });
        if is_entry && !told.load_told {
            self.expect(Expected::Any { line, reason: Reason::Load });
        }
        // What is going on.
        let mut doing = None;
        for item in window.items {
            match *item {
                Item::Window(_) | Item::Done(Done::Sync) => {}
                Item::Done(done) => {
                    doing = Some(done);
                    self.anchor(Anchor::Done { window: line, done });
                }
                Item::Entry => {
                    doing = None;
                    self.anchor(Anchor::Entry { window: line });
                }
                Item::Mov { dr, value } => {
                    let mov = Mov { dr, value, line };
                    match doing {
                        Some(done) => self.host(mov, done),
                        None if is_entry => self.guest(mov, &told),
                        None => self.expect(Expected::Told(mov)),
                    }
                }
            }
        }
    }

    /// A MOV of an install, an uninstall or a refresh.
    fn host(&mut self, mov: Mov, done: Done) {
        let slot = usize::from(mov.dr);
        let reason = Reason::Host(1 << mov.dr);
        let expected = match (done, mov.dr) {
            (Done::Install(_), _) if !self.slots => Expected::Any { line: mov.line, reason: Reason::Slot },
            (Done::Install(_), 0..=3) => {
                self.addresses[slot] = true;
                Expected::Told(mov)
            }
            (Done::Restore, 0..=3) if !(self.slots && self.addresses[slot]) => Expected::Some(mov, reason),
            (_, 7) if !self.slots => Expected::Some(mov, reason),
            _ => Expected::Told(mov),
        };
        self.expect(expected);
    }

    /// A MOV of an entry.
    fn guest(&mut self, mov: Mov, told: &Window) {
        if !told.load_told {
            return;
        }
        self.expect(match mov.dr {
            0..=3 if !told.addresses_told[usize::from(mov.dr)] => Expected::Some(mov, Reason::Guest(1 << mov.dr)),
            _ => Expected::Told(mov),
        });
    }
}

/// The truth without the anchors of hidden windows, whose MOVs go with what precedes them.
fn in_the_open(segments: &[Segment], windows: &[Compared<'_>]) -> Vec<Segment> {
    let is_hidden = |line: u32| {
        let at = windows.binary_search_by_key(&line, Compared::line);
        at.is_ok_and(|at| windows[at].hidden.is_some())
    };
    let mut open: Vec<Segment> = Vec::with_capacity(segments.len());
    for segment in segments {
        match (segment.anchor, open.last_mut()) {
            (Anchor::Done { window, .. }, Some(last)) if is_hidden(window) => last.movs.extend(&segment.movs),
            _ => open.push(segment.clone()),
        }
    }
    open
}

/// Whether the truth has an anchor further on, without leaving its window.
fn ahead(observed: &[Segment], anchor: Anchor) -> bool {
    let mut before = observed.iter().take_while(|segment| segment.anchor.window() <= anchor.window());
    before.any(|segment| segment.anchor.window() < anchor.window() || segment.anchor == anchor)
}

/// Where two lists of MOV DR part. The truth does not say to which window a MOV belongs: a predicted one does, and what
/// comes last before an entry is the entry's.
fn difference(cpu: u32, anchor: Anchor, expected: &[Expected], observed: &[Mov], next: Option<Anchor>) -> Difference {
    let same = expected.iter().zip(observed).take_while(|(expected, mov)| *expected == *mov).count();
    let mov = |expected: &Expected| match *expected {
        Expected::Told(mov) | Expected::Some(mov, _) => Some(mov),
        Expected::Any { .. } => None,
    };
    let line = match (expected.get(same).and_then(mov), next) {
        (Some(mov), _) => mov.line,
        (None, Some(Anchor::Entry { window })) => window,
        (None, _) => anchor.window(),
    };
    let show_expected = |expected: &Expected| match *expected {
        Expected::Told(mov) => show(mov),
        Expected::Some(mov, _) if mov.value.is_some() => format!("dr{} = ?", mov.dr),
        Expected::Some(mov, _) => show(mov),
        Expected::Any { .. } => "?".to_owned(),
    };
    let place = observed.get(same).map_or(String::new(), |mov| format!(" (steps line {})", mov.line));
    Difference {
        line,
        cpu,
        predicted: list(expected[same..].iter().map(show_expected)),
        observed: format!("{}{place}", list(observed[same..].iter().map(|&mov| show(mov)))),
    }
}

fn show(mov: Mov) -> String {
    match mov.value {
        Some(value) => format!("dr{} = {value:#x}", mov.dr),
        None => format!("read dr{}", mov.dr),
    }
}
