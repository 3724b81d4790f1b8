"""The tables from operation to formula: multiply-adds, element operations, bytes.

A multiply-add (MAC) belongs to a matrix product, a convolution or an attention product: see ``products``.

An element operation is one addition, multiplication, comparison, or value of a function (exp, a square root, sigmoid,
GELU) of one element. What the formulas below say is what the definition needs; a kernel may do more or less.

Limits. Nothing is known of a kernel's inside: its workspace, what it reads twice, what it keeps in registers. A causal
or masked attention counts all pairs. Whoever adds an operation with ``torch.library`` registers its MACs with
``torch.utils.flop_counter.register_flop_formula`` and its element operations in ``ELEMENT_OPS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.accounting.counting.products import (
    ATTENTION,
    PRODUCTS,
    Arguments,
    Formula,
    Keywords,
    Output,
    is_product,
    macs_of,
)
from foveate.accounting.counting.regions import REGIONS

__all__ = ["ELEMENT_OPS", "Rule", "is_dense", "rule_of", "tensors_in", "traffic"]


def _first(out: Tensor | Sequence[Tensor]) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


def _per_output(count: int) -> Formula:
    return lambda _args, _kwargs, out: count * _first(out).numel()


def _per_input(count: int) -> Formula:
    return lambda args, _kwargs, _out: count * (args[0] if isinstance(args[0], Tensor) else args[0][0]).numel()


def _batch_norm(args: Arguments, _kwargs: Keywords, _out: object) -> int:
    """x * a + b with the running statistics; with the batch's own as the other norms."""
    x: Tensor = args[0]
    weight, training = args[1], args[5]
    return x.numel() * ((5 + 2 * (weight is not None)) if training else 2)


def _own_norm(weight: int) -> Formula:
    """Layer and group norm: two sums, x - mean, its square, the division; then weight and bias.

    Args:
        weight: where the weight stands among the arguments, and the bias behind it.
    """
    return lambda args, _kwargs, _out: args[0].numel() * (5 + sum(part is not None for part in args[weight:][:2]))


def _pool(dims: int) -> Formula:
    """Every output element looks at the whole kernel."""

    def formula(args: Arguments, _kwargs: Keywords, out: Output) -> int:
        kernel: Sequence[int] = args[1]
        return _first(out).numel() * (math.prod(kernel) if len(kernel) == dims else kernel[0] ** dims)

    return formula


def _adaptive_pool(args: Arguments, _kwargs: Keywords, out: Output) -> int:
    """The windows' sizes; they overlap where the output's side does not divide the input's."""

    def windows(length: int, parts: int) -> int:
        return sum(-(-(k + 1) * length // parts) - k * length // parts for k in range(parts))

    return math.prod(map(windows, args[0].shape, _first(out).shape))  # of other axes each has one


def _pairs(args: Arguments, kwargs: Keywords, _out: object) -> int:
    """Fused attention: for each pair the scale and the five of softmax, and one for the mask."""
    query: Tensor = args[0]
    key: Tensor = args[1]
    mask = kwargs.get("attn_mask") if "attn_mask" in kwargs else next((a for a in args[3:4] if a is not None), None)
    return math.prod(query.shape[:3]) * key.shape[2] * (6 + isinstance(mask, Tensor))


def _sort(axis: int) -> Formula:
    """log2 n comparisons for each of the n along the axis, which is the argument at that place."""

    def formula(args: Arguments, kwargs: Keywords, _out: object) -> int:
        x: Tensor = args[0]
        along: int = args[axis] if len(args) > axis else kwargs.get("dim", -1)
        return x.numel() * math.ceil(math.log2(max(2, x.shape[along])))

    return formula


def _deformed(args: Arguments, _kwargs: Keywords, out: Output) -> int:
    """Deformable convolution: every value that it multiplies is a bilinear one, and with a mask a product."""
    x: Tensor = args[0]
    filters: Tensor = args[1][0, 0]
    places: Tensor = out[0, 0]
    masked: bool = args[-1]
    return x.shape[0] * x.shape[1] * filters.numel() * places.numel() * (8 + masked)


def _ulsam(norm: int) -> Formula:
    """ULSAM in one operation: norm, ReLU, pool and the weighted sum of x; norm, ReLU and softmax of each map."""

    def formula(args: Arguments, _kwargs: Keywords, out: Output) -> int:
        x: Tensor = args[0]
        groups: int = args[2] if isinstance(args[2], int) else _first(out[1:]).shape[1]
        return x.numel() * (norm + 1 + 9 + 2) + groups * x.numel() // x.shape[1] * (norm + 1 + 5)

    return formula


def _gate(args: Arguments, _kwargs: Keywords, _out: object) -> int:
    """Each kind of weight is a sigmoid of its scores, and one product with each element of x."""
    return sum(args[0].numel() + scores.numel() for scores in args[1:] if scores is not None)


def _search(args: Arguments, _kwargs: Keywords, out: Output) -> int:
    """log2 n comparisons for each value."""
    return _first(out).numel() * math.ceil(math.log2(max(2, args[0].shape[-1])))


# Element operations by the operation's name, that of an in-place form without its last underscore. What is not here and
# that torch tags as pointwise does one for each output element.
ELEMENT_OPS: dict[str, Formula] = {
    "aten::native_batch_norm": _batch_norm,
    "aten::native_layer_norm": _own_norm(2),
    "aten::native_group_norm": _own_norm(1),
    # Maximum, subtraction, exp, sum, division; with the logarithm the subtraction of the sum's logarithm.
    **dict.fromkeys(("aten::_softmax", "aten::_safe_softmax", "aten::_log_softmax"), _per_output(5)),
    "aten::logsumexp": _per_input(4),
    **{f"aten::max_pool{d}d_with_indices": _pool(d) for d in (2, 3)},
    **{f"aten::avg_pool{d}d": _pool(d) for d in (2, 3)},
    **{f"aten::{name}{d}d": _adaptive_pool for name in ("_adaptive_avg_pool", "adaptive_max_pool") for d in (2, 3)},
    **{f"aten::{name}": _per_input(1) for name in ("sum", "mean", "prod", "amax", "amin", "aminmax", "max", "min")},
    **{f"aten::{name}": _per_input(1) for name in ("any", "all", "argmax", "argmin", "nonzero", "equal", "col2im")},
    **{f"aten::{name}": _per_input(1) for name in ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")},
    **{f"aten::{name}": _per_input(4) for name in ("var", "std", "var_mean", "std_mean")},  # as in a norm
    "aten::linalg_vector_norm": _per_input(2),  # a power and a sum
    **dict.fromkeys(("aten::sort", "aten::argsort"), _sort(1)),
    "aten::topk": _sort(2),
    "aten::searchsorted": _search,
    **dict.fromkeys(("aten::hardswish", "aten::_prelu_kernel", "aten::log_sigmoid_forward"), _per_output(1)),
    # torch 2.9 and 2.11 do not tag these, or their in-place forms, as pointwise.
    **{f"aten::{name}": _per_output(1) for name in ("hardtanh", "leaky_relu", "elu", "celu", "selu", "hardsigmoid")},
    "aten::_conj_physical": _per_output(1),
    **dict.fromkeys(("aten::addcmul", "aten::addcdiv", "aten::glu", "aten::native_dropout"), _per_output(2)),
    "aten::lerp": _per_output(3),  # a + weight * (b - a)
    # A weighted sum of the neighbours.
    "aten::upsample_linear1d": _per_output(4),
    "aten::upsample_bilinear2d": _per_output(8),
    "aten::upsample_trilinear3d": _per_output(16),
    "aten::upsample_bicubic2d": _per_output(32),
    "aten::_addmm_activation": _per_output(1),
    "torchvision::deform_conv2d": _deformed,
    **REGIONS,
    "foveate::ulsam_infer": _ulsam(2),
    "foveate::ulsam_train": _ulsam(7),
    # Weights that these two take are counted where they are given: in the gate.
    "foveate::pool_positions": lambda args, _kwargs, out: args[0].numel() * out.shape[1],
    "foveate::pool_channels": _per_input(2),
    "foveate::gate": _gate,
    # A sum or a product of the scores, its sigmoid, the product with x and the sum with it.
    "foveate::joint_gate": _per_output(4),
    **{f"aten::{name}": lambda args, _kwargs, _out: args[-1].numel() for name in ("index_add", "scatter_add")},
    **dict.fromkeys(ATTENTION, _pairs),
}

# Moved, chosen, made or asked for: bytes, and no arithmetic.
_MOVES = """
    _to_copy clone copy cat stack index _unsafe_index index_select index_put gather scatter embedding masked_select take
    constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d roll flip repeat rot90 pixel_shuffle pixel_unshuffle channel_shuffle im2col tril triu
    slice_scatter select_scatter diagonal_scatter index_copy index_fill upsample_nearest1d upsample_nearest2d
    upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    fill zero zeros ones full arange linspace eye scalar_tensor empty empty_strided empty_like zeros_like ones_like
    full_like new_empty new_empty_strided new_zeros new_ones new_full rand randn randint randperm rand_like randn_like
    randint_like bernoulli uniform normal exponential max_unpool2d max_unpool3d tril_indices triu_indices resize set
    lift_fresh_copy _local_scalar_dense is_same_size _unsafe_view unsafe_split unsafe_split_with_sizes
"""
_FREE_OF_ARITHMETIC = frozenset(f"aten::{name}" for name in _MOVES.split())
_VIEWS = frozenset(
    f"aten::{n}" for n in ("_unsafe_view", "unsafe_split", "unsafe_split_with_sizes", "resize", "set", "is_same_size")
)
# Memory that is taken and not written.
_EMPTY = frozenset(f"aten::{n}" for n in ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"))
# These read of their source only what they give.
_CHOOSING = frozenset(
    f"aten::{n}" for n in ("index", "_unsafe_index", "index_select", "gather", "embedding", "masked_select", "take")
)
# In-place forms of these do not read what they write over.
_OVERWRITING = frozenset(
    f"aten::{n}" for n in ("copy", "fill", "zero", "bernoulli", "uniform", "normal", "exponential")
)


@dataclass(frozen=True)
class Rule:
    """What is known of one operation.

    Args:
        name: such as ``aten::relu_``.
        macs: None: there is no formula for it.
        product: it multiplies matrices; without ``macs`` it is named as unsupported, whatever ``element_ops`` says.
        element_ops: None: there is no formula, and the operation is named as unsupported.
        view: it moves nothing.
        composite: it is made of other operations, which are counted in its place.
    """

    name: str
    macs: Formula | None
    product: bool
    element_ops: Formula | None
    view: bool
    composite: bool


def rule_of(func: object) -> Rule:
    """The rule of an operation as the dispatcher gives it (an ``OpOverload``), by the tables as they now are."""
    if not isinstance(func, torch._ops.OpOverload):  # a higher-order operator
        return Rule(str(func), None, True, None, view=False, composite=False)
    name = func._schema.name
    plain = _plain(name)
    macs = macs_of(plain)
    view = func.is_view or plain in _VIEWS or torch.Tag.inplace_view in func.tags
    elements = ELEMENT_OPS.get(plain)
    if elements is None and (view or plain in _FREE_OF_ARITHMETIC or plain in PRODUCTS):
        elements = _per_nothing
    elif elements is None and torch.Tag.pointwise in func.tags:
        elements = _per_output(1)
    name_of: Callable[[], str] = func.name  # with the overload; torch does not annotate it
    # Not func._can_decompose(): torch has decompositions in Python for leaves, too.
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(name_of(), "CompositeImplicitAutograd")
    product = macs is not None or (not view and is_product(plain))
    return Rule(name, macs, product, elements, view, composite)


def _per_nothing(_args: Arguments, _kwargs: Keywords, _out: object) -> int:
    return 0


def _plain(name: str) -> str:
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def is_dense(tensor: Tensor) -> bool:
    """Whether it lies in memory value by value: not sparse, nested or in a library's own layout."""
    return tensor.layout == torch.strided and not tensor.is_nested


def tensors_in(values: Sequence[object], *, dense: bool = True) -> Iterator[Tensor]:
    """The tensors among values and in the lists among them: the dense ones, or the others."""
    for value in values:
        if isinstance(value, Tensor):
            if is_dense(value) == dense:
                yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value, dense=dense)


def _bytes(tensors: Iterator[Tensor]) -> int:
    """Of distinct tensors; an expanded axis is in memory once."""
    found = {}
    for tensor in tensors:
        key = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride())
        found[key] = tensor.element_size() * math.prod(
            size if stride else min(size, 1) for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
    return sum(found.values())


def traffic(rule: Rule, args: Arguments, kwargs: Keywords, out: object) -> tuple[int, int]:
    """Bytes that one call reads and writes: its inputs and outputs, each once; a view moves none."""
    plain = _plain(rule.name)
    if rule.view or plain in _EMPTY:
        return 0, 0
    written = _bytes(tensors_in([out]))
    if plain.endswith("_like") or plain.startswith("aten::new_"):  # asked for a shape alone
        return 0, written
    given: list[object] = [*args, *(value for key, value in kwargs.items() if key != "out")]
    if plain in _OVERWRITING and plain != rule.name:
        given = given[1:]
    if plain in _CHOOSING:
        return _bytes(tensors_in(given[1:])) + written, written
    return _bytes(tensors_in(given)), written
