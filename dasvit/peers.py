"""What a found encoder has to be compared with: published, random of equal size, plain transformer (chapter 7; A40)."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import islice

from .data.images import ImageSet
from .encoder import BASELINE, layer_parameters, resolve
from .retraining import RetrainSettings
from .space import Genotype, SearchSpace
from .vit import trunk_parameters

TOLERANCE = 0.05  # of the parameters, for a random encoder "of equal size"


def count_parameters(settings: RetrainSettings, images: ImageSet) -> int:
    """Return the number of parameters of the network that the settings describe, in closed form."""
    trunk = trunk_parameters(
        settings.dim,
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        in_channels=images.channels,
        num_classes=len(images.classes),
    )
    return trunk + settings.depth * layer_parameters(resolve(settings.genotype), settings.dim)


def random_peers(
    genotype: Genotype,
    settings: RetrainSettings,
    images: ImageSet,
    *,
    count: int = 10,
    seed: int = 0,
    space: SearchSpace | None = None,
) -> list[Genotype]:
    """Draw encoders of the size of the found one: different functions, none of them that of the found one.

    All have attention (without it the class token sees no image), and their networks' parameters are within 5 % of
    those of the found one's. Of such functions each is equally likely, however many genotypes stand for it.

    Args:
        genotype: The encoder found.
        settings: Width and depth of the networks.
        images: Training images, for their channels and classes.
        count: How many are drawn; fewer are the first ones of more.
        seed: Seed of the draw, not that of any training: which encoders they are is a question of its own.
        space: Where they are drawn from; the default space if not given.

    Raises:
        ValueError: If there are not so many.
    """
    size = count_parameters(replace(settings, genotype=genotype.to_json()), images)
    formula, layer = genotype.formula, layer_parameters(genotype, settings.dim)
    equal = (
        other
        for other in (space or SearchSpace()).shuffled(random.Random(seed))
        if other.has_attention
        and abs(layer_parameters(other, settings.dim) - layer) * settings.depth <= TOLERANCE * size
        and other.formula != formula
    )
    if len(drawn := list(islice(equal, count))) < count:
        raise ValueError(
            f"only {len(drawn)} of {count} random encoders found within {TOLERANCE:.0%} of {size:,} parameters: "
            f"ask for fewer, or give a larger space"
        )
    return drawn


def peers(
    genotype: Genotype,
    settings: RetrainSettings,
    images: ImageSet,
    *,
    count: int = 10,
    seed: int = 0,
    space: SearchSpace | None = None,
) -> dict[str, RetrainSettings]:
    """Return settings for the found encoder and its peers, alike in everything but the architecture.

    Args:
        genotype: The encoder found.
        settings: How all of them are trained.
        images: Training images, for their channels and classes.
        count: How many random encoders.
        seed: Seed by which they are drawn, see :func:`random_peers`.
        space: Where they are drawn from; the default space if not given.

    Returns:
        ``found``; ``published``; ``random-0``, ``random-1``, …, of the size of the found one; ``vit``, the plain
        transformer with the number of layers that comes nearest in size.

    Raises:
        ValueError: If there are not so many random encoders of this size.
    """
    found = replace(settings, genotype=genotype.to_json())
    drawn = random_peers(genotype, settings, images, count=count, seed=seed, space=space)
    others = {f"random-{i}": replace(settings, genotype=other.to_json()) for i, other in enumerate(drawn)}
    size = count_parameters(found, images)
    plain = [replace(settings, genotype=BASELINE, depth=depth) for depth in range(1, 2 * settings.depth + 1)]
    nearest = min(plain, key=lambda s: abs(count_parameters(s, images) - size))
    published = replace(settings, genotype="dasvit-cifar10")
    return {"found": found, "published": published, **others, "vit": nearest}
