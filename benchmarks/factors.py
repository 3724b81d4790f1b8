"""How often the tests of factors see an effect where there is none: comparisons in which the truth is known.

    python benchmarks/factors.py                      # the table of docs/explanation/statistics.md

Each comparison has a baseline and a plan for each level of one factor; none of them does anything. Images differ in
difficulty, runs in quality, and the rest belongs to neither. A promise of 5% is kept if at most about 5% are found.
"""

from __future__ import annotations

import argparse
import math
from statistics import NormalDist

import numpy as np

from foveate.studies.comparison.factors.contrasts import contrasts, joint_parts, rejects
from foveate.studies.comparison.statistics import half_width

ACCURACY, REST = 0.8, 0.3  # of a run; the share of a prediction's variance that belongs to neither seed nor image


def found(levels: int, seeds: int, images: int, seed_sd: float, comparisons: int) -> tuple[float, float]:
    """The fraction of comparisons in which the F test, and the trend test, see something.

    Args:
        levels: of the factor.
        seeds: of the comparison.
        images: that are tested.
        seed_sd: standard deviation between runs in points of accuracy.
        comparisons: how many are drawn.
    """
    draw = np.random.default_rng([levels, seeds, round(10 * seed_sd)])
    equal = np.concatenate([np.zeros((levels - 1, 1)), -np.ones((levels - 1, 1)), np.eye(levels - 1)], 1)
    steps = np.arange(levels) - (levels - 1) / 2
    trend = np.concatenate([[0.0], steps / np.square(steps).sum()])[None]
    middle = NormalDist().inv_cdf(ACCURACY)
    scale = seed_sd / 100 / NormalDist().pdf(middle)  # points of accuracy as a shift of what decides a prediction
    counts = np.zeros(2)
    for _ in range(comparisons):
        latent = middle + math.sqrt(1 - REST) * draw.normal(size=images)
        latent = latent + scale * draw.normal(size=(1 + levels, seeds, 1))
        right = latent + math.sqrt(REST) * draw.normal(size=(1 + levels, seeds, images)) > 0
        line = contrasts(right, trend)
        counts += rejects(joint_parts(right, equal), 0.05), abs(line.mean[0]) > half_width(line, 0.05)[0]
    return float(counts[0] / comparisons), float(counts[1] / comparisons)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comparisons", type=int, default=1000)
    parser.add_argument("--images", type=int, default=500)
    asked = parser.parse_args()
    print("| levels | seeds | SD of runs, points | F test | trend test |\n|--:|--:|--:|--:|--:|")
    for levels in (3, 5, 10):
        for seeds in (2, 3, 5):
            for seed_sd in (0.5, 1.5, 4.0):
                f_test, trend = found(levels, seeds, asked.images, seed_sd, asked.comparisons)
                print(f"| {levels} | {seeds} | {seed_sd:g} | {f_test:.3f} | {trend:.3f} |", flush=True)


if __name__ == "__main__":
    main()
