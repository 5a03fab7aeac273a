//! Traces: read once, replayed under any number of policies with the GIL released.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use debugreg_model::Options;
use debugreg_trace::{Replay, Score, Trace, TraceError, Verify, replay};
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;

use crate::machine::{CostFields, cost_fields, policy_of, vendor_of};
use crate::user;

/// A trace that has been read.
#[pyclass(frozen, name = "Trace", module = "debugreg._core")]
pub(crate) struct PyTrace(Trace);

/// Predicted, observed, matched, undetermined.
type Scores = (u64, u64, u64, u64);

/// Law, occasions, failures, line of the first failure.
type Tally = (&'static str, u64, u64, Option<u32>);

/// Input line, CPU, what was predicted, what was observed.
type Difference = (u32, u32, String, String);

/// Steps, guests' registers at syncs, at entries.
type OfSteps = (Scores, Scores, Scores);

/// Installs, uninstalls, restores, syncs, what a steps file adds, differences.
type Verified = (Scores, Scores, Scores, Scores, Option<OfSteps>, Vec<Difference>);

/// Input line, and why nothing can be said of it.
type Undetermined = (u32, String);

/// Policy, events, cost, phases, lower bound, what was not expressible, what was observed, what is undetermined, the
/// verification.
type Replayed = (
    String,
    u64,
    CostFields,
    Vec<(String, CostFields, bool)>,
    bool,
    Vec<Undetermined>,
    Vec<Tally>,
    Vec<Undetermined>,
    Option<Verified>,
);

#[pymethods]
impl PyTrace {
    /// Read a trace and the steps file beside it; the second is what is wrong with the file instead.
    #[staticmethod]
    #[pyo3(signature = (path, /))]
    #[allow(clippy::needless_pass_by_value, reason = "PyO3 makes it")]
    fn read(py: Python<'_>, path: PathBuf) -> (Option<PyTrace>, Option<String>) {
        match py.detach(|| Trace::read(&path)) {
            Ok(trace) => (Some(PyTrace(trace)), None),
            Err(error) => (None, Some(message(&error))),
        }
    }

    /// 'intel' or 'amd', as its exits show.
    #[getter]
    fn vendor(&self) -> &'static str {
        self.0.vendor.name()
    }

    /// How many CPUs its lines name.
    #[getter]
    fn cpus(&self) -> usize {
        self.0.cpus
    }

    /// Number of input rows.
    #[getter]
    fn rows(&self) -> usize {
        self.0.rows.len()
    }

    /// Whether a steps file lies beside it.
    #[getter]
    fn has_steps(&self) -> bool {
        self.0.steps.is_some()
    }

    /// What the reader passed over: unreadable lines, unknown events, lost events, and whether the last line is cut off.
    #[getter]
    fn passed_over(&self) -> (u32, u32, u64, bool) {
        let counts = &self.0.counts;
        (counts.unreadable, counts.unknown_events, counts.lost.events, counts.truncated_last_line)
    }

    /// Replay under a policy: `progress` is called now and then with the number of rows done.
    ///
    /// Returns:
    ///     The policy; events; cost; phases as name, cost and whether something in them was not expressible; whether the
    ///     cost is a lower bound; what was not expressible, as line and reason; what was observed; what the trace does not determine; the
    ///     verification.
    #[pyo3(signature = (policy, vendor, verify, progress, /))]
    fn replay(
        &self,
        py: Python<'_>,
        policy: &str,
        vendor: Option<&str>,
        verify: bool,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Replayed> {
        let policy = policy_of(policy)?;
        let vendor = vendor.map(vendor_of).transpose()?.unwrap_or(self.0.vendor);
        let mut poll = Poll { progress, last: Instant::now(), raised: None };
        let result = py.detach(|| {
            replay(&self.0, policy, Options { vendor, ..Options::default() }, verify, |rows| poll.going(rows))
        });
        user::raise_failure()?;
        match (result, poll.raised) {
            (_, Some(error)) => Err(error),
            (None, None) => Err(PyKeyboardInterrupt::new_err(())),
            (Some(replay), None) => {
                let Replay {
                    policy,
                    events,
                    cost,
                    phases,
                    lower_bound,
                    not_expressible,
                    observed,
                    undetermined,
                    verify,
                } = replay;
                let phases = phases.into_iter().map(|p| (p.name, cost_fields(p.cost), p.partial)).collect();
                let laws =
                    observed.laws().into_iter().map(|(law, t)| (law, t.occasions, t.failures, t.first)).collect();
                let verify = verify.map(verified);
                let policy = policy.to_string();
                let cost = cost_fields(cost);
                Ok((policy, events, cost, phases, lower_bound, not_expressible, laws, undetermined, verify))
            }
        }
    }
}

/// Attaches to Python every 50 ms, to hear of Ctrl-C and to report.
struct Poll {
    progress: Option<Py<PyAny>>,
    last: Instant,
    raised: Option<PyErr>,
}

impl Poll {
    fn going(&mut self, rows: usize) -> bool {
        if self.last.elapsed() < Duration::from_millis(50) {
            return true;
        }
        self.last = Instant::now();
        let heard = Python::attach(|py| {
            py.check_signals()?;
            if let Some(progress) = &self.progress {
                progress.call1(py, (rows,))?;
            }
            Ok(())
        });
        self.raised = heard.err();
        self.raised.is_none()
    }
}

fn verified(verify: Verify) -> Verified {
    let scores = |score: Score| (score.predicted, score.observed, score.matched, score.undetermined);
    let Verify { step, guest_at_sync, guest_at_entry, .. } = verify;
    let of_steps = step.zip(guest_at_sync).zip(guest_at_entry).map(|((step, sync), entry)| (step, sync, entry));
    let differences = verify.differences.into_iter().map(|d| (d.line, d.cpu, d.predicted, d.observed));
    (
        scores(verify.install),
        scores(verify.uninstall),
        scores(verify.restore),
        scores(verify.sync),
        of_steps.map(|(step, sync, entry)| (scores(step), scores(sync), scores(entry))),
        differences.collect(),
    )
}

fn message(error: &TraceError) -> String {
    error.to_string()
}
