import os
import random
import subprocess
from pathlib import Path

import pytest
import torch

from dasvit import Genotype, Operation, SearchSpace, build, genotypes
from dasvit.encoder import make_cell, make_operation, resolve

SMALL = {"image_size": 8, "patch_size": 2, "in_channels": 1, "num_classes": 10, "dim": 24, "depth": 2}


@pytest.mark.parametrize("name", genotypes())
def test_published_encoder_has_the_printed_size(name):
    with torch.device("meta"):
        model = build(name, num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == 50_449_162


def test_baseline_has_the_printed_size():
    with torch.device("meta"):
        model = build("vit_b16", num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == 85_806_346


def test_published_encoder_follows_its_equations():
    cell = make_cell(genotypes()["dasvit-cifar10"], 24).double()
    first, second = torch.randn(2, 1, 5, 24, dtype=torch.double)
    h = cell.edges["0-2"](first) + cell.edges["1-2"](second)
    g = cell.edges["2-3"](h) + cell.edges["1-3"](second)
    torch.testing.assert_close(cell(first, second), h + g)
    assert torch.equal(cell.intermediates(first, second)["nodes"], torch.stack([h, g]))


def test_layers_see_the_two_outputs_before():
    model = build("dasvit-cifar10", **SMALL | {"depth": 3}).double()
    images = torch.randn(2, 1, 8, 8, dtype=torch.double)
    e = [model.embed(images)] * 2
    for layer in model.layers:
        e.append(layer(e[-2], e[-1]))
    torch.testing.assert_close(model(images), model.head(model.norm(e[-1])[:, 0]))


def test_any_architecture_of_the_space_can_be_built_and_trained():
    rng = random.Random(0)
    for space in (SearchSpace(), SearchSpace(nodes=3), SearchSpace(nodes=1, inputs=1, keep=1)):
        for _ in range(4):
            model = build(space.sample(rng), **SMALL)
            model(torch.randn(2, 1, 8, 8)).sum().backward()
            assert model.head.weight.grad.any()


@pytest.mark.parametrize("text", ["none", "skip", "msa:4", "mlp:0.5"])
def test_operation(text):
    x = torch.randn(2, 5, 24)
    y = make_operation(Operation.parse(text), 24)(x)
    assert y.shape == x.shape
    assert torch.equal(y, {"none": torch.zeros_like(x), "skip": x}.get(text, y))


def test_operations_normalise_their_input():
    for text in ("msa:4", "mlp:1"):
        operation, x = make_operation(Operation.parse(text), 24).double(), torch.randn(1, 3, 24, dtype=torch.double)
        torch.testing.assert_close(operation(x), operation(10 * x), atol=1e-4, rtol=1e-4)


def test_resolve_takes_names_texts_and_files(tmp_path):
    published = genotypes()["dasvit-imagenet100"]
    file = tmp_path / "genotype.json"
    file.write_text(published.to_json())
    assert resolve(str(file)) == resolve(published.to_json()) == resolve("dasvit-imagenet100") == published
    assert resolve("vit_b16") == "vit_b16"


@pytest.mark.parametrize(
    ("name", "words"), [("resnet", "'resnet' is no readable file and no known name"), ("{}", "format")]
)
def test_resolve_names_what_it_cannot_find(name, words):
    with pytest.raises(ValueError, match=words):
        resolve(name)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_regular_file_is_not_read(kind, tmp_path):
    path, pipe = {"folder": tmp_path, "device": Path("/dev/null")}.get(kind, tmp_path / "pipe"), tmp_path / "pipe"
    os.mkfifo(pipe)
    text = genotypes()["dasvit-cifar10"].to_json()
    writer = subprocess.Popen(["sh", "-c", f"echo '{text}' > {pipe}"])  # reading once would succeed, twice would hang
    try:
        with pytest.raises(ValueError, match=r"is no readable file and no known name: vit_b16") as caught:
            resolve(str(path))
    finally:
        writer.kill()
        writer.wait()
    assert "\n" not in str(caught.value)


def test_a_huge_file_is_not_read_to_its_end(tmp_path):
    file = tmp_path / "huge.json"
    file.write_text(genotypes()["dasvit-cifar10"].to_json() + " " * 100_000)
    with pytest.raises(ValueError, match=r"huge\.json has more than 100,000 characters: a genotype is a line of JSON"):
        resolve(str(file))


def test_a_bad_genotype_file_is_named(tmp_path):
    file = tmp_path / "broken.json"
    file.write_text('{"format": 1, "nodes": [[[5, "skip"]]]}')
    with pytest.raises(ValueError, match=r"broken\.json: genotype node 2 reads source 5"):
        resolve(str(file))


def test_genotype_with_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="dim 24 is not divisible by 5 heads"):
        build(Genotype.from_json('{"format": 1, "nodes": [[[0, "msa:5"]]]}'), **SMALL)
