"""How often the verdict of a comparison is false, and how often it is found: by simulation.

    python benchmarks/verdict.py    # some minutes; benchmarks/verdict.csv, the table of docs/explanation/statistics.md

Each repetition is a comparison: a baseline and plans, trained with some seeds, tested on 1,000 images. Whether an image
is right is drawn: its latent score is the sum of the image's difficulty (shared by all plans and seeds), a part of plan
and image, a part of plan and seed (whose standard deviation in points of accuracy is ``seed_sd``) and a part of each
run and image; it is right where the score is above a threshold that gives 80% accuracy, or another one for plans that
are worse. The verdict is that of ``foveate.analyse``; it is found by the same functions for many repetitions at a time.

Columns: false_verdict: any plan called better or worse where all are equal (promised: at most 5%). shown: the smallest
difference that the comparison says it shows with 80% power, the median of 100 comparisons; power: how often a plan that
is worse by that much (half of it below 80%, the baseline half above, so that seeds vary as much as they did) is called
worse. power_3: the same for 3 points. false_not_worse: any plan called "not worse" or
"equivalent" where all are worse by exactly the margin of 1 point (at most 5%). not_worse: how often an equal plan is.
"""

import argparse
import csv
import time
from pathlib import Path
from statistics import NormalDist, median

import numpy as np

from foveate.studies.comparison.power import plan_power, variance_of
from foveate.studies.comparison.statistics import half_width, paired

ROOT = Path(__file__).parents[1]
IMAGES, ACCURACY, MARGIN, ALPHA = 1_000, 0.8, 1.0, 0.05
SEEDS, PLANS, SEED_SDS = (2, 3, 5, 10), (1, 5), (0.0, 1.5, 4.0)
UNEQUAL = {"one plan 3 times": (1, 1, 1, 1, 1, 3), "baseline 3 times": (3, 1, 1, 1, 1, 1)}
IMAGE, PLAN_IMAGE, RUN_IMAGE = 1.5, 0.4, 1.0  # standard deviations of the latent score's parts
BATCH = 100


class World:
    """Comparisons of plans that differ in nothing but chance.

    Args:
        plans: how many, beside the baseline.
        seed_sd: standard deviation of a run's accuracy between seeds, in points, were there no end of images.
        scale: factors of ``seed_sd``, for the baseline and each plan.
    """

    def __init__(self, plans, seed_sd, scale=None, images=IMAGES, seed=0):
        self.plans, self.images, self.random = plans, images, np.random.default_rng(seed)
        normal, fixed = NormalDist(), IMAGE**2 + PLAN_IMAGE**2 + RUN_IMAGE**2
        density = normal.pdf(normal.inv_cdf(ACCURACY)) / fixed**0.5
        self.of_seeds = seed_sd / 100 / density * np.asarray(scale or [1] * (plans + 1))
        self.total = np.sqrt(fixed + self.of_seeds**2)

    def scores(self, repetitions, seeds):
        """Latent scores (repetitions, 1 + plans, seeds, images)."""
        shape = repetitions, self.plans + 1, seeds, self.images
        found = self._normal(*shape, scale=RUN_IMAGE)
        found += self._normal(shape[0], 1, 1, shape[3], scale=IMAGE)
        found += self._normal(shape[0], shape[1], 1, shape[3], scale=PLAN_IMAGE)
        found += self._normal(*shape[:3], 1) * self.of_seeds[:, None, None].astype(np.float32)
        return found

    def right(self, scores, worse=(), better=0.0):
        """Which images are right, where each plan is worse, and the baseline better, by so many points of accuracy."""
        wanted = ACCURACY - np.array([-better, *worse, *[0] * (self.plans - len(worse))]) / 100
        limits = [-NormalDist().inv_cdf(value) for value in wanted] * self.total
        return scores > limits[:, None, None].astype(np.float32)

    def _normal(self, *shape, scale=1.0):
        found = self.random.standard_normal(shape, dtype=np.float32)
        found *= np.float32(scale)
        return found


def verdicts(found, alpha=ALPHA):
    """1, -1 or 0 for each plan at Holm's strictest step: if any plan has a verdict, one has it here."""
    return np.where(np.abs(found.mean) > half_width(found, alpha / found.plans), np.sign(found.mean), 0)


def not_worse(found, margin=MARGIN, alpha=ALPHA):
    """Whether each plan is called "not worse" or "equivalent"."""
    return found.mean + margin / 100 > half_width(found, 2 * alpha / found.plans)


def one(found, repetition):
    """One comparison of many."""
    parts = (values[repetition] for values in (found.mean, found.single, found.rest, found.image))
    return type(found)(*parts, found.plans, found.seeds, found.images, found.pooled)


def shown(found):
    """What one comparison says that it shows for its first plan, in points."""
    return plan_power(0.0, variance_of(found, 0, ALPHA / found.plans), found.seeds, found.images).smallest


def measure(plans, seeds, seed_sd, repetitions, scale=None, statements=100):
    """One row of the table."""
    world = World(plans, seed_sd, scale)
    first = paired(world.right(world.scores(statements, seeds)))
    smallest = median(shown(one(first, k)) for k in range(statements)) if statements else None
    far = smallest is not None and smallest > 35  # not above 97.5% accuracy
    counts = dict.fromkeys(("false_verdict", "power", "power_3", "false_not_worse", "not_worse"), 0)
    for _ in range(repetitions // BATCH):
        scores = world.scores(BATCH, seeds)
        null = paired(world.right(scores))
        counts["false_verdict"] += int((verdicts(null) != 0).any(1).sum())
        if statements:
            counts["not_worse"] += int(not_worse(null)[:, 0].sum())
            counts["false_not_worse"] += int(not_worse(paired(world.right(scores, [MARGIN] * plans))).any(1).sum())
            counts["power_3"] += int((verdicts(paired(world.right(scores, [1.5], 1.5)))[:, 0] < 0).sum())
            if not far:
                counts["power"] += int(
                    (verdicts(paired(world.right(scores, [smallest / 2], smallest / 2)))[:, 0] < 0).sum()
                )
    done = repetitions // BATCH * BATCH
    rates = {name: f"{count / done:.3f}" for name, count in counts.items()}
    if not statements:
        rates = {name: rates[name] if name == "false_verdict" else "" for name in rates}
    rates["power"] = "" if far else rates["power"]
    return {"shown": "" if smallest is None else f"{smallest:.1f}", **rates}


def table(rows):
    """The table of docs/explanation/statistics.md."""
    heads = {
        "seeds": "seeds", "plans": "plans", "seed_sd": "sd of seeds", "false_verdict": "any false verdict",
        "shown": "says it shows", "power": "found there", "power_3": "3 points found",
        "false_not_worse": "false “not worse”", "not_worse": "equal found “not worse”",
    }  # fmt: skip
    lines = [list(heads.values()), ["---:"] * len(heads)]
    lines += [[row[name] or "–" for name in heads] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2_000)
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "verdict.csv")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "explanation" / "statistics.md")
    given = parser.parse_args()
    began, rows = time.perf_counter(), []
    cases = [(s, k, sd, "", None) for s in SEEDS for k in PLANS for sd in SEED_SDS]
    cases += [(s, 5, 1.5, name, scale) for s in SEEDS for name, scale in UNEQUAL.items()]
    for seeds, plans, seed_sd, name, scale in cases:
        statements = 0 if scale else 100
        row = {"seeds": str(seeds), "plans": str(plans), "seed_sd": f"{seed_sd:g}{name and ', ' + name}"}
        row |= measure(plans, seeds, seed_sd, given.repetitions, scale, statements)
        rows.append(row | {"repetitions": str(given.repetitions), "images": str(IMAGES)})
        print(row, f"{time.perf_counter() - began:.0f} s", flush=True)
    with given.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    start, end = "<!-- made by benchmarks/verdict.py -->\n", "<!-- end -->"
    before, rest = given.page.read_text("utf-8").split(start)
    given.page.write_text(f"{before}{start}\n{table(rows)}\n\n{end}{rest.split(end, 1)[1]}", "utf-8")


if __name__ == "__main__":
    main()
