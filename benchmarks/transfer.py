"""Does the landscape's ranking hold for deeper encoders, other recipes and larger images?

    python benchmarks/transfer.py --data folder:data/cifar10 --only control "depth 4"

Encoders of the landscape, evenly over their order by size, are trained by recipes that differ from the landscape's in
one thing. The control is the landscape's own recipe with another seed: no ranking can be expected to agree better.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from landmarks import told
from landscape import Grow, settings_of
from measure import begin, one_line, resumable, write

from dasvit.data.images import Augmentation
from dasvit.encoder import layer_parameters
from dasvit.engine.spread import spread
from dasvit.landscape import LandscapeSettings, trainings
from dasvit.landscape.measuring import images_of, train_one
from dasvit.landscape.settings import recipe_of
from dasvit.retraining import set_apart

SEED = 100  # no training of the table has it
RECIPES: dict[str, dict[str, Any]] = {
    "control": {},
    "depth 4": {"depth": 4},
    "depth 6": {"depth": 6},
    "plain images": {"augmentation": Augmentation()},
    "low rate": {"lr": 2e-3},
    "more epochs": {"epochs": 30, "warmup_epochs": 2},
    "32 pixels": {"image_size": 32},
}
"""What differs from the landscape's recipe."""


@dataclass(frozen=True)
class Transfer:
    """Train encoders of the landscape by other recipes."""

    data: str
    """Where the images are, as for dasvit search --data."""
    networks: int = 100
    """Encoders."""
    only: list[str] = field(default_factory=lambda: list(RECIPES))
    """Recipes to train now, of those that this file lists; what is finished of the others is told as well."""
    jobs: int = 2
    """Processes, of one thread each."""
    runs: Path = Path("runs")
    """Where finished rows are kept."""
    out: Path = Path("book/results")
    """Where the JSON file goes."""


def stratified(settings: LandscapeSettings, count: int) -> list[int]:
    """Return encoders of a landscape, evenly over their order by parameters."""
    space, dim = settings.space, settings.recipe.dim
    drawn = dict.fromkeys(number for number, _ in trainings(settings))
    if not 1 <= count <= len(drawn):
        raise ValueError(f"networks {count} is outside 1 … {len(drawn)}, those of the landscape")
    by_size = sorted(drawn, key=lambda number: (layer_parameters(space[number], dim), number))
    return [by_size[int((i + 0.5) * len(by_size) / count)] for i in range(count)]


def varied(settings: LandscapeSettings, name: str) -> LandscapeSettings:
    """Return the settings of a landscape by another recipe."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}")
    changes = dict(RECIPES[name])
    data = settings.recipe.data
    if "augmentation" in changes:
        data = replace(data, augmentation=changes.pop("augmentation"))
    return replace(settings, recipe=replace(settings.recipe, data=data, **changes))


def row_of(settings: LandscapeSettings, piece: tuple[str, int]) -> dict[str, Any]:
    """Train one encoder by one recipe."""
    name, number = piece
    own = varied(settings, name)
    row = train_one(recipe_of(own, number, SEED), settings.curve_images)
    images = images_of(own.recipe)
    _, val = set_apart(own.recipe, images.train)
    assert val is not None
    return {"recipe": name, "number": number, **told({"seed": SEED, **row}, len(val), len(images.test))}


def main(args: Transfer) -> None:
    """Do what is not done yet and write the file."""
    out = args.out / "landscape_transfer_cifar10.json"
    start = begin(out)
    with one_line():
        settings = settings_of(Grow(args.data))
        for name in args.only:
            images_of(varied(settings, name).recipe)
        numbers = stratified(settings, args.networks)
    depends = {"recipe": settings.recipe, "recipes": repr(RECIPES), "numbers": numbers}
    with resumable(args.runs / "transfer", "transfer", depends) as run:
        known = {(row["recipe"], row["number"]) for row in run.history()}
        left = [(name, number) for name in args.only for number in numbers if (name, number) not in known]
        work = partial(row_of, settings)
        for row in spread(work, left, jobs=args.jobs, title="training", progress=True, done=len(known)):
            run.log(row)
        rows = run.history()
    told_of = {name: [row for row in rows if row["recipe"] == name] for name in RECIPES}
    complete = {name: own for name, own in told_of.items() if len(own) == len(numbers)}
    write(out, {"seed": SEED, "numbers": numbers, "recipes": complete}, start)


if __name__ == "__main__":
    main(tyro.cli(Transfer, description=__doc__))
