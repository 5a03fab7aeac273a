"""DR6 and DR7 as immutable integers that know their fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from debugreg import _core
from debugreg._core import encode_dr7, register

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import SupportsIndex

__all__ = ["DR6", "DR7", "Enable", "Length", "Slot", "Type", "encode_dr7"]

Type: TypeAlias = Literal["x", "w", "rw", "io"]
"""What a slot watches: execution, data writes, data reads and writes, I/O ports."""

Length: TypeAlias = Literal[1, 2, 4, 8]
"""How many bytes a slot watches."""

Enable: TypeAlias = Literal["local", "global", "both", "none"]
"""Which of a slot's two bits L and G are set."""


class Slot(NamedTuple):
    """What DR7 says of one slot; the address is in DR0-DR3."""

    enable: Enable
    """`'local'` (L), `'global'` (G) or `'both'`."""
    type: Type
    """`'x'` execution, `'w'` data writes, `'rw'` data reads and writes, `'io'` I/O ports."""
    len: Length
    """How many bytes: 1, 2, 4 or 8."""


class DR7(int):
    """A value of DR7, the control register: an integer that is also a sequence of four slots.

    Arithmetic gives plain integers, as with any subclass of `int`.

    Args:
        value: Any 64 bits; `reserved` says which of them the hardware would not keep. Default: the value after reset.

    Raises:
        TypeError: Not an integer, or a bool.
        ValueError: Negative, or more than 64 bits.

    Source:
        Intel SDM vol. 3, "Debug Control Register (DR7)"; AMD APM vol. 2, section 13.1.1.4.

    Example:
        >>> d7 = DR7(0x000D0402)
        >>> d7[0]
        Slot(enable='global', type='w', len=4)
        >>> print(d7.arm(1, "x"))
        0x000d040a: slot 0 global w 4, slot 1 global x 1
    """

    __slots__ = ()

    def __new__(cls, value: SupportsIndex = _core.DR7_RESET, /) -> DR7:  # noqa: PYI034 - arm() gives a DR7 as well
        return int.__new__(cls, register(value))

    def __repr__(self) -> str:
        return f"DR7({self:#010x})"

    def __str__(self) -> str:
        slots = [f"slot {n} {slot.enable} {slot.type} {slot.len}" for n, slot in enumerate(self) if slot]
        return _one_line(self, [*slots, *_raised(self.flags)] or ["nothing armed"], self.reserved)

    def __getitem__(self, index: int, /) -> Slot | None:
        """Return a slot, or `None` if neither of its enable bits is set."""
        fields = _core.dr7_slot(self, index)
        return None if fields is None else Slot._make(fields)

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Slot | None]:
        return map(self.__getitem__, range(4))

    def arm(self, slot: int, type: Type, len: Length = 1, enable: Enable = "global") -> DR7:
        """Return this value with one slot's enable, R/W and LEN replaced.

        Args:
            slot: 0 to 3.
            type: `'x'` execution, `'w'` data writes, `'rw'` data reads and writes, `'io'` I/O ports.
            len: How many bytes to watch: 1, 2, 4 or 8; 1 for `'x'`.
            enable: Which bits to set: `'global'` (what Linux does), `'local'`, `'both'` or `'none'`.

        Raises:
            ValueError: There is no such slot, type or length, or `'x'` with a length other than 1.
        """
        return DR7(_core.dr7_arm(self, slot, type, len, enable))

    def disarm(self, slot: int) -> DR7:
        """Return this value with one slot's enable, R/W and LEN cleared."""
        return DR7(_core.dr7_disarm(self, slot))

    @property
    def flags(self) -> dict[str, bool]:
        """The bits that belong to no slot, by name."""
        return _core.dr7_flags(self)

    @property
    def le(self) -> bool:
        """LE, bit 8: ignored since P6."""
        return self.flags["le"]

    @property
    def ge(self) -> bool:
        """GE, bit 9: ignored since P6; Linux sets it with its first breakpoint and never clears it."""
        return self.flags["ge"]

    @property
    def rtm(self) -> bool:
        """RTM, bit 11: advanced debugging of transactional regions."""
        return self.flags["rtm"]

    @property
    def gd(self) -> bool:
        """GD, bit 13: an access to any debug register raises #DB."""
        return self.flags["gd"]

    @property
    def reserved(self) -> tuple[int, ...]:
        """The numbers of the bits that differ from what the hardware fixes them to."""
        return _core.dr7_reserved(self)


class DR6(int):
    """A value of DR6, the status register.

    Its properties say what happened: they are true for BLD and RTM too where the bit is clear.

    Args:
        value: Any 64 bits; `reserved` says which of them the hardware would not show. Default: nothing happened.

    Raises:
        TypeError: Not an integer, or a bool.
        ValueError: Negative, or more than 64 bits.

    Source:
        Intel SDM vol. 3, "Debug Status Register (DR6)"; AMD APM vol. 2, section 13.1.1.3.

    Example:
        >>> d6 = DR6(0xFFFF4FF1)
        >>> d6.hits, d6.bs, d6.bus_lock
        ((0,), True, False)
        >>> print(d6)
        0xffff4ff1: hit 0, BS
    """

    __slots__ = ()

    def __new__(cls, value: SupportsIndex = _core.DR6_IDLE, /) -> DR6:  # noqa: PYI034 - as DR7
        return int.__new__(cls, register(value))

    @classmethod
    def from_events(cls, events: SupportsIndex) -> DR6:
        """Return the value in which these bits happened, given in positive polarity: the inverse of `events`."""
        return DR6(_core.dr6_from_events(events))

    def __repr__(self) -> str:
        return f"DR6({self:#010x})"

    def __str__(self) -> str:
        hits = [f"hit {slot}" for slot in self.hits]
        return _one_line(self, [*hits, *_raised(self.flags)] or ["nothing happened"], self.reserved)

    @property
    def events(self) -> int:
        """Every bit that happened, in positive polarity: what Linux works with after its one exclusive-or."""
        return _core.dr6_events(self)

    @property
    def hits(self) -> tuple[int, ...]:
        """The slots whose condition was met, armed or not: B0-B3."""
        return _core.dr6_hits(self)

    @property
    def flags(self) -> dict[str, bool]:
        """What happened besides, by name."""
        return _core.dr6_flags(self)

    @property
    def bus_lock(self) -> bool:
        """A bus lock: BLD, bit 11, is clear."""
        return self.flags["bus_lock"]

    @property
    def bd(self) -> bool:
        """BD, bit 13: the next instruction accesses a debug register while DR7.GD is set."""
        return self.flags["bd"]

    @property
    def bs(self) -> bool:
        """BS, bit 14: a single step."""
        return self.flags["bs"]

    @property
    def bt(self) -> bool:
        """BT, bit 15: a task switch with the T bit."""
        return self.flags["bt"]

    @property
    def rtm(self) -> bool:
        """Inside a transactional region: RTM, bit 16, is clear."""
        return self.flags["rtm"]

    @property
    def reserved(self) -> tuple[int, ...]:
        """The numbers of the bits that differ from what the hardware fixes them to."""
        return _core.dr6_reserved(self)


def _raised(flags: dict[str, bool]) -> list[str]:
    return [name.upper().replace("_", " ") for name, is_set in flags.items() if is_set]


def _one_line(value: int, fields: list[str], reserved: tuple[int, ...]) -> str:
    if reserved:
        fields = [*fields, f"reserved bits {bit_ranges(reserved)}"]
    return f"{value:#010x}: {', '.join(fields)}"


def bit_ranges(bits: tuple[int, ...]) -> str:
    """Write rising bit numbers with their runs drawn together.

    Example:
        >>> bit_ranges((3, 4, 5, 12, 14))
        '3-5 12 14'
    """
    runs: list[list[int]] = []
    for bit in bits:
        if runs and bit == runs[-1][-1] + 1:
            runs[-1].append(bit)
        else:
            runs.append([bit])
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
