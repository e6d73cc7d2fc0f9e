"""What scores and accuracies come to, on made-up accuracies whose answer is known."""

import json
import random

import imagenet_ranking as ranking
import numpy as np
import pytest
import truth
from test_imagenet import line_of, write

from dasvit.training_free.space import PUBLISHED, SPACES

SPACE = SPACES["autoformer-b"]
COUNT = 120


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Networks whose accuracy is size, something that DSS alone knows, and little noise; TF-TAS's own is the best."""
    rng, draw = np.random.default_rng(0), random.Random(0)
    numbers = [SPACE.number(PUBLISHED["autoformer-b"]), *(SPACE.sample(draw) for _ in range(COUNT - 1))]
    lines = [line_of("base", number) for number in numbers]
    size = np.array([line["params_millions"] for line in lines])
    known, other = rng.normal(size=(2, COUNT))
    top1 = 80 + (size - size.mean()) / size.std() + known + 0.1 * rng.normal(size=COUNT)
    top1[0] = 99
    known[0] = 9
    for line, value in zip(lines, top1, strict=True):
        line["top1"] = round(float(value), 3)
    path = tmp_path_factory.mktemp("truth")
    write(path / "file", lines)
    order = truth.stratified(truth.read(path / "file"))
    at = [n.line for n in order]
    dss = {"total": known[at], "msa": known[at], "projection": other[at], "mlp": 0 * known}
    released = {k: other[at] for k in dss}
    scores = {
        "dss": {seed: {"autoformer-b": {k: list(v) for k, v in dss.items()}} for seed in "01"},
        "dss-released": {"0": {"autoformer-b": {k: list(v) for k, v in released.items()}}},
        "meco": {seed: {"autoformer-b": {"total": list(rng.normal(size=n))}} for seed, n in (("0", 60), ("1", 2))},
        "zico": {"0": {"autoformer-b": {"total": [1.0, 2.0]}}},
        "az-nas": {
            seed: {"autoformer-b": {k: list(rng.normal(size=n)) for k in ("total", *ranking.AZ)}}
            for seed, n in (("0", 50), ("1", 35))
        },
    }
    scores["dss"]["2"] = {"autoformer-b": {k: list(other[at][:60]) for k in dss}}
    networks = {"autoformer-b": {"number": [n.number for n in order], "line": at}}
    (path / "scores.json").write_text(json.dumps({"networks": networks, "scores": scores}))
    ranking.main(ranking.Rank(path / "file", path / "scores.json", 100, path / "out.json"))
    return json.loads((path / "out.json").read_text())["spaces"]["autoformer-b"], top1, path


def test_what_is_known_beyond_size_is_found(made):  # ledger A48
    told, _, _ = made
    dss, released = told["scores"]["dss"], told["scores"]["dss-released"]
    assert dss["networks"] == COUNT
    assert dss["given_params"]["low"] > 0.8
    assert dss["adds_to_size"]["low"] > 0.1
    assert dss["adds_to_size"]["p_holm"] < 1e-6
    assert dss["within_cells"]["value"] > dss["kendall"]["value"] - 0.1
    first, second, third = dss["kendall_by_seed"]
    assert first == second > 0.3 > abs(third)  # a seed with few networks moves nothing but its own τ
    assert dss["networks_by_seed"] == 60
    assert told["scores"]["meco"]["kendall_by_seed"] == pytest.approx([told["scores"]["meco"]["kendall"]["value"]])
    assert told["scores"]["az-nas"]["networks"] == 50
    assert (told["scores"]["az-nas"]["networks_by_seed"], len(told["scores"]["az-nas"]["kendall_by_seed"])) == (35, 2)
    assert released["given_params"]["low"] < 0 < released["given_params"]["high"]
    assert released["adds_to_size"]["value"] < 0.02 < dss["adds_to_size"]["value"]
    assert released["adds_to_size"]["p_holm"] > 0.05


def test_sizes_are_rows_and_add_nothing_to_themselves(made):
    told, _, _ = made
    params = told["scores"]["params"]
    assert np.isnan(params["given_params"]["value"])
    assert params["with_params"] == 1
    assert params["kendall"]["low"] > 0
    assert set(ranking.SIZES) | {"linear fit of the four"} <= set(told["scores"])
    assert told["scores"]["linear fit of the four"]["kendall"]["value"] > 0.2


def test_a_part_is_judged_as_a_part_and_few_are_not(made):
    told, _, _ = made
    assert told["scores"]["meco"]["networks"] == 60
    assert told["scores"]["az-nas, no progressivity"]["networks"] == 50
    assert "zico" not in told["scores"]


def test_a_search_returns_what_its_score_knows(made):
    told, top1, _ = made
    search = told["search"]
    assert search["random"] == pytest.approx(top1.round(3).mean())
    assert search["top1"]["perfect"][-1] == search["top1"]["dss"][-1] == 99
    for name, curve in search["top1"].items():
        assert curve[0] == pytest.approx(search["random"]) or "half" in name
    assert search["top1"]["dss"][3] > search["top1"]["dss-released, with repeats"][3]


def test_readings_and_the_published_network(made):
    told, _, _ = made
    assert told["readings"]["networks"] == COUNT
    tau, rho = told["readings"]["kendall_spearman"]["dss, no gradient of QKV | dss-released"]
    assert (tau, rho) == pytest.approx((1, 1))
    assert abs(told["readings"]["kendall_spearman"]["dss | dss-released"][0]) < 0.2
    assert told["published"]["ranks"]["top-1"] == [1, COUNT]
    assert told["published"]["ranks"]["dss"] == [1, COUNT]


def test_the_ceiling_is_what_a_model_of_the_layers_knows():
    """Accuracies that are sums over the layers are explained; those that are noise are not."""
    draw, rng = random.Random(1), np.random.default_rng(1)
    numbers = [SPACE.sample(draw) for _ in range(300)]
    wide = np.array([sum(SPACE[number].num_heads) for number in numbers], dtype=float)
    y = 80 + 0.01 * wide
    networks = [truth.Trained("autoformer-b", n, i, SPACE[n].dim, len(SPACE[n].num_heads), v, 0, 0.0)
                for i, (n, v) in enumerate(zip(numbers, y, strict=True))]  # fmt: skip
    told = ranking.noise(networks, y)
    assert told["explained"] > 0.99
    assert told["tau"] > 0.9
    assert told["binomial"] == pytest.approx(100 * np.sqrt(y.mean() / 100 * (1 - y.mean() / 100) / 50_000))
    assert told["disagreement"] == pytest.approx(2 * 50_000 * y.var() / 1e4)
    assert ranking.noise(networks, 80 + 0.01 * rng.normal(size=300))["explained"] < 0.05


def numbers_in(told):
    if isinstance(told, dict):
        told = list(told.values())
    return {n for inner in told for n in numbers_in(inner)} if isinstance(told, list) else {told}


def test_no_accuracy_is_recorded_but_the_extremes_and_what_a_search_returns(made):
    told, top1, _ = made
    returned = {curve[-1] for curve in told["search"]["top1"].values()} | {told["top1"]["low"], told["top1"]["high"]}
    assert returned & set(top1.round(3))  # they are found if they are there
    assert numbers_in(told) & set(top1.round(3)) <= returned


def test_bad_input_is_one_line(made, tmp_path, capsys):
    _, _, path = made
    for args, words in [
        ((path / "file", tmp_path / "none.json"), "none.json is not there: run benchmarks/imagenet_scores.py first"),
        ((write(tmp_path / "other", [line_of("base", 7)]), path / "scores.json"), "other lacks autoformer-b:"),
    ]:
        with pytest.raises(SystemExit) as ended:
            ranking.main(ranking.Rank(*args, out=tmp_path / "out.json"))
        assert ended.value.code == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
