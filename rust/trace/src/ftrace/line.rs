//! What stands in front of an event: who, where, when, and the event's name.
//!
//! `trace_print_context` and `trace_print_lat_context` of Linux v6.18 `kernel/trace/trace_output.c`, and the same
//! columns as trace-cmd and perf print them. A command name may hold spaces, dashes, colons, slashes and brackets, so
//! it is never read: the kernel pads it to 16 bytes (8 in latency format), which puts the dash behind it at a fixed
//! place. Where the columns have moved (a prefix with the name of a tracing instance, a pasted line that lost its
//! indent) the first `[cpu]` with a pid before it and a time behind it counts.

use super::fields::{Bare, leading_number, number, span};

/// Width of a command name in the long form of a line.
const COMM: usize = 16;

/// Width of a command name in latency format.
const SHORT_COMM: usize = 8;

/// What divides the name of an event from the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Separator {
    /// `kvm_entry: vcpu 0`
    Colon,
    /// `sys_close(fd: 4)`
    Parenthesis,
    /// `sys_close -> 0x0`
    Arrow,
    /// `do_sys_open <-do_syscall_64`: the function tracer
    Caller,
}

/// A line, divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head<'a> {
    pub(super) cpu: u16,
    pub(super) pid: i32,
    pub(super) time_ns: Option<u64>,
    pub(super) name: &'a [u8],
    pub(super) separator: Separator,
    pub(super) payload: &'a [u8],
}

/// Divides a line. `None` if it is not shaped like an event, or does not name its CPU.
pub(super) fn head(line: &[u8]) -> Option<Head<'_>> {
    let long = match line.get(COMM) {
        Some(b'-') => dashed(&line[COMM + 1..]),
        Some(b' ') => spaced(&line[COMM..]),
        _ => None,
    };
    long.or_else(|| latency(line)).or_else(|| moved(line))
}

/// `24286   (  24286) [000] d..2.  3146.262963: ...`, from the pid on.
fn dashed(text: &[u8]) -> Option<Head<'_>> {
    let (pid, rest) = leading_number(text)?;
    // record-tgid: `(  24286)`, or dashes where the group is not known.
    let rest = gap(rest)?;
    let rest = match rest.strip_prefix(b"(") {
        Some(group) => gap(&group[memchr::memchr(b')', group)? + 1..])?,
        None => rest,
    };
    located(pid, rest)
}

/// `  24358 [000]  3148.972590: ...` and `24358/24358 [000] ...` of perf, or the verbose form of the kernel, from the
/// blanks before the pid on.
fn spaced(text: &[u8]) -> Option<Head<'_>> {
    let (mut pid, mut rest) = leading_number(gap(text)?)?;
    if let Some(thread) = rest.strip_prefix(b"/") {
        (pid, rest) = leading_number(thread)?;
    }
    let rest = gap(rest)?;
    if rest.starts_with(b"[") { located(pid, rest) } else { verbose(pid, rest) }
}

/// `0 1 00000002 00000000 [bb8829b3] 17.187ms (+0.034ms): ...`: CPU, flags, preemption count, index, microseconds in
/// hex, and two times relative to other lines. With a counter for a clock the bracket holds its 16 digits, and no `ms`
/// follows.
fn verbose(pid: u64, text: &[u8]) -> Option<Head<'_>> {
    let (cpu, mut rest) = leading_number(text)?;
    for _ in 0..3 {
        let word = gap(rest)?;
        let length = span(word, |byte| byte.is_ascii_hexdigit());
        rest = if length == 0 { return None } else { &word[length..] };
    }
    let stamp = gap(rest)?.strip_prefix(b"[")?;
    let (digits, rest) = stamp.split_at(memchr::memchr(b']', stamp)?);
    let stamp = number(digits, Bare::Hex)?;
    let end = memchr::memmem::find(rest, b"): ")?;
    let in_microseconds = rest[..end].ends_with(b"ms");
    let time_ns = if in_microseconds { Some(stamp.checked_mul(1000)?) } else { None };
    named(cpu, pid, time_ns, &rest[end + 2..])
}

/// `    bash-24286     0d..2. 17187us+: ...`: the CPU has no bracket, and the flags stick to it.
fn latency(line: &[u8]) -> Option<Head<'_>> {
    let (pid, rest) = leading_number(line.get(SHORT_COMM + 1..).filter(|_| line[SHORT_COMM] == b'-')?)?;
    let (cpu, rest) = leading_number(gap(rest)?)?;
    let flags = span(rest, |byte| byte != b' ');
    if !is_flags(&rest[..flags]) {
        return None;
    }
    let (time_ns, rest) = time(gap(&rest[flags..])?)?;
    named(cpu, pid, time_ns, rest)
}

/// A line whose columns are not where they should be.
fn moved(line: &[u8]) -> Option<Head<'_>> {
    memchr::memchr_iter(b'[', line).find_map(|bracket| {
        let mut before = line[..bracket].trim_ascii_end();
        if before.len() == bracket {
            return None;
        }
        if let Some(group) = before.strip_suffix(b")") {
            let open = memchr::memrchr(b'(', group)?;
            before = group[..open].trim_ascii_end();
        }
        let digits = before.len() - before.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
        match before[..digits].last()? {
            b'-' | b' ' | b'/' => located(leading_number(&before[digits..])?.0, &line[bracket..]),
            _ => None,
        }
    })
}

/// `[000] d..2.  3146.262963: ...`
fn located(pid: u64, text: &[u8]) -> Option<Head<'_>> {
    let (cpu, rest) = leading_number(text.strip_prefix(b"[")?)?;
    let rest = gap(rest.strip_prefix(b"]")?)?;
    // The flags are there or not, by an option of the kernel and by the release of trace-cmd.
    if let Some((time_ns, rest)) = time(rest) {
        return named(cpu, pid, time_ns, rest);
    }
    let flags = span(rest, |byte| byte != b' ');
    if !is_flags(&rest[..flags]) {
        return None;
    }
    let (time_ns, rest) = time(gap(&rest[flags..])?)?;
    named(cpu, pid, time_ns, rest)
}

/// Four flags on old kernels, five now, up to eight with `PREEMPT_RT`; the first one is never a digit.
fn is_flags(word: &[u8]) -> bool {
    (3..=10).contains(&word.len()) && !word[0].is_ascii_digit()
}

/// A time and its colon: `3146.262963:` in seconds (to six places or nine), `17187us+:` in microseconds with a mark for
/// long delays, or `314634:` of a clock without a unit.
fn time(text: &[u8]) -> Option<(Option<u64>, &[u8])> {
    let (whole, rest) = leading_number(text)?;
    if let Some(rest) = rest.strip_prefix(b".") {
        let (places, behind) = leading_number(rest)?;
        let length = rest.len() - behind.len();
        let nanoseconds = places * 10u64.pow(9u32.checked_sub(length as u32)?);
        let time = whole.checked_mul(1_000_000_000)?.checked_add(nanoseconds)?;
        return Some((Some(time), behind.strip_prefix(b":")?));
    }
    if let Some(rest) = rest.strip_prefix(b"us") {
        let rest = rest.strip_prefix(b":").or_else(|| rest.get(1..)?.strip_prefix(b":"))?;
        return Some((Some(whole.checked_mul(1000)?), rest));
    }
    Some((None, rest.strip_prefix(b":")?))
}

/// The event, from behind the colon of the time on.
fn named(cpu: u64, pid: u64, time_ns: Option<u64>, text: &[u8]) -> Option<Head<'_>> {
    let mut text = gap(text)?;
    // trace-cmd --ts-diff: `(+2)`.
    if text.starts_with(b"(+") {
        text = gap(&text[memchr::memchr(b')', text)? + 1..])?;
    }
    // perf: the sample period.
    let digits = span(text, |byte| byte.is_ascii_digit());
    if digits > 0 && text[digits..].starts_with(b" ") {
        text = gap(&text[digits..])?;
    }
    let length = span(text, |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b':' | b'-' | b'/'));
    let (name, rest) = text.split_at(length);
    let (name, separator, payload) = if let Some(name) = name.strip_suffix(b":") {
        (name, Separator::Colon, if rest.is_empty() { rest } else { gap(rest).unwrap_or(rest) })
    } else if let Some(payload) = rest.strip_prefix(b"(") {
        (name, Separator::Parenthesis, payload)
    } else if let Some(payload) = rest.strip_prefix(b" -> ") {
        (name, Separator::Arrow, payload)
    } else {
        (name, Separator::Caller, rest.strip_prefix(b" <-")?)
    };
    if name.is_empty() {
        return None;
    }
    Some(Head { cpu: cpu.try_into().ok()?, pid: pid.try_into().ok()?, time_ns, name, separator, payload })
}

/// Behind one blank or more.
fn gap(text: &[u8]) -> Option<&[u8]> {
    text.first().filter(|byte| byte.is_ascii_whitespace()).map(|_| text.trim_ascii_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CPU, pid, time and name of a line.
    fn read(line: &str) -> Option<(u16, i32, Option<u64>, &str)> {
        let head = head(line.as_bytes())?;
        Some((head.cpu, head.pid, head.time_ns, std::str::from_utf8(head.name).unwrap()))
    }

    const T: Option<u64> = Some(3_146_262_963_000);

    #[test]
    fn every_option_of_tracefs_that_keeps_the_cpu_is_read() {
        let cases = [
            ("            bash-24286   [000] d..2.  3146.262963: sched_switch: x", (0, 24286, T, "sched_switch")),
            (
                "            bash-24286   (  24286) [000] d..2.  3146.262963: sched_switch: x",
                (0, 24286, T, "sched_switch"),
            ),
            (
                "           <...>-2618    (-------) [001] d..2.  3146.262963: sched_switch: x",
                (1, 2618, T, "sched_switch"),
            ),
            ("            bash-24286   [000]   3146.262963: sched_switch: x", (0, 24286, T, "sched_switch")),
            ("            bash-24286   [000] d..2.           11: sched_switch: x", (0, 24286, None, "sched_switch")),
            ("            bash-24286   [000] d..2. 7694832501453: sched_switch: x", (0, 24286, None, "sched_switch")),
            ("            bash-24286   [000] d..2.       314634: sched_switch: x", (0, 24286, None, "sched_switch")),
            (" memfd:sealed-91-2618    [000] d..2.  3146.262963: sched_switch: x", (0, 2618, T, "sched_switch")),
            ("     CPU 0/KVM-7289    [023] d....  3146.262963: kvm_exit: x", (23, 7289, T, "kvm_exit")),
            (" qemu-system-x86-5120  [002] d...  3146.262963: kvm_exit: x", (2, 5120, T, "kvm_exit")),
            ("              sh-113     [004] ..Zff     3146.262963: watch: (f+0x1/0x2)", (4, 113, T, "watch")),
            ("             rt-113     [004] d..h2..1  3146.262963: kvm_exit: x", (4, 113, T, "kvm_exit")),
            ("    bash-24286     0d..2. 17187us+: sched_switch: x", (0, 24286, Some(17_187_000), "sched_switch")),
            ("kworker/-41        0d..2. 17221us!: sched_switch: x", (0, 41, Some(17_221_000), "sched_switch")),
            ("kworker/-41       13d..2.    4us : sched_switch: x", (13, 41, Some(4000), "sched_switch")),
            ("kworker/-41       13d..2.   17: sched_switch: x", (13, 41, None, "sched_switch")),
            (
                "            bash   24286   0 1 00000002 00000000 [bb8829b3] 17.187ms (+0.034ms): sched_switch: x",
                (0, 24286, T, "sched_switch"),
            ),
            (
                "            bash   24286   1 1 00000002 00000000 [00000000bb8829b3] 17 (+3): sched_switch: x",
                (1, 24286, None, "sched_switch"),
            ),
        ];
        for (line, expected) in cases {
            assert_eq!(read(line), Some(expected), "{line}");
        }
    }

    #[test]
    fn trace_cmd_and_perf_lines_are_read() {
        let cases = [
            ("            bash-24286 [000]  3146.262963: sched_switch:         x", (0, 24286, T, "sched_switch")),
            ("            bash-24286 [000] d..2.  3146.262963: sched_switch:         x", (0, 24286, T, "sched_switch")),
            ("            bash-24286 [000]  3146.262963000: sched_switch:         x", (0, 24286, T, "sched_switch")),
            ("            bash-24286 [000]  3146.262963: (+2) sched_switch:         x", (0, 24286, T, "sched_switch")),
            ("    bash-24286   0d..2.  3146.262963: sched_switch:         x", (0, 24286, T, "sched_switch")),
            ("dbg3:             bash-24286 [000]  3146.262963: sched_switch:         x", (0, 24286, T, "sched_switch")),
            ("       CPU 0/KVM-7289  [023]  3146.262963: kvm_exit:             x", (23, 7289, T, "kvm_exit")),
            ("       CPU 0/KVM  7289 [023]  3146.262963:         kvm:kvm_exit: x", (23, 7289, T, "kvm:kvm_exit")),
            (
                "            perf 24358/24359 [000]  3146.262963:   sched:sched_switch: x",
                (0, 24359, T, "sched:sched_switch"),
            ),
            ("               q 20969 [001]  3146.262963:          1 mem:0x404014:x:u:            401106 main", {
                (1, 20969, T, "mem:0x404014:x:u")
            }),
        ];
        for (line, expected) in cases {
            assert_eq!(read(line), Some(expected), "{line}");
        }
    }

    #[test]
    fn lines_that_lost_their_indent_are_read_from_the_bracket() {
        let cases = [
            ("bash-24286   [000] d..2.  3146.262963: kvm_exit: x", 24286),
            ("  my-task-1-24286   (  24286) [000] d..2.  3146.262963: kvm_exit: x", 24286),
            ("CPU 0/KVM 7289 [000] 3146.262963: kvm:kvm_exit: [1] x", 7289),
            ("CPU 0/KVM 12/7289 [000] 3146.262963: kvm:kvm_exit: x", 7289),
        ];
        for (line, pid) in cases {
            let (cpu, found, time, _) = read(line).unwrap();
            assert_eq!((cpu, found, time), (0, pid, T), "{line}");
        }
    }

    #[test]
    fn a_command_name_that_looks_like_a_line_is_not_taken_for_one() {
        assert_eq!(read("a-1 [0] 1: x: y -7       [003] d..2.  3146.262963: kvm_exit: x"), Some((3, 7, T, "kvm_exit")));
        let mark =
            "             vmm-1       [000] .....     3146.262963: tracing_mark_write: x-9 [001] 1.5: kvm_exit: z";
        assert_eq!(read(mark), Some((0, 1, T, "tracing_mark_write")));
    }

    #[test]
    fn each_separator_divides_name_and_payload() {
        let prefix = "             vmm-1       [000] .....     6.5: ";
        let cases = [
            ("kvm_entry: vcpu 0", "kvm_entry", Separator::Colon, "vcpu 0"),
            ("kvm_entry:            vcpu 0", "kvm_entry", Separator::Colon, "vcpu 0"),
            ("restore:(f+0x4/0x80)", "restore", Separator::Colon, "(f+0x4/0x80)"),
            ("nothing:", "nothing", Separator::Colon, ""),
            ("sys_close(fd: 4)", "sys_close", Separator::Parenthesis, "fd: 4)"),
            ("sys_close -> 0x0", "sys_close", Separator::Arrow, "0x0"),
            ("f.isra.0 <-g", "f.isra.0", Separator::Caller, "g"),
        ];
        for (text, name, separator, payload) in cases {
            let line = format!("{prefix}{text}");
            let head = head(line.as_bytes()).unwrap();
            let found = (head.name, head.separator, head.payload);
            assert_eq!(found, (name.as_bytes(), separator, payload.as_bytes()), "{text}");
        }
    }

    #[test]
    fn what_does_not_say_where_or_what_is_not_a_line() {
        for line in [
            "",
            "sched_switch: prev_comm=bash prev_pid=24286",
            "               q 20969  2474.133392:          1 mem:0x0000000000401106:x:u:            401106 main+0x0 (/usr/bin/q)",
            "            bash-24286   [000] d..2.  3146.262963: sched_swi",
            "            bash-24286   [000] d..2.  3146.262963: ",
            "            bash-24286   [000] d..2.  3146.2629631234: kvm_exit: x",
            "            bash-24286   [65536] d..2.  3146.262963: kvm_exit: x",
            "            bash-2147483648   [000] d..2.  3146.262963: kvm_exit: x",
            "            bash-1   [000] d..2.  99999999999999.0: kvm_exit: x",
            "            bash-1   [000] 1..2.  3146.262963: kvm_exit: x",
            "            bash-1   [000] d.  3146.262963: kvm_exit: x",
            "            bash-1   [000]d..2.  3146.262963: kvm_exit: x",
            "     2.323 ( 0.031 ms): gdb/991 ptrace(request: 6, pid: 24127, addr: 0x350, data: 94723940917324)     = 0",
        ] {
            assert_eq!(read(line), None, "{line}");
        }
    }
}
