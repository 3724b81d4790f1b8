"""The files of a saved model: tensors and text, written in one step and checked when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foveate.errors import FoveateError, first_line
from foveate.io import Content, JsonObject, json_text, state_digest, write_files

__all__ = ["CONFIG", "SUMS", "WEIGHTS", "as_text", "model_folder", "read", "write_model_files"]

WEIGHTS, CONFIG, SUMS, HEADER = "model.safetensors", "config.json", "SHA256SUMS", "foveate"
FORMAT = "pt"  # safetensors' word for tensors of PyTorch, which no digest covers


_OF_A_RUN = ("model_best", "last")  # what a training run keeps, the better first


def model_folder(folder: Path) -> Path:
    """The folder of a saved model itself: of a training run's folder the best model that it holds, else the last."""
    inside = [folder / name for name in _OF_A_RUN if (folder / name / WEIGHTS).exists()]
    return inside[0] if inside and not (folder / WEIGHTS).exists() else folder


def _digest(state: Mapping[str, Tensor], config: Mapping[str, object]) -> str:
    described = {key: value for key, value in config.items() if key != "sha256"}
    return state_digest(sorted(state.items()), json.dumps(described, sort_keys=True, default=str))


def as_text(config: Mapping[str, object]) -> str:
    """JSON that people can read."""
    return json_text(config)


def write_model_files(
    state: Mapping[str, Tensor],
    description: Mapping[str, object],
    folder: Path,
    texts: Callable[[dict[str, object]], Mapping[str, str]],
    listed: Collection[str],
) -> Path:
    """Write the weights file and others beside it, all of them or none.

    Args:
        state: the tensors.
        description: the description that goes into the weights file, as plain JSON values.
        folder: made when it does not exist.
        texts: gives the text of each other file by its name, from the description as it will be read back.
        listed: the files that ``SHA256SUMS`` lists; without any, none is written, and an old one goes.

    Raises:
        FoveateError: the folder cannot be written; what was in it is untouched.
    """
    # Tensors that share memory are written once each: safetensors takes no aliases.
    state = {key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in state.items()}
    config = json.loads(json.dumps(description, default=str))  # as it will be read back
    config["sha256"] = _digest(state, config)
    files = {name: (text + "\n").encode() for name, text in texts(config).items()}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}

    def write_weights(path: Path) -> None:
        try:
            save_file(state, path, {"format": FORMAT, HEADER: as_text(config)})
        except SafetensorError as error:  # of Rust's, without a number
            raise OSError(first_line(error)) from error
        if listed:
            sums[WEIGHTS] = _sha256(path)

    contents: dict[Path, Content] = {folder / name: content for name, content in files.items()}
    contents[folder / WEIGHTS] = write_weights
    if listed:
        contents[folder / SUMS] = lambda path: path.write_bytes(
            "".join(f"{sums[name]}  {name}\n" for name in listed).encode()
        )
    # The sums of the old files go first: they would be wrong for a mixture of old and new ones.
    write_files(contents, remove=[folder / SUMS])
    return folder


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(folder: Path) -> tuple[Path, dict[str, Tensor], JsonObject]:
    """The weights file of a folder, its tensors and its description, as they were saved.

    Raises:
        FoveateError: there is none, it was written by others, or its files are damaged.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        held = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
        raise FoveateError(f"no saved model in {folder}: {WEIGHTS} is missing (there: {held or 'nothing'})")
    _check_sums(folder)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            config = json.loads(metadata.get(HEADER, "null"))
            names = file.keys()
            state = {key: file.get_tensor(key) for key in names}
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise FoveateError(f"{path} is not a safetensors file that can be read: {first_line(error)}") from error
    if not isinstance(config, dict):
        raise FoveateError(f"{path} was not written by foveate.save: load its weights with safetensors instead")
    if config.get("sha256") != _digest(state, config) or metadata.get("format") != FORMAT:
        raise FoveateError(f"{path} is damaged: what it holds does not have the SHA-256 that was saved with it")
    return path, state, config


def _check_sums(folder: Path) -> None:
    """Compare the description and the weights with ``SHA256SUMS``, where there is one."""
    path = folder / SUMS
    if not path.is_file():
        return
    try:
        lines = [line.split() for line in path.read_text("utf-8", "replace").splitlines()]
    except OSError as error:
        raise FoveateError(f"cannot read {path}: {error.strerror or error}") from error
    sums = {words[1]: words[0] for words in lines if len(words) == 2}
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file() or _sha256(folder / name) != sums.get(name):
            raise FoveateError(
                f"{folder / name} is damaged, edited or missing: it is not what {SUMS} beside it lists; "
                f"get the folder anew, or delete {SUMS}"
            )
