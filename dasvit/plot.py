"""Every figure of the book: an encoder's graph, α over a search, attention, kept tokens, accuracies."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from torch import Tensor

from .engine.runs import unwritable
from .operations import KINDS
from .space import Genotype, Operation

INK = "#123456"  # stands for the text colour of the page, see figure_svg
BLUE, ORANGE = "#3b82c4", "#d9722e"
COLORS = {name: kind.colour for name, kind in KINDS.items()}
"""Those of the kinds of operations known when this module is loaded."""
_STYLE = "<style>svg{color:#24292f}@media (prefers-color-scheme: dark){svg{color:#d5dae0}}</style>"
_RC = {
    "svg.hashsalt": "dasvit",
    "svg.fonttype": "path",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.figsize": (5.2, 3.0),
    "axes.prop_cycle": cycler(color=[BLUE, ORANGE, "#3a9d5d", "#b65fb0", "#c2a02c"]),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


def figure_svg(figure: Figure) -> str:
    """Return a figure as SVG that is the same byte for byte each time and follows a page's light or dark theme.

    Args:
        figure: Drawn under :func:`use_book_style`; what has its ink colour becomes ``currentColor``.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    svg = buffer.getvalue().replace(INK, "currentColor")
    return re.sub(r"(<svg[^>]*>)", lambda match: match.group(1) + _STYLE, svg, count=1)


def use_book_style() -> None:
    """Set the figure style of the book; in a notebook, show figures as such SVG, and no warning about widgets."""
    from IPython import get_ipython
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    warnings.filterwarnings("ignore", message="IProgress not found")  # timm brings tqdm's bars for notebooks
    mpl.rcParams.update(_RC)  # type: ignore[arg-type]
    if (shell := get_ipython()) is not None:
        set_matplotlib_formats("svg")
        shell.display_formatter.formatters["image/svg+xml"].for_type(Figure, figure_svg)


def draw_genotype(genotype: Genotype, title: str = "") -> Figure:
    """Draw an encoder as a graph: inputs on the left, nodes in the middle, their sum on the right."""
    figure = Figure(figsize=(1.3 * (len(genotype.nodes) + 2), 2.6))
    axes = figure.add_subplot()
    names = ["$E_{l-2}$", "$E_{l-1}$"][2 - genotype.inputs :]
    places = _graph(axes, names, len(genotype.nodes), title)
    for (source, target), operation in genotype.edges:
        _arrow(axes, places, (source, target), operation.spec.colour, str(operation))
    return figure


def draw_search(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw what a search does to an encoder layer, as the paper's Figure 4 is described.

    The four parts are the graph, a mixture of all candidates on every edge, the candidates that are left at the end
    with their weights, and the encoder that is read off. The thicker a line, the more weight its operation has.

    Args:
        history: Of a search, as :func:`plot_alpha` takes it.
    """
    genotype = Genotype.from_json(history[-1]["genotype"])
    edges = [(int(source), int(target)) for source, target in (name.split("-") for name in history[0]["alpha"])]
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    titles = "(a) graph", "(b) mixed edges", "(c) weights at the end", "(d) encoder"
    parts = dict(zip(titles, figure.subplots(2, 2).flat, strict=True))
    names = [f"$x_{i}$" for i in range(genotype.inputs)]
    graphs = [(axes, _graph(axes, names, len(genotype.nodes), title)) for title, axes in parts.items()]
    for edge in edges:
        _arrow(*graphs[0], edge, INK)
    for graph, row in zip(graphs[1:3], (history[0], history[-1]), strict=True):
        for edge, alpha in zip(edges, row["alpha"].values(), strict=True):
            bends = _bend(edge) + np.linspace(-0.2, 0.2, len(alpha))
            for (name, weight), bend in zip(_mixing(alpha).items(), bends, strict=True):
                _arrow(*graph, edge, Operation.parse(name).spec.colour, bend=bend, lw=6 * weight)
    for edge, operation in genotype.edges:
        _arrow(*graphs[3], edge, operation.spec.colour, str(operation))
    kinds = dict.fromkeys(Operation.parse(name).kind for name in next(iter(history[0]["alpha"].values())))
    lines = [Line2D([], [], color=KINDS[kind].colour, lw=2, label=kind) for kind in kinds]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))
    return figure


_Place = tuple[float, float]


def _graph(axes: Axes, inputs: Sequence[str], count: int, title: str) -> list[_Place]:
    """Draw the inputs, ``count`` nodes and their sum, and return where they are, the sum last."""
    places = [(0.0, 1.5 * (len(inputs) - 1 - 2 * i)) for i in range(len(inputs))]
    places += [(3.0 * (j + 1), 0.9 * (-1) ** j) for j in range(count)]
    places += [(3.0 * count + 2.4, 0.0)]
    axes.set(xlim=(-0.8, places[-1][0] + 0.8), ylim=(-2.2, 2.0), title=title)
    axes.set_axis_off()
    names = [*inputs, *(f"$x_{j}$" for j in range(len(inputs), len(inputs) + count)), "$E_l$"]
    for name, (x, y) in zip(names, places, strict=True):
        box = {"boxstyle": "round,pad=0.3", "fc": "none", "ec": INK}
        axes.text(x, y, name, ha="center", va="center", color=INK, bbox=box)
    for node in range(len(inputs), len(inputs) + count):
        _arrow(axes, places, (node, len(places) - 1), INK, bend=0.0)
    return places


def _arrow(
    axes: Axes,
    places: Sequence[_Place],
    edge: tuple[int, int],
    color: Any,
    label: str = "",
    bend: float | None = None,
    lw: float = 1.3,
) -> None:
    source, target = edge
    (x0, y0), (x1, y1) = places[source], places[target]
    bend = _bend(edge) if bend is None else bend
    style: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 10, "shrinkA": 14, "shrinkB": 14, "lw": lw}
    axes.add_patch(FancyArrowPatch((x0, y0), (x1, y1), color=color, connectionstyle=f"arc3,rad={bend}", **style))
    if label:
        at, side = 0.3, "right"  # off a steep line that rises, or passes a node
        if abs(y1 - y0) < 1:
            at, side = 0.5, "center"
        elif y1 < y0 and target - source <= 2:
            at, side = 0.64, "left"
        x, y = x0 + at * (x1 - x0) + bend * (y1 - y0) / 2, y0 + at * (y1 - y0) - bend * (x1 - x0) / 2
        axes.text(x, y + 0.14, label, ha=side, va="bottom", color=color)


def _bend(edge: tuple[int, int]) -> float:
    """Return how much an edge is bent, so that it passes the nodes between its ends."""
    return 0.12 * (edge[1] - edge[0] - 1)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a file, whole or not at all; the suffix chooses the format.

    Raises:
        ValueError: If the format is not known or the file cannot be written.
        RunFailedError: If the disk is full.
    """
    known = figure.canvas.get_supported_filetypes()
    if (suffix := path.suffix.removeprefix(".")) not in known:
        raise ValueError(f"cannot draw {path}: use one of the suffixes {', '.join(sorted(known))}")
    if not os.path.isdir(path.parent):  # Path.is_dir raises where a name is too long
        raise ValueError(f"cannot draw {path}: folder {path.parent} does not exist")
    metadata = {"Date": None} if suffix == "svg" else {}
    with mpl.rc_context({"svg.hashsalt": "dasvit"}):
        try:
            with TemporaryDirectory(dir=path.parent) as folder:
                part = Path(folder) / path.name
                figure.savefig(part, bbox_inches="tight", metadata=metadata)
                part.replace(path)
        except OSError as error:
            raise unwritable(path, error) from None


def plot_alpha(history: Sequence[Mapping[str, Any]], carried: bool = False) -> Figure:
    """Plot the mixing weights ``softmax(α)`` of each edge over the epochs of a search; lines end where pruned.

    Args:
        history: Of the search, one row an epoch.
        carried: Whether a stage began with the α of the stage before; by default with equal weights.
    """
    edges = list(history[0]["alpha"])
    figure = Figure(figsize=(5.2, 1.6 * ((len(edges) + 1) // 2)), layout="constrained")
    grid = figure.subplots((len(edges) + 1) // 2, 2, sharex=True, sharey=True, squeeze=False)
    borders = [i for i, row in enumerate(history) if i and row["stage"] != history[i - 1]["stage"]]
    for axes, edge in zip(grid.flat, edges, strict=False):
        rows = [row["alpha"][edge] for row in history]
        styles = _styles(list(rows[0]))
        for lo, hi in zip([0, *borders], [*borders, len(rows)], strict=True):
            start = {name: rows[lo - 1][name] if carried and lo else 0.0 for name in rows[lo]}
            weights = [_mixing(row) for row in (start, *rows[lo:hi])]
            for name in rows[lo]:
                label = None if lo else name
                axes.plot(range(lo, hi + 1), [w[name] for w in weights], lw=1.4, label=label, **styles[name])
        for border in borders:
            axes.axvline(border, color=INK, lw=0.6, ls=":")
        axes.set_title(f"edge {edge.replace('-', '→')}", fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("epochs")
    lines = grid.flat[0].get_legend_handles_labels()
    for axes in grid.flat[len(edges) :]:
        axes.set_axis_off()
        axes.legend(*lines, loc="center", ncols=2, fontsize=10)
    if len(edges) == grid.size:  # no place is left
        figure.legend(*lines, loc="outside lower center", ncols=4, fontsize=10)
    return figure


def _mixing(alpha: Mapping[str, float]) -> dict[str, float]:
    raised = np.exp(np.array(list(alpha.values())) - max(alpha.values()))
    return dict(zip(alpha, raised / raised.sum(), strict=True))


def _shades(names: Sequence[str]) -> list[tuple[str, Any]]:
    """Return a colour for each operation: one hue a kind, darker for larger sizes."""
    kinds = [Operation.parse(name).spec for name in names]
    shades = []
    for i, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        strength = 1 - 0.28 * sum(later == kind for later in kinds[i + 1 :])
        shades.append((name, (*mpl.colors.to_rgb(kind.colour), max(0.3, strength))))
    return shades


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a line for each operation: one colour a kind, the largest size solid, smaller ones broken."""
    kinds = [Operation.parse(name).spec for name in names]
    lines = "-", "--", ":", "-."
    larger = [sum(later == kind for later in kinds[i + 1 :]) for i, kind in enumerate(kinds)]
    styles = zip(names, kinds, larger, strict=True)
    return {name: {"color": kind.colour, "ls": lines[count % len(lines)]} for name, kind, count in styles}


def plot_tokens(
    images: Float[Tensor, "k c h w"],
    kept: Mapping[str, Int[Tensor, "k m"]],
    patch_size: int,
    titles: Sequence[str] | None = None,
) -> Figure:
    """Show images, and below them what selections of tokens see: kept patches framed, the others dimmed.

    Args:
        images: Values in [0, 1].
        kept: By name of the selection, the indices of the kept tokens; 0 is the class token, patches count from 1 in
            row-major order.
        patch_size: Side of a patch in pixels.
        titles: A title for each image.
    """
    rows, columns = (side // patch_size for side in images.shape[-2:])
    figure = Figure(figsize=(1.3 * len(images), 1.35 * (1 + len(kept))), layout="constrained")
    grid = figure.subplots(1 + len(kept), len(images), squeeze=False)
    for name, line, indices in zip(["image", *kept], grid, [None, *kept.values()], strict=True):
        line[0].set_ylabel(name)
        for i, (axes, image) in enumerate(zip(line, images, strict=True)):
            shares = np.full(rows * columns, 1.0 if indices is None else 0.3)
            for place in [] if indices is None else indices[i, 1:].tolist():
                shares[place - 1] = 1.0
                corner = (place - 1) % columns * patch_size - 0.5, (place - 1) // columns * patch_size - 0.5
                frame = mpl.patches.Rectangle(corner, patch_size, patch_size, fc="none", ec=ORANGE, lw=1.2)
                axes.add_patch(frame)
            _show(axes, image, shares.reshape(rows, columns))
    for axes, title in zip(grid[0], titles or [], strict=False):
        axes.set_title(title, fontsize=10)
    return figure


def plot_shares(images: Float[Tensor, "k c h w"], shares: np.ndarray, titles: Sequence[str] | None = None) -> Figure:
    """Show images washed out to grey where the share of a patch is small.

    Args:
        images: Values in [0, 1].
        shares: Of each patch, in [0, 1], ``[k, rows, columns]``.
        titles: A title for each image.
    """
    figure = Figure(figsize=(1.3 * len(images), 1.5), layout="constrained")
    grid = figure.subplots(1, len(images), squeeze=False)[0]
    for i, (axes, image, share) in enumerate(zip(grid, images, shares, strict=True)):
        _show(axes, image, share)
        if titles:
            axes.set_title(titles[i], fontsize=10)
    return figure


def _show(axes: Axes, image: Float[Tensor, "c h w"], share: np.ndarray) -> None:
    """Show an image, each patch mixed with grey to its share."""
    patch = tuple(side // count for side, count in zip(image.shape[-2:], share.shape, strict=True))
    shown = np.kron(share, np.ones(patch))[..., None]
    pixels = shown * image.permute(1, 2, 0).numpy() + (1 - shown) * 0.6
    axes.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def plot_history(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot the losses, and the accuracies if there are such, of a run over its epochs."""
    kinds = {"cross-entropy": "loss", "accuracy": "accuracy top1 balanced"}
    curves = {
        label: [name for name in history[0] if name.rpartition("_")[2] in ends.split()] for label, ends in kinds.items()
    }
    figure = Figure(figsize=(6.2, 2.4), layout="constrained")
    for axes, (label, names) in zip(figure.subplots(1, 2), curves.items(), strict=True):
        for name in names:
            axes.plot(range(1, len(history) + 1), [row[name] for row in history], label=name.replace("_", " "))
        axes.set(xlabel="epoch", ylabel=label)
        if names:
            axes.legend(fontsize=8)
        else:
            axes.set_axis_off()
    return figure


def plot_front(rows: Sequence[tuple[str, float, float, bool]], cost: str) -> Figure:
    """Plot accuracy by cost, and a line through those that no other one beats in both.

    Args:
        rows: Name, cost, accuracy in [0, 1], whether it is on the front; the cheapest first.
        cost: What the cost is, for the axis.
    """
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    axes.scatter([c for _, c, _, best in rows if not best], [100 * a for *_, a, best in rows if not best], color=BLUE)
    front = [(c, 100 * a) for _, c, a, best in rows if best]
    axes.plot(*zip(*front, strict=True), "o-", color=ORANGE, label="no other is better in both")
    for name, c, a, _ in rows:
        axes.annotate(name, (c, 100 * a), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel=cost, ylabel="balanced accuracy on validation images (%)")
    axes.legend(fontsize=8)
    return figure


def plot_confusion(counts: Int[Tensor, "classes classes"], classes: Sequence[str]) -> Figure:
    """Show how many images of each class (rows) are taken for each (columns)."""
    side = 2.0 + 0.35 * len(classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(counts.numpy() / counts.sum(dim=1, keepdim=True).clamp_min(1).numpy(), cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(counts.tolist()):
        for j, count in enumerate(row):
            if count:
                axes.text(j, i, count, ha="center", va="center", fontsize=7, color="white" if i == j else INK)
    axes.set(xticks=range(len(classes)), yticks=range(len(classes)), xlabel="taken for", ylabel="is")
    axes.set_xticklabels(classes, rotation=90, fontsize=8)
    axes.set_yticklabels(classes, fontsize=8)
    return figure


def plot_maps(maps: Float[Tensor, "k n n"], titles: Sequence[str], label: str = "attention") -> Figure:
    """Show square maps side by side on one colour scale, rows the queries, columns the keys."""
    figure = Figure(figsize=(1.7 * len(maps), 2.0), layout="constrained")
    grid = figure.subplots(1, len(maps), squeeze=False)[0]
    for axes, values, title in zip(grid, maps, titles, strict=True):
        picture = axes.imshow(values.numpy(), cmap="viridis", vmin=0, vmax=float(maps.max()))
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize=9)
    figure.colorbar(picture, ax=list(grid), label=label, shrink=0.8)
    return figure


def plot_scores(rows: Sequence[Mapping[str, Any]], indicator: str) -> Figure:
    """Plot an indicator's score of every network against its number of parameters, on a logarithmic axis if it can be.

    Args:
        rows: Of :func:`~dasvit.training_free.search.tf_search`; those without a score are left out.
        indicator: Whose score.
    """
    scored = [row for row in rows if indicator in row["scores"]]
    sizes = [row["parameters"] / 1e6 for row in scored]
    values = [row["scores"][indicator]["total"] for row in scored]
    figure = Figure()
    axes = figure.add_subplot()
    axes.scatter(sizes, values, s=12, alpha=0.6, color=BLUE)
    best = int(np.argmax(values))
    axes.scatter(sizes[best], values[best], s=60, facecolor="none", edgecolor=ORANGE, label="highest score")
    axes.set(xlabel="parameters (millions)", ylabel=indicator)
    if min(values) > 0:
        axes.set_yscale("log")
    axes.legend()
    return figure


def plot_accuracy(results: Mapping[str, Sequence[float]]) -> Figure:
    """Plot every run's accuracy, one row a network, with mean and standard deviation over its seeds."""
    figure = Figure(figsize=(5.2, 0.5 * len(results) + 0.9))
    axes = figure.add_subplot()
    for y, accuracies in enumerate(results.values()):
        values = 100 * np.asarray(accuracies)
        spread = values.std(ddof=1) if len(values) > 1 else 0.0
        axes.errorbar(values.mean(), y, xerr=spread, fmt="o", color=INK, capsize=3)
        axes.scatter(values, np.full(len(values), y), color=BLUE, alpha=0.6, zorder=3, s=18)
    axes.set(yticks=range(len(results)), yticklabels=list(results), xlabel="top-1 accuracy on test images (%)")
    axes.invert_yaxis()
    return figure
