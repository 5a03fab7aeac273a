//! How a VM comes to be: its memory, its vCPU in 64-bit mode, waiting.

use std::rc::Rc;

use kvm_bindings as kvm;
use nix::errno::Errno;

use super::code::{Harness, board};
use super::image::{self, Image, physical};
use super::ioctl::{
    CREATE_IRQCHIP, CREATE_VCPU, CREATE_VM, GET_SREGS, GET_VCPU_MMAP_SIZE, Plain, SET_SIGNAL_MASK, SET_SREGS,
    SET_TSS_ADDR, SET_USER_MEMORY_REGION, SignalMask,
};
use super::memory::Mapping;
use super::vm::{Exit, KICK, Vm};
use crate::Error;
use crate::agent::RET;
use crate::channel::{Message, payload};
use crate::tasks::Tasks;

/// Where the memory of the first guest is in its agent, and how far apart those of several are.
const GUEST_BASE: u64 = 0x6deb_1000_0000;
const GUEST_STEP: u64 = 0x1000_0000;

/// What a vCPU is to be.
#[derive(Copy, Clone, Debug)]
pub(super) struct Wanted {
    pub(super) task: usize,
    /// Which of the scenario's.
    pub(super) number: usize,
    /// Whether its local APIC is KVM's.
    pub(super) apic: bool,
    /// CR4.DE.
    pub(super) debug_extensions: bool,
}

/// Creates a VM in a task, ready to wait; or says what is missing.
pub(super) fn create(
    tasks: &mut Tasks<'_>,
    wanted: Wanted,
    image: &Image,
    harness: &Harness,
) -> Result<Result<Vm, String>, Error> {
    let mut creation = Creation { tasks, task: wanted.task };
    let mut vm = match creation.vm(wanted, image, harness) {
        Ok(vm) => vm,
        Err(Trouble::Refused(what, errno)) => {
            return Ok(Err(format!("{what}: {}", Errno::from_raw(errno))));
        }
        Err(Trouble::Broken(error)) => return Err(error),
    };
    // A VM's first run starts a thread in its process (kvm_mmu_post_init_vm), which would inherit counters.
    vm.set_parked(creation.tasks)?;
    vm.send(vm.leave);
    match vm.run_once(creation.tasks)? {
        Exit::Port(_) => Ok(Ok(vm)),
        other => Ok(Err(format!("a guest that only leaves: KVM_RUN came to {other:?}"))),
    }
}

/// Why there is no VM.
enum Trouble {
    Refused(&'static str, i32),
    Broken(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        Trouble::Broken(error)
    }
}

struct Creation<'a, 'w> {
    tasks: &'a mut Tasks<'w>,
    task: usize,
}

impl Creation<'_, '_> {
    fn call(&mut self, what: &'static str, message: &Message) -> Result<u64, Trouble> {
        self.tasks.call(self.task, message)?.result().map_err(|errno| Trouble::Refused(what, errno))
    }

    fn map(&mut self, descriptor: u64, bytes: usize, what: &'static str) -> Result<Mapping, Trouble> {
        let copy = self.tasks.fetch(self.task, descriptor)?;
        Mapping::new(copy, bytes).map_err(|errno| Trouble::Refused(what, errno as i32))
    }

    fn vm(&mut self, wanted: Wanted, image: &Image, harness: &Harness) -> Result<Vm, Trouble> {
        let Wanted { task, number, apic, debug_extensions } = wanted;
        let kvm = self.tasks.world.kvm.map_err(|errno| Trouble::Refused("/dev/kvm", errno))?;
        let ioctl = |descriptor: u64, request: u64, argument: u64| {
            Message::call(libc::SYS_ioctl, &[descriptor, request, argument])
        };
        // The memory: a file that driver and agent map.
        let bytes = image.bytes().len();
        let create = Message::call(libc::SYS_memfd_create, &[payload(0), 0]).with(0, b"guest\0");
        let file = self.call("memfd_create", &create)?;
        self.call("ftruncate", &Message::call(libc::SYS_ftruncate, &[file, bytes as u64]))?;
        let memory = self.map(file, bytes, "mmap of a guest's memory")?;
        memory.write(0, image.bytes());
        memory.write(physical::BOARD + board::RETURNS, &[RET; 16]);
        let base = GUEST_BASE + number as u64 * GUEST_STEP;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE);
        let map = [base, bytes as u64, protection as u64, flags as u64, file, 0];
        self.call("mmap of a guest's memory", &Message::call(libc::SYS_mmap, &map))?;
        // The VM.
        let machine = self.call("KVM_CREATE_VM", &ioctl(kvm, CREATE_VM, 0))?;
        // For VMX without unrestricted guests; others do not mind.
        let _ = self.tasks.call(self.task, &ioctl(machine, SET_TSS_ADDR, 0xfffb_d000))?;
        if apic {
            self.call("KVM_CREATE_IRQCHIP", &ioctl(machine, CREATE_IRQCHIP, 0))?;
        }
        let vcpu = self.call("KVM_CREATE_VCPU", &ioctl(machine, CREATE_VCPU, 0))?;
        let run_bytes = self.call("KVM_GET_VCPU_MMAP_SIZE", &ioctl(kvm, GET_VCPU_MMAP_SIZE, 0))? as usize;
        let run = self.map(vcpu, run_bytes, "mmap of a vCPU")?;
        let (park, leave) = (harness.park, harness.leave);
        let vm = Vm { task, number, machine, vcpu, base, memory: Rc::new(memory), run, has_apic: apic, park, leave };
        let region =
            kvm::kvm_userspace_memory_region { memory_size: bytes as u64, userspace_addr: base, ..Default::default() };
        self.ask(&vm, machine, SET_USER_MEMORY_REGION, region, "KVM_SET_USER_MEMORY_REGION")?;
        let sregs = self.ask(&vm, vcpu, GET_SREGS, kvm::kvm_sregs::default(), "KVM_GET_SREGS")?;
        self.ask(&vm, vcpu, SET_SREGS, long_mode(&sregs, debug_extensions), "KVM_SET_SREGS")?;
        // The signal that interrupts a guest comes through while the guest runs, and at no other time.
        let signal = 1u64 << (KICK - 1);
        let block = Message::call(libc::SYS_rt_sigprocmask, &[libc::SIG_BLOCK as u64, payload(0), 0, 8]);
        self.call("rt_sigprocmask", &block.with(0, &signal.to_le_bytes()))?;
        let set = !signal;
        let mask = SignalMask { length: 8, set: [set as u32, (set >> 32) as u32] };
        self.ask(&vm, vcpu, SET_SIGNAL_MASK, mask, "KVM_SET_SIGNAL_MASK")?;
        Ok(vm)
    }

    fn ask<T: Plain>(
        &mut self,
        vm: &Vm,
        descriptor: u64,
        request: u64,
        argument: T,
        what: &'static str,
    ) -> Result<T, Trouble> {
        vm.ioctl(self.tasks, descriptor, request, argument)?.map_err(|errno| Trouble::Refused(what, errno))
    }
}

/// 64-bit mode in ring 0, with the tables of [`Image`].
fn long_mode(before: &kvm::kvm_sregs, debug_extensions: bool) -> kvm::kvm_sregs {
    const PROTECTION_PAGING: u64 = 1 << 31 | 1 << 5 | 1 << 4 | 1 << 1 | 1; // PG, NE, ET, MP, PE
    const PHYSICAL_ADDRESSES_SSE: u64 = 1 << 5 | 1 << 9 | 1 << 10; // PAE, OSFXSR, OSXMMEXCPT
    const LONG_MODE: u64 = 1 << 8 | 1 << 10; // LME, LMA
    let segment = kvm::kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
    let code = kvm::kvm_segment { selector: image::code_selector(0), type_: 0xb, l: 1, ..segment };
    let data = kvm::kvm_segment { selector: image::data_selector(0), type_: 3, db: 1, ..segment };
    let (base, limit) = image::TASK_STATE;
    let selector = image::TSS_SELECTOR;
    let tr = kvm::kvm_segment { base, limit, selector, type_: 0xb, present: 1, ..Default::default() };
    let table = |(base, limit): (u64, u16)| kvm::kvm_dtable { base, limit, ..Default::default() };
    kvm::kvm_sregs {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr,
        gdt: table(image::GDT),
        idt: table(image::IDT_REGISTER),
        cr0: PROTECTION_PAGING,
        cr3: image::PAGE_TABLES,
        cr4: PHYSICAL_ADDRESSES_SSE | u64::from(debug_extensions) << 3,
        efer: LONG_MODE,
        ..*before
    }
}
