"""What is not loaded before it is needed. (Times are measured, not asserted.)"""

import subprocess
import sys

import pytest

HEAVY = ("click", "rich", "numpy", "typing", "debugreg._core")


def loaded(code):
    """Return which of the heavy modules a fresh interpreter has loaded after `code`."""
    report = f"{code}\nimport sys\nprint('loaded', *[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


def test_importing_the_package_loads_nothing_heavy():
    assert loaded("import debugreg") == []


def test_using_the_codec_loads_neither_click_nor_rich_nor_numpy():
    assert loaded("import debugreg as dr; dr.DR7().arm(0, 'w')") == ["typing", "debugreg._core"]


@pytest.mark.parametrize("arguments", [["--help"], []], ids=["help", "bare"])
def test_help_loads_no_command_and_no_rich(arguments):
    code = f"import sys; sys.argv = ['debugreg', *{arguments}]\nfrom debugreg.__main__ import main\nmain()"
    assert loaded(code) == ["click", "typing"]


def test_json_loads_no_rich():
    code = "import sys; sys.argv = ['debugreg', 'decode', '5', '--json']\nfrom debugreg.__main__ import main\nmain()"
    assert loaded(code) == ["click", "typing", "debugreg._core"]
