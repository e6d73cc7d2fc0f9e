import hashlib
import os
import pickle

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from dasvit import DataSettings, load_data
from dasvit.data import sources as data_module
from dasvit.data.images import FileImages
from dasvit.data.sources import hold_out


def fill(root, classes, count, size=8, seed=0):
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(root / name / f"{i}.png")


def load(name, image_size=8, **settings):
    return load_data(DataSettings(str(name), **settings), image_size=image_size)


def test_digits(digits):
    assert digits.train.images.shape == (1438, 1, 8, 8)
    assert digits.test.images.shape == (359, 1, 8, 8)
    assert digits.train.images.max() == 255
    assert digits.train.channels == 1
    rows = {bytes(image.numpy()) for image in digits.train.images}
    assert sum(bytes(image.numpy()) in rows for image in digits.test.images) == 0
    assert np.bincount(digits.test.labels).min() > 30
    x, _ = next(digits.train.batches(len(digits.train), image_size=8))
    assert abs(x.mean()) < 1e-5
    assert abs(x.std() - 1) < 1e-2


def test_the_split_depends_on_its_own_seed_alone(digits):
    again = load_data(DataSettings(subset_seed=1), image_size=8)
    other = load_data(DataSettings(split_seed=1), image_size=8)
    assert torch.equal(again.test.images, digits.test.images)
    assert not torch.equal(other.test.images, digits.test.images)


def test_a_subset_is_drawn_from_one_split():
    """Whatever its seed, none of its test images is among the training images of another one's whole set."""
    whole = {bytes(image.numpy()) for image in load_data(DataSettings(), image_size=8).train.images}
    drawn = [load_data(DataSettings(test_images=50, subset_seed=seed), image_size=8).test.images for seed in (0, 1)]
    assert not torch.equal(*drawn)
    assert not whole & {bytes(image.numpy()) for images in drawn for image in images}


@pytest.mark.parametrize("name", ["split_seed", "subset_seed"])
def test_seeds_are_checked(name):
    with pytest.raises(ValueError, match=f"{name} -1 is outside"):
        DataSettings(**{name: -1})


def test_validation_images_are_set_apart(digits):  # ledger A42
    train, val = hold_out(digits.train, 0.1, seed=0)
    assert (len(train), len(val)) == (1294, 144)
    assert np.bincount(val.labels).min() >= 13
    rows = [{bytes(image.numpy()) for image in part.images} for part in (train, val, digits.train)]
    assert not rows[0] & rows[1]
    assert rows[0] | rows[1] == rows[2]
    again, other = (hold_out(digits.train, 0.1, seed=seed)[1] for seed in (0, 1))
    assert torch.equal(again.images, val.images)
    assert not torch.equal(other.images, val.images)
    assert hold_out(digits.train, 0.0, seed=0) == (digits.train, None)


def test_validation_has_an_image_of_each_class_or_says_why_not(few_digits):
    train, val = hold_out(few_digits.train, 0.001, seed=0)
    assert sorted(val.labels.tolist()) == list(range(10))
    assert len(train) == 190
    with pytest.raises(ValueError, match=r"val_share 0\.5: 10 images of 10 classes are too few"):
        hold_out(few_digits.train.subset(range(0, 200, 20)), 0.5, seed=0)


def test_subsets_are_even_over_the_classes(few_digits):
    assert np.bincount(few_digits.train.labels).tolist() == [20] * 10
    assert len(few_digits.test) == 50


def test_folder_with_train_and_test(tmp_path):
    fill(tmp_path / "train", "abc", 4)
    fill(tmp_path / "val", "abc", 2, seed=1)
    data = load(f"folder:{tmp_path}")
    assert (len(data.train), len(data.test)) == (12, 6)
    assert data.train.classes == data.test.classes == ("a", "b", "c")
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_folder_without_a_split_is_split_by_the_seed(tmp_path):
    fill(tmp_path, "abc", 10)
    data = load(f"folder:{tmp_path}")
    assert np.bincount(data.train.labels).tolist() == [8] * 3
    assert np.bincount(data.test.labels).tolist() == [2] * 3
    held = {bytes(image.numpy()) for image in data.train.images}
    assert all(bytes(image.numpy()) not in held for image in data.test.images)


def test_images_are_stored_no_larger_than_they_are_and_no_larger_than_needed(tmp_path):
    fill(tmp_path, "ab", 5, size=16)
    assert load(f"folder:{tmp_path}", image_size=64).train.images.shape[-1] == 16
    assert load(f"folder:{tmp_path}", image_size=8).train.images.shape[-1] == 8


def test_a_large_set_stays_on_disk(tmp_path, monkeypatch):
    fill(tmp_path, "ab", 50)
    held = load(f"folder:{tmp_path}")
    monkeypatch.setattr(data_module, "MEMORY_LIMIT", 0)
    lazy = load(f"folder:{tmp_path}")
    assert isinstance(lazy.train.images, FileImages)
    assert torch.equal(lazy.train.images.decode_all(), held.train.images)
    assert lazy.train.mean == pytest.approx(held.train.mean, rel=0.1)  # from a sample


def fake_cifar(root, monkeypatch, name, folder, files, label_key):
    """Files of CIFAR's real format with random pixels, and their checksums in place of the real ones."""
    rng, entries = np.random.default_rng(0), {}
    (root / folder).mkdir(parents=True)
    for file in (*files, "meta"):
        content = {"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8), label_key: list(range(10))}
        if file == "meta":
            content = {{"labels": "label_names", "fine_labels": "fine_label_names"}[label_key]: list("abcdefghij")}
        payload = pickle.dumps(content)
        (root / folder / file).write_bytes(payload)
        entries[file] = hashlib.md5(payload).hexdigest()
    cls = getattr(torchvision.datasets, name)
    monkeypatch.setattr(cls, "train_list", [[f, entries[f]] for f in files[:-1]])
    monkeypatch.setattr(cls, "test_list", [[files[-1], entries[files[-1]]]])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "filename": "meta", "md5": entries["meta"]})
    monkeypatch.setenv("DASVIT_DATA", str(root))


@pytest.mark.parametrize(
    ("name", "folder", "files", "key", "count"),
    [
        ("CIFAR10", "cifar-10-batches-py", ["b1", "b2", "test"], "labels", 20),
        ("CIFAR100", "cifar-100-python", ["train", "test"], "fine_labels", 10),
    ],
)
def test_cifar(tmp_path, monkeypatch, name, folder, files, key, count):
    fake_cifar(tmp_path, monkeypatch, name, folder, files, key)
    data = load(name.lower(), image_size=32)
    assert data.train.images.shape == (count, 3, 32, 32)
    assert data.test.images.shape == (10, 3, 32, 32)
    assert data.train.images.is_contiguous()
    (tmp_path / folder / files[0]).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=rf"{name.lower()} is not complete .*download=True"):
        load(name.lower(), image_size=32)


def test_imagenet100_is_limited_to_the_list(tmp_path, monkeypatch):  # ledger A24
    for part in ("train", "val"):
        fill(tmp_path / "imagenet" / part, ["n01", "n02", "n03"], 2)
    classes = tmp_path / "list.txt"
    classes.write_text("n03\nn01\n")
    monkeypatch.setenv("DASVIT_DATA", str(tmp_path))
    data = load("imagenet100", classes=classes)
    assert data.train.classes == ("n01", "n03")
    assert len(data.train) == len(data.test) == 4
    classes.write_text("n01\nn09\n")
    with pytest.raises(ValueError, match="no folder for class 'n09'"):
        load("imagenet100", classes=classes)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet100"])
def test_without_a_data_folder_it_says_how_to_name_one(name, monkeypatch):
    monkeypatch.delenv("DASVIT_DATA", raising=False)
    with pytest.raises(ValueError, match="DASVIT_DATA"):
        load(name)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data": "mnist"}, "unknown data 'mnist'; known: digits"),
        ({"data": "digits:8"}, "unknown data 'digits:8'"),
        ({"data": "folder"}, "unknown data 'folder'"),
        ({"data": "digits", "train_images": 5}, "train_images 5 does not fit"),
        ({"data": "digits", "test_images": 10_000}, "test_images 10000 does not fit"),
    ],
)
def test_what_cannot_be_loaded_is_named(settings, words):
    with pytest.raises(ValueError, match=words):
        load_data(DataSettings(**settings), image_size=8)


def test_a_circle_of_links_is_not_walked(tmp_path):
    fill(tmp_path, "ab", 8)
    for name in "xy":  # followed, there would be 2⁴⁰ paths
        (tmp_path / "a" / name).symlink_to(tmp_path / "a")
    assert len(load(f"folder:{tmp_path}").train) + len(load(f"folder:{tmp_path}").test) == 16


def test_images_below_a_class_folder_and_linked_class_folders_count(tmp_path):
    fill(tmp_path / "elsewhere", "c", 8)
    root = tmp_path / "images"
    fill(root, ["a", "a/deeper"], 4)
    (root / "c").symlink_to(tmp_path / "elsewhere" / "c")
    data = load(f"folder:{root}")
    assert data.train.classes == ("a", "c")
    assert len(data.train) + len(data.test) == 16


def broken_file(root):
    fill(root, "ab", 8)
    (root / "a" / "3.png").write_text("no image")


def truncated_file(root):
    fill(root, "ab", 8, size=64)
    file = root / "b" / "5.png"
    file.write_bytes(file.read_bytes()[:-2000])


def no_file(make):
    def inner(root):
        fill(root, "ab", 8)
        (root / "a" / "3.png").unlink()
        make(root / "a" / "3.png")

    return inner


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, "does not exist"),
        (lambda root: root.mkdir(), "has 0 class folders"),
        (lambda root: fill(root, "a", 8), "has 1 class folders"),
        (lambda root: fill(root / "train", "ab", 2), "only one of train and test"),
        (lambda root: fill(root, "ab", 2), "too few to split"),
        (lambda root: [fill(root / "train", "ab", 2), fill(root / "test", "a", 2)], "no folder for class 'b'"),
        (lambda root: [fill(root, "a", 8), (root / "b").mkdir()], "has no image of class 'b'"),
        (broken_file, r"cannot read image .*a/3\.png"),
        (truncated_file, r"cannot read image .*b/5\.png"),
        (no_file(os.mkfifo), r"cannot read image .*a/3\.png: it is no regular file"),
        (no_file(lambda path: path.symlink_to("/dev/zero")), r"a/3\.png: it is no regular file"),
        (no_file(lambda path: path.symlink_to(path)), r"a/3\.png: Too many levels of symbolic links"),
        (no_file(lambda path: path.symlink_to("none")), r"a/3\.png: No such file"),
        (no_file(Image.new("L", (1, 101)).save), r"a/3\.png: one side of \(1, 101\) pixels is more than 100 times"),
        (no_file(Image.new("L", (60_000, 1)).save), r"a/3\.png: one side of"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(tmp_path, make, words):
    root = tmp_path / "images"
    make(root)
    with pytest.raises(ValueError, match=words) as caught:
        load(f"folder:{root}", image_size=64)
    assert "\n" not in str(caught.value)


def test_a_folder_named_like_an_image_is_a_folder_and_a_narrow_image_will_do(tmp_path):
    no_file(lambda path: path.mkdir())(tmp_path)
    Image.new("L", (1, 100)).save(tmp_path / "a" / "3.png" / "narrow.png")
    data = load(f"folder:{tmp_path}", image_size=64)
    assert len(data.train) + len(data.test) == 16


def test_a_class_list_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DASVIT_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot read .*: File name too long"):
        load("imagenet100", classes=tmp_path / ("x" * 300))
