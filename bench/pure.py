"""The baseline: one CPU's debug registers in plain Python, as one would write them without Rust.

What `debugreg.Machine(policy="linux")` does on AMD, as far as the benchmarks go: four slots with owners, shadow and
hardware; perf counters of tasks in perf's order; a guest with lazy access. The same registers and the same counted
steps come out of it (`test_pure.py`), and nothing is slow on purpose: one object a CPU, plain lists and integers, no
step that somebody could watch. Left out: counters of a CPU, kgdb, ptrace, fork, guest debugging, Intel, refusals.
"""

from __future__ import annotations

from typing import NamedTuple

TYPES = {"x": 0, "w": 1, "io": 2, "rw": 3}
LENGTHS = {1: 0, 2: 1, 4: 3, 8: 2}
DR6_IDLE = 0xFFFF0FF0
DR7_FIXED = 0x400  # Bit 10 reads as one, also after a reset.
DR7_GE = 0x200


def slot_bits(slot: int, type: str, len: int) -> int:
    """Return G, R/W and LEN of a slot."""
    return 2 << 2 * slot | (LENGTHS[len] << 2 | TYPES[type]) << 16 + 4 * slot


def encode_dr7(slot: int, *, len: int, type: str) -> int:
    """Return what Linux merges into DR7 for a slot.

    Raises:
        ValueError: There is no such slot, length or type, or the two do not go together.
    """
    if slot not in range(4) or len not in LENGTHS or type not in TYPES or (type == "x" and len != 1):
        msg = f"no such breakpoint: slot={slot} len={len} type={type!r}"
        raise ValueError(msg)
    return DR7_GE | slot_bits(slot, type, len)


class Register(int):
    """A register's value, checked as `debugreg.DR7` checks it."""

    __slots__ = ()

    def __new__(cls, value: int) -> Register:  # noqa: PYI034 - it is not subclassed
        """Refuse what is no 64-bit unsigned integer."""
        if isinstance(value, bool) or not isinstance(value, int):
            msg = f"value must be an int (got {value!r})"
            raise TypeError(msg)
        if not 0 <= value < 1 << 64:
            msg = f"value must be from 0 to 0xffffffffffffffff (got {value!r})"
            raise ValueError(msg)
        return int.__new__(cls, value)


class Breakpoint(NamedTuple):
    """What a slot watches."""

    address: int
    type: str
    len: int


class Bank:
    """Four slots of one CPU: who holds them, their shadow, the hardware, and what touching it has cost."""

    def __init__(self) -> None:
        """Start as after a reset."""
        self.owner: list[object] = [None] * 4
        self.address = [0] * 4
        self.control = 0
        self.dr = [0] * 4
        self.dr6 = DR6_IDLE
        self.dr7 = DR7_FIXED
        self.dr_writes = self.dr_reads = self.vmcs = self.vm_exits = self.skips = 0

    @property
    def cost(self) -> tuple[int, int, int, int, int]:
        """What everything has cost so far."""
        return self.dr_writes, self.dr_reads, self.vmcs, self.vm_exits, self.skips

    @property
    def hardware(self) -> tuple[int, ...]:
        """DR0-DR3, DR6 and DR7."""
        return *self.dr, self.dr6, self.dr7

    @property
    def registers(self) -> tuple[int, ...]:
        """What `refresh` would put there."""
        return *self.address, DR6_IDLE, self.control | DR7_FIXED

    @property
    def breakpoints_active(self) -> bool:
        """The skip test."""
        return self.control & 0xAA != 0

    def install(self, owner: object, bp: Breakpoint) -> bool:
        """Put a breakpoint into the lowest free slot, if there is one."""
        if None not in self.owner:
            return False
        slot = self.owner.index(None)
        self.owner[slot] = owner
        self.dr[slot] = self.address[slot] = bp.address
        self.control |= DR7_GE | slot_bits(slot, bp.type, bp.len)
        self.dr7 = self.control | DR7_FIXED
        self.dr_writes += 2
        return True

    def uninstall(self, owner: object, bp: Breakpoint) -> None:
        """Take a breakpoint out of its slot."""
        slot = self.owner.index(owner)
        self.owner[slot] = None
        self.control &= ~slot_bits(slot, bp.type, bp.len)
        self.dr7 = self.control | DR7_FIXED
        self.dr_writes += 1

    def refresh(self) -> None:
        """Write the shadow into the hardware."""
        self.dr[:] = self.address
        self.dr6 = DR6_IDLE
        self.dr7 = self.control | DR7_FIXED
        self.dr_writes += 6


class Cpu(Bank):
    """A CPU: who runs on it, and which counters are in its registers."""

    def __init__(self) -> None:
        """Start idle."""
        super().__init__()
        self.running: Task | None = None

    def sched_switch(self, task: Task | None) -> None:
        """Let another task run; `None` is the idle task."""
        before = self.dr_writes
        if (previous := self.running) is not task:
            if previous is not None and (previous.pinned_active or previous.flexible_active):
                self._out(previous.pinned_active)
                self._out(previous.flexible_active)
            if task is not None and (task.pinned or task.flexible):
                self._in(task.pinned, task.pinned_active)
                self._in(task.flexible, task.flexible_active)
            self.running = task
        if self.dr_writes == before:
            self.skips += 1

    def reschedule(self, counter: Counter) -> None:
        """Make room for a counter of this class, if its task runs, and put everything in again."""
        task = counter.task
        if task is not self.running:
            return
        if counter.pinned:
            self._out(task.pinned_active)
        self._out(task.flexible_active)
        if counter.pinned:
            self._in(task.pinned, task.pinned_active)
        self._in(task.flexible, task.flexible_active)

    def _out(self, active: list[Counter]) -> None:
        for counter in active:
            self.uninstall(counter, counter.bp)
            counter.active = False
        active.clear()

    def _in(self, counters: list[Counter], active: list[Counter]) -> None:
        for counter in counters:
            if counter.enabled and not counter.active and self.install(counter, counter.bp):
                counter.active = True
                active.append(counter)


class Task:
    """A task: its counters by creation, and those that are in registers in the order in which they went in."""

    def __init__(self, cpu: Cpu) -> None:
        """Start without counters, and at once if the CPU is idle."""
        self.cpu = cpu
        self.pinned: list[Counter] = []
        self.flexible: list[Counter] = []
        self.pinned_active: list[Counter] = []
        self.flexible_active: list[Counter] = []
        if cpu.running is None:
            cpu.running = self

    def perf_event_open(self, bp: Breakpoint, *, pinned: bool = False, enabled: bool = True) -> Counter:
        """Open a counter."""
        counter = Counter(self, bp, pinned=pinned, enabled=enabled)
        counter.siblings.append(counter)
        if enabled:
            self.cpu.reschedule(counter)
        return counter


class Counter:
    """A perf breakpoint counter of a task."""

    def __init__(self, task: Task, bp: Breakpoint, *, pinned: bool, enabled: bool) -> None:
        """Start outside the registers."""
        self.task = task
        self.bp = bp
        self.pinned = pinned
        self.enabled = enabled
        self.active = False
        self.siblings = task.pinned if pinned else task.flexible
        self.active_siblings = task.pinned_active if pinned else task.flexible_active

    def enable(self) -> None:
        """Perform PERF_EVENT_IOC_ENABLE."""
        if not self.enabled:
            self.enabled = True
            self.task.cpu.reschedule(self)

    def disable(self) -> None:
        """Perform PERF_EVENT_IOC_DISABLE."""
        self.enabled = False
        if self.active:
            self.task.cpu.uninstall(self, self.bp)
            self.active = False
            self.active_siblings.remove(self)

    def close(self) -> None:
        """Close the last descriptor."""
        self.disable()
        self.siblings.remove(self)


class Vcpu:
    """A virtual CPU: KVM's view of the guest's registers, and the VMCB."""

    def __init__(self, task: Task) -> None:
        """Start as after INIT."""
        self.cpu = task.cpu
        self.db = [0] * 4
        self.dr6 = self.vmcb_dr6 = DR6_IDLE
        self.dr7 = self.vmcb_dr7 = DR7_FIXED
        self.bp_enabled = False
        self.wont_exit = False

    def vm_entry(self) -> None:
        """Enter the guest: KVM's part, then the processor's."""
        cpu = self.cpu
        touched = cpu.dr_writes + cpu.vmcs
        if self.bp_enabled or self.wont_exit:
            cpu.dr[:] = self.db
            cpu.dr_writes += 5  # DR7 is disarmed first.
        elif cpu.breakpoints_active:
            cpu.dr_writes += 1  # DR7 is disarmed; what it holds comes from the VMCB, below.
        dr6 = self.dr6 if self.wont_exit else DR6_IDLE
        if self.vmcb_dr6 != dr6:
            self.vmcb_dr6 = dr6
            cpu.vmcs += 1
        if cpu.dr_writes + cpu.vmcs == touched:
            cpu.skips += 1
        cpu.dr6 = self.vmcb_dr6
        cpu.dr7 = self.vmcb_dr7

    def vm_exit(self, reason: str = "io") -> None:
        """Leave the guest: the processor's part, then KVM's."""
        cpu = self.cpu
        self.vmcb_dr6 = cpu.dr6
        self.vmcb_dr7 = cpu.dr7
        cpu.dr7 = DR7_FIXED
        touched = cpu.dr_writes + cpu.vmcs
        if self.wont_exit:
            self._close_window()
        if cpu.breakpoints_active:
            cpu.refresh()
        if cpu.dr_writes + cpu.vmcs == touched:
            cpu.skips += 1
        if reason == "dr":  # The guest wants its registers: until the next exit it has them.
            cpu.vm_exits += 1
            cpu.vmcs += 1
            self.wont_exit = True

    def _close_window(self) -> None:
        """Read what the guest may have changed, and intercept its accesses again."""
        cpu = self.cpu
        self.db[:] = cpu.dr
        cpu.dr_reads += 4
        self.dr6, self.dr7 = self.vmcb_dr6, self.vmcb_dr7
        cpu.vmcs += 4
        self.wont_exit = False
        self.bp_enabled = self.dr7 & 0xFF != 0

    def mov_to_dr(self, number: int, value: int) -> None:
        """Execute a MOV to DR0-DR3 or DR7 in the guest."""
        if not self.wont_exit:
            self.vm_exit("dr")
            self.vm_entry()
        if number == 7:
            self.cpu.dr7 = value | DR7_FIXED
        else:
            self.cpu.dr[number] = value
