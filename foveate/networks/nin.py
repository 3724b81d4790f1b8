"""Network in Network: each convolution is followed by two 1x1 convolutions, and no dense layer follows at all.

Lin, Chen, Yan, *Network In Network*, ICLR 2014, https://arxiv.org/abs/1312.4400.

    block   = relu(conv1x1(relu(conv1x1(relu(conv_kxk x)))))
    scores  = mean_hw block3(pool(block2(pool(block1 x))))           block3 has one map for each class

The widths are those of the authors' network for CIFAR-10: 192-160-96, 192-192-192, 192-192-K with k = 5, 5, 3. As in
the authors' code: pools are 3x3 with stride 2, dropout of 0.5 after each, and ReLU also on the class maps, so that no
score is negative. Unlike it, unless ``second_pool="avg"``: both pools take the maximum, as in the paper's text.

The paper sets the first weights by hand and does not say how. Here they are He's normal distribution; the class maps
start at about 1 everywhere (small weights, biases of 1), because a map that starts below 0 is closed by ReLU at all
positions and its class cannot be learned.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from timm.layers import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs
from torch import Tensor, nn

from foveate.errors import FoveateError, near
from foveate.networks._timm_registry import register_model

__all__ = ["MLPConv", "NetworkInNetwork"]

_POOLS: dict[str, Callable[..., nn.Module]] = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}
_GLOBAL_POOLS = ("avg", "max", "avgmax", "")


class MLPConv(nn.Module):
    """A convolution and 1x1 convolutions, ReLU after each; before them, a pool that halves the map, and dropout.

    Args:
        in_channels: channels of the input.
        widths: channels that each convolution gives.
        kernel_size: of the first convolution, odd.
        pool: "max", "avg" (both 3x3 with stride 2) or None.
        drop_rate: dropout behind the pool.

    Shape:
        (B, C, H, W) -> (B, widths[-1], H, W), without a pool; else H and W are halved, rounded up for even sizes.
    """

    def __init__(
        self, in_channels: int, widths: tuple[int, ...], kernel_size: int, pool: str | None = None, drop_rate: float = 0
    ) -> None:
        super().__init__()
        # The windows start at the border and the last one is cut off: 32 -> 16 -> 8, as in the authors' framework.
        self.pool = nn.Identity() if pool is None else _POOLS[pool](3, 2, ceil_mode=True)
        self.drop = nn.Dropout(drop_rate)
        self.conv = nn.Conv2d(in_channels, widths[0], kernel_size, padding=kernel_size // 2)
        layers: list[nn.Module] = [nn.ReLU()]
        for width, following in pairwise(widths):
            layers += [nn.Conv2d(width, following, 1), nn.ReLU()]
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Pool, drop out, convolve."""
        y: Tensor = self.mlp(self.conv(self.drop(self.pool(x))))
        return y


class NetworkInNetwork(nn.Module):
    """Three MLPConv blocks whose last convolution, the classifier, gives a map for each class.

    Args:
        num_classes: K; 0 leaves out the classifier, so that the pooled features come out.
        in_chans: channels of the images.
        global_pool: "avg" (the paper's), "max", "avgmax", or "" for the maps without a pool.
        drop_rate: dropout between the blocks (the authors' code: 0.5).
        second_pool: "max" (the paper's text) or "avg" (the authors' code).

    Shape:
        (B, in_chans, H, W) -> (B, K).

    Raises:
        FoveateError: ``global_pool`` or ``second_pool`` is none of these.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.5,
        second_pool: str = "max",
    ) -> None:
        super().__init__()
        if second_pool not in _POOLS:
            raise FoveateError(f"second_pool={second_pool!r} does not exist; {near(str(second_pool), _POOLS)}")
        self.in_chans, self.drop_rate, self.grad_checkpointing = in_chans, drop_rate, False
        self.block1 = MLPConv(in_chans, (192, 160, 96), 5)
        self.block2 = MLPConv(96, (192, 192, 192), 5, "max", drop_rate)
        self.block3 = MLPConv(192, (192, 192), 3, second_pool, drop_rate)
        self.num_features = self.head_hidden_size = 192
        self.feature_info = [
            {"num_chs": 96, "reduction": 1, "module": "block1"},
            {"num_chs": 192, "reduction": 2, "module": "block2"},
            {"num_chs": 192, "reduction": 4, "module": "block3"},
        ]
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # each has one
        self.class_act = nn.ReLU()
        self.reset_classifier(num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, 192, H/4, W/4): what the classifier gets."""
        for block in (self.block1, self.block2, self.block3):
            x = checkpoint(block, x) if self.grad_checkpointing else block(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, 192, h, w) -> (B, K), or the pooled features (B, 192)."""
        if not pre_logits:
            x = self.class_act(self.classifier(x))
        y: Tensor = self.global_pool(x)
        return y

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, K)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The last 1x1 convolution; an Identity when there are no classes."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network a new last convolution for another number of classes.

        Args:
            num_classes: 0 leaves it out.
            global_pool: as in the constructor; None keeps the pool.

        Raises:
            FoveateError: there is no such pool.
        """
        if global_pool is not None:
            if global_pool not in _GLOBAL_POOLS:
                raise FoveateError(f"no pool is called {global_pool!r}; {near(str(global_pool), _GLOBAL_POOLS)}")
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.num_classes = num_classes
        classifier: nn.Module = nn.Identity()
        if num_classes > 0:
            classifier = nn.Conv2d(self.num_features, num_classes, 1)
            nn.init.normal_(classifier.weight, std=0.01)
            nn.init.ones_(classifier.bias)  # type: ignore[arg-type]  # it has one
        like = self.block3.conv.weight
        self.classifier = classifier.to(like.device, like.dtype).train(self.training)

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Patterns of the parameters' names that belong to one layer, for a learning rate for each layer."""
        return {"stem": r"^block1", "blocks": r"^block(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the blocks again in the backward pass, instead of keeping what they compute."""
        self.grad_checkpointing = enable


default_cfgs = generate_default_cfgs(
    {
        "nin_cifar.untrained": {
            "input_size": (3, 32, 32),
            "pool_size": (8, 8),
            "num_classes": 10,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            # Of CIFAR-10's training images.
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2470, 0.2435, 0.2616),
            "first_conv": "block1.conv",
            "classifier": "classifier",
        }
    }
)


@register_model
def nin_cifar(pretrained: bool = False, **kwargs: object) -> NetworkInNetwork:
    """Network in Network for 32 x 32 images: 966,986 parameters with 10 classes."""
    feature_cfg = {"out_indices": (0, 1, 2)}
    model: NetworkInNetwork = build_model_with_cfg(
        NetworkInNetwork, "nin_cifar", pretrained, feature_cfg=feature_cfg, **kwargs
    )
    return model
