"""Many networks trained at once: those with one operation on one edge share its products (chapter 11).

A step of one small network starts hundreds of kernels that hardly occupy a GPU. Networks of one wiring differ only by
what is on their edges, so on each edge those with one operation are computed as one, their weights stacked.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..encoder import Cell
from ..operations import Grid
from ..space import Edge, Genotype, SearchSpace, edge_name
from ..vit import VisionTransformer


class Together(nn.Module):
    """Several modules of one kind as one: each has its own weights and its own part of the input.

    Args:
        modules: They differ by their weights alone.

    Raises:
        ValueError: If they keep running statistics, which each would have to change for itself.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.count = len(modules)
        if any(getattr(part, "track_running_stats", False) for part in modules[0].modules()):
            raise ValueError("an operation with running statistics is not for banks: train one encoder at a time")
        weights, constants = stack_module_state(list(modules))
        self.names, self.constants = list(weights), list(constants)
        self.weights = nn.ParameterList(nn.Parameter(weights[name].detach()) for name in self.names)
        for i, name in enumerate(self.constants):
            self.register_buffer(f"constant{i}", constants[name])
        self._one = [modules[0]]  # in a list: its weights are none of ours, and stand for others when it is called

    def forward(self, x: Tensor, *args: Any, shared: bool = False) -> Tensor:
        """Return what the modules make of inputs ``[count, …]``, or of one input that they share."""
        (one,) = self._one

        def call(weights: Mapping[str, Tensor], own: Tensor) -> Tensor:
            return functional_call(one, dict(weights), (own, *args))

        weights = dict(zip(self.names, self.weights, strict=True))
        weights |= {name: self.get_buffer(f"constant{i}") for i, name in enumerate(self.constants)}
        if not weights:
            return one(x.flatten(0, 1), *args).unflatten(0, x.shape[:2])
        return vmap(call, in_dims=(0, None if shared else 0))(weights, x)


class BankedEdge(nn.Module):
    """One edge of all networks of a bank, those with one operation together.

    Args:
        modules: The operation of each network on this edge.
        kinds: What it is called; modules of one name differ by their weights alone.
    """

    order: Int[Tensor, " networks"]

    def __init__(self, modules: Sequence[nn.Module], kinds: Sequence[str]) -> None:
        super().__init__()
        members = {kind: [i for i, k in enumerate(kinds) if k == kind] for kind in sorted(set(kinds))}
        self.groups = nn.ModuleList(Together([modules[i] for i in own]) for own in members.values())
        self.needs_grid = any(getattr(module, "needs_grid", False) for module in modules)
        sorted_ = torch.tensor([i for own in members.values() for i in own])
        self.register_buffer("members", sorted_)
        self.register_buffer("order", sorted_.argsort())

    def forward(self, x: Float[Tensor, "gb n d"], first: int | None = None, grid: Grid | None = None) -> Tensor:
        """Return the transformed tokens of all networks; the images of the first network come first."""
        own = x.unflatten(0, (len(self.order), -1)).index_select(0, self.get_buffer("members"))
        parts = own.split([group.count for group in self.groups])
        made = [group(part, first, grid) for group, part in zip(self.groups, parts, strict=True)]
        return torch.cat(made).index_select(0, self.order).flatten(0, 1)


class _Stem(nn.Module):
    """The embedding of a network, as a module."""

    def __init__(self, network: VisionTransformer) -> None:
        super().__init__()
        self.network = copy.copy(network)
        self.network._modules = {"patch_embed": network.patch_embed}

    def forward(self, images: Tensor) -> Tensor:
        return self.network.embed(images)


class Bank(nn.Module):
    """Networks of one wiring, computed together.

    Args:
        networks: They differ by weights and by the operations on their edges.
        genotypes: What each was built after.

    Raises:
        ValueError: If their wirings differ.
    """

    def __init__(self, networks: Sequence[VisionTransformer], space: SearchSpace, numbers: Sequence[int]) -> None:
        super().__init__()
        genotypes = [space[number] for number in numbers]
        wirings = {tuple(edge for edge, _ in genotype.edges) for genotype in genotypes}
        if len(wirings) != 1:
            raise ValueError(f"{len(wirings)} wirings in one bank: networks of a bank have the same edges")
        (self.wiring,) = wirings
        self.count, first = len(networks), networks[0]
        self.exempt = first.no_weight_decay()
        self.grid_of = first.grid_of
        self.stem = Together([_Stem(network) for network in networks])
        self.head = Together([nn.Sequential(network.norm, network.head) for network in networks])
        self.layers = nn.ModuleList()
        for depth in range(len(first.layers)):
            edges: dict[Edge, nn.Module] = {}
            for place, edge in enumerate(self.wiring):
                modules = [network.layers[depth].get_submodule(f"edges.{edge_name(edge)}") for network in networks]
                kinds = [str([operation for _, operation in genotype.edges][place]) for genotype in genotypes]
                edges[edge] = BankedEdge(modules, kinds)
            self.layers.append(Cell(edges, space.inputs))

    @sdpa_kernel(SDPBackend.MATH)  # at some tens of tokens; the others are not all there for many networks at once
    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b g classes"]:
        """Return the logits of every network for the same images."""
        x_prev = x = self.stem(images, shared=True).flatten(0, 1)
        for number, layer in enumerate(self.layers, 1):
            how: dict[str, Any] = {"first": 1} if number == len(self.layers) else {}
            if layer.needs_grid:
                how["grid"] = self.grid_of(images)
            x_prev, x = x, layer(x_prev, x, **how)
        return self.head(x[:, 0].unflatten(0, (self.count, -1))).transpose(0, 1)

    def weight_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the weights for an optimiser: those decay that decay in one network, matrices."""
        groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for part in self.modules():
            for name, weight in zip(part.names, part.weights, strict=True) if isinstance(part, Together) else ():
                groups[weight.ndim > 2 and name.rpartition(".")[2] not in self.exempt].append(weight)
        kept, decayed = groups
        return [{"params": kept, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]


def losses(
    logits: Float[Tensor, "b g classes"], labels: Int[Tensor, " b"], smoothing: float = 0.0
) -> Float[Tensor, " g"]:
    """Return the mean cross-entropy of each network, with so much of the target spread over all classes."""
    every = labels[:, None].expand(logits.shape[:2])
    each = F.cross_entropy(logits.transpose(1, 2), every, reduction="none", label_smoothing=smoothing)
    return each.mean(dim=0)


def alike(operations: int) -> Iterator[list[tuple[int, int, int, int]]]:
    """Yield banks of choices for four edges that hold every choice once, each operation on each edge equally often.

    They are the cosets of a linear code over the integers modulo the number of operations: choices
    ``(a, b, a + b + c, a + 2b + d)`` for all a and b are a bank, one for each c and d.

    Raises:
        ValueError: If the number of operations is no prime above 2.
    """
    if operations < 3 or any(operations % k == 0 for k in range(2, operations)):
        raise ValueError(f"{operations} operations: banks alike need a prime number of them above 2")
    p = range(operations)
    for c, d in itertools.product(p, p):
        yield [(a, b, (a + b + c) % operations, (a + 2 * b + d) % operations) for a, b in itertools.product(p, p)]


def names_by_bank(space: SearchSpace) -> list[int]:
    """Return the numbers of all architectures, those of one wiring together.

    Where four edges carry a prime number of operations, each square of that number in a row is one of :func:`alike`.
    """
    wirings: dict[tuple[Edge, ...], list[Genotype]] = {}
    for genotype in space:
        wirings.setdefault(tuple(edge for edge, _ in genotype.edges), []).append(genotype)
    operations = space.operations[1:]
    try:
        banks = list(alike(len(operations)))
    except ValueError:
        banks = []
    ordered: list[int] = []
    for wiring, members in wirings.items():
        if not banks or len(wiring) != 4:
            ordered += map(space.number, members)
            continue
        by_choice = {tuple(operations.index(op) for _, op in genotype.edges): genotype for genotype in members}
        ordered += [space.number(by_choice[choice]) for bank in banks for choice in bank]
    return ordered
