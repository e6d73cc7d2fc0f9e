"""One stage of the progressive search: steps of α and of the weights in turn, on one supernet (chapter 6)."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric, seed_everything
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from .bilevel import first_order_gradient, frozen, moved, second_order_gradient
from .data.images import Batch, ImageSet
from .engine.capture import Metrics, Recorded, Recorder, uncompiled
from .engine.hardware import average, compile_network, place, recorder_of
from .engine.loop import cosine_schedule, load_moments, load_schedule, rates_in_place
from .engine.runs import Run
from .engine.seeds import derive
from .engine.shorter import ROUNDING, changing, shortened
from .engine.updates import UpdateInBackward
from .fairness import Fairness, kind_mask
from .methods.edges import edge_maker
from .methods.inherited import path_weights, random_path, search_paths
from .methods.mixing import Moment, step_weights
from .methods.regularisers import alpha_term
from .monitor import dominant_eigenvalue, watched
from .objective import Heading
from .operations import KINDS
from .relaxation import Candidates, Supernet
from .search_settings import SearchSettings
from .space import Genotype, edge_name
from .vit import weight_groups

Loss = Callable[[Tensor, Tensor], Tensor]
"""A scalar from logits ``[b, classes]`` and labels ``[b]``, a mean over the images."""
Objective = Callable[[Tensor, Tensor, Tensor, Candidates], Tensor]
"""What α descends: a scalar from logits, labels, mixing weights ``softmax(α)`` and the candidates they stand for."""

LOOKED_AT = 10  # random paths, after each epoch but the last one
LOOK_BATCH = 500  # images at once, where no gradient is computed


class SearchStage:
    """One stage of Algorithm 1, to be run by :func:`~dasvit.engine.loop.run_epochs`.

    Its weights are fresh, and so is α unless it is given (ledger A21).

    Args:
        settings: Of the search.
        number: Which stage, from 0.
        candidates: Operations in play on each edge.
        halves: The halves of the training set, for the weights and for α.
        fabric: Device and precision.
        run: Where the genotype of each epoch goes.
        alpha: α to start from; by default close to zero.
        loss: See :func:`~dasvit.searching.search`.
        objective: See :func:`~dasvit.searching.search`.
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
        self.heading = Heading(settings, halves[0])
        self.settings, self.number, self.run = settings, number, run
        self.loss, self.objective = loss, objective
        self.depth, _, self.epochs = settings.stages[number]
        self._planned = self.epochs  # it may stop before
        self.title = f"stage {number + 1}/{len(settings.stages)}"
        self.halves, self.fabric = halves, fabric
        self.steps = len(halves[0]) // settings.batch_size
        seed_everything(derive(settings.seed, "weights", number), verbose=False)
        self.supernet = make_supernet(settings, number, candidates, halves[0])
        if alpha is not None:
            self.supernet.alpha.data.copy_(alpha)
        place(self.supernet, fabric)
        self.weights = self.supernet.network_parameters
        self.fairness = Fairness(candidates, settings.fairness, fabric.device)
        if settings.hardware.compile:
            compile_network(self.supernet)
        differ = settings.relaxation.steps_differ or settings.schedule.alpha_warmup > 0
        recordable = settings.order == 1 and not differ
        self.recorder = recorder_of(settings.hardware, fabric) if recordable else None
        self._step = 0  # of the stage, which what a step draws depends on
        self._skips = kind_mask(candidates, *(name for name, kind in KINDS.items() if kind.scale == 1))
        self._skips = self._skips.to(fabric.device)
        self._targets = tuple(target for _, target in settings.space.edges)
        self._recorded: dict[str, Recorded] = {}
        self._warm, self._checked = False, not (settings.hardware.compile or self.recorder)
        self._eager = False  # although the network is compiled
        self._make_optimizers()
        self.updates = UpdateInBackward(self.weight_optimizer, fabric)

    def _make_optimizers(self) -> None:
        """Make both optimisers and the schedule (A22, A34, A35); if steps are recorded, what changes is in tensors."""
        s, alpha, on_gpu = self.settings, self.supernet.alpha, self.fabric.device.type == "cuda"
        fixed: dict[str, Any] = {"capturable": on_gpu and self.recorder is not None}
        weights = AdamW(supernet_groups(self.supernet, s.weight_decay), lr=s.lr, fused=True, **fixed)
        self.schedule = cosine_schedule(weights, self.epochs * self.steps)
        # Adam, not AdamW: the decay of α is part of its gradient; beside a gradient of 1e-3 it would be nothing
        fixed |= {"fused": on_gpu or self.recorder is not None}
        alphas = Adam([alpha], lr=s.alpha_lr, betas=(0.5, 0.999), weight_decay=s.alpha_weight_decay, **fixed)
        if self.recorder is not None:
            rates_in_place(weights, self.fabric.device)
        self.weight_optimizer, self.alpha_optimizer = (
            cast(Optimizer, self.fabric.setup_optimizers(o)) for o in (weights, alphas)
        )

    def train(self, epoch: int, start: int) -> Iterator[dict[str, Tensor]]:
        """Alternate a step of α on the one half with a step of the weights on the other, from the first on (A37)."""
        self.supernet.train()
        waits = self._waits(epoch)
        # the half for the weights sets the pace: it is never the longer one
        batches = zip(*(self.batches(part, epoch, start) for part in (0, 1)), strict=False)
        for step, (train, val) in enumerate(batches, epoch * self.steps + start):
            self._step = step
            if waits:  # α stays
                self._eager = True
                yield self._means(self._look(val) | self.weight_step(train))
                continue
            if not self._checked and self._warm:
                self.shorten(train, val)
            elif not self._checked:  # the first pair is eager: only then have the optimisers what they gather in
                self._eager = self._warm = True
            yield self._means(self.alpha_step(train, val) | self.weight_step(train))

    def _waits(self, epoch: int) -> bool:
        """Return whether α stays as it is in an epoch: in the first ones of a stage if so asked, never in the last."""
        return epoch < min(self.settings.schedule.alpha_warmup * self._planned, self._planned - 1)

    def _means(self, metrics: Metrics) -> Metrics:
        """Return the means over all devices, so that all decide alike."""
        mean = average(torch.stack(list(metrics.values())), self.fabric)
        return dict(zip(metrics, mean, strict=True))

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

    def _logits(self, images: Tensor, use: str) -> Tensor:
        """Return the supernet's logits; α, its softmax and the losses keep their precision under autocast."""
        dtype = self.supernet.alpha.dtype
        weights = self._weights(use)
        with self.fabric.autocast():
            return self.supernet(images.to(dtype), weights).to(dtype)

    def _moment(self, use: str) -> Moment:
        return Moment(self.settings.seed, self.number, self._step, self._planned * self.steps, use)

    def _weights(self, use: str) -> Tensor | None:
        """Return the mixing weights of this step; nothing if they are those that α stands for."""
        s, supernet, moment = self.settings, self.supernet, self._moment(use)
        if s.relaxation.mix == "uniform":
            path = random_path(s.space, supernet.candidates, random.Random(moment.derive("path")))
            return path_weights(path, s.space, supernet.candidates).to(supernet.alpha)
        if not s.relaxation.steps_differ:
            return None
        return step_weights(supernet.alpha, s.relaxation, self._targets, self._skips, moment)

    def alpha_step(self, train: Batch, val: Batch) -> Metrics:
        """Descend Eq. (6) in α; the weights stay. Random paths have no α: then only what they come to is told."""
        if self.settings.relaxation.mix == "uniform":
            return self._look(val)
        if "alpha" in self._recorded:
            return self._recorded["alpha"](*val)
        with self._eagerly():
            return self._update_alpha(train, val)

    def _update_alpha(self, train: Batch, val: Batch) -> Metrics:
        alpha, candidates = self.supernet.alpha, self.supernet.candidates
        seen = dict.fromkeys(("val_accuracy", "val_loss", "fairness"), alpha.new_zeros(()))

        def upper(images: Tensor, labels: Tensor, share: float) -> Tensor:
            logits = self._logits(images, "alpha")
            p = self.supernet.mixing_weights()
            found = {
                "val_accuracy": (logits.argmax(1) == labels).float().mean(),
                "val_loss": self.loss(logits, labels),
                "fairness": self.fairness(p),
            }
            seen.update({k: seen[k] + share * v.detach() for k, v in found.items()})
            cost = self.heading.term(p, candidates)
            if self.objective is not None:
                total = self.objective(logits, labels, p, candidates)
            else:
                total = found["val_loss"] + found["fairness"]
                if (term := self._alpha_term()) is not None:
                    total = total + term
            return share * (total if cost is None else total + cost)

        uppers = [partial(upper, *part) for part in self._parts(val)]
        mean = partial(average, fabric=self.fabric)
        if self.settings.order == 1:
            alpha.grad, _ = first_order_gradient(alpha, self.weights, uppers, mean)
        else:
            lowers = [partial(self._train_loss, *part, use="alpha") for part in self._parts(train)]
            inner_lr = float(self.schedule.get_last_lr()[0])
            alpha.grad, _ = second_order_gradient(alpha, self.weights, uppers, lowers, inner_lr, mean)
        self.alpha_optimizer.step()
        alpha.grad = None
        return seen

    def _alpha_term(self) -> Tensor | None:
        """Return the terms of the objective that look at α alone."""
        return alpha_term(self.supernet.alpha, self.settings.relaxation, self._moment("alpha").progress)

    @torch.no_grad()
    def _look(self, val: Batch) -> Metrics:
        """Return what a step of α reports, without taking it."""
        images, labels = val
        with self._eagerly():
            logits = self._logits(images, "alpha")
        right, loss = (logits.argmax(1) == labels).float().mean(), self.loss(logits, labels)
        return {"val_accuracy": right, "val_loss": loss, "fairness": self.fairness(self.supernet.mixing_weights())}

    def _train_loss(self, images: Tensor, labels: Tensor, share: float, use: str = "weights") -> Tensor:
        return share * self.loss(self._logits(images, use), labels)

    def weight_step(self, train: Batch) -> Metrics:
        """Descend Eq. (7) in the weights; α stays."""
        if "weights" in self._recorded:
            metrics = self._recorded["weights"](*train)
        else:
            with self._eagerly():
                metrics = self._update_weights(train)
        self.schedule.step()
        return metrics

    def _update_weights(self, train: Batch) -> Metrics:
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
        return {"train_loss": total + loss.detach()}

    def _eagerly(self) -> AbstractContextManager[None]:
        """Let nothing run as compiled until it has been checked, and never if it did not stand the check."""
        return uncompiled() if self._eager and self.settings.hardware.compile else nullcontext()

    def shorten(self, train: Batch, val: Batch) -> str | None:
        """Go over to compiled and recorded steps, after at least one pair of steps.

        A pair of them has to do what a pair of eager steps does. If it does not, or cannot be recorded, one line says
        so and the steps stay eager. Everything is then as it was before the call.

        Args:
            train: A batch for the weights, of the size of all that will come.
            val: The same for α.

        Returns:
            Why the steps stay eager, if they do.
        """
        optimizers = {"alpha": self.alpha_optimizer, "weights": self.weight_optimizer}

        def take() -> Metrics:
            rate = self.schedule.state_dict()
            metrics = self.alpha_step(train, val) | self.weight_step(train)
            load_schedule(self.schedule, rate)
            return metrics

        def shorten() -> None:
            self._eager = False
            if self.recorder is not None:
                if self.settings.hardware.compile:
                    take()  # what is recorded has been compiled before
                self._record(self.recorder, train, val)

        self._eager = True
        rounding = ROUNDING.get(self.fabric.strategy.precision.precision, 0.1)
        why = shortened(changing(self.supernet.state_dict(), optimizers), take, shorten, rounding)
        self.supernet.zero_grad()  # of the parts of a batch before one failed
        self._checked, self._eager = True, why is not None
        if why is not None:
            self._recorded = {}
            print(f"dasvit: {self.title}: steps stay eager, the shorter ones fail: {why}", file=sys.stderr)
        return why

    def _record(self, recorder: Recorder, train: Batch, val: Batch) -> None:
        """Record both steps, in the order in which they will be taken."""

        def alpha(*batch: Tensor) -> Metrics:
            return self._update_alpha((batch[0], batch[1]), (batch[0], batch[1]))  # of order 1: one batch is enough

        def weights(*batch: Tensor) -> Metrics:
            return self._update_weights((batch[0], batch[1]))

        recorded = {"alpha": Recorded(alpha, val, recorder)}
        self._recorded = recorded | {"weights": Recorded(weights, train, recorder)}

    def end_epoch(self, epoch: int, means: dict[str, float]) -> dict[str, Any]:
        """Return the row of an epoch, and save the genotype that α stands for now."""
        s, supernet = self.settings, self.supernet
        last = epoch + 1 == self._planned
        genotype = self._paths(epoch, last) if s.relaxation.mix == "uniform" else self._derived()
        if self.run is not None:
            self.run.write("genotype.json", genotype.to_json())
        if self._stops(genotype, epoch):
            self.epochs = epoch + 1
        rows, width = supernet.alpha.tolist(), len(supernet.candidates[0])
        named = zip(s.space.edges, supernet.candidates, rows, strict=True)
        alpha = {edge_name(edge): dict(zip(map(str, ops), row[:width], strict=True)) for edge, ops, row in named}
        keep = s.stages[self.number + 1][1] if self.number + 1 < len(s.stages) else None
        p = supernet.mixing_weights().detach()
        told: dict[str, Any] = {"alpha": alpha, "genotype": genotype.to_json()}
        told |= watched(p, supernet.candidates, s.space, genotype, keep)
        if s.relaxation.partial > 1:
            told["edges"] = {edge_name(edge): row[-1] for edge, row in zip(s.space.edges, rows, strict=True)}
        if s.relaxation.mix == "uniform":
            told["paths"] = s.schedule.paths if last else LOOKED_AT
        if s.schedule.hessian:
            told["hessian"] = self._curvature(epoch)
        return {"stage": self.number, "epoch": epoch, **means, **told}

    def _derived(self) -> Genotype:
        most = self.settings.schedule.max_skips
        return self.heading.genotype(self.supernet) if most is None else self.supernet.genotype(most)

    def _stops(self, genotype: Genotype, epoch: int) -> bool:
        """Return whether the encoder has so many identities, after an epoch in which α moved, that the stage ends."""
        limit = self.settings.schedule.stop_skips
        if limit is None or self._waits(epoch):
            return False
        return sum(op.spec.scale == 1 for _, op in genotype.edges) >= limit

    def _paths(self, epoch: int, last: bool) -> Genotype:
        """Return the best of some encoders with inherited weights, on all images of the half for α."""
        size, device = self.settings.image_size, self.fabric.device
        batches = list(self.halves[1].batches(LOOK_BATCH, image_size=size, device=device))
        count = self.settings.schedule.paths if last else LOOKED_AT
        return search_paths(self.supernet, batches, count, derive(self.settings.seed, "paths", self.number, epoch))

    def _curvature(self, epoch: int) -> float:
        """Return the dominant eigenvalue of the Hessian of the validation loss in α, on the epoch's first batch."""
        alpha, parts = self.supernet.alpha, self._parts(next(iter(self.batches(1, epoch, 0))))

        def loss(images: Tensor, labels: Tensor, share: float) -> Tensor:
            with self.fabric.autocast():
                logits = self.supernet(images.to(alpha.dtype), self.supernet.mixing_weights())
            return share * self.loss(logits.to(alpha.dtype), labels)

        losses, mean = [partial(loss, *part) for part in parts], partial(average, fabric=self.fabric)

        def gradient(values: Tensor) -> Tensor:
            with moved([alpha], [values]):
                return first_order_gradient(alpha, self.weights, losses, mean)[0]

        with self._eagerly():
            return dominant_eigenvalue(gradient, alpha.detach().clone())

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
        done, rest = divmod(state["schedule"]["last_epoch"], self.steps)
        if done and not rest and self._stops(self._derived(), done - 1):  # α is that of the end of the last epoch
            self.epochs = done


def make_supernet(settings: SearchSettings, stage: int, candidates: Candidates, images: ImageSet) -> Supernet:
    """Return a fresh supernet for a stage."""
    return Supernet(
        settings.space,
        candidates=candidates,
        depth=settings.stages[stage][0],
        dim=settings.dim,
        keep_ratio=settings.keep_ratio,
        recompute=settings.recompute,
        joint=settings.joint == "on",
        relaxation=settings.relaxation,
        make_edge=edge_maker(settings.relaxation, settings.recompute),
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        in_channels=images.channels,
        num_classes=len(images.classes),
        init=settings.init,
        class_token_last=True,
    )


def supernet_groups(supernet: Supernet, weight_decay: float) -> list[dict[str, Any]]:
    """Return the weights w for their optimiser, without α: matrices decay, nothing else does (A36)."""
    with frozen([supernet.alpha]):
        return weight_groups(supernet, weight_decay)
