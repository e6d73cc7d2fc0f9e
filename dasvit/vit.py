"""The trunk that the baseline, every derived network and the supernet share (chapter 1; ledger A1).

``VisionTransformer`` embeds an image, runs a stack of encoder layers and classifies. An encoder layer is any
module called as ``layer(x_prev_prev, x_prev) -> x``: it sees the outputs of the two layers before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .checks import check_image, check_sizes
from .data.sizes import ImageSize, pair
from .layers import Attention, Mlp, PatchEmbed, layer_norm

Init = Literal["xavier", "trunc_normal"]
"""How matrices start (ledger A2)."""

Pool = Literal["token", "mean"]
"""What is classified: the class token, or the mean of the patch tokens."""


class EncoderLayer(nn.Module):
    """The pre-norm encoder layer of ViT: attention, then MLP, each with a residual of its own.

    Args:
        dim: Width D of a token.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP as a multiple of ``dim``.
        attention: Called as ``attention(dim, num_heads)``; returns the attention, a module on tokens.
        norm: Called as ``norm(dim)``; returns the normalisation of a token.

    Attributes:
        drop_path: What the output of attention and MLP goes through.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        attention: Callable[[int, int], nn.Module] = Attention,
        norm: Callable[[int], nn.Module] = layer_norm,
    ) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.attn = attention(dim, num_heads)
        self.norm2 = norm(dim)
        self.mlp = Mlp(dim, mlp_ratio)
        self.drop_path: nn.Module = nn.Identity()

    def forward(
        self, x_prev_prev: Float[Tensor, "b n d"], x_prev: Float[Tensor, "b n d"], *, first: int | None = None
    ) -> Float[Tensor, "b m d"]:
        """Transform ``x_prev``, or only its ``first`` tokens; the layer before the last one is not looked at."""
        if first is None:
            x = x_prev + self.drop_path(self.attn(self.norm1(x_prev)))
        else:
            x = x_prev[:, :first] + self.drop_path(self.attn(self.norm1(x_prev), first))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """Patch embedding, class token, positions, a stack of encoder layers, LayerNorm and a linear classifier.

    Args:
        make_layer: Called ``depth`` times; returns a fresh encoder layer.
        depth: Number of encoder layers.
        image_size: Side of the square input in pixels, or its height and width.
        patch_size: Side of a patch in pixels; must divide ``image_size``.
        in_channels: Number of image channels.
        num_classes: Number of logits.
        dim: Width D of a token.
        make_selection: Called once; returns the module applied to the embedded tokens (chapter 4).
        init: How matrices start: ``"xavier"`` (uniform) or ``"trunc_normal"`` (deviation 0.02); with ``None`` nothing
            is drawn, as for tensors without values.
        pool: What is classified: the class ``"token"``, or the ``"mean"`` of the patch tokens.
        norm: Called as ``norm(dim)``; returns the normalisation before the classifier.
        class_token_last: Whether the last layer computes the class token alone, when that is what is classified: the
            same logits for less work. Off by default: whoever looks into the last layer finds all tokens.

    Attributes:
        recompute: Whether a layer keeps only its inputs and is computed again in the backward pass (less memory, more
            time, the same gradients).

    Raises:
        ValueError: If ``patch_size`` does not divide ``image_size``, or a size is below one or above all reason.
    """

    def __init__(
        self,
        make_layer: Callable[[], nn.Module],
        *,
        depth: int,
        image_size: ImageSize = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        num_classes: int = 1000,
        dim: int = 768,
        make_selection: Callable[[], nn.Module] = nn.Identity,
        init: Init | None = "xavier",
        pool: Pool = "token",
        norm: Callable[[int], nn.Module] = layer_norm,
        class_token_last: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(depth=depth, dim=dim, in_channels=in_channels, num_classes=num_classes)
        check_image(image_size, patch_size)
        self.image_size, self.in_channels, self.num_classes = image_size, in_channels, num_classes
        self.patch_size, self.class_token_last, self.recompute = patch_size, class_token_last, False
        self.pool: Pool = pool
        self.patch_embed = PatchEmbed(patch_size, in_channels, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + count_patches(image_size, patch_size), dim))
        self.token_selection = make_selection()
        self.layers = nn.ModuleList(make_layer() for _ in range(depth))
        self.norm = norm(dim)
        self.head: nn.Module = nn.Linear(dim, num_classes)
        if init is not None:
            init_weights(self, init)

    def grid_of(self, images: Float[Tensor, "b c h w"]) -> tuple[int, int]:
        """Return the rows and columns of patches that images are cut into."""
        return images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that weight decay should leave alone, beside norms and biases."""
        return {"pos_embed", "cls_token"}

    def embed(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return class token and patch tokens with their positions added, before any selection.

        Raises:
            ValueError: If the images are not of the model's size and channels.
        """
        expected = (self.in_channels, *pair(self.image_size))
        if tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images are {tuple(images.shape[1:])}, the model takes {expected} (channels, height, width)"
            )
        patches = self.patch_embed(images)
        return torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.pos_embed

    def forward_features(self, images: Float[Tensor, "b c h w"], *layer_args: Any) -> Float[Tensor, "b m d"]:
        """Return the tokens after the last layer and the final LayerNorm; ``layer_args`` reach every layer."""
        return self._features(images, *layer_args)

    def _features(self, images: Tensor, *layer_args: Any, first: int | None = None) -> Tensor:
        """Return the tokens, of the last layer only the ``first`` ones."""
        x_prev = x = self.token_selection(self.embed(images))
        for number, layer in enumerate(self.layers, 1):
            how: dict[str, Any] = {"first": first} if number == len(self.layers) and first is not None else {}
            if getattr(layer, "needs_grid", False):
                how["grid"] = self.grid_of(images)
            if self.recompute and torch.is_grad_enabled():
                y = checkpoint(layer, x_prev, x, *layer_args, use_reentrant=False, **how)
            else:
                y = layer(x_prev, x, *layer_args, **how)
            x_prev, x = x, y
        return self.norm(x)

    def pooled(self, features: Float[Tensor, "b m d"]) -> Float[Tensor, "b d"]:
        """Return what the classifier reads of the tokens: the first, or the mean of all others."""
        return features[:, 0] if self.pool == "token" else features[:, 1:].mean(dim=1)

    def forward(
        self, images: Float[Tensor, "b c h w"], *layer_args: Any, intermediates: bool = False
    ) -> Float[Tensor, "b classes"] | tuple[Float[Tensor, "b classes"], dict[str, Tensor]]:
        """Classify images.

        Args:
            images: ``[b, in_channels, height, width]``, normalised.
            *layer_args: Passed on to every encoder layer (the supernet's mixing weights travel this way).
            intermediates: Also return what happened inside, by module: ``"layers.0.attn.attention"``
                ``[b, heads, n, n]``, ``"layers.0.nodes"`` ``[nodes, b, n, d]``, ``"token_selection.kept"``, …

        Returns:
            The logits ``[b, num_classes]``, with ``intermediates`` a pair of logits and dictionary.
        """
        if not intermediates:
            first = 1 if self.class_token_last and self.pool == "token" else None
            return self.head(self.pooled(self._features(images, *layer_args, first=first)))
        with recorded(self) as record:
            logits = self.head(self.pooled(self.forward_features(images, *layer_args)))
        return logits, record


def weight_groups(network: VisionTransformer, weight_decay: float) -> list[dict[str, Any]]:
    """Return the weights of a network for its optimiser: matrices decay; norms, biases, positions, class token do not.

    What asks for no gradient is left out. Decay pulls towards zero: a matrix towards a simpler map, a norm's scale or a
    position towards nothing sensible (ledger A36).
    """
    exempt = network.no_weight_decay()
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, weight in network.named_parameters():
        if weight.requires_grad:
            groups[weight.ndim > 1 and name not in exempt].append(weight)
    kept, decayed = groups
    return [{"params": kept, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]


def count_patches(image_size: ImageSize, patch_size: int) -> int:
    """Return the number of patches of an image."""
    height, width = pair(image_size)
    return (height // patch_size) * (width // patch_size)


def trunk_parameters(dim: int, *, image_size: ImageSize, patch_size: int, in_channels: int, num_classes: int) -> int:
    """Return the parameters outside the layers: patch embedding, class token, positions, last norm, classifier."""
    embedding, patches = in_channels * patch_size**2 + 1, count_patches(image_size, patch_size)
    return dim * (embedding + 1 + (1 + patches) + 2) + (dim + 1) * num_classes


@contextmanager
def recorded(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect ``module.intermediates(*inputs)`` of every submodule that has this method, while it runs.

    Yields:
        A dictionary that fills up during the forward pass; keys are ``"<module name>.<what>"``.
    """
    record: dict[str, Tensor] = {}

    def watch(name: str, module: Any) -> torch.utils.hooks.RemovableHandle:
        def note(_module: nn.Module, inputs: tuple[Any, ...], how: dict[str, Any], _output: Tensor) -> None:
            record.update({f"{name}.{what}": x for what, x in module.intermediates(*inputs, **how).items()})

        return module.register_forward_hook(note, with_kwargs=True)

    handles = [watch(name, m) for name, m in model.named_modules() if hasattr(m, "intermediates")]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def init_weights(model: VisionTransformer, init: str = "xavier") -> None:
    """Initialise in place: matrices by ``init``, biases zero, norms the identity, positions normal (0.02).

    The paper names no initialisation (ledger A2). In an encoder without an identity path the differences between tokens
    rest on the matrices alone, and there the choice decides whether it trains.

    Raises:
        ValueError: If ``init`` is not known.
    """
    if init not in ("xavier", "trunc_normal"):
        raise ValueError(f"unknown init {init!r}: choose xavier or trunc_normal")
    if model.pos_embed.is_meta:  # no values, nothing to draw
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            for matrix in module.weight.flatten(1).chunk(3 if name.endswith("qkv") else 1):  # Q, K, V are three
                if init == "xavier":
                    nn.init.xavier_uniform_(matrix)
                else:
                    nn.init.trunc_normal_(matrix, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(model.pos_embed, std=0.02)
    nn.init.trunc_normal_(model.cls_token, std=0.02)
