"""Commands that use a run: evaluate, predict, draw, report, export (own images)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..engine.flags import BY_PLACE, parse


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a retrained network on the test images."""

    run: Path = field(metadata=BY_PLACE)
    """A run directory of dasvit retrain."""
    device: Literal["auto", "cpu", "cuda", "mps"] | None = None
    """Where to compute; by default where it was trained."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Predict:
    """Classify photographs by a retrained network; the images that it was trained on are not needed."""

    run: Path = field(metadata=BY_PLACE)
    """A run directory of dasvit retrain."""
    images: tuple[Path, ...] = field(metadata=BY_PLACE)
    """Image files, and folders whose images are all taken."""
    top: int = 3
    """How many classes are told, the likeliest first."""
    json: bool = False
    """Print a JSON object a line; otherwise the file, then classes and probabilities, apart by tabs."""


@dataclass(frozen=True)
class Draw:
    """Draw an encoder as a graph, or what a run has to show."""

    genotype: str = field(metadata=BY_PLACE)
    """A genotype file, the name of a published encoder, or a run directory: of a search, α over time is drawn."""
    output: Path = field(metadata={"short": ("-o",)})
    """The figure; its suffix chooses the format, e.g. .svg, .png or .pdf."""
    images: tuple[Path, ...] = ()
    """Photographs: of a search the tokens that it keeps are drawn on them, of a retraining where its attention goes."""


@dataclass(frozen=True)
class Report:
    """Write a run as one HTML page that needs no other file: settings, curves, encoder, mistakes, costs."""

    run: Path = field(metadata=BY_PLACE)
    """A run directory of dasvit search or dasvit retrain."""
    output: Path = field(metadata={"short": ("-o",)})
    """The page; a file that is there is replaced."""


@dataclass(frozen=True)
class Export:
    """Write a retrained network for use elsewhere."""

    run: Path = field(metadata=BY_PLACE)
    """A run directory of dasvit retrain."""
    format: str
    """safetensors: a folder for DASViT.from_pretrained; timm: a folder for timm.create_model("local-dir:FOLDER",
    pretrained=True); onnx: a file, batch size free, images normalised as its metadata say."""
    out: Path
    """The folder or file; must not exist."""


def print_accuracy(accuracy: dict[str, float], count: int) -> None:
    """Print the measures of a network on ``count`` test images."""
    top1, balanced, top5 = (f"{100 * accuracy[k]:.2f} %" for k in ("top1", "balanced", "top5"))
    print(f"top-1 {top1} (balanced {balanced}), top-5 {top5}, loss {accuracy['loss']:.4f} on {count} test images")


def evaluate(arguments: list[str]) -> None:
    """Run ``dasvit evaluate``."""
    from ..engine.hardware import make_fabric
    from ..retraining import evaluate, load_trained

    given, _ = parse("evaluate", arguments, Evaluate)
    network, settings, data = load_trained(given.run)
    hardware = settings.hardware
    fabric = make_fabric(dataclasses.replace(hardware, devices=1, device=given.device or hardware.device))
    model = fabric.setup_module(network)
    accuracy = evaluate(model, data.test.to(fabric.device), settings.image_size, fabric.device)
    if given.json:
        print(json.dumps({**accuracy, "images": len(data.test)}))
    else:
        print_accuracy(accuracy, len(data.test))


def predict(arguments: list[str]) -> None:
    """Run ``dasvit predict``."""
    from ..predicting import Classifier, find_images

    given, _ = parse("predict", arguments, Predict)
    if given.top < 1:
        raise ValueError(f"top {given.top} is below one: one class at least is told")
    classifier, files = Classifier.load(given.run), find_images(given.images)
    unread = []
    for found in classifier.predict(files):
        if found.error:
            unread.append(found.error)
        likeliest = [] if found.error else found.classes[: given.top]
        if given.json:
            told: dict[str, Any] = {"image": str(found.image)}
            told |= (
                {"error": found.error} if found.error else {"class": likeliest[0][0], "probability": likeliest[0][1]}
            )
            print(json.dumps(told | {"classes": dict(likeliest)}), flush=True)
        elif not found.error:
            print("\t".join([str(found.image), *(f"{name}\t{share:.4f}" for name, share in likeliest)]), flush=True)
    if unread:
        raise ValueError(f"{len(unread)} of {len(files)} images were left out: {unread[0]}")


def draw(arguments: list[str]) -> None:
    """Run ``dasvit draw``."""
    from ..encoder import resolve
    from ..plot import draw_genotype, save_figure
    from ..space import Genotype

    given, _ = parse("draw", arguments, Draw)
    if Path(given.genotype).is_dir():
        save_figure(_draw_run(Path(given.genotype), given.images), given.output)
    elif given.images:
        raise ValueError(f"{given.genotype} has no weights: to draw on photographs, name a run directory")
    else:
        genotype = resolve(given.genotype)
        if not isinstance(genotype, Genotype):
            raise ValueError(f"{genotype} is the plain transformer, not a searched encoder: nothing to draw")
        save_figure(draw_genotype(genotype), given.output)
    print(given.output)


def _draw_run(path: Path, images: tuple[Path, ...]) -> Any:
    from ..encoder import resolve
    from ..engine.runs import Run
    from ..plot import draw_genotype, plot_alpha
    from ..space import Genotype

    run = Run(path)
    command, settings = run.started()
    if command not in ("search", "retrain"):
        raise ValueError(f"{path} holds a {command} run: a search or a retraining can be drawn")
    if images:
        return _draw_on(path, command, images)
    if command == "search":
        if not (history := run.history()):
            raise ValueError(f"{path} has logged no epoch yet: let the run finish one")
        return plot_alpha(history, settings["carry_alpha"])
    genotype = resolve(settings["genotype"])
    if not isinstance(genotype, Genotype):
        raise ValueError(f"{path} has trained the plain transformer: there is no graph to draw, give --images")
    return draw_genotype(genotype)


def _draw_on(path: Path, command: str, places: tuple[Path, ...]) -> Any:
    from ..inspecting import class_attention, kept_tokens, load_supernet, read_images
    from ..plot import plot_shares, plot_tokens
    from ..predicting import find_images
    from ..retraining import load_trained

    files = find_images(places)[:12]
    titles = [file.name if len(file.name) < 20 else f"…{file.name[-18:]}" for file in files]
    if command == "search":
        supernet, searched, images = load_supernet(path)
        shown, x = read_images(files, searched.image_size, searched.data.fit, images)
        return plot_tokens(shown, {"kept": kept_tokens(supernet, x)}, searched.patch_size, titles)
    network, trained, data = load_trained(path)
    shown, x = read_images(files, trained.image_size, trained.data.fit, data.train)
    attention = class_attention(network, x)
    return plot_shares(shown, (attention / attention.amax(dim=(1, 2), keepdim=True)).numpy(), titles)


def report(arguments: list[str]) -> None:
    """Run ``dasvit report``."""
    from ..engine.runs import write_whole
    from ..report import report

    given, _ = parse("report", arguments, Report)
    if given.output.suffix not in (".html", ".htm"):
        raise ValueError(f"{given.output} is a page of HTML: let its name end in .html")
    write_whole(given.output, report(given.run))
    print(given.output)


def export(arguments: list[str]) -> None:
    """Run ``dasvit export``."""
    from ..exporting import export

    given, _ = parse("export", arguments, Export)
    export(given.run, given.out, given.format)
    print(given.out)
