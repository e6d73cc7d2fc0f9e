import itertools
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import replace

import distributed
import joblib
import numpy as np
import pytest
import torch

from dasvit import DataSettings, Genotype, RetrainSettings, SearchSpace, load_data, retrain
from dasvit.cli import main
from dasvit.engine.hardware import Hardware
from dasvit.engine.loop import Interrupted
from dasvit.landscape import (
    METRICS,
    Answer,
    Landscape,
    LandscapeSettings,
    Model,
    Variances,
    attending,
    cross_validated,
    fit,
    load,
    train,
    trainings,
)
from dasvit.landscape.measuring import MeasuredTraining, train_some
from dasvit.landscape.modelling import features
from dasvit.landscape.settings import recipe_of

SPACE = SearchSpace()
RECIPE = RetrainSettings(
    data=DataSettings(train_images=240, test_images=90),
    dim=24,
    depth=1,
    epochs=2,
    warmup_epochs=1,
    batch_size=40,
    lr=2e-3,
    val_share=0.5,
    hardware=Hardware("cpu"),
)
SETTINGS = LandscapeSettings(RECIPE, networks=12, trainings=3, curve_images=50)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("landscape") / "run"
    return train(SETTINGS, path), path


@pytest.fixture(scope="module")
def landscape(trained):
    return Landscape.gather(SETTINGS, trained[0], load_data(RECIPE.data, image_size=RECIPE.image_size))


def test_a_training_is_charged_the_seconds_of_its_core(monkeypatch):
    ticks = itertools.count(step=2.5)
    monkeypatch.setattr(time, "process_time", lambda: next(ticks))
    (row,) = train_some(SETTINGS, trainings(SETTINGS)[:1])
    assert row["seconds"] == [2.5, 2.5]


def without_seconds(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_encoders_are_drawn_evenly_and_a_tenth_are_trained_again():
    pieces = trainings(LandscapeSettings(networks=1000))
    numbers = list(dict.fromkeys(number for number, _ in pieces))
    assert len(pieces) == 1200
    assert len(numbers) == len(set(numbers)) == 1000
    assert set(numbers) <= set(attending(SPACE))
    assert {SPACE.canonical(n) for n in numbers} == set(numbers)
    assert pieces[:4] == [(numbers[0], 0), (numbers[0], 1), (numbers[0], 2), (numbers[1], 0)]
    several = [n for n, seed in pieces if seed == 2]
    assert several == numbers[::10]
    assert trainings(LandscapeSettings(networks=500)) == pieces[:600]  # a smaller one is a part of it
    assert trainings(LandscapeSettings(networks=1000, draw_seed=1)) != pieces


def test_every_function_with_attention_can_be_drawn():
    assert len(attending(SPACE)) == 4974
    everyone = trainings(LandscapeSettings(networks=4974, trainings=1))
    assert {number for number, _ in everyone} == set(attending(SPACE))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks": 0}, "networks 0 is outside 1 … 4,974"),
        ({"networks": 4975}, "networks 4975 is outside"),
        ({"trainings": 0}, "trainings 0 is below one"),
        ({"repeat_every": 0}, "repeat_every 0 is below one"),
        ({"curve_images": 0}, "curve_images 0 is below one"),
        ({"draw_seed": -1}, "draw_seed -1 is outside"),
        ({"recipe": replace(RECIPE, val_share=0.0)}, "val_share 0 leaves no validation images"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        LandscapeSettings(**changes)


def test_a_training_is_a_retraining(trained):
    """What a landscape trains is what ``retrain`` would, to the bit; looking at test images changes nothing."""
    row = trained[0][1]
    settings = recipe_of(SETTINGS, row["number"], row["seed"])
    assert settings.genotype == SPACE[row["number"]].to_json()
    data = load_data(RECIPE.data, image_size=RECIPE.image_size)
    plain = retrain(settings, data)
    right = plain.predictions == data.test.labels
    assert row["correct"] == np.packbits(right.numpy()).tobytes().hex()
    assert row["test_correct"][-1] == int(right.sum())
    assert row["test_loss"][-1] == pytest.approx(plain.accuracy["loss"], rel=1e-5)
    assert row["val_correct"][-1] == round(plain.history[-1]["val_top1"] * 120)
    assert row["val_loss"][-1] == pytest.approx(plain.history[-1]["val_loss"], rel=1e-5)
    assert row["train_loss"] == [epoch["train_loss"] for epoch in plain.history]


def test_early_epochs_look_at_few_images_and_the_last_at_all(landscape):
    assert landscape.images == {"val": [50, 120], "test": [50, 90]}
    assert all(row["test_correct"][0] <= 50 for row in landscape.rows)
    job = MeasuredTraining(recipe_of(SETTINGS, 0, 0), SETTINGS.curve_images, load_data(RECIPE.data, image_size=8))
    assert [len(job.look.fewer[part]) for part in ("val", "test")] == [50, 50]


def test_the_number_of_processes_changes_nothing(trained):
    two = train(SETTINGS, jobs=2)
    assert without_seconds(two) == without_seconds(trained[0])


def test_a_landscape_can_be_stopped_and_goes_on(trained, tmp_path, monkeypatch):
    from dasvit.engine.runs import Run

    def stopping(self, row):
        log(self, row)
        if len(self.history()) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    log = Run.log
    with monkeypatch.context() as patched:
        patched.setattr(Run, "log", stopping)
        with pytest.raises(Interrupted):
            train(SETTINGS, tmp_path / "run")
    log_file = tmp_path / "run" / "metrics.jsonl"
    assert len(log_file.read_text().splitlines()) == 5
    with log_file.open("a") as file:
        file.write('{"number": 3, "se')  # a kill in the middle of a line
    assert without_seconds(train(SETTINGS, tmp_path / "run", resume=True)) == without_seconds(trained[0])


def test_a_landscape_grows_from_the_rows_of_a_smaller_one(trained, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("dasvit.landscape.training.train_some", lambda settings, piece: made.append(piece) or [])
    train(SETTINGS, tmp_path / "run", known=trained[0][:9])
    assert made == [[piece] for piece in trainings(SETTINGS)[9:]]
    monkeypatch.undo()
    assert without_seconds(train(SETTINGS, tmp_path / "run", resume=True)) == without_seconds(trained[0])
    with pytest.raises(ValueError, match="seed is not what"):
        train(SETTINGS, known=trained[0][1:4])


def test_a_row_of_another_landscape_is_refused(trained, tmp_path):
    rows = [dict(row) for row in trained[0]]
    rows[2]["test_loss"] = rows[2]["test_loss"][:1]
    train(replace(SETTINGS, networks=1, trainings=1), tmp_path / "run")
    for bad in (rows[3], rows[2] | {"number": rows[0]["number"], "seed": 0}):
        (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(bad) + "\n")
        with pytest.raises(ValueError, match="line 1 of"):
            train(replace(SETTINGS, networks=1, trainings=1), tmp_path / "run", resume=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_cluster_that_loses_a_worker_trains_its_networks_again(trained):
    cluster = distributed.LocalCluster(2, threads_per_worker=1, processes=True, dashboard_address=None)
    with cluster, distributed.Client(cluster), joblib.parallel_config(backend="dask"):
        (first, *_) = [worker.process.process for worker in cluster.workers.values()]

        def kill():
            while not killed:
                busy = {ws.address: len(ws.processing) for ws in cluster.scheduler.workers.values()}
                if all(busy.values()) and len(busy) == 2:
                    killed.append(first.pid)
                    os.kill(first.pid, signal.SIGKILL)

        killed: list[int] = []
        threading.Thread(target=kill, daemon=True).start()
        rows = train(SETTINGS, jobs=-1)
    assert killed
    assert without_seconds(rows) == without_seconds(trained[0])


def test_a_file_holds_everything(landscape, tmp_path):
    costs = {"parameters": [float(n) for n in landscape.numbers], "latency": [1e-3 * n for n in landscape.numbers]}
    whole = replace(landscape, costs=costs, about={"commit": "abc"})
    whole.save(tmp_path / "one.safetensors")
    again = load(tmp_path / "one.safetensors")
    assert again.settings == SETTINGS
    assert again.images == landscape.images
    assert again.about == {"commit": "abc"}
    assert again.costs == costs
    assert again.classes == 10
    assert len(again) == 16
    assert (again.correct == landscape.correct).all()
    for metric in (*METRICS[:6], "parameters", "latency"):
        for one, other in zip(again.values(metric, 1), whole.values(metric, 1), strict=True):
            assert one == pytest.approx(other, rel=1e-6)
        some = SPACE[attending(SPACE)[7]]
        assert again.query(some, metric).mean == pytest.approx(whole.query(some, metric).mean, rel=1e-4)
    again.save(tmp_path / "two.safetensors")
    assert (tmp_path / "two.safetensors").read_bytes() == (tmp_path / "one.safetensors").read_bytes()


def test_what_is_no_landscape_is_told(tmp_path):
    with pytest.raises(ValueError, match="no landscape 'mars'; recorded: "):
        load("mars")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no landscape of this version"):
        load(tmp_path / "bad.safetensors")


def test_every_name_of_an_encoder_answers_alike(landscape):
    number = next(n for n in landscape.numbers if sum(SPACE.canonical(m) == n for m in range(len(SPACE))) > 1)
    names = [m for m in range(len(SPACE)) if SPACE.canonical(m) == number]
    answers = {landscape.query(SPACE[m]) for m in names}
    assert len(names) > 1
    assert len(answers) == 1
    (answer,) = answers
    own = [row["test_correct"][-1] / 90 for row in landscape.rows if row["number"] == number]
    assert answer.measured
    assert answer.n == len(own)
    assert answer.mean == pytest.approx(np.mean(own))
    assert landscape.query(SPACE[number].to_json()) == answer


def test_what_was_not_trained_is_modelled_and_says_so(landscape):
    other = next(n for n in attending(SPACE) if n not in landscape.trained)
    answer = landscape.query(SPACE[other], "val_loss", 1)
    assert not answer.measured
    assert answer.n == 0
    assert answer.standard_error > 0
    published = landscape.query("dasvit-cifar10")
    assert published == landscape.query(Genotype.from_json(SPACE[landscape.number("dasvit-cifar10")].to_json()))


@pytest.mark.parametrize("metric", ["test", "val_loss"])
def test_a_percentile_is_the_share_of_encoders_that_are_worse(landscape, metric):
    values, deviations = landscape.estimates(metric)
    assert len(values) == len(landscape.functions)
    place = landscape.functions.index(landscape.numbers[3])
    assert values[place] == landscape.model(metric).posterior([landscape.numbers[3]])[0][0]  # shrunken
    rng, sign = np.random.default_rng(0), 1 if metric == "test" else -1
    drawn = values + deviations * rng.normal(size=(400, len(values)))
    own = values[place] + deviations[place] * rng.normal(size=(400, 1))
    expected = 100 * (sign * own > sign * drawn).mean()
    assert landscape.percentile(SPACE[landscape.numbers[3]], metric) == pytest.approx(expected, abs=1)
    best, worst = (Answer(float(values.mean()) + far, 0.0, 1, measured=True) for far in (sign * 9, -sign * 9))
    assert landscape.percentile(best, metric) == pytest.approx(100)
    assert landscape.percentile(worst, metric) == pytest.approx(0)


def test_a_percentile_is_of_what_can_be_better(landscape):
    blind = next(g for g in SPACE if not g.has_attention)
    guess = landscape.query(blind)
    assert landscape.percentile(blind) == landscape.percentile(guess)
    with pytest.raises(ValueError, match="no encoder is better by 'seconds'; known: test, val, test_loss"):
        landscape.percentile(blind, "seconds")


@pytest.mark.parametrize("metric", ["test", "val_loss", "seconds"])
def test_means_are_the_answers_to_all_names(landscape, metric):
    means, blind = landscape.means(metric, 1), next(i for i, g in enumerate(SPACE) if not g.has_attention)
    other = next(i for i in range(len(SPACE)) if SPACE.canonical(i) == landscape.numbers[2])
    assert len(means) == len(SPACE)
    for number in (*landscape.numbers[:3], other, blind, 0, 77, 5000):
        assert means[number] == pytest.approx(landscape.query(SPACE[number], metric, 1).mean), number


def test_an_encoder_without_attention_guesses(landscape):
    blind = next(g for g in SPACE if not g.has_attention)
    assert landscape.query(blind).mean == 0.1
    assert landscape.query(blind, "val_loss").mean == pytest.approx(np.log(10))
    assert not landscape.query(blind).measured


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dasvit-cifar10", "speed"), "unknown metric 'speed'; known: test, val, test_loss, .*, seconds$"),
        (("dasvit-cifar10", "parameters"), "unknown metric 'parameters'; known: "),  # none were counted
        (("dasvit-cifar10", "test", 0), "epoch 0 is outside 1 … 2"),
        (("dasvit-cifar10", "test", 3), "epoch 3 is outside 1 … 2"),
        (("vit_b16",), "vit_b16 is no encoder"),
        ((SearchSpace(nodes=1)[0],), "is no architecture of SearchSpace"),
    ],
)
def test_a_wrong_question_lists_the_right_ones(landscape, arguments, message):
    with pytest.raises(ValueError, match=message):
        landscape.query(*arguments)


def made_up(count, seed, deviations):
    """Draw effects, and the trainings of some networks that have them; return numbers, trainings and truth."""
    rng = np.random.default_rng(seed)
    alone, pairs, rest, again = deviations
    a, b = features(SPACE)
    truth = 0.4 + alone * a @ rng.normal(size=a.shape[1]) + pairs * b @ rng.normal(size=b.shape[1])
    for number in attending(SPACE):
        truth[number] += rest * rng.normal()
    numbers = random.Random(seed).sample(attending(SPACE), count)
    values = [(truth[n] + again * rng.normal(size=3 if i % 10 == 0 else 1)).tolist() for i, n in enumerate(numbers)]
    return numbers, values, truth


def model_of(numbers, values, variances):
    counts = np.array([len(v) for v in values], dtype=float)
    return Model(SPACE, numbers, np.array([np.mean(v) for v in values]), counts, variances)


def test_names_of_a_function_have_the_same_features():
    alone, pairs = features(SPACE)
    for number in random.Random(0).sample(range(len(SPACE)), 300):
        same = SPACE.canonical(number)
        assert (alone[number] == alone[same]).all()
        assert (pairs[number] == pairs[same]).all()
    names = Counter(SPACE.canonical(n) for n in range(len(SPACE)))
    single = [n for n in range(len(SPACE)) if names[n] == 1][:20]
    np.testing.assert_allclose((alone[single] ** 2).sum(1), 1, rtol=1e-5)


def test_the_posterior_is_that_of_all_normal_variables_together():
    """Condition the joint normal distribution of two networks and their trainings by the textbook's formula."""
    numbers, values, _ = made_up(40, 1, (0.02, 0.01, 0.004, 0.007))
    variances, other = Variances(4e-4, 1e-4, 2e-5, 5e-5), next(n for n in attending(SPACE) if n not in numbers)
    found, deviation = model_of(numbers, values, variances).posterior([other, numbers[0]])
    asked = [other, numbers[0]]
    a, b = (f.astype(float) for f in features(SPACE))
    owner = [i for i, v in enumerate(values) for _ in v]
    flat = np.concatenate(values)
    rows = [*asked, *(numbers[i] for i in owner)]
    vague = 1e4  # a prior of μ that says nothing
    joint = 4e-4 * a[rows] @ a[rows].T + 1e-4 * b[rows] @ b[rows].T + vague
    joint += 2e-5 * (np.array(rows)[:, None] == np.array(rows)[None])
    joint[2:, 2:] += 5e-5 * np.eye(len(flat))
    gain = np.linalg.solve(joint[2:, 2:], joint[2:, :2]).T
    mean = gain @ flat
    covariance = joint[:2, :2] - gain @ joint[2:, :2]
    np.testing.assert_allclose(found, mean, atol=2e-5)
    np.testing.assert_allclose(deviation, np.sqrt(np.diag(covariance)), rtol=2e-3)


def test_variances_are_found_again():
    numbers, values, _ = made_up(500, 0, (0.03, 0.015, 0.006, 0.008))
    found = fit(SPACE, numbers, values)
    deviations = np.sqrt([found.alone, found.pairs, found.seed])
    np.testing.assert_allclose(deviations, [0.03, 0.015, 0.008], rtol=0.35)
    again = [np.var(v, ddof=1) for v in values if len(v) > 1]
    assert found.seed == pytest.approx(np.mean(again))


def test_predictions_are_as_good_as_they_say():
    numbers, values, truth = made_up(400, 3, (0.03, 0.01, 0.004, 0.008))
    model = model_of(numbers, values, fit(SPACE, numbers, values))
    others = [n for n in attending(SPACE) if n not in set(numbers)]
    mean, deviation = model.posterior(others)
    inside = np.abs(mean - truth[others]) < 1.96 * deviation
    assert 0.9 < inside.mean() < 0.99
    mean, _ = model.posterior(numbers)
    observed = np.array([np.mean(v) for v in values])
    assert np.mean((mean - truth[numbers]) ** 2) < 0.8 * np.mean((observed - truth[numbers]) ** 2)


def test_a_fold_is_predicted_without_itself():
    numbers, values, _ = made_up(60, 4, (0.03, 0.01, 0.004, 0.008))
    before, _ = cross_validated(SPACE, numbers, values, folds=5)
    changed = [[v + 1.0 for v in own] if i % 5 == 2 else own for i, own in enumerate(values)]
    after, _ = cross_validated(SPACE, numbers, changed, folds=5)
    np.testing.assert_array_equal(before[2::5], after[2::5])
    assert (np.abs(np.delete(before - after, np.s_[2::5])) > 1e-3).all()


def test_the_command(tmp_path, capsys):
    flags = "--train-images 240 --test-images 90 --dim 24 --depth 1 --epochs 1 --warmup-epochs 0 --batch-size 40"
    flags += " --image-size 8 --patch-size 2 --val-share 0.5 --networks 2 --trainings 1 --curve-images 50 --device cpu"
    command = ["landscape", "--data", "digits", *flags.split(), "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 0
    assert "best of 2 on validation images" in capsys.readouterr().out
    assert len(load(tmp_path / "run" / "landscape.safetensors")) == 2
    for more, message in (
        ("--seed 1", "leave out --seed"),
        ("--jobs 0", "jobs 0"),
        ("--networks 9999", "networks 9999"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*command[:-1], str(tmp_path / "other"), *more.split()])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "other").exists()


def test_a_network_is_the_same_wherever_it_is_trained(trained):
    """Any networks trained again give the same counts."""
    pieces = trainings(SETTINGS)
    for index in (0, 7, 15):
        assert without_seconds(train_some(SETTINGS, [pieces[index]])) == without_seconds([trained[0][index]])
    assert torch.get_num_threads() == 1
