"""Attention against none on Imagewoof (ten breeds of dogs, photographs of ImageNet: hence from random weights).

    python benchmarks/imagewoof.py imagewoof2_128sq                  # MobileNetV2 x0.35 at 64 px, 6 epochs, 3 seeds
    python benchmarks/imagewoof.py imagewoof2_128sq --full           # MobileNetV2 x1.0 at 128 px, 60 epochs, 5 seeds

SE, CBAM and ULSAM behind the last block of four stages, and ULSAM in the place of these blocks. The line that is run is
printed first, and is an ordinary ``foveate compare``: started again, it goes on where it was broken off; started twice
on one folder, or with --jobs 2, the runs are shared. In the end docs/reports/imagewoof.md, its tables and its
pictures are written from the folder.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

SITES = "blocks.1.1, blocks.2.2, blocks.3.3, blocks.4.2"
PLANS = [f"{spec} {SITES}" for spec in ("se after", "cbam after", "ulsam(groups=4) after", "ulsam(groups=4) replacing")]
COMMON = shlex.split("--schedule cosine --weight-decay 0.05 --label-smoothing 0.1 --augmentation flip")
SHORT = shlex.split(
    "--model mobilenetv2_035 --image-size 64 --epochs 6 --seeds 3 --batch-size 32 --learning-rate 0.002 "
    "--warmup-epochs 0.5"
)
FULL = shlex.split(
    "--model mobilenetv2_100 --image-size 128 --epochs 60 --seeds 5 --batch-size 128 --learning-rate 0.004 "
    "--warmup-epochs 3"
)
ROOT = Path(__file__).parents[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a folder with Imagewoof, or the like")
    parser.add_argument("--full", action="store_true", help="the long one, for a GPU")
    parser.add_argument(
        "--output", type=Path, help="folder of the grid; without it runs/imagewoof or runs/imagewoof_full"
    )
    parser.add_argument("--page", type=Path, help="without it imagewoof.md or imagewoof_full.md in docs/reports")
    parser.add_argument("--jobs", default="1", help="processes that share the runs")
    given = parser.parse_args()
    name = "imagewoof_full" if given.full else "imagewoof"
    output, page = given.output or Path("runs") / name, given.page or ROOT / "docs" / "reports" / f"{name}.md"
    options = [*(FULL if given.full else SHORT), *COMMON, "--plans", *PLANS, "--output"]
    # On the page stand the folders' names, not where they are on this machine.
    told = shlex.join(["foveate", "compare", Path(given.data).name, *options, f"runs/{name}"])
    print(told, flush=True)
    foveate = [sys.executable, "-m", "foveate"]
    subprocess.run([*foveate, "compare", given.data, *options, str(output), "--jobs", given.jobs], check=True)
    subprocess.run([*foveate, "results", str(output), "--page", str(page), "--command", told], check=True)


if __name__ == "__main__":
    main()
