"""Search without training: draw networks, score them on many processors, keep what was found (chapter 9; A29)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from ..checks import check_sizes
from ..engine.checkpoint import expect
from ..engine.hardware import out_of_memory
from ..engine.runs import Run
from ..engine.seeds import check_seed
from ..engine.spread import one_thread, spread
from ..operations import portable
from .diversity import Norms
from .indicators import INDICATORS, Probe, score
from .space import SPACES, Shape, Space


@dataclass(frozen=True)
class TFSearchSettings:
    """Everything a search without training depends on."""

    space: str = "autoformer-t"
    """The space to draw from."""
    samples: int = 1000
    """Networks to score, no two of them the same function."""
    indicators: tuple[str, ...] = ("dss",)
    """How to score; the first one ranks. Number of parameters is always noted."""
    min_params: float = 0.0
    """Smallest network in millions of parameters."""
    max_params: float | None = None
    """Largest network in millions of parameters; no limit by default."""
    image_size: int = 224
    """Side of the images in pixels."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    in_channels: int = 3
    """Channels of the images."""
    num_classes: int = 1000
    """Number of classes."""
    batch_size: int = 16
    """Images of noise, for indicators that look at images."""
    seed: int = 0
    """Seed of the draw, of the weights and of the images."""

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise ValueError(f"unknown space {self.space!r:.80}; known: {', '.join(SPACES)}")
        for name in self.indicators:
            if name not in INDICATORS:
                raise ValueError(f"unknown indicator {name!r:.80}; known: {', '.join(INDICATORS)}")
        if not self.indicators:
            raise ValueError(f"no indicator to rank by; known: {', '.join(INDICATORS)}")
        count = SPACES[self.space].count_functions()
        if not 1 <= self.samples <= count:
            raise ValueError(f"samples {self.samples} is outside 1 … {count:,}, the different networks of the space")
        largest = float("inf") if self.max_params is None else self.max_params
        if not 0 <= self.min_params < largest:
            raise ValueError(f"min_params {self.min_params:g} and max_params {largest:g} leave no network")
        check_sizes(image_size=self.image_size, patch_size=self.patch_size)
        check_sizes(in_channels=self.in_channels, num_classes=self.num_classes, batch_size=self.batch_size)
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}")
        check_seed(self.seed)

    def fits(self, parameters: int) -> bool:
        """Tell whether a network of so many parameters lies in the window."""
        return parameters / 1e6 >= self.min_params and (self.max_params is None or parameters / 1e6 <= self.max_params)

    @property
    def shape(self) -> Shape:
        """What all networks have in common."""
        return Shape(self.image_size, self.patch_size, self.in_channels, self.num_classes, self.seed)


@dataclass(frozen=True)
class TFSearchResult:
    """What a search without training found.

    Args:
        rows: One for each network in the order drawn: ``number``, ``parameters``, ``scores`` by indicator, and where an
            indicator failed ``errors`` by indicator.
        best: The row with the highest score of the first indicator, with the network it stands for.
    """

    rows: list[dict[str, Any]]
    best: dict[str, Any]


def draw(settings: TFSearchSettings) -> list[int]:
    """Return the canonical numbers of different networks within the window of parameters, drawn by the seed.

    Raises:
        ValueError: If so many cannot be found.
    """
    space, shape, rng = SPACES[settings.space], settings.shape, random.Random(settings.seed)
    drawn: dict[int, None] = {}
    for _ in range(1000 + 100 * settings.samples):
        number = space.sample(rng)
        if number not in drawn and settings.fits(space.parameters(number, shape)):
            drawn[number] = None
        if len(drawn) == settings.samples:
            return list(drawn)
    raise ValueError(
        f"only {len(drawn)} of {settings.samples} networks found between min_params {settings.min_params:g} and "
        f"max_params {settings.max_params} million: widen them, or take fewer samples"
    )


def score_number(settings: TFSearchSettings, number: int, space: Space | None = None) -> dict[str, Any]:
    """Return the row of one network; it depends on nothing but the arguments. What fails is told, not raised.

    Args:
        settings: How it is scored.
        number: The network's.
        space: The space, where the process does not know it by the name in the settings.

    Raises:
        RuntimeError: If memory runs out: that says something about the machine, nothing about the network.
    """
    space, shape = SPACES[settings.space] if space is None else space, settings.shape
    norms = _norms(settings.space, shape) if space.shared else None
    probe = Probe(settings.image_size, seed=settings.seed, batch_size=settings.batch_size, norms=norms)
    scores, errors = {}, {}
    with one_thread():
        for name in settings.indicators:
            try:
                scores[name] = score(space.build(number, shape), name, probe)
            except (ValueError, RuntimeError) as error:
                if out_of_memory(error):
                    raise
                errors[name] = f"{type(error).__name__}: {error}"
    row = {"number": number, "parameters": space.parameters(number, shape), "scores": scores}
    return {**row, "errors": errors} if errors else row


def check_row(settings: TFSearchSettings, numbers: Sequence[int], index: int, row: Mapping[str, Any]) -> None:
    """Check that a logged row is one of :func:`score_number` for the networks that the settings draw.

    Raises:
        ValueError: If it is not, or else an error for what it lacks.
    """
    parameters = SPACES[settings.space].parameters(numbers[index], settings.shape)
    for name, number in {"number": numbers[index], "parameters": parameters}.items():
        expect(row.get(name), range(number, number + 1), name)
    expect(row.get("scores"), dict, "scores")
    for name in settings.indicators:
        if name in row["scores"]:
            expect(row["scores"][name]["total"], float, f"scores.{name}.total")
        else:
            expect(row["errors"][name], str, f"errors.{name}")


@cache
def _norms(_space: str, _shape: Shape) -> Norms:
    """Return this process's table of nuclear norms for the weights of one space."""
    return {}


def tf_search(
    settings: TFSearchSettings,
    run_dir: str | Path | None = None,
    *,
    jobs: int = 1,
    resume: bool = False,
    progress: bool = False,
) -> TFSearchResult:
    """Score random networks of a space and rank them.

    Every row is written as soon as it is there. The work is spread by :func:`~dasvit.engine.spread.spread`, also over a
    cluster; results do not depend on how.

    Args:
        settings: Everything it depends on.
        run_dir: Where settings and rows go; by default nothing is written.
        jobs: Processes.
        resume: Continue the run in ``run_dir``, or begin it if nothing began there.
        progress: Show progress on stderr.

    Raises:
        ValueError: If the settings do not fit together, the directory cannot be used, or no network could be scored.
        Interrupted: On SIGINT or SIGTERM; every row so far is written.
        RunFailedError: If a process dies or the directory cannot be written; every row so far is written.
    """
    numbers = draw(settings)
    with Run.open(run_dir, "tf-search", settings, resume=resume) if run_dir is not None else nullcontext() as run:
        rows = [] if run is None else run.resume_rows(partial(check_row, settings, numbers))
        work, done = portable(partial(score_number, settings, space=SPACES[settings.space])), len(rows)
        for row in spread(work, numbers[done:], jobs=jobs, title="scoring", progress=progress, done=done):
            rows.append(row)
            if run is not None:
                run.log(row)
        best = _best(settings, rows)
        if run is not None:
            run.write("best.json", best)
        return TFSearchResult(rows, best)


def _best(settings: TFSearchSettings, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row with the highest score, with its network."""
    first = settings.indicators[0]
    scored = [row for row in rows if first in row["scores"]]
    if not scored:
        raise ValueError(f"none of the {len(rows)} networks could be scored; the first: {rows[0]['errors'][first]}")
    top = max(scored, key=lambda row: row["scores"][first]["total"])
    return {"network": f"{settings.space}:{top['number']}", **SPACES[settings.space].describe(top["number"]), **top}
