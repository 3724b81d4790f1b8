"""From what a user gives as data to a data set and its task."""

from __future__ import annotations

import os
from typing import Any

from foveate.data.detection import DetectionData, find_detection, open_detection
from foveate.data.opening import open_data
from foveate.data.segmentation import SegmentationData, find_segmentation, open_segmentation
from foveate.data.split import ImageData
from foveate.dense import Detector
from foveate.training.tasks.classification import Classification
from foveate.training.tasks.detection import Detection, InstanceSegmentation
from foveate.training.tasks.segmentation import Segmentation
from foveate.training.tasks.task import Task

__all__ = ["AnyData", "OpenedData", "open_for_task"]

OpenedData = ImageData | SegmentationData | DetectionData
AnyData = OpenedData | str | os.PathLike[str]


def open_for_task(data: AnyData, model: object = None) -> tuple[Any, Task]:
    """A data set and what a network is trained for on it.

    A folder of images beside label maps is for segmentation, one of images with boxes for detection.

    Args:
        data: see ``fit``.
        model: what is trained; a detector with masks is trained for them, too.

    Raises:
        FoveateError: the data cannot be opened.
    """
    if isinstance(data, SegmentationData) or find_segmentation(data):
        return open_segmentation(data), Segmentation()  # type: ignore[arg-type]  # find_segmentation takes paths alone
    if isinstance(data, DetectionData) or find_detection(data):
        masks = isinstance(model, Detector) and model.with_masks
        return open_detection(data), InstanceSegmentation() if masks else Detection()  # type: ignore[arg-type]  # find_detection takes paths alone
    return open_data(data), Classification()
