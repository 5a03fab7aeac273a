"""The errors a user's input can cause."""

import pickle

import pytest

import debugreg as dr
from debugreg import _cli

FULL = {"path": "x.scn", "line": 3, "column": 7, "found": "wr", "allowed": ("w", "rw")}


@pytest.mark.parametrize(
    ("details", "text"),
    [
        ({}, "no such kind"),
        ({"path": "x.scn"}, "x.scn: no such kind"),
        ({"path": "x.scn", "line": 3}, "x.scn:3: no such kind"),
        ({"found": "wr"}, "no such kind: found 'wr'"),
        (FULL, "x.scn:3:7: no such kind: found 'wr', allowed: w, rw"),
    ],
    ids=["bare", "path", "line", "found", "full"],
)
def test_the_text_is_one_line_of_what_is_known(details, text):
    assert str(dr.DebugregError("no such kind", **details)) == text


@pytest.mark.parametrize("error", [dr.ScenarioError, dr.TraceError])
def test_each_is_also_the_builtin_that_fits(error):
    assert issubclass(error, dr.DebugregError)
    assert issubclass(error, ValueError)


def test_an_error_survives_pickling():
    error = pickle.loads(pickle.dumps(dr.ScenarioError("no such kind", **FULL)))
    assert type(error) is dr.ScenarioError
    assert {name: getattr(error, name) for name in FULL} == FULL


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            dr.ScenarioError("no such kind", **FULL),
            2,
            "debugreg: x.scn:3:7: no such kind: found 'wr', allowed: w, rw\n",
        ),
        (
            FileNotFoundError(2, "No such file or directory", "a\nb.scn"),
            2,
            "debugreg: a b.scn: No such file or directory\n",
        ),
        (KeyboardInterrupt(), 130, "\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_command_line_makes_one_line_of_it(monkeypatch, capsys, error, code, line):
    def fails(_ctx):
        raise error

    monkeypatch.setattr(_cli._cli, "invoke", fails)
    monkeypatch.setattr("sys.argv", ["debugreg"])
    assert _cli.run() == code
    assert capsys.readouterr() == ("", line)


def test_what_is_no_users_mistake_is_not_hidden(monkeypatch):
    def fails(_ctx):
        raise ZeroDivisionError

    monkeypatch.setattr(_cli._cli, "invoke", fails)
    monkeypatch.setattr("sys.argv", ["debugreg"])
    with pytest.raises(ZeroDivisionError):
        _cli.run()
