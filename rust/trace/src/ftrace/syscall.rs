//! The four system calls that matter: `kernel/trace/trace_syscalls.c`.
//!
//! Three spellings of a call: `sys_close(fd: 4)` of the kernel, `sys_enter_close: fd: 0x00000004` of trace-cmd and
//! perf, and `sys_enter: NR 3 (4, ..)` of the raw tracepoint. The numbers of the last are those of x86-64.

use super::event::Event;
use super::fields::{Bare, Fields, int, leading_number, number};

/// A system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    PerfEventOpen,
    Close,
    Ioctl,
    Ptrace,
}

impl Call {
    pub(super) fn from_name(name: &[u8]) -> Option<Self> {
        match name {
            b"perf_event_open" => Some(Self::PerfEventOpen),
            b"close" => Some(Self::Close),
            b"ioctl" => Some(Self::Ioctl),
            b"ptrace" => Some(Self::Ptrace),
            _ => None,
        }
    }

    /// Source: `arch/x86/entry/syscalls/syscall_64.tbl`.
    fn from_number(number: u64) -> Option<Self> {
        match number {
            298 => Some(Self::PerfEventOpen),
            3 => Some(Self::Close),
            16 => Some(Self::Ioctl),
            101 => Some(Self::Ptrace),
            _ => None,
        }
    }

    /// The names of the arguments, in order.
    fn arguments(self) -> &'static [&'static [u8]] {
        match self {
            Self::PerfEventOpen => &[b"attr_uptr", b"pid", b"cpu", b"group_fd", b"flags"],
            Self::Close => &[b"fd"],
            Self::Ioctl => &[b"fd", b"cmd", b"arg"],
            Self::Ptrace => &[b"request", b"pid", b"addr", b"data"],
        }
    }

    /// The call is entered, its arguments are named.
    pub(super) fn entered(self, payload: &[u8]) -> Option<Event<'_>> {
        let mut values = [None; 5];
        for field in Fields(payload) {
            if let Some(position) = self.arguments().iter().position(|&name| name == field.name) {
                values[position] = field.value();
            }
        }
        self.event(values)
    }

    fn event(self, values: [Option<u64>; 5]) -> Option<Event<'static>> {
        Some(match (self, values) {
            (Self::PerfEventOpen, [_, Some(pid), Some(cpu), Some(group_fd), Some(flags)]) => {
                Event::PerfEventOpen { pid: int(pid), cpu: int(cpu), group_fd: int(group_fd), flags }
            }
            (Self::Close, [Some(fd), ..]) => Event::Close { fd: int(fd) },
            (Self::Ioctl, [Some(fd), Some(cmd), Some(arg), ..]) => Event::Ioctl { fd: int(fd), cmd, arg },
            (Self::Ptrace, [Some(request), Some(pid), Some(addr), Some(data), _]) => {
                Event::Ptrace { request: request.cast_signed(), pid: int(pid), addr, data }
            }
            _ => return None,
        })
    }

    /// The call returns: `0x3`, or raw `nr=298 ret=3`.
    pub(super) fn returned(self, payload: &[u8]) -> Option<Event<'_>> {
        let value = number(payload, Bare::Hex)
            .or_else(|| Fields(payload).find(|field| field.name == b"ret").and_then(|field| field.value()))?;
        Some(self.return_event(value))
    }

    fn return_event(self, value: u64) -> Event<'static> {
        // A kernel of 32 bits prints -ENOSPC as 0xffffffe4. No call returns such a value and means it: MAX_ERRNO is
        // 4095.
        let value =
            if (0xffff_f001..=0xffff_ffff).contains(&value) { i64::from(int(value)) } else { value.cast_signed() };
        match self {
            Self::PerfEventOpen => Event::PerfEventOpenReturn(value),
            Self::Close => Event::CloseReturn(value),
            Self::Ioctl => Event::IoctlReturn(value),
            Self::Ptrace => Event::PtraceReturn(value),
        }
    }
}

/// `NR 101 (6, 5e3f, 388, 10001, 0, 0)`, the arguments in hex. Gives `other` for a call that is not one of ours.
pub(super) fn entered_by_number<'a>(payload: &'a [u8], other: Event<'a>) -> Option<Event<'a>> {
    let Some((call, rest)) = numbered(payload) else { return Some(other) };
    let list = rest.strip_prefix(b"(")?;
    let mut values = [None; 5];
    for (value, word) in values.iter_mut().zip(list[..memchr::memchr(b')', list)?].split(|&byte| byte == b',')) {
        *value = number(word.trim_ascii(), Bare::Hex);
    }
    call.event(values)
}

/// `NR 298 = 3`, the value in decimal (`%ld`). Gives `other` for a call that is not one of ours.
pub(super) fn returned_by_number<'a>(payload: &'a [u8], other: Event<'a>) -> Option<Event<'a>> {
    let Some((call, rest)) = numbered(payload) else { return Some(other) };
    Some(call.return_event(number(rest.strip_prefix(b"= ")?, Bare::Decimal)?))
}

fn numbered(payload: &[u8]) -> Option<(Call, &[u8])> {
    let (number, rest) = leading_number(payload.strip_prefix(b"NR ")?)?;
    Some((Call::from_number(number)?, rest.trim_ascii_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_call_is_read() {
        let open = Event::PerfEventOpen { pid: 0, cpu: -1, group_fd: -1, flags: 8 };
        let poke = Event::Ptrace { request: 6, pid: 0x5e3f, addr: 0x388, data: 0x10001 };
        let cases = [
            (
                Call::PerfEventOpen,
                "attr_uptr: 0x7ffd24939b70, pid: 0, cpu: 0xffffffff, group_fd: 0xffffffff, flags: 8)",
                open,
            ),
            (
                Call::PerfEventOpen,
                "attr_uptr: 7ffc5d0a1b20, pid: 0, cpu: ffffffff, group_fd: ffffffffffffffff, flags: 8)",
                open,
            ),
            (
                Call::PerfEventOpen,
                "attr_uptr: 0x7fff3a673580, pid: 0x00000000, cpu: 0xffffffff, group_fd: 0xffffffff, flags: 0x00000008",
                open,
            ),
            (Call::PerfEventOpen, "nr=298 attr_uptr=0x7ffd pid=0 cpu=18446744073709551615 group_fd=-1 flags=8", open),
            (Call::Ptrace, "request: 6, pid: 0x5e3f, addr: 0x388, data: 0x10001)", poke),
            (Call::Ptrace, "request: 6, pid: 5e3f, addr: 388, data: 10001)", poke),
            (
                Call::Ptrace,
                "long request: 6, long pid: 0x5e3f, unsigned long addr: 0x388, unsigned long data: 0x10001)",
                poke,
            ),
            (Call::Ioctl, "fd: 4, cmd: ae80, arg: 0)", Event::Ioctl { fd: 4, cmd: 0xae80, arg: 0 }),
            (
                Call::Ioctl,
                "fd: 10, cmd: 0x4048ae9b, arg: 7ffd)",
                Event::Ioctl { fd: 16, cmd: 0x4048_ae9b, arg: 0x7ffd },
            ),
            (Call::Close, "fd: 4)", Event::Close { fd: 4 }),
            (Call::Close, "fd: 0x0000000a", Event::Close { fd: 10 }),
        ];
        for (call, payload, expected) in cases {
            assert_eq!(call.entered(payload.as_bytes()), Some(expected), "{payload}");
        }
        assert_eq!(Call::Ptrace.entered(b"request: 6, pid: 5e3f, addr: 388, da"), None);
    }

    #[test]
    fn returns_are_signed() {
        for (payload, expected) in [
            ("0x3", 3),
            ("0xffffffffffffffe4", -28),
            ("ffffffffffffffe4", -28),
            ("0xffffffe4", -28),
            ("0xffff0ff0", 0xffff_0ff0),
            ("nr=298 ret=-28", -28),
            ("0x7", 7),
        ] {
            let event = Call::PerfEventOpen.returned(payload.as_bytes());
            assert_eq!(event, Some(Event::PerfEventOpenReturn(expected)), "{payload}");
        }
        assert_eq!(Call::Close.returned(b"0x0"), Some(Event::CloseReturn(0)));
        assert_eq!(Call::Ioctl.returned(b"0x0"), Some(Event::IoctlReturn(0)));
        assert_eq!(Call::Ptrace.returned(b"0x0"), Some(Event::PtraceReturn(0)));
        assert_eq!(Call::Ptrace.returned(b"0x"), None);
    }

    #[test]
    fn raw_calls_are_read_by_number_and_place() {
        let open = Event::PerfEventOpen { pid: 0, cpu: -1, group_fd: -1, flags: 8 };
        let poke = Event::Ptrace { request: 6, pid: 0x5e3f, addr: 0x388, data: 0x10001 };
        let other = Event::Other("sys_enter");
        for (payload, expected) in [
            ("NR 298 (7ffd24939b70, 0, ffffffff, ffffffff, 8, 0)", Some(open)),
            ("NR 101 (6, 5e3f, 388, 10001, 0, 0)", Some(poke)),
            ("NR 101 (6, 5e3f, 38", None),
            ("NR 101 (6, 5e3f)", None),
            ("NR 0 (1, 2, 3, 0, 0, 0)", Some(other)),
        ] {
            assert_eq!(entered_by_number(payload.as_bytes(), other), expected, "{payload}");
        }
        for (payload, expected) in [
            ("NR 298 = 10", Some(Event::PerfEventOpenReturn(10))),
            ("NR 298 = -28", Some(Event::PerfEventOpenReturn(-28))),
            ("NR 298 =", None),
            ("NR 0 = 1", Some(other)),
        ] {
            assert_eq!(returned_by_number(payload.as_bytes(), other), expected, "{payload}");
        }
    }
}
