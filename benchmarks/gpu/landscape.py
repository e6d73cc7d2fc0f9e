"""The truth of the whole space: every name trained by the landscape's recipe, hundreds at once.

    python benchmarks/gpu/landscape.py --data packed:cifar10.packed

Encoders of one wiring share their products in banks that are all alike (``dasvit.landscape.banks``). Names of one
function are further trainings of it. The rows are kept after each bank; the table is written from what is complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import tyro
from common import Budget, Step

from dasvit.engine.runs import Run, as_plain
from dasvit.landscape import RECIPE, LandscapeSettings, load, train, trainings
from dasvit.landscape.measuring import images_of
from dasvit.landscape.table import Landscape as Table
from dasvit.presets import RETRAIN
from dasvit.space import SearchSpace


@dataclass(frozen=True)
class Landscape(Step):
    """Train every name in the space."""

    name: ClassVar[str] = "landscape"
    looks_at_data: ClassVar[bool] = True

    seeds: int = 1
    """Trainings of every name."""
    bank: int = 343
    """Encoders at once; a multiple of 49, so that all banks are alike."""
    image_size: int = 16
    """Side of the images in pixels."""

    @property
    def settings(self) -> LandscapeSettings:
        """Of all trainings."""
        recipe = replace(RECIPE, hardware=replace(self.hardware, precision="32-true"), image_size=self.image_size)
        space = SearchSpace()
        if self.rehearse:
            given = "digits" if self.data == "cifar10" else self.data
            data = replace(RETRAIN["tiny"].data, data=given, train_images=120, test_images=40)
            sizes: Mapping[str, Any] = {"image_size": 8, "patch_size": 2, "dim": 8, "batch_size": 20, "epochs": 2}
            recipe = replace(recipe, data=data, val_share=0.5, **sizes)
            space = SearchSpace(heads=(2, 4), mlp_ratios=(1,), nodes=1, keep=1)
        else:
            recipe = replace(recipe, data=replace(recipe.data, data=self.data))
        return LandscapeSettings(recipe, space, networks=1, every=True, trainings=self.seeds)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What has been trained."""
        path = self.state.path / "run"
        return Run(path).history() if path.exists() else []

    def work(self, budget: Budget) -> None:
        """Train what has not been trained yet."""
        table, known = self.file.with_suffix(".safetensors"), ()
        if not self.rows and table.exists():  # brought from another half hour
            known = load(table).rows
        train(self.settings, self.state.path / "run", bank=3 if self.rehearse else self.bank, known=known, resume=True)

    def result(self) -> dict[str, Any]:
        """Write the table of what is trained, and return what it took."""
        settings, rows = self.settings, self.rows
        told = {"settings": as_plain(settings), "trainings": len(rows), "planned": len(trainings(settings))}
        if rows:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            Table.gather(settings, rows, images_of(settings.recipe)).save(self.file.with_suffix(".safetensors"))
            told["seconds_an_encoder"] = sum(sum(row["seconds"]) for row in rows) / len(rows)
        return told


if __name__ == "__main__":
    tyro.cli(Landscape, description=__doc__).command()
