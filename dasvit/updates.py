"""Update weights while the backward pass goes on, so that gradients do not pile up (chapter 4)."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from .hardware import average

PIECE = 64 << 20
"""Bytes of gradients that are waited for before the weights they belong to are updated."""


class UpdateInBackward:
    """Step an optimiser in pieces: weights whose gradient is complete are updated, and the gradient is let go.

    The update is that of one step over all weights, bit for bit: an optimiser like AdamW looks at one weight at a time
    (one that clips the norm of all gradients would not do). With several devices each piece is averaged over them
    first; the backward pass completes gradients in the same order on all.

    Args:
        optimizer: Set up by ``fabric``.
        fabric: Where gradients are averaged.
    """

    def __init__(self, optimizer: Optimizer, fabric: Fabric) -> None:
        self.optimizer, self.fabric = optimizer, fabric
        self._pending: list[Tensor] = []
        self._bytes, self._active = 0, False
        # the garbage collector does not see hooks: one that held this object would keep it and all weights for ever
        method = weakref.WeakMethod(self._note)

        def note(parameter: Tensor) -> None:
            if (noting := method()) is not None:
                noting(parameter)

        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(note)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Update during the backward pass inside the block, and what is left at its end."""
        self._active = True
        try:
            yield
            self._update()
        finally:
            self._active = False
            self._pending.clear()
            self._bytes = 0
            self.optimizer.zero_grad()

    def _note(self, parameter: Tensor) -> None:
        if self._active:
            self._pending.append(parameter)
            self._bytes += parameter.nbytes
            if self._bytes >= PIECE:
                self._update()

    def _update(self) -> None:
        if self.fabric.world_size > 1:
            gradients = [p.grad for p in self._pending if p.grad is not None]
            mean = average(torch.cat([g.flatten() for g in gradients]), self.fabric)
            for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))
        self.optimizer.step()
        for parameter in self._pending:
            parameter.grad = None
        self._pending.clear()
        self._bytes = 0
