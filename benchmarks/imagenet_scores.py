"""Score AutoFormer's published networks without training them, and record the scores, whatever accuracies they have.

    python benchmarks/imagenet_scores.py PATH/autoformer-imagenet.jsonl
    python benchmarks/imagenet_scores.py PATH/autoformer-imagenet.jsonl --indicators zico meco --networks 100

Each indicator and seed of the weights is a run of its own, which goes on where it stopped, or after the recorded file
if this code would make the same; the file says which commit made how many rows. Networks come in an order of which
every beginning is a fair sample. The file of networks is described in ``truth.py``; its accuracies are not read here.
``--minutes`` stops in time; what is complete is written, and what one network costs.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby, zip_longest
from pathlib import Path
from typing import Any

import torch
import tyro
from measure import begin, one_line, resumable, source, stopped_after, write
from truth import Trained, macs, read, stratified
from tyro.conf import Positional

from dasvit.engine.provenance import changed
from dasvit.engine.runs import Run
from dasvit.engine.spread import spread
from dasvit.training_free import INDICATORS, SPACES, Candidate, TFSearchSettings
from dasvit.training_free.search import score_number

BATCH = 4  # images of noise; the usual 16 would cost four times as much
FREE = ("params", "macs")  # the same with any weights
COSTED = tuple(name for name in INDICATORS if name not in FREE)  # of which it is told what a network costs
POINTS, TOKENS = 1000, 197  # te follows so many images to the first units of a network, with so many tokens each
# How often an indicator needs the products of a forward pass at least, by image: forward 1, gradients of activations 1,
# of weights 1; a backward pass through all of these 6 more.
PASSES = {"dss": 3, "dss-released": 3, "synflow": 3, "autoprox": 3, "meco": 1}
BY_IMAGE = {"snip": 3, "zico": 3, "naswot": 1, "az-nas": 2, "grasp": 9, "te": 3}
PASSES |= {name: BATCH * times for name, times in BY_IMAGE.items()}


@dataclass(frozen=True)
class Score:
    """Score published networks."""

    networks_file: Positional[Path]
    """The file of networks."""
    indicators: tuple[str, ...] = ("dss", "dss-released")
    """What to score by, in this order; what was scored before is written again."""
    networks: int = 1001
    """Networks of each space."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the weights."""
    minutes: float | None = None
    """Stop after so many; by default when all is done."""
    jobs: int = 1
    """Processes, of one thread each."""
    runs: Path = Path("runs")
    """Where finished rows are kept."""
    out: Path = Path("book/results/imagenet_scores.json")
    """Where the JSON file goes."""


def ordered(path: Path) -> list[Trained]:
    """Return the networks of the file in the order of scoring, the spaces in turn."""
    networks = read(path)
    names = sorted({network.space for network in networks})
    by_space = (stratified([n for n in networks if n.space == name]) for name in names)
    return [network for network in chain.from_iterable(zip_longest(*by_space)) if network is not None]


def score_one(indicator: str, seed: int, place: tuple[str, int]) -> dict[str, Any]:
    """Return the row of one network; it depends on nothing but the arguments."""
    space, number = place
    row = score_number(TFSearchSettings(space, 1, (indicator,), seed=seed, batch_size=BATCH), number)
    parts = {part: float(f"{value:.7g}") for part, value in row["scores"].get(indicator, {}).items()}
    return {"space": space, "number": number, **parts, **row.get("errors", {})}


@contextmanager
def run_of(args: Score, indicator: str, seed: int) -> Iterator[Run]:
    """Open the run of an indicator and a seed of the weights."""
    settings = {"indicator": indicator, "seed": seed, "batch_size": BATCH}
    with resumable(args.runs / f"imagenet_{indicator}_{seed}", "imagenet-scores", settings) as run:
        yield run


def recorded(
    told: dict[str, Any], places: Sequence[tuple[str, int]], indicator: str, seed: str
) -> list[dict[str, Any]]:
    """Return the rows of the recorded file, with the commit that made each, if this code would make them.

    Code that has changed makes them if it makes the same of one network of each space, to the last digit.
    """
    scores = told["scores"][indicator][seed]
    columns = {space: zip(*parts.values(), strict=True) for space, parts in scores.items()}
    commits = iter([commit for commit, count in told["commits"][indicator][seed] for _ in range(count)])
    rows = []
    for space, number in places:
        values = next(columns.get(space, iter(())), None)
        if values is None or None in values:  # nothing more, or one that failed
            break
        row = {"space": space, "number": number, **dict(zip(scores[space], values, strict=True))}
        rows.append(row | {"commit": next(commits)})
    some = (
        {row["space"]: row for row in random.sample(rows, len(rows))} if changed(told["provenance"]["modules"]) else {}
    )
    for space, row in some.items():
        if score_one(indicator, int(seed), (space, row["number"])) | {"commit": row["commit"]} != row:
            print(
                f"{indicator}, seed {seed}: this code scores {space}:{row['number']} otherwise, so all again",
                flush=True,
            )
            return []
    return rows


def adopt(args: Score, places: Sequence[tuple[str, int]]) -> None:
    """Begin the runs that are not there yet with the rows of the recorded file."""
    told = json.loads(args.out.read_text()) if args.out.exists() else {"scores": {}}
    if told["scores"] and told["provenance"]["versions"]["torch"] != torch.__version__.partition("+")[0]:
        return
    for indicator, seeds in told["scores"].items():
        for seed in seeds:
            with run_of(args, indicator, int(seed)) as run:
                for row in [] if run.history() else recorded(told, places, indicator, seed):
                    run.log(row)


def score_some(args: Score, places: Sequence[tuple[str, int]], indicator: str, seed: int) -> None:
    """Score networks by one indicator with one seed of the weights, after those that are scored already."""
    with run_of(args, indicator, seed) as run:
        done = [(row["space"], row["number"]) for row in run.history()]
        if not all(one == place for one, place in zip(done, places, strict=False)):
            raise ValueError(f"{run.path} has rows of other networks: remove it to start afresh")
        work, left = partial(score_one, indicator, seed), places[len(done) :]
        how: Any = {"jobs": args.jobs, "title": f"{indicator}, seed {seed}", "progress": True, "done": len(done)}
        for row in spread(work, left, **how):
            run.log(row | {"commit": source()["commit"]})


def kept(args: Score) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return the rows of all runs, by indicator and seed."""
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for path in sorted(args.runs.glob("imagenet_*_*")):
        _, indicator, seed = path.name.split("_")
        with run_of(args, indicator, int(seed)) as run:
            rows.setdefault(indicator, {})[seed] = run.history()
    return rows


def columns(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Return rows as lists by space and part; None where an indicator failed."""
    told: dict[str, dict[str, list[Any]]] = {}
    names = dict.fromkeys(part for row in rows for part, value in row.items() if isinstance(value, float))
    for row in rows:
        mine = told.setdefault(row["space"], {part: [] for part in names})
        for part in names:
            mine[part].append(row.get(part))
    return told


def commits_of(rows: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    """Return which commit made how many rows, in their order."""
    return [(commit, len(list(some))) for commit, some in groupby(row["commit"] for row in rows)]


def products(indicator: str, space: str, number: int) -> int:
    """Return the multiply-accumulates that an indicator needs at least for a network."""
    whole = PASSES[indicator] * macs(space, number)
    if indicator != "te":
        return whole
    network = SPACES[space][number]
    assert isinstance(network, Candidate)
    second = TOKENS * network.dim * round(network.dim * network.mlp_ratios[0])  # of the first MLP's two layers
    return whole + POINTS * (macs(space, number, layers=1) - second)


def cost_of(indicator: str, place: tuple[str, int], peak: float) -> dict[str, float]:
    """Return CPU seconds of one network, after another has warmed up, and the least that its products take."""
    score_one(indicator, 0, place)
    began = time.process_time()
    score_one(indicator, 0, place)
    seconds = time.process_time() - began
    return {"cpu_seconds": seconds, "floor": products(indicator, *place) / peak}


def costs(args: Score, places: Sequence[tuple[str, int]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return what one network of each space costs by each indicator, on one thread."""
    torch.set_num_threads(1)
    a = torch.rand(1024, 1024)
    tries = []
    for _ in range(20):
        began = time.process_time()
        a @ a
        tries.append(time.process_time() - began)
    typical = {space: random.Random(0).choice([p for p in places if p[0] == space]) for space in sorted(dict(places))}
    return {k: {s: cost_of(k, place, 1024**3 / min(tries)) for s, place in typical.items()} for k in COSTED}


def main(args: Score) -> None:
    """Score what is not scored yet and write the file."""
    start = begin(args.out)
    with one_line():
        known = [name for name in INDICATORS if name not in FREE]
        if unknown := set(args.indicators) - set(known):
            raise ValueError(f"cannot score by {min(unknown)!r}; known: {', '.join(known)}")
        networks = ordered(args.networks_file)
        places = [(network.space, network.number) for network in networks]
        spaces = len(dict(places))
        with stopped_after(args.minutes):
            adopt(args, places)
            for seed in args.seeds:
                for indicator in args.indicators:
                    score_some(args, places[: spaces * args.networks], indicator, seed)
        rows = kept(args)
    order = {s: {"number": [n.number for n in networks if n.space == s]} for s in sorted(dict(places))}
    for space, told in order.items():
        told["line"] = [n.line for n in networks if n.space == space]
    scores = {name: {seed: columns(some) for seed, some in by_seed.items()} for name, by_seed in rows.items()}
    told = {"seed": 0, "batch_size": BATCH, "images": "Gaussian noise", "networks": order, "scores": scores}
    told["commits"] = {name: {seed: commits_of(some) for seed, some in by.items()} for name, by in rows.items()}
    write(args.out, told | {"cost": costs(args, places)}, start)


if __name__ == "__main__":
    main(tyro.cli(Score, args=sys.argv[1:]))
