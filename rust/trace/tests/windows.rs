//! Rows that act elsewhere than where they stand, on traces small enough to read.

use debugreg_model::{Options, Policy};
use debugreg_trace::{Trace, Verify, replay};

fn verify(text: &str) -> Verify {
    let trace = Trace::parse("made up", text.as_bytes());
    assert_eq!(trace.counts.unreadable, 0, "{text}");
    let policy = Policy::parse("debian-6.12").expect("named");
    let replay = replay(&trace, policy, Options::default(), true, |_| true).expect("not stopped");
    replay.verify.expect("asked for")
}

/// A line of task `comm` with this pid, on this CPU.
fn line(task: &str, cpu: u16, event: &str) -> String {
    format!("{task:>20} [{cpu:03}] d..1.     1.000000: {event}\n")
}

fn switch(cpu: u16, from: &str, to: &str) -> String {
    let (pid, next) = (from.rsplit('-').next().unwrap(), to.rsplit('-').next().unwrap());
    let event = format!(
        "sched_switch: prev_comm=x prev_pid={pid} prev_prio=120 prev_state=R ==> next_comm=y next_pid={next} next_prio=120"
    );
    line(from, cpu, &event)
}

fn open(pid: i32, cpu: i32, address: u64) -> String {
    format!(
        "bp_open: (syscalls.sys_enter_perf_event_open) type=5 flags=0x60 bp_type=2 bp_addr={address:#x} bp_len=8 pid={pid} cpu={cpu}"
    )
}

#[test]
fn an_open_on_a_running_guests_thread_acts_after_the_exit_that_it_causes() {
    let text = [
        switch(0, "<idle>-0", "vmm-7"),
        switch(1, "<idle>-0", "gdb-8"),
        line("vmm-7", 0, "kvm_entry: vcpu 0, rip 0x1000"),
        line("gdb-8", 1, &open(7, -1, 0x1000)),
        line(
            "vmm-7",
            0,
            "kvm_exit: vcpu 0 reason interrupt rip 0x1000 info1 0x0 info2 0x0 intr_info 0x0 error_code 0x0",
        ),
        line("vmm-7", 0, "install: (arch_install_hw_breakpoint+0x4/0x110) addr=0x1000 type=2 len=8"),
        line("vmm-7", 0, "kvm_entry: vcpu 0, rip 0x1000"),
        line("gdb-8", 1, "sys_perf_event_open -> 0x3"),
        line("vmm-7", 0, "kvm_exit: vcpu 0 reason io rip 0x1000 info1 0x0 info2 0x0 intr_info 0x0 error_code 0x0"),
        line("vmm-7", 0, "restore: (hw_breakpoint_restore+0x4/0x80)"),
    ];
    let verify = verify(&text.concat());
    assert!(verify.is_exact(), "{verify:#?}");
    assert_eq!((verify.install.observed, verify.restore.observed), (1, 1));
}

#[test]
fn an_open_that_slept_acts_before_its_caller_is_preempted() {
    let asleep = switch(0, "vmm-7", "<idle>-0").replace("prev_state=R", "prev_state=D");
    let preempted = switch(0, "vmm-7", "other-9").replace("prev_state=R", "prev_state=R+");
    let text = [
        switch(0, "<idle>-0", "vmm-7"),
        line("vmm-7", 0, &open(0, -1, 0x1000)),
        asleep,
        switch(0, "<idle>-0", "vmm-7"),
        line("vmm-7", 0, "install: (arch_install_hw_breakpoint+0x4/0x110) addr=0x1000 type=2 len=8"),
        preempted,
        line("vmm-7", 0, "uninstall: (arch_uninstall_hw_breakpoint+0x4/0xe0) addr=0x1000"),
        switch(0, "other-9", "vmm-7"),
        line("vmm-7", 0, "install: (arch_install_hw_breakpoint+0x4/0x110) addr=0x1000 type=2 len=8"),
        line("vmm-7", 0, "sys_perf_event_open -> 0x3"),
    ];
    let verify = verify(&text.concat());
    assert!(verify.is_exact(), "{verify:#?}");
    assert_eq!((verify.install.observed, verify.uninstall.observed), (2, 1));
}

#[test]
fn a_refused_open_does_nothing_although_the_model_would_allow_it() {
    let text = [
        switch(0, "<idle>-0", "vmm-7"),
        line("vmm-7", 0, &open(0, -1, 0x1000)),
        line("vmm-7", 0, "sys_perf_event_open -> 0xfffffffffffffff3"),
        switch(0, "vmm-7", "other-9"),
    ];
    assert!(verify(&text.concat()).is_exact());
}

#[test]
fn a_wrong_truth_is_noticed_with_its_line() {
    let text = [
        switch(0, "<idle>-0", "vmm-7"),
        line("vmm-7", 0, &open(0, -1, 0x1000)),
        line("vmm-7", 0, "install: (arch_install_hw_breakpoint+0x4/0x110) addr=0x2000 type=2 len=8"),
        line("vmm-7", 0, "sys_perf_event_open -> 0x3"),
    ];
    let verify = verify(&text.concat());
    assert!(!verify.is_exact());
    let first = &verify.differences[0];
    assert_eq!((first.line, first.cpu), (2, 0));
    assert_eq!((&*first.predicted, &*first.observed), ("install 0x1000", "install 0x2000"));
}
