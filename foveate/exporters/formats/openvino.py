"""OpenVINO's intermediate representation, an .xml with a .bin beside it: Intel's and ARM's processors, Intel's GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.errors import FoveateError, first_line
from foveate.exporters.format import Arrays, Format, Session
from foveate.exporters.formats.onnx import to_onnx
from foveate.exporters.metadata import PREFIX, from_texts, to_texts
from foveate.exporters.operations import converting
from foveate.exporters.program import Program, quiet
from foveate.exporters.quantization.keep import quantize_keeping
from foveate.exporters.quantization.nncf_openvino import check_nncf, nncf_quantizer

__all__ = ["OpenVINO", "to_openvino", "write_openvino"]

_FOREIGN = ("FrameworkNode", "PtFrameworkNode", "InternalOperation")  # what the frontend did not translate
_SECTION = "foveate"  # of the model's information, where the metadata stands


class OpenVINO(Format):
    """OpenVINO's intermediate representation.

    A 16 bit file holds 16 bit weights; the runtime chooses what it computes with.
    """

    name, suffix, extra = "openvino", ".xml", "openvino"
    requires = {"openvino": "openvino"}  # noqa: RUF012
    example_requires = ("openvino",)
    example = """
import openvino

model = openvino.Core().read_model(FILE)
names = json.loads(model.get_rt_info(["foveate", "classes"]).astype(str))
# Without the hint a processor that has bfloat16 or float16 computes with these.
compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
logits = compiled(images)["logits"][0]
"""
    precisions = ("fp32", "fp16", "int8")

    def convert(self, program: Program, path: Path) -> None:
        """See :meth:`Format.convert`."""
        if program.options.precision == "int8":
            # ONNX names what it holds, and OpenVINO's reader keeps these names: the attention is found by them.
            check_nncf()
            model = quantize_keeping(program, nncf_quantizer(to_onnx(program), program))
        else:
            model = to_openvino(program)
        write_openvino(model, program, path)

    def open(self, path: Path, threads: int | None = None) -> Session:
        """See :meth:`Format.open`: it computes in float32, also where the processor's default is less."""
        return _Session(path, threads, "f32")

    def other_sessions(self, path: Path, threads: int | None = None) -> Mapping[str, Session]:
        """The processor's default where that is less than float32: what a program gets that sets no hint."""
        import openvino

        default = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
        if default == "f32":
            return {}
        return {f"at this processor's default, {default}": _Session(path, threads, None)}

    def foreign_operations(self, path: Path) -> tuple[str, ...]:
        """Operations of PyTorch's that OpenVINO's reader left as they were."""
        model = _read(path)
        return tuple(sorted({op.get_type_name() for op in model.get_ops() if op.get_type_name() in _FOREIGN}))


def to_openvino(program: Program) -> Any:
    """The network as an ``openvino.Model`` whose input and outputs have the metadata's names and shapes.

    Raises:
        FoveateError: an operation of the network has no form in OpenVINO.
    """
    import openvino

    model = converting(program, "OpenVINO", program.exported(), openvino.convert_model, openvino.convert_model)
    for port, name in zip(model.outputs, program.output_names, strict=True):
        port.get_tensor().set_names({name})
    entry = model.input(0)
    entry.get_tensor().set_names({program.input_name})
    sides = [-1 if isinstance(side, str) else side for side in program.metadata["input"]["shape"]]
    model.reshape({entry: openvino.PartialShape(sides)})
    return model


def write_openvino(model: Any, program: Program, path: Path) -> None:
    """Write an ``openvino.Model`` with its description; the weights in 16 bit where the program says so."""
    import openvino

    for key, text in to_texts(program.metadata).items():
        model.set_rt_info(text, [_SECTION, key.removeprefix(PREFIX)])
    openvino.save_model(model, str(path), compress_to_fp16=program.options.precision == "fp16")


def _read(path: Path) -> Any:
    import openvino

    if not path.with_suffix(".bin").is_file():
        raise FoveateError(f"{path}: its weights, {path.with_suffix('.bin').name}, are not beside it")
    try:
        return openvino.Core().read_model(str(path))
    except Exception as error:  # OpenVINO's errors have no base class of their own
        raise FoveateError(f"{path} cannot be opened by OpenVINO: {first_line(error)}") from error


class _Session(Session):
    def __init__(self, path: Path, threads: int | None, precision: str | None) -> None:
        import openvino

        model = _read(path)
        texts = {}
        if model.has_rt_info([_SECTION]):
            known = model.get_rt_info([_SECTION]).astype(dict)
            texts = {PREFIX + key: value.astype(str) for key, value in known.items()}
        self.metadata = from_texts(texts, path)
        settings: dict[str, Any] = {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
        settings |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
        try:
            with quiet():
                self._compiled = openvino.Core().compile_model(model, "CPU", settings)
        except Exception as error:  # OpenVINO's errors have no base class of their own
            raise FoveateError(f"{path} cannot be compiled by OpenVINO: {first_line(error)}") from error

    def run(self, images: NDArray[np.generic]) -> Arrays:
        try:
            found = self._compiled(images)
        except Exception as error:  # OpenVINO's errors have no base class of their own
            raise FoveateError(f"OpenVINO cannot run the network on {images.shape}: {first_line(error)}") from error
        return tuple(np.array(found[port]) for port in self._compiled.outputs)
