"""What an indicator looks at beside the network, and the state it puts the network in while it looks (chapter 9)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .diversity import Norms, channels_of

Score = dict[str, float]
"""What an indicator says: ``total``, by which it ranks (higher is better), and its parts."""


@dataclass
class Probe:
    """What an indicator may look at beside the network.

    Args:
        image_size: Side of the images in pixels.
        images: ``[b, c, h, w]``, normalised; by default Gaussian noise drawn by ``seed``.
        labels: ``[b]``; by default drawn by ``seed``. Only ``snip``, ``grasp`` and ``zico`` read them.
        seed: Seed of what is drawn.
        batch_size: How many images are drawn.
        norms: Nuclear norms of weights that several models share, see :func:`~dasvit.training_free.diversity.dss`.
    """

    image_size: int = 224
    images: Tensor | None = None
    labels: Tensor | None = None
    seed: int = 0
    batch_size: int = 16
    norms: Norms | None = field(default=None, repr=False)

    def batch(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Return images in the model's precision, and labels among its classes."""
        like, generator = next(model.parameters()), torch.Generator().manual_seed(self.seed)
        shape = (self.batch_size, channels_of(model), self.image_size, self.image_size)
        images = torch.randn(shape, generator=generator) if self.images is None else self.images
        images = images.to(like)
        if self.labels is not None:
            return images, self.labels.to(like.device)
        with torch.no_grad():
            classes = model(images[:1]).shape[-1]
        return images, torch.randint(classes, (len(images),), generator=generator).to(like.device)


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode for a while."""
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def differentiable(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[list[Tensor]]:
    """Yield a model's matrices, for a while wanting gradients, in evaluation mode, in another precision if asked."""
    parameters = list(model.parameters())
    floating = [buffer for buffer in model.buffers() if buffer.is_floating_point()]  # BatchNorm's running statistics
    kept = [(t, t.data, t.requires_grad) for t in [*parameters, *floating]]
    try:
        with evaluated(model), torch.enable_grad():
            for t, data, _ in kept:
                t.data = data.to(dtype or data.dtype)
            for p in parameters:
                p.requires_grad_(True)
            yield [p for p in parameters if p.ndim > 1]
    finally:
        for t, data, requires_grad in kept:
            t.data = data
            t.requires_grad_(requires_grad)
