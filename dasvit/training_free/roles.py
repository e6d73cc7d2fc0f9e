"""Which linear layer of a transformer does what, found by following the data (chapter 9; ledger A28).

A layer's role is where its output goes: what is multiplied with another activation are queries, keys or values; what
reads that product is the output projection; what makes the logits is the classifier; the rest belongs to MLPs. No name
and no shape is looked at, so that the same code reads our networks, timm's and others that are made of linear layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..vit import VisionTransformer

Role = Literal["embedding", "qkv", "projection", "mlp", "classifier"]
"""What a linear layer is for."""

_PRODUCTS = {"matmul", "__matmul__", "__rmatmul__", "bmm", "einsum", "scaled_dot_product_attention"}


@dataclass
class LinearCall:
    """One call of a linear layer.

    Args:
        weight: ``[out, in]``.
        x: Input ``[…, in]``.
        y: Output ``[…, out]``.
        role: What it is for.
        attention: Number of the attention it belongs to, for roles ``qkv`` and ``projection``.
    """

    weight: Tensor
    x: Tensor
    y: Tensor
    role: Role = "mlp"
    attention: int | None = None


class _Recorder(TorchFunctionMode):
    """Notes, for every tensor, from which linear layers or attention products it stems, up to the nearest ones."""

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.calls: list[LinearCall] = []
        self.attentions = 0
        self._sources: dict[int, tuple[Tensor, frozenset[Any]]] = {}  # the tensor is kept, so that its id stays its own

    def sources(self, value: Any) -> frozenset[Any]:
        """Return where a tensor, or all tensors of a list, stem from."""
        if isinstance(value, Tensor):
            return self._sources.get(id(value), (value, frozenset()))[1]
        if isinstance(value, list | tuple):
            found = [s for item in value if (s := self.sources(item))]
            return frozenset().union(*found) if len(found) > 1 else found[0] if found else frozenset()
        return frozenset()

    def _mark(self, value: Any, sources: frozenset[Any]) -> None:
        if isinstance(value, Tensor):
            self._sources[id(value)] = (value, sources)
        elif isinstance(value, list | tuple):
            for item in value:
                self._mark(item, sources)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name == "multi_head_attention_forward":
            raise ValueError("nn.MultiheadAttention hides its linear layers: use a model that has them as modules")
        result = func(*args, **(kwargs or {}))
        given = [*args, *(kwargs or {}).values()]
        if name == "linear":
            self._linear(given[0], given[1], result)
        elif name.startswith("conv"):
            self._mark(result, frozenset(["embedding"]))
        elif name in _PRODUCTS and (number := self._product(given)) is not None:
            self._mark(result, frozenset([number]))
        elif sources := self.sources(given):
            self._mark(result, sources)
        return result

    def _linear(self, x: Tensor, weight: Tensor, y: Tensor) -> None:
        call, sources = LinearCall(weight, x, y), self.sources(x)
        attention = [s for s in sources if isinstance(s, int)]
        if not sources:
            call.role = "embedding"
        elif attention:
            call.role, call.attention = "projection", attention[0]
        self.calls.append(call)
        if len(self.calls) == self.limit:
            raise _Enough
        self._mark(y, frozenset([_Call(call)]))

    def _product(self, given: list[Any]) -> int | None:
        """Return the number of the attention that this product of two activations belongs to."""
        factors = given[1] if isinstance(given[0], str) and isinstance(given[1], list | tuple) else given
        tensors = [t for t in factors if isinstance(t, Tensor)]
        sources = [s for t in tensors if (s := self.sources(t))]
        if len(sources) < 2:
            return None  # a product with a table of parameters, as relative position has it
        stems = frozenset().union(*sources)
        known = [s for s in stems if isinstance(s, int)]
        number = known[0] if known else self.attentions
        self.attentions = max(self.attentions, number + 1)
        for stem in stems:
            if isinstance(stem, _Call) and stem.call.role == "mlp":
                stem.call.role, stem.call.attention = "qkv", number
        return number


class _Enough(Exception):
    """The last call that was asked for is recorded."""


class _Call:
    """A call as a source; hashable by identity."""

    def __init__(self, call: LinearCall) -> None:
        self.call = call


def record_linear(model: nn.Module, images: Tensor) -> tuple[Tensor, list[LinearCall]]:
    """Run a network and return its output and every call of a linear layer, in their order, with its role.

    Args:
        model: Any transformer of linear layers.
        images: ``[b, c, h, w]``.

    Raises:
        ValueError: If the model hides its layers in ``nn.MultiheadAttention``.
    """
    with _Recorder() as recorder:
        output = _run(model, images)
    makers = recorder.sources(output)
    if all(isinstance(s, _Call) for s in makers):  # else these are features: the tokens still carry their embedding
        for maker in makers:
            maker.call.role = "classifier"
    return output, recorder.calls


def _run(model: nn.Module, images: Tensor) -> Tensor:
    if isinstance(model, VisionTransformer):  # all tokens of the last layer are looked at
        return model.head(model.pooled(model.forward_features(images)))
    return model(images)


def linear_call(model: nn.Module, images: Tensor, number: int) -> LinearCall:
    """Run a network up to a call of a linear layer, and no further; return that call, whose role is not known yet.

    Args:
        model: Any transformer of linear layers.
        images: ``[b, c, h, w]``.
        number: Which call, from 0.

    Raises:
        ValueError: If there are fewer calls.
    """
    with _Recorder(number + 1) as recorder, suppress(_Enough):
        _run(model, images)
    if len(recorder.calls) <= number:
        raise ValueError(f"{type(model).__name__} has {len(recorder.calls)} calls of linear layers: none is {number}")
    return recorder.calls[number]


def attentions(calls: Sequence[LinearCall]) -> Iterator[tuple[list[LinearCall], list[LinearCall]]]:
    """Yield, for each attention, what makes its queries, keys and values, and its output projections."""
    for number in sorted({c.attention for c in calls if c.attention is not None}):
        mine = [c for c in calls if c.attention == number]
        yield [c for c in mine if c.role == "qkv"], [c for c in mine if c.role == "projection"]
