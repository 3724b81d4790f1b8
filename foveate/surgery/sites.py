"""Where attention can go: the blocks and stages of a network, with the shapes they give."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from foveate.errors import FoveateError, near
from foveate.html import html_table
from foveate.spec import Parser
from foveate.surgery.trace import ModuleTrace, input_size_of, probe

__all__ = ["Site", "Sites", "checked_names", "list_sites", "resolve", "sites"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_WEIGHTED = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Site:
    """A place in a network.

    Args:
        name: the module's dotted name.
        channels: C of the (B, C, H, W) feature map that the module gives.
        height: H, in pixels, for the image size asked for.
        width: W, in pixels.
        kind: ``stage`` (holds blocks), ``block``, ``branch`` (as a stage, in a module that gives several maps, as
            HRNet's), or ``layer`` (a single operation).
        replaceable: whether the module keeps the shape, so that a mechanism can stand in its place.
        stride: pixels of the image for one position, in height.
    """

    name: str
    channels: int
    height: int
    width: int
    kind: str
    replaceable: bool
    stride: int

    def __str__(self) -> str:
        return f"{self.name} {self.channels}x{self.height}x{self.width}"


class Sites(list[Site]):
    """A list of sites, which notebooks show as a table."""

    def _repr_html_(self) -> str:
        headings = ("#", "site", "kind", "channels", "height", "width", "replaceable")
        rows = [
            (f"#{n}", site.name, site.kind, site.channels, site.height, site.width, "yes" if site.replaceable else "")
            for n, site in enumerate(self)
        ]
        return html_table(headings, rows)


def _weights(module: nn.Module) -> int:
    return sum(isinstance(m, _WEIGHTED) for m in module.modules())


def _holds_blocks(container: Iterable[nn.Module]) -> bool:
    """Whether most of the parts are composites of two or more weighted layers of one class."""
    composites = [m for m in container if next(m.children(), None) is not None and _weights(m)]
    classes = [type(m) for m in composites if _weights(m) >= 2]
    return bool(classes) and 2 * max(classes.count(c) for c in classes) >= len(composites)


def _is_stage(module: nn.Module, *, in_sequence: bool) -> bool:
    if isinstance(module, _CONTAINERS) and _holds_blocks(module.children()):
        return True
    children = list(module.children())
    if any(isinstance(c, _CONTAINERS) and _holds_blocks(c.children()) for c in children):
        return True
    # Blocks as direct children, as in RegNet. In a sequence it would be a block of two equal parts, as in GhostNet.
    heavy = [type(c) for c in children if _weights(c) >= 2 and not isinstance(c, _CONTAINERS)]
    return not in_sequence and any(heavy.count(c) >= 2 for c in heavy)


def _walk(
    module: nn.Module,
    prefix: str,
    found: dict[str, str],
    *,
    in_stage: bool = False,
    encoders: frozenset[str] = frozenset(),
) -> None:
    """Name the stages and blocks below a module, in order."""
    # A network that is a ModuleDict, as timm's with features_only, names its parts, and they need not be alike.
    in_sequence = isinstance(module, _CONTAINERS) and not (isinstance(module, nn.ModuleDict) and not prefix)
    for child_name, child in module.named_children():
        name = f"{prefix}{child_name}"
        if next(child.children(), None) is None:
            continue
        if _is_stage(child, in_sequence=in_sequence):
            container = isinstance(child, _CONTAINERS)
            trunk = container and any(_is_stage(part, in_sequence=True) for part in child.children())
            # A trunk is its last stage, and the sequence in a stage is that stage: one place, one name.
            trunk = trunk or name in encoders
            if not trunk and not (in_stage and container):
                found[name] = "stage"
            _walk(child, f"{name}.", found, in_stage=not trunk, encoders=encoders)
        elif _weights(child) and not _is_chain(child):
            found[name] = "block"


def _is_chain(module: nn.Module) -> bool:
    return isinstance(module, _CONTAINERS) and all(next(part.children(), None) is None for part in module.children())


def _gives_several(entry: ModuleTrace) -> bool:
    return entry.out_type in ("list", "tuple", "dict", "OrderedDict")


def _encoders(traces: dict[str, ModuleTrace]) -> frozenset[str]:
    """Modules that make several feature maps of one: what is inside is as in a network of its own."""
    return frozenset(name for name, entry in traces.items() if name and _gives_several(entry) and entry.in_shape)


def _blocks(model: nn.Module, traces: dict[str, ModuleTrace]) -> dict[str, str]:
    found: dict[str, str] = {}
    _walk(model, "", found, encoders=_encoders(traces))
    return found


def _inner_blocks(model: nn.Module, traces: dict[str, ModuleTrace]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, kind in _blocks(model, traces).items():
        if kind == "block":
            _walk(model.get_submodule(name), f"{name}.", found)
    return found


def _layers(model: nn.Module, _seen: dict[str, ModuleTrace]) -> dict[str, str]:
    return {
        f"{name}.{child}".lstrip("."): "layer"
        for name, module in model.named_modules()
        if _is_chain(module)
        for child, _ in module.named_children()
    }


def _convolutions(model: nn.Module, _seen: dict[str, ModuleTrace]) -> dict[str, str]:
    return {name: "layer" for name, module in model.named_modules() if name and isinstance(module, nn.Conv2d)}


def _fits(traces: ModuleTrace | None) -> bool:
    return traces is not None and traces.calls == 1 and traces.map_shape is not None


def list_sites(model: nn.Module, traces: dict[str, ModuleTrace], size: tuple[int, int, int]) -> list[Site]:
    """The sites of a model that was probed on an image of this size, in the order of its modules."""
    # Where the blocks give tokens, the convolutions may be inside, as in the patch embedding of a hybrid. A network
    # without blocks, such as VGG, offers the layers of its sequences, and any other at least its convolutions.
    ways = (_blocks, _inner_blocks, _layers, _convolutions)
    return next((listed for way in ways if (listed := _with_maps(way(model, traces), traces, size))), [])


def _with_maps(kinds: dict[str, str], traces: dict[str, ModuleTrace], size: tuple[int, int, int]) -> list[Site]:
    found = []
    encoders = _encoders(traces)
    several = [f"{name}." for name, entry in traces.items() if name and name not in encoders and _gives_several(entry)]
    for name, kind in kinds.items():
        entry = traces.get(name)
        if entry is not None and _fits(entry) and entry.map_shape is not None:
            _, channels, height, width = entry.map_shape
            if height * width > 1:  # a 1x1 map has no positions to choose from
                same, stride = entry.in_shape == entry.out_shape, round(size[1] / height)
                kind = "branch" if kind == "stage" and name.startswith(tuple(several)) else kind
                found.append(Site(name, channels, height, width, kind, same, stride))
    return found


def sites(model: nn.Module, input_size: int | tuple[int, ...] | None = None) -> Sites:
    """Where attention can go.

    Args:
        model: any convolutional network; it is left as found. One that carries a plan is shown without it, so that
            ``#N`` means the same before and after ``insert``.
        input_size: a side, (height, width) or (channels, height, width) in pixels; without it the model's own.

    Returns:
        Stages and blocks, in the network's order; the layers of a network without blocks. ``#N`` in a plan is the
        N-th of them, from 0. Any other module that gives one (B, C, H, W) tensor once in a forward pass can be named
        in a plan, too.

    Raises:
        FoveateError: the model cannot run on an image of this size.
    """
    size = input_size_of(model, input_size)
    traces, copied = probe(model, size, plain=True)
    return Sites(list_sites(copied, traces, size))


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(re.escape(text).replace(r"\*", r"[^.]*"))


def _near(pattern: str, names: list[str], traces: dict[str, ModuleTrace]) -> str:
    """The nearest sites; a module that only lacks the front of its name is nearer than any."""
    within = [name for name, entry in traces.items() if name.endswith(f".{pattern}") and _fits(entry)]
    return near(within[0], within[:3]) if within else near(pattern, names)


def _by_kind(pattern: str, listed: list[Site]) -> list[str]:
    """``stage:all``, ``stage:last``, ``block:replaceable``, ``block:3``: sites by what they are, counted from 0."""
    kind, _, which = pattern.partition(":")
    kinds = sorted({site.kind for site in listed})
    of_kind = [site for site in listed if site.kind == kind.removesuffix("s")]
    if not of_kind:
        raise FoveateError(f"site {pattern!r}: the network lists no {kind!r}; {near(kind, kinds)}")
    words = {
        "all": of_kind,
        "last": of_kind[-1:],
        "first": of_kind[:1],
        "replaceable": [site for site in of_kind if site.replaceable],
    }
    chosen = words.get(which, of_kind[int(which) : int(which) + 1] if which.isdecimal() else [])
    if not chosen:
        raise FoveateError(
            f"site {pattern!r} does not exist: the network has {len(of_kind)} {kind.removesuffix('s')} sites; "
            f"write {kind}:0 to {kind}:{len(of_kind) - 1} or {', '.join(f'{kind}:{word}' for word in words)}"
        )
    return [site.name for site in chosen]


def resolve(pattern: str, listed: list[Site], traces: dict[str, ModuleTrace]) -> list[str]:
    """The modules that a site pattern of a plan means.

    Raises:
        FoveateError: it means none, a module that gives no single feature map (near names are shown), or one whose
            name a plan cannot hold.
    """
    return list(checked_names(_meant(pattern, listed, traces)))


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of modules, for a plan to hold.

    Raises:
        FoveateError: one cannot be written in a plan.
    """
    for name in names:
        if not _is_read_as_itself(name):
            raise FoveateError(
                f"site {name!r} cannot be written in a plan, so that a saved model could not be read: take another "
                "site, or give the module a name of ASCII letters, digits, '_' and '-'"
            )
    return tuple(names)


def _is_read_as_itself(name: str) -> bool:
    try:
        parser = Parser(name)
        return parser.site() == name and parser.at_end() and not set("*#:").intersection(name)
    except FoveateError:
        return False


def _meant(pattern: str, listed: list[Site], traces: dict[str, ModuleTrace]) -> list[str]:
    """The modules that a pattern means, whatever their names are."""
    names = [site.name for site in listed]
    if ":" in pattern:
        return _by_kind(pattern, listed)
    if pattern.startswith("#"):
        index = int(pattern[1:])
        if index >= len(listed):
            held = f"sites #0 to #{len(listed) - 1}" if listed else "no listed sites: name a module"
            raise FoveateError(f"site {pattern} does not exist: the network has {held}")
        return [names[index]]
    if "*" in pattern:
        shape = _pattern(pattern)
        every = [name for name in traces if name and _fits(traces[name])]
        matched = [n for n in names if shape.fullmatch(n)] or [n for n in every if shape.fullmatch(n)]
        if not matched:
            raise FoveateError(f"no site matches {pattern!r}; {near(pattern.replace('*', ''), names)}")
        return matched
    entry = traces.get(pattern) if pattern else None
    if entry is None:
        raise FoveateError(
            f"the network has no site {pattern!r}; {_near(pattern, names, traces)} (list them with sites)"
        )
    if entry.calls != 1:
        raise FoveateError(
            f"site {pattern!r} runs {entry.calls} times in a forward pass, attention goes where one runs once; "
            f"{near(pattern, names)}"
        )
    if not _fits(entry):
        gives = f"shape {entry.out_shape}" if entry.out_shape else f"a {entry.out_type}"
        raise FoveateError(f"site {pattern!r} gives {gives}, not one (B, C, H, W) feature map; {near(pattern, names)}")
    return [pattern]
