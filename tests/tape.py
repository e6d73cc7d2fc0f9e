"""What stands for CUDA graphs on a CPU: every operator of a step is noted, and called again on the same tensors.

So whatever a graph would not see is not seen here either: numbers of Python's, a tensor put in another's place.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default}
"""What reads a number from a GPU, and what makes a tensor of Python's numbers, which would have to be sent there."""


def storages(tree):
    return {x.untyped_storage()._cdata for x in tree_leaves(tree) if isinstance(x, Tensor)}


class Note(TorchDispatchMode):
    """Notes the operators called inside the block, less those that only look at a tensor in another way."""

    def __init__(self, limit=None):
        super().__init__()
        self.calls, self.limit = [], limit

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in WAITS:
            raise RuntimeError("operation not permitted when stream is capturing")
        if len(self.calls) == self.limit:
            raise RuntimeError("operation failed")
        given = tree_map_only(Tensor, Tensor.detach, (args, kwargs))  # of this shape, whatever is made of it in place
        result = func(*args, **kwargs)
        writes = func._schema.is_mutable and torch.Tag.inplace_view not in func.tags
        if writes or not storages(result) <= storages(given):
            self.calls.append((func, *given, tree_map_only(Tensor, Tensor.detach, result)))
        return result


class Tape:
    """A recorder; ``calls`` counts what each recorded step calls."""

    def __init__(self):
        self.calls, self.replays = [], 0

    def record(self, function):
        with Note() as note:
            function()
        self.calls.append(len(note.calls))
        return lambda: self.replay(note.calls)

    @torch.no_grad()
    def replay(self, calls):
        self.replays += 1
        for func, args, kwargs, result in calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)
