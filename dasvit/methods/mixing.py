"""How α becomes mixing weights p: what an encoder is derived from, and what one step of training mixes by (chapter 12).

What a step draws depends on the seed, the stage and the number of the step alone: a search that was stopped goes on to
the bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Dirichlet

from ..engine.seeds import derive
from .settings import RelaxationSettings


class Moment(NamedTuple):
    """When a step is taken.

    Args:
        seed: Of the search.
        stage: Its number, from 0.
        step: Its number in the stage, from 0.
        steps: Of the stage.
        use: What the batch is for: ``"alpha"`` or ``"weights"``.
    """

    seed: int
    stage: int
    step: int
    steps: int
    use: str

    @property
    def progress(self) -> float:
        """How much of the stage is over: 0 in its first step, 1 in its last one."""
        return min(1.0, self.step / max(1, self.steps - 1))

    def derive(self, what: str) -> int:
        """Return a seed for what is drawn in this step."""
        return derive(self.seed, f"{what} {self.use}", self.stage, self.step)


def edge_weights(logits: Float[Tensor, " edges"], targets: tuple[int, ...]) -> Float[Tensor, " edges"]:
    """Return the softmax over the edges that enter one node, for each node (PC-DARTS)."""
    each = logits.unbind()
    found: dict[int, Tensor] = {}
    for target in set(targets):
        own = [i for i, other in enumerate(targets) if other == target]
        found |= dict(zip(own, torch.stack([each[i] for i in own]).softmax(dim=0).unbind(), strict=True))
    return torch.stack([found[i] for i in range(len(targets))])


def concentration(alpha: Tensor) -> Tensor:
    """Return the concentrations of a Dirichlet distribution, ``elu(α) + 1`` (DrNAS)."""
    return F.elu(alpha) + 1


def expected_weights(
    alpha: Float[Tensor, "edges columns"], settings: RelaxationSettings, targets: tuple[int, ...]
) -> Float[Tensor, "edges operations"]:
    """Return the mixing weights that α stands for, in float32 at least; of those that are drawn, the mean.

    Args:
        alpha: Architecture parameters; with partial channels the last column is that of the edges.
        settings: The relaxation.
        targets: The node that each edge enters.
    """
    dtype = torch.promote_types(alpha.dtype, torch.float32)
    own = alpha[:, :-1] if settings.partial > 1 else alpha
    if settings.mix == "sigmoid":
        p = own.to(dtype).sigmoid()
    elif settings.mix == "dirichlet":
        c = concentration(own.to(dtype))
        p = c / c.sum(dim=-1, keepdim=True)
    elif settings.mix == "uniform":
        p = torch.full_like(own, 1 / own.shape[1], dtype=dtype)
    else:
        p = own.softmax(dim=-1, dtype=dtype)
    return _by_edge(p, alpha, settings, targets)


def step_weights(
    alpha: Float[Tensor, "edges columns"],
    settings: RelaxationSettings,
    targets: tuple[int, ...],
    skips: Bool[Tensor, "edges operations"],
    moment: Moment,
) -> Float[Tensor, "edges operations"]:
    """Return the mixing weights of one step, in float32 at least.

    Args:
        alpha: Architecture parameters; with partial channels the last column is that of the edges.
        settings: The relaxation; not ``uniform``, whose paths are drawn by
            :func:`~dasvit.methods.inherited.random_path`.
        targets: The node that each edge enters.
        skips: Where the candidates are identities.
        moment: When the step is taken.
    """
    if settings.mix == "dirichlet":
        own = alpha[:, :-1] if settings.partial > 1 else alpha
        p = _by_edge(_sample(own, moment), alpha, settings, targets)
    else:
        p = expected_weights(alpha, settings, targets)
    if rate := settings.dropout(moment.stage) * (1 - moment.progress):
        generator = torch.Generator().manual_seed(moment.derive("dropout"))
        kept = (torch.rand(skips.shape, generator=generator) >= rate).to(p.device)
        p = torch.where(skips, p * kept / (1 - rate), p)
    if bonus := settings.skip_bonus * (1 - moment.progress):
        p = p + bonus * skips
    return p


def _by_edge(p: Tensor, alpha: Tensor, settings: RelaxationSettings, targets: tuple[int, ...]) -> Tensor:
    """Return the weights of operations times those of edges, if there are any."""
    return p * edge_weights(alpha[:, -1].to(p.dtype), targets).unsqueeze(1) if settings.partial > 1 else p


def _sample(alpha: Tensor, moment: Moment) -> Tensor:
    """Draw from the Dirichlet distribution of each edge, with gradients: on the CPU, so that all devices draw alike."""
    c = concentration(alpha.to(torch.promote_types(alpha.dtype, torch.float32))).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(moment.derive("dirichlet"))
        return Dirichlet(c, validate_args=False).rsample().to(alpha.device)
