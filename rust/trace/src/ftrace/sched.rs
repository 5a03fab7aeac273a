//! The scheduler's tracepoints: `include/trace/events/sched.h`, and `sched_switch` as trace-cmd rewrites it.

use super::event::{Event, PrevState};
use super::fields::{Bare, int, last_field, number, skip_parenthesis, span};

/// `prev_comm=.. prev_pid=.. prev_prio=.. prev_state=S ==> next_comm=.. next_pid=.. next_prio=..`; raw output of
/// trace-cmd has no arrow and a number for the state; its plugin prints `comm:pid [prio] S ==> comm:pid [prio]`.
pub(super) fn switch(payload: &[u8]) -> Option<Event<'_>> {
    let Some((prev_pid, _, rest)) = last_field(payload, b" prev_pid=", b" prev_prio=") else {
        return rewritten_switch(payload);
    };
    let (prio, rest) = word(rest.strip_prefix(b" prev_prio=")?);
    number(prio, Bare::Decimal)?;
    let (state, rest) = word(skip_parenthesis(rest).strip_prefix(b" prev_state=")?);
    let (next_pid, _, _) = last_field(rest, b" next_pid=", b" next_prio=")?;
    Some(Event::SchedSwitch { prev_pid: int(prev_pid), prev_state: prev_state(state)?, next_pid: int(next_pid) })
}

/// A report may close with ` Latency: 12.345 usecs`, which has no bracket.
fn rewritten_switch(payload: &[u8]) -> Option<Event<'_>> {
    let (before, next_pid) = pid_before_priority(payload, memchr::memrchr(b'[', payload)?)?;
    memchr::memmem::find_iter(before, b" ==> ").find_map(|arrow| {
        let prev = &before[..arrow];
        let blank = memchr::memrchr(b' ', prev)?;
        let (_, prev_pid) = pid_before_priority(&prev[..blank], memchr::memrchr(b'[', &prev[..blank])?)?;
        Some(Event::SchedSwitch { prev_pid, prev_state: prev_state(&prev[blank + 1..])?, next_pid })
    })
}

/// Reads `comm:PID [prio]` whose bracket is at `bracket`; gives what stands before the colon, and the pid.
fn pid_before_priority(text: &[u8], bracket: usize) -> Option<(&[u8], i32)> {
    let inside = &text[bracket + 1..];
    number(&inside[..memchr::memchr(b']', inside)?], Bare::Decimal)?;
    let before = text[..bracket].strip_suffix(b" ")?;
    let colon = memchr::memrchr(b':', before)?;
    Some((&before[..colon], int(number(&before[colon + 1..], Bare::Decimal)?)))
}

/// Letters joined by `|`, a `+` behind them if the task was preempted; or a number of bits.
///
/// The bits are those of `TASK_REPORT` since 4.14: 0x10 and 0x20 are dead, 0x100 is the preempted one. Older kernels
/// agree on the dead ones and put the preempted one higher.
fn prev_state(state: &[u8]) -> Option<PrevState> {
    if let Some(bits) = number(state, Bare::Decimal) {
        return Some(match bits {
            0 => PrevState::Runnable,
            0x100.. => PrevState::Preempted,
            _ if bits & 0x30 != 0 => PrevState::Dead,
            2 => PrevState::Blocked,
            _ => PrevState::Sleeping,
        });
    }
    if state.is_empty() || !state.iter().all(|&byte| byte.is_ascii_alphabetic() || matches!(byte, b'|' | b'+')) {
        return None;
    }
    Some(if state.ends_with(b"+") {
        PrevState::Preempted
    } else if state == b"R" {
        PrevState::Runnable
    } else if state.iter().any(|byte| matches!(byte, b'X' | b'x' | b'Z')) {
        PrevState::Dead
    } else if state == b"D" {
        PrevState::Blocked
    } else {
        PrevState::Sleeping
    })
}

/// `comm=.. pid=.. prio=.. orig_cpu=.. dest_cpu=..`
pub(super) fn migrate(payload: &[u8]) -> Option<Event<'_>> {
    let (pid, _, rest) = last_field(payload, b" pid=", b" prio=")?;
    let (from, _, rest) = last_field(rest, b" orig_cpu=", b" dest_cpu=")?;
    let (to, _, _) = last_field(rest, b" dest_cpu=", b"")?;
    Some(Event::MigrateTask { pid: int(pid), from: from.try_into().ok()?, to: to.try_into().ok()? })
}

/// `comm=.. pid=.. child_comm=.. child_pid=..`
pub(super) fn fork(payload: &[u8]) -> Option<Event<'_>> {
    let (child, start, _) = last_field(payload, b" child_pid=", b"")?;
    let (parent, _, _) = last_field(&payload[..start], b" pid=", b" child_comm=")?;
    Some(Event::Fork { parent: int(parent), child: int(child) })
}

/// `comm=.. pid=.. prio=..`
pub(super) fn exit(payload: &[u8]) -> Option<Event<'_>> {
    let (pid, _, _) = last_field(payload, b" pid=", b" prio=")?;
    Some(Event::ProcessExit { pid: int(pid) })
}

/// `filename=.. pid=.. old_pid=..`
pub(super) fn exec(payload: &[u8]) -> Option<Event<'_>> {
    let (pid, _, _) = last_field(payload, b" pid=", b" old_pid=")?;
    Some(Event::ProcessExec { pid: int(pid) })
}

fn word(text: &[u8]) -> (&[u8], &[u8]) {
    text.split_at(span(text, |byte| byte != b' '))
}

#[cfg(test)]
mod tests {
    use super::PrevState::{Blocked, Dead, Preempted, Runnable, Sleeping};
    use super::*;

    fn read(payload: &str) -> Option<(i32, PrevState, i32)> {
        match switch(payload.as_bytes())? {
            Event::SchedSwitch { prev_pid, prev_state, next_pid } => Some((prev_pid, prev_state, next_pid)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_spelling_of_a_switch_is_read() {
        let cases = [
            (
                "prev_comm=bash prev_pid=24286 prev_prio=120 prev_state=R+ ==> next_comm=CPU 0/KVM next_pid=7289 next_prio=120",
                { (24286, Preempted, 7289) },
            ),
            (
                "prev_comm=CPU 0/KVM prev_pid=7289 prev_prio=-1 prev_state=S ==> next_comm=swapper/0 next_pid=0 next_prio=120",
                { (7289, Sleeping, 0) },
            ),
            (
                "prev_comm=bash prev_pid=24 prev_prio=120 prev_state=0 next_comm=CPU 0/KVM next_pid=7289 next_prio=120",
                { (24, Runnable, 7289) },
            ),
            (
                "prev_comm=bash prev_pid=0x5ede (24286) prev_prio=0x78 (120) prev_state=0x100 (256) next_comm=sh next_pid=0xa3a (2618) next_prio=0x78 (120)",
                (24286, Preempted, 2618),
            ),
            ("bash:25273 [120] R ==> CPU 0/KVM:7289 [120]", (25273, Runnable, 7289)),
            ("bash:25273 [120] S ==> kworker/0:1:41 [-1] Latency: 12.345 usecs", (25273, Sleeping, 41)),
        ];
        for (payload, expected) in cases {
            assert_eq!(read(payload), Some(expected), "{payload}");
        }
    }

    #[test]
    fn command_names_that_look_like_fields_are_not_believed() {
        let names = [
            "x",
            "",
            " prev_pid=1",
            " next_pid=1",
            " ==> next_comm=",
            " prev_state=Z",
            " prev_prio=1",
            "a b [1] ==> c:d",
        ];
        for prev in names {
            for next in names {
                let line = format!(
                    "prev_comm={prev} prev_pid=5 prev_prio=120 prev_state=S ==> next_comm={next} next_pid=9 next_prio=120"
                );
                assert_eq!(read(&line), Some((5, Sleeping, 9)), "{line}");
                let line = format!("{prev}:5 [120] S ==> {next}:9 [120]");
                assert_eq!(read(&line), Some((5, Sleeping, 9)), "{line}");
            }
            let line = format!("comm={prev} pid=5 child_comm={prev} child_pid=6");
            assert_eq!(fork(line.as_bytes()), Some(Event::Fork { parent: 5, child: 6 }), "{line}");
            let line = format!("comm={prev} pid=5 prio=120");
            assert_eq!(exit(line.as_bytes()), Some(Event::ProcessExit { pid: 5 }), "{line}");
        }
        let exec_line = b"filename=/x pid=4 old_pid=3 pid=5 old_pid=5";
        assert_eq!(exec(exec_line), Some(Event::ProcessExec { pid: 5 }));
        assert_eq!(exit(b"comm= pid=6 prio=1 pid=5 prio=120 group_dead=true"), Some(Event::ProcessExit { pid: 5 }));
    }

    #[test]
    fn a_state_is_runnable_preempted_sleeping_blocked_or_dead() {
        let cases = [
            (Runnable, &["R", "0"][..]),
            (Preempted, &["R+", "0x100", "256", "0x400", "S+"][..]),
            (Sleeping, &["S", "T", "t", "I", "P", "D|K", "1", "0x82", "128"][..]),
            (Blocked, &["D", "2"][..]),
            (Dead, &["X", "Z", "x", "X|Z", "16", "32", "0x10"][..]),
        ];
        for (expected, states) in cases {
            for state in states {
                assert_eq!(prev_state(state.as_bytes()), Some(expected), "{state}");
            }
        }
        for state in ["", "==>", "?", "-1x"] {
            assert_eq!(prev_state(state.as_bytes()), None, "{state}");
        }
    }

    #[test]
    fn migrations_name_both_cpus() {
        let event = migrate(b"comm=a dest_cpu=3 b pid=142 prio=120 orig_cpu=0 dest_cpu=17");
        assert_eq!(event, Some(Event::MigrateTask { pid: 142, from: 0, to: 17 }));
    }

    #[test]
    fn a_line_cut_short_is_not_read() {
        let line = "prev_comm=bash prev_pid=24286 prev_prio=120 prev_state=R+ ==> next_comm=CPU 0/KVM next_pid=7289 next_prio=120";
        for cut in 0..line.find(" next_prio=").unwrap() + " next_prio=".len() {
            assert_eq!(read(&line[..cut]), None, "{}", &line[..cut]);
        }
    }
}
