"""Which encoders a landscape trains, and by which recipe (chapter 11; ledger A40, A46)."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from functools import cache

from ..checks import check_sizes
from ..data.images import Augmentation
from ..data.sources import DataSettings
from ..engine.seeds import check_seed, derive
from ..retraining import RetrainSettings
from ..space import SearchSpace
from .banks import names_by_bank

RECIPE = RetrainSettings(
    data=DataSettings("cifar10", train_images=15_000, augmentation=Augmentation(flip=True, shift=0.125)),
    image_size=16,
    patch_size=4,
    dim=48,
    depth=2,
    epochs=15,
    warmup_epochs=1,
    batch_size=128,
    lr=8e-3,
    val_share=2 / 3,
)
"""How every encoder is trained; ``benchmarks/pilot.py`` compares recipes like it.

:meta hide-value:
"""


@dataclass(frozen=True)
class LandscapeSettings:
    """Everything the truth of a space depends on."""

    recipe: RetrainSettings = field(default_factory=lambda: RECIPE)
    """How every encoder is trained."""
    space: SearchSpace = field(default_factory=SearchSpace)
    """The space."""
    networks: int = 1000
    """Encoders drawn: different functions with attention, every one being equally likely."""
    every: bool = False
    """Train every name in the space instead, those of one function as further trainings of it."""
    trainings: int = 3
    """Trainings of each encoder that is trained more than once; with --every, of all."""
    repeat_every: int = 10
    """Train the first of so many encoders several times, the others once."""
    curve_images: int = 1000
    """Validation images, and test images, looked at after each epoch but the last, which looks at all."""
    draw_seed: int = 0
    """Seed that draws the encoders."""

    def __post_init__(self) -> None:
        check_sizes(trainings=self.trainings, repeat_every=self.repeat_every, curve_images=self.curve_images)
        check_seed(self.draw_seed, "draw_seed")
        count = len(attending(self.space))
        if not 1 <= self.networks <= count:
            raise ValueError(f"networks {self.networks} is outside 1 … {count:,}, those with attention in the space")
        if self.recipe.hardware.devices > 1:
            raise ValueError(
                f"devices {self.recipe.hardware.devices}: each training has one, use --jobs for many at once"
            )
        if self.recipe.val_share == 0:
            raise ValueError("val_share 0 leaves no validation images: choices are not made by test images")


@cache
def attending(space: SearchSpace) -> tuple[int, ...]:
    """Return the numbers of the encoders with attention, one of each function: the others see no image."""
    return tuple(number for number in space.functions() if space[number].has_attention)


def trainings(settings: LandscapeSettings) -> list[tuple[int, int]]:
    """Return the number of an encoder and the seed of each training, in their order.

    A part from the start is a smaller landscape: its encoders are drawn evenly, and as many are trained several times.
    With ``every`` the encoders come bank after bank, see :func:`~dasvit.landscape.banks.names_by_bank`.
    """
    if settings.every:
        return [(number, seed) for seed in range(settings.trainings) for number in names_by_bank(settings.space)]
    numbers = attending(settings.space)
    drawn = random.Random(derive(settings.draw_seed, "landscape")).sample(numbers, settings.networks)
    seeds = (range(settings.trainings if i % settings.repeat_every == 0 else 1) for i in range(len(drawn)))
    return [(number, seed) for number, several in zip(drawn, seeds, strict=True) for seed in several]


def recipe_of(settings: LandscapeSettings, number: int, seed: int) -> RetrainSettings:
    """Return the settings of one training: weights of its own, and the order of images that all of one seed have."""
    return replace(
        settings.recipe,
        genotype=settings.space[number].to_json(),
        seed=derive(seed, "landscape", number),
        order_seed=derive(seed, "landscape order"),
    )
