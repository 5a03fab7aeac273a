//! The world `vm`: what the first process of the emulated machine does, and what the host makes of its answers.

use debugreg_model::scenario::{self, Scenario, ScenarioError};
use debugreg_oracle::{Error, Going, Kernel, Likeness, Report, StepReport, compare_moves, compare_trace, wants_trace};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::oracle::{Compared, Signals, Step, Trouble, compared};

/// Line, event, expected, observed, ok, why it is unobserved, each MOV DR.
type Shown = (u32, String, Option<String>, Option<String>, Option<bool>, Option<String>, Vec<String>);

/// What the machine answers: whether the scenario holds and its steps, or kind, line, column and message of what went
/// wrong; its log; and its kernel's trace.
type Answer = (Option<(bool, Vec<Step>)>, Option<(String, u32, u32, String)>, Vec<u8>, Vec<u8>);

/// Mount /proc, /sys and /dev and load modules, as the first process of a machine, and return what went wrong.
#[pyfunction]
#[pyo3(signature = (modules, /))]
#[allow(clippy::needless_pass_by_value, reason = "PyO3 makes them")]
pub(crate) fn vm_boot(modules: Vec<(String, Vec<u8>)>) -> Option<String> {
    debugreg_oracle::boot(&modules).err().map(|error| error.to_string())
}

/// Have the plugin of the emulator log the entries of the kernel's functions, given what /proc/kallsyms says.
#[pyfunction]
#[pyo3(signature = (symbols, /))]
pub(crate) fn vm_watch(symbols: &str) {
    debugreg_oracle::watch(symbols);
}

/// Return the plugin of the emulator, a shared library.
#[pyfunction]
pub(crate) fn vm_plugin() -> &'static [u8] {
    debugreg_oracle::STEPS_PLUGIN
}

/// Run a scenario on an emulated machine and return whether it holds and its steps; or what went wrong.
///
/// Args:
///     text: The scenario.
///     hazardous: Whether to perform what can harm the machine.
///     policy: The model of its kernel.
///     perform: Called with `text`, `hazardous` and whether to trace; returns the machine's answer, its log and its trace.
#[pyfunction]
#[pyo3(signature = (text, hazardous, policy, perform, /))]
#[allow(clippy::needless_pass_by_value, reason = "PyO3 makes them")]
#[allow(clippy::type_complexity, reason = "a pair, one half of which is None")]
pub(crate) fn vm_run(
    py: Python<'_>,
    text: &str,
    hazardous: bool,
    policy: &str,
    perform: Py<PyAny>,
) -> PyResult<(Option<(bool, Vec<Shown>)>, Option<Trouble>)> {
    let mut there = There::new(policy, perform)?;
    let result = py.detach(|| there.perform(text, hazardous));
    there.answer(Signals::new(None), result, |report| {
        let shown = |s: StepReport| (s.line, s.event, s.expected, s.observed, s.ok, s.unobserved, s.moves);
        (report.ok, report.steps.into_iter().map(shown).collect())
    })
}

/// Compare model and emulated machine on scenarios, given as text, and on random ones; or what went wrong.
///
/// Args:
///     texts: The scenarios.
///     count: How many random ones come after them.
///     seed: What they are determined by.
///     hazardous: Whether to perform what can harm the machine.
///     guests: Whether most of the random ones have guests.
///     progress: Called now and then with the number of scenarios done, and of differences.
///     policy: The model of its kernel.
///     perform: Called with a scenario, `hazardous` and whether to trace; returns the machine's answer, its log and its trace.
#[pyfunction]
#[pyo3(signature = (texts, count, seed, hazardous, guests, progress, policy, perform, /))]
#[allow(clippy::needless_pass_by_value, clippy::too_many_arguments, reason = "PyO3 makes them")]
#[allow(clippy::type_complexity, reason = "a pair, one half of which is None")]
pub(crate) fn vm_conform(
    py: Python<'_>,
    texts: Vec<String>,
    count: u64,
    seed: u64,
    hazardous: bool,
    guests: bool,
    progress: Option<Py<PyAny>>,
    policy: &str,
    perform: Py<PyAny>,
) -> PyResult<(Option<Compared>, Option<Trouble>)> {
    let mut there = There::new(policy, perform)?;
    let mut signals = Signals::new(progress);
    let result = py.detach(|| {
        let mut progress = |now: debugreg_oracle::Progress| signals.going(now.done, now.differences);
        debugreg_oracle::conform(&mut there, &texts, count, seed, hazardous, guests, &mut progress)
    });
    there.answer(signals, result, compared)
}

/// The model of a kernel on an emulated machine.
pub(crate) fn likeness_of(policy: &str) -> PyResult<Likeness> {
    Likeness::emulated(policy).map_err(|error| PyValueError::new_err(error.to_string()))
}

/// The emulated machine, reached through Python.
struct There {
    likeness: Likeness,
    perform: Py<PyAny>,
    raised: Option<PyErr>,
}

impl There {
    fn new(policy: &str, perform: Py<PyAny>) -> PyResult<There> {
        Ok(There { likeness: likeness_of(policy)?, perform, raised: None })
    }

    fn perform(&mut self, text: &str, hazardous: bool) -> Result<Report, Error> {
        let parsed = scenario::parse(text)?;
        let traced = wants_trace(&parsed);
        let answer = Python::attach(|py| self.perform.call1(py, (text, hazardous, traced))?.extract::<Answer>(py));
        let (result, trouble, log, trace) = answer.map_err(|error| {
            self.raised = Some(error);
            Error::Interrupted
        })?;
        let Some((ok, steps)) = result else {
            let (kind, line, column, message) = trouble.unwrap_or_default();
            return Err(match kind.as_str() {
                "scenario" => Error::Scenario(ScenarioError { line, column, message }),
                "unavailable" => Error::Unavailable(message),
                _ => Error::Lost(message),
            });
        };
        let steps = steps.into_iter().map(|(line, event, expected, observed, ok, unobserved)| StepReport {
            line,
            event,
            expected,
            observed,
            ok,
            unobserved,
            moves: Vec::new(),
        });
        let mut report = Report { ok, steps: steps.collect(), moves: 0 };
        compare_moves(&mut report, &parsed, self.likeness, &log)?;
        if traced {
            compare_trace(&mut report, &parsed, self.likeness, &log, &trace)?;
        }
        Ok(report)
    }

    /// What Python gets: what it has raised itself comes first.
    #[allow(clippy::type_complexity, reason = "a pair, one half of which is None")]
    fn answer<T, U>(
        self,
        signals: Signals,
        result: Result<T, Error>,
        shape: impl FnOnce(T) -> U,
    ) -> PyResult<(Option<U>, Option<Trouble>)> {
        match self.raised {
            Some(raised) => Err(raised),
            None => signals.answer(result, shape),
        }
    }
}

impl Kernel for There {
    fn likeness(&self) -> Likeness {
        self.likeness
    }

    fn run(&mut self, scenario: &Scenario, hazardous: bool, _: &mut Going<'_>) -> Result<Report, Error> {
        self.perform(&scenario.to_string(), hazardous)
    }
}
