//! The laws of one CPU's slots, for any history, any breakpoint and anything that a guest left in the registers.
//!
//! What a slot should hold is kept by [`World`] in its own words (who, what), and compared with the owners, the shadow
//! and the registers. Source of the laws: INV1 to INV4 and section 8 of linux-host, after
//! arch/x86/kernel/hw_breakpoint.c (6.17).

mod probe;

use debugreg::bank::{self, Registers};
use debugreg::{
    Bank, Breakpoint, Dr, Dr6, Dr7, Enable, Kind, Length, Owner, Slot, Steps, Word, announce, encode_dr7, encode_slot,
};
use proptest::prelude::*;
use proptest::sample::select;

use crate::probe::{Probe, Step};

// Arbitrary values

fn slot() -> impl Strategy<Value = Slot> {
    select(Slot::ALL.to_vec())
}

fn breakpoint() -> impl Strategy<Value = Breakpoint> {
    (any::<u64>(), select(Kind::ALL.to_vec()), select(Length::ALL.to_vec()))
        .prop_map(|(address, kind, length)| Breakpoint { address, kind, length })
}

/// What the registers can hold: DR6 and DR7 with their reserved bits as the hardware fixes them.
fn garbage() -> impl Strategy<Value = Registers> {
    any::<([u64; 4], u64, u64)>().prop_map(|(dr, dr6, dr7)| Registers {
        dr,
        dr6: Dr6::from_bits_truncate(dr6).0,
        dr7: Dr7::from_bits_truncate(dr7).0,
    })
}

/// Six counters: more than there are slots.
fn owner() -> impl Strategy<Value = Owner> {
    (1..=6u32).prop_map(Owner)
}

#[derive(Copy, Clone, Debug)]
enum Event {
    Install(Owner, Breakpoint),
    Uninstall(Owner),
    Reserve(Slot),
    Release(Slot),
    /// A guest leaves its registers behind; the host refreshes.
    GuestRan(Registers),
}

fn history() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (owner(), breakpoint()).prop_map(|(owner, bp)| Event::Install(owner, bp)),
        3 => owner().prop_map(Event::Uninstall),
        1 => slot().prop_map(Event::Reserve),
        1 => slot().prop_map(Event::Release),
        1 => garbage().prop_map(Event::GuestRan),
    ];
    prop::collection::vec(event, 0..24)
}

// What should be

#[derive(Copy, Clone, PartialEq, Debug)]
enum Holder {
    Nobody,
    Counter(Owner, Breakpoint),
    Kgdb,
}

impl Holder {
    fn owner(self) -> Owner {
        match self {
            Holder::Nobody => Owner::NONE,
            Holder::Counter(owner, _) => owner,
            Holder::Kgdb => Owner::KGDB,
        }
    }

    fn breakpoint(self) -> Option<Breakpoint> {
        match self {
            Holder::Counter(_, bp) => Some(bp),
            Holder::Nobody | Holder::Kgdb => None,
        }
    }
}

/// A bank, and beside it who should hold what.
#[derive(Copy, Clone, Debug)]
struct World {
    cpu: Bank,
    holders: [Holder; 4],
}

impl World {
    fn after(history: &[Event]) -> World {
        let mut world = World { cpu: Bank::RESET, holders: [Holder::Nobody; 4] };
        for &event in history {
            world.perform(event);
        }
        world
    }

    fn slot_of(&self, owner: Owner) -> Option<Slot> {
        Slot::ALL.into_iter().find(|slot| self.holders[slot.index()].owner() == owner)
    }

    /// What users of the bank do: nobody is installed twice.
    fn perform(&mut self, event: Event) {
        let cpu = &mut self.cpu;
        match event {
            Event::Install(owner, bp) => {
                if self.slot_of(owner).is_none() {
                    let free = self.slot_of(Owner::NONE);
                    assert_eq!(bank::install(&mut self.cpu, owner, bp), free, "the lowest free slot");
                    free.inspect(|slot| self.holders[slot.index()] = Holder::Counter(owner, bp));
                }
            }
            Event::Uninstall(owner) => match self.slot_of(owner).map(|slot| (slot, self.holders[slot.index()])) {
                Some((slot, Holder::Counter(_, bp))) => {
                    assert_eq!(bank::uninstall(&mut self.cpu, owner, bp), Some(slot), "where it was installed");
                    self.holders[slot.index()] = Holder::Nobody;
                }
                _ => self.refused(|cpu| bank::uninstall(cpu, owner, ANY).is_some()),
            },
            Event::Reserve(slot) => match &mut self.holders[slot.index()] {
                holder @ Holder::Nobody => {
                    assert!(announce::reserve(cpu, slot), "it is free");
                    *holder = Holder::Kgdb;
                }
                _ => self.refused(|cpu| announce::reserve(cpu, slot)),
            },
            Event::Release(slot) => match &mut self.holders[slot.index()] {
                holder @ Holder::Kgdb => {
                    assert!(announce::release(cpu, slot), "it is announced");
                    *holder = Holder::Nobody;
                }
                _ => self.refused(|cpu| announce::release(cpu, slot)),
            },
            Event::GuestRan(registers) => {
                cpu.hardware = registers;
                bank::refresh(cpu);
            }
        }
    }

    /// A refusal changes nothing, the counters included.
    fn refused(&mut self, attempt: impl FnOnce(&mut Bank) -> bool) {
        let before = self.cpu;
        assert!(!attempt(&mut self.cpu), "to be refused in {before:?}");
        assert_eq!(self.cpu, before);
    }

    /// What should be armed, in the order of the slots.
    fn owed(&self) -> Vec<(Slot, Breakpoint)> {
        let owed = |slot: Slot| self.holders[slot.index()].breakpoint().map(|bp| (slot, bp));
        Slot::ALL.into_iter().filter_map(owed).collect()
    }

    fn armed(&self) -> Vec<(Slot, Breakpoint)> {
        self.cpu.hardware.armed().collect()
    }

    /// INV1, INV2 and INV3.
    fn assert_agreement(&self) {
        let Bank { owner, address, control, hardware, .. } = self.cpu;
        assert_eq!(hardware.dr7, control | 0x400, "INV1");
        assert_eq!(control & !Dr7::GE & 0xff00, 0, "nothing but GE between the enables and the fields");
        for (slot, holder) in Slot::ALL.into_iter().zip(self.holders) {
            let i = slot.index();
            assert_eq!(owner[i], holder.owner());
            if let Some(bp) = holder.breakpoint() {
                assert_eq!(Dr7(control).enable(slot), Enable::Global, "INV2");
                assert_eq!((address[i], hardware.dr[i]), (bp.address, bp.address), "INV3");
                assert_eq!(Dr7(control).breakpoint(slot, bp.address), bp, "INV3");
            } else {
                assert_eq!(Dr7(control).disarm(slot), Dr7(control), "INV2, and no field is left for the next user");
            }
        }
    }
}

/// For where any breakpoint will do.
const ANY: Breakpoint = Breakpoint { address: 0x1000, kind: Kind::Write, length: Length::Eight };

/// The transitions that program DR7.
#[derive(Copy, Clone, Debug)]
enum Transition {
    Install(Owner, Breakpoint),
    Uninstall(Owner, Breakpoint),
    Refresh,
}

impl Transition {
    fn perform<S: Steps>(self, cpu: &mut S) {
        match self {
            Transition::Install(owner, bp) => _ = bank::install(cpu, owner, bp),
            Transition::Uninstall(owner, bp) => _ = bank::uninstall(cpu, owner, bp),
            Transition::Refresh => bank::refresh(cpu),
        }
    }

    /// All that the users of this bank may do next.
    fn possible(world: &World, bp: Breakpoint) -> Vec<Transition> {
        let change = |holder| match holder {
            Holder::Nobody | Holder::Kgdb => None,
            Holder::Counter(owner, bp) => Some(Transition::Uninstall(owner, bp)),
        };
        let changes = world.holders.into_iter().filter_map(change);
        changes.chain([Transition::Install(Owner(7), bp), Transition::Refresh]).collect()
    }
}

/// The steps of a transition, in order.
fn steps(cpu: &mut Bank, perform: impl FnOnce(&mut Probe<'_>)) -> Vec<Step> {
    let mut steps = Vec::new();
    perform(&mut Probe { cpu, before: &mut |_, step| steps.push(step) });
    steps
}

/// INV4, what an NMI relies on that asks only the shadow.
fn assert_inv4(cpu: &Bank) {
    let (shadow, hardware) = (cpu.control, Dr7(cpu.hardware.dr7));
    assert!(shadow & 0xaa != 0 || !hardware.any_armed(), "INV4: the shadow is {shadow:#x}, the hardware {hardware:?}");
}

/// Everything but the counters.
fn state(cpu: &Bank) -> Bank {
    Bank { cost: Bank::RESET.cost, ..*cpu }
}

proptest! {
    // Install, uninstall, reserve, release

    #[test]
    fn any_history_keeps_owners_shadow_and_hardware_in_agreement(history in history()) {
        for n in 0..=history.len() {
            World::after(&history[..n]).assert_agreement();
        }
    }

    #[test]
    fn uninstall_undoes_install_up_to_ge_and_the_address_of_the_slot(history in history(), bp in breakpoint()) {
        let World { cpu: before, .. } = World::after(&history);
        let mut cpu = before;
        if let Some(slot) = bank::install(&mut cpu, Owner(7), bp) {
            prop_assert_eq!(bank::uninstall(&mut cpu, Owner(7), bp), Some(slot));
            let mut expected = Bank { control: before.control | Dr7::GE, ..before };
            expected.address[slot.index()] = bp.address;
            expected.hardware.dr[slot.index()] = bp.address;
            expected.hardware.dr7 |= Dr7::GE;
            prop_assert_eq!(state(&cpu), state(&expected));
            prop_assert_eq!(cpu.cost.dr_writes - before.cost.dr_writes, 3);
        }
    }

    #[test]
    fn install_takes_the_lowest_free_slot_and_a_fifth_is_refused_changing_nothing(
        gaps in prop::collection::btree_set(0..4usize, 0..=4),
        bps in [(); 5].map(|()| breakpoint()),
    ) {
        let mut cpu = Bank::RESET;
        for (n, bp) in bps[..4].iter().enumerate() {
            prop_assert_eq!(bank::install(&mut cpu, Owner(1 + n as u32), *bp), Slot::new(n));
        }
        for &n in &gaps {
            prop_assert_eq!(bank::uninstall(&mut cpu, Owner(1 + n as u32), bps[n]), Slot::new(n));
        }
        for &n in &gaps {
            prop_assert_eq!(bank::install(&mut cpu, Owner(7 + n as u32), bps[n]), Slot::new(n));
        }
        let before = cpu;
        prop_assert_eq!(bank::install(&mut cpu, Owner(11), bps[4]), None);
        prop_assert_eq!(cpu, before);
    }

    #[test]
    fn an_announced_slot_is_installed_into_only_after_its_release(history in history(), slot in slot()) {
        let World { cpu: before, .. } = World::after(&history);
        let mut cpu = before;
        if announce::reserve(&mut cpu, slot) {
            prop_assert!(!announce::reserve(&mut cpu, slot), "nobody announces twice");
            let mut full = cpu;
            let taken: Vec<_> = (7..11).filter_map(|n| bank::install(&mut full, Owner(n), ANY)).collect();
            prop_assert!(!taken.contains(&slot));
            prop_assert!(announce::release(&mut full, slot));
            prop_assert_eq!(bank::install(&mut full, Owner(11), ANY), Some(slot));
            prop_assert!(announce::release(&mut cpu, slot));
            prop_assert_eq!(cpu, before, "release undoes reserve, and neither touches a register");
        }
    }

    // The skip test, registers, refresh

    #[test]
    fn the_skip_test_is_true_iff_something_is_installed_and_touches_nothing(history in history()) {
        let world = World::after(&history);
        let mut cpu = world.cpu;
        prop_assert_eq!(bank::is_active(&mut cpu), !world.owed().is_empty());
        prop_assert_eq!(cpu, world.cpu, "the counters included");
    }

    #[test]
    fn registers_is_what_refresh_writes_and_touches_nothing(history in history(), garbage in garbage()) {
        let before = Bank { hardware: garbage, ..World::after(&history).cpu };
        let mut cpu = before;
        let obtained = bank::registers(&mut cpu);
        prop_assert_eq!(cpu, before, "the counters included");
        bank::refresh(&mut cpu);
        prop_assert_eq!(cpu.hardware, obtained);
    }

    #[test]
    fn refresh_after_any_garbage_arms_exactly_what_is_owed(history in history(), garbage in garbage()) {
        let mut world = World::after(&history);
        let before = world.cpu;
        world.cpu.hardware = garbage;
        bank::refresh(&mut world.cpu);
        prop_assert_eq!(world.armed(), world.owed());
        prop_assert_eq!(world.cpu.hardware.dr6, 0xffff_0ff0);
        let Bank { hardware, cost, .. } = world.cpu;
        prop_assert_eq!(world.cpu, Bank { hardware, cost, ..before }, "owners and shadow are as they were");
        prop_assert_eq!(cost.dr_writes - before.cost.dr_writes, 6);
        prop_assert_eq!(cost.dr_reads, before.cost.dr_reads);
    }

    #[test]
    fn refresh_enabled_arms_the_same_and_writes_nothing_else(history in history(), garbage in garbage()) {
        let mut world = World::after(&history);
        let before = world.cpu;
        world.cpu.hardware = garbage;
        bank::refresh_enabled(&mut world.cpu);
        prop_assert_eq!(world.armed(), world.owed());
        let mut expected = Registers { dr7: before.control | 0x400, ..garbage };
        for (slot, bp) in world.owed() {
            expected.dr[slot.index()] = bp.address;
        }
        prop_assert_eq!(world.cpu.hardware, expected);
        prop_assert_eq!(world.cpu.cost.dr_writes - before.cost.dr_writes, world.owed().len() as u64 + 1);
        prop_assert_eq!(world.cpu.cost.dr_reads, before.cost.dr_reads);
    }

    // Around an NMI

    #[test]
    fn local_db_save_disarms_and_restore_brings_back_what_was_there(history in history(), garbage in garbage()) {
        let before = Bank { hardware: garbage, ..World::after(&history).cpu };
        let mut cpu = before;
        let saved = bank::local_db_save(&mut cpu, false);
        prop_assert_eq!(saved, garbage.dr7 & !0x400);
        prop_assert_eq!(cpu.hardware, Registers { dr7: 0x400, ..garbage });
        bank::local_db_restore(&mut cpu, saved);
        prop_assert_eq!(state(&cpu), state(&before));
        prop_assert_eq!(cpu.cost.dr_reads - before.cost.dr_reads, 1);
        prop_assert_eq!(cpu.cost.dr_writes - before.cost.dr_writes, if saved == 0 { 0 } else { 2 });
    }

    #[test]
    fn under_a_hypervisor_local_db_save_reads_nothing_iff_the_shadow_is_inactive(
        history in history(),
        garbage in garbage(),
    ) {
        let before = Bank { hardware: garbage, ..World::after(&history).cpu };
        let (mut guest, mut bare) = (before, before);
        let saved = bank::local_db_save(&mut guest, true);
        if before.control & 0xaa == 0 {
            prop_assert_eq!(saved, 0);
            prop_assert_eq!(guest, before, "whatever is in the hardware");
            bank::local_db_restore(&mut guest, saved);
            prop_assert_eq!(guest, before);
        } else {
            prop_assert_eq!(saved, bank::local_db_save(&mut bare, false));
            prop_assert_eq!(guest, bare);
        }
    }

    #[test]
    fn before_every_step_an_inactive_shadow_means_that_nothing_is_armed(history in history(), bp in breakpoint()) {
        let world = World::after(&history);
        for transition in Transition::possible(&world, bp) {
            let mut cpu = world.cpu;
            transition.perform(&mut Probe { cpu: &mut cpu, before: &mut |cpu, _| assert_inv4(cpu) });
            assert_inv4(&cpu);
        }
    }

    #[test]
    fn an_nmi_before_any_step_runs_disarmed_and_leaves_no_trace(
        history in history(),
        bp in breakpoint(),
        hypervisor: bool,
    ) {
        let world = World::after(&history);
        for transition in Transition::possible(&world, bp) {
            let mut undisturbed = world.cpu;
            let count = steps(&mut undisturbed, |cpu| transition.perform(cpu)).len();
            for k in 0..count {
                let (mut cpu, mut step) = (world.cpu, 0);
                let mut nmi = |cpu: &mut Bank, _: Step| {
                    if step == k {
                        let saved = bank::local_db_save(cpu, hypervisor);
                        assert!(!Dr7(cpu.hardware.dr7).any_armed(), "in the NMI before step {k} of {transition:?}");
                        bank::local_db_restore(cpu, saved);
                    }
                    step += 1;
                };
                transition.perform(&mut Probe { cpu: &mut cpu, before: &mut nmi });
                prop_assert_eq!(state(&cpu), state(&undisturbed), "before step {} of {:?}", k, transition);
            }
        }
    }

    // The values

    #[test]
    fn dr7_is_its_fields_and_the_rest(bits: u64, other: u64) {
        let dr7 = Dr7(bits);
        let rebuilt = Slot::ALL.into_iter().fold(Dr7(other), |rebuilt, slot| {
            rebuilt.arm(slot, dr7.enable(slot), dr7.kind(slot), dr7.length(slot))
        });
        let fields = 0xffff_00ff;
        prop_assert_eq!(rebuilt.0, bits & fields | other & !fields);
        for slot in Slot::ALL {
            prop_assert_eq!(dr7.is_armed(slot), dr7.enable(slot) != Enable::None);
        }
    }

    #[test]
    fn dr6_is_its_events_in_either_polarity(bits: u64) {
        let dr6 = Dr6(bits);
        prop_assert_eq!(Dr6::from_events(dr6.events()), dr6);
        let mut events = dr6.events() & !(Dr6::TRAPS | Dr6::BLD | Dr6::BD | Dr6::BS | Dr6::BT | Dr6::RTM);
        for slot in Slot::ALL {
            events |= u64::from(dr6.trap(slot)) << slot.index();
        }
        // Bits 11 and 13 to 16: section 1.1 of linux-host.
        events |= u64::from(dr6.bus_lock()) << 11
            | u64::from(dr6.debug_register_access()) << 13
            | u64::from(dr6.single_step()) << 14
            | u64::from(dr6.task_switch()) << 15
            | u64::from(dr6.transaction()) << 16;
        prop_assert_eq!(events, dr6.events());
    }

    #[test]
    fn a_value_is_refused_iff_its_upper_half_is_not_zero_and_is_fixed_otherwise(low: u32, high: u32, bit in 32..64u32) {
        let low = u64::from(low);
        for bits in [low | 1 << bit, low | u64::from(high.max(1)) << 32] {
            prop_assert_eq!((Dr6::from_bits(bits), Dr7::from_bits(bits)), (None, None));
        }
        let (dr6, dr7) = (Dr6::from_bits(low).expect("a zero upper half"), Dr7::from_bits(low).expect("likewise"));
        // Bit 12 of DR6 reads as zero, 4 to 10 and 17 to 31 as one; 12, 14 and 15 of DR7 as zero, 10 as one.
        prop_assert_eq!(dr6.0, low & 0x0001_e80f | 0xfffe_07f0);
        prop_assert_eq!(dr7.0, low & 0xffff_2bff | 0x400);
        prop_assert_eq!((dr6.reserved(), dr7.reserved()), (0, 0));
    }
}

#[test]
fn a_slot_is_encoded_as_the_kernel_does() {
    // The kernel's codes (linux-host 2): 0x40 to 0x4c for LEN, 0x80 to 0x83 for R/W, of which 4 bits are used.
    let lengths = [(Length::One, 0x40), (Length::Two, 0x44), (Length::Four, 0x4c), (Length::Eight, 0x48)];
    let kinds = [(Kind::Execute, 0x80), (Kind::Write, 0x81), (Kind::Io, 0x82), (Kind::ReadWrite, 0x83)];
    for slot in Slot::ALL {
        for (length, len) in lengths {
            for (kind, type_) in kinds {
                let bits = ((len | type_) & 0xfu64) << (16 + 4 * slot.index()) | 2 << (2 * slot.index());
                assert_eq!(encode_slot(slot, kind, length), bits);
                assert_eq!(encode_dr7(slot, kind, length), bits | 0x200);
            }
        }
    }
}

// The order of the steps: linux-host 8, step by step

/// DR0 is held by owner 1 with [`ANY`]; the values below follow from the tables of linux-host 1.1.
fn one_held() -> Bank {
    let mut cpu = Bank::RESET;
    bank::install(&mut cpu, Owner(1), ANY).expect("an empty bank");
    cpu
}

const DR0: Slot = Slot::ALL[0];
const DR1: Slot = Slot::ALL[1];

#[test]
fn install_is_i1_to_i6_in_this_order() {
    let bp = Breakpoint { address: 0x2000, kind: Kind::ReadWrite, length: Length::Four };
    let steps = steps(&mut one_held(), |cpu| assert_eq!(bank::install(cpu, Owner(2), bp), Some(DR1)));
    let expected = [
        Step::Load(Word::Owner(DR0)), // I1
        Step::Load(Word::Owner(DR1)),
        Step::Store(Word::Owner(DR1), 2),        // I2
        Step::WriteDr(Dr::Address(DR1), 0x2000), // I3
        Step::Store(Word::Address(DR1), 0x2000), // I4
        Step::Or(Word::Control, 0x00f0_0208),    // I5
        Step::Load(Word::Control),               // I6
        Step::WriteDr(Dr::Control, 0x00f9_020a),
    ];
    assert_eq!(steps, expected);
}

#[test]
fn uninstall_is_u1_to_u6_in_this_order() {
    let steps = steps(&mut one_held(), |cpu| assert_eq!(bank::uninstall(cpu, Owner(1), ANY), Some(DR0)));
    let expected = [
        Step::Load(Word::Owner(DR0)),      // U1
        Step::Store(Word::Owner(DR0), 0),  // U2
        Step::Load(Word::Control),         // U3
        Step::WriteDr(Dr::Control, 0x200), // U4
        Step::Store(Word::Control, 0x200), // U6
    ];
    assert_eq!(steps, expected);
}

#[test]
fn a_refusal_is_four_loads() {
    let mut cpu = one_held();
    for n in 2..5 {
        bank::install(&mut cpu, Owner(n), ANY).expect("a free slot");
    }
    let search = Slot::ALL.map(|slot| Step::Load(Word::Owner(slot)));
    assert_eq!(steps(&mut cpu, |cpu| assert_eq!(bank::install(cpu, Owner(5), ANY), None)), search);
    assert_eq!(steps(&mut cpu, |cpu| assert_eq!(bank::uninstall(cpu, Owner(5), ANY), None)), search);
}

#[test]
fn refresh_is_r1_to_r6_in_this_order() {
    let steps = steps(&mut one_held(), |cpu| bank::refresh(cpu));
    let addresses = Slot::ALL.into_iter().zip([0x1000, 0, 0, 0]).flat_map(|(slot, address)| {
        [Step::Load(Word::Address(slot)), Step::WriteDr(Dr::Address(slot), address)] // R1 to R4
    });
    let rest = [
        Step::WriteDr(Dr::Status, 0xffff_0ff0), // R5
        Step::Load(Word::Control),              // R6
        Step::WriteDr(Dr::Control, 0x0009_0202),
    ];
    assert_eq!(steps, addresses.chain(rest).collect::<Vec<_>>());
}

#[test]
fn refresh_enabled_writes_dr7_last() {
    let steps = steps(&mut one_held(), |cpu| bank::refresh_enabled(cpu));
    let expected = [
        Step::Load(Word::Control),
        Step::Load(Word::Address(DR0)),
        Step::WriteDr(Dr::Address(DR0), 0x1000),
        Step::Load(Word::Control),
        Step::WriteDr(Dr::Control, 0x0009_0202),
    ];
    assert_eq!(steps, expected);
}

#[test]
fn local_db_save_and_restore_are_s1_to_s3_and_t1() {
    let (s1, s2) = (Step::Load(Word::Control), Step::ReadDr(Dr::Control));
    let (s3, t1) = (Step::WriteDr(Dr::Control, 0x400), Step::WriteDr(Dr::Control, 0x0009_0202));
    let nmi = |cpu: &mut Bank, hypervisor| {
        steps(cpu, |cpu| {
            let saved = bank::local_db_save(cpu, hypervisor);
            bank::local_db_restore(cpu, saved);
        })
    };
    assert_eq!(nmi(&mut one_held(), true), [s1, s2, s3, t1]);
    assert_eq!(nmi(&mut one_held(), false), [s2, s3, t1]);
    assert_eq!(nmi(&mut Bank::RESET.clone(), true), [s1]);
    assert_eq!(nmi(&mut Bank::RESET.clone(), false), [s2], "nothing was armed: nothing is written");
}

#[test]
fn the_skip_test_is_one_load() {
    assert_eq!(steps(&mut one_held(), |cpu| assert!(bank::is_active(cpu))), [Step::Load(Word::Control)]);
}

#[test]
fn an_announcement_is_one_compare_and_swap() {
    let kgdb = u64::from(u32::MAX);
    let announce = steps(&mut one_held(), |cpu| assert!(announce::reserve(cpu, DR1)));
    assert_eq!(announce, [Step::CompareExchange(Word::Owner(DR1), 0, kgdb)]);
    let withdraw = steps(&mut one_held(), |cpu| assert!(!announce::release(cpu, DR1)));
    assert_eq!(withdraw, [Step::CompareExchange(Word::Owner(DR1), kgdb, 0)]);
}

/// Ring 0 is out of reach of a test; that every transition compiles for the hardware is not.
#[cfg(all(feature = "hardware", target_arch = "x86_64"))]
#[test]
fn the_transitions_compile_for_the_hardware() {
    type Cpu = debugreg::hardware::Hardware<'static>;
    let _: fn(&mut Cpu, Owner, Breakpoint) -> Option<Slot> = bank::install;
    let _: fn(&mut Cpu, Owner, Breakpoint) -> Option<Slot> = bank::uninstall;
    let _: fn(&mut Cpu) -> bool = bank::is_active;
    let _: fn(&mut Cpu) -> Registers = bank::registers;
    let _: [fn(&mut Cpu); 2] = [bank::refresh, bank::refresh_enabled];
    let _: [fn(&mut Cpu, Slot) -> bool; 2] = [announce::reserve, announce::release];
    let _: fn(&mut Cpu, bool) -> u64 = bank::local_db_save;
    let _: fn(&mut Cpu, u64) = bank::local_db_restore;
}
