"""The networks of the ULSAM paper's tables by name, registered with timm: a MobileNet and a plan.

``mobilenetv2_100_ulsam_13_14_16_17`` has ULSAM with four subspaces in place of the blocks at these positions;
``mobilenetv1_100_ulsam_after_11`` has it after the layer at position 11. Positions are the paper's (Saini et al., WACV
2020, https://arxiv.org/abs/2006.15102): the first convolution is 1. The paper names ShuffleNetV2 and prints no row for
it: its positions here are counted alike, and lie where the paper's do, in the last units of 14 x 14 and 7 x 7.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import timm
from timm.models import register_model
from torch import nn

from foveate.networks.create import create_model
from foveate.spec import Plan
from foveate.surgery.insert import insert

__all__ = ["PRESETS"]

_SPEC = "ulsam(groups=4)"

# Blocks in each stage, in order; the first of them has position 2.
_STAGES = {
    "mobilenetv1": {f"blocks.{stage}": count for stage, count in enumerate((1, 2, 2, 6, 2))},
    "mobilenetv2": {f"blocks.{stage}": count for stage, count in enumerate((1, 2, 3, 4, 3, 3, 1))},
    "shufflenet_v2": {"stage2": 4, "stage3": 8, "stage4": 4},
}

_MOBILENETV2_ROWS = (
    *((13,), (14,), (16,), (17,)),
    *((first, second) for first in (9, 10, 11) for second in (13, 14)),
    *((16, 17), (14, 17), (13, 16), (13, 14, 16, 17)),
)


def _sites(family: str, positions: tuple[int, ...]) -> str:
    blocks = [f"{stage}.{block}" for stage, count in _STAGES[family].items() for block in range(count)]
    return ", ".join(blocks[position - 2] for position in positions)


def _rows() -> Iterator[tuple[str, str, str, tuple[int, ...]]]:
    """(network, family, verb, positions) of each row that a network can be built for."""
    for positions in _MOBILENETV2_ROWS:
        yield "mobilenetv2_100", "mobilenetv2", "replacing", positions
    for position in (15, 16, 17):
        yield "mobilenetv2_100", "mobilenetv2", "after", (position,)
    for width in ("100", "075", "050"):
        for position in range(8, 13):
            yield f"mobilenetv1_{width}", "mobilenetv1", "replacing", (position,)
    for position in (*range(7, 13), 13, 14):
        yield "mobilenetv1_100", "mobilenetv1", "after", (position,)
    for width in ("x0_5", "x1_0"):
        for positions in ((12,), (13,), (16,), (17,), (12, 13), (16, 17), (12, 13, 16, 17)):
            yield f"torchvision:shufflenet_v2_{width}", "shufflenet_v2", "replacing", positions


def _name(network: str, verb: str, positions: tuple[int, ...]) -> str:
    return f"{network.removeprefix('torchvision:')}_ulsam_{'after_' * (verb == 'after')}{'_'.join(map(str, positions))}"


PRESETS: dict[str, tuple[str, Plan]] = {
    _name(network, verb, positions): (network, Plan.parse(f"{_SPEC} {verb} {_sites(family, positions)}"))
    for network, family, verb, positions in _rows()
}
"""Name -> the network and the plan."""


def _register(name: str, network: str, plan: Plan) -> None:
    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        if not network.startswith("torchvision:"):
            return insert(timm.create_model(network, pretrained=pretrained, **options), plan)
        kept = {key: options[key] for key in ("num_classes", "in_chans") if key in options}  # timm adds its own
        return insert(create_model(network, pretrained=pretrained, **kept), plan)

    build.__name__ = build.__qualname__ = name
    build.__module__ = __name__
    build.__doc__ = f"{network} with ``{plan}``."
    setattr(sys.modules[__name__], name, build)
    register_model(build)


for _preset, (_network, _plan) in PRESETS.items():
    _register(_preset, _network, _plan)
