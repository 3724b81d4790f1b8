"""``amp="auto"`` and ``compile="auto"``: decided once by measuring, said in a line, and kept for a resume."""

from __future__ import annotations

import contextlib
import contextvars
import itertools
from collections.abc import Callable, Iterator

from torch import Tensor

from foveate.errors import first_line
from foveate.training.input.sampler import Batch, Order
from foveate.training.recipes.recipe import Recipe
from foveate.training.speed.compilation import Measured, check_backend, describe, read_measured, write_measured
from foveate.training.speed.trial import Trial
from foveate.training.train_step import TrainStep

__all__ = ["AUTO", "Choice", "choose", "is_open", "runs_to_come"]

AUTO = "auto"
_BACKEND = "inductor"
_WORTH = 0.95  # of the time of a step: a smaller gain is lost in the noise of the measurement
_USUAL = 1.3  # how many times faster a compiled step is, where nothing was measured: benchmarks/compiling.csv
_SECONDS_PER_LAYER = 0.25  # of a compilation that torch's cache does not have
_WARM = 0.25  # what is left of it, at most, where the cache has it
_runs_to_come: contextvars.ContextVar[int] = contextvars.ContextVar("runs_to_come", default=1)

Choice = dict[str, str]
"""``amp`` and ``compile``, as the run trains."""


@contextlib.contextmanager
def runs_to_come(count: int) -> Iterator[None]:
    """Inside, a run takes into account that so many runs, itself included, share what it compiles."""
    token = _runs_to_come.set(max(1, count))
    try:
        yield
    finally:
        _runs_to_come.reset(token)


def is_open(recipe: Recipe) -> bool:
    """Whether a recipe leaves something to decide, or asks for a compilation that may turn out to be impossible."""
    return recipe.amp == AUTO or bool(recipe.compile)


def choose(
    recipe: Recipe, step: TrainStep, stream: Iterator[Batch], order: Order, say: Callable[[str], None]
) -> tuple[Iterator[Batch], Choice]:
    """Decide what a recipe leaves open.

    Args:
        recipe: whose ``amp`` or ``compile`` is "auto", or asks for a compilation.
        step: of the run; a copy of its model is tried.
        stream: the batches of the run.
        order: that the stream follows.
        say: is called with a line for each decision.

    Returns:
        The batches of the run, and what it does.

    Raises:
        FoveateError: torch.compile has no backend of the recipe's name.
    """
    if recipe.compile not in ("", AUTO):
        check_backend(recipe.compile)
    fixed = {"amp": recipe.amp, "compile": recipe.compile}
    plain = {name: {"amp": "no", "compile": ""}[name] if value == AUTO else value for name, value in fixed.items()}
    full = (recipe.epochs - order.start[0]) * order.full_batches()
    first = next(stream)
    stream = itertools.chain([first], stream)
    if len(first[1]) != order.batch_size:
        say(f"no batch has {order.batch_size} images, so nothing is measured: float32, not compiled")
        return stream, {**plain, "compile": ""}
    try:
        trial = Trial(step, first, recipe)
        trial.seconds(plain["amp"], "")
    except Exception as error:  # noqa: BLE001  the run itself says what is wrong, if it is not the copy alone
        say(f"nothing is measured, for a copy of the network does not train: {first_line(error)[:160]}")
        return stream, plain
    amp = _choose_amp(trial, say) if recipe.amp == AUTO else recipe.amp
    if recipe.compile == AUTO:
        return stream, {"amp": amp, "compile": _choose_backend(trial, amp, full, say)}
    return stream, {"amp": amp, "compile": _checked(trial, amp, recipe.compile, say)}


def _choose_amp(trial: Trial, say: Callable[[str], None]) -> str:
    try:
        trial.seconds("bf16", "")
    except Exception as error:  # noqa: BLE001  a device or an operation without bfloat16 raises this or that
        say(f"amp: float32, for a step in bfloat16 fails ({first_line(error)[:120]})")
        return "no"
    plain, half = trial.compare(("no", ""), ("bf16", ""))
    chosen = "bf16" if half < _WORTH * plain else "no"
    name = "bfloat16" if chosen == "bf16" else "float32"
    say(f"amp: {name}, for a step takes {_ms(half)} in bfloat16 and {_ms(plain)} in float32")
    return chosen


def _choose_backend(trial: Trial, amp: str, steps: int, say: Callable[[str], None]) -> str:
    inputs: object = trial.batch[0]
    if not isinstance(inputs, Tensor):
        say("compile: off, for a detector's images have many sizes, and each would be compiled for itself")
        return ""
    trial.seconds(amp, "")
    (eager,) = trial.compare((amp, ""))
    runs = _runs_to_come.get()
    key = describe(trial.model, inputs, trial.step.train.trunk, amp, _BACKEND)
    known = read_measured(key)
    layers = sum(1 for module in trial.model.modules() if next(module.children(), None) is None)
    if known is None:
        speedup, first, later = _USUAL, layers * _SECONDS_PER_LAYER, layers * _SECONDS_PER_LAYER * _WARM
        source = "guessed"
    else:
        first = known.compile_seconds * (1.0 if known.warm else _WARM)
        speedup, later, source = known.speedup, first, "measured before"
    saved = runs * steps * eager * (1 - 1 / speedup)
    spent = first + (runs - 1) * later
    many = f"{runs} runs of {steps} full batches" if runs > 1 else f"{steps} full batches"
    text = f"{many} at {_ms(eager)}, {speedup:.2f} times faster ({source})"
    if saved <= spent:
        say(f"compile: off, for {text} would save {saved:.0f} s, and compiling takes {spent:.0f} s")
        return ""
    say(f"compile: {text} would save {saved:.0f} s, and compiling takes {spent:.0f} s: trying")
    try:
        seconds = trial.seconds(amp, _BACKEND)
    except Exception as error:  # noqa: BLE001  whatever a compiler raises: the run goes on without it
        say(f"compile: off, for it fails: {first_line(error)[:160]}")
        return ""
    trial.seconds(amp, _BACKEND)
    plain, compiled = trial.compare((amp, ""), (amp, _BACKEND))
    write_measured(key, Measured(seconds, known is not None, plain, compiled))
    if compiled > _WORTH * plain:
        say(f"compile: off, for a compiled step takes {_ms(compiled)} and the plain one {_ms(plain)}")
        return ""
    gain = f"{steps * (plain - compiled):.0f} s less in this run"
    say(f"compile: on, after {seconds:.0f} s; a step takes {_ms(compiled)} instead of {_ms(plain)}, {gain}")
    return _BACKEND


def _checked(trial: Trial, amp: str, backend: str, say: Callable[[str], None]) -> str:
    """The backend that was asked for, or none where it does not work here: a run need not end for that."""
    if not backend:
        return ""
    try:
        trial.seconds(amp, backend)
    except Exception as error:  # noqa: BLE001  as above
        say(f"compile={backend!r} fails, and the run goes on without it: {first_line(error)[:160]}")
        return ""
    return backend


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.2g} ms"
