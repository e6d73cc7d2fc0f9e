"""Where images come from: digits (embedded), CIFAR, ImageNet-100, any folder of images (chapter 7; ledger A24, A42)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torchvision
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..engine.seeds import check_seed
from .images import Augmentation, FileImages, Fit, ImageSet, decode_once
from .keeping import kept
from .packing import pack, unpack
from .sizes import ImageSize, told

NAMES = "digits, cifar10, cifar100, imagenet100, folder:PATH, packed:FILE"
MEMORY_LIMIT = 4 << 30  # bytes; a larger set of files is decoded as it is needed


@dataclass(frozen=True)
class DataSettings:
    """Which images, how many of them, and how they are augmented in training."""

    data: str = "digits"
    """digits, cifar10, cifar100, imagenet100, folder:PATH, or packed:FILE, which is a folder packed."""
    train_images: int | None = None
    """Use only so many training images, drawn evenly over the classes."""
    test_images: int | None = None
    """Use only so many test images, drawn evenly over the classes."""
    split_seed: int = 0
    """Seed of the split into training, validation and test images, where the data has none."""
    subset_seed: int = 0
    """Seed of what --train-images and --test-images draw."""
    classes: Path | None = None
    """imagenet100: a file that names one class folder a line."""
    fit: Fit = "crop"
    """How files of another shape than --image-size get there: cut at the sides, or stretched."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random distortions of training images."""

    def __post_init__(self) -> None:
        check_seed(self.split_seed, "split_seed")
        check_seed(self.subset_seed, "subset_seed")


class Data(NamedTuple):
    """A training and a test set, and a validation set if there is one apart; a search looks at the first only."""

    train: ImageSet
    test: ImageSet
    val: ImageSet | None = None


class Source(NamedTuple):
    """Images before they are read: bytes, or the paths of files."""

    images: Tensor | list[Path | bytes]
    labels: np.ndarray
    classes: tuple[str, ...]


def read_sources(settings: DataSettings) -> tuple[Source, ...]:
    """Return a training, a test and perhaps a validation part, before files are read.

    Raises:
        ValueError: If the name is unknown or the data is missing; the message says what to do.
    """
    name, colon, path = settings.data.partition(":")
    loaders: dict[str, Callable[[], tuple[Source, ...]]] = {
        "digits": lambda: _digits(settings.split_seed),
        "cifar10": lambda: _cifar("CIFAR10"),
        "cifar100": lambda: _cifar("CIFAR100"),
        "imagenet100": lambda: _imagenet100(settings.classes),
        "packed": lambda: _packed(Path(os.path.expanduser(path))),
        "folder": lambda: _folder(Path(os.path.expanduser(path)), settings.split_seed),
    }
    if name not in loaders or bool(colon) != (name in ("folder", "packed")):
        raise ValueError(f"unknown data {settings.data!r}; known: {NAMES}")
    try:
        return loaders[name]()
    except OSError as error:
        raise ValueError(f"cannot read {error.filename}: {error.strerror}: name another folder or file") from None


def folder_of(settings: DataSettings) -> Path | None:
    """Return the folder that ``folder:PATH`` names."""
    name, _, path = settings.data.partition(":")
    return Path(os.path.expanduser(path)) if name == "folder" else None


def load_data(settings: DataSettings, *, image_size: ImageSize) -> Data:
    """Load a data set. ``DASVIT_DATA`` names the folder of those that are not embedded.

    Args:
        settings: Which one, how much of it, and the seeds of subsets and of the split.
        image_size: Size in pixels that files are decoded at, where they are larger.

    Raises:
        ValueError: If the name is unknown or the data is missing or broken; the message says what to do.
    """
    train, test, *val = read_sources(settings)
    train = _take(train, settings.train_images, "train_images", settings.subset_seed)
    test = _take(test, settings.test_images, "test_images", settings.subset_seed)
    pixels = [_read(source.images, image_size, settings.fit) for source in (train, test, *val)]
    mean, std = channel_statistics(pixels[0])
    return Data(
        *(
            ImageSet(images, torch.from_numpy(source.labels), source.classes, mean, std)
            for images, source in zip(pixels, (train, test, *val), strict=True)
        )
    )


def hold_out(images: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet | None]:
    """Set validation images apart from training images, to choose by: those for testing are looked at once, at the end.

    Args:
        images: The training images.
        share: How much of them, drawn evenly over the classes; at least one image a class. 0 sets none apart.
        seed: Draws them.

    Raises:
        ValueError: If a class has too few images.
    """
    if share == 0:
        return images, None
    n, classes, labels = len(images), len(images.classes), images.labels.cpu().numpy()
    count = max(round(share * n), classes)
    if np.bincount(labels, minlength=classes).min() < 2 or n - count < classes:
        raise ValueError(
            f"val_share {share:g}: {n} images of {classes} classes are too few to set some apart: use 0, or more images"
        )
    train, val = _stratified(labels, n - count, seed)
    return images.subset(torch.from_numpy(train)), images.subset(torch.from_numpy(val))


def channel_statistics(images: Tensor | FileImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, of values in [0, 1], over at most 10,000 images."""
    picked = torch.linspace(0, len(images) - 1, min(len(images), 10_000)).long()
    sample = images.subset(picked[::10]).decode_all() if isinstance(images, FileImages) else images[picked]
    pixels = sample.transpose(0, 1).flatten(1).double() / 255
    return tuple(pixels.mean(1).tolist()), tuple(pixels.std(1).clamp_min(1e-3).tolist())


def _take(source: Source, count: int | None, name: str, seed: int) -> Source:
    """Draw ``count`` images, evenly over the classes."""
    if count is None or count == len(source.labels):
        return source
    if not len(source.classes) <= count <= len(source.labels) - len(source.classes):
        raise ValueError(
            f"{name} {count} does not fit {len(source.labels)} images of {len(source.classes)} classes: "
            f"take {len(source.classes)} to {len(source.labels) - len(source.classes)}, or leave it out for all"
        )
    index, _ = _stratified(source.labels, count, seed)
    images = [source.images[i] for i in index] if isinstance(source.images, list) else source.images[index]
    return Source(images, source.labels[index], source.classes)


def _stratified(labels: np.ndarray, first: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split  # a second to load, and not for every data set

    parts = train_test_split(np.arange(len(labels)), train_size=first, stratify=labels, random_state=seed)
    return np.sort(parts[0]), np.sort(parts[1])


def _read(images: Tensor | list[Path | bytes], image_size: ImageSize, fit: Fit) -> Tensor | FileImages:
    if isinstance(images, Tensor):
        return images
    size = image_size

    def decode() -> Tensor | None:
        nonlocal size
        size, decoded = decode_once(images, image_size, MEMORY_LIMIT, fit)
        return decoded

    decoded = kept(images, f"{told(image_size)} {fit}", decode)
    return FileImages(images, size, fit) if decoded is None else decoded


def _split(
    images: Tensor | list[Path | bytes], labels: np.ndarray, classes: tuple[str, ...], seed: int
) -> tuple[Source, Source]:
    """Split a set that has no test part: a fifth of every class, drawn by ``seed``."""
    few = [name for name, n in zip(classes, np.bincount(labels, minlength=len(classes)), strict=True) if n < 2]
    if few or len(labels) < 5 * len(classes):
        lacking = f"; {few[0]!r} has one" if few else ""
        raise ValueError(
            f"{len(labels)} images of {len(classes)} classes are too few to split: 5 a class are needed{lacking}"
        )
    whole = Source(images, labels, classes)
    count = len(labels) - len(labels) // 5
    train = _take(whole, count, "train_images", seed)
    _, rest = _stratified(labels, count, seed)
    picked = [images[i] for i in rest] if isinstance(images, list) else images[rest]
    return train, Source(picked, labels[rest], classes)


def _digits(seed: int) -> tuple[Source, Source]:
    """Scikit-learn's 1,797 handwritten digits, 8x8, one channel; they come without a split."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy((images * (255 / 16)).round().astype(np.uint8)).view(-1, 1, 8, 8)
    return _split(pixels, labels.astype(np.int64), tuple("0123456789"), seed)


def _root(what: str) -> Path:
    root = os.environ.get("DASVIT_DATA")
    if not root:
        raise ValueError(f"{what} is looked for in the folder that DASVIT_DATA names: set it, e.g. DASVIT_DATA=~/data")
    return Path(os.path.expanduser(root))  # Path's own raises for a user that there is not


def _cifar(name: str) -> tuple[Source, Source]:
    root, dataset = _root(name.lower()), getattr(torchvision.datasets, name)
    try:
        parts = [dataset(str(root), train=train, download=False) for train in (True, False)]
    except RuntimeError:
        command = f"python -c \"import torchvision; torchvision.datasets.{name}('{root}', download=True)\""
        raise ValueError(f"{name.lower()} is not complete in {root}; to get it: {command}") from None
    train, test = (
        Source(torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous(), np.asarray(p.targets), tuple(p.classes))
        for p in parts
    )
    return train, test


def _class_folders(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(root: Path, classes: list[str]) -> Source:
    if missing := sorted(set(classes) - set(_class_folders(root))):
        raise ValueError(f"{root} has no folder for class {missing[0]!r} ({len(missing)} of {len(classes)} missing)")
    images = [_images(root / name) for name in classes]
    if empty := [name for name, found in zip(classes, images, strict=True) if not found]:
        raise ValueError(f"{root} has no image of class {empty[0]!r}: its folder needs {', '.join(IMG_EXTENSIONS)}")
    labels = np.repeat(np.arange(len(classes)), [len(found) for found in images])
    return Source([path for found in images for path in found], labels, tuple(classes))


def _images(folder: Path) -> list[Path]:
    """Return the images in a folder and those below it; links to folders are not followed, they may form a circle."""
    files = (Path(where, name) for where, _, names in sorted(os.walk(folder)) for name in sorted(names))
    return [path for path in files if is_image(path.name)]


def is_image(name: str) -> bool:
    """Tell whether a file's name is that of an image; a hidden one is some program's."""
    return name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")


def _imagenet100(class_list: Path | None) -> tuple[Source, Source]:
    root = _root("imagenet100") / "imagenet"
    if class_list is None:
        raise ValueError("imagenet100 needs --classes FILE, the list of its 100 class folders, one a line")
    if not class_list.is_file():
        raise ValueError(f"class list {class_list} does not exist")
    classes = sorted(set(class_list.read_text().split()))
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise ValueError(f"{root / part} does not exist: unpack ImageNet there, one folder a class")
    return _files(root / "train", classes), _files(root / "val", classes)


def _packed(path: Path) -> tuple[Source, Source]:
    train, test = (Source([*part.images], part.labels, part.classes) for part in unpack(path))
    return train, test


def pack_folder(root: Path, path: Path, seed: int = 0) -> None:
    """Pack a folder of images into one file, see :func:`~dasvit.data.packing.pack`.

    Args:
        root: As for ``folder:PATH``.
        path: The file to write.
        seed: Splits a folder without a test part.

    Raises:
        ValueError: If the folder cannot be used.
    """
    train, test, *_ = _folder(root, seed)
    parts = {"train": train, "test": test}
    files = {n: ([p for p in part.images if isinstance(p, Path)], part.labels) for n, part in parts.items()}
    pack(files, train.classes, path)


def _folder(root: Path, seed: int) -> tuple[Source, ...]:
    """Return the training and the test part of a folder, and its validation part if it has all three."""
    if not os.path.isdir(root):  # Path.is_dir raises where a name is too long
        raise ValueError(f"data folder {root} does not exist: give folder:PATH with train and test (or val) folders")
    train = root / "train"
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if train.is_dir() != (test is not None):
        raise ValueError(f"{root} has only one of train and test (or val): give both, or class folders to be split")
    if test is None:
        if len(classes := _class_folders(root)) < 2:
            raise ValueError(f"{root} has {len(classes)} class folders: at least two are needed")
        whole = _files(root, classes)
        return _split(*whole, seed)
    if len(classes := _class_folders(train)) < 2:
        raise ValueError(f"{train} has {len(classes)} class folders: at least two are needed")
    val = [root / "val"] if test.name == "test" and (root / "val").is_dir() else []
    return tuple(_files(part, classes) for part in (train, test, *val))
