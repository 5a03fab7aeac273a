//! What a scenario calls its things.

use super::ScenarioError;
use super::lex::{Word, is_name};
use crate::{CounterId, CpuId, Errno, TaskId, VcpuId};

/// What a name stands for. A counter's number is its symbol in the file: which counter that is shows when it runs.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Named {
    Task(TaskId),
    Vcpu(VcpuId),
    Counter(CounterId),
}

/// All names, in the order in which they came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Names {
    all: Vec<(String, Named)>,
    cpus: usize,
    tasks: u32,
    vcpus: u32,
    counters: u32,
}

impl Names {
    /// No names yet, on a machine with that many CPUs.
    pub fn new(cpus: usize) -> Names {
        // Task 0 is the idle task.
        Names { all: Vec::new(), cpus, tasks: 1, vcpus: 0, counters: 0 }
    }

    pub(super) fn get(&self, name: &str) -> Option<Named> {
        self.all.iter().find(|(known, _)| known == name).map(|&(_, named)| named)
    }

    /// Why nothing more can be called so.
    pub fn mistake(&self, name: &str) -> Option<String> {
        let word = Word { text: name, line: 1, column: 1 };
        self.clone().add_counter(word).err().map(|error| error.message)
    }

    /// Whether a name is taken.
    pub fn knows(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The name of a task.
    pub fn task(&self, id: TaskId) -> &str {
        if id == TaskId::IDLE { "idle" } else { self.of(Named::Task(id)) }
    }

    /// The name of a vCPU.
    pub fn vcpu(&self, id: VcpuId) -> &str {
        self.of(Named::Vcpu(id))
    }

    /// The name of a counter, by its symbol.
    pub fn counter(&self, symbol: CounterId) -> &str {
        self.of(Named::Counter(symbol))
    }

    fn of(&self, wanted: Named) -> &str {
        self.all.iter().find(|&&(_, named)| named == wanted).map_or("?", |(name, _)| name)
    }

    /// How many counters have names.
    pub fn counters(&self) -> usize {
        self.counters as usize
    }

    /// Names a new task.
    pub(super) fn add_task(&mut self, word: Word<'_>) -> Result<TaskId, ScenarioError> {
        let id = TaskId(self.tasks);
        self.add(word, Named::Task(id))?;
        self.tasks += 1;
        Ok(id)
    }

    /// Names a new vCPU.
    pub(super) fn add_vcpu(&mut self, word: Word<'_>) -> Result<VcpuId, ScenarioError> {
        let id = VcpuId(self.vcpus);
        self.add(word, Named::Vcpu(id))?;
        self.vcpus += 1;
        Ok(id)
    }

    /// Names a counter.
    pub(super) fn add_counter(&mut self, word: Word<'_>) -> Result<CounterId, ScenarioError> {
        let id = CounterId(self.counters);
        self.add(word, Named::Counter(id))?;
        self.counters += 1;
        Ok(id)
    }

    fn add(&mut self, word: Word<'_>, named: Named) -> Result<(), ScenarioError> {
        let name = word.text;
        if !is_name(name) {
            return Err(word.error(format!("found '{name}', allowed is a name: [A-Za-z_][A-Za-z0-9_]*")));
        }
        if is_reserved(name) {
            return Err(word.error(format!("'{name}' is a word of the language, and cannot be a name")));
        }
        if self.get(name).is_some() {
            return Err(word.error(format!("'{name}' is taken already: names are unique in a file")));
        }
        self.all.push((name.to_owned(), named));
        Ok(())
    }

    /// Forgets the names that came after a mark: what a line that failed has named.
    pub(super) fn rollback(&mut self, mark: &Names) {
        self.clone_from(mark);
    }

    pub(super) fn cpu(&self, word: Word<'_>) -> Result<CpuId, ScenarioError> {
        cpu_number(word.text)
            .filter(|&cpu| cpu < self.cpus as u64)
            .map(|cpu| CpuId(cpu as u32))
            .ok_or_else(|| word.error(format!("found '{}', allowed is cpu0 to cpu{}", word.text, self.cpus - 1)))
    }

    pub(super) fn task_of(&self, word: Word<'_>) -> Result<TaskId, ScenarioError> {
        match self.get(word.text) {
            Some(Named::Task(task)) => Ok(task),
            _ => Err(word.error(format!("found '{}', allowed is a task: {}", word.text, self.tasks_listed()))),
        }
    }

    pub(super) fn tasks_listed(&self) -> String {
        self.listed(|named| matches!(named, Named::Task(_)), "none is declared")
    }

    pub(super) fn actors_listed(&self) -> String {
        let cpus = if self.cpus == 1 { "cpu0".to_owned() } else { format!("cpu0 to cpu{}", self.cpus - 1) };
        let names = self.listed(|_| true, "");
        if names.is_empty() { format!("{cpus}, kernel") } else { format!("{cpus}, kernel, {names}") }
    }

    fn listed(&self, want: impl Fn(Named) -> bool, none: &str) -> String {
        let names: Vec<_> = self.all.iter().filter(|(_, named)| want(*named)).map(|(name, _)| &**name).collect();
        if names.is_empty() { none.to_owned() } else { names.join(", ") }
    }
}

/// The N of `cpuN`.
pub(super) fn cpu_number(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("cpu")?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) { None } else { digits.parse().ok() }
}

/// Words that cannot be names: errnos, events, outcomes and declarations.
fn is_reserved(name: &str) -> bool {
    const WORDS: &[&str] = &[
        "machine",
        "task",
        "vcpu",
        "kernel",
        "idle",
        "ok",
        "nothing",
        "refused",
        "endless",
        "hit",
        "sigtrap",
        "exit",
        "fault",
        "none",
        "kgdb",
        "perf_event_open",
        "close",
        "enable",
        "disable",
        "count",
        "modify",
        "ptrace_poke",
        "ptrace_peek",
        "attach",
        "detach",
        "fork",
        "exec",
        "migrate",
        "load",
        "store",
        "execute",
        "io",
        "mov_to_dr",
        "mov_from_dr",
        "sched_switch",
        "offline",
        "online",
        "registers",
        "refresh",
        "hardware",
        "owed",
        "slots",
        "nmi",
        "kgdb_enter",
        "kgdb_set",
        "kgdb_clear",
        "kgdb_resume",
        "kgdb_announce",
        "kgdb_release",
        "register_kernel_hw_breakpoint",
        "register_wide_hw_breakpoint",
        "register_user_hw_breakpoint",
        "modify_wide_hw_breakpoint_local",
        "unregister_hw_breakpoint",
        "vm_entry",
        "vm_exit",
        "set_guest_debug",
        "get_debugregs",
        "set_debugregs",
        "init",
        "smi",
        "rsm",
        "task_switch",
        "nested_entry",
        "nested_exit",
    ];
    WORDS.contains(&name) || cpu_number(name).is_some() || is_errno(name)
}

/// Errnos that the model never answers are errnos all the same.
pub(super) fn is_errno(text: &str) -> bool {
    Errno::from_name(text).is_some()
        || matches!(text, "EAGAIN" | "EFAULT" | "EINTR" | "EEXIST" | "ENOENT" | "ENOMEM" | "ENOTSUP" | "E2BIG")
}
