"""Commands about cost: latency, front (own objective)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..data.sizes import ImageSize, read_size
from ..engine.flags import BY_PLACE, parse


@dataclass(frozen=True)
class Latency:
    """Measure what each operation takes on this machine, for --target-latency; whole networks are measured beside."""

    output: Path = field(metadata={"short": ("-o",)})
    """The table, a JSON file; one that is there is replaced."""
    image_size: ImageSize = field(default=8, metadata={"read": read_size})
    """Size of an image in pixels, as in the search: 64 or 48,64."""
    patch_size: int = 2
    """Side of a patch in pixels."""
    dim: int = 48
    """Width of a token."""
    depth: int = 6
    """Number of layers: the last stage's."""
    in_channels: int = 3
    """Channels of an image."""
    num_classes: int = 10
    """Number of classes."""
    batch_size: int = 1
    """Images at a time; what is told is the time of one."""
    checks: int = 10
    """Whole networks that are measured, to tell how far the table is from the truth."""


@dataclass(frozen=True)
class Front:
    """Draw retrainings by cost and validation accuracy, and which of them no other one beats in both."""

    runs: tuple[Path, ...] = field(metadata=BY_PLACE)
    """Run directories of dasvit retrain."""
    output: Path = field(metadata={"short": ("-o",)})
    """The figure; its suffix chooses the format, e.g. .svg, .png or .pdf."""
    cost: Literal["params", "macs"] = "macs"
    """What networks are weighed by."""
    json: bool = False
    """Print JSON."""


def front(arguments: list[str]) -> None:
    """Run ``dasvit front``."""
    from ..costs import UNITS
    from ..front import gather
    from ..plot import plot_front, save_figure

    given, _ = parse("front", arguments, Front)
    rows = gather(given.runs, given.cost)
    figure = plot_front([(row.run.name, row.cost, row.accuracy, row.best) for row in rows], UNITS[given.cost])
    save_figure(figure, given.output)
    if given.json:
        print(json.dumps([row._asdict() | {"run": str(row.run)} for row in rows]))
        return
    for row in rows:
        mark = "*" if row.best else " "
        print(f"{mark} {row.cost:>15,.0f} {UNITS[given.cost]}  {100 * row.accuracy:6.2f} %  {row.run}")


def latency(arguments: list[str]) -> None:
    """Run ``dasvit latency``."""
    from scipy.stats import kendalltau

    from ..checks import check_image, check_sizes
    from ..engine.flags import changed
    from ..engine.runs import write_whole
    from ..latency import measure
    from ..space import SearchSpace

    given, changes = parse("latency", arguments, Latency, SearchSpace)
    sizes = {k: v for k, v in vars(given).items() if k != "output"}
    check_image(given.image_size, given.patch_size)
    check_sizes(**{k: v for k, v in sizes.items() if k not in ("image_size", "patch_size", "checks")})
    if not 3 <= given.checks <= 1000:
        raise ValueError(f"checks {given.checks} is outside 3 to 1000: some networks tell how good the table is")
    table = measure(changed(SearchSpace(), changes), **sizes)
    write_whole(given.output, json.dumps(table, indent=1) + "\n")
    for name, seconds in table["seconds"].items():
        print(f"{name:<10} {1e3 * seconds:9.4f} ms")
    predicted, measured = ([row[k] for row in table["checked"]] for k in ("predicted", "measured"))
    errors = sorted(abs(p / m - 1) for p, m in zip(predicted, measured, strict=True))
    print(
        f"{given.checks} whole networks: off by {100 * errors[len(errors) // 2]:.1f} % (median), "
        f"{100 * errors[-1]:.1f} % at most; rank correlation τ {kendalltau(predicted, measured).statistic:.2f}"
    )
