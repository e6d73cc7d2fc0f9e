"""What people add to a training: each does what it says, and all together go on as if they had not been stopped."""

import csv
import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath

from dasvit import Augmentation, DataSettings, ImageSet, RetrainSettings, SearchSettings, build, retrain, search
from dasvit.data.images import Augmentation as Same
from dasvit.data.policies import drawing, rand_augment, repeated
from dasvit.engine.hardware import Hardware, make_fabric
from dasvit.engine.loop import Interrupted
from dasvit.exporting import export
from dasvit.inspecting import load_supernet
from dasvit.operations import Skip
from dasvit.recipe import Teacher, distilled, drop_paths
from dasvit.retraining import Retraining, classify, load_trained

ALL = Augmentation(flip=True, shift=0.1, min_crop=0.6, rand_augment="rand-m5-n2-mstd0.5", repeats=3)
QUICK = RetrainSettings(
    data=DataSettings(train_images=120, test_images=30),
    dim=24,
    depth=2,
    epochs=2,
    warmup_epochs=1,
    batch_size=20,
    hardware=Hardware("cpu", "32-true"),
)
EVERYTHING = replace(
    QUICK,
    data=replace(QUICK.data, augmentation=ALL),
    drop_path=0.3,
    ema=0.99,
    mixup=0.2,
    cutmix=0.5,
    erase=0.2,
    label_smoothing=0.1,
)


@pytest.fixture(scope="module")
def digits(few):
    return few


@pytest.fixture(scope="module")
def few():
    from dasvit import load_data

    return load_data(QUICK.data, image_size=8)


@pytest.fixture(scope="module")
def teacher(few, tmp_path_factory):
    """A run, and the folder of its network for timm."""
    folder = tmp_path_factory.mktemp("teacher")
    retrain(QUICK, few, folder / "run")
    export(folder / "run", folder / "net", "timm")
    return folder


def untimed(rows):
    return [{k: v for k, v in row.items() if k not in ("seconds", "bytes")} for row in rows]


@pytest.mark.usefixtures("_unchecked")  # the checks of types draw numbers from Python's generator, as erasing does
@pytest.mark.parametrize("stop", [3, 8])
def test_all_together_go_on_to_the_same_bits(stop, few, teacher, tmp_path, monkeypatch):
    settings = replace(EVERYTHING, teacher=f"local-dir:{teacher / 'net'}", distill=0.4, distill_temperature=2.0)
    whole = retrain(settings, few, tmp_path / "whole")
    steps, step = iter(range(1, 1000)), torch.optim.AdamW.step

    def stopping(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        if next(steps) == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stopping)
        with pytest.raises(Interrupted):
            retrain(settings, few, tmp_path / "parts", logger="csv")
    torch.manual_seed(99)
    np.random.seed(99)
    parts = retrain(settings, few, tmp_path / "parts", resume=True, logger="csv")
    assert untimed(parts.history) == untimed(whole.history)
    assert parts.accuracy == whole.accuracy
    for name, value in whole.model.state_dict().items():
        assert torch.equal(parts.model.state_dict()[name], value), name
    with open(tmp_path / "parts" / "csv" / "metrics.csv") as file:
        logged = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    rows = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in row.items() if k != "step"} for row in logged] == rows
    network, _, _ = load_trained(tmp_path / "whole")  # what is kept is what was evaluated
    for name, value in whole.model.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name


def test_the_average_is_that_of_the_weights(few):
    settings = replace(QUICK, ema=0.9, epochs=2)
    job = Retraining(settings, few.train, make_fabric(settings.hardware))
    weight = dict(job.network.named_parameters())["head.weight"]
    expected, seen = weight.detach().clone(), []
    for number, _ in enumerate(job.train(0, 0), 1):
        decay = min(0.9, 1 - number ** (-2 / 3))  # it is warmed up
        seen.append(decay)
        expected = decay * expected + (1 - decay) * weight.detach()
    assert len(seen) > 3
    torch.testing.assert_close(dict(job.average.module.named_parameters())["head.weight"], expected)
    assert job.kept is job.average.module


def test_drop_path_grows_with_depth_and_spares_identities():
    network = build(
        '{"format": 1, "nodes": [[[0, "skip"], [1, "mlp:1"]]]}', dim=24, depth=3, image_size=8, patch_size=4
    )
    x, before = torch.randn(4, 3, 8, 8), network.state_dict().keys()
    plain = network.eval()(x)
    drop_paths(network, 0.6)
    assert [layer.drop_path.drop_prob for layer in network.layers] == pytest.approx([0, 0.3, 0.6])
    assert network.state_dict().keys() == before
    assert torch.equal(network.eval()(x), plain)  # a test sees the whole network
    cell = network.train().layers[2]
    cell.drop_path = DropPath(1.0)
    tokens = torch.randn(4, 5, 24)
    assert torch.equal(cell(tokens, torch.randn(4, 5, 24)), tokens)  # all but the identity is left out
    assert any(isinstance(edge, Skip) for edge in cell.edges.values())


def test_drop_path_is_for_the_plain_transformer_too():
    network = build("vit_b16", dim=24, depth=1, image_size=8, patch_size=4)
    drop_paths(network, 0.5)
    network.layers[0].drop_path = DropPath(1.0)
    tokens = torch.randn(2, 5, 24)
    assert torch.equal(network.train().layers[0](tokens, tokens), tokens)


def test_distillation_by_hand():
    logits, taught = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    p, q = (taught / 3).softmax(1), (logits / 3).softmax(1)
    assert distilled(logits, taught, 3.0).item() == pytest.approx(9 * (p * (p / q).log()).sum().item() / 6)
    assert distilled(taught, taught, 2.0).item() == pytest.approx(0)


def test_a_teacher_sees_images_as_it_was_taught(few, teacher):
    """Its logits for a student with another normalisation are those that it has in its own run."""
    network, settings, data = load_trained(teacher / "run")
    expected, _ = classify(network, data.test, settings.image_size)
    other = ImageSet(few.test.images, few.test.labels, few.test.classes, (0.1,), (0.7,))
    taught = Teacher(f"local-dir:{teacher / 'net'}", other, make_fabric(QUICK.hardware))
    x, _ = next(other.batches(len(other), image_size=8))
    torch.testing.assert_close(taught(x), expected, atol=1e-4, rtol=1e-4)
    assert not any(p.requires_grad for p in taught.model.parameters())
    larger, _ = next(other.batches(len(other), image_size=16))
    assert taught(larger).shape == expected.shape


def test_a_teacher_teaches(few, teacher):
    """With all weight on the teacher the student comes nearer to its answers, whatever the labels say."""
    settings = replace(QUICK, teacher=f"local-dir:{teacher / 'net'}", distill=1.0, epochs=6, val_share=0.0)
    wrong = replace(few.train, labels=few.train.labels.flip(0))
    job = Retraining(settings, wrong, make_fabric(settings.hardware))
    x, _ = next(few.train.batches(len(few.train), image_size=8))

    def apart():
        with torch.no_grad():
            return distilled(job.network.eval()(x), job.recipe.teacher(x), 1.0).item()

    before = apart()
    for epoch in range(6):
        for _ in job.train(epoch, 0):
            pass
    assert apart() < 0.7 * before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_model", "teacher 'no_such_model' cannot be had"),
        ("local-dir:none", "teacher 'local-dir:none' cannot be had"),
    ],
)
def test_a_teacher_that_is_not_there_is_one_line(name, words, few, tmp_path):
    with pytest.raises(ValueError, match=words) as caught:
        retrain(replace(QUICK, teacher=name), few, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_teacher_of_other_classes_is_refused(few, teacher):
    other = replace(few.train, classes=tuple("abcdefghij"))
    with pytest.raises(ValueError, match="or they have other names: train it on the same folders"):
        Teacher(f"local-dir:{teacher / 'net'}", other, make_fabric(QUICK.hardware))


def photographs(n=24, channels=3):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, channels, 16, 16), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(n), ("a",), (0.5,) * channels, (0.25,) * channels)


@pytest.mark.parametrize("channels", [1, 3])
def test_rand_augment_is_timms_drawn_by_the_key(channels):
    images = photographs(4, channels).images
    mean = (0.5,) * channels
    one, same, other = (rand_augment(images, "rand-m9-n2", mean, (1, 2, k, 0)) for k in (3, 3, 4))
    assert one.shape == images.shape
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, images)
    second = rand_augment(images[2:], "rand-m9-n2", mean, (1, 2, 3, 2))
    assert torch.equal(one[2:], second)  # the draw is the place's, whoever computes it


def test_global_generators_go_on_as_if_nothing_had_drawn():
    import random

    random.seed(5), np.random.seed(5)
    expected = random.random(), np.random.rand()
    random.seed(5), np.random.seed(5)
    with drawing(1, 2):
        first = random.random(), np.random.rand()
    assert (random.random(), np.random.rand()) == expected
    with drawing(1, 2):
        assert (random.random(), np.random.rand()) == first


def test_repeats_show_an_image_several_times_and_an_epoch_is_as_long():
    order = repeated(100, 3, seed=7)
    assert len(order) == 100
    assert sorted(order.bincount().unique().tolist()) in ([0, 1, 3], [0, 3])
    assert not torch.equal(order, repeated(100, 3, seed=8))
    images = photographs()
    batches = list(images.batches(12, image_size=16, seed=1, augmentation=Augmentation(min_crop=0.5, repeats=3)))
    (x, y) = batches[0]
    assert y.bincount().max() == 3
    assert not torch.equal(x[0], x[1])  # each time distorted otherwise
    assert len(batches) == 2


@pytest.mark.parametrize("start", [1, 2])
def test_parts_and_later_batches_are_those_of_the_whole(start):
    images, how = photographs(), {"image_size": 12, "seed": 3, "epoch": 1, "augmentation": ALL}
    whole = list(images.batches(6, **how))
    for (x, y), (x_again, y_again) in zip(whole[start:], images.batches(6, start=start, **how), strict=True):
        assert torch.equal(x, x_again)
        assert torch.equal(y, y_again)
    parts = zip(*(images.batches(6, **how, part=(i, 2)) for i in range(2)), strict=True)
    for (x, _), ((first, _), (second, _)) in zip(whole, parts, strict=True):
        assert torch.equal(torch.cat([first, second]), x)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"rand_augment": "trivial"}, "is no configuration of timm's"), ({"repeats": 0}, "repeats 0 is outside 1 to 100")],
)
def test_augmentations_that_cannot_be_meant(settings, words):
    with pytest.raises(ValueError, match=words):
        Same(**settings)


SEARCH = SearchSettings(
    data=QUICK.data, dim=24, stages=((1, 8, 1), (2, 3, 1)), batch_size=20, attends=True, hardware=QUICK.hardware
)


@pytest.fixture(scope="module")
def searched(few, tmp_path_factory):
    path = tmp_path_factory.mktemp("search") / "run"
    return path, search(SEARCH, few, path).genotype


def test_a_retraining_starts_from_the_supernets_weights(searched, few, tmp_path, monkeypatch):
    path, genotype = searched
    supernet, *_ = load_supernet(path)
    expected = supernet.extract(genotype).state_dict()
    seen, init = [], Retraining.__init__

    def noting(self, *args, **kwargs):
        init(self, *args, **kwargs)
        seen.append({k: v.clone() for k, v in self.network.state_dict().items()})

    monkeypatch.setattr(Retraining, "__init__", noting)
    settings = replace(QUICK, genotype=genotype.to_json(), init_from=str(path))
    result = retrain(settings, few, tmp_path / "run")
    assert seen[0].keys() == expected.keys()
    assert all(torch.equal(seen[0][name], value) for name, value in expected.items())
    again = retrain(settings, few, tmp_path / "run", resume=True)
    assert again.accuracy == result.accuracy
    fresh = retrain(replace(settings, init_from=None), few)
    assert not torch.equal(seen[1]["head.weight"], fresh.model.state_dict()["head.weight"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depth": 3}, "has depth 2: use the same"),
        ({"patch_size": 4}, "has patch_size 2: use the same"),
        ({"genotype": "vit_b16"}, "is the plain transformer"),
        ({"genotype": '{"format": 1, "nodes": [[[0, "msa:2"]]]}'}, "is not a candidate|no edge|has"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, words, searched, few, tmp_path):
    path, genotype = searched
    settings = replace(QUICK, genotype=genotype.to_json(), init_from=str(path))
    with pytest.raises(ValueError, match=words):
        retrain(replace(settings, **change), few, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_exported_network_is_fine_tuned_by_timms_parts(few, teacher):
    """The loop of timm's script in short, which is not in its package: its optimiser, scheduler and loss."""
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    model = timm.create_model(f"local-dir:{teacher / 'net'}", pretrained=True, num_classes=3)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=3e-3, weight_decay=0.05, layer_decay=0.8)
    schedule, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=8)
    loss = LabelSmoothingCrossEntropy(0.1)
    x, y = next(few.train.batches(100, image_size=8))
    losses = []
    for epoch in range(epochs):
        losses.append(loss(model.train()(x), y % 3))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step(epoch + 1)
    assert losses[-1] < 0.8 * losses[0]


def test_a_logger_that_is_not_there_is_one_line(few, tmp_path, monkeypatch):
    from dasvit.engine import loggers

    def missing(*_):
        raise ModuleNotFoundError("tensorboard")

    monkeypatch.setattr(loggers, "TensorBoardLogger", missing)
    with pytest.raises(ValueError, match="needs a package that is not here: pip install tensorboard"):
        retrain(QUICK, few, tmp_path / "run", logger="tensorboard")
    with pytest.raises(ValueError, match="unknown logger 'wandb'; known: csv, tensorboard"):
        search(SEARCH, few, tmp_path / "run", logger="wandb")
    assert not (tmp_path / "run").exists()


def test_tensorboard_reads_what_is_logged(few, tmp_path):
    from tensorboard.backend.event_processing import event_accumulator

    search(SEARCH, few, tmp_path / "run", logger="tensorboard")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    read = event_accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    read.Reload()
    found = [event.value for event in read.Scalars("train_loss")]
    assert found == pytest.approx([row["train_loss"] for row in rows])


def test_a_loss_of_ones_own_is_still_taken(few):
    seen = []

    def loss(logits, target):
        seen.append(target.shape)
        return F.cross_entropy(logits, target)

    retrain(replace(QUICK, epochs=2, ema=0.9), few, loss=loss)
    assert seen
