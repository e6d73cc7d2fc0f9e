"""What the book found, in sentences that the recorded results choose and fill."""

from __future__ import annotations

from collections.abc import Callable

from evidence import Numbers


def _search(n: Numbers) -> str:
    images = {"digits": n["digits_random"], "CIFAR-10": n["cifar_random"]}
    paid = " and ".join(name for name, gain in images.items() if gain.low > 0)
    head = f"The search paid on {paid}" if paid else "The search did not pay at our scale"
    return (
        f"**{head}**: against random encoders of equal size "
        "{digits_random} points of top-1 on digits, {cifar_random} on CIFAR-10."
    )


def _regret(n: Numbers) -> str:
    better = "better" if n["regret_share"].value > 0.5 else "worse"
    stands = f"{better} than" if n["regret_p"] < 0.05 else "not to be told from"
    return (
        "**{regret_searches} searches by DASViT beat {regret_dasvit} % of the space**, "
        f"{stands} random search of equal cost; plain DARTS "
        "{regret_darts} %."
    )


def _counting(n: Numbers) -> str:
    return "**Table I probably mixes two ways of counting**: in full, {macs_saved} % of operations are saved."


def _memory(n: Numbers) -> str:
    head = "The search fits a card of 24 GB" if n["ours_fits"] else "The search does not fit a card of 24 GB"
    plain = "plain DARTS fits, too" if n["plain_fits"] else "plain DARTS not"
    return f"**{head}, {plain}**: {{ours_gigabytes}} and {{plain_gigabytes}} GB, counted."


def _skips(n: Numbers) -> str:
    head = "Skips take over" if 2 * n["skips"] > n["edges"] else "Skips do not take over"
    return f"**{head} under the fairness term**: {{skips}} of {{edges}} edges of {{searches}} searches."


def _scores(n: Numbers) -> str:
    more = " and ".join(n["imagenet_adds_to_cells"])
    head = f"more than size in {more}" if more else "hardly more" if n["imagenet_adds"] else "no more"
    return (
        f"**A score without training tells {head}{'' if more else ' than size'}**: on ImageNet, τ of DSS is "
        "{imagenet_dss}, that of the parameter count {imagenet_params}."
    )


def _gpu(n: Numbers) -> str:
    steps = ", ".join(name for name in n["on_gpu"] if name != "planned")
    return f"**{f'Measured on a GPU: {steps}' if steps else 'Nothing has been measured on a GPU yet'}.**"


FINDINGS: dict[str, Callable[[Numbers], str]] = {
    "07_retraining": _search,
    "13_regret": _regret,
    "08_table1": _counting,
    "09_training_free": _scores,
    "memory": _memory,
    "05_fairness": _skips,
    "10_claims": _gpu,
}
"""Each by the page that has more of it, the most important first."""


def findings(known: Numbers) -> dict[str, str]:
    """Return a sentence or two for each page that found something, from :func:`evidence.numbers`."""
    return {page: find(known).format(**known) for page, find in FINDINGS.items()}
