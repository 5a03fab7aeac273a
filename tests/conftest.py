"""What several test modules need: the command line as a user runs it, the repository, the shipped trace, a machine."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import debugreg as dr
from debugreg._compare import shipped_trace

# With debugreg installed pytest collects scenarios; those that lie here are wrong on purpose.
collect_ignore_glob = ["malformed/*"]


@pytest.fixture(scope="session")
def repository():
    """Return the folder that this file's folder lies in: a clone, or an unpacked source distribution."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def cli():
    """Return a function that runs `debugreg` in a process of its own and gives what became of it."""

    def run(*arguments, cwd=None, text=True, **environment):
        command = [sys.executable, "-m", "debugreg", *map(str, arguments)]
        environment = os.environ | environment
        return subprocess.run(command, capture_output=True, text=text, check=False, cwd=cwd, env=environment)

    return run


@pytest.fixture(scope="session")
def cli_json(cli):
    """Return a function that runs a command with --json and gives its document."""

    def run(*arguments, code=0):
        done = cli(*arguments, "--json")
        assert (done.returncode, done.stderr) == (code, "")
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def mistake(cli):
    """Return a function that runs a command and gives the one line that a user's mistake gets."""

    def run(*arguments, cwd=None):
        done = cli(*arguments, cwd=cwd)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("debugreg: ")
        assert done.stderr.count("\n") == 1
        return done.stderr

    return run


@pytest.fixture(scope="session")
def trace_lines():
    """Return the lines of the shipped trace, with their ends; the first is at index 0, and is line 1."""
    return gzip.decompress(shipped_trace().read_bytes()).decode().splitlines(keepends=True)


@pytest.fixture
def write_trace(tmp_path):
    """Return a function that writes a trace without a steps file and gives its path."""

    def write(text, name="trace.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else "".join(text).encode())
        return path

    return write


@pytest.fixture
def write_scenario(tmp_path):
    """Return a function that writes a scenario and gives its path."""

    def write(text, name="x.scn"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


@pytest.fixture
def m():
    """Return a machine of two CPUs; qemu runs on cpu0, sh waits there, make runs on cpu1."""
    machine = dr.Machine(cpus=2)
    machine.qemu, machine.sh, machine.make = machine.task("qemu"), machine.task("sh"), machine.task("make", cpu=1)
    return machine
