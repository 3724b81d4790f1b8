"""What a network's keys and shapes do not show, as digests: whether a rebuilt network runs as the saved one did."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from torch import nn

from foveate.model_info import is_plain
from foveate.surgery.wrappers import KEY

__all__ = ["runs_as_described", "structure_of"]

_SETTINGS = (
    *("kernel_size", "stride", "padding", "output_padding", "dilation", "groups", "padding_mode"),
    *("ceil_mode", "count_include_pad", "divisor_override", "output_size", "norm_type"),
    *("eps", "num_groups", "normalized_shape"),
    *("approximate", "negative_slope", "alpha", "beta", "threshold", "value", "lambd", "dim"),
    *("min_val", "max_val", "lower", "upper"),
    *("size", "scale_factor", "mode", "align_corners", "upscale_factor", "downscale_factor", "start_dim", "end_dim"),
    *("num_heads", "scale"),
)
"""Attributes that a module computes with. Not all that it has: one that a new version of a library adds, or that only
training looks at, such as a momentum, would let no file load."""


def structure_of(model: nn.Module) -> dict[str, str]:
    """Digests of what a description keeps: the kinds of layers with their strides, and all settings of layers.

    The first stands alone in files that were written before there was the second.
    """
    return {"structure": _kinds(model), "settings": _settings(model)}


def runs_as_described(model: nn.Module, description: Mapping[str, object]) -> bool:
    """Whether a network has the digests of a description; one that lacks the settings says nothing of them."""
    known = {"settings": description.get("settings"), "structure": description.get("structure")}
    found = structure_of(model)
    return all(found[key] == said for key, said in known.items() if key == "structure" or said is not None)


def _kinds(model: nn.Module) -> str:
    """Of layers with strides, paddings and dilations, pools and activations.

    Left out is what does not change a prediction (identities, dropout), the class of batch norms, and attention.
    """
    lines = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        leaf = next(module.children(), None) is None and not hasattr(module, "running_mean")
        if leaf and KEY not in name and not kind.startswith(("Identity", "Drop")):
            lines.append(f"{name} {kind} {[getattr(module, key, None) for key in ('stride', 'padding', 'dilation')]}")
    return _digest(lines)


def _settings(model: nn.Module) -> str:
    """Of every module but attention the attributes that it computes with, as far as they are numbers and texts."""
    lines = []
    for name, module in model.named_modules():
        held = vars(module)
        values = {key: _listed(held[key]) for key in _SETTINGS if key in held and is_plain(held[key])}
        if values and KEY not in name.split("."):
            lines.append(f"{name} {values}")
    return _digest(lines)


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
