"""MobileNetV1 with three quarters and half of its channels, which timm has no names for.

Howard et al., *MobileNets*, 2017, https://arxiv.org/abs/1704.04861. The widths of all layers are multiplied; timm
rounds them to multiples of 8, which changes none of them here. In all else they are timm's ``mobilenetv1_100``.
"""

from __future__ import annotations

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs

# timm's builder is private, and the only thing in timm that knows MobileNetV1's layers: a copy of them here could
# drift from mobilenetv1_100 and its keys. tests/networks/test_mobilenetv1.py tells when timm renames it.
from timm.models.efficientnet import _gen_mobilenet_v1
from torch import nn

from foveate.networks._timm_registry import register_model

__all__: list[str] = []


def _cfg() -> dict[str, object]:
    return {
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "num_classes": 1000,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv_stem",
        "classifier": "classifier",
    }


default_cfgs = generate_default_cfgs({"mobilenetv1_075.untrained": _cfg(), "mobilenetv1_050.untrained": _cfg()})


@register_model
def mobilenetv1_075(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """MobileNetV1 with 0.75 of the channels: 2,585,560 parameters with 1000 classes."""
    model: nn.Module = _gen_mobilenet_v1("mobilenetv1_075", 0.75, pretrained=pretrained, **kwargs)
    return model


@register_model
def mobilenetv1_050(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """MobileNetV1 with 0.5 of the channels: 1,331,592 parameters with 1000 classes."""
    model: nn.Module = _gen_mobilenet_v1("mobilenetv1_050", 0.5, pretrained=pretrained, **kwargs)
    return model
