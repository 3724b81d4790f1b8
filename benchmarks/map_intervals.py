"""How often the 95% intervals of mAP differences hold the truth, and how often two equal plans are told apart.

    python benchmarks/map_intervals.py --output benchmarks/map_intervals.csv
    python benchmarks/map_intervals.py --one-seed --repetitions 200 --output benchmarks/map_intervals_one_seed.csv

Images are made up: some objects of three classes are in each, and some images are hard. A network finds an object with
a probability and overlaps it by a share that depend on its skill for the class, which differs from seed to seed; what
it finds where nothing is has lower scores. The truth of a plan is the mean of 40 seeds on 1,500 images each.

With --one-seed the networks are fixed, as in an audit, and the interval is over the images alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from foveate.io import write_csv
from foveate.studies.comparison.differences.mean_average_precision import image_parts
from foveate.studies.comparison.miou import paired_values
from foveate.studies.comparison.statistics import difference_of
from foveate.training.tasks.average_precision import THRESHOLDS, Matches, average_precision

CLASSES = 3
OBJECTS = (2.0, 0.8, 0.4)  # of each class in an image, on average


def images(random, count):
    """Objects of each class (N, K) and how hard each image is (N,)."""
    return random.poisson(OBJECTS, (count, CLASSES)), random.normal(0, 0.5, count)


def run(random, present, hard, gain, seed_sd):
    """What one seed of a plan finds."""
    skill = gain + random.normal(0, seed_sd, CLASSES)
    count = len(present)
    image, label = np.divmod(np.repeat(np.arange(count * CLASSES), present.ravel()), CLASSES)
    odds = 1.0 + skill[label] + hard[image] + random.normal(0, 0.8, len(image))
    overlap = 1 / (1 + np.exp(-odds))
    kept = random.random(len(image)) < 1 / (1 + np.exp(-odds - 0.5))
    wrong = np.repeat(np.arange(count), random.poisson(1.5, count))
    scores = np.concatenate([overlap[kept] + random.normal(0, 0.2, kept.sum()), random.normal(0.35, 0.2, len(wrong))])
    right = np.concatenate([overlap[kept], np.zeros(len(wrong))])[:, None] >= THRESHOLDS.numpy()
    labels = np.concatenate([label[kept], random.integers(0, CLASSES, len(wrong))])
    tensors = map(torch.from_numpy, (np.concatenate([image[kept], wrong]), labels, scores, right))
    return Matches(*tensors, torch.ones(right.shape, dtype=torch.bool), torch.from_numpy(present))


def truth(gain, seed_sd):
    """The mAP of a plan."""
    random = np.random.default_rng(1)
    values = [run(random, *images(random, 1500), gain, seed_sd) for _ in range(40)]
    return 100 * float(np.mean([float(average_precision(of, torch.ones(1, 1500)).nanmean()) for of in values]))


def main():
    """Simulate and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=400)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one-seed", action="store_true")
    given = parser.parse_args()
    rows = []
    for seed_sd in (0.0,) if given.one_seed else (0.05, 0.2):
        level = truth(0.0, seed_sd)
        for gain in (0.0, 0.2):
            true = truth(gain, seed_sd) - level
            for seeds, count in ((1, 20), (1, 80), (1, 200)) if given.one_seed else ((2, 80), (3, 80), (3, 200)):
                random = np.random.default_rng([seeds, count])
                held, told, widths = 0, 0, []
                for _ in range(given.repetitions):
                    shown = images(random, count)
                    values = [
                        torch.stack([image_parts(run(random, *shown, g, seed_sd)) for _ in range(seeds)])
                        for g in (0.0, gain)
                    ]
                    found = difference_of(paired_values(torch.stack(values)), 0)
                    held += found.low <= true <= found.high
                    told += found.p < 0.05
                    widths.append(found.high - found.low)
                rows.append(
                    {
                        "seed_sd": seed_sd,
                        "true_difference": true,
                        "seeds": seeds,
                        "images": count,
                        "held_the_truth": held / given.repetitions,
                        "told_apart": told / given.repetitions,
                        "mean_width": float(np.mean(widths)),
                    }
                )
                print(rows[-1], flush=True)
    if given.output:
        write_csv(given.output, rows, digits=4)


if __name__ == "__main__":
    main()
