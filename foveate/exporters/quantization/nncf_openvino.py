"""An OpenVINO model in 8 bits: NNCF's post-training quantization, calibrated on images."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from foveate.errors import FoveateError, first_line
from foveate.exporters.program import Program, quiet
from foveate.exporters.quantization.attention_nodes import AttentionNodes, OnnxGraph, find_attention
from foveate.exporters.quantization.keep import Arrays, Quantizer, Reader

if TYPE_CHECKING:
    import onnx

__all__ = ["check_nncf", "nncf_quantizer", "quantize"]

# OpenVINO's reader makes several operations of some nodes: of a convolution with a bias NAME/WithoutBiases and NAME,
# which adds the bias. All of them have to be named.
_PART = "/"


def check_nncf() -> None:
    """Make sure that what this needs beside OpenVINO is installed.

    Raises:
        FoveateError: it is not; the message says how to install it.
    """
    missing = [name for name in ("nncf", "onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise FoveateError(f"int8 for OpenVINO needs {', '.join(missing)}: pip install {' '.join(missing)}")


def nncf_quantizer(model: onnx.ModelProto, program: Program) -> Quantizer[Any]:
    """What ``quantize_keeping`` needs to quantize with NNCF; its files are ``openvino.Model``.

    Args:
        model: the ONNX graph in 32 bits: OpenVINO reads it, and keeps the names of its nodes and tensors.
        program: what it was made of.
    """
    graph = OnnxGraph(model)
    attention = find_attention(graph, program.sites)
    by_site = {one.site.site: one for one in attention}
    outside = graph.outside()

    def quantized(kept: Collection[str]) -> Any:
        names = {name for site in kept for name in (*by_site[site].nodes, *by_site[site].neighbours)}
        return quantize(_read(model), program.calibration, float_nodes={*outside, *names})

    def reader(file: Any) -> Reader:
        file = _read(model) if file is None else file
        return _reader(file, graph.outputs[0], [one for one in attention if one.x])

    return Quantizer(attention, quantized, reader)


def quantize(model: Any, calibration: Sequence[Tensor], *, float_nodes: Collection[str] = ()) -> Any:
    """An ``openvino.Model`` with FakeQuantize operations around its layers.

    Args:
        model: in 32 bits, read from ONNX.
        calibration: batches of images as it takes them.
        float_nodes: names of ONNX nodes that stay in 32 bits.

    Raises:
        FoveateError: there are no images, or NNCF cannot quantize the model.
    """
    if not calibration:
        raise FoveateError("int8 is calibrated on whole batches of images, and there are too few images for one")
    import nncf

    names = {op.get_friendly_name() for op in model.get_ops()}
    wanted = {name for name in names if name in float_nodes or name.split(_PART)[0] in float_nodes}
    try:
        with quiet(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return nncf.quantize(
                model,
                nncf.Dataset([batch.numpy() for batch in calibration]),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(calibration),
                ignored_scope=nncf.IgnoredScope(names=sorted(wanted)),
            )
    except Exception as error:  # NNCF raises what it likes
        raise FoveateError(f"NNCF cannot quantize the network: {first_line(error)}") from error


def _read(model: onnx.ModelProto) -> Any:
    import openvino

    try:
        return openvino.Core().read_model(model.SerializeToString())
    except Exception as error:  # OpenVINO's errors have no base class of their own
        raise FoveateError(f"OpenVINO cannot read the network: {first_line(error)}") from error


def _reader(model: Any, logits: str, attention: Sequence[AttentionNodes]) -> Reader:
    """A model, opened so that it gives its logits, and what is read at each site."""
    import openvino

    tapped = model.clone()
    wanted = [name for one in attention for name in (one.x, one.read)]
    ports = [_as_read(tapped, name) for name in wanted]
    results = {port: tapped.add_outputs([port])[0] for port in dict.fromkeys(ports)}
    first = next(port for port in tapped.outputs if logits in port.get_names())
    with quiet():
        compiled = openvino.Core().compile_model(tapped, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    places = {port: tapped.outputs.index(result) for port, result in results.items()}
    start = tapped.outputs.index(first)

    def read(images: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], Arrays]:
        found = [np.array(value) for value in compiled(images).to_tuple()]
        arrays: list[np.ndarray[Any, Any] | None] = []
        for n, one in enumerate(attention):
            x, out = found[places[ports[2 * n]]], found[places[ports[2 * n + 1]]]
            for step in one.steps:
                x = step(x)
            arrays += [x, out]
        return found[start], arrays

    return read


def _as_read(model: Any, tensor: str) -> Any:
    """The port that the readers of a tensor get: behind the FakeQuantize, where there is one."""
    port = next((port for op in model.get_ops() for port in op.outputs() if tensor in port.get_names()), None)
    if port is None:
        raise FoveateError(f"OpenVINO's reader left no tensor {tensor!r}")
    while rounded := [to for to in port.get_target_inputs() if to.get_node().get_type_name() == "FakeQuantize"]:
        port = rounded[0].get_node().output(0)
    return port
