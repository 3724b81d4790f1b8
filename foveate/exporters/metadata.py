"""What an exported file says of itself: classes, preparation, plan, outputs; JSON values, read back as written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from foveate import __version__
from foveate.errors import FoveateError
from foveate.exporters.options import ExportOptions
from foveate.images import Preprocess
from foveate.io import JsonObject, json_text, state_digest
from foveate.networks import origin_of
from foveate.surgery.insert import plan_of

__all__ = [
    "PREFIX",
    "check_metadata",
    "describe",
    "from_texts",
    "preprocess_of",
    "read_sidecar",
    "sidecar",
    "to_texts",
    "write_sidecar",
]

PREFIX = "foveate."
_KEYS = {
    "version": str,
    "format": str,
    "precision": str,
    "architecture": str,
    "plan": str,
    "classes": list,
    "preprocess": dict,
    "input": dict,
    "outputs": list,
    "weights_sha256": str,
}


def describe(
    model: nn.Module,
    options: ExportOptions,
    *,
    format_name: str,
    classes: tuple[str, ...],
    preprocess: Preprocess,
    shape: tuple[int | str, ...],
    outputs: list[JsonObject],
) -> JsonObject:
    """Everything that a program needs to use the file.

    Args:
        model: the network that is exported.
        options: what was asked.
        format_name: of the file.
        classes: names in the order of the outputs; () where the model has none.
        preprocess: how images are prepared.
        shape: of the input, with names for what is dynamic.
        outputs: for each output its "name", its "axes" in einops words, and for maps the "names" of each.
    """
    origin, uint8 = origin_of(model), options.input == "uint8"
    return {
        "version": __version__,
        "format": format_name,
        "precision": options.precision,
        "architecture": origin.name if origin else type(model).__name__,
        "plan": str(plan_of(model) or ""),
        "classes": list(classes),
        "preprocess": json.loads(json.dumps(dataclasses.asdict(preprocess))),
        "input": {
            "name": "images",
            "type": "uint8" if uint8 else "float32",
            "axes": "b h w c" if uint8 else "b c h w",
            "shape": list(shape),
            "normalised": not uint8,
        },
        "outputs": outputs,
        "weights_sha256": state_digest(model.state_dict().items()),
    }


def to_texts(metadata: JsonObject) -> dict[str, str]:
    """Metadata as text by key, for formats that hold text: each value is JSON, its key begins with ``foveate.``."""
    return {PREFIX + key: json_text(value, indent=None) for key, value in metadata.items()}


def from_texts(texts: Mapping[str, str], path: Path) -> JsonObject:
    """Metadata as ``to_texts`` wrote it.

    Raises:
        FoveateError: the file is not one of foveate's exports, or says something that cannot be.
    """
    found: JsonObject = {}
    for key, text in texts.items():
        if key.startswith(PREFIX):
            try:
                found[key.removeprefix(PREFIX)] = json.loads(text)
            except ValueError:
                raise FoveateError(f"{path}: its metadata {key!r} is not JSON: export the network again") from None
    return check_metadata(found, path)


def check_metadata(metadata: Any, path: Path) -> JsonObject:
    """Metadata that was read, when it is whole.

    Raises:
        FoveateError: it is not; the message names what is missing.
    """
    if not isinstance(metadata, dict) or not metadata:
        raise FoveateError(f"{path} was not exported by foveate: it does not say how its images are prepared")
    for key, kind in _KEYS.items():
        if not isinstance(metadata.get(key), kind):
            raise FoveateError(f"{path}: its metadata has no {key!r} that can be read: export the network again")
    preprocess_of(metadata, path)
    return metadata


def preprocess_of(metadata: JsonObject, path: Path) -> Preprocess:
    """How images are prepared for the file.

    Raises:
        FoveateError: what the file says cannot be.
    """
    try:
        given: JsonObject = {key: tuple(v) if isinstance(v, list) else v for key, v in metadata["preprocess"].items()}
        return Preprocess(**given)
    except (TypeError, FoveateError) as error:
        raise FoveateError(f"{path}: it does not say how its images are prepared: {error}") from error


def sidecar(path: Path) -> Path:
    """The JSON file beside one whose format holds no metadata."""
    return path.with_name(path.name + ".json")


def write_sidecar(path: Path, metadata: JsonObject) -> None:
    """Write the metadata beside a file."""
    sidecar(path).write_text(json_text(dict(metadata)), encoding="utf-8")


def read_sidecar(path: Path) -> JsonObject:
    """The metadata beside a file.

    Raises:
        FoveateError: it is missing or damaged.
    """
    beside = sidecar(path)
    try:
        return check_metadata(json.loads(beside.read_text(encoding="utf-8")), path)
    except OSError as error:
        raise FoveateError(
            f"{path}: {beside.name} beside it cannot be read ({error.strerror}); it holds classes and preparation"
        ) from error
    except ValueError as error:
        if isinstance(error, FoveateError):
            raise
        raise FoveateError(f"{beside} is not JSON: export the network again") from error
