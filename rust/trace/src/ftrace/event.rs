//! The vocabulary: what a line of a trace can say.

/// What happened, as far as it concerns debug registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// `sched_switch`: one task leaves the CPU, another comes.
    SchedSwitch {
        /// The task that leaves, 0 for idle.
        prev_pid: i32,
        /// As what it leaves.
        prev_state: PrevState,
        /// The task that comes, 0 for idle.
        next_pid: i32,
    },
    /// `sched_migrate_task`: a task that is not running is given another CPU.
    MigrateTask {
        /// The task.
        pid: i32,
        /// Where it was.
        from: u16,
        /// Where it will run next.
        to: u16,
    },
    /// `sched_process_fork`.
    Fork {
        /// The task that called.
        parent: i32,
        /// The new one.
        child: i32,
    },
    /// `sched_process_exec`. The task is a new program already: its tracer's breakpoints are gone.
    ProcessExec {
        /// Its id, which may have been another thread's.
        pid: i32,
    },
    /// `sched_process_exit`. The task's own counters have left the registers already.
    ProcessExit {
        /// The task that ends.
        pid: i32,
    },
    /// `kvm_entry`: the guest is about to run.
    KvmEntry {
        /// Which of its CPUs.
        vcpu: u32,
        /// Where it goes on; old kernels do not say.
        rip: Option<u64>,
    },
    /// `kvm_exit`: the guest was left.
    KvmExit {
        /// Which of its CPUs; old kernels and trace-cmd do not say.
        vcpu: Option<u32>,
        /// Where it was.
        rip: Option<u64>,
        /// Why.
        reason: ExitReason<'a>,
    },
    /// `kvm_userspace_exit`: `KVM_RUN` returns.
    UserspaceExit {
        /// `KVM_EXIT_DEBUG`, or `restart` when a signal came.
        reason: &'a str,
    },
    /// `perf_event_open` is entered. What it asks for is in the caller's memory: see [`Event::BpOpen`].
    PerfEventOpen {
        /// The task to watch: 0 for the caller, -1 for all.
        pid: i32,
        /// The CPU to watch on, -1 for all.
        cpu: i32,
        /// Leader of the group, -1 for none.
        group_fd: i32,
        /// `PERF_FLAG_*`.
        flags: u64,
    },
    /// `perf_event_open` returns a descriptor or a negative errno.
    PerfEventOpenReturn(i64),
    /// `close` is entered.
    Close {
        /// The descriptor.
        fd: i32,
    },
    /// `close` returns.
    CloseReturn(i64),
    /// `ioctl` is entered.
    Ioctl {
        /// The descriptor.
        fd: i32,
        /// The request.
        cmd: u64,
        /// Its argument.
        arg: u64,
    },
    /// `ioctl` returns.
    IoctlReturn(i64),
    /// `ptrace` is entered.
    Ptrace {
        /// `PTRACE_*`.
        request: i64,
        /// The tracee.
        pid: i32,
        /// Address, or offset in `struct user`.
        addr: u64,
        /// Value, or where to put it.
        data: u64,
    },
    /// `ptrace` returns.
    PtraceReturn(i64),
    /// Probe `bp_open`: what the `perf_event_open` just entered asks for.
    BpOpen {
        /// The caller's `perf_event_attr`.
        attr: BpAttr,
        /// As in [`Event::PerfEventOpen`].
        pid: i32,
        /// As in [`Event::PerfEventOpen`].
        cpu: i32,
    },
    /// Probe `bp_modify`: what the `PERF_EVENT_IOC_MODIFY_ATTRIBUTES` just entered asks for.
    BpModify {
        /// The descriptor.
        fd: i32,
        /// The caller's `perf_event_attr`.
        attr: BpAttr,
    },
    /// Probe `set_debugregs`: what the `KVM_SET_DEBUGREGS` just entered sets. `None` where the probe did not look or
    /// could not.
    SetDebugregs {
        /// The vCPU's descriptor.
        fd: i32,
        /// DR0 to DR3.
        db: [Option<u64>; 4],
        /// DR6.
        dr6: Option<u64>,
        /// DR7.
        dr7: Option<u64>,
    },
    /// Probe `set_guest_debug`: what `KVM_SET_GUEST_DEBUG` sets. `None` where the probe did not look or could not.
    SetGuestDebug {
        /// `KVM_GUESTDBG_*`.
        control: u32,
        /// DR0 to DR3 of the debugger.
        dr: [Option<u64>; 4],
        /// DR7 of the debugger.
        dr7: Option<u64>,
    },
    /// Probe `guest_dr7`: KVM puts a DR7 into force for the guest that just exited.
    GuestDr7 {
        /// The value.
        value: u64,
    },
    /// Probe `guest_set_dr`: KVM performs a MOV to a debug register on behalf of the guest.
    GuestSetDr {
        /// Which register, 0 to 7.
        dr: u8,
        /// The value.
        value: u64,
    },
    /// Probe `install`: perf puts a breakpoint into a slot. Truth, only compared.
    Install {
        /// Where the breakpoint is.
        address: u64,
        /// Its type as printed: `HW_BREAKPOINT_*`, 1 read, 2 write, 4 execute. `None` if the probe does not print it.
        kind: Option<u8>,
        /// Its length in bytes. `None` if the probe does not print it.
        len: Option<u8>,
    },
    /// Probe `uninstall`: perf takes a breakpoint out of its slot. Truth, only compared.
    Uninstall {
        /// Where the breakpoint is.
        address: u64,
    },
    /// Probe `restore`: the host's registers are written again, after a guest ran. Truth, only compared.
    Restore,
    /// Probe `guest_sync`: the guest's registers are read back. Truth, only compared.
    GuestSync,
    /// Probe `hit`: a breakpoint was hit. Truth, only compared.
    Hit {
        /// Where the breakpoint is.
        address: u64,
    },
    /// A line that user space wrote into the trace, of the form `phase NAME: TEXT`: what follows is counted under that
    /// name.
    Phase {
        /// Up to the colon, or all of it.
        name: &'a str,
        /// Behind the colon, or empty.
        text: &'a str,
    },
    /// Another line that user space wrote into the trace.
    Mark(&'a str),
    /// An event that this reader has no word for, by name.
    Other(&'a str),
}

/// As what a task left the CPU. The first two kinds want to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PrevState {
    /// `R`: it yielded.
    Runnable,
    /// `R+`: it was preempted, in the middle of whatever it did.
    Preempted,
    /// Waiting or stopped, for whatever reason.
    Sleeping,
    /// `D`: waiting, and no signal wakes it.
    Blocked,
    /// `X` and `Z`: it does not come back.
    Dead,
}

impl PrevState {
    /// Whether it waits for something.
    pub fn is_asleep(self) -> bool {
        matches!(self, PrevState::Sleeping | PrevState::Blocked)
    }
}

/// Why a guest was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitReason<'a> {
    /// The guest executed a MOV to or from a debug register, and that was intercepted.
    DrAccess {
        /// Which register, 0 to 7.
        dr: u8,
        /// Whether to the register. Every form read so far says; `None` is for one that does not.
        write: Option<bool>,
    },
    /// A #DB in the guest, intercepted.
    Db,
    /// An NMI of the host.
    Nmi,
    /// An interrupt of the host.
    Interrupt,
    /// Port I/O of the guest.
    Io,
    /// The guest halted.
    Hlt,
    /// The guest touched memory that the host has not mapped (`npf`, `EPT_VIOLATION`).
    PageFault,
    /// Another reason, as printed.
    Other(&'a str),
}

/// What a caller put into its `perf_event_attr`, as a probe read it. `None` where the probe did not look, or printed
/// `(fault)` because the caller's page was not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct BpAttr {
    /// `type`: 5 is a breakpoint.
    pub attr_type: Option<u64>,
    /// The word of flags behind `read_format`: bit 0 disabled, 1 inherit, 2 pinned, 4 `exclude_user`, 5
    /// `exclude_kernel`, 6 `exclude_hv`.
    pub flags: Option<u64>,
    /// `bp_type`: `HW_BREAKPOINT_*`, 1 read, 2 write, 4 execute.
    pub bp_type: Option<u64>,
    /// `bp_addr`
    pub bp_addr: Option<u64>,
    /// `bp_len`, in bytes.
    pub bp_len: Option<u64>,
}

/// The bytes as text, up to the first that is not UTF-8.
pub(super) fn text(bytes: &[u8]) -> &str {
    bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid())
}

/// What user space wrote to `trace_marker`.
pub(super) fn mark(payload: &[u8]) -> Event<'_> {
    let mark = text(payload);
    let Some(phase) = mark.strip_prefix("phase ") else { return Event::Mark(mark) };
    let (name, text) = phase.split_once(':').unwrap_or((phase, ""));
    Event::Phase { name: name.trim(), text: text.trim() }
}

/// The same under the name that trace-cmd and perf have for it, the writing function in front.
pub(super) fn print(payload: &[u8]) -> Event<'_> {
    mark(memchr::memmem::find(payload, b": ").map_or(payload, |end| &payload[end + 2..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_has_a_name_and_a_text() {
        let phase = |name, text| Event::Phase { name, text };
        assert_eq!(mark(b"phase none: no breakpoint anywhere"), phase("none", "no breakpoint anywhere"));
        assert_eq!(mark(b"phase end"), phase("end", ""));
        assert_eq!(mark(b"phase a b:c:d"), phase("a b", "c:d"));
        assert_eq!(mark(b"phased out"), Event::Mark("phased out"));
        assert_eq!(mark(b"hello: phase x"), Event::Mark("hello: phase x"));
        assert_eq!(print(b"tracing_mark_write: phase none: x"), phase("none", "x"));
    }

    #[test]
    fn text_ends_where_utf_8_does() {
        assert_eq!(text("grün".as_bytes()), "grün");
        assert_eq!(text(b"gr\xfcn"), "gr");
        assert_eq!(text(b""), "");
    }
}
