"""Progress and time left where standard error is no terminal, on a clock of our own."""

from __future__ import annotations

import pytest

import theriac as th
from theriac.core import progress as module
from theriac.core.run import Run


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "_now", made)
    monkeypatch.setattr(module, "_lines", module._Lines())
    return made


def work(run: Run, clock: Clock, steps: int, seconds: float, label: str = "train", done: int = 0) -> None:
    with run.progress(label, steps, done=done) as tick:
        for _ in range(steps - done):
            clock.now += seconds
            tick(1, "loss 0.5")


def test_work_that_ends_within_ten_seconds_says_nothing(clock, capsys):
    work(Run(device="cpu"), clock, 9, 1.0)
    assert capsys.readouterr().err == ""


def test_piped_work_tells_share_and_time_left(clock, capsys):
    work(Run(device="cpu"), clock, 100, 1.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train  10 % (10 of 100)  loss 0.5  10.0 s so far  about 1 min 30 s left"
    assert [line.split(" (")[1].split(" of")[0] for line in lines] == ["10", "40", "70", "100"]  # the first, then every 30 s


def test_a_single_step_that_has_not_been_done_says_nothing(clock, capsys):
    with Run(device="cpu").progress("Auto"):
        clock.now += 60
        for _ in Run(device="cpu").each("outputs", [0], 1):
            assert capsys.readouterr().err == ""


def test_long_steps_that_are_alike_are_foretold_after_the_first(clock, capsys):
    for seconds in (0.1, 1.0):
        with Run(device="cpu").progress("search", 60, early=True) as tick:
            for _ in range(60):
                clock.now += seconds
                tick()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "search  2 % (1 of 60)  1.0 s so far  about 59.0 s left"  # of the short one nothing
    assert [line.split(" (")[1].split(" of")[0] for line in lines] == ["1", "31"]


def test_steps_done_before_an_interruption_do_not_count_as_fast(clock, capsys):
    work(Run(device="cpu"), clock, 100, 5.0, done=90)
    assert "about 40.0 s left" in capsys.readouterr().err.splitlines()[0]  # 8 steps at 5 s each


def test_many_short_pieces_of_one_work_are_told_about(clock, capsys):
    run = Run(device="cpu")
    with run.progress("AGE"):
        for _ in run.each("strengths", range(20)):
            work(run, clock, 4, 1.0, "age")
    told = capsys.readouterr().err.splitlines()
    assert 2 <= len(told) <= 4
    assert all(line.startswith("AGE") for line in told)


def test_a_loop_that_an_error_leaves_closes_nothing_behind(clock, capsys):
    run = Run(device="cpu")

    def broken() -> None:
        for _ in run.each("broken", range(3)):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    clock.now += 3600
    work(run, clock, 5, 1.0)
    assert capsys.readouterr().err == ""


def test_quiet_is_quiet(clock, capsys):
    work(Run(device="cpu", quiet=True), clock, 100, 10.0)
    assert list(Run(device="cpu", quiet=True).each("rows", [1, 2])) == [1, 2]
    module.silence(True)
    work(Run(device="cpu"), clock, 100, 10.0)
    assert capsys.readouterr().err == ""


def test_nobody_listens_any_more(clock, monkeypatch):
    class Closed:
        def isatty(self) -> bool:
            return False

        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Closed())
    began = clock.now
    work(Run(device="cpu"), clock, 100, 1.0)  # goes on
    assert clock.now - began == 100


@pytest.mark.filterwarnings("ignore::UserWarning")  # nothing is learnt in so few steps
@pytest.mark.parametrize("what", ["evaluation", "age", "cbd", "poison", "neural cleanse"])
def test_long_work_of_every_kind_lies_in_a_scope(what, clock, capsys, images, monkeypatch):
    monkeypatch.setattr(module, "FIRST_S", -1.0)  # every step is late
    monkeypatch.setattr(module, "EVERY_S", -1.0)
    rows, run = images(rows=24, classes=3), Run(device="cpu", precision="fp32")
    attack = th.attacks.BadNets(poison_rate=0.2)
    model = th.build("wrn_16_1", rows, run)
    capsys.readouterr()
    if what == "evaluation":
        th.evaluate(model, rows, run=run)
        expected = {"evaluation"}
    elif what == "poison":
        attack.poison(rows, run)
        expected = {"badnets stamps"}
    elif what == "neural cleanse":
        th.detectors.neural_cleanse.invert(model, rows, run, th.detectors.neural_cleanse.Schedule(rounds=2))
        expected = {"patches for 3 classes"}
    elif what == "age":
        th.repairs.AGE(rule="project", epochs=1, per_class=2, knowledge="target", target=0, retrain="head").repair(
            model, rows, run
        )
        expected = {"AGE (reconstruction): strengths"}
    else:
        th.training_defenses.CBD(stage1_steps=2, epochs=1, batch_size=8, mi=0.01, alternate="epoch").fit("wrn_16_1", rows, run)
        expected = {"CBD: outputs", "CBD: cbd_stage1", "CBD: critic pass"}
    told = {line.split("  ")[0] for line in capsys.readouterr().err.splitlines()}
    assert expected <= told, told
