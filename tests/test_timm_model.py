import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import create_model, list_models

import dasvit
from dasvit.timm_model import NAME, DASViT

SMALL = {"img_size": 32, "patch_size": 8, "num_classes": 10, "embed_dim": 24, "depth": 2}


def make(**settings):
    return create_model(NAME, **SMALL | settings).eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32)


def test_registered_by_the_import_alone():
    assert list_models("dasvit*") == [NAME]
    with torch.device("meta"):
        model = create_model(NAME, num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == 50_449_162


def test_the_same_network_as_build(images):
    model = make(genotype="dasvit-imagenet100")
    sizes = {"image_size": 32, "patch_size": 8, "num_classes": 10, "dim": 24, "depth": 2}
    network = dasvit.build("dasvit-imagenet100", **sizes)
    network.load_state_dict(model.state_dict())
    assert torch.equal(model(images), network(images))
    assert torch.equal(model(images), model.forward_head(model.forward_features(images)))


def test_reset_classifier(images):
    model = make()
    model.reset_classifier(5, "avg")
    features = model.forward_features(images)
    assert model.get_classifier() is model.head
    torch.testing.assert_close(model(images), model.head(features[:, 1:].mean(1)))
    model.reset_classifier(0, "token")
    assert torch.equal(model(images), features[:, 0])
    assert torch.equal(make(num_classes=0)(images), model(images)) is False  # other weights
    assert make(num_classes=0)(images).shape == (3, model.num_features)
    with pytest.raises(ValueError, match="unknown global_pool 'max'; known: token, avg"):
        model.reset_classifier(5, "max")


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (33, 20), (7, 100)])
def test_any_image_size(size):
    x = torch.randn(2, 3, *size)
    flexible, made = make(), make(img_size=size)
    grid = tuple(-(-s // 8) for s in size)
    assert made.grid_size == grid
    assert made.pos_embed.shape == (1, 1 + grid[0] * grid[1], 24)
    assert made(x).shape == flexible(x).shape == (2, 10)
    # the network made for this size, with resampled positions, is the flexible one
    state = flexible.state_dict()
    state["pos_embed"] = resample_abs_pos_embed(flexible.pos_embed, list(grid), [4, 4], num_prefix_tokens=1)
    made.load_state_dict(state)
    torch.testing.assert_close(made(x), flexible(x))


def test_padding_is_zeros_to_the_right_and_below():
    x, model = torch.randn(1, 3, 30, 27), make()
    padded = torch.zeros(1, 3, 32, 32)
    padded[:, :, :30, :27] = x
    assert torch.equal(model(x), model(padded))


def test_gradient_checkpointing_keeps_less_and_gives_the_same_gradients(images):
    model, kept, gradients = make(depth=4).double(), [], []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):  # noqa: B023
            loss = model(images.double()).square().sum()
        kept.append(sum(saved))
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    assert kept[1] < kept[0] / 3
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.usefixtures("_unchecked")
def test_compiled_and_exported_give_equal_outputs(images):
    model = make()
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(images), expected)
        exported = torch.export.export(model, (images,))
        torch.testing.assert_close(exported.module()(images), expected)


def test_save_pretrained_and_back(images, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    genotype = tmp_path / "genotype.json"
    genotype.write_text(dasvit.genotypes()["dasvit-imagenet100"].to_json())
    model = make(genotype=str(genotype))
    model.reset_classifier(7, "avg")
    model.save_pretrained(tmp_path / "saved")
    genotype.unlink()  # what is saved needs no file beside it
    assert {p.suffix for p in (tmp_path / "saved").iterdir()} <= {".json", ".safetensors", ".md"}
    again = DASViT.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(again(images), model(images))


def test_parameter_groups():
    model = make()
    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}
    from timm.models import group_parameters

    groups = group_parameters(model, model.group_matcher())
    assert sorted(n for names in groups.values() for n in names) == sorted(n for n, _ in model.named_parameters())
    assert len(groups) == 4  # stem, two layers, head with its norm


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"genotype": "lenet"}, "'lenet' is no readable file and no known name"),
        ({"img_size": 0}, "img_size 0 or patch_size 8 is below one"),
        ({"embed_dim": 20}, "dim 20 is not divisible by 8 heads"),
        ({"global_pool": "max"}, "unknown global_pool 'max'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_wrong_channels():
    with pytest.raises(ValueError, match="images have 1 channels, the model takes 3"):
        make()(torch.zeros(1, 1, 32, 32))


def test_every_parameter_gets_a_gradient(images):
    model = timm.create_model(NAME, **SMALL, drop_rate=0.1).train()
    model(images).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
