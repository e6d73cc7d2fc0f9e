"""What the pages of practice say of the command line is there, and the table of settings has them all."""

import re
from pathlib import Path

import pytest

from dasvit import RetrainSettings, SearchSettings, cli, options
from dasvit.commands import costing, using
from dasvit.engine.flags import _flags
from dasvit.front import pareto
from dasvit.landscape import LandscapeSettings
from dasvit.training_free import TFSearchSettings

BOOK = Path(__file__).resolve().parents[1] / "book"
PAGES = ("own_images", "training", "cluster", "settings", "troubleshooting")
OTHERS = {"nproc-per-node", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal", "requeue"}


def known():
    from dataclasses import is_dataclass

    places = [vars(module).values() for module in (options, costing, using)]
    classes = [c for values in places for c in values if isinstance(c, type) and is_dataclass(c)]
    classes += [SearchSettings, RetrainSettings, LandscapeSettings, TFSearchSettings]
    names = {flag.name for c in classes for flag in _flags(c)}
    return names | {f"no-{name}" for name in names} | {"help", "help-all"}


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_on_a_page_exists(page):
    text = (BOOK / f"{page}.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", text))
    assert named - known() - OTHERS == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_command_on_a_page_exists(page, capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    commands = set(re.findall(r"^  ([a-z0-9-]+) ", capsys.readouterr().out, re.MULTILINE))
    text = (BOOK / f"{page}.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`|srun |cli )dasvit ([a-z][a-z0-9-]+)", text, re.MULTILINE))
    assert named <= commands


def test_the_table_has_every_setting(monkeypatch):
    monkeypatch.syspath_prepend(str(BOOK / "_ext"))
    from presets_table import PAPER, flat, table

    for command, settings in (("search", SearchSettings()), ("retrain", RetrainSettings())):
        lines = table(command)
        names = [line.split("`")[1] for line in lines[2:]]
        assert names == [name for name, _ in flat(settings)]
        assert set(PAPER[command]) <= set(names)
        assert len({line.count("|") for line in lines}) == 1
    (batch,) = (line for line in table("retrain") if line.startswith("| `batch_size`"))
    assert batch == "| `batch_size` | 64 | 128 | 128 | 128 |"


def test_the_troubleshooting_page_answers_every_thread():
    """The 35 rows of threads: each tracker's name stands on the page."""
    text = (BOOK / "troubleshooting.md").read_text(encoding="utf-8")
    trackers = """darts AutoDL FBNet PC-DARTS pdarts nni BossNAS Cream flops-counter VMamba NATTEN CvT NASLib vega SPOS
    pt.darts FairDARTS pytorch higher ShiftAddNAS SDL-Skeleton NASViT mmrazor NATS-Bench nasbench NAS-Benchmark GAIA-ssl
    ZiCo NAR-Former"""
    assert [name for name in trackers.split() if name not in text] == []


def test_the_front_is_what_no_other_beats():
    points = [(1.0, 0.5), (2.0, 0.4), (2.0, 0.7), (3.0, 0.7), (4.0, 0.9)]
    assert pareto(points) == [True, False, True, False, True]
    assert pareto([(1.0, 0.5), (1.0, 0.5)]) == [True, True]
