"""Run the chapters on the GPU: seconds of each.

    python benchmarks/gpu/book.py

A chapter is a run of pytest --nbmake by itself; one that the time cuts off is run again from its beginning.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import tyro
from common import Budget, Rows, Step

from dasvit.engine.loop import Interrupted

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Book(Step):
    """Run every chapter of the book."""

    name: ClassVar[str] = "book"
    declared: ClassVar[tuple[str, ...]] = ("dasvit/**/*.py", "book/*.ipynb")

    def chapters(self) -> list[Path]:
        """Return the notebooks; in a rehearsal one of a single cell."""
        if not self.rehearse:
            return sorted((ROOT / "book").glob("*.ipynb"))
        path = self.folder / "chapter.ipynb"
        cell = {"cell_type": "code", "id": "one", "metadata": {}, "execution_count": None, "outputs": [], "source": "1"}
        kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
        path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": [cell]}))
        return [path]

    def work(self, budget: Budget) -> None:
        """Run the chapters that have not been run."""
        todo = {path.stem: partial(run_chapter, path, budget) for path in self.chapters()}
        Rows(self.state).measure(todo, budget)

    def result(self) -> dict[str, Any]:
        """Return the seconds of each chapter."""
        return {"seed": 0, "rows": Rows(self.state).rows}


def run_chapter(path: Path, budget: Budget) -> dict[str, Any]:
    """Run one chapter in what is left of the time.

    Raises:
        Interrupted: If it takes longer.
        RuntimeError: If it fails.
    """
    start = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbmake", str(path.resolve())]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=budget.left())
    except subprocess.TimeoutExpired:
        raise Interrupted(signal.SIGALRM) from None
    if done.returncode:
        raise RuntimeError(done.stdout[-900:])
    return {"seconds": time.perf_counter() - start}


if __name__ == "__main__":
    tyro.cli(Book, description=__doc__).command()
