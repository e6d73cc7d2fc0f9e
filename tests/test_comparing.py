"""What searches are worth, on landscapes whose truth is known, and the benchmark that records it."""

import json
import math
from dataclasses import replace

import landscape as landscape_benchmark
import numpy as np
import pytest
import regret
from scipy import stats
from test_landscape import RECIPE as SMALL

from dasvit import SearchSpace
from dasvit.landscape import Answer, Landscape, LandscapeSettings, load, trainings
from dasvit.landscape.measuring import CURVES
from dasvit.methods.comparing import anytime, compare, evenness, interval, judge, needed, random_finds
from dasvit.methods.sampling import random_search
from dasvit.methods.simulated import from_table

RECIPE = replace(SMALL, epochs=3)
SETTINGS = LandscapeSettings(RECIPE, networks=60, trainings=3, curve_images=100)
SPACE = SETTINGS.space
IMAGES = {"val": [100, 100, 1000], "test": [100, 100, 1000]}


def truth(number):
    """Attention is good, and so is every edge of it alike."""
    return 0.3 + 0.1 * sum(op.kind == "msa" for _, op in SPACE[number].edges)


@pytest.fixture(scope="module")
def table():
    rng, rows = np.random.default_rng(0), []
    for number, seed in trainings(SETTINGS):
        curve = [truth(number) * share for share in (0.5, 0.8, 1.0)]
        row = {"number": number, "seed": seed, "correct": "00" * 125}
        for name in CURVES:
            if name.endswith("correct"):
                row[name] = [round(rng.normal(v, 0.01) * n) for v, n in zip(curve, (100, 100, 1000), strict=True)]
            else:
                row[name] = [2.0] * 3 if name == "seconds" else [1 - v for v in curve]
        rows.append(row)
    return Landscape(SETTINGS, rows, IMAGES, classes=10)


def test_the_table_tells_of_trained_encoders_as_they_went(table):
    evaluate = from_table(table)
    number = next(n for n, rows in table.trained.items() if len(rows) == 3)
    for seed in range(4):
        row = table.rows[table.trained[number][seed % 3]]
        assert evaluate(SPACE[number], 2, seed) == (row["val_correct"][1] / 100, 4.0)
        assert evaluate(SPACE[number], 3, seed) == (row["val_correct"][2] / 1000, 6.0)


def test_the_table_draws_for_others_from_its_model(table):
    evaluate, rng = from_table(table), np.random.default_rng(1)
    others = [n for n in table.functions if n not in table.trained]
    number = int(rng.choice(others))
    drawn = [evaluate(SPACE[number], 3, seed) for seed in range(300)]
    model = table.model("val")
    mean, deviation = model.posterior([number])
    scores = np.array([score for score, _ in drawn])
    assert scores.mean() == pytest.approx(float(mean[0]), abs=0.01)
    assert scores.std() == pytest.approx(math.hypot(float(deviation[0]), model.variances.seed**0.5), rel=0.2)
    assert evaluate(SPACE[number], 3, 0) == drawn[0]
    assert drawn[0][1] == pytest.approx(6.0, rel=0.01)
    blind = next(n for n in range(len(SPACE)) if not SPACE[n].has_attention)
    assert evaluate(SPACE[blind], 3, 0)[0] == 0.1


def test_random_finds_are_what_random_search_finds(table):
    """The same distribution, once from arrays and once by the search itself among the encoders of the table."""
    seconds = 25.0  # five trainings of six seconds
    values, _ = random_finds(table, seconds, draws=2000)
    estimate = dict(zip(table.functions, table.estimates("test")[0], strict=True))
    evaluate, known = from_table(table), set(table.trained)

    class Trained(SearchSpace):
        """The space, less what was not trained."""

        def shuffled(self, rng):
            numbers = sorted(known)
            return map(SPACE.__getitem__, rng.sample(numbers, len(numbers)))

    found = [random_search(Trained(), evaluate, seconds, epochs=3, seed=3 * seed) for seed in range(400)]
    assert {len(outcome.trials) for outcome in found} == {5}
    by_search = np.array([estimate[table.number(outcome.genotype)] for outcome in found])
    assert by_search.mean() == pytest.approx(values.mean(), abs=0.015)
    longer, _ = random_finds(table, 200.0)
    assert longer.mean() > values.mean()


def test_a_search_is_judged_by_what_it_found_and_what_it_cost(table):
    best = float(table.estimates("test")[0].max())
    good = judge(table, Answer(best + 0.05, 1e-3, 3, True), 6.0)
    bad = judge(table, Answer(0.1, 0.0, 0, True), 6.0)
    assert good.share > 0.99
    assert good.percentile > 99
    assert good.regret == pytest.approx(-0.05)
    assert bad.share == pytest.approx(0, abs=1e-6)
    assert bad.percentile == pytest.approx(0, abs=1e-3)
    middle = Answer(float(np.median(table.estimates("test")[0])), 1e-3, 3, True)
    assert judge(table, middle, 6.0).share > judge(table, middle, 60.0).share  # a costly search has more to beat


def test_shares_of_random_search_are_even_and_it_is_not_found_better():
    rng = np.random.default_rng(0)
    probabilities = [evenness(list(rng.random(10))) for _ in range(2000)]
    assert np.mean(np.array(probabilities) < 0.05) == pytest.approx(0.05, abs=0.015)
    assert stats.kstest(probabilities, "uniform").pvalue > 0.001


def test_evenness_in_closed_form():
    assert evenness([0.1]) == pytest.approx(0.2)  # one share is uniform
    assert evenness([0.2, 0.3]) == pytest.approx(2 * 0.5**2 / 2)  # two have a triangle
    assert evenness([0.5, 0.5]) == pytest.approx(1)
    assert evenness([0.9] * 10) == pytest.approx(evenness([0.1] * 10))
    assert evenness([1.0] * 10) == 0


def test_needed_searches_are_enough():
    """So many searches find the difference with a probability of 0.8, by trying."""
    rng = np.random.default_rng(0)
    count = needed(stats.beta(3, 2).ppf((np.arange(2000) + 0.5) / 2000).tolist())
    found = [evenness(rng.beta(3, 2, count).tolist()) < 0.05 for _ in range(1000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)
    assert needed([0.4, 0.6]) is None


def test_an_interval_covers_the_mean():
    rng = np.random.default_rng(0)
    covered = [low < 0.5 < high for low, high in (interval(rng.random(12).tolist(), draws=400) for _ in range(200))]
    assert 0.85 < np.mean(covered) < 0.99
    assert interval([0.3, 0.3]) == (0.3, 0.3)


def test_methods_are_compared_best_first(table):
    best = float(table.estimates("test")[0].max())
    good = [judge(table, Answer(best + 0.01 * i, 1e-2, 3, True), 6.0) for i in range(4)]
    bad = [judge(table, Answer(0.3 + 0.01 * i, 1e-2, 3, True), 6.0) for i in range(4)]
    rows = compare({"bad": bad, "good": good})
    assert [row["method"] for row in rows] == ["good", "bad"]
    assert rows[0]["beats_random"] > 0.9 > 0.1 > rows[1]["beats_random"]
    low, high = rows[1]["percentile_interval"]
    assert low <= rows[1]["percentile"] <= high
    assert rows[0]["p"] <= rows[0]["p_holm"] < 0.05


def test_anytime_curves_rise_with_the_search(table):
    outcome = random_search(SPACE, from_table(table), 60.0, epochs=3, seed=0)
    curve = anytime(table, outcome)
    assert curve[0][0] == pytest.approx(6.0, rel=0.05)
    assert curve[-1][1] == pytest.approx(table.percentile(outcome.genotype))


# the benchmark


@pytest.fixture
def args(tmp_path, monkeypatch, table):
    small = replace(RECIPE, epochs=1, warmup_epochs=0)
    monkeypatch.setattr(landscape_benchmark, "RECIPE", small)
    monkeypatch.setattr(regret, "STAGES", ((1, 8, 1), (1, 4, 1)))
    monkeypatch.setitem(regret.SEARCH, "small", replace(regret.SEARCH["small"], batch_size=16))
    table.save(tmp_path / "table.safetensors")
    folders = {"runs": tmp_path / "runs", "out": tmp_path / "out", "table": tmp_path / "table.safetensors"}
    return regret.Regret("digits", searches=1, seeds=2, scored=3, ranked=5, budget=15.0, jobs=1, **folders)


def test_the_benchmark_records_judges_and_grows(args, capsys):
    methods = ("darts", "random", "largest")
    regret.main(replace(args, methods=methods[:2]))
    regret.main(replace(args, methods=methods))  # it goes on with another method
    found = json.loads((args.out / "regret_cifar10.json").read_text())
    assert [(row["method"], row["seed"]) for row in found["rows"]] == [(name, 0) for name in methods]
    assert {row["method"] for row in found["methods"]} == set(methods)
    darts, sampled, largest = found["rows"]
    assert -1 <= darts["ranking"] <= 1
    assert sampled["looked_at"] == 3  # of six seconds each
    assert largest["looked_at"] == 3
    for row in found["rows"]:
        values = [one["test"] for one in row["trainings"]]
        assert len(values) == 2
        answer = regret.answer_of(row, load(args.table))
        assert answer.mean == pytest.approx(sum(values) / 2)
        assert row["judged"]["percentile"] == pytest.approx(load(args.table).percentile(answer))
    elsewhere = replace(args, methods=methods, runs=args.runs / "other")
    regret.main(elsewhere)  # from the recorded file alone
    again = json.loads((args.out / "regret_cifar10.json").read_text())
    assert (again["rows"], again["methods"]) == (found["rows"], found["methods"])
    assert {row["commit"] for row in again["rows"]} == {found["provenance"]["commit"]}
    capsys.readouterr()
    regret.main(replace(args, cell=("darts", 0)))  # one cell again
    again = json.loads(capsys.readouterr().out)
    assert again["genotype"] == darts["genotype"]
    assert [one["test"] for one in again["trainings"]] == [one["test"] for one in darts["trainings"]]


def test_a_search_that_fails_is_a_row_and_a_guess(args, monkeypatch):
    def fail(*_args):
        raise regret.RunFailedError("diverged")

    monkeypatch.setattr(regret, "search", fail)
    regret.main(replace(args, methods=("darts",)))
    found = json.loads((args.out / "regret_cifar10.json").read_text())
    (row,) = found["rows"]
    assert row["failed"] == "diverged"
    assert row["seconds"] > 0
    assert row["judged"]["share"] < 0.05


def test_wrong_commands_are_one_line(args, capsys, tmp_path):
    for change, words in [
        ({"methods": ("enas",)}, "unknown method 'enas'; known: dasvit, "),
        ({"methods": ("random",), "table": tmp_path / "none"}, "takes trainings from the landscape's table"),
        ({"cell": ("enas", 0)}, "unknown method 'enas'"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            regret.main(replace(args, **change))
        assert stopped.value.code == 2
        assert words in capsys.readouterr().err
