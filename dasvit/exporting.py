"""A trained network handed on: to timm, to the Hugging Face hub's layout, to ONNX (a model to use)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import timm
import torch
from safetensors import SafetensorError
from timm.models import save_for_hf

from .data.sizes import pair
from .engine.runs import unwritable
from .predicting import Classifier
from .timm_model import NAME, DASViT

Format = Literal["safetensors", "onnx", "timm"]
"""``safetensors``: a folder for ``DASViT.from_pretrained``; ``timm``: a folder for
``timm.create_model("local-dir:…", pretrained=True)``; ``onnx``: one file."""


def trained_model(run_dir: str | Path) -> tuple[DASViT, dict[str, Any]]:
    """Return the network of a retraining in evaluation mode, and how its images are to be prepared.

    The preparation has ``mean`` and ``std`` of each channel, of values in [0, 1], ``label_names``, ``fit`` (how an
    image of another shape is cut) and ``temperature``, by which logits are divided before they become probabilities.

    Raises:
        ValueError: If the directory holds no such run.
    """
    trained = Classifier.load(run_dir)
    network, settings, images = trained.network, trained.settings, trained.images
    model: Any = timm.create_model(
        NAME,
        genotype=settings.genotype,
        img_size=settings.image_size,
        patch_size=settings.patch_size,
        in_chans=images.channels,
        num_classes=len(images.classes),
        embed_dim=settings.dim,
        depth=settings.depth,
    )
    model.load_state_dict(network.state_dict())
    told = {"mean": images.mean, "std": images.std, "label_names": images.classes}
    return model.eval(), told | {"fit": settings.data.fit, "temperature": trained.temperature}


def export(run_dir: str | Path, out: str | Path, form: str) -> None:
    """Write the network of a retraining for use elsewhere; whole or not at all.

    Args:
        run_dir: The run directory of the retraining.
        out: A file for ``onnx``, else a folder; must not exist.
        form: What to write, a :data:`Format`.

    Raises:
        ValueError: If the directory holds no such run, ``out`` exists, the format is unknown, or a package is missing.
        RunFailedError: If the disk is full.
    """
    if form not in get_args(Format):
        raise ValueError(f"unknown format {form!r}; known: {', '.join(get_args(Format))}")
    out = Path(out)
    if os.path.lexists(out):
        raise ValueError(f"{out} exists already: choose another --out")
    if not os.path.isdir(out.parent):  # Path.is_dir raises where a name is too long
        raise ValueError(f"cannot write {out}: folder {out.parent} does not exist")
    model, images = trained_model(run_dir)
    try:
        with TemporaryDirectory(dir=out.parent) as folder:
            part = Path(folder) / out.name
            {"safetensors": _safetensors, "timm": _timm, "onnx": _onnx}[form](model, images, part)
            part.replace(out)
    except (OSError, SafetensorError) as error:
        raise unwritable(out, error) from None


def _safetensors(model: DASViT, images: dict[str, Any], out: Path) -> None:
    model.save_pretrained(out, config=images)


def _timm(model: DASViT, images: dict[str, Any], out: Path) -> None:
    preparation = {
        "input_size": (model.in_channels, *pair(model.image_size)),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    preparation |= {k: images[k] for k in ("mean", "std")}
    labels = {"label_names": images["label_names"]}
    save_for_hf(model, str(out), labels, model.arguments, safe_serialization=True, data_config=preparation)


def _onnx(model: DASViT, images: dict[str, Any], out: Path) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise ValueError(f"{error.name} is missing: pip install onnx onnxscript") from None
    example = torch.zeros(2, model.in_channels, *pair(model.image_size))
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(model, (example,), dynamo=True, dynamic_shapes=batch, verbose=False)
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {k: json.dumps(v) for k, v in (images | model.arguments).items()})
    onnx.save(proto, str(out))
