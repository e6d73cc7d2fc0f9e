"""What the book tells of recorded runs: files, where they come from, sentences and tables (chapter 7)."""

from __future__ import annotations

import json
import math
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

WIDTH = 76
"""Characters of a line that a cell prints."""


def book_folder() -> Path:
    """Return where ``results/`` and ``claims.yml`` are: in the installed package, or in the repository around it."""
    installed = Path(__file__).parent / "book"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "book"


def recorded(name: str, folder: str | Path | None = None) -> dict[str, Any] | None:
    """Return a recorded run; nothing if it is not measured yet, or only rehearsed.

    Args:
        name: Of the file.
        folder: Where it is; by default where all are, ``results/`` of :func:`book_folder`.
    """
    path = Path(folder or book_folder() / "results") / name
    run = json.loads(path.read_text()) if path.exists() else None
    return None if run is None or run.get("rehearsal") else run


def source_of(run: Mapping[str, Any]) -> str:
    """Return what made a recorded run, in a few lines: command, commit, machine, versions."""
    told, hardware = run["provenance"], run["provenance"]["hardware"]
    tools = " ".join(f"{name} {version}" for name, version in (told["versions"] | run.get("tools", {})).items())
    where = hardware["gpu"] or f"{hardware['processor']}, {hardware['threads']} thread(s)"
    lines = told["command"], f"commit {told['commit']}, {where}", tools
    return "\n".join(textwrap.fill(line, WIDTH, break_on_hyphens=False) for line in lines)


def glue(name: str, value: Any, display: bool = True) -> None:
    """Keep a value for the text of a page, where MyST-NB is installed; elsewhere only show it, if it is to be shown."""
    try:
        from myst_nb import glue as keep
    except ImportError:
        from IPython.display import display as show

        if display:
            show(value)
    else:
        keep(name, value, display)


def say(text: str) -> None:
    """Print a sentence that a page has computed."""
    print(textwrap.fill(text, WIDTH, break_on_hyphens=False))


def percent(shares: Sequence[float]) -> str:
    """Return mean and standard deviation of at least two shares, in percent, e.g. ``"92.9 ± 1.1"``."""
    return f"{100 * mean(shares):.1f} ± {100 * stdev(shares):.1f}"


def interval(value: float, low: float, high: float, digits: int = 2, scale: float = 1.0) -> str:
    """Return a number with its interval, e.g. ``"+0.31 [+0.12, +0.48]"``; a dash if it is not a number."""
    if math.isnan(value):
        return "–"
    middle, *ends = (f"{scale * number:+.{digits}f}" for number in (value, low, high))
    return f"{middle} [{', '.join(ends)}]"


def probability(p: float) -> str:
    """Return a p value as a table shows it."""
    return "&lt; 0.01" if p < 0.005 else f"{p:.2f}"


def joined(names: Iterable[object], *, nothing: str = "none") -> str:
    """Return names as a sentence lists them, e.g. ``"a, b and c"``."""
    *most, last = [str(name) for name in names] or [nothing]
    return f"{', '.join(most)} and {last}" if most else last


def spent(began: float) -> str:
    """Return what a page has used so far, rounded, e.g. ``"50 seconds and 0.6 GB of memory"``.

    Args:
        began: ``time.perf_counter()`` when the page began.
    """
    seconds = time.perf_counter() - began
    duration = f"{max(10, round(seconds, -1)):.0f} seconds" if seconds < 95 else f"{seconds / 60:.0f} minutes"
    try:
        import resource
    except ImportError:  # on Windows
        return duration
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{duration} and {unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9:.1f} GB of memory"


def table(
    header: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    name: str = "told",
    cells: str = "padding: 0.15em 0.5em",
) -> Any:
    """Return a table to be shown in a notebook.

    Args:
        header: What stands above the columns.
        rows: What stands in them; HTML is taken as such.
        name: Of the class of the table, for its style.
        cells: Style of the cells.
    """
    from IPython.display import HTML

    def line(tag: str, values: Sequence[object]) -> str:
        # a corner without a word is no header of anything
        return "<tr>" + "".join(f"<{t}>{v}</{t}>" for v in values for t in [tag if str(v) else "td"]) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    rules = "; ".join(f"{rule.strip()} !important" for rule in cells.split(";"))
    style = f"<style>.{name} td, .{name} th {{{rules}}}</style>"
    text = f'<table class="dataframe {name}"><thead>{line("th", header)}</thead><tbody>{body}</tbody></table>'
    return HTML(f'{style}<div style="overflow-x: auto" tabindex="0" role="group" aria-label="Table">{text}</div>')
