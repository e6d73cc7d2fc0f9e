"""Right and wrong answers to the exercises of chapter 12."""

from dataclasses import replace

from dasvit import SearchSettings
from dasvit.methods.registry import METHODS
from dasvit.methods.settings import RelaxationSettings

_DARTS = METHODS["darts"](SearchSettings())

RIGHT = {
    "ch12-ex-anchor": 3.67,
    "ch12-ex-beta": False,
    "ch12-ex-own": replace(_DARTS, relaxation=RelaxationSettings(skip_bonus=1.0, entangled=True)),
    "ch12-ex-share": 0.051,
}
WRONG = {
    "ch12-ex-anchor": 4,  # the sums' own ratio
    "ch12-ex-beta": True,
    "ch12-ex-own": _DARTS,
    "ch12-ex-share": 0.35,
}
