"""LiteRT, once TensorFlow Lite: a .tflite for Android, microcontrollers and browsers; a JSON beside it describes it.

Its converter, litert-torch, takes a torch of its own and several gigabytes: it works in an environment that the user
names, and gets the network as a .pt2. What was converted is run here, by ai-edge-litert.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foveate.errors import FoveateError, first_line
from foveate.exporters.format import Arrays, Format, Session
from foveate.exporters.metadata import read_sidecar, write_sidecar
from foveate.exporters.operations import operations_of_export, refusal
from foveate.exporters.options import ExportOptions
from foveate.exporters.program import Program, quiet

__all__ = ["LiteRT"]

_SECONDS = 1800  # that the other environment may take
_SCRIPT = """
import sys
import torch
import litert_torch
program = torch.export.load(sys.argv[1])
litert_torch.convert(program.module(), program.example_inputs[0]).export(sys.argv[2])
"""
_OUR_OWN = ("CUSTOM", "Flex")  # operations that need a library of the user's or TensorFlow


class LiteRT(Format):
    """LiteRT's flat buffer."""

    name, suffix, extra = "litert", ".tflite", "litert"
    requires = {"ai_edge_litert": "ai-edge-litert"}  # noqa: RUF012
    example_requires = ("ai-edge-litert",)
    example = """
from ai_edge_litert.interpreter import Interpreter

names = json.loads(FILE.with_name(FILE.name + ".json").read_text(encoding="utf-8"))["classes"]
runner = Interpreter(model_path=str(FILE)).get_signature_runner()
logits = runner(**{list(runner.get_input_details())[0]: images})["output_0"][0]
"""
    dynamic_batch = dynamic_size = False

    def check_options(self, options: ExportOptions) -> None:
        """See :meth:`Format.check_options`; the interpreter must be there."""
        super().check_options(options)
        if options.python is None:
            raise FoveateError(
                "litert is converted in an environment of its own, for litert-torch needs a torch of its own: give its "
                "interpreter as python= (--python), after python -m venv NAME && NAME/bin/pip install litert-torch"
            )
        if shutil.which(options.python) is None:
            raise FoveateError(f"python={options.python!r} is not a program: give the path of an interpreter")

    def convert(self, program: Program, path: Path) -> None:
        """See :meth:`Format.convert`."""
        exported = program.exported()
        given = path.with_name("program.pt2")
        with quiet():
            torch.export.save(exported, given)
        # The other environment must not find the packages of this one.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        command = [str(program.options.python), "-c", _SCRIPT, str(given), str(path)]
        try:
            ended = subprocess.run(
                command, cwd=path.parent, env=environment, capture_output=True, timeout=_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise FoveateError(
                f"{program.options.python} could not convert the network: {first_line(error)}"
            ) from error
        finally:
            given.unlink()
        if ended.returncode or not path.is_file():
            raise self._why(program, exported, ended.stderr.decode(errors="replace"))
        write_sidecar(path, program.metadata)

    def _why(self, program: Program, exported: torch.export.ExportedProgram, errors: str) -> FoveateError:
        """What the other environment said, in one line."""
        lines = [line.strip() for line in errors.splitlines() if line.strip()]
        if any("No module named" in line and "litert_torch" in line for line in lines):
            return FoveateError(f"{program.options.python} has no litert-torch: install it there with pip")
        raised = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception")) and " " in line]
        text = (raised or lines or ["it says nothing"])[-1]
        return refusal(program, "LiteRT", RuntimeError(text), operations_of_export(exported))

    def open(self, path: Path, threads: int | None = None) -> Session:
        """See :meth:`Format.open`."""
        return _Session(path, threads)

    def foreign_operations(self, path: Path) -> tuple[str, ...]:
        """Operations that LiteRT's own library does not hold."""
        names = {str(each["op_name"]) for each in _interpreter(path, None)._get_ops_details()}
        return tuple(sorted(name for name in names if name.startswith(_OUR_OWN)))


def _interpreter(path: Path, threads: int | None) -> Any:
    with quiet():
        from ai_edge_litert.interpreter import Interpreter

    try:
        return Interpreter(model_content=path.read_bytes(), num_threads=threads)
    except Exception as error:  # the library raises what pybind11 makes of C++
        raise FoveateError(f"{path} cannot be opened by LiteRT: {first_line(error)}") from error


class _Session(Session):
    def __init__(self, path: Path, threads: int | None) -> None:
        self.metadata = read_sidecar(path)
        self._interpreter = _interpreter(path, threads)
        self._runner = self._interpreter.get_signature_runner()
        (self._input,) = self._runner.get_input_details()
        # output_0, output_1, ...: by number, for output_10 comes after output_9.
        self._outputs = sorted(self._runner.get_output_details(), key=lambda name: int(name.rpartition("_")[2]))

    def run(self, images: NDArray[np.generic]) -> Arrays:
        try:
            found = self._runner(**{self._input: images})
        except Exception as error:  # the library raises what pybind11 makes of C++
            raise FoveateError(f"LiteRT cannot run the network on {images.shape}: {first_line(error)}") from error
        return tuple(np.array(found[name]) for name in self._outputs)
