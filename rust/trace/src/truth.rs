//! What the kernel did, CPU by CPU: the truth lines of the trace, with the MOV DR of the steps file between them.

use std::collections::VecDeque;

use crate::input::{Done, Input, Trace};
use crate::steps::{MarkName, Step, What};
use crate::verify::{Anchor, Mov, Segment};

/// By CPU: its segments, in order.
pub(crate) fn segments(trace: &Trace) -> Vec<Vec<Segment>> {
    let Some(steps) = &trace.steps else { return Vec::new() };
    let mut anchors = Anchors::new(trace, steps);
    let cpus = steps.iter().map(|step| usize::from(step.cpu) + 1).max().unwrap_or(0).max(trace.cpus);
    let mut segments: Vec<Vec<Segment>> = vec![vec![Segment::default()]; cpus];
    let mut states = vec![Handler::Boot(0); cpus];
    for step in steps {
        let (cpu, handler) = (usize::from(step.cpu), &mut states[usize::from(step.cpu)]);
        let anchor = match step.what {
            What::VmRun => anchors.entries.pop_front().flatten(),
            What::Mark { name: MarkName::Install, .. } => anchors.installs.pop_front().flatten(),
            What::Mark { name: MarkName::Uninstall, .. } => anchors.uninstalls.pop_front().flatten(),
            What::Mark { name: MarkName::Restore, .. } => anchors.restores.pop_front().flatten(),
            What::Mark { name: MarkName::NoistExcDebug, .. } => {
                *handler = Handler::Debug(2);
                continue;
            }
            What::Mark { .. } => continue,
            What::Write { dr, value } => {
                if step.is_kernel() && !handler.takes(dr, Some(value)) {
                    segments[cpu].last_mut().expect("never empty").movs.push(Mov {
                        dr,
                        value: Some(value),
                        line: step.line,
                    });
                }
                continue;
            }
            What::Read { dr } => {
                if step.is_kernel() && !handler.takes(dr, None) {
                    segments[cpu].last_mut().expect("never empty").movs.push(Mov { dr, value: None, line: step.line });
                }
                continue;
            }
        };
        *handler = Handler::None;
        // What lies before the trace's first line is not in it.
        match anchor {
            Some(anchor) => segments[cpu].push(Segment { anchor, movs: Vec::new() }),
            None => segments[cpu] = vec![Segment::default()],
        }
    }
    segments
}

/// The k-th mark of the steps is the k-th line of the trace. A trace that lost its head lacks the first ones (`None`).
struct Anchors {
    entries: VecDeque<Option<Anchor>>,
    installs: VecDeque<Option<Anchor>>,
    uninstalls: VecDeque<Option<Anchor>>,
    restores: VecDeque<Option<Anchor>>,
}

impl Anchors {
    fn new(trace: &Trace, steps: &[Step]) -> Anchors {
        let entries = trace.rows.iter().filter(|row| matches!(row.input, Input::Entry { .. }));
        let entries = entries.map(|row| Anchor::Entry { window: row.line }).collect();
        let truth = |want: fn(Done) -> bool| {
            let lines = trace.truth.iter().filter(move |truth| want(truth.done));
            lines.map(|truth| Anchor::Done { window: truth.window, done: truth.done }).collect()
        };
        let marks =
            |want: MarkName| steps.iter().filter(|s| matches!(s.what, What::Mark { name, .. } if name == want)).count();
        Anchors {
            entries: padded(entries, steps.iter().filter(|step| step.what == What::VmRun).count()),
            installs: padded(truth(|done| matches!(done, Done::Install(_))), marks(MarkName::Install)),
            uninstalls: padded(truth(|done| matches!(done, Done::Uninstall(_))), marks(MarkName::Uninstall)),
            restores: padded(truth(|done| done == Done::Restore), marks(MarkName::Restore)),
        }
    }
}

fn padded(anchors: Vec<Anchor>, marks: usize) -> VecDeque<Option<Anchor>> {
    let missing = marks.saturating_sub(anchors.len());
    std::iter::repeat_n(None, missing).chain(anchors.into_iter().map(Some)).collect()
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
