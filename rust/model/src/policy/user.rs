//! A KVM half that is not of this crate: what it does at entry and exit is asked for, one operation after the other.
//!
//! It is a function of what its operations have answered: it has no memory but the words that a CPU and a vCPU keep for
//! it, which are part of the machine's state. So it can be explored like any other, and what it answers once can be
//! remembered.

use std::fmt;
use std::sync::{PoisonError, RwLock};

use debugreg::{Dr, Dr6, Dr7, Steps, Word, bank};

use super::hooks::{DrHandling, Half};
use super::{HostHalf, KvmHalf, NEWEST, Named, Policy, common};
use crate::machine::Machine;
use crate::step::{Field, Kvm, Probe};

/// How many words a CPU, and a vCPU, keeps for a policy.
pub const WORDS: usize = 4;

/// When a half is asked.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Hook {
    /// On the way in.
    VmEntry,
    /// On the way out.
    VmExit,
    /// A re-entry inside the run loop.
    VmReentry,
    /// The thread takes the vCPU up.
    VcpuLoad,
    /// The thread leaves its CPU, or returns to user space.
    VcpuPut,
}

impl Hook {
    /// All, in the order of their declaration.
    pub const ALL: [Hook; 5] = [Hook::VmEntry, Hook::VmExit, Hook::VmReentry, Hook::VcpuLoad, Hook::VcpuPut];
}

/// What a half may ask: it changes nothing but the cost.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Ask {
    /// Whether the shadow has anything enabled: the cheap test.
    BreakpointsActive,
    /// A register of the hardware.
    ReadDr(Dr),
    /// What a refresh would write, without reading the hardware.
    Shadow(Dr),
    /// A word of the CPU's.
    CpuWord(u8),
    /// A word of the vCPU's.
    VcpuWord(u8),
    /// A register as the guest sees it.
    Guest(Dr),
    /// An address that an entry should load, a debugger's if it has the registers.
    EffectiveDb(u8),
    /// The DR7 that should be in force while the guest runs.
    EffectiveDr7,
    /// `KVM_GUESTDBG_*`.
    GuestDebug,
    /// Whether MOV DR does not exit until the next exit.
    WontExit,
    /// A VMCS or VMCB field.
    ReadField(Field),
    /// Why the guest has left ([`crate::Exit`], by its number).
    Reason,
    /// Whether this is VMX.
    IsIntel,
}

/// What a half may do next.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// Ask; what it does afterwards may depend on the answer.
    Ask(Ask),
    /// MOV to a debug register.
    WriteDr(Dr, u64),
    /// The hardware from the shadow.
    Refresh,
    /// Takes the host's counters out of their registers.
    ScheduleOut,
    /// Puts them back.
    ScheduleIn,
    /// Sets a word of the CPU's.
    SetCpuWord(u8, u64),
    /// Sets a word of the vCPU's.
    SetVcpuWord(u8, u64),
    /// Writes a VMCS or VMCB field.
    WriteField(Field, u64),
    /// Reads back what the guest may have changed by itself, and shuts the window.
    CloseWindow,
}

/// A KVM half of a user's.
pub trait UserHalf: fmt::Debug + Send + Sync {
    /// Whether a guest's first MOV DR opens a window in which those that follow do not exit.
    fn opens_windows(&self) -> bool;

    /// Does what the half does: `perform` performs an operation, and answers. What is done next must depend on the
    /// hook and on the answers alone.
    fn run(&self, hook: Hook, perform: &mut dyn FnMut(Op) -> u64);
}

/// A registered half, by its name.
#[derive(Copy, Clone)]
pub(super) struct User {
    row: &'static Named,
    half: &'static dyn UserHalf,
}

impl PartialEq for User {
    fn eq(&self, other: &User) -> bool {
        std::ptr::addr_eq(self.half, other.half)
    }
}

impl Eq for User {}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row.name)
    }
}

static REGISTERED: RwLock<Vec<User>> = RwLock::new(Vec::new());

/// Gives a half a name that [`Policy::parse`] knows. One that had the name loses it, but not to policies that have been
/// parsed already.
pub fn register(name: &str, half: &'static dyn UserHalf) {
    let name = name.to_owned().leak();
    let row = Named::new(name, HostHalf::Perf, KvmHalf::User, NEWEST, "a user's");
    let user = User { row: Box::leak(Box::new(row)), half };
    let mut registered = REGISTERED.write().unwrap_or_else(PoisonError::into_inner);
    registered.retain(|other| other.row.name != name);
    registered.push(user);
}

impl User {
    pub(super) fn named(name: &str) -> Option<User> {
        let registered = REGISTERED.read().unwrap_or_else(PoisonError::into_inner);
        registered.iter().find(|user| user.row.name == name).copied()
    }

    pub(super) const fn row(self) -> &'static Named {
        self.row
    }
}

impl Policy {
    pub(super) fn user_opens_windows(self) -> bool {
        self.user.is_some_and(|user| user.half.opens_windows())
    }

    /// Whether a state may hold what only the policy understands, or be told apart by it.
    pub(crate) const fn is_users(self) -> bool {
        self.user.is_some()
    }
}

/// What stands for all of them.
pub(super) struct Users;

impl Half for Users {
    fn vm_entry<P: Probe>(kvm: &mut Kvm<'_, P>) {
        run(Hook::VmEntry, kvm);
        // The vendor's part of DR6, which no half decides.
        common::load_dr6(kvm);
    }

    fn vm_reentry<P: Probe>(kvm: &mut Kvm<'_, P>) {
        run(Hook::VmReentry, kvm);
    }

    fn vm_exit<P: Probe>(kvm: &mut Kvm<'_, P>) {
        run(Hook::VmExit, kvm);
    }

    fn vcpu_load<P: Probe>(kvm: &mut Kvm<'_, P>) {
        run(Hook::VcpuLoad, kvm);
    }

    fn vcpu_put<P: Probe>(kvm: &mut Kvm<'_, P>) {
        run(Hook::VcpuPut, kvm);
    }

    fn dr_access<P: Probe>(kvm: &mut Kvm<'_, P>) -> DrHandling {
        if kvm.host.machine.policy.user_opens_windows() { common::open_window(kvm) } else { DrHandling::Emulate }
    }
}

fn run<P: Probe>(hook: Hook, kvm: &mut Kvm<'_, P>) {
    if let Some(user) = kvm.host.machine.policy.user {
        user.half.run(hook, &mut |op| perform(op, hook, kvm));
    }
}

fn perform<P: Probe>(op: Op, hook: Hook, kvm: &mut Kvm<'_, P>) -> u64 {
    let cpu = kvm.host.cpu;
    match op {
        Op::Ask(ask) => return answer(ask, kvm),
        Op::WriteDr(dr, value) => {
            kvm.host.write_dr(dr, value);
            if let (Hook::VmEntry, Dr::Address(slot)) = (hook, dr) {
                kvm.vcpu().loaded |= slot.bit();
            }
        }
        Op::Refresh => Machine::refresh_marked(&mut kvm.host),
        Op::ScheduleOut => kvm.host.machine.perf_sched_out_cpu(cpu, kvm.host.probe),
        Op::ScheduleIn => kvm.host.machine.perf_sched_in_cpu(cpu, kvm.host.probe),
        Op::SetCpuWord(at, value) => kvm.host.machine.cpus[cpu.index()].words[usize::from(at)] = value,
        Op::SetVcpuWord(at, value) => kvm.vcpu().words[usize::from(at)] = value,
        Op::WriteField(field, value) => kvm.write_field(field, value),
        Op::CloseWindow => {
            if kvm.vcpu().wont_exit {
                common::close_window(kvm);
            }
        }
    }
    0
}

fn answer<P: Probe>(ask: Ask, kvm: &mut Kvm<'_, P>) -> u64 {
    let (policy, vendor) = (kvm.host.machine.policy, kvm.host.machine.options.vendor);
    match ask {
        Ask::BreakpointsActive => u64::from(bank::is_active(&mut kvm.host)),
        Ask::ReadDr(dr) => kvm.host.read_dr(dr),
        Ask::Shadow(Dr::Address(slot)) => kvm.host.load(Word::Address(slot)),
        Ask::Shadow(Dr::Status) => Dr6::IDLE.0,
        Ask::Shadow(Dr::Control) => kvm.host.load(Word::Control) | Dr7::FIXED,
        Ask::CpuWord(at) => kvm.host.machine.cpu(kvm.host.cpu).words[usize::from(at)],
        Ask::VcpuWord(at) => kvm.vcpu().words[usize::from(at)],
        Ask::Guest(dr) => common::get_dr(policy, vendor, kvm.vcpu(), dr),
        Ask::EffectiveDb(at) => kvm.vcpu().eff_db[usize::from(at)],
        Ask::EffectiveDr7 => kvm.vcpu().effective_dr7(),
        Ask::GuestDebug => u64::from(kvm.vcpu().debug.control),
        Ask::WontExit => u64::from(kvm.vcpu().wont_exit),
        Ask::ReadField(field) => kvm.read_field(field),
        Ask::Reason => kvm.vcpu().exit as u64,
        Ask::IsIntel => u64::from(kvm.is_intel()),
    }
}
