import json
import math
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from dasvit.engine.hardware import Hardware, make_fabric
from dasvit.engine.loop import Interrupted, TrainingDivergedError, cosine_schedule, run_epochs
from dasvit.engine.runs import Run


class Walk:
    """A job whose state is a random walk: any step lost or done twice shows."""

    title, epochs, steps = "walk", 3, 4

    def __init__(self, action=None):
        self.x, self.seen, self.action = torch.zeros(()), [], action

    def train(self, epoch, start):
        for step in range(start, self.steps):
            self.x = self.x + torch.randn(())
            self.seen.append((epoch, step))
            if self.action:
                self.action(epoch, step)
            yield {"x": self.x, "step": torch.tensor(float(step))}

    def end_epoch(self, epoch, means):
        return {"epoch": epoch, **means}

    def state_dict(self):
        return {"x": self.x}

    def load_state_dict(self, state):
        self.x = state["x"]


def started(folder):
    return Run.open(folder / "run", "walk", Hardware())


def untimed(rows):
    return [{k: v for k, v in row.items() if k not in ("seconds", "bytes")} for row in rows]


def test_every_step_once_and_a_row_each_epoch():
    job = Walk()
    rows = run_epochs(job)
    assert job.seen == [(e, s) for e in range(3) for s in range(4)]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert all(row["step"] == 1.5 for row in rows)
    assert all("seconds" in row and row["bytes"] > 1e6 for row in rows)


def test_large_checkpoints_are_not_saved_after_every_short_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr("dasvit.engine.loop.LARGE", 0)
    monkeypatch.setattr("dasvit.engine.loop.REST", 1e6)
    torch.manual_seed(7)
    expected = untimed(run_epochs(Walk()))
    torch.manual_seed(7)
    with started(tmp_path) as run, pytest.raises(ZeroDivisionError):
        run_epochs(Walk(lambda epoch, step: (epoch, step) == (2, 1) and 1 / 0), run)
    with Run.open(tmp_path / "run", "walk", Hardware(), resume=True) as run:
        assert run.peek()["epoch"] == 1
        state, last = run.load(), Walk()
        assert untimed(run.history() + run_epochs(last, run, state)) == expected
        assert run.peek()["epoch"] == 3


class Clock:
    """Time that goes on where the test says so."""

    def __init__(self):
        self.now, self.saving = 0.0, 0.0

    def perf_counter(self):
        return self.now

    def epoch(self, epoch, step):
        self.now += 10.0


@pytest.mark.parametrize(("size", "share"), [(101e6, 0.02), (99e6, 0.25)])
def test_large_checkpoints_take_two_percent_of_the_time(tmp_path, monkeypatch, size, share):
    """A save takes as long as a step: a small state is saved after every epoch, a large one now and then."""
    clock, job = Clock(), Walk()
    job.action, job.epochs = clock.epoch, 300
    monkeypatch.setattr("dasvit.engine.loop.time", clock)
    run = started(tmp_path)

    def save(state):
        clock.now += 10.0
        clock.saving += 10.0
        return SimpleNamespace(stat=lambda: SimpleNamespace(st_size=size))

    monkeypatch.setattr(run, "save", save)
    run_epochs(job, run)
    assert clock.saving >= 3 * 10.0
    at_end = 10.0
    assert (clock.saving - at_end) / clock.now <= share
    assert (clock.saving - at_end) / clock.now >= share / 4  # and it is saved as often as that allows, or nearly


@pytest.mark.parametrize("at", [(0, 0), (0, 3), (1, 1), (2, 3)])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_resume_goes_on_exactly(tmp_path, at, signum):
    torch.manual_seed(7)
    expected = untimed(run_epochs(Walk()))
    torch.manual_seed(7)
    run = started(tmp_path)
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as caught:
        run_epochs(Walk(lambda *here: os.kill(os.getpid(), signum) if here == at else None), run)
    assert caught.value.signum == signum
    assert signal.getsignal(signum) is before
    torch.manual_seed(1234)
    run_epochs(Walk(), run, run.load())
    assert untimed(run.history()) == expected


def test_resume_of_a_finished_run_does_nothing(tmp_path):
    run = started(tmp_path)
    run_epochs(Walk(), run)
    job = Walk()
    assert run_epochs(job, run, run.load()) == []
    assert job.seen == []
    assert len(run.history()) == 3


def test_a_loss_that_diverges_stops_and_keeps_the_last_good_state(tmp_path):
    run, job = started(tmp_path), Walk()
    job.action = lambda epoch, step: setattr(job, "x", job.x * math.nan) if epoch == 1 else None
    words = "walk: x is nan at step 1 of epoch 2: start again with a lower lr .*; the last checkpoint, 000000, is from"
    with pytest.raises(TrainingDivergedError, match=words):
        run_epochs(job, run)
    assert len(run.history()) == 1
    assert run.peek()["epoch"] == 1
    assert run.peek()["job"]["x"].isfinite()


def test_without_progress_it_is_silent_and_with_it_a_line_an_epoch(capfd):
    run_epochs(Walk())
    assert capfd.readouterr() == ("", "")
    run_epochs(Walk(), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert [line.split(":")[0] for line in err.splitlines()] == [f"walk epoch {i}/3" for i in (1, 2, 3)]


def test_a_second_signal_acts_as_usual():
    usual, seen = [], []
    before = signal.signal(signal.SIGTERM, lambda *_: usual.append("usual"))

    def twice(epoch, step):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            seen.append(list(usual))

    try:
        with pytest.raises(Interrupted):
            run_epochs(Walk(twice))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [[], ["usual"]]


def test_cosine_schedule_by_hand():  # ledger A33
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = cosine_schedule(optimizer, 13, warmup=3)
    rates = []
    for _ in range(13):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert rates[3:] == pytest.approx([1 + math.cos(math.pi * i / 10) for i in range(10)])
    assert rates == sorted(rates[:4]) + sorted(rates[4:], reverse=True)
    assert json.dumps(schedule.state_dict())


def test_hardware():  # ledger A39
    assert make_fabric(Hardware("cpu")).device.type == "cpu"
    assert make_fabric(Hardware("cpu", "64-true"))._precision.precision == "64-true"
    if not torch.cuda.is_available():
        assert make_fabric(Hardware())._precision.precision == "32-true"
        with pytest.raises(ValueError, match="device cuda is not available here: use --device auto or cpu"):
            make_fabric(Hardware("cuda"))
