"""Classifying photographs by a retrained network, with the run directory alone (own images)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from .checks import check_sizes
from .data.images import Fit, ImageSet, colours, fitted, opened
from .data.sizes import ImageSize, pair
from .data.sources import is_image
from .engine.checkpoint import expect, refusing
from .engine.runs import Run, from_plain
from .retraining import (
    PREPARATION,
    RESULT,
    RetrainSettings,
    classify,
    load_trained,
    load_weights,
    make_network,
    prepare,
)

BATCH = 64  # images decoded and classified at a time


class Prediction(NamedTuple):
    """What an image is taken for.

    Args:
        image: The file.
        classes: Name and probability of each class, the likeliest first.
        error: Why it cannot be read; then there are no classes.
    """

    image: Path
    classes: list[tuple[str, float]]
    error: str = ""


class Classifier:
    """A retrained network that answers to image files.

    Args:
        network: The network.
        settings: Of its training.
        preparation: As of :func:`prepare`.
        device: Where it computes.

    Raises:
        ValueError: If ``preparation`` is none of such a network.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: RetrainSettings,
        preparation: Mapping[str, Any],
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings, self.device = settings, device
        self.network = network.eval().to(device)
        self.images = unseen(preparation)
        self.classes = self.images.classes
        decoded = preparation["decoded"]
        self.decoded: ImageSize = decoded if isinstance(decoded, int) else (decoded[0], decoded[1])
        self.temperature = float(preparation["temperature"])

    @classmethod
    def load(cls, run_dir: str | Path, device: torch.device | str = "cpu") -> Classifier:
        """Return the network of a retraining; of one that is finished the images are not needed any more.

        Raises:
            ValueError: If the directory holds no retraining, or none that has saved anything.
        """
        run = Run(Path(run_dir))
        settings: RetrainSettings = from_plain(RetrainSettings, run.settings("retrain"))
        preparation = run.read(RESULT, PREPARATION)
        if preparation is None:  # it is not finished, or from before this was kept
            network, settings, data = load_trained(run_dir)
            return cls(network, settings, prepare(network, settings, data, "cpu"), device)
        with refusing(f"{run.path / RESULT}: {PREPARATION}"):
            network = make_network(settings, unseen(preparation))
            load_weights(network, settings, run)
            return cls(network, settings, preparation, device)

    def __call__(self, image: str | Path) -> dict[str, float]:
        """Return the probability of each class for an image file, the likeliest first.

        Raises:
            ValueError: If the file cannot be read.
        """
        (found,) = self.predict([Path(image)])
        if found.error:
            raise ValueError(found.error)
        return dict(found.classes)

    def predict(self, files: Sequence[Path]) -> Iterator[Prediction]:
        """Yield a prediction for each image file, in their order; a file that cannot be read stops nothing."""
        for start in range(0, len(files), BATCH):
            chunk = files[start : start + BATCH]
            with ThreadPoolExecutor() as pool:
                pixels = list(pool.map(self._decode, chunk))
            whole = [x for x in pixels if isinstance(x, Tensor)]
            rows = iter(self.probabilities(torch.stack(whole)) if whole else ())
            for file, seen in zip(chunk, pixels, strict=True):
                if isinstance(seen, str):
                    yield Prediction(file, [], seen)
                else:
                    values, order = next(rows).sort(descending=True, stable=True)
                    named = (self.classes[i] for i in order.tolist())
                    yield Prediction(file, list(zip(named, values.tolist(), strict=True)))

    def probabilities(self, images: UInt8[Tensor, "n c h w"]) -> Tensor:
        """Return the probability of each class, ``[n, classes]``, for images as bytes."""
        labels = torch.zeros(len(images), dtype=torch.long)
        shown = replace(self.images, images=images, labels=labels)
        logits, _ = classify(self.network, shown, self.settings.image_size, self.device)
        return (logits.cpu().double() / self.temperature).softmax(dim=1)

    def _decode(self, file: Path) -> UInt8[Tensor, "c h w"] | str:
        fit: Fit = self.settings.data.fit
        try:
            with opened(file) as image:
                shown = colours(image)
                if self.images.channels == 1:
                    shown = shown.convert("L").convert("RGB")
                return fitted(shown, self.decoded, fit)[: self.images.channels]
        except ValueError as error:
            return str(error)


def unseen(preparation: Mapping[str, Any]) -> ImageSet:
    """Return a set without images, which says how such are prepared.

    Raises:
        ValueError: If there is no such preparation.
    """
    names, mean, std = (preparation[k] for k in ("classes", "mean", "std"))
    for value in (*mean, *std, preparation["temperature"]):
        expect(value, float, "a number")
    for name in names:
        expect(name, str, "a class")
    decoded = preparation["decoded"]
    for side in pair(decoded if isinstance(decoded, int) else tuple(decoded)):
        check_sizes(decoded=side)
    if not (names and mean and len(mean) == len(std) and min(std) > 0 and preparation["temperature"] > 0):
        raise ValueError("its parts do not go together")
    none = torch.empty(0, len(mean), 1, 1, dtype=torch.uint8)
    return ImageSet(none, torch.empty(0, dtype=torch.long), tuple(names), tuple(mean), tuple(std))


def find_images(places: Sequence[Path]) -> list[Path]:
    """Return the files that are named, and the images in the folders that are named and those below them.

    Raises:
        ValueError: If one does not exist or a folder has no image.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = sorted(path for path in place.rglob("*") if is_image(path.name) and path.is_file())
            if not inside:
                raise ValueError(f"{place} has no image: name files, or a folder with images")
            found += inside
        elif place.exists():
            found.append(place)
        else:
            raise ValueError(f"{place} does not exist: name image files, or a folder with images")
    return found
