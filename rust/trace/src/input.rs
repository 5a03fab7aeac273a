//! A trace, read once: its input rows, the truth lines beside them, and what the lines say about time.
//!
//! Some rows act at another place than where they stand. An open acts before its `->` line: at the end of the call, or,
//! if the caller slept in it (the machine's first task breakpoint patches a static key), in the stretch in which it was
//! next switched in. An exiting task's counters leave the registers early in `do_exit`, so before `sched_process_exit`:
//! in the first stretch after its last voluntary switch, whoever preempted it or whatever it waited for since, unless
//! something was installed for it later. An exec likewise. What a modify wants is printed before the ioctl that wants it.
//! The value of a guest's DR7 comes after the exit that it belongs to.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use debugreg_model::Vendor;

use crate::error::TraceError;
use crate::ftrace::{BpAttr, Counts, Event, ExitReason, Lines, PrevState};
use crate::tie::{self, Tied, Untied};
use crate::{source, steps};

/// What a row says happened.
#[derive(Copy, Clone, PartialEq, Debug)]
#[allow(missing_docs, reason = "the fields are named as the lines name them")]
pub enum Input {
    /// `sched_switch`.
    Switch { prev: i32, next: i32, sleeps: bool },
    /// `sched_migrate_task`.
    Migrate { pid: i32, to: u16 },
    /// `sched_process_fork`.
    Fork { parent: i32, child: i32 },
    /// `sched_process_exec`.
    Exec { pid: i32 },
    /// `sched_process_exit`: the task's counters have left the registers, its descriptors are still open.
    Exit { pid: i32 },
    /// `kvm_entry`.
    Entry { vcpu: u32, rip: Option<u64> },
    /// `kvm_exit`, with the guest's DR7 if a later line tells it.
    KvmExit { vcpu: Option<u32>, rip: Option<u64>, why: Why, guest_dr7: Option<u64> },
    /// `perf_event_open` of a breakpoint; `group` is the descriptor of its leader, `result` what its `->` line says.
    Open { attr: BpAttr, pid: i32, cpu: i32, group: Option<i32>, result: Option<i64> },
    /// `close`.
    Close { fd: i32 },
    /// `PERF_EVENT_IOC_ENABLE`.
    Enable { fd: i32 },
    /// `PERF_EVENT_IOC_DISABLE`.
    Disable { fd: i32 },
    /// `PERF_EVENT_IOC_MODIFY_ATTRIBUTES`.
    Modify { fd: i32, attr: BpAttr },
    /// `PTRACE_POKEUSER` of a debug register that succeeded, or whose result is not known.
    Poke { pid: i32, dr: u8, value: u64 },
    /// `KVM_CREATE_VCPU`.
    CreateVcpu { vcpu: u32 },
    /// An ioctl of a vCPU.
    VcpuIoctl,
    /// `KVM_RUN` returns for the guest's debugger.
    DebugExit,
    /// `perf_event_open` returns a descriptor, and the line on which it was entered is not there.
    OpenReturn,
    /// `KVM_SET_GUEST_DEBUG`, with the DR7 that is in force then if a later line tells it.
    SetGuestDebug { control: u32, dr: [Option<u64>; 4], dr7: Option<u64>, guest_dr7: Option<u64> },
    /// `KVM_SET_DEBUGREGS`.
    SetDebugregs { db: [Option<u64>; 4], dr6: Option<u64>, dr7: Option<u64> },
    /// `phase NAME`: the phase of this index begins.
    Phase(usize),
    /// Something that happens on a CPU and changes nothing here; it bounds a window all the same.
    Nothing,
}

/// Why a guest left, as far as debug registers go.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Why {
    /// A MOV DR was intercepted: of which register, and whether it was a write.
    #[allow(missing_docs, reason = "said above")]
    DrAccess { dr: u8, write: bool },
    /// #DB was.
    Db,
    /// Anything else.
    Other,
}

/// An input row.
#[derive(Copy, Clone, PartialEq, Debug)]
pub struct Row {
    /// Line of the trace, from 1.
    pub line: u32,
    /// CPU.
    pub cpu: u16,
    /// The task that was current.
    pub pid: i32,
    /// What happened.
    pub input: Input,
}

/// A line of truth: what the kernel did, only compared.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Truth {
    /// Line of the trace, from 1.
    pub line: u32,
    /// CPU.
    pub cpu: u16,
    /// The input line of the same CPU that opened its window; 0 before the first.
    pub window: u32,
    /// What.
    pub done: Done,
}

/// What the kernel did.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Done {
    /// A breakpoint of this address was installed.
    Install(u64),
    /// A breakpoint of this address was uninstalled.
    Uninstall(u64),
    /// The hardware was refreshed.
    Restore,
    /// The guest's registers were read back.
    Sync,
}

/// A trace.
#[derive(Clone, Debug)]
pub struct Trace {
    /// The file.
    pub name: String,
    /// Whose virtualisation the exits are of; AMD if there are none.
    pub vendor: Vendor,
    /// How many CPUs its lines name.
    pub cpus: usize,
    /// The rows.
    pub rows: Vec<Row>,
    /// Rows that act elsewhere than where they stand: before which row (by index), and which row does; in order.
    pub acts: Vec<(u32, u32)>,
    /// Who recorded it knows that before the first line nobody had a breakpoint, and that there was no vCPU.
    pub quiet_before: bool,
    /// The truth.
    pub truth: Vec<Truth>,
    /// Lines before which events were lost.
    pub gaps: Vec<u32>,
    /// Tasks that may be exiting when the lines end, by pid: since when. Their counters leave the registers before that
    /// shows.
    pub exiting: HashMap<i32, u32>,
    /// Names of the phases.
    pub phases: Vec<String>,
    /// What the reader passed over.
    pub counts: Counts,
    /// What a steps file adds, if there is one that can be tied to the lines.
    pub steps: Option<Tied>,
    /// Why one that there is cannot be.
    pub untied: Option<Untied>,
}

impl Trace {
    /// Reads a trace, and the steps file that lies beside it (`NAME.steps` or `NAME.steps.gz` for `NAME.txt...`).
    ///
    /// # Errors
    ///
    /// [`TraceError`] names the file and what is wrong with it.
    pub fn read(path: &Path) -> Result<Trace, TraceError> {
        let bytes = source::read_trace(path)?;
        let mut trace = Trace::parse(&path.display().to_string(), &bytes);
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let stem = name.strip_suffix(".gz").unwrap_or(&name);
        let stem = stem.strip_suffix(".txt").unwrap_or(stem);
        for beside in [format!("{stem}.steps"), format!("{stem}.steps.gz")] {
            let path = path.with_file_name(beside);
            if path.is_file() {
                trace.lay_beside(&steps::parse(&path, &source::read(&path)?)?);
                break;
            }
        }
        Ok(trace)
    }

    /// Ties the steps of the same run to the lines, or notes that they cannot be.
    pub fn lay_beside(&mut self, steps: &[steps::Step]) {
        match tie::tie(self, steps) {
            Ok(tied) => self.steps = Some(tied),
            Err(untied) => self.untied = Some(untied),
        }
    }

    /// Reads the text of a trace.
    pub fn parse(name: &str, bytes: &[u8]) -> Trace {
        let mut reading = Reading::default();
        let mut lines = Lines::new(bytes);
        let (mut gaps, mut losses) = (Vec::new(), 0);
        while let Some(record) = lines.next() {
            let lost = lines.counts().lost.lines;
            if std::mem::replace(&mut losses, lost) != lost {
                gaps.push(record.line);
            }
            reading.record(record.line, record.cpu, record.pid, record.event);
        }
        reading.acts.sort_unstable();
        Trace {
            name: name.to_owned(),
            vendor: vendor(bytes),
            cpus: reading.windows.len().max(1),
            rows: reading.rows,
            acts: reading.acts,
            quiet_before: false,
            truth: reading.truth,
            phases: reading.phases,
            gaps,
            exiting: reading.stretches,
            counts: *lines.counts(),
            steps: None,
            untied: None,
        }
    }
}

/// SVM's exit reasons are written small (or with EXIT_ by trace-cmd), VMX's in capitals.
fn vendor(bytes: &[u8]) -> Vendor {
    let Some(exit) = memchr::memmem::find(bytes, b"kvm_exit:") else { return Vendor::Amd };
    let line = bytes[exit..].split(|&b| b == b'\n').next().unwrap_or_default();
    let reason = memchr::memmem::find(line, b"reason ").map(|at| &line[at + 7..]).unwrap_or_default();
    let capital = reason.first().is_some_and(u8::is_ascii_uppercase);
    if capital && !reason.starts_with(b"EXIT_") && !reason.starts_with(b"DB excp") && !reason.starts_with(b"BP excp") {
        Vendor::Intel
    } else {
        Vendor::Amd
    }
}

/// The state of a reading.
#[derive(Default)]
struct Reading {
    rows: Vec<Row>,
    acts: Vec<(u32, u32)>,
    /// By CPU: who runs.
    running: HashMap<u16, i32>,
    truth: Vec<Truth>,
    phases: Vec<String>,
    /// By CPU: the line of its last input row.
    windows: Vec<u32>,
    /// By pid: an open in flight.
    opens: HashMap<i32, InFlight>,
    /// By pid: the leader's descriptor of an open whose attributes are still to come.
    groups: HashMap<i32, i32>,
    /// By pid: an open in flight that is of something else than a breakpoint.
    foreign: HashSet<i32>,
    /// By pid: the row of a ptrace call in flight.
    pokes: HashMap<i32, usize>,
    /// By pid: a modify whose ioctl is still to come.
    modifies: HashMap<i32, usize>,
    /// By CPU: the last row after which KVM puts a DR7 into force.
    forcing: HashMap<u16, usize>,
    /// By pid: the rows that took it off its CPU in the middle of whatever it does: it did not choose to wait.
    interrupted: HashMap<i32, Vec<usize>>,
    /// By pid: which row came after the last install while it ran.
    installed: HashMap<i32, usize>,
    /// By pid: the line on which it came after its last voluntary switch.
    stretches: HashMap<i32, u32>,
}

/// An open between its enter line and its `->` line.
struct InFlight {
    row: usize,
    /// Whether the caller slept, and the row that ended the stretch after that.
    slept: bool,
    switched_in: bool,
    acts: Option<usize>,
}

impl Reading {
    #[expect(clippy::too_many_lines, reason = "one arm for each event")]
    fn record(&mut self, line: u32, cpu: u16, pid: i32, event: Event<'_>) {
        let input = match event {
            Event::Install { address, .. } => {
                self.installed.insert(pid, self.rows.len());
                return self.done(line, cpu, Done::Install(address));
            }
            Event::Uninstall { address } => return self.done(line, cpu, Done::Uninstall(address)),
            Event::Restore => return self.done(line, cpu, Done::Restore),
            Event::GuestSync => return self.done(line, cpu, Done::Sync),
            Event::Hit { .. } | Event::GuestSetDr { .. } | Event::Mark(_) | Event::Other(_) => return,
            Event::GuestDr7 { value } => {
                // The value of the run that just ended; that the line is there predicts nothing.
                if let Some(&row) = self.forcing.get(&cpu)
                    && let Input::KvmExit { guest_dr7, .. } | Input::SetGuestDebug { guest_dr7, .. } =
                        &mut self.rows[row].input
                {
                    guest_dr7.get_or_insert(value);
                }
                return;
            }
            Event::SchedSwitch { prev_pid, prev_state, next_pid } => {
                self.switch_in_flight(line, prev_pid, prev_state, next_pid);
                Input::Switch { prev: prev_pid, next: next_pid, sleeps: prev_state.is_asleep() }
            }
            Event::MigrateTask { pid, to, .. } => Input::Migrate { pid, to },
            Event::Fork { parent, child } => Input::Fork { parent, child },
            Event::ProcessExit { pid } => {
                let here = self.rows.len();
                self.push(line, cpu, pid, Input::Exit { pid });
                self.acts_before(pid, here);
                self.stretches.remove(&pid);
                return;
            }
            Event::ProcessExec { pid } => {
                let here = self.rows.len();
                self.push(line, cpu, pid, Input::Exec { pid });
                self.acts_before(pid, here);
                return;
            }
            Event::KvmEntry { vcpu, rip } => {
                self.forcing.remove(&cpu);
                Input::Entry { vcpu, rip }
            }
            Event::KvmExit { vcpu, rip, reason } => {
                self.forcing.insert(cpu, self.rows.len());
                let why = match reason {
                    ExitReason::DrAccess { dr, write } => Why::DrAccess { dr, write: write.unwrap_or(true) },
                    ExitReason::Db => Why::Db,
                    _ => Why::Other,
                };
                Input::KvmExit { vcpu, rip, why, guest_dr7: None }
            }
            Event::BpOpen { attr, pid: target, cpu: on } => {
                if attr.attr_type == Some(5) || attr.attr_type.is_none() && attr.bp_type.is_some_and(|t| t != 0) {
                    let row = self.rows.len();
                    self.opens.insert(pid, InFlight { row, slept: false, switched_in: false, acts: None });
                    Input::Open { attr, pid: target, cpu: on, group: self.groups.remove(&pid), result: None }
                } else {
                    self.groups.remove(&pid);
                    self.foreign.insert(pid);
                    Input::Nothing
                }
            }
            // Before the line of the probe, or after it.
            Event::PerfEventOpen { group_fd, .. } => {
                match self.opens.get(&pid).map(|open| &mut self.rows[open.row].input) {
                    Some(Input::Open { group, .. }) => *group = Some(group_fd),
                    _ => drop(self.groups.insert(pid, group_fd)),
                }
                Input::Nothing
            }
            Event::PerfEventOpenReturn(result) => match self.opens.remove(&pid) {
                Some(open) => {
                    let here = self.rows.len();
                    self.push(line, cpu, pid, Input::Nothing);
                    return self.open_acts(&open, open.acts.unwrap_or(here), result);
                }
                None if result >= 0 && !self.foreign.remove(&pid) => Input::OpenReturn,
                None => Input::Nothing,
            },
            Event::Close { fd } => Input::Close { fd },
            Event::Ioctl { fd, cmd: 0x2400, .. } => Input::Enable { fd },
            Event::Ioctl { fd, cmd: 0x2401, .. } => Input::Disable { fd },
            Event::Ioctl { cmd: 0xae41, arg, .. } => Input::CreateVcpu { vcpu: arg as u32 },
            // _IO(KVMIO, 0x80) and up: what KVM's api.h has for vCPUs.
            Event::Ioctl { cmd, .. } if cmd & 0xff80 == 0xae80 => Input::VcpuIoctl,
            Event::BpModify { fd, attr } => {
                self.modifies.insert(pid, self.rows.len());
                Input::Modify { fd, attr }
            }
            Event::Ioctl { cmd: 0x4008_240b, .. } => match self.modifies.remove(&pid) {
                Some(row) => std::mem::replace(&mut self.rows[row].input, Input::Nothing),
                None => Input::Nothing,
            },
            Event::Ptrace { request: 6, pid: tracee, addr, data } => match register(addr) {
                Some(dr) => {
                    self.pokes.insert(pid, self.rows.len());
                    Input::Poke { pid: tracee, dr, value: data }
                }
                None => Input::Nothing,
            },
            Event::PtraceReturn(result) => {
                // Not traced, not a register: nothing was done. Other refusals are the model's to make, with what they
                // leave behind (M5).
                const NOT_DONE: [i64; 3] = [-1, -3, -5];
                if let Some(row) = self.pokes.remove(&pid).filter(|_| NOT_DONE.contains(&result)) {
                    self.rows[row].input = Input::Nothing;
                }
                Input::Nothing
            }
            Event::SetDebugregs { db, dr6, dr7, .. } => Input::SetDebugregs { db, dr6, dr7 },
            Event::SetGuestDebug { control, dr, dr7 } => {
                self.forcing.insert(cpu, self.rows.len());
                Input::SetGuestDebug { control, dr, dr7, guest_dr7: None }
            }
            Event::UserspaceExit { reason: "KVM_EXIT_DEBUG" } => Input::DebugExit,
            Event::Phase { name, .. } => {
                self.phases.push(name.to_owned());
                Input::Phase(self.phases.len() - 1)
            }
            _ => Input::Nothing,
        };
        let is_own = !matches!(input, Input::Switch { .. } | Input::Migrate { .. } | Input::Phase(_) | Input::Nothing);
        if is_own {
            self.interrupted.remove(&pid);
        }
        self.push(line, cpu, pid, input);
    }

    fn push(&mut self, line: u32, cpu: u16, pid: i32, input: Input) {
        *self.window(cpu) = line;
        self.running.insert(cpu, pid);
        self.rows.push(Row { line, cpu, pid, input });
    }

    fn window(&mut self, cpu: u16) -> &mut u32 {
        let cpu = usize::from(cpu);
        if self.windows.len() <= cpu {
            self.windows.resize(cpu + 1, 0);
        }
        &mut self.windows[cpu]
    }

    fn done(&mut self, line: u32, cpu: u16, done: Done) {
        let window = *self.window(cpu);
        self.truth.push(Truth { line, cpu, window, done });
    }

    /// A switch bears on opens in flight: one that slept acts before its caller leaves the CPU again.
    fn switch_in_flight(&mut self, line: u32, prev: i32, prev_state: PrevState, next: i32) {
        let here = self.rows.len();
        match prev_state {
            PrevState::Preempted => {
                self.interrupted.entry(prev).or_default().push(here);
                self.stretches.entry(prev).or_insert(0);
            }
            // An exiting task waits so, for the end of its memory or of its virtual machine (`exit_mm`).
            PrevState::Blocked => {
                self.interrupted.entry(prev).or_default().push(here);
                self.stretches.remove(&prev);
            }
            PrevState::Runnable | PrevState::Sleeping | PrevState::Dead => {
                self.interrupted.remove(&prev);
                self.stretches.remove(&prev);
            }
        }
        if next != 0 {
            self.stretches.entry(next).or_insert(line);
        }
        if let Some(open) = self.opens.get_mut(&prev) {
            if prev_state.is_asleep() {
                *open = InFlight { row: open.row, slept: true, switched_in: false, acts: None };
            } else if open.slept && open.switched_in && open.acts.is_none() {
                open.acts = Some(here);
            }
        }
        if let Some(open) = self.opens.get_mut(&next) {
            open.switched_in = true;
        }
    }

    /// A task whose counters left the registers before this row, which tells it, may have left the CPU since; then nothing
    /// is installed when it comes back.
    fn acts_before(&mut self, pid: i32, here: usize) {
        let last = self.installed.remove(&pid).unwrap_or(0);
        let since = self.interrupted.remove(&pid).unwrap_or_default();
        let before = since.into_iter().find(|&row| row >= last).unwrap_or(here);
        self.acts.push((before as u32, here as u32));
    }

    fn open_acts(&mut self, open: &InFlight, before: usize, returned: i64) {
        if let Input::Open { result, .. } = &mut self.rows[open.row].input {
            *result = Some(returned);
        }
        let before = self.after_interrupt(open.row).unwrap_or(before);
        self.acts.push((before as u32, open.row as u32));
    }

    /// An open that concerns a CPU on which a guest runs interrupts it: it acts after that VM exit, the last one during
    /// the call. Which row comes next on that CPU.
    fn after_interrupt(&self, open: usize) -> Option<usize> {
        let Row { cpu: caller, input: Input::Open { pid, cpu, .. }, .. } = self.rows[open] else { return None };
        let target = match u16::try_from(cpu) {
            Ok(cpu) => cpu,
            Err(_) if pid > 0 => self.running.iter().find(|&(_, &running)| running == pid).map(|(&cpu, _)| cpu)?,
            Err(_) => return None,
        };
        let during = self.rows.iter().enumerate().skip(open);
        let mut there = during.filter(|(_, row)| row.cpu == target && target != caller);
        let exit = there.clone().rfind(|(_, row)| matches!(row.input, Input::KvmExit { .. }))?;
        there.find(|(at, _)| *at > exit.0).map(|(at, _)| at)
    }
}

/// The debug register at an offset of `struct user` (x86-64).
fn register(offset: u64) -> Option<u8> {
    match offset {
        0x350..=0x388 if offset.is_multiple_of(8) => Some(((offset - 0x350) / 8) as u8),
        _ => None,
    }
}
