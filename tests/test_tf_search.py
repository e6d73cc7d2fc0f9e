import json
import multiprocessing
import os
import signal
from contextlib import nullcontext

import distributed
import joblib
import pytest
import torch

from dasvit import SearchSpace
from dasvit.engine import spread as spreading
from dasvit.engine.loop import Interrupted
from dasvit.engine.runs import RunFailedError
from dasvit.training_free import INDICATORS, SPACES, TFSearchSettings, indicators, tf_search
from dasvit.training_free import search as module
from dasvit.training_free.search import draw, score_number

QUICK = {"space": "autoformer-xs", "image_size": 8, "patch_size": 4, "in_channels": 1, "num_classes": 10}


def settings(samples=6, **more):
    return TFSearchSettings(**QUICK | {"samples": samples} | more)


def test_draws_are_distinct_and_within_the_window():  # ledger A29
    small = settings(200, min_params=0.05, max_params=0.1)
    numbers = draw(small)
    assert len(set(numbers)) == 200
    sizes = [SPACES["autoformer-xs"].parameters(n, small.shape) for n in numbers]
    assert all(50_000 <= size <= 100_000 for size in sizes)
    assert numbers == draw(small) != draw(settings(200, min_params=0.05, max_params=0.1, seed=1))


def test_the_whole_of_our_space_is_drawn_by_function():
    space = SearchSpace()
    every = draw(settings(5586, space="dasvit-xs"))
    assert sorted(every) == list(space.functions())
    with pytest.raises(ValueError, match=r"samples 5587 is outside 1 … 5,586, the different networks of the space"):
        settings(5587, space="dasvit-xs")


def test_a_window_without_networks():
    with pytest.raises(ValueError, match=r"only 0 of 6 networks found between min_params 90 and max_params None"):
        draw(settings(min_params=90))


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    path = tmp_path_factory.mktemp("tf") / "run"
    return tf_search(settings(indicators=("dss", "naswot")), path), path


def test_rows_and_best(searched):
    result, path = searched
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.rows
    assert [row["number"] for row in rows] == draw(settings())
    assert max(row["scores"]["dss"]["total"] for row in rows) == result.best["scores"]["dss"]["total"]
    best = json.loads((path / "best.json").read_text())
    assert best["network"] == f"autoformer-xs:{best['number']}"
    assert len(best["num_heads"]) == len(best["mlp_ratios"])


def test_the_number_of_processes_changes_nothing(searched, tmp_path):
    tf_search(settings(indicators=("dss", "naswot")), tmp_path / "run", jobs=2)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (searched[1] / "metrics.jsonl").read_bytes()


def test_a_process_that_dies_stops_the_search_not_the_run(searched, tmp_path, monkeypatch):
    many = settings(16, indicators=("dss", "naswot"))

    def killing(self, row):
        log(self, row)
        for process in multiprocessing.active_children():
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)

    log = module.Run.log
    with monkeypatch.context() as patched:
        patched.setattr(module.Run, "log", killing)
        with pytest.raises(RunFailedError, match=r"a process died while scoring, .* go on with --resume"):
            tf_search(many, tmp_path / "run", jobs=2)
    rows = tf_search(many, tmp_path / "run", resume=True).rows
    assert rows == tf_search(many).rows


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_cluster_of_dask_gives_the_same(searched, tmp_path):
    cluster = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.Client(**cluster), joblib.parallel_config(backend="dask"):
        tf_search(settings(indicators=("dss", "naswot")), tmp_path / "run", jobs=-1)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (searched[1] / "metrics.jsonl").read_bytes()


def test_resumes_after_a_kill_in_the_middle_of_a_line(searched, tmp_path):
    whole = (searched[1] / "metrics.jsonl").read_bytes()
    path = tmp_path / "run"
    tf_search(settings(indicators=("dss", "naswot")), path)
    (path / "best.json").unlink()
    for kept in (0, 10, len(whole) // 2, whole.index(b"\n") + 1, len(whole) - 1, len(whole)):
        (path / "metrics.jsonl").write_bytes(whole[:kept])
        tf_search(settings(indicators=("dss", "naswot")), path, resume=True)
        assert (path / "metrics.jsonl").read_bytes() == whole


def test_a_signal_keeps_what_is_there(tmp_path, monkeypatch):
    class Sent(spreading.Signals):
        def __enter__(self):
            self.received = 15
            return self

        def __exit__(self, *_):
            pass

    with monkeypatch.context() as patched:
        patched.setattr(spreading, "Signals", Sent)
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            tf_search(settings(), tmp_path / "run")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    assert len(tf_search(settings(), tmp_path / "run", resume=True).rows) == 6


def test_a_network_that_fails_is_told_not_dropped(tmp_path, monkeypatch):
    numbers = draw(settings())

    def failing(model, probe):
        if len(model.layers) == len(SPACES["autoformer-xs"][numbers[1]].num_heads):
            raise RuntimeError("out of luck")
        return {"total": 1.0}

    monkeypatch.setitem(INDICATORS, "dss", failing)
    result = tf_search(settings(), tmp_path / "run")
    assert [row["number"] for row in result.rows] == numbers
    assert result.rows[1]["errors"] == {"dss": "RuntimeError: out of luck"}
    assert result.rows[1]["scores"] == {}
    both = tf_search(settings(indicators=("params", "dss")))  # what can be scored is
    assert list(both.rows[1]["scores"]) == ["params"]
    monkeypatch.setitem(INDICATORS, "dss", lambda model, probe: {"total": float("inf")})
    with pytest.raises(ValueError, match=r"none of the 6 networks could be scored; the first: ValueError: dss of this"):
        tf_search(settings())
    assert indicators.INDICATORS is INDICATORS


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), MemoryError(), KeyError("a bug"), ValueError("none")])
def test_torch_has_its_threads_back_whatever_happens(error, monkeypatch):
    def failing(model, probe):
        assert torch.get_num_threads() == 1
        raise error

    monkeypatch.setitem(INDICATORS, "dss", failing)
    torch.set_num_threads(3)
    try:
        with nullcontext() if isinstance(error, ValueError) else pytest.raises(type(error)):
            score_number(settings(), 0)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"space": "resnets"}, "unknown space 'resnets'; known: autoformer-t"),
        ({"indicators": ("luck",)}, "unknown indicator 'luck'; known: dss"),
        ({"indicators": ()}, "no indicator to rank by"),
        ({"samples": 0}, "samples 0 is outside 1"),
        ({"max_params": 0.0}, "min_params 0 and max_params 0 leave no network"),
        ({"patch_size": 3}, "patch_size 3 does not divide image_size 8"),
        ({"num_classes": 0}, "num_classes 0 is below one"),
        ({"seed": -1}, "seed -1 is outside"),
    ],
)
def test_bad_settings(wrong, words):
    with pytest.raises(ValueError, match=words):
        settings(**wrong)
