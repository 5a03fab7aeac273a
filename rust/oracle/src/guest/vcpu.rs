//! One vCPU: how its guest is entered, does what a line says, and leaves.

use std::time::{Duration, Instant};

use debugreg::Dr6;
use debugreg_model::GuestDebug;

use super::code::{Act, FORCE_EMULATION, Harness, Snippet, board};
use super::image::{Image, linear, physical};
use super::vm::{Exit, Vm};
use crate::Error;
use crate::tasks::Tasks;

/// How long a guest may take for anything.
const LIMIT: Duration = Duration::from_secs(5);

/// An exception that the guest got.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Record {
    pub(super) vector: u64,
    pub(super) rip: u64,
    /// As its handler read it; of #DB only.
    pub(super) dr6: u64,
}

/// How a guest stopped.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    /// It waits, and has not left.
    Parked,
    /// It has left.
    Left(Exit),
}

/// What came of a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Happened {
    pub(super) stop: Stop,
    pub(super) records: Vec<Record>,
    /// What was read from a register.
    pub(super) value: u64,
    /// The instruction that the line is about.
    pub(super) key: u64,
}

#[derive(Debug)]
pub(super) struct Vcpu {
    pub(super) vm: Vm,
    pub(super) image: Image,
    harness: Harness,
    /// Where the next snippet is put.
    next: usize,
    /// Whether a #DB waits for the next entry.
    pub(super) injecting: bool,
    /// KVM_GUESTDBG_*, as the VMM has said.
    pub(super) control: u32,
}

impl Vcpu {
    pub(super) fn new(vm: Vm, image: Image, harness: Harness) -> Vcpu {
        let next = Self::first(&harness);
        Vcpu { vm, image, harness, next, injecting: false, control: 0 }
    }

    /// Where snippets begin.
    fn first(harness: &Harness) -> usize {
        physical::CODE + harness.bytes.len().next_multiple_of(64)
    }

    /// A debugger that is told of every instruction.
    pub(super) fn is_stepped(&self) -> bool {
        self.control & GuestDebug::SINGLESTEP != 0
    }

    /// Enters the guest, unless it runs.
    pub(super) fn enter(&mut self, tasks: &mut Tasks<'_>) -> Result<Stop, Error> {
        if self.vm.is_inside(tasks) {
            return Ok(Stop::Parked);
        }
        self.vm.board(board::COUNT, 0);
        self.vm.board(board::PARKED, 0);
        self.vm.board(board::GO, 0);
        self.vm.enter(tasks)?;
        self.until_parked(tasks, None)
    }

    /// The exceptions since the last entry or snippet.
    pub(super) fn records(&self) -> Vec<Record> {
        let count = self.vm.on_board(board::COUNT).min(board::CAPACITY as u64);
        let record = |at: u64| {
            let at = board::RECORDS + board::RECORD * at as usize;
            let [vector, rip, dr6] = [0, 8, 16].map(|field| self.vm.on_board(at + field));
            Record { vector, rip, dr6 }
        };
        (0..count).map(record).collect()
    }

    /// Has the guest do something; `None` if there is no such instruction.
    pub(super) fn perform(&mut self, tasks: &mut Tasks<'_>, act: Act) -> Result<Option<Happened>, Error> {
        let Some(snippet) = Snippet::new(act, linear(self.next), &self.harness) else { return Ok(None) };
        if let Stop::Left(exit) = self.enter(tasks)? {
            let records = self.records();
            return Ok(Some(Happened { stop: Stop::Left(exit), records, value: 0, key: snippet.key }));
        }
        self.vm.write(self.next, &snippet.bytes);
        self.next += snippet.bytes.len().next_multiple_of(64);
        // The guest waits, so what it has executed can be overwritten.
        if self.next + 512 > physical::CODE_END {
            self.next = Self::first(&self.harness);
        }
        let prefix = match act {
            Act::Execute { address, forced: true } => self.image.offset(address.wrapping_sub(5)),
            _ => None,
        };
        if let Some(at) = prefix {
            self.vm.write(at, &FORCE_EMULATION);
        }
        self.vm.board(board::COUNT, 0);
        self.vm.board(board::GO, snippet.start);
        let port = match act {
            Act::Out { port, .. } => Some(port),
            _ => None,
        };
        let stop = self.until_parked(tasks, port)?;
        if let Some(at) = prefix {
            self.vm.write(at, &[0xc3; FORCE_EMULATION.len()]);
        }
        let mut records = self.records();
        // An outer ring comes back by #UD.
        records.retain(|record| Some(record.rip) != snippet.way_back);
        let value = self.vm.on_board(board::VALUE);
        if matches!(stop, Stop::Left(Exit::Debug { .. } | Exit::Unknown)) {
            self.vm.set_parked(tasks)?;
        }
        Ok(Some(Happened { stop, records, value, key: snippet.key }))
    }

    /// Has the guest leave by a port.
    pub(super) fn leave(&mut self, tasks: &mut Tasks<'_>) -> Result<Exit, Error> {
        let exit = self.leave_by(tasks, self.harness.leave)?;
        if let Exit::Port(_) = exit {
            self.vm.complete(tasks)?;
        }
        Ok(exit)
    }

    /// Has the guest leave by HLT.
    pub(super) fn halt(&mut self, tasks: &mut Tasks<'_>) -> Result<Exit, Error> {
        self.leave_by(tasks, self.harness.halt)
    }

    fn leave_by(&mut self, tasks: &mut Tasks<'_>, way: u64) -> Result<Exit, Error> {
        if let Stop::Left(exit) = self.enter(tasks)? {
            return Ok(exit);
        }
        self.vm.board(board::GO, way);
        match self.until_left(tasks)? {
            Stop::Left(exit) => Ok(exit),
            Stop::Parked => Err(Error::Lost("a guest does not leave".to_owned())),
        }
    }

    /// Interrupts the guest where it waits.
    pub(super) fn interrupt(&mut self, tasks: &mut Tasks<'_>) -> Result<Exit, Error> {
        if let Stop::Left(exit) = self.enter(tasks)? {
            return Ok(exit);
        }
        self.vm.kick(tasks)?;
        let stop = self.await_exit(tasks, |_| false)?;
        self.vm.forget_kick(tasks)?;
        match stop {
            Stop::Left(exit) => Ok(exit),
            Stop::Parked => Err(Error::Lost("a guest does not mind a signal".to_owned())),
        }
    }

    /// Lets the guest run until it waits, or leaves otherwise than by that port.
    fn until_parked(&mut self, tasks: &mut Tasks<'_>, port: Option<u16>) -> Result<Stop, Error> {
        let parked = |vm: &Vm| vm.on_board(board::GO) == 0 && vm.on_board(board::PARKED) != 0;
        loop {
            let stop = self.await_exit(tasks, parked)?;
            if !self.goes_on(stop, port) {
                return Ok(stop);
            }
            self.vm.enter(tasks)?;
        }
    }

    /// Lets the guest run until it leaves.
    fn until_left(&mut self, tasks: &mut Tasks<'_>) -> Result<Stop, Error> {
        loop {
            let stop = self.await_exit(tasks, |_| false)?;
            if !self.goes_on(stop, None) {
                return Ok(stop);
            }
            self.vm.enter(tasks)?;
        }
    }

    /// Whether an exit is nobody's business: the port that the line is about, a step of a debugger that wants them, a
    /// signal that was meant for somebody else.
    fn goes_on(&self, stop: Stop, expected: Option<u16>) -> bool {
        match stop {
            Stop::Left(Exit::Port(port)) => Some(port) == expected,
            Stop::Left(Exit::Debug { dr6, .. }) => self.is_stepped() && Dr6(dr6).events() & !Dr6::BS == 0,
            Stop::Left(Exit::Signal) => true,
            Stop::Left(_) | Stop::Parked => false,
        }
    }

    fn await_exit(&mut self, tasks: &mut Tasks<'_>, parked: impl Fn(&Vm) -> bool) -> Result<Stop, Error> {
        let end = Instant::now() + LIMIT;
        let mut rounds = 0;
        loop {
            // It takes microseconds as a rule.
            for _ in 0..100 {
                if parked(&self.vm) {
                    return Ok(Stop::Parked);
                }
                std::hint::spin_loop();
            }
            rounds += 1;
            let wait = if rounds < 100 { Duration::ZERO } else { Duration::from_millis(1) };
            if let Some(answer) = tasks.left_guest(wait)? {
                return Ok(Stop::Left(self.vm.exit(&answer)));
            }
            if !(tasks.going)() {
                return Err(Error::Interrupted);
            }
            if Instant::now() > end {
                return Err(Error::Lost("a guest does not come back".to_owned()));
            }
        }
    }
}
