//! The guests of a scenario, on the machine's KVM.
//!
//! Each vCPU has a VM of its own, which its task's agent runs: host breakpoints of that task and the guest's are switched
//! on one CPU. Between VM entry and VM exit the guest stays in, waits for the next line, and does what it says
//! (`code.rs`); if its task is to do something meanwhile, or with two CPUs somebody else, it leaves and comes back, which
//! is an exit more than the scenario has. So is every I/O port and every exception of a guest.
//!
//! A guest reads its DR6 in its handler of #DB. That is an access to a debug register like any other: a kernel that
//! switches lazily opens the window there, and reads the registers back at the next exit. It shows in register contents
//! and in costs, which nobody can observe here.

mod code;
mod create;
mod image;
mod ioctl;
mod line;
mod memory;
mod snippet;
mod unlike;
mod vcpu;
mod vm;

use debugreg::Dr6;
use debugreg::trip::{Access, What};
use debugreg_model::scenario::{Line, Scenario};
use debugreg_model::{Event, Insn, Machine, Outcome, VcpuId, Vendor};

use self::create::Wanted;
use self::image::Image;
use self::line::Performing;
use self::snippet::Act;
use self::unlike::Unlike;
use self::vcpu::Vcpu;
use crate::perform::{pages, unobserved};
use crate::rehearse::Rehearsal;
use crate::report::Seen;
use crate::tasks::Tasks;
use crate::world::World;
use crate::{Error, Going};

/// What this machine's guests are.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// The processor executes their instructions.
    Hardware,
    /// KVM's instruction emulator does: no data breakpoint ever fires.
    Emulated,
}

impl Kind {
    /// Asks the machine: kvm-pvm, and a data breakpoint that does not fire. The module alone is not enough to tell, and
    /// a KVM of hardware that forgets a breakpoint is to be found out, not excused.
    fn of(world: &mut World, going: &mut Going<'_>) -> Result<Kind, Error> {
        const WATCH: &str = "task t\nvcpu v task=t\n\
                             v set_debugregs dr0=0x1000 dr7=0x00090401\nv vm_entry\nv store 0x1000 8\n";
        if let Some(kind) = world.guests {
            return Ok(kind);
        }
        let mut kind = Kind::Hardware;
        world.guests = Some(kind);
        if std::path::Path::new("/sys/module/kvm_pvm").exists() {
            let scenario = debugreg_model::scenario::parse(WATCH).expect("a scenario");
            let seen = world.perform(&scenario, false, going)?;
            if seen.last().is_some_and(|last| matches!(last, Seen::Outcome(Outcome::Hits { .. }))) {
                kind = Kind::Emulated;
            }
        }
        world.guests = Some(kind);
        Ok(kind)
    }
}

/// A vCPU of the scenario.
#[derive(Debug)]
struct Guest {
    vcpu: Vcpu,
    unlike: Unlike,
    /// Why nothing more can be observed of it.
    lost: Option<String>,
}

/// Whose a line is.
pub(crate) enum Turn {
    /// The host's: it is still to be performed.
    Host,
    /// A guest's: what came of it.
    Guest(Seen),
    /// The host's, and it would not come to what the model says, nor would what follows; why.
    Blind(&'static str),
}

/// All of them.
pub(crate) struct Guests {
    /// Why there is none.
    all: Vec<Result<Guest, String>>,
    kind: Kind,
    vendor: Vendor,
    /// Whether KVM's emulator can be had for an instruction.
    forcible: bool,
    /// What the model says: which accesses an emulated guest should have been stopped by.
    rehearsal: Option<Rehearsal>,
}

/// The vCPU that an event is about.
fn subject(event: &Event) -> Option<VcpuId> {
    match *event {
        Event::GuestAccess { vcpu, .. }
        | Event::MovToDr { vcpu, .. }
        | Event::MovFromDr { vcpu, .. }
        | Event::SetDebugregs { vcpu, .. }
        | Event::VmEntry(vcpu)
        | Event::VmExit(vcpu, _)
        | Event::SetGuestDebug(vcpu, _)
        | Event::GetDebugregs(vcpu)
        | Event::Init(vcpu)
        | Event::Smi(vcpu)
        | Event::Rsm(vcpu)
        | Event::TaskSwitch(vcpu)
        | Event::NestedEntry { vcpu, .. }
        | Event::NestedExit(vcpu) => Some(vcpu),
        _ => None,
    }
}

impl Guests {
    /// What the machine's guests are, if the scenario has any.
    pub(crate) fn look(world: &mut World, scenario: &Scenario, going: &mut Going<'_>) -> Result<Kind, Error> {
        if scenario.vcpus.is_empty() || world.kvm.is_err() { Ok(Kind::Hardware) } else { Kind::of(world, going) }
    }

    /// Creates them, each in its task.
    pub(crate) fn start(tasks: &mut Tasks<'_>, scenario: &Scenario, kind: Kind) -> Result<Guests, Error> {
        let forcible = parameter("force_emulation_prefix").is_some_and(|text| text != "0");
        let rehearsal = (!scenario.vcpus.is_empty()).then(|| Rehearsal::new(scenario, tasks.world.likeness));
        let mut guests = Guests { all: Vec::new(), kind, vendor: scenario.options.vendor, forcible, rehearsal };
        let why = tasks.world.no_guests().or_else(|| why_not(scenario));
        for number in 0..scenario.vcpus.len() {
            let guest = match &why {
                Some(why) => Err(why.clone()),
                None => guests.create(tasks, scenario, number)?,
            };
            guests.all.push(guest);
        }
        Ok(guests)
    }

    fn create(
        &self,
        tasks: &mut Tasks<'_>,
        scenario: &Scenario,
        number: usize,
    ) -> Result<Result<Guest, String>, Error> {
        let declared = scenario.vcpus[number];

        let mut image = Image::new();
        let harness = code::harness();
        image.install(&harness.bytes, harness.handlers);
        for line in &scenario.lines {
            if let Event::GuestAccess { vcpu, access, emulated, insn } = line.event
                && vcpu.index() == number
                && !matches!(access.what, What::Io { .. })
            {
                for page in touched(access, insn, emulated && self.forcible) {
                    image.map(page);
                }
            }
        }
        let apic = scenario.lines.iter().any(|line| matches!(line.event, Event::Init(vcpu) if vcpu.index() == number));
        let wanted = Wanted { task: declared.task.index(), number, apic, debug_extensions: declared.debug_extensions };
        let vm = create::create(tasks, wanted, &image, &harness)?;
        Ok(vm.map(|vm| Guest { vcpu: Vcpu::new(vm, image, harness), unlike: Unlike::default(), lost: None }))
    }

    /// Performs a line if it is a guest's.
    pub(crate) fn line(&mut self, tasks: &mut Tasks<'_>, line: &Line) -> Result<Turn, Error> {
        let Some(model) = &mut self.rehearsal else { return Ok(Turn::Host) };
        let subject = subject(&line.event);
        // With two CPUs everybody sleeps between events.
        let inside = tasks.inside.as_ref().map(|inside| inside.guest);
        if !tasks.busy && inside.is_some() && subject.map(VcpuId::index) != inside {
            tasks.come_out()?;
        }
        let before = subject.map(|id| *model.machine().vcpu(id));
        let stale = stale_dr6(model.machine(), &line.event);
        let told = model.line(line);
        let (Some(id), Some(before)) = (subject, before) else {
            if let Event::Exec(task) = line.event {
                self.forget(task.index());
            }
            let real = self.kind == Kind::Hardware && self.all.iter().all(Result::is_ok);
            let heard = told.is_some_and(|told| told != line::nothing());
            return Ok(if stale && heard && !real { Turn::Blind(unlike::STALE_DR6) } else { Turn::Host });
        };
        let (kind, vendor, forcible) = (self.kind, self.vendor, self.forcible);
        let guest = match &mut self.all[id.index()] {
            Ok(guest) => guest,
            Err(why) => return Ok(Turn::Guest(Seen::Unobserved(why.clone()))),
        };
        if !tasks.lives(guest.vcpu.vm.task) {
            return Ok(Turn::Guest(unobserved("the task is not there in this world")));
        }
        if let Some(why) = &guest.lost {
            return Ok(Turn::Guest(Seen::Unobserved(why.clone())));
        }
        let performing = Performing { guest, tasks, kind, vendor, forcible, before, told };
        performing.event(&line.event).map(Turn::Guest)
    }

    /// A task has another program now, and no guest.
    fn forget(&mut self, task: usize) {
        for guest in self.all.iter_mut().flatten().filter(|guest| guest.vcpu.vm.task == task) {
            guest.lost = Some("its VMM has become another program".to_owned());
        }
    }
}

/// Why a scenario's guests cannot be had on this machine.
fn why_not(scenario: &Scenario) -> Option<String> {
    if scenario.options.disabled_match {
        return Some("whether this processor shows matching but disabled slots is not known".to_owned());
    }
    match (vendor(), scenario.options.vendor) {
        (Some(machines), files) if machines != files => {
            Some(format!("the file is about guests on {}, this machine has {}", files.name(), machines.name()))
        }
        (None, _) => Some("this machine's processor is neither Intel's nor AMD's".to_owned()),
        _ => None,
    }
}

/// Whether a task's access finds a guest's DR6 in the register, in the model (Z-9).
fn stale_dr6(machine: &Machine, event: &Event) -> bool {
    let Event::TaskAccess { task, .. } = *event else { return false };
    let dr6 = machine.cpu(machine.task(task).cpu).bank.hardware.dr6;
    Dr6(dr6).events() & !Dr6::TRAPS != 0
}

/// A parameter of the module kvm.
fn parameter(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/sys/module/kvm/parameters/{name}")).ok()?;
    Some(text.trim().to_owned())
}

/// Whose processor this is (CPUID leaf 0).
fn vendor() -> Option<Vendor> {
    let leaf = std::arch::x86_64::__cpuid(0);
    match &[leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat()[..] {
        b"AuthenticAMD" | b"HygonGenuine" => Some(Vendor::Amd),
        b"GenuineIntel" => Some(Vendor::Intel),
        _ => None,
    }
}

/// The pages that an instruction needs: what it accesses, and what must stand in memory for it.
fn touched(access: Access, insn: Insn, forced: bool) -> impl Iterator<Item = u64> {
    let special = Act::Access { access, insn, forced }.memory();
    let special = special.into_iter().flat_map(move |(address, bytes)| {
        let special = Access { address, bytes: bytes.len() as u64, ..access };
        pages(special, Insn::Plain)
    });
    pages(access, insn).chain(special)
}

/// Whether the machine is emulated by QEMU (CPUID leaf 0x40000000).
fn is_tcg() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0x4000_0000);
    [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).concat() == b"TCGTCGTCGTCG"
}
