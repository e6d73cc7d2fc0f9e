"""The recorded memory of a search step is what the code needs today, and fake tensors weigh what real ones do."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from memory import Case, cases, counted, weigh

from dasvit.engine.hardware import Hardware, make_fabric
from dasvit.presets import SEARCH
from dasvit.searching import SearchSettings

pytestmark = pytest.mark.usefixtures("_unchecked")  # to look at the shape of every fake tensor takes as long again

TINY = replace(SearchSettings(), image_size=16, patch_size=4)
RECORDED = Path(__file__).resolve().parents[1] / "book" / "results" / "memory.json"
STAGES = [(layers, operations) for layers, operations, _ in SEARCH["paper"].stages]


@pytest.fixture(scope="module")
def recorded():
    """Bytes by case."""
    rows = json.loads(RECORDED.read_text())["rows"]
    names = list(asdict(Case(1, 2)))
    return {Case(**{name: row[name] for name in names}): {k: row[k] for k in row if k not in names} for row in rows}


@pytest.mark.parametrize(
    "case",
    [
        Case(2, 8, way="plain", batch=4),
        Case(2, 3, batch=4, choice="heaviest"),
        Case(2, 3, batch=4, recompute=True, keep_ratio=0.5),
        Case(2, 3, batch=4, recompute=True, precision="bf16-mixed"),
    ],
    ids=str,
)
def test_fake_steps_weigh_what_real_ones_do(case):
    real = weigh(case, TINY, make_fabric(Hardware("cpu", case.precision)))
    assert counted(case, TINY) == pytest.approx(real, rel=0.01)
    assert all(real[f"{step}_peak_bytes"] > real[f"{step}_saved_bytes"] > 0 for step in ("alpha", "weight"))


def test_every_case_is_recorded(recorded):
    assert list(recorded) == cases()


@pytest.mark.parametrize("case", [Case(2, 8, way="plain"), Case(2, 8)], ids=str)
def test_what_is_recorded_is_what_is_counted_today(case, recorded):
    now = counted(case, SEARCH["paper"])
    assert {name: recorded[case][name] for name in now} == pytest.approx(now, rel=1e-3)


def test_plain_darts_does_not_fit_where_every_stage_of_ours_does(recorded):
    def peak(case):
        return max(recorded[case]["alpha_peak_bytes"], recorded[case]["weight_peak_bytes"])

    assert peak(Case(6, 8, way="plain")) > 24e9
    assert max(peak(Case(*stage, recompute=True)) for stage in STAGES) < 4e9
    assert max(peak(Case(*stage, recompute=True, keep_ratio=0.5)) for stage in STAGES) < 2.5e9


@pytest.mark.parametrize(
    ("recompute", "step", "most"),
    [(False, "weight", 0.4), (False, "alpha", 0.2), (True, "weight", 0.02), (True, "alpha", 0.02)],
)
def test_little_is_saved_for_backward(recompute, step, most, recorded):
    name = f"{step}_saved_bytes"
    plain, ours = recorded[Case(2, 8, way="plain")], recorded[Case(2, 8, recompute=recompute)]
    assert ours[name] < most * plain[name]
