"""Vision transformers ranked without training (chapter 9)."""

from .diversity import DSS, dss
from .indicators import INDICATORS, Probe, score
from .search import TFSearchResult, TFSearchSettings, tf_search
from .space import SPACES, AutoFormerSpace, Candidate, DasvitSpace, Shape

__all__ = [
    "DSS",
    "INDICATORS",
    "SPACES",
    "AutoFormerSpace",
    "Candidate",
    "DasvitSpace",
    "Probe",
    "Shape",
    "TFSearchResult",
    "TFSearchSettings",
    "dss",
    "score",
    "tf_search",
]
