"""BCCD: SSDLite on EfficientNet-Lite0, without attention and with two kinds of it, and torchvision's own training loop.

    python benchmarks/bccd.py DATA --output runs/bccd --page docs/reports/bccd.md

DATA is a folder in Pascal VOC's layout: photographs of blood with boxes of cells. The runs are those of
``fv.compare``: the command goes on where it was broken off, and several processes may share the folder. Beside them the
network without attention is trained for as long, with the same seeds and images, by the loop of torchvision's
references/detection/train.py (SGD, linear warm-up, cosine decay, the learning rate of its SSDLite for this batch); a
seed that is finished is kept in OUTPUT/reference. At last both loops train an epoch each in turn, for the time that an
image takes. It prints each plan's mAP and its difference to the network without attention, with a 95% interval over
seeds and images, and writes a page with its tables.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

import foveate as fv
from foveate.io import markdown_table, write_atomically
from foveate.whole_images import WholeImage, detection_size

TRUNK, HEAD = "tf_efficientnet_lite0", "ssdlite(width=0.5)"
SITE = "backbone.blocks.4.2"  # 112 channels at stride 16, the finer map that the head reads
PLANS = ("ulsam(groups=4)", "se")
BATCH = 8
# torchvision's README for SSDLite: 0.15 for 8 x 24 images, weight decay 4e-5; its train.py: momentum 0.9.
REFERENCE_RATE, REFERENCE_DECAY = 0.15 * BATCH / 192, 4e-5
ROUNDS = 3  # of timing, an epoch of each loop in turn

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


def recipe(epochs: int, image_size: int) -> fv.Recipe:
    """Of every run."""
    return fv.Recipe(
        epochs=epochs,
        optimiser="adamw",
        learning_rate=1e-3,
        warmup_epochs=1,
        augmentation="flip",
        image_size=image_size,
        batch_size=BATCH,
        evaluate_every=epochs or 1,
        gradient_clip=5.0,
    )


class Network:
    """The network of a seed."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes

    def __call__(self, seed: int) -> nn.Module:
        """Pretrained on ImageNet; its head is drawn from the seed."""
        torch.manual_seed(seed)
        return fv.create_detector(TRUNK, HEAD, classes=self.classes, pretrained=True)


class Examples(torch.utils.data.Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Training images as torchvision's references prepare them: flipped half of the time, resized, normalised."""

    def __init__(self, data: fv.DetectionData, model: nn.Module, image_size: int) -> None:
        self.split, own = data.train, WholeImage.of(model, image_size)
        self.image_size = image_size
        self.after = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(own.mean, own.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, objects = self.split[index]
        size = (image.height, image.width)
        boxes = tv_tensors.BoundingBoxes(objects.boxes[~objects.ignored], format="XYXY", canvas_size=size)
        labels = torch.from_numpy(objects.labels[~objects.ignored])
        resize = v2.Resize(list(detection_size(size, self.image_size)))
        pixels, boxes = self.after(*resize(image, boxes))
        return pixels, {"boxes": boxes.as_subclass(Tensor), "labels": labels}


class Reference:
    """torchvision's references/detection, for one network.

    Args:
        data: images with boxes.
        model: is trained.
        epochs: of the learning rate's decay.
        image_size: shorter side of the images.
        seed: of the order and the flips.
    """

    def __init__(self, data: fv.DetectionData, model: nn.Module, epochs: int, image_size: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.model, self.count, self.epoch = model, len(data.train), 0
        self.loader: DataLoader[Batch] = DataLoader(
            Examples(data, model, image_size),  # type: ignore[arg-type]  # the loader gives what collate makes of it
            BATCH,
            shuffle=True,
            drop_last=False,
            collate_fn=lambda items: tuple(map(list, zip(*items, strict=True))),
        )
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.SGD(parameters, REFERENCE_RATE, momentum=0.9, weight_decay=REFERENCE_DECAY)
        self.decay = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, max(epochs, 1))

    def train_epoch(self) -> float:
        """An epoch; its seconds."""
        self.model.train()
        warm_up = None
        if self.epoch == 0:
            steps = min(1000, len(self.loader) - 1)
            warm_up = torch.optim.lr_scheduler.LinearLR(self.optimiser, 1 / 1000, total_iters=max(steps, 1))
        began = time.perf_counter()
        for images, targets in self.loader:
            losses = self.model(images, targets)
            loss = torch.stack(list(losses.values())).sum()
            if not bool(loss.isfinite()):
                raise SystemExit(f"the reference's loss is {float(loss)} in epoch {self.epoch}")
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            if warm_up is not None:
                warm_up.step()
        seconds = time.perf_counter() - began
        self.decay.step()
        self.epoch += 1
        return seconds


def references(data: fv.DetectionData, given: argparse.Namespace) -> Iterator[dict[str, float]]:
    """The result of torchvision's loop with each seed, read or made."""
    folder = given.output / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(given.seeds):
        file = folder / f"{given.epochs}_{given.image_size}_{data.fingerprint[:12]}_{seed}.json"
        if not file.is_file():
            model = Network(data.classes)(seed)
            loop = Reference(data, model, given.epochs, given.image_size, seed)
            for epoch in range(given.epochs):
                print(f"reference, seed {seed}, epoch {epoch + 1}: {loop.train_epoch():.0f} s", file=sys.stderr)
            found = fv.evaluate(model, data, image_size=given.image_size)
            write_atomically(file, json.dumps({"map": found.map, "map50": found.map50}).encode())
        yield json.loads(file.read_text())


def times(data: fv.DetectionData, given: argparse.Namespace) -> list[tuple[float, float]]:
    """Milliseconds of an image in training, of ``fv.fit`` and of torchvision's loop, an epoch each in turn."""
    file = given.output / "reference" / f"times_{given.image_size}_{data.fingerprint[:12]}.json"
    if not file.is_file():
        own = recipe(1, given.image_size)
        loop = Reference(data, Network(data.classes)(0), 1, given.image_size, 0)
        found = []
        for _ in range(ROUNDS):
            done = fv.fit(Network(data.classes)(0), data, own, progress=False)
            found.append((1000 / done.images_per_second, 1000 * loop.train_epoch() / loop.count))
        write_atomically(file, json.dumps(found).encode())
    return [(ours, theirs) for ours, theirs in json.loads(file.read_text())]


def beside(found: fv.Comparison, reference: list[dict[str, float]], timed: list[tuple[float, float]]) -> str:
    """The section of the page about torchvision's loop."""
    ours = found.rows[0]
    scores = {"fv.fit": (ours.score, ours.second)}
    scores["torchvision's loop"] = tuple(tuple(100 * one[name] for one in reference) for name in ("map", "map50"))
    rows = [
        [name, ", ".join(f"{value:.1f}" for value in whole), ", ".join(f"{value:.1f}" for value in half), f"{ms:.1f}"]
        for (name, (whole, half)), ms in zip(
            scores.items(), (statistics.median(of) for of in zip(*timed, strict=True)), strict=True
        )
    ]
    ratio = statistics.median(one / other for one, other in timed)
    table = "\n".join(
        markdown_table(["loop", "mAP, each seed", "mAP50, each seed", "ms an image"], rows, right=(1, 2, 3))
    )
    rate = found.recipe.learning_rate
    text = (
        "The network without attention, trained for as many epochs by both. `fv.fit` takes AdamW with a learning rate "
        f"of {rate:g}; torchvision's references/detection SGD with {REFERENCE_RATE:g}. A step of `fv.fit` takes "
        f"{ratio:.2f} times as long (the median of {len(timed)} epochs of each, in turn, decoding included)."
    )
    return f"\n## Beside torchvision's training loop\n\n{table}\n\n{text}\n"


def main() -> None:
    """Train what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--output", type=Path, default=Path("runs/bccd"))
    parser.add_argument("--page", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--limit", type=int, help="most images of each part, for a trial")
    given = parser.parse_args()
    data = fv.open_detection(given.data, limit=given.limit, on_bad_image="skip")
    found = fv.compare(
        Network(data.classes),
        {plan: f"{plan} after {SITE}" for plan in PLANS},
        data,
        recipe(given.epochs, given.image_size),
        seeds=given.seeds,
        margin=2,
        output=given.output,
    )
    found.print()
    section = beside(found, list(references(data, given)), times(data, given))
    print(section)
    if given.page:
        shown = [word if word != given.data else "DATA" for word in sys.argv[1:]]
        *_, page = fv.write_page(found, given.page, " ".join(["python benchmarks/bccd.py", *shown]))
        write_atomically(page, (page.read_text("utf-8") + section).encode())


if __name__ == "__main__":
    main()
