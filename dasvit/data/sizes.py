"""The size of an image: the side of a square, or height and width (chapter 1)."""

from __future__ import annotations

ImageSize = int | tuple[int, int]
"""The side of a square, or height and width, in pixels."""


def pair(size: ImageSize) -> tuple[int, int]:
    """Return height and width."""
    return (size, size) if isinstance(size, int) else size


def as_size(height: int, width: int) -> ImageSize:
    """Return the size of an image of ``height`` times ``width`` pixels; one number for a square."""
    return height if height == width else (height, width)


def told(size: ImageSize) -> str:
    """Return a size as a user writes it: ``64`` or ``48,64``."""
    return str(size) if isinstance(size, int) else ",".join(map(str, size))


def read_size(text: str) -> ImageSize:
    """Read what :func:`told` writes.

    Raises:
        ValueError: If it is no size.
    """
    try:
        height, *rest = map(int, text.split(","))
        (width,) = rest or (height,)
    except ValueError:
        raise ValueError(f"{text!r} is no size: write the side of a square, 64, or height and width, 48,64") from None
    return as_size(height, width)


def fits(size: ImageSize, patch_size: int) -> bool:
    """Tell whether an image can be cut into whole patches."""
    return not any(side % patch_size for side in pair(size))
