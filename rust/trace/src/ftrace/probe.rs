//! The probes that a recording for this product sets, by the names that the recorded traces use.
//!
//! A probe prints `name=value` for what it was told to fetch (`kernel/trace/trace_probe.c`). Fields are taken by name:
//! who sets the probe chooses their order and may leave some out.

use super::event::{BpAttr, Event};
use super::fields::{Fields, int};

/// `PERF_EVENT_IOC_MODIFY_ATTRIBUTES` and `KVM_SET_DEBUGREGS`.
const MODIFY_ATTRIBUTES: u64 = 0x4008_240b;
const SET_DEBUGREGS: u64 = 0x4080_aea2;

/// An event by the name of its probe; `other` for a name that is not one of ours, `None` for a payload that lacks what
/// the event needs.
pub(super) fn event<'a>(name: &[u8], payload: &'a [u8], other: Event<'a>) -> Option<Event<'a>> {
    match name {
        b"install" => install(payload),
        b"uninstall" => value(payload, b"addr").map(|address| Event::Uninstall { address }),
        b"hit" => value(payload, b"addr").map(|address| Event::Hit { address }),
        b"restore" => Some(Event::Restore),
        b"guest_sync" => Some(Event::GuestSync),
        b"guest_dr7" => value(payload, b"value").map(|value| Event::GuestDr7 { value }),
        b"guest_set_dr" => guest_set_dr(payload),
        b"bp_open" => bp_open(payload),
        // Both are probes on the entry of ioctl: without a filter in the kernel they fire at every request.
        b"bp_modify" if is_request(payload, MODIFY_ATTRIBUTES) => bp_modify(payload),
        b"set_debugregs" if is_request(payload, SET_DEBUGREGS) => set_debugregs(payload),
        b"set_guest_debug" => set_guest_debug(payload),
        _ => Some(other),
    }
}

fn value(payload: &[u8], name: &[u8]) -> Option<u64> {
    Fields(payload).find(|field| field.name == name)?.value()
}

fn is_request(payload: &[u8], request: u64) -> bool {
    value(payload, b"cmd").is_none_or(|cmd| cmd == request)
}

fn install(payload: &[u8]) -> Option<Event<'_>> {
    let small = |name| value(payload, name).and_then(|value| value.try_into().ok());
    Some(Event::Install { address: value(payload, b"addr")?, kind: small(b"type"), len: small(b"len") })
}

fn guest_set_dr(payload: &[u8]) -> Option<Event<'_>> {
    let dr = value(payload, b"reg").filter(|&dr| dr < 8)?;
    Some(Event::GuestSetDr { dr: dr as u8, value: value(payload, b"value")? })
}

fn attr(payload: &[u8]) -> BpAttr {
    let mut attr = BpAttr::default();
    for field in Fields(payload) {
        let place = match field.name {
            b"type" => &mut attr.attr_type,
            b"flags" => &mut attr.flags,
            b"bp_type" => &mut attr.bp_type,
            b"bp_addr" => &mut attr.bp_addr,
            b"bp_len" => &mut attr.bp_len,
            _ => continue,
        };
        *place = field.value();
    }
    attr
}

fn bp_open(payload: &[u8]) -> Option<Event<'_>> {
    let (pid, cpu) = (value(payload, b"pid")?, value(payload, b"cpu")?);
    Some(Event::BpOpen { attr: attr(payload), pid: int(pid), cpu: int(cpu) })
}

fn bp_modify(payload: &[u8]) -> Option<Event<'_>> {
    Some(Event::BpModify { fd: int(value(payload, b"fd")?), attr: attr(payload) })
}

fn set_debugregs(payload: &[u8]) -> Option<Event<'_>> {
    let db = [b"db0", b"db1", b"db2", b"db3"].map(|name| value(payload, name));
    let fd = int(value(payload, b"fd")?);
    Some(Event::SetDebugregs { fd, db, dr6: value(payload, b"dr6"), dr7: value(payload, b"dr7") })
}

fn set_guest_debug(payload: &[u8]) -> Option<Event<'_>> {
    let dr = [b"dr0", b"dr1", b"dr2", b"dr3"].map(|name| value(payload, name));
    // The field has 32 bits in the kernel; a probe that fetches 64 shows the padding too.
    let control = value(payload, b"control")? as u32;
    Some(Event::SetGuestDebug { control, dr, dr7: value(payload, b"dr7") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, payload: &'static str) -> Option<Event<'static>> {
        event(name.as_bytes(), payload.as_bytes(), OTHER)
    }

    const OTHER: Event<'static> = Event::Other("other");

    const ATTR: BpAttr =
        BpAttr { attr_type: Some(5), flags: Some(0x60), bp_type: Some(2), bp_addr: Some(0x4a_f040), bp_len: Some(8) };

    #[test]
    fn every_probe_of_the_recordings_is_read() {
        let cases = [
            (
                "bp_open",
                "(syscalls.sys_enter_perf_event_open) type=5 flags=0x60 bp_type=2 bp_addr=0x4af040 bp_len=8 pid=0 cpu=-1",
                Event::BpOpen { attr: ATTR, pid: 0, cpu: -1 },
            ),
            (
                "bp_modify",
                "(syscalls.sys_enter_ioctl) fd=7 cmd=0x4008240b flags=0x60 bp_type=2 bp_addr=0x4af040 bp_len=8",
                Event::BpModify { fd: 7, attr: BpAttr { attr_type: None, ..ATTR } },
            ),
            (
                "set_debugregs",
                "(syscalls.sys_enter_ioctl) fd=6 cmd=0x4080aea2 db0=0x3200 db1=0x3000 dr6=0xffff0ff0 dr7=0x110405",
                Event::SetDebugregs {
                    fd: 6,
                    db: [Some(0x3200), Some(0x3000), None, None],
                    dr6: Some(0xffff_0ff0),
                    dr7: Some(0x11_0405),
                },
            ),
            (
                "set_guest_debug",
                "(kvm_arch_vcpu_ioctl_set_guest_debug+0x4/0x2b0 [kvm]) control=0x20001 dr0=0x3200 dr7=0x10402",
                Event::SetGuestDebug { control: 0x2_0001, dr: [Some(0x3200), None, None, None], dr7: Some(0x1_0402) },
            ),
            ("guest_dr7", "(svm_set_dr7+0x4/0x40 [kvm_amd]) value=0x10401", Event::GuestDr7 { value: 0x1_0401 }),
            (
                "guest_set_dr",
                "(kvm_set_dr+0x4/0x130 [kvm]) reg=7 value=0x10401",
                Event::GuestSetDr { dr: 7, value: 0x1_0401 },
            ),
            (
                "install",
                "(arch_install_hw_breakpoint+0x4/0x110) addr=0x4af160 type=2 len=8",
                Event::Install { address: 0x4a_f160, kind: Some(2), len: Some(8) },
            ),
            (
                "uninstall",
                "(arch_uninstall_hw_breakpoint+0x4/0xe0) addr=0x4af160",
                Event::Uninstall { address: 0x4a_f160 },
            ),
            ("restore", "(hw_breakpoint_restore+0x4/0x80)", Event::Restore),
            ("guest_sync", "(svm_sync_dirty_debug_regs+0x4/0x90 [kvm_amd])", Event::GuestSync),
            ("hit", "(perf_bp_event+0x4/0xc0) addr=0x4af160", Event::Hit { address: 0x4a_f160 }),
        ];
        for (name, payload, expected) in cases {
            assert_eq!(read(name, payload), Some(expected), "{name}: {payload}");
        }
    }

    #[test]
    fn other_peoples_probes_may_have_less_and_other_spacing() {
        let install = Some(Event::Install { address: 0x10, kind: None, len: Some(4) });
        assert_eq!(read("install", "(ffffffff8104ce44) len = 4,  addr = 16"), install);
        assert_eq!(read("restore", ""), Some(Event::Restore));
        assert_eq!(read("hit", "(perf_bp_event+0x4/0xc0)"), None);
        assert_eq!(read("guest_set_dr", "reg=8 value=0x0"), None);
        assert_eq!(read("watch", "(lookup_fast+0xaa/0x150) address=0xffff8880044f0fd8 value=0x200080"), Some(OTHER));
    }

    #[test]
    fn what_a_probe_could_not_read_is_unknown() {
        let payload =
            "(syscalls.sys_enter_perf_event_open) type=(fault) flags=(fault) bp_type=2 bp_len=(fault) pid=142 cpu=0";
        let attr = BpAttr { bp_type: Some(2), ..BpAttr::default() };
        assert_eq!(read("bp_open", payload), Some(Event::BpOpen { attr, pid: 142, cpu: 0 }));
    }

    #[test]
    fn an_unfiltered_probe_on_ioctl_is_taken_at_its_request_only() {
        assert_eq!(read("bp_modify", "fd=7 cmd=0x2400 bp_addr=(fault)"), Some(OTHER));
        assert_eq!(read("set_debugregs", "fd=7 cmd=0xae80 db0=(fault)"), Some(OTHER));
        let event = Event::BpModify { fd: 7, attr: BpAttr { bp_addr: Some(1), ..BpAttr::default() } };
        assert_eq!(read("bp_modify", "fd=7 bp_addr=0x1"), Some(event));
    }
}
