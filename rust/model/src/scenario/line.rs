//! One event of a line: `ACTOR EVENT ARGS [KEY=VALUE]...`.

use debugreg::trip::{Access, What};

use super::ScenarioError;
use super::lex::{Word, Words, parse_number};
use super::names::{Named, Names, cpu_number};
use crate::{
    Attr, BpType, Changes, CounterId, CpuId, Event, ExitReason, GuestDebug, Insn, Kgdb, Nmi, Scope, TaskId, VcpuId,
};

const TASK_EVENTS: &str =
    "perf_event_open, ptrace_poke, ptrace_peek, attach, detach, fork, exec, exit, migrate, load, store, execute";
const COUNTER_EVENTS: &str = "close, enable, disable, count, modify";
const VCPU_EVENTS: &str = "vm_entry, vm_exit, load, store, execute, io, mov_to_dr, mov_from_dr, set_guest_debug, \
                           get_debugregs, set_debugregs, init, smi, rsm, task_switch, nested_entry, nested_exit";
const CPU_EVENTS: &str = "sched_switch, offline, online, registers, refresh, hardware, owed, slots, nmi, kgdb_enter, \
                          kgdb_set, kgdb_clear, kgdb_resume, modify_wide_hw_breakpoint_local";
const KERNEL_EVENTS: &str = "register_kernel_hw_breakpoint, register_wide_hw_breakpoint, register_user_hw_breakpoint, \
                             unregister_hw_breakpoint";
const NMI_ACTIONS: &str = "kgdb_set KIND A L, kgdb_clear A, kgdb_announce N and kgdb_release N";

/// Reads an event up to `@`, `=>` or the end.
pub(super) fn parse_event(words: &mut Words<'_>, names: &mut Names) -> Result<Event, ScenarioError> {
    let actor = words.expect("an actor")?;
    let named = names.get(actor.text);
    let is_kernel = actor.text == "kernel";
    if named.is_none() && cpu_number(actor.text).is_none() && !is_kernel {
        return Err(actor.error(format!("found '{}', allowed is an actor: {}", actor.text, names.actors_listed())));
    }
    let event = words.expect("an event")?;
    if is_kernel {
        return kernel_event(event, words, names);
    }
    match named {
        Some(Named::Task(task)) => task_event(task, event, words, names),
        Some(Named::Counter(counter)) => counter_event(counter, event, words),
        Some(Named::Vcpu(vcpu)) => vcpu_event(vcpu, event, words),
        None => cpu_event(names.cpu(actor)?, event, words, names),
    }
}

fn unknown(event: Word<'_>, of: &str, allowed: &str) -> ScenarioError {
    event.error(format!("found '{}', allowed events of {of} are {allowed}", event.text))
}

fn task_event(task: TaskId, event: Word<'_>, words: &mut Words<'_>, names: &mut Names) -> Result<Event, ScenarioError> {
    let parsed = match event.text {
        "perf_event_open" => perf_event_open(task, words, names)?,
        "ptrace_poke" => {
            let tracee = names.task_of(words.expect("the tracee")?)?;
            let dr = dr_name(words.expect("a register")?)?;
            let value = words.expect("a value")?.number("the value")?;
            Event::PtracePoke { tracer: task, tracee, dr, value }
        }
        "ptrace_peek" => {
            let tracee = names.task_of(words.expect("the tracee")?)?;
            let dr = dr_name(words.expect("a register")?)?;
            Event::PtracePeek { tracer: task, tracee, dr }
        }
        "attach" => Event::Attach { tracer: task, tracee: names.task_of(words.expect("the tracee")?)? },
        "detach" => Event::Detach { tracer: task, tracee: names.task_of(words.expect("the tracee")?)? },
        "fork" => {
            let child = names.add_task(words.expect("the child's name")?)?;
            let thread = !Arguments::<0>::read(words, &[], &["thread"])?.flags.is_empty();
            Event::Fork { parent: task, child, thread }
        }
        "exec" => Event::Exec(task),
        "exit" => Event::Exit(task),
        "migrate" => Event::Migrate(task, names.cpu(words.expect("a CPU")?)?),
        "load" | "store" | "execute" => {
            let access = access(event, words)?;
            let [mode, insn] = Arguments::read(words, &["mode", "insn"], &[])?.values;
            let kernel = match mode.map(|mode| (mode, mode.text)) {
                Some((_, "kernel")) => true,
                None | Some((_, "user")) => false,
                Some((mode, text)) => {
                    return Err(mode.error(format!("mode: found '{text}', allowed are kernel and user")));
                }
            };
            Event::TaskAccess { task, access, insn: instruction(insn, event)?, kernel }
        }
        _ => return Err(unknown(event, "a task", TASK_EVENTS)),
    };
    Ok(parsed)
}

fn counter_event(counter: CounterId, event: Word<'_>, words: &mut Words<'_>) -> Result<Event, ScenarioError> {
    Ok(match event.text {
        "close" => Event::Close(counter),
        "enable" => Event::Enable(counter),
        "disable" => Event::Disable(counter),
        "count" => Event::Count(counter),
        "modify" => {
            const KEYS: [&str; 7] =
                ["bp_type", "bp_addr", "bp_len", "disabled", "pinned", "exclude_user", "exclude_kernel"];
            let arguments = Arguments::<7>::read(words, &KEYS, &[])?;
            let flag = |at: usize| {
                arguments.number(KEYS, at)?.map(|value| bit(arguments.word(at), KEYS[at], value)).transpose()
            };
            Event::Modify(
                counter,
                Changes {
                    bp_type: arguments.values[0].map(|value| bp_type(KEYS[0], value)).transpose()?,
                    bp_addr: arguments.number(KEYS, 1)?,
                    bp_len: arguments.number(KEYS, 2)?,
                    disabled: flag(3)?,
                    pinned: flag(4)?,
                    exclude_user: flag(5)?,
                    exclude_kernel: flag(6)?,
                },
            )
        }
        _ => return Err(unknown(event, "a counter", COUNTER_EVENTS)),
    })
}

fn bit(word: Word<'_>, key: &str, value: u64) -> Result<bool, ScenarioError> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(word.error(format!("{key}: found {value}, allowed are 0 and 1"))),
    }
}

fn vcpu_event(vcpu: VcpuId, event: Word<'_>, words: &mut Words<'_>) -> Result<Event, ScenarioError> {
    Ok(match event.text {
        "vm_entry" => Event::VmEntry(vcpu),
        "vm_exit" => {
            let [reason] = Arguments::<1>::read(words, &["reason"], &[])?.values;
            Event::VmExit(vcpu, ExitReason::named(reason.map_or("io", |reason| reason.text)))
        }
        "load" | "store" | "execute" => {
            let access = access(event, words)?;
            let arguments = Arguments::read(words, &["insn"], &["emulated"])?;
            let [insn] = arguments.values;
            let emulated = arguments.flags.contains(&"emulated");
            Event::GuestAccess { vcpu, access, insn: instruction(insn, event)?, emulated }
        }
        "io" => {
            let address = words.expect("a port")?.number("the port")?;
            let bytes = length(words.expect("a length")?)?;
            // The language has no way to set CR4.DE, and KVM intercepts the instruction anyway.
            let what = What::Io { debug_extensions: false };
            let access = Access { what, address, bytes };
            Event::GuestAccess { vcpu, access, insn: Insn::Plain, emulated: true }
        }
        "mov_to_dr" | "mov_from_dr" => {
            let word = words.expect("a register number")?;
            let dr = word.number("the register")?;
            let dr = u8::try_from(dr).ok().filter(|&dr| dr < 16);
            let dr =
                dr.ok_or_else(|| word.error(format!("found {}, allowed is a register number: 0 to 15", word.text)))?;
            let value = match event.text {
                "mov_to_dr" => Some(words.expect("a value")?.number("the value")?),
                _ => None,
            };
            let arguments = Arguments::<1>::read(words, &["cpl"], &[])?;
            let cpl = arguments.number(["cpl"], 0)?.unwrap_or(0);
            let cpl = u8::try_from(cpl).ok().filter(|&cpl| cpl < 4);
            let cpl = cpl.ok_or_else(|| {
                arguments.word(0).error(format!("cpl: found {}, allowed is 0 to 3", arguments.word(0).text))
            })?;
            match value {
                Some(value) => Event::MovToDr { vcpu, dr, value, cpl },
                None => Event::MovFromDr { vcpu, dr, cpl },
            }
        }
        "set_guest_debug" => set_guest_debug(vcpu, words)?,
        "get_debugregs" => Event::GetDebugregs(vcpu),
        "set_debugregs" => {
            const KEYS: [&str; 6] = ["dr0", "dr1", "dr2", "dr3", "dr6", "dr7"];
            let arguments = Arguments::<6>::read(words, &KEYS, &[])?;
            let mut dr = [None; 4];
            for (at, value) in dr.iter_mut().enumerate() {
                *value = arguments.number(KEYS, at)?;
            }
            Event::SetDebugregs { vcpu, dr, dr6: arguments.number(KEYS, 4)?, dr7: arguments.number(KEYS, 5)? }
        }
        "init" => Event::Init(vcpu),
        "smi" => Event::Smi(vcpu),
        "rsm" => Event::Rsm(vcpu),
        "task_switch" => Event::TaskSwitch(vcpu),
        "nested_entry" => {
            const KEYS: [&str; 2] = ["dr6", "dr7"];
            let arguments = Arguments::read(words, &KEYS, &["intercept_db"])?;
            let (dr6, dr7) = (arguments.number(KEYS, 0)?, arguments.number(KEYS, 1)?);
            let intercepts_db = arguments.flags.contains(&"intercept_db");
            Event::NestedEntry { vcpu, dr6, dr7, intercepts_db }
        }
        "nested_exit" => Event::NestedExit(vcpu),
        _ => return Err(unknown(event, "a vCPU", VCPU_EVENTS)),
    })
}

fn set_guest_debug(vcpu: VcpuId, words: &mut Words<'_>) -> Result<Event, ScenarioError> {
    const KEYS: [&str; 5] = ["dr0", "dr1", "dr2", "dr3", "dr7"];
    const FLAGS: [(&str, u32); 7] = [
        ("enable", GuestDebug::ENABLE),
        ("step", GuestDebug::SINGLESTEP),
        ("sw", GuestDebug::USE_SW_BP),
        ("hw", GuestDebug::USE_HW_BP),
        ("inject_db", GuestDebug::INJECT_DB),
        ("inject_bp", GuestDebug::INJECT_BP),
        ("blockirq", GuestDebug::BLOCKIRQ),
    ];
    let arguments = Arguments::<5>::read(words, &KEYS, &FLAGS.map(|(name, _)| name))?;
    let mut debug = GuestDebug::default();
    for (name, bit) in FLAGS {
        debug.control |= if arguments.flags.contains(&name) { bit } else { 0 };
    }
    for (at, value) in debug.dr.iter_mut().enumerate() {
        *value = arguments.number(KEYS, at)?.unwrap_or(0);
    }
    debug.dr7 = arguments.number(KEYS, 4)?.unwrap_or(0);
    Ok(Event::SetGuestDebug(vcpu, debug))
}

fn cpu_event(cpu: CpuId, event: Word<'_>, words: &mut Words<'_>, names: &Names) -> Result<Event, ScenarioError> {
    Ok(match event.text {
        "sched_switch" => {
            let next = words.expect("a task or idle")?;
            let next = if next.text == "idle" { TaskId::IDLE } else { names.task_of(next)? };
            Event::SchedSwitch(cpu, next)
        }
        "registers" => Event::Registers(cpu),
        "refresh" => Event::Refresh(cpu),
        "hardware" => Event::Hardware(cpu),
        "owed" => Event::Owed(cpu),
        "slots" => Event::Slots(cpu),
        "offline" => Event::Offline(cpu),
        "online" => Event::Online(cpu),
        "nmi" => Event::Nmi(cpu, nmi(words)?),
        "kgdb_enter" => Event::Kgdb(cpu, Kgdb::Enter),
        "kgdb_set" => {
            let (kind, address, length) = breakpoint(words)?;
            Event::Kgdb(cpu, Kgdb::Set(kind, address, length))
        }
        "kgdb_clear" => Event::Kgdb(cpu, Kgdb::Clear(words.expect("an address")?.number("the address")?)),
        "kgdb_resume" => Event::Kgdb(cpu, Kgdb::Resume),
        "modify_wide_hw_breakpoint_local" => {
            let counter = counter_of(words.expect("the name of a breakpoint")?, names)?;
            let (kind, address, length) = breakpoint(words)?;
            Event::ModifyWideLocal { cpu, counter, attr: Attr::kernel(kind, address, length) }
        }
        _ => return Err(unknown(event, "a CPU", CPU_EVENTS)),
    })
}

fn kernel_event(event: Word<'_>, words: &mut Words<'_>, names: &Names) -> Result<Event, ScenarioError> {
    let on = match event.text {
        "register_kernel_hw_breakpoint" => {
            let word = words.expect("cpu=N")?;
            let number = word
                .text
                .strip_prefix("cpu=")
                .ok_or_else(|| word.error(format!("found '{}', allowed is cpu=N, the number of a CPU", word.text)))?;
            let number = Word { text: number, column: word.column + 4, ..word };
            let cpu = format!("cpu{}", number.number("cpu")?);
            Scope::Cpu(names.cpu(Word { text: &cpu, ..number })?)
        }
        "register_wide_hw_breakpoint" => Scope::Wide,
        "register_user_hw_breakpoint" => Scope::Task(names.task_of(words.expect("a task")?)?),
        "unregister_hw_breakpoint" => {
            let counter = counter_of(words.expect("the name of a breakpoint")?, names)?;
            return Ok(Event::UnregisterHwBreakpoint(counter));
        }
        _ => return Err(unknown(event, "the kernel", KERNEL_EVENTS)),
    };
    let (kind, address, length) = breakpoint(words)?;
    let attr = match on {
        Scope::Task(_) => Attr::ptrace(kind, address, length, false),
        Scope::Cpu(_) | Scope::Wide => Attr::kernel(kind, address, length),
    };
    Ok(Event::RegisterHwBreakpoint { on, attr })
}

/// `KIND A L`.
fn breakpoint(words: &mut Words<'_>) -> Result<(BpType, u64, u64), ScenarioError> {
    let kind = bp_type("the kind", words.expect("a kind: r, w, rw or x")?)?;
    let address = words.expect("an address")?.number("the address")?;
    let length = words.expect("a length")?.number("the length")?;
    Ok((kind, address, length))
}

/// `insn=`.
fn instruction(insn: Option<Word<'_>>, event: Word<'_>) -> Result<Insn, ScenarioError> {
    let Some(word) = insn else { return Ok(Insn::Plain) };
    let executes = event.text == "execute";
    let found = match word.text {
        "popf_tf" => Insn::PopfTf,
        "icebp" if executes => Insn::Icebp,
        "iret_rf" if executes => Insn::IretRf,
        "frame" if event.text == "store" => Insn::Frame,
        "xchg" if !executes => Insn::Xchg,
        "cmpxchg" if !executes => Insn::Cmpxchg,
        "movss" if event.text == "load" => Insn::MovSs,
        text if !executes && text.starts_with("rep:") => {
            let count = Word { text: &text[4..], column: word.column + 4, ..word };
            match count.number("the count of rep")? {
                more if more > REP_MOST => {
                    return Err(count.error(format!("the count of rep: found {more}, allowed is 0 to {REP_MOST}")));
                }
                number => Insn::Rep(number),
            }
        }
        text => {
            const ALLOWED: &str = "popf_tf; icebp and iret_rf for execute; rep:N, xchg and cmpxchg for load and store; movss for load; \
                 frame for store";
            return Err(word.error(format!("insn: found '{text}' with {}, allowed are {ALLOWED}", event.text)));
        }
    };
    Ok(found)
}

/// More iterations than this say nothing new, and each is an event.
const REP_MOST: u64 = 4096;

fn nmi(words: &mut Words<'_>) -> Result<Nmi, ScenarioError> {
    let Some(action) = words.peek().filter(|word| word.text != "=>" && !word.text.starts_with('@')) else {
        return Ok(Nmi::Plain);
    };
    words.next();
    let make = match action.text {
        "kgdb_set" => {
            let (kind, address, length) = breakpoint(words)?;
            return Ok(Nmi::KgdbSet(kind, address, length));
        }
        "kgdb_clear" => return Ok(Nmi::KgdbClear(words.expect("an address")?.number("the address")?)),
        "kgdb_announce" => Nmi::KgdbAnnounce,
        "kgdb_release" => Nmi::KgdbRelease,
        text => return Err(action.error(format!("found '{text}', allowed are {NMI_ACTIONS}"))),
    };
    let word = words.expect("a slot")?;
    let slot = word.number("the slot")?;
    let slot = u8::try_from(slot).ok().filter(|&slot| slot < 4);
    Ok(make(slot.ok_or_else(|| word.error(format!("found {}, allowed is a slot: 0 to 3", word.text)))?))
}

fn perf_event_open(by: TaskId, words: &mut Words<'_>, names: &Names) -> Result<Event, ScenarioError> {
    const KEYS: [&str; 5] = ["bp_type", "bp_addr", "bp_len", "on", "group"];
    const FLAGS: [&str; 8] = [
        "pinned",
        "disabled",
        "inherit",
        "inherit_thread",
        "exclude_user",
        "exclude_kernel",
        "sigtrap",
        "remove_on_exec",
    ];
    let arguments = Arguments::<5>::read(words, &KEYS, &FLAGS)?;
    let missing = |key: &str| words.error(format!("perf_event_open needs {key}="));
    let flag = |name: &str| arguments.flags.contains(&name);
    let attr = Attr {
        bp_type: bp_type("bp_type", arguments.values[0].ok_or_else(|| missing("bp_type"))?)?,
        bp_addr: arguments.number(KEYS, 1)?.ok_or_else(|| missing("bp_addr"))?,
        bp_len: arguments.number(KEYS, 2)?.ok_or_else(|| missing("bp_len"))?,
        pinned: flag("pinned"),
        disabled: flag("disabled"),
        inherit: flag("inherit"),
        inherit_thread: flag("inherit_thread"),
        exclude_user: flag("exclude_user"),
        exclude_kernel: flag("exclude_kernel"),
        sigtrap: flag("sigtrap"),
        // The kernel takes sigtrap only with it, and nobody who wants the one has a choice about the other.
        remove_on_exec: flag("remove_on_exec") || flag("sigtrap"),
    };
    let group = arguments.values[4].map(|word| counter_of(word, names)).transpose()?;
    let (task, cpu) = match arguments.values[3] {
        None => (Some(by), None),
        Some(on) => match on.text.split_once('@') {
            Some((task, cpu)) => {
                let column = on.column + task.chars().count() as u32 + 1;
                let (task, cpu) = (Word { text: task, ..on }, Word { text: cpu, column, ..on });
                (Some(names.task_of(task)?), Some(names.cpu(cpu)?))
            }
            None if cpu_number(on.text).is_some() => (None, Some(names.cpu(on)?)),
            None => (Some(names.task_of(on)?), None),
        },
    };
    Ok(Event::PerfEventOpen { by, attr, task, cpu, group })
}

pub(super) fn counter_of(word: Word<'_>, names: &Names) -> Result<CounterId, ScenarioError> {
    if let Some(Named::Counter(id)) = names.get(word.text) {
        return Ok(id);
    }
    Err(word.error(format!("found '{}', allowed is the name of a counter that a line above has bound", word.text)))
}

fn bp_type(what: &str, value: Word<'_>) -> Result<BpType, ScenarioError> {
    BpType::ALL
        .into_iter()
        .find(|bp_type| bp_type.name() == value.text)
        .ok_or_else(|| value.error(format!("{what}: found '{}', allowed are r, w, rw and x", value.text)))
}

fn access(event: Word<'_>, words: &mut Words<'_>) -> Result<Access, ScenarioError> {
    let what = match event.text {
        "load" => What::Load,
        "store" => What::Store,
        _ => What::Execute,
    };
    let address = words.expect("an address")?.number("the address")?;
    let bytes = match words.peek() {
        // How long an instruction is does not matter: only its first byte counts.
        None if what == What::Execute => 1,
        Some(word) if what == What::Execute && parse_number(word.text).is_none() => 1,
        _ => length(words.expect("a length")?)?,
    };
    Ok(Access { what, address, bytes })
}

fn length(word: Word<'_>) -> Result<u64, ScenarioError> {
    match word.number("the length")? {
        0 => Err(word.error("the length: found 0, allowed is a number of bytes from 1 on")),
        bytes => Ok(bytes),
    }
}

/// `DRn`.
fn dr_name(word: Word<'_>) -> Result<u8, ScenarioError> {
    let number = word.text.strip_prefix("DR").or_else(|| word.text.strip_prefix("dr")).and_then(parse_number);
    number
        .and_then(|number| u8::try_from(number).ok())
        .filter(|&number| number < 8)
        .ok_or_else(|| word.error(format!("found '{}', allowed is a register: DR0 to DR7", word.text)))
}

/// The `key=value` words and flags at the end of an event; a value keeps its own column.
struct Arguments<'a, const N: usize> {
    values: [Option<Word<'a>>; N],
    flags: Vec<&'a str>,
}

impl<'a, const N: usize> Arguments<'a, N> {
    fn read(words: &mut Words<'a>, keys: &[&str], flags: &[&str]) -> Result<Arguments<'a, N>, ScenarioError> {
        let mut found = Arguments { values: [None; N], flags: Vec::new() };
        while let Some(word) = words.peek().filter(|word| word.text != "=>" && !word.text.starts_with('@')) {
            words.next();
            let allowed = || {
                let all: Vec<_> =
                    keys.iter().map(|key| format!("{key}=")).chain(flags.iter().map(|f| (*f).to_owned())).collect();
                if all.is_empty() { "nothing more".to_owned() } else { all.join(", ") }
            };
            let twice = || word.error(format!("'{}' is given twice", word.text));
            match word.text.split_once('=') {
                Some((key, value)) => match keys.iter().position(|known| *known == key) {
                    Some(at) if found.values[at].is_none() => {
                        let column = word.column + key.chars().count() as u32 + 1;
                        found.values[at] = Some(Word { text: value, column, ..word });
                    }
                    Some(_) => return Err(twice()),
                    None => return Err(word.error(format!("found '{key}=', allowed are {}", allowed()))),
                },
                None if flags.contains(&word.text) && found.flags.contains(&word.text) => return Err(twice()),
                None if flags.contains(&word.text) => found.flags.push(word.text),
                None => return Err(word.error(format!("found '{}', allowed are {}", word.text, allowed()))),
            }
        }
        Ok(found)
    }

    fn word(&self, at: usize) -> Word<'a> {
        self.values[at].expect("a value that was read")
    }

    fn number(&self, keys: [&str; N], at: usize) -> Result<Option<u64>, ScenarioError> {
        self.values[at].map(|value| value.number(keys[at])).transpose()
    }
}
