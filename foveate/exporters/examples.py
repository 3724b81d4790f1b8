"""A program that uses an exported file, with its runtime, numpy and Pillow and nothing of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError
from foveate.exporters.format import find_format
from foveate.io import write_atomically

__all__ = ["example_name", "example_text", "write_example"]

_NORMALISE = """images = ((images / np.float32(255) - MEAN) / STD).transpose(0, 3, 1, 2)
images = np.ascontiguousarray(images, dtype=np.float32)"""
_RESAMPLING = {"nearest-exact": "NEAREST"}  # Pillow's word, where it differs from torchvision's


def example_name(file: str, format_name: str) -> str:
    """The name of the program beside a file: files of several formats may differ in their suffix alone."""
    return f"{file.split('.')[0]}_{format_name}_example.py"


def example_text(path: Path, metadata: Mapping[str, Any], program: str) -> str:
    """The program as text.

    Args:
        path: of the exported file, which the program looks for beside itself.
        metadata: what the file says of itself.
        program: the name that the program will have.
    """
    form, prepare = find_format(metadata["format"]), metadata["preprocess"]
    batch = metadata["input"]["shape"][0]
    pixels = metadata["input"]["type"] == "uint8"
    preparation = (*prepare["size"], prepare["crop_pct"], batch if isinstance(batch, int) else 1)
    interpolation = str(prepare["interpolation"])
    words = {
        # Everything from a file comes in as the text of a value: none of it can be more than that in the program.
        "NAME_OF_THIS_FILE": program if re.fullmatch(r"[\w.-]+", program) else "example.py",
        "REQUIREMENTS": " and ".join(form.example_requires),
        "FILE_NAME": repr(path.name),
        "PREPARATION": ", ".join(repr(number) for number in preparation),
        "MEAN_VALUES": repr(list(prepare["mean"])),
        "STD_VALUES": repr(list(prepare["std"])),
        "RESAMPLING": _RESAMPLING.get(interpolation, interpolation.upper()),
        "MODE": repr("L" if len(prepare["mean"]) == 1 else "RGB"),
        "NORMALISE": "" if pixels else _NORMALISE,
        "CALL": form.example.strip("\n"),
    }
    text = files("foveate.exporters").joinpath("templates/example.py.txt").read_text(encoding="utf-8")
    return _filled(text, words)


def _filled(text: str, words: Mapping[str, str]) -> str:
    """The template with its words replaced, in one pass: what a value holds is not looked at again."""
    return re.sub("|".join(words), lambda found: words[found.group()], text)


def write_example(path: Path, metadata: Mapping[str, Any], place: Path, *, overwrite: bool = False) -> Path:
    """Write the program.

    Args:
        path: of the exported file.
        metadata: what the file says of itself.
        place: of the program, in the folder of the file.
        overwrite: whether a file that is there may be replaced.

    Returns:
        The place.

    Raises:
        FoveateError: a file is there, the folder is another one, or it cannot be written.
    """
    if metadata.get("task") == "segmentation":
        raise FoveateError(f"{path.name} gives scores for pixels, and the program that is written is for classifiers")
    if metadata.get("task") == "detection":
        raise FoveateError(f"{path.name} gives boxes, and the program that is written is for classifiers")
    if place.suffix != ".py" or place.parent.resolve() != path.parent.resolve():
        raise FoveateError(f"{place}: the example is a .py file in the folder of {path.name}, which it opens")
    if place.exists() and not overwrite:
        raise FoveateError(f"{place} is there already: overwrite=True replaces it, or choose another name")
    return write_atomically(place, example_text(path, metadata, place.name))
