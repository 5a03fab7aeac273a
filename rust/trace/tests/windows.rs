//! Rows that act elsewhere than where they stand, and what lines leave open, on traces small enough to read.

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

const UNINSTALL: &str = "uninstall: (arch_uninstall_hw_breakpoint+0x4/0xe0) addr=0x1000";

/// A task on one CPU closes a counter of the other, which prints lines of its own before it is interrupted.
fn remote_close(between: &str, uninstall: &str) -> Verify {
    let text = [
        switch(0, "<idle>-0", "gdb-8"),
        switch(1, "<idle>-0", "worker-9"),
        line("gdb-8", 0, &open(-1, 1, 0x1000)),
        line("worker-9", 1, "install: (arch_install_hw_breakpoint+0x4/0x110) addr=0x1000 type=2 len=8"),
        line("gdb-8", 0, "sys_perf_event_open -> 0x3"),
        line("gdb-8", 0, "sys_close(fd: 3)"),
        between.to_owned(),
        uninstall.to_owned(),
        line("gdb-8", 0, "sys_close -> 0x0"),
        switch(1, "<idle>-0", "worker-9"),
    ];
    verify(&text.concat())
}

#[test]
fn what_one_cpu_asks_of_another_comes_before_the_answer() {
    let away = switch(1, "worker-9", "<idle>-0");
    let (at_once, late) = (line("worker-9", 1, UNINSTALL), line("<idle>-0", 1, UNINSTALL));
    for (between, uninstall) in [("", &at_once), (&away, &late)] {
        let verify = remote_close(between, uninstall);
        assert!(verify.is_exact(), "{verify:#?}");
        assert_eq!(verify.uninstall.matched, 1);
    }
    assert!(!remote_close(&away, "").is_exact());
}

#[test]
fn a_close_may_be_carried_out_after_its_return() {
    let text = |end: [String; 2]| {
        let begin = [
            switch(0, "<idle>-0", "vmm-7"),
            line("vmm-7", 0, &open(7, -1, 0x1000)),
            line("vmm-7", 0, "install: (arch_install_hw_breakpoint+0x4/0x110) addr=0x1000 type=2 len=8"),
            line("vmm-7", 0, "sys_perf_event_open -> 0x3"),
            line("vmm-7", 0, "sys_close(fd: 3)"),
        ];
        begin.concat() + &end.concat() + &switch(0, "vmm-7", "<idle>-0")
    };
    let returns = || line("vmm-7", 0, "sys_close -> 0x0");
    let uninstall = || line("vmm-7", 0, UNINSTALL);
    for end in [[uninstall(), returns()], [returns(), uninstall()]] {
        let verify = verify(&text(end));
        assert!(verify.is_exact(), "{verify:#?}");
        assert_eq!(verify.uninstall.matched, 1);
    }
    assert!(!verify(&text([returns(), String::new()])).is_exact());
}

/// The lines of an exit: what comes before `sched_process_exit`.
fn exits(before: &[String]) -> Verify {
    let text = [
        switch(0, "<idle>-0", "vmm-7"),
        line("vmm-7", 0, &open(7, -1, 0x1000)),
        line("vmm-7", 0, "install: (arch_install_hw_breakpoint+0x4/0x110) addr=0x1000 type=2 len=8"),
        line("vmm-7", 0, "sys_perf_event_open -> 0x3"),
    ];
    let end = line("vmm-7", 0, "sched_process_exit: comm=vmm pid=7 prio=120");
    verify(&(text.concat() + &before.concat() + &end))
}

#[test]
fn an_exiting_task_may_wait_after_its_counters_have_left() {
    let blocked = switch(0, "vmm-7", "<idle>-0").replace("prev_state=R", "prev_state=D");
    let preempted = switch(0, "vmm-7", "<idle>-0").replace("prev_state=R", "prev_state=R+");
    let again = switch(0, "<idle>-0", "vmm-7");
    let uninstall = || line("vmm-7", 0, UNINSTALL);
    let install = line("vmm-7", 0, "install: (arch_install_hw_breakpoint+0x4/0x110) addr=0x1000 type=2 len=8");
    for away in [&blocked, &preempted] {
        // It leaves the CPU without them.
        let after = exits(&[uninstall(), away.clone(), again.clone()]);
        assert!(after.is_exact(), "{after:#?}");
        assert_eq!(after.uninstall.matched, 1);
        // It leaves with them, and exits when it is back.
        let before = exits(&[away.clone(), uninstall(), again.clone(), install.clone(), uninstall()]);
        assert!(before.is_exact(), "{before:#?}");
        assert_eq!(before.uninstall.matched, 2);
    }
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

const INSTALL: &str = "install: (arch_install_hw_breakpoint+0x4/0x110) addr=0x1000 type=2 len=8";

/// What is not determined: the lines, and part of the reason.
fn undetermined(verify: &Verify) -> Vec<(u32, &str)> {
    verify.undetermined.iter().map(|(line, reason)| (*line, &**reason)).collect()
}

#[test]
fn a_breakpoint_from_before_is_undetermined_until_it_goes() {
    let text = [
        switch(0, "<idle>-0", "old-7"),
        line("old-7", 0, INSTALL),
        switch(0, "old-7", "<idle>-0"),
        line("<idle>-0", 0, UNINSTALL),
        switch(0, "<idle>-0", "old-7"),
        line("old-7", 0, INSTALL),
        line("old-7", 0, "sys_close(fd: 3)"),
        line("old-7", 0, UNINSTALL),
        line("old-7", 0, &open(0, -1, 0x2000)),
        line("old-7", 0, "install: (arch_install_hw_breakpoint+0x4/0x110) addr=0x2000 type=2 len=8"),
        line("old-7", 0, "sys_perf_event_open -> 0x3"),
    ];
    let verify = verify(&text.concat());
    assert!(verify.is_exact(), "{verify:#?}");
    assert_eq!((verify.install.observed, verify.install.undetermined), (1, 2));
    assert_eq!((verify.uninstall.observed, verify.uninstall.undetermined), (0, 2));
    let why = "task 7 has a breakpoint that no line asks for";
    assert_eq!(undetermined(&verify), [(1, why), (3, why), (5, why), (7, why)]);
}

#[test]
fn a_breakpoint_that_was_not_there_before_is_a_difference() {
    let text = [
        switch(0, "<idle>-0", "old-7"),
        switch(0, "old-7", "<idle>-0"),
        switch(0, "<idle>-0", "old-7"),
        line("old-7", 0, INSTALL),
    ];
    let before = verify(&text.concat());
    assert!(!before.is_exact());
    assert_eq!((before.differences[0].line, before.undetermined), (3, vec![]));
    // Unless a line between tells that something is switched on, and not what.
    let text = [&text[..2], &[line("gdb-8", 1, "sys_ioctl(fd: 9, cmd: 2400, arg: 0)")], &text[2..]].concat();
    let verify = verify(&text.concat());
    assert!(verify.is_exact(), "{verify:#?}");
    assert_eq!(undetermined(&verify), [(4, "task 7 has a breakpoint that no line asks for")]);
}

#[test]
fn a_known_breakpoint_that_does_not_come_is_a_difference_whatever_else_comes() {
    let text = [
        switch(0, "<idle>-0", "old-7"),
        line("old-7", 0, &open(0, -1, 0x2000)),
        line("old-7", 0, INSTALL),
        line("old-7", 0, "sys_perf_event_open -> 0x3"),
    ];
    let verify = verify(&text.concat());
    assert_eq!(verify.differences[0].line, 2, "{verify:#?}");
    assert_eq!(
        (&*verify.differences[0].predicted, &*verify.differences[0].observed),
        ("install 0x2000", "install 0x1000")
    );
}

#[test]
fn an_exit_may_be_on_its_way_when_the_trace_ends() {
    let opened = [
        switch(0, "<idle>-0", "old-7"),
        line("old-7", 0, &open(0, -1, 0x1000)),
        line("old-7", 0, INSTALL),
        line("old-7", 0, "sys_perf_event_open -> 0x3"),
        line("old-7", 0, UNINSTALL),
    ];
    let preempted = switch(0, "old-7", "other-9").replace("prev_state=R", "prev_state=R+");
    let verify_with = |end: String| verify(&(opened.concat() + &preempted + &end));
    let cut = verify_with(String::new());
    assert!(cut.is_exact(), "{cut:#?}");
    let why = "task 7 gives its breakpoints up, and no line tells why";
    assert_eq!(undetermined(&cut), [(4, why), (6, why)]);
    // The line that tells why.
    let exit = line("old-7", 0, "sched_process_exit: comm=old pid=7 prio=120");
    let whole = verify_with(switch(0, "other-9", "old-7") + &exit);
    assert!(whole.is_exact() && whole.undetermined.is_empty(), "{whole:#?}");
    assert_eq!(whole.uninstall.observed, 1);
    // Who sleeps does not exit.
    let asleep = switch(0, "old-7", "other-9").replace("prev_state=R", "prev_state=S");
    assert!(!verify(&(opened.concat() + &asleep + &switch(0, "other-9", "<idle>-0"))).is_exact());
}

#[test]
fn what_a_tracer_left_in_a_register_is_not_known() {
    let text = [
        switch(0, "<idle>-0", "gdb-8"),
        line("gdb-8", 0, "sys_ptrace(request: 6, pid: 7, addr: 388, data: d0001)"),
        line("gdb-8", 0, "sys_ptrace -> 0x0"),
        switch(0, "gdb-8", "old-7"),
        line("old-7", 0, INSTALL),
    ];
    let unknown = verify(&text.concat());
    assert!(unknown.is_exact(), "{unknown:#?}");
    assert_eq!(undetermined(&unknown), [(4, "task 7 has a breakpoint that no line asks for")]);
    let address = line("gdb-8", 0, "sys_ptrace(request: 6, pid: 7, addr: 350, data: 1000)");
    let known = verify(&[&text[..1], &[address, text[2].clone()], &text[1..]].concat().concat());
    assert!(known.is_exact() && known.undetermined.is_empty(), "{known:#?}");
    assert_eq!(known.install.observed, 1);
}

#[test]
fn what_a_counter_is_changed_into_may_not_be_read() {
    let text = [
        switch(0, "<idle>-0", "old-7"),
        line("old-7", 0, &open(0, -1, 0x2000)),
        line("old-7", 0, "install: (arch_install_hw_breakpoint+0x4/0x110) addr=0x2000 type=2 len=8"),
        line("old-7", 0, "sys_perf_event_open -> 0x3"),
        line(
            "old-7",
            0,
            "bp_modify: (syscalls.sys_enter_ioctl) fd=3 cmd=0x4008240b type=5 flags=0x60 bp_type=2 bp_addr=(fault) bp_len=8",
        ),
        line("old-7", 0, "sys_ioctl(fd: 3, cmd: 4008240b, arg: 7ffeea475ab0)"),
        line("old-7", 0, "uninstall: (arch_uninstall_hw_breakpoint+0x4/0xe0) addr=0x2000"),
        line("old-7", 0, INSTALL),
        line("old-7", 0, "sys_close(fd: 3)"),
        line("old-7", 0, UNINSTALL),
        line("old-7", 0, &open(0, -1, 0x3000)),
        line("old-7", 0, "install: (arch_install_hw_breakpoint+0x4/0x110) addr=0x3000 type=2 len=8"),
        line("old-7", 0, "sys_perf_event_open -> 0x3"),
    ];
    let verify = verify(&text.concat());
    assert!(verify.is_exact(), "{verify:#?}");
    assert_eq!((verify.install.observed, verify.install.undetermined), (2, 1));
    let lines: Vec<u32> = verify.undetermined.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [6, 9]);
}

fn entry(rip: u64) -> String {
    line("vmm-7", 0, &format!("kvm_entry: vcpu 0, rip {rip:#x}"))
}

fn exit(reason: &str, rip: u64) -> String {
    let columns = "info1 0x0 info2 0x0 intr_info 0x00000000 error_code 0x00000000";
    line("vmm-7", 0, &format!("kvm_exit: vcpu 0 reason {reason} rip {rip:#x} {columns}"))
}

#[test]
fn the_first_exit_may_read_registers_back_that_were_handed_out_before() {
    let sync = line("vmm-7", 0, "guest_sync: (svm_sync_dirty_debug_regs+0x4/0x90 [kvm_amd])");
    for head in [vec![], vec![entry(0x1000)]] {
        let text = [head, vec![exit("io", 0x1000), sync.clone(), entry(0x1002), exit("io", 0x1004)]].concat();
        let first = verify(&text.concat());
        assert!(first.is_exact(), "{first:#?}");
        assert_eq!((first.sync.observed, first.sync.undetermined), (0, 1));
        // From then on it is known.
        let second = verify(&(text.concat() + &sync));
        assert_eq!(second.differences.len(), 1, "{second:#?}");
    }
}

#[test]
fn whether_a_guest_has_a_debugger_shows_where_it_goes_on() {
    let sync = line("vmm-7", 0, "guest_sync: (svm_sync_dirty_debug_regs+0x4/0x90 [kvm_amd])");
    let head = [entry(0x1000), exit("io", 0x1000), entry(0x1002), exit("write_dr7", 0x1004)].concat();
    // It tries again: the window is open, and what was written is read back.
    let again = head.clone() + &entry(0x1004) + &exit("io", 0x1009);
    assert!(verify(&(again.clone() + &sync + &entry(0x1009))).is_exact());
    assert!(!verify(&(again + &entry(0x1009))).is_exact());
    // It goes past it: that was emulated.
    let past = verify(&(head + &entry(0x1007) + &exit("io", 0x1009)));
    assert!(past.is_exact(), "{past:#?}");
    assert!(past.undetermined.iter().any(|(_, why)| why.contains("debugger")), "{past:#?}");
}
