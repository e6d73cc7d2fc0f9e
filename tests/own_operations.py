"""Two operations of a user's own: a depthwise convolution on the grid of patches, and a gated MLP."""

import torch
from einops import rearrange
from torch import nn

from dasvit.operations import Kind, register


class DepthwiseConv(nn.Conv2d):
    def __init__(self, dim, size):
        super().__init__(dim, dim, size, padding=size // 2, groups=dim)

    def forward(self, x, grid):
        patches = rearrange(x[:, 1:], "b (h w) d -> b d h w", h=grid[0])
        mixed = rearrange(super().forward(patches), "b d h w -> b (h w) d")
        return torch.cat([x[:, :1], mixed], dim=1)


class GatedMlp(nn.Module):
    def __init__(self, dim, ratio):
        super().__init__()
        hidden = int(dim * ratio)
        self.up, self.down = nn.Linear(dim, 2 * hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(nn.functional.silu(gate) * value)


def odd(text):
    if int(text) % 2 == 0:
        raise ValueError(f"{text} is even")
    return int(text)


register(
    Kind(
        "dwconv",
        DepthwiseConv,
        parameters=lambda dim, side: dim * (side**2 + 1),
        macs=lambda tokens, dim, side: (tokens - 1) * dim * side**2,
        usage="dwconv:SIDE (odd)",
        read=odd,
        type="dwconv",
        needs_grid=True,
    )
)
register(
    Kind(
        "gated",
        GatedMlp,
        parameters=lambda dim, ratio: int(dim * ratio) * (3 * dim + 2) + dim,
        macs=lambda tokens, dim, ratio: 3 * tokens * dim * int(dim * ratio),
        usage="gated:RATIO",
        read=float,
        type="mlp",
        few="each",
    )
)
