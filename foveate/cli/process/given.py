"""Options that were given: as the words that give them again, and those of them that would change nothing."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError

__all__ = ["as_words", "by_name", "check_dense", "check_used", "is_folder", "refuse_unused"]


def is_folder(model: str) -> bool:
    """Whether a model's name is meant as a folder."""
    return os.sep in model or Path(model).is_dir()


def as_words(options: Any) -> list[str]:
    """What was given of a dataclass of options, as the command line takes it."""
    words = []
    for field in dataclasses.fields(options):
        value, name = getattr(options, field.name), field.name.replace("_", "-")
        if value is True or value is False:
            words += [] if value is field.default else [f"--{name}" if value else f"--no-{name}"]
        elif value != field.default:
            words += [f"--{name}", str(value)]
    return words


def check_used(options: Any) -> None:
    """Refuse options of a network that would change nothing.

    Args:
        options: ``NetworkOptions``, or ``ModelOptions``, which have a plan.

    Raises:
        FoveateError: weights are asked for where a folder has its own, or a start where no plan is inserted.
    """
    if options.pretrained and is_folder(options.model):
        raise FoveateError(f"--pretrained: {options.model} is a saved network with weights of its own: leave it out")
    if getattr(options, "plan", "") is None and options.start is not None:
        raise FoveateError("--start is for the attention that --plan inserts: add --plan, or leave it out")


def refuse_unused(options: Any, why: str) -> None:
    """Refuse the first option that was given of a dataclass of options none of which is used.

    Args:
        options: as given.
        why: they are for what, and what to do.

    Raises:
        FoveateError: one was given.
    """
    words = as_words(options)
    if words:
        raise FoveateError(f"{words[0]} is for {why}, or leave it out")


def by_name(option: str, parts: Sequence[str], example: str) -> dict[str, str]:
    """The values of an option that takes NAME=VALUE, once for each name.

    Args:
        option: as it is written.
        parts: what was given.
        example: for what it says where one is something else.

    Raises:
        FoveateError: one has no name or no value, or a name is given twice.
    """
    found: dict[str, str] = {}
    for part in parts:
        name, _, value = part.partition("=")
        if not name or not value:
            raise FoveateError(f"{option} {part}: write NAME=VALUE, such as {example}")
        if name in found:
            raise FoveateError(f"{option} has {name}={found[name]} and {name}={value}: write each name once")
        found[name] = value
    return found


def check_dense(head: str | None, output_stride: int, why: str) -> None:
    """Refuse what only makes a new segmentation or detection network.

    Args:
        head: as given.
        output_stride: as given.
        why: there is none to make.

    Raises:
        FoveateError: one of them was given.
    """
    if head is not None or output_stride != 32:
        option = "--output-stride" if head is None else "--head"
        raise FoveateError(f"{option} is for a new segmentation or detection network, and {why}: leave it out")
