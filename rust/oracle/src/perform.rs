//! The events of a scenario, performed one by one.

use std::os::fd::OwnedFd;

use debugreg::trip::{Access, What};
use debugreg_model::scenario::{Line, Scenario};
use debugreg_model::{
    Attr, BpType, Capabilities, Changes, CounterId, Errno, Event, Holder, Insn, Nmi, Outcome, Processor, Refusal,
    TASK_SIZE_MAX, TaskId,
};

use crate::agent::{INT1, Op, RET, TF};
use crate::attr;
use crate::channel::{Message, payload};
use crate::guest::{Guests, Turn};
use crate::report::Seen;
use crate::ring::Ring;
use crate::tasks::{Fate, Tasks};
use crate::world::World;
use crate::{Error, Going, emulated, rehearse};

/// `PERF_EVENT_IOC_*`.
const ENABLE: u64 = 0x2400;
const DISABLE: u64 = 0x2401;
const MODIFY: u64 = 0x4008_240b;

const POPF: u8 = 0x9d;

/// The selector of user data, which MOV SS takes.
const USER_DS: [u8; 2] = [0x2b, 0];

/// An access that needs more pages than this is not performed.
const PAGES: usize = 64;

/// A descriptor that no agent has.
const NOT_OPEN: u64 = 1000;

const KPROBES: &str =
    "whether an execute breakpoint may be in the kernel depends on kprobes, which are not the scenario's";

/// Counters that no name is bound to have numbers from here on.
const UNNAMED: u32 = 1 << 16;

/// A counter, as the driver knows it.
#[derive(Debug)]
struct Counter {
    id: CounterId,
    attr: Attr,
    target: Option<usize>,
    cpu: Option<usize>,
    enabled: bool,
    /// The tasks that have a descriptor, and its number.
    holders: Vec<(usize, u64)>,
    /// The driver's copy of it, as long as somebody holds one.
    copy: Option<OwnedFd>,
    ring: Option<Ring>,
    /// Hits that the scenario knows nothing of.
    surplus: u64,
}

struct Performance<'w> {
    tasks: Tasks<'w>,
    guests: Guests,
    counters: Vec<Counter>,
    unnamed: u32,
    sampling: bool,
    /// Whether the machine's perf_event_paranoid is the scenario's.
    paranoid: bool,
    /// Whether this kernel has kprobes, or lacks them, as the scenario says.
    kprobes: bool,
    /// The line that would harm the machine, and why, unless the caller has said that it may.
    hazard: Option<(usize, &'static str)>,
    /// Why nothing can be observed any more.
    blind: Option<String>,
    /// Why no number of hits can be.
    uncounted: Option<String>,
}

impl World {
    /// Performs a scenario, and says what came of each line.
    pub(crate) fn perform(
        &mut self,
        scenario: &Scenario,
        hazardous: bool,
        going: &mut Going<'_>,
    ) -> Result<Vec<Seen>, Error> {
        let blind = |why: &str| Ok(vec![Seen::Unobserved(why.to_owned()); scenario.lines.len()]);
        if !Tasks::fit(scenario) {
            return blind("more CPUs or tasks than this world has");
        }
        if scenario.options.slots != 4 {
            return blind("the hardware has four slots");
        }
        if scenario.options.fred && !self.fred {
            return blind("events are not delivered by FRED here");
        }
        let paranoid = self.paranoid == Some(scenario.options.paranoid);
        let kprobes = self.kprobes == scenario.options.kprobes;
        // The emulator reports one of several breakpoints at an address.
        let sampling = self.likeness.processor == Processor::Real
            && scenario.options.cpus == 1
            && scenario.lines.iter().any(|line| matches!(line.event, Event::Slots(_)));
        for line in &scenario.lines {
            let touched = match line.event {
                Event::TaskAccess { access, insn, .. } => (access, insn),
                // `slots` looks there.
                Event::PerfEventOpen { attr, .. } if sampling => {
                    (Access { what: What::Store, address: attr.bp_addr, bytes: attr.bp_len.min(8) }, Insn::Plain)
                }
                _ => continue,
            };
            for page in pages(touched.0, touched.1) {
                self.have_page(page, going)?;
            }
        }
        let likeness = self.likeness;
        let kind = Guests::look(self, scenario, going)?;
        let mut tasks = Tasks::start(self, scenario, going)?;
        let guests = Guests::start(&mut tasks, scenario, kind)?;
        tasks.run()?;
        let mut performance = Performance {
            tasks,
            guests,
            counters: Vec::new(),
            unnamed: UNNAMED,
            sampling,
            paranoid,
            kprobes,
            hazard: if hazardous { None } else { rehearse::first_hazard(scenario, likeness) },
            blind: None,
            uncounted: None,
        };
        let mut seen = Vec::new();
        for (at, line) in scenario.lines.iter().enumerate() {
            if let Some((_, why)) = performance.hazard.filter(|&(hazard, _)| hazard == at) {
                performance.blind = Some(why.to_owned());
            }
            emulated::mark_line(line.number);
            if likeness.processor == Processor::Tcg {
                emulated::mark_phase(line.number);
            }
            seen.push(performance.line(scenario, line)?);
            if performance.tasks.was_shared() {
                emulated::mark_shared();
            }
            if performance.blind.is_some() {
                emulated::mark_blind();
            }
            if !(performance.tasks.going)() {
                return Err(Error::Interrupted);
            }
        }
        emulated::mark_line(0);
        drop(performance.counters);
        performance.tasks.finish()?;
        Ok(seen)
    }
}

/// The pages that an access touches, or that its instruction needs.
pub(crate) fn pages(access: Access, insn: Insn) -> impl Iterator<Item = u64> {
    let bytes = if let Insn::Rep(count) = insn { access.bytes.saturating_mul(count) } else { access.bytes };
    let before = u64::from(insn == Insn::PopfTf && access.what == What::Execute);
    let first = access.address.saturating_sub(before) & !0xfff;
    let last = access.address.saturating_add(bytes.saturating_sub(1)) & !0xfff;
    (0..=(last - first) / 0x1000).map(move |page| first + 0x1000 * page).take(PAGES)
}

/// Whether a kernel with kprobes may allow what one without them never does.
fn depends_on_kprobes(attr: &Attr) -> bool {
    attr.bp_type == BpType::X && attr.bp_addr >= TASK_SIZE_MAX && attr.is_valid()
}

pub(crate) fn unobserved(why: impl Into<String>) -> Seen {
    Seen::Unobserved(why.into())
}

/// What came of a call.
pub(crate) fn outcome(result: Result<(), i32>) -> Seen {
    match result {
        Ok(()) => Seen::Outcome(Outcome::Ok),
        Err(errno) => refused(errno),
    }
}

pub(crate) fn refused(errno: i32) -> Seen {
    match Errno::ALL.into_iter().find(|known| known.number() == errno) {
        Some(errno) => Seen::Outcome(Outcome::Refused(Refusal::new(errno, "the kernel says so"))),
        None => Seen::Errno(errno),
    }
}

impl Performance<'_> {
    fn line(&mut self, scenario: &Scenario, line: &Line) -> Result<Seen, Error> {
        if let Some(why) = &self.blind {
            return Ok(Seen::Unobserved(why.clone()));
        }
        if line.interruption.is_some() {
            return Ok(self.go_blind("what happens inside a transition is not this driver's choice"));
        }
        let named = match line.expectation {
            Some(debugreg_model::scenario::Expectation::Bind(symbol)) => Some(symbol),
            _ => None,
        };
        match self.guests.line(&mut self.tasks, line)? {
            Turn::Host => {}
            Turn::Guest(seen) => return Ok(seen),
            Turn::Blind(why) => return Ok(self.go_blind(why)),
        }
        #[allow(
            clippy::match_wildcard_for_single_variants,
            reason = "of an event that comes to the language nothing is known"
        )]
        match &line.event {
            Event::PerfEventOpen { by, attr, task, cpu, group } => {
                let cpu = cpu.map(|cpu| (self.tasks.place(cpu), self.tasks.kernel_cpu(cpu)));
                self.open(scenario, by.index(), *attr, task.map(TaskId::index), cpu, *group, named)
            }
            Event::Close(symbol) => self.close(*symbol),
            Event::Enable(symbol) => self.toggle(*symbol, true),
            Event::Disable(symbol) => self.toggle(*symbol, false),
            Event::Count(symbol) => Ok(self.count(*symbol)),
            Event::Modify(symbol, changes) => self.modify(*symbol, *changes),
            Event::PtracePoke { tracer, tracee, dr, value } => {
                self.traced(scenario, *tracer, *tracee, |tasks, a, b| {
                    tasks.poke(a, b, *dr, *value).map(|result| result.map(|()| None))
                })
            }
            Event::PtracePeek { tracer, tracee, dr } => self.traced(scenario, *tracer, *tracee, |tasks, a, b| {
                tasks.peek_register(a, b, *dr).map(|result| result.map(Some))
            }),
            Event::Attach { tracer, tracee } => self.traced(scenario, *tracer, *tracee, |tasks, a, b| {
                tasks.attach(a, b).map(|result| result.map(|()| None))
            }),
            Event::Detach { tracer, tracee } => self.traced(scenario, *tracer, *tracee, |tasks, a, b| {
                tasks.detach(a, b).map(|result| result.map(|()| None))
            }),
            Event::Fork { parent, child, thread: false } => self.fork(parent.index(), child.index()),
            Event::Fork { thread: true, .. } => {
                Ok(self.go_blind("the tasks of this world are processes of one thread"))
            }
            Event::Exec(task) => {
                self.tasks.exec(task.index())?;
                Ok(Seen::Outcome(Outcome::Ok))
            }
            Event::Exit(task) => {
                self.let_go(task.index());
                self.tasks.exit(task.index())?;
                self.after_death(task.index())?;
                Ok(Seen::Outcome(Outcome::Ok))
            }
            Event::Migrate(task, cpu) => {
                let place = self.tasks.place(*cpu);
                self.tasks.migrate(task.index(), place)?;
                Ok(Seen::Outcome(Outcome::Ok))
            }
            Event::TaskAccess { task, access, insn, kernel } => self.access(task.index(), *access, *insn, *kernel),
            Event::SchedSwitch(cpu, next) => {
                let place = self.tasks.place(*cpu);
                let next = Some(next.index()).filter(|&next| next != 0);
                if next.is_some_and(|next| !self.tasks.lives(next)) {
                    return Ok(self.go_blind("the task is not there in this world"));
                }
                self.tasks.switch(place, next)?;
                Ok(Seen::Outcome(Outcome::Ok))
            }
            Event::Slots(cpu) => {
                let place = self.tasks.place(*cpu);
                self.slots(place)
            }
            Event::Nmi(_, Nmi::Plain) => Ok(unobserved("an NMI cannot be sent from user space")),
            Event::Registers(_) | Event::Refresh(_) | Event::Hardware(_) | Event::Owed(_) => {
                Ok(unobserved("no interface shows the debug registers of a CPU"))
            }
            _ => Ok(self.go_blind("user space cannot do that")),
        }
    }

    /// Nothing after this can be observed.
    fn go_blind(&mut self, why: &str) -> Seen {
        self.blind = Some(format!("an event before it was not performed: {why}"));
        unobserved(why)
    }

    fn counter(&mut self, symbol: CounterId) -> Option<&mut Counter> {
        self.counters.iter_mut().find(|counter| counter.id == symbol && !counter.holders.is_empty())
    }

    fn is_32bit(scenario: &Scenario, task: usize) -> bool {
        scenario.tasks.get(task.wrapping_sub(1)).is_some_and(|task| task.is_32bit)
    }

    #[allow(clippy::too_many_arguments, reason = "they are the system call's")]
    fn open(
        &mut self,
        scenario: &Scenario,
        by: usize,
        attr: Attr,
        task: Option<usize>,
        cpu: Option<(usize, u64)>,
        group: Option<CounterId>,
        named: Option<CounterId>,
    ) -> Result<Seen, Error> {
        if Self::is_32bit(scenario, by) {
            return Ok(self.go_blind("the tasks of this world are 64-bit programs"));
        }
        if !self.paranoid && self.tasks.task(by).capabilities == Capabilities::None {
            return Ok(self.go_blind("kernel.perf_event_paranoid of this machine is not the scenario's"));
        }
        if !self.kprobes && depends_on_kprobes(&attr) {
            return Ok(self.go_blind(KPROBES));
        }
        let Some(pid) = task.map_or(Some(u64::MAX), |task| self.tasks.all[task].as_ref().map(|task| task.pid)) else {
            return Ok(self.go_blind("the task is not there in this world"));
        };
        let group = match group {
            None => u64::MAX,
            // Who has no descriptor of the leader can only name one that is not open.
            Some(leader) => self.descriptor(by, leader).unwrap_or(NOT_OPEN),
        };
        let open = [payload(0), pid, cpu.map_or(u64::MAX, |(_, cpu)| cpu), group, 0];
        let open = Message::call(libc::SYS_perf_event_open, &open).with(0, &attr::breakpoint(&attr, self.sampling));
        let descriptor = match self.tasks.call(by, &open)?.result() {
            Ok(descriptor) => descriptor,
            Err(errno) => return Ok(refused(errno)),
        };
        let copy = self.tasks.fetch(by, descriptor)?;
        let ring = if self.sampling { Ring::new(&copy) } else { None };
        let id = named.unwrap_or_else(|| {
            self.unnamed += 1;
            CounterId(self.unnamed)
        });
        self.counters.push(Counter {
            id,
            attr,
            target: task,
            cpu: cpu.map(|(place, _)| place),
            enabled: !attr.disabled,
            holders: vec![(by, descriptor)],
            copy: Some(copy),
            ring,
            surplus: 0,
        });
        Ok(Seen::Outcome(Outcome::Bound(id)))
    }

    /// A task's descriptor of a counter.
    fn descriptor(&mut self, task: usize, symbol: CounterId) -> Option<u64> {
        let holders = &self.counter(symbol)?.holders;
        holders.iter().find(|(holder, _)| *holder == task).map(|&(_, descriptor)| descriptor)
    }

    fn close(&mut self, symbol: CounterId) -> Result<Seen, Error> {
        let Some(counter) = self.counter(symbol) else { return Ok(unobserved("it was never opened")) };
        let holders = std::mem::take(&mut counter.holders);
        (counter.copy, counter.ring) = (None, None);
        for (holder, descriptor) in holders {
            self.tasks.call(holder, &Message::call(libc::SYS_close, &[descriptor]))?;
        }
        Ok(Seen::Outcome(Outcome::Ok))
    }

    fn ioctl(&mut self, symbol: CounterId, request: u64, bytes: &[u8]) -> Result<Option<Result<(), i32>>, Error> {
        let Some(counter) = self.counter(symbol) else { return Ok(None) };
        let (holder, descriptor) = *counter.holders.iter().min().expect("an open counter has holders");
        let argument = if bytes.is_empty() { 0 } else { payload(0) };
        let ioctl = Message::call(libc::SYS_ioctl, &[descriptor, request, argument]).with(0, bytes);
        Ok(Some(self.tasks.call(holder, &ioctl)?.result().map(drop)))
    }

    fn toggle(&mut self, symbol: CounterId, on: bool) -> Result<Seen, Error> {
        let Some(result) = self.ioctl(symbol, if on { ENABLE } else { DISABLE }, &[])? else {
            return Ok(unobserved("it was never opened"));
        };
        if let Some(counter) = self.counter(symbol) {
            counter.enabled = on;
        }
        Ok(outcome(result))
    }

    fn modify(&mut self, symbol: CounterId, changes: Changes) -> Result<Seen, Error> {
        let sampling = self.sampling;
        let Some(counter) = self.counter(symbol) else { return Ok(unobserved("it was never opened")) };
        let attr = counter.attr;
        let wanted = Attr {
            bp_type: changes.bp_type.unwrap_or(attr.bp_type),
            bp_addr: changes.bp_addr.unwrap_or(attr.bp_addr),
            bp_len: changes.bp_len.unwrap_or(attr.bp_len),
            disabled: changes.disabled.unwrap_or(attr.disabled),
            pinned: changes.pinned.unwrap_or(attr.pinned),
            exclude_user: changes.exclude_user.unwrap_or(attr.exclude_user),
            exclude_kernel: changes.exclude_kernel.unwrap_or(attr.exclude_kernel),
            ..attr
        };
        if !self.kprobes && depends_on_kprobes(&wanted) {
            return Ok(self.go_blind(KPROBES));
        }
        let result = self.ioctl(symbol, MODIFY, &attr::breakpoint(&wanted, sampling))?;
        let result = result.expect("it is there");
        if let Some(counter) = self.counter(symbol) {
            match result {
                Ok(()) => (counter.attr, counter.enabled) = (wanted, !wanted.disabled),
                // A change that is refused disables it first, and enables it after if it was opened so.
                Err(_) => counter.enabled = !counter.attr.disabled,
            }
        }
        Ok(outcome(result))
    }

    fn total(counter: &Counter) -> Option<u64> {
        let mut count = [0; 8];
        // A pinned counter in ERROR reads as nothing at all.
        let got = nix::unistd::read(counter.copy.as_ref()?, &mut count);
        (got == Ok(8)).then(|| u64::from_le_bytes(count))
    }

    fn count(&mut self, symbol: CounterId) -> Seen {
        if let Some(why) = &self.uncounted {
            return Seen::Unobserved(why.clone());
        }
        let Some(counter) = self.counter(symbol) else { return unobserved("it was never opened") };
        match Self::total(counter) {
            Some(total) => Seen::Outcome(Outcome::Value(total - counter.surplus)),
            None => unobserved("read gives nothing: no register could be had (ERROR)"),
        }
    }

    fn traced(
        &mut self,
        scenario: &Scenario,
        tracer: TaskId,
        tracee: TaskId,
        act: impl FnOnce(&mut Tasks<'_>, usize, usize) -> Result<Result<Option<u64>, i32>, Error>,
    ) -> Result<Seen, Error> {
        let (tracer, tracee) = (tracer.index(), tracee.index());
        if Self::is_32bit(scenario, tracer) {
            return Ok(self.go_blind("the tasks of this world are 64-bit programs"));
        }
        if !self.tasks.lives(tracer) || self.tasks.all[tracee].is_none() {
            return Ok(self.go_blind("the task is not there in this world"));
        }
        Ok(match act(&mut self.tasks, tracer, tracee)? {
            Ok(None) => Seen::Outcome(Outcome::Ok),
            Ok(Some(value)) => Seen::Outcome(Outcome::Value(value)),
            Err(errno) => refused(errno),
        })
    }

    fn fork(&mut self, parent: usize, child: usize) -> Result<Seen, Error> {
        let result = self.tasks.fork(parent, child)?;
        if result.is_ok() {
            for counter in &mut self.counters {
                let own = counter.holders.iter().find(|(holder, _)| *holder == parent).map(|&(_, number)| number);
                counter.holders.extend(own.map(|number| (child, number)));
            }
        }
        Ok(outcome(result))
    }

    /// Before a task ends: the driver gives back what it has only through that task, so that the kernel decides.
    fn let_go(&mut self, task: usize) {
        for counter in &mut self.counters {
            if counter.holders.iter().any(|(holder, _)| *holder == task) {
                (counter.copy, counter.ring) = (None, None);
            }
        }
    }

    /// After a task has ended.
    fn after_death(&mut self, task: usize) -> Result<(), Error> {
        for at in 0..self.counters.len() {
            let counter = &mut self.counters[at];
            counter.holders.retain(|(holder, _)| *holder != task);
            if let (None, Some(&(holder, descriptor))) = (&counter.copy, counter.holders.first()) {
                let copy = self.tasks.fetch(holder, descriptor)?;
                let ring = if self.sampling { Ring::new(&copy) } else { None };
                (self.counters[at].copy, self.counters[at].ring) = (Some(copy), ring);
            }
        }
        Ok(())
    }

    fn access(&mut self, task: usize, access: Access, insn: Insn, kernel: bool) -> Result<Seen, Error> {
        let bytes = if access.what == What::Execute { 1 } else { access.bytes };
        let possible = pages(access, insn).all(|page| self.tasks.world.mapped.contains(&page));
        let plain = kernel && bytes <= 256 || matches!(bytes, 1 | 2 | 4 | 8 | 16) || bytes == 32 && avx();
        let instruction = match insn {
            Insn::Plain => plain,
            _ if kernel => false,
            Insn::PopfTf => plain,
            Insn::Icebp => true,
            Insn::Xchg | Insn::Cmpxchg | Insn::Rep(_) => matches!(bytes, 1 | 2 | 4 | 8),
            Insn::MovSs => bytes == 2,
            Insn::IretRf | Insn::Frame => false,
        };
        // POPF stands right before it, where nobody may wait for it.
        let before = access.address.wrapping_sub(1);
        let stepped = insn == Insn::PopfTf && access.what == What::Execute;
        let awaited = |counter: &Counter| counter.attr.bp_type == BpType::X && counter.attr.bp_addr == before;
        let instruction = instruction && !(stepped && self.counters.iter().any(awaited));
        if !possible || !instruction || !self.tasks.lives(task) || !self.tasks.is_running(task) {
            let why = if possible { "this driver has no such access" } else { "nothing can be mapped there" };
            self.uncounted = Some(format!("an access before it was not performed: {why}"));
            return Ok(unobserved(why));
        }
        let before = self.totals();
        let fate = self.make_access(task, access, bytes, insn, kernel)?;
        let mut hit = Vec::new();
        for (at, (before, after)) in before.into_iter().zip(self.totals()).enumerate() {
            if let (Some(before), Some(after)) = (before, after)
                && after > before
            {
                hit.push(self.counters[at].id);
                // How often one access of the kernel hits depends on its copy routine.
                self.counters[at].surplus += if kernel { after - before - 1 } else { 0 };
            }
        }
        if fate == Fate::Killed {
            self.let_go(task);
            self.tasks.bury(task)?;
            self.after_death(task)?;
        }
        Ok(match fate {
            Fate::Done => Seen::Outcome(Outcome::Hits { counters: hit, kgdb: false, sigtrap: None }),
            Fate::Trapped(dr6) => Seen::Outcome(Outcome::Hits { counters: hit, kgdb: false, sigtrap: Some(dr6) }),
            Fate::Signalled => Seen::Signalled(hit),
            Fate::Killed => Seen::Killed(hit),
        })
    }

    fn totals(&self) -> Vec<Option<u64>> {
        self.counters.iter().map(Self::total).collect()
    }

    fn make_access(
        &mut self,
        task: usize,
        access: Access,
        bytes: u64,
        insn: Insn,
        kernel: bool,
    ) -> Result<Fate, Error> {
        if kernel {
            let [out, into] = self.tasks.world.pipe;
            let fill = Message::call(libc::SYS_write, &[into, payload(0), bytes]).with(0, &[RET; 256]);
            let (first, then) = if access.what == What::Store {
                (fill, Message::call(libc::SYS_read, &[out, access.address, bytes]))
            } else {
                let drain = Message::call(libc::SYS_read, &[out, payload(0), bytes]);
                (Message::call(libc::SYS_write, &[into, access.address, bytes]), drain)
            };
            return Ok(match self.tasks.access(task, &first, false)? {
                Fate::Done => self.tasks.access(task, &then, false)?,
                fate => {
                    self.tasks.call(task, &then)?;
                    fate
                }
            });
        }
        let Access { what, address, .. } = access;
        // Where the instruction itself, or what it loads, must be another than everywhere.
        let special: Option<(u64, &[u8])> = match (insn, what) {
            (Insn::MovSs, _) => Some((address, &USER_DS)),
            (Insn::Icebp, _) => Some((address, &[INT1])),
            (Insn::PopfTf, What::Execute) => Some((address.wrapping_sub(1), &[POPF])),
            _ => None,
        };
        if let Some((at, bytes)) = special {
            self.tasks.set_memory(task, at, bytes)?;
        }
        let op = match (insn, what) {
            (Insn::Xchg, _) => Op::Xchg,
            (Insn::Cmpxchg, _) => Op::Cmpxchg,
            (Insn::Rep(_), What::Store) => Op::Stos,
            (Insn::Rep(_), _) => Op::Lods,
            (Insn::MovSs, _) => Op::MovSs,
            (Insn::PopfTf, What::Execute) => Op::Stepped,
            (_, What::Store) => Op::Store,
            (_, What::Load) => Op::Load,
            _ => Op::Execute,
        };
        let flags = if insn == Insn::PopfTf { TF } else { 0 };
        let count = if let Insn::Rep(count) = insn { count } else { 1 };
        let deadly = matches!(insn, Insn::PopfTf | Insn::Icebp);
        let message = Message::new(op, &[flags, address, bytes, count]).with(0, &[RET; 32]);
        let fate = self.tasks.access(task, &message, deadly)?;
        if let Some((at, bytes)) = special
            && fate != Fate::Killed
        {
            self.tasks.set_memory(task, at, &vec![RET; bytes.len()])?;
        }
        Ok(fate)
    }

    /// The #DB handler visits the registers in order, so that the times of one access's samples are in that order.
    fn slots(&mut self, place: usize) -> Result<Seen, Error> {
        let Some(task) = self.tasks.running[place].filter(|_| self.sampling) else {
            return Ok(unobserved("nobody runs there whose access would show the slots"));
        };
        if self.tasks.task(task).watched {
            return Ok(unobserved("the access that would show the slots would show in DR6, too"));
        }
        let scattered = |counter: &Counter| counter.enabled && counter.attr.inherit && !counter.holders.is_empty();
        if self.tasks.forked && self.counters.iter().any(scattered) {
            return Ok(unobserved("the copies that fork makes of a counter leave no samples"));
        }
        let here = |counter: &&Counter| {
            counter.enabled
                && !counter.holders.is_empty()
                && counter.target.is_none_or(|target| target == task)
                && counter.cpu.is_none_or(|cpu| cpu == place)
        };
        let active: Vec<_> = self.counters.iter().filter(here).collect();
        let address = active.iter().map(|counter| counter.attr.bp_addr).max().unwrap_or(0);
        let watched = |counter: &&Counter| {
            let Attr { bp_type, bp_addr, bp_len, exclude_user, .. } = counter.attr;
            matches!(bp_type, BpType::W | BpType::Rw) && address - bp_addr < bp_len && !exclude_user
        };
        if active.is_empty() || !active.iter().all(|counter| watched(counter) && counter.ring.is_some()) {
            return Ok(unobserved("there is no access that would trip all of its counters, and tell their order"));
        }
        if !self.tasks.world.mapped.contains(&(address & !0xfff)) {
            return Ok(unobserved("nothing can be mapped there"));
        }
        let before = self.totals();
        for counter in &self.counters {
            counter.ring.as_ref().and_then(Ring::take_last);
        }
        let store = Message::new(Op::Store, &[0, address, 1]).with(0, &[RET; 32]);
        let fate = self.tasks.access(task, &store, false)?;
        let mut order = Vec::new();
        for (at, (before, after)) in before.into_iter().zip(self.totals()).enumerate() {
            let counter = &mut self.counters[at];
            if let (Some(before), Some(after)) = (before, after) {
                counter.surplus += after - before;
                let time = counter.ring.as_ref().and_then(Ring::take_last);
                order.extend(time.filter(|_| after > before).map(|time| (time, counter.id)));
            }
        }
        if !matches!(fate, Fate::Done | Fate::Signalled) {
            return Ok(self.go_blind("the access that would show the slots ran into a tracer's breakpoint"));
        }
        order.sort_unstable();
        let order: Vec<_> = order.into_iter().map(|(_, id)| id).collect();
        Ok(match order[..] {
            [a, b, c, d] => Seen::Outcome(Outcome::Slots([a, b, c, d].map(Holder::Counter))),
            _ => Seen::Order(order),
        })
    }
}

fn avx() -> bool {
    std::arch::is_x86_feature_detected!("avx")
}
