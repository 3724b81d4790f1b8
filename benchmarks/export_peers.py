"""Files of other exporters beside foveate's: the same network, the same images.

    python benchmarks/export_peers.py  # writes benchmarks/export_peers.csv

Two networks are trained for two epochs on the demo's solar cells at 96 pixels: MobileNetV2 x0.5 with attention, which
optimum-onnx exports (through its Python function, for its command takes names of the hub), and ultralytics' own
classifier yolo11n-cls, built from its .yaml without weights, which ultralytics exports. foveate exports both. Each file
is given all validation images in its own runtime; its probabilities are compared with those of the network in PyTorch.

Needs the extras demo, export, openvino and ncnn, and nncf for int8. A peer that is not installed is left out.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from export_checks import PLAN, version

import foveate as fv
from foveate.errors import first_line
from foveate.images import Preprocess
from foveate.io import write_csv

SIZE = 96
RECIPE = fv.Recipe(epochs=2, image_size=SIZE, seed=0)
FORMATS = ("onnx:fp32", "onnx:int8", "openvino:fp32", "openvino:int8", "ncnn:fp32", "torchscript:fp32")
SUFFIXES = {"onnx": "*.onnx", "openvino": "*.xml", "ncnn": "*.ncnn.param", "torchscript": "*.torchscript"}
GIVE_PROBABILITIES = ("ultralytics",)  # its files end in the softmax; the others give logits
Run = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


class YoloClassifier(torch.nn.Module):
    """ultralytics' network, which gives logits in training and a pair of probabilities and logits in evaluation."""

    def __init__(self, network: torch.nn.Module, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.num_classes = network, len(classes)
        self.pretrained_cfg = {
            "input_size": (3, SIZE, SIZE),
            "mean": (0.0,) * 3,
            "std": (1.0,) * 3,
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "label_names": classes,
        }

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.network(images)
        logits: torch.Tensor = found[1] if isinstance(found, tuple) else found
        return logits


def onnx_run(path: Path) -> tuple[Run, str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    return lambda image: session.run(None, {entry.name: image})[0], _shape(entry.shape)


def openvino_run(path: Path) -> tuple[Run, str]:
    import openvino

    model = openvino.Core().read_model(path)
    shape = _shape([side.get_length() if side.is_static else "any" for side in model.inputs[0].partial_shape])
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: np.array(compiled(image)[0]), shape


def ncnn_run(path: Path) -> tuple[Run, str]:
    import ncnn

    net = ncnn.Net()
    net.load_param(str(path))
    net.load_model(str(path.with_suffix(".bin")))

    def run(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(np.ascontiguousarray(image[0])).clone())
        return np.array(extractor.extract("out0")[1])[None]

    return run, "1"


def torchscript_run(path: Path) -> tuple[Run, str]:
    loaded = torch.jit.load(path)
    return lambda image: loaded(torch.from_numpy(image)).numpy(), "1"


RUNS: dict[str, Callable[[Path], tuple[Run, str]]] = {
    "onnx": onnx_run,
    "openvino": openvino_run,
    "ncnn": ncnn_run,
    "torchscript": torchscript_run,
}


def _shape(sides: list[Any]) -> str:
    """How many images a file takes at a time, and of which size."""
    batch, _, height, width = ["any" if isinstance(side, str) else side for side in sides]
    return f"{batch} of {height} x {width}"


class Bench:
    """The images, and the table.

    Args:
        data: the cells.
        folder: for files.
    """

    def __init__(self, data: fv.ImageData, folder: Path) -> None:
        self.data, self.folder = data, folder
        self.rows: list[dict[str, Any]] = []
        self.labels = torch.tensor(data.val.labels)

    def images(self, model: torch.nn.Module) -> torch.Tensor:
        prepare = Preprocess.of(model, SIZE)
        return torch.stack([prepare(self.data.val.load(index)) for index in range(len(self.data.val))])

    def add(self, network: str, model: torch.nn.Module, exporter: str, target: str, made: Callable[[], Path]) -> None:
        """Make a file, run it on all images, and compare it with the network."""
        name, _, bits = target.partition(":")
        row = {"network": network, "exporter": exporter, "format": name, "precision": bits, "status": "ok"}
        row |= dict.fromkeys(("megabytes", "takes", "difference", "agreement", "top1", "network_top1"), "")
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                path = made()
            run, takes = RUNS[name](path)
            images = self.images(model)
            with torch.inference_mode():
                expected = model(images).softmax(1)
            outputs = [torch.from_numpy(np.array(run(image[None].numpy()), dtype=np.float32)) for image in images]
            found = torch.cat(outputs)
            found = found if exporter in GIVE_PROBABILITIES else found.softmax(1)
            parts = [path, *path.parent.glob(path.name.replace(".param", ".bin").replace(".xml", ".bin"))]
            row |= {
                "megabytes": sum(part.stat().st_size for part in dict.fromkeys(parts)) / 1e6,
                "takes": takes,
                "difference": float((found - expected).abs().max()),
                "agreement": float((found.argmax(1) == expected.argmax(1)).float().mean()),
                "top1": float((found.argmax(1) == self.labels).float().mean()),
                "network_top1": float((expected.argmax(1) == self.labels).float().mean()),
            }
        except Exception as error:  # noqa: BLE001 - whatever an exporter or a runtime raises is its row
            row["status"] = f"failed: {first_line(error)}"
        self.rows.append(row)
        print(row, flush=True)

    def ours(self, network: str, model: torch.nn.Module, targets: tuple[str, ...]) -> None:
        for target in targets:
            name, _, bits = target.partition(":")
            place = self.folder / f"{network.split()[0]}-{name}-{bits}"

            def make(place: Path = place, name: str = name, bits: str = bits) -> Path:
                made = fv.export(
                    *(model, name, place), precision=bits, data=self.data, size=SIZE, time=False, keep="auto"
                )
                return made.path

            self.add(network, model, "foveate", target, make)


def optimum_file(model: torch.nn.Module, folder: Path) -> Path:
    from optimum.exporters.onnx import onnx_export_from_model

    model.pretrained_cfg = {**model.pretrained_cfg, "architecture": "mobilenetv2_050", "input_size": (3, SIZE, SIZE)}
    onnx_export_from_model(model, folder, task="image-classification", do_validation=True, device="cpu")
    return folder / "model.onnx"


def ultralytics_file(yolo: Any, target: str, folder: Path, pictures: Path) -> Path:
    name, _, bits = target.partition(":")
    folder.mkdir(parents=True)
    more = {"quantize": 8, "data": str(pictures)} if bits == "int8" else {}
    with _inside(folder):
        made = Path(yolo.export(format=name, imgsz=SIZE, verbose=False, device="cpu", **more)).resolve()
    return next(made.glob(SUFFIXES[name])) if made.is_dir() else made


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """It writes where the process stands."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def write_pictures(data: fv.ImageData, place: Path) -> Path:
    """The cells as a folder of class folders, for ultralytics' calibration."""
    for split in (data.train, data.val):
        for index in range(len(split)):
            folder = place / split.name / data.classes[split.labels[index]]
            folder.mkdir(parents=True, exist_ok=True)
            split.load(index).save(folder / f"{index}.png")
    return place


def main() -> None:
    """Train, export with each, and write the table."""
    os.environ["YOLO_OFFLINE"] = "true"
    warnings.simplefilter("ignore")
    data = fv.open_data("elpv")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        bench = Bench(data, folder)
        torch.manual_seed(0)
        model = fv.create_model("mobilenetv2_050", num_classes=len(data.classes))
        fv.insert(model, PLAN, input_size=SIZE)
        fv.fit(model, data, RECIPE)
        model.eval()
        name = "MobileNetV2 x0.5 with attention"
        bench.ours(name, model, ("onnx:fp32",))
        if version("optimum-onnx"):
            bench.add(name, model, "optimum", "onnx:fp32", lambda: optimum_file(model, folder / "optimum"))
        else:
            print("optimum-onnx is not installed: left out")
        if version("ultralytics"):
            from ultralytics import YOLO
            from ultralytics.nn.tasks import ClassificationModel

            torch.manual_seed(0)
            yolo = YOLO("yolo11n-cls.yaml", task="classify")
            network = ClassificationModel("yolo11n-cls.yaml", nc=len(data.classes), verbose=False)
            network.args, network.task = yolo.model.args, yolo.task
            yolo.model = network
            yolo.model.names = dict(enumerate(data.classes))
            wrapped = YoloClassifier(yolo.model, data.classes)
            fv.fit(wrapped, data, RECIPE)
            wrapped.eval()
            pictures = write_pictures(data, folder / "pictures")
            bench.ours("yolo11n-cls", wrapped, FORMATS[:-1])
            for target in FORMATS:
                place_of = folder / "ultralytics" / target.replace(":", "-")
                bench.add(
                    *("yolo11n-cls", wrapped, "ultralytics", target),
                    lambda target=target, place_of=place_of: ultralytics_file(yolo, target, place_of, pictures),
                )
        else:
            print("ultralytics is not installed: left out")
    used = ("optimum-onnx", "ultralytics", "onnxruntime", "openvino", "nncf", "ncnn", "torch")
    versions = ", ".join(f"{name} {version(name)}" for name in used if version(name))
    write_csv(Path(__file__).with_suffix(".csv"), [{**row, "versions": versions} for row in bench.rows], digits=4)


if __name__ == "__main__":
    main()
