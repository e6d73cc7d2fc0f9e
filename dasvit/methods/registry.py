"""The table of methods: each is what it makes of the settings of a search (chapter 12).

What a paper gives is written in its row. What it does not give, or gives for networks of another kind, such as learning
rates (ledger A22), stays as it is in the settings: nothing is tuned for one method alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..search_settings import SearchSettings


@dataclass(frozen=True)
class Method:
    """A way to search: called with the settings of a search, it returns its own.

    Args:
        cites: Its paper, as the bibliography names it.
        idea: What it does, in a sentence.
        change: From the settings of a search to those of this method; to apply it twice is to apply it once.
    """

    cites: str
    idea: str
    change: Callable[[SearchSettings], SearchSettings]

    def __call__(self, settings: SearchSettings) -> SearchSettings:
        """Return the settings of this method."""
        return self.change(settings)


def plain(settings: SearchSettings, **more: Any) -> SearchSettings:
    """Return the settings of DARTS: one stage at the last depth, every operation, every token, no regularisation."""
    return replace(one_stage(without_fairness(settings)), keep_ratio=1.0, **more)


def one_stage(settings: SearchSettings) -> SearchSettings:
    """Return settings with one stage at the last depth, with every operation, for as many epochs."""
    epochs = sum(epochs for *_, epochs in settings.stages)
    return replace(settings, stages=((settings.stages[-1][0], len(settings.space.operations), epochs),))


def without_fairness(settings: SearchSettings) -> SearchSettings:
    """Return settings without the fairness term."""
    return replace(settings, fairness=replace(settings.fairness, skip_weight=0.0, type_weight=0.0))


def _darts(
    relaxation: Mapping[str, Any] | None = None, schedule: Mapping[str, Any] | None = None, **more: Any
) -> Callable[[SearchSettings], SearchSettings]:
    """Return the change to DARTS with these settings of its relaxation and schedule; others stay as they are given."""

    def change(settings: SearchSettings) -> SearchSettings:
        own = {"relaxation": replace(settings.relaxation, **(relaxation or {}))}
        return plain(settings, **own, schedule=replace(settings.schedule, **(schedule or {})), **more)

    return change


def _pdarts(settings: SearchSettings) -> SearchSettings:
    """Stages as they are; dropout of identities 0, 0.4, 0.7, weights alone for 10 of 25 epochs, two identities."""
    relaxation = replace(settings.relaxation, skip_dropout=(0.0, 0.4, 0.7))
    schedule = replace(settings.schedule, alpha_warmup=0.4, max_skips=2)
    return without_fairness(replace(settings, keep_ratio=1.0, relaxation=relaxation, schedule=schedule))


METHODS: dict[str, Method] = {
    "dasvit": Method(
        "wu2025dasvit",
        "stages of growing depth and shrinking choice, on the tokens that receive attention, with a fairness term",
        replace,
    ),
    "dasvit-all-tokens": Method(
        "wu2025dasvit", "DASViT on every token", lambda settings: replace(settings, keep_ratio=1.0)
    ),
    "dasvit-unfair": Method("wu2025dasvit", "DASViT without the fairness term", without_fairness),
    "dasvit-one-stage": Method("wu2025dasvit", "DASViT in one stage at the last depth", one_stage),
    "darts": Method(
        "liu2019darts", "softmax of α on one supernet; the gradient of α takes the weights as they are", _darts()
    ),
    "darts-2": Method("liu2019darts", "DARTS with the gradient through one step of the weights", _darts(order=2)),
    "darts+": Method(
        "liang2019dartsplus",
        "DARTS that stops when the encoder has two identities",
        _darts(schedule={"stop_skips": 2}),
    ),
    "darts-minus": Method(
        "chu2021dartsminus",
        "DARTS with an auxiliary skip of weight 1, decaying linearly to 0, beside each identity",
        _darts({"skip_bonus": 1.0}),
    ),
    "p-darts": Method(
        "chen2019pdarts", "stages as in DASViT, identities dropped at random, two of them at most", _pdarts
    ),
    # a quarter of the channels in the paper; here half of them, for heads of attention have to divide them
    "pc-darts": Method(
        "xu2020pcdarts",
        "operations on half of the channels, weights of edges; weights alone for 15 of 50 epochs",
        _darts({"partial": 2}, {"alpha_warmup": 0.3}),
    ),
    "fair-darts": Method(
        "chu2020fairdarts",
        "a sigmoid for each operation, pulled to zero or one by a loss of weight 10",
        _darts({"mix": "sigmoid", "zero_one": 10.0}),
    ),
    "beta-darts": Method(
        "ye2022betadarts",
        "DARTS with a penalty on logsumexp(α) whose weight grows linearly from 0 to 50",
        _darts({"beta": 50.0}),
    ),
    "drnas": Method(
        "chen2021drnas",
        "weights drawn from Dirichlet distributions whose concentrations are learned and anchored at 1 by 1e-3",
        _darts({"mix": "dirichlet", "anchor": 1e-3}, alpha_weight_decay=0.0),
    ),
    "tangle": Method(
        "sukthanker2024tangle",
        "DARTS with one set of weights for all candidates of a kind",
        _darts({"entangled": True}),
    ),
    "one-shot": Method(
        "guo2020spos",
        "one random path of the supernet a step; then evolution over its validation accuracy",
        _darts({"mix": "uniform"}),
    ),
}
"""Every method of ``dasvit search --method`` by its name.

:meta hide-value:
"""
