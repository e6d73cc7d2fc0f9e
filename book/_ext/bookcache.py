"""What a chapter's outputs depend on beside its own cells."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INPUTS = ("dasvit/**/*.py", "book/results/**/*.json")
PACKAGES = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "matplotlib")


def fingerprint(root: Path = ROOT) -> str:
    """Hash the package, the recorded results and the versions that matter."""
    digest = hashlib.sha256(platform.python_version().encode())
    for name in PACKAGES:
        digest.update(f"{name}={metadata.version(name)}\n".encode())
    for pattern in INPUTS:
        for path in sorted(root.glob(pattern)):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def cache_path(root: Path = ROOT) -> Path:
    """Folder of the jupyter-cache that belongs to the present fingerprint."""
    return root / "_build" / ".jupyter_cache" / fingerprint(root)
