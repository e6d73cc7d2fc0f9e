"""Steps that are recorded once and started as a whole ever after: a GPU need not wait for each kernel (chapter 6).

A recorded step computes with the same tensors each time: what it is given is copied to where it was when the step was
recorded. All that it changes, weights and what the optimiser gathers, has to stay where it is; so has a learning rate,
which is a tensor then and is filled anew.

Recorded or compiled steps are checked before they are relied on: a pair of them has to do what the eager ones do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer

Metrics = dict[str, Tensor]
"""Scalars that a step returns, by name."""

ROUNDING = {"64-true": 1e-6, "32-true": 1e-3}
"""By how much of its change a tensor may differ where the same is computed in another order; with bf16 by a tenth."""

FLOOR = 1e-2
"""Of the mean change of all tensors of a kind: a tensor that changes less is compared with this much."""


@runtime_checkable
class Recorder(Protocol):
    """Records what a device is told to do."""

    def record(self, function: Callable[[], None]) -> Callable[[], object]:
        """Call ``function`` once and return what does the same again; what it changed is to be set back."""
        ...


class CudaRecorder:
    """Records CUDA graphs, all of them in one pool of memory: so they are to be started in the order recorded."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, function: Callable[[], None]) -> Callable[[], object]:
        """Record what ``function`` starts; nothing of it is computed now."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            function()
        return graph.replay


def make_recorder(device: torch.device) -> Recorder | None:
    """Return what records on a device, if there is such a thing."""
    return CudaRecorder() if device.type == "cuda" else None


class Recorded:
    """A step, recorded; called with batches of the sizes that it was recorded with.

    Args:
        step: From tensors to scalars; what it changes stays where it is, and it waits for nothing.
        inputs: Tensors of the sizes that it will be given.
        recorder: What records it.
    """

    def __init__(self, step: Callable[..., Metrics], inputs: Sequence[Tensor], recorder: Recorder) -> None:
        self._inputs = [x.clone() for x in inputs]
        self._outputs: Metrics = {}
        self._again = recorder.record(lambda: self._outputs.update(step(*self._inputs)))

    def __call__(self, *inputs: Tensor) -> Metrics:
        """Take the step; the scalars are those of the last call until the next one."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._again()
        return self._outputs


class Snapshot:
    """Tensors as they are now, kept on the CPU, to compare with or to go back to.

    Args:
        tensors: By name; those that have to stay where they are.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)
        self.values = {name: torch.empty_like(x, device="cpu").copy_(x) for name, x in tensors.items()}

    def restore(self) -> None:
        """Set every tensor back, in place."""
        with torch.no_grad():
            for name, value in self.values.items():
                self._tensors[name].copy_(value)


def changing(state: Mapping[str, Tensor], optimizers: Mapping[str, Optimizer]) -> dict[str, Tensor]:
    """Return the tensors that steps change, by name: a module's state and what its optimisers have gathered."""
    found = {f"value {name}": tensor.detach() for name, tensor in state.items()}
    for title, optimizer in optimizers.items():
        gathered = enumerate(optimizer.state.values())
        found |= {f"{kind} {title} {i}": x for i, kept in gathered for kind, x in kept.items() if isinstance(x, Tensor)}
    return found


def difference(
    before: Snapshot, eager: tuple[Snapshot, Metrics], other: tuple[Snapshot, Metrics], rounding: float
) -> str | None:
    """Return in words what other steps did otherwise than eager ones did, if it is more than rounding.

    Scalars are compared as they are, what an optimiser gathers by its change: it is linear in the gradient. The change
    of a weight is nearly the sign of its gradient and may turn where that is close to zero; so there only half of it
    has to be the same, which it is not for a weight that was never stepped.

    Args:
        before: What there was.
        eager: What eager steps made of it, and the scalars that they returned.
        other: The same of the other steps.
        rounding: See :data:`ROUNDING`.
    """
    (expected_state, expected_metrics), (state, metrics) = eager, other
    for name, value in expected_metrics.items():
        told, expected = float(metrics[name]), float(value)
        if name.endswith("accuracy"):  # counts: near a tie one image may go either way
            continue
        if not abs(told - expected) <= rounding * max(1.0, abs(expected)):
            return f"{name} {told:.6g} instead of {expected:.6g}"
    kinds: dict[str, list[tuple[str, float, float]]] = {}
    for name, value in before.values.items():
        if value.is_floating_point():
            after = expected_state.values[name].double()
            row = name, _size(after - value.double()), _size(state.values[name].double() - after)
            kinds.setdefault(name.split()[0], []).append(row)
    for kind, rows in kinds.items():
        floor = FLOOR * sum(size for _, size, _ in rows) / len(rows)
        allowed = max(0.5, rounding) if kind == "value" else rounding
        for name, size, off in rows:
            if not off <= allowed * max(size, floor):
                return f"{name} by {off:.2g} where it changed by {size:.2g}"
    return None


def _size(x: Tensor) -> float:
    return float(x.square().mean().sqrt()) if x.numel() else 0.0


def uncompiled() -> AbstractContextManager[None]:
    """Let what was compiled run as it is written inside the block."""
    return cast(AbstractContextManager[None], torch.compiler.set_stance("force_eager"))
