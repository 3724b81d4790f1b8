"""ONNX: the file that most runtimes read, run by onnxruntime on Linux, Windows, macOS, Android, iOS and in browsers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from foveate.errors import FoveateError, first_line
from foveate.exporters.format import Arrays, Format, Session
from foveate.exporters.formats._average_pool import with_matrix_pools
from foveate.exporters.metadata import from_texts, to_texts
from foveate.exporters.operations import converting
from foveate.exporters.program import Program
from foveate.exporters.quantization.keep import quantize_keeping
from foveate.exporters.quantization.static_onnx import static_quantizer

if TYPE_CHECKING:
    import onnx

__all__ = ["Onnx", "to_onnx"]

_DOMAINS = ("", "ai.onnx", "com.microsoft")  # the standard's operations, and onnxruntime's own
LARGEST = 2**31  # bytes of one file: beyond it a protocol buffer cannot be read


class Onnx(Format):
    """Open Neural Network Exchange."""

    name, suffix = "onnx", ".onnx"
    requires: ClassVar[Mapping[str, str]] = {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"}
    example_requires = ("onnxruntime",)
    example = """
import onnxruntime

session = onnxruntime.InferenceSession(FILE, providers=["CPUExecutionProvider"])
names = json.loads(session.get_modelmeta().custom_metadata_map["foveate.classes"])
logits = session.run(["logits"], {"images": images})[0][0]
"""
    precisions = ("fp32", "fp16", "int8")
    holds_detectors = True

    def convert(self, program: Program, path: Path) -> None:
        """See :meth:`Format.convert`."""
        model = to_onnx(program)
        if model.ByteSize() >= LARGEST:
            raise FoveateError(
                f"the network takes {model.ByteSize() / 1e9:.1f} GB, and one ONNX file holds 2.1 GB at most: use pt2"
            )
        if program.options.precision == "int8":
            model = quantize_keeping(program, static_quantizer(model, program))
        path.write_bytes(model.SerializeToString())

    def open(self, path: Path, threads: int | None = None) -> Session:
        """See :meth:`Format.open`."""
        return _Session(path, threads)

    def foreign_operations(self, path: Path) -> tuple[str, ...]:
        """Operations of other domains than ONNX's and onnxruntime's."""
        import onnx

        found = onnx.load(path, load_external_data=False)
        nodes = [*found.graph.node, *(node for function in found.functions for node in function.node)]
        return tuple(sorted({f"{node.domain}::{node.op_type}" for node in nodes if node.domain not in _DOMAINS}))


def to_onnx(program: Program) -> onnx.ModelProto:
    """The network as an ONNX graph with its description, in 32 or 16 bit.

    Args:
        program: its precision is looked at; "int8" gives the 32 bit graph that is quantized later.

    Raises:
        FoveateError: an operation of the network has no ONNX form; the message names it, and the attention it is in.
    """
    if program.options.precision == "fp16":
        program = copy.copy(program)
        program.network = copy.deepcopy(program.network).half_precision()
    if program.options.size == "dynamic":
        program = copy.copy(program)  # the file is compared with the network that has its own pools
        program.network = with_matrix_pools(program.network)

    def convert(
        graph: torch.export.ExportedProgram, inputs: list[str] | None = None, outputs: list[str] | None = None
    ) -> onnx.ModelProto:
        made = torch.onnx.export(graph, dynamo=True, verbose=False, input_names=inputs, output_names=outputs)
        if made is None:
            raise FoveateError("the network cannot be exported to ONNX: torch gave no graph")
        return made.model_proto

    model = converting(
        *(program, "ONNX", program.exported()),
        lambda graph: convert(graph, [program.input_name], program.output_names),
        convert,
    )
    _name_axes(model, program.metadata["input"]["shape"])
    for key, text in to_texts(program.metadata).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, text
    return model


def _name_axes(model: onnx.ModelProto, shape: list[int | str]) -> None:
    """Call the dynamic axes what they are: torch's exporter calls them ``s77``."""
    axes = model.graph.input[0].type.tensor_type.shape.dim
    names = {axis.dim_param: name for axis, name in zip(axes, shape, strict=True) if isinstance(name, str)}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in names:
                axis.dim_param = names[axis.dim_param]


class _Session(Session):
    def __init__(self, path: Path, threads: int | None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class of its own for each fault
            raise FoveateError(f"{path} cannot be opened by onnxruntime: {first_line(error)}") from error
        self.metadata = from_texts(self._session.get_modelmeta().custom_metadata_map, path)
        self._input = self._session.get_inputs()[0].name

    def run(self, images: NDArray[np.generic]) -> Arrays:
        try:
            return tuple(self._session.run(None, {self._input: images}))
        except Exception as error:  # onnxruntime has a class of its own for each fault
            raise FoveateError(f"onnxruntime cannot run the network on {images.shape}: {first_line(error)}") from error
