//! The kernel debugger: it stops every CPU, sets and removes breakpoints on all of them, and lets them go.
//!
//! Today's kgdb takes its slots through perf's accounting and its registers through perf's install (late), or writes the
//! registers itself and tells nobody (early). With the delta `announce` it announces its slots instead
//! ([`debugreg::announce`]), and everybody else keeps off them.
//!
//! Source: arch/x86/kernel/kgdb.c, kernel/debug/debug_core.c (`kgdb_cpu_enter`), 6.17; read, not run: the kernels that
//! were asked have no kgdb.

use debugreg::announce::{self, Loan};
use debugreg::{Breakpoint, Dr, Dr7, Kind, Length, Owner, Slot, Steps, bank, encode_dr7, encode_slot};

use crate::counter::{Attr, BpType, Origin, State};
use crate::event::{Errno, Kgdb, Misuse, Outcome, Refusal};
use crate::machine::Machine;
use crate::policy::{Delta, HostHalf};
use crate::step::{Mark, On, Probe, owner};
use crate::{CounterId, CpuId, VcpuId};

/// What kgdb remembers (`breakinfo[]`, `early_dr7`), and whom it has stopped.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Debugger {
    /// By kgdb's own numbers, which are not those of registers once perf is there.
    breakinfo: [Option<Entry>; 4],
    early_dr7: u64,
    /// The CPUs that stand still, the one that talks first.
    stopped: Vec<Stopped>,
    /// `kgdb_enter` has come to its end, and no command is being performed: it listens.
    is_at_prompt: bool,
    /// Somebody has used it: until then it is not among the notifiers of #DB.
    pub(crate) is_connected: bool,
}

/// An enabled entry of `breakinfo`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Entry {
    bp: Breakpoint,
    /// On which CPUs it is, and as what.
    parts: Vec<(CpuId, Part)>,
}

/// One CPU's part of a breakpoint.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
enum Part {
    /// Early: register `breakno`, and nobody knows.
    Register(Slot),
    /// Late: an event that holds a slot of perf's accounting; which register shows when it is installed.
    Event(CounterId),
    /// An announced slot.
    Announced(Slot),
}

/// A CPU that stands still.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
struct Stopped {
    cpu: CpuId,
    /// The NMI that stopped it has saved this; the CPU that talks was stopped in its own way.
    nmi: Option<Saved>,
    /// The guest that it was running.
    guest: Option<VcpuId>,
    /// What DR7 was when the CPU that talks entered without an NMI or #DB, under the delta `announce`.
    entered: Option<Saved>,
}

/// What a handler that disarms the registers must arm again.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Saved {
    dr7: u64,
    loan: Option<Loan>,
}

impl Debugger {
    /// The events that it has of perf's.
    pub(crate) fn counters(&self) -> impl Iterator<Item = CounterId> + '_ {
        let parts = self.breakinfo.iter().flatten().flat_map(|entry| &entry.parts);
        parts.filter_map(|&(_, part)| if let Part::Event(id) = part { Some(id) } else { None })
    }

    /// Whether it holds nobody and nothing.
    #[inline]
    pub(crate) fn is_unused(&self) -> bool {
        self.stopped.is_empty()
    }

    /// Calls them otherwise.
    pub(crate) fn rename_counters(&mut self, new: impl Fn(CounterId) -> CounterId) {
        for (_, part) in self.breakinfo.iter_mut().flatten().flat_map(|entry| &mut entry.parts) {
            if let Part::Event(id) = part {
                *id = new(*id);
            }
        }
    }

    /// What a CPU's registers were lent with, on the way into it.
    pub(crate) fn loans(&mut self, cpu: CpuId) -> impl Iterator<Item = &mut Loan> {
        let stopped = self.stopped.iter_mut().filter(move |stopped| stopped.cpu == cpu);
        stopped.flat_map(|stopped| [&mut stopped.nmi, &mut stopped.entered]).flatten().filter_map(|s| s.loan.as_mut())
    }

    /// The addresses of its breakpoints.
    pub(crate) fn each_address(&mut self, f: &mut impl FnMut(&mut u64)) {
        self.breakinfo.iter_mut().flatten().for_each(|entry| f(&mut entry.bp.address));
    }
}

impl Machine {
    /// The CPU from which kgdb has the machine.
    pub fn kgdb_master(&self) -> Option<CpuId> {
        self.debugger.stopped.first().map(|stopped| stopped.cpu)
    }

    /// The breakpoints that kgdb has on a CPU, each in its slot if that is known.
    pub(crate) fn kgdb_breakpoints(&self, cpu: CpuId) -> impl Iterator<Item = (Option<Slot>, Breakpoint)> + '_ {
        self.debugger.breakinfo.iter().flatten().flat_map(move |entry| {
            let here = entry.parts.iter().filter(move |(of, _)| *of == cpu);
            here.map(move |&(_, part)| match part {
                Part::Register(slot) | Part::Announced(slot) => (Some(slot), entry.bp),
                Part::Event(id) => {
                    (self.cpu(cpu).bank.owner.iter().position(|&o| o == owner(id)).and_then(Slot::new), entry.bp)
                }
            })
        })
    }

    /// `local_db_save`; under `announce` the registers are lent, too. FRED leaves them alone.
    pub(crate) fn db_save<P: Probe>(&mut self, cpu: CpuId, probe: &mut P) -> Saved {
        let hypervisor = self.options.hypervisor;
        let announces = self.policy.has(Delta::Announce);
        let mut on = On { machine: self, cpu, probe };
        let loan = announces.then(|| announce::lend(&mut on));
        Saved { dr7: bank::local_db_save(&mut on, hypervisor), loan }
    }

    /// `local_db_restore`.
    pub(crate) fn db_restore<P: Probe>(&mut self, cpu: CpuId, saved: Saved, probe: &mut P) {
        let mut on = On { machine: self, cpu, probe };
        match saved.loan {
            Some(loan) => announce::take_back(&mut on, loan, saved.dr7),
            None => bank::local_db_restore(&mut on, saved.dr7),
        }
    }

    /// A command of the debugger, from the CPU that talks.
    pub(crate) fn kgdb<P: Probe>(&mut self, cpu: CpuId, command: Kgdb, probe: &mut P) -> Result<Outcome, Misuse> {
        self.has_kgdb()?;
        self.online(cpu)?;
        match (command, self.kgdb_master()) {
            (Kgdb::Enter, None) => {
                self.host_cpu(cpu)?;
                // By a breakpoint instruction: `exc_int3` saves no DR7.
                let entered = self.policy.has(Delta::Announce).then(|| self.disarm_by_hand(cpu, probe));
                self.kgdb_stop(cpu, probe);
                self.debugger.stopped[0].entered = entered;
                self.debugger.is_at_prompt = true;
                Ok(Outcome::Ok)
            }
            (_, Some(master)) if master != cpu => Err(Misuse::InKgdb(master)),
            (Kgdb::Enter, Some(master)) => Err(Misuse::InKgdb(master)),
            // Inside an NMI or #DB that it handles, or inside another command, nobody can give it one.
            (_, None) => Err(Misuse::NotInKgdb),
            (_, Some(_)) if !self.debugger.is_at_prompt => Err(Misuse::NotInKgdb),
            (Kgdb::Set(kind, address, length), Some(_)) => {
                Ok(self.kgdb_command(|machine| machine.kgdb_set(kind, address, length, probe)))
            }
            (Kgdb::Clear(address), Some(_)) => Ok(self.kgdb_command(|machine| machine.kgdb_clear(address, probe))),
            (Kgdb::Resume, Some(_)) => {
                self.debugger.is_at_prompt = false;
                let entered = self.debugger.stopped[0].entered;
                self.kgdb_go(probe);
                if let Some(saved) = entered {
                    self.db_restore(cpu, saved, probe);
                }
                Ok(Outcome::Ok)
            }
        }
    }

    fn kgdb_command(&mut self, command: impl FnOnce(&mut Machine) -> Result<(), Refusal>) -> Outcome {
        self.debugger.is_at_prompt = false;
        let outcome = answer(command(self));
        self.debugger.is_at_prompt = true;
        outcome
    }

    /// What [`Machine::db_save`] does where no handler has done it.
    fn disarm_by_hand<P: Probe>(&mut self, cpu: CpuId, probe: &mut P) -> Saved {
        let mut on = On { machine: self, cpu, probe };
        let loan = announce::lend(&mut on);
        Saved { dr7: bank::local_db_save(&mut on, false), loan: Some(loan) }
    }

    pub(crate) fn has_kgdb(&self) -> Result<(), Misuse> {
        match self.policy.host {
            HostHalf::Perf => Ok(()),
            HostHalf::Thread => Err(Misuse::NotExpressible("kgdb's breakpoints are modelled from 2.6.33 on")),
        }
    }

    /// Inside an NMI: the machine stops, one command, and it goes on.
    pub(crate) fn kgdb_in_nmi<P: Probe>(&mut self, cpu: CpuId, command: Kgdb, probe: &mut P) -> Outcome {
        self.kgdb_stop(cpu, probe);
        let result = match command {
            Kgdb::Set(kind, address, length) => self.kgdb_set(kind, address, length, probe),
            Kgdb::Clear(address) => self.kgdb_clear(address, probe),
            Kgdb::Enter | Kgdb::Resume => Ok(()),
        };
        self.kgdb_go(probe);
        answer(result)
    }

    /// `kgdb_cpu_enter` of all CPUs (12.3): the master disables, the others are called by NMI and disable, too.
    pub(crate) fn kgdb_stop<P: Probe>(&mut self, master: CpuId, probe: &mut P) {
        self.debugger.is_connected = true;
        self.kgdb_disable(master, probe);
        self.debugger.stopped.push(Stopped { cpu: master, nmi: None, guest: None, entered: None });
        for cpu in self.online_cpus().into_iter().filter(|&cpu| cpu != master) {
            let guest = self.guest(cpu);
            if let Some(guest) = guest {
                self.nmi_exit(guest, cpu);
            }
            let nmi = (!self.options.fred).then(|| self.db_save(cpu, probe));
            self.kgdb_disable(cpu, probe);
            self.debugger.stopped.push(Stopped { cpu, nmi, guest, entered: None });
        }
    }

    /// The others correct their registers and return from their NMIs; then the master corrects his.
    pub(crate) fn kgdb_go<P: Probe>(&mut self, probe: &mut P) {
        let mut stopped = std::mem::take(&mut self.debugger.stopped);
        let master = stopped.remove(0);
        for Stopped { cpu, nmi, guest, .. } in stopped {
            self.kgdb_correct(cpu, probe);
            // A snapshot from before: what was set since is lost, what was removed is armed again (D-K1).
            if let Some(saved) = nmi {
                self.db_restore(cpu, saved, probe);
            }
            if let Some(guest) = guest {
                self.nmi_return(guest, cpu, probe);
            }
        }
        self.kgdb_correct(master.cpu, probe);
    }

    /// `kgdb_disable_hw_debug`.
    fn kgdb_disable<P: Probe>(&mut self, cpu: CpuId, probe: &mut P) {
        if self.policy.has(Delta::Announce) {
            return;
        }
        let mut on = On { machine: self, cpu, probe };
        // a
        on.write_dr(Dr::Control, Dr7::RESET.0);
        // b
        for part in self.parts_on(cpu) {
            match part {
                (Part::Register(slot), bp) => {
                    self.debugger.early_dr7 &= !encode_slot(slot, bp.kind, bp.length);
                }
                (Part::Event(id), bp) if self.counter(id).state == State::Active => {
                    let mut on = On { machine: self, cpu, probe };
                    on.mark(Mark::Uninstall(id));
                    bank::uninstall(&mut on, owner(id), bp);
                    self.set_state(id, State::Inactive);
                }
                (Part::Event(_) | Part::Announced(_), _) => {}
            }
        }
    }

    /// `kgdb_correct_hw_break`.
    fn kgdb_correct<P: Probe>(&mut self, cpu: CpuId, probe: &mut P) {
        if self.policy.has(Delta::Announce) {
            return;
        }
        for (part, bp) in self.parts_on(cpu) {
            match part {
                Part::Register(slot) => {
                    let mut on = On { machine: self, cpu, probe };
                    on.write_dr(Dr::Address(slot), bp.address);
                    on.machine.debugger.early_dr7 |= encode_dr7(slot, bp.kind, bp.length);
                    let dr7 = on.machine.debugger.early_dr7;
                    on.write_dr(Dr::Control, dr7);
                }
                Part::Event(id) if self.counter(id).state != State::Active => {
                    let clock = self.clock;
                    let mut on = On { machine: self, cpu, probe };
                    on.mark(Mark::Install(id));
                    if let Some(slot) = bank::install(&mut on, owner(id), bp) {
                        self.set_state(id, State::Active);
                        self.cpus[cpu.index()].announced[slot.index()] = clock;
                    }
                }
                Part::Event(_) | Part::Announced(_) => {}
            }
        }
        if !self.options.kgdb_early {
            Machine::refresh_marked(&mut On { machine: self, cpu, probe });
        }
    }

    fn parts_on(&self, cpu: CpuId) -> Vec<(Part, Breakpoint)> {
        let entries = self.debugger.breakinfo.iter().flatten();
        let parts = entries.flat_map(|entry| entry.parts.iter().map(move |&(of, part)| (of, part, entry.bp)));
        parts.filter(|&(of, ..)| of == cpu).map(|(_, part, bp)| (part, bp)).collect()
    }

    /// `kgdb_set_hw_break`: nothing is checked but kind and length.
    fn kgdb_set<P: Probe>(&mut self, kind: BpType, address: u64, length: u64, probe: &mut P) -> Result<(), Refusal> {
        // 1
        let free = self.debugger.breakinfo.iter().position(Option::is_none);
        let number = free.and_then(Slot::new).ok_or(Refusal::bare("kgdb has four breakpoints already"))?;
        // 2, 3
        let (kind, length) = match kind {
            BpType::X => (Kind::Execute, Some(Length::One)),
            BpType::W => (Kind::Write, Length::from_bytes(length)),
            BpType::Rw => (Kind::ReadWrite, Length::from_bytes(length)),
            BpType::R => return Err(Refusal::bare("kgdb has no read watchpoint on x86")),
        };
        let length = length.ok_or(Refusal::bare("kgdb watches 1, 2, 4 or 8 bytes"))?;
        let bp = Breakpoint { address, kind, length };
        // 5
        let mut parts: Vec<(CpuId, Part)> = Vec::new();
        for cpu in self.online_cpus() {
            match self.kgdb_take(cpu, number, bp, probe) {
                Ok(part) => parts.push((cpu, part)),
                Err(refusal) => {
                    for (cpu, part) in parts {
                        self.kgdb_give_back(cpu, part, bp, probe);
                    }
                    return Err(Refusal { errno: None, ..refusal });
                }
            }
        }
        // 6
        self.debugger.breakinfo[number.index()] = Some(Entry { bp, parts });
        Ok(())
    }

    /// One CPU's slot (`dbg_reserve_bp_slot`): counted as an event that is bound to the CPU.
    fn kgdb_take<P: Probe>(
        &mut self,
        cpu: CpuId,
        number: Slot,
        bp: Breakpoint,
        probe: &mut P,
    ) -> Result<Part, Refusal> {
        if self.options.kgdb_early && !self.policy.has(Delta::Announce) {
            return Ok(Part::Register(number));
        }
        self.reserve(None, Some(cpu))?;
        if self.policy.has(Delta::Announce) {
            let mut on = On { machine: self, cpu, probe };
            // Whom perf has admitted leaves a register free for whom it would still admit; nobody is moved.
            let slot = Slot::ALL.into_iter().find(|&slot| announce::reserve(&mut on, slot));
            let slot = slot.ok_or(Refusal::bare("every register of a CPU has an owner"))?;
            announce::set(&mut on, slot, bp);
            self.histogram.toggle_cpu(cpu, 1);
            self.cpus[cpu.index()].announced[slot.index()] = self.clock;
            return Ok(Part::Announced(slot));
        }
        let bp_type = match bp.kind {
            Kind::Execute => BpType::X,
            Kind::Write => BpType::W,
            Kind::ReadWrite | Kind::Io => BpType::Rw,
        };
        let attr = Attr { disabled: true, ..Attr::kernel(bp_type, bp.address, bp.length.bytes()) };
        Ok(Part::Event(self.create(attr, bp, None, Some(cpu), Origin::Kgdb(number.index() as u8))))
    }

    fn kgdb_give_back<P: Probe>(&mut self, cpu: CpuId, part: Part, bp: Breakpoint, probe: &mut P) {
        match part {
            Part::Register(_) => {}
            Part::Event(id) => self.bury(id),
            Part::Announced(slot) => {
                announce::clear(&mut On { machine: self, cpu, probe }, slot, bp);
                self.histogram.toggle_cpu(cpu, -1);
            }
        }
    }

    /// `kgdb_remove_hw_break`.
    fn kgdb_clear<P: Probe>(&mut self, address: u64, probe: &mut P) -> Result<(), Refusal> {
        let entries = &mut self.debugger.breakinfo;
        let entry = entries.iter_mut().find(|entry| entry.as_ref().is_some_and(|entry| entry.bp.address == address));
        let entry = entry.and_then(Option::take).ok_or(Refusal::bare("kgdb has no breakpoint at that address"))?;
        for (cpu, part) in entry.parts {
            // `hw_break_release_slot` asks the CPUs that are online: on one that is away the event keeps its slot, and is
            // still in the shadow when that CPU comes back.
            if self.is_online(cpu) || !matches!(part, Part::Event(_)) {
                self.kgdb_give_back(cpu, part, entry.bp, probe);
            }
        }
        Ok(())
    }

    /// `kgdb_hw_overflow_handler`: it does not know which one was hit, and marks all that are enabled.
    pub(crate) fn kgdb_marks(&self) -> u64 {
        let enabled = self.debugger.breakinfo.iter().map(Option::is_some);
        (0..).zip(enabled).fold(0, |marks, (number, enabled)| marks | u64::from(enabled) << number)
    }

    /// kgdb announces a slot without a breakpoint in it. Who has it keeps it, and perf's promises are kept: a slot that
    /// an admitted counter may need is refused as well.
    pub(crate) fn kgdb_announce<P: Probe>(&mut self, cpu: CpuId, slot: Slot, probe: &mut P) -> Outcome {
        if let Err(refusal) = self.reserve(None, Some(cpu)) {
            return Outcome::Refused(refusal);
        }
        let holder = crate::step::counter_of(self.cpu(cpu).bank.owner[slot.index()]);
        if announce::reserve(&mut On { machine: self, cpu, probe }, slot) {
            self.histogram.toggle_cpu(cpu, 1);
            self.cpus[cpu.index()].announced[slot.index()] = self.clock;
            return Outcome::Ok;
        }
        let holders = holder.into_iter().collect();
        Outcome::Refused(Refusal { errno: Some(Errno::EBUSY), rule: "somebody holds that slot right now", holders })
    }

    /// kgdb gives a slot back in which it has set nothing.
    pub(crate) fn kgdb_release<P: Probe>(&mut self, cpu: CpuId, slot: Slot, probe: &mut P) -> Outcome {
        let in_use = self.parts_on(cpu).iter().any(|&(part, _)| part == Part::Announced(slot));
        if !in_use && announce::release(&mut On { machine: self, cpu, probe }, slot) {
            self.histogram.toggle_cpu(cpu, -1);
            return Outcome::Ok;
        }
        Outcome::Refused(Refusal::new(Errno::EINVAL, "kgdb has not announced that slot, or has a breakpoint in it"))
    }

    /// Whether a slot is announced.
    pub(crate) fn is_announced(&self, cpu: CpuId, slot: Slot) -> bool {
        self.cpu(cpu).bank.owner[slot.index()] == Owner::KGDB
    }
}

fn answer(result: Result<(), Refusal>) -> Outcome {
    match result {
        Ok(()) => Outcome::Ok,
        Err(refusal) => Outcome::Refused(refusal),
    }
}
