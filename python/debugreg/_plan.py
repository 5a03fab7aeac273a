"""The fewest slots that cover what somebody wants to watch, and what is watched too many."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Block", "Plan", "Plans", "Range", "plan"]

BlockType: TypeAlias = Literal["w", "rw", "x"]
"""`bp_type`, as far as x86 has it."""

ADDRESSES = 1 << 64
LONGEST = 8
"""What one slot watches at most, in bytes; a block is aligned to its length (SDM vol. 3, 18.2.5)."""

# What is watched of a byte.
NOTHING, WRITE, BOTH = 0, 1, 2
_KINDS = {"w": WRITE, "rw": BOTH}
# By what is watched: the accesses that trap, a bit for reads and one for writes.
_ACCESSES = {NOTHING: 0b00, WRITE: 0b10, BOTH: 0b11}


class Range(NamedTuple):
    """Bytes, or an instruction, that somebody wants to watch."""

    address: int
    len: int
    type: BlockType

    @classmethod
    def parse(cls, text: str) -> Range:
        """Read `ADDRESS+LENGTH[:TYPE]`, `FIRST-LAST[:TYPE]` or `ADDRESS:x`; without a type, writes.

        Raises:
            ValueError: It is none of these; the message says what is allowed.

        Example:
            >>> Range.parse("0x1003+5")
            Range(address=4099, len=5, type='w')
        """
        number = r"(0x[0-9a-fA-F_]+|[0-9_]+)"
        match = re.fullmatch(rf"{number}(?:([+-]){number})?(?::(\w+))?", text)
        if match is None:
            msg = f"found {text!r}, allowed are ADDRESS+LENGTH[:TYPE], FIRST-LAST[:TYPE], ADDRESS[:TYPE]"
            raise ValueError(msg)
        first, sign, second, type = match.groups()
        address = int(first, 0)
        length = 1 if second is None else int(second, 0) if sign == "+" else int(second, 0) - address + 1
        return cls(address, length, cast("BlockType", type or "w")).checked()

    def checked(self) -> Range:
        """Return it if it makes sense.

        Raises:
            ValueError: It does not.
        """
        address, length, type = self
        if type not in {"w", "rw", "x"}:
            msg = f"type must be 'w', 'rw' or 'x' (got {type!r}); x86 cannot watch reads alone"
            raise ValueError(msg)
        if length < 1:
            msg = f"a range has at least one byte (got {length})"
            raise ValueError(msg)
        if type == "x" and length != 1:
            msg = f"an instruction is watched at its first byte: the length of an 'x' must be 1 (got {length})"
            raise ValueError(msg)
        if not 0 <= address <= address + length <= ADDRESSES:
            msg = f"addresses are from 0 to {ADDRESSES - 1:#x} (got {address:#x} and {length} bytes)"
            raise ValueError(msg)
        return self


WORDS = 256
"""In how many aligned words of 8 bytes may lie what is wanted: many more than any machine has slots."""


class Block(NamedTuple):
    """What one slot watches."""

    address: int
    len: int
    type: BlockType

    def __str__(self) -> str:
        """Write it as a scenario does."""
        return f"bp_type={self.type} bp_addr={self.address:#x} bp_len={self.len}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Blocks, one for each slot."""

    blocks: tuple[Block, ...]
    too_many: int
    """The price: accesses that trap and should not, a read and a write of each byte counted apart."""

    @property
    def slots(self) -> int:
        """How many it takes."""
        return len(self.blocks)

    def to_dict(self) -> dict[str, object]:
        """Return plain data, as `--json` prints it."""
        return {"blocks": [block._asdict() for block in self.blocks], "slots": self.slots, "too_many": self.too_many}


@dataclass(frozen=True, slots=True)
class Plans:
    """The ways to watch what is wanted that are worth it: more slots, and less that is watched too many."""

    wanted: tuple[Range, ...]
    plans: tuple[Plan, ...]
    """The one with the fewest slots first; the last one watches nothing too many."""
    gdb: Plan
    """What GDB would have done: each range by itself, from its first byte on in the largest blocks that fit."""

    @property
    def fewest(self) -> Plan:
        """The one with the fewest slots; of those the one that watches least too many."""
        return self.plans[0]

    @property
    def exact(self) -> Plan:
        """The one that watches nothing too many; of those the one with the fewest slots."""
        return self.plans[-1]

    def within(self, slots: int) -> Plan | None:
        """Return the one that watches least too many in so many slots; `None` if they are not enough."""
        return next((plan for plan in reversed(self.plans) if plan.slots <= slots), None)

    def to_dict(self) -> dict[str, object]:
        """Return plain data, as `--json` prints it."""
        plans = [plan.to_dict() for plan in self.plans]
        return {"wanted": [one._asdict() for one in self.wanted], "plans": plans, "gdb": self.gdb.to_dict()}


def plan(wanted: Iterable[Range | str | Sequence[object]]) -> Plans:
    """Find every plan that is worth it: no other has as few slots and watches as little too many.

    Args:
        wanted: Ranges, as `Range` or as `Range.parse` reads them.

    Raises:
        ValueError: A range makes no sense, or nothing is wanted.

    Example:
        >>> plans = plan(["0x1003+5"])
        >>> [(one.slots, one.too_many) for one in plans.plans]
        [(1, 3), (2, 0)]
        >>> plans.exact.blocks
        (Block(address=4099, len=1, type='w'), Block(address=4100, len=4, type='w'))
    """
    ranges = tuple(
        Range.parse(one) if isinstance(one, str) else Range(*one).checked()  # type: ignore[arg-type]
        for one in wanted
    )
    if not ranges:
        raise ValueError("nothing is wanted")
    words = {address // LONGEST for one in ranges for address in range(one.address, one.address + one.len, LONGEST)}
    if len(words) > WORDS:
        msg = f"what is wanted lies in {len(words):,} aligned words of 8 bytes, allowed are {WORDS}"
        raise ValueError(msg)
    instructions = sorted({one.address for one in ranges if one.type == "x"})
    executes = tuple(Block(address, 1, "x") for address in instructions)
    ways = {0: _Way(0, ())}
    for address, bytes in _words(ranges).items():
        ways = _joined(ways, _cover(address, LONGEST, bytes, NOTHING))
    plans: list[Plan] = []
    for _, way in sorted(ways.items()):
        if not plans or way.too_many < plans[-1].too_many:
            plans.append(Plan((*way.blocks, *executes), way.too_many))
    return Plans(ranges, tuple(plans), _gdb(ranges))


class _Way(NamedTuple):
    """A way to cover some bytes with a number of slots."""

    too_many: int
    blocks: tuple[Block, ...]


def _words(ranges: tuple[Range, ...]) -> dict[int, list[int]]:
    """Return what is wanted of each byte of each aligned word that has any."""
    words: dict[int, list[int]] = {}
    for first, length, type in ranges:
        if type != "x":
            for address in range(first, first + length):
                word = words.setdefault(address & -LONGEST, [NOTHING] * LONGEST)
                at = address % LONGEST
                word[at] = max(word[at], _KINDS[type])
    return dict(sorted(words.items()))


def _cover(address: int, length: int, wanted: list[int], above: int) -> dict[int, _Way]:
    """Return the best way to cover an aligned block with each number of slots.

    Blocks are nested or apart, so that what is best in one half does not depend on the other: only on what already
    watches both (`above`).
    """
    best: dict[int, _Way] = {}
    for own in range(above, BOTH + 1):
        # One that watches no more than what is above it would be wasted.
        block = () if own == above else (Block(address, length, "w" if own == WRITE else "rw"),)
        if length == 1:
            missing = _ACCESSES[wanted[0]] & ~_ACCESSES[own]
            below = {} if missing else {0: _Way((_ACCESSES[own] & ~_ACCESSES[wanted[0]]).bit_count(), ())}
        else:
            half = length // 2
            below = _joined(_cover(address, half, wanted[:half], own), _cover(address + half, half, wanted[half:], own))
        for slots, way in below.items():
            _keep(best, slots + len(block), _Way(way.too_many, block + way.blocks))
    return best


def _joined(left: dict[int, _Way], right: dict[int, _Way]) -> dict[int, _Way]:
    """Return the best way to do both with each number of slots."""
    best: dict[int, _Way] = {}
    for (some, one), (others, other) in product(left.items(), right.items()):
        _keep(best, some + others, _Way(one.too_many + other.too_many, one.blocks + other.blocks))
    return _worth_it(best)


def _keep(best: dict[int, _Way], slots: int, way: _Way) -> None:
    if slots not in best or way.too_many < best[slots].too_many:
        best[slots] = way


def _worth_it(ways: dict[int, _Way]) -> dict[int, _Way]:
    """Leave out what takes more slots than another and watches as much too many."""
    kept: dict[int, _Way] = {}
    least = None
    for slots, way in sorted(ways.items()):
        if least is None or way.too_many < least:
            kept[slots], least = way, way.too_many
    return kept


def _gdb(ranges: tuple[Range, ...]) -> Plan:
    """Return what GDB does (`x86_length_and_rw_bits`, `x86_handle_nonaligned_watchpoint`, gdb/nat/x86-dregs.c).

    Equal blocks are shared; nothing is widened, and no range knows of another.
    """
    blocks: dict[Block, None] = {}
    for first, length, type in ranges:
        address, left = first, length
        while left:
            size = LONGEST
            while size > left or address % size:
                size //= 2
            blocks[Block(address, size, type)] = None
            address, left = address + size, left - size
    return Plan(tuple(blocks), 0)
