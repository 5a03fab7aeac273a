//! The processes behind a scenario: how they are started, kept apart, and ended.
//!
//! Two spacers, one on each of two CPUs, and an init with a PID namespace of its own; every task of a scenario is a
//! child of init. Whatever happens to the driver, its sockets close, the first spacer ends, init is killed with it
//! (PR_SET_PDEATHSIG), and the kernel kills everything in init's namespace, stopped or traced as it may be.
//!
//! All of them are SCHED_FIFO. Thus nobody preempts anybody, and who is switched to whom on a CPU is decided here: two
//! tasks whose perf contexts are clones swap them if one is switched to the other *directly* (linux-host 7.3), so that
//! a spacer stands between them except where the scenario says `sched_switch`.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket, socketpair};
use nix::unistd::Pid;

use crate::agent::{Op, Program};
use crate::attr;
use crate::channel::{Channel, Message, payload, send_descriptor};
use debugreg_model::Processor;

use crate::{Error, Going, Likeness};

/// How many tasks a scenario may have, those that fork makes included.
pub(crate) const TASKS: usize = 12;

/// Length of a CPU mask.
const MASK: usize = 128;

/// `__WALL`: children of every kind.
pub(crate) const WALL: u64 = 0x4000_0000;

/// A CPU of the two that are used: 0 or 1.
pub(crate) type Place = usize;

/// The running kernel, ready for scenarios.
#[derive(Debug)]
pub struct World {
    /// There is one world at a time: two would count each other's breakpoints. The name goes with the process.
    _alone: OwnedFd,
    spacers: Vec<(Child, Channel)>,
    init: Channel,
    /// For each possible task: the driver's end, and the number of the agent's end in every agent.
    pub(crate) pairs: Vec<(Channel, u64)>,
    /// A pipe, and a file whose bytes are all `ret`, by their numbers in every agent.
    pub(crate) pipe: [u64; 2],
    pub(crate) returns: u64,
    /// /dev/kvm, likewise, or why it cannot be had.
    pub(crate) kvm: Result<u64, i32>,
    /// Whether guests' data breakpoints fire, once that has been asked.
    pub(crate) guests: Option<crate::guest::Kind>,
    /// The CPUs that are used, by their numbers in the kernel.
    pub(crate) cpus: [usize; 2],
    /// The children of init that it has not waited for.
    pub(crate) children: Vec<u64>,
    /// By place: the task that may not have gone to sleep yet.
    pub(crate) awake: [Option<usize>; 2],
    /// Where init runs.
    pub(crate) helper: Place,
    /// Pages that init has.
    pub(crate) mapped: BTreeSet<u64>,
    pub(crate) paranoid: Option<i32>,
    /// The model of it.
    pub(crate) likeness: Likeness,
    /// Whether this kernel has kprobes (CONFIG_KPROBES, and with it CONFIG_OPTPROBES on x86).
    pub(crate) kprobes: bool,
    /// Whether events are delivered by FRED.
    pub(crate) fred: bool,
    /// Where the driver may run when nobody minds.
    affinity: CpuSet,
}

impl World {
    /// Starts the processes and looks whether breakpoints can be had.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] says what is missing.
    pub fn new(likeness: Likeness, going: &mut Going<'_>) -> Result<World, Error> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::Unavailable(
                "the world 'kernel' needs root: its tasks drop rights, they cannot get them".into(),
            ));
        }
        let affinity = sched_getaffinity(Pid::from_raw(0)).map_err(|errno| unavailable("sched_getaffinity", errno))?;
        let mut cpus = (0..CpuSet::count()).filter(|&cpu| affinity.is_set(cpu).unwrap_or(false));
        let (Some(first), Some(second)) = (cpus.next(), cpus.next()) else {
            return Err(Error::Unavailable(
                "the world 'kernel' needs two CPUs: one for the scenario, one to watch it".into(),
            ));
        };
        let alone = alone(going)?;
        let program = Program::new().map_err(|error| Error::Unavailable(format!("memfd_create: {error}")))?;
        let mut spacers = Vec::new();
        for _ in 0..2 {
            let flags = SockFlag::SOCK_CLOEXEC;
            let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
                .map_err(|errno| unavailable("socketpair", errno))?;
            let child = program.start(Stdio::from(theirs));
            let child = child.map_err(|error| Error::Unavailable(format!("an agent cannot be started: {error}")))?;
            let channel = Channel(ours);
            channel.receive(going)?;
            spacers.push((child, channel));
        }
        let init = Channel(
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(|errno| unavailable("socketpair", errno))?
                .0,
        );
        let mut world = World {
            _alone: alone,
            spacers,
            init,
            pairs: Vec::new(),
            pipe: [0; 2],
            returns: 0,
            kvm: Err(libc::ENOENT),
            guests: None,
            cpus: [first, second],
            children: Vec::new(),
            awake: [None; 2],
            helper: 0,
            mapped: BTreeSet::new(),
            paranoid: std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid")
                .ok()
                .and_then(|t| t.trim().parse().ok()),
            likeness,
            kprobes: Path::new("/proc/sys/debug/kprobes-optimization").exists(),
            fred: std::fs::read_to_string("/proc/cpuinfo")
                .is_ok_and(|t| t.split_whitespace().any(|flag| flag == "fred")),
            affinity,
        };
        world.set_up(going)?;
        Ok(world)
    }

    /// Why guests cannot be had, if they cannot.
    pub(crate) fn no_guests(&self) -> Option<String> {
        let errno = self.kvm.err()?;
        Some(format!("guests need /dev/kvm: {}", Errno::from_raw(errno)))
    }

    fn set_up(&mut self, going: &mut Going<'_>) -> Result<(), Error> {
        for place in 0..2 {
            let channel = &self.spacers[place].1;
            round(channel, &Message::new(Op::Spin, &[0]), going)?;
            let mask = self.mask(place);
            let pinned = Message::call(libc::SYS_sched_setaffinity, &[0, MASK as u64, payload(0)]).with(0, &mask);
            ask(channel, &pinned, "sched_setaffinity", going)?;
            let fifo = Message::call(libc::SYS_sched_setscheduler, &[0, libc::SCHED_FIFO as u64, payload(0)]);
            ask(channel, &fifo.with(0, &1u32.to_le_bytes()), "SCHED_FIFO", going)?;
            let no_core = Message::call(libc::SYS_prlimit64, &[0, u64::from(libc::RLIMIT_CORE), payload(0), 0]);
            ask(channel, &no_core, "prlimit", going)?;
            // A tracee who traces others would be stopped by the news of them.
            let blocked = Message::call(libc::SYS_rt_sigprocmask, &[0, payload(0), 0, 8]);
            let blocked = blocked.with(0, &(1u64 << (libc::SIGCHLD - 1)).to_le_bytes());
            ask(channel, &blocked, "rt_sigprocmask", going)?;
        }
        // Init: a child of the first spacer in a PID namespace of its own. A machine of ours ends as a whole, and in its
        // trace a task has one number.
        let mother = &self.spacers[0].1;
        if self.likeness.processor != Processor::Tcg {
            let namespace = Message::call(libc::SYS_unshare, &[libc::CLONE_NEWPID as u64]);
            ask(mother, &namespace, "a PID namespace (unshare)", going)?;
        }
        let pair = Message::call(libc::SYS_socketpair, &[1, 5, 0, payload(0)]);
        let answer = ask(mother, &pair, "socketpair", going)?;
        let (ours, theirs) = (u64::from(answer.payload_half(0)), u64::from(answer.payload_half(4)));
        self.init = Channel(fetch(mother, ours, going)?);
        close(mother, ours, going)?;
        let fork = Message::new(Op::Fork, &[libc::SIGCHLD as u64, theirs]).with(0, &self.mask(self.helper));
        ask(mother, &fork, "fork", going)?;
        self.init.receive(going)?;
        close(mother, theirs, going)?;
        let init = &self.init;
        close(init, theirs, going)?;
        ask(init, &Message::call(libc::SYS_prctl, &[libc::PR_SET_PDEATHSIG as u64, 9]), "prctl", going)?;
        for _ in 0..TASKS {
            let answer = ask(init, &pair, "socketpair", going)?;
            let (ours, theirs) = (u64::from(answer.payload_half(0)), u64::from(answer.payload_half(4)));
            let channel = Channel(fetch(init, ours, going)?);
            close(init, ours, going)?;
            self.pairs.push((channel, theirs));
        }
        let answer = ask(init, &Message::call(libc::SYS_pipe2, &[payload(0), 0]), "pipe", going)?;
        self.pipe = [u64::from(answer.payload_half(0)), u64::from(answer.payload_half(4))];
        let file = Message::call(libc::SYS_memfd_create, &[payload(0), 0]).with(0, b"returns\0");
        let file = ask(init, &file, "memfd_create", going)?.result().expect("asked");
        self.returns = file;
        for _ in 0..4096 / 256 {
            ask(
                init,
                &Message::call(libc::SYS_write, &[file, payload(0), 256]).with(0, &[crate::agent::RET; 256]),
                "write",
                going,
            )?;
        }
        let open = [libc::AT_FDCWD as u64, payload(0), libc::O_RDWR as u64, 0];
        let open = Message::call(libc::SYS_openat, &open).with(0, b"/dev/kvm\0");
        self.kvm = round(init, &open, going)?.result();
        // The first perf event of a machine patches code; so that this does not happen again and again, there is always
        // one. It counts nothing, because a breakpoint would take somebody's slot.
        let dummy = Message::call(libc::SYS_perf_event_open, &[payload(0), 0, u64::MAX, u64::MAX, 0]);
        ask(init, &dummy.with(0, &attr::dummy()), "perf_event_open", going)?;
        self.look_for_slots(going)
    }

    /// All four slots of both CPUs must be free, or every count would be off. Those of a driver that has just been
    /// killed take a moment.
    fn look_for_slots(&mut self, going: &mut Going<'_>) -> Result<(), Error> {
        let end = Instant::now() + Duration::from_secs(3);
        for cpu in self.cpus {
            loop {
                let free = self.free_slots(cpu, going)?;
                if free == 4 {
                    break;
                }
                if Instant::now() > end {
                    return Err(Error::Unavailable(format!(
                        "only {free} of 4 slots are free on CPU {cpu}: somebody else has breakpoints"
                    )));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    fn free_slots(&self, cpu: usize, going: &mut Going<'_>) -> Result<usize, Error> {
        let open = Message::call(libc::SYS_perf_event_open, &[payload(0), u64::MAX, cpu as u64, u64::MAX, 0]);
        let open = open.with(0, &attr::breakpoint(&debugreg_model::Attr::write(0x1000, 8), false));
        let mut opened = Vec::new();
        let mut refused = None;
        while opened.len() < 4 && refused.is_none() {
            match round(&self.init, &open, going)?.result() {
                Ok(descriptor) => opened.push(descriptor),
                Err(errno) => refused = Some(errno),
            }
        }
        for &descriptor in &opened {
            close(&self.init, descriptor, going)?;
        }
        match refused {
            None | Some(libc::ENOSPC) => Ok(opened.len()),
            Some(errno) => Err(unavailable("perf_event_open of a breakpoint", Errno::from_raw(errno))),
        }
    }

    pub(crate) fn mask(&self, place: Place) -> [u8; MASK] {
        let mut mask = [0; MASK];
        let cpu = self.cpus[place];
        mask[cpu / 8] = 1 << (cpu % 8);
        mask
    }

    /// The driver keeps off a CPU on which somebody is busy.
    pub(crate) fn keep_off(&self, place: Place) {
        let mut set = CpuSet::new();
        // Failing that, it only takes longer.
        let _ = set.set(self.cpus[1 - place]).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    }

    /// The driver may run anywhere again.
    pub(crate) fn roam(&self) {
        let _ = sched_setaffinity(Pid::from_raw(0), &self.affinity);
    }

    /// Waits until whoever was awake on a CPU sleeps. Whoever comes next is not switched to from there.
    pub(crate) fn quiesce(&mut self, place: Place, going: &mut Going<'_>) -> Result<(), Error> {
        if self.awake[place].take().is_some() {
            round(&self.spacers[place].1, &Message::call(libc::SYS_getpid, &[]), going)?;
        }
        Ok(())
    }

    /// Init runs on that CPU from now on.
    pub(crate) fn move_init(&mut self, place: Place, going: &mut Going<'_>) -> Result<(), Error> {
        if self.helper != place {
            let mask = self.mask(place);
            let pinned = Message::call(libc::SYS_sched_setaffinity, &[0, MASK as u64, payload(0)]).with(0, &mask);
            self.init(&pinned, going)?;
            self.helper = place;
        }
        Ok(())
    }

    /// Tells init to do something, and returns what came of it.
    pub(crate) fn init(&mut self, message: &Message, going: &mut Going<'_>) -> Result<Message, Error> {
        // Init itself stands between whoever was awake there and whoever comes next.
        self.awake[self.helper] = None;
        round(&self.init, message, going)
    }

    /// The system call that maps a page of `ret` instructions.
    pub(crate) fn map(&self, page: u64) -> Message {
        let protection = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE) as u64;
        Message::call(libc::SYS_mmap, &[page, 4096, protection, flags, self.returns, 0])
    }

    /// Whether the tasks that are started from now on have a page there.
    pub(crate) fn have_page(&mut self, page: u64, going: &mut Going<'_>) -> Result<bool, Error> {
        if self.mapped.contains(&page) {
            return Ok(true);
        }
        let own = (crate::agent::BASE..crate::agent::BASE + crate::agent::SIZE).contains(&page);
        if own || page >= debugreg_model::TASK_SIZE_MAX {
            return Ok(false);
        }
        let done = self.init(&self.map(page), going)?.result() == Ok(page);
        if done {
            self.mapped.insert(page);
        }
        Ok(done)
    }

    /// Kills every task, and waits until nothing of them is left.
    pub(crate) fn clear(&mut self, going: &mut Going<'_>) -> Result<(), Error> {
        for pid in std::mem::take(&mut self.children) {
            round(&self.init, &Message::call(libc::SYS_kill, &[pid, 9]), going)?;
        }
        while round(&self.init, &Message::call(libc::SYS_wait4, &[u64::MAX, 0, WALL, 0]), going)?.result().is_ok() {}
        self.awake = [None; 2];
        Ok(())
    }

    /// Throws away what a socket still holds after its task is dead.
    pub(crate) fn drain(&mut self, pair: usize, going: &mut Going<'_>) -> Result<(), Error> {
        while self.pairs[pair].0.try_receive(Duration::ZERO)?.is_some() {}
        let unread =
            Message::call(libc::SYS_recvfrom, &[self.pairs[pair].1, payload(0), 8, libc::MSG_DONTWAIT as u64, 0, 0]);
        while round(&self.init, &unread, going)?.result().is_ok() {}
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // In good order if the agents listen: when init is gone, so is everything below it.
        let mut tries = 0;
        let mut short = || {
            tries += 1;
            tries < 4
        };
        let exit = Message::call(libc::SYS_exit_group, &[0]);
        if self.init.send(&exit).is_ok()
            && let Some((_, mother)) = self.spacers.first()
        {
            let _ = round(mother, &Message::call(libc::SYS_wait4, &[u64::MAX, 0, WALL, 0]), &mut short);
        }
        for (child, _) in &mut self.spacers {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.roam();
    }
}

/// Waits until no other process has a world.
fn alone(going: &mut Going<'_>) -> Result<OwnedFd, Error> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
    let socket = socket.map_err(|errno| unavailable("socket", errno))?;
    let name = UnixAddr::new_abstract(b"debugreg-kernel").map_err(|errno| unavailable("a socket's name", errno))?;
    let end = Instant::now() + PATIENCE;
    loop {
        match bind(socket.as_raw_fd(), &name) {
            Ok(()) => return Ok(socket),
            Err(Errno::EADDRINUSE) if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
            Err(Errno::EADDRINUSE) => {
                return Err(Error::Unavailable("another debugreg has had the world 'kernel' for a minute".into()));
            }
            Err(errno) => return Err(unavailable("bind", errno)),
        }
        if !going() {
            return Err(Error::Interrupted);
        }
    }
}

fn unavailable(what: &str, errno: Errno) -> Error {
    Error::Unavailable(format!("the world 'kernel' needs {what}: {errno}"))
}

/// A message and its answer.
pub(crate) fn round(channel: &Channel, message: &Message, going: &mut Going<'_>) -> Result<Message, Error> {
    channel.send(message)?;
    channel.receive(going)
}

/// A message whose system call must succeed.
fn ask(channel: &Channel, message: &Message, what: &str, going: &mut Going<'_>) -> Result<Message, Error> {
    let answer = round(channel, message, going)?;
    answer.result().map_err(|errno| unavailable(what, Errno::from_raw(errno)))?;
    Ok(answer)
}

fn close(channel: &Channel, descriptor: u64, going: &mut Going<'_>) -> Result<(), Error> {
    round(channel, &Message::call(libc::SYS_close, &[descriptor]), going).map(drop)
}

/// A copy of an agent's descriptor.
pub(crate) fn fetch(channel: &Channel, descriptor: u64, going: &mut Going<'_>) -> Result<OwnedFd, Error> {
    channel.send(&send_descriptor(descriptor))?;
    let copy = channel.receive_descriptor(going)?;
    channel.receive(going)?;
    Ok(copy)
}
