"""A detector of one image with outputs of fixed sizes: what an exported file does, non-maximum suppression within.

torchvision's parts decide with Python's own loops and give lists of any length, which no graph can hold. Here the same
steps are written over all candidates at once; rows that are left over have the class -1 and the score 0. A threshold
after the suppression keeps what one before it does: a box with a lower score suppresses none with a higher one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms, roi_align

from foveate.dense.detection.detector import Detector
from foveate.dense.detection.rcnn import FasterRCNNDecoder
from foveate.dense.detection.ssdlite import SSDLiteDecoder

__all__ = ["fixed_objects"]

_TINY_PROPOSAL, _TINY_OBJECT = 1e-3, 1e-2  # pixels of a side, as torchvision has them


def fixed_objects(detector: Detector, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a detector in evaluation mode finds in one image.

    Args:
        detector: of ``create_detector``.
        image: (1, C, H, W), normalised.

    Returns:
        (1, n, 4) boxes, left, top, right and bottom in pixels of the input; (1, n) scores, the highest first; (1, n)
        int64 classes from 0 on, -1 where there is no object: n is the detector's ``detections``.
    """
    decoder = detector.decoder
    size = image.shape[-2:]
    height, width = (-side % int(decoder.divisor) for side in size)
    padded = F.pad(image, (0, width, 0, height))  # as PaddedImages does it, where the sides may not be known yet
    maps = detector.taps.read(detector.backbone, padded)
    if isinstance(decoder, SSDLiteDecoder):
        boxes, scores, labels = _of_ssdlite(decoder, maps, size)
    else:
        boxes, scores, labels = _of_rcnn(decoder, maps, padded.shape[-2:], size)
    return boxes[None], scores[None], labels[None]


def _of_ssdlite(decoder: SSDLiteDecoder, maps: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    ssd, every = decoder.ssd, list(maps)
    for halve in ssd.backbone:
        every.append(halve(every[-1]))
    outputs = ssd.head(every)
    anchors = _default_boxes(ssd.anchor_generator._wh_pairs, [x.shape[-2:] for x in every], size, every[0])
    boxes = _within(ssd.box_coder.decode_single(outputs["bbox_regression"][0], anchors), size)
    scores = outputs["cls_logits"][0].softmax(-1)[:, 1:]  # (A, K)
    most = ssd.topk_candidates
    boxes, scores = F.pad(boxes, (0, 0, 0, most)), F.pad(scores, (0, 0, 0, most), value=-1.0)
    best, index = scores.topk(most, dim=0)
    labels = torch.arange(best.shape[1], device=best.device).expand_as(best)
    of = boxes[index].flatten(0, 1), best.flatten(), labels.flatten()
    return _best(*of, of[1] > ssd.score_thresh, ssd.nms_thresh, ssd.detections_per_img)


def _of_rcnn(
    decoder: FasterRCNNDecoder, maps: Sequence[Tensor], padded: Sequence[int], size: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    pyramid = list(decoder._pyramid(maps).values())
    regions = _proposals(decoder, pyramid, padded, size)
    heads = decoder.roi_heads
    values = heads.box_head(_aligned(pyramid[:-1], decoder.strides, regions))
    logits, places = heads.box_predictor(values)
    scores = logits.softmax(-1)[:, 1:]  # (R, K)
    boxes = _within(heads.box_coder.decode_single(places, regions).unflatten(1, (-1, 4))[:, 1:].flatten(0, 1), size)
    labels = torch.arange(scores.shape[1], device=scores.device).expand_as(scores).flatten()
    flat = scores.flatten()
    valid = (flat > heads.score_thresh) & _large(boxes, _TINY_OBJECT)
    return _best(boxes, flat, labels, valid, heads.nms_thresh, heads.detections_per_img)


def _proposals(
    decoder: FasterRCNNDecoder, pyramid: Sequence[Tensor], padded: Sequence[int], size: Sequence[int]
) -> Tensor:
    """(R, 4) regions that may hold an object, as many as there are."""
    rpn = decoder.rpn
    objectness, deltas = rpn.head(pyramid)
    boxes, scores, levels = [], [], []
    for level, (own, moved) in enumerate(zip(objectness, deltas, strict=True)):
        height, width = own.shape[-2:]
        cells = rpn.anchor_generator.cell_anchors[level].to(own)
        y, x = (
            torch.arange(count, device=own.device) * (whole // count)
            for count, whole in zip((height, width), padded, strict=True)
        )
        corner = _grid(y, x).to(own)  # (hw, 2)
        anchors = (torch.cat([corner, corner], 1)[:, None] + cells[None]).flatten(0, 1)
        flat = own[0].permute(1, 2, 0).flatten()
        most = rpn.pre_nms_top_n()
        # A small map has fewer anchors: what is filled up is an empty box, and left out as one.
        best, index = F.pad(flat, (0, most), value=-torch.inf).topk(most)
        of_anchors = F.pad(moved[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).flatten(0, 2), (0, 0, 0, most))
        anchors = F.pad(anchors, (0, 0, 0, most))
        boxes.append(rpn.box_coder.decode_single(of_anchors[index], anchors[index]))
        scores.append(best.sigmoid())
        levels.append(torch.full_like(index, level))
    every = _within(torch.cat(boxes), size)
    valid = _large(every, rpn.min_size)
    kept = _suppressed(every, torch.cat(scores), torch.cat(levels), valid, rpn.nms_thresh)
    most = rpn.post_nms_top_n()
    regions = every[kept[torch.ones_like(kept).cumsum(0) <= most]]  # a slice's length would not be followed
    torch._check(regions.shape[0] <= most)  # len() asks for a number that is not known yet
    return regions


def _aligned(maps: Sequence[Tensor], strides: Sequence[int], regions: Tensor) -> Tensor:
    """(R, C, 7, 7): each region is read from the map of its own scale (Lin et al., section 4.2)."""
    side = (regions[:, 2:] - regions[:, :2]).prod(1).sqrt()
    finest, coarsest = (strides[at].bit_length() - 1 for at in (0, -1))
    level = (4 + (side / 224 + 1e-6).log2()).floor().clamp(finest, coarsest).long() - finest
    batch = F.pad(regions, (1, 0))  # all of the first image
    places, found = [], []
    for at, (x, stride) in enumerate(zip(maps, strides, strict=True)):
        places.append((level == at).nonzero()[:, 0])
        found.append(roi_align(x, batch[places[-1]], 7, 1 / stride, sampling_ratio=2))
    return torch.cat(found)[torch.cat(places).argsort()]


def _default_boxes(
    shapes: Sequence[Tensor], sizes: Sequence[Sequence[int]], size: Sequence[int], like: Tensor
) -> Tensor:
    """(A, 4) of SSD, left, top, right, bottom in pixels."""
    found = []
    for pairs, (height, width) in zip(shapes, sizes, strict=True):
        y, x = ((torch.arange(count, device=like.device) + 0.5) / count for count in (height, width))
        centre = _grid(y, x)[:, None]
        half = pairs.to(like.device).clamp(0, 1)[None] / 2
        found.append(torch.cat([centre - half, centre + half], -1).flatten(0, 1))
    height, width = size
    return torch.cat(found).to(like) * _sides(size, like)


def _grid(y: Tensor, x: Tensor) -> Tensor:
    """(h w, 2) from (h,) and (w,): x and y of each position, row by row."""
    return torch.stack([x[None].expand(y.shape[0], -1), y[:, None].expand(-1, x.shape[0])], -1).flatten(0, 1)


def _sides(size: Sequence[int], like: Tensor) -> Tensor:
    """(4,) width, height, width, height of an image, also where they are not known yet."""
    height, width = (like.new_ones(()) * side for side in size)
    return torch.stack([width, height, width, height])


def _within(boxes: Tensor, size: Sequence[int]) -> Tensor:
    return boxes.clamp(min=0).minimum(_sides(size, boxes))


def _large(boxes: Tensor, least: float) -> Tensor:
    return ((boxes[:, 2:] - boxes[:, :2]) >= least).all(1)


def _suppressed(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, overlap: float) -> Tensor:
    """Which boxes non-maximum suppression within each group leaves, the highest score first.

    Args:
        boxes: (n, 4).
        scores: (n,).
        groups: (n,): boxes of two groups suppress none of the other's.
        valid: (n,): the others are left out.
        overlap: intersection over union from which on a box is suppressed.
    """
    candidates = valid.nonzero()[:, 0]
    apart = boxes + (groups.to(boxes) * (boxes.max() + 1))[:, None]
    return candidates[nms(apart[candidates], scores[candidates], overlap)]


def _best(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, overlap: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes (most, 4), scores (most,) and groups (most,) of what :func:`_suppressed` leaves.

    With fewer, the rows that are left over have the score 0 and the group -1.
    """
    kept = _suppressed(boxes, scores, groups, valid, overlap)
    ranked = torch.full_like(scores, -1).index_copy(0, kept, scores[kept])
    best, index = F.pad(ranked, (0, most), value=-1.0).topk(most)
    there = best >= 0
    index = torch.where(there, index, 0)
    return boxes[index] * there[:, None], best.clamp(min=0), torch.where(there, groups[index], -1)
