"""What a detector finds in images, beside what is there: in pixels of the files, from all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foveate.data.detection.masks import InstanceMasks
from foveate.data.detection.split import Objects
from foveate.training.input.sampler import Batch

__all__ = ["MOST", "CollectedObjects", "collect_objects", "gathered", "in_pixels_of_the_file", "masks_of_the_file"]

MOST = 100  # objects of an image that count
_SURE = 0.5  # the least probability of a pixel that belongs to a mask
_AT_ONCE = 8  # masks that are in memory in the size of the file

Gather = Callable[[Tensor], Tensor]


class CollectedObjects(NamedTuple):
    """What a model finds in N images, and what is there.

    Args:
        found: of each image (n, 6), as ``in_pixels_of_the_file``, the best 100.
        objects: what is there.
        masks: those of ``found``; None where the model has none.
    """

    found: list[Tensor]
    objects: list[Objects]
    masks: list[InstanceMasks] | None = None


def collect_objects(forward: Callable[[Any], Any], batches: Iterable[Batch]) -> CollectedObjects:
    """What a model finds in each image, and what is there; without gradients.

    Args:
        forward: what the model gives for the inputs of a batch, masks each of its box alone.
        batches: of ``BoxLoader``.
    """
    found: list[Tensor] = []
    objects: list[Objects] = []
    masks: list[InstanceMasks] = []
    with torch.no_grad():
        for inputs, targets in batches:
            for one, target in zip(forward(inputs), targets, strict=True):
                found.append(in_pixels_of_the_file(one, target.size, target.input_size)[:MOST])
                objects.append(target.objects)
                if "masks" in one:
                    masks.append(masks_of_the_file(one, target.size, target.input_size, MOST))
    return CollectedObjects(found, objects, masks or None)


def in_pixels_of_the_file(one: Mapping[str, Tensor], size: tuple[int, int], input_size: tuple[int, int]) -> Tensor:
    """(n, 6) on the CPU: left, top, right, bottom, score, class, the highest score first.

    Args:
        one: what a detector found in one image.
        size: height and width of the file.
        input_size: height and width of what the detector saw.
    """
    columns = [_boxes(one, size, input_size), one["scores"][:, None], one["labels"][:, None]]
    rows = torch.cat([column.float() for column in columns], 1).cpu()
    return rows[rows[:, 4].argsort(descending=True, stable=True)]


def masks_of_the_file(
    one: Mapping[str, Tensor], size: tuple[int, int], input_size: tuple[int, int], most: int | None = None
) -> InstanceMasks:
    """The masks in the order of ``in_pixels_of_the_file``, at the size of the file.

    Each is pasted into its box there, as torchvision does it; a pixel of a probability of .5 or more belongs to it.

    Args:
        one: what a detector found in one image, with masks (n, 1, m, m), each of its box alone.
        size: height and width of the file.
        input_size: height and width of what the detector saw.
        most: how many, at most.
    """
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    order = one["scores"].float().cpu().argsort(descending=True, stable=True)[:most].to(one["scores"].device)
    boxes, masks = _boxes(one, size, input_size)[order], one["masks"][order].float()
    runs: tuple[bytes | None, ...] = ()
    for start in range(0, len(order), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        pasted = paste_masks_in_image(masks[part], boxes[part], size)[:, 0] >= _SURE
        runs += InstanceMasks.of(pasted.cpu().numpy()).runs
    return InstanceMasks(size, runs)


def _boxes(one: Mapping[str, Tensor], size: tuple[int, int], input_size: tuple[int, int]) -> Tensor:
    return one["boxes"].float() * one["boxes"].new_tensor(
        [size[1] / input_size[1], size[0] / input_size[0]] * 2, dtype=torch.float32
    )


def gathered(collected: CollectedObjects, gather: Gather) -> CollectedObjects:
    """The same of all processes, in the order of the images.

    Args:
        collected: of this process's images.
        gather: from rows for the images of this process to rows for all images.
    """
    there = [
        torch.cat(
            [
                torch.from_numpy(one.boxes),
                torch.from_numpy(one.labels)[:, None],
                torch.from_numpy(one.ignored)[:, None],
            ],
            1,
        )
        for one in collected.objects
    ]
    found, known = _rows(collected.found, 6, torch.float32, gather), _rows(there, 6, torch.float32, gather)
    masks = _masks(collected.masks or [None] * len(collected.found), gather)
    none: list[InstanceMasks | None] = [None] * len(known)
    of_objects = _masks([one.masks for one in collected.objects], gather) or none
    objects = [
        Objects(of[:, :4].numpy(), of[:, 4].long().numpy(), of[:, 5].bool().numpy(), own)
        for of, own in zip(known, of_objects, strict=True)
    ]
    return CollectedObjects(found, objects, masks)


def _rows(rows: list[Tensor], width: int, dtype: torch.dtype, gather: Gather) -> list[Tensor]:
    """Tables (n, width) of any length, one for each image."""
    counts = gather(torch.tensor([len(of) for of in rows], dtype=torch.int64))
    padded = torch.zeros(len(rows), max(1, int(counts.max())), width, dtype=dtype)
    for place, of in zip(padded, rows, strict=True):
        place[: len(of)] = of
    whole = gather(padded)
    return [of[:count] for of, count in zip(whole, counts.tolist(), strict=True)]


def _masks(masks: Sequence[InstanceMasks | None], gather: Gather) -> list[InstanceMasks] | None:
    """Run lengths as numbers: how many bytes each has (-1: its mask is not known), and all bytes in a row."""
    if not gather(torch.tensor([one is not None for one in masks], dtype=torch.int64)).any():
        return None
    empty = InstanceMasks((0, 0), ())
    own = [empty if one is None else one for one in masks]
    sizes = gather(torch.tensor([one.size for one in own], dtype=torch.int64).view(-1, 2)).tolist()
    lengths = [torch.tensor([-1 if run is None else len(run) for run in one.runs]).view(-1, 1) for one in own]
    texts = [torch.tensor(list(b"".join(run or b"" for run in one.runs)), dtype=torch.uint8)[:, None] for one in own]
    every = zip(sizes, _rows(lengths, 1, torch.int64, gather), _rows(texts, 1, torch.uint8, gather), strict=True)
    found = []
    for (height, width), counts, text in every:
        whole, at, runs = bytes(text.flatten().tolist()), 0, []
        for count in counts.flatten().tolist():
            runs.append(None if count < 0 else whole[at : at + count])
            at += max(0, count)
        found.append(InstanceMasks((height, width), tuple(runs)))
    return found
