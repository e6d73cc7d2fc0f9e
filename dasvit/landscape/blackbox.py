"""A landscape as a tabular black box of syne-tune, whose schedulers can then be tried on it in seconds (chapter 11)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..space import Genotype
from .table import Landscape

try:
    import pandas as pd
    from syne_tune.blackbox_repository.blackbox_tabular import BlackboxTabular
    from syne_tune.config_space import choice, randint
except ImportError as error:
    raise ImportError(f"a black box needs syne-tune: pip install 'dasvit[syne-tune]' ({error})") from None

FIDELITY = "epoch"
ELAPSED = "elapsed_seconds"
"""The objective by which a simulation goes: seconds of a training until the end of an epoch."""
MEASURED = "measured"
"""The objective that is 1 where an encoder was trained, else 0."""


def configuration(genotype: Genotype) -> dict[str, str]:
    """Return what syne-tune is told of an encoder: the operations, and the inputs of a node that could have others."""
    told = {}
    for number, node in enumerate(genotype.nodes, start=genotype.inputs):
        if number > genotype.inputs:  # the first node has no choice
            told[f"inputs_{number}"] = " ".join(str(source) for source, _ in node)
        told |= {f"operation_{number}_{i}": str(operation) for i, (_, operation) in enumerate(node)}
    return told


def blackbox(landscape: Landscape, metrics: Sequence[str] = ("val", "test")) -> BlackboxTabular:
    """Return a landscape as syne-tune's black box, with an evaluation of every name in the space after every epoch.

    What was not trained is modelled. Beside the metrics there are :data:`ELAPSED`, by which a simulation goes, and
    :data:`MEASURED`.

    Args:
        landscape: The landscape.
        metrics: Of :data:`~dasvit.landscape.table.METRICS`; accuracies are to be maximised, all others minimised.

    Raises:
        ValueError: If there is no such metric.
    """
    space, epochs = landscape.settings.space, np.arange(1, landscape.epochs + 1)
    columns = [np.stack([landscape.means(metric, int(epoch)) for epoch in epochs], axis=1) for metric in metrics]
    seconds = np.stack([landscape.means("seconds", int(epoch)) for epoch in epochs], axis=1)
    functions = [space.canonical(number) for number in range(len(space))]
    trained = np.broadcast_to(np.isin(functions, landscape.numbers)[:, None], seconds.shape)
    found = np.stack([*columns, seconds.cumsum(axis=1), trained], axis=2)
    table = pd.DataFrame([configuration(genotype) for genotype in space])
    choices = {name: choice(sorted(set(table[name]))) for name in table}
    objectives = [*metrics, ELAPSED, MEASURED]
    fidelity = {FIDELITY: randint(1, landscape.epochs)}
    return BlackboxTabular(table, choices, fidelity, found[:, None], epochs, objectives)
