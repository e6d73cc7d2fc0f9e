"""Images carried in one file, and decoded ones that are kept: the same images, and nothing else is believed."""

import json
import lzma
import os
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dasvit import DataSettings, load_data
from dasvit.data import packing, sources
from dasvit.data.packing import FORMAT, unpack
from dasvit.data.sources import pack_folder


@pytest.fixture
def root(tmp_path):
    """Six photographs of noise in each of two classes, four to train and two to test, of several sizes."""
    torch.manual_seed(0)
    for part, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = Image.effect_noise((12 + i, 14), 80).convert("RGB")
                noise.save(folder / f"{i}.{('jpg', 'png')[i % 2]}")
    return tmp_path / "images"


def same(one, other):
    for a, b in zip(one[:2], other[:2], strict=True):
        assert torch.equal(a.images, b.images)
        assert a.labels.tolist() == b.labels.tolist()
        assert (a.classes, a.mean, a.std) == (b.classes, b.mean, b.std)


def test_packed_images_are_those_of_the_folder(root, tmp_path):
    pack_folder(root, tmp_path / "packed")
    for size in (8, 13, 32):
        folder, packed = (
            load_data(DataSettings(data), image_size=size)
            for data in (f"folder:{root}", f"packed:{tmp_path / 'packed'}")
        )
        same(folder, packed)
    (few, *_), (others, *_) = (
        load_data(DataSettings(data, train_images=4), image_size=8)
        for data in (f"folder:{root}", f"packed:{tmp_path / 'packed'}")
    )
    same([few], [others])


def test_a_validation_part_is_packed_too(root, tmp_path):
    shutil.copytree(root / "test", root / "val")
    (root / "val" / "cat" / "0.jpg").unlink()
    pack_folder(root, tmp_path / "packed")
    folder, packed = (
        load_data(DataSettings(data), image_size=8) for data in (f"folder:{root}", f"packed:{tmp_path / 'packed'}")
    )
    assert len(packed.val) == 3
    same([folder.val], [packed.val])


def test_what_many_files_have_in_common_is_stored_once(root, tmp_path):
    for i in range(300):
        Image.new("RGB", (32, 32), (i % 256, 0, 0)).save(root / "train" / "cat" / f"plain{i}.jpg")
    pack_folder(root, tmp_path / "packed")
    files = sum(path.stat().st_size for path in root.rglob("*.*"))
    assert (tmp_path / "packed").stat().st_size < files / 4


def change(path, **tensors):
    """Write a packed file anew with other tensors."""
    known = load_file(path)
    save_file(known | tensors, path, metadata={"format": FORMAT, "classes": json.dumps(["cat", "dog"])})


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"train.labels": torch.full((8,), 2)}, "a label is of no class"),
        ({"train.labels": torch.full((8,), -1)}, "a label is of no class"),
        ({"train.labels": torch.zeros(7, dtype=torch.int64)}, "do not go together"),
        ({"train.labels": torch.zeros(8)}, "do not go together"),
        ({"test.sizes": torch.full((4,), -1)}, "an image is too large"),
        ({"test.sizes": torch.full((4,), 2**62)}, "an image is too large"),
        ({"test.sizes": torch.full((4,), 2**20)}, "it is not complete"),
        ({"test.sizes": torch.zeros(4, dtype=torch.int64)}, "it is not complete"),
        ({"train.files": torch.zeros(100, dtype=torch.uint8)}, ""),
    ],
)
def test_what_is_no_packed_file_is_refused_in_one_line(root, tmp_path, tensors, words):
    path = tmp_path / "packed"
    pack_folder(root, path)
    change(path, **tensors)
    with pytest.raises(
        ValueError, match=f"packed images {path} cannot be used: .*{words}.*: pack them again"
    ) as caught:
        load_data(DataSettings(f"packed:{path}"), image_size=8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"nothing", "other"])
def test_another_file_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "packed"
    if content == "other":
        save_file({"x": torch.zeros(2)}, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"packed images {path} cannot be used: .*: pack them again"):
        unpack(path)


def test_a_bomb_does_not_go_off(root, tmp_path, monkeypatch):
    path = tmp_path / "packed"
    pack_folder(root, path)
    bomb = lzma.compress(bytes(50_000_000))
    change(path, **{"train.files": torch.frombuffer(bytearray(bomb), dtype=torch.uint8)})
    made, decompressor = [], lzma.LZMADecompressor

    class Counting:
        def decompress(self, data, max_length):
            made.append(decompressor().decompress(data, max_length=max_length))
            return made[-1]

    monkeypatch.setattr(packing.lzma, "LZMADecompressor", Counting)
    with pytest.raises(ValueError, match="it is not complete"):
        unpack(path)
    assert 0 < len(made[0]) < 1_000_000


@pytest.fixture
def decodes(monkeypatch, tmp_path):
    """How many sets were decoded, with a folder to keep them in."""
    calls, decode = [], sources.decode_once
    monkeypatch.setattr(sources, "decode_once", lambda *args: (calls.append(1), decode(*args))[1])
    monkeypatch.setenv("DASVIT_CACHE", str(tmp_path / "cache"))
    return calls


def test_a_file_that_cannot_be_read_is_named_with_a_cache_too(tmp_path, monkeypatch):
    monkeypatch.setenv("DASVIT_CACHE", str(tmp_path / "cache"))
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(5):
            (tmp_path / "images" / name / f"{i}.png").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"cannot read image .*\.png: No such file"):
        load_data(DataSettings(f"folder:{tmp_path / 'images'}"), image_size=8)


def test_decoded_images_are_kept_while_the_files_are_the_same(root, tmp_path, decodes):
    settings = DataSettings(f"folder:{root}")
    first = load_data(settings, image_size=8)
    assert len(decodes) == 2
    same(first, load_data(settings, image_size=8))
    assert len(decodes) == 2
    load_data(settings, image_size=10)
    assert len(decodes) == 4
    changed, status = root / "test" / "cat" / "1.png", (root / "test" / "cat" / "1.png").stat()
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    load_data(settings, image_size=8)
    assert len(decodes) == 5  # the test part alone
    Image.new("RGB", (20, 20), "white").save(root / "train" / "cat" / "0.jpg")
    again = load_data(settings, image_size=8)
    assert again.train.images[0].min() == 255
    assert not list((tmp_path / "cache").glob("*.part"))
    pack_folder(root, tmp_path / "packed")
    packed, count = DataSettings(f"packed:{tmp_path / 'packed'}"), len(decodes)
    for _ in range(2):
        same(load_data(packed, image_size=8), load_data(settings, image_size=8))
    assert len(decodes) == count + 2


def test_a_damaged_cache_is_made_anew(root, tmp_path, decodes):
    settings = DataSettings(f"folder:{root}")
    first = load_data(settings, image_size=8)
    for content in (b"", b"damaged", None):
        for file in (tmp_path / "cache").iterdir():
            if content is None:
                save_file({"images": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, file)
            else:
                file.write_bytes(content)
        count = len(decodes)
        same(load_data(settings, image_size=8), first)
        assert len(decodes) == count + 2


def test_a_cache_that_cannot_be_written_is_one_line(root, tmp_path, decodes, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ValueError, match=r"cannot keep images in .*cache \(DASVIT_CACHE\): ") as caught:
        load_data(DataSettings(f"folder:{root}"), image_size=8)
    assert "\n" not in str(caught.value)


def test_without_a_folder_nothing_is_kept(root, tmp_path, decodes, monkeypatch):
    monkeypatch.delenv("DASVIT_CACHE")
    for _ in range(2):
        load_data(DataSettings(f"folder:{root}"), image_size=8)
    assert len(decodes) == 4
    assert not (tmp_path / "cache").exists()
