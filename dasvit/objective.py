"""A search that heads for a cost: the term in the upper-level loss, and the choice at the end (own objective)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from .choosing import likeliest, reach
from .costs import UNITS, Shape, expected_cost, operation_cost, price_list, trunk_cost
from .data.images import ImageSet
from .relaxation import Candidates, Supernet
from .search_settings import SearchSettings
from .space import Genotype, Operation
from .vit import count_patches

TOLERANCE = 0.1
"""How far from the target an encoder may be, as a share of it."""


class Heading:
    """What a search heads for beside a low loss: encoders that attend, a cost.

    Args:
        settings: Of the search.
        images: Of the search, for their channels and classes.

    Raises:
        ValueError: If no encoder of the space costs what is wanted; the message says what they cost.
    """

    def __init__(self, settings: SearchSettings, images: ImageSet) -> None:
        self.settings, self.target = settings, settings.target
        self.shape = Shape(
            tokens=1 + count_patches(settings.image_size, settings.patch_size),
            dim=settings.dim,
            depth=settings.stages[-1][0],
            patch_pixels=images.channels * settings.patch_size**2,
            classes=len(images.classes),
        )
        self._prices: dict[Candidates, Tensor] = {}
        if self.target.unit is not None:
            self.trunk = trunk_cost(self.target.unit, self.shape, self.target.latency_table)
            self._check(self.target.value)

    def _check(self, target: float) -> None:
        assert self.target.unit is not None
        space = self.settings.space
        candidates: Candidates = (space.operations,) * len(space.edges)
        least, most = (self.trunk + self.shape.depth * cost for cost in reach(candidates, space, self.price))
        if not least <= target * (1 + TOLERANCE) or not target * (1 - TOLERANCE) <= most:
            raise ValueError(
                f"target of {target:.4g} {UNITS[self.target.unit]}: networks of this space, width and depth have "
                f"{least:.4g} to {most:.4g}: take one of these, or change --dim, --image-size or --stages"
            )

    def price(self, operation: Operation, target: int) -> float:
        """Return what an operation on an edge into node ``target`` costs in one layer, in the unit of the target."""
        assert self.target.unit is not None
        last = target == self.settings.space.edges[-1][1]
        return operation_cost(operation, self.target.unit, self.shape, self.target.latency_table, last=last)

    def cost(self, genotype: Genotype) -> float:
        """Return what the network of an encoder costs, in the unit of the target."""
        return self.trunk + self.shape.depth * sum(self.price(op, target) for (_, target), op in genotype.edges)

    def term(self, weights: Float[Tensor, "edges operations"], candidates: Candidates) -> Tensor | None:
        """Return the term of the upper-level loss, ``w·ln²(expected cost / target)``, if there is a target."""
        if (unit := self.target.unit) is None:
            return None
        if candidates not in self._prices:
            prices = price_list(candidates, self.settings.space, unit, self.shape, self.target.latency_table)
            self._prices[candidates] = prices.to(weights)
        layer = expected_cost(weights, self._prices[candidates], self.settings.space)
        expected = self.trunk + self.shape.depth * layer
        return self.target.cost_weight * (expected / self.target.value).log().square()

    def genotype(self, supernet: Supernet) -> Genotype:
        """Return the architecture that α stands for now: with conditions, the likeliest that meets them."""
        target, attends = self.target, self.settings.attends
        if target.unit is None and not attends:
            return supernet.genotype()
        weights, space = supernet.mixing_weights().detach().cpu(), self.settings.space
        if target.unit is None:
            return likeliest(weights, supernet.candidates, space, attends=attends)
        layer = max(1e-12, (target.value - self.trunk) / self.shape.depth)
        return likeliest(weights, supernet.candidates, space, attends=attends, cost=self.price, target=layer)
