"""The data of the page that explores the truth table: what is known of every encoder of its space, as a script."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from dasvit.counting import Products
from dasvit.landscape import Landscape, load
from dasvit.space import Genotype, Operation

NAME = "cifar10"
FILE = "explorer-data.js"
PUBLISHED = "dasvit-cifar10"


def wirings(landscape: Landscape) -> list[tuple[int, int]]:
    """Return the choices of the second node's sources; the first has none.

    Raises:
        ValueError: If the space is not one that the page can draw.
    """
    space = landscape.settings.space
    if (space.nodes, space.inputs, space.keep) != (2, 2, 2):
        raise ValueError("the page draws two nodes, each with two edges, behind two inputs")
    return list(itertools.combinations(range(3), 2))


def encoders(landscape: Landscape) -> list[Genotype]:
    """Return every encoder in the order of the page's choices: the wiring, then the operation on each of four edges."""
    space = landscape.settings.space
    return [
        Genotype((((0, a), (1, b)), ((sources[0], c), (sources[1], d))), space.inputs)
        for sources in wirings(landscape)
        for a, b, c, d in itertools.product(space.operations[1:], repeat=4)
    ]


def costs(landscape: Landscape, genotypes: Iterable[Genotype]) -> list[int]:
    """Return the multiply-accumulates for an image; in the last layer, the last node computes the class token alone."""
    recipe = landscape.settings.recipe
    tokens = (recipe.image_size // recipe.patch_size) ** 2 + 1
    trunk = (tokens - 1) * 3 * recipe.patch_size**2 * recipe.dim + recipe.dim * landscape.classes
    full, first = (
        {o: _counted(o, tokens, recipe.dim, wanted) for o in landscape.settings.space.operations[1:]}
        for wanted in (None, 1)
    )

    def layers(genotype: Genotype) -> Iterable[int]:
        last = max(target for (_, target), _ in genotype.edges)
        for (_, target), operation in genotype.edges:
            yield recipe.depth * full[operation] + (target == last) * (first[operation] - full[operation])

    return [trunk + sum(layers(genotype)) for genotype in genotypes]


def _counted(operation: Operation, tokens: int, dim: int, wanted: int | None) -> int:
    if operation.spec.module is None:
        return 0
    with torch.device("meta"), torch.no_grad(), Products() as products:
        operation.spec.make(dim, operation.size).eval()(torch.zeros(1, tokens, dim), wanted)
    return products.macs


def ahead(values: Sequence[float], deviations: Sequence[float]) -> list[float]:
    """Return how many percent of all each is expected to be better than, as :meth:`Landscape.percentile` does."""
    values, deviations = np.asarray(values), np.asarray(deviations)
    each = zip(values, deviations, strict=True)
    return [100 * stats.norm.cdf((v - values) / np.hypot(s, deviations)).mean() for v, s in each]


def data(landscape: Landscape) -> dict[str, Any]:
    """Return all that the page knows.

    ``places`` leads from a choice to its function; ``mean`` and ``deviation`` (in ten thousandths), ``percentile`` (in
    tenths of a percent) and ``macs`` are by function, of which those with attention come first.
    """
    space, attending = landscape.settings.space, landscape.functions
    functions = [*attending, *sorted(set(space.functions()) - set(attending))]
    place = {number: i for i, number in enumerate(functions)}
    choices = [place[space.canonical(space.number(genotype))] for genotype in encoders(landscape)]
    values, deviations = landscape.estimates()
    answers = {place[number]: landscape.query(space[number]) for number in landscape.numbers}
    return {
        "operations": [{"name": str(o), "kind": o.kind} for o in space.operations[1:]],
        "wirings": wirings(landscape),
        "places": choices,
        "mean": _whole(1e4 * values),
        "deviation": _whole(1e4 * deviations),
        "percentile": _whole(10 * np.array(ahead(values, deviations))),
        "macs": costs(landscape, (space[number] for number in functions)),
        "measured": {i: [answer.mean, answer.standard_error, answer.n] for i, answer in sorted(answers.items())},
        "guess": 1 / landscape.classes,
        "published": choices.index(place[landscape.number(PUBLISHED)]),
    }


def _whole(values: np.ndarray) -> list[int]:
    return np.rint(values).astype(int).tolist()


def write(folder: Path) -> None:
    """Write the data as a script, which a page on disk may load where it may not read a file."""
    text = json.dumps(data(load(NAME)), separators=(",", ":"))
    (folder / FILE).write_text(f"window.landscape = {text};\n", encoding="utf-8")
