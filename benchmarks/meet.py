"""Gradient search and search without training in one table: the whole DASViT space scored on digits, its picks trained.

    python benchmarks/meet.py

Every function with attention, one genotype for each, is scored with one seed of weights. The picks of DSS and of size,
over the whole space and among encoders of the size of the one that the first gradient search found, are trained as the
networks of digits_tiny.json were, whose rows of equal epochs are taken over with their scores. No function is trained
twice: a row carries all names that its network has in the table. Interrupt it as you like: the same command goes on.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from measure import begin, resumable, write
from scales import SCALES
from torch import nn
from tqdm import tqdm

from dasvit import Genotype, SearchSpace
from dasvit.data.sources import load_data
from dasvit.encoder import resolve
from dasvit.engine.runs import Run
from dasvit.formula import Formula
from dasvit.peers import TOLERANCE, count_parameters
from dasvit.retraining import make_network, retrain
from dasvit.training_free import Probe, Shape, TFSearchSettings, score
from dasvit.training_free.search import score_number

RECORDED = "book/results/digits_tiny.json"
KEPT = ("search", "genotype", "depth", "seed", "parameters", "epochs", "top1", "top5", "loss")
SPACE, INDICATORS = "dasvit-xs", ("dss", "dss-released", "synflow", "naswot")


@dataclass(frozen=True)
class Meet:
    """Score the DASViT space without training and train its picks."""

    seeds: int = 3
    """Seeds of retraining: 0, 1, …"""
    runs: Path = Path("runs/meet_digits")
    """Where run directories go."""
    out: Path = Path("book/results/meet_digits.json")
    """Where the JSON file goes."""


def score_space(run: Run, settings: TFSearchSettings) -> list[dict[str, Any]]:
    """Return the scores of every function that has attention; without it the class token sees no image."""
    space = SearchSpace()
    seeing = [number for number in space.functions() if space[number].has_attention]
    for number in tqdm(seeing[len(run.history()) :], desc="encoders"):
        run.log(score_number(settings, number))
    return run.history()


def total(row: dict[str, Any], name: str) -> float:
    """Return a score; of an encoder that an indicator cannot score (naswot without an MLP) the lowest."""
    return row["scores"].get(name, {"total": -math.inf})["total"]


def scored(network: nn.Module, name: str, probe: Probe) -> float | None:
    """Return a score, or nothing where an indicator cannot be computed (naswot without an MLP)."""
    try:
        return score(network, name, probe)["total"]
    except ValueError:
        return None


def pick(rows: list[dict[str, Any]], size: int) -> dict[int, list[str]]:
    """Return the number of each encoder that is picked and what it is the pick of; ``size`` is the found one's."""
    equal = [r for r in rows if abs(r["parameters"] - size) <= TOLERANCE * size]
    picks: dict[int, list[str]] = {}
    for where, some in (("whole space", rows), ("equal size", equal)):
        for name in ("dss", "dss-released"):
            best = max(some, key=lambda r, name=name: total(r, name))
            picks.setdefault(best["number"], []).append(f"{name}, {where}")
    picks.setdefault(max(rows, key=lambda r: r["parameters"])["number"], []).append("params, whole space")
    return picks


def formula(name: str) -> Formula | None:
    """Return the formula of a network's encoder, none of the plain transformer."""
    architecture = resolve(name)
    return architecture.formula if isinstance(architecture, Genotype) else None


def share(table: list[dict[str, Any]], genotype: Genotype, names: list[str], seeds: int) -> bool:
    """Give the rows that an encoder has already more names; tell whether it has one for each seed."""
    same = [row for row in table if formula(row["genotype"]) == genotype.formula]
    if not {row["seed"] for row in same} >= set(range(seeds)):
        return False
    for row in same:
        row["networks"] = row["networks"] + names
    return True


def main(args: Meet) -> None:
    """Do what is not done yet and write the file."""
    start = begin(args.out)
    torch.set_num_threads(1)
    _, train = SCALES["digits"].settings()
    data = load_data(train.data, image_size=train.image_size)
    shape = Shape(train.image_size, train.patch_size, data.train.channels, len(data.train.classes))
    sizes = {k: getattr(shape, k) for k in ("image_size", "patch_size", "in_channels", "num_classes")}
    scoring = TFSearchSettings(SPACE, 1, INDICATORS, **sizes)
    with resumable(args.runs, "meet", {"score": scoring, "train": train}, RECORDED) as run:
        rows = score_space(run, scoring)
    recorded = json.loads(Path(RECORDED).read_text())
    equal = [row for row in recorded["rows"] if row["equal"] == "epochs"]
    found = next(row for row in equal if row["network"] == "found" and row["search"] == 0)
    table = [{"networks": [row["network"]]} | {k: row[k] for k in row if k in KEPT} for row in equal]
    for number, names in pick(rows, found["parameters"]).items():
        genotype = SearchSpace()[number]
        if share(table, genotype, names, args.seeds):
            continue
        for seed in range(args.seeds):
            path = args.runs / f"{names[0].replace(', ', '-').replace(' ', '_')}-{seed}"
            settings = replace(train, genotype=genotype.to_json(), seed=seed)
            began = time.perf_counter()
            result = retrain(settings, data, path, resume=True, progress=True)
            start += time.perf_counter() - began - sum(r["seconds"] for r in result.history)  # resumed ones count whole
            row = {"networks": names, "search": None, "genotype": settings.genotype, "depth": train.depth, "seed": seed}
            size = count_parameters(settings, data.train)
            table.append({**row, "parameters": size, "epochs": train.epochs, **result.accuracy})
    for row in table:
        torch.manual_seed(0)
        network = make_network(replace(train, genotype=row["genotype"], depth=row["depth"]), data.train)
        probe = Probe(train.image_size)
        row["scores"] = {name: scored(network, name, probe) for name in INDICATORS}
    told = {
        "space": SPACE,
        "encoders": len(rows),
        "failed": sum("errors" in r for r in rows),
        "found": found["genotype"],
    }
    ranks = {
        row["search"]: {
            name: None if own is None else sum(total(r, name) > own for r in rows) + 1
            for name, own in row["scores"].items()
        }
        for row in table
        if "found" in row["networks"]
    }
    scores = [[r["parameters"], *(r["scores"].get(name, {}).get("total") for name in INDICATORS)] for r in rows]
    content = {
        "seed": 0,
        **told,
        "rank_of_found": [ranks[search] for search in sorted(ranks)],
        "indicators": INDICATORS,
        "rows": table,
        "space_scores": scores,
    }
    write(args.out, content, start, RECORDED)


if __name__ == "__main__":
    main(tyro.cli(Meet, description=__doc__))
