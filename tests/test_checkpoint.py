import hashlib
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from dasvit.engine import checkpoint
from dasvit.engine.checkpoint import VERSION, load_state, save_state
from dasvit.engine.runs import random_states, set_random_states

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
    assert load_state(save_state(tmp_path_factory.mktemp("state") / "a", tree)) == tree


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
    got = load_state(save_state(tmp_path / "a", tree))
    assert all(map(torch.equal, got["views"], tree["views"]))
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(got["kinds"], tree["kinds"], strict=True))
    assert torch.equal(got["scalar"], tree["scalar"])
    assert got["empty"].shape == (0, 2)
    assert got["array"].dtype == np.uint32
    assert got["array"].tolist() == [0, 1, 2, 3, 4]
    assert got["odd"] == tree["odd"]
    assert math.copysign(1, got["odd"][1]) == -1


def test_random_states_come_back(tmp_path):
    path = save_state(tmp_path / "a", random_states())
    expected = random.random(), np.random.rand(), torch.rand(3)
    set_random_states(load_state(path))
    assert (random.random(), np.random.rand()) == expected[:2]
    assert torch.equal(torch.rand(3), expected[2])


def test_nothing_else_is_saved_and_nothing_is_left(tmp_path):
    with pytest.raises(TypeError, match="a set cannot be saved"):
        save_state(tmp_path / "a", {"x": {1, 2}})
    assert list(tmp_path.iterdir()) == []


def test_content_and_digest_come_in_one_rename(tmp_path):
    path = save_state(tmp_path / "000003", {"x": torch.randn(3)})
    assert list(tmp_path.iterdir()) == [path]
    assert path.name == f"000003-{hashlib.sha256(path.read_bytes()).hexdigest()}.safetensors"
    with safe_open(path, framework="pt") as file:  # any reader of the format will do
        assert file.metadata()["version"] == VERSION


@pytest.mark.parametrize(
    ("told", "number"),
    [("Error while serializing: I/O error: No space left on device (os error 28)", 28), ("odd", None)],
)
def test_a_full_disk_is_an_error_of_the_system(tmp_path, monkeypatch, told, number):
    def full(_tensors, path, **_):
        path.write_bytes(b"half")
        raise SafetensorError(told)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match=r"No space left|odd") as caught:
        save_state(tmp_path / "a", {"x": torch.zeros(3)})
    assert caught.value.errno == number
    assert list(tmp_path.iterdir()) == []


def refused(path):
    with pytest.raises(ValueError, match=f"checkpoint {path} cannot be used: ") as caught:
        load_state(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\xff" * 100, save({"x": torch.zeros(2)})])
def test_a_foreign_file_is_refused(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    assert "has not the SHA-256" in refused(tmp_path / "a.safetensors")
    named = tmp_path / f"a-{hashlib.sha256(content).hexdigest()}.safetensors"
    named.write_bytes(content)  # even with the right name
    refused(named)


def test_200_random_corruptions_are_refused(tmp_path):
    path = save_state(tmp_path / "a", {"x": torch.randn(40), "random": random_states()})
    whole, rng = path.read_bytes(), random.Random(0)
    for i in range(200):
        content, at = bytearray(whole), rng.randrange(len(whole))
        if i % 4 == 0:
            content[at] ^= 1 << rng.randrange(8)
        elif i % 4 == 1:
            del content[at:]
        elif i % 4 == 2:
            content[at : at + 64] = bytes(len(content[at : at + 64]))
        else:
            content[at:at] = rng.randbytes(rng.randint(1, 64))
        if content != whole:
            path.write_bytes(content)
            refused(path)
    path.write_bytes(whole)
    load_state(path)


def test_another_version_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "VERSION", "other")
    path = save_state(tmp_path / "a", {})
    monkeypatch.undo()
    assert f"it is of version other, this dasvit reads version {VERSION}" in refused(path)


def test_a_missing_file_is_refused(tmp_path):
    assert "No such file" in refused(tmp_path / "none")
