//! Which instructions are logged. Nothing but this is shared by the plugin and its tests.

/// An instruction that is logged.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Instruction {
    /// MOV to DR`dr`, from a general register.
    Write {
        /// The debug register.
        dr: u8,
        /// The general register, as instructions number them.
        gpr: u8,
    },
    /// MOV from DR`dr`.
    Read {
        /// The debug register.
        dr: u8,
    },
    /// VMRUN.
    VmRun,
    /// The driver's NOP: what it says is in RSI and RDI.
    Message,
}

/// The NOP by which the driver speaks to the plugin: a multi-byte one, with a displacement that no compiler uses.
pub(crate) const MESSAGE: [u8; 8] = [0x0f, 0x1f, 0x84, 0x00, b'd', b'b', b'r', b'g'];

/// Reads an instruction's bytes. Legacy prefixes are not looked for: no kernel puts any before these.
///
/// Source: Intel SDM vol. 2, "MOV—Move to/from Debug Registers" (0F 21 /r, 0F 23 /r; the mod field is ignored; REX.R is
/// #UD); AMD APM vol. 3, "VMRUN" (0F 01 D8).
pub(crate) fn decode(bytes: &[u8]) -> Option<Instruction> {
    if bytes == MESSAGE {
        return Some(Instruction::Message);
    }
    let (rex, opcode) = match bytes {
        [rex @ 0x40..=0x4f, rest @ ..] => (*rex, rest),
        rest => (0, rest),
    };
    match *opcode {
        [0x0f, 0x21, operands] if rex & 4 == 0 => Some(Instruction::Read { dr: operands >> 3 & 7 }),
        [0x0f, 0x23, operands] if rex & 4 == 0 => {
            Some(Instruction::Write { dr: operands >> 3 & 7, gpr: operands & 7 | (rex & 1) << 3 })
        }
        [0x0f, 0x01, 0xd8] => Some(Instruction::VmRun),
        _ => None,
    }
}
