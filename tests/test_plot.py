"""What a figure shows is what it was given: kept patches framed, mixing weights from the start of each stage."""

import numpy as np
import pytest
import torch

from dasvit.plot import plot_alpha, plot_tokens

NAMES = "none", "skip", "msa:4", "msa:8", "mlp:1"


def history(stages):
    """Rows of a search on one edge: by stage the candidates, two epochs each, α random."""
    alphas = torch.randn(2 * len(stages), len(NAMES), generator=torch.Generator().manual_seed(0)).tolist()
    stage_of = [stage for stage in range(len(stages)) for _ in range(2)]
    values = [{name: row[NAMES.index(name)] for name in stages[s]} for s, row in zip(stage_of, alphas, strict=True)]
    return [{"stage": s, "alpha": {"0-2": row}} for s, row in zip(stage_of, values, strict=True)]


def curves(figure):
    """Each line of weights as its x and y; the borders between stages are upright."""
    lines = [line for axes in figure.axes for line in axes.lines]
    return [(list(x), list(y)) for x, y in (line.get_data() for line in lines) if len(set(x)) > 1]


def test_a_stage_starts_at_equal_weights_where_the_one_before_ended():
    rows = history([NAMES, NAMES[1:4]])
    drawn = curves(plot_alpha(rows))
    assert [x for x, _ in drawn] == [[0, 1, 2]] * 5 + [[2, 3, 4]] * 3
    assert [y[0] for _, y in drawn] == pytest.approx([1 / 5] * 5 + [1 / 3] * 3)
    ends = torch.tensor(list(rows[-1]["alpha"]["0-2"].values())).softmax(0)
    assert [y[-1] for _, y in drawn[5:]] == pytest.approx(ends.tolist())


def test_a_carried_stage_starts_with_the_survivors_proportions():
    rows = history([NAMES, NAMES[1:4]])
    old = [rows[1]["alpha"]["0-2"][name] for name in NAMES[1:4]]
    drawn = curves(plot_alpha(rows, carried=True))
    assert [y[0] for _, y in drawn[5:]] == pytest.approx(torch.tensor(old).softmax(0).tolist())
    assert [y[0] for _, y in drawn[:5]] == pytest.approx([1 / 5] * 5)


def test_sizes_of_a_kind_differ_by_their_line():
    lines = plot_alpha(history([NAMES])).axes[0].lines
    styles = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in lines}
    assert set(styles) == set(NAMES)
    assert styles["msa:8"][1] == styles["mlp:1"][1] == "-"
    assert styles["msa:4"] == (styles["msa:8"][0], "--")


def test_kept_patches_are_framed_and_the_others_dimmed_below_the_image():
    images, kept = torch.zeros(2, 3, 4, 6), torch.tensor([[0, 1, 6], [0, 2, 3]])
    grid = np.array(plot_tokens(images, {"kept": kept}, patch_size=2, titles=["a", "b"]).axes).reshape(2, 2)
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["image", "kept"]
    assert [axes.get_title() for axes in grid[0]] == ["a", "b"]
    for axes, original in zip(grid[1], grid[0], strict=True):
        assert not original.patches
        assert not original.images[0].get_array().any()  # as it is
        assert all(frame.get_width() == 2 for frame in axes.patches)
    corners = [[frame.get_xy() for frame in axes.patches] for axes in grid[1]]
    assert corners == [[(-0.5, -0.5), (3.5, 1.5)], [(1.5, -0.5), (3.5, -0.5)]]
    dimmed = np.asarray(grid[1, 0].images[0].get_array())[::2, ::2, 0] > 0  # grey is mixed into black
    assert dimmed.tolist() == [[False, True, True], [True, True, False]]
