"""UperNet on EfficientNet-Lite0, trained by ``fv.fit``, and segmentation_models_pytorch's by a plain loop.

    pip install segmentation-models-pytorch
    python benchmarks/segmentation_peers.py DATA --output runs/peers --csv peers.csv

DATA is a folder with images/PART and annotations/PART. Both networks begin with the same ImageNet weights, have 128
channels in the decoder and are trained whole, with AdamW, the same learning rate, warm-up, cosine, batches, flips and
epochs. Both are judged by ``fv.evaluate``. Then both train an epoch each in turn, for the time that an image takes. The
peer's loop is what its examples show: a torch.utils.data.Dataset that decodes, resizes and flips, cross-entropy.
Ours is told to be the peer's network (layer norms of the four maps, no dropout, no auxiliary head): with the same
weights both give the same scores. A run that is finished is kept in OUTPUT.

On CamVid at 240 x 180, ``--epochs 6 --seeds 6``, the mIoU of ``fv.fit`` was 55.0, 52.3, 51.9, 52.3, 50.8, 53.3 (mean
52.6) and the peer's 55.0, 54.1, 54.1, 52.3, 52.4, 52.1 (53.3): their difference of 0.7 is less than its standard error
of 0.8. Images a second, ours over the peer's: 1.06, beside one other process on two cores. With dropout, auxiliary head
and no layer norms, UperNet's own recipe, ours was 53.0, 50.5, 51.6, and before the head's weights began as they do now
45.2, 47.4, 46.7.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transform

import foveate as fv
from foveate.data.segmentation.label_map import IGNORE
from foveate.io import write_atomically, write_csv
from foveate.whole_images import WholeImage, scaled_size

TRUNK, WIDTH = "tf_efficientnet_lite0", 128
BATCH, RATE, WARMUP, DECAY, CLIP = 8, 3e-3, 0.5, 0.01, 5.0
ROUNDS = 3  # of timing, an epoch of each loop in turn


def recipe(epochs: int, size: int, seed: int = 0) -> fv.Recipe:
    """Of our runs."""
    return fv.Recipe(
        epochs=epochs,
        optimiser="adamw",
        learning_rate=RATE,
        weight_decay=DECAY,
        warmup_epochs=WARMUP,
        augmentation="flip",
        image_size=size,
        batch_size=BATCH,
        evaluate_every=epochs,
        gradient_clip=CLIP,
        seed=seed,
    )


def ours(classes: tuple[str, ...], seed: int) -> fv.dense.Segmenter:
    """The network that ``fv.fit`` trains."""
    torch.manual_seed(seed)
    head = f"upernet(width={WIDTH}, aux_width=0, dropout=0.0, map_norm=True)"
    return fv.create_segmenter(TRUNK, head, classes=classes, pretrained=True)


def peer(classes: tuple[str, ...], seed: int) -> nn.Module:
    """The peer's, with the same ImageNet weights."""
    trunk: Any = ours(classes, seed).backbone
    model: nn.Module = smp.UPerNet(f"tu-{TRUNK}", encoder_weights=None, decoder_channels=WIDTH, classes=len(classes))
    encoder: Any = model.encoder
    encoder.model.load_state_dict(trunk.state_dict())
    model.pretrained_cfg = trunk.pretrained_cfg  # the mean and standard deviation of its pixels
    return model


class Examples(Dataset[tuple[Tensor, Tensor]]):
    """Training images and label maps: resized, flipped half of the time, normalised."""

    def __init__(self, data: fv.SegmentationData, model: nn.Module, size: int) -> None:
        self.split, self.size = data.train, size
        whole = WholeImage.of(model, size).preprocess
        self.interpolation = v2.InterpolationMode(whole.interpolation)
        self.flip = v2.RandomHorizontalFlip()
        self.after = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(whole.mean, whole.std)])

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, labels = self.split[index]
        size = list(scaled_size((image.height, image.width), self.size))
        pixels = transform.pil_to_tensor(transform.resize(image, size, self.interpolation))
        mask = transform.resize(tv_tensors.Mask(transform.pil_to_tensor(labels)), size)
        pixels, mask = self.flip(tv_tensors.Image(pixels), mask)
        return self.after(pixels).as_subclass(Tensor), mask.as_subclass(Tensor)[0].long()


class Loop:
    """A plain training loop.

    Args:
        data: images with label maps.
        model: is trained.
        epochs: of the cosine.
        size: shorter side of the images.
    """

    def __init__(self, data: fv.SegmentationData, model: nn.Module, epochs: int, size: int) -> None:
        self.model = model.to(memory_format=torch.channels_last)
        examples = Examples(data, model, size)
        self.loader = DataLoader(examples, BATCH, shuffle=True)
        self.count, steps = len(examples), len(self.loader)
        self.optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
        warm = max(1, round(WARMUP * steps))
        self.schedule = torch.optim.lr_scheduler.SequentialLR(
            self.optimiser,
            [
                torch.optim.lr_scheduler.LinearLR(self.optimiser, 1 / warm, total_iters=warm),
                torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, max(1, epochs * steps - warm)),
            ],
            [warm],
        )
        self.loss = nn.CrossEntropyLoss(ignore_index=IGNORE)

    def train_epoch(self) -> float:
        """An epoch; its seconds."""
        self.model.train()
        began = time.perf_counter()
        for images, labels in self.loader:
            loss = self.loss(self.model(images.contiguous(memory_format=torch.channels_last)), labels)
            self.optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimiser.step()
            self.schedule.step()
        return time.perf_counter() - began


def kept(file: Path, make: Callable[[], object]) -> Any:  # what JSON holds
    """What a file holds; it is made where it is missing."""
    if not file.is_file():
        write_atomically(file, json.dumps(make()).encode())
    return json.loads(file.read_text())


def main() -> None:
    """Train what is missing, time, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--output", type=Path, default=Path("runs/peers"))
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--limit", type=int, help="most images of each part, for a trial")
    given = parser.parse_args()
    data, size = fv.open_segmentation(given.data, limit=given.limit), given.image_size
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    given.output.mkdir(parents=True, exist_ok=True)

    def trained_by_fit(seed: int) -> list[float]:
        done = fv.fit(ours(data.classes, seed), data, recipe(given.epochs, size, seed), progress=False)
        return [100 * done.evaluation.miou, 100 * done.evaluation.pixel_accuracy]

    def trained_by_the_loop(seed: int) -> list[float]:
        model = peer(data.classes, seed)
        loop = Loop(data, model, given.epochs, size)
        for _ in range(given.epochs):
            loop.train_epoch()
        found = fv.evaluate(model, data, image_size=size)
        return [100 * found.miou, 100 * found.pixel_accuracy]

    def times() -> list[tuple[float, float]]:
        loop, found = Loop(data, peer(data.classes, 0), 1, size), []
        for _ in range(ROUNDS):
            done = fv.fit(ours(data.classes, 0), data, recipe(1, size), progress=False)
            found.append((done.images_per_second, loop.count / loop.train_epoch()))
        return found

    name = f"{given.epochs}_{size}_{data.fingerprint[:12]}"
    makers = {"foveate": trained_by_fit, f"segmentation_models_pytorch {smp.__version__}": trained_by_the_loop}
    scores = {
        loop: [
            kept(given.output / f"{loop.split(' ')[0]}_{name}_{seed}.json", partial(make, seed))
            for seed in range(given.seeds)
        ]
        for loop, make in makers.items()
    }
    timed = kept(given.output / f"times_{name}.json", times)
    rows = []
    for (loop, found), network, speeds in zip(scores.items(), (ours, peer), zip(*timed, strict=True), strict=True):
        parameters = sum(one.numel() for one in network(data.classes, 0).parameters())
        rows.append(
            {
                "loop": loop,
                "parameters": parameters,
                "miou": f"{statistics.mean(one[0] for one in found):.1f}",
                "miou each seed": " ".join(f"{one[0]:.1f}" for one in found),
                "pixel accuracy": f"{statistics.mean(one[1] for one in found):.1f}",
                "images a second": f"{statistics.median(speeds):.1f}",
            }
        )
        print("  ".join(f"{key}: {value}" for key, value in rows[-1].items()))
    ratio = statistics.median(one / other for one, other in timed)
    print(f"images a second, ours over the peer's (median of {len(timed)} epochs of each, in turn): {ratio:.2f}")
    if given.csv:
        write_csv(given.csv, rows)


if __name__ == "__main__":
    main()
