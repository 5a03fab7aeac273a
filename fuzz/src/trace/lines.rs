//! Lines that look like a trace's, and a steps file beside them: few tasks, few CPUs, any order.

use std::fmt::Write as _;

use arbitrary::{Result, Unstructured};

/// As many lines as one input may have.
const LONGEST: usize = 400;

const EXITS: [&str; 10] =
    ["io", "interrupt", "hlt", "npf", "nmi", "write_dr7", "read_dr0", "DB excp", "IOIO", "EXCEPTION_NMI"];
const PREVIOUS: [&str; 5] = ["R", "R+", "S", "D", "Z"];
const KERNEL: &str = "ffffffff81000000";

/// The text of a trace, and of a steps file.
pub(super) fn any(u: &mut Unstructured<'_>) -> Result<(String, String)> {
    let (mut text, mut steps) = (String::new(), String::new());
    for _ in 0..LONGEST {
        if u.is_empty() {
            break;
        }
        let cpu = u.int_in_range(0..=2)?;
        line(u, cpu, &mut text)?;
        if u.arbitrary()? {
            step(u, cpu, &mut steps)?;
        }
    }
    Ok((text, steps))
}

fn line(u: &mut Unstructured<'_>, cpu: u32, text: &mut String) -> Result<()> {
    let pid = pid(u)?;
    let event = match u.int_in_range(0..=31)? {
        0..=4 => {
            let (next, state) = (self::pid(u)?, *u.choose(&PREVIOUS)?);
            format!(
                "sched_switch: prev_comm=a prev_pid={pid} prev_prio=1 prev_state={state} ==> next_comm=b next_pid={next} next_prio=1"
            )
        }
        5 => format!(
            "sched_migrate_task: comm=a pid={} prio=1 orig_cpu={cpu} dest_cpu={}",
            self::pid(u)?,
            u.int_in_range(0..=3)?
        ),
        6 => format!("sched_process_fork: comm=a pid={pid} child_comm=a child_pid={}", self::pid(u)?),
        7 if u.arbitrary()? => format!("sched_process_exec: filename=/a pid={pid} old_pid={pid}"),
        7 => format!("sched_process_exit: comm=a pid={pid} prio=1"),
        8..=10 => format!("kvm_entry: vcpu {}, rip {:#x}", u.int_in_range(0..=1)?, u.int_in_range(0..=3)?),
        11..=13 => {
            let (vcpu, reason, rip) = (u.int_in_range(0..=1)?, *u.choose(&EXITS)?, u.int_in_range(0..=3)?);
            format!(
                "kvm_exit: vcpu {vcpu} reason {reason} rip {rip:#x} info1 0x0 info2 0x0 intr_info 0x80000301 error_code 0x0"
            )
        }
        14 => format!("kvm_userspace_exit: reason {}", u.choose(&["KVM_EXIT_DEBUG (4)", "KVM_EXIT_IO (2)"])?),
        15..=17 => {
            let (flags, address) = (flags(u)?, address(u)?);
            let (pid, cpu) = (u.int_in_range(-1..=3)?, u.int_in_range(-1..=3)?);
            let fetched = u.choose(&[
                "type=5 bp_type=2 bp_len=8",
                "type=5 bp_type=4 bp_len=8",
                "type=(fault) bp_type=(fault) bp_len=8",
            ])?;
            format!("bp_open: (x) {fetched} flags={flags:#x} bp_addr={address:#x} pid={pid} cpu={cpu}")
        }
        18 | 19 => format!("sys_perf_event_open -> {:#x}", returned(u)?),
        20 => format!("sys_close(fd: {})", u.int_in_range(3..=6)?),
        21 => format!(
            "sys_ioctl(fd: {}, cmd: {}, arg: {})",
            u.int_in_range(3..=6)?,
            u.choose(&["2400", "2401", "4008240b", "ae80", "ae41", "4080aea2"])?,
            u.int_in_range(0..=1)?
        ),
        22 => format!(
            "bp_modify: (x) fd={} cmd=0x4008240b flags={:#x} bp_type=2 bp_addr={:#x} bp_len=8",
            u.int_in_range(3..=6)?,
            flags(u)?,
            address(u)?
        ),
        23 => {
            let offset = 0x350 + 8 * u.int_in_range(0..=8)?;
            format!(
                "sys_ptrace(request: 6, pid: {}, addr: {offset:#x}, data: {:#x})",
                self::pid(u)?,
                u.choose(&[0, 0x1000, 0x000d_0001, 0x55])?
            )
        }
        24 => format!("sys_ptrace -> {:#x}", returned(u)?),
        25 => format!(
            "set_debugregs: (x) fd=3 cmd=0x4080aea2 db0={:#x} dr6=0xffff0ff0 dr7={:#x}",
            address(u)?,
            u.arbitrary::<u16>()?
        ),
        26 => format!(
            "set_guest_debug: (x) control={:#x} dr0={:#x} dr7={:#x}",
            u.arbitrary::<u32>()?,
            address(u)?,
            u.arbitrary::<u16>()?
        ),
        27 => format!("guest_dr7: (x) value={:#x}", u.arbitrary::<u32>()?),
        28 => format!("install: (x) addr={:#x} type=2 len=8", address(u)?),
        29 => format!("uninstall: (x) addr={:#x}", address(u)?),
        30 => (*u.choose(&["restore: (x)", "guest_sync: (x)", "tracing_mark_write: phase p: x"])?).to_owned(),
        _ => {
            text.push_str("CPU:1 [LOST 7 EVENTS]\n");
            return Ok(());
        }
    };
    let _ = writeln!(text, "{:>16}-{pid:<6} [{cpu:03}] d..1. 1.000000: {event}", "a");
    Ok(())
}

/// Few, so that they meet; 0 is the idle task.
fn pid(u: &mut Unstructured<'_>) -> Result<i32> {
    u.int_in_range(0..=4)
}

fn address(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(*u.choose(&[0x1000, 0x1000, 0x2000, 0x2001, 0xffff_8880_0000_0000])?)
}

fn flags(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(u64::from(u.arbitrary::<u8>()?) & 0x77 | u64::from(u.arbitrary::<u8>()? & 3) << 36)
}

/// A descriptor, or an errno.
fn returned(u: &mut Unstructured<'_>) -> Result<i64> {
    Ok(*u.choose(&[3, 4, 5, 6, 0, -1, -28, -22])?)
}

fn step(u: &mut Unstructured<'_>, cpu: u32, steps: &mut String) -> Result<()> {
    let pc = *u.choose(&[KERNEL, "1000"])?;
    let what = match u.int_in_range(0..=7)? {
        0..=2 => format!("W {} {:x}", u.int_in_range(0..=7)?, address(u)?),
        3 => format!("R {}", u.int_in_range(0..=7)?),
        4 | 5 => "E".to_owned(),
        _ => format!("M {} 1", u.choose(&["install", "uninstall", "restore", "noist_exc_debug", "exc_nmi"])?),
    };
    let _ = writeln!(steps, "{cpu} {pc} {what}");
    Ok(())
}
