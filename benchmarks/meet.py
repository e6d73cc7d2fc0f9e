"""Gradient search and search without training in one table: the whole DASViT space scored on digits, its picks trained.

    python benchmarks/meet.py

Every encoder with attention is scored with one seed of weights. The picks of DSS and of size, over the whole space and
among encoders of the size of the one that the gradient search found, are trained as the networks of digits_tiny.json
were, whose rows are taken over with their scores. Interrupt it as you like: the same command goes on.
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
from torch import nn
from tqdm import tqdm

from dasvit import SearchSpace
from dasvit.data import load_data
from dasvit.peers import TOLERANCE
from dasvit.presets import RETRAIN
from dasvit.retrain import make_network, retrain
from dasvit.runs import Run
from dasvit.training_free import Probe, Shape, TFSearchSettings, score
from dasvit.training_free.search import score_number

RECORDED = "book/results/digits_tiny.json"
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
    """Return the scores of every encoder that has attention; without it the class token sees no image."""
    space = SearchSpace()
    seeing = [i for i in range(len(space)) if any(operation.kind == "msa" for _, operation in space[i].edges)]
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


def main(args: Meet) -> None:
    """Do what is not done yet and write the file."""
    start = begin(args.out)
    torch.set_num_threads(1)
    train = RETRAIN["tiny"]
    data = load_data(train.data, image_size=train.image_size)
    shape = Shape(train.image_size, train.patch_size, data.train.channels, len(data.train.classes))
    sizes = {k: getattr(shape, k) for k in ("image_size", "patch_size", "in_channels", "num_classes")}
    scoring = TFSearchSettings(SPACE, 1, INDICATORS, **sizes)
    with resumable(args.runs, "meet", {"score": scoring, "train": train}, RECORDED) as run:
        rows = score_space(run, scoring)
    recorded = json.loads(Path(RECORDED).read_text())
    found = next(row for row in recorded["rows"] if row["network"] == "found")
    equal = [r for r in rows if abs(r["parameters"] - found["parameters"]) <= TOLERANCE * found["parameters"]]
    picks = {
        f"{name}, {where}": max(some, key=lambda r, name=name: total(r, name))
        for where, some in (("whole space", rows), ("equal size", equal))
        for name in ("dss", "dss-released")
    }
    picks["params, whole space"] = max(rows, key=lambda r: r["parameters"])
    table = [dict(row) for row in recorded["rows"]]
    for name, pick in picks.items():
        genotype = SearchSpace()[pick["number"]].to_json()
        for seed in range(args.seeds):
            path = args.runs / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}"
            settings = replace(train, genotype=genotype, seed=seed)
            began = time.perf_counter()
            result = retrain(settings, data, path, resume=path.exists(), progress=True)
            start += time.perf_counter() - began - sum(r["seconds"] for r in result.history)  # resumed ones count whole
            row = {"network": name, "genotype": genotype, "depth": train.depth, "seed": seed}
            table.append({**row, "parameters": pick["parameters"], "epochs": train.epochs, **result.accuracy})
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
        name: sum(total(r, name) > own for r in rows) + 1
        for name, own in next(r for r in table if r["network"] == "found")["scores"].items()
    }
    scores = [[r["parameters"], *(r["scores"].get(name, {}).get("total") for name in INDICATORS)] for r in rows]
    content = {
        "seed": 0,
        **told,
        "rank_of_found": ranks,
        "indicators": INDICATORS,
        "rows": table,
        "space_scores": scores,
    }
    write(args.out, content, start, RECORDED)


if __name__ == "__main__":
    main(tyro.cli(Meet, description=__doc__))
