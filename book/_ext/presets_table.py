"""The page of settings: every one of them, the three presets, and what the paper says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from dasvit.presets import RETRAIN, SEARCH

# quoted from Section IV-A, and depth and operations of the stages from the section on the algorithm; what is not here
# the paper does not say, or its text lacks the number
PAPER: Mapping[str, Mapping[str, str]] = {
    "search": {
        "data.data": "CIFAR-10, ImageNet-100",
        "image_size": "224",
        "patch_size": "16",
        "dim": "768",
        "stages": "2·all·30 4·5·30 6·3·30",
        "batch_size": "64",
        "lr": "given, number lost",
        "weight_decay": "given, number lost",
    },
    "retrain": {
        "data.data": "CIFAR-10, CIFAR-100, ImageNet-100",
        "image_size": "224",
        "patch_size": "16",
        "dim": "768",
        "epochs": "500",
        "warmup_epochs": "20",
        "batch_size": "128",
        "lr": "that of the search",
        "weight_decay": "that of the search",
    },
}


def flat(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting of a dataclass and those in it, by its name with dots."""
    for one in fields(settings):
        value, name = getattr(settings, one.name), prefix + one.name
        if is_dataclass(value):
            yield from flat(value, f"{name}.")
        else:
            yield name, value


def _told(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join("·".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in value) or "–"
    return "–" if value in (None, "") else f"{value:g}" if isinstance(value, float) else str(value)


def table(command: str) -> list[str]:
    """Return the table of a command, ``"search"`` or ``"retrain"``, as lines of Markdown."""
    presets = {"search": SEARCH, "retrain": RETRAIN}[command]
    columns = {name: dict(flat(settings)) for name, settings in presets.items()}
    lines = ["| setting | " + " | ".join(columns) + " | the paper |", "| --- |" + " --- |" * (len(columns) + 1)]
    for name in next(iter(columns.values())):
        values = [_told(column[name]) for column in columns.values()]
        lines.append(f"| `{name}` | " + " | ".join(values) + f" | {PAPER[command].get(name, '')} |")
    return lines
