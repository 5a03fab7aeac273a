//! Every MOV DR, with its value, between two anchors that both sides have.
//!
//! What a MOV writes is determined by the lines if they tell what went into the register that it comes from: a host's
//! address by the last install into that slot, a guest's by the guest's last write. Which slot an install takes is
//! determined if all are told that are taken. What was in a register before the lines begin is presumed only: the first
//! MOV that shows it is not scored, and decides whether the presumption holds. Where it does not, place and register are
//! compared all the same; of a window of which nothing is determined, neither.
//!
//! Among them are those that load a guest's DR0-DR3 at an entry or read them back at an exit. What they wrote or read is
//! compared once more, with what by the model the guest (or its debugger) has in that register.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use debugreg_model::VcpuId;

use crate::input::{Done, Input};
use crate::predict::{Item, Load, Window};
use crate::truth::{Anchor, Mov, Observed, Register};
use crate::verify::{Compared, Difference, Reason, Score, common, list};

/// What the lines say will be executed.
#[derive(Copy, Clone, Debug)]
enum Expected {
    /// This MOV.
    Told(Mov),
    /// A MOV to or from this register, for this reason of no certain value: of the one that is presumed, or of any.
    Some(Mov, Reason, Option<Presumption>),
    /// A MOV from this register of a guest, in which something is presumed to be.
    Read(Mov, Presumption),
    /// Anything.
    Any { line: u32, reason: Reason },
}

impl PartialEq<Mov> for Expected {
    fn eq(&self, mov: &Mov) -> bool {
        match self {
            Expected::Told(told) | Expected::Read(told, _) => told == mov,
            Expected::Some(some, ..) => some.dr == mov.dr && some.value.is_some() == mov.value.is_some(),
            Expected::Any { .. } => false,
        }
    }
}

impl Expected {
    fn is_any(&self) -> bool {
        self.mov().is_none()
    }

    fn mov(&self) -> Option<&Mov> {
        match self {
            Expected::Told(mov) | Expected::Some(mov, ..) | Expected::Read(mov, _) => Some(mov),
            Expected::Any { .. } => None,
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
    /// Where that begins.
    from: usize,
    /// From this place on it stands and falls with a presumption.
    presumed: Option<(usize, u32, Presumption)>,
}

/// What is counted.
#[derive(Copy, Clone, Default)]
pub(crate) struct Scores {
    /// Every MOV DR.
    pub(crate) step: Score,
    /// Registers of guests that an entry loads.
    pub(crate) loaded: Score,
    /// Registers of guests that an exit reads back.
    pub(crate) read_back: Score,
}

impl Scores {
    /// A MOV, in each score that it belongs to.
    fn of(&mut self, mov: &Mov, mut count: impl FnMut(&mut Score)) {
        count(&mut self.step);
        if let Some(score) = self.of_guest(mov) {
            count(score);
        }
    }

    fn of_guest(&mut self, mov: &Mov) -> Option<&mut Score> {
        mov.guest.map(|_| if mov.reads_back() { &mut self.read_back } else { &mut self.loaded })
    }

    fn predicted<'a>(&mut self, movs: impl IntoIterator<Item = &'a Mov>) {
        movs.into_iter().for_each(|mov| self.of(mov, |score| score.predicted += 1));
    }

    fn observed<'a>(&mut self, movs: impl IntoIterator<Item = &'a Mov>) {
        movs.into_iter().for_each(|mov| self.of(mov, |score| score.observed += 1));
    }

    fn undetermined<'a>(&mut self, movs: impl IntoIterator<Item = &'a Mov>) {
        movs.into_iter().for_each(|mov| self.of(mov, |score| score.undetermined += 1));
    }
}

/// The comparison of all CPUs.
#[derive(Default)]
pub(crate) struct Comparison {
    /// What is not shown to be set before the first line is not set.
    from_power_on: bool,
    pub(crate) scores: Scores,
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
        let Expecting { expected, expectations, .. } = Expecting::of(cpu, self.from_power_on, windows, observed);
        let anchors = in_the_open(&observed.anchors, windows);
        let left = |p: usize| {
            let to = expectations.get(p + 1).map_or(expected.len(), |next| next.from);
            (&expectations[p], &expected[expectations[p].from..to])
        };
        let right = |o: usize| {
            let to = anchors.get(o + 1).map_or(observed.movs.len(), |&(_, to)| to);
            &observed.movs[anchors[o].1..to]
        };
        let (mut p, mut o) = (0, 0);
        while p < expectations.len() && o < anchors.len() {
            let ((expectation, expected), anchor) = (left(p), anchors[o].0);
            if expectation.anchor == anchor {
                let next = anchors.get(o + 1).map(|&(anchor, _)| anchor);
                self.segment(cpu, expectation, expected, right(o), next);
                (p, o) = (p + 1, o + 1);
            } else if expectation.anchor.window() < anchor.window() || !ahead(&anchors[o..], expectation.anchor) {
                self.lacks(expected);
                p += 1;
            } else {
                self.scores.observed(right(o));
                o += 1;
            }
        }
        (p..expectations.len()).for_each(|p| self.lacks(left(p).1));
        (o..anchors.len()).for_each(|o| self.scores.observed(right(o)));
    }

    /// Of an anchor that only the model has.
    fn lacks(&mut self, expected: &[Expected]) {
        self.scores.predicted(expected.iter().filter_map(Expected::mov));
    }

    fn segment(
        &mut self,
        cpu: u32,
        expectation: &Expectation,
        expected: &[Expected],
        movs: &[Mov],
        next: Option<Anchor>,
    ) {
        let expected = &*self.decided(expectation, expected, movs);
        let anchor = expectation.anchor;
        let (first, last) = (expected.iter().position(Expected::is_any), expected.iter().rposition(Expected::is_any));
        let (Some(first), Some(last)) = (first, last) else {
            return self.compare(cpu, anchor, expected, movs, next);
        };
        let (before, after) = (&expected[..first], &expected[last + 1..]);
        let (head, rest) = movs.split_at(before.len().min(movs.len()));
        let (any, tail) = rest.split_at(rest.len() - after.len().min(rest.len()));
        self.compare(cpu, anchor, before, head, None);
        self.compare(cpu, anchor, after, tail, next);
        if !any.is_empty() {
            self.scores.undetermined(any);
            self.undetermined.extend(expected[first..=last].iter().filter_map(|expected| match *expected {
                Expected::Any { line, reason } => Some((line, reason)),
                _ => None,
            }));
        }
    }

    /// What is expected once presumptions are facts, or are dropped.
    fn decided<'a>(
        &mut self,
        expectation: &Expectation,
        expected: &'a [Expected],
        movs: &[Mov],
    ) -> Cow<'a, [Expected]> {
        let is_open = |expected: &Expected| matches!(expected, Expected::Some(_, _, Some(_)));
        if expectation.presumed.is_none() && !expected.iter().any(is_open) {
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
        if let Some((at, line, presumption)) = expectation.presumed {
            let is_told = self.decided.get(&presumption).copied();
            if is_told.is_none() && !decided.iter().any(Expected::is_any) {
                let holds =
                    decided.len() == movs.len() && decided.iter().zip(movs).all(|(expected, mov)| expected == mov);
                self.decided.insert(presumption, holds);
            }
            if is_told != Some(true) {
                decided.truncate(at - expectation.from);
                decided.push(Expected::Any { line, reason: Reason::Load });
            }
        }
        Cow::Owned(decided)
    }

    fn compare(&mut self, cpu: u32, anchor: Anchor, expected: &[Expected], movs: &[Mov], next: Option<Anchor>) {
        let pairs = common(expected, movs);
        let (mut paired, mut of) = (pairs.iter().copied().peekable(), 0);
        for (at, expected) in expected.iter().enumerate() {
            let pair = paired.next_if(|&(expected, _)| expected == at).map(|(_, of)| of);
            if let Some(next) = pair {
                self.scores.observed(&movs[of..next]);
                of = next + 1;
            }
            match (pair.map(|of| &movs[of]), expected) {
                (None, _) => self.scores.predicted(expected.mov()),
                (Some(mov), &Expected::Some(presumed, reason, presumption)) => {
                    self.scores.undetermined([mov]);
                    self.undetermined.insert((presumed.line, reason));
                    if let Some(presumption) = presumption {
                        self.decided.insert(presumption, presumed == *mov);
                    }
                }
                (Some(mov), Expected::Told(told) | Expected::Read(told, _)) => {
                    self.scores.step.agree();
                    self.guest(cpu, expected, told, mov);
                }
                (Some(_), Expected::Any { .. }) => unreachable!("is equal to nothing"),
            }
        }
        self.scores.observed(&movs[of..]);
        if pairs.len() != expected.len() || pairs.len() != movs.len() {
            self.differences.push(difference(cpu, anchor, expected, movs, next));
        }
    }

    /// Of a guest's register that both sides load, or read back.
    fn guest(&mut self, cpu: u32, expected: &Expected, told: &Mov, mov: &Mov) {
        let (Some(has), Some(found)) = (told.guest, mov.guest) else {
            // Only one side has it for a guest's.
            self.scores.of_guest(told).into_iter().for_each(|score| score.predicted += 1);
            self.scores.of_guest(mov).into_iter().for_each(|score| score.observed += 1);
            return;
        };
        let is_told = match expected {
            Expected::Read(_, presumption) => self.decided.get(presumption) == Some(&true),
            _ => true,
        };
        let score = self.scores.of_guest(told).expect("a guest's");
        if !is_told || found == Register::Unknown {
            score.undetermined += 1;
            self.undetermined.insert((told.line, Reason::Guest(1 << told.dr)));
        } else if has == found {
            score.agree();
        } else {
            score.predicted += 1;
            score.observed += 1;
            self.differences.push(Difference {
                line: told.line,
                cpu,
                predicted: format!("the guest's dr{} = {}", told.dr, show_register(has)),
                observed: format!("dr{} = {} (steps line {})", mov.dr, show_register(found), mov.line),
            });
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
    expected: Vec<Expected>,
    expectations: Vec<Expectation>,
}

impl Expecting {
    fn of(cpu: u32, from_power_on: bool, windows: &[Compared<'_>], observed: &Observed) -> Expecting {
        let mut expecting = Expecting {
            cpu,
            addresses: [from_power_on; 4],
            slots: true,
            hidden: 0,
            expected: Vec::with_capacity(observed.movs.len()),
            expectations: Vec::with_capacity(observed.anchors.len()),
        };
        expecting.anchor(Anchor::Start);
        if observed.begins_before {
            expecting.expect(Expected::Any { line: 0, reason: Reason::Before });
        }
        for window in windows {
            match window.hidden {
                Some(reason) => expecting.hidden(window, reason),
                None => expecting.window(window),
            }
        }
        if observed.ends_after {
            let line = windows.last().map_or(0, Compared::line);
            expecting.expect(Expected::Any { line, reason: Reason::End });
        }
        expecting
    }

    fn expect(&mut self, expected: Expected) {
        self.expected.push(expected);
    }

    fn anchor(&mut self, anchor: Anchor) {
        self.expectations.push(Expectation { anchor, from: self.expected.len(), presumed: None });
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
                let presumed = told.vcpu.map(|vcpu| (self.expected.len(), line, Presumption::Load { vcpu }));
                self.expectations.last_mut().expect("never empty").presumed = presumed;
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
                    let mov = Mov { dr, value, line, guest: None };
                    match doing {
                        Some(done) => self.host(mov, done),
                        None if is_entry => self.guest(mov, &told),
                        None => self.left(mov, &told),
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

    /// A MOV of an exit that is neither an install's, an uninstall's nor a refresh's.
    fn left(&mut self, mov: Mov, told: &Window) {
        let guest = told.vcpu.filter(|_| mov.value.is_none()).zip(register(mov.dr, told));
        self.expect(match guest {
            None => Expected::Told(mov),
            Some((vcpu, register)) => {
                let mov = Mov { guest: Some(register), ..mov };
                if told.addresses_told[usize::from(mov.dr)] {
                    Expected::Told(mov)
                } else {
                    Expected::Read(mov, Presumption::Guest { vcpu, dr: mov.dr })
                }
            }
        });
    }

    /// A MOV of an entry.
    fn guest(&mut self, mov: Mov, told: &Window) {
        if told.load == Load::Hidden {
            return;
        }
        let mov = Mov { guest: mov.value.and_then(|_| register(mov.dr, told)), ..mov };
        self.expect(match mov.dr {
            0..=3 if !told.addresses_told[usize::from(mov.dr)] => {
                let presumption = told.vcpu.map(|vcpu| Presumption::Guest { vcpu, dr: mov.dr });
                Expected::Some(mov, Reason::Guest(1 << mov.dr), presumption)
            }
            _ => Expected::Told(mov),
        });
    }
}

/// What a guest, or its debugger, has in an address register.
fn register(dr: u8, told: &Window) -> Option<Register> {
    told.guest.dr.get(usize::from(dr)).map(|&value| Register::Holds(value))
}

/// The anchors without those of hidden windows, whose MOVs go with what precedes them.
fn in_the_open(anchors: &[(Anchor, usize)], windows: &[Compared<'_>]) -> Vec<(Anchor, usize)> {
    let mut windows = windows.iter().peekable();
    let is_open = |&&(anchor, _): &&(Anchor, usize)| {
        let Anchor::Done { window: line, .. } = anchor else { return true };
        while windows.next_if(|window| window.line() < line).is_some() {}
        windows.peek().is_none_or(|window| window.line() != line || window.hidden.is_none())
    };
    anchors.iter().filter(is_open).copied().collect()
}

/// Whether the truth has an anchor further on, without leaving its window.
fn ahead(anchors: &[(Anchor, usize)], anchor: Anchor) -> bool {
    let mut before = anchors.iter().take_while(|(other, _)| other.window() <= anchor.window());
    before.any(|&(other, _)| other.window() < anchor.window() || other == anchor)
}

/// Where two lists of MOV DR part. The truth does not say to which window a MOV belongs: a predicted one does, and what
/// comes last before an entry is the entry's.
fn difference(cpu: u32, anchor: Anchor, expected: &[Expected], observed: &[Mov], next: Option<Anchor>) -> Difference {
    let same = expected.iter().zip(observed).take_while(|(expected, mov)| *expected == *mov).count();
    let line = match (expected.get(same).and_then(Expected::mov), next) {
        (Some(mov), _) => mov.line,
        (None, Some(Anchor::Entry { window })) => window,
        (None, _) => anchor.window(),
    };
    let show_expected = |expected: &Expected| match *expected {
        Expected::Some(mov, ..) if mov.value.is_some() => format!("dr{} = ?", mov.dr),
        _ => expected.mov().map_or_else(|| "?".to_owned(), |&mov| show(mov)),
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

fn show_register(register: Register) -> String {
    match register {
        Register::Holds(value) => format!("{value:#x}"),
        Register::Unknown => "?".to_owned(),
    }
}
