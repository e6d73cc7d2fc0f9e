"""The run directory: settings, metrics, genotype, checkpoints, resume. Only this module writes to it."""

from __future__ import annotations

import json
import platform
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from .checkpoint import load_state, save_state

KEEP = 2  # checkpoints: the last, and the one before in case the last is damaged


class Run:
    """A run directory that exists, see :meth:`open`.

    Args:
        path: The directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"

    @classmethod
    def open(cls, path: str | Path, command: str, settings: Any, *, resume: bool = False) -> Run:
        """Start a run directory, or open one to continue it.

        Args:
            path: The directory; must not exist or be empty unless ``resume``.
            command: What runs in it, e.g. ``"search"``.
            settings: A settings dataclass; kept as ``settings.json`` with the versions and the machine.
            resume: Continue the run in ``path``.

        Raises:
            ValueError: If the directory is taken, is no such run, or was started with other settings.
        """
        run, plain = cls(Path(path)), as_plain(settings)
        if resume:
            stored = run.settings(command)
            if differing := _differences(stored, plain):
                raise ValueError(f"{path} was started with other settings: {differing}; resume without them")
            return run
        if run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
            raise ValueError(f"{path} exists already: add --resume to continue it, or choose another directory")
        try:
            (run.path / "checkpoints").mkdir(parents=True)
        except OSError as error:
            raise ValueError(f"cannot make run directory {path}: {error.strerror}") from None
        run.write("settings.json", {"command": command, "settings": plain, "provenance": provenance()})
        return run

    def settings(self, command: str) -> dict[str, Any]:
        """Return the settings that the run was started with.

        Raises:
            ValueError: If the directory holds no run of this command.
        """
        try:
            stored = json.loads((self.path / "settings.json").read_text())
            name, settings = stored["command"], stored["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(f"{self.path} is no run directory: it has no readable settings.json") from None
        if name != command:
            raise ValueError(f"{self.path} holds a {name} run, a {command} run is needed")
        return settings

    def write(self, name: str, content: str | Mapping[str, Any]) -> None:
        """Write a file of the run, whole or not at all; a mapping is written as JSON."""
        text = content if isinstance(content, str) else json.dumps(content, indent=1)
        part = self.path / (name + ".part")
        part.write_text(text + "\n")
        part.replace(self.path / name)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one object to ``metrics.jsonl``."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """Return the objects logged so far; a line that a kill left half-written is none."""
        if not self.metrics.exists():
            return []
        *lines, _torn = self.metrics.read_text().split("\n")
        return [json.loads(line) for line in lines]

    def rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace the log by ``rows``."""
        self.write("metrics.jsonl", "\n".join(map(json.dumps, rows))) if rows else self.metrics.unlink(missing_ok=True)

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint: ``state``, all random states, and how much has been logged."""
        folder = self.path / "checkpoints"
        known = self._checkpoints()
        number = int(known[-1].stem) + 1 if known else 0
        rows = len(self.history())
        save_state(folder / f"{number:06d}.safetensors", {**state, "random": random_states(), "rows": rows})
        for old in known[: -(KEEP - 1)]:
            old.unlink()

    def load(self) -> dict[str, Any] | None:
        """Return the last checkpoint's state, with the log cut back to it; ``None`` without one.

        Raises:
            ValueError: If the checkpoint cannot be read.
        """
        known = self._checkpoints()
        state = load_state(known[-1]) if known else None
        rows = self.history()[: state["rows"] if state else 0]
        self.rewrite(rows)
        return state

    def peek(self) -> dict[str, Any]:
        """Return the last checkpoint's state and change nothing.

        Raises:
            ValueError: If there is none, or it cannot be read.
        """
        if not (known := self._checkpoints()):
            raise ValueError(f"{self.path} has no checkpoint yet: let the run finish an epoch")
        return load_state(known[-1])

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("[0-9]*.safetensors"))


def random_states() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's global generators, of the GPU too."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    return {**states, "cuda": cuda}


def set_random_states(states: Mapping[str, Any]) -> None:
    """Set what :func:`random_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def as_plain(settings: Any) -> dict[str, Any]:
    """Return a settings dataclass as JSON-ready data."""
    return TypeAdapter(type(settings)).dump_python(settings, mode="json")


def from_plain(cls: type, data: Any) -> Any:
    """Return the settings dataclass that :func:`as_plain` wrote.

    Raises:
        ValueError: If the data does not fit; the message names the field.
    """
    try:
        return TypeAdapter(cls).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"settings: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _differences(stored: Any, given: Any, prefix: str = "") -> str:
    if isinstance(stored, dict) and isinstance(given, dict):
        parts = (_differences(stored.get(k), given.get(k), f"{prefix}.{k}" if prefix else k) for k in stored | given)
        return ", ".join(filter(None, parts))
    return "" if stored == given else f"{prefix} {given!r} (was {stored!r})"


def provenance() -> dict[str, Any]:
    """Return where a result comes from: command, commit, versions, hardware."""
    where = Path(__file__).parent
    git = ["git", "-C", str(where), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        commit = None
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in ("dasvit", "torch", "timm")},
        "hardware": {
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
