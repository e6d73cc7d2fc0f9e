"""Parameters and multiply-accumulates of a network, in total and by module, under named conventions (chapter 8)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast, get_args

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .data.sizes import ImageSize, pair

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

# what has no matrix product, beside views and what works number by number: normalisation, softmax, pooling, selections
_FREE = """
_adaptive_avg_pool2d _local_scalar_dense _log_softmax _safe_softmax _softmax _to_copy _unsafe_view amax aminmax arange
argmax avg_pool2d cat clone constant_pad_nd copy_ empty full full_like gather im2col index index_select
max_pool2d_with_indices mean native_batch_norm native_group_norm native_layer_norm new_zeros ones promote_types repeat
roll as_strided_ scalar_tensor tril fill_ bernoulli_ empty_like hardswish
scatter scatter_ scatter_add sort stack sum topk var_mean zeros zeros_like
"""
_COPIES = ("_to_copy", "clone", "_unsafe_view")  # a weight that is copied is still a weight
_ATEN = torch.ops.aten
_FORMULAS = {  # what torch has no formula for; torch 2.11 has none for attention on a CPU
    _ATEN.mv: lambda matrix, *_, **__: 2 * matrix.numel(),
    _ATEN.dot: lambda vector, *_, **__: 2 * vector.numel(),
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ATEN._scaled_dot_product_flash_attention],
} | flop_registry


def products_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Return the multiply-accumulates of an operator that has returned ``result``."""
    formula = _FORMULAS.get(func._overloadpacket)
    return 0 if formula is None else formula(*args, **kwargs, out_val=result) // 2


class Products(TorchDispatchMode):
    """Count the matrix products of whatever runs inside the block, by torch's own formulas.

    torch's ``FlopCounterMode`` has the same formulas, but keeps tensors alive, which would be weighed too, and does not
    tell a product with a weight from one of two activations.

    Attributes:
        macs: Multiply-accumulates so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and count its products."""
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is None and torch.is_inference_mode_enabled():  # there operators arrive that are not taken apart yet
            with self:
                if (result := func.decompose(*args, **(kwargs or {}))) is not NotImplemented:
                    return result
        result = func(*args, **(kwargs or {}))
        macs = products_of(func, args, kwargs or {}, result)
        self.macs += macs
        self.note(func, args, result, macs if formula else None)
        return result

    def note(self, func: Any, args: tuple[Any, ...], result: Any, macs: int | None) -> None:
        """Look at an operator that has run."""


class _ByModule(Products):
    """The same by module and kind; a product is linear if a factor is a weight, as it is, viewed or copied."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.own: dict[str, Counter[str]] = {name: Counter() for name, _ in model.named_modules()}
        self.unknown: set[str] = set()
        self._weights = {p.untyped_storage()._cdata for p in model.parameters()}
        self._copies: list[Any] = []  # kept, so that no other tensor gets their place
        self._inside = [""]

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Know inside the block which module is running."""

        def enter(name: str) -> Any:
            return lambda *_: self._inside.append(name)

        def leave(*_: Any) -> None:
            self._inside.pop()

        handles = [m.register_forward_pre_hook(enter(name)) for name, m in model.named_modules()]
        handles += [m.register_forward_hook(leave) for m in model.modules()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def note(self, func: Any, args: tuple[Any, ...], result: Any, macs: int | None) -> None:
        """Give the products of an operator to the module that runs."""
        name = func._overloadpacket.__name__
        weighted = any(isinstance(x, torch.Tensor) and x.untyped_storage()._cdata in self._weights for x in args)
        if macs is None:
            if weighted and name in _COPIES:
                self._copies.append(result)
                self._weights.add(result.untyped_storage()._cdata)
            if not (name in _FREE.split() or func.is_view or torch.Tag.pointwise in func.tags):
                self.unknown.add(f"aten::{name}")
            return
        kind = "convolution" if "conv" in name else "linear" if weighted else "attention"
        self.own[self._inside[-1]][kind] += macs


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


def complexity(
    model: nn.Module, image_size: ImageSize, in_channels: int | None = None, convention: str = "A"
) -> Complexity:
    """Count parameters and multiply-accumulates for one image.

    Args:
        model: The network; it is run once, in evaluation mode. On the ``meta`` device nothing is computed.
        image_size: Side of the square input in pixels, or its height and width.
        in_channels: Channels of the input; by default those of ``model``, else 3.
        convention: What is counted, a key of :data:`CONVENTIONS`.

    Raises:
        ValueError: If the model has an operator whose cost is not known (the message names it), or there is no such
            convention.
    """
    channels = in_channels or int(getattr(model, "in_channels", 3))
    parameters = {name: sum(p.numel() for p in m.parameters()) for name, m in model.named_modules()}
    like = next(model.parameters(), torch.zeros(0))
    image = torch.zeros(1, channels, *pair(image_size), dtype=like.dtype, device=like.device)
    training, counter, fast = model.training, _ByModule(model), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator without a formula
    try:
        with torch.no_grad(), counter.following(model), counter:
            model.eval()(image)
    finally:
        model.train(training)
        torch.backends.mha.set_fastpath_enabled(fast)
    if counter.unknown:
        names = ", ".join(sorted(counter.unknown))
        raise ValueError(f"cannot count {names} in {type(model).__name__}: their cost is not known")
    return Complexity(parameters[""], parameters, _by_role(model, counter.own)).under(convention)


def _by_role(model: nn.Module, own: dict[str, Counter[str]]) -> dict[str, dict[Kind, int]]:
    """Tell attention projections from other linear layers, and what counts as something of its own."""
    products: dict[str, dict[Kind, int]] = {name: dict.fromkeys(KINDS, 0) for name in own}
    for name, kinds in own.items():
        line = [name]  # the module and all that contain it
        while line[-1]:
            line.append(line[-1].rpartition(".")[0])
        special = next((k for n in line if (k := getattr(model.get_submodule(n), "macs_kind", None))), None)
        attends = any(own[n]["attention"] for n in line)
        for kind, macs in kinds.items():
            role: Any = special or ("attention projection" if attends and kind == "linear" else kind)
            for n in line:
                products[n][role] += macs
    return products
