"""A genotype as a module, the published encoders, and whole networks by name (chapter 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .lean import normalise
from .operations import KINDS, Grid, Skip
from .space import Edge, Genotype, Operation, edge_name
from .vit import EncoderLayer, VisionTransformer

_PUBLISHED = '{"format": 1, "nodes": [[[0, "mlp:0.5"], [1, "mlp:0.5"]], [[1, "mlp:0.5"], [2, "msa:HEADS"]]]}'
Baseline = Literal["vit_b16"]
BASELINE: Baseline = "vit_b16"
BASELINE_HEADS, BASELINE_RATIO = 12, 4.0
Architecture = Genotype | Baseline
"""A searched encoder, or the plain transformer."""
MAX_TEXT = 100_000  # characters of a genotype file: the largest genotype has some thousand


def genotypes() -> dict[str, Genotype]:
    """Return the two published encoders, Eqs. (20)-(22).

    The paper finds 8 heads on one data set and 12 on the other, and does not say in its text which is which, nor
    what the third MLP reads; both are assumptions of ours (ledger A8, A9), and so is that MLP's ratio (A10).
    """
    heads = {"dasvit-cifar10": "8", "dasvit-imagenet100": "12"}
    return {name: Genotype.from_json(_PUBLISHED.replace("HEADS", n)) for name, n in heads.items()}


def make_operation(operation: Operation, dim: int) -> nn.Module:
    """Return an operation as a module on tokens ``[b, n, dim]``.

    Raises:
        ValueError: If its size does not fit ``dim``.
    """
    return operation.spec.make(dim, operation.size)


class Cell(nn.Module):
    """An encoder layer as a directed acyclic graph, Eqs. (9)-(12) (ledger A3).

    Node j is the sum over its incoming edges, ``x_j = Σ_i edge_ij(x_i)``; the layer returns the sum of its nodes.
    With plain operations on its edges this is a derived encoder, with mixed edges a layer of the supernet.

    Args:
        edges: The module on each edge ``(source, target)``, ordered by target.
        inputs: Number of layers looked back (1 or 2).

    Attributes:
        drop_path: What the output of an operation other than identity goes through in a derived encoder.
    """

    def __init__(self, edges: Mapping[Edge, nn.Module], inputs: int = 2) -> None:
        super().__init__()
        self.wiring = tuple(edges)
        self.inputs = inputs
        self.edges = nn.ModuleDict({edge_name(edge): module for edge, module in edges.items()})
        self.needs_grid = any(getattr(edge, "needs_grid", False) for edge in edges.values())
        self.drop_path: nn.Module = nn.Identity()

    def nodes(
        self,
        x_prev_prev: Tensor,
        x_prev: Tensor,
        weights: Tensor | None = None,
        first: int | None = None,
        grid: Grid | None = None,
    ) -> list[Tensor]:
        """Return the outputs of the nodes, each ``[b, n, d]``; of the last one only the ``first`` tokens."""
        states = [x_prev_prev, x_prev][2 - self.inputs :]
        last = self.wiring[-1][1]
        normalised: dict[int, Tensor] = {}
        lean = torch.is_grad_enabled() and not torch.jit.is_tracing()  # a tracer sees what is computed, not how
        for index, (source, target) in enumerate(self.wiring):
            edge, few = self.edges[edge_name((source, target))], first if target == last else None
            if weights is not None:
                if lean and source not in normalised:  # once for all edges that leave a node
                    normalised[source] = normalise(states[source])
                y = edge(states[source], weights[index], few, normalised.get(source), grid)
            else:
                y = edge(states[source], few, grid)
                y = y if isinstance(edge, Skip) else self.drop_path(y)
            if target == len(states):
                states.append(y)
            else:
                states[target] = states[target] + y
        return states[self.inputs :]

    def forward(
        self,
        x_prev_prev: Float[Tensor, "b n d"],
        x_prev: Float[Tensor, "b n d"],
        weights: Float[Tensor, "edges operations"] | None = None,
        *,
        first: int | None = None,
        grid: Grid | None = None,
    ) -> Float[Tensor, "b m d"]:
        """Return the sum of the nodes.

        Args:
            x_prev_prev: Tokens from the layer before the previous one.
            x_prev: Tokens from the previous layer.
            weights: The mixing weights of mixed edges.
            first: Only so many tokens are wanted; by default all.
            grid: Rows and columns of the patch tokens, for operations that need them.
        """
        node, *rest = (x[:, :first] for x in self.nodes(x_prev_prev, x_prev, weights, first, grid))
        return sum(rest, start=node)

    def intermediates(
        self,
        x_prev_prev: Tensor,
        x_prev: Tensor,
        weights: Tensor | None = None,
        *,
        first: int | None = None,
        grid: Grid | None = None,
    ) -> dict[str, Tensor]:
        """Return the node outputs, shape ``[nodes, b, n, d]``, always of all tokens."""
        return {"nodes": torch.stack(self.nodes(x_prev_prev, x_prev, weights, grid=grid))}


def make_cell(genotype: Genotype, dim: int) -> Cell:
    """Return one encoder layer built after ``genotype``."""
    return Cell({edge: make_operation(op, dim) for edge, op in genotype.edges}, genotype.inputs)


def layer_parameters(architecture: Architecture, dim: int) -> int:
    """Return the number of parameters of one encoder layer, in closed form."""
    if isinstance(architecture, Genotype):
        return sum(operation.spec.count(dim, operation.size) for _, operation in architecture.edges)
    return KINDS["msa"].count(dim, BASELINE_HEADS) + KINDS["mlp"].count(dim, BASELINE_RATIO)


def resolve(name: str) -> Architecture:
    """Return what a name, a genotype as JSON, or a file with one stands for.

    This is the border: whatever takes an architecture from a user as text calls this, and nothing else tells them
    apart.

    Args:
        name: ``"vit_b16"``, a published encoder's name, JSON text of a genotype, or a file with one.

    Raises:
        ValueError: If it is none of these.
    """
    if name == BASELINE:
        return BASELINE
    if name in (published := genotypes()):
        return published[name]
    if name.lstrip().startswith("{"):
        return Genotype.from_json(name)
    try:
        if not Path(name).is_file():  # to read a pipe is to wait for ever
            raise ValueError
        with open(name) as file:
            text = file.read(MAX_TEXT + 1)
    except (OSError, ValueError):
        raise ValueError(
            f"{name!r} is no readable file and no known name: {', '.join([BASELINE, *published])}"
        ) from None
    if len(text) > MAX_TEXT:
        raise ValueError(f"{name} has more than {MAX_TEXT:,} characters: a genotype is a line of JSON")
    try:
        return Genotype.from_json(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def as_text(name: str) -> str:
    """Return a name as it is, a genotype as JSON, and a file as what is in it.

    Raises:
        ValueError: As :func:`resolve`.
    """
    architecture = resolve(name)
    return architecture.to_json() if isinstance(architecture, Genotype) and name not in genotypes() else name


def layer_maker(architecture: Architecture, dim: int) -> Callable[[], nn.Module]:
    """Return what makes one encoder layer of an architecture."""
    if isinstance(architecture, Genotype):
        return partial(make_cell, architecture, dim)
    return partial(EncoderLayer, dim, BASELINE_HEADS, BASELINE_RATIO)


def build(architecture: Genotype | str, *, depth: int = 12, dim: int = 768, **settings: Any) -> VisionTransformer:
    """Build a network to be trained: the baseline or a derived one.

    Args:
        architecture: A genotype, or what :func:`resolve` takes: the name of a published encoder, ``"vit_b16"``, a
            file. The defaults give the network at the scale of ViT-B/16.
        depth: Number of encoder layers (ledger A10).
        dim: Width D of a token; heads keep their number at any width (A41).
        **settings: ``image_size``, ``patch_size``, ``in_channels``, ``num_classes``, ``init``,
            ``class_token_last`` of :class:`~dasvit.vit.VisionTransformer`.

    Raises:
        ValueError: If the name is unknown, or the sizes do not fit together.
    """
    known = architecture if isinstance(architecture, Genotype) else resolve(architecture)
    return VisionTransformer(layer_maker(known, dim), depth=depth, dim=dim, **settings)
