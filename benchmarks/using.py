"""What using a trained network takes beside what it cannot do without: decoding its images and computing its scores.

    python benchmarks/using.py --images 200 > benchmarks/using.csv

``predict``, ``evaluate`` and ``explain`` ("gradcam") look at the same JPEG files of 256 px, made for it, with the same
network, in turns with their bound: each image decoded, resized and normalised once, in this thread, then the network's
forward pass on batches of the same size; for ``explain`` the gradient of the last feature map, too. Both are seconds of
the processor, of all threads, which other programs on a busy machine disturb little, and of the clock. A ratio is taken
within its round; the table has the median. ``report`` writes the page of a comparison of 20 plans with one seed, each
trained for one epoch on 24 images of 32 px and judged on 48; its time stands alone. Its row was measured again, with
``--images 48 --rounds 2``, on which it does not depend, when the page was made quicker: 20.82 s before.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import foveate as fv
from foveate.explanations.gradients import layer_gradients
from foveate.explanations.layers import find_layer
from foveate.images import Preprocess, open_image

COLUMNS = ("what", "images", "processor_seconds", "seconds", "processor_over_bound", "over_bound", "rounds")
BATCH = {"predict": 32, "evaluate": 32, "explain": 8}


def make_images(folder: Path, count: int, side: int = 256) -> list[Path]:
    """A folder of blurred noise, val/CLASS, and some of it again in train/CLASS."""
    draw, made = np.random.default_rng(0), []
    for number in range(count):
        rough = Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8))
        path = folder / "val" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        rough.resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)
        made.append(path)
    for number, path in enumerate(made[:24]):
        (folder / "train" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "train" / "ab"[number % 2] / path.name).write_bytes(path.read_bytes())
    return made


def bound(model: nn.Module, files: list[Path], what: str, size: int) -> Callable[[], object]:
    preprocess = Preprocess.of(model, size)
    model.eval()

    def prepared(some: list[Path]) -> Tensor:
        return torch.stack([preprocess(open_image(path)) for path in some])

    def run() -> None:
        for at in range(0, len(files), BATCH[what]):
            images = prepared(files[at : at + BATCH[what]])
            if what == "explain":
                layer_gradients(model, images, find_layer(model, images, None))
            else:
                with torch.inference_mode():
                    model(images)

    return run


def measured(call: Callable[[], object]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--network", default="mobilenetv2_050")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--plans", type=int, default=20, help="of the report; 0 leaves it out")
    options = parser.parse_args()
    writer = csv.writer(sys.stdout)
    writer.writerow([*COLUMNS, "network", "side", "torch", "threads", "machine"])
    about = [options.network, options.side, torch.__version__, torch.get_num_threads(), platform.machine()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = make_images(folder / "images", options.images)
        model = timm.create_model(options.network, num_classes=2)
        data = fv.open_data(folder / "images")
        side = options.side
        calls: dict[str, Callable[[], object]] = {
            "predict": lambda: list(fv.predict(model, folder / "images" / "val", image_size=side, progress=False)),
            "evaluate": lambda: fv.evaluate(model, data.val, image_size=side),
            "explain": lambda: fv.explain(model, folder / "images" / "val", "gradcam", image_size=side),
        }
        for what, call in calls.items():
            base = bound(model, sorted(files), what, side)
            base(), call()
            pairs = [(measured(call), measured(base)) for _ in range(options.rounds)]
            middle = [statistics.median(ours[k] for ours, _ in pairs) for k in (0, 1)]
            ratios = [statistics.median(ours[k] / least[k] for ours, least in pairs) for k in (0, 1)]
            numbers = [*(f"{value:.2f}" for value in (*middle, *ratios)), options.rounds]
            writer.writerow([what, len(files), *numbers, *about])
            sys.stdout.flush()
        if options.plans:
            sites = [site.name for site in fv.sites(model, input_size=32) if site.name.count(".") == 2]
            plans = [f"{kind} after {site}" for kind in ("se", "cbam", "ulsam(groups=1)") for site in sites]
            recipe = fv.Recipe(epochs=1, image_size=32, batch_size=12)
            make_images(folder / "few", 48)
            few = fv.open_data(folder / "few")
            found = fv.compare(
                options.network, plans[: options.plans], few, recipe, seeds=1, output=folder / "runs", progress=False
            )
            cpu, wall = measured(lambda: fv.report(found, few))
            writer.writerow(["report", options.plans, f"{cpu:.2f}", f"{wall:.2f}", "", "", 1, *about])


if __name__ == "__main__":
    main()
