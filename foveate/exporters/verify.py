"""Whether a file does what the network does: it is opened in its own runtime, and both are given the same images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.errors import FoveateError
from foveate.exporters.format import Arrays, Format, Session
from foveate.exporters.program import Program, scores_of
from foveate.exporters.sample_images import Samples, full_batches
from foveate.training.tasks.segmentation_metrics import class_ious, image_counts

__all__ = [
    *("LIMITS", "Check", "Verification", "failed", "metadata_check", "operations_check", "run_in_batches"),
    "verify",
]

LIMITS = {"fp32": 1e-3, "fp16": 3e-2}
"""Of the largest difference of two logits, relative to the largest logit; int8 is judged by its predictions."""
MAP_LIMITS = {"fp32": 1e-4, "fp16": 2e-2}
"""Of the largest difference of two values of a map, relative to the map's largest; of probabilities it is absolute."""
PROBABILITIES = ("probabilities", "top_probabilities")
_LEAST_SCALE = 1e-6  # a map of nothing but zeros is equal to one that rounding left at less than this
LEAST_PIXELS = {"fp32": 0.99, "fp16": 0.95}
"""Of a segmentation network's pixels whose class the file gives, too; and of the mIoU with the network as the truth."""
LEAST_AGREEMENT = 0.5
"""Of an int8 file with the network, below which it is taken to be broken."""
_BATCH = 16


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: what.
        passed: None where it was not looked at.
        value: what was seen, as text.
        limit: what was asked, as text.
    """

    name: str
    passed: bool | None
    value: str
    limit: str = ""


@dataclass(frozen=True)
class Verification:
    """What was seen of a file.

    Args:
        checks: one by one.
        difference: the largest difference of two logits, relative to the largest logit.
        agreement: share of the images for which file and network predict the same class.
        logits: (N, K) of the file; None where it does not run here.
        expected: (N, K) of the network.
        objects: of a detector what file and network find in each image.
    """

    checks: tuple[Check, ...]
    difference: float | None = None
    agreement: float | None = None
    logits: Tensor | None = None
    expected: Tensor | None = None
    objects: tuple[Sequence[Mapping[str, Tensor]], Sequence[Mapping[str, Tensor]]] | None = None


def operations_check(form: Format, path: Path) -> Check:
    """Whether the runtime knows every operation of a file."""
    foreign = form.foreign_operations(path)
    return Check("operations", not foreign, ", ".join(foreign) or "all known to the runtime")


def verify(program: Program, form: Format, path: Path, samples: Samples) -> Verification:
    """Look at a file in each way that this machine can.

    Args:
        program: what the file was made of.
        form: its format.
        path: of the file.
        samples: the images to look at.

    Returns:
        What was seen; a check that failed is in it, and raises nothing.
    """
    expected = _expected(program, samples)
    checks = [operations_check(form, path)]
    unable = form.runs_here()
    try:
        session = form.open(path, torch.get_num_threads())
        checks.append(metadata_check(session, program))
        if unable:
            checks.append(Check("run", None, f"converted, not run: {unable}"))
            return Verification(tuple(checks), expected=expected[0])
        found, checks_of_batches = _batches(session, program, samples)
        checks += checks_of_batches
        if program.options.size == "dynamic":
            checks.append(_other_size(session, program, samples))
        checks += _other_sessions(form, path, program, samples, expected[0])
    except FoveateError as error:
        return Verification((*checks, Check("run", False, str(error))), expected=expected[0])
    logits, numbers = _compare_logits(program, found[0], expected[0])
    checks += numbers.checks
    # What is of the predicted class is another thing where another class is predicted.
    same = logits.argmax(1) == expected[0].argmax(1) if logits.shape == expected[0].shape else None
    for index, name in enumerate(program.output_names[1:], start=1):
        if same is not None and bool(same.any()):
            checks += _compare_output(program, name, found[index], expected[index], same)
    return Verification(tuple(checks), numbers.difference, numbers.agreement, logits, expected[0])


def _expected(program: Program, samples: Samples) -> tuple[Tensor, ...]:
    """The network's outputs; the logits of the images as the model's own preparation gives them."""
    outputs: list[tuple[Tensor, ...]] = []
    with torch.inference_mode():
        for start in range(0, len(samples), _BATCH):
            part = slice(start, start + _BATCH)
            given = program.network(torch.from_numpy(samples.given[part]))
            logits = scores_of(program.network.network(samples.normalised[part]))
            outputs.append((logits, *given[1:]))
    return tuple(torch.cat([each[n] for each in outputs]).clone() for n in range(len(outputs[0])))


def run_in_batches(session: Session, images: NDArray[np.generic], batch: int) -> Arrays:
    """All images, so many at a time; the last batch is filled up with its last image."""
    outputs: list[Arrays] = []
    for part, count in full_batches(images, batch):
        outputs.append(tuple(output[:count] for output in session.run(part)))
    return tuple(np.concatenate([each[n] for each in outputs]) for n in range(len(outputs[0])))


def _batches(session: Session, program: Program, samples: Samples) -> tuple[Arrays, list[Check]]:
    """All images in batches, and, where the batch is dynamic, that an image does not depend on its neighbours."""
    if program.options.batch != "dynamic":
        return run_in_batches(session, samples.given, int(program.options.batch)), []
    found = run_in_batches(session, samples.given, min(_BATCH, len(samples)))
    checks = []
    for count in (1, 3):
        few = samples.given[: min(len(samples), 2 * count)]
        alone = run_in_batches(session, few, count)
        given = found[0][: len(few)]
        difference = _relative(torch.from_numpy(alone[0]), torch.from_numpy(given))
        # Integers that are quantized do not depend on the batch either, so one limit serves.
        limit = LIMITS.get(program.options.precision, LIMITS["fp16"])
        checks.append(Check(f"batch of {count}", difference <= limit, _number(difference), _number(limit)))
    return found, checks


def _other_size(session: Session, program: Program, samples: Samples) -> Check:
    """Images of another size than that at which the network was followed."""
    given = samples.given[:2]
    axes = (1, 2) if program.options.input == "uint8" else (2, 3)
    padding = [(0, 32 * (axes.index(axis) + 1)) if axis in axes else (0, 0) for axis in range(4)]
    wide = np.pad(given, padding)
    with torch.inference_mode():
        expected = program.network(torch.from_numpy(wide))[0]
    batch = program.options.batch
    found = run_in_batches(session, wide, len(wide) if batch == "dynamic" else int(batch))
    difference = _relative(torch.from_numpy(found[0]), expected)
    limit = LIMITS.get(program.options.precision, LIMITS["fp16"])
    shape = "x".join(str(wide.shape[axis]) for axis in axes)
    return Check(f"size {shape}", difference <= limit, _number(difference), _number(limit))


def _other_sessions(form: Format, path: Path, program: Program, samples: Samples, expected: Tensor) -> list[Check]:
    """What the runtime gives where it computes in another way than asked; it fails only where it is noise."""
    checks = []
    batch = program.options.batch
    for name, session in form.other_sessions(path, torch.get_num_threads()).items():
        count = min(_BATCH, len(samples)) if batch == "dynamic" else int(batch)
        logits = torch.from_numpy(run_in_batches(session, samples.given, count)[0]).float()
        agreement = float((logits.argmax(1) == expected.argmax(1)).float().mean())
        passed = bool(torch.isfinite(logits).all()) and agreement >= LEAST_AGREEMENT
        seen = f"{_number(_relative(logits, expected))}, agreement {agreement:.3f}"
        checks.append(Check(f"logits {name}", passed, seen, f"agreement {LEAST_AGREEMENT:.3f}"))
    return checks


@dataclass(frozen=True)
class _Logits:
    difference: float
    agreement: float
    checks: list[Check]


def _compare_logits(program: Program, given: NDArray[np.generic], expected: Tensor) -> tuple[Tensor, _Logits]:
    logits = torch.from_numpy(np.ascontiguousarray(given)).float()
    if logits.shape != expected.shape or not bool(torch.isfinite(logits).all()):
        what = f"shape {tuple(logits.shape)}" if logits.shape != expected.shape else "NaN or infinite values"
        return logits, _Logits(math.inf, 0.0, [Check("logits", False, what, f"{tuple(expected.shape)}, finite")])
    difference = _relative(logits, expected)
    agreement = float((logits.argmax(1) == expected.argmax(1)).float().mean())
    checks = []
    limit = LIMITS.get(program.options.precision)
    if logits.ndim == 4:
        least = LIMITS[program.options.precision]
        checks.append(Check("scores", difference <= least, _number(difference), _number(least)))
        checks += _compare_masks(program, logits.argmax(1), expected.argmax(1), expected.shape[1], agreement)
    elif limit is not None:
        checks.append(Check("logits", difference <= limit, _number(difference), _number(limit)))
        checks.append(Check("agreement", True, f"{agreement:.3f}"))
    else:
        passed = agreement >= LEAST_AGREEMENT
        checks.append(Check("agreement", passed, f"{agreement:.3f}", f"{LEAST_AGREEMENT:.3f}"))
    return logits, _Logits(difference, agreement, checks)


def _compare_masks(program: Program, found: Tensor, expected: Tensor, classes: int, agreement: float) -> list[Check]:
    """The classes of pixels, (N, H, W): the share that is equal, and the file's mIoU with the network as the truth."""
    least = LEAST_PIXELS[program.options.precision]
    counts = torch.stack([image_counts(one, other, classes) for one, other in zip(found, expected, strict=True)])
    miou = float(class_ious(counts.sum(0)).nanmean())
    return [
        Check("agreement of pixels", agreement >= least, f"{agreement:.5f}", f"{least:.3f}"),
        Check("mIoU against the network", miou >= least, f"{miou:.5f}", f"{least:.3f}"),
    ]


def _compare_output(
    program: Program, name: str, given: NDArray[np.generic], expected: Tensor, same: Tensor
) -> list[Check]:
    """One more output; class numbers and maps of an int8 file follow its own predictions and are not compared."""
    if program.options.precision == "int8":
        return []
    found = torch.from_numpy(np.ascontiguousarray(given))
    if found.shape != expected.shape:
        return [Check(name, False, f"shape {tuple(found.shape)}", f"{tuple(expected.shape)}")]
    found, expected = found[same], expected[same]
    if name == "top_classes":
        # Of two classes with almost the same probability either may come first.
        first = float((found[:, 0] == expected[:, 0]).float().mean())
        passed = first >= 0.99 or program.options.precision != "fp32"
        return [Check(name, passed, f"{first:.3f} of the first", "0.990")]
    limit = MAP_LIMITS[program.options.precision]
    # The values of a softmax over many positions are small: a limit that is not relative would let zeros pass.
    scale = 1.0 if name in PROBABILITIES else max(float(expected.abs().max()), _LEAST_SCALE)
    difference = float((found.float() - expected.float()).abs().max()) / scale
    return [Check(name, difference <= limit, _number(difference), _number(limit))]


def metadata_check(session: Session, program: Program) -> Check:
    """Whether the file says of itself what was written."""
    written, read = program.metadata, dict(session.metadata)
    wrong = [key for key, value in written.items() if read.get(key) != value]
    return Check("metadata", not wrong, ", ".join(wrong) if wrong else "read back as written")


def _relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    if found.shape != expected.shape:
        return math.inf
    difference = float((found.double() - expected.double()).abs().max())
    return difference / max(float(expected.double().abs().max()), 1e-12) if math.isfinite(difference) else math.inf


def _number(value: float) -> str:
    return f"{value:.1e}"


def failed(checks: Sequence[Check]) -> list[Check]:
    """Those that did not pass."""
    return [check for check in checks if check.passed is False]
