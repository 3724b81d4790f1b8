"""An ONNX graph in 8 bits: onnxruntime's static quantization, calibrated on images."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from foveate.errors import FoveateError, first_line
from foveate.exporters.program import Program, quiet
from foveate.exporters.quantization.attention_nodes import AttentionNodes, OnnxGraph, find_attention
from foveate.exporters.quantization.keep import Arrays, Quantizer, Reader

if TYPE_CHECKING:
    import onnx

__all__ = ["products_saturate", "quantize", "static_quantizer"]

_REMOVED = ("Relu", "Clip")  # onnxruntime's quantizer joins them with what is before


def static_quantizer(model: onnx.ModelProto, program: Program) -> Quantizer[onnx.ModelProto]:
    """What ``quantize_keeping`` needs to quantize a graph with onnxruntime.

    Args:
        model: in 32 bits.
        program: what it was made of.
    """
    graph = OnnxGraph(model)
    attention = find_attention(graph, program.sites)
    float_nodes = {*graph.outside(), *_that_hide(graph, attention)}
    by_site = {one.site.site: one for one in attention}

    def quantized(kept: Collection[str]) -> onnx.ModelProto:
        whole = {name for site in kept for name in (*by_site[site].nodes, *by_site[site].neighbours)}
        made = quantize(model, program.calibration, float_nodes=float_nodes | whole)
        return _with_float_outputs(made, graph, attention)

    def reader(file: onnx.ModelProto | None) -> Reader:
        return _reader(model if file is None else file, [one for one in attention if one.x])

    return Quantizer(attention, quantized, reader)


def quantize(
    model: onnx.ModelProto, calibration: Sequence[Tensor], *, float_nodes: Collection[str] = ()
) -> onnx.ModelProto:
    """The graph with pairs of QuantizeLinear and DequantizeLinear around its layers.

    Weights are signed 8 bit with a scale for each output channel, activations unsigned 8 bit with one scale and zero
    point for each tensor, from the smallest and largest value that the calibration images bring. Where this processor's
    products of 8 bits saturate, weights get 7 bits, with which they do not.

    Args:
        model: in 32 bits; it is left as found.
        calibration: batches of images as the graph takes them.
        float_nodes: names of nodes that stay in 32 bits.

    Raises:
        FoveateError: there are no images, or onnxruntime cannot quantize the graph.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    if not calibration:
        raise FoveateError("int8 is calibrated on whole batches of images, and there are too few images for one")
    given = onnx.ModelProto()
    given.CopyFrom(model)  # onnxruntime changes what it is given
    try:
        with quiet(), tempfile.TemporaryDirectory(prefix="foveate-int8-") as folder:
            path = Path(folder) / "int8.onnx"
            quantize_static(
                given,
                path,
                _Batches(model.graph.input[0].name, calibration),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                reduce_range=products_saturate(),
                nodes_to_exclude=sorted(float_nodes),
                calibrate_method=CalibrationMethod.MinMax,
            )
            made = onnx.load(path)
    except Exception as error:  # onnxruntime raises what it likes
        raise FoveateError(f"onnxruntime cannot quantize the network: {first_line(error)}") from error
    # The description is the network's; what the tool says of itself is not a part of it.
    del made.metadata_props[:]
    made.metadata_props.extend(model.metadata_props)
    return made


@functools.cache
def products_saturate() -> bool:
    """Whether onnxruntime's products of unsigned and signed 8 bits are wrong for large values on this processor.

    On x86 without VNNI two products are added in 16 bits, and sums above 32,767 are cut off. This multiplies ones that
    do that, and looks.
    """
    import onnxruntime
    from onnx import TensorProto, helper

    count = 64
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["out"])],
        "products",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, (count, count))],
        [helper.make_tensor_value_info("out", TensorProto.INT32, (count, count))],
        [
            helper.make_tensor(
                "b", TensorProto.INT8, (count, count), np.full(count * count, 127, np.int8).tobytes(), raw=True
            )
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"a": np.full((count, count), 255, np.uint8)})
    return bool((found != count * 255 * 127).any())


class _Batches:
    """Images, one batch at a time, as onnxruntime asks for them."""

    def __init__(self, name: str, batches: Sequence[Tensor]) -> None:
        self._arrays: Iterator[dict[str, np.ndarray[Any, Any]]] = iter([{name: batch.numpy()} for batch in batches])

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """The next batch; None behind the last."""
        return next(self._arrays, None)


def _that_hide(graph: OnnxGraph, attention: Sequence[AttentionNodes]) -> set[str]:
    """Nodes that would be joined with the one before, so that what is read at a site is nowhere in the file."""
    tensors = {name for one in attention if one.x for name in (one.x, one.read)}
    return {node.name for name in tensors for node in graph.readers[name] if node.op_type in _REMOVED}


def _with_float_outputs(
    made: onnx.ModelProto, graph: OnnxGraph, attention: Sequence[AttentionNodes]
) -> onnx.ModelProto:
    """Take the outputs, and what maps are made of, before they are rounded to 8 bits.

    Args:
        made: the quantized graph; it is changed.
        graph: in 32 bits.
        attention: each module in it.
    """
    own = {name for one in attention for name in one.nodes}
    ours = {name for node in graph.nodes if node.name in own for name in node.output}
    quantized, after = OnnxGraph(made), set(graph.outside())
    for node in quantized.nodes:
        if node.name in after:
            for n, name in enumerate(node.input):
                raw = _before_rounding(quantized, name)
                if raw in ours:
                    node.input[n] = raw
    for output in graph.outputs:
        raw, other = _before_rounding(quantized, output), f"{output}_rounded"
        if raw != output:
            for node in quantized.nodes:  # the two change their names
                _rename(node.input, {output: other, raw: output})
                _rename(node.output, {output: other, raw: output})
    _drop_unread(made)
    return made


def _drop_unread(made: onnx.ModelProto) -> None:
    """Take nodes out of a graph that no output is computed by, and weights that no node reads."""
    graph = OnnxGraph(made)
    needed = set().union(*(graph.before(output) for output in graph.outputs))
    nodes = [_copied(node) for node in graph.nodes if id(node) in needed]
    read = {name for node in nodes for name in node.input} | set(graph.outputs)
    weights = [_copied(each) for name, each in graph.initializers.items() if name in read]
    del made.graph.node[:], made.graph.initializer[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(weights)


def _copied(part: Any) -> Any:
    """A part of a graph outlives the list that it is taken from only as a copy."""
    copy = type(part)()
    copy.CopyFrom(part)
    return copy


def _rename(names: Any, new: dict[str, str]) -> None:
    for n, name in enumerate(names):
        names[n] = new.get(name, name)


def _before_rounding(graph: OnnxGraph, tensor: str) -> str:
    """The tensor of which this one is the rounded copy; itself where it is none."""
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        node = graph.producers.get(tensor)
        if node is None or node.op_type != kind:
            return tensor
        tensor = node.input[0]
    return tensor


def _as_read(graph: OnnxGraph, tensor: str) -> str:
    """The tensor that the readers of a tensor get: its rounded copy, where there is one."""
    for node in graph.readers[tensor]:
        if node.op_type == "QuantizeLinear":
            rounded = [other for other in graph.readers[node.output[0]] if other.op_type == "DequantizeLinear"]
            if rounded:
                return _as_read(graph, str(rounded[0].output[0]))
    return tensor


def _reader(model: onnx.ModelProto, attention: Sequence[AttentionNodes]) -> Reader:
    """A graph, opened so that it gives its logits, and what is read at each site."""
    import onnx
    import onnxruntime

    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    graph = OnnxGraph(tapped)
    logits, given = graph.outputs[0], tapped.graph.input[0].name
    wanted = [_as_read(graph, name) for one in attention for name in (one.x, one.read)]
    there = [name for name in dict.fromkeys(wanted) if name in graph.producers]
    for name in there:
        if name not in graph.outputs:
            tapped.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(tapped.SerializeToString(), options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each fault
        raise FoveateError(f"onnxruntime cannot open the quantized network: {first_line(error)}") from error
    asked = list(dict.fromkeys((logits, *there)))

    def read(images: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], Arrays]:
        found = dict(zip(asked, session.run(asked, {given: images}), strict=True)) | {given: images}
        arrays: list[np.ndarray[Any, Any] | None] = []
        for n, one in enumerate(attention):
            x, out = found.get(wanted[2 * n]), found.get(wanted[2 * n + 1])
            for step in one.steps:  # what the next layer would read without the attention
                x = None if x is None else step(x)
            arrays += [x, out]
        return found[logits], arrays

    return read
