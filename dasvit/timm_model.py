"""The published encoder as a model of timm and of the Hugging Face hub: ``dasvit_base_patch16_224`` (a model to use).

``import dasvit`` is enough: the model is registered as soon as both packages are loaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from timm.layers import resample_abs_pos_embed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from .data.sizes import as_size
from .encoder import layer_maker, resolve
from .space import Genotype
from .vit import Init, Pool, VisionTransformer

NAME = "dasvit_base_patch16_224"

__all__ = ["NAME", "DASViT", "dasvit_base_patch16_224"]  # timm would list the last alone

_POOLS: dict[str, Pool] = {"token": "token", "avg": "mean"}


class DASViT(VisionTransformer, PyTorchModelHubMixin):
    """A searched encoder with timm's interface, for images of any size.

    Images are padded with zeros to a multiple of the patch size; position embeddings are resampled where the number of
    patches is not the one the model was made for.

    Args:
        genotype: The encoder: a published one's name, ``"vit_b16"``, a file, or a genotype as JSON.
        img_size: Side of the images in pixels, or height and width.
        patch_size: Side of a patch in pixels.
        in_chans: Number of image channels.
        num_classes: Number of logits; 0 for features without a classifier.
        embed_dim: Width D of a token.
        depth: Number of encoder layers.
        global_pool: What is classified: ``"token"``, the class token; ``"avg"``, the mean of the patch tokens.
        drop_rate: Dropout before the classifier.
        init: How matrices start.

    Attributes:
        arguments: What builds the same network again, as plain data.

    Raises:
        ValueError: If the sizes do not fit together, or a name is unknown.
    """

    def __init__(
        self,
        genotype: str = "dasvit-cifar10",
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        global_pool: str = "token",
        drop_rate: float = 0.0,
        init: Init = "xavier",
    ) -> None:
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if patch_size < 1 or min(height, width) < 1:
            raise ValueError(f"img_size {img_size} or patch_size {patch_size} is below one")
        architecture = resolve(genotype)
        super().__init__(
            layer_maker(architecture, embed_dim),
            depth=depth,
            image_size=as_size(*(patch_size * math.ceil(side / patch_size) for side in (height, width))),
            patch_size=patch_size,
            in_channels=in_chans,
            num_classes=max(1, num_classes),
            dim=embed_dim,
            init=init,
        )
        self.grid_size, self.in_chans = self._grid(height, width), in_chans
        self.arguments = {
            "genotype": architecture.to_json() if isinstance(architecture, Genotype) else architecture,  # never a file
            "img_size": img_size,
            "patch_size": patch_size,
            "in_chans": in_chans,
            "num_classes": num_classes,
            "embed_dim": embed_dim,
            "depth": depth,
            "global_pool": global_pool,
            "drop_rate": drop_rate,
            "init": init,
        }
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.drop = nn.Dropout(drop_rate)
        self._pool_by(global_pool)
        if num_classes < 1:
            self.reset_classifier(0)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        return -(-height // self.patch_size), -(-width // self.patch_size)

    def grid_of(self, images: Float[Tensor, "b c h w"]) -> tuple[int, int]:
        """Return the rows and columns of patches that images are cut into, padded."""
        return self._grid(images.shape[-2], images.shape[-1])

    def _pool_by(self, global_pool: str) -> None:
        if global_pool not in _POOLS:
            raise ValueError(f"unknown global_pool {global_pool!r}; known: {', '.join(_POOLS)}")
        self.global_pool, self.pool = global_pool, _POOLS[global_pool]
        self.arguments["global_pool"] = global_pool

    def embed(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return class token and patch tokens with their positions added, for images of any height and width.

        Raises:
            ValueError: If the images have another number of channels.
        """
        if images.shape[1] != self.in_channels:
            raise ValueError(f"images have {images.shape[1]} channels, the model takes {self.in_channels}")
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.patch_size, 0, -height % self.patch_size))
        patches, positions = self.patch_embed(images), self.pos_embed
        if (grid := self._grid(height, width)) != self.grid_size:
            positions = resample_abs_pos_embed(positions, list(grid), list(self.grid_size), num_prefix_tokens=1)
        return torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + positions

    def pooled(self, features: Float[Tensor, "b m d"]) -> Float[Tensor, "b d"]:
        """Return what the classifier reads, after dropout."""
        return self.drop(super().pooled(features))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Tensor:  # type: ignore[override]
        """Return the logits of images ``[b, in_chans, h, w]``, or features if there is no classifier."""
        return self.forward_head(self.forward_features(images))

    def forward_head(self, x: Float[Tensor, "b m d"], pre_logits: bool = False) -> Tensor:
        """Return logits of the tokens, or with ``pre_logits`` what the classifier reads."""
        return self.pooled(x) if pre_logits else self.head(self.pooled(x))

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the model a fresh classifier; none for 0 classes.

        Raises:
            ValueError: If ``global_pool`` is unknown.
        """
        if global_pool is not None:
            self._pool_by(global_pool)
        self.num_classes = self.arguments["num_classes"] = num_classes
        self.head = nn.Linear(self.embed_dim, num_classes) if num_classes > 0 else nn.Identity()
        self.head.to(self.pos_embed)

    def save_pretrained(self, save_directory: str | Path, *, config: Any = None, **kwargs: Any) -> Any:
        """Write ``config.json`` and ``model.safetensors``, for ``DASViT.from_pretrained``.

        Args:
            save_directory: The folder.
            config: Told beside the model's own arguments.
            **kwargs: See the mixin of huggingface_hub.
        """
        return super().save_pretrained(save_directory, config=(config or {}) | self.arguments, **kwargs)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute layers again in the backward pass instead of keeping what they computed."""
        self.recompute = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that group parameters by layer, for layer-wise learning rates."""
        layers = r"^layers\.(\d+)" if coarse else [(r"^layers\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^cls_token|^pos_embed|^patch_embed", "blocks": layers}


default_cfgs = generate_default_cfgs(
    {
        NAME: {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
    }
)


@register_model
def dasvit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> DASViT:
    """Build the published encoder at the scale of ViT-B/16; there are no published weights."""
    return build_model_with_cfg(DASViT, NAME, pretrained, **kwargs)
