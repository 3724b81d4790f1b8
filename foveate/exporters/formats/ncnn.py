"""ncnn: a .param and a .bin for phones, converted by pnnx; a JSON beside them describes them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveate.errors import FoveateError
from foveate.exporters.format import Arrays, Format, Session
from foveate.exporters.metadata import read_sidecar, write_sidecar
from foveate.exporters.operations import operations_of_trace, refusal, traced
from foveate.exporters.program import Program, reason

__all__ = ["Ncnn"]

_SECONDS = 600  # that pnnx may take
_LAYER = re.compile(r"^(\S+)\s+(\S+)\s+\d+\s+\d+", re.MULTILINE)


class Ncnn(Format):
    """ncnn's pair of files."""

    name, suffix, extra = "ncnn", ".ncnn.param", "ncnn"
    requires = {"pnnx": "pnnx", "ncnn": "ncnn"}  # noqa: RUF012
    example_requires = ("ncnn",)
    example = """
import ncnn

names = json.loads(FILE.with_name(FILE.name + ".json").read_text(encoding="utf-8"))["classes"]
net = ncnn.Net()
assert net.load_param(str(FILE)) == 0 and net.load_model(str(FILE.with_suffix(".bin"))) == 0
extractor = net.create_extractor()
extractor.input("in0", ncnn.Mat(images[0]).clone())
logits = np.array(extractor.extract("out0")[1])
"""
    precisions = ("fp32", "fp16")
    dynamic_batch = dynamic_size = False
    inputs = ("float",)
    largest_batch = 1

    def convert(self, program: Program, path: Path) -> None:
        """See :meth:`Format.convert`."""
        import pnnx

        stem = path.name.removesuffix(self.suffix)
        traced_file = path.with_name(f"{stem}.pt")
        before = set(path.parent.iterdir())
        try:
            graph = traced(program)
            graph.save(str(traced_file))
        except Exception as error:  # torch raises what it likes
            raise FoveateError(f"torch.jit.trace cannot follow the network: {reason(error)}") from error
        shape = ",".join(map(str, program.example.shape))
        # pnnx as a program: its Python function would import the code that it writes.
        command = [pnnx.EXEC_PATH, traced_file.name, f"inputshape=[{shape}]f32"]
        command += [f"fp16={int(program.options.precision == 'fp16')}"]
        command += [f"ncnnparam={path.name}", f"ncnnbin={_weights(path).name}"]
        try:
            ended = subprocess.run(command, cwd=path.parent, capture_output=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise FoveateError(f"pnnx did not end within {_SECONDS} seconds") from error
        written = path.is_file() and _weights(path).is_file()
        for made in set(path.parent.iterdir()) - before - {path, _weights(path)}:
            made.unlink()
        operations = operations_of_trace(graph.inlined_graph)
        if ended.returncode or not written:
            last = ended.stderr.decode(errors="replace").strip().splitlines()
            last = last or ["it says nothing"]
            raise refusal(program, "ncnn", RuntimeError(f"pnnx ended with {ended.returncode}: {last[-1]}"), operations)
        foreign = self.foreign_operations(path)
        if foreign:
            # pnnx calls them torch.argmax, Tensor.view_as, aten::unfold: torch's own names with the place in front.
            bare = ", ".join(f"'{re.split(r'[.:]+', name)[-1]}'" for name in foreign)
            raise refusal(program, "ncnn", ValueError(f"pnnx left {bare} as it was"), operations)
        write_sidecar(path, program.metadata)

    def open(self, path: Path, threads: int | None = None) -> Session:
        """See :meth:`Format.open`."""
        return _Session(path, threads)

    def foreign_operations(self, path: Path) -> tuple[str, ...]:
        """Layers that ncnn does not know: pnnx leaves torch's names in the file and says that all went well."""
        import ncnn

        layers = _LAYER.findall(path.read_text(encoding="utf-8"))
        return tuple(sorted({kind for kind, _ in layers if ncnn.layer_to_index(kind) < 0}))


def _weights(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".param") + ".bin")


class _Session(Session):
    def __init__(self, path: Path, threads: int | None) -> None:
        import ncnn

        self.metadata = read_sidecar(path)
        self._net = ncnn.Net()
        options = self._net.opt
        options.num_threads = threads or options.num_threads
        exact = self.metadata["precision"] == "fp32"
        for name in ("use_fp16_storage", "use_fp16_arithmetic", "use_fp16_packed", "use_bf16_storage"):
            if exact and hasattr(options, name):
                setattr(options, name, False)
        weights = _weights(path)
        # A net that was not loaded whole ends the process when it runs.
        if not path.is_file() or self._net.load_param(str(path)) != 0:
            raise FoveateError(f"{path} cannot be opened by ncnn: it is damaged or has a layer that ncnn does not know")
        if not weights.is_file() or self._net.load_model(str(weights)) != 0:
            raise FoveateError(f"{path}: its weights, {weights.name}, are not beside it or are damaged")

    def run(self, images: NDArray[np.generic]) -> Arrays:
        import ncnn

        rows = []
        for image in images:
            extractor = self._net.create_extractor()
            found = extractor.input("in0", ncnn.Mat(np.ascontiguousarray(image)).clone())
            outputs = []
            for index, output in enumerate(self.metadata["outputs"]):
                result, values = extractor.extract(f"out{index}") if found == 0 else (found, None)
                if result != 0:
                    raise FoveateError(f"ncnn cannot compute {output['name']!r} of the network: it returns {result}")
                outputs.append(np.array(values))
            rows.append(tuple(outputs))
        return tuple(np.stack(each) for each in zip(*rows, strict=True))
