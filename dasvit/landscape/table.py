"""The trainings of a landscape as one file, and what it answers (chapter 11)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy import stats

from ..data.sources import Data
from ..encoder import resolve
from ..engine.checkpoint import settle
from ..engine.runs import as_plain, from_plain
from ..retraining import set_apart
from ..space import Genotype
from .measuring import CURVES
from .modelling import Model, Variances, between_seeds, fit
from .settings import LandscapeSettings, attending

FORMAT = "dasvit landscape 1"
ACCURACIES, LOSSES = ("test", "val"), ("test_loss", "val_loss", "train_loss")
CURVED = (*ACCURACIES, *LOSSES, "seconds")
COSTS = ("parameters", "macs", "latency")
"""What is known of an encoder without training it."""
METRICS = (*CURVED, *COSTS)
"""Accuracies in [0, 1], mean cross-entropies, seconds of one core to train an epoch (on a GPU, of the clock); trained
weights, multiply-accumulates for an image, seconds to classify one on one thread."""


@dataclass(frozen=True)
class Answer:
    """What is known of an encoder.

    Args:
        mean: Of its trainings, or what those of the others let expect.
        standard_error: Of the mean, by what training again changes; of what is modelled, the standard deviation.
        n: Trainings; 0 of what is modelled.
        measured: Whether it was.
    """

    mean: float
    standard_error: float
    n: int
    measured: bool


@dataclass(frozen=True)
class Landscape:
    """The trainings of encoders of a space.

    Args:
        settings: How they were made.
        rows: As :func:`~dasvit.landscape.training.train` returns them, in any number from the first on.
        images: How many validation and test images each epoch looked at, by ``val`` and ``test``.
        classes: How many there are.
        costs: For each encoder in the order of :attr:`numbers`, by :data:`COSTS`.
        variances: By metric, as :func:`~dasvit.landscape.modelling.fit` finds them at the last epoch.
        about: Whatever else is to be kept: provenance, where the images come from.
    """

    settings: LandscapeSettings
    rows: Sequence[Mapping[str, Any]]
    images: Mapping[str, Sequence[int]]
    classes: int
    costs: Mapping[str, Sequence[float]] = field(default_factory=dict)
    variances: Mapping[str, Variances] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    _models: dict[tuple[str, int], Model] = field(default_factory=dict, init=False, repr=False)
    _known: dict[tuple[str, int], list[list[float]]] = field(default_factory=dict, init=False, repr=False)
    _estimates: dict[tuple[str, int], tuple[ndarray, ndarray]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def gather(
        cls, settings: LandscapeSettings, rows: Sequence[Mapping[str, Any]], data: Data, **more: Any
    ) -> Landscape:
        """Return what was trained on some images as a landscape; ``more`` are its other arguments."""
        _, val = set_apart(settings.recipe, data.train, data.val)
        assert val is not None
        sizes = {"val": len(val), "test": len(data.test)}
        early = settings.recipe.epochs - 1
        images = {name: early * [min(settings.curve_images, n)] + [n] for name, n in sizes.items()}
        return cls(settings, rows, images, len(data.train.classes), **more)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def epochs(self) -> int:
        """Epochs of a training."""
        return self.settings.recipe.epochs

    @cached_property
    def trained(self) -> dict[int, list[int]]:
        """Rows of each encoder's trainings, by the first number that it has, in the order drawn."""
        found: dict[int, list[int]] = {}
        for i, row in enumerate(self.rows):
            found.setdefault(self.settings.space.canonical(row["number"]), []).append(i)
        return found

    @property
    def numbers(self) -> list[int]:
        """Numbers of the encoders that were trained, in the order drawn."""
        return list(self.trained)

    @cached_property
    def _places(self) -> dict[int, int]:
        return {number: place for place, number in enumerate(self.trained)}

    @property
    def functions(self) -> tuple[int, ...]:
        """Numbers of all encoders with attention, one of each function."""
        return attending(self.settings.space)

    def values(self, metric: str = "test", epoch: int | None = None) -> list[list[float]]:
        """Return what each training of each encoder came to, in the order of :attr:`numbers`.

        Raises:
            ValueError: If there is no such metric or epoch.
        """
        return self._values(metric, self._at(metric, epoch))

    def _values(self, metric: str, at: int) -> list[list[float]]:
        if (metric, at) not in self._known:
            column = f"{metric}_correct" if metric in ACCURACIES else metric
            if metric in COSTS:
                found = [[float(value)] for value in self.costs[metric]]
            else:
                whole = self.images[metric][at - 1] if metric in ACCURACIES else 1
                found = [[self.rows[i][column][at - 1] / whole for i in own] for own in self.trained.values()]
            self._known[metric, at] = found
        return self._known[metric, at]

    @cached_property
    def correct(self) -> Bool[ndarray, "trainings images"]:
        """Whether each test image is taken for what it is at the end of each training."""
        packed = np.stack([np.frombuffer(bytes.fromhex(row["correct"]), dtype=np.uint8) for row in self.rows])
        return np.unpackbits(packed, axis=1, count=self.images["test"][-1]).astype(bool)

    def model(self, metric: str = "test", epoch: int | None = None) -> Model:
        """Return what the trainings say of all encoders.

        Raises:
            ValueError: If there is no such metric or epoch.
        """
        key = metric, self._at(metric, epoch)
        if key not in self._models:
            values = self.values(*key)
            variances = self.variances.get(metric) if key[1] == self.epochs else None
            variances = variances or fit(self.settings.space, self.numbers, values)
            means, counts = np.array([np.mean(v) for v in values]), np.array([len(v) for v in values], dtype=float)
            self._models[key] = Model(self.settings.space, self.numbers, means, counts, variances)
        return self._models[key]

    def query(self, genotype: Genotype | str, metric: str = "test", epoch: int | None = None) -> Answer:
        """Look an encoder up.

        An encoder without attention sees no image, so that its accuracy is that of a guess; none is trained.

        Args:
            genotype: The encoder, under whichever of its names; or a published one's name, or JSON.
            metric: One of :data:`METRICS`.
            epoch: After how many epochs; by default after all.

        Raises:
            ValueError: If the encoder is not of the space, or there is no such metric or epoch.
        """
        at, number = self._at(metric, epoch), self.number(genotype)
        if number in self.trained:
            values = self._values(metric, at)
            own = values[self._places[number]]
            error = (between_seeds(values) / len(own)) ** 0.5
            return Answer(float(np.mean(own)), error, len(own), measured=True)
        if not self.settings.space[number].has_attention and metric in (*ACCURACIES, *LOSSES):
            return Answer(self._guess(metric), 0.0, 0, measured=False)
        mean, deviation = self.model(metric, at).posterior([number])
        return Answer(float(mean[0]), float(deviation[0]), 0, measured=False)

    def estimates(
        self, metric: str = "test", epoch: int | None = None
    ) -> tuple[Float[ndarray, " functions"], Float[ndarray, " functions"]]:
        """Return what is to be expected of each of :attr:`functions`, and the standard deviations of that.

        Those that were trained are shrunken estimates: the best of many measured values is partly luck.

        Raises:
            ValueError: If there is no such metric or epoch.
        """
        key = metric, self._at(metric, epoch)
        if key not in self._estimates:
            self._estimates[key] = self.model(*key).posterior(self.functions)
        return self._estimates[key]

    def percentile(self, encoder: Genotype | str | Answer, metric: str = "test", epoch: int | None = None) -> float:
        """Return how many percent of the space's functions with attention an encoder is expected to be better than.

        The average over the functions j of ``Φ((v − v_j) / √(s² + s_j²))``, with estimates v and their deviations s.

        Args:
            encoder: One of the space, of which the shrunken estimate counts; or what a network of any kind came to.
            metric: An accuracy or a loss of :data:`METRICS`.
            epoch: After how many epochs; by default after all.

        Raises:
            ValueError: If the encoder is not of the space, or it cannot be compared by such a metric or epoch.
        """
        if metric not in (*ACCURACIES, *LOSSES):
            raise ValueError(f"no encoder is better by {metric!r:.80}; known: {', '.join((*ACCURACIES, *LOSSES))}")
        value, deviation = self._estimate(encoder, metric, self._at(metric, epoch))
        values, deviations = self.estimates(metric, epoch)
        ahead = (value - values) if metric in ACCURACIES else (values - value)
        return 100 * float(stats.norm.cdf(ahead / np.hypot(deviation, deviations)).mean())

    def _estimate(self, encoder: Genotype | str | Answer, metric: str, epoch: int) -> tuple[float, float]:
        if isinstance(encoder, Answer):
            return encoder.mean, encoder.standard_error
        number = self.number(encoder)
        if not self.settings.space[number].has_attention:
            answer = self.query(encoder, metric, epoch)
            return answer.mean, answer.standard_error
        mean, deviation = self.model(metric, epoch).posterior([number])
        return float(mean[0]), float(deviation[0])

    def means(self, metric: str = "test", epoch: int | None = None) -> Float[ndarray, " names"]:
        """Return for every number of the space the mean that :meth:`query` answers with.

        Raises:
            ValueError: If there is no such metric or epoch.
        """
        at, space = self._at(metric, epoch), self.settings.space
        functions = np.array([space.canonical(number) for number in range(len(space))])
        found, _ = self.model(metric, at).posterior(range(len(space)))
        if metric in (*ACCURACIES, *LOSSES):
            found[[not genotype.has_attention for genotype in space]] = self._guess(metric)
        known = dict(zip(self.numbers, map(np.mean, self._values(metric, at)), strict=True))
        trained = np.isin(functions, self.numbers)
        found[trained] = [known[number] for number in functions[trained]]
        return found

    def _guess(self, metric: str) -> float:
        """Return what an encoder comes to that sees no image."""
        return 1 / self.classes if metric in ACCURACIES else math.log(self.classes)

    def number(self, genotype: Genotype | str) -> int:
        """Return the first number that an encoder has in the space.

        Raises:
            ValueError: If it is not of the space.
        """
        found = resolve(genotype) if isinstance(genotype, str) else genotype
        if not isinstance(found, Genotype):
            raise ValueError(f"{found} is no encoder of the landscape's space")
        return self.settings.space.canonical(self.settings.space.number(found))

    def _at(self, metric: str, epoch: int | None) -> int:
        """Check a metric and an epoch; return the epoch."""
        known = [*CURVED, *(name for name in COSTS if name in self.costs)]
        if metric not in known:
            raise ValueError(f"unknown metric {metric!r:.80}; known: {', '.join(known)}")
        if epoch is not None and not 1 <= epoch <= self.epochs:
            raise ValueError(f"epoch {epoch} is outside 1 … {self.epochs}")
        return self.epochs if epoch is None else epoch

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, with the variances of every metric at its end."""
        path, known = Path(path), [*CURVED, *(name for name in COSTS if name in self.costs)]
        kept = {
            "format": FORMAT,
            "settings": as_plain(self.settings),
            "images": {name: list(counts) for name, counts in self.images.items()},
            "classes": self.classes,
            "variances": {metric: as_plain(self.model(metric).variances) for metric in known},
            "about": dict(self.about),
        }
        tensors = {
            name: torch.tensor([row[name] for row in self.rows], dtype=torch.int32 if whole else torch.float32)
            for name in ("number", "seed", *CURVES)
            for whole in [name in ("number", "seed") or name.endswith("_correct")]
        }
        tensors |= {f"cost {name}": torch.tensor(values, dtype=torch.float64) for name, values in self.costs.items()}
        packed = torch.tensor([list(bytes.fromhex(row["correct"])) for row in self.rows], dtype=torch.uint8)
        part = path.with_name(path.name + ".part")
        save_file({**tensors, "correct": packed}, part, {"landscape": json.dumps(kept)})  # several would have no order
        settle(part, path)


def load(name: str | Path) -> Landscape:
    """Return a landscape: a recorded one by its name (its images are those of ledger A47), or from a file.

    Raises:
        ValueError: If there is no such name, or the file holds no landscape.
    """
    recorded = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.safetensors"))}
    path = recorded.get(str(name), Path(name))
    if not path.is_file():
        raise ValueError(f"no landscape {str(name)!r:.80}; recorded: {', '.join(recorded) or 'none'}, or give a file")
    try:
        with safe_open(path, "pt") as file:
            kept = json.loads((file.metadata() or {})["landscape"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if kept.pop("format") != FORMAT:
            raise KeyError("format")
        columns = {name: tensors[name].tolist() for name in ("number", "seed", *CURVES)}
        columns["correct"] = [row.numpy().tobytes().hex() for row in tensors["correct"]]
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        costs = {name: tensors[f"cost {name}"].tolist() for name in COSTS if f"cost {name}" in tensors}
        variances = {metric: Variances(**one) for metric, one in kept.pop("variances").items()}
        settings = from_plain(LandscapeSettings, kept.pop("settings"))
        return Landscape(settings, rows, costs=costs, variances=variances, **kept)
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} holds no landscape of this version: {error}") from None
