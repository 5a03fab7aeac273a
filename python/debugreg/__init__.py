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
    from debugreg._codec import DR6, DR7, Slot, encode_dr7
    from debugreg._core import __version__
    from debugreg.errors import DebugregError, ScenarioError, TraceError

__all__ = [
    "DR6",
    "DR7",
    "DebugregError",
    "ScenarioError",
    "Slot",
    "TraceError",
    "__version__",
    "encode_dr7",
    "errors",
]

# Where each public name is loaded from when it is first used.
_HOMES = {
    "DR6": "_codec",
    "DR7": "_codec",
    "DebugregError": "errors",
    "ScenarioError": "errors",
    "Slot": "_codec",
    "TraceError": "errors",
    "__version__": "_core",
    "encode_dr7": "_codec",
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
