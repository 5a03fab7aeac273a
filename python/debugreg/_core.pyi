# Generated from the built module by pyo3-introspection: `python -m nox -s stubs`. Do not edit.
"""
The compiled half of debugreg. Private: use the package `debugreg`.
"""

from os import PathLike
from typing import Any, Final, Self, SupportsIndex, final

from _typeshed import SupportsGetItem
from typing_extensions import disjoint_base

__all__ = [
    "DR6_IDLE",
    "DR7_RESET",
    "POLICY_WORDS",
    "__version__",
    "CheckScope",
    "Counter",
    "Cpu",
    "KernelWorld",
    "Machine",
    "RowRun",
    "Task",
    "Trace",
    "Turn",
    "Vcpu",
    "audit_policy",
    "batch",
    "dr6_events",
    "dr6_flags",
    "dr6_from_events",
    "dr6_hits",
    "dr6_layout",
    "dr6_reserved",
    "dr7_arm",
    "dr7_disarm",
    "dr7_fields",
    "dr7_flags",
    "dr7_layout",
    "dr7_reserved",
    "dr7_slot",
    "encode_dr7",
    "event_kinds",
    "exit_reason",
    "kernel_conform",
    "laws",
    "policies",
    "policy_name",
    "random_scenario",
    "register",
    "register_policy",
    "row_names",
    "scenario_declares",
    "scenario_format",
    "scenario_run",
    "vm_boot",
    "vm_conform",
    "vm_plugin",
    "vm_run",
    "vm_watch",
]

DR6_IDLE: Final[int]
"""
DR6 when nothing happened.
"""

DR7_RESET: Final[int]
"""
DR7 after a reset.
"""

POLICY_WORDS: Final[int]
"""
How many words a CPU, and a vCPU, keeps for a policy.
"""

__version__: Final[str]
"""
The version of the package.
"""

@final
class CheckScope:
    """
    A scope, as `debugreg._check` has made sure it is one.
    """
    def __new__(
        cls,
        /,
        *,
        vendor: str,
        cpus: SupportsIndex,
        tasks: SupportsIndex,
        vcpus: SupportsIndex,
        slots: SupportsIndex,
        addresses: SupportsIndex,
        counters: SupportsIndex,
        events: str | None,
        laws: str | None,
        nmi: bool,
        kgdb: bool,
        announce: bool,
        races: bool,
        symmetry: bool,
        hypervisor: bool,
        fred: bool,
        disabled_match: bool,
        decode_assists: bool,
        kgdb_early: bool,
    ) -> CheckScope: ...
    def check(
        self,
        policy: str,
        threads: SupportsIndex,
        memory: SupportsIndex,
        walks: SupportsIndex | None,
        seed: SupportsIndex,
        progress: Any | None,
        /,
    ) -> tuple[bool | None, int, int, int, list[tuple[str, int]], int, int, tuple[str, str, str] | None, str | None]:
        """
        Explore a policy: breadth-first, or with `walks` at random, determined by `seed`.

        Ctrl-C ends it, and what is known then is returned with "asked"; an exception of `progress` is raised.
        """
    @property
    def events(self, /) -> str:
        """
        The kinds of events, with commas between them.
        """
    @property
    def laws(self, /) -> str:
        """
        The laws, with commas between them; `all` if it is all.
        """

@disjoint_base
class Counter:
    """
    A perf breakpoint counter.
    """
    def __new__(cls, machine: Machine, id: SupportsIndex, /) -> Self: ...
    @property
    def _id(self, /) -> int: ...
    @property
    def active(self, /) -> bool:
        """
        Whether it is in a register.
        """
    def close(self, /) -> None:
        """
        Close the last descriptor.
        """
    @property
    def count(self, /) -> int:
        """
        How often it was hit.
        """
    def disable(self, /) -> None:
        """
        PERF_EVENT_IOC_DISABLE: the slot stays taken.
        """
    def enable(self, /) -> None:
        """
        PERF_EVENT_IOC_ENABLE.
        """
    @property
    def name(self, /) -> str:
        """
        What a scenario line calls it.
        """
    @property
    def scope(self, /) -> str:
        """
        Whom it counts.
        """

@disjoint_base
class Cpu:
    """
    A CPU.
    """
    def __new__(cls, machine: Machine, index: SupportsIndex, /) -> Self: ...
    @property
    def _hardware(self, /) -> tuple[int, int, int, int, int, int]: ...
    @property
    def _nothing(self, /) -> bool:
        """
        A property that does nothing, of the same signature: what a call costs, for bench/.
        """
    def _nothing_with(self, task: Task | None, /) -> None:
        """
        A method that does nothing, of the same signature: what a call costs, for bench/.
        """
    @property
    def _owed(self, /) -> tuple[int, int, int, int, int, int]: ...
    @property
    def _registers(self, /) -> tuple[int, int, int, int, int, int]: ...
    @property
    def _running(self, /) -> tuple[int, str] | None:
        """
        Who runs, by number and name; None is the idle task.
        """
    @property
    def _slots(self, /) -> list[tuple[int | None, str, str, int] | None]:
        """
        By slot: the counter's number and name, its scope, and since which event; a number of None is kgdb.
        """
    @property
    def breakpoints_active(self, /) -> bool:
        """
        The cheap test: whether a host breakpoint is in a register here (`hw_breakpoint_active`).
        """
    @property
    def index(self, /) -> int:
        """
        Number of the CPU.
        """
    def refresh(self, /) -> None:
        """
        Refresh the hardware from the shadow: Jan's second wish.
        """
    def sched_switch(self, task: Task | None, /) -> None:
        """
        Switch to another task; None is the idle task.
        """

@final
class KernelWorld:
    """
    The processes that perform scenarios on the running kernel; started by the first one.
    """
    def __new__(cls, policy: str | None = None, /) -> KernelWorld:
        """
        With the name of a policy: the kernel is like that, and its machine is emulated.
        """
    def close(self, /) -> None:
        """
        End the processes.
        """
    def run(
        self, text: str, hazardous: bool, /
    ) -> tuple[
        tuple[bool, list[tuple[int, str, str | None, str | None, bool | None, str | None]]] | None,
        tuple[str, int, int, str] | None,
    ]:
        """
        Run a scenario and return whether it holds and its steps; or what went wrong.
        """

@disjoint_base
class Machine:
    """
    A machine: CPUs, tasks, counters, vCPUs.
    """
    def __new__(
        cls,
        cpus: SupportsIndex,
        vendor: str,
        policy: str,
        slots: SupportsIndex,
        paranoid: SupportsIndex,
        hypervisor: bool,
        fred: bool,
        disabled_match: bool,
        decode_assists: bool,
        kprobes: bool,
        kgdb: str,
        /,
    ) -> Self: ...
    def _add_task(self, name: str, cpu: SupportsIndex, caps: str, bits: SupportsIndex, /) -> int:
        """
        Add a task and return its number.
        """
    def _add_vcpu(self, name: str, task: Task, de: bool, /) -> int:
        """
        Add a vCPU and return its number.
        """
    @property
    def _cost(self, /) -> tuple[int, int, int, int, int]:
        """
        What everything has cost so far.
        """
    @property
    def _cpu_count(self, /) -> int: ...
    def _do(
        self, line: str, /
    ) -> tuple[
        bool | None,
        str,
        list[tuple[str, int]],
        str | None,
        int | None,
        int | None,
        tuple[int, int, int, int, int, int] | None,
        tuple[int, str, str, list[tuple[str, int]]] | None,
        list[str],
    ]:
        """
        Perform one line of the language.

        Returns:
            Whether the expectation held (None without one); the outcome as text; the counters that were hit or bound,
            by name and number; the exception ("#DB", "#UD", "#GP", "SIGTRAP") or exit ("debug", "nested", "fail_entry");
            DR6; a number; registers; a refusal as errno, its name, the rule and the holders; and the steps.
        """
    def _knows(self, name: str, /) -> bool:
        """
        Whether a name is taken.
        """
    def _name_mistake(self, name: str, /) -> str | None:
        """
        Why nothing more can have a name, or None if something can.
        """
    @property
    def clock(self, /) -> int:
        """
        How many events there have been.
        """
    @property
    def policy(self, /) -> str:
        """
        The policy, as a name with its deltas.
        """
    @property
    def vendor(self, /) -> str:
        """
        'intel' or 'amd'.
        """

@final
class RowRun:
    """
    Rows that are being performed, on a copy of the machine: all of them are, or none.
    """
    def __new__(cls, machine: Machine, /) -> Self: ...
    def commit(self, /) -> tuple[int, int, int, int, int]:
        """
        Have the machine as it is after the rows, once; return what they have cost.

        Raises:
            RuntimeError: Somebody else has used the machine meanwhile.
        """
    def run(self, rows: Any, outcomes: bool, /) -> bytes | None:
        """
        Perform the rows of a buffer; return the rows of their outcomes, if they are wanted.

        Raises:
            ValueError: A row makes no sense; it says which and why.
        """

@disjoint_base
class Task:
    """
    A task.
    """
    def __new__(cls, machine: Machine, id: SupportsIndex, /) -> Self: ...
    @property
    def _id(self, /) -> int: ...
    @property
    def running(self, /) -> bool:
        """
        Whether it is on its CPU.
        """

@final
class Trace:
    """
    A trace that has been read.
    """
    @property
    def cpus(self, /) -> int:
        """
        How many CPUs its lines name.
        """
    @property
    def has_steps(self, /) -> bool:
        """
        Whether a steps file lies beside it.
        """
    @property
    def passed_over(self, /) -> tuple[int, int, int, bool]:
        """
        What the reader passed over: unreadable lines, unknown events, lost events, and whether the last line is cut off.
        """
    @staticmethod
    def read(path: str | PathLike[str], /) -> tuple[Trace | None, str | None]:
        """
        Read a trace and the steps file beside it; the second is what is wrong with the file instead.
        """
    def replay(
        self, policy: str, vendor: str | None, verify: bool, progress: Any | None, /
    ) -> tuple[
        str,
        int,
        tuple[int, int, int, int, int],
        list[tuple[str, tuple[int, int, int, int, int], bool]],
        bool,
        list[tuple[int, str]],
        list[tuple[str, int, int, int | None]],
        list[tuple[int, str]],
        tuple[
            tuple[int, int, int, int],
            tuple[int, int, int, int],
            tuple[int, int, int, int],
            tuple[int, int, int, int],
            tuple[tuple[int, int, int, int], tuple[int, int, int, int], tuple[int, int, int, int]] | None,
            list[tuple[int, int, str, str]],
        ]
        | None,
    ]:
        """
        Replay under a policy: `progress` is called now and then with the number of rows done.

        Returns:
            The policy; events; cost; phases as name, cost and whether something in them was not expressible; whether the
            cost is a lower bound; what was not expressible, as line and reason; what was observed; what the trace does not determine; the
            verification.
        """
    @property
    def rows(self, /) -> int:
        """
        Number of input rows.
        """
    @property
    def vendor(self, /) -> str:
        """
        'intel' or 'amd', as its exits show.
        """

@final
class Turn:
    """
    One run of a method: it is told the answers that are known, and where they end it is ended.
    """
    def __call__(self, name: str, number: SupportsIndex = 0, value: SupportsIndex = 0, /) -> int:
        """
        Do something, or ask: the name of an operation, and its numbers.
        """

@disjoint_base
class Vcpu:
    """
    A virtual CPU.
    """
    def __new__(cls, machine: Machine, id: SupportsIndex, /) -> Self: ...
    @property
    def _own(self, /) -> tuple[int, int, int, int, int, int]: ...
    @property
    def in_guest(self, /) -> bool:
        """
        Whether its guest runs.
        """
    def vm_entry(self, /) -> None:
        """
        VM entry.
        """
    def vm_exit(self, reason: str = "io", /) -> None:
        """
        VM exit.
        """

def audit_policy(name: str, /) -> None:
    """
    Run again what a policy has done, in another order: an exception if it does something else, and if it has failed.
    """

def batch(what: str, count: SupportsIndex, /) -> tuple[int, int, int, int, int]:
    """
    Perform an operation many times, on a machine of its own under the policy 'linux', and return what it cost.

    Args:
        what: 'encode' (what DR7 gets for a slot), 'skip' (the skip test), 'install' (a counter disabled and enabled),
            'switch' (from a task with a breakpoint to another and back), 'switch-4' (from one with four),
            'switch-nothing' (nothing set), 'entry' (VM entry and exit, with a breakpoint of the host), 'entry-nothing'.
        count: How often.

    Raises:
        ValueError: Nothing is called so.
    """

def dr6_events(value: SupportsIndex, /) -> int:
    """
    Return every bit that happened, in positive polarity.
    """

def dr6_flags(value: SupportsIndex, /) -> dict[str, bool]:
    """
    Return what else happened; true means that it did, whatever the polarity of the bit.
    """

def dr6_from_events(events: SupportsIndex, /) -> int:
    """
    Return the register in which these events, in positive polarity, happened.
    """

def dr6_hits(value: SupportsIndex, /) -> tuple[int, ...]:
    """
    Return the slots whose condition was met.
    """

def dr6_layout() -> list[tuple[str, int]]:
    """
    Return name and bits of each field; "0" and "1" name the bits that are fixed to that.
    """

def dr6_reserved(value: SupportsIndex, /) -> tuple[int, ...]:
    """
    Return the numbers of the bits that differ from what the hardware fixes.
    """

def dr7_arm(value: SupportsIndex, slot: SupportsIndex, type: str, len: SupportsIndex, enable: str, /) -> int:
    """
    Return the value with one slot's fields replaced.
    """

def dr7_disarm(value: SupportsIndex, slot: SupportsIndex, /) -> int:
    """
    Return the value with one slot's fields cleared.
    """

def dr7_fields(
    value: SupportsIndex, /
) -> tuple[tuple[str, str, int], tuple[str, str, int], tuple[str, str, int], tuple[str, str, int]]:
    """
    Return enable, type and length of all four slots, armed or not.
    """

def dr7_flags(value: SupportsIndex, /) -> dict[str, bool]:
    """
    Return the bits that stand for no slot, by the manual's names.
    """

def dr7_layout() -> list[tuple[str, int]]:
    """
    Return name and bits of each field; "0" and "1" name the bits that are fixed to that.
    """

def dr7_reserved(value: SupportsIndex, /) -> tuple[int, ...]:
    """
    Return the numbers of the bits that differ from what the hardware fixes.
    """

def dr7_slot(value: SupportsIndex, index: SupportsIndex, /) -> tuple[str, str, int] | None:
    """
    Return enable, type and length of a slot if it is armed; a negative index counts from the end.
    """

def encode_dr7(slot: SupportsIndex, *, len: SupportsIndex, type: str) -> int:
    """
    Encode one slot as Linux does: G bit, GE, R/W and LEN, without the fixed bit 10.

    Args:
        slot: 0 to 3.
        len: How many bytes to watch: 1, 2, 4 or 8; 1 for an execution breakpoint.
        type: 'x' execution, 'w' data writes, 'rw' data reads and writes, 'io' I/O ports.

    Returns:
        The bits to merge into DR7.

    Raises:
        ValueError: The slot, the length or the type does not exist, or the two do not go together.

    Source:
        `encode_dr7`, arch/x86/kernel/hw_breakpoint.c (6.17).

    Example:
        >>> hex(encode_dr7(0, len=8, type="w"))
        '0x90202'
    """

def event_kinds() -> list[tuple[str, bool, str]]:
    """
    The kinds of events: name, whether they happen unless something else is asked for, and what happens.
    """

def exit_reason(number: SupportsIndex, /) -> str:
    """
    Why a guest has left, by the number that [`Ask::Reason`] answers.
    """

def kernel_conform(
    texts: SupportsGetItem[int, str],
    count: SupportsIndex,
    seed: SupportsIndex,
    hazardous: bool,
    guests: bool,
    progress: Any | None,
    /,
) -> tuple[tuple[int, int, int, list[tuple[str, int, str, str]], list[str]] | None, tuple[str, int, int, str] | None]:
    """
    Compare model and kernel on scenarios, given as text, and on random ones; or what went wrong.

    Args:
        texts: The scenarios.
        count: How many random ones come after them.
        seed: What they are determined by.
        hazardous: Whether to perform what can harm the host.
        guests: Whether most of the random ones have guests.
        progress: Called now and then with the number of scenarios done, and of differences.
    """

def laws() -> list[tuple[str, str, str]]:
    """
    The laws: name, sentence, source.
    """

def policies() -> list[tuple[str, str, str, str, list[tuple[str, str, str]]]]:
    """
    List the policies: name, host half, KVM half, a line, and its deltas as id, state and line.
    """

def policy_name(text: str, /) -> str:
    """
    Check the name of a policy and return it as it prints.
    """

def random_scenario(seed: SupportsIndex, /, *, guests: bool = False) -> str:
    """
    Return a random scenario, each line of which expects what the model says; with guests, or of the host alone.
    """

def register(value: SupportsIndex, /) -> int:
    """
    Return the value, refusing what is not a 64-bit unsigned integer.
    """

def register_policy(name: str, call: Any, opens_windows: bool, /) -> None:
    """
    Give a policy of Python's a name.

    Args:
        name: The name.
        call: Called with the name of a method and a `Turn`, by which the method acts.
        opens_windows: Whether a guest's first MOV DR opens a window.
    """

def row_names() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """
    The events that a row can be, and the outcomes, each by its number: its name and what it says.
    """

def scenario_declares(text: str, /) -> tuple[tuple[list[str], str | None] | None, tuple[int, int, str] | None]:
    """
    Read a scenario and return its policies and its vendor, or the first mistake.
    """

def scenario_format(text: str, /) -> tuple[str | None, tuple[int, int, str] | None]:
    """
    Read a scenario and print it in the language's own spelling.
    """

def scenario_run(
    text: str, policy: str, vendor: str | None, with_steps: bool, /
) -> tuple[
    tuple[
        bool, list[tuple[int, str, str | None, str, bool | None, str | None, list[str]]], tuple[int, int, int, int, int]
    ]
    | None,
    tuple[int, int, str] | None,
]:
    """
    Run a scenario and return whether it holds, its steps and its cost; or the first mistake.
    """

def vm_boot(modules: SupportsGetItem[int, tuple[str, SupportsGetItem[int, SupportsIndex]]], /) -> str | None:
    """
    Mount /proc, /sys and /dev and load modules, as the first process of a machine, and return what went wrong.
    """

def vm_conform(
    texts: SupportsGetItem[int, str],
    count: SupportsIndex,
    seed: SupportsIndex,
    hazardous: bool,
    guests: bool,
    progress: Any | None,
    policy: str,
    perform: Any,
    /,
) -> tuple[tuple[int, int, int, list[tuple[str, int, str, str]], list[str]] | None, tuple[str, int, int, str] | None]:
    """
    Compare model and emulated machine on scenarios, given as text, and on random ones; or what went wrong.

    Args:
        texts: The scenarios.
        count: How many random ones come after them.
        seed: What they are determined by.
        hazardous: Whether to perform what can harm the machine.
        guests: Whether most of the random ones have guests.
        progress: Called now and then with the number of scenarios done, and of differences.
        policy: The model of its kernel.
        perform: Called with a scenario, `hazardous` and whether to trace; returns the machine's answer, its log and its trace.
    """

def vm_plugin() -> bytes:
    """
    Return the plugin of the emulator, a shared library.
    """

def vm_run(
    text: str, hazardous: bool, policy: str, perform: Any, /
) -> tuple[
    tuple[bool, list[tuple[int, str, str | None, str | None, bool | None, str | None, list[str]]]] | None,
    tuple[str, int, int, str] | None,
]:
    """
    Run a scenario on an emulated machine and return whether it holds and its steps; or what went wrong.

    Args:
        text: The scenario.
        hazardous: Whether to perform what can harm the machine.
        policy: The model of its kernel.
        perform: Called with `text`, `hazardous` and whether to trace; returns the machine's answer, its log and its trace.
    """

def vm_watch(symbols: str, /) -> None:
    """
    Have the plugin of the emulator log the entries of the kernel's functions, given what /proc/kallsyms says.
    """
