"""Steps that are recorded once and started as a whole ever after: a GPU need not wait for each kernel (chapter 6).

A recorded step computes with the same tensors each time: what it is given is copied to where it was when the step was
recorded. All that it changes, weights and what the optimiser gathers, has to stay where it is; so has a learning rate,
which is a tensor then and is filled anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

Metrics = dict[str, Tensor]
"""Scalars that a step returns, by name."""


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


def uncompiled() -> AbstractContextManager[None]:
    """Let what was compiled run as it is written inside the block."""
    return cast(AbstractContextManager[None], torch.compiler.set_stance("force_eager"))
