"""Which feature maps of a trunk a head reads, and reading them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from timm.models import FeatureInfo
from torch import Tensor, nn

from foveate.errors import FoveateError

__all__ = ["Taps", "find_taps"]


@dataclass(frozen=True)
class Taps:
    """Places in a trunk.

    Args:
        indices: in the trunk's list of feature maps, finest first.
        channels: C of each.
        strides: of each: pixels of the image for one of the map.
        whole: whether the trunk is a whole network, which is asked for these maps alone; otherwise it gives a list of
            all its maps.
    """

    indices: tuple[int, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    whole: bool

    def read(self, trunk: nn.Module, x: Tensor) -> list[Tensor]:
        """The feature maps, (B, C_l, h_l, w_l) each."""
        if self.whole:
            # In most of timm's networks what lies behind the last of these maps is not run.
            maps: list[Tensor] = trunk.forward_intermediates(  # type: ignore[operator]  # timm's method
                x, indices=list(self.indices), stop_early=True, intermediates_only=True
            )
            return maps
        every = trunk(x)
        return [every[index] for index in self.indices]


def find_taps(
    trunk: nn.Module, levels: int, indices: Sequence[int] | None = None, *, finest: int | None = None
) -> Taps:
    """Choose the feature maps that a head reads.

    Args:
        trunk: a timm network, whole or made with ``features_only=True``.
        levels: how many maps the head reads.
        indices: in the trunk's list of feature maps; negative ones count from its end. Without them the last ones; of
            a column, whose maps all have one size, those after a third, a half, two thirds and all of its blocks.

        finest: without ``indices``, the stride of the finest of two maps, where the trunk has one of it.

    Raises:
        FoveateError: the trunk does not list its feature maps, or does not have those asked for.
    """
    kind = type(trunk).__name__
    info = getattr(trunk, "feature_info", None)
    whole = not isinstance(info, FeatureInfo)
    if not info or (whole and not hasattr(trunk, "forward_intermediates")):
        raise FoveateError(
            f"a segmenter's backbone is a timm network that lists its feature maps, which {kind} does not; "
            "make it with timm.create_model(NAME, features_only=True)"
        )
    if not whole and getattr(trunk, "output_fmt", "NCHW") != "NCHW":
        raise FoveateError(f"{kind} gives maps of (B, h, w, C): make the network without features_only")
    found = list(info) if whole else info.get_dicts()
    strides = [int(entry["reduction"]) for entry in found]
    count = len(found)
    if levels > count:
        more = "take another head or trunk" if whole else "make it with more of them, by timm's out_indices"
        raise FoveateError(f"the head reads {levels} feature maps, and {kind} gives {count}; {more}")
    if indices is None:
        column = levels == 4 < count and len(set(strides)) == 1
        chosen = [count // 3 - 1, count // 2 - 1, count * 2 // 3 - 1, count - 1] if column else range(count)[-levels:]
        if levels == 2 and finest in strides[:-1]:
            chosen = [max(at for at, stride in enumerate(strides[:-1]) if stride == finest), count - 1]
    elif not all(type(index) is int and -count <= index < count for index in indices):
        raise FoveateError(f"taps={tuple(indices)}: {kind} has feature maps 0 to {count - 1}")
    else:
        chosen = [index % count for index in indices]
    if len(chosen) != levels or sorted(set(chosen)) != list(chosen):
        raise FoveateError(f"taps={tuple(chosen)}: the head reads {levels} different feature maps, in their order")
    return Taps(
        indices=tuple(chosen),
        channels=tuple(int(found[index]["num_chs"]) for index in chosen),
        strides=tuple(strides[index] for index in chosen),
        whole=whole,
    )
