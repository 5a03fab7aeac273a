# Generated from the built module by pyo3-introspection: `python -m nox -s stubs`. Do not edit.
"""
The compiled half of debugreg. Private: use the package `debugreg`.
"""

from typing import Final, SupportsIndex

__all__ = [
    "DR6_IDLE",
    "DR7_RESET",
    "__version__",
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
    "register",
]

DR6_IDLE: Final[int]
"""
DR6 when nothing happened.
"""

DR7_RESET: Final[int]
"""
DR7 after a reset.
"""

__version__: Final[str]
"""
The version of the package.
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

def register(value: SupportsIndex, /) -> int:
    """
    Return the value, refusing what is not a 64-bit unsigned integer.
    """
