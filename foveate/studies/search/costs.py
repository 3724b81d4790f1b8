"""What each plan of a family costs, without building it: a table over sites, whose sums are exact.

A mechanism after a site adds what it costs on the feature map there; in place of a block it also takes the block's cost
away. Each entry is made once, so that ten thousand plans are judged in seconds. Pools and heads are tried on a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from foveate.accounting.cost import Cost, cost
from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.errors import FoveateError, near
from foveate.preserve import preserve_state
from foveate.registry import build
from foveate.spec import Plan, Spec
from foveate.surgery.insert import insert
from foveate.surgery.model_copy import copied
from foveate.surgery.resolve import KINDS, ResolvedPlacement, resolve_plan
from foveate.surgery.sites import list_sites
from foveate.surgery.trace import input_size_of, probe

__all__ = ["Budget", "CostTable", "read_budget"]

_ALIASES = {"params": "parameters", "flops": "macs"}
_NAMES = ("parameters", "macs", "latency")
_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}


class CostTable:
    """Parameters and multiply-adds of plans on one network.

    Args:
        model: left as found; without a plan.
        input_size: as in ``cost``.
        start: as in ``insert``.
    """

    def __init__(
        self, model: nn.Module, input_size: int | tuple[int, ...] | None = None, start: str | None = None
    ) -> None:
        self.model, self.size, self.start = model, input_size_of(model, input_size), start
        self.traces, self._plain = probe(model, self.size, plain=True)
        self._listed = list_sites(self._plain, self.traces, self.size)
        self.baseline = cost(model, self.size)
        self._rows = {row.name: row for row in self.baseline.modules}
        self._entries: dict[tuple[object, ...], tuple[int, int]] = {}
        self._refused: dict[tuple[object, ...], str] = {}
        names = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
        self._is_sum = len(names) == len(set(names))  # what blocks share is not lost with one of them

    def __call__(self, plan: Plan) -> Cost:
        """What the network with a plan costs: parameters and MACs alone.

        Raises:
            FoveateError: the plan does not fit the network.
        """
        resolved = resolve_plan(self._plain, plan, self._listed, self.traces, self.start)
        if not self._is_sum:
            return self._inserted(plan)
        added = [self._entry(at) for at in resolved]
        params, macs = (sum(column) for column in zip(*added, strict=True))
        return Cost(self.baseline.params + params, self.baseline.macs + macs, 0)

    def _entry(self, at: ResolvedPlacement) -> tuple[int, int]:
        """Parameters and MACs that one placement adds at one site."""
        if at.verb in KINDS:
            key: tuple[object, ...] = (str(at.spec), at.verb, at.maps)
            if key not in self._entries:
                on = f" on {', '.join(at.maps)}" if at.verb == "as head" else ""
                alone = self._inserted(Plan.parse(f"{at.spec} {at.verb}{on}"))
                self._entries[key] = alone.params - self.baseline.params, alone.macs - self.baseline.macs
            return self._entries[key]
        shape = self.traces[at.site].map_shape
        if shape is None:
            raise AssertionError(f"{at.site} was resolved, and has no feature map")
        params, macs = self._mechanism(at.spec, shape[1:])
        if at.verb == "replacing":
            block = self._rows[at.site]
            params, macs = params - block.params, macs - block.macs
        return params, macs

    def _mechanism(self, spec: Spec, shape: tuple[int, ...]) -> tuple[int, int]:
        key = (str(spec), shape)
        if key not in self._entries:
            kwargs = spec.kwargs
            gate = kwargs.pop("start", None) == "identity"
            if key in self._refused:
                raise FoveateError(self._refused[key])
            try:
                with preserve_state():
                    module = build(Spec(spec.name, tuple(kwargs.items())), shape[0])
            except FoveateError as error:
                self._refused[key] = str(error)
                raise
            params = sum(parameter.numel() for parameter in module.parameters())
            macs = count_operations(module.eval().to("meta"), (shape[0], shape[1], shape[2]))[""].macs
            self._entries[key] = params + gate, macs
        return self._entries[key]

    def _inserted(self, plan: Plan) -> Cost:
        """The same by putting the plan into a copy."""
        whole = cost(insert(copied(self.model, data=True), plan, start=self.start, input_size=self.size), self.size)
        return Cost(whole.params, whole.macs, 0)


@dataclass(frozen=True)
class Budget:
    """The most that a plan may cost; None: there is no limit.

    Args:
        parameters: how many.
        macs: of one image.
        latency: of one image, as a multiple of the time without a plan.
    """

    parameters: float | None = None
    macs: float | None = None
    latency: float | None = None

    def excess(self, found: Cost) -> float:
        """By which fraction a plan is over the budget of parameters or MACs; 0: it keeps it."""
        pairs = ((found.params, self.parameters), (found.macs, self.macs))
        return max((value / limit - 1 for value, limit in pairs if limit is not None and value > limit), default=0.0)

    def __str__(self) -> str:
        parts = [
            *([f"{self.parameters:,.0f} parameters"] if self.parameters is not None else []),
            *([f"{self.macs:,.0f} MACs"] if self.macs is not None else []),
            *([f"{self.latency:.3g} times the time without a plan"] if self.latency is not None else []),
        ]
        return f"at most {', '.join(parts)}" if parts else "no budget"


def read_budget(budget: Mapping[str, str | float] | None, baseline: Cost) -> Budget:
    """A budget from what a user wrote.

    Args:
        budget: "parameters", "macs" or "latency" -> a number or a text such as ``"2.5M"``, or ``"-15%"``, which is
            relative to the network without a plan. Latency is relative only.
        baseline: the cost of that network.

    Raises:
        FoveateError: there is no such quantity, or a value is neither a number nor a percentage.
    """
    limits: dict[str, float] = {}
    for written, value in (budget or {}).items():
        name = _ALIASES.get(written, written)
        if name not in _NAMES:
            raise FoveateError(f"a budget has no {written!r}; {near(written, _NAMES)}")
        whole = {"parameters": baseline.params, "macs": baseline.macs, "latency": 1.0}[name]
        text = str(value).strip()
        try:
            if text.endswith("%"):
                limit = whole * (1 + float(text[:-1]) / 100)
            elif name == "latency":
                raise ValueError
            else:
                unit = _UNITS.get(text[-1:].lower(), 1.0)
                limit = (
                    float(text[:-1] if text[-1:].lower() in _UNITS else text.replace("_", "").replace(",", "")) * unit
                )
        except ValueError:
            example = "'+2%'" if name == "latency" else "3_000_000, '3M' or '-15%'"
            raise FoveateError(f"budget: {name}={value!r} means nothing: write {example}") from None
        if not limit > 0:
            raise FoveateError(f"budget: {name}={value!r} leaves nothing")
        limits[name] = limit
    return Budget(**limits)
