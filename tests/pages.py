"""The pages of docs/ that are made from what the package says and finds: `python tests/pages.py` writes them."""

from __future__ import annotations

import pathlib
import textwrap

from findings import FINDINGS, found
from museum import ENTRIES, NOT_HERE, both

import debugreg as dr

DOCS = pathlib.Path(__file__).parent.parent / "docs"

__all__ = ["DOCS", "PAGES"]

WINDOWS = [
    (
        "host task, between events",
        "the CPU's enabled counters and the running task's, kgdb's",
        "none",
        "linux-host 3.1",
    ),
    (
        "inside install, uninstall, task switch, modify",
        "some of what was owed before or is owed after, nothing else",
        "none",
        "linux-host 7.2, 8: address before enable, enable cleared before the slot is given back",
    ),
    ("VM entry, up to the last step before the entry", "as host task, or none", "PVM: its filtered ones", "kvm 3.8"),
    (
        "the entry itself",
        "none",
        "none (PVM: its filtered ones): VMX and SVM load DR7 as part of the entry",
        "kvm 3.8, 3.10; H-05",
    ),
    ("guest instruction", "none", "the guest's own, or its debugger's under USE_HW_BP (PVM: filtered)", "kvm 5, 14"),
    (
        "VM exit, until the refresh is done",
        "none",
        "none (PVM: until its DR7 write)",
        "kvm 1.2, 1.3: the exit disarms DR7",
    ),
    (
        "NMI and #MC handler, kernel #DB handler",
        "none, if the shadow tells of what is armed (law shadow-true)",
        "none",
        "linux-host 8.6, 10: `local_db_save`; FRED leaves all as it was",
    ),
    ("kgdb has the machine", "none", "none", "linux-host 12: `kgdb_disable_hw_debug`"),
]


def laws_page() -> str:
    """Return docs/laws.md."""
    rows = "\n".join(f"| {window} | {host} | {guest} | {source} |" for window, host, guest, source in WINDOWS)
    laws = "\n\n".join(
        f"### `{law.name}`\n\n{textwrap.fill(law.sentence, 118)}\n\nSource: {law.source}." for law in dr.laws()
    )
    return f"""# The laws

What a policy is held to by `debugreg check`, by `debugreg compare`, and by a scenario with `laws=` on its machine
line. Each is a function of a state or of one transition, and compares what is there with what was asked for: counters,
tracers, kgdb, a guest's own writes, its debugger. None looks at what a policy has noted down.

## What is owed

What a CPU has *armed* (DR0-DR3 and DR7 alone) against what the context that it is in is *owed*; `Machine.owed` in
`rust/model/src/owed.rs`, judged in `rust/model/src/laws/`.

| window | host breakpoints | guest breakpoints | source |
|---|---|---|---|
{rows}

## The laws

{laws}

## With NMIs

All of this holds when one NMI strikes before any step (`--nmi`): the interrupted code goes on with what it has read.
Before the entry itself an NMI ends the guest's turn at once. An NMI is not interrupted by another.
"""


def options_of(scope: dict[str, object]) -> str:
    """Return how the command line says it."""
    names = ((f"--{name.replace('_', '-')}", on) for name, on in scope.items())
    return " ".join(name if on is True else f"{name} {on}" for name, on in names)


def museum_page() -> str:
    """Return docs/museum.md: performed, not written down."""
    parts = []
    for entry in ENTRIES:
        bug, fixed = both(entry)
        assert bug.violation, entry.id
        scope = options_of(entry.scope)
        events = f"--events {entry.events}" if entry.events else ""
        command = " ".join(
            word for word in ("debugreg check --policy", entry.bug, f"--vendor {entry.vendor}", events, scope) if word
        )
        parts.append(
            f"## {entry.id}\n\n{entry.line[0].upper()}{entry.line[1:]}.\n\n"
            f"Breaks `{bug.law}`: {bug.violation.why}. Found after {bug.states:,} states and {bug.transitions:,} "
            f"transitions; without it (`{entry.fixed}`) the same scope is safe: {fixed.states:,} states, "
            f"{fixed.transitions:,} transitions.\n\n"
            f"```\n{bug.violation.scenario.rstrip()}\n```\n\n`{command}`\n"
        )
    left = "\n".join(f"| {id_} | {why} |" for id_, why in NOT_HERE.items())
    return f"""# The museum

Bugs of Linux's breakpoints and of KVM that the reference knows, each as a delta of a policy. `debugreg check` finds
each by itself, with every law on, as the shortest scenario there is; and the same scope is safe without it.
`tests/test_museum.py` does it again. {len(ENTRIES)} bugs.

{"".join(f"{part}{chr(10)}" for part in parts)}
## Not here

| id | why |
|---|---|
{left}
"""


def findings_page() -> str:
    """Return docs/findings.md."""
    parts = []
    for finding in FINDINGS:
        verdict = found(finding)
        assert verdict.violation, finding.title
        options = options_of(finding.scope)
        parts.append(
            f"## {finding.title}\n\n{textwrap.fill(finding.effect, 118)}\n\nBreaks `{verdict.law}`: "
            f"{verdict.violation.why}.\n\n```\n{verdict.violation.scenario.rstrip()}\n```\n\n"
            f"`debugreg check --policy {finding.policy} {options}`\n\n{textwrap.fill(finding.asked, 118)}\n"
        )
    return f"""# Findings

What `debugreg check` found beyond [the museum](museum.md) in kernels as they are. Each is found again by the tests;
whether a kernel was asked, and what it said, stands at the end of each.

{chr(10).join(parts)}
## Nothing found

`linux-fixed` (the newest Linux with its open hazards closed) keeps every law in the scope of one CPU, two tasks, one
vCPU, one slot, one address, with an NMI before any step, on AMD and on Intel, for every kind of events on top of the
usual ones but `kgdb` and (on AMD) `debug-gd`, told above, and `wide-local` (wprobe as posted, in the museum).
"""


PAGES = {"laws.md": laws_page, "museum.md": museum_page, "findings.md": findings_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
