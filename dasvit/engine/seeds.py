"""Seeds that never meet: one for each use, derived from the one that a user gives (chapters 6 and 7; ledger A43)."""

from __future__ import annotations

import hashlib


def check_seed(seed: int, name: str = "seed") -> None:
    """Check a seed.

    Raises:
        ValueError: If a generator could not take it.
    """
    if not 0 <= seed < 2**31:
        raise ValueError(f"{name} {seed} is outside 0 to 2³¹ - 1")


def derive(seed: int, use: str, *numbers: int) -> int:
    """Return a seed of its own for one use of a seed.

    ``seed + 1`` for the next stage would be the next seed's first stage; a hash of the whole key meets no other.

    Args:
        seed: What the user gave.
        use: What is drawn, e.g. ``"weights"``.
        *numbers: What tells several of a kind apart, e.g. the stage.
    """
    key = " ".join(map(str, (seed, use, *numbers)))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") >> 1
