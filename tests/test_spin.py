"""The number of reachable states, confirmed by another explorer on another model: SPIN on bench/host.pml."""

import sys
from pathlib import Path

import pytest

import debugreg as dr

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import spin

# Slots, counters, addresses; states and transitions.
SCOPES = {
    (1, 1, 1): (65, 302),
    (2, 2, 2): (1_826, 13_860),
    (2, 3, 2): (3_970, 39_268),
    (4, 4, 2): (201_466, 2_345_652),
}


@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_the_host_has_as_many_states_as_its_rules_in_promela(tmp_path, scope):
    slots, counters, addresses = scope
    verdict = dr.check(
        "linux", vcpus=0, slots=slots, counters=counters, addresses=addresses, events=spin.EVENTS, symmetry=False
    )
    assert verdict
    assert (verdict.states, verdict.transitions) == SCOPES[scope]
    if spin.MISSING:
        pytest.skip(f"needs {' and '.join(spin.MISSING)}: apt-get install spin gcc")
    found = spin.explore(spin.build(tmp_path, slots, counters, addresses))
    assert found == spin.Found(verdict.states, verdict.transitions + 1, errors=0)
