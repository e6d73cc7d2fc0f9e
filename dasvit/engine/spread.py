"""Independent pieces of work, spread over processes or a cluster; what each comes to is a row of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from typing import Any

import torch
from joblib import Parallel, delayed
from tqdm import tqdm

from .loop import Signals
from .runs import Run, RunFailedError

Row = dict[str, Any]


def spread(
    work: Callable[[Any], Row],
    pieces: Sequence[Any],
    rows: list[Row],
    run: Run | None,
    *,
    jobs: int,
    title: str,
    progress: bool,
) -> None:
    """Do the pieces of work that have no row yet; each row is logged as soon as it and those before it are there.

    The work is spread by joblib, so that inside ``joblib.parallel_config(backend="dask")`` or ``"ray"`` it runs on that
    cluster.

    Args:
        work: Makes a row of a piece, on one thread; depends on nothing else.
        pieces: All of them, in the order of the rows.
        rows: Those that are there already; the others are added.
        run: Where rows are logged; without one nothing is written.
        jobs: Processes; -1 takes all processors.
        title: What is done, for the bar.
        progress: Show progress and the time left on stderr.

    Raises:
        Interrupted: On SIGINT or SIGTERM; every row so far is written.
        RunFailedError: If a process dies or the row cannot be written; every row so far is written.
    """
    left = pieces[len(rows) :]
    bar = tqdm(total=len(pieces), initial=len(rows), desc=title, disable=None if progress else True)
    with bar, Signals() as signals:
        for row in _made(work, left, jobs, title, signals):
            rows.append(row)
            if run is not None:
                run.log(row)
            bar.update()
            signals.stop()


def _made(work: Callable[[Any], Row], pieces: Sequence[Any], jobs: int, title: str, signals: Signals) -> Iterator[Row]:
    """Yield the rows in order."""
    try:
        yield from Parallel(n_jobs=jobs, return_as="generator")(delayed(work)(piece) for piece in pieces)
    except (BrokenExecutor, KeyboardInterrupt) as error:
        signals.stop()  # it stopped the workers too
        if isinstance(error, KeyboardInterrupt):
            raise
        raise RunFailedError(
            f"a process of this run died while {title}, killed or out of memory: go on with --resume and fewer jobs"
        ) from None


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: processes share the processors, and small matrices on many threads are slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
