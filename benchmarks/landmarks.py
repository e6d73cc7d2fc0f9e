"""Networks of interest, trained as the landscape's encoders are: published ones, plain ViTs, what our searches found.

    python benchmarks/landmarks.py --data folder:data/cifar10

Each is trained three times, with the orders of images that the landscape's encoders have. Interrupt it as you like: the
same command goes on where it stopped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from landscape import Grow, settings_of
from measure import ROOT, begin, one_line, resumable, write

from dasvit import genotypes
from dasvit.counting import complexity
from dasvit.engine.seeds import derive
from dasvit.engine.spread import spread
from dasvit.landscape.measuring import images_of, train_one
from dasvit.retraining import RetrainSettings, make_network, set_apart

ATTENTION = '{{"format": 1, "nodes": [[[0, "msa:{0}"], [1, "msa:{0}"]], [[1, "msa:{0}"], [2, "msa:{0}"]]]}}'
SEARCHES = ("digits_tiny", "cifar10_small")


@dataclass(frozen=True)
class Landmarks:
    """Train networks of interest by the landscape's recipe."""

    data: str
    """Where the images are, as for dasvit search --data."""
    seeds: int = 3
    """Trainings of each."""
    jobs: int = 2
    """Processes, of one thread each."""
    runs: Path = Path("runs")
    """Where finished rows are kept."""
    out: Path = Path("book/results")
    """Where the JSON file goes."""


def networks() -> list[dict[str, Any]]:
    """Return what is trained: a name, the network, and its layers where they are not those of the recipe."""
    named = [{"name": name, "network": genotype.to_json()} for name, genotype in genotypes().items()]
    named += [{"name": f"ViT of {depth} layers", "network": "vit_b16", "depth": depth} for depth in (1, 2, 3, 4)]
    named += [{"name": f"attention of {heads} heads alone", "network": ATTENTION.format(heads)} for heads in (4, 8, 12)]
    for file in SEARCHES:
        found = json.loads((ROOT / "book/results" / f"{file}.json").read_text())["searches"]
        named += [{"name": f"{file}, search {one['seed']}", "network": one["genotype"]} for one in found]
    return named


def recipe_of(recipe: RetrainSettings, network: dict[str, Any], seed: int) -> RetrainSettings:
    """Return the settings of one training; the order of images is that of the landscape's trainings of this seed."""
    own, order = derive(seed, f"landmark {network['name']}"), derive(seed, "landscape order")
    depth = network.get("depth", recipe.depth)
    return replace(recipe, genotype=network["network"], depth=depth, seed=own, order_seed=order)


def row_of(recipe: RetrainSettings, curve_images: int, piece: tuple[dict[str, Any], int]) -> dict[str, Any]:
    """Train one network with one seed."""
    network, seed = piece
    return {"name": network["name"], "seed": seed, **train_one(recipe_of(recipe, network, seed), curve_images)}


def told(row: dict[str, Any], val_images: int, test_images: int) -> dict[str, Any]:
    """Return what a training came to at its end."""
    right = {"val": row["val_correct"][-1] / val_images, "test": row["test_correct"][-1] / test_images}
    lost = {name: row[name][-1] for name in ("train_loss", "val_loss", "test_loss")}
    return {"seed": row["seed"], **right, **lost, "seconds": sum(row["seconds"])}


def main(args: Landmarks) -> None:
    """Do what is not done yet and write the file."""
    start = begin(args.out)
    with one_line():
        settings = settings_of(Grow(args.data))
        images = images_of(settings.recipe)
    recipe, listed = settings.recipe, networks()
    pieces = [(network, seed) for network in listed for seed in range(args.seeds)]
    work = partial(row_of, recipe, settings.curve_images)
    with resumable(args.runs / "landmarks", "landmarks", {"recipe": recipe, "networks": listed}) as run:
        done = len(run.history())
        for row in spread(work, pieces[done:], jobs=args.jobs, title="training", progress=True, done=done):
            run.log(row)
        rows = run.history()
    _, val = set_apart(recipe, images.train)
    assert val is not None
    found = []
    for network in listed:
        model = make_network(recipe_of(recipe, network, 0), images.train).eval()
        counted = complexity(model, recipe.image_size)
        own = [told(row, len(val), len(images.test)) for row in rows if row["name"] == network["name"]]
        found.append({**network, "parameters": counted.parameters, "macs": counted.macs, "trainings": own})
    write(args.out / "landmarks_cifar10.json", {"seed": 0, "networks": found}, start)


if __name__ == "__main__":
    main(tyro.cli(Landmarks, description=__doc__))
