"""Networks trained in banks, many at once, come to what each comes to alone."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tape import Tape
from test_landscape import RECIPE, SPACE
from torch.optim import AdamW

from dasvit import SearchSpace, build
from dasvit.engine import hardware
from dasvit.engine.hardware import Hardware
from dasvit.landscape import LandscapeSettings, train
from dasvit.landscape.banks import Bank, alike, losses, names_by_bank
from dasvit.vit import weight_groups

SIZES = {"image_size": 8, "patch_size": 2, "in_channels": 1}


def test_every_bank_has_each_operation_on_each_edge_equally_often():
    seen = set()
    for bank in alike(7):
        assert len(bank) == 49
        for place in range(4):
            assert Counter(choice[place] for choice in bank) == dict.fromkeys(range(7), 7)
        seen |= set(bank)
    assert len(seen) == 7**4
    for count in (1, 2, 4, 6):
        with pytest.raises(ValueError, match=f"{count} operations: banks alike need a prime"):
            next(alike(count))


def test_every_name_is_in_a_bank():
    names = names_by_bank(SPACE)
    assert sorted(names) == list(range(len(SPACE)))
    for start in range(0, len(names), 49):
        genotypes = [SPACE[n] for n in names[start : start + 49]]
        assert len({tuple(edge for edge, _ in g.edges) for g in genotypes}) == 1
        for place in range(4):
            assert set(Counter(list(g.edges)[place][1] for g in genotypes).values()) == {7}
    small = SearchSpace(heads=(2,), mlp_ratios=(1,), nodes=1)
    assert sorted(names_by_bank(small)) == list(range(len(small)))


def test_a_bank_takes_the_steps_of_each_network_alone():
    numbers = names_by_bank(SPACE)[49 * 60 : 49 * 60 + 24]
    torch.set_default_dtype(torch.float64)
    try:
        networks = [build(SPACE[n], depth=2, dim=24, num_classes=5, class_token_last=True, **SIZES) for n in numbers]
    finally:
        torch.set_default_dtype(torch.float32)
    bank = Bank(networks, SPACE, numbers)
    assert sum(p.numel() for p in bank.parameters()) == sum(p.numel() for n in networks for p in n.parameters())
    together = AdamW(bank.weight_groups(0.05), lr=3e-3)
    alone = [AdamW(weight_groups(network, 0.05), lr=3e-3) for network in networks]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        images = torch.randn(8, 1, 8, 8, dtype=torch.float64, generator=generator)
        labels = torch.randint(5, (8,), generator=generator)
        own = losses(bank(images), labels)
        own.sum().backward()
        together.step()
        together.zero_grad()
        for i, (network, optimizer) in enumerate(zip(networks, alone, strict=True)):
            loss = F.cross_entropy(network(images), labels)
            torch.testing.assert_close(own[i], loss, atol=1e-10, rtol=0)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    difference = bank(images) - torch.stack([network(images) for network in networks], dim=1)
    assert difference.abs().max() < 1e-10


def test_a_bank_is_of_one_wiring():
    numbers = names_by_bank(SPACE)[48::2353][:2]
    networks = [build(SPACE[n], depth=1, dim=24, num_classes=5, **SIZES) for n in numbers]
    with pytest.raises(ValueError, match="2 wirings in one bank"):
        Bank(networks, SPACE, numbers)


def test_a_landscape_of_banks_is_that_of_networks(tmp_path, monkeypatch):
    """Every name of a small space, in double precision, also when it is cut within a bank."""
    recipe = replace(RECIPE, hardware=Hardware("cpu", "64-true"), dim=8)
    settings = LandscapeSettings(
        recipe,
        SearchSpace(heads=(2, 4), mlp_ratios=(1,), nodes=1, keep=1),
        networks=1,
        every=True,
        trainings=2,
        curve_images=50,
    )
    alone = train(settings)
    assert len(alone) == 2 * len(settings.space) == 16
    assert len({(row["number"], row["seed"]) for row in alone}) == 16
    banks = train(settings, tmp_path / "run", bank=3)
    assert max(row["seconds"][0] for row in banks) > 0

    def check(rows):
        for one, other in zip(alone, rows, strict=True):
            for name in ("number", "seed", "val_correct", "test_correct", "correct"):
                assert one[name] == other[name]
            for name in ("train_loss", "val_loss", "test_loss"):
                assert one[name] == pytest.approx(other[name], rel=1e-6)

    check(banks)
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:5]))  # the second bank is not whole
    check(train(settings, tmp_path / "run", bank=3, resume=True))


BANK = LandscapeSettings(
    replace(RECIPE, hardware=Hardware("cpu", "64-true"), dim=8),
    SearchSpace(heads=(2, 4), mlp_ratios=(1,), nodes=1, keep=1),
    networks=1,
    every=True,
    trainings=1,
    curve_images=50,
)


def same_to_rounding(rows, others):
    for one, other in zip(rows, others, strict=True):
        for name in ("number", "seed", "val_correct", "test_correct", "correct"):
            assert one[name] == other[name]
        for name in ("train_loss", "val_loss", "test_loss"):
            assert one[name] == pytest.approx(other[name], rel=1e-6)


def test_a_bank_whose_steps_are_recorded_takes_the_same(monkeypatch, capfd):
    eager, tapes = train(BANK, bank=4), []

    def make(_device):
        tapes.append(Tape())
        return tapes[-1]

    monkeypatch.setattr(hardware, "make_recorder", make)
    same_to_rounding(train(BANK, bank=4), eager)
    assert "eager" not in capfd.readouterr().err
    assert [tape.replays for tape in tapes] == [2 * 3] * 2  # all but the first of 2 x 3 steps, and the one checked


def test_a_bank_that_is_recorded_wrongly_stays_eager(monkeypatch, capfd):
    class Forgetful(Tape):
        def replay(self, calls):
            super().replay([call for call in calls if "adamw" not in str(call[0])])

    eager = train(BANK, bank=4)
    monkeypatch.setattr(hardware, "make_recorder", lambda _device: Forgetful())
    same_to_rounding(train(BANK, bank=4), eager)
    assert capfd.readouterr().err.count("steps stay eager, the shorter ones fail: value") == 2


def test_what_a_bank_cannot_do_is_refused():
    mixing = replace(BANK, recipe=replace(BANK.recipe, mixup=0.2))
    with pytest.raises(ValueError, match="mixup is not for banks: train one"):
        train(mixing, bank=4)
    networks = [build(SPACE[0], depth=1, dim=24, num_classes=5, **SIZES) for _ in range(2)]
    for network in networks:
        network.norm = torch.nn.BatchNorm1d(5)
    with pytest.raises(ValueError, match="running statistics is not for banks"):
        Bank(networks, SPACE, [0, 0])
