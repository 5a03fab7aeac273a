//! A VM with one vCPU, by the system calls that its VMM's agent makes.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use kvm_bindings as kvm;
use nix::errno::Errno;

use super::code::board;
use super::image::{self, physical};
use super::ioctl::{
    GET_DEBUGREGS, GET_LAPIC, GET_MP_STATE, GET_SREGS, Plain, RUN, SET_DEBUGREGS, SET_GUEST_DEBUG, SET_LAPIC, SET_REGS,
    SET_SREGS, SIGNAL_MSI,
};
use super::memory::Mapping;
use crate::Error;
use crate::channel::{Message, payload};
use crate::tasks::{Inside, Tasks};

/// What interrupts a guest that does not leave by itself.
pub(super) const KICK: u64 = libc::SIGUSR1 as u64;

/// What a system call comes to: the errno is the kernel's, not ours.
pub(super) type Answer<T> = Result<Result<T, i32>, Error>;

/// Why KVM_RUN has returned.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Exit {
    /// By a port; which one.
    Port(u16),
    /// By HLT.
    Halt,
    /// KVM_EXIT_DEBUG.
    Debug { pc: u64, dr6: u64, dr7: u64 },
    /// A signal.
    Signal,
    /// KVM's emulator does not know an instruction.
    Unknown,
    /// The processor refused the entry.
    FailEntry,
    /// KVM_EXIT_*, or an errno below zero.
    Other(i64),
}

/// The VM.
#[derive(Debug)]
pub(super) struct Vm {
    /// The task whose agent makes the system calls.
    pub(super) task: usize,
    /// What the vCPU is to its world: which of the guests.
    pub(super) number: usize,
    pub(super) machine: u64,
    pub(super) vcpu: u64,
    /// Where the agent has the guest's memory.
    pub(super) base: u64,
    pub(super) memory: Rc<Mapping>,
    pub(super) run: Mapping,
    /// Whether its local APIC is KVM's.
    pub(super) has_apic: bool,
    pub(super) park: u64,
    pub(super) leave: u64,
}

impl Vm {
    /// A word of the board, written by the driver.
    pub(super) fn board(&self, at: usize, value: u64) {
        self.memory.word(physical::BOARD + at).store(value, Ordering::Release);
    }

    /// A word of the board.
    pub(super) fn on_board(&self, at: usize) -> u64 {
        self.memory.word(physical::BOARD + at).load(Ordering::Acquire)
    }

    /// Sends the guest, which waits or is about to, to a snippet.
    pub(super) fn send(&self, snippet: u64) {
        send(&self.memory, snippet);
    }

    /// Has the guest wait, when it comes to that.
    pub(super) fn recall(&self) {
        for flag in [board::GO, board::PARKED] {
            self.memory.byte(physical::BOARD + flag).store(0, Ordering::Release);
        }
    }

    /// Whether the guest waits.
    pub(super) fn waits(&self) -> bool {
        let flag = |at: usize| self.memory.byte(physical::BOARD + at).load(Ordering::Acquire) != 0;
        !flag(board::GO) && flag(board::PARKED)
    }

    /// Writes into the guest's memory.
    pub(super) fn write(&self, at: usize, bytes: &[u8]) {
        self.memory.write(at, bytes);
    }

    /// Whether the guest runs.
    pub(super) fn is_inside(&self, tasks: &Tasks<'_>) -> bool {
        tasks.inside.as_ref().is_some_and(|inside| inside.guest == self.number)
    }

    /// Starts KVM_RUN; the guest waits, or goes on with what it was about.
    pub(super) fn enter(&self, tasks: &mut Tasks<'_>) -> Result<(), Error> {
        let (memory, leave) = (Rc::clone(&self.memory), self.leave);
        let ask = Box::new(move || send(&memory, leave));
        let inside = Inside { task: self.task, guest: self.number, ask };
        tasks.enter_guest(inside, &Message::call(libc::SYS_ioctl, &[self.vcpu, RUN, 0]))
    }

    /// A run that ends by itself.
    pub(super) fn run_once(&mut self, tasks: &mut Tasks<'_>) -> Result<Exit, Error> {
        let answer = tasks.call(self.task, &Message::call(libc::SYS_ioctl, &[self.vcpu, RUN, 0]))?;
        Ok(self.exit(&answer))
    }

    /// Completes an exit that user space has handled, without running the guest.
    pub(super) fn complete(&mut self, tasks: &mut Tasks<'_>) -> Result<(), Error> {
        let immediate = self.run.byte(std::mem::offset_of!(kvm::kvm_run, immediate_exit));
        immediate.store(1, Ordering::Release);
        tasks.call(self.task, &Message::call(libc::SYS_ioctl, &[self.vcpu, RUN, 0]))?;
        self.run.byte(std::mem::offset_of!(kvm::kvm_run, immediate_exit)).store(0, Ordering::Release);
        Ok(())
    }

    /// Why KVM_RUN has returned, if this is its answer.
    pub(super) fn exit(&self, answer: &Message) -> Exit {
        use std::mem::offset_of;
        const DETAIL: usize = offset_of!(kvm::kvm_run, __bindgen_anon_1);
        match answer.result() {
            Ok(_) => {}
            Err(libc::EINTR) => return Exit::Signal,
            Err(errno) => return Exit::Other(-i64::from(errno)),
        }
        let reason = self.run.half(offset_of!(kvm::kvm_run, exit_reason)).load(Ordering::Acquire);
        let word = |at: usize| self.run.word(DETAIL + at).load(Ordering::Relaxed);
        match reason {
            // direction, size, port (16 bits), count
            kvm::KVM_EXIT_IO => Exit::Port((word(0) >> 16) as u16),
            kvm::KVM_EXIT_HLT => Exit::Halt,
            kvm::KVM_EXIT_DEBUG => Exit::Debug {
                pc: word(offset_of!(kvm::kvm_debug_exit_arch, pc)),
                dr6: word(offset_of!(kvm::kvm_debug_exit_arch, dr6)),
                dr7: word(offset_of!(kvm::kvm_debug_exit_arch, dr7)),
            },
            kvm::KVM_EXIT_INTR => Exit::Signal,
            kvm::KVM_EXIT_INTERNAL_ERROR if word(0) as u32 == kvm::KVM_INTERNAL_ERROR_EMULATION => Exit::Unknown,
            kvm::KVM_EXIT_FAIL_ENTRY => Exit::FailEntry,
            other => Exit::Other(i64::from(other)),
        }
    }

    /// Interrupts the guest by a signal.
    pub(super) fn kick(&self, tasks: &mut Tasks<'_>) -> Result<(), Error> {
        let pid = tasks.task(self.task).pid;
        tasks.world.init(&Message::call(libc::SYS_kill, &[pid, KICK]), tasks.going)?;
        Ok(())
    }

    /// Takes the signal away that has interrupted it.
    pub(super) fn forget_kick(&self, tasks: &mut Tasks<'_>) -> Result<(), Error> {
        let set = (1u64 << (KICK - 1)).to_le_bytes();
        let wait = Message::call(libc::SYS_rt_sigtimedwait, &[payload(0), 0, payload(8), 8]).with(0, &set);
        tasks.call(self.task, &wait)?;
        Ok(())
    }

    /// Puts the guest to where it waits, whatever it was about. Exceptions that wait for injection are lost.
    pub(super) fn set_parked(&mut self, tasks: &mut Tasks<'_>) -> Result<(), Error> {
        let regs = kvm::kvm_regs { rip: self.park, rsp: image::STACK_TOP, rflags: 2, ..Default::default() };
        self.ioctl(tasks, self.vcpu, SET_REGS, regs)?.map_err(|errno| lost("KVM_SET_REGS", errno)).map(drop)
    }

    /// KVM_SET_GUEST_DEBUG.
    pub(super) fn set_guest_debug(&mut self, tasks: &mut Tasks<'_>, debug: debugreg_model::GuestDebug) -> Answer<()> {
        let mut argument = kvm::kvm_guest_debug { control: debug.control, ..Default::default() };
        argument.arch.debugreg[..4].copy_from_slice(&debug.dr);
        argument.arch.debugreg[7] = debug.dr7;
        Ok(self.ioctl(tasks, self.vcpu, SET_GUEST_DEBUG, argument)?.map(drop))
    }

    /// KVM_GET_DEBUGREGS.
    pub(super) fn debugregs(&mut self, tasks: &mut Tasks<'_>) -> Answer<kvm::kvm_debugregs> {
        self.ioctl(tasks, self.vcpu, GET_DEBUGREGS, kvm::kvm_debugregs::default())
    }

    /// KVM_SET_DEBUGREGS.
    pub(super) fn set_debugregs(&mut self, tasks: &mut Tasks<'_>, registers: kvm::kvm_debugregs) -> Answer<()> {
        Ok(self.ioctl(tasks, self.vcpu, SET_DEBUGREGS, registers)?.map(drop))
    }

    /// INIT, as a message of an interrupt controller, and everything but the debug registers as it was before. Whether
    /// the vCPU has taken it.
    pub(super) fn init(&mut self, tasks: &mut Tasks<'_>) -> Answer<bool> {
        const SPURIOUS: usize = 0xf0;
        const ENABLED: libc::c_char = 1; // of the second byte: bit 8
        // Delivery mode INIT, level asserted, to the APIC of number 0 (SDM vol. 3, "Message Data Register Format").
        let message = kvm::kvm_msi { address_lo: 0xfee0_0000, data: 5 << 8 | 1 << 14, ..Default::default() };
        let vcpu = self.vcpu;
        let mut apic = match self.ioctl(tasks, vcpu, GET_LAPIC, kvm::kvm_lapic_state { regs: [0; 1024] })? {
            Ok(apic) => apic,
            Err(errno) => return Ok(Err(errno)),
        };
        apic.regs[SPURIOUS + 1] |= ENABLED;
        let sregs = match self.ioctl(tasks, vcpu, GET_SREGS, kvm::kvm_sregs::default())? {
            Ok(sregs) => sregs,
            Err(errno) => return Ok(Err(errno)),
        };
        // A controller whose APIC is off takes no message.
        if let Err(errno) = self.ioctl(tasks, vcpu, SET_LAPIC, apic)? {
            return Ok(Err(errno));
        }
        if let Err(errno) = self.ioctl(tasks, self.machine, SIGNAL_MSI, message)? {
            return Ok(Err(errno));
        }
        // Has KVM look at what has come (kvm_apic_accept_events).
        if let Err(errno) = self.ioctl(tasks, vcpu, GET_MP_STATE, kvm::kvm_mp_state::default())? {
            return Ok(Err(errno));
        }
        let reset = match self.ioctl(tasks, vcpu, GET_SREGS, kvm::kvm_sregs::default())? {
            Ok(now) => now.efer == 0 && now.cr3 == 0,
            Err(errno) => return Ok(Err(errno)),
        };
        if let Err(errno) = self.ioctl(tasks, vcpu, SET_SREGS, sregs)? {
            return Ok(Err(errno));
        }
        self.set_parked(tasks)?;
        Ok(Ok(reset))
    }

    /// An ioctl with a structure, which comes back as the kernel leaves it.
    pub(super) fn ioctl<T: Plain>(
        &self,
        tasks: &mut Tasks<'_>,
        descriptor: u64,
        request: u64,
        mut argument: T,
    ) -> Answer<T> {
        self.memory.write(physical::SCRATCH, argument.bytes());
        let at = self.base + physical::SCRATCH as u64;
        let answer = tasks.call(self.task, &Message::call(libc::SYS_ioctl, &[descriptor, request, at]))?;
        self.memory.read(physical::SCRATCH, argument.bytes_mut());
        Ok(answer.result().map(|_| argument))
    }
}

fn send(memory: &Mapping, snippet: u64) {
    memory.word(physical::BOARD + board::WHERE).store(snippet, Ordering::Relaxed);
    memory.byte(physical::BOARD + board::GO).store(1, Ordering::Release);
}

fn lost(what: &str, errno: i32) -> Error {
    Error::Lost(format!("{what}: {}", Errno::from_raw(errno)))
}
