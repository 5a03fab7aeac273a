"""What holds for every command. Each has a module of its own besides, and the codec's commands test_cli_codec.py."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from debugreg._cli import COMMANDS
from debugreg._compare import shipped_trace


@pytest.fixture
def folder(tmp_path, repository):
    """Return a folder that has what the examples name: the scenarios, and a trace."""
    (tmp_path / "scenarios").symlink_to(repository / "scenarios")
    shutil.copy(shipped_trace(), tmp_path / "trace.txt.gz")
    return tmp_path


def shell(line, folder):
    """Run a line as someone types it who has installed the package."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["sh", "-c", line]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env=os.environ | {"PATH": path}
    )


def example(cli, *command):
    """Return the one example of a command's help."""
    (line,) = re.findall(r"^ +Example:\n +(debugreg .*)$", cli(*command, "--help").stdout, re.MULTILINE)
    return line


def missing(done):
    """Return whether a command said in one line that the world it was to run in is not there."""
    return done.returncode == 3 and done.stdout == "" and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "command", [(), *((name,) for name in COMMANDS)], ids=lambda words: " ".join(words) or "itself"
)
def test_the_example_of_a_help_works(cli, folder, command):
    line = example(cli, *command)
    done = shell(line, folder)
    assert missing(done) or (done.returncode, done.stderr) == (0, ""), line
    assert missing(done) or done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_with_json_a_command_prints_one_document_and_nothing_else(cli, folder, name):
    line = re.sub(r"--count \d+", "--count 2", example(cli, name))
    done = shell(f"{line} --json", folder)
    if not missing(done):
        assert done.stderr == ""
        assert done.stdout.count("\n") == 1
        json.loads(done.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_fits_a_terminal_and_says_what_each_option_does(cli, name):
    done = cli(name, "--help", COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stdout == cli(name, "-h", COLUMNS="80").stdout


def test_the_script_and_the_module_are_one(cli, tmp_path):
    for arguments in ("--version", "--help", "decode 0xd0402", "policies --json"):
        assert shell(f"debugreg {arguments}", tmp_path).stdout == cli(*arguments.split()).stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["decode", "garbage"], "'garbage' is not a number"),
        (["decode", "0x1ffffffffffffffff"], "'0x1ffffffffffffffff' is not a number"),
        (["run", "missing.scn"], "missing.scn: No such file or directory"),
        (["run", "."], "Is a directory"),
        (["replay", "missing.txt"], "missing.txt: cannot be read: No such file or directory"),
        (["replay", "."], "is a directory; name a trace file in it"),
        (["compare", "missing.txt"], "missing.txt: cannot be read: No such file or directory"),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["--frob"], "No such option '--frob'"),
        (["policies", "more"], "unexpected extra argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_writes_nothing(mistake, tmp_path, arguments, part):
    line = mistake(*arguments, cwd=tmp_path)
    assert part in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_misspelt_option_is_one_well_formed_sentence(mistake, name):
    line = mistake(name, "--jsn")
    assert "--jsn" in line
    assert "?." not in line
    assert line.endswith(f"Try 'debugreg {name} --help'.\n")


def test_a_closed_stdout_is_no_traceback():
    command = [sys.executable, "-m", "debugreg", "policies"]
    done = subprocess.run(
        command,
        stderr=subprocess.PIPE,
        check=False,
        text=True,
        preexec_fn=lambda: os.close(1),
    )
    assert "Traceback" not in done.stderr


def test_commands_do_not_need_a_home_or_a_terminal(cli, tmp_path):
    done = cli("compare", "--policy", "lean", cwd=tmp_path, HOME="/nonexistent", TERM="", LANG="C", LC_ALL="C")
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
