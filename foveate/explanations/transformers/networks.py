"""What a vision transformer is made of: its blocks, the tokens in front of the patches, and what its classifier reads.

timm's networks with ``blocks``, ``patch_embed`` and ``num_prefix_tokens`` (ViT, DeiT, DINOv2, BEiT, EVA, ...), and
torchvision's ViT.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

__all__ = ["Transformer", "grid_of", "has_windows", "transformer_of"]


@dataclass(frozen=True)
class Transformer:
    """A vision transformer, by the dotted names of its parts.

    Attributes:
        attentions: the self-attention of each block.
        blocks: the blocks.
        prefix: number of tokens in front of the patches: the class token, a distillation token, registers.
        readers: what the classifier reads, by name with its place among the tokens: {"class token": 0}; empty where it
            reads the patches.
        pool: the attention pool that reads the patches with a query of its own; "" where there is none.
        last_map: the layer that Grad-CAM looks at: the last one whose patches have a part in the classes, whatever the
            classifier reads: what enters the last block's attention.
    """

    attentions: tuple[str, ...]
    blocks: tuple[str, ...]
    prefix: int
    readers: dict[str, int]
    pool: str
    last_map: str


def transformer_of(model: nn.Module) -> Transformer | None:
    """The vision transformer that a model is, or that is in it; None where there is none, or it is of another kind."""
    for name, module in model.named_modules():
        start = f"{name}." if name else ""
        if isinstance(getattr(module, "num_prefix_tokens", None), int) and hasattr(module, "patch_embed"):
            return _of_timm(module, start, whole=module is model)
        if isinstance(getattr(module, "class_token", None), nn.Parameter) and hasattr(module, "conv_proj"):
            return _of_torchvision(module, start)
    return None


def _of_timm(module: nn.Module, start: str, *, whole: bool) -> Transformer | None:
    blocks = getattr(module, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not len(blocks):
        return None
    if not all(isinstance(getattr(block, "attn", None), nn.Module) for block in blocks):
        return None
    names = [f"{start}blocks.{n}" for n in range(len(blocks))]
    pool = "attn_pool" if whole and isinstance(getattr(module, "attn_pool", None), nn.Module) else ""
    readers = {}
    if whole and not pool and getattr(module, "global_pool", "") == "token":
        readers = {"class token": 0}
        if getattr(module, "dist_token", None) is not None:
            readers["distillation token"] = 1
    attentions = tuple(f"{name}.attn" for name in names)
    prefix = int(str(module.num_prefix_tokens))
    return Transformer(attentions, tuple(names), prefix, readers, pool, _last_map(blocks[-1], names, "norm1"))


def _of_torchvision(module: nn.Module, start: str) -> Transformer | None:
    layers = getattr(getattr(module, "encoder", None), "layers", None)
    if not isinstance(layers, nn.Sequential) or not len(layers):
        return None
    names = [f"{start}encoder.layers.{name}" for name, _ in layers.named_children()]
    attentions = tuple(f"{name}.self_attention" for name in names)
    return Transformer(attentions, tuple(names), 1, {"class token": 0}, "", _last_map(layers[-1], names, "ln_1"))


def _last_map(block: nn.Module, names: list[str], norm: str) -> str:
    """The norm in front of the last attention, as in the practice of pytorch-grad-cam.

    https://github.com/jacobgil/pytorch-grad-cam/blob/master/tutorials/vision_transformers.md: of the last block's own
    output a classifier that reads the class token uses no patch, so their gradient is 0. Where the norm stands behind
    the attention, the block before it is taken.
    """
    norms_first = [name for name, _ in block.named_children()][:1] == [norm]
    return f"{names[-1]}.{norm}" if norms_first or len(names) == 1 else names[-2]


def grid_of(count: int, height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns of so many patches of an image of height x width pixels; None where they make no such grid."""
    pairs = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    if not pairs:
        return None
    rows, columns = min(pairs, key=lambda pair: abs(math.log(pair[0] / height * width / pair[1])))
    # A side that the patches do not divide is rounded, by less than one patch.
    fits = abs(rows / height - columns / width) <= 1 / min(height, width)
    return (rows, columns) if fits else None


def has_windows(model: nn.Module) -> bool:
    """Whether attention modules of a network look at windows of the image, as Swin's."""
    return any(_sides(module) or "Window" in type(module).__name__ for module in model.modules())


def _sides(module: nn.Module) -> bool:
    size = getattr(module, "window_size", None)
    return any(size) if isinstance(size, tuple | list) else isinstance(size, int) and size > 0
