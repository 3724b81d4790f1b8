"""Places for the labels of points in a picture, so that none lies over another."""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["LINE", "Box", "labels", "lead"]

LINE = 15.0  # height of a line of text, at 12 pixels a letter
GAP = 9.0  # between a point and its label


class Box(NamedTuple):
    """A rectangle in pixels, y downwards."""

    left: float
    top: float
    right: float
    bottom: float


def labels(
    wanted: Sequence[tuple[tuple[float, float], str]], ink: Sequence[Box] | None, frame: Box, letters: int
) -> list[tuple[Box, list[str]]] | None:
    """Find a place for each label, as near to its point as can be, over no other label and no ink.

    Args:
        wanted: for each label the point (x, y) that it belongs to, in pixels, and the text.
        ink: what must stay free, and no leading line goes through a label; None: only labels stay free.
        frame: where labels may stand.
        letters: the most letters in a line.

    Returns:
        For each label its box and lines; None when there is no room.
    """
    placed: list[tuple[Box, list[str]]] = []
    taken = list(ink or ())
    for (x, y), text in wanted:
        lines = textwrap.wrap(text, letters) or [""]
        width, height = max(map(_width, lines)), LINE * len(lines)
        places = sorted(_around(x, y, width, height, frame), key=lambda box: _away(box, x, y))
        others = [box for box, _ in placed] if ink is not None else []
        free = (box for box in places if not _meets([box], taken))
        box = next((box for box in free if not _meets(_trail(box, x, y), others)), None)
        if box is None:
            return None
        placed.append((box, lines))
        taken += [box] if ink is None else [box, *_trail(box, x, y)]
    return placed


def _meets(boxes: Sequence[Box], others: Sequence[Box]) -> bool:
    """Whether two rectangles share more than an edge; without a call for each pair, of which a page has millions."""
    for left, top, right, bottom in boxes:
        for a, b, c, d in others:
            if left < c and a < right and top < d and b < bottom:
                return True
    return False


def lead(box: Box, x: float, y: float) -> tuple[float, float] | None:
    """Where the line from a point to its label ends; None where the label is so near that it needs none."""
    end = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
    return end if math.hypot(end[0] - x, end[1] - y) > 2 * GAP else None


def _trail(box: Box, x: float, y: float) -> list[Box]:
    """Small boxes along the line from a point to its label."""
    end = lead(box, x, y)
    if end is None:
        return []
    steps = int(math.hypot(end[0] - x, end[1] - y) // 3)
    spots = [(x + (end[0] - x) * k / steps, y + (end[1] - y) * k / steps) for k in range(steps)]
    return [Box(u - 1, v - 1, u + 1, v + 1) for u, v in spots]


def _around(x: float, y: float, width: float, height: float, frame: Box) -> Iterator[Box]:
    """Places for a label within the frame."""
    lefts = [x + GAP, x - GAP - width, x - width / 2, frame.left + 4, frame.right - width]
    lefts += [x + side * step - (width if side < 0 else 0) for side in (1, -1) for step in (30, 60, 120, 240)]
    tops = [frame.top + 4 * step for step in range(int((frame.bottom - frame.top) / 4) + 1)]
    rows = [(top, top + height) for top in tops] + [(y - height / 2, y + height / 2)]
    rows = [(top, bottom) for top, bottom in rows if frame.top <= top and bottom <= frame.bottom]
    for left in lefts:
        if frame.left <= left and left + width <= frame.right:
            for top, bottom in rows:
                yield Box(left, top, left + width, bottom)


def _away(box: Box, x: float, y: float) -> float:
    beside = max(box.left - x, x - box.right, 0.0)
    above = max(box.top - y, y - box.bottom, 0.0)
    return math.hypot(beside, above) + 0.05 * abs((box.top + box.bottom) / 2 - y)


def _width(line: str) -> float:
    return sum(12.0 if unicodedata.east_asian_width(letter) in "WF" else 7.0 for letter in line)
