"""The planner: optimal, by brute force on a small universe; never worse than GDB."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import debugreg as dr

# A universe of eight bytes, of which the first four may be wanted, each not at all, for writes, or for both.
SIZES = (1, 2, 4, 8)
BLOCKS = [(at, size, kind) for size in SIZES for at in range(0, 4, size) for kind in ("w", "rw")]


def traps(at, size, kind):
    """Return the accesses that trap: for each byte a bit for writes, and one for reads."""
    return sum((0b11 if kind == "rw" else 0b10) << 2 * byte for byte in range(at, at + size))


def every_set_of_blocks():
    """Return what each set of blocks traps, and how many they are."""
    traps_of, count = np.zeros(1, np.uint32), np.zeros(1, np.uint32)
    for block in BLOCKS:
        traps_of = np.concatenate([traps_of, traps_of | traps(*block)])
        count = np.concatenate([count, count + 1])
    return traps_of, count


def test_no_plan_is_better_than_what_is_found():
    trapped, count = every_set_of_blocks()
    assert len(trapped) == 2 ** len(BLOCKS) == 2**16
    for kinds in itertools.product((None, "w", "rw"), repeat=4):
        wanted = [(at, 1, kind) for at, kind in enumerate(kinds) if kind]
        if not wanted:
            continue
        bits = sum(traps(*one) for one in wanted)
        enough = (trapped & bits) == bits
        price = np.bitwise_count(trapped & ~np.uint32(bits))
        found = {one.slots: one.too_many for one in dr.plan(wanted).plans}
        least = None
        for slots in range(9):
            fitting = price[enough & (count <= slots)]
            if not len(fitting):
                assert slots not in found
            elif least is None or fitting.min() < least:
                least = int(fitting.min())
                assert found[slots] == least, (kinds, slots)
            else:
                assert slots not in found
        assert least == 0


RANGES = st.lists(
    st.one_of(
        st.builds(dr.Range, st.integers(0x1000, 0x1020), st.integers(1, 20), st.sampled_from(["w", "rw"])),
        st.builds(dr.Range, st.integers(0x1000, 0x1004), st.just(1), st.just("x")),
    ),
    min_size=1,
    max_size=5,
)


@given(RANGES)
def test_what_is_found_watches_what_is_wanted_and_no_more_than_it_says(wanted):
    found = dr.plan(wanted)
    accesses = {(byte, one) for a, n, kind in wanted for byte in range(a, a + n) for one in kind.replace("r", "r")}
    for one in found.plans:
        assert all(block.address % block.len == 0 and block.len in SIZES for block in one.blocks)
        watched = {(byte, what) for a, n, kind in one.blocks for byte in range(a, a + n) for what in kind}
        assert accesses <= watched
        assert len(watched - accesses) == one.too_many
        for block in one.blocks:
            dr.DR7().arm(0, block.type, block.len)
    slots, prices = zip(*((one.slots, one.too_many) for one in found.plans), strict=True)
    assert list(slots) == sorted(set(slots))
    assert list(prices) == sorted(set(prices), reverse=True)
    assert found.exact.too_many == 0
    assert found.exact.slots <= found.gdb.slots
    assert found.fewest.slots <= found.exact.slots


@given(RANGES)
def test_gdb_watches_exactly_that_too(wanted):
    gdb = dr.plan(wanted).gdb
    accesses = {(byte, one) for a, n, kind in wanted for byte in range(a, a + n) for one in kind}
    assert {(byte, what) for a, n, kind in gdb.blocks for byte in range(a, a + n) for what in kind} == accesses


def test_the_choice_follows_the_slots_that_there_are():
    found = dr.plan(["0x1001+6", "0x1010+8:rw", "0x401000:x"])
    assert [(one.slots, one.too_many) for one in found.plans] == [(3, 2), (5, 1), (6, 0)]
    assert found.within(2) is None
    assert found.within(4).too_many == 2
    assert found.within(9) == found.exact
    assert found.gdb.slots == 6


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "found '', allowed are ADDRESS"),
        ("0x1000+0", "a range has at least one byte (got 0)"),
        ("0x1003-0x1000", "a range has at least one byte (got -2)"),
        ("0x1000:r", "type must be 'w', 'rw' or 'x' (got 'r'); x86 cannot watch reads alone"),
        ("0x1000+4:x", "the length of an 'x' must be 1 (got 4)"),
        ("0xffffffffffffffff+2", "addresses are from 0 to 0xffffffffffffffff"),
        ("0+1000000", "what is wanted lies in 125,000 aligned words of 8 bytes, allowed are 256"),
    ],
)
def test_a_mistake_is_one_line(mistake, text, why):
    assert why in mistake("plan", text)


def test_the_command(cli, cli_json):
    done = cli("plan", "0x1003+5")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "  1 slot, 3 too many: reads or writes of a byte that trap and should not",
        "      bp_type=w bp_addr=0x1000 bp_len=8",
        "* 2 slots, exactly what is wanted",
        "      bp_type=w bp_addr=0x1003 bp_len=1",
        "      bp_type=w bp_addr=0x1004 bp_len=4",
        "  GDB takes 2 slots, each range by itself and nothing widened",
    ]
    wide = cli_json("plan", "0x1000-0x1027:w", code=1)
    assert wide["chosen"] is None
    assert [one["slots"] for one in wide["plans"]] == [5]
    assert cli_json("plan", "0x1003+5", "--slots", "1")["chosen"]["too_many"] == 3
