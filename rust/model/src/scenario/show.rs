//! Printing: events, outcomes and steps as the language writes them.

use std::fmt::{self, Write as _};

use debugreg::trip::What;
use debugreg::{Dr, Registers, Word};

use super::{Expectation, Names, Scenario, Session};
use crate::{
    Attr, BpType, Capabilities, Changes, CounterId, CpuId, Errno, Event, ExitReason, Field, GuestDebug, Holder, Insn,
    Kgdb, Nmi, Options, Outcome, Processor, Scope, Step, TaskId, Vector,
};

/// An event whose counters are symbols.
pub fn show_event(event: &Event, names: &Names) -> String {
    let task = |id| names.task(id);
    let counter = |id| names.counter(id);
    match *event {
        Event::PerfEventOpen { by, attr, task: on, cpu, group } => {
            let group = group.map(|id| format!(" group={}", counter(id))).unwrap_or_default();
            format!("{} perf_event_open {}{}{group}", task(by), show_attr(attr), show_target(by, on, cpu, names))
        }
        Event::Close(id) => format!("{} close", counter(id)),
        Event::Enable(id) => format!("{} enable", counter(id)),
        Event::Disable(id) => format!("{} disable", counter(id)),
        Event::Count(id) => format!("{} count", counter(id)),
        Event::Modify(id, changes) => format!("{} modify{}", counter(id), show_changes(changes)),
        Event::PtracePoke { tracer, tracee, dr, value } => {
            format!("{} ptrace_poke {} DR{dr} {value:#x}", task(tracer), task(tracee))
        }
        Event::PtracePeek { tracer, tracee, dr } => format!("{} ptrace_peek {} DR{dr}", task(tracer), task(tracee)),
        Event::Attach { tracer, tracee } => format!("{} attach {}", task(tracer), task(tracee)),
        Event::Detach { tracer, tracee } => format!("{} detach {}", task(tracer), task(tracee)),
        Event::Fork { parent, child, thread } => {
            format!("{} fork {}{}", task(parent), task(child), if thread { " thread" } else { "" })
        }
        Event::Exec(id) => format!("{} exec", task(id)),
        Event::Exit(id) => format!("{} exit", task(id)),
        Event::Migrate(id, cpu) => format!("{} migrate cpu{}", task(id), cpu.0),
        Event::TaskAccess { task: id, access, insn, kernel } => {
            let mode = if kernel { " mode=kernel" } else { "" };
            format!("{} {}{mode}{}", task(id), show_access(access), show_insn(insn))
        }
        Event::GuestAccess { vcpu, access, insn, emulated } => {
            let io = matches!(access.what, What::Io { .. });
            let emulated = if emulated && !io { " emulated" } else { "" };
            format!("{} {}{emulated}{}", names.vcpu(vcpu), show_access(access), show_insn(insn))
        }
        Event::MovToDr { vcpu, dr, value, cpl } => {
            format!("{} mov_to_dr {dr} {value:#x}{}", names.vcpu(vcpu), show_cpl(cpl))
        }
        Event::MovFromDr { vcpu, dr, cpl } => format!("{} mov_from_dr {dr}{}", names.vcpu(vcpu), show_cpl(cpl)),
        Event::SchedSwitch(cpu, next) => format!("cpu{} sched_switch {}", cpu.0, task(next)),
        Event::Registers(cpu) => format!("cpu{} registers", cpu.0),
        Event::Refresh(cpu) => format!("cpu{} refresh", cpu.0),
        Event::Hardware(cpu) => format!("cpu{} hardware", cpu.0),
        Event::Owed(cpu) => format!("cpu{} owed", cpu.0),
        Event::Slots(cpu) => format!("cpu{} slots", cpu.0),
        Event::Offline(cpu) => format!("cpu{} offline", cpu.0),
        Event::Online(cpu) => format!("cpu{} online", cpu.0),
        Event::Kgdb(cpu, Kgdb::Enter) => format!("cpu{} kgdb_enter", cpu.0),
        Event::Kgdb(cpu, Kgdb::Set(kind, address, length)) => {
            format!("cpu{} kgdb_set {}", cpu.0, show_breakpoint(kind, address, length))
        }
        Event::Kgdb(cpu, Kgdb::Clear(address)) => format!("cpu{} kgdb_clear {address:#x}", cpu.0),
        Event::Kgdb(cpu, Kgdb::Resume) => format!("cpu{} kgdb_resume", cpu.0),
        Event::RegisterHwBreakpoint { on, attr: Attr { bp_type, bp_addr, bp_len, .. } } => {
            let breakpoint = show_breakpoint(bp_type, bp_addr, bp_len);
            match on {
                Scope::Cpu(cpu) => format!("kernel register_kernel_hw_breakpoint cpu={} {breakpoint}", cpu.0),
                Scope::Wide => format!("kernel register_wide_hw_breakpoint {breakpoint}"),
                Scope::Task(id) => format!("kernel register_user_hw_breakpoint {} {breakpoint}", task(id)),
            }
        }
        Event::UnregisterHwBreakpoint(id) => format!("kernel unregister_hw_breakpoint {}", counter(id)),
        Event::ModifyWideLocal { cpu, counter: id, attr: Attr { bp_type, bp_addr, bp_len, .. } } => {
            let breakpoint = show_breakpoint(bp_type, bp_addr, bp_len);
            format!("cpu{} modify_wide_hw_breakpoint_local {} {breakpoint}", cpu.0, counter(id))
        }
        Event::Nmi(cpu, Nmi::Plain) => format!("cpu{} nmi", cpu.0),
        Event::Nmi(cpu, Nmi::KgdbSet(kind, address, length)) => {
            format!("cpu{} nmi kgdb_set {}", cpu.0, show_breakpoint(kind, address, length))
        }
        Event::Nmi(cpu, Nmi::KgdbClear(address)) => format!("cpu{} nmi kgdb_clear {address:#x}", cpu.0),
        Event::Nmi(cpu, Nmi::KgdbAnnounce(slot)) => format!("cpu{} nmi kgdb_announce {slot}", cpu.0),
        Event::Nmi(cpu, Nmi::KgdbRelease(slot)) => format!("cpu{} nmi kgdb_release {slot}", cpu.0),
        Event::VmEntry(vcpu) => format!("{} vm_entry", names.vcpu(vcpu)),
        Event::VmExit(vcpu, reason) => format!("{} vm_exit reason={}", names.vcpu(vcpu), show_reason(reason)),
        Event::SetGuestDebug(vcpu, debug) => format!("{} set_guest_debug{}", names.vcpu(vcpu), show_debug(debug)),
        Event::GetDebugregs(vcpu) => format!("{} get_debugregs", names.vcpu(vcpu)),
        Event::SetDebugregs { vcpu, dr, dr6, dr7 } => {
            let mut text = format!("{} set_debugregs", names.vcpu(vcpu));
            let fields = (0..).zip(dr).chain([(6, dr6), (7, dr7)]);
            for (number, value) in fields.filter_map(|(number, value)| value.map(|value| (number, value))) {
                let _ = write!(text, " dr{number}={value:#x}");
            }
            text
        }
        Event::Init(vcpu) => format!("{} init", names.vcpu(vcpu)),
        Event::Smi(vcpu) => format!("{} smi", names.vcpu(vcpu)),
        Event::Rsm(vcpu) => format!("{} rsm", names.vcpu(vcpu)),
        Event::TaskSwitch(vcpu) => format!("{} task_switch", names.vcpu(vcpu)),
        Event::NestedEntry { vcpu, dr6, dr7, intercepts_db } => {
            let field = |number, value: Option<u64>| value.map(|v| format!(" dr{number}={v:#x}")).unwrap_or_default();
            let db = if intercepts_db { " intercept_db" } else { "" };
            format!("{} nested_entry{}{}{db}", names.vcpu(vcpu), field(6, dr6), field(7, dr7))
        }
        Event::NestedExit(vcpu) => format!("{} nested_exit", names.vcpu(vcpu)),
    }
}

fn show_attr(attr: Attr) -> String {
    let mut text = format!("bp_type={} bp_addr={:#x} bp_len={}", attr.bp_type.name(), attr.bp_addr, attr.bp_len);
    let flags = [
        (attr.pinned, "pinned"),
        (attr.disabled, "disabled"),
        (attr.inherit, "inherit"),
        (attr.inherit_thread, "inherit_thread"),
        (attr.exclude_user, "exclude_user"),
        (attr.exclude_kernel, "exclude_kernel"),
        (attr.sigtrap, "sigtrap"),
        (attr.remove_on_exec && !attr.sigtrap, "remove_on_exec"),
    ];
    for (_, name) in flags.into_iter().filter(|(set, _)| *set) {
        text.push(' ');
        text.push_str(name);
    }
    text
}

fn show_target(by: TaskId, task: Option<TaskId>, cpu: Option<CpuId>, names: &Names) -> String {
    match (task, cpu) {
        (Some(task), None) if task == by => String::new(),
        (Some(task), None) => format!(" on={}", names.task(task)),
        (Some(task), Some(cpu)) => format!(" on={}@cpu{}", names.task(task), cpu.0),
        (None, cpu) => format!(" on=cpu{}", cpu.map_or(0, |cpu| cpu.0)),
    }
}

fn show_changes(changes: Changes) -> String {
    let number = |value: bool| u8::from(value).to_string();
    let fields = [
        ("bp_type", changes.bp_type.map(|bp_type| bp_type.name().to_owned())),
        ("bp_addr", changes.bp_addr.map(|value| format!("{value:#x}"))),
        ("bp_len", changes.bp_len.map(|value| value.to_string())),
        ("disabled", changes.disabled.map(number)),
        ("pinned", changes.pinned.map(number)),
        ("exclude_user", changes.exclude_user.map(number)),
        ("exclude_kernel", changes.exclude_kernel.map(number)),
    ];
    fields.into_iter().filter_map(|(key, value)| value.map(|value| format!(" {key}={value}"))).collect()
}

fn show_access(access: debugreg::trip::Access) -> String {
    let event = match access.what {
        What::Execute => "execute",
        What::Load => "load",
        What::Store => "store",
        What::Io { .. } => "io",
    };
    format!("{event} {:#x} {}", access.address, access.bytes)
}

fn show_insn(insn: Insn) -> String {
    match insn {
        Insn::Plain => String::new(),
        Insn::Rep(count) => format!(" insn=rep:{count}"),
        Insn::Xchg => " insn=xchg".to_owned(),
        Insn::Cmpxchg => " insn=cmpxchg".to_owned(),
        Insn::MovSs => " insn=movss".to_owned(),
        Insn::PopfTf => " insn=popf_tf".to_owned(),
        Insn::Icebp => " insn=icebp".to_owned(),
        Insn::IretRf => " insn=iret_rf".to_owned(),
        Insn::Frame => " insn=frame".to_owned(),
    }
}

fn show_breakpoint(kind: BpType, address: u64, length: u64) -> String {
    format!("{} {address:#x} {length}", kind.name())
}

fn show_cpl(cpl: u8) -> String {
    if cpl == 0 { String::new() } else { format!(" cpl={cpl}") }
}

fn show_reason(reason: ExitReason) -> &'static str {
    match reason {
        ExitReason::DrAccess(_) => "dr",
        ExitReason::Db(_) => "db",
        ExitReason::Fastpath => "fastpath",
        ExitReason::Other(name) => name,
    }
}

fn show_debug(debug: GuestDebug) -> String {
    let flags = [
        (GuestDebug::ENABLE, " enable"),
        (GuestDebug::USE_HW_BP, " hw"),
        (GuestDebug::USE_SW_BP, " sw"),
        (GuestDebug::SINGLESTEP, " step"),
        (GuestDebug::INJECT_DB, " inject_db"),
        (GuestDebug::INJECT_BP, " inject_bp"),
        (GuestDebug::BLOCKIRQ, " blockirq"),
    ];
    let mut text: String =
        flags.into_iter().filter(|(bit, _)| debug.control & bit != 0).map(|(_, name)| name).collect();
    for (number, value) in (0..).zip(debug.dr).chain([(7, debug.dr7)]).filter(|(_, value)| *value != 0) {
        let _ = write!(text, " dr{number}={value:#x}");
    }
    text
}

/// An outcome, as an expectation would write it.
pub fn show_outcome(outcome: &Outcome, session: &Session) -> String {
    match outcome {
        Outcome::Ok => "ok".to_owned(),
        Outcome::Endless => "endless".to_owned(),
        Outcome::Value(value) if *value < 10 => value.to_string(),
        Outcome::Value(value) => format!("{value:#x}"),
        Outcome::Bound(id) => session.counter_name(*id),
        Outcome::Refused(refusal) => refusal.errno.map_or_else(|| "refused".to_owned(), Errno::name),
        Outcome::Hits { counters, kgdb, sigtrap } => {
            let mut parts = Vec::new();
            let mut names: Vec<_> = counters.iter().map(|&id| session.counter_name(id)).collect();
            names.extend(kgdb.then(|| "kgdb".to_owned()));
            if !names.is_empty() {
                parts.push(format!("hit {}", names.join(" ")));
            }
            parts.extend(sigtrap.map(|dr6| format!("sigtrap dr6={dr6:#010x}")));
            if parts.is_empty() { "nothing".to_owned() } else { parts.join(" ") }
        }
        Outcome::Exception { vector: Vector::Debug, dr6, fault } => {
            format!("#DB dr6={dr6:#010x}{}", if *fault { " fault" } else { "" })
        }
        Outcome::Exception { vector, .. } => show_vector(*vector).to_owned(),
        Outcome::ExitDebug { dr6, dr7 } => format!("exit debug dr6={dr6:#010x} dr7={dr7:#010x}"),
        Outcome::ExitNested { dr6, dr7 } => format!("exit nested dr6={dr6:#010x} dr7={dr7:#010x}"),
        Outcome::ExitFailEntry => "exit fail_entry".to_owned(),
        Outcome::Registers(registers) => show_registers(registers),
        Outcome::Slots(slots) => {
            let slots = (0..).zip(slots).map(|(i, holder)| match holder {
                Holder::Nobody => format!("s{i}=none"),
                Holder::Kgdb => format!("s{i}=kgdb"),
                Holder::Counter(id) => format!("s{i}={}", session.counter_name(*id)),
            });
            slots.collect::<Vec<_>>().join(" ")
        }
    }
}

fn show_registers(registers: &Registers) -> String {
    let mut text = String::new();
    for (i, address) in (0..).zip(registers.dr) {
        let _ = write!(text, "dr{i}={address:#x} ");
    }
    let _ = write!(text, "dr6={:#010x} dr7={:#010x}", registers.dr6, registers.dr7);
    text
}

const fn show_vector(vector: Vector) -> &'static str {
    match vector {
        Vector::Debug => "#DB",
        Vector::InvalidOpcode => "#UD",
        Vector::GeneralProtection => "#GP",
    }
}

pub(super) fn show_expectation(expectation: &Expectation, names: &Names) -> String {
    let field =
        |name: &str, value: Option<u64>| value.map(|value| format!(" {name}={value:#010x}")).unwrap_or_default();
    let counter = |id: CounterId| names.counter(id).to_owned();
    match expectation {
        Expectation::Ok => "ok".to_owned(),
        Expectation::Nothing => "nothing".to_owned(),
        Expectation::Bind(symbol) => counter(*symbol),
        Expectation::Errno(name) => name.clone(),
        Expectation::Refused => "refused".to_owned(),
        Expectation::Endless => "endless".to_owned(),
        Expectation::Value(value) if *value < 10 => value.to_string(),
        Expectation::Value(value) => format!("{value:#x}"),
        Expectation::Hit { counters, kgdb } => {
            let names = counters.iter().map(|&id| counter(id)).chain(kgdb.then(|| "kgdb".to_owned()));
            format!("hit {}", names.collect::<Vec<_>>().join(" "))
        }
        Expectation::Sigtrap(dr6) => format!("sigtrap{}", field("dr6", *dr6)),
        Expectation::Exception { vector, dr6, fault } => {
            format!("{}{}{}", show_vector(*vector), field("dr6", *dr6), if *fault { " fault" } else { "" })
        }
        Expectation::ExitDebug { dr6, dr7 } => format!("exit debug{}{}", field("dr6", *dr6), field("dr7", *dr7)),
        Expectation::ExitNested { dr6, dr7 } => format!("exit nested{}{}", field("dr6", *dr6), field("dr7", *dr7)),
        Expectation::ExitFailEntry => "exit fail_entry".to_owned(),
        Expectation::Registers(fields) => {
            let fields = fields.iter().map(|(number, value)| match number {
                6 | 7 => format!("dr{number}={value:#010x}"),
                _ => format!("dr{number}={value:#x}"),
            });
            fields.collect::<Vec<_>>().join(" ")
        }
        Expectation::Slots(fields) => {
            let fields = fields.iter().map(|(slot, holder)| match holder {
                Holder::Nobody => format!("s{slot}=none"),
                Holder::Kgdb => format!("s{slot}=kgdb"),
                Holder::Counter(id) => format!("s{slot}={}", counter(*id)),
            });
            fields.collect::<Vec<_>>().join(" ")
        }
    }
}

/// A step, as `--steps` shows it.
pub fn show_step(step: Step) -> String {
    match step {
        Step::Load(word, value) => format!("load {} -> {value:#x}", show_word(word)),
        Step::Store(word, value) => format!("store {} = {value:#x}", show_word(word)),
        Step::Or(word, bits) => format!("or {} |= {bits:#x}", show_word(word)),
        Step::CompareExchange(word, value, took) => {
            format!("cmpxchg {} = {value:#x} ({})", show_word(word), if took { "took" } else { "lost" })
        }
        Step::WriteDr(dr, value) => format!("mov {}, {value:#x}", show_dr(dr)),
        Step::ReadDr(dr, value) => format!("read {} -> {value:#x}", show_dr(dr)),
        Step::WriteField(field, value) => format!("write {} = {value:#x}", show_field(field)),
        Step::Entry => "enter the guest".to_owned(),
        Step::ReadField(field, value) => format!("read {} -> {value:#x}", show_field(field)),
    }
}

fn show_dr(dr: Dr) -> String {
    format!("dr{}", dr.number())
}

fn show_word(word: Word) -> String {
    match word {
        Word::Owner(slot) => format!("bp_per_reg[{}]", slot.index()),
        Word::Address(slot) => format!("cpu_debugreg[{}]", slot.index()),
        Word::Control => "cpu_dr7".to_owned(),
        Word::Announced => "announced".to_owned(),
        Word::Lent => "lent".to_owned(),
    }
}

const fn show_field(field: Field) -> &'static str {
    match field {
        Field::GuestDr6 => "guest DR6",
        Field::GuestDr7 => "guest DR7",
        Field::DrIntercept => "DR intercept",
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.title {
            writeln!(f, "# {line}")?;
        }
        writeln!(f, "machine{}", show_options(self))?;
        for (id, task) in (1..).map(TaskId).zip(&self.tasks) {
            write!(f, "task    {} cpu={}", self.names.task(id), task.cpu.0)?;
            match task.capabilities {
                Capabilities::Root => {}
                Capabilities::Perfmon => f.write_str(" caps=perfmon")?,
                Capabilities::None => f.write_str(" caps=none")?,
            }
            writeln!(f, "{}", if task.is_32bit { " bits=32" } else { "" })?;
        }
        for (id, vcpu) in (0..).map(crate::VcpuId).zip(&self.vcpus) {
            let de = if vcpu.debug_extensions { " de=1" } else { "" };
            writeln!(f, "vcpu    {} task={}{de}", self.names.vcpu(id), self.names.task(vcpu.task))?;
        }
        for line in &self.lines {
            f.write_str(&show_event(&line.event, &self.names))?;
            if let Some((at, event)) = &line.interruption {
                write!(f, " {at} {}", show_event(event, &self.names))?;
            }
            if let Some(expectation) = &line.expectation {
                write!(f, " => {}", show_expectation(expectation, &self.names))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

fn show_options(scenario: &Scenario) -> String {
    let (options, default) = (scenario.options, Options::default());
    let mut text = format!(" cpus={}", options.cpus);
    if let Some(vendor) = scenario.vendor {
        let _ = write!(text, " vendor={}", vendor.name());
    }
    if !scenario.laws.is_empty() {
        let _ = write!(text, " laws={}", scenario.laws);
    }
    if !scenario.policies.is_empty() {
        let _ = write!(text, " policy={}", scenario.policies.join(","));
    }
    if options.slots != default.slots {
        let _ = write!(text, " slots={}", options.slots);
    }
    if options.paranoid != default.paranoid {
        let _ = write!(text, " paranoid={}", options.paranoid);
    }
    let bits = [
        ("hypervisor", options.hypervisor, default.hypervisor),
        ("fred", options.fred, default.fred),
        ("disabled_match", options.disabled_match, default.disabled_match),
        ("decode_assists", options.decode_assists, default.decode_assists),
        ("kprobes", options.kprobes, default.kprobes),
    ];
    for (key, value, _) in bits.into_iter().filter(|(_, value, default)| value != default) {
        let _ = write!(text, " {key}={}", u8::from(value));
    }
    if options.kgdb_early {
        text.push_str(" kgdb=early");
    }
    if options.processor == Processor::Tcg {
        text.push_str(" cpu=tcg");
    }
    text
}
