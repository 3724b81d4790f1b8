"""Does a gentler start help attention in a block's place? Plain, begun as the identity, and matched to the block.

    python benchmarks/matching.py FLOWERS102            # appends to benchmarks/matching.csv, goes on where it stopped
    python benchmarks/matching.py --table               # prints the means of what is there

EfficientNet-Lite0 with ImageNet weights, frozen up to blocks.5.0, 128 px, the recipe of evidence/where.yaml; the part
train is learned from, val measured. Plans and starts in turns for one seed after the other.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from pathlib import Path

import torch

import foveate as fv

FILE = Path(__file__).with_suffix(".csv")
COLUMNS = ("seed", "plan", "start", "epochs", "top1")
PLANS = tuple(f"{name} replacing blocks.5.2" for name in ("ulsam(groups=4)", "se", "cbam", "bam", "non_local"))
STARTS = ("plain", "identity", "matched")
RECIPE = fv.Recipe(
    epochs=4,
    learning_rate=0.001,
    warmup_epochs=0.5,
    batch_size=32,
    image_size=128,
    freeze="blocks.5.0",
    head_init_scale=0.01,
    evaluate_every=4,
)
STEPS = 100


def run(data: fv.ImageData, cache: fv.FeatureCache, seed: int, plan: str, start: str, epochs: int) -> float:
    """Top-1 accuracy in per cent after so many epochs."""
    torch.manual_seed(seed)
    model = fv.create_model("tf_efficientnet_lite0", pretrained=True)
    if plan != "none":
        fv.insert(model, plan, start="identity" if start == "identity" else None, seed=seed)
    recipe = RECIPE.with_(seed=seed, epochs=epochs, matching_steps=STEPS if start == "matched" else 0)
    return 100 * fv.fit(model, data, recipe, cache=cache, progress=False).evaluation.top1


def table(rows: list[dict[str, str]]) -> None:
    """The mean of each plan and start, and the mean difference to the plain start over seeds."""
    found = {(row["plan"], row["start"], row["epochs"], row["seed"]): float(row["top1"]) for row in rows}
    print("| plan | start | epochs | seeds | top-1 % | less the plain start |\n| --- | --- | --: | --: | --: | --: |")
    for plan, start, epochs in dict.fromkeys((row["plan"], row["start"], row["epochs"]) for row in rows):
        seeds = [key[3] for key in found if key[:3] == (plan, start, epochs)]
        values = [found[plan, start, epochs, seed] for seed in seeds]
        paired = [found[plan, start, epochs, seed] - found[plan, "plain", epochs, seed] for seed in seeds]
        shown = f"{statistics.mean(paired):+.1f} ({min(paired):+.1f} to {max(paired):+.1f})" if start != "plain" else ""
        print(f"| `{plan}` | {start} | {epochs} | {len(seeds)} | {statistics.mean(values):.1f} | {shown} |")


def main() -> None:
    """Do what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, nargs="+", default=[4])
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    rows = list(csv.DictReader(FILE.open())) if FILE.exists() else []
    if asked.table:
        return table(rows)
    data, cache = fv.open_data(asked.data, parts="train:val"), fv.FeatureCache()
    done = {tuple(row[name] for name in COLUMNS[:4]) for row in rows}
    for seed in range(asked.seeds):
        for epochs in asked.epochs:
            for plan, start in [("none", "plain"), *((plan, start) for plan in PLANS for start in STARTS)]:
                if (str(seed), plan, start, str(epochs)) not in done:
                    top1 = run(data, cache, seed, plan, start, epochs)
                    with FILE.open("a", newline="") as file:
                        writer = csv.writer(file)
                        if not file.tell():
                            writer.writerow(COLUMNS)
                        writer.writerow((seed, plan, start, epochs, f"{top1:.3f}"))
    return table(list(csv.DictReader(FILE.open())))


if __name__ == "__main__":
    main()
