"""The one entry by which timm builds a saved model that is not a plain network of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models import load_pretrained
from torch import Tensor, nn

from foveate.errors import FoveateError, first_line, near
from foveate.model_info import pretrained_config, update_pretrained_config
from foveate.networks import create_model
from foveate.networks._timm_registry import register_model
from foveate.networks.create import KEPT_OPTIONS
from foveate.surgery.insert import insert
from foveate.surgery.saving.checkpoint import (
    LoadReport,
    checked_preparation,
    is_plain,
    mark_as_loaded,
)
from foveate.surgery.saving.hub import downloaded
from foveate.surgery.saving.model_card import ENTRY
from foveate.surgery.saving.weights_file import CONFIG, read

__all__ = ["foveate_planned"]


@register_model
def foveate_planned(
    pretrained: bool = False,
    pretrained_cfg: Mapping[str, object] | None = None,
    pretrained_cfg_overlay: Mapping[str, object] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    pretrained_model_args: Mapping[str, object] | None = None,  # noqa: ARG001 - timm gives it to every network
    network: str | None = None,
    plan: str = "",
    plan_input_size: list[int] | None = None,
    **options: Any,
) -> nn.Module:
    """What timm calls for a saved model that is not a plain network of its own; not meant to be called by hand.

    Args:
        pretrained: load the saved weights. As for any of timm's networks, another ``num_classes`` gives a new
            classifier, and another ``in_chans`` adapts the first convolution.
        pretrained_cfg: of the folder or repository, as timm hands it on.
        pretrained_cfg_overlay: replaces parts of it.
        cache_dir: where the hub's files are kept.
        pretrained_model_args: what the saved model was built with; the same stands in the other arguments.
        network: the plain network's name, as for ``fv.create_model``.
        plan: the notation; nothing in it is executed.
        plan_input_size: (channels, height, width) of the image that the plan was tried on.
        options: ``num_classes``, ``in_chans``, and those that a saved model may hold.

    Returns:
        The model, in train mode, as timm's are.

    Raises:
        FoveateError: an option is not known, the plan does not fit, or the weights are missing, damaged or do not fit.
    """
    if not isinstance(network, str):
        raise FoveateError(f"{ENTRY} builds what was saved: timm.create_model('local-dir:FOLDER', pretrained=True)")
    sizes = {key: options.pop(key) for key in ("num_classes", "in_chans") if key in options}
    odd = [key for key in options if not is_plain({key: options[key]})]
    if odd:
        raise FoveateError(f"{ENTRY} takes no {odd[0]}={options[odd[0]]!r}; {near(odd[0], (*sizes, *KEPT_OPTIONS))}")
    cfg = {**(pretrained_cfg or {}), **(pretrained_cfg_overlay or {})}
    folder = _folder_of(cfg, cache_dir) if pretrained else Path()
    saved = read(folder)[1] if pretrained else {}
    model = create_model(network, **sizes, **options)
    if plan:
        side = tuple(plan_input_size[1:]) if isinstance(plan_input_size, list | tuple) else None
        insert(model, plan, input_size=side)
    preparation = checked_preparation(folder / CONFIG, {"preparation": cfg})
    if sizes.get("num_classes") != cfg.get("num_classes"):
        preparation.pop("label_names", None)
    if pretrained:
        _load_as_timm(model, saved, cfg, sizes.get("in_chans", 3), folder)
        mark_as_loaded(model)
    update_pretrained_config(model, preparation)
    return model


def _folder_of(cfg: Mapping[str, Any], cache_dir: str | os.PathLike[str] | None) -> Path:
    if cfg.get("source") == "hf-hub":
        name, _, revision = str(cfg.get("hf_hub_id")).partition("@")
        return downloaded(name, revision or None, cache_dir=cache_dir)
    if not cfg.get("file"):
        raise FoveateError(f"{ENTRY} has weights in a folder or repository only: 'local-dir:FOLDER', 'hf-hub:NAME'")
    return Path(cfg["file"])


def _load_as_timm(
    model: nn.Module, state: Mapping[str, Tensor], cfg: Mapping[str, object], channels: int, at: Path
) -> None:
    """Load weights with timm's own loader, which adapts them to other classes and channels."""
    own = pretrained_config(model)
    source = {
        "state_dict": dict(state),
        **{key: cfg.get(key) for key in ("num_classes", "input_size")},
        **{key: own.get(key) for key in ("classifier", "first_conv")},
    }
    try:
        load_pretrained(model, source, num_classes=getattr(model, "num_classes", 0), in_chans=channels)
    except Exception as error:
        report = LoadReport.of(model, state)
        why = first_line(error) if report == LoadReport() else report
        raise FoveateError(f"the weights in {at} do not fit the network that was asked for: {why}") from error
