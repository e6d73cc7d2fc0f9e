"""Progressive differentiable search, Algorithm 1: stages of growing depth and shrinking choice (chapter 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric, seed_everything
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from .bilevel import first_order_gradient, frozen, second_order_gradient
from .checks import check_sizes, check_training
from .data.images import Batch, ImageSet
from .data.sources import Data, DataSettings
from .engine.checkpoint import expect
from .engine.hardware import Hardware, average, compile_network, make_fabric, place
from .engine.loop import (
    check_row,
    check_state,
    cosine_schedule,
    load_moments,
    load_schedule,
    moments,
    run_epochs,
)
from .engine.runs import Run
from .engine.seeds import check_seed, derive
from .engine.updates import UpdateInBackward
from .fairness import FairnessSettings, fairness_term
from .relaxation import Candidates, Supernet, prune
from .space import Genotype, Operation, SearchSpace, edge_name
from .vit import Init, weight_groups

Stage = tuple[int, int, int]
"""Depth in layers, operations kept on each edge, epochs."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""A scalar from logits ``[b, classes]`` and labels ``[b]``, a mean over the images."""
Objective = Callable[[Tensor, Tensor, Tensor, Candidates], Tensor]
"""What α descends: a scalar from logits, labels, mixing weights ``softmax(α)`` and the candidates they stand for."""
# what is logged of an epoch
ROW = {"alpha": dict, "genotype": str, **dict.fromkeys(("val_accuracy", "val_loss", "fairness", "train_loss"), float)}


@dataclass(frozen=True)
class SearchSettings:
    """Everything a search depends on. The defaults are the preset ``tiny``."""

    data: DataSettings = field(default_factory=DataSettings)
    """The images."""
    image_size: int = 8
    """Side in pixels that images are resized to."""
    patch_size: int = 2
    """Side of a patch in pixels."""
    dim: int = 48
    """Width of a token."""
    init: Init | None = "xavier"
    """How matrices start; without it nothing is drawn, which is for planning."""
    space: SearchSpace = field(default_factory=SearchSpace)
    """What is searched."""
    stages: tuple[Stage, ...] = ((2, 8, 6), (4, 5, 6), (6, 3, 6))
    """Depth, operations an edge and epochs of each stage."""
    keep_ratio: float = 0.5
    """Share of patch tokens kept in the search."""
    recompute: bool = False
    """Compute operations again in the backward pass: less memory, more time, the same result."""
    fairness: FairnessSettings = field(default_factory=FairnessSettings)
    """Operation fairness regularisation."""
    order: Literal[1, 2] = 1
    """Order of the architecture gradient."""
    carry_alpha: bool = False
    """Carry α of the surviving operations into the next stage; otherwise it starts anew."""
    batch_size: int = 32
    """Images in a batch."""
    accumulate: int = 1
    """Compute a batch in so many parts, one after the other: less memory, the same steps."""
    lr: float = 4e-3
    """Learning rate of the weights, annealed to zero in each stage."""
    weight_decay: float = 0.05
    """Weight decay of the weights' matrices."""
    alpha_lr: float = 1e-2
    """Learning rate of α."""
    alpha_weight_decay: float = 1e-3
    """Coefficient of α in its own gradient, as in DARTS."""
    seed: int = 0
    """Seed of the weights, and of what --order-seed draws unless it is given."""
    order_seed: int | None = None
    """Seed of the two halves, of the order of the images and of their distortions."""
    hardware: Hardware = field(default_factory=Hardware)
    """Device and precision."""

    def __post_init__(self) -> None:
        check_training(self.batch_size, self.lr, self.weight_decay)
        check_training(self.batch_size, self.alpha_lr, self.alpha_weight_decay)
        check_seed(self.seed)
        check_seed(self.ordering, "order_seed")
        check_sizes(image_size=self.image_size, patch_size=self.patch_size, dim=self.dim)
        if not self.stages or min(min(stage) for stage in self.stages) < 1:
            raise ValueError(f"stages {self.stages}: each is depth, operations, epochs, all at least one")
        check_sizes(depth=max(depth for depth, *_ in self.stages))
        kept = [operations for _, operations, _ in self.stages]
        if kept[0] != len(self.space.operations) or kept != sorted(kept, reverse=True) or kept[-1] < 2:
            raise ValueError(
                f"stages keep {kept} operations: start with all {len(self.space.operations)}, "
                "never grow, end with 2 or more"
            )
        if not 1 <= self.accumulate <= self.batch_size:
            raise ValueError(
                f"accumulate {self.accumulate} parts of a batch of {self.batch_size}: take 1 to {self.batch_size}"
            )
        if self.batch_size % self.hardware.devices:
            raise ValueError(f"batch_size {self.batch_size} cannot be divided among {self.hardware.devices} devices")
        if not 0 < self.keep_ratio <= 1:
            raise ValueError(f"keep_ratio {self.keep_ratio:g} is outside (0, 1]: 1 keeps every token, 0.5 half of them")

    @property
    def ordering(self) -> int:
        """The seed of halves, order and distortions."""
        return self.seed if self.order_seed is None else self.order_seed


def plain_darts(settings: SearchSettings) -> SearchSettings:
    """Return the settings of DARTS: one stage at the last depth, every operation, every token, no regularisation."""
    epochs = sum(epochs for *_, epochs in settings.stages)
    return replace(
        settings,
        stages=((settings.stages[-1][0], len(settings.space.operations), epochs),),
        keep_ratio=1.0,
        fairness=replace(settings.fairness, skip_weight=0.0, type_weight=0.0),
    )


METHODS: dict[str, Callable[[SearchSettings], SearchSettings]] = {"dasvit": replace, "darts": plain_darts}
"""What each method makes of settings."""


@dataclass(frozen=True)
class SearchResult:
    """What a search returns.

    Args:
        genotype: The architecture found.
        history: A row for each epoch: losses, accuracies, α by edge and operation, seconds, bytes.
        supernet: The last stage's supernet, trained.
    """

    genotype: Genotype
    history: list[dict[str, Any]]
    supernet: Supernet


class SearchStage:
    """One stage of Algorithm 1, to be run by :func:`~dasvit.engine.loop.run_epochs`.

    Args:
        settings: Of the search.
        number: Which stage, from 0.
        candidates: Operations in play on each edge.
        halves: The halves of the training set, for the weights and for α.
        fabric: Device and precision.
        run: Where the genotype of each epoch goes.
        alpha: α to start from; by default close to zero.
        loss: See :func:`search`.
        objective: See :func:`search`.
    """

    def __init__(
        self,
        settings: SearchSettings,
        number: int,
        candidates: Candidates,
        halves: tuple[ImageSet, ImageSet],
        fabric: Fabric,
        run: Run | None = None,
        alpha: Tensor | None = None,
        loss: Loss = F.cross_entropy,
        objective: Objective | None = None,
    ) -> None:
        self.settings, self.number, self.run = settings, number, run
        self.loss, self.objective = loss, objective
        self.depth, _, self.epochs = settings.stages[number]
        self.title = f"stage {number + 1}/{len(settings.stages)}"
        self.halves, self.fabric = halves, fabric
        self.steps = len(halves[0]) // settings.batch_size
        seed_everything(derive(settings.seed, "weights", number), verbose=False)
        self.supernet = make_supernet(settings, number, candidates, halves[0])
        if alpha is not None:
            self.supernet.alpha.data.copy_(alpha)
        place(self.supernet, fabric)
        if settings.hardware.compile:
            compile_network(self.supernet)
        weights = AdamW(supernet_groups(self.supernet, settings.weight_decay), lr=settings.lr, fused=True)
        self.schedule = cosine_schedule(weights, self.epochs * self.steps)
        # Adam, not AdamW: the decay of α is part of its gradient; beside a gradient of 1e-3 it would be nothing
        decay = settings.alpha_weight_decay
        alphas = Adam([self.supernet.alpha], lr=settings.alpha_lr, betas=(0.5, 0.999), weight_decay=decay)
        self.weight_optimizer, self.alpha_optimizer = (
            cast(Optimizer, fabric.setup_optimizers(o)) for o in (weights, alphas)
        )
        self.updates = UpdateInBackward(self.weight_optimizer, fabric)

    def train(self, epoch: int, start: int) -> Iterator[dict[str, Tensor]]:
        """Alternate a step of α on the one half with a step of the weights on the other."""
        self.supernet.train()
        # the half for the weights sets the pace: it is never the longer one
        for train, val in zip(*(self.batches(part, epoch, start) for part in (0, 1)), strict=False):
            metrics = self.alpha_step(train, val) | self.weight_step(train)
            # the same on all devices, so that all decide alike
            mean = average(torch.stack(list(metrics.values())), self.fabric)
            yield dict(zip(metrics, mean, strict=True))

    def batches(self, part: int, epoch: int, start: int) -> Iterator[Batch]:
        """Yield the batches of an epoch of the half for the weights (0) or for α (1), from number ``start``."""
        s = self.settings
        return self.halves[part].batches(
            s.batch_size,
            image_size=s.image_size,
            device=self.fabric.device,
            augmentation=s.data.augmentation,
            seed=derive(s.ordering, "order", part),
            epoch=sum(epochs for *_, epochs in s.stages[: self.number]) + epoch,
            start=start,
            part=(self.fabric.global_rank, self.fabric.world_size),
        )

    def _parts(self, batch: Batch) -> list[tuple[Tensor, Tensor, float]]:
        """Return the parts of a batch that are computed one after the other: images, labels, share of the whole."""
        images, labels = (x.chunk(self.settings.accumulate) for x in batch)
        return [(x, y, len(y) / len(batch[1])) for x, y in zip(images, labels, strict=True)]

    def _logits(self, images: Tensor) -> Tensor:
        """Return the supernet's logits; α, its softmax and the losses keep their precision under autocast."""
        dtype = self.supernet.alpha.dtype
        with self.fabric.autocast():
            return self.supernet(images.to(dtype)).to(dtype)

    def alpha_step(self, train: Batch, val: Batch) -> dict[str, Tensor]:
        """Descend Eq. (6) in α; the weights stay."""
        alpha, weights, candidates = self.supernet.alpha, self.supernet.network_parameters, self.supernet.candidates
        seen = dict.fromkeys(("val_accuracy", "val_loss", "fairness"), alpha.new_zeros(()))

        def upper(images: Tensor, labels: Tensor, share: float) -> Tensor:
            logits = self._logits(images)
            p = self.supernet.mixing_weights()
            found = {
                "val_accuracy": (logits.argmax(1) == labels).float().mean(),
                "val_loss": self.loss(logits, labels),
                "fairness": fairness_term(p, candidates, self.settings.fairness),
            }
            seen.update({k: seen[k] + share * v.detach() for k, v in found.items()})
            if self.objective is not None:
                return share * self.objective(logits, labels, p, candidates)
            return share * (found["val_loss"] + found["fairness"])

        uppers = [partial(upper, *part) for part in self._parts(val)]
        mean = partial(average, fabric=self.fabric)
        if self.settings.order == 1:
            alpha.grad, _ = first_order_gradient(alpha, weights, uppers, mean)
        else:
            lowers = [partial(self._train_loss, *part) for part in self._parts(train)]
            inner_lr = float(self.schedule.get_last_lr()[0])
            alpha.grad, _ = second_order_gradient(alpha, weights, uppers, lowers, inner_lr, mean)
        self.alpha_optimizer.step()
        alpha.grad = None
        return seen

    def _train_loss(self, images: Tensor, labels: Tensor, share: float) -> Tensor:
        return share * self.loss(self._logits(images), labels)

    def weight_step(self, train: Batch) -> dict[str, Tensor]:
        """Descend Eq. (7) in the weights; α stays."""
        total = torch.zeros((), device=self.fabric.device)
        *before, last = self._parts(train)
        with frozen([self.supernet.alpha]):
            for part in before:
                loss = self._train_loss(*part)
                self.fabric.backward(loss)
                total = total + loss.detach()
            loss = self._train_loss(*last)
            with self.updates.on():
                self.fabric.backward(loss)
        self.schedule.step()
        return {"train_loss": total + loss.detach()}

    def end_epoch(self, epoch: int, means: dict[str, float]) -> dict[str, Any]:
        """Return the row of an epoch, and save the genotype that α stands for now."""
        genotype = self.supernet.genotype()
        if self.run is not None:
            self.run.write("genotype.json", genotype.to_json())
        alpha = {
            edge_name(edge): dict(zip(map(str, ops), row, strict=True))
            for edge, ops, row in zip(
                self.settings.space.edges, self.supernet.candidates, self.supernet.alpha.tolist(), strict=True
            )
        }
        return {"stage": self.number, "epoch": epoch, **means, "alpha": alpha, "genotype": genotype.to_json()}

    def state_dict(self) -> dict[str, Any]:
        """Return what changes in a stage, and what is needed to build it again."""
        return {
            "stage": self.number,
            "candidates": [[str(op) for op in ops] for ops in self.supernet.candidates],
            "supernet": self.supernet.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set what :meth:`state_dict` returned."""
        self.supernet.load_state_dict(state["supernet"])
        load_moments(self.weight_optimizer, state["weight_optimizer"])
        load_moments(self.alpha_optimizer, state["alpha_optimizer"])
        load_schedule(self.schedule, state["schedule"])


def make_supernet(settings: SearchSettings, stage: int, candidates: Candidates, images: ImageSet) -> Supernet:
    """Return a fresh supernet for a stage."""
    return Supernet(
        settings.space,
        candidates=candidates,
        depth=settings.stages[stage][0],
        dim=settings.dim,
        keep_ratio=settings.keep_ratio,
        recompute=settings.recompute,
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        in_channels=images.channels,
        num_classes=len(images.classes),
        init=settings.init,
        class_token_last=True,
    )


def supernet_groups(supernet: Supernet, weight_decay: float) -> list[dict[str, Any]]:
    """Return the weights w for their optimiser, without α."""
    with frozen([supernet.alpha]):
        return weight_groups(supernet, weight_decay)


def draw_halves(settings: SearchSettings, images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Return the halves of the training images, for the weights and for α."""
    return images.halves(derive(settings.ordering, "halves"))


def parse_candidates(names: Sequence[Sequence[str]]) -> Candidates:
    """Return the operations on each edge that a checkpoint names.

    Raises:
        ValueError: If there is no such operation.
    """
    return tuple(tuple(map(Operation.parse, ops)) for ops in names)


def check_checkpoint(settings: SearchSettings, half: ImageSet, state: Mapping[str, Any]) -> None:
    """Check that a checkpoint is one of the search that the settings and half of the images describe.

    Raises:
        ValueError: If it is not, or else an error for what its parts lack.
    """
    job = state["job"]
    expect(job["stage"], range(len(settings.stages)), "job.stage")
    (_, kept, epochs), earlier = settings.stages[job["stage"]], settings.stages[: job["stage"]]
    for ops in (candidates := parse_candidates(job["candidates"])):
        expect(len(ops), range(kept, kept + 1), "job.candidates")
    with torch.device("meta"):
        supernet = make_supernet(settings, job["stage"], candidates, half)
    pattern = {
        "stage": int,
        "candidates": list,
        "supernet": supernet.state_dict(),
        "weight_optimizer": moments(supernet_groups(supernet, settings.weight_decay), job["weight_optimizer"]),
        "alpha_optimizer": moments([{"params": [supernet.alpha]}], job["alpha_optimizer"]),
        "schedule": dict,
    }
    steps = len(half) // settings.batch_size
    check_state(state, pattern, epochs=epochs, steps=steps, rows=sum(epochs for *_, epochs in earlier))


def _saved(settings: SearchSettings, half: ImageSet, run: Run) -> dict[str, Any] | None:
    """Return the state to go on from, with the log cut back to it."""
    positions = [{"stage": i, "epoch": e} for i, (*_, n) in enumerate(settings.stages) for e in range(n)]
    return run.load(partial(check_checkpoint, settings, half), partial(check_row, positions, ROW))


def search(
    settings: SearchSettings,
    data: Data | ImageSet,
    run_dir: str | Path | None = None,
    *,
    resume: bool = False,
    progress: bool = False,
    loss: Loss = F.cross_entropy,
    objective: Objective | None = None,
) -> SearchResult:
    """Search an encoder, Algorithm 1.

    The training set is split in disjoint halves, one for the weights and one for α. The test set is not touched.
    Between stages every edge drops its weakest operations by α and the weights start anew.

    Args:
        settings: Everything it depends on.
        data: The images; of a pair only ``train`` is used.
        run_dir: Where settings, metrics, genotype and checkpoints go; by default nothing is written.
        resume: Continue the run in ``run_dir``, or begin it if nothing began there.
        progress: Show progress on stderr.
        loss: What the weights descend. To resume a run give the same; it is not kept there.
        objective: What α descends; by default the loss plus the fairness term. To resume a run give the same.

    Raises:
        ValueError: If settings and data do not fit together, or the directory cannot be used.
        Interrupted: On SIGINT or SIGTERM, after the state was saved.
        RunFailedError: If the losses diverge or the directory cannot be written; what was saved before is as it was.
    """
    images = data.train if isinstance(data, Data) else data
    fabric = make_fabric(settings.hardware)
    candidates: Candidates = (settings.space.operations,) * len(settings.space.edges)
    halves = draw_halves(settings, images.to(fabric.device))
    if len(halves[0]) < settings.batch_size:
        raise ValueError(f"batch_size {settings.batch_size} is more than half the {len(images)} training images")
    with torch.device("meta"):  # what does not fit together fails here, before anything is written
        make_supernet(settings, 0, candidates, images)
    opened = None
    if run_dir is not None and fabric.global_rank == 0:
        opened = Run.open(run_dir, "search", settings, resume=resume)
    with opened or nullcontext() as run:
        fabric.launch()  # what cannot be run has failed before there are other processes
        state = fabric.broadcast(_saved(settings, halves[0], run) if run is not None and resume else None)
        number, alpha = 0, None
        if state is not None:
            number, candidates = state["job"]["stage"], parse_candidates(state["job"]["candidates"])
        history = run.history() if run is not None else []
        while True:
            stage = SearchStage(settings, number, candidates, halves, fabric, run, alpha, loss, objective)
            history += run_epochs(stage, run, state, progress=progress and fabric.is_global_zero)
            supernet = stage.supernet
            number, state = number + 1, None
            if number == len(settings.stages):
                return SearchResult(supernet.genotype(), history, supernet)
            alpha_now = supernet.alpha.detach()
            candidates, columns = prune(alpha_now, candidates, settings.stages[number][1])
            if settings.carry_alpha:
                alpha = alpha_now.gather(1, torch.tensor(columns, device=fabric.device))
