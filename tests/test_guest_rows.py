"""docs/guest-rows.md: every row has a scenario or a reason, every scenario a place, and what is seen is seen."""

import re
from collections import Counter
from pathlib import Path

import pytest

import debugreg as dr

ROOT = Path(__file__).parents[1]
SCENARIOS = ROOT / "scenarios"
PAGE = (ROOT / "docs" / "guest-rows.md").read_text()
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
SHOWN = {
    shown: sorted({file for _, _, scenario, kernel in ROWS if kernel == shown for file in FILE.findall(scenario)})
    for shown in ("seen", "partly")
}
"""What a kernel shows more than half of the lines of, and some lines of at least one file of a row."""


@pytest.fixture(scope="module")
def emulated_guests():
    """Skip where guests are not what the page's last column is about."""
    try:
        (report,) = dr.run(SCENARIOS / "kvm" / "data-breakpoints.scn", world="kernel")
    except dr.WorldError as missing:
        pytest.skip(str(missing))
    if not any("kvm-pvm" in (step.unobserved or "") for step in report.steps):
        pytest.skip("needs guests that KVM's emulator performs (kvm-pvm)")


def test_every_row_has_a_scenario_or_says_why_not():
    assert len(ROWS) > 140
    for section, row, scenario, kernel in ROWS:
        what = f"{section}: {row}"
        if scenario.startswith("no: "):
            assert kernel == "-", what
        else:
            assert scenario.startswith("`"), what
            assert FILE.findall(scenario), what
            assert kernel not in {"", "-"}, what


def test_every_section_of_the_reference_that_concerns_registers_is_there():
    numbers = {number for section, *_ in ROWS for number in re.findall(r"\((\d+)", section)}
    assert numbers == {"2", "3", "4", "5", "6", "7", "9", "12", "13"}


def test_no_row_stands_twice():
    assert [row for row, times in Counter((section, row) for section, row, *_ in ROWS).items() if times > 1] == []


def test_every_file_that_is_named_is_there():
    assert [file for file in FILE.findall(PAGE) if not (SCENARIOS / file).is_file()] == []
    others = [file for file in re.findall(r"`([^`]+/[^`]+\.(?:rs|py|md))`", PAGE) if not (ROOT / file).is_file()]
    assert others == []


def test_every_scenario_of_guests_has_a_place():
    files = {f"{file.parent.name}/{file.name}" for file in (SCENARIOS / "kvm").glob("*.scn")}
    files |= {f"bugs/{file.name}" for file in (SCENARIOS / "bugs").glob("[HZ]-*.scn")}
    assert files - set(FILE.findall(PAGE)) == set()


def test_every_bug_has_a_scenario_or_a_reason():
    without = re.findall(r"^\| ((?:[HZ]-\d+(?:, )?)+) \|", (ROOT / "docs" / "bugs.md").read_text(), re.MULTILINE)
    reasons = {bug for row in without for bug in row.split(", ")}
    shown = {row for section, row, *_ in ROWS if section.endswith(("(12)", "(13)"))}
    every = {f"H-{number:02}" for number in range(1, 34)} | {f"Z-{number}" for number in range(1, 12)}
    assert shown | reasons == every


def test_every_scenario_of_a_row_holds_in_the_model():
    files = sorted({file for _, _, scenario, _ in ROWS for file in FILE.findall(scenario)})
    assert [str(report.file) for report in dr.run([SCENARIOS / file for file in files]) if not report] == []


@pytest.mark.usefixtures("emulated_guests")
@pytest.mark.parametrize("shown", SHOWN)
def test_what_a_running_kernel_is_said_to_show_it_shows(shown):
    files = SHOWN[shown]
    reports = dr.run([SCENARIOS / file for file in files], world="kernel")
    observed = {
        file: sum(step.observed is not None for step in report.steps) / len(report.steps)
        for file, report in zip(files, reports, strict=True)
    }
    assert [file for file, report in zip(files, reports, strict=True) if observed[file] and not report] == []
    if shown == "seen":
        # More than half of it, or the row may be in the part that is not.
        assert [file for file in files if observed[file] <= 1 / 2] == []
        return
    rows = [FILE.findall(scenario) for _, _, scenario, kernel in ROWS if kernel == "partly"]
    assert [row for row in rows if not any(observed[file] for file in row)] == []
