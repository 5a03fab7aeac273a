"""The pages of docs/ that have commands: each is run, in the order of the page, and prints what the page says."""

import os
import re
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [page for page in sorted(DOCS.glob("*.md")) if "```console" in page.read_text()]


def agree(printed, expected):
    """Return whether lines are those that a page has; `...` stands for anything, and alone for any number of lines."""
    if not expected:
        return not printed
    if expected[0] == "...":
        return any(agree(printed[at:], expected[1:]) for at in range(len(printed) + 1))
    pattern = expected[0].replace("[", "[[]").replace("...", "*").replace("?", "[?]")
    return bool(printed) and fnmatchcase(printed[0], pattern) and agree(printed[1:], expected[1:])


def run(command, folder):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "200"}
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return [line.rstrip() for line in (done.stdout + done.stderr).rstrip().splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_prints_what_it_says(page, tmp_path):
    blocks = BLOCK.findall(page.read_text())
    assert blocks
    for kind, text in blocks:
        if kind == "python":
            name = re.match(r"# (\S+\.py)\n", text)
            assert name, text
            (tmp_path / name[1]).write_text(text)
            continue
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, _, expected = part.partition("\n")
            printed = run(command, tmp_path)
            assert agree(printed, expected.rstrip().splitlines()), (command, printed)


def test_there_is_a_page():
    assert "python-policies" in {page.stem for page in PAGES}


def test_dots_stand_for_anything():
    assert agree(["a 1 b"], ["a ... b"])
    assert agree(["a", "b", "c"], ["...", "c"])
    assert not agree(["a", "b"], ["a"])
    assert not agree(["a"], ["a", "b"])
    assert not agree(["a 1 c"], ["a ... b"])
