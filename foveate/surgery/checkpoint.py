"""Weights and plan in one folder, that loads without executing anything.

``model.safetensors`` holds the weights and, in its header, the description of the model with a SHA-256 of all that the
file holds; ``config.json`` is the same description for people and other programs, and is not read again. The weights
file alone is enough to load, and it is replaced in one step, so that a save that is cut off leaves the previous one
whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from foveate import __version__
from foveate.errors import FoveateError, first_line
from foveate.networks import create_model, origin_of
from foveate.networks.create import KEPT_OPTIONS
from foveate.spec import Plan
from foveate.surgery.graft import record_of, take_out
from foveate.surgery.holders import KEY
from foveate.surgery.insert import insert, plan_of, unwrapped
from foveate.surgery.probe import input_size_of

__all__ = ["describe", "load", "save"]

WEIGHTS, CONFIG, HEADER = "model.safetensors", "config.json", "foveate"
_ADVICE = "build the network and give it as load(folder, model)"
_PREPARATION: dict[str, type | tuple[type, ...]] = {
    "input_size": int,
    "mean": (int, float),
    "std": (int, float),
    "interpolation": str,
    "crop_pct": (int, float),
    "label_names": str,
}


def _digest(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    said = {key: value for key, value in config.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _preparation(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "pretrained_cfg", None) or {}
    read = config.get if isinstance(config, dict) else lambda key: getattr(config, key, None)
    return {key: list(v) if isinstance(v := read(key), tuple) else v for key in _PREPARATION if read(key) is not None}


def _structure(model: nn.Module) -> str:
    """A digest of what keys and shapes do not show: strides, paddings, pools, activations.

    Left out is what does not change a prediction (identities, dropout), the class of batch norms, and attention.
    """
    lines = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        leaf = next(module.children(), None) is None and not hasattr(module, "running_mean")
        if leaf and KEY not in name and not kind.startswith(("Identity", "Drop")):
            lines.append(f"{name} {kind} {[getattr(module, key, None) for key in ('stride', 'padding', 'dilation')]}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def describe(model: nn.Module) -> dict[str, Any]:
    """What ``config.json`` says of a model: architecture, classes, plan, and how images are prepared for it."""
    origin, record = origin_of(model), record_of(model)
    return {
        "library": origin.library if origin else None,
        "architecture": origin.name if origin else type(model).__name__,
        "num_classes": origin.num_classes if origin else None,
        "in_chans": origin.in_chans if origin else input_size_of(model)[0],
        "options": dict(origin.options) if origin else {},
        "structure": _structure(model),
        "plan": str(plan_of(model) or ""),
        "plan_input_size": list(record.size) if record else None,
        "preparation": _preparation(model),
        "foveate_version": __version__,
    }


def save(model: nn.Module, folder: str | os.PathLike[str], info: Mapping[str, object] | None = None) -> Path:
    """Keep a model: weights as safetensors, the plan and how to rebuild the network as text.

    Args:
        model: with or without a plan; what ``torch.compile`` or data parallelism put around it is left out.
        folder: made when it does not exist; a model that it holds is replaced, other files in it stay.
        info: more to say in ``config.json``, such as the recipe and the accuracy; plain JSON values.

    Returns:
        The folder.

    Raises:
        FoveateError: the model holds something other than tensors, or the folder cannot be written; what was in it
            is untouched.
    """
    folder, model = Path(folder), unwrapped(model)
    state = model.state_dict()
    odd = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise FoveateError(f"cannot save {type(model).__name__}: {', '.join(odd[:4])} of its state is not a tensor")
    # Tensors that share memory are written once each: safetensors takes no aliases.
    state = {key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in state.items()}
    said = {**describe(model), **({"info": dict(info)} if info else {})}
    config = json.loads(json.dumps(said, default=str))  # as it will be read back
    config["sha256"] = _digest(state, config)
    text = json.dumps(config, indent=2, ensure_ascii=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FoveateError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    _replace(
        {
            folder / CONFIG: lambda path: path.write_text(text + "\n", encoding="utf-8"),
            folder / WEIGHTS: lambda path: save_file(state, path, {"format": "pt", HEADER: text}),
        }
    )
    return folder


def _replace(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write files beside the old ones first, all of them, and only then put them in their places."""
    temporaries = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in writers}
    try:
        for path, write in writers.items():
            write(temporaries[path])
            with temporaries[path].open("rb+") as file:
                os.fsync(file.fileno())
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


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
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
    return state, config


def load(folder: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Build a saved model anew: first the network, then the plan, then the weights. Nothing in the files is executed.

    Args:
        folder: one that ``save`` wrote.
        model: the plain network, for one that neither timm nor torchvision can build by name; it is changed in place.

    Returns:
        The model, in eval mode.

    Raises:
        FoveateError: the folder holds no such model, its files are damaged, or the weights do not fit; a ``model``
            that was given is left as found.
    """
    folder = Path(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        held = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
        raise FoveateError(f"no saved model in {folder}: {WEIGHTS} is missing (there: {held or 'nothing'})")
    state, config = _read(path)
    preparation = _checked_preparation(path, config)
    network = _rebuild(path, config, state) if model is None else model
    if plan_of(network) is not None:
        raise FoveateError(f"load takes the plain network, and this one carries the plan {str(plan_of(network))!r}")
    if config.get("plan"):
        size = config.get("plan_input_size")
        insert(network, Plan.parse(config["plan"]), seed=0, input_size=tuple(size) if isinstance(size, list) else None)
    try:
        if model is None and config.get("structure") != _structure(network):
            raise FoveateError(
                f"{path}: the network was not built or run as {config.get('architecture')} of the installed "
                f"{config.get('library')} is: {_ADVICE}"
            )
        _fill(network, state, path, config)
    except FoveateError:
        take_out(network)
        raise
    record = record_of(network)
    for removed in record.removed.values() if record else ():
        removed.original = False
    _restore_preparation(network, preparation)
    return network.eval()


def _rebuild(path: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    library, name, classes, channels, options = (
        config.get(key) for key in ("library", "architecture", "num_classes", "in_chans", "options")
    )
    if library not in ("timm", "torchvision") or not isinstance(name, str):
        raise FoveateError(f"{path}: {name} is not rebuilt by a name of timm or torchvision alone: {_ADVICE}")
    sizes = {side for tensor in state.values() for side in tensor.shape[:2]}
    if classes not in (None, 0, *sizes) or channels not in (*sizes,) or not _is_plain(options):
        raise FoveateError(f"{path}: {classes} classes, {channels} channels, options {options}: {_ADVICE}")
    with torch.random.fork_rng(devices=[]):
        prefix = "torchvision:" if library == "torchvision" else ""
        return create_model(prefix + name, num_classes=classes, in_chans=channels, **dict(options or {}))


def _parts(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _is_plain(options: object) -> bool:
    """Whether options that were read from a file are those of an origin, with plain values."""
    return isinstance(options, dict) and all(
        key in KEPT_OPTIONS and all(isinstance(part, str | int | float) for part in _parts(value))
        for key, value in options.items()
    )


def _fill(model: nn.Module, state: Mapping[str, Tensor], path: Path, config: Mapping[str, Any]) -> None:
    """Load the weights in the dtypes that they were saved in; nothing is changed when they do not fit."""
    own = model.state_dict()
    # Batch norms that were frozen no longer count their batches.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own or own[key].shape != state[key].shape]
    if missing or unexpected:
        raise FoveateError(
            f"the weights in {path} do not fit {config.get('architecture')}: missing {missing[:4] or 'none'} "
            f"({len(missing)}), unexpected or of another shape {unexpected[:4] or 'none'} ({len(unexpected)})"
        )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in state and tensor.dtype != state[name].dtype:
            tensor.data = tensor.data.to(state[name].dtype)
    model.load_state_dict(state, strict=False)


def _checked_preparation(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    said = config.get("preparation", {})
    known = {key: said[key] for key in _PREPARATION if key in said} if isinstance(said, dict) else {"preparation": said}
    for key, value in known.items():
        if key not in _PREPARATION or not all(isinstance(part, _PREPARATION[key]) for part in _parts(value)):
            raise FoveateError(f"{path}: {key}={value!r} says nothing of how images are prepared")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}


def _restore_preparation(model: nn.Module, saved: Mapping[str, Any]) -> None:
    known = getattr(model, "pretrained_cfg", None)
    if known is None:
        model.pretrained_cfg = dict(saved)  # type: ignore[assignment]
    elif isinstance(known, dict):
        model.pretrained_cfg = {**known, **saved}  # type: ignore[assignment]
    else:
        for key, value in saved.items():
            setattr(known, key, value)
