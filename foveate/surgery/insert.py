"""Put attention into a network by a plan, and take it out again.

``after`` leaves every module in its place: the mechanism becomes a child of the module that it follows, and a forward
hook calls it. So the network's own keys, attributes and weights stay. ``replacing`` takes a block out and puts a holder
with the mechanism in its place; the block is kept aside for ``remove``.
"""

from __future__ import annotations

import copy
import functools
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError, near
from foveate.registry import build, options
from foveate.spec import Placement, Plan, Spec
from foveate.surgery.probe import ATTRIBUTE, Record, Removed, Seen, eval_mode, input_size_of, probe, record_of, run
from foveate.surgery.sites import Site, is_plain_sequence, list_sites, resolve

__all__ = ["Gate", "Replacement", "attentions", "insert", "plan_of", "remove"]

KEY = "foveate"
STARTS = ("mechanism", "identity")
logger = logging.getLogger("foveate")


class Gate(nn.Module):
    """x + gate * (mechanism(x) - x), with a gate that starts at 0: exactly the identity until it is trained.

    Args:
        mechanism: (B, C, H, W) -> (B, C, H, W).

    Source: the zero-initialised residual weight of Bachlechner et al., ReZero is All You Need, 2020.
    """

    def __init__(self, mechanism: nn.Module) -> None:
        super().__init__()
        self.mechanism = mechanism
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """The gated mechanism; bit for bit x while the gate is 0."""
        return x + self.gate * (self.mechanism(x) - x)


class Replacement(nn.Module):
    """Stands where a block stood and calls the mechanism, its child ``foveate``."""

    def __init__(self, mechanism: nn.Module) -> None:
        super().__init__()
        self.add_module(KEY, mechanism)

    def forward(self, x: Tensor) -> Tensor:
        """mechanism(x)."""
        return self.foveate(x)


def _attend_after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:  # noqa: ARG001
    return module.foveate(output)


def _attend_with(mechanism: nn.Module, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:  # noqa: ARG001
    return mechanism(output)


def _is_ours(hook: object) -> bool:
    return hook is _attend_after or (isinstance(hook, functools.partial) and hook.func is _attend_with)


@dataclass
class _Step:
    """One mechanism that goes to one site."""

    site: str
    verb: str
    spec: Spec  # with start
    mechanism: nn.Module


def plan_of(model: nn.Module) -> Plan | None:
    """The plan that a model carries, its site patterns resolved to module names; None when it carries none."""
    record = record_of(model)
    return record.plan if record else None


def attentions(model: nn.Module) -> dict[str, nn.Module]:
    """The inserted mechanisms by site, without the gates around them; empty when the model carries no plan."""
    record = record_of(model)
    if record is None:
        return {}
    found = {site: model.get_submodule(path) for site, _, path in record.placed}
    return {site: m.mechanism if isinstance(m, Gate) else m for site, m in found.items()}


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
        start: ``"identity"`` puts a gate that starts at 0 around each mechanism, so that the model predicts what it
            predicted before; ``"mechanism"`` (the default) starts as the mechanism's paper does. The option can be
            written in the plan for one mechanism alone: ``se(start='identity') after blocks.4.2``.
        input_size: the image size at which sites are looked for, as in ``sites``.
        seed: of the mechanisms' initial weights; without it, that of the last ``torch.manual_seed``. The state of
            the random number generator stays as found.

    Returns:
        The model itself.

    Raises:
        FoveateError: the plan cannot be read, names what does not exist, or does not fit the model; or the model
            carries a plan already.
    """
    asked = Plan.parse(plan)
    carried = plan_of(model)
    if carried is not None:
        raise FoveateError(f"the model carries the plan {str(carried)!r} already: remove it first, or write one plan")
    if start not in (None, *STARTS):
        raise FoveateError(f"start={start!r} does not exist; {near(str(start), STARTS)}")
    seen, bones = probe(model, input_size)
    wanted = _resolve(model, asked, list_sites(model, seen), seen, start)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed() if seed is None else seed)
        steps = [_build(model, site, verb, spec, seen[site]) for site, verb, spec in wanted]
    _rehearse(model, bones, steps, input_size)
    _apply(model, steps)
    return model


def _resolve(
    model: nn.Module, plan: Plan, listed: list[Site], seen: dict[str, Seen], start: str | None
) -> list[tuple[str, str, Spec]]:
    """Each placement at each of its sites, checked against the others."""
    taken: dict[str, tuple[str, Placement]] = {}
    wanted = []
    for placement in plan.placements:
        if placement.verb.startswith("as "):
            raise FoveateError(f"'{placement}': {placement.verb!r} is not available; write 'after' or 'replacing'")
        for pattern in placement.sites:
            for site in resolve(pattern, listed, seen):
                place = _host_of(model, site) if placement.verb == "after" else site
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
        before = "x".join(map(str, entry.in_shape[1:])) if entry.in_shape else "no single tensor"
        after = "x".join(map(str, (entry.out_shape or ())[1:]))
        fitting = [s.name for s in listed if s.replaceable and s.kind != "layer"]
        raise FoveateError(
            f"cannot replace {site!r}: it turns {before} into {after}, and attention keeps the shape; "
            f"blocks that keep it: {', '.join(fitting) or 'none'}"
        )


def _build(model: nn.Module, site: str, verb: str, spec: Spec, entry: Seen) -> _Step:
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
    try:
        trial = copy.deepcopy(mechanism).to("meta").eval()
        with torch.no_grad():
            given = tuple(trial(torch.empty(shape, device="meta")).shape)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FoveateError(f"{bare} does not work at site {site!r}, {_x(shape)}: {reason}") from error
    if given != shape:
        raise FoveateError(f"{bare} turns {_x(shape)} into {_x(given)} at site {site!r}; attention keeps the shape")
    if start == "identity":
        mechanism = Gate(mechanism)
    host = model.get_submodule(site)
    near_by = next((p for p in (*host.parameters(), *model.parameters()) if p.is_floating_point()), None)
    if near_by is not None:
        mechanism = mechanism.to(near_by.device, near_by.dtype)
    return _Step(site, verb, spec, mechanism.train(host.training))


def _x(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[1:]))


def _rehearse(model: nn.Module, bones: nn.Module | None, steps: list[_Step], input_size: Any) -> None:
    """Try the plan on a copy: each mechanism must run exactly once, and the network must still run."""
    rehearsal = bones if bones is not None else copy.deepcopy(model)
    device = "meta" if bones is not None else None
    copies = [
        _Step(s.site, s.verb, s.spec, copy.deepcopy(s.mechanism).to(device) if device else copy.deepcopy(s.mechanism))
        for s in steps
    ]
    _apply(rehearsal, copies)
    record = record_of(rehearsal)
    assert record is not None  # noqa: S101 - just written
    try:
        with torch.random.fork_rng(devices=[]), eval_mode(rehearsal):
            seen = run(rehearsal, input_size_of(model, input_size))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FoveateError(f"the network does not run with this plan: {reason}; choose other sites") from error
    for site, verb, path in record.placed:
        if seen[path].calls != 1:
            raise FoveateError(
                f"attention {verb} {site!r} would run {seen[path].calls} times in a forward pass; choose another site"
            )


def _split(name: str) -> tuple[str, str]:
    parent, _, leaf = name.rpartition(".")
    return parent, leaf


def _host_of(model: nn.Module, site: str) -> str:
    """Where a hook goes for a site: the last part of a plain Sequential, whose output is the Sequential's own."""
    module = model.get_submodule(site)
    while is_plain_sequence(module) and len(module):  # type: ignore[arg-type]
        leaf, module = list(module.named_children())[-1]
        site = f"{site}.{leaf}"
    return site


def _keeper_of(model: nn.Module, host: str) -> str:
    """The nearest module from the host upwards that does not iterate over its children, to keep the mechanism."""
    name = host
    while isinstance(model.get_submodule(name), nn.Sequential | nn.ModuleList | nn.ModuleDict):
        if not name:
            raise FoveateError(f"attention cannot be kept near site {host!r}: every module above it is a container")
        name = _split(name)[0]
    return name


def _apply(model: nn.Module, steps: list[_Step]) -> None:
    placed: list[tuple[str, str, str]] = []
    removed: dict[str, Removed] = {}
    for step in sorted(steps, key=lambda s: s.verb != "replacing"):
        if step.verb == "replacing":
            parent, leaf = _split(step.site)
            owner = model.get_submodule(parent)
            removed[step.site] = Removed(getattr(owner, leaf), original=True)
            setattr(owner, leaf, Replacement(step.mechanism).train(step.mechanism.training))
            placed.append((step.site, step.verb, f"{step.site}.{KEY}"))
            continue
        host = _host_of(model, step.site)
        keeper = _keeper_of(model, host)
        module, key = model.get_submodule(host), KEY
        if keeper == host:
            module.add_module(key, step.mechanism)
            module.register_forward_hook(_attend_after)
        else:
            key = f"{host.removeprefix(keeper).strip('.').replace('.', '_')}_{KEY}"
            model.get_submodule(keeper).add_module(key, step.mechanism)
            module.register_forward_hook(functools.partial(_attend_with, step.mechanism))
        placed.append((step.site, step.verb, f"{keeper}.{key}".lstrip(".")))
    plan = Plan(tuple(Placement(spec, verb, (site,)) for site, verb, spec in ((s.site, s.verb, s.spec) for s in steps)))
    setattr(model, ATTRIBUTE, Record(_joined(plan), tuple(placed), removed))
    model.register_load_state_dict_post_hook(_accept_weights_without_attention)


def _joined(plan: Plan) -> Plan:
    """Neighbours with the same spec and verb as one placement, so that the text stays short."""
    joined: list[Placement] = []
    for placement in plan.placements:
        last = joined[-1] if joined else None
        if last is not None and (last.spec, last.verb) == (placement.spec, placement.verb):
            joined[-1] = Placement(last.spec, last.verb, (*last.sites, *placement.sites))
        else:
            joined.append(placement)
    return Plan(tuple(joined))


def _accept_weights_without_attention(module: nn.Module, incompatible: Any) -> None:
    """Let a checkpoint of the network without any attention load, strictly for all that it should hold."""
    record = record_of(module)
    if record is None:
        return
    missing, unexpected = incompatible.missing_keys, incompatible.unexpected_keys
    attention = {path: module.get_submodule(path) for _, _, path in record.placed}
    ours = {f"{path}.{key}" for path, part in attention.items() for key in part.state_dict()}
    # Old checkpoints lack num_batches_tracked and are not told so: parameters alone decide.
    needed = {f"{path}.{key}" for path, part in attention.items() for key, _ in part.named_parameters()}
    prefix = next((key[: -len(own)] for key in missing for own in needed if key.endswith(own)), "")
    if not needed or not {prefix + key for key in needed} <= set(missing):
        return
    missing[:] = [key for key in missing if key.removeprefix(prefix) not in ours]
    gone = tuple(f"{prefix}{site}." for site in record.removed)
    unexpected[:] = [key for key in unexpected if not key.startswith(gone)] if gone else list(unexpected)
    logger.info("the weights hold no attention: the %d inserted mechanisms keep theirs", len(record.placed))


def remove(model: nn.Module) -> nn.Module:
    """Take the plan out of a model, in place: modules, keys and weights are again those before ``insert``.

    Args:
        model: one that carries a plan; a model without one stays as it is.

    Returns:
        The model itself. Weights that were trained since stay trained; a replaced block comes back with the weights
        that it had when it was replaced.

    Raises:
        FoveateError: a replaced block is not at hand, as after ``load``; the model is not touched.
    """
    record = record_of(model)
    if record is None:
        return model
    gone = [site for site, removed in record.removed.items() if not removed.original]
    if gone:
        raise FoveateError(
            f"cannot put back {', '.join(map(repr, gone))}: a saved model does not hold the blocks that its plan "
            "replaced; build the network anew instead"
        )
    for site, verb, path in record.placed:
        parent, leaf = _split(path)
        if verb == "replacing":
            owner, name = _split(site)
            block = record.removed[site].module
            like = next(model.get_submodule(path).parameters(), None)
            block = block if like is None else block.to(like.device, like.dtype)
            setattr(model.get_submodule(owner), name, block.train(model.get_submodule(path).training))
            continue
        hooks = model.get_submodule(_host_of(model, site))._forward_hooks
        for key in [key for key, hook in hooks.items() if _is_ours(hook)]:
            del hooks[key]
        delattr(model.get_submodule(parent), leaf)
    delattr(model, ATTRIBUTE)
    posts = model._load_state_dict_post_hooks
    for key in [key for key, hook in posts.items() if hook is _accept_weights_without_attention]:
        del posts[key]
    return model


def replaced_by(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks that the plan replaced, by site."""
    record = record_of(model)
    return {site: removed.module for site, removed in record.removed.items()} if record else {}


def known_options(name: str) -> dict[str, Any]:
    """The options that a plan can give a mechanism, with their defaults."""
    return {**options(name), "start": STARTS[0]}
