//! What an emulated machine shows of its registers: the plugin of the emulator, and how the driver speaks to it.

/// The plugin, a shared library: `plugin/steps.rs`. Empty where it is not built.
pub static STEPS_PLUGIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/steps.so"));

/// Functions of the kernel whose entries can be logged, in the order in which the plugin has their names (from 1).
const FUNCTIONS: [&str; 8] = [
    "arch_install_hw_breakpoint",
    "arch_uninstall_hw_breakpoint",
    "hw_breakpoint_restore",
    "__perf_event_task_sched_out",
    "__perf_event_task_sched_in",
    "exc_debug_user",
    "noist_exc_debug",
    "exc_nmi",
];

/// The number of no line: [`mark_blind`].
pub(crate) const BLIND: u64 = u64::MAX;

/// The number of no line: [`mark_shared`].
pub(crate) const SHARED: u64 = u64::MAX - 1;

/// Marks the log: what comes from now on belongs to this line of the scenario; 0 is none of them.
pub(crate) fn mark_line(number: u32) {
    say(0, u64::from(number));
}

/// Marks the kernel's trace likewise, as a phase of that name. There is one only in a machine of ours.
pub(crate) fn mark_phase(number: u32) {
    let _ = std::fs::write(TRACE_MARKER, format!("phase {number}:"));
}

/// Of the instance that records (python/debugreg/_vm/record.py).
const TRACE_MARKER: &str = "/sys/kernel/tracing/instances/debugreg/trace_marker";

/// Marks the log: the line was not performed, nor will any other be.
pub(crate) fn mark_blind() {
    say(0, BLIND);
}

/// Marks the log: for this line the driver has let others onto the scenario's CPU.
pub(crate) fn mark_shared() {
    say(0, SHARED);
}

/// Has the entries of functions logged, each by its name in the kernel and its address (`/proc/kallsyms`). Whatever has
/// been executed already may go unseen: the emulator has translated it.
pub fn watch(symbols: &str) {
    for symbol in symbols.lines() {
        let mut words = symbol.split(' ');
        if let (Some(address), Some(_), Some(name)) = (words.next(), words.next(), words.next())
            && let Some(at) = FUNCTIONS.iter().position(|known| *known == name)
            && let Ok(address) = u64::from_str_radix(address, 16)
        {
            say(at as u64 + 1, address);
        }
    }
}

/// A NOP that the plugin knows (`plugin/decode.rs`).
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
fn say(what: u64, value: u64) {
    // SAFETY: a NOP; its memory operand is never accessed (Intel SDM vol. 2, "NOP").
    unsafe {
        std::arch::asm!(
            ".byte 0x0f, 0x1f, 0x84, 0x00, 0x64, 0x62, 0x72, 0x67",
            in("rsi") what,
            in("rdi") value,
            options(nomem, nostack, preserves_flags)
        );
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn say(_: u64, _: u64) {}

#[cfg(test)]
#[path = "../plugin/decode.rs"]
mod decode;

#[cfg(test)]
mod tests {
    use super::decode::{Instruction, MESSAGE, decode};

    #[test]
    fn moves_to_and_from_debug_registers_are_known_with_their_operands() {
        // As an assembler writes them: mov %rax,%db7; mov %r9,%db3; mov %db6,%rdx; mov %db0,%r15.
        let cases: [(&[u8], Option<Instruction>); 9] = [
            (&[0x0f, 0x23, 0xf8], Some(Instruction::Write { dr: 7, gpr: 0 })),
            (&[0x41, 0x0f, 0x23, 0xd9], Some(Instruction::Write { dr: 3, gpr: 9 })),
            (&[0x0f, 0x21, 0xf2], Some(Instruction::Read { dr: 6 })),
            (&[0x41, 0x0f, 0x21, 0xc7], Some(Instruction::Read { dr: 0 })),
            // REX.R names DR8 to DR15, which there are not.
            (&[0x44, 0x0f, 0x23, 0xf8], None),
            // mov %rax,%cr0
            (&[0x0f, 0x22, 0xc0], None),
            (&[0x0f, 0x01, 0xd8], Some(Instruction::VmRun)),
            // vmmcall
            (&[0x0f, 0x01, 0xd9], None),
            (&[], None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(decode(bytes), expected, "{bytes:02x?}");
        }
    }

    #[test]
    fn the_drivers_nop_is_known_and_a_compilers_is_not() {
        assert_eq!(decode(&MESSAGE), Some(Instruction::Message));
        assert_eq!(decode(&[0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0]), None);
    }
}
