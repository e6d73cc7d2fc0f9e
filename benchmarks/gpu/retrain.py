"""Retraining at the paper's scale: ViT-B/16, the published encoder, the one found, a random one of equal size.

    python benchmarks/gpu/retrain.py

First with equal epochs, then with equal time: as many epochs as fit the time that the slowest network took. The encoder
found is that of search.py; until that search is complete, the rows that need it are left for later.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
import tyro
from common import RECORDED, Budget, Rows, Step, ceilings

from dasvit.counting import complexity
from dasvit.data.sources import Data, load_data
from dasvit.encoder import BASELINE
from dasvit.engine.runs import as_plain
from dasvit.peers import peers
from dasvit.presets import RETRAIN
from dasvit.retraining import RetrainSettings, make_network, retrain
from dasvit.space import Genotype

Name = Literal["vit_b16", "published", "found", "random"]
"""A network of Table I."""


@dataclass(frozen=True)
class Retrain(Step):
    """Train the encoders from scratch, with equal epochs and with equal time."""

    name: ClassVar[str] = "retrain"
    looks_at_data: ClassVar[bool] = True

    epochs: int = 30
    """Epochs of every network, and of the slowest one when time is equal."""
    train_images: int | None = None
    """Training images to use; all by default."""
    genotype: Path | None = None
    """The encoder found; by default that of the search step, once it is complete, here or as recorded."""
    networks: tuple[Name, ...] = ("vit_b16", "published", "found", "random")
    """Which networks, in which order; those left out may be trained by a later call."""

    def __post_init__(self) -> None:
        if not self.networks or len(set(self.networks)) < len(self.networks):
            raise ValueError(f"networks {' '.join(self.networks) or 'none'}: name each one once, at least one")

    @property
    def depends(self) -> dict[str, Any]:
        """All that rows depend on; the encoder found is kept beside when it is known."""
        return {name: value for name, value in super().depends.items() if name not in ("genotype", "networks")}

    @property
    def settings(self) -> RetrainSettings:
        """Of every network, less the network."""
        base, epochs = (RETRAIN["tiny"], 2) if self.rehearse else (RETRAIN["paper"], self.epochs)
        given = base.data.data if self.rehearse and self.data == "cifar10" else self.data
        few = {"train_images": 200, "test_images": 50} if given == base.data.data and self.rehearse else {}
        few["data"] = given
        data = replace(base.data, **{"train_images": self.train_images} | few)
        base = replace(base, data=data, epochs=epochs, warmup_epochs=max(1, epochs // 25), hardware=self.hardware)
        return replace(base, dim=24, depth=2) if self.rehearse else base

    @cached_property
    def images(self) -> Data:
        """Training and test images."""
        settings = self.settings
        return load_data(settings.data, image_size=settings.image_size)

    def known(self) -> dict[str, RetrainSettings]:
        """Return settings by network, of those asked for; without a found encoder those that need none."""
        settings = self.settings
        known = {
            BASELINE: replace(settings, genotype=BASELINE),
            "published": replace(settings, genotype="dasvit-cifar10"),
        }
        if (found := self.found()) is not None:
            others = peers(found, settings, self.images.train, count=1)
            known |= {"found": others["found"], "random": others["random-0"]}
        return {name: known[name] for name in self.networks if name in known}

    def found(self) -> Genotype | None:
        """Return the encoder found, if there is one."""
        if self.genotype is not None:
            return Genotype.from_json(self.genotype.read_text())
        places = [self.file.parent] if self.rehearse else [self.file.parent, RECORDED]
        files = [file for place in places if (file := place / "search.json").exists()]
        searched = [told for file in files if (told := json.loads(file.read_text()))["complete"]]
        return Genotype.from_json(searched[0]["genotype"]) if searched else None

    def lacks(self) -> str | None:
        """Return what another step has to give before this one can be complete."""
        asked = {"found", "random"} & set(self.networks)
        return "the search is not complete" if asked and self.found() is None else None

    def work(self, budget: Budget) -> None:
        """Train what has not been trained yet."""
        rows, networks = Rows(self.state), self.known()
        if found := self.found():
            self.state.keep("found.json", found.to_json())
        rows.measure({f"{name} epochs": partial(self.row, name, s) for name, s in networks.items()}, budget)
        trained = [row for row in rows.rows if row["equal"] == "epochs"]
        if {row["network"] for row in trained} == set(get_args(Name)):  # only then is it known which is the slowest
            rows.measure(dict(self.equal_time(networks, trained)), budget)

    def equal_time(
        self, networks: dict[str, RetrainSettings], rows: list[dict[str, Any]]
    ) -> Iterator[tuple[str, partial[dict[str, Any]]]]:
        """Yield the runs of all networks but the slowest, with as many epochs as fit its time."""
        seconds = {row["network"]: row["seconds"] for row in rows}
        for name, settings in networks.items():
            epochs = int(settings.epochs * max(seconds.values()) / seconds[name])
            if epochs > settings.epochs:
                yield f"{name} time", partial(self.row, name, replace(settings, epochs=epochs), "time")

    def row(self, name: str, settings: RetrainSettings, equal: str = "epochs") -> dict[str, Any]:
        """Train a network, or go on with it, and return its row; its weights are then let go."""
        run = self.state.path / f"{name}-{equal}"
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        result = retrain(settings, self.images, run, resume=True, progress=True)
        cost = complexity(make_network(settings, self.images.train), settings.image_size)
        seconds = sum(row["seconds"] for row in result.history)
        steps = len(self.images.train) // settings.batch_size * settings.epochs
        return {
            "network": name,
            "equal": equal,
            "genotype": settings.genotype,
            "depth": settings.depth,
            "epochs": settings.epochs,
            "parameters": cost.parameters,
            "macs": cost.macs,
            **result.accuracy,
            "seconds": seconds,
            "images_per_second": settings.batch_size * steps / seconds,
            "peak_bytes": max(row["bytes"] for row in result.history),
            "history": result.history,
        }

    def result(self) -> dict[str, Any]:
        """Return the networks trained so far."""
        rows, best = Rows(self.state).rows, ceilings(self.device)
        for row in rows:  # a training step's products: forward, and twice as many backward
            row["share_of_matmul_peak"] = 6 * row["macs"] * row["images_per_second"] / best["matmul_flops"]
        images = {"train_images": len(self.images.train), "test_images": len(self.images.test)}
        told = {"seed": self.settings.seed, "settings": as_plain(self.settings), **images, "ceilings": best}
        return told | {"rows": rows}


if __name__ == "__main__":
    tyro.cli(Retrain, description=__doc__).command()
