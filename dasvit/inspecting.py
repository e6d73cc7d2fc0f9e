"""Looking into a run: its supernet, the tokens that it keeps, what a network attends to (own images)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .data.images import Fit, ImageSet, colours, fitted, opened
from .data.sizes import ImageSize
from .data.sources import load_data
from .encoder import resolve
from .engine.checkpoint import expect
from .engine.runs import Run, from_plain
from .relaxation import Supernet
from .retrain_settings import RetrainSettings
from .search_settings import SearchSettings
from .searching import make_supernet, parse_candidates
from .space import Genotype
from .vit import VisionTransformer


def load_supernet(run_dir: str | Path) -> tuple[Supernet, SearchSettings, ImageSet]:
    """Return the supernet of a search as it was saved last, the settings, and the training images.

    Raises:
        ValueError: If the directory holds no search, or none that has saved anything.
    """
    run = Run(Path(run_dir))
    settings: SearchSettings = from_plain(SearchSettings, run.settings("search"))
    images = load_data(settings.data, image_size=settings.image_size).train
    made: list[Supernet] = []

    def check(state: dict) -> None:
        job = state["job"]
        expect(job["stage"], range(len(settings.stages)), "job.stage")
        made[:] = [make_supernet(settings, job["stage"], parse_candidates(job["candidates"]), images)]
        expect(job["supernet"], made[0].state_dict(), "job.supernet")

    state = run.peek(check)
    made[0].load_state_dict(state["job"]["supernet"])
    return made[0].eval(), settings, images


def inherited(settings: RetrainSettings, images: ImageSet) -> VisionTransformer | None:
    """Return the network that a retraining is to start from, with the weights of a search's supernet; or nothing.

    Raises:
        ValueError: If the search had other sizes, classes or depth, or lacks an operation of the encoder.
    """
    if settings.init_from is None:
        return None
    supernet, searched, found = load_supernet(settings.init_from)
    genotype = resolve(settings.genotype)
    if not isinstance(genotype, Genotype):
        raise ValueError(f"init_from: {genotype} is the plain transformer, which no supernet has the weights of")
    wanted = {name: getattr(settings, name) for name in ("image_size", "patch_size", "dim")}
    there = {name: getattr(searched, name) for name in wanted}
    wanted |= {"depth": settings.depth, "classes": images.classes, "channels": images.channels}
    there |= {"depth": len(supernet.layers), "classes": found.classes, "channels": found.channels}
    if differing := [name for name in wanted if wanted[name] != there[name]]:
        told = ", ".join(f"{name} {there[name]!r:.60}" for name in differing)
        raise ValueError(f"init_from: the supernet in {settings.init_from} has {told}: use the same")
    return supernet.extract(genotype, class_token_last=True).train()


def read_images(
    files: Sequence[Path], size: ImageSize, fit: Fit, like: ImageSet
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
    """Return image files with values in [0, 1], and the same normalised for a network.

    Args:
        files: The files.
        size: In pixels.
        fit: How an image of another shape gets there.
        like: Images that the network was trained on, for their channels and how they were normalised.

    Raises:
        ValueError: If one cannot be read; the message names it.
    """
    pixels = []
    for file in files:
        with opened(file) as image:
            shown = colours(image).convert("L" if like.channels == 1 else "RGB").convert("RGB")
            pixels.append(fitted(shown, size, fit)[: like.channels])
    images = replace(like, images=torch.stack(pixels), labels=torch.zeros(len(pixels), dtype=torch.long))
    ((x, _),) = images.batches(len(pixels), image_size=size)
    return torch.stack(pixels) / 255, x


@torch.no_grad()
def kept_tokens(supernet: Supernet, x: Float[Tensor, "b c h w"]) -> Int[Tensor, "b m"]:
    """Return the indices of the tokens that a supernet keeps, the class token, 0, first.

    Raises:
        ValueError: If it keeps all.
    """
    _, record = supernet(x, intermediates=True)
    if "token_selection.kept" not in record:
        raise ValueError("this search keeps every token: there is no selection to draw")
    return record["token_selection.kept"]


@torch.no_grad()
def class_attention(network: VisionTransformer, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b rows columns"]:
    """Return how much the class token attends to each patch in the last attention that there is, a mean over the heads.

    Raises:
        ValueError: If the network has no attention.
    """
    _, record = network.eval()(x, intermediates=True)
    maps = [found for name, found in record.items() if name.endswith(".attention")]
    if not maps:
        raise ValueError("this network has no attention: there is nothing to draw on the images")
    return maps[-1].mean(dim=1)[:, 0, 1:].unflatten(1, network.grid_of(x))
