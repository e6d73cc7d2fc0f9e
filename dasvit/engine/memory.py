"""Bytes counted exactly: what is alive, and what autograd keeps for the backward pass (page on memory).

Both count real tensors on any device and fake ones (``FakeTensorMode``), which have sizes but no values: so the memory
of a search that does not fit this machine is known before it is run, see :mod:`dasvit.plan`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Count the bytes of all tensors alive that were made inside the block, or are ``held`` from before.

    Every storage is counted once, from its creation to its release; what an allocator adds on top is not in it.

    Args:
        held: Tensors that were there before: weights, the optimiser's state, a batch.

    Attributes:
        now: Bytes alive.
        peak: The most of them so far; may be set back, to see the peak of a part.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, int] = {}
        self._note(held)

    def _note(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._alive:
                self._alive[key] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._release, key)
        self.peak = max(self.peak, self.now)

    def _release(self, key: int) -> None:
        self.now -= self._alive.pop(key, 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and note the tensors it returns."""
        result = func(*args, **(kwargs or {}))
        self._note(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


def peak_live_bytes(step: Callable[[], object], *held: nn.Module | Optimizer) -> int:
    """Return the most bytes alive during ``step``, those of ``held`` (weights, an optimiser's state) included."""
    with LiveBytes(tensors_of(*held)) as count:
        step()
    return count.peak


def tensors_of(*held: nn.Module | Optimizer) -> list[Tensor]:
    """Return the parameters and buffers of modules and the state of optimisers."""
    states = (
        thing.state_dict() if isinstance(thing, Optimizer) else thing.state_dict(keep_vars=True) for thing in held
    )
    return [x for state in states for x in tree_leaves(state) if isinstance(x, Tensor)]


def saved_bytes(step: Callable[[], object]) -> int:
    """Return the bytes that autograd keeps for the backward pass of ``step``: each storage once, no parameters.

    What is saved and let go again before the backward pass, as a result that nobody uses, does not add up.
    """
    kept = LiveBytes()  # not entered: it counts what it is told of

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            kept._note([tensor])
        return tensor.detach()  # a result that held itself would never be let go

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return kept.peak
