//! A perf breakpoint counter: what was asked for, what the kernel makes of it, and whether it is allowed.
//!
//! The checks stand in the kernel's order, because which error wins is behaviour. Source: `hw_breakpoint_parse` and
//! `arch_parse_hw_breakpoint` (kernel/events/hw_breakpoint.c, arch/x86/kernel/hw_breakpoint.c, 6.17), measured on 6.18.

use debugreg::{Breakpoint, Kind, Length};

use crate::event::{Errno, Refusal};
use crate::machine::Options;
use crate::task::Capabilities;
use crate::{ContextId, CpuId, TaskId};

/// `attr.bp_type`.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum BpType {
    /// `HW_BREAKPOINT_R`: x86 cannot watch reads alone.
    R = 1,
    /// `HW_BREAKPOINT_W`.
    W = 2,
    /// `HW_BREAKPOINT_RW`.
    Rw = 3,
    /// `HW_BREAKPOINT_X`.
    X = 4,
}

impl BpType {
    /// All four.
    pub const ALL: [BpType; 4] = [BpType::R, BpType::W, BpType::Rw, BpType::X];

    /// As scenarios write it.
    pub const fn name(self) -> &'static str {
        match self {
            BpType::R => "r",
            BpType::W => "w",
            BpType::Rw => "rw",
            BpType::X => "x",
        }
    }

    /// From the number in `perf_event_attr`; `None` for a combination that names no type.
    pub fn from_number(number: u64) -> Option<BpType> {
        BpType::ALL.into_iter().find(|&bp_type| bp_type as u64 == number)
    }
}

/// The part of `perf_event_attr` that matters to breakpoints.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "the kernel's attr is a row of flag bits")]
pub struct Attr {
    /// `bp_type`.
    pub bp_type: BpType,
    /// `bp_addr`.
    pub bp_addr: u64,
    /// `bp_len`.
    pub bp_len: u64,
    /// Scheduled before the flexible ones.
    pub pinned: bool,
    /// Starts disabled; still costs a slot.
    pub disabled: bool,
    /// Children of the task get a copy.
    pub inherit: bool,
    /// Only those of its own process do: threads (5.13).
    pub inherit_thread: bool,
    /// Hits in user mode do not count.
    pub exclude_user: bool,
    /// Hits in kernel mode do not count.
    pub exclude_kernel: bool,
    /// Every hit sends SIGTRAP to the task (5.13).
    pub sigtrap: bool,
    /// execve ends it (5.13).
    pub remove_on_exec: bool,
}

impl Attr {
    /// A write breakpoint with no flag set.
    pub const fn write(bp_addr: u64, bp_len: u64) -> Attr {
        Attr {
            bp_type: BpType::W,
            bp_addr,
            bp_len,
            pinned: false,
            disabled: false,
            inherit: false,
            inherit_thread: false,
            exclude_user: false,
            exclude_kernel: false,
            sigtrap: false,
            remove_on_exec: false,
        }
    }

    /// What `hw_breakpoint_init` starts from: pinned, nothing excluded.
    pub const fn kernel(bp_type: BpType, bp_addr: u64, bp_len: u64) -> Attr {
        Attr { bp_type, pinned: true, ..Attr::write(bp_addr, bp_len) }
    }

    /// What `ptrace_breakpoint_init` starts from: pinned, user mode only.
    pub const fn ptrace(bp_type: BpType, bp_addr: u64, bp_len: u64, disabled: bool) -> Attr {
        Attr {
            bp_type,
            bp_addr,
            bp_len,
            pinned: true,
            disabled,
            inherit: false,
            inherit_thread: false,
            exclude_user: false,
            exclude_kernel: true,
            sigtrap: false,
            remove_on_exec: false,
        }
    }
}

impl Attr {
    /// Whether root may have such a breakpoint.
    pub fn is_valid(&self) -> bool {
        parse(self, Capabilities::Root, &Options::default()).is_ok()
    }
}

/// What `PERF_EVENT_IOC_MODIFY_ATTRIBUTES` wants changed; the rest stays.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Changes {
    /// New `bp_type`.
    pub bp_type: Option<BpType>,
    /// New `bp_addr`.
    pub bp_addr: Option<u64>,
    /// New `bp_len`.
    pub bp_len: Option<u64>,
    /// New `disabled`.
    pub disabled: Option<bool>,
    /// New `pinned`, which may not change.
    pub pinned: Option<bool>,
    /// New `exclude_user`, which may not change.
    pub exclude_user: Option<bool>,
    /// New `exclude_kernel`, which may not change.
    pub exclude_kernel: Option<bool>,
}

impl Changes {
    /// The attributes with the changes made, and whether a field would change that is fixed for life. The address is
    /// judged with the `exclude_kernel` that is asked for, before anything looks whether that may change.
    pub(crate) fn applied_to(self, attr: Attr) -> (Attr, bool) {
        let wanted = Attr {
            bp_type: self.bp_type.unwrap_or(attr.bp_type),
            bp_addr: self.bp_addr.unwrap_or(attr.bp_addr),
            bp_len: self.bp_len.unwrap_or(attr.bp_len),
            disabled: self.disabled.unwrap_or(attr.disabled),
            exclude_kernel: self.exclude_kernel.unwrap_or(attr.exclude_kernel),
            ..attr
        };
        let changes = |wanted: Option<bool>, has: bool| wanted.is_some_and(|wanted| wanted != has);
        let fixed = changes(self.pinned, attr.pinned)
            || changes(self.exclude_user, attr.exclude_user)
            || changes(self.exclude_kernel, attr.exclude_kernel);
        (wanted, fixed)
    }
}

/// Where perf's scheduler has a counter.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// Disabled.
    Off,
    /// Enabled, but not on a CPU.
    Inactive,
    /// In a register.
    Active,
    /// Pinned, and no register could be had.
    Error,
    /// Its task has exited, or has called execve and it was not to outlive that; the slot stays until it is closed.
    Exit,
    /// Closed.
    Dead,
}

/// Who made a counter.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Origin {
    /// `perf_event_open`.
    Perf,
    /// fork copied it from a counter with `inherit`.
    Inherited(crate::CounterId),
    /// A tracer, through the register of this index.
    Ptrace(u8),
    /// A user inside the kernel.
    Kernel,
    /// Another CPU's part of a wide breakpoint, whose first part this is.
    Wide(crate::CounterId),
    /// kgdb, in its own table at this index.
    Kgdb(u8),
}

/// A counter.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Counter {
    /// What was asked for, as last accepted.
    pub attr: Attr,
    /// What is programmed (the kernel's `hw.info`).
    pub info: Breakpoint,
    /// `hw.target`: the task that its slot is counted against.
    pub target: Option<TaskId>,
    /// The CPU it is bound to; `None` is any CPU of its task.
    pub cpu: Option<CpuId>,
    /// The context that schedules it, while it has one.
    pub context: Option<ContextId>,
    /// The leader of its group, if that is another.
    pub leader: Option<crate::CounterId>,
    /// Whether it should run: created enabled, or enabled since.
    pub enabled: bool,
    /// Whether it does.
    pub state: State,
    /// Hits.
    pub count: u64,
    /// Who made it.
    pub origin: Origin,
    /// How many events there had been when it was made.
    pub since: u64,
}

impl Counter {
    /// Whether it holds a slot: from its creation to its end, enabled or not.
    pub fn is_live(&self) -> bool {
        self.state != State::Dead
    }

    /// Whether it may run on a CPU (perf's `event_filter_match`).
    #[inline]
    pub fn fits(&self, cpu: CpuId) -> bool {
        self.cpu.is_none_or(|bound| bound == cpu)
    }
}

/// First address that is not a user's (`TASK_SIZE_MAX` with 4-level paging).
pub const TASK_SIZE_MAX: u64 = 0x7fff_ffff_f000;

/// The fixed mapping of entry stacks and TSS aliases, where no breakpoint is allowed (5.8). The other forbidden areas
/// (GDTs, `cpu_tss_rw`, `cpu_tlbstate`, `__per_cpu_offset`, `cpu_dr7`) have no fixed address.
const CPU_ENTRY_AREA: core::ops::Range<u64> = 0xffff_fe00_0000_0000..0xffff_fe80_0000_0000;

/// `hw_breakpoint_parse`: what would be programmed, or why not.
///
/// # Errors
///
/// EINVAL, EOPNOTSUPP or EPERM, in the kernel's order. `caller` is the calling task, also where the kernel copies an
/// inherited counter at fork.
pub(crate) fn parse(attr: &Attr, caller: Capabilities, options: &Options) -> Result<Breakpoint, Refusal> {
    let invalid = |rule| Err(Refusal::new(Errno::EINVAL, rule));
    let Attr { bp_addr, bp_len, .. } = *attr;
    // 1, 2: the range
    let Some(last) = bp_len.checked_sub(1).and_then(|more| bp_addr.checked_add(more)) else {
        return invalid("bp_addr + bp_len - 1 lies below bp_addr");
    };
    if bp_addr < CPU_ENTRY_AREA.end && last >= CPU_ENTRY_AREA.start {
        return invalid("the range overlaps cpu_entry_area (arch_build_bp_info)");
    }
    // 3: the type
    let kind = match attr.bp_type {
        BpType::W => Kind::Write,
        BpType::Rw => Kind::ReadWrite,
        BpType::X => Kind::Execute,
        BpType::R => return invalid("x86 cannot watch reads alone: bp_type must be w, rw or x"),
    };
    let length = if kind == Kind::Execute {
        // 4: execute has the kernel's word size, and no alignment rule
        if bp_addr >= TASK_SIZE_MAX && !options.kprobes {
            return invalid("without kprobes no kernel address is known to be safe to break on (arch_build_bp_info)");
        }
        if bp_len != 8 {
            return invalid("an execute breakpoint must have bp_len=8, the kernel's sizeof(long)");
        }
        Length::One
    } else {
        // 5 to 7: length and alignment
        let Some(length) = Length::from_bytes(bp_len) else {
            return if !bp_len.is_power_of_two() || bp_addr & (bp_len - 1) != 0 {
                invalid("bp_len must be a power of two and bp_addr aligned to it")
            } else {
                Err(Refusal::new(Errno::EOPNOTSUPP, "bp_len above 8 needs AMD's address masks (BPEXT)"))
            };
        };
        if bp_addr & (bp_len - 1) != 0 {
            return invalid("bp_addr must be aligned to bp_len");
        }
        length
    };
    // 8: kernel addresses
    let reaches = bp_addr.wrapping_add(length.bytes() - 1);
    if bp_addr >= TASK_SIZE_MAX || reaches >= TASK_SIZE_MAX {
        if attr.exclude_kernel {
            return invalid("a kernel address with exclude_kernel=1 could never be hit");
        }
        if caller != Capabilities::Root {
            return Err(Refusal::new(Errno::EPERM, "a kernel address needs CAP_SYS_ADMIN"));
        }
    }
    Ok(Breakpoint { address: bp_addr, kind, length })
}
