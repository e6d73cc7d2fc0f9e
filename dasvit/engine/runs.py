"""The run directory: settings, metrics, genotype, checkpoints, resume. Only this module writes to it."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import random
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from .checkpoint import expect, load_state, refusing, save_state, settle, sync
from .provenance import provenance

KEEP = 2  # checkpoints: the last, and the one before in case the last is damaged
LOCK = ".lock"
CheckRow = Callable[[int, dict[str, Any]], None]
"""Raises an error for a logged row, given its number from 0, that is none of the run."""
UNSTARTED = {LOCK, "settings.json.part"}  # all that a start leaves if it is killed before settings.json is whole


class RunFailedError(RuntimeError):
    """A run stopped for a cause outside its input, such as a full disk; what it had saved is as it was."""


def unwritable(path: Path, error: Exception) -> Exception:
    """Return the error for a place that a user names and that cannot be written: it is wrong, or the disk is full."""
    full = not isinstance(error, OSError) or error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    return (RunFailedError if full else ValueError)(f"cannot write {path}: {_reason(error)}")


def write_whole(path: Path, text: str) -> None:
    """Write a file that a user names, whole or not at all.

    Raises:
        ValueError: If it cannot be written.
        RunFailedError: If the disk is full.
    """
    if not os.path.isdir(path.parent):  # Path.is_dir raises where a name is too long
        raise ValueError(f"cannot write {path}: folder {path.parent} does not exist")
    part = path.with_name(f".{path.name}.part")
    try:
        try:
            part.write_text(text, encoding="utf-8")
            settle(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell in one line that a run which could write its directory no longer can.

    Raises:
        RunFailedError: If writing fails.
    """
    try:
        yield
    except OSError as error:
        raise RunFailedError(f"cannot write {path}: {_reason(error)}: mend this and go on with --resume") from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())


class Run:
    """A run directory that exists, see :meth:`open`. As a context it is given free at the end of the block.

    Args:
        path: The directory.

    Attributes:
        on_row: Called with each row that is logged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self._free: Callable[[], Any] = lambda: None
        self.on_row: Callable[[Mapping[str, Any]], None] = lambda _: None

    @classmethod
    def open(cls, path: str | Path, command: str, settings: Any, *, resume: bool = False) -> Run:
        """Start a run directory, or open one to continue it; no other process can while this one has it.

        Args:
            path: The directory; must not exist or be empty unless ``resume``.
            command: What runs in it, e.g. ``"search"``.
            settings: A settings dataclass; kept as ``settings.json`` with the versions and the machine.
            resume: Continue the run in ``path``; where none began yet, begin it.

        Raises:
            ValueError: If the directory is taken or in use, is no such run, or was started with other settings.
            RunFailedError: If the disk is full.
        """
        run, plain = cls(Path(path)), as_plain(settings)
        if resume and not run.unstarted:
            stored = run.settings(command)
            known = as_plain(from_plain(type(settings), stored))  # what was added since has its default
            if differing := _differences(known, plain):
                raise ValueError(f"{path} was started with other settings: {differing}; resume without them")
            run._take()
            return run
        if not run.unstarted:
            raise ValueError(f"{path} exists already: add --resume to continue it, or choose another directory")
        run._take({"command": command, "settings": plain, "provenance": provenance()})
        return run

    @property
    def unstarted(self) -> bool:
        """Whether nothing began here yet: there is no such directory, or nothing in it but what a killed start left."""
        if not os.path.lexists(self.path):
            return True
        return os.path.isdir(self.path) and not {p.name for p in self.path.iterdir()} - UNSTARTED

    def _take(self, start: Mapping[str, Any] | None = None) -> None:
        """Lock the directory, and start a run there.

        The lock ends with this process, however it ends, and is not handed on to processes that work for it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / LOCK).open("a")
            self._free = weakref.finalize(self, lock.close)
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if start is not None:
                if not self.unstarted:  # by another process, since this one looked
                    self.close()
                    raise ValueError(f"{self.path} was started just now by another process: choose another directory")
                self._put("settings.json", start)
        except OSError as error:
            self.close()
            if isinstance(error, BlockingIOError):
                raise ValueError(f"{self.path} is in use by another process: wait for it, or stop it") from None
            raise unwritable(self.path, error) from None

    def close(self) -> None:
        """Let other processes have the directory."""
        self._free()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def settings(self, command: str) -> dict[str, Any]:
        """Return the settings that the run was started with.

        Raises:
            ValueError: If the directory holds no run of this command.
        """
        name, settings = self.started()
        if name != command:
            raise ValueError(f"{self.path} holds a {name} run, a {command} run is needed")
        return settings

    def started(self) -> tuple[str, dict[str, Any]]:
        """Return which command was started here, and its settings.

        Raises:
            ValueError: If the directory holds no run.
        """
        try:
            stored = json.loads((self.path / "settings.json").read_text())
            started = stored["command"], stored["settings"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(f"{self.path} is no run directory: it has no readable settings.json") from None
        _refuse_unknown(stored, dict.fromkeys(("command", "settings", "provenance")), f"{self.path / 'settings.json'}")
        return started

    def write(self, name: str, content: str | Mapping[str, Any]) -> None:
        """Write a file of the run, whole or not at all; a mapping is written as JSON.

        Raises:
            RunFailedError: If it cannot be written.
        """
        with writing(self.path / name):
            self._put(name, content)

    def _put(self, name: str, content: str | Mapping[str, Any]) -> None:
        part = self.path / (name + ".part")
        try:
            part.write_text((content if isinstance(content, str) else json.dumps(content, indent=1)) + "\n")
            settle(part, self.path / name)
        finally:
            part.unlink(missing_ok=True)

    def keep(self, name: str, text: str) -> None:
        """Write what the run depends on beside its settings, once.

        Raises:
            ValueError: If it is there and says something else.
            RunFailedError: If it cannot be written.
        """
        path = self.path / name
        if not path.exists():
            self.write(name, text)
        elif path.read_bytes() != (text + "\n").encode():
            raise ValueError(f"{path} is not what was given now: the run was started with another one")

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one object to ``metrics.jsonl``.

        Raises:
            RunFailedError: If it cannot be written.
        """
        with writing(self.metrics), self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.on_row(row)

    def read(self, name: str, part: str) -> Any:
        """Return a part of a JSON file of the run; nothing if the file or the part is not there.

        Raises:
            ValueError: If the file is no JSON object.
        """
        path = self.path / name
        if not path.exists():
            return None
        with refusing(str(path)):
            return json.loads(path.read_text()).get(part)

    def history(self) -> list[dict[str, Any]]:
        """Return the objects logged so far, up to the first line that a fault left unreadable or half-written."""
        if not self.metrics.exists():
            return []
        rows = []
        for line in self.metrics.read_bytes().split(b"\n")[:-1]:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not isinstance(row, dict):
                break
            rows.append(row)
        return rows

    def check_rows(self, rows: Sequence[dict[str, Any]], check_row: CheckRow) -> None:
        """Check that logged rows are those of this run; what they hold is believed from then on.

        Raises:
            ValueError: If ``check_row`` raises whatever it may; the message names the line.
        """
        for number, row in enumerate(rows):
            with refusing(f"line {number + 1} of {self.metrics}"):
                check_row(number, row)

    def resume_rows(self, check_row: CheckRow = lambda _number, _row: None) -> list[dict[str, Any]]:
        """Return the rows of a run that is nothing but rows, and go on behind them: one cut off by a kill is dropped.

        Args:
            check_row: As for :meth:`check_rows`.

        Raises:
            ValueError: If a row is refused.
            RunFailedError: If the log cannot be written.
        """
        rows = self.history()
        self.check_rows(rows, check_row)
        self.rewrite(rows)
        return rows

    def rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace the log by ``rows``."""
        self.write("metrics.jsonl", "\n".join(map(json.dumps, rows))) if rows else self.metrics.unlink(missing_ok=True)

    def save(self, state: Mapping[str, Any]) -> Path:
        """Write a checkpoint: ``state``, all random states, how much has been logged, and which run it is.

        Returns:
            The file.

        Raises:
            RunFailedError: If it cannot be written; the checkpoints before are still there.
        """
        known, rows = self._checkpoints(), len(self.history())
        position = {"random": random_states(), "rows": rows, "run": self.started()}
        stem = self.checkpoints / f"{_number(known[-1]) + 1 if known else 0:06d}"
        with writing(stem):
            self.checkpoints.mkdir(exist_ok=True)
            if rows:
                sync(self.metrics)  # the log is never behind a checkpoint
            saved = save_state(stem, {**state, **position})
            for old in known[: -(KEEP - 1)]:
                old.unlink()
        return saved

    def load(
        self, check: Callable[[dict[str, Any]], None] | None = None, check_row: CheckRow | None = None
    ) -> dict[str, Any] | None:
        """Return the state of the last whole checkpoint, with the log cut back to it; ``None`` without any checkpoint.

        Newer ones that cannot be used are told on stderr and put aside under the suffix ``.refused``.

        Args:
            check: Raises an error for a state that is none of this run.
            check_row: Raises an error for a row before it that is none of this run, given its number, too.

        Raises:
            ValueError: If there are checkpoints and none can be used, or a row is refused; nothing is changed.
        """
        rows = self.history()
        state, refused = self._last(check, len(rows))
        rows = rows[: state["rows"] if state else 0]
        if check_row is not None:
            self.check_rows(rows, check_row)
        for path, reason in refused.items():
            print(f"dasvit: {reason}; going on from the one before", file=sys.stderr)
            path.replace(path.with_name(path.name + ".refused"))
        self.rewrite(rows)
        return state

    def peek(self, check: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        """Return the state of the last whole checkpoint and change nothing.

        Args:
            check: As for :meth:`load`.

        Raises:
            ValueError: If there is none.
        """
        state, _ = self._last(check)
        if state is None:
            raise ValueError(f"{self.path} has no checkpoint yet: let the run finish an epoch")
        return state

    def last(self) -> str:
        """Return in words which checkpoint is the last."""
        known = self._checkpoints()
        return f"the last checkpoint, {known[-1].name[:6]}, is from before" if known else "no checkpoint was saved yet"

    def _last(
        self, check: Callable[[dict[str, Any]], None] | None, rows: float = math.inf
    ) -> tuple[dict[str, Any] | None, dict[Path, ValueError]]:
        """Return the newest state that can be used with so many logged rows, and why newer ones cannot."""
        refused: dict[Path, ValueError] = {}
        for path in reversed(self._checkpoints()):
            try:
                state = load_state(path)
                with refusing(f"checkpoint {path}"):
                    if state["run"] != self.started():
                        raise ValueError("it is of another run")
                    if state["rows"] > rows:
                        raise ValueError(f"{self.metrics} lacks rows logged before it")
                    expect(state["rows"], range(2**63), "rows")
                    try_random_states(state["random"])
                    if check is not None:
                        check(state)
                return state, refused
            except ValueError as error:
                refused[path] = error
        if refused:
            raise ValueError(f"{next(iter(refused.values()))}; no other one is whole")
        return None, refused

    def _checkpoints(self) -> list[Path]:
        return sorted(self.checkpoints.glob(6 * "[0-9]" + "[-.]*safetensors"), key=_number)


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("-")[0].partition(".")[0])


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
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"][: torch.cuda.device_count()])


def try_random_states(states: Mapping[str, Any]) -> None:
    """Set states on generators of their own, so that :func:`set_random_states` cannot fail.

    Raises:
        Exception: Of whatever kind a generator raises for a state that is none of its own.
    """
    random.Random().setstate(states["python"])
    expect(states["numpy"][2], range(625), "random.numpy")  # NumPy would read beyond its 624 numbers
    np.random.RandomState().set_state(states["numpy"])
    torch.Generator().set_state(states["torch"])
    for state in states["cuda"] if torch.cuda.is_available() else ():
        torch.Generator("cuda").set_state(state)


def as_plain(settings: Any) -> dict[str, Any]:
    """Return a settings dataclass as JSON-ready data."""
    return TypeAdapter(type(settings)).dump_python(settings, mode="json")


def from_plain(cls: type, data: Any) -> Any:
    """Return the settings dataclass that :func:`as_plain` wrote.

    Raises:
        ValueError: If the data does not fit; the message names the field.
    """
    try:
        settings: Any = TypeAdapter(cls).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"settings: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    _refuse_unknown(data, as_plain(settings), "settings")
    return settings


def _refuse_unknown(data: Any, known: Any, name: str) -> None:
    if (unknown := next(_unknown(data, known), None)) is not None:
        raise ValueError(f"{name}: unknown field {unknown!r:.80}: remove it, or use the version that wrote it")


def _differences(stored: Any, given: Any, prefix: str = "") -> str:
    if isinstance(stored, dict) and isinstance(given, dict):
        parts = (_differences(stored.get(k), given.get(k), f"{prefix}.{k}" if prefix else k) for k in stored | given)
        return ", ".join(filter(None, parts))
    return "" if stored == given else f"{prefix} {given!r} (was {stored!r})"


def _unknown(data: Any, known: Any) -> Iterator[str]:
    """Yield the names of the fields that only ``data`` has."""
    if isinstance(data, dict) and isinstance(known, dict):
        for name, value in data.items():
            yield from (f"{name}.{inner}" for inner in _unknown(value, known[name])) if name in known else [name]
