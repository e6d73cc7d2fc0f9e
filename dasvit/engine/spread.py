"""Independent pieces of work, spread over processes or a cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from joblib import Parallel, delayed, effective_n_jobs
from joblib.externals.loky import process_executor
from joblib.parallel import get_active_backend
from tqdm import tqdm

from .loop import Signals
from .runs import RunFailedError

Piece = TypeVar("Piece")
Made = TypeVar("Made")


def spread(
    work: Callable[[Piece], Made], pieces: Sequence[Piece], *, jobs: int, title: str, progress: bool, done: int = 0
) -> Iterator[Made]:
    """Yield what the pieces of work come to, in their order, each as soon as it and those before it are there.

    The work is spread by joblib, so that inside ``joblib.parallel_config(backend="dask")`` or ``"ray"`` it runs on that
    cluster. A signal stops it behind a piece that the caller has dealt with.

    Args:
        work: Does a piece, on one thread; what comes of it depends on nothing else.
        pieces: Those that are left.
        jobs: Processes; -1 takes all processors.
        title: What is done, for the bar.
        progress: Show progress and the time left on stderr.
        done: Pieces done before.

    Raises:
        Interrupted: On SIGINT or SIGTERM.
        RunFailedError: If a process dies.
    """
    bar = tqdm(total=done + len(pieces), initial=done, desc=title, disable=None if progress else True)
    with bar, Signals() as signals:
        try:
            for made in _made(work, pieces, jobs):
                yield made
                bar.update()
                signals.stop()
        except (KeyboardInterrupt, Exception) as error:
            signals.stop()  # it stopped the workers too
            if isinstance(error, KeyboardInterrupt) or not _of_a_dead_process(error):
                raise
            raise RunFailedError(
                f"a process died while {title}, killed or out of memory: go on with --resume and fewer jobs"
            ) from None


def _of_a_dead_process(error: BaseException) -> bool:
    """Tell whether an error says that a process died: joblib's own, or Ray's, which is not among the dependencies."""
    return isinstance(error, BrokenExecutor) or "RayActorError" in (cls.__name__ for cls in type(error).__mro__)


def _made(work: Callable[[Piece], Made], pieces: Sequence[Piece], jobs: int) -> Iterator[Made]:
    """Yield results in their order; where a backend hands over whole lists only, as Ray's does, round after round."""
    backend, _ = get_active_backend()
    if backend.supports_return_generator:
        yield from Parallel(n_jobs=jobs, return_as="generator")(delayed(_keeping)(work, piece) for piece in pieces)
        return
    with Parallel(n_jobs=jobs) as parallel:
        size = 2 * effective_n_jobs(jobs)
        for start in range(0, len(pieces), size):
            yield from parallel(delayed(_keeping)(work, piece) for piece in pieces[start : start + size])


def _keeping(work: Callable[[Piece], Made], piece: Piece) -> Made:
    """Do a piece in a process that may keep memory for the next.

    Joblib takes 300 MB more than after the first piece for a leak, and ends and starts its processes over and over. But
    glibc keeps what a large network has freed, and weights that candidates share are kept on purpose.
    """
    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize
    return work(piece)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: processes share the processors, and small matrices on many threads are slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
