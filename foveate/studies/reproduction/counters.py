"""What the rows of the papers' tables cost: networks and modules by name, counted by a named rule.

A table says in data what a row is, such as ``{of = "network", name = "resnet50"}``; ``SUBJECTS`` is the list of what it
may say. Nothing has data: all is built and run on shapes alone.

The rules. ``exact``: every parameter, and each multiply-add as one. ``paper``: as the ULSAM paper counts, see
``foveate.cost``. The others are those of two programs that many papers print, for the operations of these networks:

* ``fvcore``: exact multiply-adds, and for each element 2 in a batch norm and 5 in a layer or group norm. Its terms for
  pooling and resizing are left out. ``fvcore, training``: the network was in training mode; then a batch norm takes 5.
* ``mmcv``: parameters that are trained; only modules, so that attention products are left out; the biases of
  convolutions, 1 for each element of ReLU and pooling, 2 for each of a norm.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from foveate.accounting.cost import cost
from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.dense import Detector, Segmenter
from foveate.errors import FoveateError, near
from foveate.registry import build
from foveate.surgery import create_model
from foveate.surgery.insert import insert

__all__ = ["COUNTINGS", "SUBJECTS", "Counted", "count"]

COUNTINGS = ("exact", "paper", "fvcore", "fvcore, training", "mmcv")
BATCH_NORM = nn.modules.batchnorm._BatchNorm
NORMS = (BATCH_NORM, nn.LayerNorm, nn.GroupNorm)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
SEEN = (*NORMS, *POOLS, nn.ReLU, nn.ReLU6, nn.Linear, nn.Conv2d, nn.ConvTranspose2d)  # the modules that mmcv counts


@dataclass(frozen=True)
class Counted:
    """Parameters and multiply-adds (or what a rule takes for them)."""

    params: int
    macs: int


@dataclass(frozen=True)
class Subject:
    """What is counted: a network or a module in eval mode, and the (channels, height, width) that it gets."""

    module: nn.Module
    size: tuple[int, int, int]


def mechanism(spec: str, channels: int, side: int) -> Subject:
    """An attention mechanism at channels x side x side."""
    return Subject(build(spec, channels), (channels, side, side))


def network(name: str, size: int = 224, plan: str | None = None, **options: Any) -> Subject:
    """A network of timm's or ours by name, with a plan or without, on square images."""
    model = create_model(name, **options)
    return Subject(insert(model, plan) if plan else model, (3, size, size))


def _trunk(backbone: str, features: Sequence[int] | None, options: Mapping[str, Any]) -> nn.Module:
    kept: dict[str, Any] = {} if features is None else {"features_only": True, "out_indices": tuple(features)}
    return create_model(backbone, **kept, **options)


def upernet(
    backbone: str,
    size: tuple[int, int] = (512, 2048),
    features: Sequence[int] | None = None,
    options: Mapping[str, object] | None = None,
) -> Subject:
    """UperNet with 150 classes: a whole trunk, or only what it needs for these of its feature maps."""
    segmenter = Segmenter(_trunk(backbone, features, options or {}), "upernet", classes=150)
    return Subject(segmenter, (3, size[0], size[1]))


def mask_rcnn(
    backbone: str,
    size: tuple[int, int],
    features: Sequence[int] | None = None,
    taps: Sequence[int] | None = None,
    frozen: Sequence[str] = (),
    options: Mapping[str, object] | None = None,
) -> Subject:
    """Mask R-CNN with 80 classes, as it is trained here; the parts of the trunk that are ``frozen`` are not trained.

    It is counted with 1000 regions and 100 masks, as mmdetection's counter takes them.
    """
    detector = Detector(_trunk(backbone, features, options or {}), "mask_rcnn", classes=80, taps=taps)
    detector.decoder.divisor = 1  # that counter gives the network the image as it is, not filled up
    for name in frozen:
        detector.backbone.get_submodule(name).requires_grad_(False)
    return Subject(detector, (3, size[0], size[1]))


def resmlp(width: int, depth: int, patches: str = "linear") -> Subject:
    """ResMLP with patches of 16 pixels; they exchange by a linear layer, or by a separable 3x3 convolution.

    Touvron et al., ResMLP, 2021, https://arxiv.org/abs/2105.03404, whose table of ablations has the latter.
    """
    block = functools.partial(ResBlock, init_values=1e-6)
    model = MlpMixer(num_blocks=depth, embed_dim=width, mlp_ratio=4, block_layer=block, norm_layer=Affine)
    if patches == "convolution":
        for part in model.blocks:
            part.linear_tokens = nn.Sequential(
                nn.Unflatten(2, (14, 14)),
                nn.Conv2d(width, width, 3, padding=1, groups=width),
                nn.Conv2d(width, width, 1),
                nn.Flatten(2),
            )
    return Subject(model, (3, 224, 224))


SUBJECTS: dict[str, Callable[..., Subject]] = {
    function.__name__: function for function in (mechanism, network, upernet, mask_rcnn, resmlp)
}


def count(subject: Mapping[str, object], counting: str = "exact") -> Counted:
    """Count what a row of a table is.

    Args:
        subject: ``of`` names one of ``SUBJECTS``; the rest are its arguments.
        counting: one of ``COUNTINGS``.

    Raises:
        FoveateError: there is no such subject or counting, the subject cannot be built, or it has no formula of a
            paper.
    """
    if counting not in COUNTINGS:
        raise FoveateError(f"counting={counting!r} does not exist; {near(counting, COUNTINGS)}")
    text = json.dumps(dict(subject), sort_keys=True)
    return _paper(text) if counting == "paper" else _by_rules(text)[counting]


class _NoStart(TorchFunctionMode):
    """First values are not drawn: without data there are none, and torch takes half of a network's time over them."""

    names = frozenset(
        ("uniform_", "normal_", "kaiming_uniform_", "constant_", "fill_", "zero_", "clamp_", "erfinv_", "mul_", "add_")
    )

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self.names:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


@functools.lru_cache(maxsize=1)  # the rules ask for it one after the other
def _built(text: str) -> Subject:
    arguments = json.loads(text)
    kind = arguments.pop("of", None)
    if kind not in SUBJECTS:
        raise FoveateError(f"nothing of the kind {kind!r} can be counted; {near(str(kind), SUBJECTS)}")
    with torch.device("meta"), _NoStart():
        subject = SUBJECTS[kind](**arguments)
    subject.module.eval()
    return subject


@functools.cache
def _paper(text: str) -> Counted:
    subject = _built(text)
    formula = getattr(subject.module, "paper_cost", None)
    if formula is not None:
        return Counted(*formula(*subject.size))
    found = cost(subject.module, subject.size, counting="paper")
    return Counted(found.params, found.macs)


@functools.cache
def _by_rules(text: str) -> dict[str, Counted]:
    """Every counting but the paper's, in one pass."""
    subject = _built(text)
    module = subject.module
    found = dict.fromkeys(("fvcore", "fvcore, training", "mmcv"), 0)

    def add(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        found["mmcv"] += _mmcv(part, x, output)
        if isinstance(part, NORMS):
            batch_norm = isinstance(part, BATCH_NORM)
            found["fvcore"] += (2 if batch_norm else 5) * x.numel()
            found["fvcore, training"] += 5 * x.numel()

    handles = [part.register_forward_hook(add) for part in module.modules() if isinstance(part, SEEN)]
    try:
        macs = count_operations(module, subject.size)[""].macs
    finally:
        for handle in handles:
            handle.remove()
    params = sum(p.numel() for p in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    with_norms = {name: Counted(params, macs + found[name]) for name in ("fvcore", "fvcore, training")}
    return {"exact": Counted(params, macs), **with_norms, "mmcv": Counted(trained, found["mmcv"])}


def _mmcv(part: nn.Module, x: Tensor, y: Tensor) -> int:
    if isinstance(part, nn.ConvTranspose2d):
        # The bias takes the height twice, as there: it decides a printed digit of XCiT-M24/8.
        bias = 0 if part.bias is None else y.shape[0] * y.shape[1] * y.shape[2] ** 2
        return x.numel() // x.shape[1] * part.weight.numel() + bias
    if isinstance(part, nn.Conv2d):
        return y.numel() * (part.weight[0].numel() + (part.bias is not None))
    if isinstance(part, nn.Linear):
        return x.numel() * part.out_features
    if isinstance(part, NORMS):
        return x.numel() * (1 if part.weight is None else 2)
    return x.numel()  # pooling; and ReLU, whose output is of the same size
