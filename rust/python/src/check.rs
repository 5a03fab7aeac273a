//! Exploring, with the GIL released.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use debugreg_model::explore::{self, Kind, Kinds, Nmis, Progress, Scope, Stop, Verdict};
use debugreg_model::laws::{Law, Laws};
use debugreg_model::{Options, Policy};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::machine::{policy_of, vendor_of};
use crate::user;

/// Safe, states, transitions, depth, by kind of events how many, bytes of a state, bytes in all, what breaks a law (which,
/// why, how), and why it ended early ("asked", "memory" or "walked").
type Told = (
    Option<bool>,
    u64,
    u64,
    u32,
    Vec<(&'static str, u64)>,
    usize,
    usize,
    Option<(&'static str, String, String)>,
    Option<&'static str>,
);

/// How often a user who wants to stop is listened to.
const LISTEN: Duration = Duration::from_millis(20);

/// A scope, as `debugreg._check` has made sure it is one.
#[pyclass(frozen, module = "debugreg._core")]
pub(crate) struct CheckScope(Scope);

#[pymethods]
impl CheckScope {
    #[new]
    #[pyo3(signature = (*, vendor, cpus, tasks, vcpus, slots, addresses, counters, events, laws, nmi, kgdb, announce, races, symmetry, hypervisor, fred, disabled_match, decode_assists, kgdb_early))]
    #[allow(clippy::too_many_arguments, clippy::fn_params_excessive_bools, reason = "the fields of a scope")]
    fn new(
        vendor: &str,
        cpus: usize,
        tasks: usize,
        vcpus: usize,
        slots: usize,
        addresses: usize,
        counters: usize,
        events: Option<&str>,
        laws: Option<&str>,
        nmi: bool,
        kgdb: bool,
        announce: bool,
        races: bool,
        symmetry: bool,
        hypervisor: bool,
        fred: bool,
        disabled_match: bool,
        decode_assists: bool,
        kgdb_early: bool,
    ) -> PyResult<CheckScope> {
        let vendor = vendor_of(vendor)?;
        let options = Options {
            cpus,
            slots,
            vendor,
            hypervisor,
            fred,
            disabled_match,
            decode_assists,
            kgdb_early,
            ..Options::default()
        };
        let kinds = events.map_or(Ok(Kinds::default_kinds()), Kinds::parse).map_err(PyValueError::new_err)?;
        let laws = laws.map_or(Ok(Laws::ALL), Laws::parse).map_err(PyValueError::new_err)?;
        let nmis = Nmis { plain: nmi, kgdb, announce };
        let scope = Scope {
            options,
            tasks,
            vcpus,
            addresses,
            counters,
            kinds,
            nmis,
            races,
            laws,
            symmetry,
            reuse: true,
            mutant: None,
        };
        scope.validate().map_err(PyValueError::new_err)?;
        Ok(CheckScope(scope))
    }

    /// The kinds of events, with commas between them.
    #[getter]
    fn events(&self) -> String {
        self.0.kinds.to_string()
    }

    /// The laws, with commas between them; `all` if it is all.
    #[getter]
    fn laws(&self) -> String {
        self.0.laws.to_string()
    }

    /// Explore a policy: breadth-first, or with `walks` at random, determined by `seed`.
    ///
    /// Ctrl-C ends it, and what is known then is returned with "asked"; an exception of `progress` is raised.
    #[pyo3(signature = (policy, threads, memory, walks, seed, progress, /))]
    #[allow(clippy::needless_pass_by_value, clippy::too_many_arguments, reason = "PyO3 makes them")]
    fn check(
        &self,
        py: Python<'_>,
        policy: &str,
        threads: usize,
        memory: usize,
        walks: Option<u64>,
        seed: u64,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Told> {
        let policy = policy_of(policy)?;
        let (scope, stop, now) = (self.0, AtomicBool::new(false), Mutex::new(None));
        let (verdict, raised) = py.detach(|| {
            std::thread::scope(|threads_of| {
                // Nothing is ever sent: it hangs up when it is done, or has panicked.
                let (alive, done) = mpsc::channel::<()>();
                let (stop, now) = (&stop, &now);
                let work = threads_of.spawn(move || {
                    let _alive = alive;
                    explored(policy, &scope, threads, memory, walks, seed, stop, now)
                });
                let mut raised = None;
                while done.recv_timeout(LISTEN) == Err(RecvTimeoutError::Timeout) {
                    let said = if raised.is_none() { heard(progress.as_ref(), now) } else { Ok(()) };
                    if let Err(error) = said {
                        stop.store(true, Ordering::Relaxed);
                        raised = Some(error);
                    }
                }
                (work.join(), raised)
            })
        });
        let verdict = verdict.map_err(|_| PyValueError::new_err("the exploration failed"))?;
        match raised {
            _ if user::has_failed() => Err(user::raise_failure().expect_err("it has failed")),
            Some(error) if !error.is_instance_of::<pyo3::exceptions::PyKeyboardInterrupt>(py) => Err(error),
            _ => Ok(told(verdict)),
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "one call, for one thread")]
fn explored(
    policy: Policy,
    scope: &Scope,
    threads: usize,
    memory: usize,
    walks: Option<u64>,
    seed: u64,
    stop: &AtomicBool,
    now: &Mutex<Option<Progress>>,
) -> Verdict {
    let mut going = |progress: Progress| {
        *now.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(progress);
        !stop.load(Ordering::Relaxed)
    };
    match walks {
        Some(walks) => explore::walk(policy, scope, walks, seed, stop, &mut going),
        None => explore::check(policy, scope, threads, memory, stop, &mut going),
    }
}

/// Lets Python's signal handlers run, and tells how far it is.
fn heard(progress: Option<&Py<PyAny>>, now: &Mutex<Option<Progress>>) -> PyResult<()> {
    Python::attach(|py| {
        py.check_signals()?;
        user::raise_failure()?;
        let last = now.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let (Some(progress), Some(now)) = (progress, last) {
            progress.call1(py, (now.states, now.queue, now.transitions, now.depth))?;
        }
        Ok(())
    })
}

fn told(verdict: Verdict) -> Told {
    let safe = verdict.is_safe();
    let violation = verdict.violation.map(|found| (found.law.name(), found.why, found.scenario.to_string()));
    let stopped = verdict.stopped.map(|stop| match stop {
        Stop::Asked => "asked",
        Stop::Walked => "walked",
        Stop::Memory => "memory",
    });
    let Verdict { states, transitions, depth, reached, state_bytes, bytes, .. } = verdict;
    (safe, states, transitions, depth, reached.into_iter().collect(), state_bytes, bytes, violation, stopped)
}

/// The laws: name, sentence, source.
#[pyfunction]
pub(crate) fn laws() -> Vec<(&'static str, &'static str, &'static str)> {
    Law::ALL.iter().map(|law| (law.name(), law.sentence(), law.source())).collect()
}

/// The kinds of events: name, whether they happen unless something else is asked for, and what happens.
#[pyfunction]
pub(crate) fn event_kinds() -> Vec<(&'static str, bool, &'static str)> {
    Kind::ALL.iter().map(|kind| (kind.name(), kind.is_default(), kind.line())).collect()
}
