"""A strict reader for flat YAML: one mapping of plain values, read as a person would read it. Imports no torch.

PyYAML follows YAML 1.1, where ``1e-3`` is text, ``010`` is 8, ``1:30`` is 90, ``no`` is false, and the second of two
equal keys wins. Here ``1e-3`` is a number, numbers with leading zeros and second keys are errors, only ``true`` and
``false`` are truth values, and anything else that is not quoted is text. Tags, anchors and nesting are refused; no
object is made from what a file says but these, so nothing in it is ever executed.
"""

from __future__ import annotations

import math
import re
from typing import TypeAlias

import yaml

from foveate.errors import FoveateError
from foveate.io import JsonObject

__all__ = ["Scalar", "read_flat", "write_flat"]

Scalar: TypeAlias = bool | int | float | str | None

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+([.eE].*)?")
_WORDS: dict[str, Scalar] = {"true": True, "false": False, "null": None, "~": None, "": None}
_LARGEST = 100_000  # characters; a recipe has a thousand


def read_flat(text: str, name: str) -> dict[str, Scalar]:
    """Read a mapping of names to plain values.

    Args:
        text: of the file.
        name: of the file, for errors.

    Raises:
        FoveateError: the text is not YAML, or anything but one flat mapping with distinct keys; the line is named.
    """
    if len(text) > _LARGEST:
        raise FoveateError(f"{name} has {len(text)} characters, more than a recipe can need: name another file")
    try:
        events = list(yaml.parse(text, Loader=yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # chr() of a \U escape that is too large
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "bad characters"
        raise FoveateError(f"{name}{where} is not YAML: {problem}") from error
    inside = events[2:-2]
    if len(events) < 5:  # an empty document
        return {}
    flat = len(inside) >= 2 and isinstance(inside[0], yaml.MappingStartEvent)
    flat = flat and isinstance(inside[-1], yaml.MappingEndEvent)
    if not flat or not all(isinstance(event, yaml.ScalarEvent) for event in inside[1:-1]):
        if [event.value for event in inside if isinstance(event, yaml.ScalarEvent)] == [""]:
            return {}
        raise FoveateError(f"{name} must be lines of 'field: value', without lists, nesting, references or documents")
    for event in inside[:-1]:
        if event.anchor is not None or event.tag is not None:
            line = event.start_mark.line + 1
            raise FoveateError(f"{name} line {line}: tags and anchors are not read; leave them out")
    found: dict[str, Scalar] = {}
    scalars = iter(inside[1:-1])
    for key, value in zip(scalars, scalars, strict=True):
        place = f"{name} line {key.start_mark.line + 1}"
        if key.value in found:
            raise FoveateError(f"{place}: {key.value!r} is given twice; leave one out")
        found[key.value] = _plain(value.value, place) if value.implicit[0] else value.value
    return found


def _plain(text: str, place: str) -> Scalar:
    """What an unquoted value means."""
    if text in _WORDS:
        return _WORDS[text]
    if _LEADING_ZERO.fullmatch(text):
        raise FoveateError(f"{place}: {text} has a leading zero; write it without, or in quotes if it is text")
    try:
        if _INT.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
    except ValueError as error:  # Python reads no whole number of thousands of digits
        raise FoveateError(f"{place}: the number is too long") from error
    return text


def write_flat(values: JsonObject) -> str:
    """The text that ``read_flat`` reads back as the same values: text in quotes, numbers as Python prints them."""
    return "".join(f"{name}: {_written(value)}\n" for name, value in values.items())


def _written(value: Scalar) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        dumped: str = yaml.safe_dump(value, default_style='"', width=math.inf, allow_unicode=True)
        return dumped.strip()
    return repr(value)
