"""What is otherwise where a segmentation network is exported: the options that it can have, its data, its mIoU."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from foveate.data.detection import DetectionData
from foveate.data.segmentation import SegmentationData
from foveate.dense import Detector, Segmenter
from foveate.errors import FoveateError
from foveate.exporters.format import Format
from foveate.exporters.options import ExportOptions, refuse_asked
from foveate.exporters.sample_images import Samples, SampleSource
from foveate.networks.class_names import stored_names
from foveate.training.tasks.segmentation_metrics import class_ious, score_counts

__all__ = ["check_fits", "for_pixels", "miou_of"]


def for_pixels(form: Format, options: ExportOptions, notes: list[str], *, example: bool) -> ExportOptions:
    """The options of a segmentation network's file: images of any size, where the format can and none was named.

    Raises:
        FoveateError: something was asked for that such a file does not have.
    """
    refused = {
        "precision='int8'": options.precision == "int8",
        "maps=": bool(options.maps),
        "softmax=True": options.softmax,
        "top=": bool(options.top),
        "example=True": example,
    }
    refuse_asked(
        refused,
        "is for classifiers: a segmentation network is exported in fp32 or fp16, and its file gives the scores of each "
        "pixel",
    )
    if options.size is not None:
        return options
    if form.dynamic_size:
        return replace(options, size="dynamic")
    notes.append(f"{form.name} takes images of one size: this file takes the network's own; size= names another")
    return options


def check_fits(network: nn.Module, source: SampleSource) -> None:
    """Make sure that data is for what the network does.

    Raises:
        FoveateError: the data are for another task than the network, or of other classes.
    """
    maps, pixels = isinstance(source.data, SegmentationData), isinstance(network, Segmenter)
    boxes, objects = isinstance(source.data, DetectionData), isinstance(network, Detector)
    if boxes and not objects:
        raise FoveateError("this data has boxes, and the model is not a detector: give data for what the model does")
    if objects and not boxes:
        raise FoveateError("this is a detector: give data with boxes, or none")
    if maps and not pixels:
        raise FoveateError("this data has label maps, and the model is a classifier: give images with one class each")
    if pixels and not maps:
        raise FoveateError("this is a segmentation network: give data with label maps, or none")
    classes = source.data.classes
    names = stored_names(network, len(classes)) if pixels or objects else ()
    if names and names != classes:
        raise FoveateError("the model's classes are not the data's in the same order: give data of the model's classes")


def miou_of(scores: Tensor | None, samples: Samples) -> float | None:
    """MIoU of scores (N, K, h, w) at the label maps' own size, 0 to 1; None without scores or label maps."""
    if scores is None or not samples.targets:
        return None
    total = None
    for each, target in zip(scores, samples.targets, strict=True):
        found = score_counts(each, target.long(), scores.shape[1])
        if found is None:
            return None
        total = found[0] if total is None else total + found[0]
    return None if total is None else float(class_ious(total).nanmean())
