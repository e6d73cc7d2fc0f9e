"""A landscape is a black box of syne-tune, and one of its schedulers runs on it."""

import importlib
import sys

import numpy as np
import pytest
from syne_tune import StoppingCriterion, Tuner
from syne_tune.backend.simulator_backend.simulator_callback import SimulatorCallback
from syne_tune.blackbox_repository.simulated_tabular_backend import UserBlackboxBackend
from syne_tune.experiments import load_experiment
from syne_tune.optimizer.baselines import ASHA
from test_landscape import RECIPE, SETTINGS

from dasvit import load_data
from dasvit.landscape import Landscape, train
from dasvit.landscape.blackbox import ELAPSED, FIDELITY, MEASURED, blackbox, configuration

SPACE = SETTINGS.space
pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # of syne-tune's own calls


@pytest.fixture(scope="module")
def landscape():
    return Landscape.gather(SETTINGS, train(SETTINGS), load_data(RECIPE.data, image_size=RECIPE.image_size))


@pytest.fixture(scope="module")
def box(landscape):
    return blackbox(landscape)


def test_it_answers_as_the_landscape_does(landscape, box):
    trained = set(landscape.numbers)
    for number in (landscape.numbers[0], landscape.numbers[5], 3, 4321):
        told = box(configuration(SPACE[number]), {FIDELITY: 2})
        assert told["val"] == pytest.approx(landscape.query(SPACE[number], "val", 2).mean)
        seconds = sum(landscape.query(SPACE[number], "seconds", epoch).mean for epoch in (1, 2))
        assert told[ELAPSED] == pytest.approx(seconds)
        assert told[MEASURED] == (SPACE.canonical(number) in trained)
    assert len(box.hyperparameters) == len(SPACE)
    assert box.objectives_evaluations[..., -1].mean() == pytest.approx(
        np.mean([SPACE.canonical(n) in trained for n in range(len(SPACE))])
    )


def test_a_scheduler_searches_in_it(landscape, box, tmp_path, monkeypatch):
    monkeypatch.setenv("SYNETUNE_FOLDER", str(tmp_path))
    asha = ASHA(
        box.configuration_space | {FIDELITY: landscape.epochs},
        metric="val",
        time_attr=FIDELITY,
        max_t=landscape.epochs,
        do_minimize=False,
        random_seed=0,
    )
    tuner = Tuner(
        trial_backend=UserBlackboxBackend(box, elapsed_time_attr=ELAPSED, max_resource_attr=FIDELITY, seed=0),
        scheduler=asha,
        stop_criterion=StoppingCriterion(max_num_trials_started=40),
        n_workers=2,
        sleep_time=0,
        callbacks=[SimulatorCallback()],
        tuner_name="landscape",
    )
    tuner.run()
    rows = load_experiment(tuner.name).results
    assert rows["trial_id"].nunique() >= 40
    best = rows.loc[rows["val"].idxmax()]
    chosen = {name.removeprefix("config_"): best[name] for name in rows if name.startswith("config_")}
    number = next(n for n in range(len(SPACE)) if configuration(SPACE[n]).items() <= chosen.items())
    assert best["val"] == pytest.approx(landscape.query(SPACE[number], "val", int(best[FIDELITY])).mean)


def test_without_syne_tune_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "syne_tune.config_space", None)
    monkeypatch.delitem(sys.modules, "dasvit.landscape.blackbox")
    with pytest.raises(ImportError, match=r"needs syne-tune: pip install 'dasvit\[syne-tune\]'"):
        importlib.import_module("dasvit.landscape.blackbox")
