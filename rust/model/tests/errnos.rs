//! Every refusal of the tables of checks, by the check that made it: which errno, and which sentence says why. Where two
//! checks would refuse, which one does.
//!
//! The order of the checks is Linux 6.17's (`perf_event_open`, `hw_breakpoint_parse`, `perf_event_modify_breakpoint`,
//! `ptrace_write_dr7`). `scenarios/host/errors-*.scn` asks a running kernel the same questions; it answers with the errno
//! alone.
//!
//! What cannot arise here, and why:
//!
//! | errno | check | why not |
//! |---|---|---|
//! | E2BIG, EFAULT | size and address of `perf_event_attr`; a sample record that is too big | attributes are values here, and nothing is sampled |
//! | EINVAL | unknown flags, reserved bits, frequency and period, cgroups, a CPU number that is none, no task and no CPU | the language has none of them, or refuses them as a mistake in the file |
//! | EINVAL | sigtrap without `remove_on_exec`, `remove_on_exec` with `enable_on_exec` | `sigtrap` implies the one, the other does not exist |
//! | EINVAL | `bp_type` 0, 7, 8, or x with another | a type is one of r, w, rw, x |
//! | EINVAL | the other forbidden areas: GDT, `cpu_tss_rw`, `cpu_tlbstate`, `__per_cpu_offset`, `cpu_dr7`, the kprobe blacklist | where they are differs from boot to boot |
//! | EINVAL | a group of another clock, an exclusive sibling; `modify` of another `attr.type` or of `sample_period` | no such attribute |
//! | EOPNOTSUPP | a branch stack; `modify` of an event that is no breakpoint | every event is a breakpoint |
//! | EACCES, EPERM | a security module | there is none |
//! | EMFILE | no free descriptor | descriptors are not counted |
//! | ENOMEM | the layer is not initialised, or there is no memory | it always is, and there always is |
//! | EBUSY | `arch_install_hw_breakpoint` finds no register | nobody is told: the counter waits, or is in ERROR |
//! | EIO | an offset beside `u_debugreg` | a register is one of DR0 to DR7 |
//! | -1 | `dbg_reserve_bp_slot` finds a lock held | kgdb stops the machine between events, when none is |

use std::collections::BTreeSet;

use debugreg_model::scenario::{Expectation, Session, parse};
use debugreg_model::{Errno, Options, Outcome, Policy, Refusal};

/// A refusal: what is asked last in `lines` is refused, and nothing before it.
struct Case {
    /// The check, and another one that it comes before, if that would refuse as well.
    check: &'static str,
    /// Keys of the `machine` line.
    machine: &'static str,
    lines: &'static [&'static str],
    /// None is kgdb's -1.
    errno: Option<Errno>,
    /// A part of the sentence that no other check has.
    rule: &'static str,
}

const fn case(
    check: &'static str,
    machine: &'static str,
    lines: &'static [&'static str],
    errno: Errno,
    rule: &'static str,
) -> Case {
    Case { check, machine, lines, errno: Some(errno), rule }
}

const fn bare(check: &'static str, lines: &'static [&'static str], rule: &'static str) -> Case {
    Case { check, machine: "", lines, errno: None, rule }
}

/// Who asks. `$` in a line is a write breakpoint of eight bytes, `K` a kernel address.
const TASKS: &str = "task root cpu=0\ntask mon cpu=0 caps=perfmon\ntask user cpu=0 caps=none\ntask sh cpu=0\n";
const PLAIN: &str = "perf_event_open bp_type=w bp_addr=0x1000 bp_len=8";
const KERNEL: &str = "0xffffffff81000000";

/// `sh` has four.
macro_rules! full {
    ($($more:expr),*) => {
        &["root $ on=sh => A", "root $ on=sh => B", "root $ on=sh => C", "root $ on=sh => D", $($more),*]
    };
}

/// `sh` has exited, and `root` runs.
macro_rules! gone {
    ($($more:expr),*) => {
        &["cpu0 sched_switch sh", "sh exit", "cpu0 sched_switch root", $($more),*]
    };
}

/// `root` traces `sh`.
macro_rules! traced {
    ($($more:expr),*) => { &["root attach sh", $($more),*] };
}

const RANGE: &str = "lies below bp_addr";
const AREA: &str = "overlaps cpu_entry_area";
const TYPE: &str = "cannot watch reads alone";
const KPROBES: &str = "without kprobes";
const EXECUTE: &str = "must have bp_len=8";
const LENGTH: &str = "must be a power of two and bp_addr aligned";
const MASKS: &str = "needs AMD's address masks";
const ALIGNED: &str = "bp_addr must be aligned to bp_len";
const EXCLUDED: &str = "with exclude_kernel=1 could never be hit";
const ADMIN: &str = "needs CAP_SYS_ADMIN";
const COUNTS: &str = "exclude_kernel=0 needs CAP_PERFMON";
const DESCRIPTOR: &str = "no descriptor of the group's leader";
const LEADER_GONE: &str = "the leader's task has exited";
const INHERITED: &str = "inherited as a whole or not at all";
const THREAD: &str = "it needs inherit";
const SIGTRAP: &str = "sigtrap needs a task";
const SLOTS: &str = "every slot of a CPU is spoken for";
const TARGET: &str = "another user's task needs CAP_PERFMON";
const CPU_WIDE: &str = "a cpu-wide counter needs CAP_PERFMON";
const EXITED: &str = "the task has exited";
const OFFLINE: &str = "the CPU is offline";
const LEADS: &str = "leads nobody";
const OF_ONE_CPU: &str = "of one CPU, or of any";
const OF_ONE_CONTEXT: &str = "of one context";
const PINNED: &str = "only the leader of a group can be pinned";
const FIXED: &str = "may change in a life";
const NOT_TRACED: &str = "does not trace that task";
const TRACER: &str = "has a tracer already";
const RIGHTS: &str = "nor one with more rights";
const NO_DR4: &str = "no DR4 or DR5";
const NIBBLE: &str = "R/W=10b, or R/W=00b with LEN";
const LAST_CPU: &str = "the last CPU cannot go offline";

use Errno::{EACCES, EBADF, EBUSY, EINVAL, EIO, ENODEV, ENOSPC, EOPNOTSUPP, EPERM, ESRCH};

/// Of the breakpoint itself (`hw_breakpoint_parse`).
#[rustfmt::skip]
const BREAKPOINT: &[Case] = &[
    case("1: the range wraps", "", &["root perf_event_open bp_type=w bp_addr=0xfffffffffffffff8 bp_len=16"], EINVAL, RANGE),
    case("1: no byte at all", "", &["root perf_event_open bp_type=w bp_addr=0x1000 bp_len=0"], EINVAL, RANGE),
    case("2: a forbidden area", "", &["root perf_event_open bp_type=w bp_addr=0xfffffe0000001000 bp_len=8"], EINVAL, AREA),
    case("2: reaches into it", "", &["root perf_event_open bp_type=w bp_addr=0xfffffdfffffffff0 bp_len=32"], EINVAL, AREA),
    case("3: the type", "", &["root perf_event_open bp_type=r bp_addr=0x1000 bp_len=8"], EINVAL, TYPE),
    case("4: execute in a kernel without kprobes", "kprobes=0", &["root perf_event_open bp_type=x bp_addr=K bp_len=8"], EINVAL, KPROBES),
    case("4: the length of execute", "", &["root perf_event_open bp_type=x bp_addr=0x1000 bp_len=4"], EINVAL, EXECUTE),
    case("6: no power of two", "", &["root perf_event_open bp_type=w bp_addr=0x1000 bp_len=3"], EINVAL, LENGTH),
    case("6: 16, not aligned", "", &["root perf_event_open bp_type=w bp_addr=0x1008 bp_len=16"], EINVAL, LENGTH),
    case("6: 16, aligned", "", &["root perf_event_open bp_type=w bp_addr=0x1000 bp_len=16"], EOPNOTSUPP, MASKS),
    case("7: the alignment", "", &["root perf_event_open bp_type=w bp_addr=0x1004 bp_len=8"], EINVAL, ALIGNED),
    case("8: a kernel address that excludes the kernel", "", &["root perf_event_open bp_type=w bp_addr=K bp_len=8 exclude_kernel"], EINVAL, EXCLUDED),
    case("8: a kernel address, CAP_PERFMON", "", &["mon perf_event_open bp_type=w bp_addr=K bp_len=8"], EPERM, ADMIN),
    case("8: a kernel address, no capability", "paranoid=1", &["user perf_event_open bp_type=w bp_addr=K bp_len=8"], EPERM, ADMIN),
    case("8: the first address that is not a user's", "", &["mon perf_event_open bp_type=w bp_addr=0x7ffffffff000 bp_len=1"], EPERM, ADMIN),
    case("8: at fork, by the rights of the task that forks", "", &["root perf_event_open bp_type=w bp_addr=K bp_len=8 inherit on=user => A", "cpu0 sched_switch user", "user fork kid"], EPERM, ADMIN),
    case("1 before 3", "", &["root perf_event_open bp_type=r bp_addr=0x1000 bp_len=0"], EINVAL, RANGE),
    case("2 before 3", "", &["root perf_event_open bp_type=r bp_addr=0xfffffe0000001000 bp_len=8"], EINVAL, AREA),
    case("2 before 6", "", &["root perf_event_open bp_type=w bp_addr=0xfffffe0000001000 bp_len=16"], EINVAL, AREA),
    case("2 before 8", "", &["mon perf_event_open bp_type=w bp_addr=0xfffffe0000001000 bp_len=8"], EINVAL, AREA),
    case("3 before 6", "", &["root perf_event_open bp_type=r bp_addr=0x1000 bp_len=16"], EINVAL, TYPE),
    case("3 before 8", "", &["mon perf_event_open bp_type=r bp_addr=K bp_len=8"], EINVAL, TYPE),
    case("4, the address before the length", "kprobes=0", &["root perf_event_open bp_type=x bp_addr=K bp_len=4"], EINVAL, KPROBES),
    case("4 before 8", "", &["mon perf_event_open bp_type=x bp_addr=K bp_len=4"], EINVAL, EXECUTE),
    case("6 before 8: EOPNOTSUPP before EINVAL", "", &["root perf_event_open bp_type=w bp_addr=K bp_len=16 exclude_kernel"], EOPNOTSUPP, MASKS),
    case("6 before 8: EOPNOTSUPP before EPERM", "", &["mon perf_event_open bp_type=w bp_addr=K bp_len=16"], EOPNOTSUPP, MASKS),
    case("7 before 8", "", &["mon perf_event_open bp_type=w bp_addr=0xffffffff81000001 bp_len=8"], EINVAL, ALIGNED),
    case("8, EINVAL before EPERM", "", &["mon perf_event_open bp_type=w bp_addr=K bp_len=8 exclude_kernel"], EINVAL, EXCLUDED),
];

/// Of `perf_event_open`.
#[rustfmt::skip]
const OPEN: &[Case] = &[
    case("2: attributes", "", &["root $ inherit_thread"], EINVAL, THREAD),
    case("4: counts the kernel", "", &["user $"], EACCES, COUNTS),
    case("7: the leader's descriptor", "", &["root $ => L", "mon $ group=L"], EBADF, DESCRIPTOR),
    case("7: the leader's task", "", &["root $ on=sh => L", "cpu0 sched_switch sh", "sh exit", "cpu0 sched_switch root", "root $ group=L"], ENODEV, LEADER_GONE),
    case("7: inherited or not", "", &["root $ => L", "root $ group=L inherit"], EINVAL, INHERITED),
    case("9: sigtrap without a task", "", &["root $ on=cpu0 sigtrap"], EINVAL, SIGTRAP),
    case("11: the task has four", "", full!["root $ on=sh"], ENOSPC, SLOTS),
    case("11: a task with four, for a CPU", "", full!["root $ on=cpu0"], ENOSPC, SLOTS),
    case("11: a CPU with four, for a task", "", &["root $ on=cpu0 => A", "root $ on=cpu0 => B", "root $ on=cpu0 => C", "root $ on=cpu0 => D", "root $"], ENOSPC, SLOTS),
    case("13: another user's task", "", &["user $ exclude_kernel on=root"], EACCES, TARGET),
    case("13: sigtrap needs CAP_KILL beside CAP_PERFMON", "", &["mon $ on=root sigtrap"], EACCES, TARGET),
    case("14: a CPU", "", &["user $ exclude_kernel on=cpu0"], EACCES, CPU_WIDE),
    case("14: a CPU, paranoid=1", "paranoid=1", &["user $ on=cpu0"], EACCES, CPU_WIDE),
    case("15: a dead task", "", gone!["root $ on=sh"], ESRCH, EXITED),
    case("15: a CPU that is offline", "cpus=2", &["cpu1 offline", "root $ on=cpu1"], ENODEV, OFFLINE),
    case("16: the leader follows another", "", &["root $ => L", "root $ group=L => S", "root $ group=S"], EINVAL, LEADS),
    case("16: another CPU", "", &["root $ => L", "root $ group=L on=root@cpu0"], EINVAL, OF_ONE_CPU),
    case("16: another task", "", &["root $ => L", "root $ group=L on=sh"], EINVAL, OF_ONE_CONTEXT),
    case("16: a sibling is pinned", "", &["root $ => L", "root $ group=L pinned"], EINVAL, PINNED),
    case("2 before 4", "", &["user $ inherit_thread"], EINVAL, THREAD),
    case("4 before 7", "", &["root $ => L", "user $ group=L"], EACCES, COUNTS),
    case("4 before 9", "", &["user $ on=cpu0 sigtrap"], EACCES, COUNTS),
    case("4 before 11", "", full!["user $ on=sh"], EACCES, COUNTS),
    case("4 before 12", "", &["user perf_event_open bp_type=w bp_addr=0x1000 bp_len=3"], EACCES, COUNTS),
    case("4 before 12: EACCES before EPERM", "", &["user perf_event_open bp_type=w bp_addr=K bp_len=8"], EACCES, COUNTS),
    case("4 before 13", "", &["user $ on=root"], EACCES, COUNTS),
    case("4 before 14", "", &["user $ on=cpu0"], EACCES, COUNTS),
    case("4 before 15", "", gone!["user $ on=sh"], EACCES, COUNTS),
    case("7, the descriptor before what is inherited", "", &["root $ => L", "mon $ group=L inherit"], EBADF, DESCRIPTOR),
    case("7 before 9", "", &["root $ => L", "mon $ group=L on=cpu0 sigtrap"], EBADF, DESCRIPTOR),
    case("7 before 11", "", full!["root $ => L", "root $ on=sh group=L inherit"], EINVAL, INHERITED),
    case("7 before 12", "", &["root $ => L", "mon perf_event_open bp_type=w bp_addr=0x1000 bp_len=3 group=L"], EBADF, DESCRIPTOR),
    case("9 before 11", "", full!["root $ on=cpu0 sigtrap"], EINVAL, SIGTRAP),
    case("9 before 12", "", &["root perf_event_open bp_type=w bp_addr=0x1000 bp_len=16 on=cpu0 sigtrap"], EINVAL, SIGTRAP),
    case("11 before 12: ENOSPC before a bad length", "", full!["root perf_event_open bp_type=w bp_addr=0x1000 bp_len=3 on=sh"], ENOSPC, SLOTS),
    case("11 before 12: ENOSPC before a forbidden area", "", full!["root perf_event_open bp_type=w bp_addr=0xfffffe0000001000 bp_len=8 on=sh"], ENOSPC, SLOTS),
    case("11 before 12: ENOSPC before a bad type", "", full!["root perf_event_open bp_type=r bp_addr=0x1000 bp_len=8 on=sh"], ENOSPC, SLOTS),
    case("11 before 12: ENOSPC before EPERM", "", full!["mon perf_event_open bp_type=w bp_addr=K bp_len=8 on=sh"], ENOSPC, SLOTS),
    case("11 before 13", "", full!["user $ exclude_kernel on=sh"], ENOSPC, SLOTS),
    case("11 before 14", "", full!["user $ exclude_kernel on=cpu0"], ENOSPC, SLOTS),
    case("11 before 15", "", &["root $ on=sh => A", "root $ on=sh => B", "root $ on=sh => C", "root $ on=sh => D", "cpu0 sched_switch sh", "sh exit", "root $ on=sh"], ENOSPC, SLOTS),
    case("11 before 16", "", full!["root $ => L", "root $ on=sh group=L"], ENOSPC, SLOTS),
    case("12 before 13", "", &["user perf_event_open bp_type=w bp_addr=0x1000 bp_len=3 exclude_kernel on=root"], EINVAL, LENGTH),
    case("12 before 14", "", &["user perf_event_open bp_type=w bp_addr=0x1000 bp_len=16 exclude_kernel on=cpu0"], EOPNOTSUPP, MASKS),
    case("12 before 14: EPERM before EACCES", "paranoid=1", &["user perf_event_open bp_type=w bp_addr=K bp_len=8 on=cpu0"], EPERM, ADMIN),
    case("12 before 15", "", gone!["root perf_event_open bp_type=w bp_addr=0x1000 bp_len=16 on=sh"], EOPNOTSUPP, MASKS),
    case("12 before 16", "", &["root $ => L", "root perf_event_open bp_type=w bp_addr=0x1000 bp_len=16 group=L pinned"], EOPNOTSUPP, MASKS),
    case("13 before 15", "", gone!["user $ exclude_kernel on=sh"], EACCES, TARGET),
    case("14 before 15", "cpus=2", &["cpu1 offline", "user $ exclude_kernel on=cpu1"], EACCES, CPU_WIDE),
    case("15 before 16", "", gone!["root $ => L", "root $ group=L on=sh"], ESRCH, EXITED),
];

/// Of `PERF_EVENT_IOC_MODIFY_ATTRIBUTES`.
#[rustfmt::skip]
const MODIFY: &[Case] = &[
    case("the breakpoint: length", "", &["root $ => A", "A modify bp_len=3"], EINVAL, LENGTH),
    case("the breakpoint: masks", "", &["root $ => A", "A modify bp_len=16"], EOPNOTSUPP, MASKS),
    case("the breakpoint: alignment", "", &["root $ => A", "A modify bp_addr=0x1001"], EINVAL, ALIGNED),
    case("the breakpoint: type", "", &["root $ => A", "A modify bp_type=r"], EINVAL, TYPE),
    case("the breakpoint: range", "", &["root $ => A", "A modify bp_addr=0xfffffffffffffff8 bp_len=16"], EINVAL, RANGE),
    case("the breakpoint: area", "", &["root $ => A", "A modify bp_addr=0xfffffe0000000000"], EINVAL, AREA),
    case("the breakpoint: execute", "", &["root $ => A", "A modify bp_type=x bp_len=1"], EINVAL, EXECUTE),
    case("the breakpoint: the kernel, excluded", "", &["root $ exclude_kernel => A", "A modify bp_addr=K"], EINVAL, EXCLUDED),
    case("the breakpoint: the kernel, without the right", "", &["mon $ => A", "A modify bp_addr=K"], EPERM, ADMIN),
    case("a field that is fixed", "", &["root $ => A", "A modify pinned=1"], EINVAL, FIXED),
    case("a field that is fixed", "", &["root $ => A", "A modify exclude_user=1"], EINVAL, FIXED),
    case("a field that is fixed", "", &["root $ => A", "A modify exclude_kernel=1"], EINVAL, FIXED),
    case("the breakpoint before what is fixed", "", &["root $ => A", "A modify pinned=1 bp_len=16"], EOPNOTSUPP, MASKS),
    case("the address is judged by the new exclude_kernel", "", &["root $ => A", "A modify exclude_kernel=1 bp_addr=K"], EINVAL, EXCLUDED),
];

/// Of a tracer.
#[rustfmt::skip]
const PTRACE: &[Case] = &[
    case("attach: oneself", "", &["root attach root"], EPERM, RIGHTS),
    case("attach: more rights", "", &["user attach root"], EPERM, RIGHTS),
    case("attach: a second tracer", "", traced!["mon attach user => ok", "root attach user"], EPERM, TRACER),
    case("attach: the dead", "", gone!["root attach sh"], EPERM, EXITED),
    case("peek: not traced", "", &["root ptrace_peek sh DR7"], ESRCH, NOT_TRACED),
    case("poke: not traced", "", &["root ptrace_poke sh DR0 0x1000"], ESRCH, NOT_TRACED),
    case("detach: not traced", "", &["root detach sh"], ESRCH, NOT_TRACED),
    case("poke: dead", "", traced!["cpu0 sched_switch sh", "sh exit", "root ptrace_poke sh DR0 0x1000"], ESRCH, NOT_TRACED),
    case("poke DR4", "", traced!["root ptrace_poke sh DR4 0"], EIO, NO_DR4),
    case("poke DR5", "", traced!["root ptrace_poke sh DR5 0"], EIO, NO_DR4),
    case("poke DR0-3: a kernel address", "", traced!["root ptrace_poke sh DR0 K"], EINVAL, EXCLUDED),
    case("poke DR0-3: no canonical address", "", traced!["root ptrace_poke sh DR0 0x800000000000"], EINVAL, EXCLUDED),
    case("poke DR0-3: a forbidden area", "", traced!["root ptrace_poke sh DR0 0xfffffe0000000000"], EINVAL, AREA),
    case("poke DR0-3: the length of now", "", traced!["root ptrace_poke sh DR0 0x1000", "root ptrace_poke sh DR7 0x000d0000", "root ptrace_poke sh DR0 0x1002"], EINVAL, ALIGNED),
    case("poke DR0-3: no slot", "", full!["root attach sh", "root ptrace_poke sh DR0 0x1000"], ENOSPC, SLOTS),
    case("poke DR7: R/W=10b, enabled", "", traced!["root ptrace_poke sh DR7 0x00020001"], EINVAL, NIBBLE),
    case("poke DR7: R/W=10b, with an address", "", traced!["root ptrace_poke sh DR0 0x1000", "root ptrace_poke sh DR7 0x00020000"], EINVAL, NIBBLE),
    case("poke DR7: execute with LEN", "", traced!["root ptrace_poke sh DR7 0x000c0001"], EINVAL, NIBBLE),
    case("poke DR7: the alignment", "", traced!["root ptrace_poke sh DR0 0x1001", "root ptrace_poke sh DR7 0x000d0001"], EINVAL, ALIGNED),
    case("poke DR7: no slot", "", full!["root attach sh", "root ptrace_poke sh DR7 0x00010001"], ENOSPC, SLOTS),
    case("who, before which register", "", &["root ptrace_poke sh DR4 0"], ESRCH, NOT_TRACED),
    case("the slot before the address", "", full!["root attach sh", "root ptrace_poke sh DR0 K"], ENOSPC, SLOTS),
    case("DR7: the value before the slot", "", full!["root attach sh", "root ptrace_poke sh DR7 0x00020001"], EINVAL, NIBBLE),
    case("DR7: the first register's error, no slot", "", full!["root attach sh", "root ptrace_poke sh DR7 0x00210005"], ENOSPC, SLOTS),
    case("DR7: the first register's error, its value", "", full!["root attach sh", "root ptrace_poke sh DR7 0x00120005"], EINVAL, NIBBLE),
];

/// Of users inside the kernel, and of CPUs.
#[rustfmt::skip]
const KERNELS_OWN: &[Case] = &[
    case("a slot", "", full!["kernel register_kernel_hw_breakpoint cpu=0 w K 8"], ENOSPC, SLOTS),
    case("a slot on every CPU", "cpus=2", &["root $ on=cpu1 => A", "root $ on=cpu1 => B", "root $ on=cpu1 => C", "root $ on=cpu1 => D", "kernel register_wide_hw_breakpoint w K 8"], ENOSPC, SLOTS),
    case("the breakpoint", "", &["kernel register_wide_hw_breakpoint w K 3"], EINVAL, LENGTH),
    case("the breakpoint of a task: user addresses only", "", &["kernel register_user_hw_breakpoint sh w K 8"], EINVAL, EXCLUDED),
    case("the CPU", "cpus=2", &["cpu1 offline", "kernel register_kernel_hw_breakpoint cpu=1 w K 8"], ENODEV, OFFLINE),
    case("the slot before the breakpoint", "", full!["kernel register_kernel_hw_breakpoint cpu=0 r K 3"], ENOSPC, SLOTS),
    case("the breakpoint before the CPU", "cpus=2", &["cpu1 offline", "kernel register_kernel_hw_breakpoint cpu=1 w K 3"], EINVAL, LENGTH),
    case("the last CPU", "", &["cpu0 offline"], EBUSY, LAST_CPU),
];

/// Of kgdb, which says -1 and no more.
#[rustfmt::skip]
const KGDB: &[Case] = &[
    bare("set: a fifth", &["cpu0 kgdb_enter", "cpu0 kgdb_set w 0x1000 8", "cpu0 kgdb_set w 0x1000 8", "cpu0 kgdb_set w 0x1000 8", "cpu0 kgdb_set w 0x1000 8", "cpu0 kgdb_set w 0x1000 8"], "has four breakpoints already"),
    bare("set: the kind", &["cpu0 kgdb_enter", "cpu0 kgdb_set r 0x1000 8"], "no read watchpoint"),
    bare("set: the length", &["cpu0 kgdb_enter", "cpu0 kgdb_set w 0x1000 3"], "1, 2, 4 or 8 bytes"),
    bare("set: no slot", full!["cpu0 kgdb_enter", "cpu0 kgdb_set w 0x1000 8"], SLOTS),
    bare("set: the length before the slot", full!["cpu0 kgdb_enter", "cpu0 kgdb_set w 0x1000 3"], "1, 2, 4 or 8 bytes"),
    bare("remove: nothing there", &["cpu0 kgdb_enter", "cpu0 kgdb_clear 0x1000"], "no breakpoint at that address"),
];

fn all() -> impl Iterator<Item = (&'static str, &'static Case)> {
    let tables = [
        ("breakpoint", BREAKPOINT),
        ("open", OPEN),
        ("modify", MODIFY),
        ("ptrace", PTRACE),
        ("kernel", KERNELS_OWN),
        ("kgdb", KGDB),
    ];
    tables.into_iter().flat_map(|(table, cases)| cases.iter().map(move |case| (table, case)))
}

/// What the last line of a case is refused for.
fn refusal(case: &Case) -> Result<Refusal, String> {
    let mut text = format!("machine {}\n{TASKS}", case.machine);
    for line in case.lines {
        let line = line.replace('$', PLAIN).replace("=K", &format!("={KERNEL}")).replace(" K", &format!(" {KERNEL}"));
        text += &line;
        text.push('\n');
    }
    let scenario = parse(&text).map_err(|error| format!("{error}\n{text}"))?;
    let mut session = Session::new(Options { ..scenario.options }, Policy::parse("linux").expect("a policy"));
    session.names = scenario.names.clone();
    for task in &scenario.tasks {
        session.machine.add_task(task.cpu, task.capabilities);
    }
    let (last, before) = scenario.lines.split_last().expect("a line");
    for line in before {
        let outcome = session.perform(&line.event, &mut ()).map_err(|misuse| misuse.to_string())?;
        match (&line.expectation, outcome) {
            (_, None | Some(Outcome::Refused(_))) => return Err(format!("line {} is refused as well", line.number)),
            (Some(Expectation::Bind(symbol)), Some(Outcome::Bound(id))) => session.bind(*symbol, id),
            _ => {}
        }
    }
    match session.perform(&last.event, &mut ()).map_err(|misuse| misuse.to_string())? {
        Some(Outcome::Refused(refusal)) => Ok(refusal),
        other => Err(format!("{other:?} is no refusal")),
    }
}

#[test]
fn every_check_refuses_with_its_errno_and_says_why() {
    let mut wrong = Vec::new();
    for (table, case) in all() {
        match refusal(case) {
            Ok(refusal) if refusal.errno == case.errno && refusal.rule.contains(case.rule) => {}
            Ok(refusal) => wrong.push(format!(
                "{table}, {}: {:?}, {}; expected {:?}, {}",
                case.check, refusal.errno, refusal.rule, case.errno, case.rule
            )),
            Err(trouble) => wrong.push(format!("{table}, {}: {trouble}", case.check)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_refusal_for_lack_of_slots_says_who_has_them() {
    for (table, case) in all().filter(|(_, case)| case.rule == SLOTS) {
        let refusal = refusal(case).expect("refused, as another test has seen");
        assert_eq!(refusal.holders.len(), 4, "{table}, {}", case.check);
    }
    for (table, case) in all().filter(|(_, case)| case.rule != SLOTS) {
        let refusal = refusal(case).expect("refused, as another test has seen");
        assert!(refusal.holders.is_empty(), "{table}, {}", case.check);
    }
}

/// The sentences of the refusals that a source file makes: what stands in quotes behind the word that makes one.
fn sentences(source: &str) -> BTreeSet<String> {
    let makers = ["Refusal::new(", "Refusal::bare(", "invalid("];
    let made = makers.iter().flat_map(|maker| source.split(maker).skip(1));
    let quoted = made.filter_map(|rest| {
        let call = rest.split(')').next()?;
        let from = rest.find('"')?;
        // The errno may stand before it, and nothing else: what is said by a constant has no quote in its call.
        if from > call.len() { None } else { rest[from + 1..].split('"').next() }
    });
    quoted.map(str::to_owned).collect()
}

#[test]
fn no_refusal_of_the_host_side_is_without_a_case() {
    let sources = [
        include_str!("../src/counter.rs"),
        include_str!("../src/perf.rs"),
        include_str!("../src/ptrace.rs"),
        include_str!("../src/task.rs"),
        include_str!("../src/kernel.rs"),
        include_str!("../src/kgdb.rs"),
    ];
    // Of announced slots, which no kernel has; `scenarios/mail` and `scenarios/kgdb` ask for them.
    let announced = ["every register of a CPU has an owner", "kgdb has not announced that slot"];
    let made: BTreeSet<String> = sources.iter().flat_map(|source| sentences(source)).collect();
    assert!(made.len() > 30, "{made:?}");
    let asked: BTreeSet<&str> = all().map(|(_, case)| refusal(case).expect("refused").rule).collect();
    let asked_for = |rule: &str| asked.contains(rule) || announced.iter().any(|of| rule.starts_with(of));
    let missing: Vec<_> = made.iter().filter(|rule| !asked_for(rule)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
    for (table, case) in all() {
        let named = asked.iter().filter(|rule| rule.contains(case.rule)).count();
        assert_eq!(named, 1, "{table}, {}: '{}' is said by {named} checks", case.check, case.rule);
    }
}

#[test]
fn no_errno_of_the_model_is_without_a_case() {
    let asked: BTreeSet<_> = all().filter_map(|(_, case)| case.errno.map(Errno::number)).collect();
    let missing: Vec<_> = Errno::ALL.into_iter().filter(|errno| !asked.contains(&errno.number())).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
