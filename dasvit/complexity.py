"""Parameters and multiply-accumulates of a network, in total and by module, under named conventions (chapter 8)."""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast, get_args

import torch
from torch import nn

with warnings.catch_warnings():  # fvcore calls what torch has begun to deprecate
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import (
        addmm_flop_jit,
        conv_flop_jit,
        get_shape,
        linear_flop_jit,
    )

Kind = Literal["convolution", "linear", "attention projection", "attention", "relative position"]
"""A matrix product by its role. *Attention* multiplies two activations (scores, values), *linear* an activation and a
weight; an *attention projection* is a linear layer inside a module that computes attention."""

Convention = Literal["A", "B", "C"]
"""A counting convention: a key of :data:`CONVENTIONS`."""

KINDS: tuple[Kind, ...] = get_args(Kind)

CONVENTIONS: dict[Convention, tuple[str, tuple[Kind, ...]]] = {
    "A": ("every matrix product", KINDS),
    "B": ("linear and convolution only", ("convolution", "linear", "attention projection")),
    "C": ("every matrix product but the attention projections", tuple(k for k in KINDS if k != "attention projection")),
}
"""What each convention says, and the kinds of products it counts."""

# what has no matrix product: normalisation, activation, softmax, pooling, sums, selections
_FREE = [
    "__or__",
    "adaptive_avg_pool2d",
    "add",
    "add_",
    "avg_pool2d",
    "batch_norm",
    "clamp_min",
    "div",
    "dropout_",
    "expand_as",
    "gather",
    "gelu",
    "im2col",
    "layer_norm",
    "max_pool2d",
    "mean",
    "mul",
    "mul_",
    "neg",
    "numpy_T",
    "one_hot",
    "pad",
    "pow",
    "reciprocal",
    "relu",
    "relu_",
    "repeat",
    "repeat_interleave",
    "rsub",
    "scatter_add",
    "sigmoid",
    "silu",
    "silu_",
    "softmax",
    "sort",
    "sub",
    "sum",
    "tensor_split",
    "topk",
    "unflatten",
]


@dataclass(frozen=True)
class Complexity:
    """What a network costs.

    Args:
        parameters: Number of parameters.
        parameters_by_module: Parameters of each submodule by name, its children included; ``""`` is the whole.
        products: Multiply-accumulates of one image by module, its children included, and by kind.
        convention: Which kinds are counted.
    """

    parameters: int
    parameters_by_module: dict[str, int]
    products: dict[str, dict[Kind, int]]
    convention: Convention = "A"

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return self.macs_by_module[""]

    @property
    def macs_by_module(self) -> dict[str, int]:
        """Multiply-accumulates of one image by module, children included."""
        _, counted = CONVENTIONS[self.convention]
        return {name: sum(kinds.get(kind, 0) for kind in counted) for name, kinds in self.products.items()}

    def under(self, convention: str) -> Complexity:
        """Return the same network counted by another convention.

        Raises:
            ValueError: If there is no such convention.
        """
        if convention not in CONVENTIONS:
            raise ValueError(f"unknown convention {convention!r}; known: {', '.join(CONVENTIONS)}")
        return replace(self, convention=cast(Convention, convention))

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        counts = {"macs": self.macs, "macs_by_module": self.macs_by_module, "counted": CONVENTIONS[self.convention][0]}
        return asdict(self) | counts


def _attention_macs(inputs: list[Any], _outputs: list[Any]) -> int:
    """Count scores ``Q Kᵀ`` and values ``A V`` of one scaled dot-product attention."""
    (*batch, queries, width), (*_, keys, _), (*_, value_width) = (get_shape(x) for x in inputs[:3])
    return math.prod(batch) * queries * keys * (width + value_width)


def _matmul_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Count one product of matrices: the numbers it yields, each a sum over the width of the first factor."""
    return math.prod(get_shape(outputs[0])) * get_shape(inputs[0])[-1]


def _einsum_macs(inputs: list[Any], _outputs: list[Any]) -> int:
    """Count one sum of products of two factors: the sizes of all its indices, multiplied."""
    names = inputs[0].toIValue().partition("->")[0].replace(" ", "").split(",")
    sizes: dict[str, int] = {}
    for name, factor in zip(names, inputs[1].node().inputs(), strict=True):
        sizes.update(zip(name, get_shape(factor), strict=True))
    return math.prod(sizes.values())


def _is_weight(value: Any) -> bool:
    """Tell whether a traced value is a parameter of the network, as it is or transposed."""
    while (node := value.node()).kind() in ("aten::t", "aten::numpy_T", "aten::transpose", "aten::permute"):
        value = next(node.inputs())
    return node.kind() == "prim::Param"


def _counted(handle: Callable[..., Any], kind: Kind | None = None) -> Callable[..., Counter[str]]:
    """Make a handle say what it counts; without ``kind`` a product is linear if one of its factors is a weight."""

    def count(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        macs = handle(inputs, outputs)
        role = kind or ("linear" if any(map(_is_weight, _factors(inputs))) else "attention")
        return Counter({role: macs if isinstance(macs, int) else sum(macs.values())})

    return count


def _factors(inputs: list[Any]) -> Iterator[Any]:
    for value in inputs:  # einsum holds its factors in a list
        yield from value.node().inputs() if value.node().kind() == "prim::ListConstruct" else [value]


_PRODUCTS = {
    "aten::_convolution": _counted(conv_flop_jit, "convolution"),
    "aten::addmm": _counted(addmm_flop_jit, "linear"),
    "aten::bmm": _counted(_matmul_macs),
    "aten::einsum": _counted(_einsum_macs),
    "aten::linear": _counted(linear_flop_jit, "linear"),
    "aten::matmul": _counted(_matmul_macs),
    "aten::mm": _counted(_matmul_macs),
    "aten::scaled_dot_product_attention": _counted(_attention_macs, "attention"),
}


def complexity(model: nn.Module, image_size: int, in_channels: int | None = None, convention: str = "A") -> Complexity:
    """Count parameters and multiply-accumulates for one image.

    Args:
        model: The network; it is traced once, in evaluation mode. On the ``meta`` device a copy of zeros is traced.
        image_size: Side of the square input in pixels.
        in_channels: Channels of the input; by default those of ``model``, else 3.
        convention: What is counted, a key of :data:`CONVENTIONS`.

    Raises:
        ValueError: If the model has an operator whose cost is not known (the message names it), or there is no such
            convention.
    """
    channels = in_channels or int(getattr(model, "in_channels", 3))
    parameters = {name: sum(p.numel() for p in m.parameters()) for name, m in model.named_modules()}
    if any(p.is_meta for p in model.parameters()):
        model = _zeros_like(model)
    like = next(model.parameters(), torch.zeros(0))
    image = torch.zeros(1, channels, image_size, image_size, dtype=like.dtype, device=like.device)
    training = model.training
    analysis = FlopCountAnalysis(model.eval(), image)
    analysis.clear_op_handles().set_op_handle(**_PRODUCTS, **{f"aten::{name}": None for name in _FREE})
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    counts = analysis.by_module_and_operator()
    model.train(training)
    if unknown := sorted(analysis.unsupported_ops()):
        raise ValueError(f"cannot count {', '.join(unknown)} in {type(model).__name__}: their cost is not known")
    return Complexity(parameters[""], parameters, _by_role(model, counts)).under(convention)


def _zeros_like(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()  # a network of zeros costs as much as any
    return model


def _by_role(model: nn.Module, counts: dict[str, Counter[str]]) -> dict[str, dict[Kind, int]]:
    """Tell attention projections from other linear layers, and what counts as something of its own."""
    parent = {name: name.rpartition(".")[0] for name in counts if name}
    own = {name: Counter(kinds) for name, kinds in counts.items()}
    for name, above in parent.items():
        own[above].subtract(counts[name])
    products: dict[str, dict[Kind, int]] = {name: dict.fromkeys(KINDS, 0) for name in counts}
    for name, kinds in own.items():
        line = [name]  # the module and all that contain it
        while line[-1]:
            line.append(parent[line[-1]])
        special = next((k for n in line if (k := getattr(model.get_submodule(n), "macs_kind", None))), None)
        attends = any(own[n]["attention"] for n in line)
        for kind, macs in kinds.items():
            role: Any = special or ("attention projection" if attends and kind == "linear" else kind)
            for n in line:
                products[n][role] += macs
    return products
