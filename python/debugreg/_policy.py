"""Policies written in Python: what KVM does to the debug registers when a guest is entered and left."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from debugreg import _core
from debugreg._codec import DR6, DR7
from debugreg._machine import Registers
from debugreg.errors import PolicyError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType, TracebackType

__all__ = ["Policy", "PolicyCpu", "PolicyVcpu", "audit", "register", "registered", "resolve"]


class _Words:
    """What is remembered in words: an attribute for each name that the policy declares."""

    __slots__ = ("_names", "_turn")

    _names: Mapping[str, tuple[int, int]]
    _turn: _core.Turn
    _KIND: ClassVar[str]

    def __init__(self, turn: _core.Turn, names: Mapping[str, tuple[int, int]]) -> None:
        object.__setattr__(self, "_turn", turn)
        object.__setattr__(self, "_names", names)

    def __getattr__(self, name: str) -> int:
        try:
            number, initial = self._names[name]
        except KeyError:
            raise AttributeError(self._unknown(name)) from None
        # A machine starts with words that are zero.
        return self._turn(f"{self._KIND}_word", number) ^ initial

    def __setattr__(self, name: str, value: int) -> None:
        try:
            number, initial = self._names[name]
        except KeyError:
            raise AttributeError(self._unknown(name)) from None
        self._turn(f"set_{self._KIND}_word", number, int(value) ^ initial)

    def _unknown(self, name: str) -> str:
        own = [name for name in dir(type(self)) if not name.startswith("_")]
        return f"a policy's {self._KIND} has no {name!r}: it has {', '.join([*self._names, *own])}"


class PolicyCpu(_Words):
    """A CPU, as a policy sees it."""

    __slots__ = ()

    _KIND = "cpu"

    @property
    def breakpoints_active(self) -> bool:
        """Whether the host has anything armed: the cheap test, of the shadow of DR7 (`hw_breakpoint_active`)."""
        return bool(self._turn("breakpoints_active"))

    @property
    def registers(self) -> Registers:
        """What `refresh` would write. The hardware is not read."""
        dr0, dr1, dr2, dr3, dr7 = (self._turn("shadow", number) for number in (0, 1, 2, 3, 7))
        return Registers(dr0, dr1, dr2, dr3, DR6(), DR7(dr7))

    @property
    def vendor(self) -> Literal["intel", "amd"]:
        """Whose virtualisation."""
        return "intel" if self._turn("is_intel") else "amd"

    def write_dr(self, number: int, value: int) -> None:
        """MOV to DR0-DR3, DR6 or DR7."""
        self._turn("write_dr", number, value)

    def read_dr(self, number: int) -> int:
        """MOV from DR0-DR3, DR6 or DR7."""
        return self._turn("read_dr", number)

    def refresh(self) -> None:
        """Write the host's registers from their shadow: DR0-DR3, DR6, DR7 (`hw_breakpoint_restore`)."""
        self._turn("refresh")

    def schedule_out(self) -> None:
        """Take each of the host's counters out of its register."""
        self._turn("schedule_out")

    def schedule_in(self) -> None:
        """Put them back."""
        self._turn("schedule_in")


class _Addresses:
    """DR0-DR3 as an entry loads them, each read when it is asked for."""

    __slots__ = ("_turn",)

    def __init__(self, turn: _core.Turn) -> None:
        self._turn = turn

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> int:
        if number not in range(4):
            msg = f"DR0 to DR3 are addresses (got {number})"
            raise IndexError(msg)
        return self._turn("effective_db", number)


class PolicyVcpu(_Words):
    """A vCPU, as a policy sees it."""

    __slots__ = ()

    _KIND = "vcpu"

    @property
    def effective_db(self) -> _Addresses:
        """DR0-DR3 that should be in force while the guest runs: a debugger's if it has the registers (`eff_db`)."""
        return _Addresses(self._turn)

    @property
    def effective_dr7(self) -> DR7:
        """DR7 that should be in force while the guest runs (`kvm_get_effective_dr7`). The entry itself loads it."""
        return DR7(self._turn("effective_dr7"))

    @property
    def dr6(self) -> DR6:
        """DR6 as the guest sees it."""
        return DR6(self._turn("guest", 6))

    @property
    def dr7(self) -> DR7:
        """DR7 as the guest sees it."""
        return DR7(self._turn("guest", 7))

    @property
    def guest_debug(self) -> int:
        """What KVM_SET_GUEST_DEBUG has asked for: KVM_GUESTDBG_* bits, 0 for nothing."""
        return self._turn("guest_debug")

    @property
    def wont_exit(self) -> bool:
        """Whether the window is open: a MOV DR of the guest does not exit (`KVM_DEBUGREG_WONT_EXIT`)."""
        return bool(self._turn("wont_exit"))

    def close_window(self) -> None:
        """If the window is open: read back what the guest may have changed, and intercept its MOV DR again."""
        self._turn("close_window")

    def read_field(self, name: Literal["guest_dr6", "guest_dr7", "dr_intercept"]) -> int:
        """Read a field of the VMCS or VMCB."""
        return self._turn(f"read_field {name}")

    def write_field(self, name: Literal["guest_dr6", "guest_dr7", "dr_intercept"], value: int) -> None:
        """Write a field of the VMCS or VMCB."""
        self._turn(f"write_field {name}", 0, value)


class Policy:
    """What KVM does to the debug registers. A subclass is accepted wherever the name of a policy is.

    Each method sees its arguments and nothing else, and what it does must follow from what it reads there. What it
    has to remember is in `words`, which are attributes of the CPU or the vCPU: they are part of the machine's state.

    Example:
        >>> class Always(Policy):
        ...     def vm_entry(self, cpu, vcpu):
        ...         cpu.write_dr(7, 0x400)
        ...         for number in range(4):
        ...             cpu.write_dr(number, vcpu.effective_db[number])
        ...
        ...     def vm_exit(self, cpu, vcpu, reason):
        ...         cpu.refresh()
        >>> import debugreg as dr
        >>> list(dr.laws_kept(Always, dr.Scope(nmi=True)).broken)
        ['skip-free']
    """

    words: ClassVar[Mapping[str, Mapping[str, int]]] = {}
    """`{"cpu": {NAME: INITIAL}, "vcpu": {NAME: INITIAL}}`: at most four of each, 64 bits wide."""

    opens_windows: ClassVar[bool] = False
    """Whether a guest's first MOV DR lets those that follow it run without an exit, until the next exit."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for kind, view in (("cpu", PolicyCpu), ("vcpu", PolicyVcpu)):
            names = cls.words.get(kind, {})
            if len(names) > _core.POLICY_WORDS:
                got = f"{len(names)}: {', '.join(names)}"
                msg = f"{cls.__name__}.words: a {kind} has {_core.POLICY_WORDS} words (got {got})"
                raise TypeError(msg)
            for name in names:
                if name.startswith("_") or hasattr(view, name):
                    msg = f"{cls.__name__}.words: {name!r} is no name for a word of a {kind}"
                    raise TypeError(msg)
        unknown = set(cls.words) - {"cpu", "vcpu"}
        if unknown:
            msg = f"{cls.__name__}.words has 'cpu' and 'vcpu' (got {', '.join(map(repr, sorted(unknown)))})"
            raise TypeError(msg)

    def __setattr__(self, name: str, value: object) -> None:
        msg = f"a policy remembers nothing by itself: declare {name!r} in `words` of {type(self).__name__}"
        raise AttributeError(msg)

    def vm_entry(self, cpu: PolicyCpu, vcpu: PolicyVcpu) -> None:
        """On the way in. The entry loads the guest's DR7 afterwards."""

    def vm_exit(self, cpu: PolicyCpu, vcpu: PolicyVcpu, reason: Literal["db", "dr", "nmi", "other"]) -> None:
        """On the way out, with DR7 reset by the exit."""

    def vm_reentry(self, cpu: PolicyCpu, vcpu: PolicyVcpu) -> None:
        """A re-entry inside the run loop."""

    def vcpu_load(self, cpu: PolicyCpu, vcpu: PolicyVcpu) -> None:
        """The thread takes the vCPU up (`kvm_arch_vcpu_load`)."""

    def vcpu_put(self, cpu: PolicyCpu, vcpu: PolicyVcpu) -> None:
        """The thread leaves its CPU, or returns to user space (`kvm_arch_vcpu_put`)."""


_names: dict[str, type[Policy]] = {}
"""Whose name is registered."""


def registered(name: str) -> bool:
    """Return whether a name, with or without deltas, is that of a policy written in Python."""
    return name.partition("+")[0] in _names


def register(cls: type[Policy], name: str) -> str:
    """Give a class a name that is known wherever policies have names, and return it."""
    if _names.get(name) is not cls:
        policy = cls()
        words = {
            kind: {word: (at, int(initial)) for at, (word, initial) in enumerate(cls.words.get(kind, {}).items())}
            for kind in ("cpu", "vcpu")
        }

        def call(method: str, turn: _core.Turn) -> None:
            views: list[Any] = [PolicyCpu(turn, words["cpu"]), PolicyVcpu(turn, words["vcpu"])]
            try:
                if method == "vm_exit":
                    views.append(_core.exit_reason(turn("reason")))
                getattr(policy, method)(*views)
            except Exception as error:
                raise _failure(cls, name, method, error) from error

        _core.register_policy(name, call, cls.opens_windows)
        _names[name] = cls
    return name


def _failure(cls: type[Policy], name: str, method: str, error: Exception) -> PolicyError:
    """Return what went wrong in a method, with the line of the user's file."""
    path, line = _place(error.__traceback__)
    file = name.rpartition(":")[0]
    # As the user wrote it.
    path = file if path and file and Path(file).resolve() == Path(path) else path or name
    return PolicyError(f"{cls.__name__}.{method}: {type(error).__name__}: {error}", path=path, line=line)


def _place(trace: TracebackType | None) -> tuple[str | None, int | None]:
    """Return file and line of the innermost frame that is not of this package."""
    own = str(Path(__file__).parent)
    for frame in reversed(traceback.extract_tb(trace)):
        if not frame.filename.startswith(own):
            return frame.filename, frame.lineno
    return None, None


def resolve(policy: object) -> str:
    """Return the name of a policy: a named one's, `FILE.py:CLASS` with the class loaded, or that of a subclass.

    Raises:
        ValueError: There is no such policy.
        PolicyError: The file cannot be executed, or has no such class.
    """
    if isinstance(policy, type) and issubclass(policy, Policy):
        return register(policy, policy.__name__)
    if not isinstance(policy, str):
        msg = f"policy must be a name or a subclass of debugreg.Policy (got {policy!r})"
        raise TypeError(msg)
    base = policy.partition("+")[0]
    file, colon, name = base.rpartition(":")
    if colon and file.endswith(".py"):
        register(_load(file, name), base)
    return _core.policy_name(policy)


_modules: dict[tuple[str, int], ModuleType] = {}
"""By file and time of its last change."""


def _load(file: str, name: str) -> type[Policy]:
    """Return a class of a file."""
    from importlib.util import module_from_spec, spec_from_file_location

    path = Path(file).resolve()
    try:
        key = (str(path), path.stat().st_mtime_ns)
    except OSError as error:
        raise PolicyError(error.strerror or "cannot be read", path=file) from None
    if key not in _modules:
        spec = spec_from_file_location(f"debugreg_policy_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise PolicyError("is no Python", path=file)
        module = module_from_spec(spec)
        sys.modules[spec.name] = module
        try:
            spec.loader.exec_module(module)
        except SyntaxError as error:
            raise PolicyError(f"SyntaxError: {error.msg}", path=file, line=error.lineno) from None
        except Exception as error:
            _, line = _place(error.__traceback__)
            raise PolicyError(f"{type(error).__name__}: {error}", path=file, line=line) from error
        _modules[key] = module
    found = getattr(_modules[key], name, None)
    if not (isinstance(found, type) and issubclass(found, Policy)):
        own = [cls.__name__ for cls in Policy.__subclasses__() if cls.__module__ == _modules[key].__name__]
        raise PolicyError("there is no such policy", path=file, found=name, allowed=own)
    return found


def audit(*names: str) -> None:
    """Find out whether policies remember something outside of their words: what they did is done again.

    Raises:
        PolicyError: One does something else with the same answers.
    """
    for name in names:
        if registered(name):
            _core.audit_policy(name.partition("+")[0])
