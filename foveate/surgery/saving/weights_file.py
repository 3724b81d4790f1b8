"""The files of a saved model: tensors and text, written in one step and checked when they are read."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foveate.errors import FoveateError, first_line

__all__ = ["CONFIG", "SUMS", "WEIGHTS", "as_text", "read", "write_files"]

WEIGHTS, CONFIG, SUMS, HEADER = "model.safetensors", "config.json", "SHA256SUMS", "foveate"


def _digest(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    said = {key: value for key, value in config.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def as_text(config: Mapping[str, Any]) -> str:
    """JSON that people can read."""
    return json.dumps(config, indent=2, ensure_ascii=False, default=str)


def write_files(
    state: Mapping[str, Tensor],
    said: Mapping[str, Any],
    folder: Path,
    texts: Callable[[dict[str, Any]], Mapping[str, str]],
    listed: Collection[str],
) -> Path:
    """Write the weights file and others beside it, all of them or none.

    Args:
        state: the tensors.
        said: the description that goes into the weights file, as plain JSON values.
        folder: made when it does not exist.
        texts: gives the text of each other file by its name, from the description as it will be read back.
        listed: the files that ``SHA256SUMS`` lists; without any, none is written, and an old one goes.

    Raises:
        FoveateError: the folder cannot be written; what was in it is untouched.
    """
    # Tensors that share memory are written once each: safetensors takes no aliases.
    state = {key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in state.items()}
    config = json.loads(json.dumps(said, default=str))  # as it will be read back
    config["sha256"] = _digest(state, config)
    writers: dict[Path, Callable[[Path], object]] = {
        folder / name: functools.partial(Path.write_text, data=text + "\n", encoding="utf-8")
        for name, text in texts(config).items()
    }
    writers[folder / WEIGHTS] = lambda path: save_file(state, path, {"format": "pt", HEADER: as_text(config)})
    if listed:
        sums = {name: _temporary(folder / name) for name in listed}
        writers[folder / SUMS] = lambda path: path.write_text(
            "".join(f"{_sha256(at)}  {name}\n" for name, at in sums.items()), encoding="utf-8"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FoveateError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    _replace(writers, gone=folder / SUMS)
    return folder


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(writers: Mapping[Path, Callable[[Path], object]], gone: Path) -> None:
    """Write files beside the old ones first, all of them, and only then put them in their places.

    Before that ``gone`` is removed: the sums of the old files, which would be wrong for a mixture of both.
    """
    temporaries = {path: _temporary(path) for path in writers}
    try:
        for path, write_to in writers.items():
            write_to(temporaries[path])
            with temporaries[path].open("rb+") as file:
                os.fsync(file.fileno())
        gone.unlink(missing_ok=True)
        for path, temporary in temporaries.items():
            temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise FoveateError(f"cannot write {path}: {reason}; the model that was there is untouched") from error
    finally:
        for path, temporary in temporaries.items():
            temporary.unlink(missing_ok=True)
            for stale in path.parent.glob(f".{path.name}.*.tmp"):  # of a process that was killed
                if time.time() - stale.stat().st_mtime > 3600:
                    stale.unlink(missing_ok=True)


def read(folder: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
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
            config = json.loads((file.metadata() or {}).get(HEADER, "null"))
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise FoveateError(f"{path} is no safetensors file that can be read: {first_line(error)}") from error
    if not isinstance(config, dict):
        raise FoveateError(f"{path} was not written by foveate.save: load its weights with safetensors instead")
    if config.get("sha256") != _digest(state, config):
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
