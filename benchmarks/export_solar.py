"""The demo's networks in each runtime: accuracy on all validation images, size, and what the plan costs there.

    python benchmarks/export_solar.py [TARGET ...]  # writes benchmarks/export_solar.csv

EfficientNet-Lite0 on the ELPV solar cells without attention, with ULSAM inserted and with ULSAM in a block's place, as
``foveate demo`` trains them (first seed). Each is written for each target, checked with all validation images and timed
in turns with the file without attention. Needs the extras demo, export, openvino, executorch and ncnn for all targets.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import foveate as fv
from foveate.io import write_csv
from foveate.studies.demo import MODEL, PLANS, RECIPE

TARGETS = (
    *("onnx:fp32", "onnx:fp16", "onnx:int8", "openvino:fp32", "openvino:fp16", "openvino:int8"),
    *("executorch:fp32", "executorch:int8", "ncnn:fp32", "ncnn:fp16"),
)


def main() -> None:
    """Train as the demo does, export, and write the table."""
    data = fv.open_data("elpv")
    with tempfile.TemporaryDirectory() as folder:
        found = fv.compare(MODEL, PLANS, data, RECIPE, seeds=1, pretrained=True, output=folder)
        rows = []
        for target in sys.argv[1:] or TARGETS:
            try:
                made = fv.export_plans(found, data, [target], images=len(data.val))
            except fv.FoveateError as error:
                print(f"{target}: {error}")
                continue
            rows += made.rows
            write_csv(Path(__file__).with_suffix(".csv"), rows, digits=5)
            for row in made.rows:
                print({key: value for key, value in row.items() if value not in (None, "")}, flush=True)


if __name__ == "__main__":
    main()
