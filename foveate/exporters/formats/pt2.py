"""``.pt2``: torch's own file of a graph, for AOTInductor and torch without the code of the network.

It is loaded by ``torch.export.load``, which runs nothing that the file brings but operations of torch.
"""

from __future__ import annotations

import copy
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from foveate.errors import FoveateError, first_line
from foveate.exporters.format import Arrays, Format, Session
from foveate.exporters.metadata import PREFIX, from_texts, to_texts
from foveate.exporters.program import Program, quiet
from foveate.io import JsonObject

__all__ = ["Pt2"]


class Pt2(Format):
    """torch.export's archive."""

    name, suffix, extra = "pt2", ".pt2", None
    example_requires = ("torch",)
    example = """
import torch

texts = {"foveate.classes": ""}
program = torch.export.load(FILE, extra_files=texts)
names = json.loads(texts["foveate.classes"])
with torch.inference_mode():
    logits = program.module()(torch.from_numpy(images))[0][0].numpy()
"""
    precisions = ("fp32", "fp16")

    def convert(self, program: Program, path: Path) -> None:
        """See :meth:`Format.convert`."""
        if program.options.precision == "fp16":
            program = copy.copy(program)
            program.network = copy.deepcopy(program.network).half_precision()
        exported = program.exported()
        with quiet():
            torch.export.save(exported, path, extra_files=to_texts(program.metadata))

    def open(self, path: Path, threads: int | None = None) -> Session:
        """See :meth:`Format.open`; torch's own number of threads counts."""
        del threads
        return _Session(path)

    def foreign_operations(self, path: Path) -> tuple[str, ...]:
        """Operations that are not torch's own, such as fused kernels of a library."""
        with quiet():
            graph = torch.export.load(path).graph
        names = {str(node.target) for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
        return tuple(sorted(name for name in names if not name.startswith(("aten.", "prims.", "higher_order."))))


class _Session(Session):
    def __init__(self, path: Path) -> None:
        texts: JsonObject = {f"{PREFIX}{key}": "" for key in _keys(path)}
        try:
            with quiet():
                loaded = torch.export.load(path, extra_files=texts)
        except Exception as error:  # torch raises what it likes on a damaged file
            raise FoveateError(f"{path} cannot be opened as a .pt2 file: {first_line(error)}") from error
        self.metadata = from_texts(
            {key: text.decode() if isinstance(text, bytes) else text for key, text in texts.items()}, path
        )
        self._module = loaded.module()

    def run(self, images: NDArray[np.generic]) -> Arrays:
        with torch.inference_mode():
            outputs = self._module(torch.from_numpy(images))
        return tuple(np.asarray(output) for output in outputs)


def _keys(path: Path) -> list[str]:
    """The metadata that the archive holds, by name."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise FoveateError(f"{path} cannot be opened as a .pt2 file: {first_line(error)}") from error
    return [part.removeprefix(PREFIX) for name in names if (part := name.rpartition("/")[2]).startswith(PREFIX)]
