"""timm's own attention layers by the name that timm gives them: ``timm:eca``.

Only options that a plan can write (numbers, text, True, False, None) are offered, and an option that the layer does
not name is refused: several of timm's layers swallow unknown ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

from timm.layers import CecaModule, EcaModule, get_attn
from torch import nn

from foveate.attention import _timm_eca
from foveate.errors import FoveateError, near

__all__ = ["constructor", "names"]

# timm has no list of them; a name that the installed timm lacks is dropped.
_NAMES = (
    *("bat", "bottleneck", "cbam", "ceca", "coord", "eca", "ecam", "ela", "ese", "gc", "gca", "ge", "halo"),
    *("lambda", "lcbam", "nl", "scoord", "se", "sk", "splat", "strip"),
)

_IN_ONE_CALL: dict[object, Callable[..., nn.Module]] = {
    EcaModule: _timm_eca.EcaModule,
    CecaModule: _timm_eca.CecaModule,
}
"""timm's class -> the same one, with a faster inference on a CPU."""


def names() -> tuple[str, ...]:
    """The names of timm's attention layers in the installed version."""
    return tuple(name for name in _NAMES if _layer(name) is not None)


def _layer(name: str) -> Callable[..., nn.Module] | None:
    try:
        layer: Callable[..., nn.Module] | None = get_attn(name)
    except AssertionError:
        return None
    return layer if layer is None else _IN_ONE_CALL.get(layer, layer)


def _options(layer: Callable[..., nn.Module]) -> Iterator[inspect.Parameter]:
    for parameter in list(inspect.signature(layer).parameters.values())[1:]:
        plain = parameter.default is None or isinstance(parameter.default, bool | int | float | str)
        object_only = parameter.name in ("device", "dtype") or (
            parameter.name.endswith("_layer") and not isinstance(parameter.default, str)
        )
        if plain and not object_only and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            default = float(parameter.default) if parameter.annotation is float else parameter.default
            yield inspect.Parameter(parameter.name, inspect.Parameter.KEYWORD_ONLY, default=default)


def constructor(name: str) -> Callable[..., nn.Module]:
    """A constructor (channels, *, options) for timm's layer, with a signature that lists the options.

    Raises:
        FoveateError: timm has no attention layer of this name.
    """
    layer = _layer(name) if name in _NAMES else None
    if layer is None:
        raise FoveateError(f"timm has no attention layer {name!r}; {near(name, names(), most=30)}")

    def build(channels: int, **options: object) -> nn.Module:
        return layer(channels, **options)

    first = inspect.Parameter("channels", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    build.__signature__ = inspect.Signature([first, *_options(layer)])  # type: ignore[attr-defined]  # inspect looks for it
    return build
