"""Every indicator of chapter 9 on the encoders of the landscape, at the weights that their training starts from.

    python benchmarks/landscape_scores.py --data folder:data/cifar10

It scores the encoders that the package's table holds; when the table has grown, the same command goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from landscape import TABLE, Grow, settings_of
from lightning_fabric import seed_everything
from measure import begin, one_line, resumable, write

from dasvit.data.images import ImageSet
from dasvit.engine.seeds import derive
from dasvit.engine.spread import one_thread, spread
from dasvit.landscape import LandscapeSettings, load
from dasvit.landscape.measuring import images_of
from dasvit.landscape.settings import recipe_of
from dasvit.retraining import make_network, set_apart
from dasvit.training_free import INDICATORS, Probe, score


@dataclass(frozen=True)
class Scores:
    """Score the encoders of the landscape."""

    data: str
    """Where the images are, as for dasvit search --data."""
    weight_seeds: int = 3
    """Seeds of the weights that are scored; the first are those of the first trainings."""
    jobs: int = 2
    """Processes, of one thread each."""
    table: Path = TABLE
    """The landscape."""
    runs: Path = Path("runs")
    """Where finished rows are kept."""
    out: Path = Path("book/results")
    """Where the JSON file goes."""


def probed(settings: LandscapeSettings) -> ImageSet:
    """Return the images that encoders are trained on."""
    return set_apart(settings.recipe, images_of(settings.recipe).train)[0]


def row_of(settings: LandscapeSettings, weight_seeds: int, number: int) -> dict[str, Any]:
    """Score one encoder with several seeds of its weights, as they are before the first step of a training."""
    size, train = settings.recipe.image_size, probed(settings)
    images, labels = next(train.batches(16, image_size=size, seed=0))
    scores: dict[str, list[float | None]] = {name: [] for name in INDICATORS}
    for seed in range(weight_seeds):
        recipe = recipe_of(settings, number, seed)
        seed_everything(derive(recipe.seed, "weights"), verbose=False)
        model = make_network(recipe, train)
        probe = Probe(size, images=images, labels=labels, seed=seed)
        for name in INDICATORS:
            scores[name].append(scored(model, name, probe))
    return {"number": number, "scores": scores}


def scored(*arguments: Any) -> float | None:
    """Return a score, or nothing for an encoder that the indicator cannot rank."""
    try:
        return score(*arguments)["total"]
    except ValueError:
        return None


def row_alone(settings: LandscapeSettings, weight_seeds: int, number: int) -> dict[str, Any]:
    """Return a row, computed on one thread."""
    with one_thread():
        return row_of(settings, weight_seeds, number)


def main(args: Scores) -> None:
    """Do what is not done yet and write the file."""
    out = args.out / "landscape_scores_cifar10.json"
    start = begin(out)
    with one_line():
        table = load(args.table)
        settings = replace(settings_of(Grow(args.data)), networks=table.settings.networks)
        images_of(settings.recipe)
    depends = {"recipe": settings.recipe, "weight_seeds": args.weight_seeds, "draw": settings.draw_seed}
    work = partial(row_alone, settings, args.weight_seeds)
    with resumable(args.runs / "landscape_scores", "landscape scores", depends) as run:
        done = len(run.history())
        for row in spread(work, table.numbers[done:], jobs=args.jobs, title="scoring", progress=True, done=done):
            run.log(row)
        rows = run.history()
    write(out, {"seed": 0, "weight_seeds": args.weight_seeds, "rows": rows}, start)


if __name__ == "__main__":
    main(tyro.cli(Scores, description=__doc__))
