"""From a plan to steps: which mechanism, pool or head goes to which module of a network, each built and checked."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from foveate.errors import FoveateError, near
from foveate.model_info import device_and_dtype
from foveate.registry import build, find
from foveate.spec import Placement, Plan, Spec
from foveate.surgery.apply import Step, hook_target
from foveate.surgery.classifier import classifier_of, last_map, maps_for_head
from foveate.surgery.sites import Site, checked_names, resolve
from foveate.surgery.trace import ModuleTrace
from foveate.surgery.wrappers import CLASSIFIERS, Gate, PoolGate

__all__ = ["STARTS", "ResolvedPlacement", "build_step", "check_shape", "resolve_plan"]

STARTS = ("mechanism", "identity")
KINDS = {"as pool": "pooling", "as head": "heads"}


@dataclass(frozen=True)
class ResolvedPlacement:
    """One placement at one of its sites; for a head, the classifier is the site."""

    site: str
    verb: str
    spec: Spec
    maps: tuple[str, ...] = ()


def resolve_plan(
    model: nn.Module, plan: Plan, listed: list[Site], traces: dict[str, ModuleTrace], start: str | None
) -> list[ResolvedPlacement]:
    """Each placement at each of its sites, checked against the others."""
    taken: dict[str, tuple[str, Placement]] = {}
    resolved: list[ResolvedPlacement] = []
    for placement in plan.placements:
        find(placement.spec.name, KINDS.get(placement.verb, "attention"))  # a wrong name is said before a wrong site
        spec = placement.spec if start is None else placement.spec.with_option("start", start)
        if placement.verb in KINDS:
            if any(at.verb == placement.verb for at in resolved):
                raise FoveateError(f"'{placement}': a network has one {placement.verb[3:]}, and the plan names two")
            resolved.append(_at_the_end(model, placement, spec, listed, traces))
            continue
        for pattern in placement.sites:
            for site in resolve(pattern, listed, traces):
                place = hook_target(model, site) if placement.verb == "after" else site
                if place in taken:
                    other, first = taken[place]
                    where = f"site {site!r}" if other == site else f"sites {other!r} and {site!r}, which are one place"
                    raise FoveateError(f"two mechanisms at {where}: '{first}' and '{placement}'; take one")
                taken[place] = (site, placement)
                resolved.append(ResolvedPlacement(site, placement.verb, spec))
                if placement.verb == "replacing":
                    _check_replaceable(site, traces[site], listed)
    replaced = [at.site for at in resolved if at.verb == "replacing"]
    for site in (site for at in resolved for site in (at.site, *at.maps)):
        for outer in replaced:
            if site.startswith(f"{outer}."):
                raise FoveateError(f"site {site!r} lies in {outer!r}, which the plan replaces; take one of the two")
    return resolved


def _at_the_end(
    model: nn.Module, placement: Placement, spec: Spec, listed: list[Site], traces: dict[str, ModuleTrace]
) -> ResolvedPlacement:
    """Where a pool or a head goes."""
    if placement.verb == "as pool":
        return ResolvedPlacement(last_map(model, traces), placement.verb, spec)
    names = classifier_of(model, _image_size(traces))
    shape = traces[names[0]].in_shape or ()
    if len(names) > 1 or traces[names[0]].calls != 1 or len(shape) < 2 or any(side != 1 for side in shape[2:]):
        raise FoveateError(
            f"'{placement}' does not fit {type(model).__name__}: a head takes the place of one classifier of pooled "
            f"features, and {' and '.join(map(repr, names))} gets {_x(shape) or 'no single tensor'}"
        )
    maps = tuple(site for pattern in placement.sites for site in resolve(pattern, listed, traces))
    levels = int(getattr(find(spec.name, "heads"), "levels", 1))
    return ResolvedPlacement(names[0], placement.verb, spec, maps or checked_names(maps_for_head(listed, levels)))


def _image_size(traces: dict[str, ModuleTrace]) -> tuple[int, int, int] | None:
    _, *sides = traces[""].in_shape or (1,)
    return (sides[0], sides[1], sides[2]) if len(sides) == 3 else None


def _check_replaceable(site: str, entry: ModuleTrace, listed: list[Site]) -> None:
    if entry.in_shape != entry.out_shape:
        before = _x(entry.in_shape) if entry.in_shape else "no single tensor"
        fitting = [s.name for s in listed if s.replaceable and s.kind != "layer"]
        raise FoveateError(
            f"cannot replace {site!r}: it turns {before} into {_x(entry.out_shape or ())}, and attention keeps the "
            f"shape; blocks that keep it: {', '.join(fitting) or 'none'}"
        )


def _x(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape[1:]))


def build_step(model: nn.Module, at: ResolvedPlacement, traces: dict[str, ModuleTrace]) -> Step:
    """The mechanism for a site, on the device and in the dtype and mode of the module there."""
    kwargs = at.spec.kwargs
    start = kwargs.pop("start", STARTS[0])
    if start not in STARTS:
        raise FoveateError(f"{at.spec}: start={start!r} does not exist; {near(str(start), STARTS)}")
    bare = Spec(at.spec.name, tuple(kwargs.items()))
    step = _ends(model, at, bare, traces) if at.verb in KINDS else _attends(at, bare, traces)
    if start == "identity" and at.verb != "as head":  # a head in the classifier's place has nothing to start from
        step.mechanism = (PoolGate if at.verb == "as pool" else Gate)(step.mechanism)
    host = model.get_submodule(at.site)
    step.mechanism = step.mechanism.to(*device_and_dtype(host, model))
    step.mechanism.train(host.training)
    return step


def _map_shape(site: str, traces: dict[str, ModuleTrace]) -> tuple[int, int, int, int]:
    shape = traces[site].map_shape
    if shape is None:
        raise AssertionError(f"{site} was resolved, and has no feature map")
    return shape


def _attends(at: ResolvedPlacement, spec: Spec, traces: dict[str, ModuleTrace]) -> Step:
    shape = _map_shape(at.site, traces)
    try:
        return Step(at.site, at.verb, at.spec, build(spec, shape[1]), shape, shape, nhwc=traces[at.site].nhwc)
    except FoveateError as error:
        raise FoveateError(f"{error} (at site {at.site!r})") from error


def _ends(model: nn.Module, at: ResolvedPlacement, spec: Spec, traces: dict[str, ModuleTrace]) -> Step:
    """A pool, or a head."""
    if at.verb == "as head":
        scores, pooled = traces[at.site].out_shape or (), traces[at.site].in_shape or ()
        shapes = [_map_shape(site, traces) for site in at.maps]
        head = build(spec, tuple(shape[1] for shape in shapes), pooled[1], scores[1], kind="heads")
        nhwc = frozenset(site for site in at.maps if traces[site].nhwc)
        trailing = len(pooled) - 2
        return Step(
            at.site, at.verb, at.spec, head, pooled[:2], scores[:2], maps=at.maps, nhwc_maps=nhwc, trailing=trailing
        )
    shape, last = _map_shape(at.site, traces), traces[at.site].nhwc
    pool = build(spec, shape[1], kind="pooling")
    classes = getattr(pool, "classes", None)
    if classes is None:
        return Step(at.site, at.verb, at.spec, pool, shape, shape[:2], nhwc=last)
    gives = (shape[0], int(classes), shape[1])
    (name, *others) = classifier_of(model, _image_size(traces))
    classifier = model.get_submodule(name)
    asked = f"'{at.spec} as pool' gives features for each of {classes} classes, and {name!r} is"
    if others or not isinstance(classifier, nn.Linear) or classifier.out_features != classes:
        found = classifier if isinstance(classifier, nn.Linear) else f"a {type(classifier).__name__}"
        raise FoveateError(
            f"{asked} not a Linear with as many outputs but {found}: set the number of classes first, as with "
            "reset_classifier"
        )
    if type(classifier) not in CLASSIFIERS or "forward" in vars(classifier):
        raise FoveateError(
            f"{asked} a {type(classifier).__name__} with a class, a parametrization or a forward pass of its own, "
            "which would not be run: take the pool without classes, or a torch.nn.Linear for classifier"
        )
    return Step(at.site, at.verb, at.spec, pool, shape, gives, per_class=name, nhwc=last)


def check_shape(step: Step, given: tuple[int, ...] | None) -> None:
    """Make sure that a mechanism gives the shape that its place wants.

    Raises:
        FoveateError: it gives another.
    """
    if given == step.gives:
        return
    what = _x(given) if given else "no single tensor"
    rule = {"as pool": "a pool gives one value for each channel", "as head": "a head gives a score for each class"}
    raise FoveateError(
        f"{step.spec} turns {_x(step.shape)} into {what} at site {step.site!r}; "
        f"{rule.get(step.verb, 'attention keeps the shape')}"
    )
