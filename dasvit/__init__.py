"""Differentiable architecture search for vision transformers, to be read, run and imported.

The names below are loaded when they are first used, so that ``import dasvit`` costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from wrapt import when_imported

if TYPE_CHECKING:  # the table below, for type checkers
    from .autoformer import build_autoformer
    from .complexity import Complexity, complexity
    from .data import Data, DataSettings, load_data
    from .encoder import build, genotypes
    from .export import export
    from .fairness import FairnessSettings, fairness_term
    from .images import Augmentation, ImageSet
    from .relaxation import Supernet, derive, prune
    from .retrain import RetrainResult, RetrainSettings, evaluate, retrain
    from .search import SearchResult, SearchSettings, search
    from .space import Genotype, Operation, SearchSpace
    from .timm_model import DASViT
    from .tokens import TokenSelection
    from .vit import VisionTransformer
    from .zoo import audit

_HOME = {
    "space": ["Genotype", "Operation", "SearchSpace"],
    "encoder": ["build", "genotypes"],
    "vit": ["VisionTransformer"],
    "relaxation": ["Supernet", "derive", "prune"],
    "tokens": ["TokenSelection"],
    "fairness": ["FairnessSettings", "fairness_term"],
    "images": ["Augmentation", "ImageSet"],
    "data": ["Data", "DataSettings", "load_data"],
    "search": ["SearchResult", "SearchSettings", "search"],
    "retrain": ["RetrainResult", "RetrainSettings", "evaluate", "retrain"],
    "complexity": ["Complexity", "complexity"],
    "autoformer": ["build_autoformer"],
    "zoo": ["audit"],
    "timm_model": ["DASViT"],
    "export": ["export"],
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [*sorted(_MODULE), "__version__"]
__version__ = "0.1.0"  # of the installed package too: pyproject.toml reads it here


class _Package(ModuleType):
    """``dasvit.search`` and its like are the functions, also once the modules of their names are loaded."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, getattr(value, name) if name in _MODULE and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package


@when_imported("timm")
def _register(_timm: ModuleType) -> None:
    """Make our model one of timm's as soon as timm is there, without loading it for those who do not use it."""
    import_module(".timm_model", __name__)


def __getattr__(name: str) -> object:
    if name == "training_free":
        return import_module(".training_free", __name__)
    if name not in _MODULE:
        raise AttributeError(f"module 'dasvit' has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
