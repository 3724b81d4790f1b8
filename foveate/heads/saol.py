"""SAOL: each position gives its classes, a map says how much each counts; both are learned, and nothing is pooled.

Kim, Baek, Kim: Spatially Attentive Output Layer for Image Classification, CVPR 2020, https://arxiv.org/abs/2004.07570

    A   = softmax over positions of conv(relu(BN(conv(X_L))))          X_L: the last feature map; A: (h, w)
    Y   = softmax over classes of conv([..., resize(relu(BN(conv(X_l)))), ...])         Y: (K, h, w)
    y_k = sum_ij A_ij Y_kij

y is a probability already, so the scores are log y: their softmax is y, their cross-entropy the likelihood.

Two more losses for training, with their equations in docs/heads/saol.md. Distillation trains a pooled linear classifier
beside this one, to the same answer. Self-supervision pastes a box of one image into another (CutMix, Yun et al., ICCV
2019, https://arxiv.org/abs/1905.04899), to be found again, and to look as it did where it comes from.

The authors published no code. The widths, the kernels (all 1x1) and the batch norms are ours, and details of the
two losses are our reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import FoveateError, near

__all__ = ["SpatiallyAttentiveOutput"]

TEACHERS = ("saol", "gap")
BETA = 0.5  # the weight of the pooled classifier's own cross-entropy, as in the paper


@dataclass(frozen=True)
class _Kept:
    """Of a forward pass in training: its scores and log Y (B, K, h, w), the box's (B, h, w), the pooled ones (B, K)."""

    scores: Tensor
    log_positions: Tensor
    box: Tensor | None
    pooled: Tensor | None


class SpatiallyAttentiveOutput(nn.Module):
    """A classifier of positions, and a map of how much they count.

    Args:
        channels: C_l, the channels of each feature map, the coarsest last.
        features: D, the width of the pooled vector, which only ``distillation`` uses.
        classes: K.
        width: of the hidden layers: of the map, and of each feature map's part of what the positions see. Ours: 256.
        distillation: weight of the distillation loss; 0 has neither it nor the pooled classifier. 1 is the plain sum.
        teacher: who teaches in the distillation: ``saol`` (the paper) or ``gap``, the pooled classifier.
        self_supervision: weight of the two CutMix losses; 0 has neither them nor the layer that looks for the box. 1
            is the plain sum.

    Shape:
        maps: (B, C_l, h_l, w_l) each; pooled: (B, D) -> (B, K), log-probabilities. The map: (B, h, w), of the last.

    Raises:
        FoveateError: an option's value does not exist, or a size is less than 1; in ``forward``: another number of
            feature maps; in ``training_loss``: no forward pass in training before it.
    """

    map_axes = "b h w"
    levels = 3

    def __init__(
        self,
        channels: Sequence[int],
        features: int,
        classes: int,
        *,
        width: int = 256,
        distillation: float = 0.0,
        teacher: str = "saol",
        self_supervision: float = 0.0,
    ) -> None:
        super().__init__()
        if teacher not in TEACHERS:
            raise FoveateError(f"saol(teacher={teacher!r}) does not exist; {near(teacher, TEACHERS)}")
        if not channels or min(*channels, features, classes, width) < 1:
            raise FoveateError(
                f"saol reads at least one feature map, and no size is below 1: channels={tuple(channels)}, "
                f"features={features}, classes={classes}, width={width}"
            )
        for option, weight in (("distillation", distillation), ("self_supervision", self_supervision)):
            if not 0 <= weight < float("inf"):
                raise FoveateError(f"saol({option}={weight}): a loss's weight is 0 or more; 1 is the plain sum")
        self.distillation, self.teacher, self.self_supervision = distillation, teacher, self_supervision
        last = channels[-1]
        self.map = nn.Sequential(*_hidden(last, width), nn.Conv2d(width, 1, 1, bias=False))
        self.reduce = nn.ModuleList(nn.Sequential(*_hidden(channel, width)) for channel in channels)
        self.places = nn.Conv2d(len(channels) * width, classes, 1)
        self.gap = nn.Linear(features, classes) if distillation else None
        self.box = nn.Conv2d(last, 1, 1) if self_supervision else None
        # What a training step remembers. The names are plain, so that ``fit`` puts them back after an error.
        self.kept: _Kept | None = None
        self.pasted: Tensor | None = None

    def __getstate__(self) -> dict[str, object]:
        """A copy does not take along what a step remembers: tensors inside a graph cannot be copied."""
        return {**self.__dict__, "kept": None, "pasted": None}

    def _spatial(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Log A (B, h, w) and log Y (B, K, h, w)."""
        if len(maps) != len(self.reduce):
            raise FoveateError(f"saol was built for {len(self.reduce)} feature maps and got {len(maps)}")
        scores = self.map(maps[-1]).squeeze(1)
        size = maps[-1].shape[-2:]
        reduced = [reduce(each) for reduce, each in zip(self.reduce, maps, strict=True)]
        resized = [F.interpolate(each, size, mode="bilinear", align_corners=False) for each in reduced[:-1]]
        positions = self.places(torch.cat([*resized, reduced[-1]], 1))
        return scores.flatten(1).log_softmax(1).reshape(scores.shape), positions.log_softmax(1)

    def attend(self, maps: Sequence[Tensor], pooled: Tensor) -> tuple[Tensor, ...]:
        """A, of the last feature map: one map (B, h, w), which sums to 1."""
        return (self._spatial(maps)[0].exp(),)

    def spatial_probabilities(self, maps: Sequence[Tensor]) -> Tensor:
        """Y, what each position sees: (B, K, h, w), which sums to 1 over the classes."""
        return self._spatial(maps)[1].exp()

    def forward(self, maps: Sequence[Tensor], pooled: Tensor) -> Tensor:
        """Log y, (B, K)."""
        log_map, log_positions = self._spatial(maps)
        scores = (log_map[:, None] + log_positions).flatten(2).logsumexp(2)
        if self.training and (self.gap is not None or self.box is not None):
            box = self.box(maps[-1]).squeeze(1) if self.box is not None else None
            self.kept = _Kept(scores, log_positions, box, self.gap(pooled) if self.gap is not None else None)
        return scores

    @property
    def changes_images(self) -> bool:
        """Whether a training step has to begin with ``training_images``."""
        return self.box is not None

    def training_images(self, images: Tensor) -> Tensor:
        """The images, and after them the same again, each with a box of the one before it pasted in.

        One box a batch, drawn as in CutMix from the global random numbers: its share of the area and its centre are
        uniform, and what falls outside is cut off. Without ``self_supervision`` the images are given back as they are.

        Shape:
            images: (B, C, H, W), normalised -> (2B, C, H, W).
        """
        if not self.changes_images:
            return images
        share, *centre = torch.rand(3).tolist()
        box = []
        for length, middle in zip(images.shape[-2:], centre, strict=True):
            half = length * share**0.5 / 2
            box.append(slice(max(0, round(middle * length - half)), min(length, round(middle * length + half))))
        mixed, before = images.clone(), images.roll(1, 0)
        mixed[:, :, box[0], box[1]] = before[:, :, box[0], box[1]]
        self.pasted = images.new_zeros(images.shape[-2:])
        self.pasted[box[0], box[1]] = 1
        return torch.cat([images, mixed])

    def training_loss(self, scores: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """Cross-entropy, and the two more losses by their weights; forgets what the step remembered.

        Args:
            scores: what ``forward`` gave for the images of ``training_images``, (B, K) or (2B, K).
            labels: of the B images.
            label_smoothing: as in ``torch.nn.functional.cross_entropy``.

        Raises:
            FoveateError: no forward pass in training mode came before, or the scores are those of another.
        """
        kept, pasted = self.kept, self.pasted
        self.kept = self.pasted = None
        missing = (kept is None and self.gap is not None) or (self.box is not None and (kept is None or pasted is None))
        if missing:
            raise FoveateError(
                "saol: training_loss follows training_images and one forward pass in training mode: do these first"
            )
        if kept is not None and not _equal(kept.scores, scores):
            raise FoveateError(
                "saol: training_loss got other scores than its last forward pass in training mode gave: run the images "
                "and take their loss before the next forward pass"
            )
        scores = _precise(scores)
        share = pasted.mean() if pasted is not None else None
        loss = _classify(scores, labels, share, label_smoothing)
        if kept is not None and kept.pooled is not None:
            pooled = _precise(kept.pooled)
            teacher, pupil = (scores, pooled) if self.teacher == "saol" else (pooled, scores)
            same = _divergence(teacher.detach().log_softmax(1), pupil.log_softmax(1)).mean()
            loss = loss + self.distillation * (same + BETA * _classify(pooled, labels, share, label_smoothing))
        if kept is not None and kept.box is not None and pasted is not None:
            loss = loss + self.self_supervision * _box_losses(kept.box, kept.log_positions, pasted)
        return loss


@torch.no_grad()
def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether scores are the same, whatever dtype they were brought to since; NaN is equal to NaN."""
    if one.shape != other.shape:
        return False
    one, other = _precise(one), _precise(other)
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _box_losses(box: Tensor, log_positions: Tensor, pasted: Tensor) -> Tensor:
    """Find the pasted box, and see in it what is seen where it comes from: the sum of the two losses.

    Args:
        box: scores for "pasted" (2B, h, w), the plain images first.
        log_positions: log Y (2B, K, h, w).
        pasted: 1 inside the box, (H, W) of the images.
    """
    (_, found), (plain, mixed) = _precise(box).chunk(2), _precise(log_positions).chunk(2)
    # How much of each position the box covers.
    covered = F.adaptive_avg_pool2d(pasted[None].to(found.dtype), (found.shape[1], found.shape[2])).expand_as(found)
    finding = F.binary_cross_entropy_with_logits(found, covered)
    apart = covered * _divergence(plain.detach().roll(1, 0), mixed)
    # A box can be empty; then there is nothing to compare.
    return finding + apart.sum() / covered.sum().clamp_min(torch.finfo(covered.dtype).tiny)


def _hidden(channels: int, width: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()


def _precise(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _divergence(teacher: Tensor, pupil: Tensor) -> Tensor:
    """KL(teacher || pupil) over axis 1, from log-probabilities."""
    return F.kl_div(pupil, teacher, reduction="none", log_target=True).sum(1)


def _classify(scores: Tensor, labels: Tensor, share: Tensor | None, smoothing: float) -> Tensor:
    """Cross-entropy; where images with a pasted share follow the plain ones, the mean of both halves."""
    labels = labels.to(scores.device)
    if share is None:
        return F.cross_entropy(scores, labels, label_smoothing=smoothing)
    plain, mixed = torch.split(scores, len(labels))
    own = F.cross_entropy(mixed, labels, label_smoothing=smoothing)
    foreign = F.cross_entropy(mixed, labels.roll(1), label_smoothing=smoothing)
    return (F.cross_entropy(plain, labels, label_smoothing=smoothing) + (1 - share) * own + share * foreign) / 2
