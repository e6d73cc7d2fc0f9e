"""Parameters and multiply-accumulates of a network, in total and by module (chapter 2)."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

with warnings.catch_warnings():  # fvcore calls what torch has begun to deprecate
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import (
        addmm_flop_jit,
        bmm_flop_jit,
        conv_flop_jit,
        einsum_flop_jit,
        get_shape,
        linear_flop_jit,
        matmul_flop_jit,
    )

CONVENTION = "multiply-accumulates of every matrix product: linear, convolution, attention scores and values"

# what has no matrix product: normalisation, activation, softmax, sums, selections
_FREE = [
    "add",
    "add_",
    "clamp_min",
    "div",
    "gelu",
    "layer_norm",
    "mean",
    "mul",
    "mul_",
    "pow",
    "reciprocal",
    "rsub",
    "softmax",
    "sort",
    "sub",
    "sum",
    "topk",
]


@dataclass(frozen=True)
class Complexity:
    """What a network costs.

    Args:
        parameters: Number of parameters.
        macs: Multiply-accumulates of one image.
        parameters_by_module: Parameters of each submodule by name, its children included; ``""`` is the whole.
        macs_by_module: Multiply-accumulates likewise.
        convention: What is counted.
    """

    parameters: int
    macs: int
    parameters_by_module: dict[str, int]
    macs_by_module: dict[str, int]
    convention: str = CONVENTION


def _attention_macs(inputs: list[Any], _outputs: list[Any]) -> Counter[str]:
    """Count scores ``Q Kᵀ`` and values ``A V`` of one scaled dot-product attention."""
    (*batch, queries, width), (*_, keys, _), (*_, value_width) = (get_shape(x) for x in inputs[:3])
    products = queries * keys * (width + value_width)
    for size in batch:
        products *= size
    return Counter(attention=products)


_PRODUCTS = {
    "aten::_convolution": conv_flop_jit,
    "aten::addmm": addmm_flop_jit,
    "aten::bmm": bmm_flop_jit,
    "aten::einsum": einsum_flop_jit,
    "aten::linear": linear_flop_jit,
    "aten::matmul": matmul_flop_jit,
    "aten::mm": matmul_flop_jit,
    "aten::scaled_dot_product_attention": _attention_macs,
}


def complexity(model: nn.Module, image_size: int, in_channels: int | None = None) -> Complexity:
    """Count parameters and multiply-accumulates for one image.

    Args:
        model: The network; it is traced once, in evaluation mode.
        image_size: Side of the square input in pixels.
        in_channels: Channels of the input; by default those of ``model``, else 3.

    Raises:
        ValueError: If the model has an operator whose cost is not known; the message names it.
    """
    channels = in_channels or int(getattr(model, "in_channels", 3))
    parameter = next(model.parameters())
    image = torch.zeros(1, channels, image_size, image_size, dtype=parameter.dtype, device=parameter.device)
    training = model.training
    analysis = FlopCountAnalysis(model.eval(), image)
    analysis.clear_op_handles().set_op_handle(**_PRODUCTS, **{f"aten::{name}": None for name in _FREE})
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    macs = {name: int(count) for name, count in analysis.by_module().items()}
    model.train(training)
    if unknown := sorted(analysis.unsupported_ops()):
        raise ValueError(f"cannot count {', '.join(unknown)} in {type(model).__name__}: their cost is not known")
    parameters = {name: sum(p.numel() for p in m.parameters()) for name, m in model.named_modules()}
    return Complexity(parameters[""], macs[""], parameters, macs)
