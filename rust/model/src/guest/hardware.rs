//! What the processor switches by itself.
//!
//! | | entry loads | exit saves | after an exit |
//! |---|---|---|---|
//! | VMX | DR7 | DR7 | DR7 = 0x400 |
//! | SVM | DR6, DR7 | DR6, DR7 | DR7 disarmed; DR6 as the guest had it: AMD's manual does not list it |
//! | TDX | all | all | reset values (the TDX module) |
//! | SEV-ES | DR6, DR7 | DR6, DR7 | both as before the entry |
//! | SEV-ES with DebugSwap | all | all | DR6, DR7 as before the entry; DR0-DR3 as KVM has stored them |
//! | PVM | nothing | nothing | software does it |

use debugreg::{Dr7, Registers};

use crate::machine::Machine;
use crate::policy::hooks::World;
use crate::{CpuId, VcpuId};

impl Machine {
    pub(super) fn hardware_entry(&mut self, id: VcpuId, on: CpuId) {
        let (world, is_amd) = (self.policy.world(), self.is_amd());
        let cpu = &mut self.cpus[on.index()];
        let vcpu = &mut self.vcpus[id.index()];
        let hardware = &mut cpu.bank.hardware;
        let host = *hardware;
        match world {
            World::Virtualised => {
                hardware.dr7 = vcpu.vmcs.dr7 | Dr7::FIXED;
                if is_amd {
                    hardware.dr6 = vcpu.vmcs.dr6;
                }
            }
            World::Software => {}
            World::Tdx => *hardware = vcpu.vmsa,
            World::SevEs | World::DebugSwap => {
                (vcpu.saved.dr6, vcpu.saved.dr7) = (hardware.dr6, hardware.dr7);
                (hardware.dr6, hardware.dr7) = (vcpu.vmsa.dr6, vcpu.vmsa.dr7);
                if world == World::DebugSwap {
                    hardware.dr = vcpu.vmsa.dr;
                }
            }
        }
        self.turns[on.index()].guest = Some(id);
        self.emulate_entry(on, host);
    }

    pub(super) fn hardware_exit(&mut self, id: VcpuId, on: CpuId) {
        let (world, is_amd) = (self.policy.world(), self.is_amd());
        let cpu = &mut self.cpus[on.index()];
        let vcpu = &mut self.vcpus[id.index()];
        let hardware = &mut cpu.bank.hardware;
        let guest = *hardware;
        match world {
            World::Virtualised => {
                vcpu.vmcs.dr7 = hardware.dr7;
                if is_amd {
                    vcpu.vmcs.dr6 = hardware.dr6;
                }
                hardware.dr7 = Dr7::RESET.0;
            }
            World::Software => {}
            World::Tdx => {
                vcpu.vmsa = *hardware;
                *hardware = Registers::RESET;
            }
            World::SevEs | World::DebugSwap => {
                vcpu.vmsa = *hardware;
                (hardware.dr6, hardware.dr7) = (vcpu.saved.dr6, vcpu.saved.dr7);
                if world == World::DebugSwap {
                    hardware.dr = vcpu.saved.dr;
                }
            }
        }
        self.turns[on.index()].guest = None;
        self.emulate_exit(on, guest);
    }
}
