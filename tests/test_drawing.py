"""Drawings of an encoder and of a search: what is drawn is what was found, and nothing else."""

import numpy as np
import pytest
from matplotlib.patches import FancyArrowPatch

from dasvit import genotypes
from dasvit.plot import draw_genotype, draw_search

OPERATIONS = ("none", "skip", "mlp:0.5", "msa:8")
EDGES = ("0-2", "1-2", "0-3", "1-3", "2-3")


def arrows(axes):
    return [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]


def words(axes):
    return sorted(text.get_text() for text in axes.texts)


def test_a_genotype_has_its_operations_and_its_sum():
    published = genotypes()["dasvit-cifar10"]
    (axes,) = draw_genotype(published).axes
    nodes = ["$E_{l-2}$", "$E_{l-1}$", "$x_2$", "$x_3$", "$E_l$"]
    assert words(axes) == sorted(nodes + [str(operation) for _, operation in published.edges])
    assert len(arrows(axes)) == len(list(published.edges)) + len(published.nodes)


def test_a_search_is_drawn_from_graph_to_encoder():
    published = genotypes()["dasvit-cifar10"]
    end = {edge: {"mlp:0.5": 0.0, "msa:8": np.log(3.0)} for edge in EDGES}  # weights of 1/4 and 3/4
    start = {edge: dict.fromkeys(OPERATIONS, 0.0) for edge in EDGES}
    rows = [{"alpha": alpha, "genotype": published.to_json()} for alpha in (start, end)]
    graph, mixed, left, encoder = draw_search(rows).axes
    sums = len(published.nodes)
    for axes, per_edge in ((graph, 1), (mixed, len(OPERATIONS)), (left, 2)):
        assert len(arrows(axes)) == sums + per_edge * len(EDGES)
    thin, thick = sorted({round(arrow.get_linewidth(), 6) for arrow in arrows(left)[sums:]})
    assert thick == pytest.approx(3 * thin)
    assert len(arrows(encoder)) == sums + len(list(published.edges))
    assert [word for word in words(encoder) if ":" in word] == sorted(str(op) for _, op in published.edges)
