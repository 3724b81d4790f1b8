"""Whether a detector's file finds what the detector finds: its boxes are matched with those of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from foveate.dense import Detector
from foveate.errors import FoveateError
from foveate.exporters.format import Format, Session, find_format, format_names
from foveate.exporters.opened import objects_of
from foveate.exporters.options import ExportOptions, refuse_asked
from foveate.exporters.program import Program
from foveate.exporters.sample_images import Samples
from foveate.exporters.verify import Check, Verification, metadata_check, operations_check
from foveate.training.tasks.collected_objects import MOST, in_pixels_of_the_file
from foveate.training.tasks.detection_metrics import measure_objects

__all__ = ["for_objects", "map_of", "verify_objects"]

LEAST_FOUND = 0.99
"""Of the network's objects that the file finds, too, and the other way round."""
MOST_TIES = 0.1
"""Of the objects, those that may be missing because another one with the same score took their place."""
_SCORE, _SIDE = 1e-3, 0.1  # two boxes are the same object: score and sides, in pixels, not further apart
_AT_THE_CUT = 1e-3  # of many objects the last ones may be others where their scores are almost equal
_TIE, _OVERLAP = 1e-5, 0.3  # of two boxes that overlap and have one score either may suppress the other

Found = Mapping[str, Tensor]


def for_objects(
    network: Detector, form: Format, options: ExportOptions, notes: list[str], *, example: bool
) -> ExportOptions:
    """The options of a detector's file: one image, of any size where the format can and none was named.

    Raises:
        FoveateError: something was asked for that such a file does not have.
    """
    if not form.holds_detectors:
        able = [name for name in format_names() if find_format(name).holds_detectors]
        raise FoveateError(
            f"{form.name} does not hold a detector's non-maximum suppression: detectors are written as "
            f"{', '.join(able)}"
        )
    if network.with_masks:
        raise FoveateError("mask_rcnn is not exported, for its file would lose the masks: take faster_rcnn or ssdlite")
    refused = {
        f"precision={options.precision!r}": options.precision != "fp32",
        "maps=": bool(options.maps),
        "softmax=True": options.softmax,
        "top=": bool(options.top),
        "example=True": example,
    }
    refuse_asked(
        refused,
        "is not for detectors: they are exported in fp32, and their file gives boxes, scores and labels",
    )
    if options.batch not in (1, "dynamic"):
        raise FoveateError(f"batch={options.batch}: a detector's file takes 1 image at a time; leave it out")
    if options.batch == "dynamic":
        notes.append("a detector's file takes 1 image at a time")
    size = "dynamic" if options.size is None and form.dynamic_size else options.size
    return replace(options, batch=1, size=size)


@dataclass(frozen=True)
class _Agreement:
    """Of all images: objects of both, those without a partner for no reason and because of a tie, and differences."""

    objects: int = 0
    alone: int = 0
    ties: int = 0
    score: float = 0.0
    side: float = 0.0

    def __add__(self, other: _Agreement) -> _Agreement:
        return _Agreement(
            self.objects + other.objects,
            self.alone + other.alone,
            self.ties + other.ties,
            max(self.score, other.score),
            max(self.side, other.side),
        )

    @property
    def share(self) -> float:
        """Of the objects, those that both find, 1 of none; where there are too many ties, these are missing, too."""
        if self.ties > MOST_TIES * self.objects:
            return 1 - (self.alone + self.ties) / self.objects
        return 1 - self.alone / self.objects if self.objects else 1.0


def _compare(file: Found, network: Found) -> _Agreement:
    """Match two lists of objects, the highest score first: the same class, almost the same score and place."""
    apart = (file["scores"][:, None] - network["scores"][None]).abs().double()
    sides = (file["boxes"][:, None] - network["boxes"][None]).abs().amax(-1)
    alike = file["labels"][:, None] == network["labels"][None]
    tied = alike & (apart <= _TIE) & (box_iou(file["boxes"].double(), network["boxes"].double()) >= _OVERLAP)
    apart[~(alike & (apart <= _SCORE) & (sides <= _SIDE))] = torch.inf
    pairs: list[tuple[int, int]] = []
    for row in range(len(apart)):
        best = int(apart[row].argmin()) if apart.shape[1] else 0
        if apart.shape[1] and bool(apart[row, best].isfinite()):
            pairs.append((row, best))
            apart[:, best] = torch.inf
    rows, columns = (torch.tensor([pair[n] for pair in pairs], dtype=torch.int64) for n in (0, 1))
    alone = ties = 0
    for of, other, matched, tie in ((file, network, rows, tied.any(1)), (network, file, columns, tied.any(0))):
        missing = torch.ones(len(of["scores"]), dtype=torch.bool)
        missing[matched] = False
        if len(other["scores"]) and len(other["scores"]) >= len(of["scores"]):  # it may have been cut off at its last
            missing &= of["scores"] > other["scores"].min() + _AT_THE_CUT
        ties += int((missing & tie).sum())
        alone += int((missing & ~tie).sum())
    return _Agreement(
        len(file["scores"]) + len(network["scores"]),
        alone,
        ties,
        float((file["scores"][rows] - network["scores"][columns]).abs().max()) if pairs else 0.0,
        float((file["boxes"][rows] - network["boxes"][columns]).abs().max()) if pairs else 0.0,
    )


def verify_objects(program: Program, form: Format, path: Path, samples: Samples) -> Verification:
    """Look at a detector's file in each way that this machine can.

    Args:
        program: what the file was made of.
        form: its format.
        path: of the file.
        samples: the images to look at.

    Returns:
        What was seen; a check that failed is in it, and raises nothing.
    """
    network = cast(Detector, program.network.network)
    with torch.inference_mode():
        expected = [network(image[None])[0] for image in samples.normalised]
    checks = [operations_check(form, path)]
    unable = form.runs_here()
    try:
        session = form.open(path, torch.get_num_threads())
        checks.append(metadata_check(session, program))
        if unable:
            return Verification((*checks, Check("run", None, f"converted, not run: {unable}")))
        found = [objects_of(session.run(given[None])) for given in samples.given]
        total = sum((_compare(one, other) for one, other in zip(found, expected, strict=True)), _Agreement())
        checks += _checks(total, "")
        if program.options.size == "dynamic":
            checks += _other_size(session, program, network, samples)
    except FoveateError as error:
        return Verification((*checks, Check("run", False, str(error))))
    if not total.objects:
        return Verification(tuple(checks), objects=(found, expected))
    return Verification(tuple(checks), total.score, total.share, objects=(found, expected))


def _checks(total: _Agreement, where: str) -> list[Check]:
    if not total.objects:
        return [Check(f"objects{where}", None, "neither finds an object in any image: nothing was compared")]
    share = Check(
        f"objects that both find{where}", total.share >= LEAST_FOUND, f"{total.share:.4f}", f"{LEAST_FOUND:.2f}"
    )
    apart = f"{total.score:.1e} of a score, {total.side:.1e} pixels of a side"
    if total.ties:
        apart += f"; {total.ties} of {total.objects} objects gave way to others with the same score"
    return [share, Check(f"largest difference{where}", True, apart)]


def _other_size(session: Session, program: Program, network: Detector, samples: Samples) -> list[Check]:
    """An image of another size than that at which the network was followed, filled up with the mean colour."""
    normalised = torch.nn.functional.pad(samples.normalised[:1], (0, 32, 0, 64))
    given = normalised.numpy()
    if program.options.input == "uint8":
        given = np.pad(samples.given[:1], ((0, 0), (0, 64), (0, 32), (0, 0)))
        normalised = (torch.from_numpy(given).permute(0, 3, 1, 2).float() / 255 - program.network.mean) / (
            program.network.std
        )
    with torch.inference_mode():
        expected = network(normalised)[0]
    height, width = normalised.shape[-2:]
    return _checks(_compare(objects_of(session.run(given)), expected), f", size {height}x{width}")


def map_of(objects: Sequence[Mapping[str, Tensor]] | None, samples: Samples) -> float | None:
    """MAP of what was found in samples, 0 to 1; None without objects that are known, or without the package."""
    if objects is None or not samples.objects:
        return None
    size = (samples.normalised.shape[-2], samples.normalised.shape[-1])
    found = [in_pixels_of_the_file(one, of, size)[:MOST] for one, (_, of) in zip(objects, samples.objects, strict=True)]
    try:
        return measure_objects(found, [there for there, _ in samples.objects], samples.classes).map
    except FoveateError:  # the package that counts is not installed, or no image has an object
        return None
