//! The live machine: handles that share one session, and single lines of the language.

use std::ops::{Deref, DerefMut};

use debugreg_model::scenario::{ScenarioError, Session, show_outcome};
use debugreg_model::{
    Capabilities, Cost, CounterId, CpuId, Event, ExitReason, Holder, Misuse, Options, Outcome, Policy, TaskId, Vcpu,
    VcpuId, Vector, Vendor,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::user;

/// One machine and its names. Python never sees this object, only handles to it.
#[pyclass(module = "debugreg._core")]
pub(crate) struct Live(Session);

impl Deref for Live {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.0
    }
}

impl DerefMut for Live {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.0
    }
}

/// What every handle to a machine has of it. The lock is PyO3's borrow flag: an atomic exchange to take it and a plain
/// store to give it back. A mutex exchanges twice, and the second time was a tenth of a task switch from Python.
struct Shared(Py<Live>);

impl Shared {
    fn new(py: Python<'_>, session: Session) -> PyResult<Shared> {
        Py::new(py, Live(session)).map(Shared)
    }

    /// Whether two handles are of one machine.
    #[inline]
    fn is(&self, other: &Shared) -> bool {
        self.0.is(&other.0)
    }

    fn clone_ref(&self, py: Python<'_>) -> Shared {
        Shared(self.0.clone_ref(py))
    }

    /// Takes the machine, after whoever has it. With a GIL nobody ever has: no Python runs while it is taken.
    #[inline]
    fn lock<'py>(&self, py: Python<'py>) -> PyResult<PyRefMut<'py, Live>> {
        loop {
            match self.0.bind(py).try_borrow_mut() {
                Ok(live) => return Ok(live),
                Err(_) if user::is_asking() => return Err(of_policy()),
                Err(_) => py.detach(std::thread::yield_now),
            }
        }
    }

    fn apply(&self, py: Python<'_>, event: &Event) -> PyResult<Outcome> {
        let mut session = self.lock(py)?;
        let outcome = session.machine.apply(event, &mut ()).map_err(|misuse| mistake(&session, &misuse))?;
        user::raise_failure()?;
        Ok(outcome)
    }

    /// [`Shared::apply`] of an event that has nothing to answer: its outcome is not moved out, which takes 3 ns.
    fn perform(&self, py: Python<'_>, event: &Event) -> PyResult<()> {
        let mut session = self.lock(py)?;
        match session.machine.apply(event, &mut ()) {
            Ok(_) => user::raise_failure(),
            Err(misuse) => Err(mistake(&session, &misuse)),
        }
    }
}

#[cold]
fn of_policy() -> PyErr {
    PyValueError::new_err("a policy's method sees what it is given, not the machine that it runs in")
}

#[cold]
fn another_machine(argument: &str) -> PyErr {
    PyValueError::new_err(format!("{argument} belongs to another machine"))
}

fn mistake(session: &Session, misuse: &Misuse) -> PyErr {
    PyValueError::new_err(session.explain(misuse))
}

/// A mistake in a line, without its place: there is only one line.
fn misspelt(error: &ScenarioError) -> PyErr {
    PyValueError::new_err(format!("column {}: {}", error.column, error.message))
}

/// dr_writes, dr_reads, vmcs, vm_exits, skips.
pub(crate) type CostFields = (u64, u64, u64, u64, u64);

pub(crate) fn cost_fields(cost: Cost) -> CostFields {
    (cost.dr_writes, cost.dr_reads, cost.vmcs, cost.vm_exits, cost.skips)
}

/// DR0 to DR3, DR6, DR7.
type RegisterFields = (u64, u64, u64, u64, u64, u64);

fn register_fields(registers: debugreg::Registers) -> RegisterFields {
    let [a, b, c, d] = registers.dr;
    (a, b, c, d, registers.dr6, registers.dr7)
}

/// A counter's number (None is kgdb), its name, its scope, and since which event.
type HeldFields = (Option<u32>, String, String, u64);

/// A counter's name and number.
type Named = (String, u32);

/// See [`PyMachine::_do`].
type LineOutcome = (
    Option<bool>,
    String,
    Vec<Named>,
    Option<&'static str>,
    Option<u64>,
    Option<u64>,
    Option<RegisterFields>,
    Option<(i32, String, &'static str, Vec<Named>)>,
    Vec<String>,
);

pub(crate) fn policy_of(text: &str) -> PyResult<Policy> {
    Policy::parse(text).map_err(|error| PyValueError::new_err(error.to_string()))
}

pub(crate) fn vendor_of(text: &str) -> PyResult<Vendor> {
    match text {
        "intel" => Ok(Vendor::Intel),
        "amd" => Ok(Vendor::Amd),
        _ => Err(PyValueError::new_err(format!("vendor must be 'intel' or 'amd' (got {text:?})"))),
    }
}

/// A machine: CPUs, tasks, counters, vCPUs.
#[pyclass(frozen, subclass, name = "Machine", module = "debugreg._core")]
pub(crate) struct PyMachine(Shared);

impl PyMachine {
    /// See [`Shared::lock`].
    pub(crate) fn lock<'py>(&self, py: Python<'py>) -> PyResult<PyRefMut<'py, Live>> {
        self.0.lock(py)
    }
}

#[pymethods]
impl PyMachine {
    #[new]
    #[pyo3(signature = (cpus, vendor, policy, slots, paranoid, hypervisor, fred, disabled_match, decode_assists, kprobes, kgdb, /) -> "Self")]
    #[allow(clippy::too_many_arguments, clippy::fn_params_excessive_bools, reason = "the keys of a machine line")]
    fn new(
        py: Python<'_>,
        cpus: usize,
        vendor: &str,
        policy: &str,
        slots: usize,
        paranoid: i32,
        hypervisor: bool,
        fred: bool,
        disabled_match: bool,
        decode_assists: bool,
        kprobes: bool,
        kgdb: &str,
    ) -> PyResult<Self> {
        let kgdb_early = match kgdb {
            "late" => false,
            "early" => true,
            _ => return Err(PyValueError::new_err(format!("kgdb must be 'late' or 'early' (got {kgdb:?})"))),
        };
        if !(1..=256).contains(&cpus) {
            return Err(PyValueError::new_err(format!("cpus must be 1 to 256 (got {cpus})")));
        }
        if !(1..=4).contains(&slots) {
            return Err(PyValueError::new_err(format!("slots must be 1 to 4 (got {slots})")));
        }
        let vendor = vendor_of(vendor)?;
        let options = Options {
            cpus,
            vendor,
            slots,
            paranoid,
            hypervisor,
            fred,
            disabled_match,
            decode_assists,
            kprobes,
            kgdb_early,
            ..Options::default()
        };
        Shared::new(py, Session::new(options, policy_of(policy)?)).map(PyMachine)
    }

    /// Add a task and return its number.
    #[pyo3(signature = (name, cpu, caps, bits, /))]
    fn _add_task(&self, py: Python<'_>, name: &str, cpu: u32, caps: &str, bits: u32) -> PyResult<u32> {
        let capabilities = match caps {
            "root" => Capabilities::Root,
            "perfmon" => Capabilities::Perfmon,
            "none" => Capabilities::None,
            _ => {
                return Err(PyValueError::new_err(format!("caps must be 'root', 'perfmon' or 'none' (got {caps:?})")));
            }
        };
        if !matches!(bits, 32 | 64) {
            return Err(PyValueError::new_err(format!("bits must be 64 or 32 (got {bits})")));
        }
        let mut session = self.0.lock(py)?;
        let cpus = session.machine.cpu_count();
        if cpu as usize >= cpus {
            return Err(PyValueError::new_err(format!("cpu must be 0 to {} (got {cpu})", cpus - 1)));
        }
        let task = session.add_task(name, CpuId(cpu), capabilities).map_err(|error| misspelt(&error))?;
        session.machine.set_32bit(task, bits == 32);
        Ok(task.0)
    }

    /// Add a vCPU and return its number.
    #[pyo3(signature = (name, task, de, /))]
    fn _add_vcpu(&self, py: Python<'_>, name: &str, task: &PyTask, de: bool) -> PyResult<u32> {
        if !task.shared.is(&self.0) {
            return Err(another_machine("task"));
        }
        let mut session = self.0.lock(py)?;
        let vcpu = session.add_vcpu(name, task.id).map_err(|error| misspelt(&error))?;
        session.machine.set_debug_extensions(vcpu, de);
        Ok(vcpu.0)
    }

    /// Perform one line of the language.
    ///
    /// Returns:
    ///     Whether the expectation held (None without one); the outcome as text; the counters that were hit or bound,
    ///     by name and number; the exception ("#DB", "#UD", "#GP", "SIGTRAP") or exit ("debug", "nested", "fail_entry");
    ///     DR6; a number; registers; a refusal as errno, its name, the rule and the holders; and the steps.
    #[pyo3(signature = (line, /))]
    fn _do(&self, py: Python<'_>, line: &str) -> PyResult<LineOutcome> {
        let mut session = self.0.lock(py)?;
        let (parsed, performed) = session.line(line).map_err(|error| misspelt(&error))?;
        user::raise_failure()?;
        let Some(outcome) = performed.outcome else {
            return Err(PyValueError::new_err("the line names a counter that was never opened"));
        };
        let ok = parsed.expectation.as_ref().map(|wanted| wanted.holds(&outcome, |id| session.symbol(id)));
        let name = |&id: &CounterId| (session.counter_name(id), id.0);
        let (mut counters, mut exception, mut dr6, mut value) = (Vec::new(), None, None, None);
        let (mut registers, mut refusal) = (None, None);
        match &outcome {
            Outcome::Hits { counters: hit, kgdb, sigtrap } => {
                counters = hit.iter().map(name).collect();
                exception = sigtrap.map(|_| "SIGTRAP").or(kgdb.then_some("kgdb"));
                dr6 = *sigtrap;
            }
            Outcome::Bound(id) => counters.push(name(id)),
            Outcome::Exception { vector, dr6: shown, .. } => {
                exception = Some(match vector {
                    Vector::Debug => "#DB",
                    Vector::InvalidOpcode => "#UD",
                    Vector::GeneralProtection => "#GP",
                });
                dr6 = Some(*shown);
            }
            Outcome::ExitDebug { dr6: shown, .. } => (exception, dr6) = (Some("debug"), Some(*shown)),
            Outcome::ExitNested { dr6: shown, .. } => (exception, dr6) = (Some("nested"), Some(*shown)),
            Outcome::ExitFailEntry => exception = Some("fail_entry"),
            Outcome::Value(number) => value = Some(*number),
            Outcome::Registers(found) => registers = Some(register_fields(*found)),
            Outcome::Refused(why) => {
                let holders: Vec<_> = why.holders.iter().map(name).collect();
                // kgdb's calls say -1.
                let (number, name) = why.errno.map_or((1, "refused".to_owned()), |e| (e.number(), e.name()));
                refusal = Some((number, name, why.rule, holders));
            }
            Outcome::Endless => exception = Some("endless #DB"),
            Outcome::Ok | Outcome::Slots(_) => {}
        }
        let text = show_outcome(&outcome, &session);
        Ok((ok, text, counters, exception, dr6, value, registers, refusal, performed.steps))
    }

    /// Why nothing more can have a name, or None if something can.
    #[pyo3(signature = (name, /))]
    fn _name_mistake(&self, py: Python<'_>, name: &str) -> PyResult<Option<String>> {
        Ok(self.0.lock(py)?.names.mistake(name))
    }

    /// Whether a name is taken.
    #[pyo3(signature = (name, /))]
    fn _knows(&self, py: Python<'_>, name: &str) -> PyResult<bool> {
        Ok(self.0.lock(py)?.names.knows(name))
    }

    /// What everything has cost so far.
    #[getter]
    fn _cost(&self, py: Python<'_>) -> PyResult<CostFields> {
        Ok(cost_fields(self.0.lock(py)?.machine.cost()))
    }

    /// The policy, as a name with its deltas.
    #[getter]
    fn policy(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.0.lock(py)?.machine.policy.to_string())
    }

    /// 'intel' or 'amd'.
    #[getter]
    fn vendor(&self, py: Python<'_>) -> PyResult<&'static str> {
        Ok(self.0.lock(py)?.machine.options.vendor.name())
    }

    /// How many events there have been.
    #[getter]
    fn clock(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.0.lock(py)?.machine.clock())
    }

    #[getter]
    fn _cpu_count(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.0.lock(py)?.machine.cpu_count())
    }
}

/// A task.
#[pyclass(frozen, subclass, name = "Task", module = "debugreg._core")]
pub(crate) struct PyTask {
    shared: Shared,
    id: TaskId,
}

#[pymethods]
impl PyTask {
    #[new]
    #[pyo3(signature = (machine, id, /) -> "Self")]
    fn new(py: Python<'_>, machine: &PyMachine, id: u32) -> Self {
        PyTask { shared: machine.0.clone_ref(py), id: TaskId(id) }
    }

    /// Whether it is on its CPU.
    #[getter]
    fn running(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.shared.lock(py)?.machine.is_running(self.id))
    }

    #[getter]
    fn _id(&self) -> u32 {
        self.id.0
    }
}

/// A CPU.
#[pyclass(frozen, subclass, name = "Cpu", module = "debugreg._core")]
pub(crate) struct PyCpu {
    shared: Shared,
    id: CpuId,
}

#[pymethods]
impl PyCpu {
    #[new]
    #[pyo3(signature = (machine, index, /) -> "Self")]
    fn new(py: Python<'_>, machine: &PyMachine, index: u32) -> Self {
        PyCpu { shared: machine.0.clone_ref(py), id: CpuId(index) }
    }

    /// Number of the CPU.
    #[getter]
    fn index(&self) -> u32 {
        self.id.0
    }

    /// The cheap test: whether a host breakpoint is in a register here (`hw_breakpoint_active`).
    #[getter]
    fn breakpoints_active(&self, py: Python<'_>) -> PyResult<bool> {
        let session = self.shared.lock(py)?;
        Ok(session.machine.breakpoints_active(self.id))
    }

    /// A property that does nothing, of the same signature: what a call costs, for bench/.
    #[getter]
    #[allow(clippy::unused_self, reason = "its signature is the point")]
    fn _nothing(&self) -> bool {
        false
    }

    /// Switch to another task; None is the idle task.
    #[pyo3(signature = (task, /))]
    fn sched_switch(&self, py: Python<'_>, task: Option<&PyTask>) -> PyResult<()> {
        let next = match task {
            None => TaskId::IDLE,
            Some(task) if task.shared.is(&self.shared) => task.id,
            Some(_) => return Err(another_machine("task")),
        };
        self.shared.perform(py, &Event::SchedSwitch(self.id, next))
    }

    /// A method that does nothing, of the same signature: what a call costs, for bench/.
    #[pyo3(signature = (task, /))]
    #[allow(clippy::unnecessary_wraps, reason = "its signature is the point")]
    fn _nothing_with(&self, task: Option<&PyTask>) -> PyResult<()> {
        let _ = (self, task);
        Ok(())
    }

    /// Refresh the hardware from the shadow: Jan's second wish.
    fn refresh(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.perform(py, &Event::Refresh(self.id))
    }

    #[getter]
    fn _registers(&self, py: Python<'_>) -> PyResult<RegisterFields> {
        self.read(py, &Event::Registers(self.id))
    }

    #[getter]
    fn _hardware(&self, py: Python<'_>) -> PyResult<RegisterFields> {
        self.read(py, &Event::Hardware(self.id))
    }

    #[getter]
    fn _owed(&self, py: Python<'_>) -> PyResult<RegisterFields> {
        self.read(py, &Event::Owed(self.id))
    }

    /// Who runs, by number and name; None is the idle task.
    #[getter]
    fn _running(&self, py: Python<'_>) -> PyResult<Option<(u32, String)>> {
        let session = self.shared.lock(py)?;
        let running = session.machine.running(self.id);
        Ok((running != TaskId::IDLE).then(|| (running.0, session.names.task(running).to_owned())))
    }

    /// By slot: the counter's number and name, its scope, and since which event; a number of None is kgdb.
    #[getter]
    fn _slots(&self, py: Python<'_>) -> PyResult<Vec<Option<HeldFields>>> {
        let session = self.shared.lock(py)?;
        let announced = session.machine.cpu(self.id).announced;
        let held = |(holder, announced): (Holder, u64)| match holder {
            Holder::Nobody => None,
            Holder::Kgdb => Some((None, "kgdb".to_owned(), format!("cpu{}", self.id.0), announced)),
            Holder::Counter(id) => {
                let since = session.machine.counter(id).since;
                Some((Some(id.0), session.counter_name(id), scope(&session, id), since))
            }
        };
        Ok(session.machine.slots(self.id).into_iter().zip(announced).map(held).collect())
    }
}

impl PyCpu {
    fn read(&self, py: Python<'_>, event: &Event) -> PyResult<RegisterFields> {
        match self.shared.apply(py, event)? {
            Outcome::Registers(registers) => Ok(register_fields(registers)),
            _ => unreachable!("these events answer with registers"),
        }
    }
}

/// `task NAME`, `task NAME on cpuN`, `cpuN`.
fn scope(session: &Session, id: CounterId) -> String {
    let counter = session.machine.counter(id);
    match (counter.target, counter.cpu) {
        (Some(task), None) => format!("task {}", session.names.task(task)),
        (Some(task), Some(cpu)) => format!("task {} on cpu{}", session.names.task(task), cpu.0),
        (None, cpu) => format!("cpu{}", cpu.map_or(0, |cpu| cpu.0)),
    }
}

/// A perf breakpoint counter.
#[pyclass(frozen, subclass, name = "Counter", module = "debugreg._core")]
pub(crate) struct PyCounter {
    shared: Shared,
    id: CounterId,
}

#[pymethods]
impl PyCounter {
    #[new]
    #[pyo3(signature = (machine, id, /) -> "Self")]
    fn new(py: Python<'_>, machine: &PyMachine, id: u32) -> Self {
        PyCounter { shared: machine.0.clone_ref(py), id: CounterId(id) }
    }

    /// What a scenario line calls it.
    #[getter]
    fn name(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.shared.lock(py)?.counter_name(self.id))
    }

    /// Whom it counts.
    #[getter]
    fn scope(&self, py: Python<'_>) -> PyResult<String> {
        let session = self.shared.lock(py)?;
        Ok(scope(&session, self.id))
    }

    /// How often it was hit.
    #[getter]
    fn count(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.shared.lock(py)?.machine.counter(self.id).count)
    }

    /// Whether it is in a register.
    #[getter]
    fn active(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.shared.lock(py)?.machine.counter(self.id).state == debugreg_model::State::Active)
    }

    /// PERF_EVENT_IOC_ENABLE.
    fn enable(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.perform(py, &Event::Enable(self.id))
    }

    /// PERF_EVENT_IOC_DISABLE: the slot stays taken.
    fn disable(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.perform(py, &Event::Disable(self.id))
    }

    /// Close the last descriptor.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.perform(py, &Event::Close(self.id))
    }

    #[getter]
    fn _id(&self) -> u32 {
        self.id.0
    }
}

/// A virtual CPU.
#[pyclass(frozen, subclass, name = "Vcpu", module = "debugreg._core")]
pub(crate) struct PyVcpu {
    shared: Shared,
    id: VcpuId,
}

#[pymethods]
impl PyVcpu {
    #[new]
    #[pyo3(signature = (machine, id, /) -> "Self")]
    fn new(py: Python<'_>, machine: &PyMachine, id: u32) -> Self {
        PyVcpu { shared: machine.0.clone_ref(py), id: VcpuId(id) }
    }

    /// VM entry.
    fn vm_entry(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.perform(py, &Event::VmEntry(self.id))
    }

    /// VM exit.
    #[pyo3(signature = (reason = "io", /))]
    fn vm_exit(&self, py: Python<'_>, reason: &str) -> PyResult<()> {
        let event = Event::VmExit(self.id, ExitReason::named(reason));
        self.shared.perform(py, &event)
    }

    /// Whether its guest runs.
    #[getter]
    fn in_guest(&self, py: Python<'_>) -> PyResult<bool> {
        let session = self.shared.lock(py)?;
        Ok(session.machine.guest_runs(self.id))
    }

    #[getter]
    fn _own(&self, py: Python<'_>) -> PyResult<RegisterFields> {
        let session = self.shared.lock(py)?;
        let vcpu: &Vcpu = session.machine.vcpu(self.id);
        Ok(register_fields(vcpu.own))
    }
}
