"""The page of claims: what the two papers say, sentence by sentence, beside what this project has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from evidence import ROOT, numbers
from findings import findings

STATES = ("exact", "reproduced in trend", "not seen at our scale", "contradicted", "open")


def claims(root: Path = ROOT) -> dict[str, Any]:
    """Return what is written in ``claims.yml``."""
    return yaml.safe_load((root / "book" / "claims.yml").read_text())


def lines_of(part: str, root: Path = ROOT) -> list[str]:
    """Return the lines of a part, one of :data:`PARTS`."""
    return PARTS[part](root)


def _findings(root: Path) -> list[str]:
    return [f"- {found} {{doc}}`→ <{page}>`" for page, found in findings(numbers(root)).items()]


def _states(root: Path) -> list[str]:
    count = Counter(claim["state"] for claim in stated(claims(root)))
    return [f"{count.total()} claims: " + ", ".join(f"{count[state]} {state}" for state in STATES) + "."]


def _sentences(root: Path) -> list[str]:
    known = numbers(root)
    return [line for claim in claims(root)["claims"] for line in entry(claim["paper"], claim, known)]


def _figures(root: Path) -> list[str]:
    known = numbers(root)
    return [line for f in claims(root)["figures"] for line in entry(f"Figure {f['id']}", f, known)]


def _open(root: Path) -> list[str]:
    """What would settle the open claims; formulas and cells of the table have theirs elsewhere."""
    known, told = numbers(root), claims(root)
    figures = ({**figure, "paper": f"Figure {figure['id']}"} for figure in told["figures"])
    lines = ["| Claim | What would settle it | Cost |", "| --- | --- | --- |"]
    for claim in (*figures, *told["claims"]):
        if claim["state"] == "open":
            words = f"{claim['paper']}: “{claim['quote'].replace('$', '')}”"
            lines += [f"| {words} | {claim['close'].rstrip('.')} | {claim['cost'].format(**known)} |"]
    return lines


def _equations(root: Path) -> list[str]:
    told, lines = (
        claims(root),
        ["| Equation | Known how | The sentence it rests on | Where | In the code | Tested by |"],
    )
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for equation in told["equations"]:
        number = f"{{eq}}`eq-{equation['id']}`"
        where = f"{{doc}}`{equation['page'][:2].lstrip('0')} <{equation['page']}>`"
        code = f"{{py:obj}}`~dasvit.{equation['code']}`"
        cells = number, _known(equation), f"“{equation['quote']}”", where, code, f"`{equation['test']}`"
        lines += ["| " + " | ".join(cells) + " |"]
    algorithm = told["algorithm"]
    return [*lines, "", f"*Algorithm 1*: “{algorithm['quote']}”. {algorithm['note']} It is {_known(algorithm)}."]


def _known(formula: Mapping[str, Any]) -> str:
    return formula["known"] + "".join(f", [{entry}](#{entry.lower()})" for entry in formula.get("ledger", []))


def _table(root: Path) -> list[str]:
    table = claims(root)["table"]
    lines = [f"Accuracies are open. {_closing(table, numbers(root))}", ""]
    lines += ["| Model | " + " | ".join(table["columns"]) + " |", "| --- " * (len(table["columns"]) + 1) + "|"]
    for name, row in table["rows"].items():
        *accuracies, parameters, flops = map(str, row["printed"])
        cells = [*accuracies, f"{parameters}, {row['parameters']}", f"{flops}, {row['FLOPs']}"]
        lines += [f"| {name} | " + " | ".join(cells) + " |"]
    return lines


PARTS = {
    "findings": _findings,
    "states": _states,
    "sentences": _sentences,
    "figures": _figures,
    "equations": _equations,
    "table": _table,
    "open": _open,
}


def entry(title: str, claim: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Return the lines of a claim in words."""
    lines = [f"{title}: “{claim['quote'].replace('$', '')}”"]
    ours = claim["ours"].format(**known) if "ours" in claim else ""
    said = f" {ours[0].upper()}{ours[1:].rstrip('.')}." if ours else ""
    held = f" Held by `tests/{claim['test']}`." if "test" in claim else ""
    lines += [f": **{claim['state']}**.{said}{held} See {{doc}}`{claim['page']}`.", ""]
    return [*lines, f": {_closing(claim, known)}", ""] if "close" in claim else lines


def _closing(claim: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    return f"To close it: {claim['close'].rstrip('.')}. Cost: {claim['cost'].format(**known)}."


def stated(told: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every claim with its state; what a formula leaves to choose is open until somebody can read it."""
    for formula in (*told["equations"], told["algorithm"]):
        yield {**formula, "state": "exact" if formula["known"] == "described" else "open"}
    yield from (*told["figures"], *told["claims"])
    for row in told["table"]["rows"].values():
        yield from ({"state": row["accuracies"]} for _ in range(6))
        yield from ({"state": row[name]} for name in ("parameters", "FLOPs"))
