"""1x1 convolutions as matrix products in a network that torch.compile takes.

    conv(x)_i = W x_i + b        for each position i of a map whose channels lie last

A product of rows, and its two gradients, take a CPU less time than PyTorch's convolution of the same numbers: compiled,
a step of MobileNetV2-0.5 at 64 pixels is 1.2 times as fast with them (benchmarks/compiling.py). What is rewritten is
the graph of one compilation; the network and its modules stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

__all__ = ["with_products"]


def with_products(graph: fx.GraphModule, inputs: Sequence[Any]) -> Any:
    """A backend of torch.compile: "inductor", with products in place of 1x1 convolutions."""
    compiler: Any = torch._dynamo.lookup_backend("inductor")
    return compiler(rewrite(graph), inputs)


def rewrite(module: fx.GraphModule) -> fx.GraphModule:
    """Put products in the place of 1x1 convolutions of float32 on a CPU whose channels lie last, of several images.

    Args:
        module: as torch.compile gives it to a backend; it is changed.

    Returns:
        The same module.
    """
    found = [node for node in module.graph.nodes if node.op == "call_function" and node.target is torch.conv2d]
    for node in found:
        if (given := _given(node)) is not None:
            with module.graph.inserting_before(node):
                product = _product(module.graph, *given)
            product.meta = node.meta.copy()  # for a convolution behind this one
            node.replace_all_uses_with(product)
            module.graph.erase_node(node)
    if found:
        module.recompile()
    return module


def _given(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node | None] | None:
    """Input, weight and bias of a convolution that can be a product; None of any other."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    options = dict(zip(names, node.args, strict=False)) | node.kwargs
    x, weight = options.get("input"), options.get("weight")
    if not (isinstance(x, fx.Node) and isinstance(weight, fx.Node)):
        return None
    if options.get("groups", 1) != 1 or not _all(options.get("stride", 1), 1) or not _all(options.get("padding", 0), 0):
        return None
    example, kernel = x.meta.get("example_value"), weight.meta.get("example_value")
    if not (isinstance(example, Tensor) and isinstance(kernel, Tensor)) or example.ndim != 4 or kernel.ndim != 4:
        return None
    # The product of one image would have another stride between images than PyTorch's convolution gives it.
    if tuple(kernel.shape[2:]) != (1, 1) or example.shape[0] == 1 or not _channels_last(x) or not _channels_last(node):
        return None
    if any(tensor.device.type != "cpu" or tensor.dtype is not torch.float32 for tensor in (example, kernel)):
        return None
    bias = options.get("bias")
    return (x, weight, bias) if bias is None or isinstance(bias, fx.Node) else None


def _channels_last(node: fx.Node) -> bool:
    """Whether a map lies so; one of a single channel does in either format, and what follows it may not."""
    example = node.meta.get("example_value")
    return isinstance(example, Tensor) and example.is_contiguous(memory_format=torch.channels_last)


def _all(value: object, wanted: int) -> bool:
    """Whether a number, or each of a pair, is the one that is wanted; the words "same" and "valid" are none."""
    return value == wanted or (isinstance(value, tuple | list) and all(each == wanted for each in value))


def _product(graph: fx.Graph, x: fx.Node, weight: fx.Node, bias: fx.Node | None) -> fx.Node:
    rows = graph.call_function(torch.permute, (x, (0, 2, 3, 1)))
    matrix = graph.call_function(torch.flatten, (weight, 1))
    return graph.call_function(torch.permute, (graph.call_function(F.linear, (rows, matrix, bias)), (0, 3, 1, 2)))
