"""How long does it take until something happens?

Beside a bare interpreter: what `import debugreg` adds, and the first use, which loads the compiled module. Beside an
interpreter that imports click, as every command line on click does: `debugreg --help`. And the main job, to its page.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

DEBUGREG = str(Path(sysconfig.get_path("scripts"), "debugreg"))

# What is run, and what its output has in it.
COMMANDS = {
    "python -c pass": ([sys.executable, "-c", "pass"], ""),
    "python -c 'import debugreg'": ([sys.executable, "-c", "import debugreg"], ""),
    "python -c 'import debugreg; debugreg.DR7()'": ([sys.executable, "-c", "import debugreg; debugreg.DR7()"], ""),
    "python -c 'import click'": ([sys.executable, "-c", "import click"], ""),
    "debugreg --help": ([DEBUGREG, "--help"], "Usage: debugreg"),
    "debugreg compare": ([DEBUGREG, "compare"], "against the cheapest"),
}


def start(name):
    """Run a command to its end."""
    command, says = COMMANDS[name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert says in done.stdout


@pytest.mark.benchmark(group="start-up")
@pytest.mark.parametrize("name", COMMANDS)
def test_start_up(benchmark, name):
    """A whole process each."""
    benchmark(start, name)
