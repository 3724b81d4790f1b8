"""Grad-CAM of 100 images: foveate, pytorch-grad-cam and torchcam side by side.

    python benchmarks/explanations.py --csv benchmarks/explanations.csv

It needs grad-cam, torchcam and captum beside foveate. All get the same images, layer and classes, on the same network
in eval mode, batch by batch: each batch goes through all of them, in changing order, in one process, so that what
slows the machine slows them alike. What counts is the median over the batches of the ratio of their times. Each gives
what its user gets: pytorch-grad-cam enlarges and rescales its maps, torchcam rescales them; ours keeps the grid,
with predictions and pictures beside it. Before any timing the maps themselves are compared, and with captum's.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import timm
import torch
from captum.attr import LayerGradCam
from pytorch_grad_cam import GradCAM as TheirGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch.nn import functional as F
from torchcam.methods import GradCAM as TorchcamGradCAM

import foveate as fv

LAYERS = {"resnet18": "layer4", "mobilenetv2_100": "bn2"}


def ours(model, layer, images, classes, size):
    # A layer's name, as the others take the layer itself.
    return fv.explain(model, images, "gradcam", layer=layer, target=classes, batch_size=size).maps[0].values


def grad_cam(model, layer, images, classes, size):
    found = []
    with TheirGradCAM(model=model, target_layers=[model.get_submodule(layer)]) as cam:
        cam.batch_size = size
        for start in range(0, len(images), size):
            targets = [ClassifierOutputTarget(index) for index in classes[start : start + size]]
            found.append(torch.from_numpy(cam(input_tensor=images[start : start + size], targets=targets)))
    return torch.cat(found)


def torchcam(model, layer, images, classes, size):
    found = []
    with TorchcamGradCAM(model, target_layer=layer) as extractor:
        for start in range(0, len(images), size):
            scores = model(images[start : start + size])
            found.append(extractor(classes[start : start + size], scores)[0].detach())
    return torch.cat(found)


def captum(model, layer, images, classes, size):
    found = []
    extractor = LayerGradCam(model, model.get_submodule(layer))
    for start in range(0, len(images), size):
        part = torch.tensor(classes[start : start + size])
        found.append(extractor.attribute(images[start : start + size], part, relu_attributions=True)[:, 0].detach())
    return torch.cat(found)


def rescaled(maps, side):
    """0..1 within each image, as large as the image: what all of them show in the end."""
    maps = maps - maps.amin(dim=(1, 2), keepdim=True)
    maps = maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    return F.interpolate(maps[:, None].float(), (side, side), mode="bilinear", align_corners=False)[:, 0]


def agreement(model, layer, images, classes):
    """The largest difference of our map to captum's, and the correlations with the others' as they are drawn."""
    mine = ours(model, layer, images, classes, len(images))
    exact = captum(model, layer, images, classes, len(images))
    row = {"captum_largest_difference": float((mine - exact).abs().max() / exact.abs().max())}
    for name, other in (("grad_cam", grad_cam), ("torchcam", torchcam)):
        theirs = other(model, layer, images, classes, len(images))
        pair = [rescaled(maps, images.shape[-1]).flatten(1) for maps in (mine, theirs)]
        found = [np.corrcoef(a, b)[0, 1] for a, b in zip(*pair, strict=True) if a.any() and b.any()]  # not all zero
        row[f"{name}_correlation"] = float(statistics.fmean(found))
    return row


def seconds(call):
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(name, size, count):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    layer = LAYERS[name]
    images = torch.randn(count, 3, 224, 224)
    classes = torch.randint(0, 1000, (count,)).tolist()
    libraries = {"ours": ours, "grad_cam": grad_cam, "torchcam": torchcam}
    row = {"network": name, "batch": size, "images": count}
    row |= agreement(model, layer, images[:4], classes[:4])
    for call in libraries.values():  # warm
        call(model, layer, images[:size], classes[:size], size)
    times = {key: [] for key in libraries}
    for turn, start in enumerate(range(0, count - count % size, size)):
        part, right = images[start : start + size], classes[start : start + size]
        keys = list(libraries)
        for key in keys[turn % 3 :] + keys[: turn % 3]:
            times[key].append(seconds(lambda call=libraries[key], p=part, r=right: call(model, layer, p, r, size)))
    row["images"] = count - count % size
    row |= {f"{key}_seconds": sum(found) for key, found in times.items()}
    for key in ("grad_cam", "torchcam"):
        row[f"ratio_to_{key}"] = statistics.median(a / b for a, b in zip(times["ours"], times[key], strict=True))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--networks", nargs="+", default=list(LAYERS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    arguments = parser.parse_args()
    versions = {key: version(key) for key in ("torch", "timm", "grad-cam", "torchcam", "captum")}
    machine = {"device": "cpu", "machine": platform.machine(), "threads": torch.get_num_threads(), **versions}
    rows = []
    for name in arguments.networks:
        for size in arguments.batches:
            row = measure(name, size, arguments.images)
            rows.append({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} | machine)
            print(rows[-1], flush=True)
    if arguments.csv:
        with arguments.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
