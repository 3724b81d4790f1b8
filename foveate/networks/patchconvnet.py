"""PatchConvNet: convolutional blocks of one width and one resolution, pooled by attention.

Touvron, Cord, El-Nouby, Bojanowski, Joulin, Synnaeve, Verbeek, Jégou, *Augmenting Convolutional networks with
attention-based aggregation*, 2021, https://arxiv.org/abs/2112.13692.

    stem    = conv3x3 gelu conv3x3 gelu conv3x3 gelu conv3x3       stride 2 each: C/8, C/4, C/2, C channels, no biases
    block   = x + gamma * conv1x1(se(gelu(dw3x3(gelu(conv1x1(norm(x)))))))            se: squeeze-and-excitation, C/4
    scores  = head(norm(pool(x)))                                  pool: class attention, foveate.pooling.attention_pool

The map keeps a sixteenth of the image's height and width, rounded up, from the first block to the last. The ablations
of the paper's table 5 are options. As in the authors' code: the layer norms' epsilon is 1e-6, every block is dropped
with the same probability. Unlike it: a token per class works with any number of classes, and images have any aspect
ratio.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, checkpoint, checkpoint_seq, generate_default_cfgs
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from foveate.errors import FoveateError, near
from foveate.networks._patchconvnet_layers import NORMS, PATCH, STEMS, Block, ClassLinear, build_stem
from foveate.networks._patchconvnet_weights import checkpoint_filter_fn
from foveate.networks._timm_registry import register_model
from foveate.pooling.attention_pool import AttentionPool
from foveate.pooling.gap import GlobalAveragePool

__all__ = ["PatchConvNet"]

_TOKENS = ("one", "class")
_POOLS = ("attention", "avg", "")


def _check(option: str, value: str, exist: Collection[str]) -> None:
    if value not in exist:
        raise FoveateError(f"patchconvnet({option}={value!r}) does not exist; {near(str(value), filter(None, exist))}")


class PatchConvNet(nn.Module):
    """The network.

    Args:
        channels: C, of every block; a multiple of 8.
        depth: blocks.
        num_classes: K; 0 gives the pooled features.
        in_chans: channels of the images.
        global_pool: "attention", "avg" (the mean), or "" for the last map; that goes with ``num_classes=0``.
        stem: "convolution", or "linear" for a linear projection of patches.
        norm: of the blocks, "layer" or "batch". The pooled features have a layer norm in any case.
        heads: of the attention pool.
        tokens: of the attention pool: "one", or "class" for a token per class.
        init_values: the blocks' and the pool's gamma at the start. The authors: 1e-4 for S60, 1e-6 for the others.
        drop_rate: dropout of the pooled features.
        drop_path_rate: the probability that an image skips a block while training, the same for all blocks.

    Shape:
        (B, in_chans, H, W) -> (B, K).

    Raises:
        FoveateError: an option has a value that does not exist, or that does not go with another one.
    """

    def __init__(
        self,
        channels: int = 384,
        depth: int = 60,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "attention",
        stem: str = "convolution",
        norm: str = "layer",
        heads: int = 1,
        tokens: str = "one",
        init_values: float = 1e-6,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        _check("stem", stem, STEMS)
        _check("norm", norm, NORMS)
        _check("tokens", tokens, _TOKENS)
        if channels < 8 or channels % 8 or depth < 1:
            raise FoveateError(f"patchconvnet(channels={channels}, depth={depth}): a multiple of 8, and at least 1")
        self.num_features = self.head_hidden_size = channels
        self.in_chans, self.drop_rate = in_chans, drop_rate
        self.heads, self.tokens, self.init_values = heads, tokens, init_values
        self.grad_checkpointing = False
        self.stem = build_stem(stem, in_chans, channels)
        self.blocks = nn.Sequential(*(Block(channels, norm, drop_path_rate, init_values) for _ in range(depth)))
        self.feature_info = [{"num_chs": channels, "reduction": PATCH, "module": f"blocks.{i}"} for i in range(depth)]
        self.global_pool = ""
        self.pool: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> the last map, (B, C, ceil(H/16), ceil(W/16)); ``pool.attend`` reads it."""
        x = self.stem(x)
        y: Tensor = checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)
        return y

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, h, w) -> (B, K), or the pooled features (B, C); with a token per class these are (B, K, C)."""
        x = self.head_drop(self.norm(self.pool(x)))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, K)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The outputs of blocks, as timm's networks of one resolution give them.

        Args:
            x: (B, in_chans, H, W).
            indices: the blocks; None for all, a number for the last ones.
            norm: is not used.
            stop_early: leave out the blocks behind the last one that is asked for.
            output_fmt: "NCHW".
            intermediates_only: leave out the last map.

        Returns:
            The last map and a list of the blocks' outputs, each (B, C, h, w).

        Raises:
            FoveateError: another ``output_fmt``.
        """
        if output_fmt != "NCHW":
            raise FoveateError(f"patchconvnet gives its features as NCHW, not as {output_fmt!r}")
        wanted, last = feature_take_indices(len(self.blocks), indices)
        found = []
        x = self.stem(x)
        for index, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            x = checkpoint(block, x) if self.grad_checkpointing else block(x)
            if index in wanted:
                found.append(x)
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Take out what ``forward_intermediates`` does not need; returns the indices from the beginning."""
        wanted: list[int]
        wanted, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_head:
            self.reset_classifier(0, "")
        return wanted

    def get_classifier(self) -> nn.Module:
        """The linear layer; an Identity when there are no classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network a new classifier, and new tokens where each class has its own.

        Args:
            num_classes: K; 0 gives the pooled features, those of the old classes where each has a token.
            global_pool: as in the constructor; None keeps the pool and its weights, but for the tokens of classes.

        Raises:
            FoveateError: the pool does not exist, or does not go with the classes or the tokens.
        """
        kind = self.global_pool if global_pool is None else global_pool
        anew, per_class = kind != self.global_pool, self.tokens == "class"
        _check("global_pool", kind, _POOLS)
        if not kind and num_classes > 0:
            raise FoveateError("patchconvnet(global_pool='') has no classifier: ask for num_classes=0, or for a pool")
        if per_class and kind == "avg":
            raise FoveateError("patchconvnet(tokens='class') goes with global_pool='attention', not with 'avg'")
        if per_class and kind and anew and num_classes < 1:
            raise FoveateError("patchconvnet(tokens='class') has a token for each class: num_classes is at least 1")
        like = next(self.blocks.parameters())
        if anew:
            self.pool = self._build_pool(kind, num_classes).to(like)
            self.norm = nn.LayerNorm(self.num_features, eps=1e-6).to(like) if kind else nn.Identity()
        elif per_class and kind and num_classes > 0:
            fresh = self._build_pool(kind, num_classes).to(like)
            self.pool.token, self.pool.classes = fresh.token, fresh.classes
        self.num_classes, self.global_pool = num_classes, kind
        self.head: nn.Module = nn.Identity()
        if num_classes > 0:
            head = (ClassLinear if per_class else nn.Linear)(self.num_features, num_classes)
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
            self.head = head.to(like)
        self.train(self.training)

    def _build_pool(self, kind: str, num_classes: int) -> nn.Module:
        if kind != "attention":
            return GlobalAveragePool(self.num_features) if kind else nn.Identity()
        return AttentionPool(
            self.num_features,
            classes=num_classes if self.tokens == "class" else None,
            heads=self.heads,
            init_values=self.init_values,
            norm=False,  # the network has it, for every pool
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the blocks again in the backward pass, instead of keeping what they compute."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of the parameters' names that belong to one layer, for a learning rate for each layer."""
        return {"stem": r"^stem", "blocks": [(r"^blocks\.(\d+)", None), (r"^pool\.|^norm\.", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        """The tokens, as in the authors' training."""
        return {"pool.token"}


def _cfg() -> dict[str, object]:
    return {
        "input_size": (3, 224, 224),
        "pool_size": (14, 14),
        "num_classes": 1000,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0",
        "classifier": "head",
    }


default_cfgs = generate_default_cfgs(
    {f"patchconvnet_{size}{depth}.untrained": _cfg() for size in "sbl" for depth in (60, 120)}
)


def _create(name: str, pretrained: bool, channels: int, depth: int, options: dict[str, Any]) -> PatchConvNet:
    options = {"channels": channels, "depth": depth, **options}
    quarters = {-(-options["depth"] * quarter // 4) - 1 for quarter in (1, 2, 3, 4)}
    features = {"out_indices": tuple(sorted(quarters)), "feature_cls": "getter"}
    model: PatchConvNet = build_model_with_cfg(
        PatchConvNet, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, feature_cfg=features, **options
    )
    return model


@register_model
def patchconvnet_s60(pretrained: bool = False, **options: object) -> PatchConvNet:
    """384 channels, 60 blocks: 25,231,096 parameters, 3.98 GMACs at 224 px."""
    return _create("patchconvnet_s60", pretrained, 384, 60, {"init_values": 1e-4, **options})


@register_model
def patchconvnet_s120(pretrained: bool = False, **options: object) -> PatchConvNet:
    """384 channels, 120 blocks: 47,723,896 parameters, 7.49 GMACs at 224 px."""
    return _create("patchconvnet_s120", pretrained, 384, 120, options)


@register_model
def patchconvnet_b60(pretrained: bool = False, **options: object) -> PatchConvNet:
    """768 channels, 60 blocks: 99,388,936 parameters, 15.80 GMACs at 224 px."""
    return _create("patchconvnet_b60", pretrained, 768, 60, options)


@register_model
def patchconvnet_b120(pretrained: bool = False, **options: object) -> PatchConvNet:
    """768 channels, 120 blocks: 188,611,336 parameters, 29.78 GMACs at 224 px."""
    return _create("patchconvnet_b120", pretrained, 768, 120, options)


@register_model
def patchconvnet_l60(pretrained: bool = False, **options: object) -> PatchConvNet:
    """1024 channels, 60 blocks: 176,009,576 parameters, 28.04 GMACs at 224 px."""
    return _create("patchconvnet_l60", pretrained, 1024, 60, options)


@register_model
def patchconvnet_l120(pretrained: bool = False, **options: object) -> PatchConvNet:
    """1024 channels, 120 blocks: 334,294,376 parameters, 52.85 GMACs at 224 px."""
    return _create("patchconvnet_l120", pretrained, 1024, 120, options)
