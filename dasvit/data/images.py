"""Sets of images: held as bytes on the device, or decoded as they are needed; augmented in batches (chapter 7; A23)."""

from __future__ import annotations

import math
import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from .policies import MAX_REPEATS, make_policy, rand_augment, repeated
from .sizes import ImageSize, as_size, pair, told

BATCHES_AHEAD = 4  # decoded while a step is taken
MAX_ASPECT = 100  # of an image: by the short side it is resized, and a line would become enormous

Fit = Literal["crop", "stretch"]
"""How an image reaches a size of another shape: it is cut off on both sides, or all of it is stretched."""
Batch = tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"]]
"""Normalised images and their labels."""


@dataclass(frozen=True)
class Augmentation:
    """Random distortions of training images."""

    flip: bool = False
    """Mirror half of the training images."""
    shift: float = 0.0
    """Shift training images by up to this share of their shorter side."""
    min_crop: float = 1.0
    """Crop training images to at least this share of their area."""
    rand_augment: str = ""
    """RandAugment of timm, as it is configured there, e.g. rand-m9-mstd0.5; by default off."""
    repeats: int = 1
    """See an image so many times in a batch, each time distorted otherwise, and others not in this epoch."""

    def __post_init__(self) -> None:
        if self.rand_augment:
            make_policy(self.rand_augment, (0.5,))
        if not 1 <= self.repeats <= MAX_REPEATS:
            raise ValueError(f"repeats {self.repeats} is outside 1 to {MAX_REPEATS}: 1 sees each image once")
        if not 0 <= self.shift < 1:
            raise ValueError(f"shift {self.shift} is outside [0, 1): 0.125 shifts by up to an eighth of the side")
        if not 0 < self.min_crop <= 1:
            raise ValueError(f"min_crop {self.min_crop} is outside (0, 1]: 1 keeps the whole image")


class FileImages:
    """Image files, decoded to one size and three channels.

    Args:
        paths: The files, or what is in them.
        size: Of a decoded image in pixels.
        fit: How an image of another shape gets there.
    """

    def __init__(self, paths: Sequence[Path | bytes], size: ImageSize, fit: Fit = "crop") -> None:
        self.paths, self.size, self.fit = list(paths), size, fit

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 h w"]:
        with opened(self.paths[index]) as file:
            return fitted(colours(file), self.size, self.fit)

    def subset(self, indices: Tensor) -> FileImages:
        """Return the files at ``indices``."""
        return FileImages([self.paths[i] for i in indices.tolist()], self.size, self.fit)

    def decode_all(self) -> UInt8[Tensor, "n 3 h w"]:
        """Decode every file into one tensor."""
        images = torch.empty(len(self), 3, *pair(self.size), dtype=torch.uint8)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for i, image in enumerate(pool.map(self.__getitem__, range(len(self)))):
                images[i] = image
        return images

    def decode(self, chunks: Sequence[Tensor]) -> Iterator[UInt8[Tensor, "b 3 h w"]]:
        """Decode batch after batch, some ahead, in threads: the decoder leaves Python to others while it works.

        Raises:
            ValueError: If a file cannot be read; the message names it.
        """
        pool, batches = ThreadPoolExecutor(os.cpu_count()), iter(chunks)
        ahead: deque[list[Future[Tensor]]] = deque()
        try:
            while True:
                for chunk in islice(batches, BATCHES_AHEAD - len(ahead)):
                    ahead.append([pool.submit(self.__getitem__, index) for index in chunk.tolist()])
                if not ahead:
                    return
                images = torch.stack([image.result() for image in ahead.popleft()])
                yield images.pin_memory() if torch.cuda.is_available() else images
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def fitted(image: Image.Image, size: ImageSize, fit: Fit = "crop") -> UInt8[Tensor, "3 h w"]:
    """Return an image at a size: resized to cover it and cut at the centre, or stretched (ledger A32).

    Args:
        image: In three channels.
        size: The size.
        fit: How an image of another shape gets there.
    """
    height, width = pair(size)
    if fit == "stretch":
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    else:
        scale = max(width / image.width, height / image.height)
        wide, high = max(width, round(scale * image.width)), max(height, round(scale * image.height))
        left, top = (wide - width) // 2, (high - height) // 2
        image = image.resize((wide, high), Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def colours(image: Image.Image) -> Image.Image:
    """Return an image as a person sees it: upright, in three channels, on white where it is transparent.

    Raises:
        ValueError: If its numbers stand for no colours.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its numbers are no colours (mode {image.mode}): save it with 8 or 16 bits a channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def decode_once(
    files: Sequence[Path | bytes], image_size: ImageSize, limit: int, fit: Fit = "crop"
) -> tuple[ImageSize, UInt8[Tensor, "n 3 h w"] | None]:
    """Open every file once; return the size that images are decoded at, and all of them if they can be held.

    They are decoded at ``image_size``, or if all are smaller, at the largest of its shape that one of them fills. That
    is known only at the end, so until then what is smaller is kept as it is.

    Args:
        files: Paths, or contents.
        image_size: Size in pixels that is asked for.
        limit: Bytes that may be held; beyond them only the sizes are read.
        fit: How an image of another shape gets there.
    """
    rows, columns = pair(image_size)
    most = 0  # the largest height so far that an image can fill

    def held(height: int) -> bool:
        height = min(rows, height)
        return len(files) * 3 * height * _across(height) <= limit

    def _across(height: int) -> int:
        return round(height * columns / rows)

    def look(file: Path | bytes) -> tuple[int, Tensor | Image.Image | None]:
        with opened(file) as image:
            width, height = upright_size(image)
            fills = min(height, width * rows // columns)
            if not held(max(fills, most)):
                return fills, None
            if fills >= rows:
                return fills, fitted(colours(image), image_size, fit)
            return fills, colours(image) if max(image.size) <= 2 * max(rows, columns) else None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found: list[Tensor | Image.Image | None] = []
        for fills, pixels in pool.map(look, files):
            most = max(most, fills)
            found.append(pixels)
            if not held(most):
                found.clear()
    height = min(rows, max(1, most))
    size = as_size(height, max(1, _across(height)))
    if not held(most):
        return size, None
    images, lazy = torch.empty(len(files), 3, *pair(size), dtype=torch.uint8), FileImages(files, size, fit)
    for number, seen in enumerate(found):
        if isinstance(seen, Tensor):
            images[number] = seen
        else:
            images[number] = lazy[number] if seen is None else fitted(seen, size, fit)
    return size, images


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height as a person sees them."""
    turned = image.getexif().get(0x0112, 1) >= 5  # the orientation, of which 5 to 8 lie on their side
    return (image.height, image.width) if turned else image.size


@contextmanager
def opened(path: Path | bytes) -> Iterator[Image.Image]:
    """Open an image file, of which the header is read, or what is in one.

    Raises:
        ValueError: If it is no readable image; also while the block reads it.
    """
    try:
        if not (isinstance(path, bytes) or stat.S_ISREG(os.stat(path).st_mode)):  # to open a pipe is to wait for ever
            raise ValueError("it is no regular file")
        with Image.open(BytesIO(path) if isinstance(path, bytes) else path) as file:
            if max(file.size) > MAX_ASPECT * min(file.size):
                raise ValueError(f"one side of {file.size} pixels is more than {MAX_ASPECT} times the other")
            yield file
    except Exception as error:  # PIL's decoders raise whatever a broken file makes them stumble over
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        name = "packed in the file" if isinstance(path, bytes) else path
        raise ValueError(f"cannot read image {name}: {reason}") from None


@dataclass(frozen=True)
class ImageSet:
    """Labelled images as bytes, with the statistics that normalise them.

    Args:
        images: ``[n, c, h, w]`` of type uint8, or files decoded when needed.
        labels: ``[n]``, from 0.
        classes: Name of each class.
        mean: Mean of each channel, of values in [0, 1].
        std: Standard deviation of each channel.
    """

    images: UInt8[Tensor, "n c h w"] | FileImages
    labels: Int[Tensor, " n"]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Number of channels of an image."""
        return len(self.mean)

    def subset(self, indices: Sequence[int] | Tensor) -> ImageSet:
        """Return the images at ``indices``."""
        index = torch.as_tensor(indices)
        if isinstance(self.images, FileImages):
            return replace(self, images=self.images.subset(index), labels=self.labels[index])
        return replace(self, images=self.images[index.to(self.images.device)], labels=self.labels[index])

    def halves(self, seed: int) -> tuple[ImageSet, ImageSet]:
        """Split in two disjoint halves, drawn by ``seed``: one for the weights, one for α (ledger A11)."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(order[: len(self) // 2]), self.subset(order[len(self) // 2 :])

    def to(self, device: torch.device | str) -> ImageSet:
        """Move images held as a tensor to ``device``, once, so that no batch has to travel."""
        return replace(self, images=self.images.to(device)) if isinstance(self.images, Tensor) else self

    def batches(
        self,
        batch_size: int,
        *,
        image_size: ImageSize,
        device: torch.device | str = "cpu",
        augmentation: Augmentation | None = None,
        seed: int | None = None,
        epoch: int = 0,
        start: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """Yield normalised batches.

        Every batch is a function of ``(seed, epoch, number)`` alone, so an interrupted epoch goes on exactly where
        it stopped, from ``start``, with nothing else to remember.

        Args:
            batch_size: Images in a batch. With a seed the incomplete last batch is left out.
            image_size: Size in pixels that the images are resized to.
            device: Where the batches go.
            augmentation: Distortions of training images; none by default. Needs a seed.
            seed: Shuffle and distort by this seed; by default the images come in their order.
            epoch: Number of the epoch, which changes the order.
            start: Number of the first batch to yield.
            part: Of each batch only part ``i`` of ``n`` equal ones, distorted as it is in the whole: ``(i, n)``.

        Raises:
            ValueError: If the images are of another shape than ``image_size``, which would distort them unasked.
        """
        if seed is None:
            order, count = torch.arange(len(self)), math.ceil(len(self) / batch_size)
        else:
            drawn = _generator(seed, epoch, 0)
            repeats = 1 if augmentation is None else augmentation.repeats
            once = repeats == 1
            order = (
                torch.randperm(len(self), generator=drawn)
                if once
                else repeated(len(self), repeats, drawn.initial_seed())
            )
            count = len(self) // batch_size
        self._check_shape(image_size)
        which, of = part
        chunks = [order[i * batch_size : (i + 1) * batch_size].tensor_split(of)[which] for i in range(start, count)]
        mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        for number, (index, images) in enumerate(zip(chunks, self._gather(chunks), strict=True), start):
            if augmentation is not None and seed is not None and augmentation.rand_augment:
                key = (seed, epoch, 1 + number, which * len(images))
                images = rand_augment(images, augmentation.rand_augment, self.mean, key)
            x = images.to(device, non_blocking=True).float().div_(255).sub_(mean).div_(std)
            if augmentation is None or seed is None:
                x = resize(x, image_size)
            else:
                x = distort(x, image_size, augmentation, _generator(seed, epoch, 1 + number), part)
            yield x, self.labels[index].to(device, non_blocking=True)

    def _check_shape(self, image_size: ImageSize) -> None:
        height, width = self.images.shape[-2:] if isinstance(self.images, Tensor) else pair(self.images.size)
        rows, columns = pair(image_size)
        if abs(height * columns - width * rows) > max(rows, columns):  # a size is whole pixels
            raise ValueError(
                f"images of {height}x{width} pixels have another shape than image_size {told(image_size)}: "
                f"take {told(as_size(height, width))}, or crop or pad them"
            )

    def _gather(self, chunks: list[Tensor]) -> Iterator[Tensor]:
        if isinstance(self.images, FileImages):
            return self.images.decode(chunks)
        images = self.images
        return (images[index.to(images.device, non_blocking=True)] for index in chunks)


def _generator(*key: int) -> torch.Generator:
    """Return a generator of its own for each part of each epoch."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def resize(x: Float[Tensor, "b c h w"], size: ImageSize) -> Float[Tensor, "b c h2 w2"]:
    """Resize images, bilinear, smoothed where they shrink (ledger A52)."""
    if tuple(x.shape[-2:]) == pair(size):
        return x
    return F.interpolate(x, size=pair(size), mode="bilinear", antialias=True)


def distort(
    x: Float[Tensor, "b c h w"],
    size: ImageSize,
    augmentation: Augmentation,
    generator: torch.Generator,
    part: tuple[int, int] = (0, 1),
) -> Float[Tensor, "b c h2 w2"]:
    """Shift, crop and mirror each image at random and resize it, in one resampling.

    A shift moves the image by whole pixels and uncovers a border of 0, the mean colour. A crop has the shape of the
    image and is of what is seen then. It is resampled as by :func:`resize`, so that a network is trained on what it
    will be tested on: smoothed where it shrinks, and at an edge of what is seen the pixels inside count for those that
    there are not.

    Args:
        x: Normalised images.
        size: Of the result.
        augmentation: How strong the distortions are.
        generator: Source of randomness, on the CPU.
        part: ``x`` is part ``i`` of ``n`` equal ones of a batch, ``(i, n)``, and distorted as it would be in it.
    """
    if replace(augmentation, rand_augment="", repeats=1) == Augmentation():
        return resize(x, size)
    which, of = part
    n, (height, width) = len(x) * of, x.shape[-2:]
    scale = (1 - (1 - augmentation.min_crop) * torch.rand(n, generator=generator)).sqrt()
    room = (1 - scale).unsqueeze(1) * (2 * torch.rand(n, 2, generator=generator) - 1)
    reach = round(augmentation.shift * min(height, width))
    shift = torch.randint(-reach, reach + 1, (n, 2), generator=generator)
    mirror = 1 - 2 * torch.randint(2, (n,), generator=generator) * augmentation.flip
    here = slice(which * len(x), (which + 1) * len(x))
    rows, columns = pair(size)

    def weights(axis: int, side: int, wanted: int, scale: Tensor) -> Tensor:
        """Return the weights along an axis: 0 is that of the columns."""
        drawn = torch.stack([(side * (1 + room[:, axis]) - 1) / 2, side / wanted * scale, shift[:, axis]])[:, here]
        return _weights(*drawn.to(x, non_blocking=True), side=side, size=wanted)

    across, down = weights(0, width, columns, scale * mirror), weights(1, height, rows, scale)
    return down.unsqueeze(1) @ x @ across.unsqueeze(1).mT


def _weights(
    middle: Float[Tensor, " b"], step: Float[Tensor, " b"], shift: Float[Tensor, " b"], *, side: int, size: int
) -> Float[Tensor, "b size side"]:
    """Return for each image the weight of each of its ``side`` pixels along an axis in each of the result's ``size``.

    Bilinear weights are a triangle around the point that a pixel of the result looks at, as wide as a step where the
    image shrinks.

    Args:
        middle: What the middle of the result looks at, in pixels of the shifted image.
        step: How much further the next pixel looks; negative if the image is mirrored.
        shift: By how many pixels the image has moved to the left or up.
        side: Pixels of an image along the axis.
        size: Pixels of the result along the axis.
    """
    pixel = torch.arange(side, device=step.device)
    look = middle[..., None] + step[..., None] * (torch.arange(size, device=step.device) - (size - 1) / 2)
    width = step.abs().clamp_min(1)[..., None, None]

    def triangle(place: Tensor) -> Tensor:
        return (1 - (place.unsqueeze(-2) - look.unsqueeze(-1)).abs() / width).clamp_min(0)

    moved = pixel - shift[..., None]
    seen = (moved >= 0) & (moved < side)
    return triangle(moved) * seen.unsqueeze(-2) / triangle(pixel).sum(-1, keepdim=True)
