"""Differentiable architecture search for vision transformers, to be read, run and imported.

The names below are loaded when they are first used, so that ``import dasvit`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from wrapt import when_imported

if TYPE_CHECKING:  # the table below, for type checkers
    from .autoformer import build_autoformer
    from .counting import Complexity, complexity
    from .data.images import Augmentation, ImageSet
    from .data.sources import Data, DataSettings, load_data
    from .encoder import build, genotypes
    from .exporting import export
    from .fairness import FairnessSettings, fairness_term
    from .predicting import Classifier
    from .proposal import Proposal, propose
    from .relaxation import Supernet, derive, prune
    from .retrain_settings import RetrainSettings
    from .retraining import RetrainResult, evaluate, retrain
    from .search_settings import SearchSettings
    from .searching import SearchResult, search
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
    "data.images": ["Augmentation", "ImageSet"],
    "data.sources": ["Data", "DataSettings", "load_data"],
    "search_settings": ["SearchSettings"],
    "searching": ["SearchResult", "search"],
    "retrain_settings": ["RetrainSettings"],
    "retraining": ["RetrainResult", "evaluate", "retrain"],
    "counting": ["Complexity", "complexity"],
    "autoformer": ["build_autoformer"],
    "zoo": ["audit"],
    "timm_model": ["DASViT"],
    "exporting": ["export"],
    "proposal": ["Proposal", "propose"],
    "predicting": ["Classifier"],
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [*sorted(_MODULE), "__version__"]
__version__ = "0.1.0"  # of the installed package too: pyproject.toml reads it here


@when_imported("timm")
def _register(_timm: ModuleType) -> None:
    """Make our model one of timm's as soon as timm is there, without loading it for those who do not use it."""
    import_module(".timm_model", __name__)


def __getattr__(name: str) -> object:
    if name in ("landscape", "training_free"):
        return import_module(f".{name}", __name__)
    if name not in _MODULE:
        raise AttributeError(f"module 'dasvit' has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
