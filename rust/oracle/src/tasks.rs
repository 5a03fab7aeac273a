//! The tasks of one scenario: where they are, who runs, and what a tracer sees of them.
//!
//! If a scenario has one CPU, the task that runs there is busy between its events, as in the model, and everybody else
//! acts on the other CPU, on which the driver is, too. With two CPUs everybody sleeps between events: what is scheduled
//! in and out then differs from the model, but nothing that shows.

use std::time::{Duration, Instant};

use debugreg_model::scenario::{Scenario, TaskDeclaration};
use debugreg_model::{Capabilities, Event};

use crate::agent::{INT1, Op, TF, sigaction};
use crate::channel::{LIMIT, Message, payload};
use crate::world::{Place, TASKS, WALL, World, fetch, round};
use crate::{Error, Going};

/// `MSG_DONTWAIT`: how an agent waits for messages when it is busy.
const BUSY: u64 = libc::MSG_DONTWAIT as u64;

/// `struct user`, offset of `u_debugreg`.
const U_DEBUGREG: u64 = 848;

const PTRACE_PEEKUSER: u64 = 3;
const PTRACE_POKEUSER: u64 = 6;
const PTRACE_CONT: u64 = 7;
const PTRACE_DETACH: u64 = 17;
const PTRACE_GETSIGINFO: u64 = 0x4202;
const PTRACE_SEIZE: u64 = 0x4206;
const PTRACE_INTERRUPT: u64 = 0x4207;

#[derive(Debug)]
pub(crate) struct Task {
    /// In init's namespace.
    pub(crate) pid: u64,
    /// The scenario's CPU, as a place.
    pub(crate) cpu: Place,
    /// Where it is pinned.
    at: Place,
    pub(crate) alive: bool,
    pub(crate) tracer: Option<usize>,
    pub(crate) capabilities: Capabilities,
    /// Whether it may have a tracer's breakpoints without having a tracer.
    haunted: bool,
    /// Whether a tracer may have looked, or may yet look, at its DR6.
    pub(crate) watched: bool,
}

/// What became of an access.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    Done,
    /// Its tracer was told, and read this DR6.
    Trapped(u64),
    /// SIGTRAP came because an event had asked for it.
    Signalled,
    /// SIGTRAP killed it.
    Killed,
}

/// A guest that runs: its agent is in KVM_RUN, and answers when the guest has left.
pub(crate) struct Inside {
    pub(crate) task: usize,
    /// Which of the scenario's.
    pub(crate) guest: usize,
    /// Tells it to leave.
    pub(crate) ask: Box<dyn Fn()>,
}

/// The tasks, on a world.
#[allow(clippy::struct_excessive_bools, reason = "each is a question of its own")]
pub(crate) struct Tasks<'w> {
    pub(crate) world: &'w mut World,
    pub(crate) going: &'w mut Going<'w>,
    /// By the scenario's number; 0 is the idle task, and forks come as they come.
    pub(crate) all: Vec<Option<Task>>,
    /// By place: who runs.
    pub(crate) running: [Option<usize>; 2],
    /// Whether the one who runs is busy.
    pub(crate) busy: bool,
    /// Whether contexts may be clones.
    pub(crate) forked: bool,
    /// The guest that runs.
    pub(crate) inside: Option<Inside>,
    /// Whether events may ask for SIGTRAP.
    signals: bool,
    /// The task that the driver has let onto the scenario's CPU although it does not run there.
    visitor: Option<usize>,
    /// Whether there was one since [`Tasks::was_shared`] was asked last, or the task that runs there made room for a while.
    shared: bool,
}

impl<'w> Tasks<'w> {
    /// Makes the tasks that a scenario declares. They run when [`Tasks::run`] says so.
    pub(crate) fn start(
        world: &'w mut World,
        scenario: &Scenario,
        going: &'w mut Going<'w>,
    ) -> Result<Tasks<'w>, Error> {
        let busy = scenario.options.cpus == 1;
        let forks = scenario.lines.iter().filter(|line| matches!(line.event, Event::Fork { .. })).count();
        let asks = |event: &Event| matches!(event, Event::PerfEventOpen { attr, .. } if attr.sigtrap);
        let signals = scenario.lines.iter().any(|line| asks(&line.event));
        let mut tasks = Tasks {
            world,
            going,
            all: vec![None],
            running: [None; 2],
            busy,
            forked: false,
            inside: None,
            signals,
            visitor: None,
            shared: false,
        };
        tasks.all.resize_with(scenario.tasks.len() + forks + 1, || None);
        if busy {
            tasks.world.move_init(0, tasks.going)?;
            tasks.world.keep_off(1);
        }
        for (at, declaration) in scenario.tasks.iter().enumerate() {
            tasks.declare(at + 1, *declaration)?;
        }
        Ok(tasks)
    }

    /// Whether there are enough processes for a scenario.
    pub(crate) fn fit(scenario: &Scenario) -> bool {
        let forks = scenario.lines.iter().filter(|line| matches!(line.event, Event::Fork { .. })).count();
        scenario.tasks.len() + forks <= TASKS && scenario.options.cpus <= 2
    }

    /// A CPU of the scenario, as a place.
    pub(crate) fn place(&self, cpu: debugreg_model::CpuId) -> Place {
        if self.busy { 1 } else { cpu.index() }
    }

    /// The number that the kernel has for it.
    pub(crate) fn kernel_cpu(&self, cpu: debugreg_model::CpuId) -> u64 {
        self.world.cpus[self.place(cpu)] as u64
    }

    /// Whether others than the scenario knows were on its CPU, since this was asked last.
    pub(crate) fn was_shared(&mut self) -> bool {
        std::mem::replace(&mut self.shared, self.visitor.is_some())
    }

    pub(crate) fn task(&self, id: usize) -> &Task {
        self.all[id].as_ref().expect("a task that exists")
    }

    pub(crate) fn task_mut(&mut self, id: usize) -> &mut Task {
        self.all[id].as_mut().expect("a task that exists")
    }

    /// Whether a task is there and has not ended.
    pub(crate) fn lives(&self, id: usize) -> bool {
        self.all.get(id).and_then(Option::as_ref).is_some_and(|task| task.alive)
    }

    pub(crate) fn is_running(&self, id: usize) -> bool {
        self.running[self.task(id).cpu] == Some(id)
    }

    fn declare(&mut self, id: usize, declaration: TaskDeclaration) -> Result<(), Error> {
        let cpu = self.place(declaration.cpu);
        let at = if self.busy { self.world.helper } else { cpu };
        let fork = Message::new(Op::Fork, &[libc::SIGCHLD as u64, self.world.pairs[id - 1].1]);
        let fork = fork.with(0, &self.world.mask(at));
        let pid = self.world.init(&fork, self.going)?.result().map_err(|errno| lost("fork", errno))?;
        self.world.children.push(pid);
        self.world.pairs[id - 1].0.receive(self.going)?;
        let capabilities = declaration.capabilities;
        self.all[id] =
            Some(Task { pid, cpu, at, alive: true, tracer: None, capabilities, haunted: false, watched: false });
        self.drop_rights(id, capabilities)?;
        if self.signals {
            self.catch(id)?;
        }
        Ok(())
    }

    /// The first task of each CPU runs. Nothing that takes long is done after this: the kernel hears from a CPU on which
    /// somebody is busy only now and then, and a grace period takes that long.
    pub(crate) fn run(&mut self) -> Result<(), Error> {
        for id in 1..self.all.len() {
            let Some(cpu) = self.all[id].as_ref().map(|task| task.cpu) else { continue };
            if self.running[cpu].is_none() {
                self.switch(cpu, Some(id))?;
            }
        }
        Ok(())
    }

    /// The task catches the SIGTRAPs that its events ask for.
    fn catch(&mut self, id: usize) -> Result<(), Error> {
        let action = Message::call(libc::SYS_rt_sigaction, &[libc::SIGTRAP as u64, payload(0), 0, 8]);
        let answer = self.round(id, &action.with(0, &sigaction()))?;
        answer.result().map(drop).map_err(|errno| lost("rt_sigaction", errno))
    }

    /// Changes a task's memory from outside, so that nobody's breakpoint sees it.
    pub(crate) fn set_memory(&mut self, id: usize, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let pid = self.task(id).pid;
        let vector = |at: u64| [at, bytes.len() as u64].map(u64::to_le_bytes).concat();
        let write = Message::call(libc::SYS_process_vm_writev, &[pid, payload(64), 1, payload(80), 1, 0]);
        let write = write.with(0, bytes).with(64, &vector(payload(0))).with(80, &vector(address));
        let result = self.world.init(&write, self.going)?.result();
        result.map(drop).map_err(|errno| lost("process_vm_writev", errno))
    }

    fn drop_rights(&mut self, id: usize, capabilities: Capabilities) -> Result<(), Error> {
        const NOBODY: u64 = 65534;
        const CAP_PERFMON: u64 = 38;
        const PR_SET_KEEPCAPS: u64 = 8;
        const PR_SET_DUMPABLE: u64 = 4;
        const PR_SET_PTRACER: u64 = 0x5961_6d61;
        let keep = match capabilities {
            Capabilities::Root => return Ok(()),
            Capabilities::Perfmon => 1u32 << (CAP_PERFMON - 32),
            Capabilities::None => 0,
        };
        for (number, arguments) in [
            (libc::SYS_prctl, vec![PR_SET_KEEPCAPS, 1]),
            (libc::SYS_setgroups, vec![0, 0]),
            (libc::SYS_setresgid, vec![NOBODY; 3]),
            (libc::SYS_setresuid, vec![NOBODY; 3]),
        ] {
            self.call(id, &Message::call(number, &arguments))?
                .result()
                .map_err(|errno| lost("dropping rights", errno))?;
        }
        // _LINUX_CAPABILITY_VERSION_3; then effective, permitted, inheritable, lower halves first.
        let header = [0x2008_0522u32, 0].map(u32::to_le_bytes).concat();
        let sets = [0, 0, 0, keep, keep, keep].map(u32::to_le_bytes).concat();
        let capset = Message::call(libc::SYS_capset, &[payload(0), payload(8)]).with(0, &header).with(8, &sets);
        self.call(id, &capset)?.result().map_err(|errno| lost("capset", errno))?;
        if keep != 0 {
            // Ambient: execve does not take it away.
            self.call(id, &Message::call(libc::SYS_prctl, &[libc::PR_CAP_AMBIENT as u64, 2, CAP_PERFMON, 0, 0]))?;
        }
        // As if it had been started so: others of its kind may look at it, whatever Yama says.
        self.call(id, &Message::call(libc::SYS_prctl, &[PR_SET_DUMPABLE, 1]))?;
        self.call(id, &Message::call(libc::SYS_prctl, &[PR_SET_PTRACER, u64::MAX]))?;
        Ok(())
    }

    /// Pins a task that sleeps to a place.
    fn pin(&mut self, id: usize, at: Place) -> Result<(), Error> {
        let task = self.task(id);
        let (pid, was) = (task.pid, task.at);
        if was == at {
            return Ok(());
        }
        if self.world.awake[was] == Some(id) {
            self.world.quiesce(was, self.going)?;
        }
        let mask = self.world.mask(at);
        let pinned = Message::call(libc::SYS_sched_setaffinity, &[pid, 128, payload(0)]).with(0, &mask);
        self.world.init(&pinned, self.going)?;
        self.task_mut(id).at = at;
        self.visitor = self.visitor.filter(|&visitor| visitor != id);
        Ok(())
    }

    /// Where a task acts: where it runs, or out of the way of who is busy.
    fn ready(&mut self, id: usize) -> Result<(), Error> {
        self.back(id)?;
        let at = if self.busy && !self.is_running(id) { self.world.helper } else { self.task(id).cpu };
        self.pin(id, at)?;
        self.step_up(id)
    }

    /// Nobody who is about to sleep hands his CPU directly to this one.
    fn step_up(&mut self, id: usize) -> Result<(), Error> {
        let at = self.task(id).at;
        if self.world.awake[at].is_some_and(|other| other != id) && !self.is_busy_at(at) {
            self.world.quiesce(at, self.going)?;
        }
        self.world.awake[at] = Some(id);
        Ok(())
    }

    fn is_busy_at(&self, place: Place) -> bool {
        self.busy && self.running[place].is_some()
    }

    fn round(&mut self, id: usize, message: &Message) -> Result<Message, Error> {
        self.back(id)?;
        round(&self.world.pairs[id - 1].0, message, self.going)
    }

    /// Has a task run its guest: it does nothing else until the guest is asked to leave.
    pub(crate) fn enter_guest(&mut self, inside: Inside, run: &Message) -> Result<(), Error> {
        let id = inside.task;
        self.ready(id)?;
        if !self.busy {
            let place = self.task(id).at;
            self.world.move_init(1 - place, self.going)?;
            self.world.keep_off(place);
        }
        self.world.pairs[id - 1].0.send(run)?;
        self.inside = Some(inside);
        Ok(())
    }

    /// What KVM_RUN has come to, if the guest has left.
    pub(crate) fn left_guest(&mut self, wait: Duration) -> Result<Option<Message>, Error> {
        let Some(inside) = &self.inside else { return Ok(None) };
        let answer = self.world.pairs[inside.task - 1].0.try_receive(wait)?;
        if answer.is_some() {
            self.outside();
        }
        Ok(answer)
    }

    /// Whoever runs a guest comes out of it, because it is to do something else.
    fn back(&mut self, id: usize) -> Result<(), Error> {
        if self.inside.as_ref().is_some_and(|inside| inside.task == id) { self.come_out().map(drop) } else { Ok(()) }
    }

    /// Asks the guest that runs to leave, and waits until it has.
    pub(crate) fn come_out(&mut self) -> Result<Option<Message>, Error> {
        let Some(inside) = &self.inside else { return Ok(None) };
        (inside.ask)();
        let answer = self.world.pairs[inside.task - 1].0.receive(self.going)?;
        self.outside();
        Ok(Some(answer))
    }

    fn outside(&mut self) {
        self.inside = None;
        if !self.busy {
            self.world.roam();
        }
    }

    /// Tells a task to do something.
    pub(crate) fn call(&mut self, id: usize, message: &Message) -> Result<Message, Error> {
        self.ready(id)?;
        self.round(id, message)
    }

    /// A copy of a task's descriptor.
    pub(crate) fn fetch(&mut self, id: usize, descriptor: u64) -> Result<std::os::fd::OwnedFd, Error> {
        self.ready(id)?;
        fetch(&self.world.pairs[id - 1].0, descriptor, self.going)
    }

    /// The scheduler switches, directly.
    pub(crate) fn switch(&mut self, place: Place, next: Option<usize>) -> Result<(), Error> {
        let previous = self.running[place];
        if previous == next {
            return Ok(());
        }
        let spin = |on: bool| Message::new(Op::Spin, &[if on { BUSY } else { 0 }]);
        if let Some(next) = next {
            self.pin(next, place)?;
        }
        if !self.busy {
            let (Some(previous), Some(next)) = (previous, next) else {
                self.running[place] = next;
                return Ok(());
            };
            // Busy for as long as it takes to queue the other behind it.
            self.world.keep_off(place);
            self.pin(previous, place)?;
            self.step_up(previous)?;
            self.round(previous, &spin(true))?;
            self.world.pairs[next - 1].0.send(&spin(false))?;
            self.round(previous, &spin(false))?;
            self.world.pairs[next - 1].0.receive(self.going)?;
            self.world.awake[place] = Some(next);
            self.running[place] = Some(next);
            self.world.roam();
            return Ok(());
        }
        if previous.is_none() {
            self.world.quiesce(place, self.going)?;
        }
        self.visitor = self.visitor.filter(|&visitor| Some(visitor) != next);
        if let Some(next) = next {
            self.world.pairs[next - 1].0.send(&spin(true))?;
        }
        if let Some(previous) = previous {
            self.round(previous, &spin(false))?;
        }
        if let Some(next) = next {
            self.world.pairs[next - 1].0.receive(self.going)?;
        }
        self.running[place] = next;
        self.world.awake[place] = next.or(previous);
        if next.is_none() {
            self.world.quiesce(place, self.going)?;
        }
        Ok(())
    }

    /// fork: the child's first steps are made on the other CPU, so that its parent is not switched to it.
    pub(crate) fn fork(&mut self, parent: usize, child: usize) -> Result<Result<(), i32>, Error> {
        let elsewhere = 1 - self.task(parent).cpu;
        // CLONE_PARENT: a child of init, as all are.
        let flags = (libc::CLONE_PARENT | libc::SIGCHLD) as u64;
        let fork = Message::new(Op::Fork, &[flags, self.world.pairs[child - 1].1]);
        let fork = fork.with(0, &self.world.mask(elsewhere));
        self.ready(parent)?;
        // Whoever is awake over there sleeps before the child comes.
        self.world.quiesce(elsewhere, self.going)?;
        let pid = match self.round(parent, &fork)?.result() {
            Ok(pid) => pid,
            Err(errno) => return Ok(Err(errno)),
        };
        self.world.children.push(pid);
        self.world.pairs[child - 1].0.receive(self.going)?;
        self.world.awake[elsewhere] = Some(child);
        self.world.quiesce(elsewhere, self.going)?;
        let Task { cpu, capabilities, watched, .. } = *self.task(parent);
        let at = elsewhere;
        self.all[child] = Some(Task { pid, cpu, at, alive: true, tracer: None, capabilities, haunted: false, watched });
        self.forked = true;
        Ok(Ok(()))
    }

    /// execve of the agent's own program. What was mapped is mapped again.
    pub(crate) fn exec(&mut self, id: usize) -> Result<(), Error> {
        self.ready(id)?;
        let path = Message::call(libc::SYS_execve, &[payload(0), 0, 0]).with(0, b"/proc/self/exe\0");
        let answer = self.round(id, &path)?;
        if let Err(errno) = answer.result() {
            return Err(lost("execve", errno));
        }
        // It starts busy.
        if !(self.busy && self.is_running(id)) {
            self.round(id, &Message::new(Op::Spin, &[0]))?;
        }
        for page in self.world.mapped.clone() {
            let map = self.world.map(page);
            self.round(id, &map)?;
        }
        if self.signals {
            self.catch(id)?;
        }
        self.task_mut(id).haunted = false;
        Ok(())
    }

    /// exit, or the end of one whom SIGTRAP has killed: until the kernel is done with it.
    pub(crate) fn exit(&mut self, id: usize) -> Result<(), Error> {
        self.ready(id)?;
        self.world.pairs[id - 1].0.send(&Message::call(libc::SYS_exit_group, &[0]))?;
        self.bury(id)
    }

    pub(crate) fn bury(&mut self, id: usize) -> Result<(), Error> {
        let pid = self.task(id).pid;
        if let Some(tracer) = self.task(id).tracer.filter(|&tracer| self.lives(tracer)) {
            self.call(tracer, &Message::call(libc::SYS_wait4, &[pid, payload(0), WALL, 0]))?;
        }
        // It stays a zombie, so that its number is not anybody else's.
        let options = libc::WEXITED as u64 | libc::WNOWAIT as u64 | WALL;
        self.world.init(&Message::call(libc::SYS_waitid, &[1, pid, payload(0), options, 0]), self.going)?;
        self.task_mut(id).alive = false;
        self.task_mut(id).tracer = None;
        for place in &mut self.running {
            *place = place.filter(|&running| running != id);
        }
        for awake in &mut self.world.awake {
            *awake = awake.filter(|&awake| awake != id);
        }
        for task in self.all.iter_mut().flatten() {
            if task.tracer == Some(id) {
                task.tracer = None;
                task.haunted = true;
            }
        }
        Ok(())
    }

    pub(crate) fn migrate(&mut self, id: usize, to: Place) -> Result<(), Error> {
        let from = self.task(id).cpu;
        if from == to {
            return Ok(());
        }
        if self.is_running(id) {
            self.switch(from, None)?;
        }
        self.pin(id, to)?;
        self.task_mut(id).cpu = to;
        if self.running[to].is_none() {
            self.switch(to, Some(id))?;
        }
        Ok(())
    }

    /// Has an access made, and waits for what comes of it. A `deadly` one kills who has no tracer; a tracer lets it happen
    /// once.
    pub(crate) fn access(&mut self, id: usize, message: &Message, deadly: bool) -> Result<Fate, Error> {
        self.ready(id)?;
        self.world.pairs[id - 1].0.send(message)?;
        let (pid, tracer, haunted) = (self.task(id).pid, self.task(id).tracer, self.task(id).haunted);
        let signalled = |answer: &Message| if answer.signals() > 0 { Fate::Signalled } else { Fate::Done };
        if tracer.is_none() && !haunted && !deadly {
            return Ok(signalled(&self.world.pairs[id - 1].0.receive(self.going)?));
        }
        let mut fate = Fate::Done;
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(answer) = self.world.pairs[id - 1].0.try_receive(Duration::ZERO)? {
                return Ok(if fate == Fate::Done { signalled(&answer) } else { fate });
            }
            if let Some(tracer) = tracer {
                self.apart(tracer, id)?;
                let wait = Message::call(libc::SYS_wait4, &[pid, payload(0), WALL | libc::WNOHANG as u64, 0]);
                let answer = self.round(tracer, &wait)?;
                if answer.result() == Ok(pid) {
                    let status = answer.payload_half(0);
                    if status & 0xff != 0x7f {
                        return Err(Error::Lost(format!("a traced task ended with status {status:#x}")));
                    }
                    if fate == Fate::Done {
                        let dr6 = self.peek(tracer, pid, 6)?.map_err(|errno| lost("PTRACE_PEEKUSER", errno))?;
                        fate = Fate::Trapped(dr6);
                    }
                    if deadly {
                        self.go_on(tracer, pid)?;
                    }
                    self.ptrace(tracer, PTRACE_CONT, pid, 0, 0)?.map_err(|errno| lost("PTRACE_CONT", errno))?;
                    self.world.awake[self.task(id).at] = Some(id);
                }
            } else {
                let options = (libc::WEXITED | libc::WNOWAIT | libc::WNOHANG) as u64 | WALL;
                let wait = Message::call(libc::SYS_waitid, &[1, pid, payload(0), options, 0]);
                let answer = self.world.init(&wait, self.going)?;
                if answer.result().is_ok() && answer.payload_half(16) != 0 {
                    return Ok(Fate::Killed);
                }
            }
            if !(self.going)() {
                return Err(Error::Interrupted);
            }
            if Instant::now() > end {
                return Err(Error::Lost("an access does not end".to_owned()));
            }
        }
    }

    /// After a deadly trap: TF is cleared, unless it was the fault before the instruction that is stepped; and an INT1 is
    /// behind. (Some hypervisors return to it as if it were a fault.)
    fn go_on(&mut self, tracer: usize, pid: u64) -> Result<(), Error> {
        const RIP: u64 = 8 * 16;
        const EFLAGS: u64 = 8 * 18;
        const TRAP_BRKPT: u32 = 1;
        const TRAP_HWBKPT: u32 = 4;
        let word = |tasks: &mut Self, request: u64, at: u64, data: u64| {
            let answer = tasks.round(tracer, &Message::call(libc::SYS_ptrace, &[request, pid, at, data]))?;
            answer.result().map_err(|errno| lost("ptrace", errno))?;
            Ok::<_, Error>(answer)
        };
        let signal = word(self, PTRACE_GETSIGINFO, 0, payload(0))?;
        if signal.payload_half(8) != TRAP_HWBKPT {
            let flags = word(self, PTRACE_PEEKUSER, EFLAGS, payload(0))?.payload_word(0);
            word(self, PTRACE_POKEUSER, EFLAGS, flags & !TF)?;
        }
        if signal.payload_half(8) == TRAP_BRKPT {
            let rip = word(self, PTRACE_PEEKUSER, RIP, payload(0))?.payload_word(0);
            if self.is_int1(pid, rip)? {
                word(self, PTRACE_POKEUSER, RIP, rip + 1)?;
            }
        }
        Ok(())
    }

    fn is_int1(&mut self, pid: u64, address: u64) -> Result<bool, Error> {
        let vector = |at: u64| [at, 1].map(u64::to_le_bytes).concat();
        let read = Message::call(libc::SYS_process_vm_readv, &[pid, payload(64), 1, payload(80), 1, 0]);
        let read = read.with(64, &vector(payload(0))).with(80, &vector(address));
        Ok(self.world.init(&read, self.going)?.payload_word(0) as u8 == INT1)
    }

    /// A tracer acts on another CPU than the one whom it stops, or they would be switched to each other.
    fn apart(&mut self, tracer: usize, tracee: usize) -> Result<(), Error> {
        self.back(tracee)?;
        if self.busy {
            self.ready(tracer)?;
            if !self.is_running(tracee) {
                let at = if self.is_running(tracer) || self.running[1].is_some() { self.world.helper } else { 1 };
                self.pin(tracee, at)?;
                if at == 1 {
                    (self.visitor, self.shared) = (Some(tracee), true);
                }
            }
            return Ok(());
        }
        self.pin(tracer, 1 - self.task(tracee).at)?;
        self.step_up(tracer)
    }

    fn ptrace(&mut self, tracer: usize, request: u64, pid: u64, at: u64, data: u64) -> Result<Result<u64, i32>, Error> {
        Ok(self.round(tracer, &Message::call(libc::SYS_ptrace, &[request, pid, at, data]))?.result())
    }

    fn peek(&mut self, tracer: usize, pid: u64, dr: u8) -> Result<Result<u64, i32>, Error> {
        let at = U_DEBUGREG + 8 * u64::from(dr);
        let peek = Message::call(libc::SYS_ptrace, &[PTRACE_PEEKUSER, pid, at, payload(0)]);
        let answer = self.round(tracer, &peek)?;
        Ok(answer.result().map(|_| answer.payload_word(0)))
    }

    pub(crate) fn attach(&mut self, tracer: usize, tracee: usize) -> Result<Result<(), i32>, Error> {
        self.apart(tracer, tracee)?;
        let pid = self.task(tracee).pid;
        let result = self.ptrace(tracer, PTRACE_SEIZE, pid, 0, 0)?;
        if result.is_ok() {
            let tracee = self.task_mut(tracee);
            (tracee.tracer, tracee.watched) = (Some(tracer), true);
        }
        Ok(result.map(drop))
    }

    /// What a tracer does to one who is stopped meanwhile. Without being its tracer it just tries.
    fn stopped<T>(
        &mut self,
        tracer: usize,
        tracee: usize,
        act: impl FnOnce(&mut Self, u64) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let pid = self.task(tracee).pid;
        if self.task(tracee).tracer != Some(tracer) || tracer == tracee {
            self.ready(tracer)?;
            return act(self, pid);
        }
        // Two who are not running share a CPU while a third is busy on the other: that one makes room.
        let third = self.running[1].filter(|&third| self.busy && self.forked && third != tracer && third != tracee);
        if third.is_some() {
            self.shared = true;
            self.switch(1, None)?;
        }
        self.apart(tracer, tracee)?;
        self.ptrace(tracer, PTRACE_INTERRUPT, pid, 0, 0)?.map_err(|errno| lost("PTRACE_INTERRUPT", errno))?;
        let wait = self.round(tracer, &Message::call(libc::SYS_wait4, &[pid, payload(0), WALL, 0]))?;
        if wait.result() != Ok(pid) || wait.payload_half(0) & 0xff != 0x7f {
            return Err(Error::Lost(format!("a tracee did not stop: {wait:?}")));
        }
        let result = act(self, pid)?;
        if self.task(tracee).tracer.is_some() {
            self.ptrace(tracer, PTRACE_CONT, pid, 0, 0)?.map_err(|errno| lost("PTRACE_CONT", errno))?;
        }
        self.world.awake[self.task(tracee).at] = Some(tracee);
        if self.is_running(tracee) {
            // Until it runs again.
            self.round(tracee, &Message::call(libc::SYS_getpid, &[]))?;
        }
        if third.is_some() {
            self.switch(1, third)?;
        }
        Ok(result)
    }

    pub(crate) fn detach(&mut self, tracer: usize, tracee: usize) -> Result<Result<(), i32>, Error> {
        self.stopped(tracer, tracee, |tasks, pid| {
            let result = tasks.ptrace(tracer, PTRACE_DETACH, pid, 0, 0)?;
            if result.is_ok() {
                let tracee = tasks.task_mut(tracee);
                tracee.tracer = None;
                tracee.haunted = true;
            }
            Ok(result.map(drop))
        })
    }

    pub(crate) fn poke(&mut self, tracer: usize, tracee: usize, dr: u8, value: u64) -> Result<Result<(), i32>, Error> {
        self.stopped(tracer, tracee, |tasks, pid| {
            let at = U_DEBUGREG + 8 * u64::from(dr);
            Ok(tasks.ptrace(tracer, PTRACE_POKEUSER, pid, at, value)?.map(drop))
        })
    }

    pub(crate) fn peek_register(&mut self, tracer: usize, tracee: usize, dr: u8) -> Result<Result<u64, i32>, Error> {
        self.stopped(tracer, tracee, |tasks, pid| tasks.peek(tracer, pid, dr))
    }

    /// Ends all of them.
    pub(crate) fn finish(self) -> Result<(), Error> {
        self.world.clear(self.going)?;
        for pair in 0..self.all.len() - 1 {
            self.world.drain(pair, self.going)?;
        }
        self.world.roam();
        Ok(())
    }
}

fn lost(what: &str, errno: i32) -> Error {
    Error::Lost(format!("{what}: {}", nix::errno::Errno::from_raw(errno)))
}
