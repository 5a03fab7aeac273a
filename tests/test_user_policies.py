"""Policies written in Python: accepted wherever a name is, explored like the others, and held to what they may do."""

import math
from contextlib import suppress
from pathlib import Path

import pytest

import debugreg as dr

ROOT = Path(__file__).parents[1]
SCENARIOS = ROOT / "scenarios"


class Skip(dr.Policy):
    """As the policy `skip`."""

    words = {"vcpu": {"loaded": 0}}

    def vm_entry(self, cpu, vcpu):
        vcpu.loaded = vcpu.effective_dr7 & 0xFF != 0
        if vcpu.loaded:
            cpu.write_dr(7, 0x400)
            for number in range(4):
                cpu.write_dr(number, vcpu.effective_db[number])

    def vm_exit(self, cpu, vcpu, reason):
        if cpu.breakpoints_active or vcpu.loaded:
            cpu.refresh()


class Lazy(dr.Policy):
    """As `linux`, without its DR6."""

    opens_windows = True

    def vm_entry(self, cpu, vcpu):
        if vcpu.effective_dr7 & 0xFF or vcpu.wont_exit:
            cpu.write_dr(7, 0x400)
            for number in range(4):
                cpu.write_dr(number, vcpu.effective_db[number])
        elif cpu.breakpoints_active:
            cpu.write_dr(7, 0x400)

    def vm_exit(self, cpu, vcpu, reason):
        vcpu.close_window()
        if cpu.breakpoints_active:
            cpu.refresh()


class Scheduling(dr.Policy):
    """As `perf-sched`."""

    def vm_entry(self, cpu, vcpu):
        cpu.schedule_out()
        if vcpu.effective_dr7 & 0xFF:
            for number in range(4):
                cpu.write_dr(number, vcpu.effective_db[number])

    def vm_exit(self, cpu, vcpu, reason):
        cpu.schedule_in()


class Nothing(dr.Policy):
    """Nobody switches anything."""


PAIRS = [(Skip, "skip"), (Scheduling, "perf-sched")]


@pytest.mark.parametrize("vendor", ["intel", "amd"])
@pytest.mark.parametrize(("mine", "named"), PAIRS, ids=lambda one: getattr(one, "__name__", one))
def test_the_same_policy_keeps_the_same_laws(mine, named, vendor):
    scope = dr.Scope(nmi=True)
    ours, theirs = (dr.laws_kept(policy, scope, vendor=vendor) for policy in (mine, named))
    assert ours.broken.keys() == theirs.broken.keys()
    for law, violation in ours.broken.items():
        theirs_is = theirs.broken[law].scenario.replace(f"policy={named}", f"policy={mine.__name__}")
        assert violation.scenario == theirs_is


@pytest.mark.parametrize(("mine", "named"), PAIRS, ids=lambda one: getattr(one, "__name__", one))
def test_the_same_policy_costs_the_same_on_a_trace(mine, named):
    trace = ROOT / "python" / "debugreg" / "data" / "kvm-amd-6.12-phases.txt.gz"
    ours, theirs = dr.replay(trace, policies=[mine, named])
    assert ours.policy == mine.__name__
    assert ours.cost == theirs.cost
    assert ours.events == theirs.events


@pytest.mark.parametrize(("mine", "named"), PAIRS, ids=lambda one: getattr(one, "__name__", one))
def test_the_same_policy_runs_the_same_steps(mine, named):
    compared = 0
    for file in sorted((SCENARIOS / "kvm").glob("*.scn")):
        if "policy=" in (text := file.read_text()) and f"{named}," not in text:
            continue
        ours, theirs = dr.run(file, policies=[mine, named], steps=True)
        assert [step.observed for step in ours.steps] == [step.observed for step in theirs.steps], file
        # A policy of Python's has no window of its own between two reads of one word.
        assert [step.trace for step in ours.steps] == [step.trace for step in theirs.steps], file
        compared += len(ours.steps)
    assert compared > 400


def test_a_lazy_one_reads_back_what_the_guest_has_changed():
    machine = dr.Machine(policy=Lazy)
    vcpu = machine.vcpu("v0", task=machine.task("qemu"))
    with vcpu.run():
        for line in ("v0 mov_to_dr 0 0x5000", "v0 mov_to_dr 7 0x90401"):
            assert machine.do(line).exception is None
    with vcpu.run():
        assert machine.do("v0 store 0x5000 8").exception == "#DB"
    assert dr.check(Lazy, nmi=True, laws=["host-armed", "guest-armed", "entry-quiet"])


def test_nothing_is_not_safe_and_the_same_as_none():
    assert not dr.check(Nothing)
    assert dr.check(Nothing).law == dr.check("none").law


def test_a_machine_of_a_class_names_it():
    machine = dr.Machine(policy=Skip)
    assert machine.policy == "Skip"
    assert dr.Machine(policy="Skip+announce=on").policy == "Skip+announce=on"


def test_it_may_compare():
    comparison = dr.compare(policies=[Skip, "lean"], laws=False)
    assert [replay.policy for replay in comparison.replays] == ["Skip", "lean"]


def test_words_begin_with_their_initial_values_and_are_each_cpus_and_each_vcpus():
    class Counting(dr.Policy):
        words = {"cpu": {"entries": 5}, "vcpu": {"exits": (1 << 64) - 1}}

        def vm_entry(self, cpu, vcpu):
            cpu.write_dr(0, cpu.entries)
            cpu.entries += 1

        def vm_exit(self, cpu, vcpu, reason):
            cpu.write_dr(1, vcpu.exits)
            vcpu.exits = 7

    machine = dr.Machine(cpus=2, policy=Counting)
    first = machine.vcpu("v0", task=machine.task("a", cpu=0))
    other = machine.vcpu("v1", task=machine.task("b", cpu=1))
    for vcpu, cpu, exits in ((first, 0, (1 << 64) - 1), (other, 1, (1 << 64) - 1), (first, 0, 7)):
        with vcpu.run():
            pass
        assert machine.cpus[cpu].hardware.dr1 == exits
    assert [cpu.hardware.dr0 for cpu in machine.cpus] == [6, 5]


def test_reasons_and_reads():
    seen = []

    class Reading(dr.Policy):
        def vm_exit(self, cpu, vcpu, reason):
            seen.append(reason)
            cpu.write_dr(0, {"db": 1, "dr": 2, "nmi": 3, "other": 4}[reason])
            cpu.write_dr(1, cpu.read_dr(0) + 0x10)
            cpu.write_dr(2, cpu.registers.dr0)
            cpu.write_dr(3, vcpu.read_field("guest_dr7"))

    machine = dr.Machine(policy=Reading, vendor="intel")
    qemu = machine.task("qemu")
    machine.vcpu("v0", task=qemu)
    machine.do("qemu perf_event_open bp_type=w bp_addr=0x7000 bp_len=8 => A")
    for line, reason in (("v0 vm_exit reason=hlt", 4), ("cpu0 nmi", 3), ("v0 mov_to_dr 7 0x400", 2)):
        machine.do("v0 vm_entry")
        machine.do(line)
        if reason in {2, 3}:
            machine.do("v0 vm_exit reason=hlt")
        assert machine.cpus[0].hardware.dr2 == 0x7000
        assert machine.cpus[0].hardware.dr3 == 0x400
        assert machine.cpus[0].hardware.dr1 == 0x14
    assert set(seen) == {"other", "nmi", "dr"}


def test_a_policy_that_knows_one_address_from_another_is_not_taken_for_one_that_does_not():
    class Picky(dr.Policy):
        def vm_entry(self, cpu, vcpu):
            cpu.write_dr(7, 0x400)
            for number in range(4):
                cpu.write_dr(number, vcpu.effective_db[number])

        def vm_exit(self, cpu, vcpu, reason):
            if cpu.registers.dr0 != 0x2000:
                cpu.refresh()

    laws = ["host-armed"]
    assert dr.check(Picky, addresses=1, laws=laws)
    verdict = dr.check(Picky, addresses=2, laws=laws)
    assert verdict.law == "host-armed"
    assert "bp_addr=0x2000" in verdict.scenario


# What may not be.


def failing(body, **attributes):
    return type("Failing", (dr.Policy,), {"vm_entry": body, **attributes})


MISTAKES = [
    (lambda self, cpu, vcpu: cpu.write_dr(8, 0), "a debug register is 0 to 3, 6 or 7 (got 8)"),
    (lambda self, cpu, vcpu: cpu.write_dr(4, 0), "a debug register is 0 to 3, 6 or 7 (got 4)"),
    (lambda self, cpu, vcpu: cpu.write_dr(0, 1 << 64), "OverflowError"),
    (lambda self, cpu, vcpu: cpu.write_dr(0, -1), "OverflowError"),
    (lambda self, cpu, vcpu: cpu.write_dr(0, "x"), "TypeError"),
    (lambda self, cpu, vcpu: setattr(vcpu, "nobody", 1), "a policy's vcpu has no 'nobody'"),
    (lambda self, cpu, vcpu: cpu.nobody, "a policy's cpu has no 'nobody'"),
    (lambda self, cpu, vcpu: setattr(self, "mine", 1), "declare 'mine' in `words` of Failing"),
    (lambda self, cpu, vcpu: vcpu.effective_db[4], "DR0 to DR3 are addresses (got 4)"),
    (lambda self, cpu, vcpu: vcpu.read_field("dr3"), 'a field is guest_dr6, guest_dr7 or dr_intercept (got "dr3")'),
    (lambda self, cpu, vcpu: 1 / 0, "ZeroDivisionError"),
    (lambda self, cpu: None, "TypeError"),
]


@pytest.mark.parametrize(("body", "said"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_said_with_its_line_wherever_it_happens(body, said, tmp_path):
    policy = failing(body)
    scenario = tmp_path / "x.scn"
    scenario.write_text("task a\nvcpu v0 task=a\nv0 vm_entry => ok\n")
    machine = dr.Machine(policy=policy)
    machine.vcpu("v0", task=machine.task("a"))
    for act in (
        lambda: dr.check(policy),
        lambda: dr.run(scenario, policies=[policy]),
        lambda: dr.replay(ROOT / "python/debugreg/data/kvm-amd-6.12-phases.txt.gz", policies=[policy]),
        lambda: machine.do("v0 vm_entry"),
    ):
        with pytest.raises(dr.PolicyError) as caught:
            act()
        assert said in str(caught.value)
        assert "Failing.vm_entry" in str(caught.value)
        assert caught.value.path == __file__ or "TypeError" in said
    # Nothing is left of it.
    assert dr.check("lean")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"cpu": dict.fromkeys("abcde", 0)}, "a cpu has 4 words (got 5: a, b, c, d, e)"),
        ({"vcpu": {"dr6": 0}}, "'dr6' is no name for a word of a vcpu"),
        ({"vcpu": {"_x": 0}}, "'_x' is no name for a word of a vcpu"),
        ({"host": {}}, "Failing.words has 'cpu' and 'vcpu' (got 'host')"),
    ],
)
def test_words_that_cannot_be(words, said):
    with pytest.raises(TypeError, match=said.replace("(", r"\(").replace(")", r"\)")):
        failing(lambda self, cpu, vcpu: None, words=words)


@pytest.mark.parametrize("policy", [3, None, int, math.inf])
def test_what_is_no_policy(policy):
    with pytest.raises(TypeError, match="a name or a subclass of debugreg"):
        dr.check(policy)


def test_a_file_that_cannot_be_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("import debugreg as dr\n\nclass X(dr.Policy)\n    pass\n")
    (tmp_path / "raises.py").write_text("import debugreg as dr\n\nraise RuntimeError('no')\n")
    (tmp_path / "other.py").write_text(
        "import debugreg as dr\n\nclass Mine(dr.Policy):\n    pass\n\nclass No:\n    pass\n"
    )
    for name, said in (
        ("nowhere.py:X", "nowhere.py: No such file or directory"),
        ("broken.py:X", "broken.py:3: SyntaxError"),
        ("raises.py:X", "raises.py:3: RuntimeError: no"),
        ("other.py:No", "other.py: there is no such policy: found 'No', allowed: Mine"),
    ):
        with pytest.raises(dr.PolicyError) as caught:
            dr.check(name)
        assert str(caught.value).startswith(said)


def test_a_file_that_has_changed_is_loaded_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "import debugreg as dr\n\nclass Mine(dr.Policy):\n    def vm_exit(self, cpu, vcpu, reason):\n        {}\n"
    (tmp_path / "mine.py").write_text(text.format("pass"))
    assert not dr.check("mine.py:Mine", laws=["host-armed"])
    (tmp_path / "mine.py").write_text(text.format("cpu.refresh()") + "\n")
    assert dr.check("mine.py:Mine", laws=["host-armed"])


def test_a_scenario_may_name_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("import debugreg as dr\n\nclass Mine(dr.Policy):\n    pass\n")
    (tmp_path / "x.scn").write_text("machine policy=mine.py:Mine,skip\ntask a\nvcpu v task=a\nv vm_entry => ok\n")
    assert [report.policy for report in dr.run("x.scn")] == ["mine.py:Mine", "skip"]
    # Which is no kernel's.
    with suppress(dr.WorldError):
        assert dr.conform("x.scn").scenarios == 0


def test_the_machine_that_it_runs_in_is_not_its_business():
    class Curious(dr.Policy):
        def vm_entry(self, cpu, vcpu):
            machine.cpus[0].hardware  # noqa: B018 - it must not even look

    machine = dr.Machine(policy=Curious)
    machine.vcpu("v0", task=machine.task("a"))
    with pytest.raises(dr.PolicyError, match="not the machine that it runs in"):
        machine.do("v0 vm_entry")
    assert machine.cpus[0].hardware.dr7 == 0x400


SECRETS = {
    "a global": (
        "SEEN = [0]",
        "        SEEN[0] += 1\n        if SEEN[0] % 3 == 0:\n            cpu.write_dr(6, 0xFFFF0FF0)\n",
    ),
    "the instance's dict": (
        "",
        "        self.__dict__['n'] = self.__dict__.get('n', 0) + 1\n        cpu.write_dr(3, self.__dict__['n'])\n",
    ),
    "the time": ("import time", "        cpu.write_dr(3, time.monotonic_ns())\n"),
    "an attribute of the class": (
        "",
        "        type(self).n = 1 - getattr(type(self), 'n', 0)\n        cpu.write_dr(3, self.n)\n",
    ),
}


@pytest.mark.parametrize("name", SECRETS)
def test_a_policy_that_remembers_something_else_is_found_out(name, tmp_path):
    before, body = SECRETS[name]
    file = tmp_path / "secret.py"
    file.write_text(
        f"import debugreg as dr\n{before}\n\nclass Secret(dr.Policy):\n    def vm_entry(self, cpu, vcpu):\n{body}"
        "    def vm_exit(self, cpu, vcpu, reason):\n        cpu.refresh()\n"
    )
    with pytest.raises(dr.PolicyError, match="what a policy remembers is in `words`"):
        dr.check(f"{file}:Secret", nmi=True, laws=["shadow-true"])
