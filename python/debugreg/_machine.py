"""The machine, live: CPUs, tasks, breakpoint counters and vCPUs, driven by methods or by lines of the language."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from debugreg import _core
from debugreg._codec import DR6, DR7
from debugreg._cost import Cost
from debugreg._policies import resolve

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Self

    from debugreg._policy import Policy
    from debugreg._rows import Ran

__all__ = ["Counter", "Cpu", "Held", "Machine", "Outcome", "Refusal", "Registers", "Task", "Vcpu"]

BpType: TypeAlias = Literal["r", "w", "rw", "x"]
"""`attr.bp_type`: reads alone, writes, both, execution."""


class Registers(NamedTuple):
    """The six registers."""

    dr0: int
    dr1: int
    dr2: int
    dr3: int
    dr6: DR6
    dr7: DR7

    def __repr__(self) -> str:
        """Return the call that makes it, addresses in hex."""
        addresses = ", ".join(f"dr{n}={value:#x}" for n, value in enumerate(self[:4]))
        return f"Registers({addresses}, dr6={self.dr6!r}, dr7={self.dr7!r})"


def _registers(fields: tuple[int, int, int, int, int, int]) -> Registers:
    dr0, dr1, dr2, dr3, dr6, dr7 = fields
    return Registers(dr0, dr1, dr2, dr3, DR6(dr6), DR7(dr7))


class Refusal(OSError):  # noqa: N818 - a refusal is what is modelled, not an error of ours
    """The modelled kernel said no.

    Attributes:
        errno: The number, as on Linux.
        rule: The rule that refused, in a sentence.
        holders: For ENOSPC: the counters that hold the slots.
    """

    rule: str
    holders: tuple[Counter, ...]

    def __init__(self, errno: int, name: str, rule: str, holders: tuple[Counter, ...]) -> None:
        by = f"; held by {', '.join(holder.name for holder in holders)}" if holders else ""
        super().__init__(errno, f"{name}: {rule}{by}")
        self.rule = rule
        self.holders = holders


class Held(NamedTuple):
    """Who holds a slot, for which scope, and since which event of the machine."""

    owner: Counter | None
    """The counter; `None` for a slot that kgdb announced."""
    scope: str
    """`'task NAME'`, `'task NAME on cpuN'` or `'cpuN'`."""
    since: int
    """The value of `Machine.clock` when the counter was made, or the slot announced."""


class Outcome:
    """What came of a line. True if something was hit: a counter, a tracer, a guest or its debugger.

    Attributes:
        text: As the language writes it.
        ok: Whether the line's expectation held; `None` without one.
        hits: The counters that the access hit; for an open, the counter that it made.
        exception: `'#DB'`, `'#UD'`, `'#GP'` in a guest, `'SIGTRAP'` to a task, `'debug'` for KVM_EXIT_DEBUG, `'kgdb'`
            if the kernel debugger was entered, `'endless #DB'` if the same fault comes for ever.
        dr6: DR6 as whoever gets the exception sees it.
        value: A count, or a register that was read.
        registers: Of a line that asks for them.
        errno: The name of a refusal, `None` otherwise.
        rule: The rule that refused.
        holders: Who holds the slots, after ENOSPC.
        steps: What was done, step by step.
    """

    __slots__ = (
        "dr6",
        "errno",
        "exception",
        "hits",
        "holders",
        "ok",
        "registers",
        "rule",
        "steps",
        "text",
        "value",
    )

    def __init__(self, machine: Machine, line: str) -> None:
        ok, text, counters, exception, dr6, value, registers, refusal, steps = machine._do(line)
        self.ok = ok
        self.text = text
        self.hits = tuple(Counter(machine, number) for _, number in counters)
        self.exception = exception
        self.dr6 = None if dr6 is None else DR6(dr6)
        self.value = value
        self.registers = None if registers is None else _registers(registers)
        self.errno = refusal[1] if refusal else None
        self.rule = refusal[2] if refusal else None
        self.holders = tuple(Counter(machine, number) for _, number in refusal[3]) if refusal else ()
        # Without their numbers, which are for the @N of a scenario.
        self.steps = tuple(step.partition(" ")[2] for step in steps)

    def __bool__(self) -> bool:
        return bool(self.hits or self.exception)

    def __repr__(self) -> str:
        return f"<Outcome {self.text}>"


class Counter(_core.Counter):
    """A perf breakpoint counter.

    `count` says how often it was hit, `active` whether it is in a register, `enable()`, `disable()` and `close()` are
    the system calls.
    """

    _machine: Machine

    def __new__(cls, machine: Machine, number: int) -> Self:
        """Make the handle of a counter that there is."""
        self = super().__new__(cls, machine, number)
        self._machine = machine
        return self

    def __repr__(self) -> str:
        return f"<Counter {self.name}: {self.scope}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Counter):
            return NotImplemented
        return self._machine is other._machine and self._id == other._id

    def __hash__(self) -> int:
        return hash((id(self._machine), self._id))


class Task(_core.Task):
    """A task. `running` says whether it is on its CPU."""

    _machine: Machine
    name: str

    def __new__(cls, machine: Machine, number: int, name: str) -> Self:
        """Make the handle of a task that there is."""
        self = super().__new__(cls, machine, number)
        self._machine = machine
        self.name = name
        return self

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def perf_event_open(
        self,
        *,
        bp_type: BpType,
        bp_addr: int,
        bp_len: int,
        on: str | None = None,
        name: str | None = None,
        pinned: bool = False,
        disabled: bool = False,
        inherit: bool = False,
        inherit_thread: bool = False,
        exclude_user: bool = False,
        exclude_kernel: bool = False,
        sigtrap: bool = False,
        remove_on_exec: bool = False,
        group: Counter | None = None,
    ) -> Counter:
        """Open a breakpoint.

        Args:
            bp_type: What to watch.
            bp_addr: Linear address.
            bp_len: Bytes: 1, 2, 4 or 8; 8 for `'x'`.
            on: `'TASK'`, `'cpuN'` or `'TASK@cpuN'`; default: this task, on any CPU.
            name: What lines of the language will call it; default: bp0, bp1, ...
            pinned: Scheduled before the flexible ones.
            disabled: Starts disabled; it takes a slot all the same.
            inherit: Children get a copy.
            inherit_thread: Only threads of the same process do; needs `inherit`.
            exclude_user: Hits in user mode do not count.
            exclude_kernel: Hits in kernel mode do not count.
            sigtrap: Every hit sends SIGTRAP to the task; implies `remove_on_exec`.
            remove_on_exec: execve ends it.
            group: The leader of its group.

        Raises:
            Refusal: The kernel's answer: `.errno`, `.rule`, `.holders`.
            ValueError: The call itself is wrong.
        """
        flags = {
            "pinned": pinned,
            "disabled": disabled,
            "inherit": inherit,
            "inherit_thread": inherit_thread,
            "exclude_user": exclude_user,
            "exclude_kernel": exclude_kernel,
            "sigtrap": sigtrap,
            "remove_on_exec": remove_on_exec,
        }
        words = [self.name, "perf_event_open", f"bp_type={bp_type}", f"bp_addr={bp_addr}", f"bp_len={bp_len}"]
        words += [] if on is None else [f"on={on}"]
        words += [] if group is None else [f"group={group.name}"]
        words += [flag for flag, is_set in flags.items() if is_set]
        return self._machine.open(" ".join(words), name)


class Cpu(_core.Cpu):
    """A CPU.

    `breakpoints_active` is the cheap test, `refresh()` writes the shadow into the hardware, `sched_switch(task)` lets
    another task run (`None`: the idle task).
    """

    _machine: Machine

    def __new__(cls, machine: Machine, index: int) -> Self:
        """Make the handle of a CPU that there is."""
        self = super().__new__(cls, machine, index)
        self._machine = machine
        return self

    def __repr__(self) -> str:
        return f"<Cpu {self.index}: {self.running.name if self.running else 'idle'}>"

    @property
    def running(self) -> Task | None:
        """Who runs; `None` is the idle task."""
        running = self._running
        return None if running is None else self._machine.handle(*running)

    @property
    def registers(self) -> Registers:
        """What `refresh` would put into the hardware, obtained without reading it."""
        return _registers(self._registers)

    @property
    def hardware(self) -> Registers:
        """What is in the hardware."""
        return _registers(self._hardware)

    @property
    def owed(self) -> Registers:
        """What should be armed, computed from what was asked for."""
        return _registers(self._owed)

    @property
    def slots(self) -> tuple[Held | None, ...]:
        """Who holds each of the four slots."""
        return tuple(
            None if entry is None else Held(self._machine.counter(entry[0]), entry[2], entry[3])
            for entry in self._slots
        )


class Vcpu(_core.Vcpu):
    """A virtual CPU. `vm_entry()` and `vm_exit(reason)` are what they say; `in_guest` tells where it is."""

    name: str

    def __new__(cls, machine: Machine, number: int, name: str) -> Self:
        """Make the handle of a vCPU that there is."""
        self = super().__new__(cls, machine, number)
        self.name = name
        return self

    def __repr__(self) -> str:
        return f"<Vcpu {self.name}>"

    @property
    def own(self) -> Registers:
        """What the guest is entitled to read, by its own writes and the #DBs that it got."""
        return _registers(self._own)

    @contextmanager
    def run(self, reason: str = "io") -> Generator[Vcpu]:
        """Enter the guest, and leave it at the end, also after an exception."""
        self.vm_entry()
        try:
            yield self
        finally:
            if self.in_guest:
                self.vm_exit(reason)


class Machine(_core.Machine):
    """A machine: what a scenario's `machine` line declares, live.

    Args:
        cpus: Number of CPUs, 1 to 256.
        vendor: Whose virtualisation.
        policy: Who switches what and when: a name of `debugreg.policies()`, with deltas, `FILE.py:CLASS`, or a class.
        slots: Slots that counters may use, 1 to 4.
        paranoid: kernel.perf_event_paranoid.
        hypervisor: The host itself is a guest (X86_FEATURE_HYPERVISOR).
        fred: Events are delivered by FRED.
        disabled_match: DR6 shows the bits of matching but disabled slots.
        decode_assists: SVM tells KVM the operands of a MOV DR; without them KVM emulates one under a debugger.
        kprobes: The kernel has kprobes; without them execute breakpoints on kernel addresses are refused.
        kgdb: 'early' before `dbg_late_init`: kgdb writes the registers itself, and tells nobody.

    Raises:
        ValueError: A value that is not allowed; the message says which are.

    Example:
        >>> m = Machine(policy="linux")
        >>> qemu = m.task("qemu")
        >>> a = qemu.perf_event_open(bp_type="w", bp_addr=0x1000, bp_len=8)
        >>> m.cpus[0].registers.dr7
        DR7(0x00090602)
        >>> bool(m.do("qemu store 0x1004 1"))
        True
        >>> a.count
        1
    """

    cpus: tuple[Cpu, ...]
    """The CPUs."""
    _tasks: dict[int, Task]
    _opened: int

    def __new__(
        cls,
        *,
        cpus: int = 1,
        vendor: Literal["intel", "amd"] = "amd",
        policy: str | type[Policy] = "linux",
        slots: int = 4,
        paranoid: int = 2,
        hypervisor: bool = True,
        fred: bool = False,
        disabled_match: bool = False,
        decode_assists: bool = True,
        kprobes: bool = True,
        kgdb: Literal["late", "early"] = "late",
    ) -> Self:
        """Make a machine on which every CPU is idle."""
        if cpus < 1:
            raise ValueError(f"cpus must be 1 to 256 (got {cpus})")
        bits = hypervisor, fred, disabled_match, decode_assists, kprobes
        self = super().__new__(cls, cpus, vendor, resolve(policy), slots, paranoid, *bits, kgdb)
        self.cpus = tuple(Cpu(self, index) for index in range(cpus))
        self._tasks = {}
        self._opened = 0
        return self

    def __repr__(self) -> str:
        return f"<Machine {self.policy} on {self.vendor}, {len(self.cpus)} CPUs>"

    def task(
        self, name: str, *, cpu: int = 0, caps: Literal["root", "perfmon", "none"] = "root", bits: Literal[64, 32] = 64
    ) -> Task:
        """Add a task, which runs at once if its CPU is idle."""
        if cpu < 0:
            raise ValueError(f"cpu must be 0 to {len(self.cpus) - 1} (got {cpu})")
        number = self._add_task(name, cpu, caps, bits)
        task = self._tasks[number] = Task(self, number, name)
        return task

    def vcpu(self, name: str, *, task: Task, de: bool = False) -> Vcpu:
        """Add a vCPU, whose thread is `task`; `de` is its guest's CR4.DE."""
        return Vcpu(self, self._add_vcpu(name, task, de), name)

    def do(self, line: str) -> Outcome:
        """Perform a line of the language, with or without its expectation.

        Raises:
            ValueError: The line is wrong, or makes no sense now; nothing was done.
        """
        return Outcome(self, line)

    def run(self, events: object, *, outcomes: bool = True) -> Ran:
        """Perform an array of events, all of them or none.

        Args:
            events: Of dtype `event_dtype()`; no copy is made if it is contiguous.
            outcomes: Whether to return what came of each. Without, nothing is kept of an event but its cost.

        Raises:
            ValueError: A row makes no sense; the message says which and why, and nothing was performed.

        Example:
            >>> import debugreg as dr, numpy as np
            >>> m = dr.Machine()
            >>> a, b = m.task("a"), m.task("b")
            >>> _ = a.perf_event_open(bp_type="w", bp_addr=0x1000, bp_len=8)
            >>> switch, access = dr.events()["sched_switch"], dr.events()["access"]
            >>> rows = [(switch, 0, 0, 2, 0), (switch, 0, 0, 1, 0), (access, 4 * 8 + 2, 0, 1, 0x1000)]
            >>> ran = m.run(np.array(rows, dr.event_dtype()))
            >>> ran.cost
            Cost(dr_writes=4, dr_reads=1, vmcs=0, vm_exits=0, skips=0)
            >>> ran.outcomes["value"].tolist()
            [0, 0, 1]
        """
        from debugreg._rows import run_rows

        return run_rows(self, events, outcomes=outcomes)

    @property
    def cost(self) -> Cost:
        """What everything has cost so far."""
        return Cost(*self._cost)

    @contextmanager
    def measure(self) -> Generator[Cost]:
        """Measure a block: the cost is filled in at its end, also after an exception."""
        cost, before = Cost(), self._cost
        try:
            yield cost
        finally:
            after = self._cost
            for name, start, end in zip(cost.to_dict(), before, after, strict=True):
                setattr(cost, name, end - start)

    def counter(self, number: int | None) -> Counter | None:
        """Return the handle of a counter, or `None` for none."""
        return None if number is None else Counter(self, number)

    def handle(self, number: int, name: str) -> Task:
        """Return the handle of a task, also of one that a line's `fork` has made."""
        return self._tasks.setdefault(number, Task(self, number, name))

    def open(self, line: str, name: str | None = None) -> Counter:
        """Perform a `perf_event_open` line and name the counter; the default is bp0, bp1, ...

        Raises:
            Refusal: The kernel's answer.
            ValueError: The line is wrong.
        """
        if name is None:
            name = self._free_name()
        elif (mistake := self._name_mistake(name)) is not None:
            raise ValueError(f"name: {mistake}")
        try:
            outcome = self._do(f"{line} => {name}")
        except ValueError as error:
            # The caller wrote no line: its columns mean nothing to him.
            raise ValueError(re.sub(r"^column \d+: ", "", str(error))) from None
        refusal = outcome[7]
        if refusal is not None:
            errno, errno_name, rule, holders = refusal
            raise Refusal(errno, errno_name, rule, tuple(Counter(self, number) for _, number in holders))
        return Counter(self, outcome[2][0][1])

    def _free_name(self) -> str:
        """Return bp0, bp1, ...: the next that nobody has taken."""
        while True:
            name = f"bp{self._opened}"
            self._opened += 1
            if not self._knows(name):
                return name
