"""DR6 in Python: what happened, whatever the polarity of the bit."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

import debugreg as dr

values = st.integers(0, 2**64 - 1).map(dr.DR6)
NAMES = ("bus_lock", "bd", "bs", "bt", "rtm")


def happened(d6):
    return [name for name in NAMES if getattr(d6, name)]


def test_the_default_says_that_nothing_happened():
    d6 = dr.DR6()
    assert d6 == 0xFFFF0FF0
    assert (d6.hits, d6.events, happened(d6), d6.reserved) == ((), 0, [], ())
    assert str(d6) == "0xffff0ff0: nothing happened"


def test_each_property_is_the_manuals_bit():
    assert happened(dr.DR6(0xFFFF07F0)) == ["bus_lock"]
    assert happened(dr.DR6(0xFFFF2FF0)) == ["bd"]
    assert happened(dr.DR6(0xFFFF4FF0)) == ["bs"]
    assert happened(dr.DR6(0xFFFF8FF0)) == ["bt"]
    assert happened(dr.DR6(0xFFFE0FF0)) == ["rtm"]


def test_several_slots_can_be_hit_at_once():
    d6 = dr.DR6(0xFFFF4FF5)
    assert d6.hits == (0, 2)
    assert d6.events == 0x4005
    assert str(d6) == "0xffff4ff5: hit 0, hit 2, BS"


def test_zero_asserts_what_is_active_low():
    assert happened(dr.DR6(0)) == ["bus_lock", "rtm"]
    assert dr.DR6(0).reserved == (4, 5, 6, 7, 8, 9, 10, *range(17, 32))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_copies_are_dr6s(protocol):
    d6 = dr.DR6(0xFFFF4FF1)
    for twin in (pickle.loads(pickle.dumps(d6, protocol)), copy.copy(d6), copy.deepcopy(d6)):
        assert type(twin) is dr.DR6
        assert twin == d6


def test_a_wrong_value_is_named_with_what_is_allowed():
    with pytest.raises(ValueError, match=r"value must be from 0 to 0xffffffffffffffff \(got -1\)"):
        dr.DR6(-1)
    with pytest.raises(TypeError, match=r"value must be an int \(got 1.0\)"):
        dr.DR6(1.0)


@given(values)
def test_events_and_from_events_undo_each_other(d6):
    assert dr.DR6.from_events(d6.events) == d6


@given(values)
def test_repr_is_what_one_would_type(d6):
    assert eval(repr(d6), {"DR6": dr.DR6}) == d6  # noqa: S307 - what is tested


@given(values)
def test_hits_are_the_lowest_four_bits(d6):
    assert sum(1 << slot for slot in d6.hits) == d6 & 0xF
