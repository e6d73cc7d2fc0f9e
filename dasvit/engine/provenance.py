"""Where a result comes from: command, commit, date, versions, machine, and the content of the code that made it.

A commit tells which code made a result, not whether that code is still the same. So a recorded result also names the
modules that it depends on, each with a hash of what it says: comments, docstrings and layout may change, a module may
move, and the result is as young as before; any other change makes it older than its code, see :func:`changed`.
"""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .. import __version__

ROOT = Path(__file__).resolve().parents[2]
CODE = ("dasvit/**/*.py", "benchmarks/**/*.py")  # what a result can depend on
WRITTEN = ("book/results", "tests/fixtures", "benchmarks/gpu/README.md")  # what recording writes: no change of the code
DIGITS = 16  # of a hash


def provenance() -> dict[str, Any]:
    """Return where a result comes from: command, commit, date, versions, hardware."""
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "dasvit": __version__}
        | {package: version(package) for package in ("torch", "timm")},
        "hardware": {"processor": _processor(), "threads": torch.get_num_threads(), **_gpu()},
    }


def commit(root: Path = ROOT) -> str | None:
    """Return the commit of the code, with ``-dirty`` behind it if a file that git knows has changed since.

    What recording writes does not count as a change, so that several results can be recorded one after the other.
    Where ``root`` is no repository, the commit is what the environment variable ``DASVIT_COMMIT`` or a file ``.commit``
    there says.
    """
    if (root / ".git").exists():  # or git would answer for a repository around it
        git = ["git", "--no-optional-locks", "-C", str(root)]
        status = ["status", "--porcelain", "--untracked-files=no", "--", ".", *(f":!{path}" for path in WRITTEN)]
        with suppress(OSError, subprocess.SubprocessError):
            head, changes = (
                subprocess.run([*git, *words], capture_output=True, text=True, timeout=60, check=True).stdout.strip()
                for words in (["rev-parse", "--short=12", "HEAD"], status)
            )
            return head + ("-dirty" if changes else "")
    with suppress(OSError):
        return os.environ.get("DASVIT_COMMIT") or (root / ".commit").read_text().strip() or None
    return None


def modules(*declared: str, root: Path = ROOT) -> dict[str, str]:
    """Return what a result of this process depends on: path and content of the project's modules imported so far.

    Args:
        declared: Patterns of files that it depends on beside, such as ``"dasvit/**/*.py"`` if other processes do the
            work, or a recorded result that is read.
        root: The project.

    Raises:
        ValueError: If there is no such file.
    """
    code, files = set(_matching(root, CODE)), [getattr(module, "__file__", None) for module in [*sys.modules.values()]]
    imported = {Path(file).resolve() for file in files if file}
    return contents({path for path in code if path in imported} | set(_matching(root, declared)), root)


def contents(paths: Iterable[Path], root: Path = ROOT) -> dict[str, str]:
    """Return path, relative to the project, and :func:`digest` of files."""
    return {path.relative_to(root).as_posix(): digest(path) for path in sorted(paths)}


def all_code(root: Path = ROOT) -> dict[str, str]:
    """Return path and content of all modules that a result can depend on."""
    return contents(_matching(root, CODE), root)


def changed(recorded: Mapping[str, str], root: Path = ROOT) -> list[str]:
    """Return which of the recorded files say something else now, or are gone; one that has only moved is neither.

    Args:
        recorded: Contents by path, as of :func:`modules`.
        root: The project.
    """
    known = set(all_code(root).values())
    return [
        name
        for name, content in recorded.items()
        if content not in ((digest(root / name),) if (root / name).is_file() else known)
    ]


def digest(path: Path) -> str:
    """Return the hash of a file: of a Python module its syntax tree without docstrings, of any other file its bytes.

    Imports are left out too: they say where names are, and what these are is in a hash of its own.
    """
    content = path.read_bytes()
    return _code_digest(content) if path.suffix == ".py" else hashlib.sha256(content).hexdigest()[:DIGITS]


@lru_cache(maxsize=256)
def _code_digest(content: bytes) -> str:
    """Return the hash of a syntax tree, node by node, each before its parts.

    Strings that stand alone are left out, and empty fields, since every version of Python has others.
    """
    told: list[Any] = []
    rest: list[Any] = [ast.parse(content)]
    while rest:
        node = rest.pop()
        if isinstance(node, ast.AST):
            fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
            told.append((type(node).__name__, *fields))
            rest.extend(fields.values())
        elif isinstance(node, list):
            parts = [part for part in node if not _is_left_out(part)]
            told.append(len(parts))
            rest.extend(parts)
        else:
            told.append(node)
    return hashlib.sha256(repr(told).encode()).hexdigest()[:DIGITS]


def _is_left_out(node: Any) -> bool:
    """Tell whether a statement is an import or a text that stands alone."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return isinstance(node, ast.Import | ast.ImportFrom)


def _matching(root: Path, patterns: Iterable[str]) -> Iterable[Path]:
    for pattern in patterns:
        if not (found := [path for path in root.glob(pattern) if path.is_file()]) and pattern not in CODE:
            raise ValueError(f"{root / pattern}: there is no such file")
        yield from found


def _gpu() -> dict[str, Any]:
    """Return the GPU and what its numbers and its speed depend on; on a processor that there is none."""
    if not torch.cuda.is_available():
        return {"gpu": None}
    driver = Path("/sys/module/nvidia/version")
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver.read_text().strip() if driver.exists() else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32": torch.get_float32_matmul_precision() != "highest",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
