//! Whole lines and whole files.

use proptest::prelude::*;

use super::*;

/// As printed by Linux 6.12 under the recordings of this product: one line of each kind, in their order.
const RECORDED: &str = "\
# tracer: nop
#
# entries-in-buffer/entries-written: 22/24024   #P:2
#
          <idle>-0       [001] d..2.     6.625283: sched_switch: prev_comm=swapper/1 prev_pid=0 prev_prio=120 prev_state=R ==> next_comm=rcu_preempt next_pid=18 next_prio=120
             vmm-1       [000] ...1.     6.641864: sys_close(fd: 4)
             vmm-1       [000] ...1.     6.642232: sys_close -> 0x0
             vmm-1       [000] ...1.     6.837674: sys_ioctl(fd: 4, cmd: ae01, arg: 0)
             vmm-1       [000] .....     6.907466: tracing_mark_write: phase none: no breakpoint anywhere
             vmm-1       [000] .....     6.925150: sched_process_fork: comm=vmm pid=1 child_comm=vmm child_pid=139
             vmm-1       [000] d..1.     6.959080: kvm_entry: vcpu 0, rip 0x1000
             vmm-1       [000] d..1.     6.959087: kvm_exit: vcpu 0 reason npf rip 0x1000 info1 0x0000000100000014 info2 0x0000000000001000 intr_info 0x00000000 error_code 0x00000000
             vmm-1       [000] .N...     6.972736: kvm_userspace_exit: reason KVM_EXIT_IO (2)
       worker-bp-141     [000] ...1.     7.167977: sys_perf_event_open(attr_uptr: 7ffde58dd150, pid: 0, cpu: ffffffff, group_fd: ffffffff, flags: 0)
       worker-bp-141     [000] ...2.     7.168019: bp_open: (syscalls.sys_enter_perf_event_open) type=5 flags=0x60 bp_type=2 bp_addr=0x4af040 bp_len=8 pid=0 cpu=-1
       worker-bp-141     [000] d..3.     7.191821: install: (arch_install_hw_breakpoint+0x4/0x110) addr=0x4af040 type=2 len=8
       worker-bp-141     [000] ...1.     7.196235: sys_perf_event_open -> 0x7
       worker-bp-141     [000] d....     7.198430: hit: (perf_bp_event+0x4/0xc0) addr=0x4af040
       worker-bp-141     [000] d..3.     7.200000: uninstall: (arch_uninstall_hw_breakpoint+0x4/0xe0) addr=0x4af040
             vmm-1       [000] d..1.     7.282248: restore: (hw_breakpoint_restore+0x4/0x80)
             vmm-1       [000] d..1.     7.521221: guest_sync: (svm_sync_dirty_debug_regs+0x4/0x90 [kvm_amd])
             vmm-1       [000] d..1.     7.521260: guest_dr7: (svm_set_dr7+0x4/0x40 [kvm_amd]) value=0x10401
          worker-139     [000] .N...     7.373946: sched_process_exit: comm=worker pid=139 prio=120
     migration/0-21      [000] d..3.     8.434011: sched_migrate_task: comm=tracee pid=142 prio=120 orig_cpu=0 dest_cpu=1
             vmm-1       [000] ...1.     8.443511: sys_ptrace(request: 6, pid: 8e, addr: 350, data: 4af0f0)
             vmm-1       [000] ...1.     8.445999: sys_ptrace -> 0xffffffffffffffea
";

const ENTRY: &str = "       CPU 0/KVM-7289    [023] d....  2925.640965: kvm_entry: vcpu 0";

fn read(text: &str) -> (Vec<Record<'_>>, Counts) {
    let mut lines = Lines::new(text.as_bytes());
    let records = lines.by_ref().collect();
    (records, lines.counts)
}

/// How many records, and the counts.
fn count(text: &str) -> (usize, Counts) {
    let (records, counts) = read(text);
    (records.len(), counts)
}

#[test]
fn the_recorded_kinds_of_lines_are_all_known() {
    let (records, counts) = read(RECORDED);
    assert_eq!(records.len(), 22);
    assert_eq!(
        counts,
        Counts { comments: 4, entries_in_buffer: Some(22), entries_written: Some(24024), ..Counts::default() }
    );
    let first = Event::SchedSwitch { prev_pid: 0, prev_state: PrevState::Runnable, next_pid: 18 };
    assert_eq!(records[0], Record { line: 5, cpu: 1, pid: 0, time_ns: Some(6_625_283_000), event: first });
    assert_eq!(records[9].event, Event::PerfEventOpen { pid: 0, cpu: -1, group_fd: -1, flags: 0 });
    assert_eq!(records[20].event, Event::Ptrace { request: 6, pid: 142, addr: 0x350, data: 0x4a_f0f0 });
    assert_eq!(records[21].event, Event::PtraceReturn(-22));
}

#[test]
fn the_same_events_from_trace_cmd_and_perf_are_the_same() {
    let text = "\
cpus=2
version = 6
CPU 1 is empty
            bash-25273 [000]  3236.448623: sched_switch:         bash:25273 [120] R ==> CPU 0/KVM:7289 [120]
            bash-25273 [000]  3236.448623: sched_switch:         prev_comm=bash prev_pid=25273 prev_prio=120 prev_state=0 next_comm=CPU 0/KVM next_pid=7289 next_prio=120
           bash 25273 [000]  3236.448623:                 sched:sched_switch: prev_comm=bash prev_pid=25273 prev_prio=120 prev_state=R ==> next_comm=CPU 0/KVM next_pid=7289 next_prio=120
";
    let (records, counts) = read(text);
    let event = Event::SchedSwitch { prev_pid: 25273, prev_state: PrevState::Runnable, next_pid: 7289 };
    assert_eq!(records.len(), 3);
    assert!(records.iter().all(|record| (record.cpu, record.pid, record.event) == (0, 25273, event)), "{records:?}");
    assert_eq!(counts, Counts { comments: 3, ..Counts::default() });
}

#[test]
fn syscalls_are_read_in_the_style_of_each_tool() {
    let prefix = "               p-25288 [000]  3236.522018:";
    let poke = Event::Ptrace { request: 6, pid: 0x6329, addr: 0x388, data: 0x1_0001 };
    let cases = [
        ("sys_ptrace(request: 6, pid: 0x6329, addr: 0x388, data: 0x10001)", poke),
        ("sys_enter_ptrace:     request: 0x00000006, pid: 0x00006329, addr: 0x00000388, data: 0x00010001", poke),
        ("syscalls:sys_enter_ptrace: request: 0x00000006, pid: 0x00006329, addr: 0x00000388, data: 0x00010001", poke),
        ("sys_enter: NR 101 (6, 6329, 388, 10001, 0, 0)", poke),
        ("sys_exit_ptrace:      0x0", Event::PtraceReturn(0)),
        ("syscalls:sys_exit_perf_event_open: 0x3", Event::PerfEventOpenReturn(3)),
        ("sys_exit: NR 298 = 3", Event::PerfEventOpenReturn(3)),
        ("sys_read(fd: 3, buf: 7ffd, count: 10)", Event::Other("sys_read")),
        ("sys_read -> 0x10", Event::Other("sys_read")),
        ("sys_enter: NR 0 (3, 7ffd, 10, 0, 0, 0)", Event::Other("sys_enter")),
        ("print:                tracing_mark_write: phase none: x", Event::Phase { name: "none", text: "x" }),
        ("kvm_inj_exception:    [FAILED TO PARSE] exception=1 has_error=0", Event::Other("kvm_inj_exception")),
        ("mem:0x404014:rw:u:            40111c main+0x16 (/usr/bin/q)", Event::Other("mem:0x404014:rw:u")),
        ("kvm_set_dr <-kvm_emulate_instruction", Event::Other("kvm_set_dr")),
    ];
    for (text, expected) in cases {
        let line = format!("{prefix} {text}\n");
        assert_eq!(read(&line).0.first().map(|record| record.event), Some(expected), "{text}");
    }
}

#[test]
fn losses_are_counted_with_and_without_a_number() {
    let text = "CPU:1 [LOST 63745 EVENTS]\nCPU:0 [LOST EVENTS]\nCPU:0 [4096 EVENTS DROPPED]\nCPU:0 [EVENTS DROPPED]\n";
    let (records, counts) = read(text);
    assert_eq!(records, []);
    assert_eq!(counts.lost, Lost { lines: 4, uncounted_lines: 2, events: 63745 + 4096 });
    assert_eq!(counts.unreadable, 0);
}

#[test]
fn a_loss_is_counted_before_the_record_behind_it() {
    let text = format!("{ENTRY}\nCPU:23 [LOST 1 EVENTS]\n{ENTRY}\n");
    let mut lines = Lines::new(text.as_bytes());
    let mut seen = Vec::new();
    while lines.next().is_some() {
        seen.push(lines.counts().lost.lines);
    }
    assert_eq!(seen, [0, 1]);
}

#[test]
fn comments_and_blank_lines_are_no_events() {
    let (records, counts) = read("##### CPU 0 buffer started ####\n\n# nop latency trace v1.1.5 on 6.18.44\r\n   \n");
    assert_eq!((records.len(), counts.comments, counts.unreadable), (0, 2, 0));
    assert_eq!(counts.entries_written, None);
}

#[test]
fn a_line_that_was_commented_out_stays_out() {
    let (records, counts) = count(&format!("#{ENTRY}\n# {ENTRY}\n"));
    assert_eq!((records, counts.comments), (0, 2));
    let (records, _) = count("              #!-7289    [023] d....  2925.640965: kvm_entry: vcpu 0\n");
    assert_eq!(records, 1);
}

#[test]
fn a_line_without_its_cpu_is_unreadable_rather_than_guessed() {
    let text = "sched_switch: prev_comm=bash prev_pid=24286 prev_prio=120 prev_state=R ==> next_comm=sh next_pid=1 next_prio=1\n";
    let (records, counts) = count(&format!("{ENTRY}\n{text}{text}"));
    assert_eq!((records, counts.unreadable, counts.first_unreadable), (1, 2, Some(2)));
}

#[test]
fn an_event_without_what_it_needs_is_unreadable() {
    let (records, counts) =
        read("             vmm-1       [000] d..3.     7.2: uninstall: (f+0x4/0xe0) addr=(fault)\n");
    assert_eq!((records.len(), counts.unreadable, counts.unknown_events), (0, 1, 0));
}

#[test]
fn only_a_last_line_without_newline_can_be_cut_short() {
    let cut = &ENTRY[..ENTRY.len() - 4];
    let (records, cut_short) = count(&format!("{ENTRY}\n{cut}"));
    assert_eq!((records, cut_short.truncated_last_line, cut_short.unreadable), (1, true, 0));
    let (records, whole) = count(&format!("{ENTRY}\n{ENTRY}"));
    assert_eq!((records, whole.truncated_last_line, whole.unreadable), (2, false, 0));
    let (records, malformed) = count(&format!("{ENTRY}\n{cut}\n"));
    assert_eq!((records, malformed.truncated_last_line, malformed.unreadable), (1, false, 1));
}

#[test]
fn a_trace_is_told_from_other_text() {
    assert!(is_trace(ENTRY.as_bytes()));
    assert!(is_trace(b"# entries-in-buffer/entries-written: 0/0   #P:2\n"));
    assert!(is_trace(b"CPU:0 [LOST EVENTS]\n"));
    assert!(!is_trace(b"# a list\n- [1] one: two\n"));
    assert!(!is_trace(b""));
}

/// Lines that a file may hold around ours: anything without a newline.
fn garbage() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let byte = any::<u8>().prop_filter("one line", |&byte| byte != b'\n');
    proptest::collection::vec(proptest::collection::vec(byte, 0..80), 0..6)
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut lines = Lines::new(&bytes);
        let records = lines.by_ref().count();
        prop_assert!(records <= bytes.len());
    }

    /// Random bytes seldom get past the columns; this starts from lines that do.
    #[test]
    fn damaged_lines_never_panic(
        line in proptest::sample::select(RECORDED.lines().skip(4).collect::<Vec<_>>()),
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), proptest::option::of(any::<u8>())), 1..6),
    ) {
        let mut bytes = line.as_bytes().to_vec();
        for (place, byte) in edits {
            let place = place.index(bytes.len());
            match byte {
                Some(byte) => bytes[place] = byte,
                None => bytes.truncate(place + 1),
            }
        }
        let _ = Lines::new(&bytes).count();
    }

    #[test]
    fn a_line_is_found_whatever_surrounds_it(before in garbage(), after in garbage(), crlf: bool) {
        let mut bytes = Vec::new();
        for line in &before {
            bytes.extend_from_slice(line);
            bytes.push(b'\n');
        }
        bytes.extend_from_slice(ENTRY.as_bytes());
        bytes.extend_from_slice(if crlf { b"\r\n" } else { b"\n" });
        for line in &after {
            bytes.extend_from_slice(line);
            bytes.push(b'\n');
        }
        let expected = Record {
            line: before.len() as u32 + 1,
            cpu: 23,
            pid: 7289,
            time_ns: Some(2_925_640_965_000),
            event: Event::KvmEntry { vcpu: 0, rip: None },
        };
        prop_assert!(Lines::new(&bytes).any(|record| record == expected));
    }

    #[test]
    fn every_line_is_counted_once(lines in garbage()) {
        let mut bytes = lines.join(&b'\n');
        bytes.push(b'\n');
        let mut reader = Lines::new(&bytes);
        let records = reader.by_ref().count();
        let blank = lines.iter().filter(|line| line.trim_ascii().is_empty()).count().max(usize::from(lines.is_empty()));
        let counts = reader.counts();
        let counted = records + (counts.comments + counts.unreadable + counts.lost.lines) as usize + blank;
        prop_assert_eq!(counted, lines.len().max(1));
    }
}
