"""Scenarios as pytest's tests, in a pytest of their own."""

import subprocess
import sys

import pytest

GOOD = """\
task a
a perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 => E1
a store 0x1000 8 => hit E1
"""
BAD = GOOD + "\n# Nobody watches that.\na store 0x2000 8 => hit E1\na store 0x1000 8 => hit E1\n"


@pytest.fixture
def collected(tmp_path):
    """Return a function that runs pytest on files, and gives its exit code and what it says."""

    def run(*options, **files):
        for name, text in files.items():
            (tmp_path / f"{name}.scn").write_text(text)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-rs",
            "--rootdir",
            str(tmp_path),
            str(tmp_path),
        ]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, cwd=tmp_path)
        return done.returncode, done.stdout + done.stderr

    return run


def test_a_file_is_a_test_for_each_policy(collected):
    code, said = collected("-v", "--debugreg-policy", "linux", "--debugreg-policy", "lean", good=GOOD)
    assert code == 0, said
    assert "good.scn::linux PASSED" in said
    assert "good.scn::lean PASSED" in said


def test_a_failure_is_shown_as_the_scenarios_own_lines(collected):
    code, said = collected(bad=BAD, good=GOOD)
    assert code == 1, said
    assert "1 failed, 1 passed" in said
    shown = said.splitlines()
    at = shown.index(">    6 a store 0x2000 8 => hit E1")
    assert shown[at - 6] == "under linux on amd:"
    assert shown[at - 5] == "     1 task a"
    assert shown[at - 1] == "     5 # Nobody watches that."
    assert shown[at + 1].startswith("E      expected hit E1, and it came to ")
    assert "Traceback" not in said
    assert "a store 0x1000 8 => hit E1\n     7" not in said


def test_a_mistake_is_one_line_that_names_its_place(collected):
    code, said = collected(wrong="task a\na jump 0x1000\n")
    assert code == 1, said
    assert "wrong.scn:2:3: " in said
    assert "Traceback" not in said


def test_what_expects_nothing_is_skipped_and_says_so(collected):
    code, said = collected(silent="task a\ncpu0 slots\n")
    assert code == 0, said
    assert "no line expects anything that can be observed here" in said


def test_a_kernel_has_no_choice_of_policies(collected):
    code, said = collected("--debugreg-world", "kernel", "--debugreg-policy", "lean", good=GOOD)
    assert code == 4
    assert "--debugreg-policy: a kernel is what it is (--debugreg-world kernel)" in said


def test_the_scenarios_of_the_repository(repository):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(repository / "scenarios" / "host")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=repository)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
