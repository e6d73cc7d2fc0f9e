"""What the GPU evidence is expected to take, counted on fake tensors; and that a search of it outlives its shell."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import planned
import pytest

from dasvit.engine.kernels import Kernels
from dasvit.searching import SearchSettings

pytestmark = pytest.mark.usefixtures("_unchecked")  # to look at the shape of every fake tensor takes as long again

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT / "book" / "results" / "gpu" / "planned.json"


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


@pytest.mark.long
def test_a_search_outlives_the_command_that_started_it(tmp_path):
    """As the README has it; the shell and whatever is in its group are killed at once."""
    command = f"{sys.executable} benchmarks/gpu/search.py --rehearse --runs {tmp_path} --minutes 10000"
    line = f"setsid nohup {command} > {tmp_path}/log 2>&1 < /dev/null & echo $! > {tmp_path}/pid; sleep infinity"
    pid, log = tmp_path / "pid", tmp_path / "log"
    shell = subprocess.Popen(["bash", "-c", line], cwd=ROOT, start_new_session=True)

    def runs():
        state = Path("/proc") / pid.read_text().strip() / "stat"
        return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"

    while not (pid.exists() and pid.read_text().endswith("\n")):
        time.sleep(0.1)
    while not (tmp_path / "rehearsal" / "search" / "settings.json").exists():
        assert runs(), log.read_text()
        time.sleep(0.1)
    os.killpg(shell.pid, signal.SIGKILL)
    shell.wait()
    while runs():
        time.sleep(0.1)
    assert "search: done" in log.read_text()
    result = tmp_path / "rehearsal" / "results" / "search.json"
    assert json.loads(result.read_text())["complete"]
    assert "setsid nohup python benchmarks/gpu/search.py" in planned.README.read_text()
