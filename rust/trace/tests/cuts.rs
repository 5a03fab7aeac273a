//! Traces that begin in the middle, end early, or lack something: what is scored is right, what is not is counted apart.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use debugreg_model::{Options, Policy};
use debugreg_trace::input::{Done, Input, Truth};
use debugreg_trace::steps::{self, Step, What};
use debugreg_trace::{Score, Trace, Verify, replay, source};
use proptest::prelude::*;

/// A recorded run: the lines, and what the machine executed.
struct Run {
    lines: Vec<String>,
    steps: Vec<Step>,
}

impl Run {
    fn read(stem: &str) -> Run {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(stem);
        let beside = |end: &str| PathBuf::from(format!("{}.{end}.gz", path.display()));
        let text = String::from_utf8(source::read(&beside("txt")).unwrap()).unwrap();
        let steps = steps::parse(&path, &source::read(&beside("steps")).unwrap()).unwrap();
        Run { lines: text.split_inclusive('\n').map(str::to_owned).collect(), steps }
    }

    fn header(&self) -> usize {
        self.lines.iter().take_while(|line| line.starts_with('#')).count()
    }

    /// Its lines from one to another, counted from 1, under its header.
    fn cut(&self, from: usize, to: usize) -> Trace {
        let head = self.header();
        let text = self.lines[..head].concat() + &self.lines[(from - 1).max(head)..to].concat();
        Trace::parse("cut", text.as_bytes())
    }

    fn tail(&self, from: usize) -> Trace {
        self.cut(from, self.lines.len())
    }

    fn tied(&self, from: usize) -> Trace {
        let mut trace = self.tail(from);
        trace.lay_beside(&self.steps);
        assert_eq!(trace.untied, None, "cut at {from}");
        trace
    }
}

static PHASES: LazyLock<Run> = LazyLock::new(|| Run::read("../../python/debugreg/data/kvm-amd-6.12-phases"));
static CORNERS: LazyLock<Run> = LazyLock::new(|| Run::read("tests/data/kvm-amd-6.12-corners"));

fn verify(trace: &Trace) -> Verify {
    let policy = Policy::parse("debian-6.12").unwrap();
    let options = Options { vendor: trace.vendor, ..Options::default() };
    replay(trace, policy, options, true, |_| true).unwrap().verify.unwrap()
}

/// Installs, uninstalls, restores, syncs, steps.
fn scores(verify: &Verify) -> [Score; 5] {
    [verify.install, verify.uninstall, verify.restore, verify.sync, verify.step.unwrap_or_default()]
}

/// A guest's registers at syncs and at entries.
fn of_guests(verify: &Verify) -> [Score; 2] {
    [verify.guest_at_sync.unwrap(), verify.guest_at_entry.unwrap()]
}

fn scored(verify: &Verify) -> [u64; 5] {
    scores(verify).map(|score| score.observed)
}

/// Nothing that is scored differs, nothing is lost, and what is left out has a line and a reason.
fn assert_sound(trace: &Trace) -> Verify {
    let verify = verify(trace);
    assert_eq!(verify.differences, []);
    assert!(verify.is_exact(), "{verify:?}");
    let lines = |is: fn(&Done) -> bool| trace.truth.iter().filter(|truth| is(&truth.done)).count() as u64;
    let there = [
        lines(|done| matches!(done, Done::Install(_))),
        lines(|done| matches!(done, Done::Uninstall(_))),
        lines(|done| *done == Done::Restore),
        lines(|done| *done == Done::Sync),
    ];
    for (score, there) in scores(&verify).iter().zip(there) {
        assert_eq!(score.observed + score.undetermined, there, "{verify:?}");
    }
    let left_out: u64 = scores(&verify).iter().map(|score| score.undetermined).sum();
    assert!(left_out == 0 || !verify.undetermined.is_empty());
    let last = trace.rows.last().map_or(0, |row| row.line);
    assert!(verify.undetermined.iter().all(|(line, reason)| *line <= last && !reason.is_empty()));
    verify
}

/// Whether the whole of a window is determined; a MOV DR of unknown value leaves the rest of its window as it is.
fn is_determined(verify: &Verify, window: u32) -> bool {
    let of_movs = |reason: &str| reason.starts_with("no line tells what");
    window > 0 && verify.undetermined.iter().all(|(line, reason)| *line != window || of_movs(reason))
}

#[test]
fn a_whole_trace_is_determined() {
    for (run, expected) in [(&*PHASES, [989, 989, 1784, 418, 33781]), (&*CORNERS, [321, 321, 342, 23, 4164])] {
        let verify = assert_sound(&run.tied(1));
        assert_eq!(scored(&verify), expected);
        assert_eq!(verify.undetermined, []);
    }
}

/// Four addresses and a DR7 at each sync, four addresses at each entry that loads any.
#[test]
fn the_registers_of_guests_are_those_that_were_read_back_and_loaded() {
    for (run, syncs, loads) in [(&*PHASES, 418, 3562), (&*CORNERS, 23, 143)] {
        let verify = verify(&run.tied(1));
        assert_eq!(
            of_guests(&verify).map(|score| (score.observed, score.matched)),
            [(5 * syncs, 5 * syncs), (4 * loads, 4 * loads)]
        );
        assert_eq!(
            run.steps.iter().filter(|step| step.is_kernel() && step.what == What::Read { dr: 0 }).count() as u64,
            syncs
        );
    }
    // Lines alone do not show them.
    let lines = verify(&CORNERS.tail(1));
    assert_eq!((lines.guest_at_sync, lines.guest_at_entry), (None, None));
}

/// What a guest wrote is input, what the kernel loaded is the truth, and either is in the register when it is read back: a
/// wrong one is found at the entry, and at the sync unless the guest has written that register in between.
#[test]
fn a_wrong_load_and_a_wrong_reading_back_are_found() {
    let mut steps = CORNERS.steps.clone();
    let mut loads = 0;
    let opens = |at: usize| {
        let after = &CORNERS.steps[at..];
        let run = after.iter().position(|step| step.what == What::VmRun)?;
        after[run..].iter().find(|step| step.is_kernel() && matches!(step.what, What::Read { .. } | What::Write { .. }))
    };
    for at in 12..steps.len() {
        // Of slot 3, which the guest does not write; and the window is open.
        let is_load = steps[at].is_kernel() && matches!(steps[at].what, What::Write { dr: 3, .. });
        let is_last = steps.get(at + 1).is_some_and(|next| next.what == What::VmRun);
        if !is_load || !is_last || opens(at).is_none_or(|step| step.what != What::Read { dr: 0 }) {
            continue;
        }
        loads += 1;
        let kept = steps[at];
        let What::Write { value, .. } = &mut steps[at].what else { unreachable!() };
        *value ^= 0x40;
        let wrong = *value;
        let mut trace = CORNERS.tail(1);
        trace.lay_beside(&steps);
        let verify = verify(&trace);
        let lost = of_guests(&verify).map(|score| score.observed - score.matched);
        assert_eq!(lost, [1, 1], "{kept:?}: {verify:?}");
        let says = |text: &str| verify.differences.iter().any(|d| d.observed.starts_with(text));
        assert!(says(&format!("dr3 = {wrong:#x} (steps line ")), "{:?}", verify.differences);
        assert!(!verify.is_exact());
        steps[at] = kept;
    }
    assert_eq!(loads, 23);
}

/// A guest's DR7 is in no MOV: KVM's word on it is a line.
#[test]
fn a_wrong_dr7_at_a_sync_is_found() {
    let mut trace = CORNERS.tied(1);
    let line = trace.truth.iter().find(|truth| truth.done == Done::Sync).unwrap().window;
    let row = trace.rows.iter_mut().find(|row| row.line == line).unwrap();
    let Input::KvmExit { guest_dr7: Some(dr7), .. } = &mut row.input else { unreachable!() };
    *dr7 ^= 2;
    let verify = verify(&trace);
    let [at_sync, at_entry] = of_guests(&verify);
    assert_eq!((at_sync.observed - at_sync.matched, at_entry.is_exact()), (1, true));
    assert_eq!(verify.differences.iter().map(|difference| difference.line).collect::<Vec<_>>(), [line]);
}

/// Of a trace without its head, what a guest has is not told until it, or its VMM, has set it.
#[test]
fn of_guests_as_much_is_determined_as_was_measured() {
    // What agrees, and what is not determined.
    let measured = [
        (5000, [(2087, 3), (14241, 7)]),
        (10000, [(1307, 3), (12365, 7)]),
        (18000, [(520, 0), (417, 2499)]),
        (22500, [(0, 0), (0, 0)]),
    ];
    for (from, expected) in measured {
        let verify = assert_sound(&PHASES.tied(from));
        let scores = of_guests(&verify);
        assert!(scores.iter().all(Score::is_exact), "{scores:?}");
        assert_eq!(scores.map(|score| (score.matched, score.undetermined)), expected, "{from}");
    }
}

#[test]
fn as_much_is_determined_as_was_measured() {
    let phases = [
        (1000, [989, 989, 1784, 418, 33777]),
        (5000, [72, 72, 1365, 418, 23994]),
        (10000, [72, 72, 1365, 262, 21025]),
        (11000, [72, 72, 1365, 209, 18982]),
        (18000, [62, 62, 209, 104, 1960]),
        (20000, [62, 62, 209, 101, 1922]),
        (22500, [61, 61, 0, 0, 183]),
    ];
    let corners = [
        (300, [306, 306, 238, 23, 3388]),
        (700, [136, 136, 79, 23, 1213]),
        (1700, [131, 131, 0, 23, 1198]),
        (2300, [52, 52, 0, 23, 953]),
        (2900, [41, 41, 0, 23, 558]),
    ];
    for (run, cuts) in [(&*PHASES, &phases[..]), (&*CORNERS, &corners[..])] {
        for &(from, expected) in cuts {
            let got = scored(&assert_sound(&run.tied(from)));
            assert!(got.iter().zip(expected).all(|(got, expected)| *got >= expected), "cut at {from}: {got:?}");
        }
    }
}

/// Not to the last line: where the cut hides the first sign of a stranger, a few windows look determined that are not
/// any more when it is seen.
#[test]
fn the_less_is_cut_the_more_is_determined() {
    const HIDDEN: u64 = 30;
    for (run, by) in [(&*PHASES, 2000), (&*CORNERS, 100)] {
        let mut before: Option<[u64; 5]> = None;
        for from in (run.header() + 1..run.lines.len()).step_by(by) {
            let now = scored(&assert_sound(&run.tied(from)));
            if let Some(before) = before {
                let falls = now.iter().zip(before).all(|(now, before)| *now <= before + HIDDEN);
                assert!(falls, "cut at {from}: {now:?}, less: {before:?}");
            }
            before = Some(now);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_long_trace_is_right_wherever_it_begins(from in 12..24036_usize) {
        assert_sound(&PHASES.tail(from));
        assert_sound(&PHASES.tied(from));
    }

    #[test]
    fn a_trace_is_right_wherever_it_ends(to in 13..=24036_usize) {
        let mut trace = PHASES.cut(1, to);
        assert_sound(&trace);
        trace.lay_beside(&PHASES.steps);
        assert_sound(&trace);
    }

    #[test]
    fn what_the_kernel_did_in_a_determined_window_cannot_be_changed(at: prop::sample::Index, from in 12..20000_usize) {
        let trace = PHASES.tail(from);
        changed_truth(trace, at);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_trace_is_right_wherever_it_begins(from in 12..3760_usize) {
        assert_sound(&CORNERS.tail(from));
        assert_sound(&CORNERS.tied(from));
    }

    #[test]
    fn a_piece_of_a_trace_is_right_or_its_steps_are_not_tied(from in 12..3700_usize, length in 1..2000_usize) {
        let mut trace = CORNERS.cut(from, (from + length).min(CORNERS.lines.len()));
        assert_sound(&trace);
        trace.lay_beside(&CORNERS.steps);
        let verify = assert_sound(&trace);
        prop_assert_eq!(trace.untied.is_some(), verify.step.is_none());
        prop_assert_eq!(trace.untied.is_some(), verify.undetermined.iter().any(|(_, why)| why.contains("cannot be tied")));
    }

    #[test]
    fn what_the_kernel_did_cannot_be_changed(at: prop::sample::Index, from in 12..3500_usize) {
        changed_truth(CORNERS.tail(from), at);
    }

    #[test]
    fn what_was_written_cannot_be_changed(at: prop::sample::Index, bit in 0..32_u32, from in 12..3500_usize) {
        changed_step(&CORNERS, at, bit, from);
    }

    #[test]
    fn nothing_of_a_whole_trace_can_be_added(at: prop::sample::Index) {
        let mut trace = CORNERS.tail(1);
        trace.lay_beside(&CORNERS.steps);
        let row = trace.rows[at.index(trace.rows.len())];
        let place = trace.truth.partition_point(|truth| truth.line <= row.line);
        let alien = Truth { line: row.line, cpu: row.cpu, window: row.line, done: Done::Install(0xbad_0000) };
        trace.truth.insert(place, alien);
        let differences = verify(&trace).differences;
        prop_assert!(differences.iter().any(|difference| difference.line == row.line), "{differences:?}");
    }
}

/// Changes an address, or what was done.
fn changed_truth(mut trace: Trace, at: prop::sample::Index) {
    if trace.truth.is_empty() {
        return;
    }
    let before = verify(&trace);
    let at = at.index(trace.truth.len());
    let truth = &mut trace.truth[at];
    let window = truth.window;
    truth.done = match truth.done {
        Done::Install(address) => Done::Install(address ^ 0x1000_0000),
        Done::Uninstall(address) => Done::Uninstall(address ^ 0x1000_0000),
        Done::Restore => Done::Sync,
        Done::Sync => Done::Restore,
    };
    let after = verify(&trace);
    let is_seen = after.differences.iter().any(|difference| difference.line == window);
    assert!(is_seen || !is_determined(&before, window), "{window}: {after:?}");
}

/// Changes a value that the host wrote. Where it is the first sign of what was in a register before the lines, it decides
/// that this is not known, and less is determined; it is never scored as right.
fn changed_step(run: &Run, at: prop::sample::Index, bit: u32, from: usize) {
    let trace = run.tied(from);
    let before = verify(&trace);
    let mut steps = run.steps.clone();
    // What follows the first entry of the lines.
    let entries = trace.rows.iter().filter(|row| matches!(row.input, Input::Entry { .. })).count();
    let mut runs = (0..steps.len()).rev().filter(|&at| steps[at].what == What::VmRun);
    let Some(first) = entries.checked_sub(1).and_then(|before| runs.nth(before)) else { return };
    let writes: Vec<usize> = (first..steps.len())
        .filter(|&at| steps[at].is_kernel() && matches!(steps[at].what, What::Write { dr: 0..=3 | 7, .. }))
        .collect();
    if writes.is_empty() {
        return;
    }
    let changed = &mut steps[writes[at.index(writes.len())]];
    if let What::Write { value, .. } = &mut changed.what {
        *value ^= 1 << bit;
    }
    let mut trace = run.tail(from);
    trace.lay_beside(&steps);
    let after = verify(&trace);
    if after.is_exact() {
        let [before, after] = [before.step.unwrap(), after.step.unwrap()];
        assert!(after.matched <= before.matched, "{before:?} {after:?}");
        assert!(before.undetermined > 0, "{before:?} {after:?}");
    }
}

#[test]
fn every_written_value_of_a_whole_trace_counts() {
    let mut steps = CORNERS.steps.clone();
    let is_host = |step: &Step| step.is_kernel() && matches!(step.what, What::Write { dr: 0..=3 | 7, .. });
    // The first twelve are the bring-up.
    for at in (12..steps.len()).filter(|&at| is_host(&CORNERS.steps[at])).step_by(61) {
        let kept = steps[at];
        if let What::Write { value, .. } = &mut steps[at].what {
            *value ^= 4;
        }
        let mut trace = CORNERS.tail(1);
        trace.lay_beside(&steps);
        let differences = verify(&trace).differences;
        assert!(differences.iter().any(|d| d.observed.ends_with(&format!("(steps line {})", kept.line))), "{kept:?}");
        steps[at] = kept;
    }
}

#[test]
fn steps_of_another_run_are_not_tied() {
    let mut trace = CORNERS.tail(1);
    trace.lay_beside(&PHASES.steps);
    assert!(trace.untied.is_some() && trace.steps.is_none());
    let verify = verify(&trace);
    assert_eq!(verify.step, None);
    assert!(verify.undetermined[0].1.contains("cannot be tied"), "{:?}", verify.undetermined);
    assert!(verify.is_exact());
}

#[test]
fn steps_that_lack_a_part_of_the_lines_are_not_tied() {
    let whole = CORNERS.steps.len();
    for part in [whole / 3..whole, 0..whole / 3, whole / 4..whole / 2] {
        let mut trace = CORNERS.tail(1);
        trace.lay_beside(&CORNERS.steps[part.clone()]);
        assert!(trace.untied.is_some(), "{part:?}");
        assert_sound(&trace);
    }
}
