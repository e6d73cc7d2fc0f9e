"""Kernels counted, with the work of each: what a GPU needs at least, before there is one (page on memory)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CHUNK, CHUNKS, TENSORS = 65536, 320, 36
"""A fused optimiser's kernel takes so many numbers at a time, so many times, of so many tensors."""

_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_local_scalar_dense", "lift_fresh"}
_FUSED = {"_fused_adam_", "_fused_adamw_", "_foreach_add_"}


class Kernels(TorchDispatchMode):
    """Count the kernels of whatever runs inside the block; what only looks at a tensor in another way is none.

    An operator counts as one kernel, though on a GPU some are two or three; those that step many tensors at once count
    as what they are split in. On fake tensors nothing is computed.

    Args:
        macs: Returns the multiply-accumulates of an operator, from it, its arguments and its result.

    Attributes:
        work: How many kernels there are with so many FLOPs and bytes read and written.
    """

    def __init__(self, macs: Callable[[Any, tuple[Any, ...], dict[str, Any], Any], int]) -> None:
        super().__init__()
        self.work: Counter[tuple[int, int]] = Counter()
        self._macs = macs

    @property
    def count(self) -> int:
        """Return the number of kernels so far."""
        return self.work.total()

    def seconds(self, flops: float, bandwidth: float, least: float) -> float:
        """Return the seconds of all kernels, one after the other, at given rates and not below a least one each.

        Args:
            flops: FLOP/s.
            bandwidth: Bytes/s.
            least: Seconds of the smallest kernel.
        """
        return sum(n * max(f / flops, b / bandwidth, least) for (f, b), n in self.work.items())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and count it."""
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        before = {x.untyped_storage()._cdata for x in given}
        result = func(*args, **kwargs)
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        new = [x for x in made if x.untyped_storage()._cdata not in before]
        name = func._overloadpacket.__name__
        writes = func._schema.is_mutable and torch.Tag.inplace_view not in func.tags
        if name not in _EMPTY and (new or writes):
            moved = sum({x.untyped_storage()._cdata: x.nbytes for x in [*given, *made]}.values())
            if writes and not new:
                moved += made[0].nbytes if made else 0
            number = _split(args[0]) if name in _FUSED else 1
            self.work[2 * self._macs(func, args, kwargs, result), moved // number] += number
        return result


def _split(tensors: list[Tensor]) -> int:
    chunks = sum(-(-x.numel() // CHUNK) for x in tensors)
    return max(-(-len(tensors) // TENSORS), -(-chunks // CHUNKS))
