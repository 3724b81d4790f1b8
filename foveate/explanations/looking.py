"""One batch looked at by one method: of a classifier, of a network of pixels, of a detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from foveate.dense import Detector
from foveate.explanations.attention import attention_maps
from foveate.explanations.cam import cam
from foveate.explanations.dense.detection import Boxes, box_scores, class_labels, find_objects, layer_of_boxes
from foveate.explanations.dense.objects import ImageObjects
from foveate.explanations.dense.segmentation import (
    Region,
    classes_and_shares,
    predicted_pixels,
    region_scores,
    sums_over,
)
from foveate.explanations.dense.windows import Windows, scores_in_windows, weighted_map_in_windows
from foveate.explanations.gradcam import gradcam
from foveate.explanations.gradcam_pp import gradcam_pp
from foveate.explanations.hirescam import hirescam
from foveate.explanations.layers import Layer, check_targets, find_layer
from foveate.explanations.result import Map
from foveate.explanations.transformers.maps import TokenMaps

__all__ = ["METHODS", "OF_A_CLASS", "Found", "Looker"]

OF_A_CLASS: dict[str, Callable[..., tuple[Tensor, Map]]] = {
    "cam": cam,
    "gradcam": gradcam,
    "gradcam++": gradcam_pp,
    "hirescam": hirescam,
}
METHODS = ("attention", *OF_A_CLASS)


@dataclass(frozen=True, eq=False)
class Found:
    """Of one batch.

    Args:
        scores: (B, classes), logits; of pixels the share of each class; of a detector each class's best score.
        maps: each (B, h, w).
        channels: names and channel weights, each (B, c).
        masks: (B, h, w), of pixels the classes.
        objects: of a detector, for each image.
    """

    scores: Tensor
    maps: list[Map]
    channels: list[tuple[str, Tensor]]
    masks: Tensor | None = None
    objects: tuple[ImageObjects, ...] = ()


@dataclass(frozen=True, eq=False)
class Looker:
    """A method, and what it looks at.

    Args:
        model: the network; left as found.
        method: one of ``METHODS``.
        layer: the dotted name of a layer, for the methods with gradients.
        names: of all images.
        wanted: which maps of a vision transformer.
        region: of a network of pixels, those that are explained.
        boxes: of a detector, those that are explained.
        window: of a network of pixels, the side of the windows that it sees an image in; None: the image at once.
    """

    model: nn.Module
    method: str
    layer: str | None
    names: Sequence[str]
    wanted: TokenMaps
    region: Region | None = None
    boxes: Boxes | None = None
    window: int | None = None

    def where(self, first: Tensor) -> Layer | None:
        """The layer that the method looks at; None for the modules' own maps.

        Args:
            first: images of the size of all.

        Raises:
            FoveateError: there is no such layer.
        """
        if self.method == "attention":
            return None
        name = self.layer
        if name is None and isinstance(self.model, Detector):
            name = layer_of_boxes(self.model)
        if self.window is not None:
            first = Windows(self.window, (first.shape[2], first.shape[3])).cut(first[:1])
        dense = self.region is not None or self.boxes is not None
        return find_layer(self.model, first, name, within="backbone" if dense else "")

    def look(self, batch: Tensor, where: Layer | None, classes: list[int] | None, start: int) -> Found:
        """Look at a batch.

        Args:
            batch: (B, C, H, W).
            where: what ``where`` gave.
            classes: of each image.
            start: the number of the first image.

        Raises:
            FoveateError: as ``explain``.
        """
        if self.region is not None and self.window is not None:
            parts = [
                self._windows(self.region, self.window, image[None], where, classes[n] if classes else None, start + n)
                for n, image in enumerate(batch)
            ]
            return _together(parts)
        if self.region is not None:
            return self._pixels(self.region, batch, where, classes, start)
        if self.boxes is not None and isinstance(self.model, Detector):
            return self._objects(self.model, self.boxes, batch, where, classes, start)
        return self._classes(batch, where, classes)

    def _classes(self, batch: Tensor, where: Layer | None, classes: list[int] | None) -> Found:
        if where is None:
            return Found(*attention_maps(self.model, batch, classes, self.wanted))
        logits, found = OF_A_CLASS[self.method](self.model, batch, where, classes)
        return Found(logits, [found], [])

    def _pixels(
        self, region: Region, batch: Tensor, where: Layer | None, classes: list[int] | None, start: int
    ) -> Found:
        predicted, shares = predicted_pixels(self.model, batch)
        chosen = classes or shares.argmax(1).tolist()
        check_targets(chosen, shares.shape[1])
        region_or_all = region if where is not None else Region("image", 1)  # own maps depend on no region
        names = self.names[start : start + len(batch)]
        with region_scores(self.model, region_or_all, predicted, chosen, start, names):
            found = self._classes(batch, where, chosen)
        maps = found.maps
        if where is not None:
            maps = [replace(one, name=f"{one.name}, {region.text}") for one in maps]
        return Found(shares, maps, found.channels, predicted.to(torch.uint8).cpu())

    def _windows(
        self, region: Region, side: int, image: Tensor, where: Layer | None, label: int | None, number: int
    ) -> Found:
        windows = Windows(side, (image.shape[2], image.shape[3]))
        views = windows.cut(image)
        predicted, shares = classes_and_shares(scores_in_windows(self.model, windows, views))
        label = int(shares.argmax(1)) if label is None else label
        check_targets([label], shares.shape[1])
        if where is not None:
            region.check(predicted, [label], [self.names[number]])
            inside = windows.cut(region.of(predicted, shares.shape[1], number, number + 1))
            found = weighted_map_in_windows(self.method, self.model, windows, views, inside, where, label)
            maps = [replace(found, name=f"{found.name}, {region.text}, in windows")]
            return Found(shares, maps, [], predicted.to(torch.uint8).cpu())
        with sums_over(self.model, len(views), lambda _: torch.ones_like(views[:, :1], dtype=torch.bool)):
            _, own, channels = attention_maps(self.model, views, [label] * len(views), self.wanted)
        maps = [
            Map(f"{one.name}, in windows", windows.join(one.values[:, None])[:, 0], one.module, _first(one.targets))
            for one in own
        ]
        means = [(name, weights.mean(0, keepdim=True)) for name, weights in channels]
        return Found(shares, maps, means, predicted.to(torch.uint8).cpu())

    def _objects(
        self, model: Detector, boxes: Boxes, batch: Tensor, where: Layer | None, classes: list[int] | None, start: int
    ) -> Found:
        if classes is not None:
            check_targets(classes, model.num_classes)
        objects = find_objects(model, batch)
        chosen: list[list[int]] = [[] for _ in objects]
        if where is not None:
            names, labels = self.names[start:], class_labels(model)
            chosen = [
                boxes.of(one, classes[n] if classes else None, start + n, names[n], labels)
                for n, one in enumerate(objects)
            ]
        with box_scores(model, batch, objects, chosen):
            found = self._classes(batch, where, None if where is None else [0] * len(batch))
        maps = found.maps
        if where is not None:
            maps = [replace(one, name=f"{one.name}, {boxes.text}") for one in maps]
        best = torch.zeros(len(objects), model.num_classes)
        for row, one in zip(best, objects, strict=True):
            row.scatter_reduce_(0, one.classes, one.scores, "amax")
        explained = tuple(replace(one, explained=tuple(indices)) for one, indices in zip(objects, chosen, strict=True))
        return Found(best, maps, found.channels, None, explained)


def _first(targets: Tensor | None) -> Tensor | None:
    return None if targets is None else targets[:1]


def _together(parts: list[Found]) -> Found:
    """Images that were looked at one by one."""
    maps = [
        replace(
            same[0],
            values=torch.cat([one.values for one in same]),
            targets=None
            if same[0].targets is None
            else torch.cat([one.targets for one in same if one.targets is not None]),
        )
        for same in zip(*(part.maps for part in parts), strict=True)
    ]
    channels = [
        (same[0][0], torch.cat([weights for _, weights in same]))
        for same in zip(*(part.channels for part in parts), strict=True)
    ]
    masks = torch.cat([part.masks for part in parts if part.masks is not None])
    return Found(torch.cat([part.scores for part in parts]), maps, channels, masks)
