"""Weights and plan in one folder, that loads without executing anything.

``model.safetensors`` holds the weights and, in its header, the description of the model with a SHA-256 of all tensors;
``config.json`` is the same description for people and other programs. The weights file alone is enough to load, and it
is replaced in one step, so that a save that is cut off leaves the previous one whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.networks import create_model, origin_of
from foveate.spec import Plan
from foveate.surgery.insert import insert, plan_of
from foveate.surgery.probe import input_size_of, record_of

__all__ = ["describe", "load", "save"]

WEIGHTS, CONFIG, HEADER = "model.safetensors", "config.json", "foveate"
_PREPARATION = ("input_size", "mean", "std", "interpolation", "crop_pct", "label_names")


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _preparation(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "pretrained_cfg", None) or {}
    read = config.get if isinstance(config, dict) else lambda key: getattr(config, key, None)
    return {key: list(v) if isinstance(v := read(key), tuple) else v for key in _PREPARATION if read(key) is not None}


def _write(path: Path, write: Any) -> None:
    """Write a file so that it is either the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise FoveateError(f"cannot write {path}: {error.strerror or error}; what was there is untouched") from error
    finally:
        temporary.unlink(missing_ok=True)


def describe(model: nn.Module) -> dict[str, Any]:
    """What ``config.json`` says of a model: architecture, classes, plan, and how images are prepared for it."""
    import foveate

    origin = origin_of(model)
    plan = plan_of(model)
    return {
        "library": origin.library if origin else None,
        "architecture": origin.name if origin else type(model).__name__,
        "num_classes": origin.num_classes if origin else None,
        "in_chans": origin.in_chans if origin else input_size_of(model)[0],
        "plan": str(plan) if plan else "",
        "preparation": _preparation(model),
        "foveate_version": foveate.__version__,
    }


def save(model: nn.Module, folder: str | os.PathLike[str], info: Mapping[str, object] | None = None) -> Path:
    """Keep a model: weights as safetensors, the plan and how to rebuild the network as text.

    Args:
        model: with or without a plan.
        folder: made when it does not exist; a model that it holds is replaced, other files in it stay.
        info: more to say in ``config.json``, such as the recipe and the accuracy; plain JSON values.

    Returns:
        The folder.

    Raises:
        FoveateError: the folder cannot be written; what was in it is untouched.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FoveateError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    # Tensors that share memory are written once each: safetensors takes no aliases.
    state = {key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in
             model.state_dict().items()}  # fmt: skip
    config = {**describe(model), **({"info": dict(info)} if info else {}), "sha256": _digest(state)}
    text = json.dumps(config, indent=2, ensure_ascii=False, default=str)
    _write(folder / WEIGHTS, lambda path: save_file(state, path, {"format": "pt", HEADER: text}))
    _write(folder / CONFIG, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    return folder


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "null"))
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, ValueError) as error:
        raise FoveateError(f"{path} is no safetensors file that can be read: {str(error).splitlines()[0]}") from error
    if not isinstance(header, dict):
        raise FoveateError(f"{path} was not written by foveate.save: load its weights with safetensors instead")
    if header.get("sha256") != _digest(state):
        raise FoveateError(f"{path} is damaged: its tensors do not have the SHA-256 that was saved with them")
    return state, header


def load(folder: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Build a saved model anew: first the network, then the plan, then the weights. Nothing in the files is executed.

    Args:
        folder: one that ``save`` wrote.
        model: the plain network, for one that neither timm nor torchvision can build by name; it is changed in place.

    Returns:
        The model, in eval mode.

    Raises:
        FoveateError: the folder holds no such model, its files are damaged, or the weights do not fit, all keys named.
    """
    folder = Path(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        held = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
        raise FoveateError(f"no saved model in {folder}: {WEIGHTS} is missing (there: {held or 'nothing'})")
    state, config = _read(path)
    if model is None:
        model = _rebuild(config)
    if config.get("plan"):
        insert(model, Plan.parse(config["plan"]), seed=0, input_size=_input_size(config))
        record = record_of(model)
        for removed in record.removed.values() if record else ():
            removed.original = False
    missing, unexpected = _misfits(model, state)
    if missing or unexpected:
        raise FoveateError(
            f"the weights in {path} do not fit {config.get('architecture')}: missing {missing[:4] or 'none'} "
            f"({len(missing)}), unexpected or of another shape {unexpected[:4] or 'none'} ({len(unexpected)})"
        )
    model.load_state_dict(state)
    _restore_preparation(model, config)
    return model.eval()


def _input_size(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    size = config.get("preparation", {}).get("input_size")
    return tuple(size) if size else None


def _rebuild(config: Mapping[str, Any]) -> nn.Module:
    library, name = config.get("library"), config.get("architecture")
    if library not in ("timm", "torchvision") or not isinstance(name, str):
        raise FoveateError(f"{name} is no network of timm or torchvision: build it and give it as load(folder, model)")
    prefix = "torchvision:" if library == "torchvision" else ""
    return create_model(prefix + name, num_classes=config.get("num_classes"), in_chans=config.get("in_chans", 3))


def _misfits(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own or own[key].shape != state[key].shape]
    return missing, unexpected


def _restore_preparation(model: nn.Module, config: Mapping[str, Any]) -> None:
    saved = {k: tuple(v) if isinstance(v, list) else v for k, v in config.get("preparation", {}).items()}
    saved = {key: value for key, value in saved.items() if key in _PREPARATION}
    known = getattr(model, "pretrained_cfg", None)
    if known is None:
        model.pretrained_cfg = saved  # type: ignore[assignment]
    elif isinstance(known, dict):
        model.pretrained_cfg = {**known, **saved}  # type: ignore[assignment]
    else:
        for key, value in saved.items():
            setattr(known, key, value)
