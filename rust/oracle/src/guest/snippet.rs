//! A guest's instructions for one line, put together when the line comes.

use debugreg::trip::{Access, What};
use debugreg_model::Insn;
use iced_x86::code_asm::{
    AsmRegister64, AsmRegisterDr, CodeAssembler, CodeLabel, al, ax, dl, dr0, dr1, dr2, dr3, dr4, dr5, dr6, dr7, dr8,
    dr9, dr10, dr11, dr12, dr13, dr14, dr15, dx, eax, edx, ptr, qword_ptr, r15, rax, rbx, rcx, rdi, rdx, rsi, rsp, ss,
    xmm0,
};
use iced_x86::{BlockEncoderOptions, IcedError};

use super::code::{Harness, RESUME_FLAG, TRAP_FLAG, assembler, board};
use super::image::{STACK_TOP, code_selector, data_selector, linear, physical};
use crate::agent::{INT1, RET};

/// The prefix that has KVM's emulator perform an instruction, if its parameter `force_emulation_prefix` says so:
/// `ud2` and "kvm".
pub(super) const FORCE_EMULATION: [u8; 5] = [0x0f, 0x0b, b'k', b'v', b'm'];

const POPF: u8 = 0x9d;

/// What a line has its guest do.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Act {
    /// An access to memory or an execution, forced into KVM's emulator or not.
    Access {
        access: Access,
        insn: Insn,
        forced: bool,
    },
    Out {
        port: u16,
        bytes: u64,
    },
    ToDr {
        number: u8,
        value: u64,
        ring: u8,
    },
    FromDr {
        number: u8,
        ring: u8,
    },
}

/// The instructions of a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Snippet {
    pub(super) bytes: Vec<u8>,
    pub(super) start: u64,
    /// The instruction that the line is about.
    pub(super) key: u64,
    /// What comes after it.
    pub(super) after: u64,
    /// Whether it goes on after #DB.
    pub(super) goes_on: bool,
    /// Where an outer ring has nothing to do any more: #UD there is the way back.
    pub(super) way_back: Option<u64>,
    /// What the scenario's memory must hold meanwhile, which is all RET else.
    pub(super) memory: Option<(u64, Vec<u8>)>,
}

impl Act {
    /// Whether the processor has such an instruction, and this driver can have it executed.
    fn is_possible(self) -> bool {
        match self {
            Act::Access { access: Access { what, bytes, .. }, insn, forced } => match (insn, what) {
                (Insn::Plain, What::Execute) => true,
                (Insn::Plain, _) => matches!(bytes, 1 | 2 | 4 | 8 | 16),
                (Insn::Xchg | Insn::Cmpxchg | Insn::Rep(_), _) => matches!(bytes, 1 | 2 | 4 | 8),
                // A prefix would be what is stepped, held off, or broken into.
                (Insn::PopfTf | Insn::MovSs | Insn::Icebp | Insn::IretRf, _) if forced => false,
                (Insn::Frame, _) => false,
                (Insn::PopfTf, What::Execute) | (Insn::Icebp | Insn::IretRf, _) => true,
                (Insn::PopfTf, _) => matches!(bytes, 1 | 2 | 4 | 8 | 16),
                (Insn::MovSs, _) => bytes == 2,
            },
            Act::Out { bytes, .. } => matches!(bytes, 1 | 2 | 4),
            Act::ToDr { number, .. } | Act::FromDr { number, .. } => usize::from(number) < DR.len(),
        }
    }

    fn ring(self) -> u8 {
        match self {
            Act::ToDr { ring, .. } | Act::FromDr { ring, .. } => ring,
            Act::Access { .. } | Act::Out { .. } => 0,
        }
    }

    /// What the scenario's memory must hold.
    pub(super) fn memory(self) -> Option<(u64, Vec<u8>)> {
        let Act::Access { access: Access { what, address, .. }, insn, forced } = self else { return None };
        let before = |bytes: &[u8]| (address.wrapping_sub(bytes.len() as u64), bytes.to_vec());
        match (insn, what) {
            (Insn::PopfTf, What::Execute) => Some(before(&[POPF])),
            (Insn::Icebp, _) => Some((address, vec![INT1])),
            (Insn::MovSs, _) => Some((address, data_selector(0).to_le_bytes().to_vec())),
            (_, What::Execute) if forced => Some(before(&FORCE_EMULATION)),
            _ => None,
        }
    }
}

impl Snippet {
    /// The instructions of a line, to run at `start`; `None` if there are none.
    pub(super) fn new(act: Act, start: u64, harness: &Harness) -> Option<Snippet> {
        act.is_possible().then(|| assemble(act, start, harness.park).expect("every instruction can be encoded"))
    }
}

/// Labels of the instruction that the line is about and of what comes after it.
struct Labels {
    key: CodeLabel,
    after: CodeLabel,
}

fn assemble(act: Act, start: u64, park: u64) -> Result<Snippet, IcedError> {
    let mut asm = assembler();
    let mut labels = Labels { key: asm.create_label(), after: asm.create_label() };
    let mut end = asm.create_label();
    enter_ring(&mut asm, act.ring())?;
    match act {
        Act::Access { access, insn, forced } if access.what == What::Execute => {
            execute(&mut asm, access.address, insn, forced, &mut labels)?;
        }
        Act::Access { access, insn, forced } => data(&mut asm, access, insn, forced, &mut labels)?,
        Act::Out { port, bytes } => {
            asm.mov(dx, u32::from(port))?;
            asm.set_label(&mut labels.key)?;
            match bytes {
                1 => asm.out(dx, al)?,
                2 => asm.out(dx, ax)?,
                _ => asm.out(dx, eax)?,
            }
            asm.set_label(&mut labels.after)?;
        }
        Act::ToDr { number, value, .. } => {
            asm.mov(rax, value)?;
            asm.set_label(&mut labels.key)?;
            asm.mov(DR[usize::from(number)], rax)?;
            asm.set_label(&mut labels.after)?;
        }
        Act::FromDr { number, .. } => {
            asm.mov(r15, linear(physical::BOARD))?;
            asm.set_label(&mut labels.key)?;
            asm.mov(rax, DR[usize::from(number)])?;
            asm.set_label(&mut labels.after)?;
            asm.mov(qword_ptr(r15 + board::VALUE), rax)?;
        }
    }
    let outer = act.ring() > 0;
    if outer {
        // After `after`, which may be the same place: a label stands before an instruction.
        asm.nop()?;
        asm.set_label(&mut end)?;
        asm.ud2()?;
    } else {
        asm.jmp(park)?;
    }
    let code = asm.assemble_options(start, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let key = match act {
        Act::Access { access, .. } if access.what == What::Execute => access.address,
        _ => code.label_ip(&labels.key)?,
    };
    let after = code.label_ip(&labels.after)?;
    let way_back = outer.then(|| code.label_ip(&end)).transpose()?;
    let goes_on = matches!(act, Act::Access { .. });
    Ok(Snippet { bytes: code.inner.code_buffer, start, key, after, goes_on, way_back, memory: act.memory() })
}

fn execute(
    asm: &mut CodeAssembler,
    address: u64,
    insn: Insn,
    forced: bool,
    labels: &mut Labels,
) -> Result<(), IcedError> {
    if insn == Insn::PopfTf {
        // POPF stands right before the address: return address and flags are where it and the RET behind it look.
        asm.lea(rbx, ptr(labels.after))?;
        asm.push(rbx)?;
        asm.pushfq()?;
        asm.or(qword_ptr(rsp), TRAP_FLAG)?;
        asm.mov(rbx, address.wrapping_sub(1))?;
        asm.jmp(rbx)?;
    } else if insn == Insn::IretRf {
        // The RET at the address returns by what is on the stack then.
        asm.lea(rbx, ptr(labels.after))?;
        asm.push(rbx)?;
        asm.mov(rcx, rsp)?;
        asm.push(i32::from(data_selector(0)))?;
        asm.push(rcx)?;
        asm.pushfq()?;
        asm.or(qword_ptr(rsp), RESUME_FLAG)?;
        asm.push(i32::from(code_selector(0)))?;
        asm.mov(rbx, address)?;
        asm.push(rbx)?;
        asm.iretq()?;
    } else {
        let prefix = if forced { FORCE_EMULATION.len() as u64 } else { 0 };
        asm.mov(rbx, address.wrapping_sub(prefix))?;
        asm.call(rbx)?;
    }
    asm.set_label(&mut labels.after)
}

fn data(
    asm: &mut CodeAssembler,
    access: Access,
    insn: Insn,
    forced: bool,
    labels: &mut Labels,
) -> Result<(), IcedError> {
    let Access { what, address, bytes } = access;
    let stores = what == What::Store;
    asm.mov(rbx, address)?;
    asm.mov(rax, u64::from_le_bytes([RET; 8]))?;
    match insn {
        // Memory is never zero: it fails.
        Insn::Cmpxchg => {
            asm.mov(rdx, rax)?;
            asm.mov(eax, 0)?;
        }
        Insn::Rep(count) => {
            asm.mov(rcx, count)?;
            asm.mov(rdi, rbx)?;
            asm.mov(rsi, rbx)?;
        }
        _ if bytes == 16 => asm.movups(xmm0, ptr(r15 + board::RETURNS))?,
        _ => {}
    }
    if insn == Insn::PopfTf {
        asm.pushfq()?;
        asm.or(qword_ptr(rsp), TRAP_FLAG)?;
        asm.popfq()?;
    }
    if forced {
        asm.db(&FORCE_EMULATION)?;
    }
    asm.set_label(&mut labels.key)?;
    match (insn, bytes) {
        (Insn::Xchg, 1) => asm.xchg(ptr(rbx), al)?,
        (Insn::Xchg, 2) => asm.xchg(ptr(rbx), ax)?,
        (Insn::Xchg, 4) => asm.xchg(ptr(rbx), eax)?,
        (Insn::Xchg, _) => asm.xchg(ptr(rbx), rax)?,
        (Insn::Cmpxchg, 1) => asm.lock().cmpxchg(ptr(rbx), dl)?,
        (Insn::Cmpxchg, 2) => asm.lock().cmpxchg(ptr(rbx), dx)?,
        (Insn::Cmpxchg, 4) => asm.lock().cmpxchg(ptr(rbx), edx)?,
        (Insn::Cmpxchg, _) => asm.lock().cmpxchg(ptr(rbx), rdx)?,
        (Insn::Rep(_), 1) if stores => asm.rep().stosb()?,
        (Insn::Rep(_), 2) if stores => asm.rep().stosw()?,
        (Insn::Rep(_), 4) if stores => asm.rep().stosd()?,
        (Insn::Rep(_), _) if stores => asm.rep().stosq()?,
        (Insn::Rep(_), 1) => asm.rep().lodsb()?,
        (Insn::Rep(_), 2) => asm.rep().lodsw()?,
        (Insn::Rep(_), 4) => asm.rep().lodsd()?,
        (Insn::Rep(_), _) => asm.rep().lodsq()?,
        (Insn::MovSs, _) => {
            asm.mov(ss, ptr(rbx))?;
            asm.nop()?;
        }
        (_, 1) if stores => asm.mov(ptr(rbx), al)?,
        (_, 2) if stores => asm.mov(ptr(rbx), ax)?,
        (_, 4) if stores => asm.mov(ptr(rbx), eax)?,
        (_, 8) if stores => asm.mov(ptr(rbx), rax)?,
        (_, _) if stores => asm.movups(ptr(rbx), xmm0)?,
        (_, 1) => asm.mov(al, ptr(rbx))?,
        (_, 2) => asm.mov(ax, ptr(rbx))?,
        (_, 4) => asm.mov(eax, ptr(rbx))?,
        (_, 8) => asm.mov(rax, ptr(rbx))?,
        (_, _) => asm.movups(xmm0, ptr(rbx))?,
    }
    asm.set_label(&mut labels.after)
}

const DR: [AsmRegisterDr; 16] = [dr0, dr1, dr2, dr3, dr4, dr5, dr6, dr7, dr8, dr9, dr10, dr11, dr12, dr13, dr14, dr15];

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
    use crate::guest::code::harness;
    use crate::guest::code::tests::decode;
    use iced_x86::{Code, Instruction, Register};

    const START: u64 = linear(physical::CODE) + 0x1000;

    fn snippet(act: Act) -> Snippet {
        Snippet::new(act, START, &harness()).expect("there is such an instruction")
    }

    fn act(what: What, bytes: u64, insn: Insn) -> Act {
        Act::Access { access: Access { what, address: 0x10010, bytes }, insn, forced: false }
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
        for (bytes, store, load, xchg, cmpxchg) in [
            (1, Code::Mov_rm8_r8, Code::Mov_r8_rm8, Code::Xchg_rm8_r8, Code::Cmpxchg_rm8_r8),
            (2, Code::Mov_rm16_r16, Code::Mov_r16_rm16, Code::Xchg_rm16_r16, Code::Cmpxchg_rm16_r16),
            (4, Code::Mov_rm32_r32, Code::Mov_r32_rm32, Code::Xchg_rm32_r32, Code::Cmpxchg_rm32_r32),
            (8, Code::Mov_rm64_r64, Code::Mov_r64_rm64, Code::Xchg_rm64_r64, Code::Cmpxchg_rm64_r64),
        ] {
            for (what, insn, expected) in [
                (What::Store, Insn::Plain, store),
                (What::Store, Insn::PopfTf, store),
                (What::Load, Insn::Plain, load),
                (What::Load, Insn::PopfTf, load),
                (What::Store, Insn::Xchg, xchg),
                (What::Load, Insn::Cmpxchg, cmpxchg),
            ] {
                let (access, next) = key(act(what, bytes, insn));
                assert_eq!((access.code(), access.memory_base()), (expected, Register::RBX));
                assert_eq!(next.near_branch_target(), park);
                assert_eq!(snippet(act(what, bytes, insn)).after, next.ip());
            }
        }
        let (wide, _) = key(act(What::Store, 16, Insn::Plain));
        assert_eq!(wide.code(), Code::Movups_xmmm128_xmm);
        assert_eq!(Snippet::new(act(What::Store, 3, Insn::Plain), START, &harness()), None);
    }

    #[test]
    fn repeated_accesses_are_one_instruction_with_its_count() {
        for (what, bytes, expected) in [
            (What::Store, 1, Code::Stosb_m8_AL),
            (What::Store, 8, Code::Stosq_m64_RAX),
            (What::Load, 2, Code::Lodsw_AX_m16),
            (What::Load, 4, Code::Lodsd_EAX_m32),
        ] {
            let snippet = snippet(act(what, bytes, Insn::Rep(7)));
            let code = decode(&snippet.bytes, snippet.start);
            let repeated = code.iter().find(|instruction| instruction.ip() == snippet.key).expect("the key");
            assert_eq!((repeated.code(), repeated.has_rep_prefix()), (expected, true));
            let counted = code.iter().find(|one| matches!(one.op0_register(), Register::RCX | Register::ECX));
            assert_eq!(counted.map(|one| one.immediate(1)), Some(7));
        }
    }

    #[test]
    fn the_flags_that_step_are_loaded_right_before_the_key() {
        let stepped = snippet(act(What::Store, 4, Insn::PopfTf));
        let code = decode(&stepped.bytes, stepped.start);
        let at = code.iter().position(|instruction| instruction.ip() == stepped.key).expect("the key");
        assert_eq!(code[at - 1].code(), Code::Popfq);
        // An instruction of the scenario's own address has POPF in its memory.
        let stepped = snippet(act(What::Execute, 1, Insn::PopfTf));
        assert_eq!((stepped.key, stepped.memory), (0x10010, Some((0x1000f, vec![0x9d]))));
        let code = decode(&stepped.bytes, stepped.start);
        assert_eq!(code[0].memory_displacement64(), stepped.after, "where RET goes");
        assert!(code.iter().any(|one| one.code() == Code::Mov_r64_imm64 && one.immediate64() == 0x1000f
            || one.code() == Code::Mov_r32_imm32 && one.immediate(1) == 0x1000f));
    }

    #[test]
    fn special_instructions_stand_where_the_scenario_says() {
        assert_eq!(snippet(act(What::Execute, 1, Insn::Icebp)).memory, Some((0x10010, vec![0xf1])));
        let selector = snippet(act(What::Load, 2, Insn::MovSs)).memory.expect("something to load").1;
        assert_eq!(selector, data_selector(0).to_le_bytes());
        let (mov, nop) = key(act(What::Load, 2, Insn::MovSs));
        assert_eq!((mov.op0_register(), nop.code()), (Register::SS, Code::Nopd));
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
            let access = Access { what: What::Execute, address: 0x10010, bytes: 1 };
            let snippet = snippet(Act::Access { access, insn: Insn::Plain, forced });
            let code = decode(&snippet.bytes, snippet.start);
            assert_eq!((snippet.key, code[0].immediate64()), (0x10010, called));
            assert_eq!((code[1].code(), code[1].next_ip()), (Code::Call_rm64, snippet.after));
            assert_eq!(snippet.memory.is_some(), forced);
        }
    }

    #[test]
    fn a_forced_access_is_the_one_behind_the_prefix() {
        let access = Access { what: What::Load, address: 0x1000, bytes: 4 };
        let [plain, forced] = [false, true].map(|forced| snippet(Act::Access { access, insn: Insn::Plain, forced }));
        assert_eq!(forced.key, plain.key + 5);
        let at = (plain.key - START) as usize;
        assert_eq!(forced.bytes[at..at + 5], FORCE_EMULATION);
    }
}
