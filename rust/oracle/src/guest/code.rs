//! The instructions that a guest always has: it waits, leaves, and records exceptions.
//!
//! The guest waits at `park` until the driver writes the address of a snippet (`snippet.rs`) to the board, runs it, and
//! waits again: between two lines nothing but a few loads and stores happens in it, and it leaves only if a snippet makes
//! it leave.
//!
//! An exception is recorded on the board. After #DB the instruction goes on if its line says so, past an execute
//! breakpoint by RF; otherwise, and after every other exception, the rest of the snippet is left out. The handler of #DB
//! reads DR6 and writes no debug register, as the model's guests do; the other handlers read none, because GD would turn
//! that into another #DB.

use iced_x86::code_asm::{CodeAssembler, CodeLabel, al, byte_ptr, dr6, dword_ptr, dx, qword_ptr, r15, rax, rbx, rsp};
use iced_x86::{BlockEncoderOptions, IcedError};

use super::image::{STACK_TOP, VECTORS, linear, physical};

/// Offsets on the board.
pub(super) mod board {
    /// Whether a snippet is to run; the guest clears it when it goes there, after [`PARKED`]. Both are bytes: KVM's
    /// emulator copies a word byte by byte.
    pub(crate) const GO: usize = 0;
    /// Set by the guest while it waits.
    pub(crate) const PARKED: usize = 1;
    /// The snippet.
    pub(crate) const WHERE: usize = 8;
    /// How many exceptions there were.
    pub(crate) const COUNT: usize = 16;
    /// What a register was read as.
    pub(crate) const VALUE: usize = 24;
    /// Whether a snippet goes on after #DB.
    pub(crate) const GOES_ON: usize = 32;
    /// The instruction that the line is about.
    pub(crate) const KEY: usize = 40;
    /// Sixteen `ret` instructions.
    pub(crate) const RETURNS: usize = 48;
    /// Exceptions: vector, address, DR6 (of #DB), nothing.
    pub(crate) const RECORDS: usize = 64;
    pub(crate) const RECORD: usize = 32;
    /// The first are kept.
    pub(crate) const CAPACITY: usize = 16;
    /// After so many a snippet does not go on.
    pub(crate) const ENDLESS: usize = 1 << 14;
}

/// The port by which a guest leaves: an exit that nothing but its user space can handle.
pub(super) const LEAVE_PORT: u16 = 0x05eb;

const DEBUG: u32 = 1;
/// RFLAGS.TF.
pub(super) const TRAP_FLAG: i32 = 1 << 8;
/// RFLAGS.RF.
pub(super) const RESUME_FLAG: i32 = 1 << 16;

/// The instructions that are always there.
#[derive(Clone, Debug)]
pub(super) struct Harness {
    pub(super) bytes: Vec<u8>,
    /// Where the guest waits.
    pub(super) park: u64,
    /// Leaves by [`LEAVE_PORT`], and waits again.
    pub(super) leave: u64,
    /// Leaves by HLT, and waits again.
    pub(super) halt: u64,
    pub(super) handlers: [u64; VECTORS],
}

pub(super) fn assembler() -> CodeAssembler {
    CodeAssembler::new(64).expect("a bitness")
}

/// The harness, to be put at [`physical::CODE`].
pub(super) fn harness() -> Harness {
    assemble_harness().expect("every instruction can be encoded")
}

fn assemble_harness() -> Result<Harness, IcedError> {
    let mut asm = assembler();
    let [mut park, mut leave, mut halt, mut wait] = [(); 4].map(|()| asm.create_label());
    let [mut handle, mut recorded, mut past, mut resume] = [(); 4].map(|()| asm.create_label());
    let mut stubs: [CodeLabel; VECTORS] = std::array::from_fn(|_| asm.create_label());

    asm.set_label(&mut park)?;
    asm.mov(rsp, STACK_TOP)?;
    asm.mov(r15, linear(physical::BOARD))?;
    asm.set_label(&mut wait)?;
    asm.mov(byte_ptr(r15 + board::PARKED), 1)?;
    asm.cmp(byte_ptr(r15 + board::GO), 0)?;
    asm.je(wait)?;
    asm.mov(rax, qword_ptr(r15 + board::WHERE))?;
    asm.mov(byte_ptr(r15 + board::PARKED), 0)?;
    asm.mov(byte_ptr(r15 + board::GO), 0)?;
    asm.jmp(rax)?;

    asm.set_label(&mut leave)?;
    asm.mov(dx, u32::from(LEAVE_PORT))?;
    asm.out(dx, al)?;
    asm.jmp(park)?;

    asm.set_label(&mut halt)?;
    asm.hlt()?;
    asm.jmp(park)?;

    for (vector, stub) in (0..).zip(&mut stubs) {
        asm.set_label(stub)?;
        if !has_error_code(vector) {
            asm.push(0)?;
        }
        asm.push(vector)?;
        asm.jmp(handle)?;
    }

    // From here on the stack has r15, rbx, rax, vector, error code, and the processor's RIP, CS, RFLAGS, RSP, SS.
    asm.set_label(&mut handle)?;
    asm.push(rax)?;
    asm.push(rbx)?;
    asm.push(r15)?;
    let (vector, rip, flags) = (rsp + 24, rsp + 40, rsp + 56);
    asm.mov(r15, linear(physical::BOARD))?;
    asm.mov(rbx, qword_ptr(r15 + board::COUNT))?;
    asm.cmp(rbx, board::CAPACITY as i32)?;
    asm.jae(recorded)?;
    asm.shl(rbx, board::RECORD.trailing_zeros())?;
    let record = r15 + rbx + board::RECORDS;
    asm.mov(rax, qword_ptr(vector))?;
    asm.mov(qword_ptr(record), rax)?;
    asm.mov(rax, qword_ptr(rip))?;
    asm.mov(qword_ptr(record + 8), rax)?;
    asm.cmp(dword_ptr(vector), DEBUG)?;
    asm.jne(recorded)?;
    asm.mov(rax, dr6)?;
    asm.mov(qword_ptr(record + 16), rax)?;
    asm.set_label(&mut recorded)?;
    asm.add(qword_ptr(r15 + board::COUNT), 1)?;
    asm.cmp(dword_ptr(vector), DEBUG)?;
    asm.jne(park)?;
    asm.cmp(qword_ptr(r15 + board::GOES_ON), 0)?;
    asm.je(park)?;
    asm.cmp(qword_ptr(r15 + board::COUNT), board::ENDLESS as i32)?;
    asm.ja(park)?;
    asm.mov(rax, qword_ptr(rip))?;
    asm.cmp(rax, qword_ptr(r15 + board::KEY))?;
    asm.jne(past)?;
    // Before the instruction, or in the middle of a repeated one.
    asm.or(qword_ptr(flags), RESUME_FLAG)?;
    asm.jmp(resume)?;
    asm.set_label(&mut past)?;
    asm.and(qword_ptr(flags), !TRAP_FLAG)?;
    asm.set_label(&mut resume)?;
    asm.pop(r15)?;
    asm.pop(rbx)?;
    asm.pop(rax)?;
    asm.add(rsp, 16)?;
    asm.iretq()?;

    let code = asm.assemble_options(linear(physical::CODE), BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let mut handlers = [0; VECTORS];
    for (handler, stub) in handlers.iter_mut().zip(&stubs) {
        *handler = code.label_ip(stub)?;
    }
    let (park, leave, halt) = (code.label_ip(&park)?, code.label_ip(&leave)?, code.label_ip(&halt)?);
    Ok(Harness { bytes: code.inner.code_buffer, park, leave, halt, handlers })
}

/// Whether the processor pushes an error code for it (SDM vol. 3, "Exception and Interrupt Reference").
const fn has_error_code(vector: i32) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Register};

    pub(crate) fn decode(bytes: &[u8], at: u64) -> Vec<Instruction> {
        Decoder::with_ip(64, bytes, at, DecoderOptions::NONE).into_iter().collect()
    }

    #[test]
    fn every_exception_has_a_handler_that_says_which() {
        let harness = harness();
        assert!(harness.bytes.len() < 0x1000);
        let code = decode(&harness.bytes, linear(physical::CODE));
        assert!(code.iter().all(|instruction| !instruction.is_invalid()));
        for (vector, handler) in (0..).zip(harness.handlers) {
            let at = code.iter().position(|instruction| instruction.ip() == handler).expect("an instruction");
            let pushes = code[at..].iter().take_while(|instruction| instruction.code() == Code::Pushq_imm8);
            let pushed: Vec<_> = pushes.map(|push| push.immediate(0)).collect();
            let error_code = if matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30) { vec![] } else { vec![0] };
            assert_eq!(pushed, [error_code, vec![vector]].concat());
        }
        // A debug register is read once, in the handler of #DB, and none is written.
        let moves = code.iter().filter(|instruction| matches!(instruction.code(), Code::Mov_r64_dr | Code::Mov_dr_r64));
        assert_eq!(moves.map(Instruction::op1_register).collect::<Vec<_>>(), [Register::DR6]);
        let waits = code.iter().find(|instruction| instruction.ip() == harness.park).expect("an instruction");
        assert_eq!(waits.immediate64(), STACK_TOP);
    }
}
