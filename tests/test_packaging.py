"""What a package owes its users beside its functions."""

import doctest
import importlib
import importlib.metadata
import pkgutil
from pathlib import Path

import pytest

import debugreg as dr

MODULES = ["debugreg", *(found.name for found in pkgutil.walk_packages(dr.__path__, "debugreg."))]


def test_every_public_name_resolves_and_is_listed():
    assert [name for name in dr.__all__ if getattr(dr, name, None) is None] == []
    assert dir(dr) == sorted(dr.__all__)
    assert set(dr._HOMES) <= set(dr.__all__)


def test_star_import_gives_the_public_names():
    names = {}
    exec("from debugreg import *", names)  # noqa: S102 - what is tested
    assert set(dr.__all__) <= set(names)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'debugreg' has no attribute 'dr8'"):
        dr.dr8  # noqa: B018 - what is tested


def test_the_version_is_the_one_that_is_installed():
    assert dr.__version__ == importlib.metadata.version("debugreg")


def test_it_is_typed():
    assert Path(dr.__file__).with_name("py.typed").exists()


def test_it_carries_its_licence():
    metadata = importlib.metadata.metadata("debugreg")
    assert metadata["License-Expression"] == "MIT OR Apache-2.0"
    assert sorted(metadata.get_all("License-File")) == ["LICENSE-APACHE", "LICENSE-MIT"]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0
