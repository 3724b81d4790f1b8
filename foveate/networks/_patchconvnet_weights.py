"""PatchConvNet's weights as the authors' code names them (facebookresearch/deit), for the network as it is here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["checkpoint_filter_fn"]

# Names in the authors' checkpoints -> names here.
_NAMES = (
    (r"^patch_embed\.proj\.(\d+)\.0\.", r"stem.\1."),
    (r"^blocks\.(\d+)\.norm1\.", r"blocks.\1.norm."),
    (r"^blocks\.(\d+)\.attn\.qkv_pos\.0\.", r"blocks.\1.pointwise1."),
    (r"^blocks\.(\d+)\.attn\.qkv_pos\.2\.", r"blocks.\1.depthwise."),
    (r"^blocks\.(\d+)\.attn\.qkv_pos\.4\.conv_reduce\.", r"blocks.\1.se.fc1."),
    (r"^blocks\.(\d+)\.attn\.qkv_pos\.4\.conv_expand\.", r"blocks.\1.se.fc2."),
    (r"^blocks\.(\d+)\.attn\.qkv_pos\.5\.", r"blocks.\1.pointwise2."),
    (r"^blocks\.(\d+)\.gamma_1$", r"blocks.\1.scale.gamma"),
    (r"^cls_token$", "pool.token"),
    (r"^blocks_token_only\.0\.attn\.q\.", "pool.query."),
    (r"^blocks_token_only\.0\.attn\.k\.", "pool.key."),
    (r"^blocks_token_only\.0\.attn\.v\.", "pool.value."),
    (r"^blocks_token_only\.0\.(attn|mlp)\.", "pool."),
    (r"^blocks_token_only\.0\.", "pool."),
)


def checkpoint_filter_fn(state: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """The authors' weights under the names and in the shapes used here; weights that have them are left as they are.

    Args:
        state: a checkpoint's tensors by name, or a mapping that has them under ``model``.
        model: the network that will get them. Tokens of another number of classes are left out, as timm leaves out
            the classifier.
    """
    own = model.state_dict()
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}  # of a classifier that is one layer for each class
    for theirs, tensor in state.get("model", state).items():
        name = theirs
        for pattern, ours in _NAMES:
            name = re.sub(pattern, ours, name)
        if match := re.match(r"^head\.(\d+)\.(weight|bias)$", name):
            parts.setdefault(f"head.{match[2]}", {})[int(match[1])] = tensor
        elif name in own and own[name].numel() == tensor.numel():
            found[name] = tensor.reshape(own[name].shape)
        elif name != "pool.token":
            found[name] = tensor
    return found | {name: torch.cat([part[k] for k in sorted(part)]) for name, part in parts.items()}
