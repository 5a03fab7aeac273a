"""Does the pure Python baseline do the same work? Otherwise no ratio to it would mean anything."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import debugreg as dr

from . import pure

TYPES = [("w", 1), ("w", 2), ("w", 4), ("w", 8), ("rw", 4), ("rw", 8), ("x", 8)]


class Both:
    """A Rust machine and a pure one, given the same events."""

    def __init__(self):
        """Start with two tasks, of which the first runs and has a guest."""
        self.rust = dr.Machine()
        self.pure = pure.Cpu()
        self.tasks = [(self.rust.task(name), pure.Task(self.pure)) for name in ("qemu", "sh")]
        self.vcpu = self.rust.vcpu("v0", task=self.tasks[0][0]), pure.Vcpu(self.tasks[0][1])
        self.counters = []

    def open(self, who, type_and_len, flags):
        """Open a counter, if the task has fewer than four."""
        rust, plain = self.tasks[who % 2]
        type, len = type_and_len
        if [counter.task for _, counter in self.counters].count(plain) == 4:
            return
        address = 0x1000 + 8 * flags
        pinned, enabled = bool(flags & 1), bool(flags & 2)
        bp = pure.Breakpoint(address, type, 1 if type == "x" else len)
        counter = rust.perf_event_open(bp_type=type, bp_addr=address, bp_len=len, pinned=pinned, disabled=not enabled)
        self.counters.append((counter, plain.perf_event_open(bp, pinned=pinned, enabled=enabled)))

    def ioctl(self, what, which):
        """Enable, disable or close a counter, if there is one."""
        if self.counters:
            pair = self.counters[which % len(self.counters)]
            for counter in pair:
                getattr(counter, what)()
            if what == "close":
                self.counters.remove(pair)

    def sched_switch(self, who):
        """Switch to a task, or to the idle task."""
        rust, plain = [*self.tasks, (None, None)][who % 3]
        self.rust.cpus[0].sched_switch(rust)
        self.pure.sched_switch(plain)

    def refresh(self):
        """Refresh the hardware."""
        self.rust.cpus[0].refresh()
        self.pure.refresh()

    def guest(self, writes, reason):
        """Enter the guest, let it write registers, and leave it, if its thread runs."""
        rust, plain = self.vcpu
        if self.pure.running is not self.tasks[0][1]:
            return
        rust.vm_entry()
        plain.vm_entry()
        self.compare()
        for number, value in writes:
            self.rust.do(f"v0 mov_to_dr {number} {value}")
            plain.mov_to_dr(number, value)
            self.compare()
        rust.vm_exit(reason)
        plain.vm_exit(reason)

    def compare(self):
        """Compare registers and counted steps."""
        cpu = self.rust.cpus[0]
        assert tuple(cpu.hardware) == self.pure.hardware
        assert tuple(cpu.registers) == self.pure.registers
        assert cpu.breakpoints_active is self.pure.breakpoints_active
        assert self.rust._cost == self.pure.cost


number = st.integers(0, 11)
write = st.one_of(
    st.tuples(st.integers(0, 3), st.just(0x2000)),
    st.tuples(st.just(7), st.sampled_from([0x400, 0x90401, 0x90602, 0xD0D00C3C])),
)
events = st.one_of(
    st.tuples(st.just("open"), number, st.sampled_from(TYPES), number),
    st.tuples(st.just("ioctl"), st.sampled_from(["enable", "disable", "close"]), number),
    st.tuples(st.just("sched_switch"), number),
    st.tuples(st.just("refresh")),
    st.tuples(st.just("guest"), st.lists(write, max_size=3), st.sampled_from(["io", "dr"])),
)


@settings(deadline=None)
@given(st.lists(events, max_size=60))
def test_registers_and_counted_steps_are_those_of_the_rust_model(sequence):
    """After every event of any sequence."""
    both = Both()
    for event, *arguments in sequence:
        getattr(both, event)(*arguments)
        both.compare()


def test_every_slot_type_and_length_is_encoded_alike():
    """The domain is finite: all of it."""
    for slot, length, type in itertools.product(range(4), (1, 2, 4, 8), ("x", "w", "io", "rw")):
        if type != "x" or length == 1:
            assert pure.encode_dr7(slot, len=length, type=type) == dr.encode_dr7(slot, len=length, type=type)


@pytest.mark.parametrize("wrong", [True, "5", -1, 1 << 64])
@pytest.mark.parametrize("register", [pure.Register, dr.DR7], ids=["pure", "rust"])
def test_what_is_no_register_is_refused_by_both(register, wrong):
    """The baseline checks what it is given, as the Rust version does."""
    with pytest.raises((TypeError, ValueError), match="value must be"):
        register(wrong)


@pytest.mark.parametrize("wrong", [(4, 1, "w"), (-1, 1, "w"), (0, 3, "w"), (0, 1, "r"), (0, 2, "x")])
@pytest.mark.parametrize("encode_dr7", [pure.encode_dr7, dr.encode_dr7], ids=["pure", "rust"])
def test_what_is_no_breakpoint_is_refused_by_both(encode_dr7, wrong):
    """Likewise."""
    slot, length, type = wrong
    with pytest.raises(ValueError, match=r"\w"):
        encode_dr7(slot, len=length, type=type)
