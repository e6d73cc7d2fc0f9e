"""The whole way on real photographs, where they lie beside the checkout."""

import json
import tarfile
from pathlib import Path

import pytest
from test_cli import dasvit

from dasvit import DataSettings, Genotype, load_data

IMAGES = Path(__file__).resolve().parents[2] / "shared" / "data"


def unpack(archive, into, wanted=lambda name: True):
    if not (IMAGES / archive).exists():
        pytest.skip(f"{archive} is not beside this checkout")
    with tarfile.open(IMAGES / archive) as tar:
        tar.extractall(into, [m for m in tar if m.isfile() and wanted(m.name)], filter="data")
    return into


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    """The first images of each class: 24 to train, 8 to test."""

    def wanted(name):
        part, _, file = Path(name).parts[-3:]
        return int(Path(file).stem) < {"train": 24, "test": 8}[part]

    return unpack("cifar10-jpeg.tar.xz", tmp_path_factory.mktemp("cifar10"), wanted)


def test_cifar10_from_search_to_figure(cifar10, tmp_path, capsys):
    data = ["--data", f"folder:{cifar10}"]
    quick = ["--preset", "small", "--dim", 24]
    found, trained = tmp_path / "search", tmp_path / "retrain"
    assert (
        dasvit("search", *data, *quick, "--stages", *["1", "8", "1", "2", "5", "1", "2", "3", "1"], "--out", found) == 0
    )
    epochs = ["--depth", 2, "--epochs", 2, "--warmup-epochs", 1]
    assert dasvit("retrain", "--genotype", found / "genotype.json", *data, *quick, *epochs, "--out", trained) == 0
    capsys.readouterr()
    assert dasvit("evaluate", trained, "--json") == 0
    accuracy = json.loads(capsys.readouterr().out)
    assert accuracy["images"] == 80
    assert 0 <= accuracy["top1"] <= accuracy["top5"] <= 1
    assert dasvit("draw", found / "genotype.json", "-o", tmp_path / "F.svg") == 0
    settings = json.loads((found / "settings.json").read_text())["settings"]
    assert settings["data"]["augmentation"]["flip"] is True
    assert Genotype.from_json((found / "genotype.json").read_text())


def test_cifar10_looks_like_photographs(cifar10):
    data = load_data(DataSettings(f"folder:{cifar10}"), image_size=32)
    assert data.train.images.shape == (240, 3, 32, 32)
    assert data.train.classes[0] == "airplane"
    assert all(0.3 < mean < 0.6 for mean in data.train.mean)
    neighbours = (data.train.images[..., 1:].float() - data.train.images[..., :-1].float()).abs().mean()
    assert neighbours < 20  # noise would differ by 85 from pixel to pixel


def test_imagenet_photographs_of_any_shape(tmp_path, monkeypatch):
    folder = unpack("imagenet100-sample.tar", tmp_path / "imagenet")
    (folder / "train").symlink_to(folder / "val")
    monkeypatch.setenv("DASVIT_DATA", str(tmp_path))
    settings = DataSettings("imagenet100", classes=IMAGES / "imagenet100-wnids.txt")
    data = load_data(settings, image_size=64)
    assert data.train.images.shape == (100, 3, 64, 64)
    assert len(data.train.classes) == 100
    assert data.train.images.float().std() > 40
