//! What the kernel did, CPU by CPU: the truth lines of the trace, with the MOV DR of the steps file between them.

use crate::input::Done;
use crate::steps::{MarkName, Step, What};
use crate::tie::Place;

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

/// Something that the lines and the steps both have, and that both sides of a comparison place in the same window.
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
    pub(crate) fn window(self) -> u32 {
        match self {
            Anchor::Start => 0,
            Anchor::Done { window, .. } | Anchor::Entry { window } => window,
        }
    }
}

/// What a CPU did, from the last anchor before the first line to the first one after the last.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    /// Every MOV DR of the host.
    pub(crate) movs: Vec<Mov>,
    /// The anchors, and how many MOVs come before each.
    pub(crate) anchors: Vec<(Anchor, usize)>,
    /// The steps begin before the lines do: the first MOVs are not all of the lines' time.
    pub(crate) begins_before: bool,
    /// The steps go on after the last line.
    pub(crate) ends_after: bool,
}

impl Observed {
    fn new() -> Observed {
        Observed { movs: Vec::new(), anchors: vec![(Anchor::Start, 0)], begins_before: false, ends_after: false }
    }
}

/// By CPU: what it did.
pub(crate) fn observed(steps: &[Step], places: &[Place]) -> Vec<Observed> {
    let mut cpus = vec![Observed::new(); places.len()];
    let mut handlers = vec![Handler::Boot(0); places.len()];
    // By CPU: the number of its next mark.
    let mut next = vec![0; places.len()];
    for step in steps {
        let cpu = usize::from(step.cpu);
        let (observed, handler, place) = (&mut cpus[cpu], &mut handlers[cpu], &places[cpu]);
        let (dr, value) = match step.what {
            What::VmRun | What::Mark { name: MarkName::Install | MarkName::Uninstall | MarkName::Restore, .. } => {
                *handler = Handler::None;
                match place.anchor(next[cpu]) {
                    Some(anchor) => observed.anchors.push((anchor, observed.movs.len())),
                    None if place.is_after(next[cpu]) => observed.ends_after = true,
                    None => {
                        observed.movs.clear();
                        observed.begins_before = true;
                    }
                }
                next[cpu] += 1;
                continue;
            }
            What::Mark { name: MarkName::NoistExcDebug, .. } => {
                *handler = Handler::Debug(2);
                continue;
            }
            What::Mark { .. } => continue,
            What::Write { dr, value } => (dr, Some(value)),
            What::Read { dr } => (dr, None),
        };
        if step.is_kernel() && !handler.takes(dr, value) && !observed.ends_after {
            observed.movs.push(Mov { dr, value, line: step.line });
        }
    }
    cpus
}

/// Register accesses that no line of a trace announces: a CPU's bring-up and the #DB handler's.
#[derive(Copy, Clone)]
enum Handler {
    None,
    /// The bring-up: how many of its six writes have been seen.
    Boot(usize),
    /// The #DB handler: how many accesses to DR6 are still to come.
    Debug(u8),
}

/// `cpu_init`: DR7, DR6, then DR3 to DR0 (6.16, and stable kernels of its time).
const BRING_UP: [(u8, u64); 6] = [(7, 0x400), (6, 0xffff_0ff0), (3, 0), (2, 0), (1, 0), (0, 0)];

impl Handler {
    fn takes(&mut self, dr: u8, write: Option<u64>) -> bool {
        match *self {
            Handler::Boot(at) if at < BRING_UP.len() && write.map(|value| (dr, value)) == Some(BRING_UP[at]) => {
                *self = Handler::Boot(at + 1);
                true
            }
            Handler::Debug(left) if left > 0 && dr == 6 => {
                *self = Handler::Debug(left - 1);
                true
            }
            _ => false,
        }
    }
}
