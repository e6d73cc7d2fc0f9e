"""The page of claims: what the two papers say, sentence by sentence, beside what this project has."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from scipy import stats

from dasvit.landscape import Answer, load
from dasvit.presets import SEARCH
from dasvit.space import Genotype, SearchSpace

ROOT = Path(__file__).resolve().parents[2]
STATES = ("exact", "reproduced in trend", "not seen at our scale", "contradicted", "open")
CNNS = ("VGG-16", "VGG-19", "ResNet-50", "ResNet-152", "EfficientNet-B7", "RegNetY-12GF", "RegNetY-16GF")
RUNS = {"digits": "digits_tiny", "cifar": "cifar10_small"}
REPORTS = {"digits": "correlation_digits", "cifar10": "correlation_cifar10"}


def claims(root: Path = ROOT) -> dict[str, Any]:
    """Return what is written in ``claims.yml``."""
    return yaml.safe_load((root / "book" / "claims.yml").read_text())


def numbers(root: Path = ROOT) -> dict[str, str]:
    """Return every number that a claim names, from the recorded results and from the library."""

    def recorded(name: str) -> dict[str, Any]:
        return json.loads((root / "book" / "results" / f"{name}.json").read_text())

    rows = claims(root)["table"]["rows"]
    found: dict[str, str] = {}
    for part in (_memory, _searches, _costs, _training_free, _imagenet, _landscape):
        found |= part(recorded, rows)
    operations = Counter(operation.kind for operation in SearchSpace().operations)
    stages = ", ".join(f"{epochs} epochs at {depth} layers" for depth, _, epochs in SEARCH["paper"].stages)
    return found | {"attentions": str(operations["msa"]), "mlps": str(operations["mlp"]), "stages": stages}


Recorded = Callable[[str], dict[str, Any]]


def _memory(recorded: Recorded, _rows: Mapping[str, Any]) -> dict[str, str]:
    def peak(**wanted: Any) -> str:
        wanted |= {"layers": 6, "batch": 64, "precision": "32-true", "choice": "even"}
        (row,) = (row for row in recorded("memory")["rows"] if wanted.items() <= row.items())
        return f"{max(row['alpha_peak_bytes'], row['weight_peak_bytes']) / 1e9:.1f}"

    stage = {"way": "ours", "operations": 3, "recompute": True}
    return {
        "plain_gigabytes": peak(way="plain", operations=8, keep_ratio=1.0),
        "ours_gigabytes": peak(way="ours", operations=3, recompute=False, keep_ratio=1.0),
        "all_tokens_gigabytes": peak(**stage, keep_ratio=1.0),
        "half_tokens_gigabytes": peak(**stage, keep_ratio=0.5),
    }


def _searches(recorded: Recorded, _rows: Mapping[str, Any]) -> dict[str, str]:
    runs = {name: recorded(file) for name, file in RUNS.items()}
    found = [Genotype.from_json(one["genotype"]) for run in runs.values() for one in run["searches"]]
    kinds = Counter(operation.kind for genotype in found for _, operation in genotype.edges)
    told = {
        "skips": str(kinds["skip"]),
        "edges": str(kinds.total()),
        "searches": str(len(found)),
        "without_attention": str(sum(not genotype.has_attention for genotype in found)),
    }
    for name, run in runs.items():
        one, other = (by_unit(run, network) for network in ("found", "vit"))
        low, high = stats.ttest_ind(one, other, equal_var=False).confidence_interval()
        told[f"{name}_gain"] = f"{mean(one) - mean(other):+.1f} [{low:+.1f}, {high:+.1f}]"
        gains = over_random(run)
        low, high = stats.t.interval(0.95, len(gains) - 1, mean(gains), stats.sem(gains))
        told[f"{name}_random"] = f"{mean(gains):+.1f} [{low:+.1f}, {high:+.1f}]"
    return told


def over_random(run: Mapping[str, Any]) -> list[float]:
    """Return for each search the points of top-1 that its encoder is above its random encoders, at equal epochs."""
    groups: dict[tuple[str, int], list[float]] = {}
    for row in run["rows"]:
        if row["equal"] == "epochs" and row["network"] in ("found", "random"):
            groups.setdefault((row["network"], row["search"]), []).append(100 * row["top1"])
    return [mean(values) - mean(groups["random", search]) for (who, search), values in groups.items() if who == "found"]


def by_unit(run: Mapping[str, Any], network: str) -> list[float]:
    """Return points of top-1 at equal epochs: of a search the mean over its trainings, else of a seed."""
    by, groups = "search" if network == "found" else "seed", {}
    for row in run["rows"]:
        if (row["network"], row["equal"]) == (network, "epochs"):
            groups.setdefault(row[by], []).append(100 * row["top1"])
    return [mean(group) for group in groups.values()]


def _costs(recorded: Recorded, rows: Mapping[str, Any]) -> dict[str, str]:
    macs = {name: counts["ours"] / 1e9 for name, counts in recorded("counting_tools")["macs"].items()}
    vit, dasvit = (rows[name]["printed"] for name in ("ViT-B/16", "DASViT"))
    gaps = [rows[name]["printed"][4] - dasvit[4] for name in CNNS]
    return {
        "parameters_saved": f"{100 * (1 - dasvit[6] / vit[6]):.0f}",
        "vit_macs": f"{macs['ViT-B/16']:.1f}",
        "dasvit_macs": f"{macs['DASViT']:.1f}",
        "resnet_macs": f"{macs['ResNet-152']:.1f}",
        "regnet_macs": f"{macs['RegNetY-12GF']:.1f}",
        "macs_saved": f"{100 * (1 - macs['DASViT'] / macs['ViT-B/16']):.0f}",
        "dasvit_printed": str(dasvit[7]),
        "resnet_printed": str(rows["ResNet-152"]["printed"][7]),
        "regnet_printed": str(rows["RegNetY-12GF"]["printed"][7]),
        "cnn_gaps": ", ".join(f"{gap:+.1f}" for gap in sorted(gaps)),
    }


def _training_free(recorded: Recorded, _rows: Mapping[str, Any]) -> dict[str, str]:
    seconds = recorded("dss_speed")["results"]["autoformer-t paper"]["cpu_seconds"]["ours"]
    told = {"tf_minutes": f"{8000 * seconds / 60:.0f}"}
    for name, file in REPORTS.items():
        scored = recorded(file)["rows"]
        top = [row["top1"] for row in scored]
        tau = {
            score: stats.kendalltau([mean(row["scores_trained"][score]) for row in scored], top).statistic
            for score in ("dss", "params", "te", "naswot")
        }
        told |= {f"dss_{name}": f"{tau['dss']:+.2f}", f"params_{name}": f"{tau['params']:+.2f}"}
        told[f"rivals_{name}"] = ", ".join(f"{tau[score]:+.2f}" for score in ("dss", "te", "naswot"))
    return told


def lines_of(part: str, root: Path = ROOT) -> list[str]:
    """Return the lines of a part: ``findings``, ``states``, ``sentences``, ``figures``, ``equations`` or ``table``."""
    return PARTS[part](root)


def _findings(root: Path) -> list[str]:
    known = numbers(root)
    return [f"- {f['found'].format(**known)} {{doc}}`→ <{f['page']}>`" for f in claims(root)["findings"]]


def _states(root: Path) -> list[str]:
    count = Counter(claim["state"] for claim in stated(claims(root)))
    return [f"{count.total()} claims: " + ", ".join(f"{count[state]} {state}" for state in STATES) + "."]


def _sentences(root: Path) -> list[str]:
    known = numbers(root)
    return [line for claim in claims(root)["claims"] for line in entry(claim["paper"], claim, known)]


def _figures(root: Path) -> list[str]:
    known = numbers(root)
    return [line for f in claims(root)["figures"] for line in entry(f"Figure {f['id']}", f, known)]


def _equations(root: Path) -> list[str]:
    told, lines = (
        claims(root),
        ["| Equation | Known how | The sentence it rests on | Where | In the code | Tested by |"],
    )
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for equation in told["equations"]:
        number = f"{{eq}}`eq-{equation['id']}`"
        how = equation["known"] + "".join(f", [{a}](#{a.lower()})" for a in equation.get("ledger", []))
        where = f"{{doc}}`{equation['page'][:2].lstrip('0')} <{equation['page']}>`"
        code = f"{{py:obj}}`~dasvit.{equation['code']}`"
        cells = number, how, f"“{equation['quote']}”", where, code, f"`{equation['test']}`"
        lines += ["| " + " | ".join(cells) + " |"]
    algorithm = told["algorithm"]
    return [*lines, "", f"*Algorithm 1*: “{algorithm['quote']}”. {algorithm['note']}"]


def _table(root: Path) -> list[str]:
    table = claims(root)["table"]
    lines = [f"Accuracies are open: {table['close']}.", ""]
    lines += ["| Model | " + " | ".join(table["columns"]) + " |", "| --- " * (len(table["columns"]) + 1) + "|"]
    for name, row in table["rows"].items():
        *accuracies, parameters, flops = map(str, row["printed"])
        cells = [*accuracies, f"{parameters}, {row['parameters']}", f"{flops}, {row['FLOPs']}"]
        lines += [f"| {name} | " + " | ".join(cells) + " |"]
    return lines


def _imagenet(recorded: Recorded, _rows: Mapping[str, Any]) -> dict[str, str]:
    spaces = [recorded("imagenet_ranking")["spaces"][f"autoformer-{size}"]["scores"] for size in "tsb"]

    def of(score: str, measure: str) -> list[Any]:
        return [scores[score][measure] for scores in spaces]

    counts = of("dss", "kendall")
    return {
        "imagenet_dss": ", ".join(f"{tau['value']:+.2f}" for tau in counts),
        "imagenet_params": ", ".join(f"{tau['value']:+.2f}" for tau in of("params", "kendall")),
        "imagenet_networks": " to ".join(sorted({str(tau["count"]) for tau in counts})),
    }


def _landscape(recorded: Recorded, _rows: Mapping[str, Any]) -> dict[str, str]:
    truth = load("cifar10")
    seed, found = truth.model("test").variances.seed, recorded("landmarks_cifar10")["networks"]

    def percentiles(word: str) -> list[float]:
        tested = [[one["test"] for one in network["trainings"]] for network in found if word in network["name"]]
        answers = (Answer(mean(t), (seed / len(t)) ** 0.5, len(t), measured=True) for t in tested)
        return [truth.percentile(answer) for answer in answers]

    searched = percentiles(f"{RUNS['cifar']}, search")
    low, high = stats.t.interval(0.95, len(searched) - 1, mean(searched), stats.sem(searched))
    noise = recorded("landscape_cifar10")["noise"]["test"]
    return {
        "landscape_encoders": f"{len(truth.numbers):,}",
        "landscape_reliability": f"{noise['icc']:.2f} [{noise['low']:.2f}, {noise['high']:.2f}]",
        "landscape_searched": f"{mean(searched):.0f} [{low:.0f}, {high:.0f}]",
        "landscape_published": f"{percentiles('dasvit-cifar10')[0]:.0f}",
    }


PARTS = {
    "findings": _findings,
    "states": _states,
    "sentences": _sentences,
    "figures": _figures,
    "equations": _equations,
    "table": _table,
}


def entry(title: str, claim: Mapping[str, Any], known: Mapping[str, str]) -> list[str]:
    """Return the lines of a claim in words."""
    lines = [f"{title}: “{claim['quote'].replace('$', '')}”"]
    where = f" See {{doc}}`{claim['page']}`." if "page" in claim else ""
    ours = claim["ours"].format(**known) if "ours" in claim else ""
    said = f" {ours[0].upper()}{ours[1:].rstrip('.')}." if ours else ""
    lines += [f": **{claim['state']}**.{said}{where}", ""]
    if "close" in claim:
        lines += [f": To close it: {claim['close'].rstrip('.')}.", ""]
    return lines


def stated(told: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every claim with its state; an equation is exact as it has been put back."""
    for equation in told["equations"]:
        yield {**equation, "state": "exact"}
    yield from (told["algorithm"], *told["figures"], *told["claims"])
    for row in told["table"]["rows"].values():
        yield from ({"state": row["accuracies"]} for _ in range(6))
        yield from ({"state": row[name]} for name in ("parameters", "FLOPs"))
