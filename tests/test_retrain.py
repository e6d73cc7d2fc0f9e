import json
import os
import signal
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dasvit import Augmentation, Data, DataSettings, Genotype, ImageSet, RetrainSettings, evaluate, retrain
from dasvit.data.sources import hold_out
from dasvit.engine.hardware import Hardware, make_fabric
from dasvit.engine.loop import Interrupted
from dasvit.engine.seeds import derive
from dasvit.retraining import Retraining, load_trained, measures

module = sys.modules["dasvit.retraining"]

QUICK = RetrainSettings(dim=24, depth=2, epochs=3, warmup_epochs=1, batch_size=50, hardware=Hardware("cpu"))


def untimed(rows):
    return [{k: v for k, v in row.items() if k not in ("seconds", "bytes")} for row in rows]


def test_training_learns(digits):
    result = retrain(replace(QUICK, epochs=8, lr=3e-3), digits)
    assert result.accuracy["top1"] > 0.6
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert result.accuracy == evaluate(result.model, digits.test, 8)


def test_the_test_images_are_looked_at_once_at_the_end(few_digits, monkeypatch):  # ledger A42
    seen, classify = [], module.classify

    def noting(model, images, *how):
        seen.append(images.images)
        return classify(model, images, *how)

    monkeypatch.setattr(module, "classify", noting)
    result = retrain(QUICK, few_digits)
    *validation, test = seen
    assert torch.equal(test, few_digits.test.images)
    train, val = hold_out(few_digits.train, 0.1, seed=0)
    assert len(validation) == QUICK.epochs + 1  # once more for the temperature
    assert all(torch.equal(images, val.images) for images in validation)
    assert torch.equal(Retraining(QUICK, few_digits.train, make_fabric(QUICK.hardware)).images.images, train.images)
    assert {"val_top1", "val_top5", "val_loss"} <= result.history[-1].keys()
    retrain(replace(QUICK, val_share=0.0, epochs=2), few_digits)
    assert len(seen) == QUICK.epochs + 3


def test_weights_and_order_have_seeds_of_their_own(few_digits):  # ledger A43
    def first(**seeds):
        job = Retraining(replace(QUICK, **seeds), few_digits.train, make_fabric(QUICK.hardware))
        return job.network.head.weight.clone(), next(job.images.batches(50, image_size=8, seed=order_seed(job)))[1]

    def order_seed(job):
        return derive(job.settings.ordering, "order")

    (w, x), (w_other, x_same), (w_same, x_other) = first(), first(seed=1, order_seed=0), first(order_seed=1)
    assert torch.equal(w, w_same)
    assert torch.equal(x, x_same)
    assert not torch.equal(w, w_other)
    assert not torch.equal(x, x_other)


@pytest.mark.parametrize("genotype", ["dasvit-cifar10", "vit_b16"])
def test_matrices_decay_and_nothing_else(few_digits, genotype):  # ledger A36
    job = Retraining(replace(QUICK, genotype=genotype), few_digits.train, make_fabric(QUICK.hardware))
    decay = {p: group["weight_decay"] for group in job.optimizer.param_groups for p in group["params"]}
    for name, parameter in job.network.named_parameters():
        matrix = parameter.ndim > 1 and name not in ("pos_embed", "cls_token")
        assert decay[parameter] == (QUICK.weight_decay if matrix else 0), name


def test_the_loss_is_given(few_digits):
    """A loss of 0 trains nothing, and what is told of the test images stays the cross-entropy."""
    idle = retrain(QUICK, few_digits, loss=lambda logits, labels: 0 * logits.sum())
    assert [row["train_loss"] for row in idle.history] == [0] * QUICK.epochs
    assert idle.accuracy["loss"] > 1
    same = retrain(QUICK, few_digits, loss=partial(F.cross_entropy, label_smoothing=QUICK.label_smoothing))
    assert same.accuracy == retrain(QUICK, few_digits).accuracy


def test_mixup_wants_pairs_on_each_device():
    with pytest.raises(ValueError, match=r"batch_size 6 \(3 on each device\) is odd"):
        replace(QUICK, batch_size=6, mixup=0.5, hardware=Hardware("cpu", devices=2))
    replace(QUICK, batch_size=8, mixup=0.5, hardware=Hardware("cpu", devices=2))


class Constant(torch.nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, x):
        assert not self.training
        return self.logits.expand(len(x), -1)


def test_accuracy_by_hand():
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 6, 6])
    images = ImageSet(torch.zeros(8, 1, 2, 2, dtype=torch.uint8), labels, tuple("abcdefg"), (0.0,), (1.0,))
    model = Constant(torch.tensor([0.0, 1, 2, 3, 4, 5, 6])).train()
    got = evaluate(model, images, 2, batch_size=3)
    assert got["top1"] == pytest.approx(2 / 8)
    assert got["top5"] == pytest.approx(6 / 8)
    expected = torch.nn.functional.cross_entropy(model.logits.expand(8, -1), labels)
    assert got["loss"] == pytest.approx(float(expected))
    assert model.training


def test_top5_of_few_classes_is_not_always_right():
    images = ImageSet(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 2]), tuple("abc"), (0.0,), (1.0,))
    got = evaluate(Constant(torch.tensor([0.0, 1, 2])), images, 2)
    assert (got["top1"], got["top5"]) == pytest.approx((1 / 3, 2 / 3))


@pytest.mark.parametrize(
    "change",
    [
        {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1},
        {"erase": 0.5},
        {"label_smoothing": 0.1, "data": DataSettings(augmentation=Augmentation(shift=0.125, min_crop=0.6))},
        {"genotype": "vit_b16"},
        {"init": "trunc_normal"},
        {"hardware": Hardware("cpu", "bf16-mixed")},
    ],
)
def test_every_setting_trains(few_digits, change):
    result = retrain(replace(QUICK, **change), few_digits)
    plain = retrain(QUICK, few_digits)
    assert result.history[-1]["train_loss"] != plain.history[-1]["train_loss"]
    assert result.history[-1]["train_loss"] < 3


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_an_interrupted_training_resumes_to_the_same_end(few_digits, tmp_path, steps, monkeypatch):
    settings = replace(QUICK, mixup=0.8)  # draws from NumPy; the tests' type checker draws from Python's generator
    expected = retrain(settings, few_digits)
    train = Retraining.train

    def interrupted(self, epoch, start):
        for done, metrics in enumerate(train(self, epoch, start), 1 + start):
            if epoch * self.steps + done == steps:
                os.kill(os.getpid(), signal.SIGINT)
            yield metrics

    monkeypatch.setattr(Retraining, "train", interrupted)
    with pytest.raises(Interrupted):
        retrain(settings, few_digits, tmp_path / "run")
    monkeypatch.undo()
    result = retrain(settings, few_digits, tmp_path / "run", resume=True)
    assert untimed(result.history) == untimed(expected.history)
    for (name, a), b in zip(result.model.state_dict().items(), expected.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_trained_network_comes_back_from_its_run(tmp_path):
    from dasvit import load_data

    settings = replace(QUICK, data=DataSettings(train_images=200, test_images=50))
    data = load_data(settings.data, image_size=8)
    result = retrain(settings, data, tmp_path / "run")
    network, stored, again = load_trained(tmp_path / "run")
    assert stored == settings
    assert evaluate(network, again.test, 8) == result.accuracy
    kept = json.loads((tmp_path / "run" / "result.json").read_text())
    assert kept.pop("predictions") == result.predictions.tolist()
    assert kept.pop("labels") == data.test.labels.tolist()
    assert kept.pop("preparation")["classes"] == list(data.train.classes)
    assert kept == result.accuracy | {"images": 50}
    assert result.accuracy["top1"] == pytest.approx((result.predictions == data.test.labels).double().mean())
    assert Genotype.from_json((tmp_path / "run" / "genotype.json").read_text())


def test_what_does_not_fit_is_said_before_anything_is_written(few_digits, tmp_path):
    other = replace(few_digits.test, classes=tuple("abcdefghij"))
    for data, change, words in [
        (few_digits, {"batch_size": 190}, "batch_size 190 is more than the 180 training images, 20 more are for valid"),
        (few_digits, {"batch_size": 210, "val_share": 0.0}, "batch_size 210 is more than the 200 training images"),
        (few_digits, {"dim": 25}, "dim 25 is not divisible by 8 heads"),
        (few_digits, {"genotype": "nothing"}, "'nothing' is no readable file"),
        (Data(few_digits.train, other), {}, "differ in their classes"),
    ]:
        with pytest.raises(ValueError, match=words):
            retrain(replace(QUICK, **change), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_balanced_accuracy_gives_every_class_the_same_weight():
    labels = torch.tensor([0] * 8 + [1] * 2)
    always_first = torch.tensor([[1.0, 0.0, 0.0]]).expand(10, 3)
    found = measures(always_first, labels)
    assert found["top1"] == pytest.approx(0.8)
    assert found["balanced"] == pytest.approx(0.5)  # the class without an image does not count


@pytest.mark.torch
@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_compiled_steps_are_checked_against_eager_ones(factor, few_digits, monkeypatch, capfd):
    """A compiler that halves what the network computes is not believed; images that are mixed are mixed once."""
    settings = replace(QUICK, depth=1, epochs=2, mixup=0.8)
    expected, calls = retrain(settings, few_digits), []
    steps = Retraining(settings, few_digits.train, make_fabric(settings.hardware)).steps

    def scaled(graph, _example):
        def call(*args):
            calls.append(torch.is_grad_enabled())
            return tuple(x * factor if x.is_floating_point() else x for x in graph(*args))

        return call

    torch._dynamo.reset()
    monkeypatch.setattr(module, "compile_network", lambda network: nn.Module.compile(network, backend=scaled))
    found = retrain(replace(settings, hardware=replace(settings.hardware, compile=True)), few_digits)
    lines = capfd.readouterr().err.splitlines()
    if factor == 1:
        assert lines == []
        assert calls.count(True) == 2 * steps  # all but the first, and the one that is checked
    else:
        assert len(lines) == 1
        assert "retraining: steps stay eager, the compiled ones fail: train_loss" in lines[0]
        assert len(calls) == 1
    assert untimed(found.history) == untimed(expected.history)
    assert torch.equal(found.predictions, expected.predictions)
