"""Encoders of a space trained, in processes, on a cluster, or many at once on a GPU (chapter 11)."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from ..checks import check_sizes
from ..engine.checkpoint import expect
from ..engine.runs import Run
from ..engine.spread import spread
from ..operations import portable
from ..retraining import check_data
from ..space import Edge
from .measuring import CURVES, images_of, train_some
from .settings import LandscapeSettings, recipe_of, trainings


def chunks(settings: LandscapeSettings, bank: int) -> list[list[tuple[int, int]]]:
    """Return the trainings, those together that one bank may hold: in a row, of one wiring, of one seed."""

    def shared(training: tuple[int, int]) -> tuple[tuple[Edge, ...], int]:
        number, seed = training
        return tuple(edge for edge, _ in settings.space[number].edges), seed

    together = (list(group) for _, group in itertools.groupby(trainings(settings), shared))
    return [group[start : start + bank] for group in together for start in range(0, len(group), bank)]


def check_row(
    settings: LandscapeSettings, pieces: Sequence[tuple[int, int]], index: int, row: Mapping[str, Any]
) -> None:
    """Check that a logged row is one of :func:`train` for the settings.

    Raises:
        ValueError: If it is not, or else an error for what it lacks.
    """
    for name, value in zip(("number", "seed"), pieces[index], strict=True):
        expect(row.get(name), range(value, value + 1), name)
    for name in CURVES:
        expect(len(row[name]), range(epochs := settings.recipe.epochs, epochs + 1), name)
        for value in row[name]:
            expect(value, int if name.endswith("correct") else float, name)
    bytes.fromhex(row["correct"])


def train(
    settings: LandscapeSettings,
    run_dir: str | Path | None = None,
    *,
    jobs: int = 1,
    bank: int = 1,
    known: Sequence[Mapping[str, Any]] = (),
    resume: bool = False,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Train encoders of a space by one recipe; see :func:`~dasvit.engine.spread.spread` for where it runs.

    Args:
        settings: Everything it depends on.
        run_dir: Where settings and rows go; by default nothing is written.
        jobs: Processes.
        bank: Encoders of one wiring trained at once, for a GPU; what comes out is the same to rounding. On a CPU it is
            slower. Encoders drawn at random are seldom of one wiring in a row: with ``every`` they are.
        known: Rows of these trainings from the first on, as of a landscape that is to grow; they are not made again.
        resume: Continue the run in ``run_dir``, or begin it if nothing began there.
        progress: Show progress on stderr.

    Returns:
        A row for each of :func:`~dasvit.landscape.settings.trainings`: ``number`` and ``seed``, a value an epoch of
        each of :data:`~dasvit.landscape.measuring.CURVES` (``…_correct`` counts images, ``…_loss`` is a mean
        cross-entropy, ``seconds`` those of a bank divided by its encoders), and ``correct``: in hexadecimal digits, a
        bit an image, which test images are taken for what they are at the end.

    Raises:
        ValueError: If the settings do not fit the images, or the directory cannot be used.
        Interrupted: On SIGINT or SIGTERM; every row so far is written.
        RunFailedError: If losses diverge, a process dies or the directory cannot be written.
    """
    check_sizes(bank=bank)
    pieces = chunks(settings, bank)
    check_data(recipe_of(settings, *pieces[0][0]), images_of(settings.recipe))
    with Run.open(run_dir, "landscape", settings, resume=resume) if run_dir is not None else nullcontext() as run:
        flat = [training for piece in pieces for training in piece]
        check = partial(check_row, settings, flat)
        rows = [] if run is None else run.resume_rows(check)
        for number, row in enumerate(known if len(known) > len(rows) else ()):
            check(number, row)
            if number >= len(rows):
                rows.append(dict(row))
                if run is not None:
                    run.log(row)
        ends = list(itertools.accumulate(map(len, pieces)))
        done = bisect.bisect_right(ends, len(rows))
        if run is not None and len(rows) > (whole := ends[done - 1] if done else 0):
            rows = rows[:whole]  # of a bank that was cut off
            run.rewrite(rows)
        work = portable(partial(train_some, settings))
        for made in spread(work, pieces[done:], jobs=jobs, title="training", progress=progress, done=done):
            rows += made
            if run is not None:
                for row in made:
                    run.log(row)
    return rows
