"""Model and kernel side by side."""

import json
from pathlib import Path

import pytest

import debugreg as dr
from debugreg import _core
from debugreg._conform import WorldDifference

SCENARIOS = Path(__file__).parents[1] / "scenarios"
FILES = sorted((SCENARIOS / "host").glob("*.scn"))


def why_not():
    """Return what is missing for the world, if anything is."""
    world = _core.KernelWorld()
    _, trouble = world.run("task a\na store 0x1000 8 => nothing\n", False)
    world.close()
    return trouble and trouble[3]


MISSING = why_not()
needs_kernel = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@needs_kernel
def test_random_scenarios_come_to_the_same_in_both_worlds():
    seen = []
    result = dr.conform(count=200, seed=1, progress=lambda done, differences: seen.append((done, differences)))
    assert [difference.scenario for difference in result.differences] == []
    assert result
    assert result.scenarios == 200
    assert result.steps > 3000
    assert seen == sorted(seen)
    assert 0 < len(seen) < 1000


@needs_kernel
def test_the_corpus_comes_to_the_same_in_both_worlds(cli_json):
    document = cli_json("conform", "--count", 0, *FILES)
    assert document["differences"] == []
    assert document["world"] == "kernel"
    # Those about other kernels are left out.
    assert len(FILES) - 5 <= document["scenarios"] <= len(FILES)


@needs_kernel
def test_a_page_says_how_much_was_compared(cli):
    done = cli("conform", "--count", 20, "--seed", 7)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("20 scenarios, ")
    assert done.stdout.endswith(" lines observed: no difference\n")


def test_a_seed_gives_one_scenario_that_holds_in_the_model(tmp_path):
    texts = [_core.random_scenario(seed) for seed in range(100)]
    assert texts == [_core.random_scenario(seed) for seed in range(100)]
    assert len(set(texts)) == 100
    files = []
    for number, text in enumerate(texts):
        files.append(tmp_path / f"{number}.scn")
        files[-1].write_text(text)
    assert [(report.file, step) for report in dr.run(files) for step in report.steps if step.ok is False] == []


def test_random_scenarios_reach_the_corners():
    text = "\n".join(_core.random_scenario(seed) for seed in range(300))
    for corner in [
        "=> ENOSPC",
        "=> EINVAL",
        "=> EACCES",
        "=> EOPNOTSUPP",
        " fork ",
        " exit ",
        " exec ",
        " migrate ",
        "sigtrap",
        "on=cpu1",
        "@cpu0",
        "mode=kernel",
    ]:
        assert corner in text
    lines = text.splitlines()
    for event, outcome in [("modify", "=> EINVAL"), ("ptrace_poke", "=> EINVAL"), ("ptrace_poke", "=> ENOSPC")]:
        assert any(event in line and line.endswith(outcome) for line in lines)


@pytest.mark.parametrize("argument", ["count", "seed"])
def test_a_number_that_is_no_64_bit_integer_is_refused(argument):
    with pytest.raises(ValueError, match=f"{argument} must be a 64-bit unsigned integer"):
        dr.conform(**{argument: -1})


def test_a_mistake_in_a_file_is_said_with_its_place(tmp_path):
    file = tmp_path / "bad.scn"
    file.write_text("task a\na frobnicate\n")
    with pytest.raises(dr.ScenarioError, match=r"bad\.scn:2:3"):
        dr.conform(file)


def test_the_document_has_the_contracts_fields():
    difference = WorldDifference("# t\n", 1, "ok", "EINVAL")
    document = dr.Conformance("kernel", 1, 2, 3, (difference,), ()).to_dict()
    assert json.loads(json.dumps(document)) == document
    assert document.keys() >= {"world", "scenarios", "steps", "differences"}
    assert document["differences"] == [{"scenario": "# t\n", "line": 1, "expected": "ok", "observed": "EINVAL"}]
