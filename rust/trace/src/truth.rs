//! What the kernel did, CPU by CPU: the truth lines of the trace, with the MOV DR of the steps file between them.

use crate::guest::Guests;
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
    /// If it loads a register of a guest, or reads one back: what that register has.
    pub(crate) guest: Option<Register>,
}

impl Mov {
    /// Whether the register is the guest's, and read back.
    pub(crate) fn reads_back(&self) -> bool {
        self.guest.is_some() && self.value.is_none()
    }
}

/// What is in a register that a guest has, or its debugger for it.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Register {
    Holds(u64),
    /// Nothing tells.
    Unknown,
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

    /// A guest is entered: what was last written to DR0-DR3, with DR6 perhaps, is the guest's. What is the host's ends with
    /// DR7.
    fn find_loads(&mut self) {
        let since = self.anchors.last().map_or(0, |&(_, movs)| movs).min(self.movs.len());
        let last = self.movs[since..].iter_mut().rev().take_while(|mov| mov.value.is_some() && mov.dr != 7);
        for mov in last.filter(|mov| mov.dr < 4) {
            mov.guest = mov.value.map(Register::Holds);
        }
    }
}

/// By CPU: what it did.
///
/// A MOV from a register is logged without its value, which is that of the last MOV to it: the host's, or the guest's own.
/// (One that exits is logged and not executed. The window that it opens is entered with all four loaded anew. The last one
/// of a stay that ends in #DB may have raised it, and not have been executed either.)
pub(crate) fn observed(steps: &[Step], places: &[Place], guests: &Guests) -> Vec<Observed> {
    let mut cpus = vec![Observed::new(); places.len()];
    let mut handlers: Vec<Handler> = (0..places.len()).map(|cpu| Handler::first(steps, cpu)).collect();
    // By CPU: what is in DR0-DR3, and whether a guest was entered and nothing but reads has followed.
    let mut registers = vec![[Register::Unknown; 4]; places.len()];
    let mut left = vec![false; places.len()];
    // By CPU: whether the stay of its guest ends in #DB, and the register that was written last in it.
    let mut doubtful = vec![false; places.len()];
    let mut last: Vec<Option<usize>> = vec![None; places.len()];
    // By CPU: its last access.
    let mut previous: Vec<Option<What>> = vec![None; places.len()];
    // By CPU: the number of its next mark.
    let mut next = vec![0; places.len()];
    for (at, step) in steps.iter().enumerate() {
        let cpu = usize::from(step.cpu);
        let (observed, handler, place) = (&mut cpus[cpu], &mut handlers[cpu], &places[cpu]);
        let (dr, value) = match step.what {
            What::VmRun | What::Mark { name: MarkName::Install | MarkName::Uninstall | MarkName::Restore, .. } => {
                *handler = Handler::None;
                left[cpu] = step.what == What::VmRun;
                if left[cpu] {
                    observed.find_loads();
                    last[cpu] = None;
                    let run = match place.anchor(next[cpu]) {
                        Some(Anchor::Entry { window }) => guests.run(window),
                        _ => None,
                    };
                    doubtful[cpu] = run.is_some_and(|run| run.ends_in_db);
                }
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
        // On VMX a reading-back ends so, too.
        let reads_back = matches!(previous[cpu].replace(step.what), Some(What::Read { dr: 0..=3 }));
        if step.is_kernel()
            && !reads_back
            && matches!(handler, Handler::None | Handler::InKernel(_))
            && Handler::begins(&steps[at..])
        {
            *handler = Handler::InKernel(0);
        }
        left[cpu] &= value.is_none() || !step.is_kernel();
        if !step.is_kernel() {
            last[cpu] = value.and(Some(usize::from(dr))).filter(|&dr| dr < 4);
        } else if let Some(dr) = last[cpu].take().filter(|_| doubtful[cpu]) {
            registers[cpu][dr] = Register::Unknown;
        }
        let register = registers[cpu].get_mut(usize::from(dr));
        let guest = match (register, value) {
            (Some(register), Some(value)) => {
                *register = Register::Holds(value);
                None
            }
            (Some(register), None) => left[cpu].then_some(*register),
            (None, _) => None,
        };
        if step.is_kernel() && !handler.takes(dr, value) && !observed.ends_after {
            observed.movs.push(Mov { dr, value, line: step.line, guest });
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
    /// That of a #DB in the kernel, which nothing marks: how many of its accesses have been seen.
    InKernel(usize),
}

/// `cpu_init`: DR7, DR6, then DR3 to DR0 (6.16, and stable kernels of its time).
const BRING_UP: [(u8, u64); 6] = [(7, 0x400), (6, 0xffff_0ff0), (3, 0), (2, 0), (1, 0), (0, 0)];

/// `exc_debug_kernel`: `debug_read_clear_dr6`, `local_db_save`, and `local_db_restore`, if anything is armed.
const IN_KERNEL: [(u8, bool); 5] = [(6, false), (6, true), (7, false), (7, true), (7, true)];

impl Handler {
    /// Whether the #DB handler begins here: nobody else begins by reading DR6 and clearing it.
    fn begins(steps: &[Step]) -> bool {
        let Some(first) = steps.first().filter(|step| step.what == (What::Read { dr: 6 })) else { return false };
        let mut next = steps[1..].iter().filter(|step| step.cpu == first.cpu);
        next.next().is_some_and(|step| step.what == What::Write { dr: 6, value: 0xffff_0ff0 })
    }

    /// What a CPU begins with: its bring-up, if the steps begin with it.
    fn first(steps: &[Step], cpu: usize) -> Handler {
        let mut movs =
            steps.iter().filter(|step| usize::from(step.cpu) == cpu && !matches!(step.what, What::Mark { .. }));
        let shown =
            BRING_UP.iter().all(|&(dr, value)| movs.next().is_some_and(|step| step.what == What::Write { dr, value }));
        if shown { Handler::Boot(0) } else { Handler::None }
    }

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
            Handler::InKernel(at) if IN_KERNEL.get(at) == Some(&(dr, write.is_some())) => {
                *self = Handler::InKernel(at + 1);
                true
            }
            Handler::InKernel(_) => {
                *self = Handler::None;
                false
            }
            _ => false,
        }
    }
}
