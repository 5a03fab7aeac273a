"""x86 debug registers, host and guest: a codec, a model, and what each switch policy does and costs.

Nothing heavy is loaded before it is used: `import debugreg` costs about a millisecond.

Example:
    >>> import debugreg as dr
    >>> dr.DR7(0x000D0402)[0]
    Slot(enable='global', type='w', len=4)
    >>> dr.DR7().arm(0, "w", 8).arm(1, "x")
    DR7(0x0009040a)
    >>> hex(dr.encode_dr7(0, len=8, type="w"))
    '0x90202'
    >>> dr.DR6(0xFFFF4FF1).hits
    (0,)
"""

TYPE_CHECKING = False  # What `typing` calls so, without the import.
if TYPE_CHECKING:
    from debugreg import errors
    from debugreg._check import Kept, Law, Scope, Verdict, Violation, check, event_kinds, laws, laws_kept, sweep
    from debugreg._codec import DR6, DR7, Slot, encode_dr7
    from debugreg._compare import Comparison, compare
    from debugreg._conform import Conformance, conform
    from debugreg._core import __version__
    from debugreg._cost import Cost
    from debugreg._machine import Counter, Cpu, Held, Machine, Outcome, Refusal, Registers, Task, Vcpu
    from debugreg._plan import Block, Plan, Plans, Range, plan
    from debugreg._policies import PolicyRow, policies
    from debugreg._policy import Policy
    from debugreg._replay import Replay, replay
    from debugreg._rows import Ran, event_dtype, events, outcome_dtype, outcomes
    from debugreg._scenario import ScenarioReport, run
    from debugreg.errors import DebugregError, PolicyError, ScenarioError, TraceError, WorldError

__all__ = [
    "DR6",
    "DR7",
    "Block",
    "Comparison",
    "Conformance",
    "Cost",
    "Counter",
    "Cpu",
    "DebugregError",
    "Held",
    "Kept",
    "Law",
    "Machine",
    "Outcome",
    "Plan",
    "Plans",
    "Policy",
    "PolicyError",
    "PolicyRow",
    "Ran",
    "Range",
    "Refusal",
    "Registers",
    "Replay",
    "ScenarioError",
    "ScenarioReport",
    "Scope",
    "Slot",
    "Task",
    "TraceError",
    "Vcpu",
    "Verdict",
    "Violation",
    "WorldError",
    "__version__",
    "check",
    "compare",
    "conform",
    "encode_dr7",
    "errors",
    "event_dtype",
    "event_kinds",
    "events",
    "laws",
    "laws_kept",
    "outcome_dtype",
    "outcomes",
    "plan",
    "policies",
    "replay",
    "run",
    "sweep",
]

# Where each public name is loaded from when it is first used.
_HOMES = {
    "DR6": "_codec",
    "DR7": "_codec",
    "Block": "_plan",
    "Comparison": "_compare",
    "Conformance": "_conform",
    "Cost": "_cost",
    "Counter": "_machine",
    "Cpu": "_machine",
    "DebugregError": "errors",
    "Held": "_machine",
    "Kept": "_check",
    "Law": "_check",
    "Machine": "_machine",
    "Outcome": "_machine",
    "Plan": "_plan",
    "Plans": "_plan",
    "Policy": "_policy",
    "PolicyError": "errors",
    "PolicyRow": "_policies",
    "Ran": "_rows",
    "Range": "_plan",
    "Refusal": "_machine",
    "Registers": "_machine",
    "Replay": "_replay",
    "ScenarioError": "errors",
    "ScenarioReport": "_scenario",
    "Scope": "_check",
    "Slot": "_codec",
    "Task": "_machine",
    "TraceError": "errors",
    "Vcpu": "_machine",
    "Verdict": "_check",
    "Violation": "_check",
    "WorldError": "errors",
    "__version__": "_core",
    "check": "_check",
    "compare": "_compare",
    "conform": "_conform",
    "encode_dr7": "_codec",
    "event_dtype": "_rows",
    "event_kinds": "_check",
    "events": "_rows",
    "laws": "_check",
    "laws_kept": "_check",
    "outcome_dtype": "_rows",
    "outcomes": "_rows",
    "plan": "_plan",
    "policies": "_policies",
    "replay": "_replay",
    "run": "_scenario",
    "sweep": "_check",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module

    module = import_module(f"{__name__}.{_HOMES.get(name, name)}")
    value = globals()[name] = getattr(module, name) if name in _HOMES else module
    return value


def __dir__() -> list[str]:
    return __all__
