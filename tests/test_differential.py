"""`Machine` beside a second model of the host, written here for clarity: random walks, the same answers.

The second model has no steps, no policies and no guests; it has the slot rule, the order in which perf puts counters
into registers, the shadow, and what an access hits. Source: `__reserve_bp_slot`, `ctx_resched`, `perf_event_sched_in`
(kernel/events), `arch_install_hw_breakpoint`, `arch_uninstall_hw_breakpoint` (arch/x86/kernel/hw_breakpoint.c), 6.17.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

import debugreg as dr

TASKS = ("a", "b", "c")
LENGTHS = {1: 0, 2: 1, 4: 3, 8: 2}
TYPES = {"x": 0, "w": 1, "rw": 3}


@dataclass(eq=False)
class Counter:
    name: str
    task: str | None
    cpu: int | None
    type: str
    address: int
    length: int
    pinned: bool
    disabled: bool
    exclude_user: bool
    exclude_kernel: bool
    enabled: bool = True
    count: int = 0

    def invalid(self):
        """Return the errno of an address, length and type that do not go together."""
        if self.type == "r" or (self.type == "x" and self.length != 8):
            return "EINVAL"
        if self.type != "x" and (self.length not in LENGTHS or self.address % self.length):
            return "EINVAL"
        return None

    def bits(self, slot):
        """Return the slot's part of DR7."""
        length = 0 if self.type == "x" else LENGTHS[self.length]
        return 2 << 2 * slot | (TYPES[self.type] | length << 2) << 16 + 4 * slot

    def trips(self, access, address, length):
        """Return whether an access meets the condition."""
        if self.type == "x" or access == "execute":
            return self.type == "x" and access == "execute" and address == self.address
        return access in {"w": {"store"}, "rw": {"load", "store"}}[self.type] and (
            self.address < address + length and address < self.address + self.length
        )


class Cpu:
    def __init__(self):
        self.running = None
        self.slots = [None] * 4
        self.addresses = [0] * 4
        self.dr7 = 0

    def install(self, counter):
        slot = self.slots.index(None)
        self.slots[slot] = counter
        self.addresses[slot] = counter.address
        self.dr7 |= counter.bits(slot) | 0x200

    def uninstall(self, counter):
        if counter in self.slots:
            slot = self.slots.index(counter)
            self.slots[slot] = None
            self.dr7 &= ~counter.bits(slot)


class Kernel:
    """The host: CPUs, tasks, counters from the oldest to the youngest."""

    def __init__(self, cpus):
        self.cpus = [Cpu() for _ in range(cpus)]
        self.home = {"a": 0, "b": 0, "c": cpus - 1}
        self.counters = []
        for task, cpu in self.home.items():
            self.cpus[cpu].running = self.cpus[cpu].running or task

    def is_running(self, task):
        return self.cpus[self.home[task]].running == task

    # The slot rule.

    def is_full(self, task, cpu):
        return any(
            self.bound(c) + max(self.of(t, c) for t in (TASKS if task is None else [task])) + 1 > 4
            for c in (range(len(self.cpus)) if cpu is None else [cpu])
        )

    def bound(self, cpu):
        return sum(counter.task is None and counter.cpu == cpu for counter in self.counters)

    def of(self, task, cpu):
        return sum(counter.task == task and counter.cpu in {None, cpu} for counter in self.counters)

    # System calls.

    def open(self, counter):
        if self.is_full(counter.task, counter.cpu):
            return "ENOSPC"
        if counter.invalid():
            return counter.invalid()
        is_first = not any(self.context(other) == self.context(counter) for other in self.counters)
        self.counters.append(counter)
        counter.enabled = not counter.disabled
        # One that starts disabled waits for its enable, unless its context is new.
        if counter.enabled or is_first:
            self.reschedule(counter)
        return counter.name

    def close(self, counter):
        self.out([counter])
        self.counters.remove(counter)

    def enable(self, counter):
        if not counter.enabled:
            counter.enabled = True
            if counter.cpu is None or counter.task is None or self.home[counter.task] == counter.cpu:
                self.reschedule(counter)

    def disable(self, counter):
        counter.enabled = False
        self.out([counter])

    def modify(self, counter, **changes):
        """Change a counter; it runs afterwards if it was not created disabled, also after a refusal."""
        self.disable(counter)
        before = {name: getattr(counter, name) for name in changes}
        for name, value in changes.items():
            setattr(counter, name, value)
        error = counter.invalid()
        if error:
            for name, value in before.items():
                setattr(counter, name, value)
        if not counter.disabled:
            self.enable(counter)
        return error or "ok"

    # Scheduling: CPU pinned, task pinned, CPU flexible, task flexible; in a class the oldest first.

    def context(self, counter):
        return counter.task or counter.cpu

    def out(self, counters):
        for cpu in self.cpus:
            for counter in counters:
                cpu.uninstall(counter)

    def fill(self, cpu):
        here = self.cpus[cpu]
        for pinned in (True, False):
            for task in {None: None, here.running: None}:
                for counter in self.counters:
                    belongs = counter.task == task and counter.cpu in ({cpu} if task is None else {cpu, None})
                    if belongs and counter.pinned == pinned and counter.enabled and counter not in here.slots:
                        here.install(counter)

    def reschedule(self, new):
        """Make room for a counter of this class, and put back in what fits."""
        cpu = new.cpu if new.task is None else self.home[new.task]
        if new.task is not None and not self.is_running(new.task):
            return
        running = self.cpus[cpu].running
        of_task = [c for c in self.counters if running and c.task == running and (new.pinned or not c.pinned)]
        of_cpu = [c for c in self.counters if c.task is None and c.cpu == cpu]
        if new.task is None:
            of_cpu = [c for c in of_cpu if new.pinned or not c.pinned]
        else:
            of_cpu = [c for c in of_cpu if new.pinned and not c.pinned]
        self.out(of_task + of_cpu)
        self.fill(cpu)

    def switch(self, cpu, task):
        here = self.cpus[cpu]
        if here.running == task:
            return
        self.out([c for c in self.counters if c.task and c.task == here.running])
        here.running = task
        coming = [c for c in self.counters if task and c.task == task]
        if any(c.pinned for c in coming):
            self.out([c for c in self.counters if c.task is None and c.cpu == cpu and not c.pinned])
        if coming:
            self.fill(cpu)

    def migrate(self, task, to):
        came_from = self.home[task]
        if came_from == to:
            return
        if self.is_running(task):
            self.switch(came_from, None)
        self.home[task] = to
        if self.cpus[to].running is None:
            self.switch(to, task)

    # Accesses.

    def access(self, task, access, address, length, *, kernel):
        hit = [
            counter
            for counter in self.cpus[self.home[task]].slots
            if counter
            and counter.trips(access, address, length)
            and not (counter.exclude_kernel if kernel else counter.exclude_user)
        ]
        for counter in hit:
            counter.count += 1
        return [counter.name for counter in hit]


addresses = st.integers(0x1000, 0x1010)
lengths = st.sampled_from([1, 2, 4, 8, 1, 2, 4, 8, 3])
types = st.sampled_from(["w", "w", "w", "w", "rw", "rw", "x", "x", "r"])
tasks = st.sampled_from(TASKS)
rarely = st.sampled_from([True, False, False, False])


class Walk(RuleBasedStateMachine):
    counters = Bundle("counters")

    @initialize(cpus=st.integers(1, 2), vendor=st.sampled_from(["intel", "amd"]))
    def start(self, cpus, vendor):
        self.kernel = Kernel(cpus)
        self.machine = dr.Machine(cpus=cpus, vendor=vendor)
        self.tasks = {name: self.machine.task(name, cpu=cpu) for name, cpu in self.kernel.home.items()}
        self.handles = {}
        self.opened = 0

    def cpu(self, number):
        return number % len(self.kernel.cpus)

    @rule(
        target=counters,
        by=tasks,
        on=st.sampled_from(["task", "task", "cpu", "both"]),
        task=tasks,
        cpu=st.integers(0, 1),
        type=types,
        aligned=st.sampled_from([True] * 7 + [False]),
        address=addresses,
        length=lengths,
        pinned=st.booleans(),
        disabled=rarely,
        exclude_user=rarely,
        exclude_kernel=rarely,
    )
    def open(self, *, by, on, task, cpu, type, aligned, address, length, **flags):
        if aligned and type == "x":
            length = 8
        elif aligned and length != 3:
            address -= address % length
        cpu = self.cpu(cpu)
        where = {"task": task, "cpu": f"cpu{cpu}", "both": f"{task}@cpu{cpu}"}[on]
        name = f"n{self.opened}"
        self.opened += 1
        counter = Counter(
            name, None if on == "cpu" else task, None if on == "task" else cpu, type, address, length, **flags
        )
        expected = self.kernel.open(counter)
        options = {"bp_type": type, "bp_addr": address, "bp_len": length, "on": where, "name": name} | flags
        if expected == name:
            self.handles[name] = self.tasks[by].perf_event_open(**options)
            return counter
        with pytest.raises(dr.Refusal, match=rf"\[Errno {getattr(errno, expected)}\] {expected}: "):
            self.tasks[by].perf_event_open(**options)
        return multiple()

    @rule(counter=consumes(counters))
    def close(self, counter):
        self.kernel.close(counter)
        self.handles.pop(counter.name).close()

    @rule(counter=counters, act=st.sampled_from(["enable", "disable"]), by_line=st.booleans())
    def toggle(self, counter, act, by_line):
        getattr(self.kernel, act)(counter)
        if by_line:
            assert self.machine.do(f"{counter.name} {act} => ok").ok
        else:
            getattr(self.handles[counter.name], act)()

    @rule(counter=counters, address=addresses, length=lengths, disabled=st.sampled_from([None, False, True]))
    def modify(self, counter, address, length, disabled):
        words = f"{counter.name} modify bp_addr={address} bp_len={length}"
        changes = {"address": address, "length": length}
        if disabled is not None:
            words += f" disabled={int(disabled)}"
            changes["disabled"] = disabled
        expected = self.kernel.modify(counter, **changes)
        assert self.machine.do(words).text == expected

    @rule(cpu=st.integers(0, 1), task=st.sampled_from([*TASKS, None]), by_line=st.booleans())
    def switch(self, cpu, task, by_line):
        cpu = self.cpu(cpu)
        if task and self.kernel.home[task] != cpu:
            with pytest.raises(ValueError, match="migrate comes first"):
                self.machine.cpus[cpu].sched_switch(self.tasks[task])
            return
        self.kernel.switch(cpu, task)
        if by_line:
            self.machine.do(f"cpu{cpu} sched_switch {task or 'idle'} => ok")
        else:
            self.machine.cpus[cpu].sched_switch(task and self.tasks[task])

    @rule(task=tasks, cpu=st.integers(0, 1))
    def migrate(self, task, cpu):
        self.kernel.migrate(task, self.cpu(cpu))
        assert self.machine.do(f"{task} migrate cpu{self.cpu(cpu)} => ok").ok

    @rule(
        task=tasks,
        access=st.sampled_from(["load", "store", "execute"]),
        address=addresses,
        length=st.sampled_from([1, 2, 4, 8, 16]),
        kernel=rarely,
    )
    def touch(self, task, access, address, length, kernel):
        words = f"{task} {access} {address} {length}{' mode=kernel' if kernel else ''}"
        if not self.kernel.is_running(task):
            with pytest.raises(ValueError, match=f"{task} is not running: "):
                self.machine.do(words)
            return
        out = self.machine.do(words)
        assert [hit.name for hit in out.hits] == self.kernel.access(task, access, address, length, kernel=kernel)

    @rule(cpu=st.integers(0, 1), what=st.sampled_from(["refresh", "nmi"]))
    def what_changes_nothing(self, cpu, what):
        assert self.machine.do(f"cpu{self.cpu(cpu)} {what} => ok").ok

    @invariant()
    def both_say_who_runs(self):
        for cpu, here in zip(self.machine.cpus, self.kernel.cpus, strict=True):
            assert (cpu.running and cpu.running.name) == here.running

    @invariant()
    def both_say_who_holds_which_register(self):
        for cpu, here in zip(self.machine.cpus, self.kernel.cpus, strict=True):
            names = [held and held.owner.name for held in cpu.slots]
            assert names == [counter and counter.name for counter in here.slots]
            assert cpu.breakpoints_active == any(here.slots)

    @invariant()
    def both_say_what_is_in_the_registers(self):
        for cpu, here in zip(self.machine.cpus, self.kernel.cpus, strict=True):
            expected = (*here.addresses, 0xFFFF0FF0, here.dr7 | 0x400)
            assert cpu.registers == cpu.hardware == expected

    @invariant()
    def what_is_owed_is_armed(self):
        for cpu, here in zip(self.machine.cpus, self.kernel.cpus, strict=True):
            armed = [counter.address if counter else 0 for counter in here.slots]
            ge = 0x200 if any(here.slots) else 0
            bits = sum(counter.bits(slot) for slot, counter in enumerate(here.slots) if counter)
            assert cpu.owed == (*armed, 0xFFFF0FF0, bits | ge | 0x400)

    @invariant()
    def both_count_the_same_hits(self):
        counts = {counter.name: counter.count for counter in self.kernel.counters}
        assert {name: handle.count for name, handle in self.handles.items()} == counts


TestWalk = Walk.TestCase
TestWalk.settings = settings(deadline=None, max_examples=200, stateful_step_count=50)
