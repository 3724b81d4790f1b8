"""CamVid: EfficientNet-Lite0 with LR-ASPP, without attention and with each of five kinds of it, for several seeds.

    python benchmarks/camvid.py DATA --output runs/camvid

DATA is a folder with images/PART and annotations/PART. Each run's counts of pixels are kept in the output folder, so
that the command goes on where it was broken off; at the end it writes camvid.csv, a row for each run, and
camvid_classes.csv, the mean IoU of each class, and prints each plan's mean and its difference to the network without
attention, with a 95% interval over seeds and images.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import mean

import torch
from safetensors.torch import load_file, save_file

import foveate as fv
from foveate.io import write_csv
from foveate.training.tasks.segmentation_metrics import class_ious

TRUNK, HEAD = "tf_efficientnet_lite0", "lraspp"
SITE = "backbone.blocks.4.2"  # 112 channels at stride 16, what LR-ASPP pools over
PLANS = ("none", "position", "channel", "danet", "ulsam", "se")


def recipe(seed: int, epochs: int, image_size: int) -> fv.Recipe:
    """Of every run: what runs before the attention's stage is frozen."""
    return fv.Recipe(
        epochs=epochs,
        learning_rate=3e-3,
        warmup_epochs=0.5,
        augmentation="flip",
        image_size=image_size,
        batch_size=8,
        freeze="backbone.blocks.2.1",
        evaluate_every=epochs or 1,
        gradient_clip=5.0,
        seed=seed,
    )


def train(data: fv.SegmentationData, plan: str, seed: int, epochs: int, image_size: int) -> dict[str, torch.Tensor]:
    """One run: the counts of its pixels, (N, K, 3), and its seconds and images per second."""
    torch.manual_seed(seed)
    model = fv.create_segmenter(TRUNK, HEAD, classes=data.classes, pretrained=True, output_stride=16)
    if plan != "none":
        fv.insert(model, f"{plan} after {SITE}", seed=seed, input_size=image_size)
    began = time.perf_counter()
    done = fv.fit(model, data, recipe(seed, epochs, image_size), progress=False)
    numbers = [time.perf_counter() - began, done.images_per_second, float(fv.cost(model, image_size).params)]
    return {"counts": done.evaluation.counts, "numbers": torch.tensor(numbers, dtype=torch.float64)}


def main() -> None:
    """Train what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--output", type=Path, default=Path("runs/camvid"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--val-part", default="val")
    parser.add_argument("--limit", type=int, help="most images of each part, for a trial")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    data = fv.open_segmentation(given.data, val_part=given.val_part, limit=given.limit)
    runs, found = [], {}
    for seed in range(given.seeds):
        for plan in PLANS:
            file = given.output / f"{plan}-seed{seed}.safetensors"
            if not file.exists():
                save_file(train(data, plan, seed, given.epochs, given.image_size), file)
                print(file.name, flush=True)
            found[plan, seed] = load_file(file)
    for (plan, seed), kept in found.items():
        total = kept["counts"].sum(0)
        seconds, speed, params = kept["numbers"].tolist()
        runs.append(
            {
                "plan": plan,
                "seed": seed,
                "params": int(params),
                "miou": float(100 * class_ious(total).nanmean()),
                "pixel_accuracy": float(100 * total[:, 0].sum() / total[:, 2].sum()),
                "seconds": seconds,
                "images_per_second": speed,
            }
        )
    write_csv(given.output / "camvid.csv", runs, digits=4)
    ious = {p: torch.stack([class_ious(found[p, s]["counts"].sum(0)) for s in range(given.seeds)]) for p in PLANS}
    classes = [
        {"class": name} | {plan: float(100 * ious[plan][:, n].mean()) for plan in PLANS}
        for n, name in enumerate(data.classes)
    ]
    write_csv(given.output / "camvid_classes.csv", classes, digits=4)
    stacked = {plan: torch.stack([found[plan, seed]["counts"] for seed in range(given.seeds)]) for plan in PLANS}
    differences = fv.miou_differences(stacked, "none")
    for plan in PLANS:
        score = mean(row["miou"] for row in runs if row["plan"] == plan)
        print(f"{plan:10} mIoU {score:.2f}  difference {differences.get(plan, 'of the baseline')}")


if __name__ == "__main__":
    main()
