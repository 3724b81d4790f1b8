"""Put attention into a network by a plan, and take it out again: the checks, and the public verbs."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import nn

from foveate.arguments import not_a_network
from foveate.errors import FoveateError, first_line, near
from foveate.model_info import device_and_dtype
from foveate.spec import Plan
from foveate.surgery.apply import Step, apply_steps, hook_target, undo
from foveate.surgery.classifier import check_pooled_by_mean, ends_of
from foveate.surgery.model_copy import copied, is_compiled, on_a_copy
from foveate.surgery.record import Record, part, plans_within, record_of, shown_names, unwrapped
from foveate.surgery.resolve import STARTS, build_step, check_shape, resolve_plan
from foveate.surgery.sites import list_sites
from foveate.surgery.trace import ModuleTrace, input_size_of, probe, run
from foveate.surgery.wrappers import Gate, HeadWrapper, Replacement, mechanism_of

__all__ = ["attentions", "insert", "plan_of", "remove", "replaced_by"]

logger = logging.getLogger("foveate")


def plan_of(model: nn.Module) -> Plan | None:
    """The plan that a model carries, its site patterns resolved to module names; None when it carries none.

    Args:
        model: a network. One inside ``torch.compile``, data parallelism or an average of weights is looked into. Where
            a part of the model carries a plan, as the body of a detector, the sites are named from the whole model.

    Returns:
        The plan, or None.

    Raises:
        FoveateError: several parts carry plans, or the plan of a part has a pool or a head: ask the part itself.
    """
    model = unwrapped(model)
    parts = plans_within(model)
    if not parts or "" in parts:
        return parts.get("")
    (name, plan), *others = parts.items()
    if others or any(placement.verb.startswith("as ") for placement in plan.placements):
        raise FoveateError(
            f"the plans belong to parts of {type(model).__name__}, {', '.join(map(repr, parts))}: ask plan_of for such "
            f"a part, as in plan_of(model.get_submodule({name!r}))"
        )
    return Plan(tuple(replace(at, sites=tuple(f"{name}.{site}" for site in at.sites)) for at in plan.placements))


def attentions(model: nn.Module) -> dict[str, nn.Module]:
    """The inserted mechanisms by site, without the gates around them; empty when the model carries no plan.

    A pool and a head stand under ``pool`` and ``head``; where the plan names a module of this name for a site, they
    stand under ``as pool`` and ``as head``.

    Args:
        model: a network; one inside ``torch.compile`` or data parallelism is looked into.

    Returns:
        The module of each site.
    """
    model = unwrapped(model)
    found = {name: part(model, path) for path, name in shown_names(record_of(model)).items()}
    return {site: mechanism_of(module) for site, module in found.items() if module is not None}


def replaced_by(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks that the plan replaced, and the classifier that a head replaced, by site.

    Those alone in whose place the plan's wrapper still stands.
    """
    model = unwrapped(model)
    record = record_of(model)
    removed = record.removed if record else {}
    return {site: at.module for site, at in removed.items() if isinstance(part(model, site), Replacement | HeadWrapper)}


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
            prediction at first, in place of a block it passes its input on; a pool starts as the mean; a head has no
            such start. ``"mechanism"`` (the default) starts as the mechanism's paper does. The option can be written in
            the plan for one mechanism alone: ``se(start='identity') after blocks.4.2``.
        input_size: the image size at which sites are looked for, as in ``sites``.
        seed: of the mechanisms' initial weights; without it, that of the last ``torch.manual_seed``. The state of
            the random number generators stays as found.

    Returns:
        The model itself. What it lost in replaced blocks, ``foveate.dropped`` tells.

    Raises:
        FoveateError: the plan cannot be read, names what does not exist, or does not fit the model; or the model
            carries a plan already, or is compiled or wrapped.
    """
    asked = Plan.parse(str(plan) if isinstance(plan, Plan) else plan)
    if start not in (None, *STARTS):
        raise FoveateError(f"start={start!r} does not exist; {near(str(start), STARTS)}")
    _check_bare(model)
    size = input_size_of(model, input_size)
    traces, net = probe(model, size)
    resolved = resolve_plan(model, asked, list_sites(net, traces, size), traces, start)
    for at in resolved:
        if at.verb == "as pool":
            check_pooled_by_mean(model, at.site, size, nhwc=traces[at.site].nhwc)
    # Drawn on the CPU by its own generator, so that the same seed gives the same weights on any device.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(torch.initial_seed() if seed is None else seed)
        steps = [build_step(model, at, traces) for at in resolved]
    _rehearse(model, steps, size)
    record = apply_steps(model, steps, size)
    for site, removed in record.removed.items():
        weights = sum(parameter.numel() for parameter in removed.module.parameters())
        logger.info("%s, a %s with %s parameters, was replaced", site, type(removed.module).__name__, f"{weights:,}")
    return model


def _check_bare(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise not_a_network(model)
    for name, carried in plans_within(model).items():
        where = f"part {name!r} of the model" if name else "the model"
        how = f" with {_remove_from(name)}" if name else ", or write one plan"
        raise FoveateError(f"{where} carries the plan {str(carried)!r} already: remove it{how}")
    compiled = [name for name, module in model.named_modules() if is_compiled(module)]
    if unwrapped(model) is not model or compiled:
        part_ = f" (here its part {compiled[0]!r})" if compiled and compiled[0] else ""
        raise FoveateError(
            f"a compiled or wrapped model{part_} would not run the attention: insert first, then compile or wrap"
        )


def _remove_from(name: str) -> str:
    return f"fv.remove(model.get_submodule({name!r}))"


def _rehearse(model: nn.Module, steps: list[Step], size: tuple[int, int, int]) -> None:
    """Try the plan on a copy: each mechanism must run exactly once, and the network must still run.

    A module may run all its children, as a RegNet's stage does: then a module further up keeps the mechanism.
    """

    def task(net: nn.Module) -> tuple[dict[str, ModuleTrace], Record]:
        on_meta = any(parameter.is_meta for parameter in net.parameters())
        tried: set[tuple[object, ...]] = set()
        copies = []
        for step in steps:
            key = (step.verb, step.spec, step.shape)
            # One mechanism of each kind and shape shows what all do; the others only show how often they would run.
            alike = key in tried and step.verb in ("after", "replacing")
            tried.add(key)
            stand_in = nn.Identity().eval() if alike else copied(step.mechanism, data=not on_meta)
            copies.append(replace(step, mechanism=stand_in))
        record = apply_steps(net, copies, size)
        traces = run(net, size)
        for step in steps:
            if step.verb == "as head":
                step.ends = ends_of(net, size)
        return traces, record

    try:
        (traces, record), _ = on_a_copy(model, task)
    except FoveateError:
        raise
    except Exception as error:
        for step in steps:
            _try_alone(step)
        raise FoveateError(f"the network does not run with this plan: {first_line(error)}; take other sites") from error
    again = []
    for at in record.placed:
        step = next(step for step in steps if (step.site, step.verb) == (at.site, at.verb))
        gated = isinstance(step.mechanism, Gate) and f"{at.path}.mechanism" in traces
        inside = traces[f"{at.path}.mechanism" if gated else at.path]
        if inside.calls == 1:
            check_shape(step, inside.out_shape)
            continue
        host = at.path.rpartition(".")[0]
        tried_all = not host or step.host == "" or host.startswith(f"{hook_target(model, at.site)}.")
        if at.verb in ("replacing", "as head") or tried_all:
            raise FoveateError(
                f"attention {at.verb} {at.site!r} would run {inside.calls} times in a forward pass; choose another site"
            )
        again.append(step)
        step.host = host.rpartition(".")[0]
    if again:
        _rehearse(model, steps, size)


def _try_alone(step: Step) -> None:
    """Say so when a mechanism by itself does not work on the feature map of its site."""
    if step.verb == "as head":
        return

    def task(mechanism: nn.Module) -> tuple[int, ...]:
        device, dtype = device_and_dtype(mechanism)
        with torch.no_grad():
            return tuple(mechanism(torch.zeros(step.shape, dtype=dtype, device=device)).shape)

    try:
        given, _ = on_a_copy(mechanism_of(step.mechanism), task)
    except Exception as error:
        shape = "x".join(map(str, step.shape[1:]))
        raise FoveateError(f"{step.spec} does not work at site {step.site!r}, {shape}: {first_line(error)}") from error
    check_shape(step, given)


def remove(model: nn.Module) -> nn.Module:
    """Take the plan out of a model, in place: modules, keys and weights are again those before ``insert``.

    Args:
        model: one that carries a plan; a model without one stays as it is. Where a part of it carries a plan, as the
            body of a detector, that part's plan is taken out.

    Returns:
        The model itself. Weights that were trained since stay trained; a replaced block comes back with the weights
        that it had when it was replaced, or with those of a checkpoint of the plain network that was loaded since.

    Raises:
        FoveateError: a replaced block is not at hand, as after ``load``, or several parts carry plans; the model is
            not touched.
    """
    whole, model = model, unwrapped(model)
    around = [whole, model]
    if record_of(model) is None and (parts := plans_within(model)):
        if len(parts) > 1:
            raise FoveateError(
                f"the plans belong to parts of {type(model).__name__}, {', '.join(map(repr, parts))}: take out each by "
                f"itself, as with {_remove_from(next(iter(parts)))}"
            )
        names = next(iter(parts)).split(".")
        around += [model.get_submodule(".".join(names[:depth])) for depth in range(1, len(names) + 1)]
        model = around[-1]
    record = record_of(model)
    missing = [site for site, removed in record.removed.items() if not removed.original] if record else []
    if missing:
        raise FoveateError(
            f"cannot put back {', '.join(map(repr, missing))}: a saved model does not hold the blocks that its plan "
            "replaced; build the network anew instead"
        )
    if record is not None and any(map(is_compiled, around)):
        raise FoveateError(
            "a compiled model would go on running the attention: remove it from the network and compile again"
        )
    undo(model)
    return whole
