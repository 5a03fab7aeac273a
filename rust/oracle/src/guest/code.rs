//! A guest's instructions: a harness that waits, records and leaves, and a snippet for each line.
//!
//! The guest waits at `park` until the driver writes the address of a snippet to the board, runs it, and waits again:
//! between two lines nothing but a few loads happens in it, and it leaves only if a snippet makes it leave. An exception
//! is recorded on the board, and the rest of the snippet is left out. The handler of #DB reads DR6 and writes no debug
//! register, as the model's guests do; the other handlers read none, because GD would turn that into another #DB.

use iced_x86::code_asm::{
    AsmRegister64, AsmRegisterDr, CodeAssembler, CodeLabel, al, ax, dr0, dr1, dr2, dr3, dr4, dr5, dr6, dr7, dr8, dr9,
    dr10, dr11, dr12, dr13, dr14, dr15, dword_ptr, dx, eax, ebx, ptr, qword_ptr, r15, rax, rbx, rcx, rsp, xmm0,
};
use iced_x86::{BlockEncoderOptions, IcedError};

use super::image::{STACK_TOP, VECTORS, code_selector, data_selector, linear, physical};

/// Offsets on the board.
pub(super) mod board {
    /// The snippet that is to run; the guest clears it when it goes there, after [`PARKED`].
    pub(crate) const GO: usize = 0;
    /// Set by the guest while it waits.
    pub(crate) const PARKED: usize = 8;
    /// How many exceptions there were.
    pub(crate) const COUNT: usize = 16;
    /// What a register was read as.
    pub(crate) const VALUE: usize = 24;
    /// Whether a snippet goes on after #DB.
    pub(crate) const GOES_ON: usize = 32;
    /// Sixteen `ret` instructions.
    pub(crate) const RETURNS: usize = 48;
    /// Exceptions: vector, address, DR6 (of #DB), nothing.
    pub(crate) const RECORDS: usize = 64;
    pub(crate) const RECORD: usize = 32;
    /// Of so many the last are kept.
    pub(crate) const CAPACITY: usize = 64;
}

/// The port by which a guest leaves: an exit that nothing but its user space can handle.
pub(super) const LEAVE_PORT: u16 = 0x05eb;

/// The prefix that has KVM's emulator perform an instruction, if its parameter `force_emulation_prefix` says so:
/// `ud2` and "kvm".
pub(super) const FORCE_EMULATION: [u8; 5] = [0x0f, 0x0b, b'k', b'v', b'm'];

const DEBUG: u32 = 1;
const TRAP_FLAG: i32 = 0x100;

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

/// What a line has its guest do.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Act {
    Store { address: u64, bytes: u64, forced: bool },
    Load { address: u64, bytes: u64, forced: bool },
    Execute { address: u64, forced: bool },
    Out { port: u16, bytes: u64 },
    ToDr { number: u8, value: u64, ring: u8 },
    FromDr { number: u8, ring: u8 },
}

/// The instructions of a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Snippet {
    pub(super) bytes: Vec<u8>,
    pub(super) start: u64,
    /// The instruction that the line is about.
    pub(super) key: u64,
    /// Where an outer ring has nothing to do any more: #UD there is the way back.
    pub(super) way_back: Option<u64>,
}

fn assembler() -> CodeAssembler {
    CodeAssembler::new(64).expect("a bitness")
}

/// The harness, to be put at [`physical::CODE`].
pub(super) fn harness() -> Harness {
    assemble_harness().expect("every instruction can be encoded")
}

fn assemble_harness() -> Result<Harness, IcedError> {
    let mut asm = assembler();
    let [mut park, mut leave, mut halt, mut handle, mut recorded, mut wait] = [(); 6].map(|()| asm.create_label());
    let mut stubs: [CodeLabel; VECTORS] = std::array::from_fn(|_| asm.create_label());

    asm.set_label(&mut park)?;
    asm.mov(rsp, STACK_TOP)?;
    asm.mov(r15, linear(physical::BOARD))?;
    asm.set_label(&mut wait)?;
    asm.mov(qword_ptr(r15 + board::PARKED), 1)?;
    asm.mov(rax, qword_ptr(r15 + board::GO))?;
    asm.test(rax, rax)?;
    asm.je(wait)?;
    asm.mov(qword_ptr(r15 + board::PARKED), 0)?;
    asm.mov(qword_ptr(r15 + board::GO), 0)?;
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
    asm.and(ebx, board::CAPACITY as u32 - 1)?;
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
    asm.and(qword_ptr(flags), !TRAP_FLAG)?;
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

impl Snippet {
    /// The instructions of a line, to run at `start`; `None` if the processor has no such instruction.
    pub(super) fn new(act: Act, start: u64, harness: &Harness) -> Option<Snippet> {
        let possible = match act {
            Act::Store { bytes, .. } | Act::Load { bytes, .. } => matches!(bytes, 1 | 2 | 4 | 8 | 16),
            Act::Out { bytes, .. } => matches!(bytes, 1 | 2 | 4),
            Act::ToDr { number, .. } | Act::FromDr { number, .. } => usize::from(number) < DR.len(),
            Act::Execute { .. } => true,
        };
        possible.then(|| assemble(act, start, harness.park).expect("every instruction can be encoded"))
    }
}

fn assemble(act: Act, start: u64, park: u64) -> Result<Snippet, IcedError> {
    let mut asm = assembler();
    let [mut key, mut way_back] = [(); 2].map(|()| asm.create_label());
    match act {
        Act::Store { address, bytes, forced } => {
            asm.mov(rbx, address)?;
            asm.mov(rax, 0xc3c3_c3c3_c3c3_c3c3_u64)?;
            if bytes == 16 {
                asm.movups(xmm0, ptr(r15 + board::RETURNS))?;
            }
            force(&mut asm, forced)?;
            asm.set_label(&mut key)?;
            match bytes {
                1 => asm.mov(ptr(rbx), al)?,
                2 => asm.mov(ptr(rbx), ax)?,
                4 => asm.mov(ptr(rbx), eax)?,
                8 => asm.mov(ptr(rbx), rax)?,
                _ => asm.movups(ptr(rbx), xmm0)?,
            }
        }
        Act::Load { address, bytes, forced } => {
            asm.mov(rbx, address)?;
            force(&mut asm, forced)?;
            asm.set_label(&mut key)?;
            match bytes {
                1 => asm.mov(al, ptr(rbx))?,
                2 => asm.mov(ax, ptr(rbx))?,
                4 => asm.mov(eax, ptr(rbx))?,
                8 => asm.mov(rax, ptr(rbx))?,
                _ => asm.movups(xmm0, ptr(rbx))?,
            }
        }
        Act::Execute { address, forced } => {
            let prefix = if forced { FORCE_EMULATION.len() as u64 } else { 0 };
            asm.mov(rbx, address.wrapping_sub(prefix))?;
            asm.set_label(&mut key)?;
            asm.call(rbx)?;
        }
        Act::Out { port, bytes } => {
            asm.mov(dx, u32::from(port))?;
            asm.set_label(&mut key)?;
            match bytes {
                1 => asm.out(dx, al)?,
                2 => asm.out(dx, ax)?,
                _ => asm.out(dx, eax)?,
            }
        }
        Act::ToDr { number, value, ring } => {
            enter_ring(&mut asm, ring)?;
            asm.mov(rax, value)?;
            asm.set_label(&mut key)?;
            asm.mov(DR[usize::from(number)], rax)?;
        }
        Act::FromDr { number, ring } => {
            enter_ring(&mut asm, ring)?;
            asm.mov(r15, linear(physical::BOARD))?;
            asm.set_label(&mut key)?;
            asm.mov(rax, DR[usize::from(number)])?;
            asm.mov(qword_ptr(r15 + board::VALUE), rax)?;
        }
    }
    let outer = matches!(act, Act::ToDr { ring: 1.., .. } | Act::FromDr { ring: 1.., .. });
    asm.set_label(&mut way_back)?;
    if outer {
        asm.ud2()?;
    } else {
        asm.jmp(park)?;
    }
    let code = asm.assemble_options(start, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let key = match act {
        Act::Execute { address, .. } => address,
        _ => code.label_ip(&key)?,
    };
    let way_back = outer.then(|| code.label_ip(&way_back)).transpose()?;
    Ok(Snippet { bytes: code.inner.code_buffer, start, key, way_back })
}

const DR: [AsmRegisterDr; 16] = [dr0, dr1, dr2, dr3, dr4, dr5, dr6, dr7, dr8, dr9, dr10, dr11, dr12, dr13, dr14, dr15];

fn force(asm: &mut CodeAssembler, forced: bool) -> Result<(), IcedError> {
    if forced { asm.db(&FORCE_EMULATION) } else { Ok(()) }
}

/// What follows runs in an outer ring.
fn enter_ring(asm: &mut CodeAssembler, ring: u8) -> Result<(), IcedError> {
    const SCRATCH: AsmRegister64 = rcx;
    const FLAGS: i32 = 2;
    if ring == 0 {
        return Ok(());
    }
    let mut outer = asm.create_label();
    asm.push(i32::from(data_selector(ring)))?;
    asm.mov(SCRATCH, STACK_TOP)?;
    asm.push(SCRATCH)?;
    asm.push(FLAGS)?;
    asm.push(i32::from(code_selector(ring)))?;
    asm.lea(SCRATCH, ptr(outer))?;
    asm.push(SCRATCH)?;
    asm.iretq()?;
    asm.set_label(&mut outer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Register};

    const START: u64 = linear(physical::CODE) + 0x1000;

    fn decode(bytes: &[u8], at: u64) -> Vec<Instruction> {
        Decoder::with_ip(64, bytes, at, DecoderOptions::NONE).into_iter().collect()
    }

    fn snippet(act: Act) -> Snippet {
        Snippet::new(act, START, &harness()).expect("there is such an instruction")
    }

    /// The instruction that the line is about, and the one after it.
    fn key(act: Act) -> (Instruction, Instruction) {
        let snippet = snippet(act);
        let code = decode(&snippet.bytes, snippet.start);
        let at = code.iter().position(|instruction| instruction.ip() == snippet.key).expect("the key is one of them");
        (code[at], code[at + 1])
    }

    #[test]
    fn the_key_is_the_access_and_the_guest_parks_after_it() {
        let park = harness().park;
        for (bytes, store, load) in [
            (1, Code::Mov_rm8_r8, Code::Mov_r8_rm8),
            (2, Code::Mov_rm16_r16, Code::Mov_r16_rm16),
            (4, Code::Mov_rm32_r32, Code::Mov_r32_rm32),
            (8, Code::Mov_rm64_r64, Code::Mov_r64_rm64),
            (16, Code::Movups_xmmm128_xmm, Code::Movups_xmm_xmmm128),
        ] {
            for (act, expected) in [
                (Act::Store { address: 0x1234, bytes, forced: false }, store),
                (Act::Load { address: 0x1234, bytes, forced: false }, load),
            ] {
                let (access, next) = key(act);
                assert_eq!((access.code(), access.memory_base()), (expected, Register::RBX));
                assert_eq!(next.near_branch_target(), park);
            }
        }
        assert_eq!(Snippet::new(Act::Store { address: 0, bytes: 3, forced: false }, START, &harness()), None);
    }

    #[test]
    fn every_register_is_moved_by_its_number() {
        for number in 0..8 {
            let (mov, next) = key(Act::ToDr { number, value: 0x1_2345_6789, ring: 0 });
            assert_eq!((mov.code(), mov.op0_register()), (Code::Mov_dr_r64, Register::DR0 + u32::from(number)));
            assert_eq!(next.near_branch_target(), harness().park);
            let (mov, next) = key(Act::FromDr { number, ring: 0 });
            assert_eq!((mov.code(), mov.op1_register()), (Code::Mov_r64_dr, Register::DR0 + u32::from(number)));
            assert_eq!((next.memory_base(), next.memory_displacement64()), (Register::R15, board::VALUE as u64));
        }
        assert_eq!(Snippet::new(Act::FromDr { number: 16, ring: 0 }, START, &harness()), None);
    }

    #[test]
    fn registers_that_no_processor_has_are_moved_all_the_same() {
        for number in 8..16 {
            for (act, opcode) in
                [(Act::ToDr { number, value: 0, ring: 0 }, 0x23), (Act::FromDr { number, ring: 0 }, 0x21)]
            {
                let snippet = snippet(act);
                let at = (snippet.key - START) as usize;
                // REX.R, and the number's lower bits in ModRM.reg: #UD.
                assert_eq!(snippet.bytes[at..at + 4], [0x44, 0x0f, opcode, 0xc0 | (number - 8) << 3]);
            }
        }
    }

    #[test]
    fn an_outer_ring_is_entered_with_its_own_selectors_and_left_by_ud2() {
        for ring in 1..4 {
            let snippet = snippet(Act::ToDr { number: 7, value: 0x400, ring });
            let code = decode(&snippet.bytes, snippet.start);
            let pushed = |at: usize| code[at].immediate(0);
            assert_eq!(code[0].code(), Code::Pushq_imm8);
            assert_eq!(pushed(0), u64::from(data_selector(ring)));
            assert_eq!(pushed(4), u64::from(code_selector(ring)));
            let enters = code.iter().position(|instruction| instruction.code() == Code::Iretq).expect("it enters");
            let outer = code[enters + 1].ip();
            assert_eq!(code[5].memory_displacement64(), outer, "where it enters");
            assert!(outer < snippet.key && Some(snippet.key) < snippet.way_back);
            let last = code.last().expect("instructions");
            assert_eq!((last.code(), Some(last.ip())), (Code::Ud2, snippet.way_back));
        }
    }

    #[test]
    fn what_is_executed_is_the_scenarios_byte() {
        for (forced, called) in [(false, 0x10010), (true, 0x1000b)] {
            let snippet = snippet(Act::Execute { address: 0x10010, forced });
            let code = decode(&snippet.bytes, snippet.start);
            assert_eq!((snippet.key, code[0].immediate64()), (0x10010, called));
            assert_eq!(code[1].code(), Code::Call_rm64);
        }
    }

    #[test]
    fn a_forced_access_is_the_one_behind_the_prefix() {
        let plain = snippet(Act::Load { address: 0x1000, bytes: 4, forced: false });
        let forced = snippet(Act::Load { address: 0x1000, bytes: 4, forced: true });
        assert_eq!(forced.key, plain.key + 5);
        let at = (plain.key - START) as usize;
        assert_eq!(forced.bytes[at..at + 5], FORCE_EMULATION);
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
