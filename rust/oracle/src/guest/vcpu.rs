//! One vCPU: how its guest is entered, does what a line says, and leaves.

use std::time::{Duration, Instant};

use debugreg::Dr6;
use debugreg_model::GuestDebug;

use super::code::{Harness, board};
use super::image::{Image, linear, physical};
use super::snippet::{Act, Snippet};
use super::vm::{Exit, Vm};
use crate::Error;
use crate::agent::RET;
use crate::tasks::Tasks;

/// How long a guest may take for anything.
const LIMIT: Duration = Duration::from_secs(5);

/// No snippet is longer.
const LONGEST: usize = 256;

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
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Happened {
    pub(super) stop: Stop,
    /// The first exception.
    pub(super) first: Option<Record>,
    /// Whether there were more than anybody counts.
    pub(super) endless: bool,
    /// What was read from a register.
    pub(super) value: u64,
    /// The instruction that the line is about.
    pub(super) key: u64,
}

/// What ends a line whose guest does not wait yet.
#[derive(Copy, Clone, Default)]
struct Awaited {
    /// The port that the line is about: an exit by it is nobody's business.
    port: Option<u16>,
    /// Where the line's instruction is over: a debugger that steps hears of it.
    after: Option<u64>,
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
        self.vm.recall();
        self.vm.enter(tasks)?;
        self.until_parked(tasks, Awaited::default())
    }

    /// How many exceptions there have been since the last entry or snippet.
    pub(super) fn exceptions(&self) -> u64 {
        self.vm.on_board(board::COUNT)
    }

    /// The first of them.
    pub(super) fn first_exception(&self) -> Option<Record> {
        let [vector, rip, dr6] = [0, 8, 16].map(|field| self.vm.on_board(board::RECORDS + field));
        (self.exceptions() > 0).then_some(Record { vector, rip, dr6 })
    }

    /// Has the guest do something; `None` if there is no such instruction.
    pub(super) fn perform(&mut self, tasks: &mut Tasks<'_>, act: Act) -> Result<Option<Happened>, Error> {
        let Some(snippet) = Snippet::new(act, linear(self.next), &self.harness) else { return Ok(None) };
        if let Stop::Left(exit) = self.enter(tasks)? {
            return Ok(Some(self.happened(Stop::Left(exit), &snippet)));
        }
        self.vm.write(self.next, &snippet.bytes);
        self.next += snippet.bytes.len().next_multiple_of(64);
        // The guest waits, so what it has executed can be overwritten.
        if self.next + LONGEST > physical::CODE_END {
            self.next = Self::first(&self.harness);
        }
        let memory = snippet.memory.as_ref().map_or(&[][..], |(_, bytes)| bytes);
        let address = snippet.memory.as_ref().map_or(0, |&(address, _)| address);
        for (address, &byte) in (0..).map(|at| address.wrapping_add(at)).zip(memory) {
            self.poke(address, byte);
        }
        self.vm.board(board::COUNT, 0);
        self.vm.board(board::KEY, snippet.key);
        self.vm.board(board::GOES_ON, u64::from(snippet.goes_on));
        self.vm.send(snippet.start);
        let port = match act {
            Act::Out { port, .. } => Some(port),
            _ => None,
        };
        let stop = self.until_parked(tasks, Awaited { port, after: Some(snippet.after) })?;
        for (address, _) in (0..).map(|at| address.wrapping_add(at)).zip(memory) {
            self.poke(address, RET);
        }
        if matches!(stop, Stop::Left(Exit::Debug { .. } | Exit::Unknown)) {
            self.vm.set_parked(tasks)?;
        }
        Ok(Some(self.happened(stop, &snippet)))
    }

    fn happened(&self, stop: Stop, snippet: &Snippet) -> Happened {
        // An outer ring comes back by #UD.
        let first = self.first_exception().filter(|record| Some(record.rip) != snippet.way_back);
        let endless = self.exceptions() > board::ENDLESS as u64;
        Happened { stop, first, endless, value: self.vm.on_board(board::VALUE), key: snippet.key }
    }

    /// Writes into the scenario's memory, which nobody's breakpoint sees.
    fn poke(&self, address: u64, byte: u8) {
        if let Some(at) = self.image.offset(address) {
            self.vm.write(at, &[byte]);
        }
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
        self.vm.send(way);
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
        let exit = loop {
            match self.await_exit(tasks, |_| false)? {
                // The signal waits for whoever goes in again.
                stop @ Stop::Left(Exit::Debug { .. }) if self.goes_on(stop, Awaited::default()) => {
                    self.vm.enter(tasks)?;
                }
                Stop::Left(exit) => break exit,
                Stop::Parked => return Err(Error::Lost("a guest does not mind a signal".to_owned())),
            }
        };
        self.vm.forget_kick(tasks)?;
        Ok(exit)
    }

    /// Lets the guest run until it waits, or leaves otherwise than awaited.
    fn until_parked(&mut self, tasks: &mut Tasks<'_>, awaited: Awaited) -> Result<Stop, Error> {
        loop {
            let stop = self.await_exit(tasks, Vm::waits)?;
            if !self.goes_on(stop, awaited) {
                return Ok(stop);
            }
            self.vm.enter(tasks)?;
        }
    }

    /// Lets the guest run until it leaves.
    fn until_left(&mut self, tasks: &mut Tasks<'_>) -> Result<Stop, Error> {
        loop {
            let stop = self.await_exit(tasks, |_| false)?;
            if !self.goes_on(stop, Awaited::default()) {
                return Ok(stop);
            }
            self.vm.enter(tasks)?;
        }
    }

    /// Whether an exit is nobody's business: the port that the line is about, a debugger's step that is not the line's, a
    /// signal that was meant for somebody else.
    fn goes_on(&self, stop: Stop, awaited: Awaited) -> bool {
        match stop {
            Stop::Left(Exit::Port(port)) => Some(port) == awaited.port,
            Stop::Left(Exit::Debug { pc, dr6, .. }) => {
                let only_stepped = Dr6(dr6).events() & !Dr6::BS == 0;
                self.is_stepped() && only_stepped && Some(pc) != awaited.after
            }
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
