"""Chapters that pass under nbmake are kept for the book build, and what takes long begins first."""

from __future__ import annotations

import functools
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "book" / "_ext"))
CHAPTERS = ("06", "04", "07", "09", "05", "08", "12", "11", "03", "10", "01", "02")  # the longest first


def pytest_configure(config):
    if not getattr(config.option, "nbmake", False):
        return
    from bookcache import cache_path
    from jupyter_cache import get_cache
    from nbmake.nb_run import NotebookRun

    config.option.nbmake_timeout = 0  # none: how long a cell takes depends on what else the machine does
    if not hasattr(config, "workerinput"):
        assert get_cache(str(cache_path())).db  # made once, before any worker
    if not hasattr(NotebookRun.execute, "__wrapped__"):
        NotebookRun.execute = keeping_outputs(NotebookRun.execute)


def keeping_outputs(execute):
    """Wrap nbmake's run of a chapter: store its outputs in the cache that the book build reads.

    With ``DASVIT_REUSE=1`` a chapter already there is not run again.
    """
    import nbformat
    from bookcache import cache_path
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn
    from nbmake.nb_result import NotebookResult

    @functools.wraps(execute)
    def run(self):
        path = Path(self.filename).resolve()
        if ROOT / "book" not in path.parents:
            return execute(self)
        cache = get_cache(str(cache_path()))
        if os.environ.get("DASVIT_REUSE") == "1":
            try:
                return NotebookResult(cache.merge_match_into_notebook(nbformat.read(path, 4))[1], None)
            except KeyError:  # not there yet
                pass
        start = time.perf_counter()
        result = execute(self)
        if result.error is None:
            for cell in result.nb.cells:
                cell.metadata.pop("execution", None)  # timings are no result
            bundle = CacheBundleIn(result.nb, str(path), data={"execution_seconds": time.perf_counter() - start})
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
        return result

    return run


LONG = {  # modules whose tests take long, the longest first; True: torch's own changes could show in them
    "cluster": False,
    "pairs": True,
    "rendered": False,
    "own_images": False,
    "method_searches": True,
    "methods": True,
    "imagenet": False,
    "gpu_benchmarks": False,
    "boundary": False,
    "spread": False,
    "faults": False,
    "search": True,
    "plan": True,
    "untrusted": False,
    "pack": False,
    "joint": True,
    "resume": False,
    "operations": True,
    "objective": True,
    "capture": True,
    "landscape": True,
    "landscape_evidence": False,
    "blackbox": False,
    "timm_model": True,
    "memory_benchmark": False,
    "landscape_benchmark": False,
    "zoo": False,
    "cli": False,
    "tf_dss": True,
    "banks": True,
    "planned": False,
    "publishing": False,
    "comparing": False,
    "tf_search": False,
    "tf_indicators": True,
    "tf_statistics": False,
    "imagenet_ranking": False,
    "golden": True,
    "gpu_speed": False,
    "recipe": True,
    "real_images": False,
}


def pytest_collection_modifyitems(items):
    """Put long ones first, so that no worker waits long for the other at the end.

    The chapters, then the longest modules, and among them, when all chapters are done, the rendered book.
    """
    long = list(LONG)

    def turn(item):
        if item.path.suffix == ".ipynb":
            return 0, CHAPTERS.index(item.path.stem[:2]) if item.path.stem[:2] in CHAPTERS else -1
        name = item.path.stem.removeprefix("test_")
        return 1, long.index(name) if name in long else len(long)

    items.sort(key=turn)
    for item in items:
        name = item.path.stem.removeprefix("test_")
        if name in LONG or item.path.suffix == ".ipynb":
            item.add_marker("long")
        if LONG.get(name):
            item.add_marker("torch")
