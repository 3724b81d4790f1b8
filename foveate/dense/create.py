"""A segmentation network by name, which a saved model can be rebuilt from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

from torch import nn

from foveate.dense.segmenter import Segmenter
from foveate.dense.taps import Taps
from foveate.errors import FoveateError
from foveate.model_info import pretrained_config, update_pretrained_config
from foveate.networks.create import ATTRIBUTE, create_model
from foveate.spec import Spec

__all__ = ["create_segmenter", "created"]

Network = TypeVar("Network", bound=nn.Module)


class _OnATrunk(Protocol):
    """A network on a trunk."""

    backbone: nn.Module
    taps: Taps


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
    return created(Segmenter, "segmenter", trunk, head, classes, pretrained, in_chans, taps, options)


def created(
    kind: Callable[..., Network],
    library: str,
    trunk: str | nn.Module,
    head: str | Spec,
    classes: int | Sequence[str],
    pretrained: bool,
    in_chans: int,
    taps: Sequence[int] | None,
    options: Mapping[str, object],
) -> Network:
    """A network of a kind on a trunk, with what ``save`` writes down of it.

    Args:
        kind: builds it from a trunk, a head, ``classes`` and ``taps``.
        library: what its origin is called: "segmenter" or "detector".
        trunk: as in ``create_segmenter``, and so the other arguments.
        head: see there.
        classes: see there.
        pretrained: see there.
        in_chans: see there.
        taps: see there.
        options: see there.

    Raises:
        FoveateError: as there.
    """
    names = () if isinstance(classes, int) else tuple(classes)
    if isinstance(classes, str) or not all(isinstance(name, str) for name in names):
        raise FoveateError(f"classes={classes!r}: give a number, or a list of names")
    count = classes if isinstance(classes, int) else len(names)
    if isinstance(trunk, nn.Module):
        if options or pretrained:
            given = "pretrained" if pretrained else next(iter(options))
            raise FoveateError(f"{given} is for a trunk that is built by name, and this one is built already")
        made = kind(trunk, head, classes=count, taps=taps)
    else:
        if not isinstance(trunk, str) or trunk.startswith("torchvision:"):
            raise FoveateError(f"the trunk of a {library} is a timm model's name or network, not {trunk!r}")
        network = create_model(trunk, pretrained=pretrained, num_classes=0, in_chans=in_chans, **options)
        made = kind(network, head, classes=count, taps=taps)
        _leave_out_the_rest(network, cast(_OnATrunk, made).taps.indices)
        kept = {**options, "head": str(Spec.parse(str(head)))} | ({} if taps is None else {"taps": list(taps)})
        setattr(made, ATTRIBUTE, (library, trunk.partition(".")[0], kept))
    backbone = cast(_OnATrunk, made).backbone
    config = pretrained_config(backbone)
    fields: dict[str, Any] = {key: config[key] for key in _KEPT if key in config}
    architecture = config.get("architecture") or type(backbone).__name__
    fields |= {"architecture": f"{architecture}, {Spec.parse(str(head)).name}", "crop_pct": 1.0, "num_classes": count}
    update_pretrained_config(made, fields | ({"label_names": names} if names else {}))
    return made


def _leave_out_the_rest(network: nn.Module, indices: tuple[int, ...]) -> None:
    """Take out what lies behind the last of these feature maps, which would have weights and no gradient."""
    prune = getattr(network, "prune_intermediate_layers", None)
    if prune is not None:
        prune(list(indices), prune_norm=False, prune_head=True)
