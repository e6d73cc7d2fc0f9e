"""Update weights while the backward pass goes on, so that gradients do not pile up (page on memory)."""

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

    An optimiser steps every weight that has a gradient. So gradients of earlier parts of a batch are set aside until
    the last part has completed them: a weight has a gradient when it is to be stepped, and at no other time.

    Args:
        optimizer: Set up by ``fabric``.
        fabric: Where gradients are averaged.
    """

    def __init__(self, optimizer: Optimizer, fabric: Fabric) -> None:
        self.optimizer, self.fabric = optimizer, fabric
        self._pending: list[Tensor] = []
        self._aside: dict[Tensor, Tensor] = {}
        self._bytes, self._active = 0, False
        # the garbage collector does not see hooks: one that held this object would keep it and all weights for ever
        method = weakref.WeakMethod(self._note)

        def note(parameter: Tensor) -> None:
            if (noting := method()) is not None:
                noting(parameter)

        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(note)

    @property
    def _parameters(self) -> Iterator[Tensor]:
        return (p for group in self.optimizer.param_groups for p in group["params"])

    @contextmanager
    def on(self) -> Iterator[None]:
        """Update during the backward pass inside the block, and what is left at its end.

        The block holds the last backward pass of a step; the gradients of those before it are there already.
        """
        self._active = True
        self._aside = {p: p.grad for p in self._parameters if p.grad is not None}
        for parameter in self._aside:
            parameter.grad = None
        try:
            yield
            for parameter in [*self._aside]:  # the last part did not reach it
                self._complete(parameter)
            self._update()
        finally:
            self._active = False
            self._pending.clear()
            self._aside.clear()
            self._bytes = 0
            self.optimizer.zero_grad()

    def _note(self, parameter: Tensor) -> None:
        if self._active:
            self._complete(parameter)
            if self._bytes >= PIECE:
                self._update()

    def _complete(self, parameter: Tensor) -> None:
        earlier = self._aside.pop(parameter, None)
        if earlier is not None:
            parameter.grad = earlier if parameter.grad is None else earlier.add_(parameter.grad)
        self._pending.append(parameter)
        self._bytes += parameter.nbytes

    def _update(self) -> None:
        if not self._pending:
            return
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
