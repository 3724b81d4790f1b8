"""What 8 bits leave of attention: a network that needs its ULSAM, and one that does not, in ONNX.

    python benchmarks/export_int8.py DATA [--models FOLDER] [--output benchmarks/export_int8.csv]    # about 5 minutes

DATA is what ``foveate train`` takes; its first 20 classes are used. EfficientNet-Lite0 with its ImageNet weights
(extra ``demo``) is trained at 96 pixels: with ULSAM after nine blocks, without gates, and with ULSAM after three blocks
behind gates that start at 0. Each is quantized by onnxruntime with ``keep`` "none", "auto" and "attention", calibrated
on 100 training images and looked at on 200 others. A row for each attention module:

top1_fp32, top1: of the network and of the file. agreement: share of the images for which both predict the same class.
agreement_without: the same for the network without any attention. correlation, error: of what the module adds where
the next layer reads it, with what it adds in the network. milliseconds_ratio: of one image, relative to the 32 bit
ONNX file, in turns.
"""

import argparse
import csv
import platform
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import foveate as fv
from foveate.accounting.profiling.timer import Quantiles, interleaved
from foveate.exporters.formats.onnx import to_onnx
from foveate.exporters.options import ExportOptions
from foveate.exporters.program import prepare
from foveate.exporters.quantization.keep import predictions, quantize_keeping
from foveate.exporters.quantization.static_onnx import static_quantizer
from foveate.exporters.sample_images import open_samples
from foveate.images import Preprocess

MODEL, SIZE, CLASSES = "tf_efficientnet_lite0", 96, 20
PLANS = {
    "needs it": (
        "ulsam(groups=4) after blocks.2.1, blocks.3.1, blocks.3.2, blocks.4.*, blocks.5.1, blocks.5.2, blocks.5.3",
        "mechanism",
    ),
    "does not": ("ulsam(groups=4) after blocks.1.1, blocks.2.1, blocks.4.2", "identity"),
}
RECIPE = fv.Recipe(epochs=10, learning_rate=1e-3, image_size=SIZE, batch_size=20)


def few_classes(data, folder):
    """The first classes as a folder of images."""
    opened = fv.open_data(data)
    for part in ("train", "val"):
        split = getattr(opened, part)
        for index in range(len(split)):
            if split.label(index) < CLASSES:
                place = folder / part / opened.classes[split.label(index)].replace(" ", "_")
                place.mkdir(parents=True, exist_ok=True)
                split.load(index).save(place / f"{index}.png")
    return folder


def trained(name, data, models):
    """The network with a plan, trained; or as it was left in a folder."""
    place = models / name.replace(" ", "_")
    if not place.exists():
        torch.manual_seed(0)
        plan, start = PLANS[name]
        model = fv.create_model(MODEL, pretrained=True)
        fv.insert(model, plan, start=start, input_size=SIZE)
        fv.fit(model, data, RECIPE, progress=False)
        fv.save(model, place)
    return fv.load(place).eval()


def session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def times(sessions, image):
    """Medians of one image, in turns."""
    runs = [lambda one=one: one.run(["logits"], {"images": image}) for one in sessions]
    rounds = interleaved(runs, 60, warmup=10, seconds=20.0)
    return [Quantiles.of([each[n] for each in rounds]).median for n in range(len(runs))]


def rows(name, model, data):
    options = ExportOptions("int8", size=SIZE)
    preprocess = Preprocess.of(model)
    preprocess = Preprocess(
        (SIZE, SIZE), preprocess.mean, preprocess.std, preprocess.interpolation, preprocess.crop_pct
    )
    calibration = open_samples(data, "train", 100, preprocess, options)
    samples = open_samples(data, "val", 200, preprocess, options)
    program = prepare(model, options, format_name="onnx", calibration=calibration.normalised.split(1))
    program.images = samples.given
    graph = to_onnx(program)
    expected = predictions(program)
    files, found = {"fp32": graph}, {}
    for keep in ("none", "auto", "attention"):
        object.__setattr__(program.options, "keep", keep)
        program.notes.clear()
        files[keep] = quantize_keeping(program, static_quantizer(graph, program))
        found[keep] = program.contributions, program.agreement_without, " ".join(program.notes)
        print(f"{name}, keep={keep}: {found[keep][2]}", flush=True)
    seconds = dict(zip(files, times([session(file) for file in files.values()], samples.given[:1]), strict=True))
    for keep, (contributions, without, _) in found.items():
        logits = session(files[keep]).run(["logits"], {"images": samples.given})[0]
        classes = torch.from_numpy(np.asarray(logits)).argmax(1)
        for one in contributions:
            yield {
                "network": name,
                "keep": keep,
                "site": one.site,
                "top1_fp32": f"{float((expected == samples.labels).float().mean()):.3f}",
                "top1": f"{float((classes == samples.labels).float().mean()):.3f}",
                "agreement": f"{float((classes == expected).float().mean()):.3f}",
                "agreement_without": f"{without:.3f}",
                "correlation": "" if one.correlation is None else f"{one.correlation:.3f}",
                "error": "" if one.error is None else f"{one.error:.3f}",
                "kept": "32 bits" if one.remedy else "8 bits",
                "megabytes": f"{files[keep].ByteSize() / 1e6:.2f}",
                "milliseconds_ratio": f"{seconds[keep] / seconds['fp32']:.2f}",
                "versions": f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {platform.machine()}",
            }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = few_classes(asked.data, Path(folder) / "data")
        models = asked.models or Path(folder) / "models"
        models.mkdir(parents=True, exist_ok=True)
        table = [row for name in PLANS for row in rows(name, trained(name, data, models), data)]
    with asked.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    for row in table:
        print(*(f"{value}" for key, value in row.items() if key != "versions"), sep="  ")


if __name__ == "__main__":
    main()
