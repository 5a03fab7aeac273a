//! Kinds of events, so that a test can say that none was left out.

use debugreg_model::{Event, Kgdb, Nmi, Scope};

macro_rules! kinds {
    ($($event:pat => $name:literal,)*) => {
        /// All of them.
        pub const KINDS: &[&str] = &[$($name),*];

        /// Of what kind an event is. An event that is new must get a name here, and then be generated.
        pub fn kind(event: &Event) -> &'static str {
            match event {
                $($event => $name,)*
            }
        }
    };
}

kinds! {
    Event::PerfEventOpen { .. } => "perf_event_open",
    Event::Close(_) => "close",
    Event::Enable(_) => "enable",
    Event::Disable(_) => "disable",
    Event::Count(_) => "count",
    Event::Modify(..) => "modify",
    Event::PtracePoke { .. } => "ptrace_poke",
    Event::PtracePeek { .. } => "ptrace_peek",
    Event::Attach { .. } => "attach",
    Event::Detach { .. } => "detach",
    Event::Fork { thread: false, .. } => "fork",
    Event::Fork { thread: true, .. } => "fork thread",
    Event::Exec(_) => "exec",
    Event::Exit(_) => "exit",
    Event::Migrate(..) => "migrate",
    Event::TaskAccess { .. } => "access",
    Event::GuestAccess { .. } => "guest access",
    Event::MovToDr { .. } => "mov_to_dr",
    Event::MovFromDr { .. } => "mov_from_dr",
    Event::SchedSwitch(..) => "sched_switch",
    Event::Registers(_) => "registers",
    Event::Refresh(_) => "refresh",
    Event::Hardware(_) => "hardware",
    Event::Owed(_) => "owed",
    Event::Slots(_) => "slots",
    Event::Offline(_) => "offline",
    Event::Online(_) => "online",
    Event::Nmi(_, Nmi::Plain) => "nmi",
    Event::Nmi(_, Nmi::KgdbSet(..)) => "nmi kgdb_set",
    Event::Nmi(_, Nmi::KgdbClear(_)) => "nmi kgdb_clear",
    Event::Nmi(_, Nmi::KgdbAnnounce(_)) => "nmi kgdb_announce",
    Event::Nmi(_, Nmi::KgdbRelease(_)) => "nmi kgdb_release",
    Event::Kgdb(_, Kgdb::Enter) => "kgdb_enter",
    Event::Kgdb(_, Kgdb::Set(..)) => "kgdb_set",
    Event::Kgdb(_, Kgdb::Clear(_)) => "kgdb_clear",
    Event::Kgdb(_, Kgdb::Resume) => "kgdb_resume",
    Event::RegisterHwBreakpoint { on: Scope::Cpu(_), .. } => "register_kernel_hw_breakpoint",
    Event::RegisterHwBreakpoint { on: Scope::Wide, .. } => "register_wide_hw_breakpoint",
    Event::RegisterHwBreakpoint { on: Scope::Task(_), .. } => "register_user_hw_breakpoint",
    Event::UnregisterHwBreakpoint(_) => "unregister_hw_breakpoint",
    Event::ModifyWideLocal { .. } => "modify_wide_hw_breakpoint_local",
    Event::VmEntry(_) => "vm_entry",
    Event::VmExit(..) => "vm_exit",
    Event::SetGuestDebug(..) => "set_guest_debug",
    Event::GetDebugregs(_) => "get_debugregs",
    Event::SetDebugregs { .. } => "set_debugregs",
    Event::Init(_) => "init",
    Event::Smi(_) => "smi",
    Event::Rsm(_) => "rsm",
    Event::TaskSwitch(_) => "task_switch",
    Event::NestedEntry { .. } => "nested_entry",
    Event::NestedExit(_) => "nested_exit",
}
