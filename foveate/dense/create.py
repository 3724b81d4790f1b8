"""A segmentation network by name, which a saved model can be rebuilt from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from foveate.dense.segmenter import Segmenter
from foveate.errors import FoveateError
from foveate.model_info import pretrained_config, update_pretrained_config
from foveate.networks.create import ATTRIBUTE, create_model
from foveate.spec import Spec

__all__ = ["create_segmenter"]

_KEPT = ("input_size", "mean", "std", "interpolation")


def create_segmenter(
    trunk: str | nn.Module,
    head: str | Spec = "lraspp",
    *,
    classes: int | Sequence[str],
    pretrained: bool = False,
    in_chans: int = 3,
    taps: Sequence[int] | None = None,
    **options: object,
) -> Segmenter:
    """Build a segmentation network that ``fit`` trains, ``save`` keeps and ``load`` builds anew.

    Args:
        trunk: a timm model by name, such as ``"efficientnet_lite0"``; what lies behind the last feature map that the
            head reads is left out. Or a timm network, which stays whole and as it is; ``load`` then needs one, too.
        head: ``lraspp`` (compact), ``upernet`` or ``danet``, with options: ``"danet(form='farthest')"``.
        classes: how many, or their names.
        pretrained: the trunk starts with its ImageNet weights.
        in_chans: channels of the images.
        taps: the feature maps that the head reads, as in ``Segmenter``.
        options: of timm, such as ``output_stride=16``.

    Returns:
        The network: (B, channels, H, W) -> {"out": (B, K, H, W)}, and in training mode the auxiliary outputs.

    Raises:
        FoveateError: a network, a head, an option or a feature map does not exist.
    """
    names = () if isinstance(classes, int) else tuple(classes)
    if isinstance(classes, str) or not all(isinstance(name, str) for name in names):
        raise FoveateError(f"classes={classes!r}: give a number, or a list of names")
    count = classes if isinstance(classes, int) else len(names)
    if isinstance(trunk, nn.Module):
        if options or pretrained:
            given = "pretrained" if pretrained else next(iter(options))
            raise FoveateError(f"{given} is for a trunk that is built by name, and this one is built already")
        segmenter = Segmenter(trunk, head, classes=count, taps=taps)
    else:
        if not isinstance(trunk, str) or trunk.startswith("torchvision:"):
            raise FoveateError(f"the trunk of a segmenter is a timm model's name or network, not {trunk!r}")
        network = create_model(trunk, pretrained=pretrained, num_classes=0, in_chans=in_chans, **options)
        segmenter = Segmenter(network, head, classes=count, taps=taps)
        _leave_out_the_rest(network, segmenter.taps.indices)
        kept = {**options, "head": str(Spec.parse(str(head)))} | ({} if taps is None else {"taps": list(taps)})
        setattr(segmenter, ATTRIBUTE, ("segmenter", trunk.partition(".")[0], kept))
    config = pretrained_config(segmenter.backbone)
    fields: dict[str, Any] = {key: config[key] for key in _KEPT if key in config}
    architecture = config.get("architecture") or type(segmenter.backbone).__name__
    fields |= {"architecture": f"{architecture}, {Spec.parse(str(head)).name}", "crop_pct": 1.0, "num_classes": count}
    update_pretrained_config(segmenter, fields | ({"label_names": names} if names else {}))
    return segmenter


def _leave_out_the_rest(network: nn.Module, indices: tuple[int, ...]) -> None:
    """Take out what lies behind the last of these feature maps, which would have weights and no gradient."""
    prune = getattr(network, "prune_intermediate_layers", None)
    if prune is not None:
        prune(list(indices), prune_norm=False, prune_head=True)
