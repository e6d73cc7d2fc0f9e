"""What a found encoder has to be compared with: published, random of equal size, plain transformer (chapter 7)."""

from __future__ import annotations

import random
from dataclasses import replace

import torch

from .encoder import BASELINE
from .images import ImageSet
from .retrain import RetrainSettings, make_network
from .space import Genotype, SearchSpace

TOLERANCE = 0.05  # of the parameters, for a random encoder "of equal size"


def count_parameters(settings: RetrainSettings, images: ImageSet) -> int:
    """Return the number of parameters of the network that the settings describe, without allocating it."""
    with torch.device("meta"):
        return sum(p.numel() for p in make_network(settings, images).parameters())


def peers(
    genotype: Genotype, settings: RetrainSettings, images: ImageSet, space: SearchSpace | None = None
) -> dict[str, RetrainSettings]:
    """Return settings for the found encoder and its peers, alike in everything but the architecture.

    Args:
        genotype: The encoder found.
        settings: How all of them are trained; the seed also draws the random encoder.
        images: Training images, for their channels and classes.
        space: Where the random encoder is drawn from; the default space if not given.

    Returns:
        ``found``; ``published``; ``random``, which has attention (without it the class token sees no image) and
        whose size is within 5 % of the found one's; ``vit``, the plain transformer with the number of layers that
        comes nearest in size.

    Raises:
        ValueError: If a thousand random encoders hold none such.
    """
    found = replace(settings, genotype=genotype.to_json())
    size = count_parameters(found, images)
    rng = random.Random(settings.seed)
    drawn = ((space or SearchSpace()).sample(rng) for _ in range(1000))
    seeing = (g for g in drawn if g != genotype and any(operation.kind == "msa" for _, operation in g.edges))
    candidates = (replace(settings, genotype=g.to_json()) for g in seeing)
    equal = (c for c in candidates if abs(count_parameters(c, images) - size) <= TOLERANCE * size)
    if (chosen := next(equal, None)) is None:
        raise ValueError(f"no random encoder within {TOLERANCE:.0%} of {size} parameters in a thousand draws")
    plain = [replace(settings, genotype=BASELINE, depth=depth) for depth in range(1, 2 * settings.depth + 1)]
    nearest = min(plain, key=lambda s: abs(count_parameters(s, images) - size))
    published = replace(settings, genotype="dasvit-cifar10")
    return {"found": found, "published": published, "random": chosen, "vit": nearest}
