"""RandAugment and repeated augmentation, timm's own, drawn anew for each place in each batch (chapter 7)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

MAX_REPEATS = 100


@cache
def make_policy(text: str, mean: tuple[float, ...]) -> Any:
    """Return the RandAugment that a configuration of timm's describes, e.g. ``rand-m9-n2-mstd0.5-inc1``.

    Args:
        text: The configuration.
        mean: Of the channels, in [0, 1], which fills what is uncovered.

    Raises:
        ValueError: If timm cannot read it.
    """
    from timm.data.auto_augment import rand_augment_transform  # timm takes seconds to load, and few runs want it

    colour = tuple(round(255 * value) for value in (mean if len(mean) == 3 else mean * 3))
    try:
        if text.split("-")[0] != "rand":
            raise ValueError("it does not begin with rand")
        return rand_augment_transform(text, {"img_mean": colour})
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise ValueError(
            f"rand_augment {text!r} is no configuration of timm's ({error}): e.g. rand-m9-mstd0.5"
        ) from None


def rand_augment(
    images: UInt8[Tensor, "b c h w"], text: str, mean: tuple[float, ...], key: Sequence[int]
) -> UInt8[Tensor, "b c h w"]:
    """Return images distorted by RandAugment, each by draws of its own.

    Args:
        images: As bytes.
        text: See :func:`make_policy`.
        mean: Of the channels.
        key: What the draws depend on: a seed and numbers; the last is the place of the first image in the batch.
    """
    policy, made = make_policy(text, mean), []
    *before, first = key
    for place, image in enumerate(images.cpu(), first):
        shown = Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
        with drawing(*before, place):
            shown = policy(shown)
        made.append(torch.from_numpy(np.array(shown)).permute(2, 0, 1)[: images.shape[1]])
    return torch.stack(made).to(images.device)


@contextmanager
def drawing(*key: int) -> Iterator[None]:
    """Let Python's and NumPy's global generators draw by a key inside the block, and then go on as if never used."""
    states = random.getstate(), np.random.get_state()
    seeds = np.random.SeedSequence(key).generate_state(2)
    random.seed(int(seeds[0]))
    np.random.seed(int(seeds[1]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def repeated(count: int, repeats: int, seed: int) -> Int[Tensor, " count"]:
    """Return the order of ``count`` images in which each that is seen comes ``repeats`` times in a row.

    An epoch stays as long as it is, so a part of the images is not seen in it; which one is drawn by ``seed``.
    """
    from timm.data.distributed_sampler import RepeatAugSampler

    sampler = RepeatAugSampler(range(count), num_replicas=1, rank=0, num_repeats=repeats, selected_round=0)
    sampler.set_epoch(seed)
    return torch.tensor(list(sampler))
