"""The command line: ``dasvit search | retrain | evaluate | export | draw | complexity | table1 | score | …``.

Each command imports what it needs when it runs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Literal, NoReturn, TypeVar

from . import options
from .commands import costing, using
from .engine.flags import changed, parse
from .options import MODULES

T = TypeVar("T")

# what --help of search, retrain and plan lists
_FIRST = "out data preset method genotype resume seed train-images stages epochs device recompute gpu-mem"
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
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_SIGNAL + signal.SIGPIPE)
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
    from .engine.hardware import out_of_memory
    from .engine.runs import RunFailedError

    if isinstance(error, RunFailedError):
        return str(error)
    if out_of_memory(error):
        return f"out of memory: {_SAVES_MEMORY.get(command, 'take a smaller network or image')}"
    raise error


def _fail(message: str, code: int) -> NoReturn:
    line = " ".join(message.split())[:1000]  # it may quote a file, whose control characters are no terminal's business
    print("dasvit:", "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line), file=sys.stderr)
    sys.exit(code)


def _dispatch(arguments: list[str]) -> None:
    commands = {
        "search": (_search, "search an encoder"),
        "retrain": (_retrain, "train a derived network from scratch"),
        "evaluate": (using.evaluate, "accuracy of a retrained network on the test images"),
        "predict": (using.predict, "classify photographs"),
        "report": (using.report, "a run as one HTML page"),
        "export": (using.export, "hand a retrained network to timm, the Hugging Face hub or ONNX"),
        "draw": (using.draw, "draw an encoder, α over time, kept tokens or attention on photographs"),
        "complexity": (_complexity, "parameters and multiply-accumulates"),
        "front": (costing.front, "retrainings by cost and accuracy, in one figure"),
        "latency": (costing.latency, "measure operations, for a search that heads for a time"),
        "table1": (_table1, "the paper's Table I, printed against counted"),
        "score": (_score, "rank a network without training it"),
        "tf-search": (_tf_search, "search without training"),
        "landscape": (_landscape, "train many encoders of a space, to know it"),
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
    for module in os.environ.get(MODULES, "").split():
        try:
            import_module(module)
        except ImportError as error:
            raise ValueError(f"{MODULES} names {module!r}, which cannot be imported: {error}") from None
    commands[arguments[0]][0](arguments[1:])


def _stored(cls: type[T], command: str, given: Any) -> T | None:
    """Return the settings of the run to be resumed; none if nothing began yet."""
    from .engine.runs import Run, from_plain

    run = Run(given.out)
    return from_plain(cls, run.settings(command)) if given.resume and not run.unstarted else None


def _proposed(command: Literal["search", "retrain"], changes: Mapping[str, Any]) -> Any:
    """Return settings for images of a user's own, proposed by what they look like, and say what was proposed."""
    from lightning_fabric.utilities import rank_zero_only

    from .data.sources import DataSettings
    from .proposal import propose

    settled = {key: changes[key] for key in ("image_size", "patch_size") if key in changes}
    proposal = propose(changed(DataSettings(), changes["data"]), **settled)
    told = "".join(f"\n  {reason}" for reason in proposal.reasons)
    rank_zero_only(print)(f"dasvit: settings proposed for {changes['data']['data']}{told}", file=sys.stderr)
    return getattr(proposal, command)


def _preset(presets: Mapping[str, T], command: Literal["search", "retrain"], name: str | None, changes: Any) -> T:
    if name is None and changes.get("data", {}).get("data", "").startswith(("folder:", "packed:")):
        return _proposed(command, changes)
    if name is None:
        name = "tiny" if changes.get("data", {}).get("data", "digits") == "digits" else "small"
    if name not in presets:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(presets)}")
    return presets[name]


def _search(arguments: list[str]) -> None:
    from lightning_fabric.utilities import rank_zero_only

    from .costs import read_table_file
    from .data.sources import load_data
    from .engine.hardware import out_of_memory
    from .engine.runs import RunFailedError
    from .monitor import undecided
    from .plan import advice
    from .presets import SEARCH
    from .searching import METHODS, SearchSettings, search

    given, changes = parse("search", arguments, options.Search, SearchSettings, first=_FIRST.split())
    if (table := changes.get("target", {}).get("latency_table")) is not None:
        changes["target"]["latency_table"] = read_table_file(table)  # a file is read here, once
    if given.method not in METHODS:
        raise ValueError(f"unknown method {given.method!r}; known: {', '.join(METHODS)}")
    stored = _stored(SearchSettings, "search", given) if given.preset is None else None
    settings = METHODS[given.method](changed(stored or _preset(SEARCH, "search", given.preset, changes), changes))
    data = load_data(settings.data, image_size=settings.image_size)
    try:
        result = search(settings, data, given.out, resume=given.resume, progress=True, logger=given.logger)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        images = {"channels": data.train.channels, "classes": len(data.train.classes)}
        raise RunFailedError(f"out of memory: {advice(settings, **images)}") from None
    if (why := undecided(result.history)) is not None:
        rank_zero_only(print)("dasvit:", why, file=sys.stderr)
    rank_zero_only(print)(result.genotype.to_json())


def _retrain(arguments: list[str]) -> None:
    from lightning_fabric.utilities import rank_zero_only

    from .data.sources import load_data
    from .encoder import as_text
    from .presets import RETRAIN
    from .retraining import RetrainSettings, retrain

    given, changes = parse("retrain", arguments, options.Retrain, RetrainSettings, first=_FIRST.split())
    if "genotype" in changes:
        changes["genotype"] = as_text(changes["genotype"])  # a file is read here, once
    stored = _stored(RetrainSettings, "retrain", given) if given.preset is None else None
    settings = changed(stored or _preset(RETRAIN, "retrain", given.preset, changes), changes)
    data = load_data(settings.data, image_size=settings.image_size)
    result = retrain(settings, data, given.out, resume=given.resume, progress=True, logger=given.logger)
    rank_zero_only(using.print_accuracy)(result.accuracy, len(data.test))


def _complexity(arguments: list[str]) -> None:
    from .counting import CONVENTIONS, complexity
    from .encoder import build, resolve

    given, _ = parse("complexity", arguments, options.Complexity)
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

    from .counting import CONVENTIONS
    from .zoo import TABLE_1, audit

    given, _ = parse("table1", arguments, options.Table1)
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
    from .engine.seeds import check_seed
    from .training_free import INDICATORS, SPACES, Probe, Shape, score
    from .training_free.space import find

    given, _ = parse("score", arguments, options.Score)
    if not given.indicator:
        raise ValueError(f"no indicator: name one or more of {', '.join(INDICATORS)}")
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

    given, changes = parse("tf-search", arguments, options.TfSearch, TFSearchSettings)
    _check_jobs(given.jobs)
    settings = changed(_stored(TFSearchSettings, "tf-search", given) or TFSearchSettings(), changes)
    result = tf_search(settings, given.out, jobs=given.jobs, resume=given.resume, progress=True)
    indicator = settings.indicators[0]
    save_figure(plot_scores(result.rows, indicator), given.out / "scores.svg")
    failed = sum(indicator not in row["scores"] for row in result.rows)
    score, count = result.best["scores"][indicator]["total"], len(result.rows) - failed
    told = f"{indicator} {score:.6g}, {result.best['parameters']:,} parameters"
    print(f"{result.best['network']}: {told}, best of {count} scored, {failed} failed")


def _landscape(arguments: list[str]) -> None:
    from .data.sources import load_data
    from .landscape import Landscape, LandscapeSettings, train

    first = "out jobs bank resume data networks every trainings curve-images draw-seed epochs dim depth"
    given, changes = parse("landscape", arguments, options.Landscape, LandscapeSettings, first=first.split())
    _check_jobs(given.jobs)
    if of_one := {"genotype", "seed"} & changes.get("recipe", {}).keys():
        raise ValueError(f"a landscape has many encoders and seeds: leave out --{min(of_one)}, see --draw-seed")
    settings = changed(_stored(LandscapeSettings, "landscape", given) or LandscapeSettings(), changes)
    rows = train(settings, given.out, jobs=given.jobs, bank=given.bank, resume=given.resume, progress=True)
    data = load_data(settings.recipe.data, image_size=settings.recipe.image_size)
    landscape = Landscape.gather(settings, rows, data)
    landscape.save(given.out / "landscape.safetensors")
    best = max(landscape.numbers, key=lambda number: landscape.query(settings.space[number], "val").mean)
    told = landscape.query(settings.space[best], "test")
    print(f"{settings.space[best].to_json()}: best of {len(landscape.numbers)} on validation images, test accuracy")
    print(f"{100 * told.mean:.2f} % from {told.n} trainings")


def _check_jobs(jobs: int) -> None:
    if jobs == 0 or abs(jobs) > 1000:
        raise ValueError(f"jobs {jobs}: take 1 to 1000 processes, or -1 for all processors")


def _plan(arguments: list[str]) -> None:
    from tqdm import tqdm

    from .checks import check_sizes
    from .plan import fit, plan, step_seconds
    from .presets import SEARCH
    from .searching import SearchSettings

    given, changes = parse("plan", arguments, options.Plan, SearchSettings, first=_FIRST.split())
    limit = None if given.gpu_mem is None else _bytes(given.gpu_mem)
    if given.batch is not None:
        if changes.get("batch_size", given.batch) != given.batch:
            raise ValueError(f"--batch {given.batch} and --batch-size {changes['batch_size']} are the same: give one")
        changes["batch_size"] = given.batch
    settings = changed(_preset(SEARCH, "search", given.preset, changes), changes)
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
