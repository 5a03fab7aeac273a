//! The model's word against the kernel's: predicted from the input lines alone, compared window by window.
//!
//! A window is what lies between two input lines of one CPU. Installs, uninstalls, restores and syncs are compared in
//! their order inside it; every MOV DR of a steps file is compared, with its value, between two of these (or two
//! entries) that both sides have. What the lines do not determine counts on neither side.

use std::borrow::Cow;
use std::collections::BTreeSet;

use debugreg::Dr7;

use crate::input::{Done, Input, Row, Trace, Truth};
use crate::late;
use crate::movs;
use crate::predict::{Item, Load, Predictions, Window};
use crate::strangers::{self, Stranger, Unseen, Who};

/// How many were predicted, how many there were, how many agree.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Score {
    /// By the model.
    pub predicted: u64,
    /// In the truth.
    pub observed: u64,
    /// In both, in the same window and order.
    pub matched: u64,
    /// In the truth besides, and not determined by the lines.
    pub undetermined: u64,
}

impl Score {
    /// Everything agrees.
    pub fn is_exact(&self) -> bool {
        self.predicted == self.observed && self.matched == self.observed
    }

    /// One more that agrees.
    pub(crate) fn agree(&mut self) {
        self.predicted += 1;
        self.observed += 1;
        self.matched += 1;
    }
}

/// Where the model and the kernel first part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// The input line that opened the window, 0 for what comes before the first.
    pub line: u32,
    /// CPU.
    pub cpu: u32,
    /// What the model says happens there.
    pub predicted: String,
    /// What happened.
    pub observed: String,
}

/// The comparison.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verify {
    /// Installs, with address.
    pub install: Score,
    /// Uninstalls, with address.
    pub uninstall: Score,
    /// Refreshes.
    pub restore: Score,
    /// Readings-back of a guest's registers.
    pub sync: Score,
    /// MOV DR with direction, register and value, if there is a steps file.
    pub step: Option<Score>,
    /// A guest's registers at each sync, if there is a steps file: DR0-DR3 as they were read, and DR7 as KVM put it into
    /// force again. (DR6 is read from the VMCB, and in no line.)
    pub guest_at_sync: Option<Score>,
    /// A guest's DR0-DR3, or its debugger's, as entries loaded them, if there is a steps file.
    pub guest_at_entry: Option<Score>,
    /// All differences, in the order of the trace.
    pub differences: Vec<Difference>,
    /// Windows in which something is not determined by the lines, and why; it counts on neither side.
    pub undetermined: Vec<(u32, String)>,
}

impl Verify {
    /// Nothing differs.
    pub fn is_exact(&self) -> bool {
        let scores = [Some(self.install), Some(self.uninstall), Some(self.restore), Some(self.sync)];
        let of_steps = [self.step, self.guest_at_sync, self.guest_at_entry];
        scores.iter().chain(&of_steps).flatten().all(Score::is_exact)
    }

    fn score(&mut self, done: Done) -> &mut Score {
        match done {
            Done::Install(_) => &mut self.install,
            Done::Uninstall(_) => &mut self.uninstall,
            Done::Restore => &mut self.restore,
            Done::Sync => &mut self.sync,
        }
    }
}

/// Why something in a window is not determined.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Reason {
    /// It precedes the first line of its CPU.
    Before,
    /// Somebody has a breakpoint that is not told.
    Stranger(Who),
    /// Whether the guest's MOV DR exit, and whether it has a debugger, is not told.
    Sync,
    /// The guest's registers are not told.
    Load,
    /// Registers of the guest, as bits.
    Guest(u8),
    /// Registers of the host, as bits.
    Host(u8),
    /// A slot that somebody took in a place that is not told.
    Slot,
    /// The lines end before it does.
    End,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let registers = |registers: u8| {
            let names = (0..8).filter(|dr| registers & 1 << dr != 0).map(|dr| format!("DR{dr}"));
            names.collect::<Vec<_>>().join(", ")
        };
        match *self {
            Reason::Before => f.write_str("what comes before the first line of its CPU"),
            Reason::Stranger(who) => who.fmt(f),
            Reason::Sync => f.write_str("no line tells whether the guest had its registers, or a debugger, before"),
            Reason::Load => f.write_str("no line tells what the guest, or its debugger, set before"),
            Reason::Guest(drs) => write!(f, "no line tells what the guest has in {}", registers(drs)),
            Reason::Host(drs) => write!(f, "no line tells what was in {} before", registers(drs)),
            Reason::Slot => f.write_str("no line tells which slots are taken"),
            Reason::End => f.write_str("the trace ends before this window does"),
        }
    }
}

/// A window, as both sides have it.
pub(crate) struct Compared<'a> {
    /// `None` for what precedes the first row of its CPU.
    pub(crate) row: Option<&'a Row>,
    pub(crate) window: Option<Window>,
    /// What is predicted.
    pub(crate) items: &'a [Item],
    pub(crate) observed: &'a [Truth],
    /// Why nothing of it is determined, if so.
    pub(crate) hidden: Option<Reason>,
}

impl Compared<'_> {
    pub(crate) fn line(&self) -> u32 {
        self.row.map_or(0, |row| row.line)
    }

    pub(crate) fn predicted(&self) -> impl Iterator<Item = Done> + '_ {
        self.items.iter().filter_map(|item| match item {
            Item::Done(done) => Some(*done),
            _ => None,
        })
    }

    pub(crate) fn is_exact(&self) -> bool {
        self.predicted().eq(self.observed.iter().map(|truth| truth.done))
    }

    /// What was predicted and what was done; without syncs, if they are not told and differ.
    fn sides(&self) -> (Vec<Done>, Vec<Done>) {
        let (mut predicted, mut observed): (Vec<Done>, Vec<Done>) =
            (self.predicted().collect(), self.observed.iter().map(|truth| truth.done).collect());
        if self.lacks_sync() {
            predicted.retain(|&done| done != Done::Sync);
            observed.retain(|&done| done != Done::Sync);
        }
        (predicted, observed)
    }

    /// Whether the sides differ in a sync that the lines do not tell.
    fn lacks_sync(&self) -> bool {
        let syncs = |done: &Done| *done == Done::Sync;
        self.window.is_some_and(|window| !window.sync_told)
            && self.predicted().filter(syncs).count() != self.observed.iter().filter(|t| syncs(&t.done)).count()
    }

    /// What was done besides, if all that was predicted was done.
    pub(crate) fn surplus(&self) -> Option<Vec<Done>> {
        if self.observed.is_empty() || self.is_exact() {
            return None;
        }
        let (predicted, mut observed) = self.sides();
        let mut predicted = predicted.into_iter().peekable();
        observed.retain(|done| predicted.next_if_eq(done).is_none());
        (predicted.next().is_none() && !observed.is_empty()).then_some(observed)
    }
}

/// Compares.
pub(crate) fn verify(trace: &Trace, predictions: &Predictions, unseen: &Unseen) -> Verify {
    let mut truth = vec![Vec::new(); trace.cpus];
    for &line in &trace.truth {
        truth[usize::from(line.cpu)].push(line);
    }
    let predicted = predictions.cpus.iter().zip(&predictions.asked).zip(&truth);
    let predicted: Vec<Cow<'_, [Item]>> =
        predicted.map(|((items, asked), truth)| late::placed(trace, items, asked, truth)).collect();
    let cpus = predicted.iter().zip(&truth);
    let mut cpus: Vec<Vec<Compared<'_>>> = cpus.map(|(items, truth)| windows(trace, items, truth)).collect();
    let strangers = strangers::find(&cpus, trace, unseen);
    let mut verify = Verify::default();
    let mut undetermined = BTreeSet::new();
    for (cpu, windows) in cpus.iter_mut().enumerate() {
        let last = windows.len() - 1;
        for (at, window) in windows.iter_mut().enumerate() {
            window.hidden = hidden(window, &strangers);
            compare(&mut verify, &mut undetermined, cpu, window, at == last);
        }
    }
    if trace.steps.is_none() {
        // Nothing is compared there, and it is not known what happens.
        let loads = cpus.iter().flatten().filter(|window| window.window.is_some_and(|told| told.load == Load::Hidden));
        undetermined.extend(loads.map(|window| (window.line(), Reason::Load)));
    }
    if let Some(tied) = &trace.steps {
        let mut step = movs::Comparison::new(tied.from_power_on);
        for (cpu, observed) in tied.cpus.iter().enumerate() {
            if let Some(windows) = cpus.get(cpu) {
                step.cpu(cpu as u32, windows, observed);
            }
        }
        let movs::Scores { step: movs, loaded, mut read_back } = step.scores;
        cpus.iter().flatten().for_each(|window| control(&mut verify, &mut read_back, window));
        verify.step = Some(movs);
        verify.guest_at_sync = Some(read_back);
        verify.guest_at_entry = Some(loaded);
        verify.differences.append(&mut step.differences);
        undetermined.append(&mut step.undetermined);
    }
    verify.differences.sort_by_key(|difference| (difference.line, difference.cpu));
    verify.undetermined = sentences(undetermined);
    if let Some(untied) = trace.untied {
        verify.undetermined.insert(0, (0, untied.to_string()));
    }
    verify
}

/// Registers of one line are named together.
fn sentences(undetermined: BTreeSet<(u32, Reason)>) -> Vec<(u32, String)> {
    let mut merged: Vec<(u32, Reason)> = Vec::new();
    for (line, reason) in undetermined {
        match (merged.last_mut(), reason) {
            (Some((last, Reason::Guest(drs))), Reason::Guest(more)) if *last == line => *drs |= more,
            (Some((last, Reason::Host(drs))), Reason::Host(more)) if *last == line => *drs |= more,
            _ => merged.push((line, reason)),
        }
    }
    merged.into_iter().map(|(line, reason)| (line, reason.to_string())).collect()
}

/// The windows of a CPU: first what precedes its first row, then one for each row.
fn windows<'a>(trace: &'a Trace, items: &'a [Item], truth: &'a [Truth]) -> Vec<Compared<'a>> {
    let mut windows = Vec::new();
    let (mut items, mut truth) = (items, truth);
    let mut open: Option<Window> = None;
    loop {
        let row = open.map(|window| &trace.rows[window.row as usize]);
        let line = row.map_or(0, |row| row.line);
        let end = items.iter().position(|item| matches!(item, Item::Window(_))).unwrap_or(items.len());
        let done = truth.iter().take_while(|truth| truth.window == line).count();
        let (here, rest) = items.split_at(end);
        let (observed, later) = truth.split_at(done);
        windows.push(Compared { row, window: open, items: here, observed, hidden: None });
        truth = later;
        match rest.split_first() {
            Some((&Item::Window(next), rest)) => (open, items) = (Some(next), rest),
            _ => return windows,
        }
    }
}

/// Why nothing of a window is determined.
fn hidden(window: &Compared<'_>, strangers: &[Stranger]) -> Option<Reason> {
    let Some(row) = window.row else { return Some(Reason::Before) };
    let stranger = strangers.iter().find(|stranger| stranger.bears_on(row))?;
    Some(Reason::Stranger(stranger.who))
}

fn compare(
    verify: &mut Verify,
    undetermined: &mut BTreeSet<(u32, Reason)>,
    cpu: usize,
    window: &mut Compared<'_>,
    is_last: bool,
) {
    if window.observed.is_empty() && window.predicted().next().is_none() {
        return;
    }
    let line = window.line();
    let (mut predicted, mut observed) = window.sides();
    if let Some(reason) = window.hidden
        && !refreshes_surely(window)
    {
        // The guest's registers are read back whoever has breakpoints.
        let is_certain = |&done: &Done| done == Done::Sync && window.row.is_some();
        predicted.retain(is_certain);
        observed.extract_if(.., |done| !is_certain(done)).for_each(|done| verify.score(done).undetermined += 1);
        undetermined.insert((line, reason));
    }
    if window.lacks_sync() {
        verify.sync.undetermined += window.observed.iter().filter(|truth| truth.done == Done::Sync).count() as u64;
        undetermined.insert((line, Reason::Sync));
        window.hidden = window.hidden.or(Some(Reason::Sync));
    }
    if is_last && predicted.len() > observed.len() && predicted.starts_with(&observed) {
        predicted.truncate(observed.len());
        undetermined.insert((line, Reason::End));
        window.hidden = window.hidden.or(Some(Reason::End));
    }
    for &done in &predicted {
        verify.score(done).predicted += 1;
    }
    for &done in &observed {
        verify.score(done).observed += 1;
    }
    for (at, _) in common(&predicted, &observed) {
        verify.score(predicted[at]).matched += 1;
    }
    if predicted != observed {
        let show = |items: &[Done]| list(items.iter().map(|&done| show(done)));
        let (predicted, observed) = (show(&predicted), show(&observed));
        verify.differences.push(Difference { line, cpu: cpu as u32, predicted, observed });
    }
}

/// A guest's DR7 at a sync is in the VMCB or VMCS, where no MOV shows it; KVM puts it into force again at once, and of that
/// there is a line (`kvm_update_dr7`, since 4.5). Where the steps tell what the guest wrote the line is not needed as input.
fn control(verify: &mut Verify, score: &mut Score, window: &Compared<'_>) {
    let (Some(row), Some(told)) = (window.row, window.window) else { return };
    let Input::KvmExit { guest_dr7: Some(found), .. } = row.input else { return };
    if !window.predicted().chain(window.observed.iter().map(|truth| truth.done)).any(|done| done == Done::Sync) {
        return;
    }
    if !told.control_told {
        score.undetermined += 1;
    } else if Dr7::from_bits_truncate(told.guest.dr7) == Dr7::from_bits_truncate(found) {
        score.agree();
    } else {
        score.predicted += 1;
        score.observed += 1;
        verify.differences.push(Difference {
            line: row.line,
            cpu: u32::from(row.cpu),
            predicted: format!("the guest's dr7 = {:#x}", told.guest.dr7),
            observed: format!("dr7 = {found:#x}"),
        });
    }
}

/// Whatever strangers there are: a guest is left, and what the lines show to be set suffices for a refresh.
fn refreshes_surely(window: &Compared<'_>) -> bool {
    let only = |done: Done| matches!(done, Done::Sync | Done::Restore);
    window.row.is_some_and(|row| matches!(row.input, Input::KvmExit { .. }))
        && window.predicted().any(|done| done == Done::Restore)
        && window.predicted().all(only)
        && window.observed.iter().all(|truth| only(truth.done))
}

/// Longest common subsequence, as pairs of positions. Windows and segments are a handful of items long.
pub(crate) fn common<A: PartialEq<B>, B>(a: &[A], b: &[B]) -> Vec<(usize, usize)> {
    if a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b) {
        return (0..a.len()).map(|i| (i, i)).collect();
    }
    let width = b.len() + 1;
    let mut length = vec![0u32; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            let both = if a[i] == b[j] { length[(i + 1) * width + j + 1] + 1 } else { 0 };
            length[i * width + j] = both.max(length[(i + 1) * width + j]).max(length[i * width + j + 1]);
        }
    }
    let (mut i, mut j, mut pairs) = (0, 0, Vec::new());
    while i < a.len() && j < b.len() {
        if a[i] == b[j] && length[i * width + j] == length[(i + 1) * width + j + 1] + 1 {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if length[(i + 1) * width + j] >= length[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

pub(crate) fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<_> = items.collect();
    if items.is_empty() { "nothing".to_owned() } else { items.join(", ") }
}

fn show(done: Done) -> String {
    match done {
        Done::Install(address) => format!("install {address:#x}"),
        Done::Uninstall(address) => format!("uninstall {address:#x}"),
        Done::Restore => "restore".to_owned(),
        Done::Sync => "sync".to_owned(),
    }
}
