"""What a search will need, before it is run: memory and work of each stage, and how to make it fit (page on memory).

A stage is not modelled but run, once, on fake tensors, which have sizes and no values; the peak is counted to the byte.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch._subclasses import FakeTensorMode

from .counting import Products, products_of
from .data.images import Batch, ImageSet
from .data.sizes import pair
from .engine.hardware import Hardware, make_fabric
from .engine.kernels import Kernels
from .engine.memory import LiveBytes
from .layers import as_on_gpu
from .operations import KINDS
from .relaxation import Candidates
from .search_settings import SearchSettings
from .search_stage import SearchStage
from .space import Operation, SearchSpace

WIDE = 768  # width at which weights are compared: at any one that the operations fit, the order is the same
Choice = Literal["even", "heaviest"]
"""Which operations are taken to survive: kinds in turn, or those with the most weights."""


@dataclass(frozen=True)
class StagePlan:
    """What one stage needs.

    Args:
        stage: Number of the stage, from 0.
        depth: Layers.
        operations: Operations on an edge.
        parameters: Weights of the supernet.
        held_bytes: Weights and the optimiser's state, which are there all the time.
        alpha_bytes: The most bytes alive in a step of α.
        weight_bytes: The most bytes alive in a step of the weights.
        flops: Floating-point operations of both steps.
    """

    stage: int
    depth: int
    operations: int
    parameters: int
    held_bytes: int
    alpha_bytes: int
    weight_bytes: int
    flops: int

    @property
    def peak_bytes(self) -> int:
        """The most bytes alive at any time; images that wait for their turn are not in it."""
        return max(self.alpha_bytes, self.weight_bytes)


def survivors(space: SearchSpace, count: int, choice: Choice = "even") -> Candidates:
    """Return ``count`` candidates an edge, as a search might keep them.

    Args:
        space: The search space.
        count: Operations on each edge.
        choice: ``"even"``: identity, attention, MLP, attention, … in turn, other sizes on other edges;
            ``"heaviest"``: those without a lean form, then those with the most weights, which bounds the memory of
            whatever survives of the paper's candidates.
    """
    if choice == "heaviest":
        by_weight = sorted(
            space.operations,
            key=lambda op: (op.spec.lean is not None or op.spec.scale is not None, -op.spec.count(WIDE, op.size)),
        )
        return (tuple(op for op in space.operations if op in by_weight[:count]),) * len(space.edges)

    def on_edge(number: int) -> tuple[Operation, ...]:
        zero_last = sorted(dict.fromkeys(op.kind for op in space.operations), key=lambda kind: KINDS[kind].scale == 0)
        kinds = [[op for op in space.operations if op.kind == kind] for kind in zero_last]
        turned = [ops[number % len(ops) :] + ops[: number % len(ops)] for ops in kinds]
        longest = max(map(len, turned))
        in_turn = [ops[i] for i in range(longest) for ops in turned if i < len(ops)]
        return tuple(op for op in space.operations if op in in_turn[:count])

    return tuple(on_edge(number) for number in range(len(space.edges)))


def plan_stage(
    settings: SearchSettings, number: int, candidates: Candidates, *, channels: int = 3, classes: int = 10
) -> StagePlan:
    """Count what a stage needs, without running it: on fake tensors, in seconds, whatever its size.

    Args:
        settings: Of the search.
        number: Which stage, from 0.
        candidates: The operations on each edge.
        channels: Of an image.
        classes: Number of classes.
    """
    settings, fabric, whole = _on_fakes(settings)
    size = settings.batch_size
    before = torch.get_rng_state()
    with FakeTensorMode():
        with LiveBytes() as alive:
            halves, batch = unseen(settings, channels=channels, classes=classes)
            waiting = torch.zeros(whole - size, channels, *pair(settings.image_size))
            stage = SearchStage(settings, number, candidates, halves, fabric)
            stage.weight_step(batch)  # the optimiser's state exists from the first step on
            held = alive.peak = alive.now
            with Products() as products:
                stage.alpha_step(batch, batch)
                alpha_peak, alive.peak = alive.peak, alive.now
                stage.weight_step(batch)
            del waiting  # the images of the parts that were not run
        parameters = sum(p.numel() for p in stage.weights)
    torch.set_rng_state(before)
    depth, operations, _ = settings.stages[number]
    flops = 2 * products.macs * whole // size
    return StagePlan(number, depth, operations, parameters, held, alpha_peak, alive.peak, flops)


def count_kernels(
    settings: SearchSettings, number: int, candidates: Candidates, *, channels: int = 3, classes: int = 10
) -> Kernels:
    """Count the kernels that a GPU runs in a step of α and one of the weights, on fake tensors.

    Args:
        settings: Of the search; if a batch is computed in parts, those of two parts are counted.
        number: Which stage, from 0.
        candidates: The operations on each edge.
        channels: Of an image.
        classes: Number of classes.
    """
    settings, fabric, _ = _on_fakes(settings)
    before = torch.get_rng_state()
    with FakeTensorMode(), as_on_gpu():
        halves, batch = unseen(settings, channels=channels, classes=classes)
        stage = SearchStage(settings, number, candidates, halves, fabric)
        for _ in range(2):  # the optimisers' state exists from the first steps on
            with Kernels(products_of) as kernels:
                stage.alpha_step(batch, batch)
                stage.weight_step(batch)
    torch.set_rng_state(before)
    return kernels


def joint_fits(
    settings: SearchSettings, number: int, candidates: Candidates, memory: int, *, channels: int = 3, classes: int = 10
) -> bool:
    """Return whether a stage in few large products has room in so many bytes, with a quarter left for the allocator.

    Args:
        settings: Of the search.
        number: Which stage, from 0.
        candidates: The operations on each edge.
        memory: Bytes of the device.
        channels: Of an image.
        classes: Number of classes.
    """
    if settings.recompute:
        return False
    planned = plan_stage(replace(settings, joint="on"), number, candidates, channels=channels, classes=classes)
    return planned.peak_bytes <= 0.75 * memory


def _on_fakes(settings: SearchSettings) -> tuple[SearchSettings, Fabric, int]:
    """Return settings for fake tensors, of which a batch has two parts at most; where; and the size of a whole one."""
    precision = settings.hardware.precision
    hardware = Hardware("cpu", "32-true" if precision == "auto" else precision)
    whole = settings.batch_size // settings.hardware.devices
    parts = min(2, settings.accumulate, whole)
    size = min(whole, -(-whole // settings.accumulate) * parts)  # each further part needs what the second one needs
    if settings.relaxation.mix == "uniform":  # which path is not known: as if every operation were computed
        settings = replace(settings, relaxation=replace(settings.relaxation, mix="softmax"))
    settings = replace(settings, hardware=hardware, batch_size=size, accumulate=parts, init=None)
    return settings, make_fabric(hardware), whole


def unseen(
    settings: SearchSettings, device: torch.device | str = "cpu", *, channels: int = 3, classes: int = 10
) -> tuple[tuple[ImageSet, ImageSet], Batch]:
    """Return what a stage is made of and what its steps are given, where only sizes count.

    Args:
        settings: Of the search.
        device: Where the batch is.
        channels: Of an image.
        classes: Number of classes.

    Returns:
        Two halves of images that nobody looks at, and a random batch.
    """
    count = settings.batch_size
    labels, names = torch.zeros(count, dtype=torch.long), tuple(map(str, range(classes)))
    tiny = torch.zeros(count, channels, 1, 1, dtype=torch.uint8)
    images = ImageSet(tiny, labels, names, (0.5,) * channels, (0.5,) * channels)
    return (images, images), (
        torch.randn(count, channels, *pair(settings.image_size), device=device),
        labels.to(device),
    )


def plan(
    settings: SearchSettings, *, choice: Choice = "even", channels: int = 3, classes: int = 10
) -> Iterator[StagePlan]:
    """Yield what each stage of a search needs, see :func:`plan_stage`.

    Args:
        settings: Of the search.
        choice: Which operations are taken to survive, see :func:`survivors`.
        channels: Of an image.
        classes: Number of classes.
    """
    for number, (_, operations, _) in enumerate(settings.stages):
        yield plan_stage(
            settings, number, survivors(settings.space, operations, choice), channels=channels, classes=classes
        )


def fit(settings: SearchSettings, limit: int, *, channels: int = 3, classes: int = 10) -> tuple[str, int] | None:
    """Return the flags that let a search fit into memory, the cheapest first, and the bytes it then needs at most.

    Args:
        settings: Of the search.
        limit: Bytes.
        channels: Of an image.
        classes: Number of classes.

    Returns:
        ``""`` for the flags if it fits as it is; ``None`` if nothing helps.
    """
    tried: dict[str, int] = {}

    def enough(change: tuple[str, SearchSettings]) -> bool:
        flags, changed = change
        peaks = (p.peak_bytes for p in plan(changed, choice="heaviest", channels=channels, classes=classes))
        tried[flags] = max(peaks)
        return tried[flags] <= limit

    changes = [("", settings), *remedies(settings)]
    first = bisect_left(changes, True, key=enough)
    return (changes[first][0], tried[changes[first][0]]) if first < len(changes) else None


def advice(settings: SearchSettings, *, channels: int = 3, classes: int = 10) -> str:
    """Return in words what a search needs and what it would need if one thing or another were turned."""

    def needs(changed: SearchSettings) -> str:
        peaks = (p.peak_bytes for p in plan(changed, channels=channels, classes=classes))
        return f"{max(peaks) / 1e9:.3g} GB"

    changes = {} if settings.recompute else dict(_recomputed(settings))
    if 2 * settings.accumulate <= settings.batch_size // settings.hardware.devices:
        parts = 2 * settings.accumulate
        changes[f"--accumulate {parts}"] = replace(settings, accumulate=parts)
    if not settings.space.needs_grid:
        changes[f"--keep-ratio {settings.keep_ratio / 2:g}"] = replace(settings, keep_ratio=settings.keep_ratio / 2)
    told = [f"{flags} {needs(changed)}" for flags, changed in changes.items()]
    return f"this search needs about {needs(settings)}" + (f"; with {', '.join(told)}" if told else "")


def remedies(settings: SearchSettings) -> Iterator[tuple[str, SearchSettings]]:
    """Yield settings that need less memory than the one before, the cheapest change first, each with its flags.

    Recomputation and parts of a batch give the same steps for more time; then fewer tokens are kept, which changes what
    is searched on.
    """
    before = "--recompute " if settings.recompute else ""
    for flags, recomputed in () if settings.recompute else _recomputed(settings):
        before, settings = f"{flags} ", recomputed
        yield flags, settings
    share = settings.batch_size // settings.hardware.devices
    for parts in (2, 4, 8, 16, 32, 64):
        if settings.accumulate < parts <= share:
            settings = replace(settings, accumulate=parts)
            yield f"{before}--accumulate {parts}", settings
    for keep_ratio in (0.75, 0.5, 0.25):
        if keep_ratio < settings.keep_ratio and not settings.space.needs_grid:
            settings = replace(settings, keep_ratio=keep_ratio)
            yield f"{before}--accumulate {settings.accumulate} --keep-ratio {keep_ratio}", settings


def _recomputed(settings: SearchSettings) -> list[tuple[str, SearchSettings]]:
    """Return the same settings with recomputation, and its flags; nothing where edges are computed as they are."""
    if settings.relaxation.own_edges:
        return []
    flags = "--joint auto --recompute" if settings.joint == "on" else "--recompute"
    return [(flags, replace(settings, joint="off" if settings.joint == "off" else "auto", recompute=True))]


def step_seconds(
    settings: SearchSettings, planned: StagePlan, *, channels: int = 3, classes: int = 10, work: float = 2e11
) -> float:
    """Return the seconds that a step of α and one of the weights will take on this machine.

    Steps on batches of two sizes are timed, and what they take is extended in a straight line; on sizes that need less
    than ``work`` the whole batch is timed.

    Args:
        settings: Of the search.
        planned: The stage's plan.
        channels: Of an image.
        classes: Number of classes.
        work: Floating-point operations that a timed step may need.
    """
    whole = settings.batch_size // settings.hardware.devices
    batch = max(1, min(whole, int(whole * work / planned.flops)))
    if batch >= whole:
        return _timed(settings, planned, whole, channels, classes)
    small, large = max(1, batch // 2), max(2, batch)
    a, b = (_timed(settings, planned, size, channels, classes) for size in (small, large))
    return a + max(0.0, b - a) / (large - small) * (
        whole - small
    )  # a machine with other work may be slow at the small one


def _timed(settings: SearchSettings, planned: StagePlan, batch_size: int, channels: int, classes: int) -> float:
    accumulate = max(1, min(batch_size, settings.accumulate * batch_size // settings.batch_size))
    hardware = replace(settings.hardware, devices=1)
    settings = replace(settings, batch_size=batch_size, accumulate=accumulate, hardware=hardware)
    fabric = make_fabric(hardware)
    candidates = survivors(settings.space, planned.operations)
    halves, batch = unseen(settings, fabric.device, channels=channels, classes=classes)
    stage = SearchStage(settings, planned.stage, candidates, halves, fabric)

    def both() -> Any:
        return stage.alpha_step(batch, batch), stage.weight_step(batch)

    both()
    if stage.recorder is not None:
        stage.shorten(batch, batch)
    return min(_seconds(both, fabric.device) for _ in range(2))


def _seconds(function: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    results = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    del results
    return time.perf_counter() - start
