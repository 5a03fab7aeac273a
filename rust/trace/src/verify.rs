//! The model's word against the kernel's: predicted from the input lines alone, compared window by window.
//!
//! A window is what lies between two input lines of one CPU. Installs, uninstalls, restores and syncs are compared in
//! their order inside it; every MOV DR of a steps file is compared, with its value, between two of these (or two
//! entries) that both sides have.

use std::collections::HashSet;

use debugreg_model::{CpuId, Machine, Mark, Step};

use crate::input::{Done, Trace};
use crate::truth;

/// A MOV DR.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Mov {
    pub(crate) dr: u8,
    /// What was written; `None` for a read.
    pub(crate) value: Option<u64>,
    /// Line of the steps file; of a prediction, the input line that opened its window.
    pub(crate) line: u32,
}

impl PartialEq for Mov {
    fn eq(&self, other: &Mov) -> bool {
        (self.dr, self.value) == (other.dr, other.value)
    }
}

/// Something that both sides place in the same window.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Anchor {
    /// The beginning.
    Start,
    /// A line of truth.
    Done { window: u32, done: Done },
    /// A VM entry; its line is its window.
    Entry { window: u32 },
}

impl Anchor {
    fn window(self) -> u32 {
        match self {
            Anchor::Start => 0,
            Anchor::Done { window, .. } | Anchor::Entry { window } => window,
        }
    }
}

/// An anchor and the MOV DR up to the next.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) anchor: Anchor,
    pub(crate) movs: Vec<Mov>,
}

impl Default for Segment {
    fn default() -> Self {
        Segment { anchor: Anchor::Start, movs: Vec::new() }
    }
}

/// What the model says, CPU by CPU.
#[derive(Clone, Debug)]
pub(crate) struct Predictions {
    cpus: Vec<Predicted>,
}

#[derive(Clone, Debug, Default)]
struct Predicted {
    window: u32,
    /// Windows in which a task acts whose breakpoints the trace does not know.
    unknown: HashSet<u32>,
    segments: Vec<Segment>,
    /// Syncs are no anchors: the steps file does not mark them.
    done: Vec<(u32, Done)>,
}

impl Predictions {
    pub(crate) fn new(cpus: usize) -> Predictions {
        let cpu = Predicted { segments: vec![Segment::default()], ..Predicted::default() };
        Predictions { cpus: vec![cpu; cpus] }
    }

    pub(crate) fn open_window(&mut self, cpu: CpuId, line: u32, known: bool) {
        let cpu = &mut self.cpus[cpu.index()];
        cpu.window = line;
        if !known {
            cpu.unknown.insert(line);
        }
    }

    pub(crate) fn step(&mut self, cpu: CpuId, step: Step) {
        let line = self.cpus[cpu.index()].window;
        let mov = match step {
            Step::WriteDr(dr, value) => Mov { dr: dr.number(), value: Some(value), line },
            Step::ReadDr(dr, _) => Mov { dr: dr.number(), value: None, line },
            _ => return,
        };
        self.cpus[cpu.index()].segments.last_mut().expect("never empty").movs.push(mov);
    }

    pub(crate) fn mark(&mut self, machine: &Machine, cpu: CpuId, mark: Mark) {
        let cpu = &mut self.cpus[cpu.index()];
        let window = cpu.window;
        let done = match mark {
            Mark::Install(id) => Done::Install(machine.counter(id).info.address),
            Mark::Uninstall(id) => Done::Uninstall(machine.counter(id).info.address),
            Mark::Restore => Done::Restore,
            Mark::Sync => {
                cpu.done.push((window, Done::Sync));
                return;
            }
            Mark::Entry => {
                cpu.segments.push(Segment { anchor: Anchor::Entry { window }, movs: Vec::new() });
                return;
            }
        };
        cpu.done.push((window, done));
        cpu.segments.push(Segment { anchor: Anchor::Done { window, done }, movs: Vec::new() });
    }
}

/// How many were predicted, how many there were, how many agree.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Score {
    /// By the model.
    pub predicted: u64,
    /// In the truth.
    pub observed: u64,
    /// In both, in the same window and order.
    pub matched: u64,
}

impl Score {
    /// Everything agrees.
    pub fn is_exact(&self) -> bool {
        self.predicted == self.observed && self.matched == self.observed
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
    /// All differences, in the order of the trace.
    pub differences: Vec<Difference>,
    /// Windows that the trace does not determine, and why; they count on neither side.
    pub undetermined: Vec<(u32, String)>,
}

impl Verify {
    /// Nothing differs.
    pub fn is_exact(&self) -> bool {
        let scores = [self.install, self.uninstall, self.restore, self.sync];
        scores.iter().all(Score::is_exact) && self.step.as_ref().is_none_or(Score::is_exact)
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

/// Compares.
pub(crate) fn verify(trace: &Trace, predictions: &Predictions) -> Verify {
    let mut verify = Verify::default();
    for (cpu, predicted) in predictions.cpus.iter().enumerate() {
        let observed = trace.truth.iter().filter(|truth| usize::from(truth.cpu) == cpu);
        let observed: Vec<_> = observed.map(|truth| (truth.window, truth.done)).collect();
        let last = trace.rows.iter().rev().find(|row| usize::from(row.cpu) == cpu).map_or(0, |row| row.line);
        compare_windows(&mut verify, cpu, predicted, &observed, last);
    }
    if trace.steps.is_some() && !trace.unknown.is_empty() {
        verify
            .undetermined
            .push((0, "every MOV DR: registers hold what the trace does not show being asked for".to_owned()));
    } else if trace.steps.is_some() {
        let observed = truth::segments(trace);
        let mut score = Score::default();
        for (cpu, observed) in observed.iter().enumerate() {
            let none = Vec::new();
            let predicted = predictions.cpus.get(cpu).map_or(&none, |predicted| &predicted.segments);
            compare_segments(&mut verify.differences, &mut score, cpu, predicted, observed);
        }
        verify.step = Some(score);
    }
    verify.differences.sort_by_key(|difference| (difference.line, difference.cpu));
    verify
}

/// Both sides are in the order of their windows: walks them together.
fn compare_windows(verify: &mut Verify, cpu: usize, predicted: &Predicted, observed: &[(u32, Done)], last: u32) {
    let (mut p, mut o) = (&*predicted.done, observed);
    while let Some(window) = first_window(p, o) {
        let of = |items: &[(u32, Done)]| items.iter().take_while(|(at, _)| *at == window).count();
        let (mut here_p, rest_p) = p.split_at(of(p));
        let (here_o, rest_o) = o.split_at(of(o));
        (p, o) = (rest_p, rest_o);
        if window == 0 || predicted.unknown.contains(&window) {
            let why = "a task acts here of whose breakpoints or guest the trace does not show all";
            verify.undetermined.push((window, why.to_owned()));
            continue;
        }
        if window == last && here_p.len() > here_o.len() && here_p.starts_with(here_o) {
            verify.undetermined.push((window, "the trace ends before this window does".to_owned()));
            here_p = here_o;
        }
        for &(_, done) in here_p {
            verify.score(done).predicted += 1;
        }
        for &(_, done) in here_o {
            verify.score(done).observed += 1;
        }
        for (i, _) in common(here_p, here_o) {
            verify.score(here_p[i].1).matched += 1;
        }
        if here_p != here_o {
            let show = |items: &[(u32, Done)]| list(items.iter().map(|(_, done)| show_done(*done)));
            let (predicted, observed) = (show(here_p), show(here_o));
            verify.differences.push(Difference { line: window, cpu: cpu as u32, predicted, observed });
        }
    }
}

fn first_window(p: &[(u32, Done)], o: &[(u32, Done)]) -> Option<u32> {
    p.first().into_iter().chain(o.first()).map(|(window, _)| *window).min()
}

/// MOV DR between anchors that both sides have.
fn compare_segments(
    differences: &mut Vec<Difference>,
    score: &mut Score,
    cpu: usize,
    predicted: &[Segment],
    observed: &[Segment],
) {
    score.predicted += predicted.iter().map(|segment| segment.movs.len() as u64).sum::<u64>();
    score.observed += observed.iter().map(|segment| segment.movs.len() as u64).sum::<u64>();
    let (mut p, mut o) = (0, 0);
    while p < predicted.len() && o < observed.len() {
        let (left, right) = (&predicted[p], &observed[o]);
        if left.anchor == right.anchor {
            score.matched += common(&left.movs, &right.movs).len() as u64;
            if left.movs != right.movs {
                let next = observed.get(o + 1).map(|segment| segment.anchor);
                differences.push(difference(cpu, left, right, next));
            }
            (p, o) = (p + 1, o + 1);
        } else if left.anchor.window() < right.anchor.window() || !ahead(&observed[o..], left.anchor) {
            p += 1;
        } else {
            o += 1;
        }
    }
}

/// Whether the truth has an anchor further on, without leaving its window.
fn ahead(observed: &[Segment], anchor: Anchor) -> bool {
    let mut before = observed.iter().take_while(|segment| segment.anchor.window() <= anchor.window());
    before.any(|segment| segment.anchor.window() < anchor.window() || segment.anchor == anchor)
}

/// Where two lists of MOV DR part. The truth does not say to which window a MOV belongs: a predicted one does, and what
/// comes last before an entry is the entry's.
fn difference(cpu: usize, predicted: &Segment, observed: &Segment, next: Option<Anchor>) -> Difference {
    let same = predicted.movs.iter().zip(&observed.movs).take_while(|(p, o)| p == o).count();
    let line = match (predicted.movs.get(same), next) {
        (Some(mov), _) => mov.line,
        (None, Some(Anchor::Entry { window })) => window,
        (None, _) => predicted.anchor.window(),
    };
    let show = |movs: &[Mov]| list(movs[same..].iter().map(|mov| show_mov(*mov)));
    let place = observed.movs.get(same).map_or(String::new(), |mov| format!(" (steps line {})", mov.line));
    Difference {
        line,
        cpu: cpu as u32,
        predicted: show(&predicted.movs),
        observed: format!("{}{place}", show(&observed.movs)),
    }
}

/// Longest common subsequence, as pairs of positions. Windows and segments are a handful of items long.
fn common<T: PartialEq>(a: &[T], b: &[T]) -> Vec<(usize, usize)> {
    if a == b {
        return (0..a.len()).map(|i| (i, i)).collect();
    }
    let width = b.len() + 1;
    let mut length = vec![0u32; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            length[i * width + j] = if a[i] == b[j] {
                length[(i + 1) * width + j + 1] + 1
            } else {
                length[(i + 1) * width + j].max(length[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j, mut pairs) = (0, 0, Vec::new());
    while i < a.len() && j < b.len() {
        if a[i] == b[j] {
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

fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<_> = items.collect();
    if items.is_empty() { "nothing".to_owned() } else { items.join(", ") }
}

fn show_done(done: Done) -> String {
    match done {
        Done::Install(address) => format!("install {address:#x}"),
        Done::Uninstall(address) => format!("uninstall {address:#x}"),
        Done::Restore => "restore".to_owned(),
        Done::Sync => "sync".to_owned(),
    }
}

fn show_mov(mov: Mov) -> String {
    match mov.value {
        Some(value) => format!("dr{} = {value:#x}", mov.dr),
        None => format!("read dr{}", mov.dr),
    }
}
