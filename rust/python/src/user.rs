//! Policies written in Python. What one does is a function of what it reads, so every answer of a Python method is kept
//! in a tree: each node is what it does next, each branch what that answered. Python is asked where the tree ends, and
//! now and then again, which finds out a policy that remembers something outside of its words.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use debugreg::{Dr, Slot};
use debugreg_model::policy::{self, Ask, Hook, Op, UserHalf, WORDS};
use debugreg_model::{Exit, Field};
use pyo3::exceptions::{PyBaseException, PyValueError};
use pyo3::prelude::*;
use pyo3::types::IntoPyDict;

pyo3::create_exception!(_core, Unanswered, PyBaseException, "What is to be done next has no answer yet.");

/// What a policy has done wrong, until somebody raises it.
static FAILURE: Mutex<Option<PyErr>> = Mutex::new(None);
static FAILED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Whether this thread is in a method of a policy.
    static ASKING: Cell<bool> = const { Cell::new(false) };
}

/// Whether whoever calls is a policy: a machine that is taken is then the one that it runs in, and will not be given back.
pub(crate) fn is_asking() -> bool {
    ASKING.get()
}

/// How many other runs come before one that is tried again at the end.
const PREDECESSORS: usize = 8;
/// How many ends of a tree are tried again at the end.
const AUDITED: usize = 2000;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a policy has failed: what is computed with it means nothing.
pub(crate) fn has_failed() -> bool {
    FAILED.load(Ordering::Relaxed)
}

/// Raises what a policy has done wrong.
#[inline]
pub(crate) fn raise_failure() -> PyResult<()> {
    if has_failed() { Err(taken()) } else { Ok(()) }
}

#[cold]
fn taken() -> PyErr {
    FAILED.store(false, Ordering::Relaxed);
    locked(&FAILURE).take().unwrap_or_else(|| PyValueError::new_err("a policy has failed"))
}

/// One run of a method: it is told the answers that are known, and where they end it is ended.
#[pyclass(frozen, module = "debugreg._core")]
pub(crate) struct Turn(Mutex<Course>);

struct Course {
    /// What was done, and answered.
    known: Vec<(Op, u64)>,
    at: usize,
    /// What comes next.
    next: Option<Op>,
    shown: String,
    /// What was done instead of what was done last time, as Python wrote it.
    strayed: Option<String>,
}

impl Course {
    fn of(known: &[(Op, u64)]) -> Course {
        Course { known: known.to_vec(), at: 0, next: None, shown: String::new(), strayed: None }
    }
}

fn shown(name: &str, number: u64, value: u64) -> String {
    if name.starts_with("write") || name.starts_with("set") {
        format!("{name} {number} {value:#x}")
    } else {
        name.to_owned()
    }
}

#[pymethods]
impl Turn {
    /// Do something, or ask: the name of an operation, and its numbers.
    #[pyo3(signature = (name, number=0, value=0, /))]
    fn __call__(&self, name: &str, number: u64, value: u64) -> PyResult<u64> {
        let op = operation(name, number, value)?;
        let mut course = locked(&self.0);
        let course = &mut *course;
        if course.next.is_none() && course.strayed.is_none() {
            match course.known.get(course.at) {
                Some(&(before, answer)) if before == op => {
                    course.at += 1;
                    return Ok(answer);
                }
                Some(_) => course.strayed = Some(shown(name, number, value)),
                None => (course.next, course.shown) = (Some(op), shown(name, number, value)),
            }
        }
        Err(Unanswered::new_err(()))
    }
}

fn operation(name: &str, number: u64, value: u64) -> PyResult<Op> {
    let dr = || {
        let dr = u8::try_from(number).ok().filter(|number| !matches!(number, 4 | 5)).and_then(Dr::from_number);
        dr.ok_or_else(|| PyValueError::new_err(format!("a debug register is 0 to 3, 6 or 7 (got {number})")))
    };
    let slot = || {
        Slot::new(number as usize)
            .map(|slot| slot.index() as u8)
            .ok_or_else(|| PyValueError::new_err("an address is DR0 to DR3"))
    };
    let word = || {
        u8::try_from(number)
            .ok()
            .filter(|&word| usize::from(word) < WORDS)
            .ok_or_else(|| PyValueError::new_err("no such word"))
    };
    let (name, field) = name.split_once(' ').unwrap_or((name, ""));
    let field = || match field {
        "guest_dr6" => Ok(Field::GuestDr6),
        "guest_dr7" => Ok(Field::GuestDr7),
        "dr_intercept" => Ok(Field::DrIntercept),
        _ => Err(PyValueError::new_err(format!("a field is guest_dr6, guest_dr7 or dr_intercept (got {field:?})"))),
    };
    Ok(match name {
        "breakpoints_active" => Op::Ask(Ask::BreakpointsActive),
        "read_dr" => Op::Ask(Ask::ReadDr(dr()?)),
        "shadow" => Op::Ask(Ask::Shadow(dr()?)),
        "cpu_word" => Op::Ask(Ask::CpuWord(word()?)),
        "vcpu_word" => Op::Ask(Ask::VcpuWord(word()?)),
        "guest" => Op::Ask(Ask::Guest(dr()?)),
        "effective_db" => Op::Ask(Ask::EffectiveDb(slot()?)),
        "effective_dr7" => Op::Ask(Ask::EffectiveDr7),
        "guest_debug" => Op::Ask(Ask::GuestDebug),
        "wont_exit" => Op::Ask(Ask::WontExit),
        "read_field" => Op::Ask(Ask::ReadField(field()?)),
        "reason" => Op::Ask(Ask::Reason),
        "is_intel" => Op::Ask(Ask::IsIntel),
        "write_dr" => Op::WriteDr(dr()?, value),
        "refresh" => Op::Refresh,
        "schedule_out" => Op::ScheduleOut,
        "schedule_in" => Op::ScheduleIn,
        "set_cpu_word" => Op::SetCpuWord(word()?, value),
        "set_vcpu_word" => Op::SetVcpuWord(word()?, value),
        "write_field" => Op::WriteField(field()?, value),
        "close_window" => Op::CloseWindow,
        _ => return Err(PyValueError::new_err(format!("no operation is called {name:?}"))),
    })
}

/// What a run has come to.
enum Next {
    /// With its name.
    Do(Op, String),
    End,
    /// `None`: it ended.
    Strayed(Option<String>),
}

/// What is done next, and by answer what then.
#[derive(Default)]
struct Node {
    /// `Some(None)` is the end.
    op: OnceLock<Option<Op>>,
    branches: RwLock<HashMap<u64, Arc<Node>>>,
    visits: AtomicU32,
}

impl Node {
    fn branch(&self, answer: u64) -> Arc<Node> {
        if let Some(node) = self.branches.read().unwrap_or_else(PoisonError::into_inner).get(&answer) {
            return Arc::clone(node);
        }
        let mut branches = self.branches.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(branches.entry(answer).or_default())
    }
}

type Path = Vec<(Op, u64)>;

/// A policy of Python's.
struct InPython {
    name: String,
    opens_windows: bool,
    /// Called with the name of a method and a [`Turn`].
    call: Py<PyAny>,
    trees: [Arc<Node>; Hook::ALL.len()],
    /// Every run that went to its end, once.
    ends: Mutex<Vec<(Hook, Path)>>,
}

impl fmt::Debug for InPython {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

const fn method(hook: Hook) -> &'static str {
    match hook {
        Hook::VmEntry => "vm_entry",
        Hook::VmExit => "vm_exit",
        Hook::VmReentry => "vm_reentry",
        Hook::VcpuLoad => "vcpu_load",
        Hook::VcpuPut => "vcpu_put",
    }
}

impl InPython {
    /// Runs a method on what is known. `None`: it has failed.
    fn ask(&self, hook: Hook, known: &[(Op, u64)]) -> Option<Next> {
        let next = Python::attach(|py| -> PyResult<Next> {
            let turn = Py::new(py, Turn(Mutex::new(Course::of(known))))?;
            let outer = ASKING.replace(true);
            let result = self.call.call1(py, (method(hook), turn.clone_ref(py)));
            ASKING.set(outer);
            let course = locked(&turn.get().0);
            if course.strayed.is_some() {
                return Ok(Next::Strayed(course.strayed.clone()));
            }
            if let Some(op) = course.next {
                return Ok(Next::Do(op, course.shown.clone()));
            }
            result?;
            Ok(if course.at < known.len() { Next::Strayed(None) } else { Next::End })
        });
        match next {
            Ok(Next::Strayed(did)) => {
                self.strayed(hook, did);
                None
            }
            Ok(next) => Some(next),
            Err(error) => {
                fail(error);
                None
            }
        }
    }

    /// Asks again for a run that ended, and finds out whether it does.
    fn is_steady(&self, hook: Hook, known: &[(Op, u64)]) -> bool {
        match self.ask(hook, known) {
            Some(Next::Do(_, shown)) => {
                self.strayed(hook, Some(shown));
                false
            }
            next => next.is_some(),
        }
    }

    fn strayed(&self, hook: Hook, did: Option<String>) {
        let did = did.map_or_else(|| "ended".to_owned(), |shown| format!("went on with {shown}"));
        let (name, method) = (&self.name, method(hook));
        let message = format!(
            "{method} {did} where it did otherwise before, with the same answers: what a policy remembers is in `words`"
        );
        fail(Python::attach(|py| {
            let error = || {
                let arguments = [("path", name)].into_py_dict(py)?;
                py.import("debugreg.errors")?.getattr("PolicyError")?.call((message,), Some(&arguments))
            };
            error().map_or_else(|failed| failed, PyErr::from_value)
        }));
    }

    /// Runs of the past again, in another order than they came in.
    fn audit(&self) {
        let ends = locked(&self.ends).clone();
        let count = ends.len();
        for at in 0..count.min(AUDITED) {
            for other in 0..=PREDECESSORS {
                // The last one is the run itself; primes choose those before it.
                let which = if other == PREDECESSORS { at } else { (at * 7919 + other * 104_729 + 1) % count };
                let (hook, path) = &ends[which];
                if has_failed() || !self.is_steady(*hook, path) {
                    return;
                }
            }
        }
    }
}

fn fail(error: PyErr) {
    let mut failure = locked(&FAILURE);
    if failure.is_none() {
        *failure = Some(error);
    }
    FAILED.store(true, Ordering::Relaxed);
}

impl UserHalf for InPython {
    fn opens_windows(&self) -> bool {
        self.opens_windows
    }

    fn run(&self, hook: Hook, perform: &mut dyn FnMut(Op) -> u64) {
        if has_failed() {
            return;
        }
        let mut node = Arc::clone(&self.trees[hook as usize]);
        let mut path = Path::with_capacity(16);
        loop {
            let step = node.op.get().copied().or_else(|| {
                let step = match self.ask(hook, &path)? {
                    Next::Do(op, _) => Some(op),
                    Next::End | Next::Strayed(_) => None,
                };
                // Two threads may ask at once, and go on with what the first has heard.
                if node.op.set(step).is_ok() && step.is_none() {
                    locked(&self.ends).push((hook, path.clone()));
                }
                node.op.get().copied()
            });
            match step {
                None => return,
                Some(None) => {
                    let visits = node.visits.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
                    if visits > 1 && visits.is_power_of_two() {
                        self.is_steady(hook, &path);
                    }
                    return;
                }
                Some(Some(op)) => {
                    let answer = perform(op);
                    path.push((op, answer));
                    node = node.branch(answer);
                }
            }
        }
    }
}

/// By name: those who can be audited.
static POLICIES: RwLock<Vec<&'static InPython>> = RwLock::new(Vec::new());

/// Give a policy of Python's a name.
///
/// Args:
///     name: The name.
///     call: Called with the name of a method and a `Turn`, by which the method acts.
///     opens_windows: Whether a guest's first MOV DR opens a window.
#[pyfunction]
#[pyo3(signature = (name, call, opens_windows, /))]
pub(crate) fn register_policy(name: &str, call: Py<PyAny>, opens_windows: bool) {
    let trees = Default::default();
    // A machine that has the policy may outlive its name.
    let policy: &InPython =
        Box::leak(Box::new(InPython { name: name.to_owned(), opens_windows, call, trees, ends: Mutex::default() }));
    policy::register(name, policy);
    let mut policies = POLICIES.write().unwrap_or_else(PoisonError::into_inner);
    policies.retain(|other| other.name != name);
    policies.push(policy);
}

/// Run again what a policy has done, in another order: an exception if it does something else, and if it has failed.
#[pyfunction]
#[pyo3(signature = (name, /))]
pub(crate) fn audit_policy(py: Python<'_>, name: &str) -> PyResult<()> {
    let found = {
        let policies = POLICIES.read().unwrap_or_else(PoisonError::into_inner);
        policies.iter().copied().find(|policy| policy.name == name)
    };
    if let Some(policy) = found {
        py.detach(|| policy.audit());
    }
    raise_failure()
}

/// Why a guest has left, by the number that [`Ask::Reason`] answers.
#[pyfunction]
#[pyo3(signature = (number, /))]
pub(crate) fn exit_reason(number: u64) -> &'static str {
    let reasons = [Exit::Db, Exit::MovDr, Exit::Nmi, Exit::Other];
    reasons.into_iter().find(|&reason| reason as u64 == number).unwrap_or_default().name()
}
