"""Which check notices a broken file: those of other exporters, and foveate's.

    python benchmarks/export_checks.py  # writes benchmarks/export_checks.csv

MobileNetV2 x0.5 with attention is exported to ONNX once, then broken in several ways, and each exporter looks at it
with its own function and its own inputs:

* timmx: ``verify_outputs``, the cosine similarity on one image of ``torch.randn``;
* optimum-onnx: ``validate_model_outputs``, the difference on its own random images (input and axes get its names);
* ultralytics compares nothing after an export. What it notices is what opening the file with ``YOLO`` and predicting
  one picture bring to light;
* foveate: ``foveate.exporters.verify``.

Random inputs are drawn ten times.

Needs onnx and onnxruntime. A peer that is not installed is left out: its column stays empty.
"""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper

import foveate as fv
from foveate.errors import first_line
from foveate.exporters.format import find_format
from foveate.exporters.options import ExportOptions
from foveate.exporters.program import prepare
from foveate.exporters.sample_images import random_samples
from foveate.exporters.verify import failed, verify
from foveate.images import Preprocess
from foveate.io import write_csv

SIZE, DRAWS, PASSES = 96, 10, "passes"
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
    "the attention at blocks.5.0 is bypassed": lambda model: rename_output(model, "blocks.5.0"),
    "an image's logits hold 5% of its neighbours'": average_batch,
    "metadata lost": drop_metadata,
}


def cosine_of(model: torch.nn.Module, path: Path) -> float:
    """Cosine similarity of the logits on one batch of noise."""
    noise = torch.randn(1, 3, SIZE, SIZE)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    actual = session.run(None, {"images": noise.numpy()})[0]
    with torch.inference_mode():
        return float(
            torch.nn.functional.cosine_similarity(model(noise).flatten(), torch.from_numpy(actual).flatten(), 0)
        )


def timmx_check(model: torch.nn.Module, path: Path) -> str:
    from timmx.errors import TimmxError
    from timmx.export.common import verify_outputs

    noise = torch.randn(1, 3, SIZE, SIZE)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = model(noise)
    try:
        verify_outputs(expected, session.run(None, {"images": noise.numpy()})[0], backend="ONNX")
    except TimmxError as error:
        return f"refused: {first_line(error)}"
    return PASSES


def optimum_check(model: torch.nn.Module, path: Path) -> str:
    from optimum.exporters.onnx.convert import validate_model_outputs
    from optimum.exporters.tasks import TasksManager

    # Its own way to describe a timm model, which it finds by the class's module.
    model.pretrained_cfg = {**model.pretrained_cfg, "architecture": "mobilenetv2_050", "input_size": (3, SIZE, SIZE)}
    TasksManager.standardize_model_attributes(model, library_name="timm")
    make = TasksManager.get_exporter_config_constructor("onnx", model, task="image-classification", library_name="timm")
    graph = onnx.load(path)
    graph.graph.input[0].name = "pixel_values"
    for node in graph.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = "pixel_values" if name == "images" else name
    for value in (*graph.graph.input, *graph.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            axis.dim_param = "batch_size" if axis.dim_param == "batch" else axis.dim_param
    renamed = path.with_name("renamed.onnx")
    onnx.save(graph, renamed)
    try:
        validate_model_outputs(make(model.config), model, renamed, ["logits"], use_subprocess=False)
    except Exception as error:  # noqa: BLE001 - whatever it raises is what it noticed
        return f"refused: {type(error).__name__}"
    return PASSES


def ultralytics_check(model: torch.nn.Module, path: Path) -> str:
    from ultralytics import YOLO

    del model  # it is not compared with anything

    picture = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    try:
        YOLO(str(path), task="classify")(picture, imgsz=SIZE, verbose=False)
    except Exception as error:  # noqa: BLE001 - whatever it raises is what it noticed
        return f"refused: {first_line(error)}"
    return PASSES


PEERS: dict[str, tuple[str, Callable[[torch.nn.Module, Path], str]]] = {
    "timmx": ("timmx", timmx_check),
    "optimum": ("optimum-onnx", optimum_check),
    "ultralytics": ("ultralytics", ultralytics_check),
}
"""Column -> distribution, and what it says of a file."""


def asked(check: Callable[[torch.nn.Module, Path], str], model: torch.nn.Module, path: Path) -> str:
    """What a check says of a file in ten draws of its input."""
    found = [check(model, path) for _ in range(DRAWS)]
    refused = [text for text in found if text != PASSES]
    if not refused:
        return PASSES
    return refused[0] if len(refused) == DRAWS else f"refused in {len(refused)} of {DRAWS} draws"


def version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Break the file in each way and ask all."""
    os.environ["YOLO_OFFLINE"] = "true"
    warnings.simplefilter("ignore")
    there = {column: peer for column, peer in PEERS.items() if version(peer[0])}
    for column in PEERS.keys() - there.keys():
        print(f"{column} is not installed: its column stays empty")
    torch.manual_seed(0)
    model = fv.create_model("mobilenetv2_050", num_classes=10).eval()
    fv.insert(model, PLAN)
    form, options = find_format("onnx"), ExportOptions(size=SIZE)
    program = prepare(model, options, format_name="onnx")
    samples = random_samples(16, replace(Preprocess.of(model), size=(SIZE, SIZE)), options)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.onnx"
        form.convert(program, whole)
        for name, spoil in BREAKS.items():
            graph = onnx.load(whole)
            spoil(graph)
            path = Path(folder) / "spoilt.onnx"
            onnx.save(graph, path)
            row = {"broken": name, "cosine": min(cosine_of(model, path) for _ in range(DRAWS))}
            row |= {column: asked(there[column][1], model, path) if column in there else "" for column in PEERS}
            wrong = failed(verify(program, form, path, samples).checks)
            row["foveate"] = f"refused: {', '.join(check.name for check in wrong)}" if wrong else PASSES
            rows.append(row)
            print(row)
    used = [*(peer[0] for peer in there.values()), "onnxruntime", "torch"]
    versions = ", ".join(f"{name} {version(name)}" for name in used)
    write_csv(Path(__file__).with_suffix(".csv"), [{**row, "versions": versions} for row in rows], digits=5)


if __name__ == "__main__":
    main()
