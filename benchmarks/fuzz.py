"""Genotypes and settings from untrusted text, 100,000 inputs each, guided by the coverage they reach.

    pip install -e .[fuzz]
    python benchmarks/fuzz.py

An input is read, and then comes back from what is written, or is refused by a ValueError of one line. Anything else
(another error, more than ten seconds, more than 4 GiB) ends the run with the input that did it.
"""

from __future__ import annotations

import copy
import json
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

LIMITS = ["-timeout=10", "-rss_limit_mb=4096", "-max_len=8192", "-reduce_inputs=0", "-mutate_depth=3"]
ODD = [
    None,
    True,
    -1,
    0,
    7,
    0.5,
    -0.5,
    2**31,
    10**400,
    1e-320,
    float("nan"),
    float("inf"),
    "",
    "x" * 5000,
    "\0",
    "\ud800",
]
ODD += ["msa:8", "mlp:0.5", "mlp:nan", "skip", "cpu", [], [[]], {}, [[2, 8, 6]], {"a": 1}]


@dataclass(frozen=True)
class Fuzz:
    """Fuzz the readers of genotypes and settings."""

    runs: int = 100_000
    """Inputs for each reader."""
    seed: int = 1
    """Seed of the fuzzer, above zero."""
    out: Path = Path("book/results/fuzz.json")
    """Where the JSON file goes."""
    target: str | None = None
    """Fuzz this one reader here and print what came; for the script's own use."""


def readers() -> dict[str, tuple[Callable[[str], Any], Callable[[Any], str], list[str]]]:
    """Return by name what reads a text, what writes the result, and valid texts to start from."""
    from dasvit import Genotype, RetrainSettings, SearchSettings, genotypes
    from dasvit.engine.runs import as_plain, from_plain
    from dasvit.presets import RETRAIN, SEARCH
    from dasvit.training_free import TFSearchSettings

    def settings(cls: type, *starts: Any) -> tuple[Callable[[str], Any], Callable[[Any], str], list[str]]:
        def read(text: str) -> Any:
            try:
                plain = json.loads(text)
            except RecursionError:  # a run directory refuses it as it does what is no JSON
                raise ValueError("too deep") from None
            return from_plain(cls, plain)

        def write(found: Any) -> str:
            return json.dumps(as_plain(found))

        return read, write, list(map(write, starts))

    return {
        "genotype": (Genotype.from_json, Genotype.to_json, [g.to_json() for g in genotypes().values()]),
        "search settings": settings(SearchSettings, *SEARCH.values()),
        "retrain settings": settings(RetrainSettings, *RETRAIN.values()),
        "tf-search settings": settings(TFSearchSettings, TFSearchSettings()),
    }


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container in a tree of JSON with each of its keys."""
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from places(node[key])


def mutate(starts: list[str], data: bytes, max_size: int, seed: int) -> bytes:
    """Change a value in the tree that the text, or a valid one, stands for; now and then change its bytes."""
    import atheris

    rng = random.Random(seed)
    try:
        tree = json.loads(rng.choice([data, rng.choice(starts)]))
        holder, key = rng.choice(list(places(tree)))
    except (ValueError, IndexError, RecursionError):
        return atheris.Mutate(data, max_size)
    if rng.random() < 0.1:
        return atheris.Mutate(data, max_size)
    other = rng.choice([h[k] for h, k in places(tree)])
    number = rng.choice([rng.randint(-9, 99), rng.uniform(-2, 2), rng.choice([-1, 1]) * 10 ** rng.randint(0, 400)])
    holder[key] = copy.deepcopy(rng.choice([rng.choice(ODD), number, other, [holder[key]] * rng.randint(0, 40)]))
    if rng.random() < 0.1:
        del holder[key]
    return json.dumps(tree).encode()[:max_size]


def fuzz(args: Fuzz) -> None:
    """Fuzz one reader; libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["dasvit", "json"]):
        read, write, starts = readers()[str(args.target)]
    seen: Counter[str] = Counter()

    def one(data: bytes) -> None:
        text = data.decode(errors="surrogateescape")
        try:
            found = read(text)
        except ValueError as error:
            found, message = None, str(error)
        if found is None:
            assert "\n" not in message, message
        else:
            assert read(write(found)) == found
        seen["refused" if found is None else "read"] += 1
        if seen.total() == args.runs:
            print(json.dumps(seen), flush=True)

    with tempfile.TemporaryDirectory() as corpus:
        for number, text in enumerate(starts):
            (Path(corpus) / str(number)).write_text(text)
        flags = [f"-runs={args.runs}", f"-seed={args.seed}", *LIMITS, corpus]
        atheris.Setup([sys.argv[0], *flags], one, custom_mutator=partial(mutate, starts))
        atheris.Fuzz()


def main(args: Fuzz) -> None:
    """Fuzz every reader in a process of its own and write what came."""
    from measure import begin, write

    start, results = begin(args.out), {}
    for name in readers():
        words = ["--target", name, "--runs", str(args.runs), "--seed", str(args.seed)]
        done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name}: {done.stdout[-2000:]}{done.stderr[-4000:]}")
        covered = re.findall(r"cov: (\d+)", done.stderr)
        counts = json.loads(done.stdout.splitlines()[-1])
        results[name] = {"inputs": sum(counts.values()), **counts, "uncaught": 0, "covered_edges": int(covered[-1])}
        print(name, results[name])
    write(args.out, {"seed": args.seed, "limits": LIMITS, "readers": results}, start)


if __name__ == "__main__":
    given = tyro.cli(Fuzz, args=sys.argv[1:])
    (fuzz if given.target else main)(given)
