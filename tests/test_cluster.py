"""Work spread over a cluster of processes of their own, and a search that torchrun starts."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

import distributed
import joblib
import pytest
from joblib.parallel import LokyBackend
from test_cli import dasvit

from dasvit.training_free import TFSearchSettings, tf_search

SETTINGS = TFSearchSettings("autoformer-xs", samples=16, image_size=8, patch_size=4, in_channels=1, num_classes=10)
QUICK = ["--data", "digits", "--dim", "24", "--train-images", "100", "--stages", "1", "8", "1", "1", "3", "1"]
EXACT = ["--device", "cpu", "--precision", "64-true"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_worker_that_is_killed_loses_nothing(tmp_path):
    expected = tf_search(SETTINGS).rows
    cluster = distributed.LocalCluster(2, threads_per_worker=1, processes=True, dashboard_address=None)
    killed: list[int] = []
    with cluster, distributed.Client(cluster), joblib.parallel_config(backend="dask"):
        (first, *_) = [worker.process.process for worker in cluster.workers.values()]

        def kill():
            while not killed:
                if len((tmp_path / "run" / "metrics.jsonl").read_bytes().splitlines() if written() else []) >= 3:
                    killed.append(first.pid)
                    os.kill(first.pid, signal.SIGKILL)

        def written():
            return (tmp_path / "run" / "metrics.jsonl").exists()

        threading.Thread(target=kill, daemon=True).start()
        rows = tf_search(SETTINGS, tmp_path / "run", jobs=-1).rows
    assert killed
    assert rows == expected
    assert [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == expected


class Rounds(LokyBackend):
    """A backend that hands over whole lists only, as Ray's does, and whose workers may die as Ray's do."""

    supports_return_generator = False


class RayActorError(Exception):
    """What Ray raises, by its name."""


def test_rounds_come_to_the_same():
    joblib.register_parallel_backend("rounds", Rounds)
    with joblib.parallel_config(backend="rounds"):
        assert tf_search(SETTINGS, jobs=2).rows == tf_search(SETTINGS).rows


def test_a_dead_actor_is_one_line_and_the_run_goes_on(tmp_path, monkeypatch):
    from dasvit.engine.runs import RunFailedError
    from dasvit.training_free import search

    joblib.register_parallel_backend("rounds", Rounds)
    score, calls = search.score_number, []

    def dying(settings, number, space=None):
        calls.append(number)
        if len(calls) == 9:
            raise RayActorError("the actor is dead")
        return score(settings, number, space)

    monkeypatch.setattr(search, "score_number", dying)
    with joblib.parallel_config(backend="rounds"), pytest.raises(RunFailedError, match="a process died while scoring"):
        tf_search(SETTINGS, tmp_path / "run", jobs=1)
    monkeypatch.undo()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 8  # whole rounds
    assert tf_search(SETTINGS, tmp_path / "run", resume=True).rows == tf_search(SETTINGS).rows


RAY = """
import sys, joblib, ray, threading, os, signal, time, psutil
from pathlib import Path
from ray.util.joblib import register_ray
from dasvit.engine.runs import RunFailedError
from dasvit.training_free import TFSearchSettings, tf_search
settings = TFSearchSettings("autoformer-xs", samples=24, image_size=8, patch_size=4, in_channels=1, num_classes=10)
expected, out = tf_search(settings).rows, Path(sys.argv[1])
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
register_ray()
killed = []
def kill():
    while not killed:
        time.sleep(0.01)
        if (out / "metrics.jsonl").exists() and len((out / "metrics.jsonl").read_bytes().splitlines()) >= 4:
            for process in psutil.Process().children(recursive=True):
                if "PoolActor" in " ".join(process.cmdline()) and not killed:
                    killed.append(process.pid)
                    os.kill(process.pid, signal.SIGKILL)
threading.Thread(target=kill, daemon=True).start()
with joblib.parallel_config(backend="ray"):
    try:
        tf_search(settings, out, jobs=2)
    except RunFailedError as error:
        assert killed and "a process died" in str(error)
    rows = tf_search(settings, out, jobs=2, resume=True).rows
assert killed and rows == expected
"""


def test_ray_loses_nothing(tmp_path):
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", RAY, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def torchrun(*arguments):
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    start += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return subprocess.run([*start, "-m", "dasvit.cli", *map(str, arguments)], capture_output=True, text=True)


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def untimed(path):
    return [{k: v for k, v in row.items() if k not in ("seconds", "bytes")} for row in rows(path)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """From the order of the search: the rows that one process logs."""

    @cache
    def search(order):
        out = tmp_path_factory.mktemp("alone") / "run"
        assert dasvit("search", *QUICK, *EXACT, "--order", order, "--out", out) == 0
        return rows(out)

    return search


def same(found, expected):
    for one, two in zip(expected, found, strict=True):
        assert one["genotype"] == two["genotype"]
        for edge, alpha in one["alpha"].items():
            assert two["alpha"][edge] == pytest.approx(alpha, abs=1e-5)


@pytest.fixture
def refused(capsys):
    """Whether a run of two processes refuses to go on with one, in one line."""

    def asked(command, run):
        capsys.readouterr()
        assert dasvit(command, "--out", run, "--resume", "--devices", 1) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        return "started with other settings: hardware.devices 1 (was 2); resume without them" in told

    return asked


def test_torchrun_finds_what_one_process_finds_and_goes_on_with_as_many_and_no_other(alone, refused, tmp_path):
    """By the second order, whose step ahead is all processes' together; by the first, SLURM starts them below."""
    run = tmp_path / "two"
    done = torchrun("search", *QUICK, *EXACT, "--order", 2, "--devices", 2, "--out", run)
    assert done.returncode == 0, done.stderr
    same(rows(run), alone(2))
    history, found = untimed(run), (run / "genotype.json").read_text()
    max((run / "checkpoints").iterdir()).unlink()  # as if it had been killed in the last epoch
    assert refused("search", run)
    again = torchrun("search", "--out", run, "--resume")
    assert again.returncode == 0, again.stderr
    assert untimed(run) == history
    assert (run / "genotype.json").read_text() == found


SRUN = """#!{python}
import os, subprocess, sys
known = {{"NTASKS": "2", "NTASKS_PER_NODE": "2", "NNODES": "1", "NODEID": "0", "NODELIST": "localhost"}}
known |= {{"JOB_NODELIST": "localhost", "JOB_NAME": "dasvit", "JOB_ID": str(os.getpid())}}

def start(number):
    own = {{f"SLURM_{{k}}": v for k, v in (known | {{"PROCID": number, "LOCALID": number}}).items()}}
    return subprocess.Popen([sys.executable, "-m", "dasvit.cli", *sys.argv[2:]], env=os.environ | own)

sys.exit(max(process.wait() for process in [start("0"), start("1")]))
"""


def test_the_slurm_script_of_the_page_runs_with_two_processes(alone, tmp_path):
    page = (Path(__file__).parents[1] / "book/cluster.md").read_text()
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", page, re.DOTALL)
    for old, new in (("--data cifar10 --preset small --devices 4", " ".join([*QUICK, *EXACT, "--devices", "2"])),):
        assert script.count(old) == 1
        script = script.replace(old, new)
    srun = tmp_path / "bin/srun"
    srun.parent.mkdir()
    srun.write_text(SRUN.format(python=sys.executable))
    srun.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k != "DASVIT_CACHE"}
    environment |= {"PATH": f"{srun.parent}:{os.environ['PATH']}", "SCRATCH": str(tmp_path), "TMPDIR": str(tmp_path)}
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    for _ in range(2):  # queued again, it finds that all is done
        done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "RUN/settings.json").read_text())["settings"]["hardware"]["devices"] == 2
    same(rows(tmp_path / "RUN"), alone(1))


def test_a_retraining_by_torchrun_goes_on_with_as_many_processes_and_no_other(refused, tmp_path):
    quick = ["--data", "digits", "--train-images", 200, "--test-images", 50, "--dim", 24, "--depth", 3]
    quick += ["--genotype", '{"format": 1, "nodes": [[[0, "msa:4"]]]}']  # whose second layer nothing reads
    quick += ["--epochs", 2, "--warmup-epochs", 1, *EXACT]
    run = tmp_path / "run"
    done = torchrun("retrain", *quick, "--devices", 2, "--out", run)
    assert done.returncode == 0, done.stderr
    result, history = (run / "result.json").read_text(), untimed(run)
    max((run / "checkpoints").iterdir()).unlink()
    assert refused("retrain", run)
    again = torchrun("retrain", "--out", run, "--resume")
    assert again.returncode == 0, again.stderr
    assert untimed(run) == history
    assert (run / "result.json").read_text() == result
