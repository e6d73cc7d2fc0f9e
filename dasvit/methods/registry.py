"""The table of methods: each is what it makes of the settings of a search (chapter 12).

What a paper gives is written in its row, and its ``values`` say where that was read: in the paper, or in the program
that its authors published (whose name on GitHub is given). What a paper does not give, or gives for networks of another
kind, such as learning rates (ledger A22), stays as it is in the settings: nothing is tuned for one method alone.
"""

from __future__ import annotations

import math
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
        values: Where the values of its row were read, and what is otherwise here.
    """

    cites: str
    idea: str
    change: Callable[[SearchSettings], SearchSettings]
    values: str

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


def _pcdarts(settings: SearchSettings) -> SearchSettings:
    """A quarter of the channels where the heads of attention divide it, otherwise a half."""
    parts = 4 if settings.dim % (4 * math.lcm(*settings.space.heads)) == 0 else 2
    return _darts({"partial": parts}, {"alpha_warmup": 0.3})(settings)


def _pdarts(settings: SearchSettings) -> SearchSettings:
    """Stages as they are; dropout of identities 0, 0.4, 0.7, weights alone for 10 of 25 epochs, two identities."""
    relaxation = replace(settings.relaxation, skip_dropout=(0.0, 0.4, 0.7))
    schedule = replace(settings.schedule, alpha_warmup=0.4, max_skips=2)
    return without_fairness(replace(settings, keep_ratio=1.0, relaxation=relaxation, schedule=schedule))


_PAPER = "Algorithm 1 of the paper as the ledger completes it"

METHODS: dict[str, Method] = {
    "dasvit": Method(
        "wu2025dasvit",
        "stages of growing depth and shrinking choice, on the tokens that receive attention, with a fairness term",
        replace,
        _PAPER,
    ),
    "dasvit-all-tokens": Method(
        "wu2025dasvit", "DASViT on every token", lambda settings: replace(settings, keep_ratio=1.0), _PAPER
    ),
    "dasvit-unfair": Method("wu2025dasvit", "DASViT without the fairness term", without_fairness, _PAPER),
    "dasvit-one-stage": Method("wu2025dasvit", "DASViT in one stage at the last depth", one_stage, _PAPER),
    "darts": Method(
        "liu2019darts",
        "softmax of α on one supernet; the gradient of α takes the weights as they are",
        _darts(),
        "program quark0/darts: Adam on α with betas 0.5 and 0.999 and weight decay 1e-3, as in the settings",
    ),
    "darts-2": Method(
        "liu2019darts",
        "DARTS with the gradient through one step of the weights",
        _darts(order=2),
        "as darts; the step has the learning rate of the weights. The program adds their momentum, this one does not",
    ),
    "darts+": Method(
        "liang2019dartsplus",
        "DARTS that stops when the encoder has two identities",
        _darts(schedule={"stop_skips": 2}),
        "the first criterion of the paper (two identities in the normal cell), read in notes on it, as neither its "
        "whole text nor a program was at hand; its second one, a ranking that has settled, is not here",
    ),
    "darts-minus": Method(
        "chu2021dartsminus",
        "DARTS with an auxiliary skip of weight 1, decaying linearly to 0, beside each identity",
        _darts({"skip_bonus": 1.0}),
        "program Meituan-AutoML/DARTS-: weight 1, linear decay over the 50 epochs, beside every edge; here by step",
    ),
    "p-darts": Method(
        "chen2019pdarts",
        "stages as in DASViT, identities dropped at random, two of them at most",
        _pdarts,
        "program chenxin061/pdarts and notes on the paper: 8, 5 and 3 candidates, 25 epochs a stage, α from the 11th "
        "on, two identities at most, dropout 0, 0.4, 0.7 on CIFAR-10 (0.1 first in the program's example). The "
        "program drops elements and lets the rate fall linearly to the 10th epoch, then from the start again by "
        "exp(−0.2) an epoch; here whole identities are dropped, and the rate falls linearly all the time",
    ),
    "pc-darts": Method(
        "xu2020pcdarts",
        "operations on a quarter of the channels, or half of them, weights of edges; weights alone for 15 of 50 epochs",
        _pcdarts,
        "program yuhuixu1993/PC-DARTS: a quarter of the channels and 15 of 50 epochs on CIFAR-10",
    ),
    "fair-darts": Method(
        "chu2020fairdarts",
        "a sigmoid for each operation, pulled to zero or one by a loss of weight 10",
        _darts({"mix": "sigmoid", "zero_one": 10.0}),
        "program xiaomi-automl/FairDARTS: weight 10, mean square, α from zero. It derives what is above 0.85, at most "
        "two a node, and may leave a node empty; here the best two, as in DARTS",
    ),
    "beta-darts": Method(
        "ye2022betadarts",
        "DARTS with a penalty on logsumexp(α) whose weight grows linearly from 0 to 50",
        _darts({"beta": 50.0}),
        "program Sunshine-Ye/Beta-DARTS: 50 times epoch by 100 epochs, mean over the edges; here by step",
    ),
    "drnas": Method(
        "chen2021drnas",
        "weights drawn from Dirichlet distributions whose concentrations are learned and anchored at 1",
        _darts({"mix": "dirichlet", "anchor": 5e-4}, alpha_weight_decay=0.0),
        "program xiangning-chen/DrNAS, as it runs on NAS-Bench-201 in one stage on all channels: its weight decay "
        "1e-3 of α is the gradient of 5e-4 times the squared distance, where α ≥ 0. On the space of DARTS it has two "
        "stages of 25 epochs, α from the 11th on, of 1/6 and 1/4 of the channels and all and 4 candidates",
    ),
    "tangle": Method(
        "sukthanker2024tangle",
        "DARTS with one set of weights for all candidates of a kind",
        _darts({"entangled": True}),
        "no value beside those of darts",
    ),
    "one-shot": Method(
        "guo2020spos",
        "one random path of the supernet a step; then evolution over its validation accuracy",
        _darts({"mix": "uniform"}),
        "defaults of open-mmlab/mmrazor's version: 20 rounds of 50 encoders, thus 1,000, from the best ten, half by "
        "mutation and half by crossover; here regularised evolution, with mutation alone",
    ),
}
"""Every method of ``dasvit search --method`` by its name.

:meta hide-value:
"""
