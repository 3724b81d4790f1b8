"""The end of a network: the classifier, the feature map that is pooled for it, and the maps that a head may read."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError, first_line
from foveate.model_info import device_and_dtype
from foveate.preserve import preserve_state
from foveate.surgery.apply import Ends, hook_target
from foveate.surgery.model_copy import copied, guarded
from foveate.surgery.sites import Site
from foveate.surgery.trace import ModuleTrace, input_size_of
from foveate.surgery.wrappers import KEY, HeadWrapper

__all__ = ["check_pooled_by_mean", "classifier_of", "ends_of", "last_map", "maps_for_head"]

_NAMES = ("fc", "classifier", "head", "heads")
_LIBRARIES = ("timm", "torchvision", "foveate")


def classifier_of(model: nn.Module, size: tuple[int, int, int] | None = None) -> tuple[str, ...]:
    """The dotted names of the layers that give the class scores; timm's distilled networks have two.

    timm's own word is taken; else the last Linear or 1x1 convolution of ``fc``, ``classifier``, ``head`` or ``heads``
    (torchvision's names), or a Linear at the end of a Sequential. In a network of another library, or one's own, a
    hidden layer may have such a name: a copy is run to see whether another layer gives the scores.

    Args:
        model: left as found.
        size: (channels, height, width) of an image that it can run on; without it what the model says.

    Raises:
        FoveateError: none is found, or which of two it is cannot be seen.
    """
    names = _by_name(model)
    word = getattr(type(model), "get_classifier", None)
    theirs = type(model).__module__.partition(".")[0] in _LIBRARIES
    owners = word is not None and word.__module__.partition(".")[0] not in _LIBRARIES
    if len(names) > 1 or theirs or owners:
        return names
    ends = (nn.Linear, HeadWrapper)
    put = tuple(f"{name}." for name, each in model.named_modules() if isinstance(each, HeadWrapper))
    layers = {
        name: each
        for name, each in model.named_modules()
        if isinstance(each, (*ends, nn.Conv2d)) and not (put and name.startswith(put))
    }
    known, inside = list(layers), f"{names[0]}."
    start = next((at for at, name in enumerate(known) if f"{name}.".startswith(inside)), 0)
    outside = [name for name in known if not f"{name}.".startswith(inside)]
    after = [name for name in outside if known.index(name) > start]
    others = [
        name
        for name in outside
        if isinstance(layers[name], ends) or (name in after and getattr(layers[name], "kernel_size", 0) == (1, 1))
    ]
    if not others:
        return names
    later = [name for name in after if isinstance(layers[name], ends)]
    return (_that_gives_scores(model, names[0], others, later, size or input_size_of(model)),)


def _by_name(model: nn.Module) -> tuple[str, ...]:
    names = {id(module): name for name, module in model.named_modules()}
    timms: Any = model
    if hasattr(model, "get_classifier"):
        layers = timms.get_classifier()
        found = layers if isinstance(layers, Iterable) and not isinstance(layers, nn.Sequential) else [layers]
        known = tuple(
            names[id(layer)] for layer in found if id(layer) in names and any(True for _ in layer.parameters())
        )
        if known:
            return known
    for name in _NAMES:
        head = getattr(model, name, None)
        if isinstance(head, nn.Module):
            put = [names[id(module)] for module in head.modules() if isinstance(module, HeadWrapper)]
            layers = [names[id(module)] for module in head.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
            if put or layers:
                return ((put or layers)[-1],)
    last = list(model.children())[-1] if isinstance(model, nn.Sequential) and len(model) else None
    if isinstance(last, nn.Linear):
        return (names[id(last)],)
    raise FoveateError(
        f"no classifier is found in {type(model).__name__}: it must be a timm or torchvision classification model, "
        f"or have a Linear named {', '.join(_NAMES[:-1])}, or end with one"
    )


def _that_gives_scores(
    model: nn.Module, named: str, others: list[str], later: list[str], size: tuple[int, int, int]
) -> str:
    """Of a layer with a classifier's name and the others the one whose output the network gives.

    Where it gives none as it is, as behind a softmax: the last one that what the named layer gives reaches, if any.
    """
    try:
        with preserve_state(), guarded(model):
            net = copied(model, data=True).float()
            given, scores = _given(net, [named, *others], size)
            same = [name for name, x in given.items() if scores is not None and torch.equal(x.flatten(), scores)]
            if same:
                return named if named in same else same[-1]
            # NaN reaches whatever is computed from it.
            net.get_submodule(named).register_forward_hook(lambda _module, _args, output: output * math.nan)
            spoiled, _ = _given(net, [named, *others], size)
            if not any(bool(x.isnan().any()) for x in given.values()):
                reached = [name for name, x in spoiled.items() if bool(x.isnan().any()) and name != named]
                if not reached:
                    return named
                if scores is None or given[reached[-1]].numel() == len(scores):
                    return reached[-1]
                later = reached
    except Exception as error:  # noqa: BLE001 - it may need an image of another size: then the order must do
        why = f" (a copy does not run on an image of {' x '.join(map(str, size))}: {first_line(error)})"
    else:
        why = ""
    if not later:
        return named
    raise FoveateError(
        f"{type(model).__name__} has the layers {named!r} and {later[-1]!r}, and which of them gives the class scores "
        f"cannot be seen{why}: give the class a method get_classifier() that returns the layer"
    )


def _given(net: nn.Module, names: list[str], size: tuple[int, int, int]) -> tuple[dict[str, Tensor], Tensor | None]:
    """What layers give, by name, in the order in which they run, and the network's scores, flat, for one image."""
    given: dict[str, Tensor] = {}
    handles = [
        net.get_submodule(name).register_forward_hook(
            lambda _module, _args, output, name=name: given.__setitem__(name, output.detach().clone())
        )
        for name in names
    ]
    device, dtype = device_and_dtype(net)
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    with torch.no_grad():
        output = net(image)
    for handle in handles:
        handle.remove()
    scores = getattr(output, "logits", output)
    return given, scores.flatten() if isinstance(scores, Tensor) else None


def last_map(model: nn.Module, traces: dict[str, ModuleTrace]) -> str:
    """The module that gives the last feature map before the network pools over all positions.

    Raises:
        FoveateError: the network gives no class scores, or its last feature map has one position only.
    """
    shape = traces[""].out_shape
    if shape is None or len(shape) != 2:
        raise FoveateError(f"{type(model).__name__} gives no class scores (B, K), so it has no pool to replace")
    shapes = {name: entry.map_shape for name, entry in traces.items() if name}
    maps = [name for name, of in shapes.items() if of is not None and math.prod(of[2:]) > 1]
    if not maps:
        raise FoveateError(f"{type(model).__name__} has no feature map to pool: give a larger input_size")
    return max(maps, key=lambda name: traces[name].order)


def check_pooled_by_mean(model: nn.Module, site: str, size: tuple[int, int, int], *, nhwc: bool) -> None:
    """Make sure that the network takes the mean of the feature map at a site, and uses it in no other way.

    On a copy with data, the mean is put in the map's place: what reaches the classifier must stay the same. In double
    precision, because a pool that has not been trained may hardly depend on its input.

    Raises:
        FoveateError: it does not stay the same.
    """
    with guarded(model):
        try:
            same = _stays_with_mean(copied(model, data=True).double(), site, size, nhwc, 1e-9)
        except Exception:  # noqa: BLE001 - a network may compute in float32 alone, or really not fit: then this says so
            try:
                same = _stays_with_mean(copied(model, data=True).float(), site, size, nhwc, 1e-4)
            except Exception as error:
                raise _not_mean(model, site, first_line(error)) from error
    if not same:
        raise _not_mean(model, site, "with the mean in its place the classifier gets other values")


def _stays_with_mean(net: nn.Module, site: str, size: tuple[int, int, int], nhwc: bool, tolerance: float) -> bool:
    try:
        end: nn.Module = net.get_submodule(classifier_of(net, size)[0])
    except FoveateError:
        end = net
    inputs: list[Tensor] = []
    end.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    device, dtype = device_and_dtype(net)
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    axes = (1, 2) if nhwc else (2, 3)
    with torch.no_grad():
        given = net(image)
        net.get_submodule(hook_target(net, site)).register_forward_hook(lambda _m, _a, x: x.mean(axes, keepdim=True))
        other = net(image)
    before, after = (given, other) if end is net else inputs
    tolerance = tolerance if before.dtype == torch.float64 else 1e-4
    scale = float(before.abs().max())
    return before.shape == after.shape and torch.allclose(before, after, rtol=tolerance, atol=tolerance * scale)


def _not_mean(model: nn.Module, site: str, why: str) -> FoveateError:
    return FoveateError(
        f"'as pool' does not fit {type(model).__name__}: it does something else than global average pooling with its "
        f"last feature map, {site!r} ({why})"
    )


def maps_for_head(listed: list[Site], count: int) -> tuple[str, ...]:
    """The last sites of the coarsest resolutions, one for each, the coarsest last; stages before blocks.

    Raises:
        FoveateError: the network has fewer resolutions.
    """
    of_size: dict[tuple[int, int], Site] = {}
    for site in listed:
        known = of_size.get((site.height, site.width))
        if known is None or known.kind != "stage" or site.kind == "stage":
            of_size[site.height, site.width] = site
    chosen = [site.name for _, site in sorted(of_size.items(), key=lambda item: -item[0][0] * item[0][1])]
    if len(chosen) < count:
        raise FoveateError(
            f"the head reads {count} feature maps of different sizes, and the network lists {len(chosen)}: "
            "name them, as in 'saol as head on layer3, layer4'"
        )
    return tuple(chosen[-count:])


def ends_of(model: nn.Module, size: tuple[int, int, int]) -> Ends | None:
    """Where a pass begins, and where ``forward_features`` ends and ``forward_head`` begins.

    Args:
        model: a copy, in eval mode.
        size: (channels, height, width) of an image that it can run on.

    Returns:
        None where the first layer runs more than once, or the network has these two methods and no module of its own
        gives what the one returns, or takes it in the other.
    """
    started: list[str] = []
    given: list[tuple[str, object]] = []
    taken: list[tuple[str, object]] = []
    handles = []

    def watch(name: str, leaf: bool) -> None:
        def before(_module: nn.Module, args: tuple[object, ...]) -> None:
            taken.append((name, args[0] if args else None))
            if leaf:
                started.append(name)

        def after(_module: nn.Module, _args: tuple[object, ...], output: object) -> None:
            given.append((name, output))

        module = model.get_submodule(name)
        handles.extend([module.register_forward_pre_hook(before), module.register_forward_hook(after)])

    inner = [name for name, _ in model.named_modules() if name and KEY not in name.split(".")]
    for name in inner:
        watch(name, leaf=next(model.get_submodule(name).children(), None) is None)
    methods = [getattr(model, name, None) for name in ("forward_features", "forward_head")]
    cut = all(callable(method) for method in methods)
    device, dtype = device_and_dtype(model)
    image = torch.zeros(1, *size, device=device, dtype=dtype)
    try:
        with torch.no_grad():
            features = methods[0](image) if cut else model(image)  # type: ignore[misc]  # cut says that there are two
            taken.clear()
            if cut:
                with contextlib.suppress(Exception):  # at the latest the head, for it gets no maps
                    methods[1](features)  # type: ignore[misc]  # cut says that there are two
    finally:
        for handle in handles:
            handle.remove()
    if not started or started.count(started[0]) > 1:
        return None
    if not cut:
        return Ends(started[0])
    gives = [name for name, output in given if output is features]
    takes = [name for name, tensor in taken if tensor is features]
    if not isinstance(features, Tensor) or not gives or not takes:
        return None
    last = hook_target(model, gives[-1])  # also runs where a network calls the parts of its Sequential one by one
    giver = last if last in gives else gives[-1]
    once = [name for name, _ in given].count(giver) == 1
    return Ends(started[0], giver, takes[0]) if once else None
