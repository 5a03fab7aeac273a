//! The steps of the model: a CPU's [`Steps`] on the live machine, with a probe in front of each.
//!
//! With the probe `()` this is the plain form and compiles to it. Any other probe is called before every step with the
//! machine itself, so that an NMI or another CPU's event can run there to completion; the interrupted transition then
//! goes on with what it has already read.

#![allow(clippy::inline_always, reason = "which step it is, every caller knows; a call would be three times the work")]

use std::panic::Location;

use debugreg::{Dr, Owner, Steps, Word};

use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::vcpu::Vcpu;
use crate::{CounterId, CpuId, VcpuId};

/// What was done, with the value that went in or came out.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// A word was loaded.
    Load(Word, u64),
    /// A word was stored.
    Store(Word, u64),
    /// `word |= bits`.
    Or(Word, u64),
    /// A compare-and-swap to this value, and whether it took.
    CompareExchange(Word, u64, bool),
    /// MOV to a debug register.
    WriteDr(Dr, u64),
    /// MOV from a debug register.
    ReadDr(Dr, u64),
    /// A VMCS or VMCB field was written.
    WriteField(Field, u64),
    /// A VMCS or VMCB field was read.
    ReadField(Field, u64),
    /// VMLAUNCH, VMRESUME or VMRUN: the last moment outside the guest.
    Entry,
}

/// A field of the VMCS or VMCB that concerns debug registers.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Field {
    /// `vmcb.save.dr6` (a VMCS has none).
    GuestDr6,
    /// GUEST_DR7, `vmcb.save.dr7`.
    GuestDr7,
    /// Whether the guest's MOV DR exit: MOV-DR exiting, the 16 DR intercepts.
    DrIntercept,
}

/// Where a transition begins, for those who compare with a traced kernel.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Mark {
    /// A counter is put into a register.
    Install(CounterId),
    /// A counter is taken out of its register.
    Uninstall(CounterId),
    /// The hardware is refreshed from the shadow.
    Restore,
    /// KVM reads the registers that the guest has changed by itself.
    Sync,
    /// The guest is entered.
    Entry,
    /// The handler of an NMI begins: everything is disarmed.
    Nmi,
}

/// Sees every step.
pub trait Probe {
    /// Whether a machine may be a mutant under it (`mutant.rs`).
    const MUTATES: bool = true;

    /// Called before each step; may change the machine.
    #[inline]
    fn before(&mut self, machine: &mut Machine, cpu: CpuId) {
        let _ = (machine, cpu);
    }

    /// Called before [`Step::Entry`], besides.
    #[inline]
    fn before_entry(&mut self, machine: &mut Machine, cpu: CpuId) {
        let _ = (machine, cpu);
    }

    /// Called after each step, with what it did.
    #[inline]
    fn step(&mut self, cpu: CpuId, step: Step) {
        let _ = (cpu, step);
    }

    /// Called where a transition begins.
    #[inline]
    fn mark(&mut self, machine: &Machine, cpu: CpuId, mark: Mark) {
        let _ = (machine, cpu, mark);
    }
}

impl Probe for () {
    const MUTATES: bool = false;
}

/// One CPU of the live machine, as the transitions of [`debugreg::bank`] see it.
#[derive(Debug)]
pub struct On<'a, P> {
    /// The machine.
    pub machine: &'a mut Machine,
    /// The CPU.
    pub cpu: CpuId,
    /// Who watches.
    pub probe: &'a mut P,
}

impl<P: Probe> On<'_, P> {
    #[inline]
    fn before(&mut self) -> &mut debugreg::Bank {
        self.probe.before(self.machine, self.cpu);
        &mut self.machine.cpus[self.cpu.index()].bank
    }

    /// A step that writes something, or what a mutant makes of it.
    #[inline(always)]
    fn write(&mut self, step: Step, site: &'static Location<'static>) {
        if P::MUTATES && self.machine.mutant.is_some() {
            for step in Mutant::alter(self.machine, self.cpu, step, site).into_iter().flatten() {
                self.act(step);
            }
        } else {
            self.act(step);
        }
    }

    #[inline(always)]
    fn act(&mut self, step: Step) {
        match step {
            Step::Store(word, value) => self.before().store(word, value),
            Step::Or(word, bits) => self.before().or(word, bits),
            Step::WriteDr(dr, value) => {
                self.before().cost.dr_writes += 1;
                // Linux wrote 0 to DR6 and to DR7 for years.
                self.machine.write_hardware(self.cpu, dr, value);
            }
            // One that a mutant has held back: the vCPU is that of the thread that runs.
            Step::WriteField(..) => {
                let running = self.machine.running(self.cpu);
                let id = self.machine.vcpus_of(running).next();
                if let Some(id) = id {
                    let host = On { machine: self.machine, cpu: self.cpu, probe: self.probe };
                    Kvm { host, id }.act(step);
                }
                return;
            }
            _ => {}
        }
        self.after(step);
    }

    /// Does what a mutant has held back, at the latest now.
    #[inline]
    pub(crate) fn catch_up(&mut self) {
        if P::MUTATES
            && let Some((cpu, step)) = Mutant::release(self.machine)
        {
            On { machine: self.machine, cpu, probe: self.probe }.act(step);
        }
    }

    #[inline]
    fn after(&mut self, step: Step) {
        self.probe.step(self.cpu, step);
    }

    /// The entry itself, as far as an NMI can tell (on SVM it waits behind CLGI, and ends the guest's turn at once).
    #[inline]
    pub(crate) fn enter_guest(&mut self) {
        self.catch_up();
        self.before();
        self.probe.before_entry(self.machine, self.cpu);
        self.after(Step::Entry);
    }

    /// Says that a transition begins here.
    #[inline]
    pub fn mark(&mut self, mark: Mark) {
        self.probe.mark(self.machine, self.cpu, mark);
    }
}

impl<P: Probe> Steps for On<'_, P> {
    #[inline]
    fn load(&mut self, word: Word) -> u64 {
        let value = self.before().load(word);
        self.after(Step::Load(word, value));
        value
    }

    #[inline]
    #[track_caller]
    fn store(&mut self, word: Word, value: u64) {
        self.write(Step::Store(word, value), Location::caller());
    }

    #[inline]
    #[track_caller]
    fn or(&mut self, word: Word, bits: u64) {
        self.write(Step::Or(word, bits), Location::caller());
    }

    #[inline]
    #[track_caller]
    fn compare_exchange(&mut self, word: Word, old: u64, new: u64) -> bool {
        if P::MUTATES && self.machine.mutant.is_some() {
            let step = Step::CompareExchange(word, new, true);
            match Mutant::alter(self.machine, self.cpu, step, Location::caller()) {
                [None, _] => return true,
                [Some(Step::CompareExchange(_, other, _)), _] if other != new => {
                    return self.compare_exchange(word, old, other);
                }
                _ => {}
            }
        }
        let took = self.before().compare_exchange(word, old, new);
        self.after(Step::CompareExchange(word, new, took));
        took
    }

    #[inline]
    #[track_caller]
    fn write_dr(&mut self, dr: Dr, value: u64) {
        self.write(Step::WriteDr(dr, value), Location::caller());
    }

    #[inline]
    fn read_dr(&mut self, dr: Dr) -> u64 {
        let value = self.before().read_dr(dr);
        self.after(Step::ReadDr(dr, value));
        value
    }
}

/// A vCPU on the CPU of its thread, as a KVM half sees it.
#[derive(Debug)]
pub struct Kvm<'a, P> {
    /// The CPU.
    pub host: On<'a, P>,
    /// The vCPU.
    pub id: VcpuId,
}

impl<P: Probe> Kvm<'_, P> {
    /// The vCPU's own memory: only its thread touches it, so reading and writing it is no step.
    #[inline]
    pub fn vcpu(&mut self) -> &mut Vcpu {
        &mut self.host.machine.vcpus[self.id.index()]
    }

    /// Writes a VMCS or VMCB field.
    #[inline(always)]
    #[track_caller]
    pub fn write_field(&mut self, field: Field, value: u64) {
        let step = Step::WriteField(field, value);
        if P::MUTATES && self.host.machine.mutant.is_some() {
            for step in Mutant::alter(self.host.machine, self.host.cpu, step, Location::caller()).into_iter().flatten()
            {
                self.act(step);
            }
        } else {
            self.act(step);
        }
    }

    #[inline(always)]
    fn act(&mut self, step: Step) {
        let Step::WriteField(field, value) = step else { return self.host.act(step) };
        self.before();
        let vmcs = &mut self.vcpu().vmcs;
        match field {
            Field::GuestDr6 => vmcs.dr6 = value,
            Field::GuestDr7 => vmcs.dr7 = value,
            Field::DrIntercept => vmcs.dr_intercept = value != 0,
        }
        self.host.after(step);
    }

    /// Writes a VMCB field unless it holds the value already (`svm_set_dr6`). Looking costs nothing: a VMCB is plain
    /// memory, and an unchanged field does not lose its clean bit.
    #[inline]
    #[track_caller]
    pub fn update_field(&mut self, field: Field, value: u64) {
        if self.field(field) != value {
            self.write_field(field, value);
        }
    }

    /// Reads a VMCS or VMCB field.
    #[inline]
    pub fn read_field(&mut self, field: Field) -> u64 {
        self.before();
        let value = self.field(field);
        self.host.after(Step::ReadField(field, value));
        value
    }

    #[inline]
    fn before(&mut self) {
        self.host.probe.before(self.host.machine, self.host.cpu);
        self.host.machine.cost_of(self.host.cpu).vmcs += 1;
    }

    #[inline]
    fn field(&mut self, field: Field) -> u64 {
        let vmcs = &self.vcpu().vmcs;
        match field {
            Field::GuestDr6 => vmcs.dr6,
            Field::GuestDr7 => vmcs.dr7,
            Field::DrIntercept => u64::from(vmcs.dr_intercept),
        }
    }
}

/// The word of memory that says a counter owns a slot.
#[inline]
pub(crate) const fn owner(counter: CounterId) -> Owner {
    Owner(counter.0 + 1)
}

/// Whose word of memory that is.
pub(crate) const fn counter_of(owner: Owner) -> Option<CounterId> {
    match owner {
        Owner::NONE | Owner::KGDB => None,
        Owner(word) => Some(CounterId(word - 1)),
    }
}
