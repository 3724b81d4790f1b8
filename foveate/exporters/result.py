"""What ``export`` gives: the file, what was checked, and how good and how fast it is."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from foveate.exporters.contribution import Contribution
from foveate.exporters.examples import write_example
from foveate.exporters.opened import ExportedClassifier, open_exported
from foveate.exporters.verify import Check
from foveate.html import html_lines, html_table
from foveate.io import JsonObject

__all__ = ["Exported"]


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Args:
        path: of the file.
        format: its name.
        precision: "fp32", "fp16" or "int8".
        metadata: what the file says of itself.
        checks: what was looked at, one by one.
        megabytes: of all that was written, 10^6 bytes.
        difference: the largest difference of two logits, relative to the largest logit, or of two scores of a detector;
            None where it did not run, or where neither found an object.
        agreement: share of the images, of segmentation of their pixels, of which file and network predict the same
            class; of detection, of the objects that both find.
        top1: the file's share of right predictions; None without labels.
        network_top1: the network's, on the same images.
        miou: of a segmentation network's file, 0 to 1, at the label maps' own size; None without label maps.
        network_miou: the network's, on the same images.
        map: of a detector's file, 0 to 1; None without boxes to measure by, or without faster-coco-eval.
        network_map: the network's, on the same images.
        agreement_without: share of predictions that stay when every attention module is switched off in the network.
        contributions: what each attention module adds, in the file.
        milliseconds: median of one image in the file's runtime; None where it was not timed.
        network_milliseconds: the same of the network in PyTorch, timed in turns with it.
        example: the program that uses the file, where one was asked for.
        images: which images were looked at.
        notes: what was done otherwise than asked, and what was found.
    """

    path: Path
    format: str
    precision: str
    metadata: JsonObject = field(repr=False)
    checks: tuple[Check, ...] = field(repr=False)
    megabytes: float
    difference: float | None = None
    agreement: float | None = None
    top1: float | None = None
    network_top1: float | None = None
    agreement_without: float | None = None
    contributions: tuple[Contribution, ...] = ()
    milliseconds: float | None = None
    network_milliseconds: float | None = None
    example: Path | None = None
    images: str = ""
    notes: tuple[str, ...] = ()
    miou: float | None = None
    network_miou: float | None = None
    map: float | None = None
    network_map: float | None = None

    @property
    def ran(self) -> bool:
        """Whether the file was run on this machine."""
        return bool(self.checks) and not any(check.name == "run" for check in self.checks)

    @property
    def compared(self) -> bool:
        """Whether it was run and something was compared: a detector and its file may find nothing in any image."""
        return self.difference is not None

    def open(self) -> ExportedClassifier:
        """The file in its own runtime: what ``predict`` and ``evaluate`` take in the network's place."""
        return open_exported(self.path)

    def write_example(self, path: str | os.PathLike[str] | None = None, *, overwrite: bool = False) -> Path:
        """Write a Python program that classifies a picture with the file; it needs its runtime, numpy and Pillow.

        Args:
            path: a .py file in the folder of the exported file; None for its name with ``_example.py`` behind.
            overwrite: whether a file that is there may be replaced.

        Returns:
            The path of the program.

        Raises:
            FoveateError: a file is there, the folder is another one, or it cannot be written.
        """
        name = self.path.name.split(".")[0] + "_example.py"
        place = self.path.with_name(name) if path is None else Path(path)
        return write_example(self.path, self.metadata, place, overwrite=overwrite)

    def to_dict(self) -> JsonObject:
        """Everything as plain values, for JSON."""
        numbers = (
            *("precision", "megabytes", "difference", "agreement", "top1", "network_top1", "agreement_without"),
            *("miou", "network_miou", "map", "network_map"),
            *("milliseconds", "network_milliseconds", "images"),
        )
        return {
            "path": str(self.path),
            "format": self.format,
            **{name: getattr(self, name) for name in numbers},
            "example": str(self.example) if self.example else None,
            "checks": [vars(check) for check in self.checks],
            "contributions": [vars(each) for each in self.contributions],
            "notes": list(self.notes),
            "metadata": dict(self.metadata),
        }

    def __str__(self) -> str:
        lines = [f"{self.path} ({self.format} {self.precision}, {self.megabytes:.2f} MB)"]
        lines += [f"  {_sign(check)} {check.name}: {check.value}{_limit(check)}" for check in self.checks]
        lines += [f"  {each}" for each in self.contributions]
        if self.agreement_without is not None:
            lines.append(f"  agreement of the network with itself without attention: {self.agreement_without:.3f}")
        if self.top1 is not None:
            lines.append(f"  top-1 {self.top1:.3f}, the network {self.network_top1:.3f}")
        if self.miou is not None:
            lines.append(f"  mIoU {self.miou:.4f}, the network {self.network_miou:.4f}")
        if self.map is not None:
            lines.append(f"  mAP {self.map:.4f}, the network {self.network_map:.4f}")
        if self.milliseconds is not None and self.network_milliseconds is not None:
            lines.append(f"  {self.milliseconds:.2f} ms an image, PyTorch {self.network_milliseconds:.2f} ms")
        lines += [f"  program that uses it: {self.example}"] if self.example else []
        lines += [f"  {note}" for note in (self.images, *self.notes) if note]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [(_sign(check), check.name, check.value, check.limit) for check in self.checks]
        head, *rest = str(self).splitlines()
        table = html_table(("", "check", "seen", "limit"), rows, right=())
        return html_lines(head) + table + html_lines("", [line.strip() for line in rest[len(self.checks) :]])


def _sign(check: Check) -> str:
    return {True: "ok", False: "FAILED", None: "not run"}[check.passed]


def _limit(check: Check) -> str:
    return f" (limit {check.limit})" if check.limit else ""
