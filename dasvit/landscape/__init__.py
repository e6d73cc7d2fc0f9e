"""The truth of a space of transformers: its encoders trained, and what that says of the others."""

from .modelling import Model, Variances, cross_validated, fit, reliability
from .settings import RECIPE, LandscapeSettings, attending, trainings
from .table import METRICS, Answer, Landscape, load
from .training import train

__all__ = [
    "METRICS",
    "RECIPE",
    "Answer",
    "Landscape",
    "LandscapeSettings",
    "Model",
    "Variances",
    "attending",
    "cross_validated",
    "fit",
    "load",
    "reliability",
    "train",
    "trainings",
]
