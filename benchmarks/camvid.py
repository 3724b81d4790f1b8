"""CamVid: EfficientNet-Lite0 with a head, without attention and with each of five kinds of it, for several seeds.

    python benchmarks/camvid.py DATA --output runs/camvid --page docs/reports/camvid.md
    python benchmarks/camvid.py DATA --head "upernet(width=128, aux_width=64)" --output runs/camvid_upernet

DATA is a folder with images/PART and annotations/PART. The runs are those of ``fv.compare``: the command goes on where
it was broken off, and several processes may share the folder. It prints each plan's mIoU and its difference to the
network without attention, with a 95% interval over seeds and images, and writes a page with its tables.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torch
from torch import nn

import foveate as fv

TRUNK = "tf_efficientnet_lite0"
SITE = "backbone.blocks.4.2"  # 112 channels at stride 16, what LR-ASPP pools over and UperNet reads third
PLANS = ("position", "channel", "danet", "ulsam", "se")


def recipe(epochs: int, image_size: int) -> fv.Recipe:
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
    )


class Network:
    """The network of a seed."""

    def __init__(self, classes: tuple[str, ...], head: str) -> None:
        self.classes, self.head = classes, head

    def __call__(self, seed: int) -> nn.Module:
        """Pretrained on ImageNet; its head is drawn from the seed."""
        torch.manual_seed(seed)
        return fv.create_segmenter(TRUNK, self.head, classes=self.classes, pretrained=True, output_stride=16)


def main() -> None:
    """Train what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--head", default="lraspp")
    parser.add_argument("--output", type=Path, default=Path("runs/camvid"))
    parser.add_argument("--page", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--val-part", default="val")
    parser.add_argument("--limit", type=int, help="most images of each part, for a trial")
    given = parser.parse_args()
    data = fv.open_segmentation(given.data, val_part=given.val_part, limit=given.limit)
    found = fv.compare(
        Network(data.classes, given.head),
        {plan: f"{plan} after {SITE}" for plan in PLANS},
        data,
        recipe(given.epochs, given.image_size),
        seeds=given.seeds,
        margin=2,
        output=given.output,
    )
    found.print()
    if given.page:
        shown = shlex.join("DATA" if word == given.data else word for word in sys.argv[1:])
        fv.write_page(found, given.page, f"python benchmarks/camvid.py {shown}")


if __name__ == "__main__":
    main()
