"""Weights and plan in one folder, that loads without executing anything.

``model.safetensors`` holds the weights and, in its header, the description of the model with a SHA-256 of all that the
file holds; ``config.json`` is for people and other programs, and is not read again. The weights file alone is enough to
load, and it is replaced in one step, so that a save that is cut off leaves the previous one whole. ``SHA256SUMS``, in
the form of the command ``sha256sum``, is checked when it is there.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveate import __version__
from foveate.dense import create_detector, create_segmenter
from foveate.errors import FoveateError
from foveate.html import html_text
from foveate.io import JsonObject
from foveate.model_info import pretrained_config, update_pretrained_config
from foveate.networks import create_model, origin_of
from foveate.networks.create import KEPT_OPTIONS
from foveate.spec import Plan
from foveate.surgery.apply import undo
from foveate.surgery.insert import insert, plan_of
from foveate.surgery.presets import PRESETS
from foveate.surgery.record import plans_within, record_of, unwrapped
from foveate.surgery.saving.structure import runs_as_described, structure_of
from foveate.surgery.saving.weights_file import CONFIG, as_text, model_folder, read, write_model_files
from foveate.surgery.trace import input_size_of

__all__ = ["LoadReport", "describe", "load", "load_report", "save"]

_REPORT = "_foveate_load_report"
_ADVICE = "build the network and give it as load(folder, model)"
_PREPARATION: dict[str, type | tuple[type, ...]] = {
    "input_size": int,
    "mean": (int, float),
    "std": (int, float),
    "interpolation": str,
    "crop_pct": (int, float),
    "label_names": str,
}
_ON_A_TRUNK: Mapping[str, Callable[..., nn.Module]] = {"segmenter": create_segmenter, "detector": create_detector}
logger = logging.getLogger("foveate")


@dataclass(frozen=True)
class LoadReport:
    """How saved weights fitted a model. Its text is one line.

    Args:
        missing: keys of the model that were not saved: these weights are still those of the model.
        unexpected: saved keys that the model does not have.
        mismatched: keys of both, of another shape, which stayed as they were, too.
        structure: whether the rebuilt network runs as the saved one did, as far as can be seen.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    structure: bool = True
    _repr_html_ = html_text

    @classmethod
    def of(cls, model: nn.Module, state: Mapping[str, Tensor], *, structure: bool = True) -> LoadReport:
        """Compare a model with saved weights; batch norms that were frozen no longer count their batches."""
        own = model.state_dict()
        return cls(
            tuple(key for key in own if key not in state and not key.endswith("num_batches_tracked")),
            tuple(key for key in state if key not in own),
            tuple(key for key, tensor in state.items() if key in own and own[key].shape != tensor.shape),
            structure,
        )

    def __str__(self) -> str:
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.mismatched}
        description = [
            f"{kind} {', '.join(map(repr, keys[:4])) or 'none'} ({len(keys)})" for kind, keys in kinds.items()
        ]
        return ", ".join(description) + (
            "" if self.structure else ", and the network does not run as the saved one did"
        )


def load_report(model: nn.Module) -> LoadReport | None:
    """How the saved weights fitted a model that ``load`` gave; None for any other.

    Args:
        model: a network.

    Returns:
        The report, or None.
    """
    report: LoadReport | None = getattr(model, _REPORT, None)
    return report


def _preparation(model: nn.Module) -> dict[str, object]:
    config = pretrained_config(model)
    return {key: list(v) if isinstance(v := config[key], tuple) else v for key in _PREPARATION if key in config}


def describe(model: nn.Module) -> JsonObject:
    """What is kept of a model beside its weights: architecture, classes, plan, and how images are prepared for it."""
    origin, record = origin_of(model), record_of(model)
    name = origin.name if origin else type(model).__name__
    return {
        "library": origin.library if origin else None,
        "architecture": PRESETS[name][0] if name in PRESETS else name,
        "num_classes": origin.num_classes if origin else None,
        "in_chans": origin.in_chans if origin else input_size_of(model)[0],
        "options": dict(origin.options) if origin else {},
        **structure_of(model),
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
    return write(model, folder, info, lambda config: {CONFIG: as_text(config)})


def write(
    model: nn.Module,
    folder: str | os.PathLike[str],
    info: Mapping[str, object] | None,
    texts: Callable[[dict[str, object]], Mapping[str, str]],
    listed: Collection[str] = (),
) -> Path:
    """Write the weights file and others beside it, all of them or none. Like ``save``, with two more arguments.

    Args:
        model: see ``save``, as for ``folder`` and ``info``.
        folder: see there.
        info: see there.
        texts: gives the text of each other file by its name, from the description that the weights file holds.
        listed: the files that ``SHA256SUMS`` lists; without any, none is written, and an old one goes.
    """
    folder, model = Path(folder), unwrapped(model)
    inner = [name for name in plans_within(model) if name]
    if inner:
        raise FoveateError(
            f"cannot save {type(model).__name__}: its part {inner[0]!r} carries a plan of its own, and load could not "
            "build it anew; save that part, or insert the plan into the whole model, with sites named from there"
        )
    state = model.state_dict()
    odd = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise FoveateError(f"cannot save {type(model).__name__}: {', '.join(odd[:4])} of its state is not a tensor")
    description = {**describe(model), **({"info": dict(info)} if info else {})}
    return write_model_files(state, description, folder, texts, listed)


def load(folder: str | os.PathLike[str], model: nn.Module | None = None, *, strict: bool = True) -> nn.Module:
    """Build a saved model anew: first the network, then the plan, then the weights. Nothing in the files is executed.

    Args:
        folder: one that ``save`` or ``save_pretrained`` wrote, or a training run's, of which the best model is taken.
        model: the plain network, for one that neither timm nor torchvision can build by name; it is changed in place.
        strict: refuse weights that do not fit in every key and shape, and a network that is not rebuilt as it was.
            Without it what fits is loaded, and one warning and ``load_report(model)`` say what did not.

    Returns:
        The model, in eval mode.

    Raises:
        FoveateError: the folder holds no such model, its files are damaged, or the weights do not fit; a ``model``
            that was given is left as found.
    """
    path, state, config = read(model_folder(Path(folder)))
    preparation = checked_preparation(path, config)
    network = _rebuild(path, config, state) if model is None else model
    if plan_of(network) is not None:
        raise FoveateError(f"load takes the plain network, and this one carries the plan {str(plan_of(network))!r}")
    if config.get("plan"):
        size = config.get("plan_input_size")
        insert(network, Plan.parse(config["plan"]), seed=0, input_size=tuple(size) if isinstance(size, list) else None)
    alike = model is not None or runs_as_described(network, config)
    report, name = LoadReport.of(network, state, structure=alike), config.get("architecture")
    if report != LoadReport():
        text = f"the weights in {path} do not fit {name}: {report}"
        if strict:
            undo(network)
            run = f"{path}: the network was not built or run as {name} of the installed {config.get('library')} is"
            raise FoveateError(text if alike else f"{run}: {_ADVICE}")
        logger.warning(text)
    _fill(network, {key: state[key] for key in state if key not in (*report.unexpected, *report.mismatched)})
    setattr(network, _REPORT, report)
    if report.mismatched:
        preparation.pop("label_names", None)  # they may be of other classes
    mark_as_loaded(network)
    update_pretrained_config(network, preparation)
    return network.eval()


def mark_as_loaded(model: nn.Module) -> None:
    """Write down that the blocks which a plan replaced were never the caller's, so that ``remove`` refuses."""
    record = record_of(model)
    for removed in record.removed.values() if record else ():
        removed.original = False


def _rebuild(path: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    library, name, classes, channels, options = (
        config.get(key) for key in ("library", "architecture", "num_classes", "in_chans", "options")
    )
    if library not in ("timm", "torchvision", *_ON_A_TRUNK) or not isinstance(name, str):
        raise FoveateError(f"{path}: {name} is not rebuilt by a name of timm or torchvision alone: {_ADVICE}")
    sizes = {side for tensor in state.values() for side in tensor.shape[:2]}
    # A first layer may take squares of pixels that were put into channels.
    if type(channels) is not int or not any(channels * pixels in sizes for pixels in (1, 4, 16)):
        raise FoveateError(f"{path}: {channels} channels do not fit its weights: {_ADVICE}")
    sizes |= {side // n - 1 for side in sizes for n in (1, 6) if library == "detector"}  # the background, six boxes
    if classes not in (None, 0, *sizes) or not is_plain(options):
        raise FoveateError(f"{path}: {classes} classes, {channels} channels, options {options}: {_ADVICE}")
    with torch.random.fork_rng(devices=[]):
        if library in _ON_A_TRUNK:
            return _ON_A_TRUNK[library](name, classes=classes or 0, in_chans=channels, **dict(options or {}))
        prefix = "torchvision:" if library == "torchvision" else ""
        return create_model(prefix + name, num_classes=classes, in_chans=channels, **dict(options or {}))


def _parts(value: object) -> list[object]:
    return [*value] if isinstance(value, list | tuple) else [value]


def is_plain(options: object) -> bool:
    """Whether options that were read from a file are those of an origin, with plain values."""
    return isinstance(options, dict) and all(
        key in KEPT_OPTIONS and all(isinstance(part, str | int | float) for part in _parts(value))
        for key, value in options.items()
    )


def _fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights that fit, in the dtypes that they were saved in."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in state and tensor.dtype != state[name].dtype:
            tensor.data = tensor.data.to(state[name].dtype)
    fitting = OrderedDict(state)
    # torchvision's MNASNet asks which version of it wrote a state dict.
    fitting._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]  # torch's own attribute of a state dict
    model.load_state_dict(fitting, strict=False)


def checked_preparation(path: Path, config: Mapping[str, object]) -> JsonObject:
    """How images are prepared, as a description says, when it says what can be.

    Raises:
        FoveateError: it says something else.
    """
    description = config.get("preparation", {})
    known = (
        {key: description[key] for key in _PREPARATION if key in description}
        if isinstance(description, dict)
        else {"preparation": description}
    )
    for key, value in known.items():
        if key not in _PREPARATION or not all(isinstance(part, _PREPARATION[key]) for part in _parts(value)):
            raise FoveateError(f"{path}: {key}={value!r} says nothing of how images are prepared")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
