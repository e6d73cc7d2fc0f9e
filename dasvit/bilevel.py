"""Architecture gradients of the bilevel problem, first and second order (chapter 3; ledger A12).

The problem is ``min_α L_val(w*(α), α) + R(α)`` subject to ``w*(α) = argmin_w L_train(w, α)``, Eqs. (6)-(7).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

BoundLoss = Callable[[], Tensor]
"""A loss that is bound to its network and batch; computed anew at each call."""

Losses = BoundLoss | Sequence[BoundLoss]
"""A loss, or the parts it is the sum of: with parts of a batch less memory is needed at a time.

:meta private:
"""

Mean = Callable[[Tensor], Tensor]
"""The mean of a gradient over all devices that each compute it for a part of the batch.

:meta private:
"""


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Ask for no gradient with respect to ``parameters`` inside the block: none is computed, nothing is stored."""
    before = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p, flag in zip(parameters, before, strict=True):
            p.requires_grad_(flag)


@contextmanager
def moved(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> Iterator[None]:
    """Let ``parameters`` have other ``values`` inside the block, and exactly their own again after it."""
    before = [p.data for p in parameters]
    for p, value in zip(parameters, values, strict=True):
        p.data = value
    try:
        yield
    finally:
        for p, value in zip(parameters, before, strict=True):
            p.data = value


def _own(gradient: Tensor) -> Tensor:
    return gradient


def first_order_gradient(
    alpha: nn.Parameter, weights: Sequence[nn.Parameter], upper: Losses, mean: Mean = _own
) -> tuple[Float[Tensor, "edges operations"], Tensor]:
    """Return ``∇_α`` of the upper loss at the present weights, ``w* ≈ w``, and the loss.

    Args:
        alpha: Architecture parameters.
        weights: The network's weights w, for which no gradient is computed.
        upper: Validation loss plus regularisation.
        mean: Averages over devices.
    """
    with frozen(weights):
        (gradient,), loss = _gradients(upper, [alpha], mean)
    return gradient, loss


def second_order_gradient(
    alpha: nn.Parameter,
    weights: Sequence[nn.Parameter],
    upper: Losses,
    lower: Losses,
    inner_lr: float,
    mean: Mean = _own,
) -> tuple[Float[Tensor, "edges operations"], Tensor]:
    """Return ``∇_α`` of the upper loss after one unrolled step of gradient descent on the weights, and that loss.

    With ``w' = w - ξ ∇_w L_train(w, α)`` the gradient is
    ``∇_α L_val(w', α) - ξ ∇²_{α,w} L_train(w, α) · ∇_{w'} L_val(w', α)``. The product with the mixed second
    derivative is a central difference of ``∇_α L_train`` along ``v = ∇_{w'} L_val``, so that no second backward
    pass is needed. Its step is ``0.2 ε^{1/3} / ‖v‖`` with the machine epsilon ε: in float32 a tenth of what DARTS
    uses, which measured better on these networks (chapter 3). (Token selection passes a
    straight-through gradient, which has no exact second derivative: there it is an estimate of an estimate.)

    Args:
        alpha: Architecture parameters.
        weights: The network's weights w; they are left exactly as they were.
        upper: Validation loss plus regularisation.
        lower: Training loss.
        inner_lr: ξ, the step size of the unrolled step.
        mean: Averages over devices: they unroll one step, that of the whole batch, and not one each.
    """
    weights = [w for w in weights if w.requires_grad]
    with frozen([alpha]):
        inner, _ = _gradients(lower, weights, mean)
    current = [w.detach() for w in weights]
    with moved(weights, [w - inner_lr * g for w, g in zip(current, inner, strict=True)]):
        (gradient, *v), loss = _gradients(upper, [alpha, *weights], mean)
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(x) for x in v]))
    # where v is zero so is the product, at any step; to ask here would be to wait, and a plan has no values to ask
    step = torch.where(norm > 0, 0.2 * torch.finfo(norm.dtype).eps ** (1 / 3) / norm, 1.0)

    def lower_gradient(sign: int) -> Tensor:
        values = [w + sign * step * x for w, x in zip(current, v, strict=True)]
        with moved(weights, values), frozen(weights):
            return _gradients(lower, [alpha], mean)[0][0]

    product = (lower_gradient(1) - lower_gradient(-1)) / (2 * step)
    return gradient - inner_lr * product, loss


def _gradients(losses: Losses, inputs: Sequence[Tensor], mean: Mean) -> tuple[list[Tensor], Tensor]:
    """Return the gradients of a sum of losses, computed one after the other and averaged, and the sum."""
    gradients: list[Tensor] = []
    total: Tensor | None = None
    for compute in [losses] if callable(losses) else losses:
        loss = compute()
        if not loss.requires_grad:
            raise ValueError("the loss or objective given has no gradient: it must depend on what the network returns")
        found = torch.autograd.grad(loss, inputs, materialize_grads=True)
        gradients = [a + b for a, b in zip(gradients, found, strict=True)] if gradients else list(found)
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    return [mean(gradient) for gradient in gradients], total
