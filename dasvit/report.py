"""A run as one page of HTML: settings, curves, encoder, confusions, worst mistakes, costs (own images)."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from .counting import complexity
from .data.images import FileImages, ImageSet
from .encoder import resolve
from .engine.runs import Run
from .plot import INK, draw_genotype, plot_alpha, plot_confusion, plot_history
from .retraining import classify, load_trained, make_network, measures
from .space import Genotype

MISTAKES, MATRIX = 24, 40  # mistakes shown, classes of a confusion matrix; more classes are told by pairs
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#24292f;max-width:60rem;margin:2rem auto;padding:0 1rem}
img{max-width:100%}table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:left}
figure{display:inline-block;margin:.4rem;width:9rem;vertical-align:top;font-size:.8rem}figure img{width:100%}
details{margin:1rem 0}code{overflow-wrap:anywhere}
"""


def report(run_dir: str | Path) -> str:
    """Return a run of a search or a retraining as HTML that needs no other file, no network and no script.

    Raises:
        ValueError: If the directory holds no such run, or nothing has been logged yet.
    """
    run = Run(Path(run_dir))
    command, settings = run.started()
    if command not in ("search", "retrain"):
        raise ValueError(f"{run_dir} holds a {command} run: a report is made of a search or a retraining")
    history = run.history()
    if not history:
        raise ValueError(f"{run_dir} has logged no epoch yet: let the run finish one")
    parts = _search(history, settings["carry_alpha"]) if command == "search" else _retraining(run, history)
    title = f"dasvit {command}: {run.path.resolve().name}"
    body = "\n".join([f"<h1>{escape(title)}</h1>", *parts, _costs(history), _settings(settings)])
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _search(history: Sequence[Mapping[str, Any]], carried: bool) -> Iterator[str]:
    genotype = Genotype.from_json(history[-1]["genotype"])
    yield "<h2>Encoder found</h2>" + _picture(draw_genotype(genotype), "the encoder as a graph")
    yield f"<p><code>{escape(genotype.to_json())}</code></p>"
    if not genotype.has_attention:
        yield "<p>It has no attention: the class token sees no image. Search longer, or with another seed.</p>"
    yield "<h2>Mixing weights</h2>" + _picture(plot_alpha(history, carried), "softmax of α by edge over the epochs")
    yield "<h2>Curves</h2>" + _picture(plot_history(history), "losses and accuracy over the epochs")


def _retraining(run: Run, history: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    network, settings, data = load_trained(run.path)
    logits, labels = (x.cpu() for x in classify(network, data.test, settings.image_size))
    found = measures(logits, labels)
    told = {"top-1 accuracy": "top1", "balanced accuracy": "balanced", "top-5 accuracy": "top5"}
    rows = {name: f"{100 * found[key]:.2f} %" for name, key in told.items()}
    yield f"<h2>On {len(labels):,} test images</h2>" + _table(rows | {"cross-entropy": f"{found['loss']:.4f}"})
    yield _confusion(logits.argmax(dim=1), labels, data.test.classes)
    yield from _mistakes(logits.softmax(dim=1), labels, data.test)
    architecture = resolve(settings.genotype)
    if isinstance(architecture, Genotype):
        yield "<h2>Encoder</h2>" + _picture(draw_genotype(architecture), "the encoder as a graph")
    yield "<h2>Curves</h2>" + _picture(plot_history(history), "losses and accuracy over the epochs")
    with torch.device("meta"):
        counted = make_network(settings, data.train, class_token_last=False)  # as it is exported and counted elsewhere
    cost = complexity(counted, settings.image_size)
    yield "<h2>Size</h2>" + _table({"parameters": f"{cost.parameters:,}", "multiply-accumulates": f"{cost.macs:,}"})


def _confusion(answers: Tensor, labels: Tensor, classes: Sequence[str]) -> str:
    count = len(classes)
    matrix = (labels * count + answers).bincount(minlength=count**2).view(count, count)
    if count <= MATRIX:
        return "<h2>Confusions</h2>" + _picture(plot_confusion(matrix, classes), "images by class and answer")
    wrong = matrix.clone().fill_diagonal_(0).flatten()
    most = wrong.topk(20)
    pairs = {f"{classes[i // count]} taken for {classes[i % count]}": f"{n:,}" for n, i in zip(*most, strict=True) if n}
    return "<h2>Most frequent confusions</h2>" + _table(pairs)


def _mistakes(probabilities: Tensor, labels: Tensor, images: ImageSet) -> Iterator[str]:
    sure, answers = probabilities.max(dim=1)
    wrong = (answers != labels).nonzero()[:, 0]
    yield f"<h2>Worst mistakes</h2><p>{len(wrong):,} of {len(labels):,} images, the surest first.</p>"
    worst = wrong[sure[wrong].argsort(descending=True, stable=True)][:MISTAKES]
    shown = images.subset(worst).images
    for image, index in zip(shown.decode_all() if isinstance(shown, FileImages) else shown, worst, strict=True):
        pixels = image.permute(1, 2, 0).numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
        is_class, taken = (images.classes[int(x[index])] for x in (labels, answers))
        caption = f"{taken} ({100 * float(sure[index]):.0f} %), is {is_class}"
        yield f"<figure>{_data(buffer, 'image/png', caption)}<figcaption>{escape(caption)}</figcaption></figure>"


def _costs(history: Sequence[Mapping[str, Any]]) -> str:
    seconds, peak = sum(row["seconds"] for row in history), max(row["bytes"] for row in history)
    told = {"epochs": str(len(history)), "training time": f"{seconds:,.0f} s", "peak memory": f"{peak / 1e9:.2f} GB"}
    return "<h2>Cost</h2>" + _table(told)


def _settings(settings: Mapping[str, Any]) -> str:
    def flat(node: Any, name: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, Mapping):
            for key, value in node.items():
                yield from flat(value, f"{name}.{key}" if name else key)
        else:
            yield name, str(node)

    return f"<details><summary>All settings</summary>{_table(dict(flat(settings, '')))}</details>"


def _table(rows: Mapping[str, str]) -> str:
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return f"<table>{cells}</table>"


def _picture(figure: Figure, told: str) -> str:
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "dasvit"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    svg = buffer.getvalue().replace(INK, "#24292f")
    return f"<p>{_data(io.BytesIO(svg.encode()), 'image/svg+xml', told)}</p>"


def _data(content: io.BytesIO, kind: str, told: str) -> str:
    return f'<img alt="{escape(told)}" src="data:{kind};base64,{b64encode(content.getvalue()).decode()}">'
