"""A command in a process of its own that something happens to at a chosen call of a chosen function."""

import faulthandler
import functools
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

from faults import FORKS, content, dasvit, difference, finish

COMMANDS = {
    command: [command, *arguments.split()]
    for command, arguments in {
        # 3 steps an epoch, 9 in all
        "search": "--train-images 200 --dim 24 --stages 1 8 2 1 3 1 --carry-alpha --device cpu",
        # 3 steps an epoch, 6 in all
        "retrain": "--train-images 220 --test-images 50 --dim 24 --depth 1 --epochs 2 --warmup-epochs 1 --mixup 0.8 "
        "--erase 0.5 --device cpu",
        "tf-search": "--space autoformer-xs --image-size 8 --patch-size 4 --in-channels 1 --num-classes 10 --samples 6 "
        "--indicators dss synflow",
    }.items()
}


HANGS = 600  # seconds; what has not ended then never will, and says where it is


class Fault(NamedTuple):
    """Strike before or after a call of a function; the end of a file may be missing then."""

    target: str
    call: int = 1
    after: bool = False
    torn: str | None = None


def victim(arguments, log, fault, action, constants):
    """Run the command line; at the fault, ``action`` is called with the run directory and the arguments of the call."""
    for place, value in constants.items():
        module, _, constant = place.partition(":")
        setattr(importlib.import_module(module), constant, value)
    module, _, name = fault.target.partition(":")
    owner = importlib.import_module(module)
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    function, calls, run = getattr(owner, name), iter(range(1, 10**6)), Path(arguments[arguments.index("--out") + 1])

    def strike(*args):
        if fault.torn:
            (path,) = run.glob(fault.torn)
            os.truncate(path, path.stat().st_size - 10)
        action(run, *args)

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        here = next(calls) == fault.call
        if here and not fault.after:
            strike(*args)
        result = function(*args, **kwargs)
        if here and fault.after:
            strike(*args)
        return result

    setattr(owner, name, wrapped)
    faulthandler.dump_traceback_later(HANGS, exit=True, file=sys.__stderr__)
    dasvit(arguments, log)


def send(signum, _run, *_args):
    os.kill(os.getpid(), signum)


KILL, TERM, INT = (functools.partial(send, s) for s in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT))


def disturbed(arguments, run, fault, action, **constants):
    """Start or resume a command that something happens to; return its exit code and what it printed."""
    log = run.parent / "log"
    log.unlink(missing_ok=True)
    os.mkfifo(log)  # no file, so that it never meets a full disk
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    flags = ["--out", str(run), *([] if arguments[0] == "export" else ["--resume"])]
    process = FORKS.Process(target=victim, args=([*arguments, *flags], log, fault, action, constants))
    process.start()
    process.join()
    code = process.exitcode
    printed = os.read(reader, 1 << 16).decode()
    os.close(reader)
    log.unlink()
    return code, printed


def left(run):
    """Return what a run has come to."""
    if (run / "best.json").exists():
        return {name: (run / name).read_bytes() for name in ("metrics.jsonl", "best.json", "scores.svg")}
    return content(run)


def comes_to_the_same_end(arguments, run, expected):
    """Resume a run, nobody disturbing it."""
    log = run.parent / "resumed"
    code = finish(arguments, run, log)
    assert code == 0, log.read_text()
    assert difference(left(run), expected) is None
