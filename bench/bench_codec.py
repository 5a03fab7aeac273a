"""What does it cost to say a breakpoint in DR7's bits, and to make a register's value of a number?"""

from itertools import repeat

import debugreg as dr

from . import pure
from .sides import PURE, PYTHON, RUST, Operation, batch, each_side


def encode(encode_dr7):
    """Return a side that encodes a write of eight bytes in slot 0."""

    def side(n):
        for _ in repeat(None, n):
            bits = encode_dr7(0, len=8, type="w")
        assert bits == 0x90202

    return side


def make(register):
    """Return a side that checks a number and makes a value of DR7 of it."""

    def side(n):
        for _ in repeat(None, n):
            value = register(0x90602)
        assert value == 0x90602
        assert type(value) is register

    return side


ENCODE = Operation(
    "encode_dr7",
    cost=(0, 0, 0, 0, 0),
    sides={RUST: batch("encode"), PYTHON: encode(dr.encode_dr7), PURE: encode(pure.encode_dr7)},
    n=100_000,
)
DR7 = Operation(
    "DR7(x)",
    cost=(),
    sides={PYTHON: make(dr.DR7), PURE: make(pure.Register)},
    n=100_000,
)


@each_side(ENCODE, DR7)
def test_bits_of_a_register(benchmark, operation, side):
    """Every side refuses what there is not (`test_pure.py`)."""
    operation.measure(benchmark, side)
