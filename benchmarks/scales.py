"""What is searched and trained on a processor: a preset, and how it is made small enough for several searches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dasvit.engine.hardware import Hardware
from dasvit.presets import RETRAIN, SEARCH
from dasvit.retraining import RetrainSettings
from dasvit.searching import SearchSettings

HARDWARE = Hardware("cpu", "32-true")


@dataclass(frozen=True)
class Scale:
    """A preset made smaller.

    Args:
        preset: Its name.
        note: What is to be said beside every result.
        sizes: What search and retraining have in common, instead of the preset's.
        data: The same for the images.
        stages: Of the search; the preset's if not given.
        epochs: Of retraining; the preset's if not given.
    """

    preset: str
    note: str
    sizes: Mapping[str, Any]
    data: Mapping[str, Any]
    stages: tuple[tuple[int, int, int], ...] | None = None
    epochs: int | None = None

    def settings(self, data: str | None = None) -> tuple[SearchSettings, RetrainSettings]:
        """Return the settings of search and retraining.

        Args:
            data: Where the images are, as for ``dasvit search --data``; the preset's if not given.
        """
        find, train = SEARCH[self.preset], RETRAIN[self.preset]
        images = replace(find.data, data=data or find.data.data, **self.data)
        both = {"data": images, "hardware": HARDWARE, **self.sizes}
        epochs = self.epochs or train.epochs
        trained = replace(train, **both, epochs=epochs, warmup_epochs=max(1, epochs // 10))
        return replace(find, **both, stages=self.stages or find.stages), trained


SCALES = {
    "digits": Scale("tiny", "scikit-learn's digits", {}, {}),
    "cifar10": Scale(
        "small",
        "CIFAR-10 images re-encoded as JPEG (quality about 75) and reduced to 16 pixels, 3,000 of them to train on: "
        "accuracies are not those of the originals",
        {"image_size": 16, "dim": 48},
        {"train_images": 3000, "test_images": 5000},
        ((2, 8, 8), (4, 5, 8), (6, 3, 8)),
        15,
    ),
}
