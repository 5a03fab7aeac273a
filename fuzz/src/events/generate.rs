//! A random scenario: a machine, and events of every kind on what there is in it. Its lines need not make sense.

use arbitrary::{Arbitrary, Result, Unstructured};
use debugreg::Dr7;
use debugreg::trip::{Access, What};
use debugreg_model::scenario::{At, Expectation, Line, Scenario, Session, TaskDeclaration, VcpuDeclaration};
use debugreg_model::{
    Attr, BpType, Capabilities, Changes, CounterId, CpuId, DrAccess, Event, ExitReason, GuestDebug, Insn, Kgdb, Nmi,
    Options, Processor, Scope, TaskId, VcpuId, Vendor,
};

use crate::policy;

/// As many events as one input may have.
const LONGEST: usize = 160;

/// A scenario; `Debug` prints it in the language.
pub struct Walk(pub Scenario);

impl std::fmt::Debug for Walk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\n{}", self.0)
    }
}

impl<'a> Arbitrary<'a> for Walk {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Walk> {
        Growing::new(u)?.grow()
    }
}

/// A scenario, as far as it has come.
struct Growing<'a, 'b> {
    u: &'a mut Unstructured<'b>,
    scenario: Scenario,
    /// Gives the names.
    session: Session,
    tasks: u32,
    counters: u32,
}

impl<'a, 'b> Growing<'a, 'b> {
    fn new(u: &'a mut Unstructured<'b>) -> Result<Growing<'a, 'b>> {
        let options = options(u)?;
        let policy = policy::any(u)?;
        let session = Session::new(options, policy);
        let names = session.names.clone();
        let (vendor, policies) = (Some(options.vendor), vec![policy.to_string()]);
        let (title, tasks, vcpus, lines) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let laws = session.laws;
        let scenario = Scenario { title, options, vendor, policies, laws, tasks, vcpus, lines, names };
        Ok(Growing { u, scenario, session, tasks: 0, counters: 0 })
    }

    fn grow(mut self) -> Result<Walk> {
        for _ in 0..self.u.int_in_range(1..=4)? {
            let cpu = self.cpu()?;
            let capabilities = *self.u.choose(&[Capabilities::Root, Capabilities::Perfmon, Capabilities::None])?;
            let is_32bit = self.u.ratio(1, 8)?;
            self.name_task();
            self.scenario.tasks.push(TaskDeclaration { cpu, capabilities, is_32bit });
        }
        for number in 0..self.u.int_in_range(0..=2)? {
            let task = self.task()?;
            self.session.add_vcpu(&format!("v{number}"), task).expect("a new name");
            let debug_extensions = self.u.ratio(1, 8)?;
            self.scenario.vcpus.push(VcpuDeclaration { task, debug_extensions });
        }
        for number in 1..=LONGEST {
            if self.u.is_empty() && number > 1 {
                break;
            }
            let event = self.event()?;
            let interruption = if self.u.ratio(1, 4)? { Some((self.moment()?, self.event()?)) } else { None };
            let expectation = match event {
                Event::PerfEventOpen { .. } | Event::RegisterHwBreakpoint { .. } => Some(self.name_counter()),
                _ => None,
            };
            let number = number as u32;
            self.scenario.lines.push(Line { number, column: 1, event, interruption, expectation });
        }
        self.scenario.names = self.session.names;
        Ok(Walk(self.scenario))
    }

    fn moment(&mut self) -> Result<At> {
        Ok(match self.u.int_in_range(0..=27)? {
            0..=3 => At::Entry,
            more => At::Step(more - 3),
        })
    }

    fn name_task(&mut self) -> TaskId {
        self.tasks += 1;
        let id = self.session.add_task(&format!("t{}", self.tasks), CpuId(0), Capabilities::Root);
        id.expect("a new name")
    }

    fn name_counter(&mut self) -> Expectation {
        let symbol = CounterId(self.counters);
        self.session.name_counter(&format!("c{}", symbol.0), symbol).expect("a new name");
        self.counters += 1;
        Expectation::Bind(symbol)
    }

    fn cpu(&mut self) -> Result<CpuId> {
        Ok(CpuId(self.u.int_in_range(0..=self.scenario.options.cpus as u32 - 1)?))
    }

    /// Any task; one whose fork is still to come is none yet.
    fn task(&mut self) -> Result<TaskId> {
        Ok(TaskId(self.u.int_in_range(1..=self.tasks)?))
    }

    /// Any event.
    fn event(&mut self) -> Result<Event> {
        // What there is nothing of is not chosen.
        let vcpus = self.scenario.vcpus.len() as u32;
        match self.u.int_in_range(0..=9)? {
            0 | 1 if self.counters > 0 => {
                let counter = CounterId(self.u.int_in_range(0..=self.counters - 1)?);
                self.counter_event(counter)
            }
            2..=4 if vcpus > 0 => {
                let vcpu = VcpuId(self.u.int_in_range(0..=vcpus - 1)?);
                self.guest_event(vcpu)
            }
            5 | 6 => self.cpu_event(),
            7 => self.kernel_event(),
            _ => self.task_event(),
        }
    }

    fn task_event(&mut self) -> Result<Event> {
        let (by, other) = (self.task()?, self.task()?);
        Ok(match self.u.int_in_range(0..=19)? {
            0..=5 => self.open(by, other)?,
            6 => Event::Attach { tracer: by, tracee: other },
            7 => Event::Detach { tracer: by, tracee: other },
            8 | 9 => Event::PtracePoke { tracer: by, tracee: other, dr: self.dr()? & 7, value: self.address()? },
            10 => Event::PtracePoke { tracer: by, tracee: other, dr: 7, value: dr7(self.u)? },
            11 => Event::PtracePeek { tracer: by, tracee: other, dr: self.dr()? & 7 },
            12 => Event::Fork { parent: by, child: self.name_task(), thread: self.u.arbitrary()? },
            13 => Event::Exec(by),
            14 => Event::Exit(by),
            15 => Event::Migrate(by, self.cpu()?),
            _ => {
                let (access, kernel) = (self.access()?, self.u.arbitrary()?);
                Event::TaskAccess { task: by, access, insn: insn(self.u, access.what)?, kernel }
            }
        })
    }

    fn open(&mut self, by: TaskId, other: TaskId) -> Result<Event> {
        let (task, cpu) = match self.u.int_in_range(0..=3)? {
            0 => (Some(by), None),
            1 => (Some(other), None),
            2 => (Some(other), Some(self.cpu()?)),
            _ => (None, Some(self.cpu()?)),
        };
        let leads = self.counters > 0 && self.u.ratio(1, 4)?;
        let group = if leads { Some(CounterId(self.u.int_in_range(0..=self.counters - 1)?)) } else { None };
        let (kind, address, length) = self.breakpoint()?;
        let flags: u8 = self.u.arbitrary()?;
        let flag = |bit: u32| flags & 1 << bit != 0;
        let attr = Attr {
            bp_type: kind,
            bp_addr: address,
            bp_len: length,
            pinned: flag(0),
            disabled: flag(1),
            inherit: flag(2),
            inherit_thread: flag(7),
            exclude_user: flag(3),
            exclude_kernel: flag(4),
            sigtrap: flag(5),
            remove_on_exec: flag(5) || flag(6),
        };
        Ok(Event::PerfEventOpen { by, attr, task, cpu, group })
    }

    fn counter_event(&mut self, counter: CounterId) -> Result<Event> {
        Ok(match self.u.int_in_range(0..=8)? {
            0 | 1 => Event::Close(counter),
            2 => Event::Enable(counter),
            3 => Event::Disable(counter),
            4 => Event::Count(counter),
            5 => Event::UnregisterHwBreakpoint(counter),
            6 => {
                let (cpu, (kind, address, length)) = (self.cpu()?, self.breakpoint()?);
                Event::ModifyWideLocal { cpu, counter, attr: Attr::kernel(kind, address, length) }
            }
            _ => {
                let (kind, address, length) = self.breakpoint()?;
                let u = &mut *self.u;
                let changes = Changes {
                    bp_type: if u.arbitrary()? { Some(kind) } else { None },
                    bp_addr: if u.arbitrary()? { Some(address) } else { None },
                    bp_len: if u.arbitrary()? { Some(length) } else { None },
                    disabled: u.arbitrary()?,
                    pinned: if u.ratio(1, 8)? { Some(u.arbitrary()?) } else { None },
                    exclude_user: if u.ratio(1, 8)? { Some(u.arbitrary()?) } else { None },
                    exclude_kernel: if u.ratio(1, 8)? { Some(u.arbitrary()?) } else { None },
                };
                Event::Modify(counter, changes)
            }
        })
    }

    fn kernel_event(&mut self) -> Result<Event> {
        let (kind, address, length) = self.breakpoint()?;
        Ok(match self.u.int_in_range(0..=3)? {
            0 => Event::RegisterHwBreakpoint {
                on: Scope::Task(self.task()?),
                attr: Attr::ptrace(kind, address, length, false),
            },
            1 => Event::RegisterHwBreakpoint { on: Scope::Cpu(self.cpu()?), attr: Attr::kernel(kind, address, length) },
            _ => Event::RegisterHwBreakpoint { on: Scope::Wide, attr: Attr::kernel(kind, address, length) },
        })
    }

    fn cpu_event(&mut self) -> Result<Event> {
        let cpu = self.cpu()?;
        Ok(match self.u.int_in_range(0..=31)? {
            0..=8 => Event::SchedSwitch(cpu, TaskId(self.u.int_in_range(0..=self.tasks)?)),
            9 => Event::Registers(cpu),
            10 => Event::Refresh(cpu),
            11 => Event::Hardware(cpu),
            12 => Event::Owed(cpu),
            13 => Event::Slots(cpu),
            14 | 15 => Event::Offline(cpu),
            16..=18 => Event::Online(cpu),
            19 => Event::Nmi(cpu, Nmi::Plain),
            20 | 21 => {
                let (kind, address, length) = self.breakpoint()?;
                Event::Nmi(cpu, Nmi::KgdbSet(kind, address, length))
            }
            22 => Event::Nmi(cpu, Nmi::KgdbClear(self.address()?)),
            23 => Event::Nmi(cpu, Nmi::KgdbAnnounce(self.u.int_in_range(0..=3)?)),
            24 => Event::Nmi(cpu, Nmi::KgdbRelease(self.u.int_in_range(0..=3)?)),
            25 => Event::Kgdb(cpu, Kgdb::Enter),
            26 => {
                let (kind, address, length) = self.breakpoint()?;
                Event::Kgdb(cpu, Kgdb::Set(kind, address, length))
            }
            27 => Event::Kgdb(cpu, Kgdb::Clear(self.address()?)),
            // Else most of a walk would be refused.
            _ => Event::Kgdb(cpu, Kgdb::Resume),
        })
    }

    fn guest_event(&mut self, vcpu: VcpuId) -> Result<Event> {
        Ok(match self.u.int_in_range(0..=25)? {
            0..=4 => Event::VmEntry(vcpu),
            5..=7 => Event::VmExit(vcpu, self.reason()?),
            8..=10 => {
                let (mut access, emulated) = (self.access()?, self.u.arbitrary()?);
                let insn = if self.u.ratio(1, 4)? { insn(self.u, access.what)? } else { Insn::Plain };
                if insn == Insn::Plain && self.u.ratio(1, 8)? {
                    access.what = What::Io { debug_extensions: self.u.arbitrary()? };
                }
                Event::GuestAccess { vcpu, access, insn, emulated }
            }
            11 | 12 => Event::MovToDr { vcpu, dr: self.dr()?, value: self.address()?, cpl: self.cpl()? },
            13 => Event::MovToDr { vcpu, dr: 7, value: dr7(self.u)?, cpl: self.cpl()? },
            14 => Event::MovFromDr { vcpu, dr: self.dr()?, cpl: self.cpl()? },
            15 | 16 => {
                let bits = [
                    GuestDebug::ENABLE,
                    GuestDebug::SINGLESTEP,
                    GuestDebug::USE_SW_BP,
                    GuestDebug::USE_HW_BP,
                    GuestDebug::INJECT_DB,
                    GuestDebug::INJECT_BP,
                    GuestDebug::BLOCKIRQ,
                ];
                let flags: u8 = self.u.arbitrary()?;
                let control = (0..).zip(bits).filter(|(at, _)| flags & 1 << at != 0).fold(0, |all, (_, bit)| all | bit);
                let dr = [self.address()?, self.address()?, self.address()?, self.address()?];
                Event::SetGuestDebug(vcpu, GuestDebug { control, dr, dr7: dr7(self.u)? })
            }
            17 => Event::GetDebugregs(vcpu),
            18 => {
                let mut dr = [None; 4];
                for value in &mut dr {
                    *value = if self.u.arbitrary()? { Some(self.address()?) } else { None };
                }
                let dr7 = if self.u.arbitrary()? { Some(dr7(self.u)?) } else { None };
                Event::SetDebugregs { vcpu, dr, dr6: self.u.arbitrary()?, dr7 }
            }
            19 => Event::Init(vcpu),
            20 => Event::Smi(vcpu),
            21 => Event::Rsm(vcpu),
            22 => Event::TaskSwitch(vcpu),
            23 | 24 => {
                let (dr6, intercepts_db) = (self.u.arbitrary()?, self.u.arbitrary()?);
                let dr7 = if self.u.arbitrary()? { Some(dr7(self.u)?) } else { None };
                Event::NestedEntry { vcpu, dr6, dr7, intercepts_db }
            }
            _ => Event::NestedExit(vcpu),
        })
    }

    fn reason(&mut self) -> Result<ExitReason> {
        Ok(match self.u.int_in_range(0..=6)? {
            0 | 1 => ExitReason::DrAccess(DrAccess { dr: self.u.int_in_range(0..=7)?, write: self.u.arbitrary()? }),
            2 => ExitReason::Db(self.u.arbitrary()?),
            3 => ExitReason::Fastpath,
            _ => ExitReason::named(self.u.choose(&["io", "intr", "nmi", "hlt", "other"])?),
        })
    }

    /// Mostly a register that there is.
    fn dr(&mut self) -> Result<u8> {
        Ok(if self.u.ratio(1, 8)? { self.u.int_in_range(0..=15)? } else { *self.u.choose(&[0, 1, 2, 3, 6, 7])? })
    }

    fn cpl(&mut self) -> Result<u8> {
        Ok(if self.u.ratio(1, 8)? { self.u.int_in_range(0..=3)? } else { 0 })
    }

    /// Few, so that they meet.
    fn address(&mut self) -> Result<u64> {
        Ok(match self.u.int_in_range(0..=9)? {
            0..=3 => 0x1000,
            4 => 0x1004,
            5 => 0x2001,
            6 => 0xffff_8880_0000_1000,
            7 => 0xffff_fe00_0000_1000,
            8 => u64::MAX,
            _ => self.u.arbitrary()?,
        })
    }

    fn length(&mut self) -> Result<u64> {
        Ok(match self.u.int_in_range(0..=15)? {
            0..=5 => 8,
            6..=8 => 1,
            9 => 2,
            10 | 11 => 4,
            12 => 3,
            13 => 16,
            14 => 1 << 63,
            _ => self.u.arbitrary()?,
        })
    }

    fn breakpoint(&mut self) -> Result<(BpType, u64, u64)> {
        let kind = *self.u.choose(&[BpType::W, BpType::W, BpType::W, BpType::Rw, BpType::X, BpType::R])?;
        Ok((kind, self.address()?, self.length()?))
    }

    fn access(&mut self) -> Result<Access> {
        let what = *self.u.choose(&[What::Store, What::Store, What::Load, What::Execute])?;
        Ok(Access { what, address: self.address()?, bytes: self.length()?.max(1) })
    }
}

fn options(u: &mut Unstructured<'_>) -> Result<Options> {
    Ok(Options {
        cpus: u.int_in_range(1..=3)?,
        vendor: if u.arbitrary()? { Vendor::Intel } else { Vendor::Amd },
        slots: *u.choose(&[4, 4, 4, 3, 2, 1])?,
        paranoid: u.int_in_range(-1..=4)?,
        hypervisor: u.arbitrary()?,
        fred: u.arbitrary()?,
        disabled_match: u.arbitrary()?,
        decode_assists: u.arbitrary()?,
        kprobes: u.arbitrary()?,
        kgdb_early: u.ratio(1, 4)?,
        // The properties are the processor's; an emulator's faults break them.
        processor: Processor::Real,
    })
}

/// A DR7: often with some slots armed and nothing odd.
fn dr7(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match u.int_in_range(0..=3)? {
        0 => u64::from(u.arbitrary::<u8>()?) | 0x000d_0000 | Dr7::FIXED,
        1 => u64::from(u.arbitrary::<u16>()?) << 16 | 0x55 | Dr7::FIXED,
        2 => u64::from(u.arbitrary::<u32>()?),
        _ => u.arbitrary()?,
    })
}

/// An instruction that can do such an access.
fn insn(u: &mut Unstructured<'_>, what: What) -> Result<Insn> {
    Ok(match (u.int_in_range(0..=9)?, what) {
        (0, _) => Insn::PopfTf,
        (1, What::Execute) => Insn::Icebp,
        (2, What::Execute) => Insn::IretRf,
        (5, What::Store) => Insn::Frame,
        (1, What::Load) => Insn::MovSs,
        (2, What::Load | What::Store) => Insn::Rep(u.int_in_range(0..=9)?),
        (3, What::Load | What::Store) => Insn::Xchg,
        (4, What::Load | What::Store) => Insn::Cmpxchg,
        _ => Insn::Plain,
    })
}
