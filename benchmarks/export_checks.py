"""Which check notices a broken file: the exporter timmx's own (cosine similarity on noise) and foveate's.

    python benchmarks/export_checks.py  # writes benchmarks/export_checks.csv

MobileNetV2 x0.5 with attention is exported to ONNX once, then broken in several ways. timmx's check is its own function
``verify_outputs`` on the input that it takes, one batch of ``torch.randn``; foveate's is ``foveate.exporters.verify``.
Needs timmx, onnx, onnxruntime.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import timmx
import torch
from onnx import numpy_helper
from timmx.errors import TimmxError
from timmx.export.common import verify_outputs

import foveate as fv
from foveate.exporters.format import find_format
from foveate.exporters.options import ExportOptions
from foveate.exporters.program import prepare
from foveate.exporters.sample_images import random_samples
from foveate.exporters.verify import failed, verify
from foveate.images import Preprocess
from foveate.io import write_csv

PLAN = "ulsam(groups=4) after blocks.4.2; cbam after blocks.2.0; se after blocks.5.0"
Graph = onnx.ModelProto


def scale(model: Graph, part: str, factor: float) -> None:
    """Multiply the weights whose name ends so."""
    found = [each for each in model.graph.initializer if each.name.endswith(part)]
    assert found, part
    for each in found:
        values = numpy_helper.to_array(each) * np.float32(factor)
        each.CopyFrom(numpy_helper.from_array(values.astype(np.float32), each.name))


def rename_output(model: Graph, site: str) -> None:
    """Bypass the attention at a site: whoever reads its output reads its input."""
    nodes = [n for n in model.graph.node if any(f"{site}.foveate" in p.value for p in n.metadata_props)]
    made = {name for node in nodes for name in node.output}
    constants = {each.name for each in model.graph.initializer}
    entering = [name for node in nodes for name in node.input if name and name not in made | constants]
    leaving = nodes[-1].output[0]
    for node in model.graph.node:
        if node not in nodes:
            for index, name in enumerate(node.input):
                if name == leaving:
                    node.input[index] = entering[0]


def drop_metadata(model: Graph) -> None:
    """Class names and preparation are lost."""
    del model.metadata_props[:]


def average_batch(model: Graph) -> None:
    """Logits that depend on the neighbours in the batch."""
    old = model.graph.output[0].name
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == old:
                node.output[index] = "before_mean"
    axes = numpy_helper.from_array(np.array([0], dtype=np.int64), "batch_axis")
    model.graph.initializer.append(axes)
    model.graph.node.append(onnx.helper.make_node("ReduceMean", ["before_mean", "batch_axis"], ["batch_mean"]))
    half = numpy_helper.from_array(np.float32(0.05), "small")
    model.graph.initializer.append(half)
    model.graph.node.append(onnx.helper.make_node("Mul", ["batch_mean", "small"], ["batch_part"]))
    model.graph.node.append(onnx.helper.make_node("Add", ["before_mean", "batch_part"], [old]))


def shift_bias(model: Graph) -> None:
    """The first class gains 0.1."""
    last = [node for node in model.graph.node if node.op_type == "Gemm"][-1]
    assert len(last.input) == 2, "a bias of zeros is left out by the exporter"
    values = np.zeros(10, dtype=np.float32)
    values[0] = 0.1
    model.graph.initializer.append(numpy_helper.from_array(values, "shifted"))
    last.input.append("shifted")


BREAKS: dict[str, Callable[[Graph], Any]] = {
    "nothing": lambda _: None,
    "classifier's weights x 1.2": lambda model: scale(model, "classifier.weight", 1.2),
    "the first class gains 0.1": shift_bias,
    "the attention at blocks.4.2 is bypassed": lambda model: rename_output(model, "blocks.4.2"),
    "the attention at blocks.2.0 is bypassed": lambda model: rename_output(model, "blocks.2.0"),
    "an image's logits hold 5% of its neighbours'": average_batch,
    "metadata lost": drop_metadata,
}


def main() -> None:
    """Break the file in each way and ask both."""
    torch.manual_seed(0)
    model = fv.create_model("mobilenetv2_050", num_classes=10).eval()
    fv.insert(model, PLAN)
    form, options = find_format("onnx"), ExportOptions(size=96)
    program = prepare(model, options, format_name="onnx")
    samples = random_samples(16, replace(Preprocess.of(model), size=(96, 96)), options)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.onnx"
        form.convert(program, whole)
        for name, spoil in BREAKS.items():
            graph = onnx.load(whole)
            spoil(graph)
            path = Path(folder) / "spoilt.onnx"
            onnx.save(graph, path)
            noise = torch.randn(1, 3, 96, 96)
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            actual = session.run(None, {"images": noise.numpy()})[0]
            with torch.inference_mode():
                expected = model(noise)
            cosine = float(
                torch.nn.functional.cosine_similarity(expected.flatten(), torch.from_numpy(actual).flatten(), 0)
            )
            try:
                verify_outputs(expected, actual, backend="ONNX")
                theirs = "passes"
            except TimmxError:
                theirs = "refused"
            wrong = failed(verify(program, form, path, samples).checks)
            ours = f"refused: {', '.join(check.name for check in wrong)}" if wrong else "passes"
            rows.append({"broken": name, "cosine": cosine, "timmx": theirs, "foveate": ours})
            print(rows[-1])
    versions = f"timmx {timmx.__version__}, onnxruntime {onnxruntime.__version__}, torch {torch.__version__}"
    write_csv(Path(__file__).with_suffix(".csv"), [{**row, "versions": versions} for row in rows], digits=5)


if __name__ == "__main__":
    main()
