"""The command line: ``dasvit search | retrain | evaluate | export | draw | complexity | table1 | score | …``.

Each command imports what it needs when it runs, and declares its options there: tyro reads their types from the
local annotations, so this module does without ``from __future__ import annotations``.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

T = TypeVar("T")

_FAILED, _BAD_INPUT, _SIGNAL = 1, 2, 128
_SAVES_MEMORY = {
    "retrain": "lower --batch-size",
    "tf-search": "lower --jobs or --image-size",
}


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with one of these codes.

    0: done. 1: the run failed for a cause outside its input: diverged, disk full, out of memory, a worker killed.
    2: bad input, which includes images that cannot be read and a run directory that cannot be used. 130 or 143: stopped
    by a signal. All but 0 say why in one line on stderr.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        _dispatch(arguments)
    except ValueError as error:
        _fail(str(error), _BAD_INPUT)
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"cannot use {os.fsdecode(error.filename)}: {error.strerror}", _BAD_INPUT)
    except KeyboardInterrupt as interrupt:
        signum = getattr(interrupt, "signum", 2)
        saved = f"{interrupt}; its state is saved, go on with --resume" if hasattr(interrupt, "signum") else "stopped"
        _fail(saved, _SIGNAL + signum)
    except (RuntimeError, MemoryError) as error:
        _fail(_cause(error, arguments[0]), _FAILED)
    sys.exit(0)


def _cause(error: Exception, command: str) -> str:
    """Return what made a run fail from outside; an error that has no such cause is a bug and raised again."""
    from .hardware import out_of_memory
    from .runs import RunFailedError

    if isinstance(error, RunFailedError):
        return str(error)
    if out_of_memory(error):
        return f"out of memory: {_SAVES_MEMORY.get(command, 'take a smaller network or image')}"
    if "DataLoader worker" in str(error):  # torch raises it from a signal handler, wherever the run is then
        return f"a process that decodes images died; go on with --resume ({error})"
    raise error


def _fail(message: str, code: int) -> NoReturn:
    line = " ".join(message.split())[:1000]  # it may quote a file, whose control characters are no terminal's business
    print("dasvit:", "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line), file=sys.stderr)
    sys.exit(code)


def _dispatch(arguments: list[str]) -> None:
    commands = {
        "search": (_search, "search an encoder"),
        "retrain": (_retrain, "train a derived network from scratch"),
        "evaluate": (_evaluate, "accuracy of a retrained network on the test images"),
        "export": (_export, "hand a retrained network to timm, the Hugging Face hub or ONNX"),
        "draw": (_draw, "draw an encoder"),
        "complexity": (_complexity, "parameters and multiply-accumulates"),
        "table1": (_table1, "the paper's Table I, printed against counted"),
        "score": (_score, "rank a network without training it"),
        "tf-search": (_tf_search, "search without training"),
        "plan": (_plan, "memory and time of a search, before it is run"),
    }
    usage = "usage: dasvit COMMAND [OPTIONS]\n\n" + "\n".join(f"  {c:<11} {d}" for c, (_, d) in commands.items())
    usage += "\n\n`dasvit COMMAND --help` lists a command's options."
    if arguments[:1] in (["-h"], ["--help"]):
        print(usage)
        return
    if not arguments or arguments[0] not in commands:
        given = f"unknown command {arguments[0]!r}" if arguments else "no command"
        raise ValueError(f"{given}; known: {', '.join(commands)}")
    commands[arguments[0]][0](arguments[1:])


def _parse(cls: type[T], command: str, arguments: Sequence[str]) -> T:
    """Read a dataclass from flags; what is wrong is raised as one line instead of printed as a box.

    Raises:
        ValueError: If the arguments do not fit.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                cls,
                prog=f"dasvit {command}",
                args=arguments,
                config=(OmitArgPrefixes,),
            )
    except SystemExit as exit_:
        if not exit_.code:
            raise
        title, *lines = (re.sub(r"[─-]{3,}|[╭╮╰╯│|+]", " ", x).strip(" ─") for x in box.getvalue().splitlines())
        words = itertools.dropwhile(lambda line: not line, lines)  # the first part; what follows repeats the help
        message = " ".join(itertools.takewhile(bool, words))
        raise ValueError(f"{title.lower()}: {message} (see dasvit {command} --help)") from None


def _flag(arguments: Sequence[str], name: str) -> str | None:
    """Return the value of a flag that decides about the defaults of the others."""
    for i, argument in enumerate(arguments):
        if argument == name and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(name + "="):
            return argument.partition("=")[2]
    return None


def _starting_settings(cls: type[T], command: str, presets: dict[str, T], arguments: Sequence[str]) -> T:
    """Return what the flags change: the settings of the run to be resumed, else those of the preset."""
    from .runs import Run, from_plain

    preset, out = _flag(arguments, "--preset"), _flag(arguments, "--out")
    if preset is None and "--resume" in arguments and out is not None:
        return from_plain(cls, Run(Path(out)).settings(command))
    if preset is None:
        preset = "tiny" if _flag(arguments, "--data") in (None, "digits") else "small"
    if preset not in presets:
        raise ValueError(f"unknown preset {preset!r}; known: {', '.join(presets)}")
    return presets[preset]


def _search(arguments: list[str]) -> None:
    from lightning_fabric.utilities import rank_zero_only

    from .data import load_data
    from .hardware import out_of_memory
    from .plan import advice
    from .presets import SEARCH
    from .runs import RunFailedError
    from .search import METHODS, SearchSettings, search

    start = _starting_settings(SearchSettings, "search", SEARCH, arguments)

    @dataclass(frozen=True)
    class Search:
        """Search an encoder by progressive differentiable architecture search."""

        out: Path
        """The run directory: settings, metrics, genotype, checkpoints."""
        settings: SearchSettings = start
        preset: str | None = None
        """tiny, small or paper; without it tiny for digits, else small. The other flags change its settings."""
        method: str = "dasvit"
        """dasvit, or darts: one stage at the last depth, every token, no fairness term."""
        resume: bool = False
        """Continue the run in --out; its settings need not be repeated."""

    given = _parse(Search, "search", arguments)
    if given.method not in METHODS:
        raise ValueError(f"unknown method {given.method!r}; known: {', '.join(METHODS)}")
    settings = METHODS[given.method](given.settings)
    data = load_data(settings.data, image_size=settings.image_size)
    try:
        result = search(settings, data, given.out, resume=given.resume, progress=True)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        images = {"channels": data.train.channels, "classes": len(data.train.classes)}
        raise RunFailedError(f"out of memory: {advice(settings, **images)}") from None
    rank_zero_only(print)(result.genotype.to_json())


def _retrain(arguments: list[str]) -> None:
    from lightning_fabric.utilities import rank_zero_only

    from .data import load_data
    from .presets import RETRAIN
    from .retrain import RetrainSettings, retrain

    start = _starting_settings(RetrainSettings, "retrain", RETRAIN, arguments)

    @dataclass(frozen=True)
    class Retrain:
        """Train a network from scratch and evaluate it on the test images."""

        out: Path
        """The run directory: settings, metrics, genotype, checkpoints."""
        settings: RetrainSettings = start
        preset: str | None = None
        """tiny, small or paper; without it tiny for digits, else small. The other flags change its settings."""
        resume: bool = False
        """Continue the run in --out; its settings need not be repeated."""

    given = _parse(Retrain, "retrain", arguments)
    settings = given.settings
    data = load_data(settings.data, image_size=settings.image_size)
    result = retrain(settings, data, given.out, resume=given.resume, progress=True)
    rank_zero_only(_print_accuracy)(result.accuracy, len(data.test))


def _print_accuracy(accuracy: dict[str, float], count: int) -> None:
    top1, top5, loss = (accuracy[k] for k in ("top1", "top5", "loss"))
    print(f"top-1 {100 * top1:.2f} %, top-5 {100 * top5:.2f} %, loss {loss:.4f} on {count} test images")


def _evaluate(arguments: list[str]) -> None:
    from .hardware import make_fabric
    from .retrain import evaluate, load_trained

    @dataclass(frozen=True)
    class Evaluate:
        """Evaluate a retrained network on the test images."""

        run: Positional[Path]
        """A run directory of dasvit retrain."""
        json: bool = False
        """Print JSON."""

    given = _parse(Evaluate, "evaluate", arguments)
    network, settings, data = load_trained(given.run)
    fabric = make_fabric(dataclasses.replace(settings.hardware, devices=1))
    model = fabric.setup_module(network)
    accuracy = evaluate(model, data.test.to(fabric.device), settings.image_size, fabric.device)
    if given.json:
        print(json.dumps({**accuracy, "images": len(data.test)}))
    else:
        _print_accuracy(accuracy, len(data.test))


def _export(arguments: list[str]) -> None:
    from .export import Format as Format_
    from .export import export

    @dataclass(frozen=True)
    class Export:
        """Write a retrained network for use elsewhere."""

        run: Positional[Path]
        """A run directory of dasvit retrain."""
        format: Format_
        """safetensors: a folder for DASViT.from_pretrained; timm: a folder for timm.create_model("local-dir:FOLDER",
        pretrained=True); onnx: a file, batch size free, images normalised as its metadata say."""
        out: Path
        """The folder or file; must not exist."""

    given = _parse(Export, "export", arguments)
    export(given.run, given.out, given.format)
    print(given.out)


def _draw(arguments: list[str]) -> None:
    from .encoder import resolve
    from .plot import draw_genotype, save_figure
    from .space import Genotype

    @dataclass(frozen=True)
    class Draw:
        """Draw an encoder as a graph."""

        genotype: Positional[str]
        """A genotype file, or the name of a published encoder."""
        output: Annotated[Path, arg(aliases=("-o",))]
        """The figure; its suffix chooses the format, e.g. .svg, .png or .pdf."""

    given = _parse(Draw, "draw", arguments)
    genotype = resolve(given.genotype)
    if not isinstance(genotype, Genotype):
        raise ValueError(f"{genotype} is the plain transformer, not a searched encoder: nothing to draw")
    save_figure(draw_genotype(genotype), given.output)
    print(given.output)


def _complexity(arguments: list[str]) -> None:
    from .complexity import CONVENTIONS, complexity
    from .complexity import Convention as Convention_
    from .encoder import build, resolve

    @dataclass(frozen=True)
    class Complexity:
        """Count parameters and multiply-accumulates of a network for one image."""

        genotype: Positional[str]
        """A genotype file, or the name of a published encoder or of the baseline, vit_b16."""
        image_size: int = 224
        """Side of the image in pixels."""
        patch_size: int = 16
        """Side of a patch in pixels."""
        in_channels: int = 3
        """Channels of the image."""
        dim: int = 768
        """Width of a token."""
        depth: int = 12
        """Number of encoder layers."""
        num_classes: int = 10
        """Number of classes."""
        convention: Convention_ = "A"
        """A: every matrix product; B: linear and convolution only; C: as A without the attention projections."""
        json: bool = False
        """Print JSON, with the share of every module."""

    given = _parse(Complexity, "complexity", arguments)
    sizes = dataclasses.asdict(given)
    architecture, as_json, convention = (resolve(sizes.pop("genotype")), sizes.pop("json"), sizes.pop("convention"))
    result = complexity(build(architecture, **sizes), given.image_size, convention=convention)
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        counted = (
            f"{result.macs:,} MACs at {given.image_size} px (convention {convention}: {CONVENTIONS[convention][0]})"
        )
        print(f"{result.parameters:,} parameters, {counted}")


def _table1(arguments: list[str]) -> None:
    from tqdm import tqdm

    from .complexity import CONVENTIONS
    from .zoo import TABLE_1, audit

    @dataclass(frozen=True)
    class Table1:
        """Count every row of the paper's Table I with 10, 100 and 1000 classes, under three conventions."""

        json: bool = False
        """Print JSON."""

    given = _parse(Table1, "table1", arguments)
    rows = list(tqdm(audit(), total=len(TABLE_1), desc="counting", leave=False, disable=None))
    if given.json:
        sources = ("parameters_from", "macs_from")
        print(json.dumps([dataclasses.asdict(row) | {s: getattr(row, s) for s in sources} for row in rows]))
        return
    print(f"{'':<16}{'classes':>8}{'parameters':>14}" + "".join(f"{k + ' (10⁹)':>10}" for k in CONVENTIONS))
    for row in rows:
        for name, count in zip((row.name, "", ""), row.counts, strict=True):
            macs = "".join(f"{m / 1e9:>10.3f}" for m in count.macs.values())
            print(f"{name:<16}{count.num_classes:>8}{count.parameters:>14,}{macs}")
        classes = ", ".join(map(str, row.parameters_from))
        conventions = ", ".join(row.macs_from)
        parameters = f"{classes} classes" if classes else "no size of the classifier"
        macs = f"convention {conventions}" if conventions else "no convention"
        print(f"  printed {row.printed_parameters} M: {parameters}; printed {row.printed_macs} G: {macs}\n")
    print("\n".join(f"{name}: {what}" for name, (what, _) in CONVENTIONS.items()))


def _score(arguments: list[str]) -> None:
    from .encoder import build, resolve
    from .seeds import check_seed
    from .training_free import INDICATORS, SPACES, Probe, Shape, score
    from .training_free.space import find

    @dataclass(frozen=True)
    class Score:
        """Score an untrained network; higher is better. The number of parameters is told beside every score."""

        network: Positional[str]
        """vit_b16, a published encoder's name, a genotype file, or SPACE:NUMBER, e.g. autoformer-t:4711."""
        indicator: tuple[str, ...] = ("dss",)
        """dss, dss-released, synflow, snip, grasp, naswot, te, params, macs."""
        image_size: int = 224
        """Side of the image in pixels."""
        patch_size: int = 16
        """Side of a patch in pixels."""
        in_channels: int = 3
        """Channels of the image."""
        num_classes: int = 1000
        """Number of classes."""
        dim: int = 768
        """Width of a token; a network of a space has its own."""
        depth: int = 12
        """Number of encoder layers; a network of a space has its own."""
        seed: int = 0
        """Seed of the weights and of the images."""
        json: bool = False
        """Print JSON."""

    given = _parse(Score, "score", arguments)
    for name in given.indicator:
        if name not in INDICATORS:
            raise ValueError(f"unknown indicator {name!r}; known: {', '.join(INDICATORS)}")
    check_seed(given.seed)
    shape = Shape(given.image_size, given.patch_size, given.in_channels, given.num_classes, given.seed)
    same_as = None
    if (place := find(given.network)) is not None:
        space, number = place
        model = SPACES[space].build(number, shape)
        if (first := SPACES[space].canonical(number)) != number:
            same_as = f"{space}:{first}"
    else:
        import torch

        architecture, sizes = resolve(given.network), dataclasses.asdict(shape)
        torch.manual_seed(sizes.pop("seed"))
        model = build(architecture, dim=given.dim, depth=given.depth, **sizes)
    parameters = sum(p.numel() for p in model.parameters())
    scores = {name: score(model, name, Probe(given.image_size, seed=given.seed)) for name in given.indicator}
    if given.json:
        same = {} if same_as is None else {"same_as": same_as}
        print(json.dumps({"network": given.network, **same, "parameters": parameters, "scores": scores}))
        return
    for name, parts in scores.items():
        print(f"{name} " + ", ".join(f"{part} {value:.6g}" for part, value in parts.items()))
    print(f"{parameters:,} parameters")
    if same_as is not None:
        print(f"the same function as {same_as}; its weights are drawn in another order, so scores differ by the draw")


def _tf_search(arguments: list[str]) -> None:
    from .plot import plot_scores, save_figure
    from .training_free import TFSearchSettings, tf_search

    resumed = "--resume" in arguments and _flag(arguments, "--out") is not None
    start = TFSearchSettings()
    if resumed:
        from .runs import Run, from_plain

        start = from_plain(TFSearchSettings, Run(Path(str(_flag(arguments, "--out")))).settings("tf-search"))

    @dataclass(frozen=True)
    class TfSearch:
        """Score random networks of a space without training them, and rank them."""

        out: Path
        """The run directory: settings, metrics.jsonl (a network a line), scores.svg (score against size), best.json."""
        settings: TFSearchSettings = start
        jobs: int = 1
        """Processes; -1 takes all processors."""
        resume: bool = False
        """Continue the run in --out; its settings need not be repeated."""

    given = _parse(TfSearch, "tf-search", arguments)
    if given.jobs == 0 or abs(given.jobs) > 1000:
        raise ValueError(f"jobs {given.jobs}: take 1 to 1000 processes, or -1 for all processors")
    result = tf_search(given.settings, given.out, jobs=given.jobs, resume=given.resume, progress=True)
    save_figure(plot_scores(result.rows, given.settings.indicators[0]), given.out / "scores.svg")
    indicator = given.settings.indicators[0]
    failed = sum(indicator not in row["scores"] for row in result.rows)
    score, count = result.best["scores"][indicator]["total"], len(result.rows) - failed
    told = f"{indicator} {score:.6g}, {result.best['parameters']:,} parameters"
    print(f"{result.best['network']}: {told}, best of {count} scored, {failed} failed")


def _plan(arguments: list[str]) -> None:
    from tqdm import tqdm

    from .plan import fit, plan, step_seconds
    from .presets import SEARCH
    from .search import SearchSettings
    from .vit import check_sizes

    start = _starting_settings(SearchSettings, "search", SEARCH, arguments)

    @dataclass(frozen=True)
    class Plan:
        """Tell what each stage of a search needs: bytes of live tensors, counted, and seconds a step, measured here.

        Which operations survive is not known before: "even" takes kinds in turn, "at most" those with the most weights.
        """

        settings: SearchSettings = start
        preset: str | None = None
        """tiny, small or paper; without it tiny for digits, else small. The other flags change its settings."""
        gpu_mem: str | None = None
        """Memory that it has to fit in, e.g. 24G; leave room for what the allocator and other programs take."""
        batch: int | None = None
        """The same as --batch-size."""
        num_classes: int = 10
        """Number of classes."""
        in_channels: int = 3
        """Channels of an image."""
        memory_only: bool = False
        """Do not measure how long a step takes."""
        json: bool = False
        """Print JSON."""

    given = _parse(Plan, "plan", arguments)
    limit = None if given.gpu_mem is None else _bytes(given.gpu_mem)
    settings = given.settings if given.batch is None else dataclasses.replace(given.settings, batch_size=given.batch)
    channels, classes = given.in_channels, given.num_classes
    check_sizes(in_channels=channels, num_classes=classes)
    stages = len(settings.stages)
    heaviest = plan(settings, choice="heaviest", channels=channels, classes=classes)
    most = [p.peak_bytes for p in tqdm(heaviest, "planning", stages, leave=False, disable=None)]
    rows = []
    even = plan(settings, channels=channels, classes=classes)
    for stage, most_bytes in zip(tqdm(even, "timing", stages, leave=False, disable=None), most, strict=True):
        seconds = None if given.memory_only else step_seconds(settings, stage, channels=channels, classes=classes)
        rows.append({**dataclasses.asdict(stage), "most_bytes": most_bytes, "seconds": seconds})
    if not given.json:
        _print_plan(rows)
    found: tuple[str, int] | None = ("", max(most))
    if limit is not None and max(most) > limit:
        found = fit(settings, limit, channels=channels, classes=classes)
    if given.json:
        print(json.dumps({"stages": rows, "limit": limit, "fits": found and {"flags": found[0], "bytes": found[1]}}))
    elif limit is not None:
        print(_verdict(max(most), limit, found))


def _print_plan(rows: list[dict[str, Any]]) -> None:
    heads = ("layers", "operations", "parameters", "held", "α step", "w step", "at most", "seconds a step")
    print("".join(f"{head:>15}" for head in heads))
    for row in rows:
        sizes = (row[k] / 1e9 for k in ("held_bytes", "alpha_bytes", "weight_bytes", "most_bytes"))
        time = "" if row["seconds"] is None else f"{row['seconds']:.3g}"
        counts = "".join(f"{row[k]:>15,}" for k in ("depth", "operations", "parameters"))
        print(counts + "".join(f"{size:>12.3g} GB" for size in sizes) + f"{time:>15}", flush=True)


def _verdict(most: int, limit: int, found: tuple[str, int] | None) -> str:
    if found is None:
        return f"nothing makes it fit in {limit / 1e9:g} GB: take a smaller --dim or --image-size"
    if not found[0]:
        return f"fits in {limit / 1e9:g} GB: {most / 1e9:.3g} GB at most"
    return f"needs {most / 1e9:.3g} GB at most; to fit in {limit / 1e9:g} GB: {found[0]} ({found[1] / 1e9:.3g} GB)"


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    if match is None or not float(match[1]):
        raise ValueError(f"gpu-mem {text!r} is no amount of memory: write e.g. 24G")
    return int(float(match[1]) * 1000 ** " KMGT".index(match[2] or " "))


if __name__ == "__main__":
    main()
