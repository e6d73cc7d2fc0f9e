"""The list of all modules and public names, with the first line of what each says of itself."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import dasvit

ROOT = Path(__file__).resolve().parents[2]


def modules_of(page: str, root: Path = ROOT) -> list[str]:
    """Return the modules that a page of the API documents."""
    return re.findall(r"automodule:: ([\w.]+)", (root / "book" / f"{page}.md").read_text(encoding="utf-8"))


def summary(docstring: str | None) -> str:
    """Return the first line of a docstring as Markdown."""
    line = (docstring or "").partition("\n")[0].strip()
    return re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", line).replace("``", "`")


def module_lines(page: str, root: Path = ROOT) -> list[str]:
    """Return a list of a page's modules, in Markdown."""
    lines = []
    for name in modules_of(page, root):
        path = root.joinpath(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        lines.append(f"- {{py:mod}}`{name}`: {summary(ast.get_docstring(ast.parse(file.read_text())))}")
    return lines


def name_lines() -> list[str]:
    """Return a list of the names that ``dasvit`` exports, in Markdown."""
    names = [name for name in dasvit.__all__ if name != "__version__"]
    return [
        f"- {{py:obj}}`~{(found := getattr(dasvit, name)).__module__}.{name}`: {summary(found.__doc__)}"
        for name in names
    ]


def lines_of(what: str) -> list[str]:
    """Return the lines of the public ``names``, or of a page's modules."""
    return name_lines() if what == "names" else module_lines(what)
