"""Put attention into a network by a plan, and take it out again: the checks, and the public verbs."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from foveate.errors import FoveateError, first_line, near
from foveate.registry import build, find
from foveate.spec import Placement, Plan, Spec
from foveate.surgery.graft import Gate, Record, Step, graft, host_of, part, record_of, take_out
from foveate.surgery.probe import Seen, input_size_of, on_a_copy, probe, run
from foveate.surgery.sites import Site, list_sites, resolve

__all__ = ["attentions", "insert", "plan_of", "remove", "replaced_by", "unwrapped"]

STARTS = ("mechanism", "identity")


def plan_of(model: nn.Module) -> Plan | None:
    """The plan that a model carries, its site patterns resolved to module names; None when it carries none."""
    record = record_of(model)
    return record.plan if record else None


def attentions(model: nn.Module) -> dict[str, nn.Module]:
    """The inserted mechanisms by site, without the gates around them; empty when the model carries no plan."""
    record = record_of(model)
    found = {at.site: part(model, at.path) for at in record.placed} if record else {}
    return {site: m.mechanism if isinstance(m, Gate) else m for site, m in found.items() if m is not None}


def replaced_by(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks that the plan replaced, by site."""
    record = record_of(model)
    return {site: removed.module for site, removed in record.removed.items()} if record else {}


def insert(
    model: nn.Module,
    plan: str | Plan,
    *,
    start: str | None = None,
    input_size: int | tuple[int, ...] | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Put attention into a model, in place. Everything is checked before the model is touched.

    Args:
        model: any network with convolutional feature maps; it keeps its weights, keys, mode and device.
        plan: the notation, such as ``"ulsam(groups=4) replacing blocks.5.1; se after blocks.4.2"``.
        start: ``"identity"`` puts a gate that starts at 0 around each mechanism: ``after`` a site it changes no
            prediction at first, in place of a block it passes its input on. ``"mechanism"`` (the default) starts as
            the mechanism's paper does. The option can be written in the plan for one mechanism alone:
            ``se(start='identity') after blocks.4.2``.
        input_size: the image size at which sites are looked for, as in ``sites``.
        seed: of the mechanisms' initial weights; without it, that of the last ``torch.manual_seed``. The state of
            the random number generators stays as found.

    Returns:
        The model itself.

    Raises:
        FoveateError: the plan cannot be read, names what does not exist, or does not fit the model; or the model
            carries a plan already, or is compiled or wrapped.
    """
    asked = Plan.parse(str(plan) if isinstance(plan, Plan) else plan)
    if start not in (None, *STARTS):
        raise FoveateError(f"start={start!r} does not exist; {near(str(start), STARTS)}")
    _check_bare(model)
    size = input_size_of(model, input_size)
    seen, copied = probe(model, size)
    wanted = _resolve(model, asked, list_sites(copied, seen), seen, start)
    # Drawn on the CPU by its own generator, so that the same seed gives the same weights on any device.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(torch.initial_seed() if seed is None else seed)
        steps = [_build(model, site, verb, spec, seen[site]) for site, verb, spec in wanted]
    _rehearse(model, steps, size)
    graft(model, steps, size)
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside what ``torch.compile`` and data parallelism put around it."""
    while True:
        parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
        inner = model.module if parallel else vars(model).get("_modules", {}).get("_orig_mod")
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _check_bare(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise FoveateError(f"attention goes into a torch.nn.Module, not into a {type(model).__name__}")
    for name, module in model.named_modules():
        carried = plan_of(module)
        if carried is not None:
            holder = f"part {name!r} of the model" if name else "the model"
            raise FoveateError(f"{holder} carries the plan {str(carried)!r} already: remove it, or write one plan")
    if unwrapped(model) is not model or model._compiled_call_impl is not None:
        raise FoveateError(
            "a compiled or wrapped model would not run the attention: insert first, then compile or wrap"
        )


def _resolve(
    model: nn.Module, plan: Plan, listed: list[Site], seen: dict[str, Seen], start: str | None
) -> list[tuple[str, str, Spec]]:
    """Each placement at each of its sites, checked against the others."""
    taken: dict[str, tuple[str, Placement]] = {}
    wanted = []
    for placement in plan.placements:
        if placement.verb.startswith("as "):
            raise FoveateError(f"'{placement}': {placement.verb!r} is not available; write 'after' or 'replacing'")
        find(placement.spec.name)  # a wrong name is said before a wrong site
        for pattern in placement.sites:
            for site in resolve(pattern, listed, seen):
                place = host_of(model, site) if placement.verb == "after" else site
                if place in taken:
                    other, first = taken[place]
                    where = f"site {site!r}" if other == site else f"sites {other!r} and {site!r}, which are one place"
                    raise FoveateError(f"two mechanisms at {where}: '{first}' and '{placement}'; take one")
                taken[place] = (site, placement)
                spec = placement.spec if start is None else placement.spec.with_option("start", start)
                wanted.append((site, placement.verb, spec))
                if placement.verb == "replacing":
                    _check_replaceable(site, seen[site], listed)
    replaced = [site for site, verb, _ in wanted if verb == "replacing"]
    for site, _, _ in wanted:
        for outer in replaced:
            if site.startswith(f"{outer}."):
                raise FoveateError(f"site {site!r} lies in {outer!r}, which the plan replaces; take one of the two")
    return wanted


def _check_replaceable(site: str, entry: Seen, listed: list[Site]) -> None:
    if entry.in_shape != entry.out_shape:
        before = _x(entry.in_shape) if entry.in_shape else "no single tensor"
        fitting = [s.name for s in listed if s.replaceable and s.kind != "layer"]
        raise FoveateError(
            f"cannot replace {site!r}: it turns {before} into {_x(entry.out_shape or ())}, and attention keeps the "
            f"shape; blocks that keep it: {', '.join(fitting) or 'none'}"
        )


def _x(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape[1:]))


def _build(model: nn.Module, site: str, verb: str, spec: Spec, entry: Seen) -> Step:
    """The mechanism for a site, on the device and in the dtype and mode of the module there."""
    kwargs = spec.kwargs
    start = kwargs.pop("start", STARTS[0])
    if start not in STARTS:
        raise FoveateError(f"{spec}: start={start!r} does not exist; {near(str(start), STARTS)}")
    bare = Spec(spec.name, tuple(kwargs.items()))
    shape = entry.out_shape or ()
    try:
        mechanism = build(bare, shape[1])
    except FoveateError as error:
        raise FoveateError(f"{error} (at site {site!r})") from error
    if start == "identity":
        mechanism = Gate(mechanism)
    host = model.get_submodule(site)
    like = next((p for p in (*host.parameters(), *model.parameters()) if p.is_floating_point()), None)
    if like is not None:
        mechanism = mechanism.to(like.device, like.dtype)
    return Step(site, verb, spec, mechanism.train(host.training), shape)


def _rehearse(model: nn.Module, steps: list[Step], size: tuple[int, int, int]) -> None:
    """Try the plan on a copy: each mechanism must run exactly once, and the network must still run.

    A module may run all its children, as a RegNet's stage does: then a module further up keeps the mechanism.
    """

    def task(net: nn.Module) -> tuple[dict[str, Seen], Record]:
        bones = any(parameter.is_meta for parameter in net.parameters())
        mechanisms = [copy.deepcopy(step.mechanism).eval() for step in steps]
        copies = [
            replace(step, mechanism=mechanism.to("meta") if bones else mechanism)
            for step, mechanism in zip(steps, mechanisms, strict=True)
        ]
        record = graft(net, copies, size)
        return run(net, size), record

    try:
        (seen, record), _ = on_a_copy(model, task)
    except FoveateError:
        raise
    except Exception as error:
        for step in steps:
            _try_alone(step)
        raise FoveateError(f"the network does not run with this plan: {first_line(error)}; take other sites") from error
    again = []
    for at in record.placed:
        step = next(step for step in steps if step.site == at.site)
        inside = seen[f"{at.path}.mechanism" if isinstance(step.mechanism, Gate) else at.path]
        if inside.calls == 1:
            _check_shape(step, inside.out_shape)
            continue
        keeper = at.path.rpartition(".")[0]
        if at.verb == "replacing" or not keeper:
            raise FoveateError(
                f"attention {at.verb} {at.site!r} would run {inside.calls} times in a forward pass; choose another site"
            )
        again.append(step)
        step.keeper = keeper.rpartition(".")[0]
    if again:
        _rehearse(model, steps, size)


def _try_alone(step: Step) -> None:
    """Say so when a mechanism by itself does not work on the feature map of its site."""

    def task(mechanism: nn.Module) -> tuple[int, ...]:
        like = next((p for p in mechanism.parameters() if p.is_floating_point()), torch.empty(0))
        with torch.no_grad():
            return tuple(mechanism(torch.zeros(step.shape, dtype=like.dtype, device=like.device)).shape)

    try:
        given, _ = on_a_copy(step.mechanism.mechanism if isinstance(step.mechanism, Gate) else step.mechanism, task)
    except Exception as error:
        raise FoveateError(
            f"{step.spec} does not work at site {step.site!r}, {_x(step.shape)}: {first_line(error)}"
        ) from error
    _check_shape(step, given)


def _check_shape(step: Step, given: tuple[int, ...] | None) -> None:
    if given != step.shape:
        what = _x(given) if given else "no single tensor"
        raise FoveateError(
            f"{step.spec} turns {_x(step.shape)} into {what} at site {step.site!r}; attention keeps the shape"
        )


def remove(model: nn.Module) -> nn.Module:
    """Take the plan out of a model, in place: modules, keys and weights are again those before ``insert``.

    Args:
        model: one that carries a plan; a model without one stays as it is.

    Returns:
        The model itself. Weights that were trained since stay trained; a replaced block comes back with the weights
        that it had when it was replaced, or with those of a checkpoint of the plain network that was loaded since.

    Raises:
        FoveateError: a replaced block is not at hand, as after ``load``; the model is not touched.
    """
    record = record_of(model)
    gone = [site for site, removed in record.removed.items() if not removed.original] if record else []
    if gone:
        raise FoveateError(
            f"cannot put back {', '.join(map(repr, gone))}: a saved model does not hold the blocks that its plan "
            "replaced; build the network anew instead"
        )
    return take_out(model)
