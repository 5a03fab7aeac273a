//! What a replay shows of a policy's manners: what the mail asked for, event by event.

use debugreg_model::{CpuId, Machine};

/// How often something was asked of a policy, how often it failed, and where first.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// How often there was occasion.
    pub occasions: u64,
    /// How often it went wrong.
    pub failures: u64,
    /// The line of the first failure.
    pub first: Option<u32>,
}

impl Tally {
    fn count(&mut self, line: u32, failed: bool) {
        self.occasions += 1;
        if failed {
            self.failures += 1;
            self.first = self.first.or(Some(line));
        }
    }

    /// Whether it never failed.
    pub fn kept(&self) -> bool {
        self.failures == 0
    }
}

/// The laws that a replay can watch, and what it saw.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Observed {
    /// `host-armed`: after each event in host context, armed is what is owed.
    pub host_armed: Tally,
    /// `guest-armed`: after each entry, and each MOV DR of a guest that is known, armed is what is owed.
    pub guest_armed: Tally,
    /// `entry-quiet`: at the entry itself no host breakpoint is armed.
    pub entry_quiet: Tally,
    /// `skip-free`: with no breakpoint anywhere in sight a hook touches neither a debug register nor the VMCS or VMCB.
    pub skip_free: Tally,
    /// Jan's wish: on the way into a guest that has no breakpoints, no debug register is touched although the host has.
    pub way_out: Tally,
}

impl Observed {
    /// The laws by name, with what was seen.
    pub fn laws(&self) -> [(&'static str, Tally); 5] {
        [
            ("host-armed", self.host_armed),
            ("guest-armed", self.guest_armed),
            ("entry-quiet", self.entry_quiet),
            ("skip-free", self.skip_free),
            ("way-out", self.way_out),
        ]
    }
}

/// What was set on a CPU before a hook ran.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Before {
    touched: u64,
    host: bool,
}

/// Watches one machine.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    pub(crate) observed: Observed,
}

impl Observer {
    pub(crate) fn before(machine: &Machine, cpu: CpuId) -> Before {
        Before { touched: machine.cpu(cpu).bank.cost.touched(), host: !machine.owed(cpu).is_empty() }
    }

    /// After a task switch or a VM exit; `guest` says whether a guest had anything in the registers.
    pub(crate) fn hook(&mut self, machine: &Machine, cpu: CpuId, line: u32, before: Before, guest: bool) {
        if !before.host && !guest && machine.owed(cpu).is_empty() {
            let touched = machine.cpu(cpu).bank.cost.touched() != before.touched;
            self.observed.skip_free.count(line, touched);
        }
    }

    /// After a VM entry.
    pub(crate) fn entry(&mut self, machine: &Machine, cpu: CpuId, line: u32, before: Before, guest: bool) {
        let touched = machine.cpu(cpu).bank.cost.touched() != before.touched;
        match (before.host, guest) {
            (false, false) => self.observed.skip_free.count(line, touched),
            (true, false) => self.observed.way_out.count(line, touched),
            (_, true) => {}
        }
    }

    /// At the entry itself, when the policy is done and the hardware has not begun.
    pub(crate) fn at_entry(&mut self, machine: &Machine, cpu: CpuId, line: u32) {
        if !machine.owed(cpu).is_empty() {
            self.observed.entry_quiet.count(line, !machine.armed(cpu).is_empty());
        }
    }

    /// Outside transitions.
    pub(crate) fn settled(&mut self, machine: &Machine, cpu: CpuId, line: u32) {
        let apart = machine.armed(cpu) != machine.owed(cpu);
        if machine.guest(cpu).is_some() {
            self.observed.guest_armed.count(line, apart);
        } else {
            self.observed.host_armed.count(line, apart);
        }
    }
}
