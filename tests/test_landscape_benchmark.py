"""The table of the landscape: what is told of it, and that it goes on from the table alone."""

import json
from dataclasses import replace

import landscape as benchmark
import measure
import numpy as np
import pytest
from test_landscape import RECIPE as SMALL

from dasvit.landscape import load, trainings

RECIPE = replace(SMALL, epochs=1, warmup_epochs=0)


@pytest.fixture
def args(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "RECIPE", RECIPE)
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    folders = {"runs": tmp_path / "runs", "out": tmp_path / "out", "table": tmp_path / "table.safetensors"}
    return benchmark.Grow("digits", networks=24, jobs=1, **folders)


class Timer:
    """Goes off when seven rows are there, whatever the time."""

    def __init__(self, seconds, act):
        assert seconds == 120
        Timer.act, self.daemon = act, False

    def start(self):
        pass

    cancel = start


def test_a_table_is_written_goes_on_and_is_checked(args, capsys, monkeypatch):
    def log(run, row):
        plain(run, row)
        if len(run.history()) == 7:
            Timer.act()

    plain = benchmark.Run.log
    with monkeypatch.context() as patched:
        patched.setattr(measure.threading, "Timer", Timer)
        patched.setattr(benchmark.Run, "log", log)
        benchmark.main(replace(args, minutes=2))
    part = load(args.table)
    assert len(part) == 7
    moved = replace(args, runs=args.runs.with_name("other"))  # only the table is left
    benchmark.main(moved)
    whole = load(args.table)
    assert [(row["number"], row["seed"]) for row in whole.rows] == trainings(benchmark.settings_of(args))
    for before, after in zip(part.rows, whole.rows, strict=False):
        assert before == after
    told = json.loads((args.out / "landscape_cifar10.json").read_text())
    assert (told["encoders"], told["trainings"], told["planned"]) == (24, 30, 30)
    assert told["noise"]["test"]["encoders"] == 3
    assert set(whole.costs) == {"parameters", "macs", "latency"}
    assert "provenance" in whole.about
    with pytest.raises(SystemExit) as stop:
        benchmark.main(replace(args, check=3))
    assert stop.value.code == 0
    assert capsys.readouterr().out.count("the same") == 3


def test_a_table_that_is_not_what_is_trained_is_found_out(args, capsys):
    benchmark.main(replace(args, networks=8))
    table = load(args.table)
    rows = [{**row, "test_correct": [row["test_correct"][0] + 1]} for row in table.rows]
    replace(table, rows=rows).save(args.table)
    with pytest.raises(SystemExit) as stop:
        benchmark.main(replace(args, networks=8, check=2))
    assert stop.value.code == 1
    assert capsys.readouterr().out.count("other counts") == 2


def test_costs_are_those_of_the_networks(args):
    benchmark.main(replace(args, networks=6))
    table = load(args.table)
    for place, number in enumerate(table.numbers):
        network = benchmark.make_network(
            replace(RECIPE, genotype=table.settings.space[number].to_json()), benchmark.images_of(RECIPE).train
        )
        assert table.costs["parameters"][place] == sum(p.numel() for p in network.parameters())
    assert min(table.costs["latency"]) > 0


def test_noise_is_that_of_encoders_trained_equally_often():
    rng = np.random.default_rng(0)
    values = [(0.1 * rng.normal() + 0.01 * rng.normal(size=3 if i % 10 == 0 else 1)).tolist() for i in range(400)]
    found = benchmark.noise(values)
    assert found["encoders"] == 40
    assert found["icc"] > 0.95
    assert found["tau_between_seeds"] > 0.8
    assert benchmark.noise([[1.0], [2.0]]) == {"encoders": 0}
