"""Spaces whose networks are ranked without training: AutoFormer's T, S and B, small ones, and ours (chapter 9; A29)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..autoformer import HEAD_DIM, MAX_DISTANCE, build_autoformer
from ..encoder import build, layer_parameters
from ..space import SearchSpace
from ..vit import Init, VisionTransformer, trunk_parameters


@dataclass(frozen=True)
class Shape:
    """What all networks of a ranking have in common.

    Args:
        image_size: Side of the images in pixels.
        patch_size: Side of a patch in pixels.
        in_channels: Channels of the images.
        num_classes: Number of classes.
        seed: Seed of the weights.
    """

    image_size: int = 224
    patch_size: int = 16
    in_channels: int = 3
    num_classes: int = 1000
    seed: int = 0

    @property
    def sizes(self) -> dict[str, Any]:
        """All but the seed, as a network is told."""
        return {k: v for k, v in asdict(self).items() if k != "seed"}


@runtime_checkable
class Space(Protocol):
    """A space of networks, each with a number from 0. Networks of several numbers may be the same function.

    Attributes:
        shared: Whether parameters of equal name and shape are equal among its networks.
    """

    shared: ClassVar[bool]

    def __len__(self) -> int:
        """Return how many numbers there are."""

    def count_functions(self) -> int:
        """Return how many of the networks are different functions."""

    def canonical(self, number: int) -> int:
        """Return the smallest number of a network that is the same function."""

    def sample(self, rng: random.Random) -> int:
        """Return the canonical number of a random network."""

    def describe(self, number: int) -> dict[str, Any]:
        """Return a network as plain data."""

    def parameters(self, number: int, shape: Shape) -> int:
        """Return the number of parameters of a network without building it."""

    def build(self, number: int, shape: Shape) -> VisionTransformer:
        """Return a network with the weights that ``shape.seed`` gives it."""


@dataclass(frozen=True)
class Candidate:
    """A network of an AutoFormer space.

    Args:
        dim: Width of a token.
        num_heads: Attention heads of each layer.
        mlp_ratios: Hidden width of each layer's MLP as a multiple of ``dim``.
    """

    dim: int
    num_heads: tuple[int, ...]
    mlp_ratios: tuple[float, ...]


@dataclass(frozen=True)
class AutoFormerSpace:
    """One width and one depth for a network; heads and MLP ratio for each of its layers (Chen et al. 2021).

    Networks are numbered: by width, then depth, then the choices of the layers, the first layer's changing slowest.
    ``len`` fits the machine's integers for all spaces below.

    Args:
        dims: Widths of a token.
        depths: Numbers of layers.
        num_heads: Attention heads of a layer.
        mlp_ratios: Hidden widths of an MLP as multiples of the token's.
        head_dim: Width of a head.
        relative_position: Whether attention has relative position.
    """

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    mlp_ratios: tuple[float, ...]
    head_dim: int = HEAD_DIM
    relative_position: bool = True
    shared: ClassVar[bool] = True

    @property
    def _choices(self) -> list[tuple[int, float]]:
        return [(h, r) for h in self.num_heads for r in self.mlp_ratios]

    def __len__(self) -> int:
        return len(self.dims) * sum(len(self._choices) ** depth for depth in self.depths)

    def __getitem__(self, number: int) -> Candidate:
        """Return a candidate by its number.

        Raises:
            IndexError: If there is none.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"{number} is no number of a network: the space has {len(self):,}, from 0")
        choices = self._choices
        dim, rest = divmod(number, len(self) // len(self.dims))
        for depth in self.depths:
            if rest < (size := len(choices) ** depth):
                break
            rest -= size
        layers = []
        for _ in range(depth):
            rest, choice = divmod(rest, len(choices))
            layers.append(choices[choice])
        heads, ratios = zip(*reversed(layers), strict=True)
        return Candidate(self.dims[dim], heads, ratios)

    def number(self, candidate: Candidate) -> int:
        """Return a candidate's number.

        Raises:
            ValueError: If it is not in the space.
        """
        layers, choices = list(zip(candidate.num_heads, candidate.mlp_ratios, strict=True)), self._choices
        if candidate.dim not in self.dims or len(layers) not in self.depths or not set(layers) <= set(choices):
            raise ValueError(f"{candidate} is not in the space of {self}")
        within = 0
        for layer in layers:
            within = within * len(choices) + choices.index(layer)
        before = sum(len(choices) ** d for d in self.depths[: self.depths.index(len(layers))])
        return self.dims.index(candidate.dim) * (len(self) // len(self.dims)) + before + within

    def count_functions(self) -> int:
        """Return how many networks there are, since no two are the same function."""
        return len(self)

    def canonical(self, number: int) -> int:
        """Return the number."""
        return number

    def sample(self, rng: random.Random) -> int:
        """Return the number of a network: width and depth first, each as likely as the others, then the layers."""
        dim, layers = rng.choice(self.dims), rng.choices(self._choices, k=rng.choice(self.depths))
        heads, ratios = zip(*layers, strict=True)
        return self.number(Candidate(dim, heads, ratios))

    def describe(self, number: int) -> dict[str, Any]:
        """Return a network as plain data."""
        candidate = self[number]
        return {"dim": candidate.dim, "num_heads": list(candidate.num_heads), "mlp_ratios": list(candidate.mlp_ratios)}

    def parameters(self, number: int, shape: Shape) -> int:
        """Return the number of parameters of a network without building it."""
        c = self[number]
        total = trunk_parameters(c.dim, **shape.sizes)
        for heads, ratio in zip(c.num_heads, c.mlp_ratios, strict=True):
            width, hidden = heads * self.head_dim, int(c.dim * ratio)
            total += 4 * c.dim * width + 3 * width + c.dim + 2 * c.dim * hidden + hidden + c.dim + 4 * c.dim
            total += self.relative_position * 4 * (2 * MAX_DISTANCE + 2) * self.head_dim
        return total

    def build(self, number: int, shape: Shape) -> VisionTransformer:
        """Return a network with weights that are slices of larger ones, drawn once for the whole space.

        So two networks share what they have in common, as in AutoFormer's super-network, and nothing is drawn twice.
        Weights are views, layers are shared, and nothing wants a gradient: it is to be scored, not to be trained.
        """
        c = self[number]
        layers = list(enumerate(zip(c.num_heads, c.mlp_ratios, strict=True)))
        model = _part(self, shape, c.dim, *layers[0])
        model.layers = nn.ModuleList(_layer(self, shape, c.dim, *layer) for layer in layers)
        return model

    def fresh(self, number: int, shape: Shape, init: Init = "trunc_normal") -> VisionTransformer:
        """Return a network with weights of its own, to be trained; they are drawn by torch's global generator."""
        c = self[number]
        return self._make(c.dim, c.num_heads, c.mlp_ratios, shape, init)

    def _make(
        self, dim: int, num_heads: Sequence[int], mlp_ratios: Sequence[float], shape: Shape, init: Init
    ) -> VisionTransformer:
        how: dict[str, Any] = {"head_dim": self.head_dim, "relative_position": self.relative_position, "init": init}
        return build_autoformer(dim, num_heads, mlp_ratios, **how, **shape.sizes)


def _part(space: AutoFormerSpace, shape: Shape, dim: int, index: int, choice: tuple[int, float]) -> VisionTransformer:
    """Return a network of one layer, that of ``index`` in larger ones."""
    with torch.device("meta"):
        model = space._make(dim, [choice[0]], [choice[1]], shape, "trunc_normal")
    largest, state = _weights(space, shape), {}
    for name, p in model.named_parameters():
        source = largest[name.replace("layers.0.", f"layers.{index}.", 1)]
        state[name] = _slice(source, p.shape, ".qkv." in name)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False)


@cache
def _layer(space: AutoFormerSpace, shape: Shape, dim: int, index: int, choice: tuple[int, float]) -> nn.Module:
    """Return an encoder layer; all networks that have it share it."""
    return _part(space, shape, dim, index, choice).layers[0]


def _slice(largest: Tensor, shape: Sequence[int], three: bool) -> Tensor:
    """Return the first rows and columns of a parameter, of each of its three parts if it is that of Q, K and V."""
    if three:
        width, *columns = shape
        return largest.unflatten(0, (3, -1))[(slice(None), *map(slice, (width // 3, *columns)))].flatten(0, 1)
    return largest[tuple(map(slice, shape))]


@cache
def _weights(space: AutoFormerSpace, shape: Shape) -> dict[str, Tensor]:
    """Return the weights of the largest network, truncated normal as TF-TAS has them."""
    depth = max(space.depths)
    heads, ratios = [max(space.num_heads)] * depth, [max(space.mlp_ratios)] * depth
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(shape.seed)
        model = space._make(max(space.dims), heads, ratios, shape, "trunc_normal")
    return {name: p.detach() for name, p in model.named_parameters()}


@dataclass(frozen=True)
class DasvitSpace:
    """Our space of encoders, as networks of one width and depth.

    Args:
        space: The encoders.
        dim: Width of a token.
        depth: Number of layers.
    """

    space: SearchSpace = field(default_factory=SearchSpace)
    dim: int = 768
    depth: int = 12
    shared: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.space)

    def count_functions(self) -> int:
        """Return how many of the encoders are different functions."""
        return len(self.space.functions())

    def canonical(self, number: int) -> int:
        """Return the smallest number of an encoder that is the same function."""
        return self.space.canonical(number)

    def sample(self, rng: random.Random) -> int:
        """Return the canonical number of a random encoder, every function being equally likely."""
        return rng.choice(self.space.functions())

    def describe(self, number: int) -> dict[str, Any]:
        """Return an encoder as plain data."""
        return {"genotype": self.space[number].to_json(), "dim": self.dim, "depth": self.depth}

    def parameters(self, number: int, shape: Shape) -> int:
        """Return the number of parameters of a network without building it."""
        layer = layer_parameters(self.space[number], self.dim)
        return trunk_parameters(self.dim, **shape.sizes) + self.depth * layer

    def build(self, number: int, shape: Shape) -> VisionTransformer:
        """Return a network with weights drawn by ``shape.seed``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(shape.seed)
            return self._make(number, shape).requires_grad_(False)

    def _make(self, number: int, shape: Shape) -> VisionTransformer:
        return build(self.space[number], dim=self.dim, depth=self.depth, **shape.sizes)


SPACES: dict[str, Space] = {
    "autoformer-t": AutoFormerSpace((192, 216, 240), (12, 13, 14), (3, 4), (3.5, 4)),
    "autoformer-s": AutoFormerSpace((320, 384, 448), (12, 13, 14), (5, 6, 7), (3, 3.5, 4)),
    "autoformer-b": AutoFormerSpace((528, 576, 624), (14, 15, 16), (9, 10), (3, 3.5, 4)),
    "autoformer-xs": AutoFormerSpace((32, 48, 64, 96), (2, 3, 4, 5, 6), (1, 2, 4), (1, 2, 4), 16, False),
    "dasvit": DasvitSpace(),
    "dasvit-xs": DasvitSpace(dim=48, depth=6),
}
"""The spaces by name; those that end in -xs are for images of few pixels.

:meta hide-value:
"""


PUBLISHED: dict[str, Candidate] = {
    "autoformer-t": Candidate(
        192, (4, 3, 3, 3, 3, 4, 4, 3, 3, 3, 4, 3, 3), (3.5, 4, 3.5, 3.5, 4, 3.5, 3.5, 3.5, 4, 4, 4, 4, 3.5)
    ),
    "autoformer-s": Candidate(
        384, (6, 6, 6, 6, 7, 6, 5, 7, 5, 5, 5, 7, 6, 7), (4, 4, 4, 3, 4, 3, 3, 3.5, 4, 3.5, 3.5, 4, 3, 3.5)
    ),
    "autoformer-b": Candidate(
        576,
        (9, 10, 10, 10, 10, 10, 10, 9, 9, 10, 9, 9, 9, 9, 9),
        (3, 3.5, 4, 4, 3, 4, 3, 3, 3.5, 3, 3, 3.5, 4, 3, 4),
    ),
}
"""The networks that TF-TAS published as found, by space.

:meta hide-value:
"""


def find(name: str) -> tuple[str, int] | None:
    """Return space and number of a network given as ``SPACE:NUMBER``, or ``None`` if ``name`` is not of this form.

    Raises:
        ValueError: If there is no such space, or no such number in it.
    """
    space, colon, number = name.partition(":")
    if not colon or space.lstrip().startswith("{"):
        return None
    if space not in SPACES:
        raise ValueError(f"unknown space {space!r}; known: {', '.join(SPACES)}")
    if not number.isdecimal() or int(number) >= len(SPACES[space]):
        raise ValueError(f"{number!r} is no number of a network: {space} has {len(SPACES[space]):,}, from 0")
    return space, int(number)
