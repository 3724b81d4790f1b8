"""A detector seen as a classifier: what is explained is the score of a box, or the sum of several boxes' scores.

    y = score of the box        then as Grad-CAM, with y in the place of the logit

So pytorch-grad-cam explains detectors (its tutorial on object detection), which finds the box again by its overlap;
here the second pass is the same as the first, and the box is the same one. A score is a probability: for one box its
gradient has the direction of the gradient of the class's log-odds, so that but for the scale the map is the same. The
places of the regions that a score is computed from have no gradient in torchvision's detectors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from foveate.dense import Detector
from foveate.errors import FoveateError
from foveate.explanations.dense.objects import ImageObjects
from foveate.explanations.mask_overlay import SURE
from foveate.networks.class_names import stored_names
from foveate.preserve import preserve_state

__all__ = ["Boxes", "box_scores", "class_labels", "find_objects", "layer_of_boxes"]

ALL = "all"


class Boxes:
    """Which of the objects that a detector finds are explained.

    Args:
        given: the number of a box in the order of the scores, counted from 1, or one for each image; "all": those with
            a score of 0.5 or more; without it the best one.
        by_class: whether a class is given, too, whose boxes alone count.
        count: how many images there are.

    Raises:
        FoveateError: it is something else, or there is a number and a class.
    """

    def __init__(self, given: int | str | Sequence[int] | None, by_class: bool, count: int) -> None:
        numbers = [given] * count if isinstance(given, int) or given is None else given
        right = numbers == ALL or (
            isinstance(numbers, list | tuple)
            and len(numbers) == count
            and all(one is None or (type(one) is int and one > 0) for one in numbers)
        )
        if not right:
            raise FoveateError(
                f"box={given!r}: give the number of a box, counted from 1 by its score, one for each of the {count} "
                "images, or 'all'"
            )
        if by_class and given is not None and given != ALL:
            raise FoveateError("box= is a box already: leave target= out, or say box='all' for all boxes of the class")
        self.numbers = None if isinstance(numbers, str) else list(numbers)
        self.by_class = by_class
        self.given = given

    @property
    def text(self) -> str:
        """What is said of it beside a map."""
        if self.numbers is None:
            return "score of all boxes of the class" if self.by_class else "score of all boxes"
        if self.given is None:
            return "score of the best box of the class" if self.by_class else "score of the best box"
        return f"score of box {self.given}" if isinstance(self.given, int) else "score of the chosen box"

    def of(self, found: ImageObjects, label: int | None, index: int, name: str, labels: tuple[str, ...]) -> list[int]:
        """The objects of one image that are explained, by index.

        Args:
            found: of the image.
            label: the class.
            index: the image's number.
            name: of the image, for the error.
            labels: names of the classes, for the error.

        Raises:
            FoveateError: there is no such box.
        """
        there = [n for n, one in enumerate(found.classes.tolist()) if label is None or one == label]
        kind = "object" if label is None else f"object of class {labels[label] if labels else label}"
        if not there:
            raise FoveateError(
                f"{name}: no {kind} was found, so there is none to explain: look at what fv.predict finds, or use "
                "method='attention'"
            )
        if self.numbers is None:
            sure = [n for n in there if float(found.scores[n]) >= SURE]
            if not sure:
                raise FoveateError(
                    f"{name}: no {kind} has a score of {SURE:g} or more; without box= the best one is explained"
                )
            return sure
        number = self.numbers[index] or 1
        if number > len(there):
            raise FoveateError(f"{name}: box={number}: {len(there)} objects were found, counted from 1 by their score")
        return [there[number - 1]]


def find_objects(model: Detector, images: Tensor) -> list[ImageObjects]:
    """What a detector finds in images, the highest score first. The model is left as found."""
    with preserve_state(model, evaluation=True, no_grad=True):
        found = model(images.clone())
    return [ImageObjects(one["boxes"].float().cpu(), one["scores"].float().cpu(), one["labels"].cpu()) for one in found]


@contextlib.contextmanager
def box_scores(
    model: Detector, images: Tensor, found: Sequence[ImageObjects], chosen: Sequence[Sequence[int]]
) -> Iterator[None]:
    """Inside, for these images, a detector gives (B, 2): the sum of the chosen boxes' scores, and 0.

    Args:
        model: gives boxes.
        images: (B, C, H, W).
        found: what it finds in them.
        chosen: the indices of each image's boxes.

    Raises:
        FoveateError: it finds something else this time.
    """

    def hook(_: nn.Module, inputs: tuple[object, ...], output: list[dict[str, Tensor]]) -> Tensor:
        given = inputs[0]
        scores = images.new_zeros(len(output), 2, dtype=torch.float32)
        if not isinstance(given, Tensor) or given.shape != images.shape or not torch.equal(given, images):
            return scores  # a pass that only looks for shapes
        rows = []
        for one, before, indices in zip(output, found, chosen, strict=True):
            if not torch.equal(one["labels"].cpu(), before.classes):
                raise FoveateError("the detector finds other objects each time: nothing of it may be random")
            rows.append(one["scores"][list(indices)].float().sum())
        score = torch.stack(rows)
        return torch.stack([score, torch.zeros_like(score)], 1)

    handle = model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def layer_of_boxes(model: Detector) -> str | None:
    """The layer that each box depends on, by name; None: the trunk's last feature map.

    Behind a feature pyramid every map has a part of the trunk's last one. SSDLite's boxes have one map each, and the
    finest that it reads is what the others are made from.
    """
    if hasattr(model.decoder, "fpn"):
        return None
    info = model.backbone.feature_info
    entries = list(info) if model.taps.whole else info.get_dicts()  # type: ignore[operator,union-attr,arg-type]  # timm's
    name = str(entries[model.taps.indices[0]]["module"])
    modules = dict(model.named_modules())
    names = (f"backbone.{name}", f"backbone.{name.replace('.', '_')}")
    return next((one for one in names if one in modules), None)


def class_labels(model: Detector) -> tuple[str, ...]:
    """A name for each class; empty where the model carries none."""
    return stored_names(model, model.num_classes)
