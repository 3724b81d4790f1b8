"""ExecuTorch: a .pte file for phones and small devices, computed by XNNPACK; a JSON beside it describes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foveate.errors import FoveateError, first_line
from foveate.exporters.format import Arrays, Format, Session
from foveate.exporters.metadata import read_sidecar, write_sidecar
from foveate.exporters.operations import converting
from foveate.exporters.program import Program, quiet

__all__ = ["ExecuTorch"]

LARGEST_BATCH = 8
"""The runtime plans its memory for the largest batch. From 16 on, torch's lowering asks how large the batch is, and
narrows what it allows."""


class ExecuTorch(Format):
    """ExecuTorch's program, delegated to XNNPACK."""

    name, suffix, extra = "executorch", ".pte", "executorch"
    requires = {"executorch": "executorch", "torchao": "torchao"}  # noqa: RUF012
    example_requires = ("executorch", "torch")
    example = """
import torch
from executorch.runtime import Runtime

names = json.loads(FILE.with_name(FILE.name + ".json").read_text(encoding="utf-8"))["classes"]
program = Runtime.get().load_program(FILE.read_bytes())
logits = program.load_method("forward").execute([torch.from_numpy(images)])[0][0].numpy()
"""
    precisions = ("fp32", "int8")
    dynamic_size = False

    def convert(self, program: Program, path: Path) -> None:
        """See :meth:`Format.convert`."""
        with quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

        quantized = program.options.precision == "int8"

        def lower(exported: torch.export.ExportedProgram, one_by_one: bool = False) -> Any:
            try:
                return to_edge_transform_and_lower(
                    exported,
                    partitioner=[XnnpackPartitioner(per_op_mode=one_by_one)],
                    compile_config=EdgeCompileConfig(_check_ir_validity=not quantized),
                ).to_executorch()
            except AssertionError as error:
                # Its grouping of operations makes groups that need each other (pytorch/executorch, pull request 18397).
                if one_by_one or "dependency cycles" not in str(error):
                    raise
                program.notes.append("each operation is given to XNNPACK by itself: its groups would need each other")
                return lower(exported, one_by_one=True)

        most = LARGEST_BATCH if program.options.batch == "dynamic" else None
        exported = _quantized(program, most) if quantized else program.exported(most)
        path.write_bytes(converting(program, "ExecuTorch", exported, lower, lower).buffer)
        if most:
            # Some networks make the lowering narrow what it allows; what the memory was planned for is in the file.
            planned = int(_method(path)[2].metadata.input_tensor_meta(0).sizes()[0])
            if planned < most:
                parts = " and ".join(dict.fromkeys(part.mechanism for part in program.parts))
                raise FoveateError(
                    "ExecuTorch does not keep the number of images of this network free"
                    f"{f' (its plan has {parts})' if parts else ''}: give batch=1 (--batch 1)"
                )
            program.metadata["input"]["largest_batch"] = most
        write_sidecar(path, program.metadata)

    def open(self, path: Path, threads: int | None = None) -> Session:
        """See :meth:`Format.open`; ExecuTorch's own number of threads counts."""
        del threads
        return _Session(path)

    def foreign_operations(self, path: Path) -> tuple[str, ...]:
        """Operations that the runtime has no kernel for, which it says when the file is loaded."""
        del path  # `open` fails on them, with the name of the first
        return ()


def _quantized(program: Program, most: int | None) -> torch.export.ExportedProgram:
    """The network with 8 bit weights, per channel, and activations, both symmetric, as XNNPACK computes them."""
    with quiet():
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    if not program.calibration:
        raise FoveateError("int8 is calibrated on real images, and none were given: data='a folder with images'")
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))

    def quantize(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
        prepared = prepare_pt2e(exported.module(), quantizer)
        for batch in program.calibration:
            prepared(batch)
        converted = convert_pt2e(prepared)
        return torch.export.export(
            converted, (program.example,), dynamic_shapes=program.dynamic_shapes(most), strict=False
        )

    return converting(program, "ExecuTorch", program.exported(most), quantize)


def _method(path: Path) -> tuple[bytes, Any, Any]:
    """The bytes, the program and its method."""
    try:
        with quiet():
            from executorch.runtime import Runtime

            data = path.read_bytes()
            program = Runtime.get().load_program(data)
            return data, program, program.load_method("forward")
    except Exception as error:  # the runtime raises RuntimeError and what pybind11 makes of C++
        raise FoveateError(f"{path} cannot be opened by ExecuTorch: {first_line(error)}") from error


class _Session(Session):
    def __init__(self, path: Path) -> None:
        self.metadata = read_sidecar(path)
        # The method computes in memory that the other two own.
        self._data, self._program, self._method = _method(path)
        self._most = self.metadata["input"].get("largest_batch")

    def run(self, images: NDArray[np.generic]) -> Arrays:
        parts = [images]
        if self._most and len(images) > self._most:
            parts = [images[start : start + self._most] for start in range(0, len(images), self._most)]
        try:
            found = [self._method.execute([torch.from_numpy(np.ascontiguousarray(part))]) for part in parts]
            # What the runtime gives lies in memory that its next call writes to.
            arrays = [tuple(output.clone().numpy() for output in outputs) for outputs in found]
        except Exception as error:  # the runtime raises RuntimeError and what pybind11 makes of C++
            raise FoveateError(f"ExecuTorch cannot run the network on {images.shape}: {first_line(error)}") from error
        return tuple(np.concatenate(each) for each in zip(*arrays, strict=True))
