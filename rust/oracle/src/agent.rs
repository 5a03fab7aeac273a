//! The program that a task of a scenario runs: a few hundred bytes that do what they are told.
//!
//! An agent reads a message, performs one system call, one fork or one access to memory, and sends the message back with
//! the result. It decides nothing, so that the driver can know everything; it has no library, no heap and a page of
//! code, so that the addresses of a scenario are free, a fork takes microseconds, and `execve` of itself is possible.
//! It ends when the driver's end of the socket is closed.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};

use nix::sys::memfd::{MFdFlags, memfd_create};

mod code;

use self::code::machine_code;

/// Where the agent is mapped. Scenarios have no business here.
pub(crate) const BASE: u64 = 0x6deb_0000_0000;

/// How much of it is mapped.
pub(crate) const SIZE: u64 = 0x8000;

/// Where an agent has its message.
pub(crate) const MESSAGE: u64 = BASE + 0x4000;

/// What an agent does with a message: the second word of it.
#[derive(Copy, Clone, Debug)]
#[repr(u64)]
pub(crate) enum Op {
    /// A system call: number and six arguments.
    Call = 0,
    /// clone with these flags; the child's socket, and the CPU mask that the parent gives it before it has run.
    Fork = 1,
    /// Whether to wait for messages busily, from now on.
    Spin = 2,
    /// A store: address, bytes.
    Store = 3,
    /// A load: address, bytes.
    Load = 4,
    /// A call of an address, where a `ret` stands.
    Execute = 5,
    /// XCHG with memory: address, bytes.
    Xchg = 6,
    /// LOCK CMPXCHG that fails: address, bytes.
    Cmpxchg = 7,
    /// REP STOS: address, bytes of each, how many.
    Stos = 8,
    /// REP LODS: address, bytes of each, how many.
    Lods = 9,
    /// MOV SS from an address, where a selector stands, and a NOP.
    MovSs = 10,
    /// A jump to right before an address, where POPF stands; a RET stands at the address.
    Stepped = 11,
}

/// RET, which all memory of a scenario is full of.
pub(crate) const RET: u8 = 0xc3;

/// INT1.
pub(crate) const INT1: u8 = 0xf1;

/// RFLAGS.TF: the first word of an access that is to be single-stepped.
pub(crate) const TF: u64 = 1 << 8;

/// `struct sigaction` of the kernel, for the handler of SIGTRAP.
pub(crate) fn sigaction() -> [u8; 32] {
    const SA_SIGINFO: u64 = 4;
    const SA_RESTORER: u64 = 0x0400_0000;
    let [handler, restorer] = code::handler().map(|offset| BASE + HEADERS + offset);
    let words = [handler, SA_SIGINFO | SA_RESTORER, restorer, 0].map(u64::to_le_bytes);
    words.concat().try_into().expect("four words")
}

const HEADERS: u64 = 64 + 56;

/// The agent as a file that can be executed.
#[derive(Debug)]
pub(crate) struct Program(File);

impl Program {
    pub(crate) fn new() -> io::Result<Program> {
        let mut file = File::from(memfd_create(c"debugreg-agent", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&elf(machine_code()))?;
        Ok(Program(file))
    }

    /// Starts an agent whose messages come through `socket`.
    pub(crate) fn start(&self, socket: Stdio) -> io::Result<Child> {
        Command::new(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
            .env_clear()
            .stdin(socket)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
    }
}

/// An ELF file with one segment: headers and code, and zeros after them for message and stack.
fn elf(code: &[u8]) -> Vec<u8> {
    let size = HEADERS + code.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    file.extend([2u16, 62].map(u16::to_le_bytes).as_flattened()); // ET_EXEC, EM_X86_64
    file.extend(1u32.to_le_bytes());
    file.extend([BASE + HEADERS, 64, 0].map(u64::to_le_bytes).as_flattened()); // entry, program headers, no sections
    file.extend(0u32.to_le_bytes());
    file.extend([64u16, 56, 1, 64, 0, 0].map(u16::to_le_bytes).as_flattened());
    file.extend([1u32, 7].map(u32::to_le_bytes).as_flattened()); // PT_LOAD, rwx
    file.extend([0, BASE, BASE, size, SIZE, 0x1000].map(u64::to_le_bytes).as_flattened());
    file.extend(code);
    file
}
