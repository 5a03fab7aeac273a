//! The world `kernel`: scenarios on the kernel that is running, with the GIL released.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use debugreg_model::scenario;
use debugreg_oracle::{Conformance, Error, Here, Likeness, World};
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;

use crate::emulated::likeness_of;

/// What went wrong: "unavailable", "broken" or "scenario"; line and column of a mistake, 0 without one; and what.
pub(crate) type Trouble = (&'static str, u32, u32, String);

/// Line, event, expected, observed, ok, why it is unobserved.
pub(crate) type Step = (u32, String, Option<String>, Option<String>, Option<bool>, Option<String>);

/// Scenario, line, expected, observed.
type Difference = (String, u32, String, String);

/// Scenarios, observed steps, compared MOV DR, differences, scenarios that differed once and not again.
pub(crate) type Compared = (u64, u64, u64, Vec<Difference>, Vec<String>);

/// The processes that perform scenarios on the running kernel; started by the first one.
#[pyclass(frozen, module = "debugreg._core")]
pub(crate) struct KernelWorld {
    likeness: Likeness,
    world: Mutex<Option<World>>,
}

#[pymethods]
impl KernelWorld {
    /// With the name of a policy: the kernel is like that, and its machine is emulated.
    #[new]
    #[pyo3(signature = (policy=None, /))]
    fn new(policy: Option<&str>) -> PyResult<KernelWorld> {
        let likeness = policy.map_or_else(|| Ok(Likeness::running()), likeness_of)?;
        Ok(KernelWorld { likeness, world: Mutex::new(None) })
    }

    /// Run a scenario and return whether it holds and its steps; or what went wrong.
    #[pyo3(signature = (text, hazardous, /))]
    #[allow(clippy::type_complexity, reason = "a pair, one half of which is None")]
    fn run(
        &self,
        py: Python<'_>,
        text: &str,
        hazardous: bool,
    ) -> PyResult<(Option<(bool, Vec<Step>)>, Option<Trouble>)> {
        let mut signals = Signals::new(None);
        let result = py.detach(|| {
            let mut held = self.world.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let mut going = || signals.going(0, 0);
            let parsed = scenario::parse(text)?;
            let mut world = match held.take() {
                Some(world) => world,
                None => World::new(self.likeness, &mut going)?,
            };
            let report = debugreg_oracle::run(&mut world, &parsed, hazardous, &mut going);
            // After anything else the world is in an unknown state, and ends here.
            if let Ok(_) | Err(Error::Scenario(_)) = report {
                *held = Some(world);
            }
            report
        });
        signals.answer(result, |report| {
            let steps = report.steps.into_iter();
            let steps = steps.map(|s| (s.line, s.event, s.expected, s.observed, s.ok, s.unobserved));
            (report.ok, steps.collect())
        })
    }

    /// End the processes.
    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.world.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()));
    }
}

/// Compare model and kernel on scenarios, given as text, and on random ones; or what went wrong.
///
/// Args:
///     texts: The scenarios.
///     count: How many random ones come after them.
///     seed: What they are determined by.
///     hazardous: Whether to perform what can harm the host.
///     guests: Whether most of the random ones have guests.
///     progress: Called now and then with the number of scenarios done, and of differences.
#[pyfunction]
#[pyo3(signature = (texts, count, seed, hazardous, guests, progress, /))]
#[allow(clippy::needless_pass_by_value, reason = "PyO3 makes them")]
#[allow(clippy::type_complexity, reason = "a pair, one half of which is None")]
pub(crate) fn kernel_conform(
    py: Python<'_>,
    texts: Vec<String>,
    count: u64,
    seed: u64,
    hazardous: bool,
    guests: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<(Option<Compared>, Option<Trouble>)> {
    let mut signals = Signals::new(progress);
    let result = py.detach(|| {
        let mut progress = |now: debugreg_oracle::Progress| signals.going(now.done, now.differences);
        debugreg_oracle::conform(&mut Here::default(), &texts, count, seed, hazardous, guests, &mut progress)
    });
    signals.answer(result, compared)
}

/// A comparison as Python gets it.
pub(crate) fn compared(result: Conformance) -> Compared {
    let Conformance { scenarios, steps, moves, differences, disturbed } = result;
    let differences = differences.into_iter().map(|d| (d.scenario, d.line, d.expected, d.observed));
    (scenarios, steps, moves, differences.collect(), disturbed)
}

/// Return a random scenario, each line of which expects what the model says; with guests, or of the host alone.
#[pyfunction]
#[pyo3(signature = (seed, /, *, guests=false))]
pub(crate) fn random_scenario(seed: u64, guests: bool) -> String {
    if guests { debugreg_oracle::generate_guests(seed) } else { debugreg_oracle::generate(seed) }
}

/// Attaches to Python every 50 ms, to hear of Ctrl-C and to report.
pub(crate) struct Signals {
    progress: Option<Py<PyAny>>,
    last: Instant,
    raised: Option<PyErr>,
}

impl Signals {
    pub(crate) fn new(progress: Option<Py<PyAny>>) -> Signals {
        Signals { progress, last: Instant::now(), raised: None }
    }

    pub(crate) fn going(&mut self, done: u64, differences: u64) -> bool {
        if self.last.elapsed() < Duration::from_millis(50) {
            return self.raised.is_none();
        }
        self.last = Instant::now();
        let heard = Python::attach(|py| {
            py.check_signals()?;
            if let Some(progress) = &self.progress {
                progress.call1(py, (done, differences))?;
            }
            Ok(())
        });
        self.raised = self.raised.take().or(heard.err());
        self.raised.is_none()
    }

    /// What Python gets.
    pub(crate) fn answer<T, U>(
        self,
        result: Result<T, Error>,
        shape: impl FnOnce(T) -> U,
    ) -> PyResult<(Option<U>, Option<Trouble>)> {
        let trouble = |kind, error: &Error| Ok((None, Some((kind, 0, 0, error.to_string()))));
        match (result, self.raised) {
            (_, Some(raised)) => Err(raised),
            (Ok(value), None) => Ok((Some(shape(value)), None)),
            (Err(Error::Interrupted), None) => Err(PyKeyboardInterrupt::new_err(())),
            (Err(Error::Scenario(mistake)), None) => {
                Ok((None, Some(("scenario", mistake.line, mistake.column, mistake.message))))
            }
            (Err(error @ Error::Unavailable(_)), None) => trouble("unavailable", &error),
            (Err(error), None) => trouble("broken", &error),
        }
    }
}
