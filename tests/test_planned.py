"""What the GPU evidence is expected to take, counted on fake tensors."""

import json
from pathlib import Path

import planned
import pytest

from dasvit.engine.kernels import Kernels
from dasvit.searching import SearchSettings

pytestmark = pytest.mark.usefixtures("_unchecked")  # to look at the shape of every fake tensor takes as long again

RECORDED = Path(__file__).resolve().parents[1] / "book" / "results" / "gpu" / "planned.json"


def test_planned_table_is_the_recorded_one():
    recorded = json.loads(RECORDED.read_text())
    table = planned.table(recorded["rows"])
    assert planned.BEGIN + "\n" + table + "\n" + planned.END in planned.README.read_text()
    assert table.count("\n") == 2 + len(recorded["rows"]) + 3  # header, and a sum for each search


def test_the_search_is_planned_within_twenty_minutes_of_an_h200():
    """All 90 epochs, with recorded steps, and no stage has more kernels than was aimed at."""
    rows = planned.totals(json.loads(RECORDED.read_text())["rows"])
    *stages, whole = (row for row in rows if row["step"] == "search")
    assert len(stages) == 3
    assert max(row["kernels"] for row in stages) <= 2500
    assert whole["seconds"]["H200"]["recorded"] <= 20 * 60


def test_planned_rows_of_a_small_search():
    settings = SearchSettings(dim=24, stages=((1, 8, 2),), batch_size=100)
    (row,) = planned.search_rows("search", settings)
    assert row["peak_bytes"] > row["disk_bytes"] / 2 > 0
    assert row["flops"] % (2 * planned.IMAGES // 200) == 0
    assert row["steps"] == 2 * planned.IMAGES // 200
    seconds = row["seconds"]["H200"]
    least = max(seconds["products"], seconds["bytes"], row["steps"] * row["kernels"] * 2.5e-6)
    assert least * (1 - 1e-9) <= seconds["recorded"] <= 3 * least
    assert seconds["eager"] == [max(seconds["recorded"], row["steps"] * row["kernels"] * s) for s in (8e-6, 14e-6)]


def test_planned_seconds_by_hand():
    kernels = Kernels(lambda *_: 0)
    kernels.work.update({(989 * 56 * 10**10, 0): 2, (0, 1): 3})  # two of a second each, three that do next to nothing
    told = planned.expected(kernels, 10, more=0.5)
    assert told["seconds"]["H200"]["recorded"] == pytest.approx(10 * (2 + 3 * 2.5e-6 + 1))
    assert (told["kernels"], told["flops"]) == (5, 10 * 2 * 1.5 * 989 * 56 * 10**10)
    assert planned.added([told, told])["A100"]["products"] == 2 * told["seconds"]["A100"]["products"]
