"""Write the findings into the README and draw its picture, from the recorded results.

    python book/_ext/readme.py

``make readme`` does it; a test says when it has to be done again.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean, stdev

import matplotlib as mpl
import numpy as np
from evidence import ROOT, numbers, tested
from findings import findings
from matplotlib.figure import Figure

from dasvit.landscape import load
from dasvit.plot import BLUE, INK, ORANGE, figure_svg, use_book_style

BEGIN, END = "<!-- findings -->", "<!-- /findings -->"
PICTURE = Path("book/static/landscape.svg")
COUNT = 5
GROUPS = {
    "plain ViT, 1 to 4 layers": "ViT",
    "published encoders": "dasvit-",
    "found by searches on digits": "digits_tiny",
    "found by searches on CIFAR-10": "cifar10_small",
}


def block(root: Path = ROOT) -> str:
    """Return the first findings as lines of Markdown, with links to the chapters."""
    lines = []
    for page, found in list(findings(numbers(root)).items())[:COUNT]:
        lines.append(f"- {found} [{_named(root, page)}](book/{page}.ipynb)")
    return "\n".join(lines)


def _named(root: Path, page: str) -> str:
    if page[:2].isdigit():
        return f"Chapter {int(page[:2])}"
    first = json.loads((root / "book" / f"{page}.ipynb").read_text())["cells"][0]["source"]
    return "".join(first).splitlines()[0].removeprefix("# ")


def drawn(root: Path = ROOT) -> dict[str, list[float]]:
    """Return test accuracies in percent: of each landmark by its group, and of the space its mean and deviation."""
    landmarks = json.loads((root / "book" / "results" / "landmarks_cifar10.json").read_text())
    groups = {name: [100 * mean(t) for t in tested(landmarks, word)] for name, word in GROUPS.items()}
    space = [100 * mean(own) for own in load("cifar10").values("test")]
    told = groups | {"space": [float(len(space)), mean(space), stdev(space)]}
    return {name: [round(value, 2) for value in values] for name, values in told.items()}


def picture(root: Path = ROOT) -> str:
    """Return the picture as SVG: what was found, on the space it was found in. Its description holds what is drawn."""
    told, space = drawn(root), [100 * mean(own) for own in load("cifar10").values("test")]
    with mpl.rc_context():
        use_book_style()
        mpl.rcParams["font.size"] = 11
        figure = Figure(figsize=(4.6, 3.8), layout="constrained")
        upper, lower = figure.subplots(2, sharex=True, height_ratios=(1, 1.5))
        upper.hist(space, bins=np.arange(int(min(space)), max(space) + 0.5, 0.5).tolist(), color=BLUE, alpha=0.6)
        upper.set_title(f"{len(space):,} random encoders of the space", fontsize=11)
        upper.set_yticks([])
        upper.spines["left"].set_visible(False)
        for row, name in enumerate(GROUPS):
            lower.plot(told[name], [row] * len(told[name]), "o", color=ORANGE, ms=6, alpha=0.8)
            lower.text(min(space), row + 0.2, name, va="bottom")
        lower.axvline(mean(space), color=INK, ls="--", lw=1)
        lower.set_yticks([])
        lower.spines["left"].set_visible(False)
        lower.set(ylim=(-0.4, len(GROUPS) - 0.2), xlim=(min(space) - 0.5, max(space) + 0.5))
        lower.set_xlabel("accuracy on CIFAR-10 at 16 pixels (%)")
        svg = figure_svg(figure)
    return re.sub(r"(<svg[^>]*>)", lambda tag: f"{tag[1]}<desc>{json.dumps(told)}</desc>", svg, count=1)


def described(svg: str) -> dict[str, list[float]]:
    """Return what a picture says that it shows."""
    found = re.search(r"<desc>(.*?)</desc>", svg)
    return json.loads(found[1]) if found else {}


def main(root: Path = ROOT) -> None:
    """Write both."""
    readme = root / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{block(root)}\n{END}{after}")
    (root / PICTURE).write_text(picture(root))


if __name__ == "__main__":
    main()
