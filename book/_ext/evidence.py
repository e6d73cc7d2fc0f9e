"""The numbers that claims, findings and pages name, each from a recorded result or from the library."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import yaml
from scipy import stats

from dasvit.evidence import compare
from dasvit.landscape import Answer, load
from dasvit.presets import SEARCH
from dasvit.space import Genotype, SearchSpace

ROOT = Path(__file__).resolve().parents[2]
CNNS = ("VGG-16", "VGG-19", "ResNet-50", "ResNet-152", "EfficientNet-B7", "RegNetY-12GF", "RegNetY-16GF")
RUNS = {"digits": "digits_tiny", "cifar": "cifar10_small"}
REPORTS = {"digits": "correlation_digits", "cifar10": "correlation_cifar10"}
NAMES = {"msa": "attentions", "mlp": "MLPs", "skip": "identities"}
SPACES = "TSB"
JUDGED = ("dasvit", "dasvit-all-tokens", "dasvit-unfair", "dasvit-one-stage", "darts")
CARD = 24 * 2**30  # bytes of the card in the paper


class Range(NamedTuple):
    """A value with its 95 % interval, written as in ``+0.3 [-0.3, +0.8]``."""

    value: float
    low: float
    high: float
    form: str = "+.1f"

    def __str__(self) -> str:
        return f"{self.value:{self.form}} [{self.low:{self.form}}, {self.high:{self.form}}]"


Numbers = dict[str, Any]
Recorded = Callable[[str], dict[str, Any]]


def table_rows(root: Path = ROOT) -> dict[str, Any]:
    """Return the rows of Table I as ``claims.yml`` quotes them."""
    return yaml.safe_load((root / "book" / "claims.yml").read_text())["table"]["rows"]


def numbers(root: Path = ROOT) -> Numbers:
    """Return every number that a claim, a finding or a page names; a :class:`Range` where it has an interval."""

    @cache
    def recorded(name: str) -> dict[str, Any]:
        return json.loads((root / "book" / "results" / f"{name}.json").read_text())

    found: Numbers = {"on_gpu": sorted(p.stem for p in (root / "book" / "results" / "gpu").glob("*.json"))}
    for part in (_memory, _planned, _searches, _training_free, _imagenet, _landscape, _regret, _latency, _trials):
        found |= part(recorded)
    operations = Counter(operation.kind for operation in SearchSpace().operations)
    stages = ", ".join(f"{epochs} epochs at {depth} layers" for depth, _, epochs in SEARCH["paper"].stages)
    found |= _costs(recorded, table_rows(root))
    return found | {"attentions": operations["msa"], "mlps": operations["mlp"], "stages": stages}


def _memory(recorded: Recorded) -> Numbers:
    def peak(**wanted: Any) -> float:
        wanted |= {"layers": 6, "batch": 64, "precision": "32-true", "choice": "even"}
        (row,) = (row for row in recorded("memory")["rows"] if wanted.items() <= row.items())
        return max(row["alpha_peak_bytes"], row["weight_peak_bytes"])

    stage = {"way": "ours", "operations": 3, "recompute": True}
    peaks = {
        "plain": peak(way="plain", operations=8, keep_ratio=1.0),
        "ours": peak(way="ours", operations=3, recompute=False, keep_ratio=1.0),
        "all_tokens": peak(**stage, keep_ratio=1.0),
        "half_tokens": peak(**stage, keep_ratio=0.5),
    }
    fits = {"plain_fits": peaks["plain"] <= CARD, "ours_fits": peaks["ours"] <= CARD}
    return {f"{name}_gigabytes": f"{peak / 1e9:.1f}" for name, peak in peaks.items()} | fits


def _planned(recorded: Recorded) -> Numbers:
    """Minutes of an H200 that the steps at the paper's scale are expected to take."""
    rows = recorded("gpu/planned")["rows"]
    return {
        f"{step}_minutes": f"{sum(row['seconds']['H200']['recorded'] for row in rows if row['step'] == step) / 60:.0f}"
        for step in ("search", "darts", "retrain")
    }


def _searches(recorded: Recorded) -> Numbers:
    runs = {name: recorded(file) for name, file in RUNS.items()}
    found = [Genotype.from_json(one["genotype"]) for run in runs.values() for one in run["searches"]]
    kinds = Counter(operation.kind for genotype in found for _, operation in genotype.edges)
    told: Numbers = {
        "skips": kinds["skip"],
        "edges": kinds.total(),
        "searches": len(found),
        "kinds_found": ", ".join(f"{kinds[kind]} {name}" for kind, name in NAMES.items()),
        "without_attention": sum(not genotype.has_attention for genotype in found),
    }
    for name, run in runs.items():
        told[f"{name}_gain"] = points(run, "vit")
        told[f"{name}_random"] = points(run, "random")
    return told


def points(run: Mapping[str, Any], peer: str) -> Range:
    """Return how many points of top-1 the encoders found are above a peer, see :func:`dasvit.evidence.compare`."""
    mean_, half, _ = (100 * value for value in compare(run, peer))
    return Range(mean_, mean_ - half, mean_ + half)


def _costs(recorded: Recorded, rows: Mapping[str, Any]) -> Numbers:
    macs = {name: counts["ours"] / 1e9 for name, counts in recorded("counting_tools")["macs"].items()}
    vit, dasvit = (rows[name]["printed"] for name in ("ViT-B/16", "DASViT"))
    gaps = [rows[name]["printed"][4] - dasvit[4] for name in CNNS]
    return {
        "parameters_saved": f"{100 * (1 - dasvit[6] / vit[6]):.0f}",
        "vit_macs": f"{macs['ViT-B/16']:.1f}",
        "dasvit_macs": f"{macs['DASViT']:.1f}",
        "resnet_macs": f"{macs['ResNet-152']:.1f}",
        "regnet_macs": f"{macs['RegNetY-12GF']:.1f}",
        "macs_saved": f"{100 * (1 - macs['DASViT'] / macs['ViT-B/16']):.0f}",
        "vit_printed": str(vit[7]),
        "dasvit_printed": str(dasvit[7]),
        "resnet_printed": str(rows["ResNet-152"]["printed"][7]),
        "regnet_printed": str(rows["RegNetY-12GF"]["printed"][7]),
        "cnn_gaps": ", ".join(f"{gap:+.1f}" for gap in sorted(gaps)),
    }


def _training_free(recorded: Recorded) -> Numbers:
    seconds = recorded("dss_speed")["results"]["autoformer-t paper"]["cpu_seconds"]["ours"]
    told: Numbers = {"tf_minutes": f"{8000 * seconds / 60:.0f}"}
    for name, file in REPORTS.items():
        scored = recorded(file)["rows"]
        top = [row["top1"] for row in scored]
        tau = {
            score: stats.kendalltau([mean(row["scores_trained"][score]) for row in scored], top).statistic
            for score in ("dss", "params", "te", "naswot")
        }
        told |= {f"dss_{name}": f"{tau['dss']:+.2f}", f"params_{name}": f"{tau['params']:+.2f}"}
        told[f"rivals_{name}"] = ", ".join(f"{tau[score]:+.2f}" for score in ("dss", "te", "naswot"))
    return told


def _imagenet(recorded: Recorded) -> Numbers:
    spaces = [recorded("imagenet_ranking")["spaces"][f"autoformer-{size.lower()}"]["scores"] for size in SPACES]

    def taus(score: str) -> str:
        return ", ".join(f"{scores[score]['kendall']['value']:+.2f}" for scores in spaces)

    counts = sorted({scores["dss"]["kendall"]["count"] for scores in spaces})
    given = [scores["dss"]["given_params"] for scores in spaces]
    gains, cells = ([scores["dss"][f"adds_to_{what}"] for scores in spaces] for what in ("size", "cells"))
    return {
        "imagenet_dss": taus("dss"),
        "imagenet_params": taus("params"),
        "imagenet_diversity": taus("dss, diversity"),
        "imagenet_saliency": taus("dss, saliency"),
        "imagenet_given": ", ".join(f"{rho['value']:+.2f}" for rho in given),
        "imagenet_adds": _adding(gains),
        "imagenet_adds_to_cells": _adding(cells),
        "imagenet_networks": " to ".join(f"{count:,}" for count in (counts[0], counts[-1])[: len(counts)]),
    }


def _adding(gains: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the spaces in which a gain of R² is above zero, by its interval and corrected for all scores."""
    return [size for size, gain in zip(SPACES, gains, strict=True) if gain["low"] > 0 and gain["p_holm"] < 0.05]


def tested(recorded: Mapping[str, Any], word: str) -> list[list[float]]:
    """Return the test accuracies of each landmark whose name holds a word."""
    return [[one["test"] for one in net["trainings"]] for net in recorded["networks"] if word in net["name"]]


def _landscape(recorded: Recorded) -> Numbers:
    truth, landmarks = load("cifar10"), recorded("landmarks_cifar10")
    (values,) = tested(landmarks, "dasvit-cifar10")
    error = (truth.model("test").variances.seed / len(values)) ** 0.5
    published = truth.percentile(Answer(mean(values), error, len(values), measured=True))
    return {"landscape_published": f"{published:.0f}"}


def _regret(recorded: Recorded) -> Numbers:
    """What the searches of a method are worth on the landscape, and whether equal cost buys more elsewhere."""
    run, told = recorded("regret_cifar10"), {}
    rows = {row["method"]: row for row in run["methods"]}
    for name in JUDGED:
        row, key = rows[name], f"regret_{name.replace('-', '_')}"
        found = [Genotype.from_json(one["genotype"]) for one in run["rows"] if one["method"] == name]
        kinds = Counter(operation.kind for genotype in found for _, operation in genotype.edges)
        blind = sum(not genotype.has_attention for genotype in found)
        told[key] = Range(row["percentile"], *row["percentile_interval"], ".0f")
        told[f"{key}_blind"] = f"{blind} of {len(found)}"
        told[f"{key}_skips"] = f"{kinds['skip']} of {kinds.total()}"
    for name in ("random", "screened"):
        told[f"regret_{name}"] = Range(rows[name]["percentile"], *rows[name]["percentile_interval"], ".0f")
    share = rows["dasvit"]["beats_random"], *rows["dasvit"]["beats_random_interval"]
    about = {"regret_searches": rows["dasvit"]["searches"], "regret_p": rows["dasvit"]["p_holm"]}
    return {**told, **about, "regret_share": Range(*share, ".2f")}


def _latency(recorded: Recorded) -> Numbers:
    """How far from their targets encoders are that were searched for a time."""
    off = [100 * abs(row["of_target"] - 1) for row in recorded("latency")["found"]]
    return {"latency_searches": len(off), "latency_off": f"{median(off):.0f}", "latency_off_most": f"{max(off):.0f}"}


def _trials(recorded: Recorded) -> Numbers:
    """What was tried to break a run or a reader."""
    faults, soak, readers = recorded("faults"), recorded("soak"), recorded("fuzz")["readers"].values()
    return {
        "kills": faults["kills"],
        "survived": faults["survived"],
        "cycles": f"{soak['cycles']:,}",
        "bit_equal": f"{soak['bit_equal']:,}",
        "fuzz_inputs": f"{min(reader['inputs'] for reader in readers):,}",
        "fuzz_readers": len(readers),
        "fuzz_uncaught": sum(reader["uncaught"] for reader in readers),
    }
