"""Settings that cannot be meant, refused before anything is built (chapter 6)."""

from __future__ import annotations

from .data.sizes import ImageSize, fits, pair, told

MAX_DEPTH, MAX_SIZE = 1000, 100_000


def check_sizes(**sizes: int) -> None:
    """Check sizes of a network by their names.

    Raises:
        ValueError: If one is below one or above all reason.
    """
    for name, value in sizes.items():
        most = MAX_DEPTH if name == "depth" else MAX_SIZE
        if not 1 <= value <= most:
            raise ValueError(f"{name} {value} is " + ("below one" if value < 1 else f"too large: at most {most}"))


def check_image(image_size: ImageSize, patch_size: int) -> None:
    """Check that an image can be cut into whole patches.

    Raises:
        ValueError: If it cannot, or a size is out of range.
    """
    for side in pair(image_size):
        check_sizes(image_size=side)
    check_sizes(patch_size=patch_size)
    if not fits(image_size, patch_size):
        raise ValueError(f"patch_size {patch_size} does not divide image_size {told(image_size)}")


def check_training(batch_size: int, lr: float, weight_decay: float) -> None:
    """Check settings that every training has.

    Raises:
        ValueError: If one is out of range.
    """
    check_sizes(batch_size=batch_size)
    if not 0 < lr < float("inf"):
        raise ValueError(f"learning rate {lr} is not above zero")
    if not 0 <= weight_decay < float("inf"):
        raise ValueError(f"weight_decay {weight_decay} is negative or infinite: use 0 or more")
