"""Every attention module, pool and head of the registries in every export format: which holds which, and how exactly.

A small network (timm's test_resnet, 64 px, random weights, all parameters moved so that attention which starts as the
identity does something) is exported with each, without timing. Beside the largest difference of the logits, relative to
the largest logit, or the reason why there is no file, stand the versions of what was used. Rows of formats that are not
asked for stay as they are in the CSV; the table in docs/export_formats.md is written from all of them.

    python benchmarks/export_table.py --formats onnx pt2 openvino executorch ncnn coreml
    python benchmarks/export_table.py --formats litert --python ENVIRONMENT/bin/python
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import re
import tempfile
from pathlib import Path

import timm
import torch

import foveate as fv
from foveate.exporters.format import find_format, format_names
from foveate.io import markdown_table, write_csv
from foveate.registry import names

ROOT = Path(__file__).parents[1]
CSV, PAGE = ROOT / "benchmarks" / "export_table.csv", ROOT / "docs" / "export_formats.md"
SIZE, START, END = 64, "<!-- made by benchmarks/export_table.py -->", "<!-- until here -->"
PARTS = [
    *(f"{name} after layer3" for name in names("attention")),
    *(f"ulsam(groups={groups}) after layer3" for groups in (1, 16)),
    *(f"{name} as pool" for name in names("pooling")),
    *(f"{name} as head" for name in names("heads")),
]


def network(plan: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = fv.insert(timm.create_model("test_resnet", num_classes=10).eval(), plan, input_size=SIZE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.2 if parameter.ndim < 2 else 0.2 * float(parameter.std())
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def row(plan: str, name: str, python: str | None) -> dict[str, str]:
    form = find_format(name)
    versions = [f"{package} {importlib.metadata.version(package)}" for package in ("torch", *form.requires.values())]
    found = {"plan": plan, "format": name, "status": "ok", "difference": "", "reason": "", "notes": ""}
    found["versions"] = ", ".join(dict.fromkeys(versions))
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = fv.export(network(plan), name, folder, size=SIZE, images=4, time=False, python=python)
            found["difference"] = "" if made.difference is None else f"{made.difference:.1e}"
            found["status"] = "ok" if made.ran else "converted, not run"
            found["notes"] = "; ".join(note for note in made.notes if "at a time" not in note)
        except fv.FoveateError as error:
            found |= {"status": "refused", "reason": str(error)}
    return found


def page(rows: list[dict[str, str]]) -> str:
    """The table, and the reasons below it."""
    shown = [name for name in format_names() if any(each["format"] == name for each in rows)]
    cells = {(each["plan"], each["format"]): each for each in rows}
    lines, reasons = [], []
    for plan in PARTS:
        line: dict[str, str] = {"": f"`{plan.removesuffix(' after layer3')}`"}
        for name in shown:
            each = cells.get((plan, name))
            line[name] = "" if each is None else each["difference"] or each["status"]
            if each is not None and each["reason"]:
                reasons.append(f"* `{plan.removesuffix(' after layer3')}`, {name}: {each['reason']}")
        lines.append(line)
    versions = dict.fromkeys(text for each in rows for text in each["versions"].split(", "))
    said = f"Versions: {', '.join(sorted(versions))}."
    table = "\n".join(markdown_table(["", *shown], [[line[name] for name in ("", *shown)] for line in lines]))
    return "\n\n".join([table, *(["\n".join(reasons)] if reasons else []), said])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="*", default=[], choices=format_names())
    parser.add_argument("--plans", nargs="*", default=PARTS)
    parser.add_argument("--python")
    given = parser.parse_args()
    rows = list(csv.DictReader(CSV.open())) if CSV.exists() else []
    for name in given.formats:
        for plan in given.plans:
            found = row(plan, name, given.python if name == "litert" else None)
            print(name, plan, found["status"], found["difference"], found["reason"], flush=True)
            rows = [each for each in rows if (each["plan"], each["format"]) != (plan, name)] + [found]
            order = sorted(rows, key=lambda each: (PARTS.index(each["plan"]), each["format"]))
            write_csv(CSV, order)
    text = PAGE.read_text(encoding="utf-8")
    between = re.compile(f"{re.escape(START)}.*?{re.escape(END)}", re.DOTALL)
    PAGE.write_text(between.sub(lambda _: f"{START}\n{page(rows)}\n\n{END}", text), encoding="utf-8")


if __name__ == "__main__":
    main()
