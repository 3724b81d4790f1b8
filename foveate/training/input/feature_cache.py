"""What every epoch would compute again, computed once: prepared images, and a frozen trunk's features."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveate.arguments import checked_class
from foveate.io import state_digest
from foveate.kernels.waiting import SharedCores
from foveate.model_info import attributes_of, device_and_dtype
from foveate.progress import ProgressBar
from foveate.surgery.record import record_of
from foveate.training.freeze import Frozen, trunk_features
from foveate.training.input.image_cache import Decoded, decode, open_decoded
from foveate.training.input.loaders import Source
from foveate.training.input.sampler import images_in, of_whole

if TYPE_CHECKING:
    from foveate.data.split import Split

__all__ = ["FeatureCache", "hold_decoded", "hold_features", "hold_images", "trunk_digest"]

_BATCH = 32


@checked_class
class FeatureCache:
    """Tensors by what they were made of, in memory, so that several runs can share them.

    The key says everything that the values depend on; an entry never becomes wrong, only useless. Two things it cannot
    see: that a class was defined anew under its old name, with other code, and what is inside an object of a class of
    your own that a module holds (a dataclass is looked into). Take a new cache then.

    Args:
        limit_bytes: how much it may hold in all; what does not fit is refused, and computed in each epoch instead.
        image_limit_bytes: how large a split's images may be to be held, prepared or decoded.
        folder: keep decoded images here instead, of any size, for this program and later ones.
    """

    def __init__(
        self,
        limit_bytes: int = 4 * 2**30,
        image_limit_bytes: int = 2**30,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self.limit_bytes = limit_bytes
        self.image_limit_bytes = image_limit_bytes
        self.folder = None if folder is None else Path(folder)
        self._held: dict[str, Tensor] = {}
        self._decoded: dict[str, Decoded] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def held_bytes(self) -> int:
        """Bytes held now."""
        decoded = 0 if self.folder else sum(held.pixels.nbytes for held in self._decoded.values())
        return decoded + sum(tensor.nbytes for tensor in self._held.values())

    def fits(self, key: str, size: int) -> bool:
        """Whether a tensor is held already, or its ``size`` bytes fit."""
        return key in self._held or self.held_bytes + size <= self.limit_bytes

    def get(self, key: str, compute: Callable[[], Tensor]) -> Tensor:
        """The tensor of this key; computed, and kept, when it is not held."""
        if key not in self._held:
            self._held[key] = compute()
        return self._held[key]

    def decoded(self, key: str, split: Split, at_least: int | None, bar: ProgressBar) -> Decoded | None:
        """A split's decoded images, from memory or from the folder; None where they are too many for memory.

        Raises:
            FoveateError: an image cannot be read, or the folder cannot be written.
        """
        if key not in self._decoded:
            if self.folder is not None:
                found: Decoded | None = open_decoded(split, at_least, self.folder, key, bar)
            else:
                limit = min(self.image_limit_bytes, self.limit_bytes - self.held_bytes)
                found = decode(split, at_least, limit, bar)
            if found is None:
                return None
            self._decoded[key] = found
        return self._decoded[key]

    def clear(self) -> None:
        """Let go of everything in memory."""
        self._held.clear()
        self._decoded.clear()


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def trunk_digest(model: nn.Module, frozen: Frozen) -> str:
    """SHA-256 in hex of the trunk: its modules with their plain attributes, the plan in it, parameters and buffers."""
    modules = {name: model.get_submodule(name) for name in frozen.modules}
    states = {name: module.state_dict() | dict(module.named_buffers()) for name, module in modules.items()}
    tensors = [(f"{name}.{key}", t) for name, state in states.items() for key, t in state.items()]
    # Two modules may print alike and compute differently, by a number that only forward reads.
    plain = [attributes_of(part) for module in modules.values() for part in module.modules()]
    inside = tuple(f"{name}." for name in frozen.modules)
    record = record_of(model)
    placed = [
        at for at in (record.placed if record else ()) if f"{at.site}.".startswith(inside) or at.path.startswith(inside)
    ]
    return state_digest(tensors, header=repr((modules, plain, placed)))


def _gather(parts: Iterator[Tensor], count: int) -> Tensor:
    """Parts (V, B, ...) along the second axis, as one tensor (V, count, ...) that is allocated once."""
    whole, at = None, 0
    for part in parts:
        if whole is None:
            whole = torch.empty((part.shape[0], count, *part.shape[2:]), dtype=part.dtype)
        whole[:, at : at + part.shape[1]] = part
        at += part.shape[1]
    if whole is None:
        raise AssertionError("there is at least one image")
    return whole


def hold_decoded(cache: FeatureCache, source: Source, at_least: int | None, bar: ProgressBar) -> Decoded | None:
    """A split's decoded images, or None where they are too many to hold."""
    key = _key("decoded", source.fingerprint, source.split.name, at_least)
    return cache.decoded(key, source.split, at_least, bar)


def hold_images(cache: FeatureCache, source: Source, bar: ProgressBar) -> Tensor | None:
    """A split's prepared pixels (1, N, C, H, W) uint8, or None where they are too many to hold."""
    split, preprocess = source.split, source.preprocess
    key = _key("images", source.fingerprint, split.name, preprocess)
    height, width = preprocess.size
    size = len(split) * len(preprocess.mean) * height * width
    if size > cache.image_limit_bytes or not cache.fits(key, size):
        return None

    def compute() -> Tensor:
        batches = source.stream()(of_whole(len(split), _BATCH))
        shown = bar.track(batches, f"preparing the {split.name} images", len(split), images_in)
        return _gather((pixels[None] for pixels, _ in shown), len(split))

    return cache.get(key, compute)


def hold_features(
    cache: FeatureCache, source: Source, model: nn.Module, frozen: Frozen, bar: ProgressBar, *, flip: bool, like: Tensor
) -> Tensor | None:
    """The trunk's features of a split (V, N, ...) float32; None where they are too large to hold.

    Args:
        cache: keeps them under a key of everything that they depend on.
        source: the split.
        model: whose trunk it is.
        frozen: says where the trunk ends; it was found to be a chain.
        bar: shows the progress.
        flip: make a second view (V = 2), of the images flipped left to right.
        like: features of some images (B, ...), for their shape.
    """
    split, device = source.split, device_and_dtype(model)[0]
    views = 2 if flip else 1
    digest = trunk_digest(model, frozen)
    key = _key("features", digest, source.fingerprint, split.name, views, source.preprocess, device.type)
    if not cache.fits(key, views * len(split) * like[0].numel() * torch.float32.itemsize):
        return None

    def both_views(cores: SharedCores, pixels: Tensor) -> Tensor:
        cores.look()
        images = source.normalised(pixels, device).contiguous(memory_format=torch.channels_last)
        made = [trunk_features(model, frozen, view) for view in (images, images.flip(-1))[:views]]
        return torch.stack([features.float().cpu() for features in made])

    def compute() -> Tensor:
        batches = source.stream()(of_whole(len(split), _BATCH))
        shown = bar.track(batches, f"features of the {split.name} images, once", len(split), images_in)
        with SharedCores() as cores:
            return _gather((both_views(cores, pixels) for pixels, _ in shown), len(split))

    return cache.get(key, compute)
