"""Work that is shared out: the same results for any number and kind of workers."""

import concurrent.futures
import json
import multiprocessing
import os
import re
from dataclasses import replace

import pytest

import debugreg as dr
from debugreg._compare import shipped_trace

SCOPES = [dr.Scope(nmi=nmi, slots=slots, vcpus=vcpus) for nmi in (False, True) for slots in (1, 2) for vcpus in (0, 1)]


@pytest.fixture(scope="module")
def processes():
    """Two processes that know nothing of this one."""
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        yield executor


@pytest.fixture(scope="module", params=["threads", "processes"])
def executor(request):
    """Each kind of executor."""
    if request.param == "processes":
        yield request.getfixturevalue("processes")
    else:
        with concurrent.futures.ThreadPoolExecutor(3) as threads:
            yield threads


def timeless(verdicts):
    """Return verdicts without how long they took, as text: byte for byte."""
    return json.dumps([replace(verdict, seconds=0).to_dict() for verdict in verdicts])


def test_a_sweep(executor):
    policies = ["lean", "skip", "linux-5.14"]
    done = []
    found = dr.sweep(policies, SCOPES, executor=executor, progress=lambda *now: done.append(now))
    assert timeless(found) == timeless(dr.sweep(policies, SCOPES))
    assert [(one.policy, one.scope.slots) for one in found] == [(p, s.slots) for p in policies for s in SCOPES]
    assert done[-1] == (24, 24)
    assert {bool(one) for one in found} == {True, False}


def test_random_walks(executor):
    for policy in ("lean", "skip", "linux-2.6.33"):
        options = {"walks": 2500, "seed": 2**64 - 7, "nmi": True}
        alone, shared = dr.check(policy, **options), dr.check(policy, executor=executor, **options)
        assert timeless([shared]) == timeless([alone])
    assert not alone


def test_one_exploration(executor):
    assert timeless([dr.check("skip", executor=executor)]) == timeless([dr.check("skip")])


def test_replays(executor):
    traces, policies = [shipped_trace()] * 2, ["linux", "lean"]
    assert dr.replay(traces, policies=policies, executor=executor) == dr.replay(traces, policies=policies)


def test_comparisons(executor):
    policies = ["skip", "lean", "perf-sched"]
    shared = dr.compare(policies=policies, laws=False, executor=executor)
    assert shared == dr.compare(policies=policies, laws=False)
    judged = dr.compare(policies=policies[:2], executor=executor)
    assert [kept.keeps("entry-quiet") for kept in judged.kept] == [False, True]
    assert judged.cheapest.policy == "lean"


def test_a_policy_of_a_file_and_a_class_of_a_module(processes, tmp_path):
    file = tmp_path / "quiet.py"
    file.write_text("import debugreg as dr\n\nclass Quiet(dr.Policy):\n    pass\n")
    (found,) = dr.sweep([f"{file}:Quiet"], [dr.Scope(nmi=True)], executor=processes)
    assert found.law == dr.check(f"{file}:Quiet", nmi=True).law == "entry-quiet"


def test_a_mistake_comes_back_as_itself(executor):
    with pytest.raises(ValueError, match="unknown policy 'nobody'"):
        dr.sweep(["lean", "nobody"], SCOPES, executor=executor)
    with pytest.raises(dr.TraceError) as caught:
        dr.replay([os.devnull], executor=executor)
    assert str(caught.value).startswith(os.devnull)


def test_what_cannot_be_shared():
    class InterpreterPoolExecutor:
        """As Python 3.14 has it."""

    with pytest.raises(TypeError, match="cannot be loaded in a subinterpreter: use threads or processes"):
        dr.sweep(["lean"], SCOPES, executor=InterpreterPoolExecutor())
    with pytest.raises(ValueError, match="the kernel that is running has its registers once"):
        dr.conform(count=1, executor=concurrent.futures.ThreadPoolExecutor(1))


def test_the_command_line(cli_json, mistake):
    arguments = ("check", "--policy", "lean", "--policy", "skip", "--nmi")
    alone, shared = (cli_json(*arguments, *jobs, code=1) for jobs in ((), ("--jobs", "2")))
    assert [one | {"seconds": 0} for one in shared] == [one | {"seconds": 0} for one in alone]
    trace = shipped_trace()
    assert cli_json("replay", trace, trace, "--jobs", "2") == cli_json("replay", trace, trace)
    policies = ("compare", "--policy", "skip", "--policy", "lean", "--no-laws")
    assert cli_json(*policies, "--jobs", "2") == cli_json(*policies)
    assert "--jobs: the kernel that is running has its registers once" in mistake("conform", "--jobs", "2")


def test_the_sweep_of_the_documentation_on_dask(repository, capsys):
    """A real cluster of processes."""
    pytest.importorskip("distributed", reason="needs Dask: pip install distributed")
    (code,) = re.findall(r"```python\n(.*?)```", (repository / "docs/sharing.md").read_text("utf-8"), re.DOTALL)
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(code, "docs/sharing.md", "exec"), names)  # noqa: S102 - an example that runs
    assert len(names["verdicts"]) == 64
    assert timeless(names["verdicts"]) == timeless(dr.sweep(["lean", "skip"], names["scopes"]))
    assert capsys.readouterr().out.startswith("lean ")
