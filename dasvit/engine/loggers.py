"""The rows of a run for other programs' eyes: as CSV or for TensorBoard, by Fabric's loggers (chapter 7)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from lightning_fabric.loggers import CSVLogger, TensorBoardLogger

from .runs import writing

Kind = Literal["csv", "tensorboard"]
"""What is written: a table, or the event files that TensorBoard reads."""


def check_logger(kind: str | None) -> None:
    """Check that a logger is known and can be had here.

    Raises:
        ValueError: If it is not.
    """
    if kind is not None and kind not in get_args(Kind):
        raise ValueError(f"unknown logger {kind!r}; known: {', '.join(get_args(Kind))}")
    if kind == "tensorboard":
        try:
            TensorBoardLogger("")
        except ModuleNotFoundError:
            raise ValueError("logger tensorboard needs a package that is not here: pip install tensorboard") from None


def follow(kind: str, folder: Path, rows: Sequence[Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], None]:
    """Return what logs each further row of a run in a folder below that of the run, named by the kind.

    The rows so far are logged first, into an empty folder: after a run was resumed the log is that of the run, without
    what a kill left in it.

    Args:
        kind: A :data:`Kind`.
        folder: Of the run.
        rows: Logged so far.

    Raises:
        RunFailedError: If it cannot be written.
    """
    made: dict[str, Any] = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}
    with writing(folder / kind):
        shutil.rmtree(folder / kind, ignore_errors=True)
        logger = made[kind](folder, name="", version=kind)
    count = 0

    def log(row: Mapping[str, Any]) -> None:
        nonlocal count
        numbers = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
        with writing(folder / kind):
            logger.log_metrics(numbers, step=count)
            logger.save()
        count += 1

    for row in rows:
        log(row)
    return log
