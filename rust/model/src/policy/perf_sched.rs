//! Frederic Weisbecker's answer in the mail of September 2009: "When you switch from host to guest, the counter must be
//! scheduled out. And in the reverse direction, it must be scheduled in."
//!
//! Every active counter is uninstalled before the entry and installed after the exit, so the hardware is touched twice
//! for each. A guest's own accesses are emulated one by one, as all of KVM did then.

use super::common;
use super::hooks::Half;
use crate::step::{Kvm, Probe};

pub(super) struct PerfSched;

impl Half for PerfSched {
    fn vm_entry<P: Probe>(kvm: &mut Kvm<'_, P>) {
        let cpu = kvm.host.cpu;
        kvm.host.machine.perf_sched_out_cpu(cpu, kvm.host.probe);
        if kvm.vcpu().bp_enabled {
            // Nothing of the host is armed any more: DR7 needs no write.
            kvm.write_addresses();
        }
        common::load_dr6(kvm);
    }

    fn vm_exit<P: Probe>(kvm: &mut Kvm<'_, P>) {
        let cpu = kvm.host.cpu;
        kvm.host.machine.perf_sched_in_cpu(cpu, kvm.host.probe);
    }
}
