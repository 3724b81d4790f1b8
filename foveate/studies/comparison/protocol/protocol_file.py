"""A comparison that anyone can make again, or extend by a row: data, network, plans, seeds and recipe in one file.

The file is flat YAML, read as recipes are. What is not a field of the protocol is a field of the recipe:

    title: SE and CBAM after one block
    data: flowers102          # the data set's name
    fingerprint: cf2292...    # of its images; without it any data of that name will do
    parts: train+val:test
    model: tf_efficientnet_lite0
    pretrained: true
    plans: |
      se after blocks.5.1
      cbam after blocks.5.1
    seeds: 10
    margin: 1
    epochs: 4
    image_size: 128
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from foveate.data import ImageData
from foveate.errors import FoveateError, near
from foveate.html import html_lines, html_table
from foveate.training.recipes.recipe import Recipe
from foveate.training.recipes.yaml_file import read_flat

__all__ = ["Protocol", "read_protocol"]


@dataclass(frozen=True)
class Protocol:
    """What is compared, and how.

    Args:
        title: what the comparison is about.
        data: name of the data set.
        model: a name for ``create_model``.
        plans: plans and families, each as text.
        seeds: how many.
        recipe: of every run.
        fingerprint: of the data, or "".
        parts: as in ``open_data``, or None.
        pretrained: start from ImageNet weights.
        start: as in ``insert``.
        margin: in points of top-1, or None.
    """

    title: str
    data: str
    model: str
    plans: tuple[str, ...]
    seeds: int
    recipe: Recipe
    fingerprint: str = ""
    parts: str | None = None
    pretrained: bool = False
    start: Literal["mechanism", "identity"] | None = None
    margin: float | None = None

    def check(self, data: ImageData) -> None:
        """Make sure that data are those of the protocol.

        Raises:
            FoveateError: they have another name or other images.
        """
        if data.name != self.data:
            raise FoveateError(f"the protocol is about {self.data}, and these data are {data.name}: name its data")
        if self.fingerprint and data.fingerprint != self.fingerprint:
            raise FoveateError(
                f"{data.name} has other images or parts than the protocol's: its fingerprint is {data.fingerprint}, "
                f"not {self.fingerprint}; results of the two cannot stand in one table"
            )

    def _repr_html_(self) -> str:
        shown = {
            field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("title", "plans")
        }
        rows = [
            ("plans", "; ".join(self.plans)),
            *((name, value) for name, value in shown.items() if value is not None),
        ]
        return html_lines(self.title) + html_table(["field", "value"], rows)

    def request(self) -> dict[str, Any]:
        """What ``compare`` is called with, but for the data and the output."""
        return {
            "model": self.model,
            "plans": list(self.plans),
            "recipe": self.recipe,
            "seeds": self.seeds,
            "start": self.start,
            "pretrained": self.pretrained,
            "margin": self.margin,
        }


_KINDS: dict[str, tuple[type, ...]] = {
    "title": (str,),
    "data": (str,),
    "model": (str,),
    "plans": (str,),
    "seeds": (int,),
    "fingerprint": (str,),
    "parts": (str, type(None)),
    "pretrained": (bool,),
    "start": (str, type(None)),
    "margin": (int, float, type(None)),
}
_NEEDED = ("title", "data", "model", "plans", "seeds")


def read_protocol(file: str | os.PathLike[str]) -> Protocol:
    """Read a protocol.

    Args:
        file: a YAML file.

    Returns:
        The protocol.

    Raises:
        FoveateError: the file cannot be read, a field is missing, unknown or of the wrong type.
    """
    path = Path(file)
    try:
        found = read_flat(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise FoveateError(f"cannot read the protocol {path}: {getattr(error, 'strerror', None) or error}") from error
    own: dict[str, Any] = {name: value for name, value in found.items() if name in _KINDS}
    for name in _NEEDED:
        if name not in own:
            raise FoveateError(f"{path} has no field {name!r}: a protocol needs {', '.join(_NEEDED)}")
    for name, value in own.items():
        if type(value) not in _KINDS[name]:
            raise FoveateError(f"{path}: {name}={value!r} is not {_KINDS[name][0].__name__}")
    if own.get("start") not in (None, "mechanism", "identity"):
        raise FoveateError(f"{path}: start={own['start']!r} is neither mechanism nor identity")
    if own["seeds"] < 1:
        raise FoveateError(f"{path}: seeds={own['seeds']}: at least 1")
    plans = tuple(line.strip() for line in own.pop("plans").splitlines() if line.strip())
    if not plans:
        raise FoveateError(f"{path}: plans holds none: write one on each line")
    recipe_fields = {name: value for name, value in found.items() if name not in _KINDS}
    known = [field.name for field in fields(Recipe)]
    for name in recipe_fields:
        if name not in known or name == "seed":
            raise FoveateError(f"{path}: there is no field {name!r}; {near(name, [*_KINDS, *known])}")
    return Protocol(plans=plans, recipe=Recipe.from_dict(recipe_fields), **own)
