"""`debugreg run` of files that are no scenarios: one clear line, exit 2, nothing else.

What each file is expected to say stands in malformed/expected.txt, which rust/model/tests/malformed.rs reads too.
"""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "malformed"


def table():
    rows = (FOLDER / "expected.txt").read_text().splitlines()
    return [row.split(maxsplit=2) for row in rows if not row.startswith("#")]


def test_every_malformed_file_is_in_the_table():
    names = [name for name, _, _ in table()]
    assert sorted(names) == sorted(path.name for path in FOLDER.glob("*.scn"))
    assert len(names) >= 25


@pytest.mark.parametrize(("name", "place", "part"), [pytest.param(*row, id=row[0]) for row in table()])
def test_a_malformed_scenario_gets_one_line(mistake, name, place, part):
    path = FOLDER / name
    said = mistake("run", path)
    assert f"{path}:" in said if place == "-" else f"{path}:{place}: " in said
    assert part in said
    assert said.removesuffix("\n").isprintable()


@pytest.mark.parametrize("arguments", [("--json",), ("--steps",), ("--policy", "skip")])
def test_a_mistake_is_the_same_whatever_else_is_asked(mistake, arguments):
    path = FOLDER / "unknown-event.scn"
    assert f"{path}:4:4: " in mistake("run", path, *arguments)


def test_a_good_file_beside_a_malformed_one_prints_nothing(cli, mistake, tmp_path):
    good = tmp_path / "good.scn"
    good.write_text("task sh\nsh load 0x1000 8 => nothing\n")
    assert cli("run", good).returncode == 0
    assert f"{FOLDER / 'unknown-event.scn'}:4:4: " in mistake("run", good, FOLDER / "unknown-event.scn")


def test_what_is_no_file_gets_one_line(mistake, tmp_path):
    assert f"{tmp_path / 'missing.scn'}: No such file" in mistake("run", tmp_path / "missing.scn")
    assert f"{tmp_path}: " in mistake("run", tmp_path)


def test_nothing_is_written(mistake, tmp_path):
    mistake("run", (FOLDER / "unknown-event.scn").resolve(), cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
