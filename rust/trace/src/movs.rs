//! Every MOV DR, with its value, between two anchors that both sides have.
//!
//! What a MOV writes is determined by the lines if they tell what went into the register that it comes from: a host's
//! address by the last install into that slot, a guest's by the guest's last write. Which slot an install takes is
//! determined if all are told that are taken. What was in a register before the lines begin is presumed only: the first
//! MOV that shows it is not scored, and decides whether the presumption holds. Where it does not, place and register are
//! compared all the same; of a window of which nothing is determined, neither.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use debugreg_model::VcpuId;

use crate::input::{Done, Input};
use crate::predict::{Item, Load, Window};
use crate::tie::Observed;
use crate::truth::{Anchor, Mov, Segment};
use crate::verify::{Compared, Difference, Reason, Score, common, list};

/// What the lines say will be executed.
#[derive(Copy, Clone, Debug)]
enum Expected {
    /// This MOV.
    Told(Mov),
    /// A MOV to or from this register, for this reason of no certain value: of the one that is presumed, or of any.
    Some(Mov, Reason, Option<Presumption>),
    /// Anything.
    Any { line: u32, reason: Reason },
}

impl PartialEq<Mov> for Expected {
    fn eq(&self, mov: &Mov) -> bool {
        match self {
            Expected::Told(told) => told == mov,
            Expected::Some(some, ..) => some.dr == mov.dr && some.value.is_some() == mov.value.is_some(),
            Expected::Any { .. } => false,
        }
    }
}

/// What is presumed of the time before the lines begin.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
enum Presumption {
    /// What the host has in an address register: of this CPU, since somebody hidden may last have written it.
    Host { cpu: u32, dr: u8, hidden: u32 },
    /// What a guest has in one.
    Guest { vcpu: VcpuId, dr: u8 },
    /// Whether a guest's registers are loaded at all.
    Load { vcpu: VcpuId },
}

/// An anchor, and what is expected up to the next.
struct Expectation {
    anchor: Anchor,
    expected: Vec<Expected>,
    /// From this place on it stands and falls with a presumption.
    presumed: Option<(usize, u32, Presumption)>,
}

impl Expectation {
    fn new(anchor: Anchor) -> Expectation {
        Expectation { anchor, expected: Vec::new(), presumed: None }
    }
}

/// The comparison of all CPUs.
#[derive(Default)]
pub(crate) struct Comparison {
    /// What is not shown to be set before the first line is not set.
    from_power_on: bool,
    pub(crate) score: Score,
    pub(crate) differences: Vec<Difference>,
    pub(crate) undetermined: BTreeSet<(u32, Reason)>,
    /// Presumptions that were put to the test, and whether they hold.
    decided: HashMap<Presumption, bool>,
}

impl Comparison {
    pub(crate) fn new(from_power_on: bool) -> Comparison {
        Comparison { from_power_on, ..Comparison::default() }
    }

    /// Compares one CPU.
    pub(crate) fn cpu(&mut self, cpu: u32, windows: &[Compared<'_>], observed: &Observed) {
        let mut expectations = Expecting::new(cpu, self.from_power_on).windows(windows);
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
        let is_any = |expected: &Expected| matches!(expected, Expected::Any { .. });
        let expected = &*self.decided(expectation, movs);
        let anchor = expectation.anchor;
        let (first, last) = (expected.iter().position(is_any), expected.iter().rposition(is_any));
        let (Some(first), Some(last)) = (first, last) else {
            return self.compare(cpu, anchor, expected, movs, next);
        };
        let (before, after) = (&expected[..first], &expected[last + 1..]);
        let (head, rest) = movs.split_at(before.len().min(movs.len()));
        let (any, tail) = rest.split_at(rest.len() - after.len().min(rest.len()));
        self.compare(cpu, anchor, before, head, None);
        self.compare(cpu, anchor, after, tail, next);
        if !any.is_empty() {
            self.score.undetermined += any.len() as u64;
            self.undetermined.extend(expected[first..=last].iter().filter_map(|expected| match *expected {
                Expected::Any { line, reason } => Some((line, reason)),
                _ => None,
            }));
        }
    }

    /// What is expected once presumptions are facts, or are dropped.
    fn decided<'a>(&mut self, expectation: &'a Expectation, movs: &[Mov]) -> Cow<'a, [Expected]> {
        let Expectation { expected, presumed, .. } = expectation;
        let is_open = |expected: &Expected| matches!(expected, Expected::Some(_, _, Some(_)));
        if presumed.is_none() && !expected.iter().any(is_open) {
            return Cow::Borrowed(expected);
        }
        let mut decided: Vec<Expected> = expected
            .iter()
            .map(|expected| match *expected {
                Expected::Some(mov, reason, Some(presumption)) => match self.decided.get(&presumption) {
                    None => *expected,
                    Some(true) => Expected::Told(mov),
                    Some(false) => Expected::Some(mov, reason, None),
                },
                _ => *expected,
            })
            .collect();
        if let Some((at, line, presumption)) = *presumed {
            let is_told = self.decided.get(&presumption).copied();
            if is_told.is_none() && !decided.iter().any(|expected| matches!(expected, Expected::Any { .. })) {
                let holds =
                    decided.len() == movs.len() && decided.iter().zip(movs).all(|(expected, mov)| expected == mov);
                self.decided.insert(presumption, holds);
            }
            if is_told != Some(true) {
                decided.truncate(at);
                decided.push(Expected::Any { line, reason: Reason::Load });
            }
        }
        Cow::Owned(decided)
    }

    fn compare(&mut self, cpu: u32, anchor: Anchor, expected: &[Expected], movs: &[Mov], next: Option<Anchor>) {
        let pairs = common(expected, movs);
        let (mut some, mut told) = (0, 0);
        for &(at, of) in &pairs {
            let Expected::Some(mov, reason, presumption) = expected[at] else {
                told += 1;
                continue;
            };
            some += 1;
            self.undetermined.insert((mov.line, reason));
            if let Some(presumption) = presumption {
                self.decided.insert(presumption, mov == movs[of]);
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
    cpu: u32,
    /// What is in DR0-DR3 by the host's word.
    addresses: [bool; 4],
    /// All slots that are taken are taken by those of whom the lines tell, in the places that the model has.
    slots: bool,
    /// How often somebody hidden may have written registers.
    hidden: u32,
    expectations: Vec<Expectation>,
}

impl Expecting {
    fn new(cpu: u32, from_power_on: bool) -> Expecting {
        let expectations = vec![Expectation::new(Anchor::Start)];
        Expecting { cpu, addresses: [from_power_on; 4], slots: true, hidden: 0, expectations }
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

    fn last(&mut self) -> &mut Expectation {
        self.expectations.last_mut().expect("never empty")
    }

    fn expect(&mut self, expected: Expected) {
        self.last().expected.push(expected);
    }

    fn anchor(&mut self, anchor: Anchor) {
        self.expectations.push(Expectation::new(anchor));
    }

    /// Nothing is known of it but that a guest is entered; whoever it hides may leave anything in any slot.
    fn hidden(&mut self, window: &Compared<'_>, reason: Reason) {
        let line = window.line();
        if matches!(reason, Reason::Stranger(_) | Reason::Before) && window.row.is_some() {
            (self.slots, self.addresses) = (false, [false; 4]);
            self.hidden += 1;
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
        match told.load {
            Load::Told => {}
            Load::Presumed => {
                let at = self.last().expected.len();
                self.last().presumed = told.vcpu.map(|vcpu| (at, line, Presumption::Load { vcpu }));
            }
            Load::Hidden => self.expect(Expected::Any { line, reason: Reason::Load }),
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
            (Done::Restore, 0..=3) | (_, 7) if !self.slots => Expected::Some(mov, reason, None),
            (Done::Restore, 0..=3) if !self.addresses[slot] => {
                let presumption = Presumption::Host { cpu: self.cpu, dr: mov.dr, hidden: self.hidden };
                Expected::Some(mov, reason, Some(presumption))
            }
            _ => Expected::Told(mov),
        };
        self.expect(expected);
    }

    /// A MOV of an entry.
    fn guest(&mut self, mov: Mov, told: &Window) {
        if told.load == Load::Hidden {
            return;
        }
        self.expect(match mov.dr {
            0..=3 if !told.addresses_told[usize::from(mov.dr)] => {
                let presumption = told.vcpu.map(|vcpu| Presumption::Guest { vcpu, dr: mov.dr });
                Expected::Some(mov, Reason::Guest(1 << mov.dr), presumption)
            }
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
        Expected::Told(mov) | Expected::Some(mov, ..) => Some(mov),
        Expected::Any { .. } => None,
    };
    let line = match (expected.get(same).and_then(mov), next) {
        (Some(mov), _) => mov.line,
        (None, Some(Anchor::Entry { window })) => window,
        (None, _) => anchor.window(),
    };
    let show_expected = |expected: &Expected| match *expected {
        Expected::Some(mov, ..) if mov.value.is_some() => format!("dr{} = ?", mov.dr),
        Expected::Told(mov) | Expected::Some(mov, ..) => show(mov),
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
