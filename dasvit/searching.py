"""Progressive differentiable search, Algorithm 1: stages of growing depth and shrinking choice (chapter 6)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .data.images import ImageSet
from .data.sources import Data
from .engine.checkpoint import expect, refusing
from .engine.hardware import make_fabric
from .engine.loggers import check_logger, follow
from .engine.loop import check_row, check_state, moments, run_epochs
from .engine.runs import CheckRow, Run
from .engine.seeds import derive
from .methods.registry import METHODS as METHODS
from .objective import Heading
from .plan import joint_fits
from .relaxation import Candidates, Supernet, check_candidates, prune
from .search_settings import SearchSettings as SearchSettings
from .search_stage import Loss as Loss
from .search_stage import Objective as Objective
from .search_stage import SearchStage as SearchStage
from .search_stage import make_supernet as make_supernet
from .search_stage import supernet_groups
from .space import Genotype, Operation, edge_name

BOUNDARY = "stage.json"
"""The file of a run directory with what the last whole stage left to the next."""
# what is logged of an epoch
ROW = {"alpha": dict, "genotype": str, **dict.fromkeys(("val_accuracy", "val_loss", "fairness", "train_loss"), float)}

WATCHED = {"kinds": dict, "edges": dict, "margins": dict, "entropy": float, "skip_weight": float, "hessian": float}
WATCHED |= {"paths": int}
"""What the monitor logs beside; rows of an earlier version lack it."""


@dataclass(frozen=True)
class SearchResult:
    """What a search returns.

    Args:
        genotype: The architecture found.
        history: A row for each epoch: losses, accuracies, α by edge and operation, seconds, bytes.
        supernet: The last stage's supernet, trained.
    """

    genotype: Genotype
    history: list[dict[str, Any]]
    supernet: Supernet


def draw_halves(settings: SearchSettings, images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Return the halves of the training images, for the weights and for α (ledger A11)."""
    return images.halves(derive(settings.ordering, "halves"))


def parse_candidates(names: Sequence[Sequence[str]]) -> Candidates:
    """Return the operations on each edge that a checkpoint names.

    Raises:
        ValueError: If there is no such operation.
    """
    return tuple(tuple(map(Operation.parse, ops)) for ops in names)


def check_checkpoint(settings: SearchSettings, half: ImageSet, state: Mapping[str, Any]) -> None:
    """Check that a checkpoint is one of the search that the settings and half of the images describe.

    Raises:
        ValueError: If it is not, or else an error for what its parts lack.
    """
    job = state["job"]
    expect(job["stage"], range(len(settings.stages)), "job.stage")
    (_, kept, epochs), earlier = settings.stages[job["stage"]], settings.stages[: job["stage"]]
    for ops in (candidates := parse_candidates(job["candidates"])):
        expect(len(ops), range(kept, kept + 1), "job.candidates")
    with torch.device("meta"):
        supernet = make_supernet(settings, job["stage"], candidates, half)
    pattern = {
        "stage": int,
        "candidates": list,
        "supernet": supernet.state_dict(),
        "weight_optimizer": moments(supernet_groups(supernet, settings.weight_decay), job["weight_optimizer"]),
        "alpha_optimizer": moments([{"params": [supernet.alpha]}], job["alpha_optimizer"]),
        "schedule": dict,
    }
    steps = len(half) // settings.batch_size
    check_state(state, pattern, epochs=epochs, steps=steps, rows=sum(epochs for *_, epochs in earlier))


def choose_joint(
    settings: SearchSettings, number: int, candidates: Candidates, images: ImageSet, device: torch.device
) -> Literal["on", "off"]:
    """Return how a stage is computed: in few large products if that is asked for, or left open on a GPU with room.

    On a CPU, which starts a kernel in no time, it is not faster at the sizes of Section IV-A.
    """
    if settings.relaxation.own_edges:
        return "off"
    if settings.joint != "auto":
        return settings.joint
    if device.type != "cuda":
        return "off"
    memory = torch.cuda.get_device_properties(device).total_memory
    sizes = {"channels": images.channels, "classes": len(images.classes)}
    return "on" if joint_fits(settings, number, candidates, memory, **sizes) else "off"


def check_rows(settings: SearchSettings) -> CheckRow:
    """Return what checks that a logged row is one of the search."""
    positions = [{"stage": i, "epoch": e} for i, (*_, n) in enumerate(settings.stages) for e in range(n)]

    def check(number: int, row: dict[str, Any]) -> None:
        watched = {name: kind for name, kind in WATCHED.items() if name in row}
        check_row(positions, ROW | watched, number, row)
        kept = settings.stages[positions[number]["stage"]][1]
        expect(row["alpha"], {edge_name(edge): dict for edge in settings.space.edges}, "alpha")
        for edge, own in row["alpha"].items():
            expect(len(own), range(kept, kept + 1), f"alpha.{edge}")
            expect(own, dict.fromkeys(own, float), f"alpha.{edge}")
        if "edges" in row:
            expect(row["edges"], dict.fromkeys(row["alpha"], float), "edges")
        for name, kind in {"kinds": int, "margins": float}.items():
            expect(row.get(name, {}), dict.fromkeys(row.get(name, {}), kind), name)

    return check


def _saved(settings: SearchSettings, half: ImageSet, run: Run) -> dict[str, Any] | None:
    """Return the state to go on from, with the log cut back to it."""
    return run.load(partial(check_checkpoint, settings, half), check_rows(settings))


class Boundary(NamedTuple):
    """All that one stage leaves to the next; a run directory has it in some kB as :data:`BOUNDARY`."""

    stage: int
    candidates: Candidates
    alpha: Tensor | None


def load_boundary(settings: SearchSettings, run: Run) -> Boundary | None:
    """Return the end of the last whole stage of a run without checkpoints, if there is one, and set the log back to it.

    So a search goes on elsewhere from the small files of its directory alone. Weights start anew in each stage, from
    their own seed: it comes to the same end.

    Raises:
        ValueError: If the file is none of this run.
    """
    path = run.path / BOUNDARY
    if not path.exists():
        return None
    with refusing(f"{path}"):
        told = json.loads(path.read_text())
        expect(told, {"stage": range(1, len(settings.stages)), "candidates": list, "alpha": list, "rows": list}, "it")
        candidates, kept = parse_candidates(told["candidates"]), settings.stages[told["stage"]][1]
        for ops in candidates:
            expect(len(ops), range(kept, kept + 1), "candidates")
        check_candidates(settings.space, candidates)
        alpha = torch.tensor(told["alpha"])
        expect(alpha, torch.zeros(len(candidates), kept + (settings.relaxation.partial > 1)), "alpha")
        epochs = sum(epochs for *_, epochs in settings.stages[: told["stage"]])
        expect(len(told["rows"]), range(epochs, epochs + 1), "rows")
        for number, row in enumerate(told["rows"]):
            check_rows(settings)(number, row)
    run.rewrite(told["rows"])
    return Boundary(told["stage"], candidates, alpha if settings.carry_alpha else None)


def _check_fit(settings: SearchSettings, candidates: Candidates, half: ImageSet, images: int) -> None:
    """Check that settings and images fit together, before anything is written.

    Raises:
        ValueError: If they do not.
    """
    if len(half) < settings.batch_size:
        raise ValueError(f"batch_size {settings.batch_size} is more than half the {images} training images")
    Heading(settings, half)
    with torch.device("meta"):
        make_supernet(settings, 0, candidates, half)


def search(
    settings: SearchSettings,
    data: Data | ImageSet,
    run_dir: str | Path | None = None,
    *,
    resume: bool = False,
    progress: bool = False,
    logger: str | None = None,
    loss: Loss = F.cross_entropy,
    objective: Objective | None = None,
) -> SearchResult:
    """Search an encoder, Algorithm 1.

    The training set is split in disjoint halves, one for the weights and one for α. The test set is not touched.
    Between stages every edge drops its weakest operations by α and the weights start anew (ledger A11, A21).

    Args:
        settings: Everything it depends on.
        data: The images; of a pair only ``train`` is used.
        run_dir: Where settings, metrics, genotype and checkpoints go; by default nothing is written.
        resume: Go on with the run in ``run_dir``, or begin it; without checkpoints from its last stage's beginning.
        progress: Show progress on stderr.
        logger: ``"csv"`` or ``"tensorboard"``: log the rows also in a folder of this name in ``run_dir``.
        loss: What the weights descend. To resume a run give the same; it is not kept there.
        objective: What α descends beside the term of a target; by default the loss, the fairness term and the method's
            terms of α alone. To resume a run give the same.

    Raises:
        ValueError: If settings and data do not fit together, or the directory cannot be used.
        Interrupted: On SIGINT or SIGTERM, after the state was saved.
        RunFailedError: If the losses diverge or the directory cannot be written; what was saved before is as it was.
    """
    images, asked = data.train if isinstance(data, Data) else data, settings
    check_logger(logger)
    fabric = make_fabric(settings.hardware)
    candidates: Candidates = (settings.space.operations,) * len(settings.space.edges)
    halves = draw_halves(settings, images.to(fabric.device))
    _check_fit(settings, candidates, halves[0], len(images))
    opened = None if run_dir is None or fabric.global_rank else Run.open(run_dir, "search", settings, resume=resume)
    with opened or nullcontext() as run:
        fabric.launch()  # what cannot be run has failed before there are other processes
        state = fabric.broadcast(_saved(settings, halves[0], run) if run is not None and resume else None)
        number, alpha = 0, None
        if state is not None:
            number, candidates = state["job"]["stage"], parse_candidates(state["job"]["candidates"])
        elif resume and (boundary := fabric.broadcast(load_boundary(asked, run) if run is not None else None)):
            number, candidates, alpha = boundary
        history = fabric.broadcast(run.history() if run is not None else [])  # all that is left of a finished run
        if run is not None and logger is not None:
            run.on_row = follow(logger, run.path, history)
        while True:
            settings = replace(settings, joint=choose_joint(asked, number, candidates, images, fabric.device))
            stage = SearchStage(settings, number, candidates, halves, fabric, run, alpha, loss, objective)
            history += run_epochs(stage, run, state, progress=progress and fabric.is_global_zero)
            supernet, derived = stage.supernet, Genotype.from_json(history[-1]["genotype"])
            number, state = number + 1, None
            if number == len(settings.stages):
                return SearchResult(derived, history, supernet)
            candidates, alpha = _pruned(settings, number, supernet, candidates, derived, run)


def _pruned(
    settings: SearchSettings,
    number: int,
    supernet: Supernet,
    candidates: Candidates,
    derived: Genotype,
    run: Run | None,
) -> tuple[Candidates, Tensor | None]:
    """Return what a stage begins with, the operations that survive and their α if it is carried on (A51); keep both.

    Where the encoder has to meet conditions, the one ``derived`` so far survives, so that they can still be met.
    """
    alpha, width = supernet.alpha.detach(), len(candidates[0])
    strength = alpha[:, :width].clone()
    if settings.target.unit is not None or settings.attends:
        for edge, operation in derived.edges:
            place = settings.space.edges.index(edge)
            strength[place, candidates[place].index(operation)] = float("inf")
    candidates, columns = prune(strength, candidates, settings.stages[number][1])
    survived = torch.cat([alpha.gather(1, torch.tensor(columns, device=alpha.device)), alpha[:, width:]], dim=1)
    if run is not None:
        named = [[str(op) for op in ops] for ops in candidates]
        left = {"stage": number, "candidates": named, "alpha": survived.tolist(), "rows": run.history()}
        run.write(BOUNDARY, left)
    return candidates, survived if settings.carry_alpha else None
