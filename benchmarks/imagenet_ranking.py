"""Do scores without training rank AutoFormer's networks as ImageNet does, and is it more than size?

    python benchmarks/imagenet_ranking.py PATH/autoformer-imagenet.jsonl

Reads the scores that ``imagenet_scores.py`` has recorded and the file of accuracies that ``truth.py`` describes, and
records what both come to: correlations with and without size, what a search by a score returns, and how far the
accuracies can be believed. Of single networks no accuracy is recorded but the extremes and what a search returns.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from measure import begin, one_line, write
from scipy import stats
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from truth import Trained, macs, read
from tyro.conf import Positional

from dasvit.training_free import statistics as st
from dasvit.training_free.space import PUBLISHED, SPACES, AutoFormerSpace

IMAGES = 50_000  # of ImageNet's validation set
FEW = 30  # fewer scored networks are not judged
SIZES = ("params", "macs", "width", "depth")
AZ = ("expressivity", "progressivity", "trainability")
SCORES = "book/results/imagenet_scores.json"
Columns = dict[str, list[np.ndarray]]  # of each score one list of numbers a seed of the weights


@dataclass(frozen=True)
class Rank:
    """Hold scores against accuracies."""

    networks_file: Positional[Path]
    """The file of networks and accuracies."""
    scores: Path = Path(SCORES)
    """The recorded scores."""
    resamples: int = 1000
    """Of the bootstrap over networks."""
    out: Path = Path("book/results/imagenet_ranking.json")
    """Where the JSON file goes."""


def sizes_of(networks: Sequence[Trained]) -> dict[str, np.ndarray]:
    """Return what is known of networks without any score."""
    told = [(n.parameters, macs(n.space, n.number), n.dim, n.depth) for n in networks]
    return dict(zip(SIZES, np.array(told, dtype=float).T, strict=True))


def cells_of(networks: Sequence[Trained]) -> np.ndarray:
    """Return to which width and depth networks belong, as a number each."""
    return np.array([100 * n.dim + n.depth for n in networks])


def layers_of(networks: Sequence[Trained]) -> np.ndarray:
    """Return heads and MLP ratio of each layer, and the cell, one column a choice: what a linear model can know."""
    space = SPACES[networks[0].space]
    assert isinstance(space, AutoFormerSpace)
    rows = []
    for network in networks:
        c = space[network.number]
        layers = [(h, r) for h, r in zip(c.num_heads, c.mlp_ratios, strict=True)]
        layers += [(0, 0.0)] * (max(space.depths) - len(layers))
        heads = [h == some for h, _ in layers for some in space.num_heads]
        rows.append(heads + [r == some for _, r in layers for some in space.mlp_ratios])
    cells = cells_of(networks)
    return np.hstack([np.array(rows, dtype=float), cells[:, None] == np.unique(cells)])


def predicted(features: np.ndarray, y: np.ndarray, ridge: bool = False) -> np.ndarray:
    """Return what a linear model says of each network that was fitted without its tenth of the networks."""
    model = RidgeCV(np.logspace(-2, 3, 11)) if ridge else LinearRegression()
    folds = KFold(10, shuffle=True, random_state=0)
    return cross_val_predict(make_pipeline(StandardScaler(), model), features, y, cv=folds)


def gain(base: np.ndarray, x: np.ndarray, y: np.ndarray, resamples: int) -> dict[str, float]:
    """Return what the ranks of a score add to a linear fit: cross-validated R² gained, and the likelihood-ratio p."""
    more = np.column_stack([base, stats.rankdata(x)])
    errors = [(y - predicted(features, y)) ** 2 / y.var() for features in (base, more)]
    difference = errors[0] - errors[1]
    how: dict[str, Any] = {"n_resamples": resamples, "method": "percentile", "random_state": np.random.default_rng(0)}
    interval = stats.bootstrap((difference,), np.mean, **how).confidence_interval
    rests = []
    for features in (base, more):
        centred = np.column_stack([np.ones(len(y)), StandardScaler().fit_transform(features)])
        solution = np.linalg.lstsq(centred, y, rcond=None)[0]
        rests.append(float(np.sum((y - centred @ solution) ** 2)))
    p = float(stats.chi2.sf(len(y) * math.log(rests[0] / rests[1]), df=1))
    return {"value": float(difference.mean()), "low": float(interval.low), "high": float(interval.high), "p": p}


def judged(by_seed: Sequence[np.ndarray], y: np.ndarray, networks: Sequence[Trained], resamples: int) -> dict[str, Any]:
    """Return all that is asked of a score: of the mean over the seeds with all networks, and of each seed its τ."""
    whole, fewest = [one for one in by_seed if len(one) == len(y)], min(map(len, by_seed))
    x, sizes, cells = np.mean(whole, axis=0), sizes_of(networks), cells_of(networks)
    some = {"resamples": resamples}
    size = np.column_stack(list(sizes.values()))
    best, worst = st.ranks_of_top(x, y)
    partial = st.partial_spearman(x, y, sizes["params"], **some)
    return {
        "networks": len(y),
        "kendall": asdict(st.kendall(x, y, **some)),
        "spearman": asdict(st.spearman(x, y, **some)),
        "given_params": asdict(partial),
        "p_given_params": p_of_partial(partial),
        "within_cells": asdict(st.within_kendall(x, y, cells, resamples=resamples // 4)),
        "with_params": float(stats.kendalltau(x, sizes["params"]).statistic),
        "precision_at_5_percent": st.precision_at_top(x, y),
        "ranks_of_top_10": [best, worst],
        "adds_to_size": gain(size, x, y, resamples),
        "adds_to_cells": gain(np.column_stack([size, cells[:, None] == np.unique(cells)]), x, y, resamples),
        "kendall_by_seed": [float(stats.kendalltau(one[:fewest], y[:fewest]).statistic) for one in by_seed],
        "networks_by_seed": fewest,
    }


def p_of_partial(c: st.Correlation) -> float:
    """Return the p value of no partial correlation: t with n − 3 degrees of freedom, nearly."""
    t = c.value * math.sqrt((c.count - 3) / max(1e-12, 1 - c.value**2))
    return float(2 * stats.t.sf(abs(t), c.count - 3))


def known(networks: Sequence[Trained], y: np.ndarray) -> np.ndarray:
    """Return what a linear model of heads, ratios, width and depth says of networks that it has not seen."""
    return predicted(layers_of(networks), y, ridge=True)


def noise(networks: Sequence[Trained], y: np.ndarray) -> dict[str, float]:
    """Return how far the accuracies can be believed.

    ``binomial`` is the standard error of one accuracy, ``independent`` the share of the variance that would be left if
    all had errors of their own of that size. They have not: all networks saw the same images with weights from the same
    training. ``explained`` is the share that a linear model of the layers predicts without having seen the network, so
    that it cannot be noise; a score that knew as much would reach ``tau`` and ``rho``. Two networks may disagree on
    ``disagreement`` of the images at most, or else chance alone would spread their accuracies further.
    """
    told = known(networks, y)
    share = y.mean() / 100
    error = 100 * math.sqrt(share * (1 - share) / IMAGES)
    return {
        "binomial": error,
        "independent": 1 - error**2 / y.var(),
        "explained": 1 - float(np.mean((y - told) ** 2) / y.var()),
        "tau": float(stats.kendalltau(told, y).statistic),
        "rho": float(stats.spearmanr(told, y).statistic),
        "disagreement": 2 * IMAGES * y.var() / 100**2,
    }


def curves(columns: Columns, y: np.ndarray, params: np.ndarray, known: np.ndarray) -> dict[str, Any]:
    """Return the mean top-1 that a search returns by how many networks it has scored.

    Args:
        columns: The readings of DSS.
        y: Accuracies.
        params: Numbers of parameters.
        known: What a linear model of the layers predicts: the ceiling.
    """
    counts = [n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500) if n < len(y)] + [len(y)]
    ways = {"perfect": (y, False), "ceiling": (known, False), "largest": (params, False)}
    if "dss" in columns:
        ways |= {"dss": (columns["dss"][0], False), "dss within the smaller half": (columns["dss"][0], False)}
        ways |= {"dss-released, with repeats": (columns["dss-released"][0], True)}
    told = {}
    for name, (x, repeats) in ways.items():
        inside = params <= np.median(params) if "half" in name else np.ones(len(y), dtype=bool)
        fitting = [n for n in counts if n <= inside.sum()]
        told[name] = [st.expected_best(x[inside], y[inside], n, repeats=repeats) for n in fitting]
    return {"counts": counts, "top1": told, "random": float(y.mean()), "networks": len(y)}


def columns_of(scores: Mapping[str, Any], space: str) -> Columns:
    """Return the scores of a space by name, one list a seed, the longest first, in the order of scoring."""
    columns: Columns = {}
    for name, by_seed in scores.items():
        told = [some[space] for some in by_seed.values() if space in some]
        told = [one for one in told if len(one["total"]) >= FEW and None not in one["total"]]
        if not told:
            continue
        parts = [{part: np.array(values) for part, values in one.items()} for one in told]
        parts.sort(key=lambda one: -len(one["total"]))
        columns[name] = [one["total"] for one in parts]
        if name == "dss":
            columns["dss, no gradient of QKV"] = [p["projection"] + p["mlp"] for p in parts]
            columns["dss, diversity"], columns["dss, saliency"] = ([p[k] for p in parts] for k in ("msa", "mlp"))
        if name == "az-nas":
            columns |= {f"az-nas, {part}": [p[part] for p in parts] for part in AZ}
    return columns


def combine(columns: Columns, networks: Sequence[Trained]) -> None:
    """Rank by AZ-NAS as published, among the networks of a space: ranks of its scores and of complexity."""
    if "az-nas" not in columns:
        return
    cost_of_all = sizes_of(networks)["macs"]
    by_seed = [
        (*parts, cost_of_all[: len(parts[0])]) for parts in zip(*(columns[f"az-nas, {k}"] for k in AZ), strict=True)
    ]
    columns["az-nas"] = [st.sum_of_log_ranks(parts) for parts in by_seed]
    columns["az-nas, no progressivity"] = [st.sum_of_log_ranks([e, t, cost]) for e, _, t, cost in by_seed]


def readings(columns: Columns, y: np.ndarray) -> dict[str, Any]:
    """Return how the readings of DSS rank against each other and against the accuracies: τ and ρ."""
    names = [n for n in ("dss", "dss, no gradient of QKV", "dss-released") if n in columns]
    count = min((len(columns[n][0]) for n in names), default=0)
    if count < FEW:
        return {}
    lists = {name: columns[name][0][:count] for name in names} | {"top-1": y[:count]}
    pairs = [(a, b) for i, a in enumerate(lists) for b in list(lists)[i + 1 :]]
    told = {}
    for a, b in pairs:
        both = lists[a], lists[b]
        told[f"{a} | {b}"] = [float(f(*both).statistic) for f in (stats.kendalltau, stats.spearmanr)]
    return {"networks": count, "kendall_spearman": told}


def published_in(networks: Sequence[Trained], y: np.ndarray, columns: Columns) -> dict[str, Any] | None:
    """Return where TF-TAS's own network of a space stands, if the file has it."""
    space = SPACES[networks[0].space]
    assert isinstance(space, AutoFormerSpace)
    number = space.number(PUBLISHED[networks[0].space])
    at = next((i for i, n in enumerate(networks) if n.number == number), None)
    if at is None:
        return None
    ranks = {"top-1": (y, len(y))} | {k: (c[0], len(c[0])) for k, c in columns.items() if k.startswith("dss")}
    told = {k: [int((x > x[at]).sum()) + 1, count] for k, (x, count) in ranks.items() if at < count}
    return {"number": number, "ranks": told}


def space_told(networks: Sequence[Trained], scores: Mapping[str, Any], resamples: int) -> dict[str, Any]:
    """Return all that is recorded of one space; networks come in the order of scoring."""
    y, sizes = np.array([n.top1 for n in networks]), sizes_of(networks)
    columns = columns_of(scores, networks[0].space)
    combine(columns, networks)
    rows = {name: [x] for name, x in sizes.items()}
    rows["linear fit of the four"] = [predicted(np.column_stack(list(sizes.values())), y)]
    rows |= columns
    told = {k: judged(c, y[: len(c[0])], networks[: len(c[0])], resamples) for k, c in rows.items()}
    scored = len(columns["dss"][0]) if "dss" in columns else len(y)
    if "dss-released" in columns:
        scored = min(scored, len(columns["dss-released"][0]))
    cut = {name: [x[:scored] for x in columns[name]] for name in ("dss", "dss-released") if name in columns}
    return {
        "networks": len(y),
        "top1": {"mean": y.mean(), "sd": y.std(ddof=1), "low": y.min(), "high": y.max()},
        "noise": noise(networks, y),
        "scores": told,
        "search": curves(cut, *(values[:scored] for values in (y, sizes["params"], known(networks, y)))),
        "readings": readings(columns, y),
        "published": published_in(networks, y, columns),
    }


def correct(spaces: Mapping[str, Any]) -> None:
    """Note p values that are corrected by Holm's rule for all scores of all spaces, sizes left out."""
    cells = [(space, name) for space, told in spaces.items() for name in told["scores"] if name not in SIZES]
    cells = [cell for cell in cells if cell[1] != "linear fit of the four"]
    for question in ("adds_to_size", "adds_to_cells"):
        ps = st.holm({(s, n): spaces[s]["scores"][n][question]["p"] for s, n in cells})
        for (space, name), p in ps.items():
            spaces[space]["scores"][name][question]["p_holm"] = p
    ps = st.holm({(s, n): spaces[s]["scores"][n]["p_given_params"] for s, n in cells})
    for (space, name), p in ps.items():
        spaces[space]["scores"][name]["p_given_params_holm"] = p


def main(args: Rank) -> None:
    """Judge the recorded scores and write what comes of it."""
    start = begin(args.out)
    with one_line():
        networks = {(n.space, n.number): n for n in read(args.networks_file)}
        if not args.scores.exists():
            raise ValueError(f"{args.scores} is not there: run benchmarks/imagenet_scores.py first")
        told = json.loads(args.scores.read_text())
        order = {space: [(space, number) for number in some["number"]] for space, some in told["networks"].items()}
        if missing := [place for some in order.values() for place in some if place not in networks]:
            raise ValueError(f"{args.networks_file} lacks {missing[0][0]}:{missing[0][1]}, which {args.scores} has")
    spaces = {}
    for space, places in order.items():
        spaces[space] = space_told([networks[place] for place in places], told["scores"], args.resamples)
    correct(spaces)
    declared = [SCORES] if args.scores == Path(SCORES) else []
    write(args.out, {"seed": 0, "resamples": args.resamples, "spaces": spaces}, start, *declared)


if __name__ == "__main__":
    main(tyro.cli(Rank, args=sys.argv[1:]))
