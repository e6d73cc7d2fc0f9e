"""Chapters that pass under nbmake are kept for the book build, and the costly tests are put in order."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "book" / "_ext"))


def pytest_configure(config):
    if not getattr(config.option, "nbmake", False):
        return
    from bookcache import cache_path
    from jupyter_cache import get_cache
    from nbmake.nb_run import NotebookRun

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
        result = execute(self)
        if result.error is None:
            for cell in result.nb.cells:
                cell.metadata.pop("execution", None)  # timings are no result
            bundle = CacheBundleIn(result.nb, str(path))
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
        return result

    return run


def pytest_collection_modifyitems(items):
    """Chapters first (they are long); last, on one worker, the rendered book (it shows their outputs)."""

    def turn(item):
        return 0 if item.path.suffix == ".ipynb" else 2 if item.path.name == "test_rendered.py" else 1

    items.sort(key=turn)
    for item in items:
        if turn(item) == 2:
            item.add_marker(pytest.mark.xdist_group("rendered"))
