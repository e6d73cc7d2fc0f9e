"""Recorded trainings, sorted by what varies: on made-up rows, and on the recorded ones."""

from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from scipy import stats

from dasvit.evidence import by_search, compare, nearest, right, samples, seed_deviation, student, trained, units
from dasvit.results import interval, joined, probability, recorded, spent

RESULTS = Path(__file__).resolve().parents[1] / "book" / "results"


def row(network, search, seed, top1, equal="epochs", **more):
    told = {"network": network, "name": f"{network}-{search}", "search": search, "seed": seed, "top1": top1}
    return told | {"equal": equal, "genotype": f"{network} {search}", "parameters": 100 + 50 * search} | more


@pytest.fixture
def run():
    rows = [row("found", search, seed, 0.5 + 0.1 * seed) for search in (0, 1) for seed in (0, 1)]
    rows += [row("random", 0, 0, 0.4, val_top1=0.3), row("random", 0, 1, 0.2, val_top1=0.9, name="random-9")]
    rows += [row("random", 1, 0, 0.6, val_top1=0.1)]
    rows += [row("vit", size, seed, 0.1 * size + 0.01 * seed) for size in (0, 1, 2) for seed in (0, 1)]
    rows += [row("published", 0, seed, 0.7 + 0.2 * seed) for seed in (0, 1)]
    rows += [row("published", 0, 1, 0.95, equal="macs")]
    return {"rows": rows, "test_images": 10}


def test_trainings_that_were_done_again_replace_the_first_ones(run):
    assert [r["top1"] for r in trained(run, "published")] == pytest.approx([0.7, 0.9])
    assert [r["top1"] for r in trained(run, "published", "macs")] == pytest.approx([0.7, 0.95])


def test_what_is_independent_is_a_group(run):  # ledger A44
    assert {k: len(v) for k, v in by_search(run, "random").items()} == {0: 2, 1: 1}
    assert [len(group) for group in units(run, "found")] == [2, 2]
    assert [[r["top1"] for r in group] for group in units(run, "best random")] == [[0.2], [0.6]]
    assert [[r["search"] for r in group] for group in units(run, "vit")] == [[0, 1], [0, 1]]  # by seed, nearest sizes
    assert [{r["seed"] for r in group} for group in units(run, "published")] == [{0}, {1}]
    assert nearest(run["rows"], 190)["parameters"] == 200


def test_seeds_of_one_encoder_spread(run):
    assert samples(run, "top1").shape == (3, 2)
    assert seed_deviation(run) == pytest.approx(100 * np.sqrt((0.005 + 0.005 + 0.02) / 3))


def test_images_answered_right_are_those_that_the_accuracy_counts(run):
    answers = np.array([1, 0, 1, 1, 0, 0, 0, 1, 1, 0])
    one = row("found", 0, 0, 0.5, correct=bytes(np.packbits(answers)).hex())
    none = row("found", 0, 1, 0.0, correct="0000")
    assert np.array_equal(right(run, [[one]]), answers)
    assert np.array_equal(right(run, [[one, none], [none]]), answers / 4)


@pytest.mark.parametrize("name", ["digits_tiny.json", "cifar10_small.json"])
def test_recorded_runs_have_all_of_it(name):
    told = recorded(name, RESULTS)
    assert all(right(told, [[r]]).mean() == pytest.approx(r["top1"], abs=1e-6) for r in told["rows"][:5])
    assert {len(units(told, peer)) for peer in ("random", "best random")} == {len(told["searches"])}


def test_sentences_are_made_of_numbers_and_names():
    assert interval(0.5, 0.25, 0.75) == "+0.50 [+0.25, +0.75]"
    assert interval(-0.004, -0.01, 0.002, 1, 100) == "-0.4 [-1.0, +0.2]"
    assert interval(float("nan"), 0, 0) == "–"
    assert [probability(p) for p in (0.004, 0.04)] == ["&lt; 0.01", "0.04"]
    assert [joined(names) for names in ([], "a", "ab", "abc")] == ["none", "a", "a and b", "a, b and c"]


@pytest.mark.parametrize(("ago", "words"), [(3, "10 seconds"), (52, "50 seconds"), (170, "3 minutes")])
def test_the_cost_of_a_page_is_rounded(ago, words, monkeypatch):
    monkeypatch.setattr("time.perf_counter", lambda: 1000.0 + ago)
    assert spent(1000.0).startswith(f"{words} and ")


def test_a_mean_of_one_varying_part_has_students_interval():
    sample = np.array([0.3, 0.5, 0.1, 0.8])
    half, p = student(sample.mean(), [(sample.var(ddof=1) / 4, 3)])
    known = stats.ttest_1samp(sample, 0)
    assert (sample.mean() + half, p) == pytest.approx((known.confidence_interval().high, known.pvalue))


@pytest.mark.parametrize("name", ["digits_tiny.json", "cifar10_small.json"])
@pytest.mark.parametrize(("network", "peer"), [("found", "random"), ("found", "vit"), ("published", "vit")])
def test_losses_are_compared_as_scipy_does(name, network, peer):
    told = recorded(name, RESULTS)
    ours, theirs = ([fmean(r["loss"] for r in unit) for unit in units(told, who)] for who in (network, peer))
    known = stats.ttest_rel(ours, theirs) if peer == "random" else stats.ttest_ind(ours, theirs, equal_var=False)
    mean, half, p = compare(told, peer, measure="loss", network=network)
    low, high = known.confidence_interval()
    assert (mean - half, mean + half, p) == pytest.approx((low, high, known.pvalue))
    assert compare(told, peer, network=network)[1] > 0  # of the accuracy, test images vary too
