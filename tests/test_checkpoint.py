import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dasvit.checkpoint import load_state, save_state
from dasvit.runs import random_states, set_random_states

trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(trees)
def test_any_tree_comes_back(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("state") / "a.safetensors"
    save_state(path, tree)
    assert load_state(path) == tree


def test_tensors_come_back_bit_for_bit(tmp_path):
    base = torch.randn(4, 6)
    tree = {
        "views": (base, base.T, base[1]),  # share memory, not contiguous
        "kinds": [base.to(dtype) for dtype in (torch.float64, torch.bfloat16, torch.int64, torch.bool)],
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 2),
        "array": np.arange(5, dtype=np.uint32),
        "odd": [math.inf, -0.0, 2**80],
    }
    save_state(tmp_path / "a", tree)
    got = load_state(tmp_path / "a")
    assert all(map(torch.equal, got["views"], tree["views"]))
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(got["kinds"], tree["kinds"], strict=True))
    assert torch.equal(got["scalar"], tree["scalar"])
    assert got["empty"].shape == (0, 2)
    assert got["array"].dtype == np.uint32
    assert got["array"].tolist() == [0, 1, 2, 3, 4]
    assert got["odd"] == tree["odd"]
    assert math.copysign(1, got["odd"][1]) == -1


def test_random_states_come_back(tmp_path):
    save_state(tmp_path / "a", random_states())
    expected = random.random(), np.random.rand(), torch.rand(3)
    set_random_states(load_state(tmp_path / "a"))
    assert (random.random(), np.random.rand()) == expected[:2]
    assert torch.equal(torch.rand(3), expected[2])


def test_nothing_else_is_saved_and_nothing_is_left(tmp_path):
    with pytest.raises(TypeError, match="a set cannot be saved"):
        save_state(tmp_path / "a", {"x": {1, 2}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", b"\xff" * 100])
def test_a_foreign_file_is_refused(tmp_path, damage):
    (tmp_path / "a").write_bytes(damage)
    with pytest.raises(ValueError, match="cannot be read") as caught:
        load_state(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_a_torn_file_is_refused(tmp_path):
    save_state(tmp_path / "a", {"x": torch.randn(100)})
    whole = (tmp_path / "a").read_bytes()
    for cut in (4, 40, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="cannot be read"):
            load_state(tmp_path / "a")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        load_state(tmp_path / "none")
