//! The one vocabulary of events: what scenario lines, Python methods, trace rows and drivers of real kernels say.
//!
//! An event yields an [`Outcome`]. A refusal by the modelled kernel is an outcome ([`Outcome::Refused`]); a
//! [`Misuse`] is a mistake of whoever wrote the event down.

use debugreg::Registers;
use debugreg::trip::Access;
use thiserror::Error;

use crate::counter::{Attr, BpType, Changes};
use crate::{CounterId, CpuId, TaskId, VcpuId};

/// Something that happens.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs, reason = "the fields are named as the system calls name them")]
pub enum Event {
    /// `perf_event_open` of a breakpoint by `by`. `task` and `cpu` say what it counts on; one of them is set. `group` is
    /// the counter whose descriptor is `group_fd`.
    PerfEventOpen { by: TaskId, attr: Attr, task: Option<TaskId>, cpu: Option<CpuId>, group: Option<CounterId> },
    /// The last descriptor of a counter is closed.
    Close(CounterId),
    /// `PERF_EVENT_IOC_ENABLE`.
    Enable(CounterId),
    /// `PERF_EVENT_IOC_DISABLE`.
    Disable(CounterId),
    /// `read`: how often it was hit.
    Count(CounterId),
    /// `PERF_EVENT_IOC_MODIFY_ATTRIBUTES`.
    Modify(CounterId, Changes),
    /// `PTRACE_POKEUSER` at `u_debugreg[dr]`.
    PtracePoke { tracer: TaskId, tracee: TaskId, dr: u8, value: u64 },
    /// `PTRACE_PEEKUSER` at `u_debugreg[dr]`.
    PtracePeek { tracer: TaskId, tracee: TaskId, dr: u8 },
    /// `PTRACE_ATTACH`.
    Attach { tracer: TaskId, tracee: TaskId },
    /// `PTRACE_DETACH`.
    Detach { tracer: TaskId, tracee: TaskId },
    /// `fork`, or `clone` with CLONE_THREAD; the child runs nowhere yet.
    Fork { parent: TaskId, child: TaskId, thread: bool },
    /// `execve`.
    Exec(TaskId),
    /// `exit`: the task leaves its CPU for good.
    Exit(TaskId),
    /// A task moves to another CPU, and runs there if that CPU is idle.
    Migrate(TaskId, CpuId),
    /// A memory access of a task.
    TaskAccess { task: TaskId, access: Access, insn: Insn, kernel: bool },
    /// A memory or port access of a guest; an emulated one is performed by KVM's instruction emulator.
    GuestAccess { vcpu: VcpuId, access: Access, insn: Insn, emulated: bool },
    /// MOV to a debug register in a guest.
    MovToDr { vcpu: VcpuId, dr: u8, value: u64, cpl: u8 },
    /// MOV from a debug register in a guest.
    MovFromDr { vcpu: VcpuId, dr: u8, cpl: u8 },
    /// The scheduler switches to another task, or to [`TaskId::IDLE`].
    SchedSwitch(CpuId, TaskId),
    /// Asks for the register content without reading the hardware.
    Registers(CpuId),
    /// Refreshes the hardware from the shadow.
    Refresh(CpuId),
    /// Looks at the hardware.
    Hardware(CpuId),
    /// Asks what should be armed.
    Owed(CpuId),
    /// Asks who holds which slot.
    Slots(CpuId),
    /// A CPU goes: whoever ran there runs nowhere, and its own counters are scheduled no more.
    Offline(CpuId),
    /// A CPU comes back, with its registers at their reset values.
    Online(CpuId),
    /// A non-maskable interrupt, and what its handler does.
    Nmi(CpuId, Nmi),
    /// The kernel debugger stops the machine, acts on it, lets it go.
    Kgdb(CpuId, Kgdb),
    /// The kernel registers a breakpoint of its own.
    RegisterHwBreakpoint { on: Scope, attr: Attr },
    /// `unregister_hw_breakpoint`, `unregister_wide_hw_breakpoint`.
    UnregisterHwBreakpoint(CounterId),
    /// `modify_wide_hw_breakpoint_local`: a CPU's part of a wide breakpoint is pointed elsewhere, where it is.
    ModifyWideLocal { cpu: CpuId, counter: CounterId, attr: Attr },
    /// VM entry.
    VmEntry(VcpuId),
    /// VM exit.
    VmExit(VcpuId, ExitReason),
    /// `KVM_SET_GUEST_DEBUG`.
    SetGuestDebug(VcpuId, GuestDebug),
    /// `KVM_GET_DEBUGREGS`.
    GetDebugregs(VcpuId),
    /// `KVM_SET_DEBUGREGS`; registers that are not named keep their values.
    SetDebugregs { vcpu: VcpuId, dr: [Option<u64>; 4], dr6: Option<u64>, dr7: Option<u64> },
    /// INIT: the vCPU's registers take their reset values.
    Init(VcpuId),
    /// A system management interrupt: the guest's handler runs, with DR7 at its reset value.
    Smi(VcpuId),
    /// RSM in the guest: the end of that handler.
    Rsm(VcpuId),
    /// A task switch of the guest's by hardware, which KVM emulates.
    TaskSwitch(VcpuId),
    /// A guest hypervisor enters its own guest (VMRUN, VMLAUNCH); DR6 and DR7 are what it has put into its VMCB or VMCS.
    NestedEntry { vcpu: VcpuId, dr6: Option<u64>, dr7: Option<u64>, intercepts_db: bool },
    /// That guest exits to it.
    NestedExit(VcpuId),
}

impl Event {
    /// The same event, with counters and addresses called otherwise.
    #[must_use]
    pub fn renamed(&self, counter: &impl Fn(CounterId) -> CounterId, address: &impl Fn(u64) -> u64) -> Event {
        let mut event = self.clone();
        match &mut event {
            Event::PerfEventOpen { attr, group, .. } => {
                attr.bp_addr = address(attr.bp_addr);
                *group = group.map(counter);
            }
            Event::Close(id)
            | Event::Enable(id)
            | Event::Disable(id)
            | Event::Count(id)
            | Event::UnregisterHwBreakpoint(id) => *id = counter(*id),
            Event::Modify(id, changes) => {
                *id = counter(*id);
                changes.bp_addr = changes.bp_addr.map(address);
            }
            Event::ModifyWideLocal { counter: id, attr, .. } => {
                *id = counter(*id);
                attr.bp_addr = address(attr.bp_addr);
            }
            Event::RegisterHwBreakpoint { attr, .. } => attr.bp_addr = address(attr.bp_addr),
            Event::PtracePoke { dr: 0..=3, value, .. } | Event::MovToDr { dr: 0..=3, value, .. } => {
                *value = address(*value);
            }
            Event::TaskAccess { access, .. } | Event::GuestAccess { access, .. } => {
                access.address = address(access.address);
            }
            Event::Nmi(_, Nmi::KgdbSet(_, at, _) | Nmi::KgdbClear(at))
            | Event::Kgdb(_, Kgdb::Set(_, at, _) | Kgdb::Clear(at)) => *at = address(*at),
            Event::SetGuestDebug(_, debug) => debug.dr = debug.dr.map(address),
            Event::SetDebugregs { dr, .. } => *dr = dr.map(|dr| dr.map(address)),
            _ => {}
        }
        event
    }
}

/// By which instruction memory is accessed, where that makes a difference.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
pub enum Insn {
    /// MOV, or whatever executes at the address.
    #[default]
    Plain,
    /// REP STOS or REP LODS with this count: so many accesses, one behind the other.
    Rep(u64),
    /// XCHG with memory: a read and a write.
    Xchg,
    /// LOCK CMPXCHG that fails: a write all the same.
    Cmpxchg,
    /// MOV SS from memory: what it trips is held off by one instruction.
    MovSs,
    /// The instruction after a POPF that sets TF: it is single-stepped.
    PopfTf,
    /// INT1.
    Icebp,
    /// The instruction after an IRET that sets RF: no execute breakpoint holds it up.
    IretRf,
    /// None: the processor itself, which pushes the frame of a #DB whose handler has a stack of its own.
    Frame,
}

/// Where an in-kernel user wants its breakpoint.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Scope {
    /// On one CPU (`perf_event_create_kernel_counter`; `register_kernel_hw_breakpoint` of the mail).
    Cpu(CpuId),
    /// On every CPU that is online, or nowhere (`register_wide_hw_breakpoint`).
    Wide,
    /// On a task (`register_user_hw_breakpoint`).
    Task(TaskId),
}

/// What the kernel debugger does (kernel/debug/debug_core.c, arch/x86/kernel/kgdb.c).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Kgdb {
    /// Stops every CPU.
    Enter,
    /// Sets a breakpoint: kind, address, length.
    Set(BpType, u64, u64),
    /// Removes the breakpoint at an address.
    Clear(u64),
    /// Lets every CPU go.
    Resume,
}

/// What an NMI handler does with the registers.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Nmi {
    /// Nothing (perf, a watchdog).
    Plain,
    /// The NMI stops the machine for kgdb, which sets a breakpoint and lets it go.
    KgdbSet(BpType, u64, u64),
    /// Likewise, and kgdb removes a breakpoint.
    KgdbClear(u64),
    /// kgdb announces that it uses the slot of this index.
    KgdbAnnounce(u8),
    /// kgdb gives the slot back.
    KgdbRelease(u8),
}

/// Why a guest left.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum ExitReason {
    /// A MOV to or from a debug register was intercepted; the instruction has not been executed.
    DrAccess(DrAccess),
    /// #DB was intercepted, with these events in DR6 (positive polarity), if known.
    Db(Option<u64>),
    /// An exit that KVM handles inside its run loop and re-enters without leaving it.
    Fastpath,
    /// Anything else; the name does not matter to the debug registers.
    Other(&'static str),
}

impl ExitReason {
    /// The reason that a scenario calls so; a name that means nothing to the debug registers is any other exit.
    pub fn named(name: &str) -> ExitReason {
        match name {
            "dr" => ExitReason::DrAccess(DrAccess { dr: 7, write: None }),
            "db" => ExitReason::Db(None),
            "fastpath" => ExitReason::Fastpath,
            "intr" => ExitReason::Other("intr"),
            "nmi" => ExitReason::Other("nmi"),
            "hlt" => ExitReason::Other("hlt"),
            "io" => ExitReason::Other("io"),
            _ => ExitReason::Other("other"),
        }
    }
}

/// A MOV DR as an exit describes it.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct DrAccess {
    /// 0 to 7.
    pub dr: u8,
    /// The value of a MOV to the register; `None` for a MOV from it.
    pub write: Option<u64>,
}

/// The argument of `KVM_SET_GUEST_DEBUG`.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct GuestDebug {
    /// KVM_GUESTDBG_* bits.
    pub control: u32,
    /// `debugreg[0..4]`.
    pub dr: [u64; 4],
    /// `debugreg[7]`.
    pub dr7: u64,
}

impl GuestDebug {
    /// `KVM_GUESTDBG_ENABLE`: without it everything else is off.
    pub const ENABLE: u32 = 0x1;
    /// `KVM_GUESTDBG_SINGLESTEP`.
    pub const SINGLESTEP: u32 = 0x2;
    /// `KVM_GUESTDBG_USE_SW_BP`.
    pub const USE_SW_BP: u32 = 0x1_0000;
    /// `KVM_GUESTDBG_USE_HW_BP`: the debugger's registers instead of the guest's.
    pub const USE_HW_BP: u32 = 0x2_0000;
    /// `KVM_GUESTDBG_INJECT_DB`.
    pub const INJECT_DB: u32 = 0x4_0000;
    /// `KVM_GUESTDBG_INJECT_BP`.
    pub const INJECT_BP: u32 = 0x8_0000;
    /// `KVM_GUESTDBG_BLOCKIRQ`: no interrupt, NMI or SMI is injected.
    pub const BLOCKIRQ: u32 = 0x10_0000;
}

/// What came of an event.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// Done.
    Ok,
    /// A number: a count, a register.
    Value(u64),
    /// A counter that can now be named.
    Bound(CounterId),
    /// The kernel said no.
    Refused(Refusal),
    /// What an access by a task did. Nothing if both are empty.
    Hits {
        /// Counters that it hit, in the order of their slots.
        counters: Vec<CounterId>,
        /// Whether the kernel debugger was entered.
        kgdb: bool,
        /// DR6 as a tracer sees it, if SIGTRAP was sent.
        sigtrap: Option<u64>,
    },
    /// An exception in a guest.
    Exception {
        /// Which one.
        vector: Vector,
        /// DR6 as the guest reads it in its handler (for #DB).
        dr6: u64,
        /// Whether it is a fault (before the instruction) or a trap.
        fault: bool,
    },
    /// `KVM_EXIT_DEBUG`: the guest's debugger gets it.
    ExitDebug {
        /// `kvm_run.debug.arch.dr6`.
        dr6: u64,
        /// `kvm_run.debug.arch.dr7`.
        dr7: u64,
    },
    /// `KVM_EXIT_FAIL_ENTRY`: the processor refuses the guest's state.
    ExitFailEntry,
    /// A nested guest exits to its own hypervisor, which finds these in its VMCB or VMCS.
    ExitNested {
        /// Its DR6; of a VMCS, the exit qualification in the polarity of DR6.
        dr6: u64,
        /// Its DR7.
        dr7: u64,
    },
    /// Registers.
    Registers(Registers),
    /// Who holds which slot.
    Slots([Holder; 4]),
    /// The same #DB again and again: a fault whose handler lets the instruction neither run nor go.
    Endless,
}

impl Outcome {
    /// What an access comes to that trips nothing.
    pub const fn nothing() -> Outcome {
        Outcome::Hits { counters: Vec::new(), kgdb: false, sigtrap: None }
    }
}

/// An exception that a guest can get from what this model does.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Vector {
    /// #DB.
    Debug,
    /// #UD.
    InvalidOpcode,
    /// #GP.
    GeneralProtection,
}

/// Who holds a slot.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Holder {
    /// Nobody.
    Nobody,
    /// A counter.
    Counter(CounterId),
    /// Announced by kgdb.
    Kgdb,
}

/// An errno, by name.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "the names are errno(3)'s")]
#[rustfmt::skip]
pub enum Errno { EPERM = 1, ESRCH = 3, EIO = 5, EBADF = 9, EACCES = 13, EBUSY = 16, ENODEV = 19, EINVAL = 22, ENOSPC = 28, EOPNOTSUPP = 95 }

impl Errno {
    /// All that the model can answer.
    pub const ALL: [Errno; 10] = [
        Errno::EPERM,
        Errno::ESRCH,
        Errno::EIO,
        Errno::EBADF,
        Errno::EACCES,
        Errno::EBUSY,
        Errno::ENODEV,
        Errno::EINVAL,
        Errno::ENOSPC,
        Errno::EOPNOTSUPP,
    ];

    /// `"ENOSPC"` and so on.
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// The number on Linux.
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// The errno of that name.
    pub fn from_name(name: &str) -> Option<Errno> {
        Errno::ALL.into_iter().find(|errno| errno.name() == name)
    }
}

/// A refusal: which errno, which rule said so, and who stands in the way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// What the caller gets; kgdb's own calls say -1 and no more.
    pub errno: Option<Errno>,
    /// The rule, in one sentence.
    pub rule: &'static str,
    /// The counters that count against it (for ENOSPC).
    pub holders: Vec<CounterId>,
}

impl Refusal {
    /// A refusal that nobody in particular causes.
    pub const fn new(errno: Errno, rule: &'static str) -> Refusal {
        Refusal { errno: Some(errno), rule, holders: Vec::new() }
    }

    /// A refusal without an errno.
    pub const fn bare(rule: &'static str) -> Refusal {
        Refusal { errno: None, rule, holders: Vec::new() }
    }
}

/// A mistake in the event itself: nothing was done.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum Misuse {
    /// An event of a task that is not running.
    #[error("the task is not running")]
    NotRunning(TaskId),
    /// An event of a guest that has not been entered.
    #[error("the guest is not running: vm_entry comes first")]
    NotInGuest(VcpuId),
    /// A host event on a CPU that runs a guest.
    #[error("the CPU runs a guest: vm_exit comes first")]
    InGuest(CpuId, VcpuId),
    /// A task that has exited.
    #[error("the task has exited")]
    Exited(TaskId),
    /// A child whose fork was refused.
    #[error("the task was never born: its fork was refused")]
    Unborn(TaskId),
    /// A counter that has been closed.
    #[error("the counter has been closed")]
    Closed(CounterId),
    /// A CPU that is offline.
    #[error("the CPU is offline")]
    Offline(CpuId),
    /// The kernel debugger has the machine.
    #[error("kgdb has the machine: kgdb_resume comes first")]
    InKgdb(CpuId),
    /// The kernel debugger does not have the machine.
    #[error("kgdb does not have the machine: kgdb_enter comes first")]
    NotInKgdb,
    /// A call that is for wide breakpoints.
    #[error("the breakpoint was not registered by register_wide_hw_breakpoint")]
    NotWide(CounterId),
    /// A task that runs on another CPU.
    #[error("the task belongs to another CPU: migrate comes first")]
    OtherCpu(TaskId, CpuId),
    /// The policy's kernel has no such thing.
    #[error("not expressible under this policy: {0}")]
    NotExpressible(&'static str),
}
