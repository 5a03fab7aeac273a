"""Every bug of the museum is found, closed by its fix, and reproduced by its scenario."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pytest
from findings import FINDINGS, Finding, found
from museum import ENTRIES, NOT_HERE, Entry, both
from pages import DOCS, PAGES

import debugreg as dr

if TYPE_CHECKING:
    import pathlib


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry.id for entry in ENTRIES])
def test_a_bug_is_found_and_gone_with_its_fix(entry: Entry, tmp_path: pathlib.Path) -> None:
    bug, fixed = both(entry)
    assert bug.ok is False
    assert bug.violation is not None
    assert bug.law == entry.law
    assert fixed.ok is True, fixed.never
    # The scenario shows it, and is about that bug: without it every line keeps the laws, or makes no sense.
    file = tmp_path / "found.scn"
    file.write_text(bug.violation.scenario, encoding="utf-8")
    (report,) = dr.run(file)
    assert [step.ok for step in report.steps][-1] is False
    assert f"breaks {entry.law}" in report.steps[-1].observed
    assert all(step.ok for step in report.steps[:-1])
    try:
        (report,) = dr.run(file, policies=[entry.fixed])
    except dr.ScenarioError:
        return
    assert not any("breaks" in step.observed for step in report.steps)


def test_there_are_forty_at_least_and_each_delta_is_here_or_has_a_reason() -> None:
    assert len(ENTRIES) >= 40
    here = {entry.id for entry in ENTRIES} | set(NOT_HERE)
    deltas = {delta.id for row in dr.policies() for delta in row.deltas}
    assert deltas - here == {"announce", "histogram", "late-permission", "leader-gone"}, "what is no bug"


@pytest.mark.parametrize("finding", FINDINGS, ids=[finding.title for finding in FINDINGS])
def test_a_finding_is_found(finding: Finding) -> None:
    assert found(finding).law == finding.law


BESIDES = {"kgdb", "wide-local", "nmi", "pinned", "inherit"}


KINDS = [kind for kind, usual, _ in dr.event_kinds() if not usual and kind not in BESIDES]
# On AMD a debugger's GD is a finding.
PLACES = [(kind, vendor) for kind in KINDS for vendor in ("amd", "intel") if (kind, vendor) != ("debug-gd", "amd")]


@pytest.mark.parametrize(("kind", "vendor"), PLACES)
def test_nothing_is_found_elsewhere(kind: str, vendor: Literal["amd", "intel"]) -> None:
    cpus = 2 if kind in {"migrate", "hotplug"} else 1
    verdict = dr.check("linux-fixed", vendor=vendor, events=f"+{kind}", cpus=cpus, nmi=cpus == 1)
    assert verdict, verdict.violation or verdict.never


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_are_what_is_found(name: str) -> None:
    page = (DOCS / name).read_text(encoding="utf-8")
    assert page == PAGES[name](), "python tests/pages.py writes it"
