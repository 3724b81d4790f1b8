"""The rule that turns what was measured of an inserted module into a verdict."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.studies.comparison.statistics import Difference
from foveate.studies.evaluation.attention_metrics import CONSTANT

__all__ = ["LEAST", "MARGIN", "NIL", "Effect", "Measures", "points", "verdict_of"]

NIL = 1e-3  # a contribution below a thousandth of the input is none
MARGIN = 1.0  # percentage points: an interval within +-1 point is no effect
LEAST = 300  # images: what is seen in none of 300 has a rate below 1% (95%; the rule of three)
_P = 0.05


@dataclass(frozen=True)
class Effect:
    """What becomes of the predictions when a module is changed.

    Args:
        difference: in accuracy, changed minus unchanged, in percentage points with a 95% interval over the images.
        p: of McNemar's exact test, of mIoU and mAP that of the interval; by Holm's correction for all the modules of
            the audit.
        changed: the share of the images whose predicted class is another one.
        images: how many were looked at.
    """

    difference: Difference
    p: float
    changed: float
    images: int

    @property
    def better(self) -> bool:
        """Whether accuracy rises beyond the interval."""
        return self.difference.low > 0 and self.p < _P

    @property
    def worse(self) -> bool:
        """Whether accuracy falls beyond the interval."""
        return self.difference.high < 0 and self.p < _P

    @property
    def none(self) -> bool:
        """Whether no prediction changes, of enough images."""
        return self.same and self.images >= LEAST

    @property
    def same(self) -> bool:
        """Whether nothing changes: no image alone, nor all together, as boxes of a detector that change their order."""
        return self.changed == 0 and self.difference.mean == 0

    @property
    def nil(self) -> bool:
        """Whether the whole interval is within ``MARGIN`` points of 0, of enough images."""
        return self.images >= LEAST and self.difference.low > -MARGIN and self.difference.high < MARGIN


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What the verdict on a module follows from.

    Args:
        off: with its input passed on in its place; of a pool with the mean in its place. None for a head.
        shuffled: with another image's map; None where that makes no sense.
        shuffles: "map"; "contribution", output - input of another image, where the output is not a multiple of x.
        contribution: ||output - input|| / ||input||, the mean over images; of a pool against the mean.
        contribution_channel: the same of the channel where it is largest, over all images.
        varies: how much a map's values differ between images: standard deviation in units of their mean.
        varies_most: of the value that differs most, in units of itself or of the mean.
        constant: the share of the maps none of whose values varies by 1%.
    """

    off: Effect | None = None
    shuffled: Effect | None = None
    shuffles: str | None = None
    contribution: float | None = None
    contribution_channel: float | None = None
    varies: float | None = None
    varies_most: float | None = None
    constant: float | None = None

    @property
    def slight(self) -> bool:
        """Whether the contribution is below ``NIL`` as a whole and in each channel."""
        sizes = (self.contribution, self.contribution_channel)
        return all(size is not None and size < NIL for size in sizes)

    @property
    def fixed(self) -> bool:
        """Whether a fixed weight would do the same: the maps are, and another image's in their place does no harm.

        Where the output is not a multiple of the input, a fixed map does not make the contribution a fixed one: there
        the exchange must be seen to change nothing.
        """
        if self.constant != 1:
            return False
        if self.shuffled is None:
            return True
        if self.shuffles == "map":
            return not (self.shuffled.worse or self.shuffled.better)
        return self.shuffled.none or (self.shuffled.nil and not (self.shuffled.worse or self.shuffled.better))


def verdict_of(measures: Measures) -> tuple[str, str]:
    """The verdict and its reason. The accuracy that is printed decides first, so that no verdict can contradict it.

    The five rules are in the docstring of ``audit``; the first that holds decides.
    """
    off, shuffled = measures.off, measures.shuffled
    same = f"its map is the same for every image (no value varies by {100 * CONSTANT:.0f}%)"
    if off is None:
        if measures.fixed:
            return "static", same
        return "unclear", "a head is the classifier: it cannot be switched off"
    without = f"without it {points(off.difference)} points"
    if off.better:
        return "harmful", f"{without}: the network is better without it"
    if off.worse:
        if measures.fixed:
            return "static", f"{same}; {without}"
        if shuffled and shuffled.worse:
            return "works", f"{without}, with another image's map {points(shuffled.difference)}"
        if shuffled and shuffled.nil:
            return "works", f"{without}; but another image's map does as well: little depends on the image"
        return "works", without
    changed = f"{round(off.changed * off.images)} of {off.images} predictions change"
    if off.none:
        return "inert", f"no prediction of {off.images} changes without it"
    if off.same and measures.slight:
        return "inert", f"it changes its input by {100 * (measures.contribution or 0):.2g}%, and {changed} without it"
    if off.nil:
        return "inert", f"{without}, {changed}: no effect beyond {MARGIN:g} point"
    if measures.fixed:
        return "static", f"{same}; {without}"
    return "unclear", f"{without}: too few images to tell"


def points(difference: Difference) -> str:
    """A difference with its interval, in points, with as many digits as it takes to see on which side of 0 it lies."""
    numbers = (difference.mean, difference.low, difference.high)
    digits = next((d for d in (1, 2, 3) if all(round(x, d) or not x for x in numbers)), 4)
    mean, low, high = (f"{round(x, digits) + 0.0:+.{digits}f}" for x in numbers)
    return f"{mean} [{low}, {high}]"
