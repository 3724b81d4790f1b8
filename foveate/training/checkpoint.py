"""The state of a run in one safetensors file: weights, optimiser, and how far it has come. No pickle.

There is no state of random numbers in it: whatever is drawn in a step depends on the recipe's seed and on the step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.io import JsonObject, state_digest, write_atomically
from foveate.training.metrics import Diverged
from foveate.training.recipes.recipe import Recipe

__all__ = ["Position", "read_choice", "read_state", "save_state"]

_HEADER = "foveate"
_SUM = "sha256"
_CHOSEN = "chosen"
# These may change between two parts of a run: its result does not depend on them.
_FREE = ("workers", "checkpoint_every", "evaluate_every")
_PLAIN = (bool, int, float, str, list, tuple, type(None))


@dataclass
class Position:
    """How far a run has come.

    Args:
        epoch: epochs finished.
        step: steps done in the epoch that is running.
        loss: sum of its images' losses.
        images: images seen in it.
        train_seconds: spent on its steps.
        seconds: spent on the whole run.
        history: a row for each finished epoch.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    images: int = 0
    train_seconds: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def end_epoch(self, row: dict[str, float]) -> None:
        """Go to the start of the next epoch."""
        self.history.append(row)
        self.epoch += 1
        self.step, self.loss, self.images, self.train_seconds = 0, 0.0, 0, 0.0


def save_state(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimiser: torch.optim.Optimizer,
    position: Position,
    run: Mapping[str, object],
    scaler: Any = None,
) -> None:
    """Write the state of a run.

    Args:
        path: of the file.
        modules: by name, such as the model and its moving average.
        optimiser: whose state is tensors and plain numbers.
        position: how far the run has come.
        run: what the run is; ``read_state`` compares it.
        scaler: of fp16's gradients.

    Raises:
        Diverged: a weight is NaN or infinite; the file stays as it was.
        FoveateError: the file cannot be written, or the optimiser keeps something that is neither tensor nor number.
    """
    tensors = {
        f"{name}.{key}": tensor for name, module in modules.items() for key, tensor in module.state_dict().items()
    }
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise Diverged(f"{key} is NaN or infinite: lower the learning rate; the last good checkpoint was kept")
    numbers: dict[str, JsonObject] = {}
    packed = optimiser.state_dict()
    for index, entries in packed["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{index}.{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    groups: list[JsonObject] = []
    for index, group in enumerate(packed["param_groups"]):
        tensors |= {f"group.{index}.{key}": value for key, value in group.items() if isinstance(value, Tensor)}
        # What is neither number nor tensor (a dtype) is a setting, and the recipe makes it again.
        groups.append({key: value for key, value in group.items() if isinstance(value, _PLAIN)})
    header = {
        "run": run,
        "position": asdict(position),
        "groups": groups,
        "numbers": numbers,
        "scaler": scaler.state_dict() if scaler is not None else None,
    }
    # A copy each: safetensors takes neither aliases nor channels-last memory.
    whole = {key: t.detach().cpu().clone(memory_format=torch.contiguous_format) for key, t in tensors.items()}
    try:
        if packed.keys() - {"state", "param_groups"}:
            raise TypeError(f"it holds {', '.join(packed.keys() - {'state', 'param_groups'})}")
        text = json.dumps(header)
    except TypeError as error:
        raise FoveateError(f"this optimiser's state cannot be saved ({error}): take another, or no output") from error
    write_atomically(path, save(whole, {_HEADER: text, _SUM: _digest(whole, text)}))


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 in hex of everything in the file: no format notices a flipped bit by itself."""
    return state_digest(sorted(tensors.items()), text)


def read_state(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimiser: torch.optim.Optimizer,
    run: Mapping[str, object],
    scaler: Any = None,
) -> Position:
    """Put the state of a run into the modules and the optimiser; they are not touched on an error.

    Args:
        path: of the file.
        modules: as in ``save_state``.
        optimiser: over the same parameters as then.
        run: what the run is now.
        scaler: of fp16's gradients.

    Returns:
        How far the run has come.

    Raises:
        FoveateError: the file is damaged, or is of another run; the message names the difference.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            header = json.loads(metadata[_HEADER])
            names = file.keys()
            tensors = {key: file.get_tensor(key) for key in names}
        if metadata[_SUM] != _digest(tensors, metadata[_HEADER]):
            raise ValueError("another SHA-256")
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise FoveateError(f"{path} is damaged and cannot be resumed from: name another output folder") from error
    _compare(_complete(header["run"]), run, path)
    states = {
        name: {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
        for name in modules
    }
    for name, module in modules.items():
        own = {key: tensor.shape for key, tensor in module.state_dict().items()}
        if own != {key: tensor.shape for key, tensor in states[name].items()}:
            raise FoveateError(f"{path.parent} holds a run of another model: its weights have other names or shapes")
    groups = optimiser.state_dict()["param_groups"]
    for index, (group, saved) in enumerate(zip(groups, header["groups"], strict=True)):
        prefix = f"group.{index}."
        group |= saved | {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    optimiser.load_state_dict(
        {"state": _optimiser_state(optimiser, tensors, header["numbers"]), "param_groups": groups}
    )
    for name, module in modules.items():
        module.load_state_dict(states[name])
    if scaler is not None and header["scaler"] is not None:
        scaler.load_state_dict(header["scaler"])
    return Position(**header["position"])


def read_choice(path: Path) -> dict[str, str]:
    """What a run decided where its recipe left it open, as ``save_state`` wrote it; {} where it decided nothing.

    Raises:
        FoveateError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            chosen = json.loads((file.metadata() or {})[_HEADER])["run"].get(_CHOSEN, {})
        return {"amp": str(chosen["amp"]), "compile": str(chosen["compile"])} if chosen else {}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FoveateError(f"{path} is damaged and cannot be resumed from: name another output folder") from error


def _optimiser_state(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, dict[str, object]]
) -> dict[int, JsonObject]:
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, object]] = {int(index): dict(entries) for index, entries in numbers.items()}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".", 2)
            like = parameters[int(index)]
            if tensor.shape == like.shape:
                # In the parameter's memory format: the same arithmetic in another order would not be bit-identical.
                tensor = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
            state.setdefault(int(index), {})[key] = tensor
    return state


def _flat(run: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in run.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif key not in _FREE:
            flat[f"{prefix}{key}"] = value
    return flat


def _complete(saved: Mapping[str, Any]) -> JsonObject:
    """A run as an older version described it, with what is new at its default."""
    if "recipe" not in saved:
        return dict(saved)
    return {"processes": 1, "teacher": "", **saved, "recipe": Recipe().to_dict() | saved["recipe"]}


def _compare(saved: Mapping[str, object], asked: Mapping[str, object], path: Path) -> None:
    there, here = (
        _flat({key: value for key, value in run.items() if key != _CHOSEN})
        for run in (saved, json.loads(json.dumps(asked)))
    )
    different = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    if different:
        shown = "; ".join(f"{key} is {there.get(key)!r} there and {here.get(key)!r} now" for key in different[:3])
        advice = "resume with the same recipe, plan and data, or name another folder"
        if different == ["recipe.epochs"]:  # the schedule of a longer run is another from its first step on
            last = path.parent / "last"
            advice = f"to train its network further, start a run in another folder from {last} (--model {last})"
        raise FoveateError(f"cannot resume {path.parent}: {shown}; {advice}")
