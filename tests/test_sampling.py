"""Searches that judge encoders one by one, on truths that are known."""

import random
from collections import Counter
from functools import partial
from itertools import islice

import pytest

from dasvit import SearchSpace, build
from dasvit.methods.sampling import (
    best_by_score,
    evolution,
    mutate,
    random_search,
    screened_search,
    successive_halving,
    weights,
)

SPACE = SearchSpace()
SEARCHES = [random_search, partial(screened_search, size=weights), evolution, successive_halving]


def attention(genotype):
    return sum(op.kind == "msa" for _, op in genotype.edges) / 4


def judge(calls):
    """Attention is good; the more epochs, the closer to the truth. An epoch takes two seconds."""

    def evaluate(genotype, epochs, seed):
        calls.append((genotype, epochs))
        return attention(genotype) * epochs / 9, 2.0 * epochs

    return evaluate


@pytest.mark.parametrize("find", SEARCHES)
def test_seconds_are_charged_and_kept_to(find):
    calls = []
    outcome = find(SPACE, judge(calls), 400.0, epochs=9, seed=1)
    seconds = [trial.seconds for trial in outcome.trials]
    assert seconds == sorted(seconds)
    assert outcome.seconds >= 400
    assert len(calls) == len(outcome.trials)
    if find is not successive_halving:  # which ends its round
        assert seconds[-2] < 400
        assert seconds == [18.0 * i for i in range(1, len(calls) + 1)]
    best = max((t for t in outcome.trials if t.epochs == 9), key=lambda t: t.score)
    assert outcome.genotype == best.genotype
    assert all(genotype.has_attention for genotype, _ in calls) or find is evolution  # a mutation may lose it


@pytest.mark.parametrize("find", SEARCHES)
def test_a_space_in_which_nothing_attends_is_searched(find):
    outcome = find(SearchSpace(heads=()), judge([]), 100.0, epochs=9)
    assert not outcome.genotype.has_attention


@pytest.mark.parametrize("find", SEARCHES)
def test_a_seed_decides(find):
    once, again, other = (find(SPACE, judge([]), 200.0, epochs=9, seed=seed) for seed in (1, 1, 2))
    assert once == again
    assert once != other


def test_random_search_looks_at_no_function_twice():
    outcome = random_search(SPACE, judge([]), 18.0 * 300, epochs=9)
    assert len({trial.genotype.formula for trial in outcome.trials}) == 300


def test_only_the_largest_of_each_ten_is_trained():
    drawn = [trial.genotype for trial in random_search(SPACE, judge([]), 18.0 * 200, epochs=9, seed=3).trials]
    found = screened_search(SPACE, judge([]), 18.0 * 20, epochs=9, seed=3, size=weights)
    tens = [drawn[start : start + 10] for start in range(0, 200, 10)]
    assert [trial.genotype for trial in found.trials] == [max(ten, key=weights) for ten in tens]
    assert found.genotype == max((trial.genotype for trial in found.trials), key=attention)
    few = SearchSpace(heads=(3,), mlp_ratios=())  # which ends before the seconds do
    assert 1 < len(screened_search(few, judge([]), 1e6, epochs=9, size=weights, among=2).trials) < 100


def test_weights_are_those_of_a_layer():
    sizes = {"dim": 24, "image_size": 8, "patch_size": 4, "in_channels": 1, "num_classes": 10}
    for genotype in islice(SPACE.shuffled(random.Random(0)), 20):
        one, two = (sum(p.numel() for p in build(genotype, depth=d, **sizes).parameters()) for d in (1, 2))
        assert two - one == weights(genotype, 24)


def test_halving_goes_on_with_the_best_third_and_pays_what_is_added():
    calls = []
    outcome = successive_halving(SPACE, judge(calls), 1.0, epochs=9)
    assert [epochs for _, epochs in calls] == 9 * [1] + 3 * [3] + [9]
    first, second, last = calls[:9], calls[9:12], calls[12:]
    known = sorted((attention(g) for g, _ in first), reverse=True)
    assert sorted((attention(g) for g, _ in second), reverse=True) == known[:3]
    assert attention(last[0][0]) == known[0]
    assert outcome.seconds == 2.0 * (9 * 1 + 3 * 2 + 6)  # instead of 9 + 9 + 9 epochs
    assert outcome.genotype == last[0][0]


def test_an_encoder_mutates_evenly_to_its_neighbours():
    rng, parent = random.Random(0), SPACE[1234]
    children = Counter(mutate(parent, SPACE, rng) for _ in range(8000))
    assert parent not in children
    assert all(child in SPACE for child in children)
    # 4 edges with 6 other operations each; each of the second node's two edges can read the free source
    assert len(children) == 4 * 6 + 2
    assert max(children.values()) < 1.5 * min(children.values())
    for child in children:
        same = set(child.edges) & set(parent.edges)
        assert len(same) == 3


def test_evolution_ends_at_better_encoders_than_random_search():
    """Scores are noisy counts of attention in this space; the mean of many searches."""

    def mean(find):
        found = [find(SPACE, judge([]), 18.0 * 60, epochs=9, seed=seed) for seed in range(20)]
        return sum(trial.score for outcome in found for trial in outcome.trials[-10:]) / 200

    assert mean(evolution) > 0.8 > 0.6 > mean(random_search)


def test_the_oldest_dies_although_it_is_the_best():
    scores = iter([1.0] + [0.1] * 1000)
    outcome = evolution(
        SPACE, lambda *_: (next(scores), 1.0), 40, epochs=1, population=4, sample=4, seed=0
    )  # the sample is everyone
    first = outcome.trials[0].genotype
    assert outcome.genotype == first  # the best is what is found
    children = [len(set(trial.genotype.edges) & set(first.edges)) == 3 for trial in outcome.trials[4:]]
    assert children[0]  # while it lives it is the parent
    assert not all(children[6:])


def test_anytime_is_the_best_of_the_longest_trainings():
    outcome = successive_halving(SPACE, judge([]), 1.0, epochs=9)
    curve = list(outcome.anytime())
    assert len(curve) == len(outcome.trials)
    assert curve[-1] == (outcome.seconds, outcome.genotype)
    scores = [attention(genotype) for _, genotype in curve[:9]]
    assert scores == sorted(scores)


def test_the_best_score_wins_and_costs_what_scoring_costs():
    outcome = best_by_score(SPACE, lambda genotype: (attention(genotype), 0.5), 50, seed=3)
    assert len(outcome.trials) == 50
    assert outcome.seconds == 25
    assert attention(outcome.genotype) == max(attention(trial.genotype) for trial in outcome.trials)
