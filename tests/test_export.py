import json

import numpy as np
import onnxruntime
import pytest
import timm
import torch

from dasvit.exporting import export, trained_model
from dasvit.retraining import RetrainSettings, load_trained, retrain
from dasvit.timm_model import DASViT


@pytest.fixture(scope="module")
def run(few_digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("retrain") / "run"
    from dasvit.data.sources import DataSettings

    data = DataSettings(train_images=200, test_images=50)
    retrain(RetrainSettings(data=data, dim=24, depth=2, epochs=1, warmup_epochs=0), few_digits, path)
    return path


@pytest.fixture(scope="module")
def expected(run, few_digits):
    network, _, _ = load_trained(run)
    images, _ = next(few_digits.test.batches(5, image_size=8))
    with torch.no_grad():
        return images, network.eval()(images)


def test_safetensors(run, expected, tmp_path):
    export(run, tmp_path / "out", "safetensors")
    images, logits = expected
    torch.testing.assert_close(DASViT.from_pretrained(tmp_path / "out").eval()(images), logits)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["label_names"] == [str(i) for i in range(10)]


def test_timm(run, expected, tmp_path, few_digits):
    export(run, tmp_path / "out", "timm")
    images, logits = expected
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    torch.testing.assert_close(model(images), logits)
    assert tuple(model.pretrained_cfg["mean"]) == few_digits.train.mean
    assert tuple(model.pretrained_cfg["input_size"]) == (1, 8, 8)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}


def test_onnx(run, expected, tmp_path, few_digits):
    export(run, tmp_path / "net.onnx", "onnx")
    images, logits = expected
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (name,) = (i.name for i in session.get_inputs())
    for some in (images, images[:1]):  # any batch size
        (out,) = session.run(None, {name: some.numpy()})
        np.testing.assert_allclose(out, logits[: len(some)], atol=1e-5)
    told = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(told["mean"])) == few_digits.train.mean
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_the_genotype_travels(run):
    model, images = trained_model(run)
    assert model.arguments["genotype"].startswith('{"format": 1')
    assert images["label_names"] == tuple(str(i) for i in range(10))


def test_bad_input(run, tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(ValueError, match="taken exists already: choose another --out"):
        export(run, tmp_path / "taken", "timm")
    with pytest.raises(ValueError, match="is no run directory"):
        export(tmp_path, tmp_path / "out", "timm")
    with pytest.raises(ValueError, match=r"cannot write .*: folder .* does not exist"):
        export(run, tmp_path / "no" / "folder" / "net.onnx", "onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
