"""A VGG for small images whose classifier sees three attended feature maps and nothing else.

Jetley, Lord, Lee, Torr, *Learn to Pay Attention*, ICLR 2018, https://arxiv.org/abs/1804.02391: (VGG-att3)-concat-pc.

    block1-3   2 x 64, 2 x 128, 3 x 256 channels at full size                      -> l_1, 32 px
    block4     pool, 3 x 512                                                       -> l_2, 16 px
    block5     pool, 3 x 512                                                       -> l_3,  8 px
    block6     pool, 512, pool, 512, pool                                          ->       1 px
    g          = fc mean_hw block6
    scores     = head((l_1, l_2, l_3), g)                                          the head ``ltpa``

Each width is a 3x3 convolution with bias, batch norm and ReLU; pools are 2x2 maxima. The layout is that of the authors'
code, which also drops out values while it trains: half of those that go into fc (``drop_rate=0.5``), and some behind
most convolutions (``trunk_dropout=True``: 0.3 in block1, 0.4 after it). Its further deviations are options of the head.

With ``score="parameterised"``, the pc in that name, the maps do not depend on g (see the head), so block6 and fc learn
nothing. With ``score="dot"`` they do.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.layers import ConvNormAct, SelectAdaptivePool2d
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs
from torch import Tensor, nn

from foveate.errors import FoveateError, near
from foveate.heads.ltpa import LearnToPayAttention
from foveate.networks._timm_registry import register_model

__all__ = ["VGGLearnToPayAttention"]

_CHANNELS = (256, 512, 512)  # of l_1, l_2, l_3
_FEATURES = 512  # of g
_GLOBAL_POOLS = ("avg", "max", "avgmax")


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(2, 2, ceil_mode=True)


def _conv(in_channels: int, channels: int, drop: float = 0.0) -> nn.Module:
    # timm puts the dropout between batch norm and ReLU, where it is the same as behind the ReLU.
    layer: nn.Module = ConvNormAct(
        in_channels, channels, 3, bias=True, drop_layer=partial(nn.Dropout, drop) if drop else None
    )
    return layer


def _convs(in_channels: int, channels: int, count: int, drop: float) -> list[nn.Module]:
    """Convolutions with dropout behind each but the last."""
    inputs = [in_channels] + [channels] * (count - 1)
    return [_conv(width, channels, drop if index < count - 1 else 0.0) for index, width in enumerate(inputs)]


class VGGLearnToPayAttention(nn.Module):
    """VGG with the head ``ltpa`` on three feature maps.

    Args:
        num_classes: K; 0 leaves out the classifiers, so that the attended vectors come out.
        in_chans: channels of the images.
        global_pool: what makes a vector of block6's map when the image is larger than 32 px: "avg", "max" or "avgmax".
        drop_rate: dropout before fc (the authors' code: 0.5).
        trunk_dropout: the authors' dropout behind convolutions.
        score: "parameterised" or "dot", as in the head.
        head: further options of the head: ``join``, ``project``, ``combine``, ``regularise``.

    Shape:
        (B, in_chans, H, W) -> (B, K).

    Raises:
        FoveateError: ``global_pool`` or an option of the head has a value that does not exist.
    """

    def __init__(
        self,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        trunk_dropout: bool = False,
        score: str = "parameterised",
        **head: Any,
    ) -> None:
        super().__init__()
        self.in_chans, self.drop_rate, self.grad_checkpointing = in_chans, drop_rate, False
        first, drop = (0.3, 0.4) if trunk_dropout else (0.0, 0.0)
        self.block1 = nn.Sequential(*_convs(in_chans, 64, 2, first))
        self.block2 = nn.Sequential(*_convs(64, 128, 2, drop))
        self.block3 = nn.Sequential(*_convs(128, 256, 3, drop))
        self.block4 = nn.Sequential(_pool(), *_convs(256, 512, 3, drop))
        self.block5 = nn.Sequential(_pool(), *_convs(512, 512, 3, drop))
        self.block6 = nn.Sequential(_pool(), _conv(512, 512, drop), _pool(), _conv(512, _FEATURES, drop), _pool())
        self.fc_drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(_FEATURES, _FEATURES)
        self._initialise()
        self.head = LearnToPayAttention(_CHANNELS, _FEATURES, max(num_classes, 1), score=score, **head)
        self._widths = [layer.in_features for layer in self.head.classifiers if isinstance(layer, nn.Linear)]
        self.num_features, self.head_hidden_size = _FEATURES, sum(self._widths)
        self.feature_info = [
            {"num_chs": 256, "reduction": 1, "module": "block3"},
            {"num_chs": 512, "reduction": 2, "module": "block4"},
            {"num_chs": 512, "reduction": 4, "module": "block5"},
            {"num_chs": 512, "reduction": 32, "module": "block6"},
        ]
        self.reset_classifier(num_classes, global_pool)

    def _initialise(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):  # as in the authors' code
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # each convolution has one

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, in_chans, H, W) -> the three feature maps that are attended to and the last, (B, 512, H/32, W/32)."""
        kept = []
        for block in (self.block1, self.block2, self.block3, self.block4, self.block5, self.block6):
            x = checkpoint(block, x) if self.grad_checkpointing else block(x)
            kept.append(x)
        return tuple(kept[2:])

    def _split(self, features: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
        *maps, last = features
        return maps, self.fc(self.fc_drop(self.global_pool(last)))

    def forward_head(self, x: tuple[Tensor, ...], pre_logits: bool = False) -> Tensor:
        """What ``forward_features`` gives -> (B, K), or the attended vectors, joined, (B, head_hidden_size)."""
        maps, pooled = self._split(x)
        if not pre_logits and self.num_classes > 0:
            logits: Tensor = self.head(maps, pooled)
            return logits
        vectors = [ready(vector) for ready, vector in zip(self.head.ready, self.head._look(maps, pooled), strict=True)]
        return torch.cat(vectors, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, K)."""
        return self.forward_head(self.forward_features(x))

    def attend(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (B, in_chans, H, W) -> the three maps of attention, (B, H, W), (B, H/2, W/2), (B, H/4, W/4)."""
        return self.head.attend(*self._split(self.forward_features(x)))

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]:
        """The Linear layer; for ``join="separate"`` the three; an Identity when there are no classes."""
        layers = tuple(self.head.classifiers) or (nn.Identity(),)
        return layers if len(layers) > 1 else layers[0]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network new classifiers for another number of classes; the attention stays.

        Args:
            num_classes: 0 leaves them out.
            global_pool: as in the constructor; None keeps the pool.

        Raises:
            FoveateError: there is no such pool. ``""`` (no pooling) is not one: g is one vector.
        """
        if global_pool is not None:
            if global_pool not in _GLOBAL_POOLS:
                raise FoveateError(f"no pool is called {global_pool!r}; {near(str(global_pool), _GLOBAL_POOLS)}")
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=True)
        self.num_classes = num_classes
        classifiers = nn.ModuleList(nn.Linear(width, num_classes) for width in self._widths if num_classes > 0)
        self.head.classifiers = classifiers.to(self.fc.weight.device, self.fc.weight.dtype).train(self.training)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of the parameters' names that belong to one layer, for a learning rate for each layer."""
        return {"stem": r"^block1", "blocks": r"^block(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the blocks again in the backward pass, instead of keeping what they compute."""
        self.grad_checkpointing = enable


default_cfgs = generate_default_cfgs(
    {
        "vgg_ltpa.untrained": {
            "input_size": (3, 32, 32),
            "pool_size": (1, 1),
            "num_classes": 100,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            # Of CIFAR-100's training images.
            "mean": (0.5071, 0.4865, 0.4409),
            "std": (0.2673, 0.2564, 0.2762),
            "first_conv": "block1.0.conv",
            "classifier": "head.classifiers.0",
        }
    }
)


@register_model
def vgg_ltpa(pretrained: bool = False, **kwargs: Any) -> VGGLearnToPayAttention:
    """VGG with learned attention for 32 x 32 images: 19,993,764 parameters with 100 classes."""
    if kwargs.get("join") == "separate":
        names = tuple(f"head.classifiers.{index}" for index in range(len(_CHANNELS)))
        kwargs["pretrained_cfg_overlay"] = {"classifier": names, **(kwargs.get("pretrained_cfg_overlay") or {})}
    feature_cfg = {"out_indices": (0, 1, 2, 3)}
    model: VGGLearnToPayAttention = build_model_with_cfg(
        VGGLearnToPayAttention, "vgg_ltpa", pretrained, feature_cfg=feature_cfg, **kwargs
    )
    return model
