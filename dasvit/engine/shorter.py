"""Recorded or compiled steps have to do what the eager ones do before they are relied on (chapter 6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from .capture import Metrics
from .hardware import out_of_memory
from .runs import random_states, set_random_states

ROUNDING = {"64-true": 1e-6, "32-true": 1e-3}
"""By how much of its change a tensor may differ where the same is computed in another order; with bf16 by a tenth."""

FLOOR = 1e-2
"""Of the mean change of all tensors of a kind: a tensor that changes less is compared with this much."""


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


def shortened(
    tensors: Mapping[str, Tensor], take: Callable[[], Metrics], shorten: Callable[[], object], rounding: float
) -> str | None:
    """Go over to shorter steps if they do what the eager ones do; everything is then as it was before the call.

    Args:
        tensors: All that steps change, see :func:`changing`.
        take: Takes steps, with whatever else they change set back.
        shorten: Makes the next ones shorter.
        rounding: See :data:`ROUNDING`.

    Returns:
        Why the shorter ones are not to be used, if they are not.
    """
    before, random = Snapshot(tensors), random_states()

    def undo() -> None:
        before.restore()
        set_random_states(random)

    def outcome() -> tuple[Snapshot, Metrics]:
        metrics = take()
        after = Snapshot(tensors), {name: value.clone() for name, value in metrics.items()}
        undo()
        return after

    expected = outcome()
    try:
        shorten()
        undo()
        return difference(before, expected, outcome(), rounding)
    except RuntimeError as error:
        undo()
        return "memory runs out" if out_of_memory(error) else " ".join(str(error).split())[:300]
