"""A landscape as the judge of searches that train encoders one by one: what would have taken hours (chapter 12)."""

from __future__ import annotations

from functools import cache

import numpy as np

from ..engine.seeds import derive
from ..landscape.table import Landscape
from ..space import Genotype
from .sampling import Evaluate


def from_table(landscape: Landscape) -> Evaluate:
    """Return what tells a search of an encoder by the landscape.

    An encoder that was trained is told as one of its trainings went, chosen by the seed. Of another one a training is
    drawn, from what the landscape's model says of it and from what training again changes; the seed decides the draw.
    Seconds of such a one are the model's. An encoder without attention is told what a guess comes to.

    Args:
        landscape: The landscape.
    """
    space, whole = landscape.settings.space, landscape.images["val"]

    @cache
    def modelled(number: int, epochs: int) -> tuple[float, float, float]:
        model = landscape.model("val", epochs)
        mean, deviation = model.posterior([number])
        seconds, _ = landscape.model("seconds").posterior([number])
        return float(mean[0]), float(np.hypot(deviation[0], model.variances.seed**0.5)), float(seconds[0])

    def evaluate(genotype: Genotype, epochs: int, seed: int) -> tuple[float, float]:
        number = landscape.number(genotype)
        if (rows := landscape.trained.get(number)) is not None:
            row = landscape.rows[rows[seed % len(rows)]]
            return row["val_correct"][epochs - 1] / whole[epochs - 1], float(sum(row["seconds"][:epochs]))
        mean, deviation, seconds = modelled(number, epochs)
        if not space[number].has_attention:
            return 1 / landscape.classes, seconds * epochs
        drawn = np.random.default_rng(derive(seed, "table", number)).normal()
        return float(np.clip(mean + deviation * drawn, 0, 1)), seconds * epochs

    return evaluate
