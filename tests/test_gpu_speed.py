"""The speed step of the GPU evidence, rehearsed."""

import json
from dataclasses import replace

import pytest
from steps import full, script, stopped_and_continued

pytestmark = pytest.mark.usefixtures("_unchecked")  # to look at the shape of every fake tensor takes as long again


@pytest.fixture
def rehearsal(tmp_path, monkeypatch):
    monkeypatch.setenv("DASVIT_CACHE", str(tmp_path / "cache"))
    return {"rehearse": True, "runs": tmp_path}


def test_speed(rehearsal):
    first, last = stopped_and_continued(script("speed").Speed(**rehearsal, rounds=1))
    assert len(first["rows"]) <= 1  # the ceilings come first
    ceilings, *timed, retrain, loader, dss = last["rows"]
    for row in (*timed, retrain):
        for way in row["ways"].values():
            assert way["images_per_second"] == pytest.approx(last_images(row) / way["seconds"])
            products = way["flops"] / ceilings["matmul_flops"]
            assert way["share_of_matmul_peak"] == pytest.approx(products / way["seconds"])
            assert way["floor_seconds"] > products  # the optimiser comes on top
    for row in timed:
        assert "nothing records here" in row["refused"]
        assert row["ways"]["ours, joint and recorded"]["flops"] == row["ways"]["ours, joint"]["flops"]
        assert row["ways"]["ours"]["flops"] < row["ways"]["ours, every token"]["flops"] < row["ways"]["plain"]["flops"]
    assert loader["images_per_second"] > 0
    assert dss["seconds"].keys() == {"paper", "released"}


def test_floor_is_products_and_the_optimiser_at_the_ceilings():
    floor = script("speed").floor
    assert floor(6 * 10**12, 10**9, {"matmul_flops": 2e12, "copy_bytes": 1e9}) == 3 + 28


def test_speed_says_what_does_not_fit():
    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert script("speed").if_it_fits(full) == {"out_of_memory": True}
    with pytest.raises(RuntimeError, match="illegal"):
        script("speed").if_it_fits(broken)


def last_images(row):
    return row["batch"] * (2 if row["name"].startswith("search") else 1)


def test_compiled_rows_come_last_and_only_if_asked(rehearsal, monkeypatch):
    module = script("speed")
    for name in ("search_rows", "compiled_rows", "retrain_rows", "loader_row", "dss_row"):
        monkeypatch.setattr(module.Speed, name, lambda *_: {})
    monkeypatch.setattr(module, "ceilings", lambda _device: {})
    step, found = module.Speed(**rehearsal), []
    assert {"tf32", "tf32_convolutions"} <= step.result().keys()
    for compiled in (False, True):
        assert replace(step, compiled=compiled).run()
        found.append([row["name"] for row in json.loads(step.file.read_text())["rows"]])
    assert found[0] == ["ceilings", "search 1x8", "search 2x3", "retrain", "loader", "dss autoformer-t"]
    assert found[1] == [*found[0], "search 1x8, compiled", "search 2x3, compiled"]
