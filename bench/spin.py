"""The host's part of the model in Promela (host.pml), explored by SPIN: as many states must come out, and how fast."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

__all__ = ["EVENTS", "MISSING", "Found", "build", "explore"]

MODEL = Path(__file__).with_name("host.pml")

EVENTS = "open,close,switch,access,toggle"
"""What `debugreg check` calls them."""

MISSING = [tool for tool in ("spin", "cc") if not shutil.which(tool)]
"""What this needs and is not here."""


class Found(NamedTuple):
    """What SPIN says."""

    states: int
    transitions: int
    """One more than events: SPIN counts its way into the first state."""
    errors: int


def build(folder: Path, slots: int, counters: int, addresses: int) -> Path:
    """Return the explorer that SPIN makes of the model, compiled with optimisation."""
    options = []
    for task in (1, 2):
        for address in range(1, addresses + 1):
            options += [
                f":: d_step {{ LIVE < C -> open_event({task}, {address}) }}",
                f":: d_step {{ running == {task} -> store({task}, {address}) }}",
            ]
        for event in range(counters):
            exists = f"ctx[{task}].n > {event}"
            options += [
                f":: d_step {{ {exists} -> close_event({task}, {event}) }}",
                f":: d_step {{ {exists} -> toggle({task}, {event}) }}",
            ]
    text = MODEL.read_text(encoding="utf-8").replace("/* EVENTS */", "\n\t".join(options))
    (folder / "model.pml").write_text(text, encoding="utf-8")
    sizes = [f"-DS={slots}", f"-DC={counters}", f"-DA={addresses}"]
    subprocess.run(["spin", "-a", *sizes, "model.pml"], cwd=folder, check=True, capture_output=True)
    # Safety only, every state stored in full; there is one process, so that there is nothing to reduce.
    flags = ["-O3", "-march=native", "-DSAFETY", "-DNOREDUCE", "-w"]
    subprocess.run(["cc", *flags, "-o", "pan", "pan.c"], cwd=folder, check=True, capture_output=True)
    return folder / "pan"


def explore(pan: Path) -> Found:
    """Run it to the end."""
    said = subprocess.run([pan, "-m1000000"], cwd=pan.parent, check=True, capture_output=True, text=True).stdout
    states, transitions, errors = (
        re.search(pattern, said) for pattern in (r"(\d+) states, stored", r"(\d+) transitions", r"errors: (\d+)")
    )
    if not (states and transitions and errors):
        raise ValueError(said)
    return Found(int(states[1]), int(transitions[1]), int(errors[1]))
