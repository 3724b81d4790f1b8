"""How often the 95% intervals of mIoU differences hold the truth, and how often two equal plans are told apart.

    python benchmarks/miou_intervals.py --output benchmarks/miou_intervals.csv

Images are made up: some of the classes are in each, with areas over two orders of magnitude, and some images are hard.
A network has a skill for each class that differs from seed to seed; its errors go to the other classes. The truth of a
plan is the mean of 500 seeds on 2,000 images each.

    python benchmarks/miou_intervals.py --one-seed --repetitions 300 --output benchmarks/miou_intervals_one_seed.csv

does so for two fixed networks, as an audit compares them: their truth is the mean over 240,000 images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from foveate.io import write_csv
from foveate.studies.comparison.miou import miou_differences
from foveate.training.tasks.segmentation_metrics import class_ious

CLASSES = 8
SKILL = np.linspace(2.5, -0.5, CLASSES)  # log odds of a right pixel


def images(random, count):
    """Pixels of each class (N, K) and how hard each image is (N,)."""
    there = random.random((count, CLASSES)) < np.linspace(0.95, 0.25, CLASSES)
    areas = np.exp(random.normal(np.linspace(8, 5, CLASSES), 1.2, (count, CLASSES))) * there
    return areas, random.normal(0, 0.7, count)


def runs(random, areas, hard, gain, seeds, seed_sd):
    """Counts (S, N, K, 3) of one plan with several seeds on the same images."""
    found = []
    for _ in range(seeds):
        skill = SKILL + gain + random.normal(0, seed_sd, CLASSES)
        odds = skill + hard[:, None] + random.normal(0, 0.5, areas.shape)
        right = areas / (1 + np.exp(-odds))
        wrong = areas - right
        others = (wrong.sum(1, keepdims=True) - wrong) / (CLASSES - 1)
        found.append(np.stack([right, right + others, areas], -1))
    return torch.from_numpy(np.stack(found))


def truth(gain, seed_sd):
    """The mIoU of a plan."""
    random = np.random.default_rng(1)
    values = []
    for _ in range(500):
        areas, hard = images(random, 2000)
        values.append(float(class_ious(runs(random, areas, hard, gain, 1, seed_sd)[0].sum(0)).nanmean()))
    return 100 * float(np.mean(values))


def fixed(random, areas, hard, skill):
    """Counts (1, N, K, 3) of a network with this skill."""
    odds = skill + hard[:, None] + random.normal(0, 0.5, areas.shape)
    right = areas / (1 + np.exp(-odds))
    wrong = areas - right
    others = (wrong.sum(1, keepdims=True) - wrong) / (CLASSES - 1)
    return torch.from_numpy(np.stack([right, right + others, areas], -1))[None]


def one_seed(repetitions):
    """A row for each pair of networks and number of images."""
    for gain in (0.0, 0.2):
        random = np.random.default_rng(5)
        first = SKILL + random.normal(0, 0.1, CLASSES)
        second = first + gain + random.normal(0, 0.1, CLASSES) * (gain > 0)
        random, values = np.random.default_rng(6), []
        for _ in range(60):
            areas, hard = images(random, 4000)
            pair = [fixed(random, areas, hard, skill) for skill in (first, second)]
            values.append([float(class_ious(counts[0].sum(0)).nanmean()) for counts in pair])
        true = 100 * float(np.diff(np.mean(values, 0))[0])
        for count in (10, 20, 40, 100, 300):
            random, held, told = np.random.default_rng(count), 0, 0
            for _ in range(repetitions):
                areas, hard = images(random, count)
                counts = {name: fixed(random, areas, hard, skill) for name, skill in (("none", first), ("a", second))}
                found = miou_differences(counts)["a"]
                held += found.low <= true <= found.high
                told += found.p < 0.05
            rates = {"held_the_truth": held / repetitions, "told_apart": told / repetitions}
            yield {"true_difference": true, "seeds": 1, "images": count, **rates}


def main():
    """Simulate and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one-seed", action="store_true")
    given = parser.parse_args()
    rows = []
    if given.one_seed:
        for row in one_seed(given.repetitions):
            rows.append(row)
            print(row, flush=True)
        if given.output:
            write_csv(given.output, rows, digits=4)
        return
    for seed_sd in (0.05, 0.2):
        level = truth(0.0, seed_sd)
        for gain in (0.0, 0.2):
            true = truth(gain, seed_sd) - level
            for seeds, count in ((2, 100), (3, 100), (3, 230), (5, 100)):
                random = np.random.default_rng([seeds, count])
                held, told, widths = 0, 0, []
                for _ in range(given.repetitions):
                    areas, hard = images(random, count)
                    counts = {
                        name: runs(random, areas, hard, g, seeds, seed_sd) for name, g in (("none", 0), ("a", gain))
                    }
                    found = miou_differences(counts)["a"]
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
