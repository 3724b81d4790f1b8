"""``export``: a network as a file for another runtime, kept only when it was shown to do the same."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from foveate.accounting.profiling.timer import Quantiles, interleaved
from foveate.arguments import whole_number
from foveate.dense import Detector, Segmenter
from foveate.errors import FoveateError
from foveate.exporters.detection.checks import for_objects, map_of, verify_objects
from foveate.exporters.detection.network import prepare_detector
from foveate.exporters.examples import example_name, write_example
from foveate.exporters.format import Format, find_format
from foveate.exporters.options import Batch, ExportOptions, Size
from foveate.exporters.pixels import check_fits, for_pixels, miou_of
from foveate.exporters.program import Program, prepare, preprocess_for
from foveate.exporters.result import Exported
from foveate.exporters.sample_images import Samples, SampleSource, random_samples
from foveate.exporters.verify import Verification, failed, verify
from foveate.io import make_folder
from foveate.networks.class_names import class_positions, to_outputs
from foveate.surgery.model_copy import changed_by_own_hooks
from foveate.surgery.saving.checkpoint import load

if TYPE_CHECKING:
    from foveate.data.detection import DetectionData
    from foveate.data.segmentation import SegmentationData
    from foveate.data.split import ImageData

__all__ = ["export"]

_RANDOM = 16  # images of random pixels, where there is no data
_ROUNDS, _SECONDS = 30, 3.0  # of the timing


def export(
    model: nn.Module | str | os.PathLike[str],
    format: str,
    output: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    data: str | os.PathLike[str] | ImageData | SegmentationData | DetectionData | SampleSource | None = None,
    images: int = 100,
    maps: Sequence[str] | str = (),
    input: str = "float",
    batch: Batch = "dynamic",
    size: Size = None,
    keep: str = "auto",
    softmax: bool = False,
    top: int = 0,
    check: bool = True,
    time: bool = True,
    overwrite: bool = False,
    keep_failed: bool = False,
    example: bool = False,
    python: str | os.PathLike[str] | None = None,
) -> Exported:
    """Write a network as a file for another runtime, and check it there before it takes its name.

    The file says of itself what a program needs to use it: classes, preparation of the images, plan, outputs.

    Args:
        model: a classifier, a network of ``create_segmenter`` or ``create_detector``, or a folder that ``fit`` or
            ``save`` wrote. It is left as found. A segmentation network's file gives scores for each pixel, a detector's
            boxes, scores and labels of one image, after its non-maximum suppression ("onnx" only); with ``data`` their
            mIoU and mAP are measured.
        format: "onnx", "openvino", ...: a file of ``foveate.exporters.formats``.
        output: a folder, or the file's own name with the format's suffix.
        precision: "fp32", "fp16" or "int8".
        data: images to check with, of its validation part, and to calibrate int8 with, of its training part. Without
            it random pixels serve for the check. A ``SampleSource`` is decoded once for several exports.
        images: at most so many of each.
        maps: more outputs: "attention", "cam".
        input: "float" or "uint8".
        batch: "dynamic" or a number.
        size: of the images; None for the model's own, "dynamic" for any. Of segmentation and detection None is
            "dynamic" where the format can.
        keep: what int8 leaves in more bits: "auto", "none" or "attention".
        softmax: an output with probabilities, too.
        top: outputs with the most probable classes, so many.
        check: whether the file is run beside the network.
        time: whether both are timed, in turns.
        overwrite: whether files that are there already may be replaced.
        keep_failed: whether a file that failed a check is kept, in a folder ``failed`` beside its place.
        example: whether a Python program that uses the file is written beside it: it needs the file's runtime, numpy
            and Pillow.
        python: the interpreter of the environment that holds litert-torch, for "litert" only.

    Returns:
        The file with what was seen.

    Raises:
        FoveateError: the request cannot be met, the network cannot be written in this format, or the file does not do
            what the network does. Nothing is left behind, and what was there before is untouched.
    """
    options = ExportOptions(precision, maps, input, batch, size, keep, softmax, top, python)
    form = find_format(format)
    if (whole_number(images) or 0) < 1:
        raise FoveateError(f"images={images!r}: a file is checked with 1 image at least")
    form.check_installed()
    form.check_options(options)
    notes: list[str] = []
    network = model if isinstance(model, nn.Module) else load(model)
    detector = network if isinstance(network, Detector) else None
    if detector is not None:
        options = for_objects(detector, form, options, notes, example=example)
    if options.batch == "dynamic" and not form.dynamic_batch:
        options = replace(options, batch=1)
        notes.append(f"{format} takes a fixed number of images: this file takes 1 at a time")
    if isinstance(network, Segmenter):
        options = for_pixels(form, options, notes, example=example)
    place = _place(Path(output), form, network, options, overwrite)
    program_name = example_name(place.name, format) if example else None
    if program_name and place.with_name(program_name).exists() and not overwrite:
        raise _is_there(place.with_name(program_name))
    preprocess = preprocess_for(network, options)
    if options.precision == "int8" and data is None:
        raise FoveateError(
            "int8 is calibrated on real images, and none were given: data='a folder with images' (a few hundred of the "
            "training images are enough)"
        )
    source = data if data is None or isinstance(data, SampleSource) else SampleSource(data)
    if source is not None:
        check_fits(network, source)
    asked = (images, preprocess, options)
    calibration = source.samples("train", *asked) if options.precision == "int8" and source else None
    samples = source.samples("val", *asked) if source else random_samples(min(_RANDOM, images), preprocess, options)
    _refuse_own_hooks(network, samples)
    if detector is not None:
        program = prepare_detector(detector, options, format_name=format)
    else:
        batches = _batches(calibration, options) if calibration else ()
        program = prepare(network, options, format_name=format, calibration=batches)
    program.images = samples.given
    positions = _positions(network, samples, program)
    if calibration:
        notes.append(f"calibrated on {calibration.description}")
    make_folder(place.parent)
    with tempfile.TemporaryDirectory(prefix=".foveate-export-", dir=place.parent, ignore_cleanup_errors=True) as folder:
        path = Path(folder) / place.name
        try:
            form.convert(program, path)
        except OSError as error:
            raise FoveateError(
                f"cannot write {place}: {error.strerror or error}; what was there is untouched"
            ) from error
        looked = verify_objects if detector is not None else verify
        seen = looked(program, form, path, samples) if check else Verification(())
        wrong = failed(seen.checks)
        if wrong and not keep_failed:
            found = (f"{each.name}: {each.value}" + (f", limit {each.limit}" if each.limit else "") for each in wrong)
            raise FoveateError(
                f"{format} {precision}: the file does not do what the network does, and was not kept"
                f"{_advice(options)}: {'; '.join(found)}"
            )
        milliseconds = _time(program, form, path, samples) if check and time and not form.runs_here() else (None, None)
        megabytes = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 1e6
        if program_name:
            write_example(path, program.metadata, path.with_name(program_name))
        if wrong:
            place = place.parent / "failed" / place.name
            make_folder(place.parent)
            notes.append("this file FAILED a check: it does not do what the network does")
        if seen.objects is not None and seen.difference is None:
            notes.append(
                "NOTHING WAS COMPARED: neither the file nor the network finds an object in these images; give data= "
                "(--data) with objects that it finds"
            )
        _put(Path(folder), place, overwrite)
    return Exported(
        path=place,
        format=format,
        precision=precision,
        metadata=program.metadata,
        checks=seen.checks,
        megabytes=megabytes,
        difference=seen.difference,
        agreement=seen.agreement,
        top1=_top1(seen.logits, samples, positions),
        network_top1=_top1(seen.expected, samples, positions),
        miou=miou_of(seen.logits, samples),
        network_miou=miou_of(seen.expected, samples),
        map=map_of(seen.objects and seen.objects[0], samples),
        network_map=map_of(seen.objects and seen.objects[1], samples),
        agreement_without=program.agreement_without,
        contributions=program.contributions,
        milliseconds=milliseconds[0],
        network_milliseconds=milliseconds[1],
        example=place.with_name(program_name) if program_name else None,
        images=f"checked with {samples.description}" if check else "not checked",
        notes=(*notes, *program.notes),
    )


def _refuse_own_hooks(network: nn.Module, samples: Samples) -> None:
    """Say so where hooks of the user's own take part in what the network computes: a copy has none."""
    changed = changed_by_own_hooks(network, samples.normalised[:1])
    if changed is not None:
        name, what = changed
        raise FoveateError(
            f"a hook of your own on {(name or type(network).__name__)!r} changes what it {what}, and a file is made "
            "without your hooks: put what it does into the network, as a module or in its forward, or remove the hook"
        )


def _place(output: Path, form: Format, network: nn.Module, options: ExportOptions, overwrite: bool) -> Path:
    """The path of the file; one that is there is an error unless it may be replaced."""
    if output.name.endswith(form.suffix):
        place = output
    elif output.suffix and not output.is_dir() and output.suffix not in ("", "."):
        raise FoveateError(f"output={str(output)!r}: a file of {form.name} ends in {form.suffix}; or name a folder")
    else:
        from foveate.networks import origin_of

        origin = origin_of(network)
        name = (origin.name if origin else type(network).__name__).replace("/", "_").replace(":", "_")
        place = output / f"{name}_{options.precision}{form.suffix}"
    make_folder(place.parent, later=True)
    if place.exists() and not overwrite:
        raise _is_there(place)
    return place


def _advice(options: ExportOptions) -> str:
    """What may help."""
    return " (with size=(height, width) it need not take any size)" if options.size == "dynamic" else ""


def _is_there(place: Path) -> FoveateError:
    return FoveateError(f"{place} is there already: overwrite=True (--overwrite) replaces it, or choose another name")


def _batches(samples: Samples, options: ExportOptions) -> tuple[torch.Tensor, ...]:
    count = 1 if options.batch == "dynamic" else int(options.batch)
    whole = len(samples) // count * count
    return tuple(torch.from_numpy(samples.given[start : start + count]) for start in range(0, whole, count))


def _positions(network: nn.Module, samples: Samples, program: Program) -> tuple[int, ...] | None:
    """Where the classes of the data stand among the outputs."""
    if samples.labels is None:
        return None
    with torch.inference_mode():
        count = program.network.network(samples.normalised[:1]).shape[1]
    return class_positions(network, samples.classes, count)


def _top1(logits: torch.Tensor | None, samples: Samples, positions: tuple[int, ...] | None) -> float | None:
    if logits is None or samples.labels is None:
        return None
    return float((logits.argmax(1) == to_outputs(samples.labels, positions)).float().mean())


def _time(program: Program, form: Format, path: Path, samples: Samples) -> tuple[float, float]:
    """Milliseconds of one image, in the file's runtime and in PyTorch, in turns, with the same number of threads."""
    session = form.open(path, torch.get_num_threads())
    count = 1 if program.options.batch == "dynamic" else int(program.options.batch)
    given, normalised = samples.given[:1].repeat(count, axis=0), samples.normalised[:1].repeat(count, 1, 1, 1)

    def eager() -> None:
        with torch.inference_mode():
            program.network.network(normalised)

    rounds = interleaved((lambda: session.run(given), eager), _ROUNDS, warmup=5, seconds=_SECONDS)
    times = [1000 * Quantiles.of([each[n] for each in rounds]).median / count for n in (0, 1)]
    return times[0], times[1]


def _put(folder: Path, place: Path, overwrite: bool) -> None:
    """Move everything that was written to its place; the file that is named comes last."""
    made = sorted(folder.iterdir(), key=lambda path: path.name == place.name)
    for path in made:
        there = place.parent / path.name
        if there.exists() and not overwrite:
            raise FoveateError(
                f"{there}, which belongs to {place.name}, is there already: overwrite=True (--overwrite) replaces it, "
                "or choose another name"
            )
    for path in made:
        there = place.parent / path.name
        if there.is_dir():
            shutil.rmtree(there)
        path.replace(there)
