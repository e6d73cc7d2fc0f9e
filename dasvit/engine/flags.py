"""Flags from the fields of dataclasses: name, type, default and help of a setting are written once, where it is."""

from __future__ import annotations

import argparse
import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from itertools import pairwise
from types import NoneType
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


BY_PLACE = {"by place": True}
"""Metadata of a field that is given by its place, not by a flag."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{' '.join(message.split())} (see {self.prog} --help)")


class _Rows(argparse.Action):
    """Take values as a tuple, or as a tuple of rows of ``const`` values."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if self.const and len(values) % self.const:
            raise argparse.ArgumentError(self, f"{len(values)} values where {self.const} at a time are needed")
        rows = zip(*[iter(values)] * self.const, strict=True) if self.const else values
        setattr(namespace, self.dest, tuple(rows))


def _reading(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


@dataclass(frozen=True)
class _Flag:
    path: tuple[str, ...]
    type: Any
    default: Any
    help: str
    metadata: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.path[-1].replace("_", "-")

    def add(self, parser: argparse.ArgumentParser, shown: bool) -> None:
        """Add the flag to a parser; what is not given is not there after parsing."""
        kind: Any = self.type
        if NoneType in get_args(kind):
            (kind,) = set(get_args(kind)) - {NoneType}
        how: dict[str, Any] = {"default": argparse.SUPPRESS, "help": self._told() if shown else argparse.SUPPRESS}
        if "read" in self.metadata:
            how |= {"type": _reading(self.metadata["read"]), "metavar": self.name.rpartition("-")[2].upper()}
        elif get_origin(kind) is Literal:
            how |= {"choices": get_args(kind), "type": type(get_args(kind)[0])}
        elif get_origin(kind) is tuple:
            inner, _ = get_args(kind)
            row = get_args(inner)  # of several values, such as a stage
            unit = row[0] if row else inner
            how |= {"nargs": "*", "action": _Rows, "const": len(row), "type": unit, "metavar": unit.__name__.upper()}
        elif kind is bool:
            how |= {"action": argparse.BooleanOptionalAction}
        else:
            how |= {"type": kind, "metavar": kind.__name__.upper()}
        if BY_PLACE.items() <= self.metadata.items():
            how |= {"nargs": "+"} if "nargs" in how else {}  # of several one at least
            parser.add_argument(".".join(self.path), **{k: v for k, v in how.items() if k != "metavar"})
            return
        short = self.metadata.get("short", ())
        parser.add_argument(*short, f"--{self.name}", dest=".".join(self.path), required=self.default is MISSING, **how)

    def _told(self) -> str:
        default = self.default
        if isinstance(default, tuple):
            default = " ".join(str(x) for row in default for x in (row if isinstance(row, tuple) else (row,)))
        told = "" if default in (MISSING, None, "") else f" (default: {default})"
        return (self.help + told).replace("%", "%%")


def _flags(cls: type, path: tuple[str, ...] = ()) -> Iterator[_Flag]:
    types, body = get_type_hints(cls), ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    helps = {
        a.target.id: " ".join(str(b.value.value).split())
        for a, b in pairwise(body.body)
        if isinstance(a, ast.AnnAssign) and isinstance(a.target, ast.Name)
        if isinstance(b, ast.Expr) and isinstance(b.value, ast.Constant)
    }
    for one in fields(cls):
        kind, place = types[one.name], (*path, one.name)
        if is_dataclass(kind) and isinstance(kind, type):
            yield from _flags(kind, place)
        else:
            yield _Flag(place, kind, one.default, helps.get(one.name, ""), one.metadata)


def parse(
    command: str, arguments: Sequence[str], options: type[T], settings: type | None = None, first: Sequence[str] = ()
) -> tuple[T, dict[str, Any]]:
    """Read a command's options, and which settings are changed.

    Args:
        command: Its name.
        arguments: What follows the name.
        options: A dataclass; its docstring describes the command.
        settings: A dataclass with further flags, those of the dataclasses in it too; defaults told are its own.
        first: Flags that ``--help`` lists; by default all. Otherwise ``--help-all`` lists all.

    Returns:
        The options, and the settings that are given, by field, nested as they are, for :func:`changed`.

    Raises:
        ValueError: If the arguments do not fit.
    """
    prog, told = f"dasvit {command}", f"`dasvit {command} --help-all` lists all flags." if first else None
    parser = _Parser(
        prog, f"{prog} [OPTIONS]", (options.__doc__ or "").partition("\n")[0], epilog=told, allow_abbrev=False
    )
    parser.add_argument("--help-all", action="help", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    own = list(_flags(options))
    for flag in (*own, *(_flags(settings, ("settings",)) if settings else ())):
        flag.add(parser, not first or "--help-all" in arguments or flag.name in first)
    given = vars(parser.parse_args(list(arguments)))
    tree: dict[str, Any] = {}
    for place, value in given.items():
        *path, name = place.split(".")
        holder = tree
        for part in path:
            holder = holder.setdefault(part, {})
        holder[name] = value
    changes = tree.pop("settings", {})
    return options(**tree), changes


def changed(settings: T, changes: Mapping[str, Any]) -> T:
    """Return settings with changes, as of :func:`parse`."""
    new = {k: changed(getattr(settings, k), v) if isinstance(v, dict) else v for k, v in changes.items()}
    return replace(settings, **new)  # type: ignore[type-var]
