"""Published networks: read, put in order, scored in any number of processes, after any kill."""

import json
import random
import shutil
from collections import Counter
from dataclasses import replace

import distributed
import imagenet_scores
import joblib
import measure
import pytest
import torch
import truth
from torch.utils.flop_counter import FlopCounterMode

from dasvit.counting import complexity
from dasvit.engine.runs import Run
from dasvit.training_free import SPACES, Shape
from dasvit.training_free.roles import linear_call, record_linear


def line_of(name, number, top1=75.0):
    space = SPACES[truth.NAMES[name]]
    told = space.describe(number)
    millions = space.parameters(number, Shape()) / 1e6
    return {"space": name, "depth": len(told["num_heads"]), **told, "top1": top1, "params_millions": millions} | {
        "flops_millions": 1000.0
    }


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def lines():
    rng = random.Random(0)
    return [line_of(name, SPACES[truth.NAMES[name]].sample(rng)) for name in truth.NAMES for _ in range(90)]


def test_every_line_is_a_network_of_our_spaces(tmp_path, lines):
    found = truth.read(write(tmp_path / "file", lines))
    assert [network.line for network in found] == list(range(270))
    assert Counter(network.space for network in found) == dict.fromkeys(truth.NAMES.values(), 90)
    for network, line in zip(found, lines, strict=True):
        told = SPACES[network.space].describe(network.number)
        assert told == {name: line[name] for name in told}
        assert (network.dim, network.depth) == (line["dim"], line["depth"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": 193}, "line 2: ValueError: Candidate.* is not in the space"),
        ({"params_millions": 5.5}, r"line 2: 5,500,000 parameters, we count "),
        ({"space": "huge"}, "line 2: KeyError: 'huge'"),
    ],
)
def test_a_line_that_is_none_is_refused(tmp_path, lines, change, words):
    with pytest.raises(ValueError, match=words):
        truth.read(write(tmp_path / "file", [lines[0], lines[1] | change]))


def test_a_network_that_stands_there_twice_is_refused(tmp_path, lines):
    with pytest.raises(ValueError, match="line 3: the network of line 1 again"):
        truth.read(write(tmp_path / "file", [lines[0], lines[1], lines[0]]))
    with pytest.raises(ValueError, match="has no network"):
        truth.read(write(tmp_path / "file", []))


def test_every_beginning_of_the_order_is_a_fair_sample(tmp_path, lines):
    networks = [n for n in truth.read(write(tmp_path / "file", lines)) if n.space == "autoformer-s"]
    order = truth.stratified(networks)
    assert sorted(order, key=lambda n: n.line) == networks
    assert order == truth.stratified(networks) != truth.stratified(networks, seed=1)
    whole = Counter((n.dim, n.depth) for n in networks)
    for count in range(1, 91):
        part = Counter((n.dim, n.depth) for n in order[:count])
        for stratum, size in whole.items():
            assert abs(part[stratum] - count * size / 90) < 2, (count, stratum)


@pytest.mark.parametrize("name", truth.NAMES.values())
def test_products_are_those_of_the_parts(name):
    number = SPACES[name].sample(random.Random(3))
    with torch.device("meta"):
        assert truth.macs(name, number) == complexity(SPACES[name].fresh(number, Shape()), 224).macs


def test_products_of_te_are_those_that_are_computed():
    """Three passes for each gradient, a thousand points up to the first units; the classifier is a thousandth more."""
    number = SPACES["autoformer-t"].sample(random.Random(3))
    with torch.device("meta"):
        network = SPACES["autoformer-t"].fresh(number, Shape())
        calls = record_linear(network, torch.empty(1, 3, 224, 224))[1]
        first = next(i for i, call in enumerate(calls) if call.role == "mlp")
        with FlopCounterMode(display=False) as counter:
            linear_call(network, torch.empty(1, 3, 224, 224), first)
    begun = counter.get_total_flops() / 2
    expected = 3 * imagenet_scores.BATCH * truth.macs("autoformer-t", number) + imagenet_scores.POINTS * begun
    assert imagenet_scores.products("te", "autoformer-t", number) == pytest.approx(expected, rel=2e-3)
    assert imagenet_scores.products("meco", "autoformer-t", number) == truth.macs("autoformer-t", number)


@pytest.fixture
def args(tmp_path, lines, monkeypatch):
    monkeypatch.setattr(imagenet_scores, "COSTED", ("meco",))
    path = write(tmp_path / "file", lines[:6])
    return lambda name, **more: imagenet_scores.Score(
        path, ("meco",), runs=tmp_path / name, out=tmp_path / f"{name}.json", **more
    )


def rows_of(args):
    return (args.runs / "imagenet_meco_0" / "metrics.jsonl").read_bytes()


def scores_of(args):
    told = json.loads(args.out.read_text())
    return {name: told[name] for name in ("networks", "scores")}


def test_one_and_two_processes_write_the_same_bytes(args, capsys):
    one, two = args("one"), args("two", jobs=2)
    imagenet_scores.main(one)
    imagenet_scores.main(two)
    assert rows_of(one) == rows_of(two)
    assert scores_of(one) == scores_of(two)
    told = json.loads(one.out.read_text())
    assert len(told["scores"]["meco"]["0"]["autoformer-t"]["total"]) == 6
    assert sorted(told["networks"]["autoformer-t"]["line"]) == list(range(6))
    assert told["cost"]["meco"]["autoformer-t"]["floor"] > 0
    assert "75.0" not in one.out.read_text()  # no accuracy


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_cluster_of_dask_writes_the_same_bytes(args, capsys):
    one, cluster = args("one"), args("cluster", jobs=-1)
    imagenet_scores.main(one)
    how = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.Client(**how), joblib.parallel_config(backend="dask"):
        imagenet_scores.main(cluster)
    assert rows_of(cluster) == rows_of(one)


def test_it_goes_on_after_a_kill_and_with_more_networks(args, capsys):
    whole, part = args("whole"), args("part", networks=3)
    imagenet_scores.main(whole)
    imagenet_scores.main(part)
    assert len(scores_of(part)["scores"]["meco"]["0"]["autoformer-t"]["total"]) == 3
    log = part.runs / "imagenet_meco_0" / "metrics.jsonl"
    assert rows_of(whole).startswith(log.read_bytes())
    log.write_bytes(log.read_bytes()[:-20])  # as a kill leaves it
    imagenet_scores.main(args("part"))
    assert rows_of(part) == rows_of(whole)
    assert scores_of(part) == scores_of(whole)
    imagenet_scores.main(args("part", networks=2))  # what is there stays
    assert scores_of(part) == scores_of(whole)


def test_it_goes_on_from_the_recorded_file(args, capsys, monkeypatch):
    whole, part = args("whole"), args("part", networks=3)
    imagenet_scores.main(whole)
    imagenet_scores.main(part)
    shutil.rmtree(part.runs)
    scored = []
    plain = imagenet_scores.score_number
    monkeypatch.setattr(imagenet_scores, "score_number", lambda *a: scored.append(a) or plain(*a))
    monkeypatch.setattr(imagenet_scores, "costs", lambda *a: {})
    imagenet_scores.main(args("part"))
    assert len(scored) == 3
    assert rows_of(part) == rows_of(whole)
    assert scores_of(part) == scores_of(whole)
    told = json.loads(part.out.read_text())
    assert told["commits"]["meco"]["0"] == [[told["provenance"]["commit"], 6]]


def test_it_adopts_what_other_code_has_recorded_if_it_makes_the_same(args, capsys, monkeypatch):
    part = args("part", networks=3)
    imagenet_scores.main(part)
    expected = scores_of(part)
    scored, plain = [], imagenet_scores.score_number
    monkeypatch.setattr(imagenet_scores, "score_number", lambda *a: scored.append(a) or plain(*a))
    monkeypatch.setattr(imagenet_scores, "costs", lambda *a: {})
    monkeypatch.setattr(imagenet_scores, "changed", lambda modules: ["dasvit/vit.py"])
    part.out.write_text(
        part.out.read_text().replace(json.loads(part.out.read_text())["provenance"]["commit"], "before")
    )
    shutil.rmtree(part.runs)
    imagenet_scores.main(replace(part, indicators=("autoprox",), networks=1))  # keeps what it is not asked for
    assert [settings.indicators for settings, _ in scored] == [("meco",), ("autoprox",)]
    told = json.loads(part.out.read_text())
    assert told["scores"]["meco"] == expected["scores"]["meco"]
    assert told["commits"]["meco"]["0"] == [["before", 3]]
    shutil.rmtree(part.runs)
    monkeypatch.setattr(imagenet_scores, "score_number", lambda *a: {"scores": {a[0].indicators[0]: {"total": 1.5}}})
    imagenet_scores.main(args("part", networks=2))
    assert json.loads(part.out.read_text())["scores"]["meco"]["0"]["autoformer-t"]["total"] == [1.5, 1.5]
    assert "meco, seed 0: this code scores autoformer-t:" in capsys.readouterr().out


def test_time_that_is_over_ends_it_with_what_is_there(args, capsys, monkeypatch):
    class Timer:
        def __init__(self, seconds, act):
            assert seconds == 60
            Timer.act = act

        def start(self):
            pass

        cancel = start

    def log(run, row):
        plain(run, row)
        if len(run.history()) == 2:
            Timer.act()

    plain = Run.log
    monkeypatch.setattr(measure.threading, "Timer", Timer)
    monkeypatch.setattr(Run, "log", log)
    imagenet_scores.main(args("short", minutes=1))
    assert len(scores_of(args("short"))["scores"]["meco"]["0"]["autoformer-t"]["total"]) == 2


def test_bad_input_is_one_line(args, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        imagenet_scores.main(replace(args("none"), indicators=("params",)))
    assert ended.value.code == 2
    assert "cannot score by 'params'; known: dss" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        imagenet_scores.main(replace(args("none"), networks_file=tmp_path / "missing"))
    assert ended.value.code == 2
    assert "missing: No such file or directory: it is not part of this repository, benchmarks/truth.py says where" in (
        capsys.readouterr().err
    )
