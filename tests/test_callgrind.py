"""The plain form costs what one would write by hand: counted in instructions, by callgrind.

Run as a program (`python tests/test_callgrind.py`) it prints the figures.
"""

import functools
import json
import platform
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parents[1]
CALLS = 1000
ALLOWED = 2

# The last column is the argument N of rust/debugreg/examples/callgrind.rs.
CASES = {
    "the skip test, inactive": ("is_active", 0),
    "the skip test, active": ("is_active", 1),
    "registers": ("registers", 4),
    "refresh": ("refresh", 4),
    "install into DR0": ("install", 0),
    "install into DR1": ("install", 1),
    "install into DR2": ("install", 2),
    "install into DR3": ("install", 3),
    "install, refused": ("install", 4),
    "uninstall from DR0": ("uninstall", 0),
    "uninstall from DR1": ("uninstall", 1),
    "uninstall from DR2": ("uninstall", 2),
    "uninstall from DR3": ("uninstall", 3),
    "uninstall, refused": ("uninstall", 4),
}


def missing():
    """Return what keeps the count from being taken here, or an empty string."""
    if platform.machine() not in {"x86_64", "AMD64"}:
        return f"counts instructions of x86-64, and this is {platform.machine()}"
    absent = [tool for tool in ("cargo", "valgrind") if shutil.which(tool) is None]
    return f"needs {' and '.join(absent)}: not installed" if absent else ""


def run(*command):
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stderr}"
    return done.stdout


@functools.cache
def driver():
    """Build the driver, and return where cargo has put it."""
    build = ["cargo", "build", "--release", "--package=debugreg", "--example=callgrind", "--message-format=json"]
    messages = [json.loads(line) for line in run(*build, f"--target-dir={ROOT / 'target'}").splitlines()]
    (program,) = [message["executable"] for message in messages if message.get("target", {}).get("name") == "callgrind"]
    return program


def count(form, transition, n):
    """Return instructions per call, and the driver's digest of results and banks."""
    with TemporaryDirectory() as folder:
        out = Path(folder, "callgrind.out")
        options = ["--tool=callgrind", "--dump-instr=no", "--compress-strings=no", f"--callgrind-out-file={out}"]
        digest = run("valgrind", *options, driver(), form, transition, n, CALLS)
        lines = iter(out.read_text().splitlines())
    calls = instructions = 0
    callee = ""
    # A call is three lines: "cfn=" who, "calls=" how often (and where), "POSITION COST" with the inclusive cost.
    for line in lines:
        if line.startswith("cfn="):
            callee = line
        elif line.startswith("calls=") and f"{form}_{transition}" in callee:
            calls += int(line.removeprefix("calls=").split()[0])
            instructions += int(next(lines).split()[1])
    assert calls == CALLS, "each call is seen: nothing was inlined away"
    return instructions / calls, digest


@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.parametrize("case", CASES)
def test_a_transition_takes_at_most_two_instructions_more_than_one_written_by_hand(case):
    ours, digest = count("ours", *CASES[case])
    hand, expected = count("hand", *CASES[case])
    assert digest == expected, "the two do the same"
    assert ours <= hand + ALLOWED


if __name__ == "__main__":
    rows = [f"{'instructions per call':24}{'ours':>6}{'hand':>6}"]
    for case, arguments in CASES.items():
        (ours, _), (hand, _) = count("ours", *arguments), count("hand", *arguments)
        rows.append(f"{case:24}{ours:6g}{hand:6g}")
    print(*rows, sep="\n")  # noqa: T201 - a program, not a test
