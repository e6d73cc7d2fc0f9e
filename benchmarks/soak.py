"""Searches killed, stopped and resumed in one process for an hour: does its memory grow?

    python benchmarks/soak.py --minutes 60

A cycle is one search on digits. At a random instant after each start it is either stopped by SIGTERM, which saves
its state, or cut off by an error of its data, which saves nothing, and is resumed until it ends. Its end has to be
that of an undisturbed search to the last bit. After each cycle the resident bytes, the open files and the threads are
noted. The growth is the Theil-Sen slope of the bytes over time after the first sixth, in percent an hour.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from measure import begin, write
from scipy.stats import theilslopes
from tqdm import tqdm

from dasvit import DataSettings, SearchResult, SearchSettings, load_data, search
from dasvit.data.images import Batch, ImageSet
from dasvit.engine.hardware import Hardware
from dasvit.engine.loop import Interrupted

SETTINGS = SearchSettings(dim=24, stages=((1, 8, 2), (2, 5, 1), (2, 3, 1)), hardware=Hardware("cpu"))
WARM_UP = 1 / 6  # of the time
LIMIT = 1.0  # percent an hour


@dataclass(frozen=True)
class Soak:
    """Interrupt and resume searches, and watch the memory."""

    minutes: float = 60.0
    """How long."""
    seed: int = 0
    """Seed of the instants."""
    threads: int = 1
    """Threads for torch."""
    out: Path = Path("book/results/soak.json")
    """Where the JSON file goes."""


class Cut(Exception):
    """Ends a search with nothing saved."""


@dataclass(frozen=True)
class Images(ImageSet):
    """Images that fail when the alarm has rung.

    Raised by the alarm itself, at whatever line Python is, an error could leave torch's global switches half set: that
    no process survives, and a real kill does not ask it to.
    """

    alarm: threading.Event = field(default_factory=threading.Event)
    """What rings."""

    def batches(self, batch_size: int, **how: Any) -> Iterator[Batch]:
        """Yield batches until the alarm has rung."""
        for batch in super().batches(batch_size, **how):
            if self.alarm.is_set():
                raise Cut
            yield batch


def digest(result: SearchResult) -> str:
    """Return a hash of all that a search ends with: weights, α and the log without its times."""
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "bytes")} for row in result.history]
    whole = hashlib.sha256(json.dumps(rows).encode())
    for name, tensor in result.supernet.state_dict().items():
        whole.update(name.encode() + tensor.numpy().tobytes())
    return whole.hexdigest()


def cycle(images: Images, run_dir: Path, rng: random.Random, counts: Counter[str]) -> str:
    """Run one search to its end, however often it is interrupted."""
    while True:
        images.alarm.clear()
        how = rng.choice([images.alarm.set, partial(signal.raise_signal, signal.SIGTERM)])
        timer = threading.Timer(rng.uniform(0.1, 3.0), how)
        timer.start()
        try:
            return digest(search(SETTINGS, images, run_dir, resume=True))
        except Interrupted:
            counts["stopped"] += 1
        except Cut:
            counts["cut"] += 1
        finally:
            timer.cancel()
            timer.join()


def observation(start: float) -> dict[str, float]:
    """Return what this process holds now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files = len(list(Path("/proc/self/fd").iterdir()))
    held = {"bytes": pages * os.sysconf("SC_PAGE_SIZE"), "files": files, "threads": threading.active_count()}
    return {"seconds": round(time.perf_counter() - start, 1), **held}


def growth(seen: list[dict[str, float]], seconds: float) -> dict[str, float]:
    """Return the growth of the resident bytes in percent an hour, with its 95 % interval."""
    warm = [row for row in seen if row["seconds"] >= WARM_UP * seconds]
    if len(warm) < 3:
        sys.exit(f"only {len(warm)} cycles after the warm-up: give more --minutes")
    median = statistics.median(row["bytes"] for row in warm)
    fit = theilslopes([row["bytes"] for row in warm], [row["seconds"] for row in warm])
    slopes = {"percent_an_hour": fit.slope, "low": fit.low_slope, "high": fit.high_slope}
    return {name: 100 * 3600 * slope / median for name, slope in slopes.items()} | {"median_bytes": median}


def main(args: Soak) -> None:
    """Soak and write; fail if the memory grows or an end differs."""
    begin(args.out)
    torch.set_num_threads(args.threads)
    signal.signal(signal.SIGTERM, lambda *_: None)  # one that comes before a search listens, or after
    images = Images(**vars(load_data(DataSettings(), image_size=SETTINGS.image_size).train))
    expected = digest(search(SETTINGS, images))
    rng, counts, seen = random.Random(args.seed), Counter(stopped=0, cut=0), []
    start = time.perf_counter()
    with tqdm(desc="cycles", disable=None) as bar:
        while time.perf_counter() - start < 60 * args.minutes:
            with tempfile.TemporaryDirectory() as folder:
                if cycle(images, Path(folder) / "run", rng, counts) != expected:
                    sys.exit(f"cycle {len(seen) + 1} ended otherwise than an undisturbed search")
            seen.append(observation(start))
            bar.update()
    grown = growth(seen, 60 * args.minutes)
    result = {"cycles": len(seen), **counts, "bit_equal": len(seen), "growth": grown, "limit": LIMIT}
    print(json.dumps(result))
    thinned = seen[:: max(1, len(seen) // 120)]
    write(args.out, {"seed": args.seed, "minutes": args.minutes, **result, "observations": thinned}, start)
    if grown["percent_an_hour"] >= LIMIT:
        sys.exit(f"resident memory grows by {grown['percent_an_hour']:.2f} % an hour")


if __name__ == "__main__":
    main(tyro.cli(Soak, args=sys.argv[1:]))
