"""Put attention into a network by a plan, and take it out again: the checks, and the public verbs."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import nn

from foveate.errors import FoveateError, first_line, near
from foveate.model_info import device_and_dtype
from foveate.spec import Plan
from foveate.surgery.apply import Record, Step, carried_plan, graft, part, record_of, take_out
from foveate.surgery.classifier import check_pooled_by_mean
from foveate.surgery.resolve import STARTS, build_step, check_shape, resolve_plan
from foveate.surgery.sites import list_sites
from foveate.surgery.trace import Seen, copied, input_size_of, on_a_copy, probe, run
from foveate.surgery.wrappers import Gate, mechanism_of

__all__ = ["attentions", "insert", "plan_of", "remove", "replaced_by", "unwrapped"]

logger = logging.getLogger("foveate")


def plan_of(model: nn.Module) -> Plan | None:
    """The plan that a model carries, its site patterns resolved to module names; None when it carries none."""
    return carried_plan(model)


def attentions(model: nn.Module) -> dict[str, nn.Module]:
    """The inserted mechanisms by site, without the gates around them; empty when the model carries no plan.

    A pool and a head stand under ``pool`` and ``head``.
    """
    record = record_of(model)
    names = {"as pool": "pool", "as head": "head"}
    found = {names.get(at.verb, at.site): part(model, at.path) for at in record.placed} if record else {}
    return {site: mechanism_of(module) for site, module in found.items() if module is not None}


def replaced_by(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks that the plan replaced, and the classifier that a head replaced, by site."""
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
    seen, twin = probe(model, size)
    wanted = resolve_plan(model, asked, list_sites(twin, seen, size), seen, start)
    for at in wanted:
        if at.verb == "as pool":
            check_pooled_by_mean(model, at.site, size, nhwc=seen[at.site].nhwc)
    # Drawn on the CPU by its own generator, so that the same seed gives the same weights on any device.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(torch.initial_seed() if seed is None else seed)
        steps = [build_step(model, at, seen) for at in wanted]
    _rehearse(model, steps, size)
    record = graft(model, steps, size)
    for site, gone in record.removed.items():
        weights = sum(parameter.numel() for parameter in gone.module.parameters())
        logger.info("%s, a %s with %s parameters, was replaced", site, type(gone.module).__name__, f"{weights:,}")
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


def _rehearse(model: nn.Module, steps: list[Step], size: tuple[int, int, int]) -> None:
    """Try the plan on a copy: each mechanism must run exactly once, and the network must still run.

    A module may run all its children, as a RegNet's stage does: then a module further up keeps the mechanism.
    """

    def task(net: nn.Module) -> tuple[dict[str, Seen], Record]:
        bones = any(parameter.is_meta for parameter in net.parameters())
        tried: set[tuple[object, ...]] = set()
        copies = []
        for step in steps:
            key = (step.verb, step.spec, step.shape)
            # One mechanism of each kind and shape shows what all do; the others only show how often they would run.
            alike = key in tried and step.verb in ("after", "replacing")
            tried.add(key)
            stand_in = nn.Identity().eval() if alike else copied(step.mechanism, data=not bones)
            copies.append(replace(step, mechanism=stand_in))
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
        step = next(step for step in steps if (step.site, step.verb) == (at.site, at.verb))
        gated = isinstance(step.mechanism, Gate) and f"{at.path}.mechanism" in seen
        inside = seen[f"{at.path}.mechanism" if gated else at.path]
        if inside.calls == 1:
            check_shape(step, inside.out_shape)
            continue
        keeper = at.path.rpartition(".")[0]
        if at.verb in ("replacing", "as head") or not keeper:
            raise FoveateError(
                f"attention {at.verb} {at.site!r} would run {inside.calls} times in a forward pass; choose another site"
            )
        again.append(step)
        step.keeper = keeper.rpartition(".")[0]
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
