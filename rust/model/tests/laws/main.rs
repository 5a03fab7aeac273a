//! Laws of the machine under random events: what is armed is what was asked for, a guest reads what it wrote, a refusal
//! and a mistake change nothing, and the slot rule is the reference's formula.
//!
//! What was asked for is kept in a [`Ledger`], from events and outcomes alone. Kernels that break a law by a documented
//! bug, and states that the reference documents as broken, are left out by name: see [`Walk::documented`].

mod ledger;
mod ops;
mod walk;

use debugreg::Dr7;
use debugreg_model::policy::{HostHalf, NAMED};
use debugreg_model::scenario::{parse, run};
use debugreg_model::{
    Attr, Capabilities, CounterId, CpuId, Delta, Errno, Event, ExitReason, Holder, Machine, Options, Outcome, Policy,
    Probe, TaskId, VcpuId, Vendor,
};
use proptest::prelude::*;

use crate::ops::{CPUS, Op, guest_op, host_op, host_walk, options, policies, walk};
use crate::walk::Walk;

/// Another event before one of the steps.
#[derive(Debug)]
struct Interruption {
    at: usize,
    event: Option<Event>,
}

impl Probe for Interruption {
    fn before(&mut self, machine: &mut Machine, _: CpuId) {
        self.at = self.at.saturating_sub(1);
        if self.at == 0
            && let Some(event) = self.event.take()
        {
            let _ = machine.apply(&event, &mut ());
        }
    }
}

/// `PROPTEST_CASES=30000 cargo test --release -p debugreg-model --test laws` for more.
fn config() -> ProptestConfig {
    let more = std::env::var_os("PROPTEST_CASES").is_some();
    if more { ProptestConfig::default() } else { ProptestConfig::with_cases(600) }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_is_armed_is_what_is_owed(policy in policies(HostHalf::Perf), options in options(), ops in walk()) {
        Walk::new(options, policy).perform_checked(&ops)?;
    }

    /// The host half is the same under all of them.
    #[test]
    fn what_is_armed_is_what_is_owed_without_guests(options in options(), ops in host_walk()) {
        Walk::new(options, Policy::parse("linux").expect("named")).perform_checked(&ops)?;
    }

    /// The slot rule kept as numbers is the slot rule: the same answers, and numbers that a count gives too.
    #[test]
    fn the_histogram_is_the_rule(options in options(), ops in host_walk()) {
        let policy = |name| Policy::parse(name).expect("named");
        let mut counted = Walk::new(options, policy("linux"));
        let mut kept = Walk::new(options, policy("linux+histogram"));
        for op in &ops {
            prop_assert_eq!(counted.perform(op)?, kept.perform(op)?, "{:?}", op);
        }
        prop_assert!(kept.machine.histogram_is_true());
    }

    /// Up to 2.6.32 a switch leaves the last task's breakpoints armed, so only this much is promised.
    #[test]
    fn the_thread_half_takes_whatever_comes(policy in policies(HostHalf::Thread), options in options(), ops in walk()) {
        let mut walk = Walk::new(options, policy);
        for op in &ops {
            walk.perform(op)?;
        }
    }

    /// Whatever happens before whichever step, `@N` in a scenario: no panic. (What should come of it is the checker's.)
    #[test]
    fn an_interruption_is_survived(
        policy in prop_oneof![9 => policies(HostHalf::Perf), 1 => policies(HostHalf::Thread)],
        options in options(),
        ops in prop::collection::vec((prop_oneof![3 => host_op(), 2 => guest_op()], 1..16usize), 2..80),
    ) {
        let mut walk = Walk::new(options, policy);
        for pair in ops.windows(2) {
            let [(op, at), (inner, _)] = pair else { unreachable!("windows of two") };
            // Both would want the same place for their child.
            let event = if matches!(inner, Op::Fork(_)) { None } else { walk.event(inner) };
            let mut interruption = Interruption { at: *at, event };
            let Some(event) = walk.event(op) else { continue };
            let outcome = walk.machine.apply(&event, &mut interruption);
            match (event, outcome) {
                (_, Ok(Outcome::Bound(id))) => walk.counters.push(id),
                (Event::Fork { child, .. }, Ok(Outcome::Ok)) => {
                    walk.tasks.push(child);
                    walk.unborn = None;
                }
                _ => {}
            }
        }
    }

    /// Everything that is closed is gone: registers disarmed up to GE, and every slot to be had again.
    #[test]
    fn closing_everything_undoes_everything(policy in policies(HostHalf::Perf), options in options(), ops in walk()) {
        let mut walk = Walk::new(options, policy);
        for op in &ops {
            // kgdb's slots and a tracer's counters are not closed by anybody here.
            if !matches!(op, Op::Nmi(..) | Op::Attach(..)) {
                walk.perform(op)?;
            }
        }
        for vcpu in (0..2).map(VcpuId) {
            let _ = walk.machine.apply(&Event::VmExit(vcpu, ExitReason::Other("io")), &mut ());
        }
        for counter in walk.counters.clone() {
            let _ = walk.machine.apply(&Event::Close(counter), &mut ());
        }
        for cpu in (0..CPUS).map(CpuId) {
            prop_assert_eq!(walk.machine.slots(cpu), [Holder::Nobody; 4]);
            prop_assert!(!Dr7(walk.machine.cpu(cpu).bank.hardware.dr7).any_armed());
            prop_assert!(!walk.machine.breakpoints_active(cpu));
        }
        let by = walk.machine.add_task(CpuId(0), Capabilities::Root);
        for cpu in [0, 0, 0, 0, 1, 1, 1, 1].map(CpuId) {
            let open = Event::PerfEventOpen { by, attr: Attr::write(0x1000, 8), task: None, cpu: Some(cpu), group: None };
            prop_assert!(matches!(walk.machine.apply(&open, &mut ()), Ok(Outcome::Bound(_))));
        }
    }

    /// Section 4 of the reference, counted once more from what was opened and closed.
    #[test]
    fn the_slot_rule_is_the_formula(
        slots in 1..=4usize,
        wishes in prop::collection::vec((0..3usize, 0..4u32, any::<bool>(), prop::bool::weighted(0.3)), 1..60),
    ) {
        let options = Options { cpus: CPUS as usize, slots, ..Options::default() };
        let mut walk = Walk::new(options, Policy::parse("linux").expect("named"));
        let mut open: Vec<(CounterId, Option<TaskId>, Option<CpuId>)> = Vec::new();
        for (who, wherever, of_task, close) in wishes {
            if close && !open.is_empty() {
                let (id, ..) = open.swap_remove(who % open.len());
                prop_assert_eq!(walk.machine.apply(&Event::Close(id), &mut ()), Ok(Outcome::Ok));
                continue;
            }
            let cpu = (wherever < CPUS).then_some(CpuId(wherever));
            let task = (of_task || cpu.is_none()).then(|| walk.tasks[who]);
            let on = |at: CpuId| move |cpu: Option<CpuId>| cpu.is_none_or(|cpu| cpu == at);
            let fits = |at: CpuId| {
                let bound = open.iter().filter(|(_, task, cpu)| task.is_none() && on(at)(*cpu)).count();
                let of = |wanted: TaskId| {
                    open.iter().filter(|(_, task, cpu)| *task == Some(wanted) && on(at)(*cpu)).count()
                };
                let tasks = match task {
                    Some(task) => of(task),
                    None => walk.tasks.iter().map(|&task| of(task)).max().unwrap_or(0),
                };
                bound + tasks < slots
            };
            let admitted = match cpu {
                Some(cpu) => fits(cpu),
                None => (0..CPUS).map(CpuId).all(fits),
            };
            let event = Event::PerfEventOpen { by: walk.tasks[0], attr: Attr::write(0x1000, 8), task, cpu, group: None };
            match walk.machine.apply(&event, &mut ()) {
                Ok(Outcome::Bound(id)) => {
                    prop_assert!(admitted, "{:?} was admitted", event);
                    open.push((id, task, cpu));
                }
                Ok(Outcome::Refused(refusal)) => {
                    prop_assert!(!admitted, "{:?} was refused", event);
                    prop_assert_eq!(refusal.errno, Some(Errno::ENOSPC));
                    prop_assert!(!refusal.holders.is_empty());
                    prop_assert!(refusal.holders.iter().all(|holder| open.iter().any(|(id, ..)| id == holder)));
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}

/// The shortest of what [`an_interruption_is_survived`] has found.
#[test]
fn a_counter_that_is_closed_inside_a_reschedule_is_survived() {
    for step in 1..40 {
        let text = format!(
            "machine policy=linux\ntask sh\n\
             sh perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 => A\n\
             sh perf_event_open bp_type=w bp_addr=0x2000 bp_len=8 => B\n\
             sh perf_event_open bp_type=w bp_addr=0x3000 bp_len=8 pinned @{step} B close => C\n"
        );
        let scenario = parse(&text).expect("valid");
        let report = run(&scenario, Policy::parse("linux").expect("named"), None, false);
        assert!(report.is_ok_and(|report| report.ok) || step > 28, "@{step}");
    }
}

#[test]
fn nothing_set_costs_nothing() {
    // 2.6.30 and bhyve read and write at every entry and exit, DebugSwap stores the host's addresses at each vcpu_load;
    // from 4.15 to 5.14 each vcpu_put writes DR6 (H-04).
    let noisy = ["linux-2.6.30", "bhyve", "sev-es-debugswap"];
    let quiet = |name: &str| !noisy.contains(&name) && !Policy::parse(name).expect("named").has(Delta::H04);
    for policy in NAMED.iter().filter(|named| quiet(named.name)) {
        for vendor in [Vendor::Amd, Vendor::Intel] {
            let options = Options { cpus: CPUS as usize, vendor, ..Options::default() };
            let mut walk = Walk::new(options, Policy::parse(policy.name).expect("named"));
            let [qemu, _, sh] = walk.tasks[..] else { unreachable!("three tasks") };
            let vcpu = VcpuId(0);
            let round = [
                Event::VmEntry(vcpu),
                Event::VmExit(vcpu, ExitReason::Other("io")),
                Event::SchedSwitch(CpuId(0), sh),
                Event::SchedSwitch(CpuId(0), TaskId::IDLE),
                Event::SchedSwitch(CpuId(0), qemu),
            ];
            for event in round.iter().cycle().take(50) {
                assert_eq!(walk.machine.apply(event, &mut ()), Ok(Outcome::Ok));
            }
            let cost = walk.machine.cost();
            assert_eq!((cost.touched(), cost.vm_exits, cost.skips), (0, 0, 50), "{} {}", policy.name, vendor.name());
        }
    }
}
