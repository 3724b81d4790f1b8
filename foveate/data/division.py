"""Dividing images between training and validation, the same way on every machine."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace

from foveate.data.split import Split
from foveate.errors import FoveateError

__all__ = ["check_fraction", "divide", "sample", "spread", "stratified"]


def check_fraction(val_fraction: float) -> None:
    """Make sure that a part for validation leaves something on both sides.

    Raises:
        FoveateError: it does not lie between 0 and 1.
    """
    if not 0 < val_fraction < 1:
        raise FoveateError(f"val_fraction {val_fraction}: must lie between 0 and 1, both excluded")


def divide(whole: Split, fraction: float, seed: int) -> tuple[Split, Split, str]:
    """Divide a data set that comes in one piece, by :func:`stratified`.

    Returns:
        Training, validation, and a text that says how they were made.

    Raises:
        FoveateError: no class has two images.
    """
    first, second = stratified(whole.names, whole.labels, fraction, seed)
    if whole.labels and not second:
        raise FoveateError("no class has two images, one for training and one for validation: add images")
    note = f"{fraction:.0%} of each class drawn for validation with seed {seed}"
    return whole.subset(first), replace(whole.subset(second), name="val"), note


def stratified(names: Sequence[str], labels: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide images into two parts with the same share of every class.

    The order is that of SHA-256 over seed and name, not that of a random generator: it does not depend on the
    version of a library, and an image added to the folder hardly moves the others.

    Args:
        names: distinct names of the images.
        labels: class of each image.
        fraction: part of each class that goes to the second part, rounded; a class of two or more images gives at
            least one to each part, and a class of one image gives it to the first.
        seed: another seed gives another division.

    Returns:
        Positions of the first and of the second part, each in the given order.
    """
    first: list[int] = []
    second: list[int] = []
    for members in _shuffled(names, labels, seed).values():
        most = len(members) - 1
        count = min(max(round(len(members) * fraction), 1), most)
        second += members[:count]
        first += members[count:]
    return sorted(first), sorted(second)


def sample(names: Sequence[str], labels: Sequence[int], count: int, seed: int) -> list[int]:
    """Choose images of every class, in proportion, by the order of :func:`stratified`.

    Args:
        names: distinct names of the images.
        labels: class of each image.
        count: how many to choose; all if there are fewer. The choice for a smaller count is part of the choice for
            a greater one.
        seed: another seed gives another choice.

    Returns:
        Chosen positions in the given order. Every class is among them if ``count`` is at least their number.
    """
    ranked = []
    for label, members in sorted(_shuffled(names, labels, seed).items()):
        ranked += [(rank / len(members), label, index) for rank, index in enumerate(members)]
    return sorted(index for _, _, index in sorted(ranked)[:count])


def spread(blocks: Sequence[Hashable], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide images block by block: evenly spread blocks go to the second part.

    Args:
        blocks: the block of each image; the images of a block stay together.
        fraction: part of the blocks that goes to the second part, at least one and never all.
        seed: shifts which blocks these are.

    Returns:
        Positions of the first and of the second part, each in the given order.
    """
    order = {block: position for position, block in enumerate(dict.fromkeys(blocks))}
    count = min(max(round(len(order) * fraction), 1), len(order) - 1)
    chosen = {(math.floor(i * len(order) / count) + seed) % len(order) for i in range(count)}
    first: list[int] = []
    second: list[int] = []
    for index, block in enumerate(blocks):
        (second if order[block] in chosen else first).append(index)
    return first, second


def _shuffled(names: Sequence[str], labels: Sequence[int], seed: int) -> dict[int, list[int]]:
    """Positions of each class in the order of SHA-256 over seed and name."""
    members = defaultdict(list)
    for index, (name, label) in enumerate(zip(names, labels, strict=True)):
        digest = hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()
        members[label].append((digest, index))
    return {label: [index for _, index in sorted(found)] for label, found in members.items()}
