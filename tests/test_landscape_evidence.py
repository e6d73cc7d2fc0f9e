"""What is measured beside the landscape: networks of interest, scores, other recipes."""

import json
from dataclasses import replace

import landmarks
import landscape
import landscape_scores
import numpy as np
import pytest
import transfer
from test_landscape import RECIPE as SMALL

from dasvit import RetrainSettings, retrain
from dasvit.encoder import layer_parameters
from dasvit.landscape import attending, load
from dasvit.landscape.measuring import images_of
from dasvit.training_free import INDICATORS

RECIPE = replace(SMALL, epochs=1, warmup_epochs=0)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(landscape, "RECIPE", RECIPE)
    monkeypatch.setattr(landscape, "ROUNDS", 1)
    return {"runs": tmp_path / "runs", "out": tmp_path / "out"}


def test_landmarks_are_trained_as_the_landscape_is(folders, monkeypatch):
    listed = [landmarks.networks()[i] for i in (0, 2)]
    assert [network["network"] for network in listed[1:]] == ["vit_b16"]
    monkeypatch.setattr(landmarks, "networks", lambda: listed)
    args = landmarks.Landmarks("digits", seeds=2, jobs=1, **folders)
    landmarks.main(args)
    told = json.loads((args.out / "landmarks_cifar10.json").read_text())["networks"]
    settings = landscape.settings_of(landscape.Grow("digits"))
    for network, row in zip(listed, told, strict=True):
        assert [one["seed"] for one in row["trainings"]] == [0, 1]
        recipe = landmarks.recipe_of(settings.recipe, network, 1)
        assert recipe.order_seed == landscape_scores.recipe_of(settings, 5, 1).order_seed
        plain = retrain(recipe, images_of(recipe))
        assert row["trainings"][1]["test"] == pytest.approx(plain.accuracy["top1"])
        assert row["trainings"][1]["val"] == pytest.approx(plain.history[-1]["val_top1"])
    assert told[1]["parameters"] != told[0]["parameters"]


def test_landmarks_are_what_they_are_called():
    networks = {network["name"]: network for network in landmarks.networks()}
    assert len(networks) == len(landmarks.networks())
    assert {"dasvit-cifar10", "ViT of 2 layers", "attention of 8 heads alone", "digits_tiny, search 0"} <= set(networks)
    for network in networks.values():
        RetrainSettings(genotype=network["network"])  # is a network
    space = landscape.settings_of(landscape.Grow("digits")).space
    assert all(space.number(json_of(networks[f"attention of {heads} heads alone"])) for heads in (4, 8, 12))


def json_of(network):
    from dasvit import Genotype

    return Genotype.from_json(network["network"])


def test_scores_are_of_the_weights_that_are_trained(folders, tmp_path):
    table = tmp_path / "table.safetensors"
    grow = landscape.Grow("digits", networks=6, jobs=1, table=table, **folders)
    landscape.main(grow)
    args = landscape_scores.Scores("digits", weight_seeds=2, jobs=1, table=table, **folders)
    landscape_scores.main(args)
    rows = json.loads((args.out / "landscape_scores_cifar10.json").read_text())["rows"]
    assert [row["number"] for row in rows] == load(table).numbers
    assert all(set(row["scores"]) == set(INDICATORS) for row in rows)
    assert all(len(values) == 2 for row in rows for values in row["scores"].values())
    for row, parameters in zip(rows, load(table).costs["parameters"], strict=True):
        assert row["scores"]["params"] == [parameters] * 2
        one, other = row["scores"]["snip"]
        assert one != other
    landscape.main(
        replace(grow, networks=8, runs=tmp_path / "more")
    )  # the table grows, and the same command scores what is new
    landscape_scores.main(args)
    more = json.loads((args.out / "landscape_scores_cifar10.json").read_text())["rows"]
    assert len(more) == 8
    assert more[:6] == rows


def test_other_recipes_train_the_same_encoders(folders, monkeypatch):
    monkeypatch.setattr(transfer, "RECIPES", {"control": {}, "depth 2": {"depth": 2}, "low rate": {"lr": 1e-4}})
    args = transfer.Transfer("digits", networks=3, only=["control", "depth 2"], jobs=1, **folders)
    transfer.main(args)
    file = args.out / "landscape_transfer_cifar10.json"
    told = json.loads(file.read_text())
    settings = landscape.settings_of(landscape.Grow("digits"))
    assert set(told["recipes"]) == {"control", "depth 2"}
    assert all([row["number"] for row in own] == told["numbers"] for own in told["recipes"].values())
    transfer.main(replace(args, only=["low rate"]))
    whole = json.loads(file.read_text())["recipes"]
    assert {name: whole[name] for name in told["recipes"]} == told["recipes"]
    number, changed = told["numbers"][1], {"depth 2": {"depth": 2}, "low rate": {"lr": 1e-4}}
    for name, changes in changed.items():
        recipe = landscape_scores.recipe_of(settings, number, transfer.SEED)
        plain = retrain(replace(recipe, **changes), images_of(recipe))
        assert whole[name][1]["test"] == pytest.approx(plain.accuracy["top1"])


def test_encoders_are_taken_evenly_by_size():
    settings = landscape.settings_of(landscape.Grow("digits"))
    space, taken = settings.space, transfer.stratified(settings, 100)
    assert len(set(taken)) == 100
    assert set(taken) <= set(attending(space))
    sizes = [layer_parameters(space[n], settings.recipe.dim) for n in taken]
    assert sizes == sorted(sizes)
    drawn = list(dict.fromkeys(n for n, _ in landscape.trainings(settings)))
    whole = sorted(layer_parameters(space[n], settings.recipe.dim) for n in drawn)
    assert np.median(sizes) == pytest.approx(np.median(whole), rel=0.02)
    with pytest.raises(ValueError, match="networks 1001 is outside 1 … 1000"):
        transfer.stratified(settings, 1001)


def test_every_recipe_differs_in_what_it_says():
    settings = landscape.settings_of(landscape.Grow("digits"))
    made = [transfer.varied(settings, name) for name in transfer.RECIPES]
    assert made[0] == settings
    assert len({repr(one) for one in made}) == len(made)
    with pytest.raises(ValueError, match="unknown recipe 'deep'; known: control, depth 4"):
        transfer.varied(settings, "deep")
