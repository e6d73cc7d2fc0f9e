"""The page of recorded results: what each is, what made it, and whether that is still the same code."""

from __future__ import annotations

import ast
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dasvit.engine.provenance import changed

ROOT = Path(__file__).resolve().parents[2]
AGES = ("as recorded", "older than its code", "without modules")


def results(root: Path = ROOT) -> list[Path]:
    """Return the recorded files."""
    return sorted((root / "book" / "results").rglob("*.json"))


def age(provenance: Mapping[str, Any], root: Path = ROOT) -> tuple[str, list[str]]:
    """Return in words how a result stands to the code of today, and the modules that have changed since."""
    recorded, older, unknown = AGES
    if "modules" not in provenance:
        return unknown, []
    since = [name.removeprefix("dasvit/") for name in changed(provenance["modules"], root)]
    return older if since else recorded, since


def what(command: str, root: Path = ROOT) -> str:
    """Return the first line of the script that a command runs."""
    script = next((root / word for word in shlex.split(command) if word.endswith(".py")), None)
    if script is None or not script.is_file():
        return "its script is gone"
    return (ast.get_docstring(ast.parse(script.read_text())) or "").partition("\n")[0]


def duration(seconds: float) -> str:
    """Return seconds in the largest unit of which there are at least two."""
    sizes = {"h": 3600, "min": 60, "s": 1}
    unit = next((unit for unit, size in sizes.items() if seconds >= 2 * size), "s")
    return f"{seconds / sizes[unit]:.{int(unit == 'h')}f} {unit}"


def made_by(content: Mapping[str, Any]) -> str:
    """Return what made a result, in Markdown."""
    told = content["provenance"]
    hardware, threads = told["hardware"], told["hardware"]["threads"]
    seed = content.get("seed", told.get("seed"))
    parts = [
        f"`{told['command']}`",
        f"commit {told['commit']}",
        told.get("date", "")[:10],
        f"seed {seed}" if seed is not None else "",
        duration(told["wall_seconds"]),
        hardware["gpu"] or f"{hardware['processor']}, {threads} thread{'s' * (threads > 1)}",
        f"torch {told['versions']['torch']}",
    ]
    return ", ".join(filter(None, parts))


def page(root: Path = ROOT) -> list[str]:
    """Return the lines of the page: how many results are of which age, and what there is to know of each."""
    lines, ages = [], []
    for path in results(root):
        content = json.loads(path.read_text())
        told = content["provenance"]
        how, since = age(told, root)
        ages.append(how)
        lines += [f"`{path.relative_to(root / 'book' / 'results').as_posix()}`, {how}"]
        lines += [f": {what(told['command'], root)}", "", f": {made_by(content)}", ""]
        if since:
            lines += [f": Changed since: {', '.join(f'`{name}`' for name in since)}", ""]
    counts = ", ".join(f"{ages.count(how)} {how}" for how in AGES if how in ages)
    return [f"{len(ages)} results: {counts}.", "", *lines]
