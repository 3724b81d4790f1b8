"""How many seeds the questions of docs/reports/evidence.md need, by the power of the verdict's own test: a table.

The two variances that no test on paper gives are assumed and printed with the table: the standard deviation of the true
difference between single seeds, and the share of test images on which a plan and the baseline differ with one seed
(``DIFFER``), a tenth of it the same with every seed.

    python benchmarks/evidence/power.py
"""

from __future__ import annotations

from foveate.io import markdown_table
from foveate.studies.comparison.power import POWER, Variance, power

IMAGES = 6149
DIFFER = 0.06
SD = (0.2, 0.5, 1.0)  # points
SEEDS = (3, 5, 10, 20)


def smallest(sd: float, plans: int, seeds: int) -> float:
    """The smallest difference in points that is seen with 80% power."""
    variance = Variance(sd**2, 0.9 * DIFFER * 1e4, 0.1 * DIFFER * 1e4, plans, 0.05 / plans)
    points = 0.0
    while power(points, variance, seeds, IMAGES) < POWER:
        points += 0.01
    return points


def main() -> None:
    """Print the table."""
    head = ["plans", "SD of single seeds, points", *(f"{seeds} seeds" for seeds in SEEDS)]
    rows = [
        [str(plans), f"{sd:g}", *(f"{smallest(sd, plans, seeds):.2f}" for seeds in SEEDS)]
        for plans in (2, 4, 5, 8)
        for sd in SD
    ]
    print(*markdown_table(head, rows), sep="\n")


if __name__ == "__main__":
    main()
