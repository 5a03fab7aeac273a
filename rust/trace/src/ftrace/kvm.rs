//! KVM's tracepoints: `arch/x86/kvm/trace.h` and `include/trace/events/kvm.h`, all generations, and as trace-cmd
//! rewrites them.

use super::event::{Event, ExitReason, text};
use super::fields::{Bare, Fields, leading_number, number};

/// Vector of #DB, and of NMI.
const DB_VECTOR: u64 = 1;
const NMI_VECTOR: u64 = 2;

/// `vcpu 0`, `vcpu 0, rip 0x..`, and with more behind it; raw: `vcpu_id=0 rip=..`.
pub(super) fn entry(payload: &[u8]) -> Option<Event<'_>> {
    let (vcpu, rip) = match payload.strip_prefix(b"vcpu ") {
        Some(rest) => leading_number(rest).map(|(vcpu, rest)| (vcpu, rip(rest)))?,
        None => (field(payload, b"vcpu_id")?, field(payload, b"rip")),
    };
    Some(Event::KvmEntry { vcpu: vcpu.try_into().ok()?, rip })
}

/// `reason R rip 0x.. info a b` to about 5.4 and from trace-cmd, `vcpu N reason R rip 0x.. info1 0x.. info2 0x..
/// intr_info 0x.. error_code 0x..` since, ` requests 0x..` behind it since about 6.14; raw: `exit_reason=65
/// guest_rip=.. isa=2 ..`.
pub(super) fn exit(payload: &[u8]) -> Option<Event<'_>> {
    let (vcpu, rest) = match payload.strip_prefix(b"vcpu ") {
        Some(rest) => leading_number(rest).map(|(vcpu, rest)| (Some(vcpu), rest.trim_ascii_start()))?,
        None => (None, payload),
    };
    let (vcpu, rip, reason) = match rest.strip_prefix(b"reason ") {
        Some(rest) => {
            // The reason may hold blanks (`DB excp`), so it ends where the next column begins.
            let end = memchr::memmem::find(rest, b" rip ").unwrap_or(rest.len());
            (vcpu, rip(&rest[end..]), reason(&rest[..end], &rest[end..]))
        }
        None => (field(payload, b"vcpu_id"), field(payload, b"guest_rip"), raw_reason(payload)?),
    };
    Some(Event::KvmExit { vcpu: vcpu.map(TryInto::try_into).transpose().ok()?, rip, reason })
}

/// `, rip 0x..` or ` rip 0x..`, whatever follows.
fn rip(rest: &[u8]) -> Option<u64> {
    let digits = rest.strip_prefix(b",").unwrap_or(rest).strip_prefix(b" rip 0x")?;
    let end = digits.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(digits.len());
    number(&digits[..end], Bare::Hex)
}

/// `reason KVM_EXIT_IO (2)`, `reason restart (0)`, `reason error (5)`.
pub(super) fn userspace_exit(payload: &[u8]) -> Option<Event<'_>> {
    let reason = payload.strip_prefix(b"reason ")?;
    let end = memchr::memmem::rfind(reason, b" (").unwrap_or(reason.len());
    Some(Event::UserspaceExit { reason: text(&reason[..end]) })
}

/// One enum for the spellings of the kernel (`read_dr0`), of trace-cmd (`EXIT_READ_DR0`) and of bcc
/// (`EXIT_REASON_HLT`).
fn reason<'a>(name: &'a [u8], columns: &[u8]) -> ExitReason<'a> {
    let short = name.strip_prefix(b"EXIT_REASON_").or_else(|| name.strip_prefix(b"EXIT_")).unwrap_or(name);
    match short {
        b"DR_ACCESS" => column(columns, b"info1").or_else(|| info(columns).map(|pair| pair.0)).map(dr_access),
        // The interruption information has a column of its own since 5.10; before, it was the second `info`. In what
        // trace-cmd makes of a newer trace that place holds something else, nearly always zero: then we do not know.
        b"EXCEPTION_NMI" => column(columns, b"intr_info").or_else(|| info(columns).map(|pair| pair.1)).and_then(vector),
        // 65 is what trace-cmd, which has no names for SVM's exceptions, makes of 0x40 + vector. VMX has no reason 65.
        b"DB excp" | b"UNKNOWN (65)" => Some(ExitReason::Db),
        b"nmi" | b"NMI" => Some(ExitReason::Nmi),
        b"interrupt" | b"INTR" | b"EXTERNAL_INTERRUPT" => Some(ExitReason::Interrupt),
        b"io" | b"IOIO" | b"IO_INSTRUCTION" => Some(ExitReason::Io),
        b"hlt" | b"HLT" => Some(ExitReason::Hlt),
        b"npf" | b"NPF" | b"EPT_VIOLATION" => Some(ExitReason::PageFault),
        _ => svm_dr_access(short),
    }
    .unwrap_or_else(|| ExitReason::Other(text(name)))
}

/// `read_dr0` to `write_dr7`, in either case.
fn svm_dr_access(name: &[u8]) -> Option<ExitReason<'static>> {
    let (verb, &digit) = name.split_last().map(|(digit, verb)| (verb, digit))?;
    let dr = digit.wrapping_sub(b'0');
    let write = match verb {
        b"read_dr" | b"READ_DR" => false,
        b"write_dr" | b"WRITE_DR" => true,
        _ => return None,
    };
    (dr < 8).then_some(ExitReason::DrAccess { dr, write: Some(write) })
}

/// VMX: bits 2:0 name the register, bit 4 the direction. Source: Intel SDM vol. 3, "Exit Qualification for MOV DR".
fn dr_access(qualification: u64) -> ExitReason<'static> {
    ExitReason::DrAccess { dr: (qualification & 7) as u8, write: Some(qualification & 1 << 4 == 0) }
}

fn vector(interruption: u64) -> Option<ExitReason<'static>> {
    match interruption & 0xff {
        DB_VECTOR => Some(ExitReason::Db),
        NMI_VECTOR => Some(ExitReason::Nmi),
        _ => None,
    }
}

/// A hex number behind its name: ` info1 0x0000000000000216`.
fn column(columns: &[u8], name: &[u8]) -> Option<u64> {
    let mut words = columns.split(|&byte| byte == b' ');
    words.by_ref().find(|&word| word == name)?;
    number(words.next()?, Bare::Hex)
}

/// ` info 217 0`
fn info(columns: &[u8]) -> Option<(u64, u64)> {
    let mut words = columns.split(|&byte| byte == b' ');
    words.by_ref().find(|&word| word == b"info")?;
    Some((number(words.next()?, Bare::Hex)?, number(words.next()?, Bare::Hex)?))
}

/// The reason as a number, from output in which no plugin had a hand. `isa` is 1 for VMX and 2 for SVM (`KVM_ISA_VMX`).
///
/// Source of the numbers: `arch/x86/include/uapi/asm/vmx.h` and `svm.h`.
fn raw_reason(payload: &[u8]) -> Option<ExitReason<'_>> {
    let text_of = |name: &[u8]| Fields(payload).find(|field| field.name == name);
    let number = text_of(b"exit_reason")?;
    let value = |name: &[u8]| text_of(name).and_then(|field| field.value());
    let known = match (value(b"isa"), number.value()?) {
        (Some(1), 0) => value(b"intr_info").or_else(|| value(b"info2")).and_then(vector),
        (Some(1), 1) | (Some(2), 0x60) => Some(ExitReason::Interrupt),
        (Some(1), 12) | (Some(2), 0x78) => Some(ExitReason::Hlt),
        (Some(1), 29) => value(b"info1").map(dr_access),
        (Some(1), 30) | (Some(2), 0x7b) => Some(ExitReason::Io),
        (Some(1), 48) | (Some(2), 0x400) => Some(ExitReason::PageFault),
        (Some(2), code @ 0x20..=0x27) => Some(ExitReason::DrAccess { dr: (code & 7) as u8, write: Some(false) }),
        (Some(2), code @ 0x30..=0x37) => Some(ExitReason::DrAccess { dr: (code & 7) as u8, write: Some(true) }),
        (Some(2), 0x41) => Some(ExitReason::Db),
        (Some(2), 0x61) => Some(ExitReason::Nmi),
        _ => None,
    };
    Some(known.unwrap_or_else(|| ExitReason::Other(text(number.text))))
}

fn field(payload: &[u8], name: &[u8]) -> Option<u64> {
    Fields(payload).find(|field| field.name == name)?.value()
}

#[cfg(test)]
mod tests {
    use super::ExitReason::{Db, DrAccess, Hlt, Interrupt, Io, Nmi, Other, PageFault};
    use super::*;

    fn read(payload: &str) -> Option<(Option<u32>, ExitReason<'_>)> {
        match exit(payload.as_bytes())? {
            Event::KvmExit { vcpu, reason, .. } => Some((vcpu, reason)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn four_generations_of_entries_are_read() {
        let cases = [
            ("vcpu 0", 0, None),
            ("vcpu 17, rip 0xffffffff8105b320", 17, Some(0xffff_ffff_8105_b320)),
            ("vcpu 0, rip 0xffffffff8105b320[immediate exit]", 0, Some(0xffff_ffff_8105_b320)),
            ("vcpu 1, rip 0x401136 intr_info 0x80000301 error_code 0x00000000", 1, Some(0x40_1136)),
            ("vcpu 1, rip 0x401136 intr_info 0x80000301 error_code 0x00000000[immediate exit]", 1, Some(0x40_1136)),
            ("vcpu_id=3 rip=0x401136 immediate_exit=0", 3, Some(0x40_1136)),
        ];
        for (payload, vcpu, rip) in cases {
            assert_eq!(entry(payload.as_bytes()), Some(Event::KvmEntry { vcpu, rip }), "{payload}");
        }
        assert_eq!(entry(b"[FAILED TO PARSE]"), None);
    }

    #[test]
    fn three_generations_of_exits_are_read() {
        let read_dr6 = DrAccess { dr: 6, write: Some(false) };
        let cases = [
            (
                "vcpu 0 reason DR_ACCESS rip 0xffffffff8105b327 info1 0x0000000000000216 info2 0x0000000000000000 intr_info 0x00000000 error_code 0x00000000",
                (Some(0), read_dr6),
            ),
            (
                "vcpu 0 reason DR_ACCESS rip 0xffffffff8105b340 info1 0x0000000000000007 info2 0x0000000000000000 intr_info 0x00000000 error_code 0x00000000 requests 0x0000000000000000",
                (Some(0), DrAccess { dr: 7, write: Some(true) }),
            ),
            (
                "vcpu 3 reason write_dr7 rip 0xffffffffa2c01a44 info1 0x0000000000000000 info2 0x0000000000000000 intr_info 0x00000000 error_code 0x00000000 requests 0x0000000000000000",
                (Some(3), DrAccess { dr: 7, write: Some(true) }),
            ),
            ("reason DR_ACCESS rip 0xffffffff8102f0aa info 217 0", (None, DrAccess { dr: 7, write: Some(false) })),
            ("reason EXIT_READ_DR0 rip 0x401136 info 0 0", (None, DrAccess { dr: 0, write: Some(false) })),
            ("reason EXIT_WRITE_DR7 rip 0x401136 info 0 0", (None, DrAccess { dr: 7, write: Some(true) })),
            ("reason UNKNOWN (65) rip 0x401136 info 0 0", (None, Db)),
        ];
        for (payload, expected) in cases {
            assert_eq!(read(payload), Some(expected), "{payload}");
        }
    }

    #[test]
    fn where_a_guest_was_is_read_if_the_line_says_so() {
        let cases = [
            ("vcpu 3 reason write_dr7 rip 0xffffffffa2c01a44 info1 0x0 info2 0x0", Some(0xffff_ffff_a2c0_1a44)),
            ("reason EXIT_READ_DR0 rip 0x401136 info 0 0", Some(0x40_1136)),
            ("exit_reason=65 guest_rip=0x1000 isa=2", Some(0x1000)),
            ("reason DB excp", None),
        ];
        for (payload, expected) in cases {
            let Some(Event::KvmExit { rip, .. }) = exit(payload.as_bytes()) else { panic!("{payload}") };
            assert_eq!(rip, expected, "{payload}");
        }
    }

    #[test]
    fn exceptions_of_vmx_are_told_apart_by_their_vector() {
        let new = "vcpu 0 reason EXCEPTION_NMI rip 0x1 info1 0x4000 info2 0x0 intr_info";
        let old = "reason EXCEPTION_NMI rip 0x1 info 4000";
        for (info, expected) in [("80000301", Db), ("80000202", Nmi), ("80000b0e", Other("EXCEPTION_NMI"))] {
            assert_eq!(read(&format!("{new} 0x{info} error_code 0x0")).unwrap().1, expected);
            assert_eq!(read(&format!("{old} {info}")).unwrap().1, expected);
        }
        assert_eq!(read("reason EXCEPTION_NMI rip 0x1").unwrap().1, Other("EXCEPTION_NMI"));
        assert_eq!(read("reason DR_ACCESS rip 0x1").unwrap().1, Other("DR_ACCESS"));
    }

    #[test]
    fn the_other_reasons_have_one_word_on_both_machines() {
        let cases = [
            (Db, &["DB excp"][..]),
            (Nmi, &["nmi", "EXIT_NMI"][..]),
            (Interrupt, &["interrupt", "EXIT_INTR", "EXTERNAL_INTERRUPT", "EXIT_REASON_EXTERNAL_INTERRUPT"][..]),
            (Io, &["io", "EXIT_IOIO", "IO_INSTRUCTION"][..]),
            (Hlt, &["hlt", "HLT", "EXIT_HLT"][..]),
            (PageFault, &["npf", "EXIT_NPF", "EPT_VIOLATION"][..]),
        ];
        for (expected, names) in cases {
            for name in names {
                let payload = format!("vcpu 0 reason {name} rip 0x1 info1 0x0 info2 0x0");
                assert_eq!(read(&payload), Some((Some(0), expected)), "{payload}");
            }
        }
        for name in
            ["BP excp", "read_dr8", "read_cr0", "icebp", "vmgexit", "0x403", "HLT FAILED_VMENTRY", "UNKNOWN (67)"]
        {
            assert_eq!(read(&format!("vcpu 0 reason {name} rip 0x1")), Some((Some(0), Other(name))));
        }
    }

    #[test]
    fn every_debug_register_of_svm_is_named() {
        for dr in 0..8 {
            for (verb, upper, write) in [("read", "READ", false), ("write", "WRITE", true)] {
                let expected = Some((Some(0), DrAccess { dr, write: Some(write) }));
                assert_eq!(read(&format!("vcpu 0 reason {verb}_dr{dr} rip 0x1")), expected);
                assert_eq!(read(&format!("vcpu 0 reason EXIT_{upper}_DR{dr} rip 0x1")), expected);
            }
        }
    }

    #[test]
    fn raw_exits_are_read_by_number() {
        let cases = [
            ("exit_reason=0x37 guest_rip=0x1 isa=2 info1=0x0 info2=0x0", (None, DrAccess { dr: 7, write: Some(true) })),
            ("exit_reason=65 guest_rip=0x1 isa=2 info1=0x0", (None, Db)),
            ("exit_reason=29 guest_rip=0x1 isa=1 info1=0x216", (None, DrAccess { dr: 6, write: Some(false) })),
            ("exit_reason=0 isa=1 info1=0 intr_info=0x80000202 vcpu_id=4", (Some(4), Nmi)),
            ("[FAILED TO PARSE] exit_reason=1 isa=1 vcpu_id=4", (Some(4), Interrupt)),
            ("exit_reason=1 guest_rip=0x1", (None, Other("1"))),
        ];
        for (payload, expected) in cases {
            assert_eq!(read(payload), Some(expected), "{payload}");
        }
        assert_eq!(read("[FAILED TO PARSE]"), None);
    }

    #[test]
    fn exits_to_user_space_keep_their_name() {
        for (payload, expected) in [
            ("reason KVM_EXIT_DEBUG (4)", "KVM_EXIT_DEBUG"),
            ("reason restart (0)", "restart"),
            ("reason KVM_EXIT_IO", "KVM_EXIT_IO"),
        ] {
            assert_eq!(userspace_exit(payload.as_bytes()), Some(Event::UserspaceExit { reason: expected }));
        }
    }
}
