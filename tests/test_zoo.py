import json
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from claims import claims
from torch.utils.flop_counter import FlopCounterMode

from dasvit.counting import complexity
from dasvit.zoo import HEAD_SIZES, IMAGE_SIZE, TABLE_1, audit

WIDTHS = {"VGG-16": 4096, "VGG-19": 4096, "EfficientNet-B7": 2560, "RegNetY-12GF": 2240, "RegNetY-16GF": 3024}
WIDTHS |= {"ResNet-50": 2048, "ResNet-152": 2048, "ViT-B/16": 768, "DASViT": 768}
WIDTHS |= {"TNT-B": 640, "CaiT-S36": 384, "AutoFormer-B": 576}


@pytest.fixture(scope="module")
def audited():
    return {row.name: row for row in audit()}


@pytest.mark.parametrize("name", TABLE_1)
def test_every_row_and_size_of_the_classifier(audited, name):  # ledger A25
    row, width = audited[name], WIDTHS[name]
    assert [c.num_classes for c in row.counts] == list(HEAD_SIZES)
    first = row.counts[0]
    for count in row.counts:
        with torch.device("meta"):
            model = TABLE_1[name].make(num_classes=count.num_classes)
        assert count.parameters == sum(p.numel() for p in model.parameters())
        more = count.num_classes - first.num_classes  # a larger classifier is the only difference
        assert count.parameters - first.parameters == more * (width + 1)
        for convention in "ABC":
            assert count.macs[convention] - first.macs[convention] == more * width
    with FlopCounterMode(display=False) as counter:  # on the meta device: nothing is computed
        model.eval()(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, device="meta"))
    assert counter.get_total_flops() == 2 * row.counts[-1].macs["A"]


def test_where_the_printed_figures_come_from(audited):  # ledger A1, A25, A26
    for row in audited.values():
        by_parameters = [c.num_classes for c in row.counts if f"{c.parameters / 1e6:.1f}" == row.printed_parameters]
        assert row.parameters_from == by_parameters
        assert all(
            f"{c.macs[k] / 1e9:.1f}" == row.printed_macs
            for k, n in row.macs_from.items()
            for c in row.counts
            if c.num_classes in n
        )
    assert audited["DASViT"].parameters_from == audited["ViT-B/16"].parameters_from == [10]
    assert list(audited["DASViT"].macs_from) == ["B"]
    assert list(audited["ViT-B/16"].macs_from) == ["C"]
    assert audited["AutoFormer-B"].macs_from == {}


def test_the_claims_say_which_costs_are_exact(audited):
    tools = json.loads((Path(__file__).parents[1] / "book" / "results" / "counting_tools.json").read_text())["macs"]
    rows = claims()["table"]["rows"]
    for name, row in audited.items():
        by_tool = {f"{n / 1e9:.1f}" for key, counts in tools.items() if key.startswith(name) for n in counts.values()}
        exact = bool(row.macs_from) or row.printed_macs in by_tool
        assert rows[name]["FLOPs"] == ("exact" if exact else "contradicted"), name
        assert rows[name]["parameters"] == ("exact" if row.parameters_from else "contradicted"), name


def test_our_vit_counts_as_those_of_torchvision_and_timm(audited):
    with torch.device("meta"):
        others = [
            torchvision.models.vit_b_16(num_classes=10),
            timm.create_model("vit_base_patch16_224", num_classes=10),
        ]
    ours = audited["ViT-B/16"].counts[0]
    for other in others:
        counted = complexity(other, IMAGE_SIZE)
        assert (counted.parameters, counted.products[""]) == (ours.parameters, ours.products)


def test_unknown_row():
    with pytest.raises(ValueError, match=r"'LeNet' is no row of Table I; its rows are VGG-16, VGG-19"):
        next(audit(["LeNet"]))
