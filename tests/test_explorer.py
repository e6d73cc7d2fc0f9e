"""What the explorer's page is told is what the truth table says."""

import json
import random

import explorer
import numpy as np
import pytest

from dasvit.landscape import load


@pytest.fixture(scope="module")
def landscape():
    return load(explorer.NAME)


@pytest.fixture(scope="module")
def told(landscape):
    return json.loads(json.dumps(explorer.data(landscape)))  # as it is after the way


def test_every_choice_is_an_encoder_of_the_space_and_none_is_missing(landscape):
    numbers = [landscape.settings.space.number(genotype) for genotype in explorer.encoders(landscape)]
    assert sorted(numbers) == list(range(len(landscape.settings.space)))


def test_a_choice_leads_to_what_the_table_answers(landscape, told):
    every = explorer.encoders(landscape)
    values, _ = landscape.estimates()
    chosen = random.Random(0).sample(range(len(every)), 40)
    for i in [*chosen, told["published"]]:
        place, answer = told["places"][i], landscape.query(every[i])
        if not every[i].has_attention:
            assert place >= len(told["mean"])
            assert answer.mean == told["guess"]
        elif answer.measured:
            assert told["measured"][str(place)] == [answer.mean, answer.standard_error, answer.n]
            assert told["mean"][place] == round(1e4 * values[place])
        else:
            assert [told["mean"][place], told["deviation"][place]] == [
                round(1e4 * answer.mean),
                round(1e4 * answer.standard_error),
            ]
    assert landscape.number(every[told["published"]]) == landscape.number(explorer.PUBLISHED)
    assert len(told["measured"]) == len(landscape.numbers)


def test_percentiles_are_those_of_the_table(landscape, told):
    space = landscape.settings.space
    for place in (0, 100, len(told["percentile"]) - 1):
        expected = landscape.percentile(space[landscape.functions[place]])
        assert told["percentile"][place] == pytest.approx(10 * expected, abs=0.51)


def test_costs_are_those_that_were_counted_on_the_networks(landscape):
    space = landscape.settings.space
    ours = explorer.costs(landscape, [space[number] for number in landscape.numbers])
    assert np.array_equal(ours, landscape.costs["macs"])
    assert len(set(ours)) > 10
