"""The committed stub is what the built module says. `python tests/test_stubs.py` writes it again."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from debugreg import _core

HEADER = "# Generated from the built module by pyo3-introspection: `python -m nox -s stubs`. Do not edit.\n"


def tool(name, *arguments, stdin=None):
    program = Path(sysconfig.get_path("scripts"), name)
    return subprocess.run([program, *arguments], input=stdin, capture_output=True, text=True, check=True).stdout


def generate(folder):
    """Return the stub of the module that is installed."""
    tool("pyo3-introspection", _core.__file__, "_core", folder)
    stub = HEADER + Path(folder, "__init__.pyi").read_text()
    if "-> Self" in stub or '-> "Self"' in stub:
        # A name that only an annotation in Rust has is not imported by itself.
        stub = stub.replace("from typing import ", "from typing import Self, ", 1)
    common = ["--isolated", "--quiet", "--line-length=120", "--target-version=py311", "--stdin-filename=_core.pyi", "-"]
    # UP037: what a signature annotates comes quoted.
    return tool(
        "ruff",
        "format",
        *common[:3],
        *common[4:],
        stdin=tool("ruff", "check", "--fix", "--select=UP037,I", *common, stdin=stub),
    )


@pytest.mark.skipif(sys.platform != "linux", reason="pyo3-introspection comes as a Linux wheel")
def test_the_stub_says_what_the_built_module_says(tmp_path):
    stub = Path(_core.__file__).with_name("_core.pyi").read_text()
    assert stub == generate(tmp_path), "run `python -m nox -s stubs` and commit python/debugreg/_core.pyi"


def test_the_stub_knows_every_type():
    assert "Incomplete" not in Path(_core.__file__).with_name("_core.pyi").read_text()


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        Path(__file__).parents[1].joinpath("python/debugreg/_core.pyi").write_text(generate(folder))
