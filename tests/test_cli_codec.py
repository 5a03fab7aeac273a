"""`debugreg encode` and `debugreg decode`, and what holds for every command."""

import json
import os
import subprocess
import sys

import pytest

from debugreg._cli import COMMANDS


def debugreg(*arguments, **environment):
    command = [sys.executable, "-m", "debugreg", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


def as_json(*arguments):
    done = debugreg(*arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def refusal(*arguments):
    """Return the one line that a mistake gets."""
    done = debugreg(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("debugreg: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_decode_as_json():
    assert as_json("decode", "0xd0402") == {
        "value": 0xD0402,
        "slots": [{"enable": "global", "type": "w", "len": 4}, None, None, None],
        "flags": {"le": False, "ge": False, "rtm": False, "gd": False},
        "reserved": [],
    }
    assert as_json("decode", "0x1000")["reserved"] == [10, 12]


def test_decode_dr6_as_json():
    assert as_json("decode", "--dr6", "0xffff4ff1") == {
        "value": 0xFFFF4FF1,
        "slots": [True, False, False, False],
        "flags": {"bus_lock": False, "bd": False, "bs": True, "bt": False, "rtm": False},
        "reserved": [],
    }


def test_encode_and_decode_say_the_same():
    encoded = as_json("encode", "--slot", "2", "--type", "rw", "--len", "8", "--enable", "both")
    assert encoded["slots"][2] == {"enable": "both", "type": "rw", "len": 8}
    assert encoded == as_json("decode", str(encoded["value"]))


def test_decode_draws_the_bits():
    drawn = debugreg("decode", "0xd0402").stdout
    assert drawn.startswith("DR7 0x000d0402\n")
    assert "│ 0   0 │ 0   0 │ 0   0 │ 0   0 │ 0   0 │ 0   0 │ 1   1 │ 0   1 │" in drawn
    assert "│ LEN3  │ R/W3  │ LEN2  │ R/W2  │ LEN1  │ R/W1  │ LEN0  │ R/W0  │" in drawn
    assert "slot 0  global     w  4 bytes  data writes" in drawn
    assert max(map(len, drawn.splitlines())) <= 100


@pytest.mark.parametrize("arguments", [("0xffffffffffffffff",), ("--dr6", "0xffffffffffffffff")], ids=["dr7", "dr6"])
def test_the_widest_value_fits_a_mail_and_marks_what_is_not_as_fixed(arguments):
    drawn = debugreg("decode", *arguments).stdout
    assert max(map(len, drawn.splitlines())) <= 100
    assert "! not as the hardware fixes them: bits 12" in drawn


def test_the_drawing_needs_no_unicode():
    assert debugreg("decode", "5", PYTHONIOENCODING="ascii").stdout.isascii()


def test_encode_tells_the_kernels_number_too():
    drawn = debugreg("encode", "--slot", "0", "--type", "w", "--len", "8").stdout
    assert drawn.startswith("DR7 0x00090402\n")
    assert "encode_dr7 gives 0x00090202" in drawn


@pytest.mark.parametrize("value", ["garbage", "0x1ffffffffffffffff", "-5", "0x", "1.5", ""], ids=repr)
def test_decode_names_a_wrong_value_and_what_is_allowed(value):
    line = refusal("decode", value)
    assert repr(value) in line
    assert "from 0 to 0xffffffffffffffff" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--slot 4 --type w", "slot must be 0, 1, 2 or 3 (got 4)"),
        ("--slot 0 --type x --len 4", "len must be 1 with type 'x' (got 4)"),
        ("--slot 0 --type q", "'q' is not one of 'x', 'w', 'rw', 'io'"),
        ("--slot 0 --type w --len 3", "'3' is not one of '1', '2', '4', '8'"),
        ("--type w", "Missing option '--slot'"),
        ("--slot zero --type w", "'zero' is not a valid integer"),
    ],
    ids=lambda value: value,
)
def test_encode_names_a_wrong_option_and_what_is_allowed(options, message):
    assert message in refusal("encode", *options.split())


def test_an_unknown_command_is_one_line_too():
    assert "No such command 'decod'. (Did you mean" in refusal("decod", "5")
    assert "No such option '--frob'" in refusal("--frob")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json_and_an_example(name):
    help_ = debugreg(name, "--help").stdout
    assert "--json" in help_
    assert f"Example:\n    debugreg {name}" in help_


def test_help_lists_every_command_with_its_short_help():
    help_ = debugreg("--help").stdout
    assert debugreg().stdout == help_
    for name, (_, short_help) in COMMANDS.items():
        assert f"  {name}" in help_
        assert short_help in " ".join(help_.split())
