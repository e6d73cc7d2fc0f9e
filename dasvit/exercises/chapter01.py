"""Answers to the exercises of chapter 1, the vision transformer (chapter 1)."""

from __future__ import annotations

from .answers import Checker, number

_WIDTH, _TOKENS, _LAYERS, _HEADS, _CLASSES = 768, 14**2 + 1, 12, 12, 10  # ViT-B/16 at 224 pixels


def _parameters(places: int) -> int:
    """Return those of ViT-B/16 with ten classes and so many places for patches."""
    patches = 3 * 16**2 * _WIDTH + _WIDTH
    tokens = _WIDTH + (places + 1) * _WIDTH
    layer = 12 * _WIDTH**2 + 13 * _WIDTH
    return patches + tokens + _LAYERS * layer + 2 * _WIDTH + (_WIDTH + 1) * _CLASSES


def _last_layer() -> int:
    """Return its multiply-accumulates where only the class token's output is wanted."""
    keys_and_values, map_row = 2 * _TOKENS * _WIDTH**2, 2 * _TOKENS * _WIDTH
    return keys_and_values + map_row + 10 * _WIDTH**2


ANSWERS: dict[str, Checker] = {
    "ex-vit-resolution": number(
        lambda: _parameters((384 // 16) ** 2),
        0.5,
        "Ask of each tensor whether its shape depends on the number of tokens, and count the class token's place, too.",
    ),
    "ex-vit-shuffle": number(
        0, 0.5, "Compare the two predictions image by image: nothing in attention knows the order of tokens."
    ),
    "ex-vit-last-layer": number(
        _last_layer,
        0.5,
        "List what the class token's output is made of: which tokens still need keys and values, and which a query?",
    ),
    "ex-vit-maps": number(
        64 * _LAYERS * _HEADS * _TOKENS**2 * 4,
        1e6,
        "There is a map for each image, layer and head; each has a row and a column for the class token, too.",
    ),
}
"""Label of each exercise, and what judges an answer."""
