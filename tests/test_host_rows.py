"""docs/host-rows.md: every row has a scenario or a reason, every scenario a place, and what is seen is seen."""

import re
from collections import Counter
from pathlib import Path

import pytest

import debugreg as dr

ROOT = Path(__file__).parents[1]
SCENARIOS = ROOT / "scenarios"
PAGE = (ROOT / "docs" / "host-rows.md").read_text()
FILE = re.compile(r"`([^`]+\.scn)`")


def rows():
    """Return section, row, scenario and what a running kernel shows, of every row of the page."""
    found, section = [], ""
    for line in PAGE.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.startswith("| ") and line != "| row | scenario | running kernel |":
            found.append((section, *(cell.strip() for cell in line.strip("|").split("|"))))
    return found


ROWS = rows()
SEEN = sorted({file for _, _, scenario, kernel in ROWS if kernel == "seen" for file in FILE.findall(scenario)})


@pytest.fixture(scope="module")
def running_kernel():
    try:
        dr.run(SCENARIOS / "host" / "exclude.scn", world="kernel")
    except dr.WorldError as missing:
        pytest.skip(str(missing))


def test_every_row_has_a_scenario_or_says_why_not():
    assert len(ROWS) > 120
    for section, row, scenario, kernel in ROWS:
        what = f"{section}: {row}"
        if scenario.startswith("no: "):
            assert kernel == "-", what
        else:
            assert scenario.startswith("`"), what
            assert FILE.findall(scenario), what
            assert kernel not in {"", "-"}, what


def test_no_row_stands_twice():
    assert [row for row, times in Counter((section, row) for section, row, *_ in ROWS).items() if times > 1] == []


def test_every_file_that_is_named_is_there():
    assert [file for file in FILE.findall(PAGE) if not (SCENARIOS / file).is_file()] == []
    others = [file for file in re.findall(r"`([^`]+/[^`]+\.rs)`", PAGE) if not (ROOT / file).is_file()]
    assert others == []


def test_every_scenario_of_the_host_has_a_place():
    files = {f"{folder}/{file.name}" for folder in ("host", "anomalies") for file in (SCENARIOS / folder).glob("*.scn")}
    assert files - set(FILE.findall(PAGE)) == set()


def test_every_scenario_of_a_row_holds_in_the_model():
    files = sorted({file for _, _, scenario, _ in ROWS for file in FILE.findall(scenario)})
    assert [str(report.file) for report in dr.run([SCENARIOS / file for file in files]) if not report] == []


@pytest.mark.usefixtures("running_kernel")
@pytest.mark.parametrize("file", SEEN)
def test_what_a_running_kernel_is_said_to_show_it_shows(file):
    (report,) = dr.run(SCENARIOS / file, world="kernel")
    assert report
    # More than half of it, or the row may be in the part that is not.
    observed = [step for step in report.steps if step.observed is not None]
    assert 2 * len(observed) > len(report.steps)
