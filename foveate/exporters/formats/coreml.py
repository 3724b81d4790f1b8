"""Core ML: an .mlpackage for iPhones, iPads and Macs. It is written anywhere and runs on a Mac only."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foveate.errors import FoveateError, first_line
from foveate.exporters.format import Arrays, Format, Session
from foveate.exporters.metadata import from_texts, to_texts
from foveate.exporters.operations import converting, traced
from foveate.exporters.program import Program, quiet

__all__ = ["CoreML"]


class CoreML(Format):
    """Core ML's ML program."""

    name, suffix, extra = "coreml", ".mlpackage", "coreml"
    requires = {"coremltools": "coremltools"}  # noqa: RUF012
    example_requires = ("coremltools",)
    example = """
import coremltools

model = coremltools.models.MLModel(str(FILE))  # on a Mac
names = json.loads(model.user_defined_metadata["foveate.classes"])
logits = model.predict({"images": images})["logits"][0]
"""
    precisions = ("fp32", "fp16")
    dynamic_batch = dynamic_size = False
    inputs = ("float",)

    def convert(self, program: Program, path: Path) -> None:
        """See :meth:`Format.convert`."""
        tools = _tools()
        half = program.options.precision == "fp16"
        settings = {
            "convert_to": "mlprogram",
            "compute_precision": tools.precision.FLOAT16 if half else tools.precision.FLOAT32,
            "minimum_deployment_target": tools.target.iOS16,
            # Float32 comes in and goes out, whatever is computed with.
            "outputs": [tools.TensorType(name=name) for name in program.output_names],
        }

        def by_export(exported: torch.export.ExportedProgram) -> Any:
            return tools.convert(exported.run_decompositions({}), convert_to="mlprogram")

        exported = program.exported()
        try:
            with _silent(), torch.no_grad():
                model = tools.convert(exported.run_decompositions({}), **settings)
        except Exception:  # noqa: BLE001 - it raises what it likes; the older way knows other operations
            try:
                with _silent(), torch.no_grad():
                    entry = tools.TensorType(name=program.input_name, shape=program.example.shape, dtype=np.float32)
                    model = tools.convert(traced(program), inputs=[entry], **settings)
                program.notes.append("converted from a trace: coremltools does not take the graph of torch.export")
            except Exception:  # noqa: BLE001 - likewise
                # Neither way works: the first one names what it stopped at.
                with _silent():
                    model = converting(program, "Core ML", exported, by_export, by_export)
        model.user_defined_metadata.update(to_texts(program.metadata))
        model.short_description = f"{program.metadata['architecture']} by foveate"
        model.save(str(path))
        with quiet():  # it leaves a folder to be removed by whoever collects the model, who is then warned
            del model
            gc.collect()

    def open(self, path: Path, threads: int | None = None) -> Session:
        """See :meth:`Format.open`; off a Mac its metadata can be read and nothing can be run."""
        del threads
        return _Session(path, run=not self.runs_here())

    def runs_here(self) -> str:
        """Core ML is a part of macOS."""
        return "" if sys.platform == "darwin" else "Core ML runs on a Mac only"


def _tools() -> Any:
    """coremltools, which logs about versions of libraries when it is imported, and draws bars while it converts."""
    with _silent():
        import coremltools

    return coremltools


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """No progress bars, which know no other switch than where they are drawn, and no log: what is wrong is raised."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    try:
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            logger.setLevel(logging.CRITICAL)
            yield
    finally:
        logger.setLevel(level)


class _Session(Session):
    def __init__(self, path: Path, run: bool) -> None:
        try:
            self._model = _tools().models.MLModel(str(path), skip_model_load=not run)
        except Exception as error:  # coremltools raises what it likes
            raise FoveateError(f"{path} cannot be opened by coremltools: {first_line(error)}") from error
        self.metadata = from_texts(dict(self._model.user_defined_metadata), path)

    def run(self, images: NDArray[np.generic]) -> Arrays:
        try:
            found = self._model.predict({self.metadata["input"]["name"]: images})
        except Exception as error:  # coremltools raises what it likes
            raise FoveateError(f"Core ML cannot run the network on {images.shape}: {first_line(error)}") from error
        return tuple(np.asarray(found[output["name"]]) for output in self.metadata["outputs"])
