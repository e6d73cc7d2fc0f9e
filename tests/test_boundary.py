"""A search goes on from the end of a stage by the small files of its run directory."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from dasvit import DataSettings, SearchSettings, load_data, search
from dasvit.engine.hardware import Hardware
from dasvit.engine.loop import Interrupted
from dasvit.search_stage import SearchStage
from dasvit.searching import BOUNDARY

TINY = SearchSettings(
    data=DataSettings(train_images=100, test_images=20),
    dim=24,
    stages=((1, 8, 2), (2, 5, 1), (2, 3, 1)),
    batch_size=16,
    hardware=Hardware("cpu", "32-true"),
)


@pytest.fixture(scope="module")
def images():
    return load_data(TINY.data, image_size=TINY.image_size).train


def told(result):
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "bytes")} for row in result.history]
    return rows, result.genotype, {k: v.tolist() for k, v in result.supernet.state_dict().items()}


def stopped_in(stage, settings, images, folder, monkeypatch):
    """Search until a stage has taken a step; return the run's small files in another folder."""
    weight_step = SearchStage.weight_step

    def stop(self, train):
        if self.number == stage:
            raise Interrupted(15)
        return weight_step(self, train)

    with monkeypatch.context() as patch:
        patch.setattr(SearchStage, "weight_step", stop)
        with pytest.raises(Interrupted):
            search(settings, images, folder / "here")
    shutil.copytree(folder / "here", folder / "there", ignore=shutil.ignore_patterns("checkpoints", ".lock"))
    return folder / "there"


@pytest.mark.parametrize(("stage", "carry"), [(1, False), (1, True), (2, True)])
def test_it_comes_to_the_same_end(stage, carry, images, tmp_path, monkeypatch):
    settings = replace(TINY, carry_alpha=carry)
    there = stopped_in(stage, settings, images, tmp_path, monkeypatch)
    assert sum(path.stat().st_size for path in there.rglob("*")) < 50_000
    torch.manual_seed(99)
    seen, train = set(), SearchStage.train
    monkeypatch.setattr(SearchStage, "train", lambda self, *args: (seen.add(self.number), train(self, *args))[1])
    found = search(settings, images, there, resume=True)
    assert seen == set(range(stage, 3))
    monkeypatch.undo()
    assert told(found) == told(search(settings, images))


def test_with_a_checkpoint_it_is_not_looked_at(images, tmp_path, monkeypatch):
    stopped_in(1, TINY, images, tmp_path, monkeypatch)
    (tmp_path / "here" / BOUNDARY).write_text("nothing")
    assert told(search(TINY, images, tmp_path / "here", resume=True)) == told(search(TINY, images))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("stage", 0),
        ("stage", 3),
        ("stage", 2),
        ("candidates", [["skip"] * 5] * 5),
        ("candidates", [["none", "skip", "msa:4", "msa:8"]] * 5),
        ("candidates", [["none", "skip", "msa:4", "msa:8", "msa:7"]] * 5),
        ("candidates", "none"),
        ("alpha", [[0.0] * 5] * 4),
        ("alpha", [[0.0] * 4] * 5),
        ("alpha", [["a"] * 5] * 5),
        ("rows", []),
        ("rows", [{}, {}]),
        ("more", 1),
    ],
)
def test_a_file_of_another_run_is_refused_in_one_line(part, value, images, tmp_path, monkeypatch):
    there = stopped_in(1, TINY, images, tmp_path, monkeypatch)
    content = json.loads((there / BOUNDARY).read_text())
    (there / BOUNDARY).write_text(json.dumps(content | {part: value}))
    with pytest.raises(ValueError, match=rf"{there / BOUNDARY} cannot be used: ") as caught:
        search(TINY, images, there, resume=True)
    assert "\n" not in str(caught.value)
