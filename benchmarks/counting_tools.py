"""What the usual tools count for the rows of Table I, beside our count: where the printed FLOPs may come from.

    pip install ptflops==0.7.5 thop==0.1.1.post2209072238
    python benchmarks/counting_tools.py

Beside the twelve rows, ViT-B/16 as timm and as torchvision have it, and DASViT with timm's attention in the place of
ours: the same network each time, and yet these tools count it differently.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
import tyro
from fvcore.nn import FlopCountAnalysis
from measure import begin, write
from timm.models.vision_transformer import Attention as TimmAttention
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from dasvit.counting import complexity
from dasvit.encoder import build
from dasvit.layers import Attention
from dasvit.zoo import IMAGE_SIZE, TABLE_1

CLASSES = 10


@dataclass(frozen=True)
class CountingTools:
    """Count every row of Table I with ptflops, thop, fvcore and torch, as they come."""

    out: Path = Path("book/results/counting_tools.json")
    """Where the JSON file goes."""


def dasvit_with_timm_attention() -> nn.Module:
    """Return the published encoder with its attention exchanged for timm's, which computes the same."""
    model = build("dasvit-cifar10", num_classes=CLASSES)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Attention):
                setattr(module, name, TimmAttention(768, child.num_heads, qkv_bias=True))
    return model


VARIANTS: dict[str, Callable[[], nn.Module]] = {
    "ViT-B/16 (timm)": lambda: timm.create_model("vit_base_patch16_224", num_classes=CLASSES),
    "ViT-B/16 (torchvision)": lambda: torchvision.models.vit_b_16(num_classes=CLASSES),
    "DASViT (timm's attention)": dasvit_with_timm_attention,
}


def _ptflops(model: nn.Module, _image: torch.Tensor) -> float:
    from ptflops import get_model_complexity_info

    shape = (3, IMAGE_SIZE, IMAGE_SIZE)
    quiet = {"as_strings": False, "print_per_layer_stat": False, "verbose": False}
    return get_model_complexity_info(model, shape, backend="pytorch", **quiet)[0]


def _thop(model: nn.Module, image: torch.Tensor) -> float:
    from thop import profile

    return profile(model, (image,), verbose=False)[0]


def _fvcore(model: nn.Module, image: torch.Tensor) -> float:
    return FlopCountAnalysis(model, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()


def _torch(model: nn.Module, image: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2


TOOLS = {"ptflops": _ptflops, "thop": _thop, "fvcore": _fvcore, "torch": _torch}


def main(args: CountingTools) -> None:
    """Count and write."""
    start = begin(args.out)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    models = {name: lambda row=row: row.make(num_classes=CLASSES) for name, row in TABLE_1.items()} | VARIANTS
    for name, make in tqdm(models.items(), desc="rows"):
        torch.manual_seed(0)
        rows[name] = {"ours": complexity(make(), IMAGE_SIZE).macs}
        for tool, count in TOOLS.items():
            with contextlib.redirect_stdout(io.StringIO()):
                rows[name][tool] = int(count(make().eval(), torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)))
    versions = {tool: version(tool) for tool in ("ptflops", "thop", "fvcore")}
    write(args.out, {"seed": 0, "num_classes": CLASSES, "tools": versions, "macs": rows}, start)


if __name__ == "__main__":
    main(tyro.cli(CountingTools, args=sys.argv[1:]))
