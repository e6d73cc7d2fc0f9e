"""What the steps have found, in one small archive to be brought home: results, logs, and what runs go on from.

    python benchmarks/gpu/fetch.py

Checkpoints stay, so a search goes on elsewhere from the end of its last whole stage. At home:

    tar -xzf evidence.tar.gz -C runs/gpu && cp runs/gpu/results/*.json book/results/gpu/
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro
from measure import one_line

LEFT = {"checkpoints", "cache", "pack", "rehearsal", ".lock"}
"""What is large, belongs to one machine, or is no result."""


@dataclass(frozen=True)
class Fetch:
    """Put what is small into one archive."""

    runs: Path = Path("runs/gpu")
    """Where the state is kept."""
    into: Path = Path("evidence.tar.gz")
    """The archive."""
    largest: int = 16 << 20
    """Bytes of the largest file that is taken."""


def small(folder: Path, largest: int) -> Iterator[Path]:
    """Yield the files that are taken, smaller than ``largest`` and none of what is left."""
    for path in sorted(folder.iterdir()):
        if path.name in LEFT or path.is_symlink():
            continue
        if path.is_dir():
            yield from small(path, largest)
        elif path.stat().st_size <= largest:
            yield path


def main(args: Fetch) -> None:
    """Write the archive."""
    with one_line():
        if not args.runs.is_dir():
            raise ValueError(f"{args.runs} does not exist: name the folder of the state, --runs")
        files = list(small(args.runs, args.largest))
        if not files:
            raise ValueError(f"{args.runs} holds nothing to fetch yet: run a step first")
    with tarfile.open(args.into, "w:gz") as tar:
        for path in files:
            tar.add(path, path.relative_to(args.runs))
    print(f"{args.into}: {len(files)} files, {args.into.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(tyro.cli(Fetch, description=__doc__))
