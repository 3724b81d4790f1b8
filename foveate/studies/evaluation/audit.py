"""``audit``: does each inserted attention do anything?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from foveate.arguments import at_least
from foveate.errors import FoveateError
from foveate.progress import ProgressBar
from foveate.studies.comparison.statistics import holm
from foveate.studies.evaluation.attention_metrics import (
    AuditPasses,
    ContributionStatistics,
    MapStatistics,
    factor_of,
    own_maps,
    plain_of,
)
from foveate.studies.evaluation.audit_result import Audit, ModuleAudit
from foveate.studies.evaluation.in_memory import LoadedImages
from foveate.studies.evaluation.judges import Audited, Judge, load_judged
from foveate.studies.evaluation.low_precision import LowPrecision
from foveate.studies.evaluation.verdict import Effect, Measures, verdict_of
from foveate.studies.evaluation.whole_in_memory import LoadedWhole
from foveate.surgery.record import part, record_of, shown_names, unwrapped
from foveate.surgery.wrappers import Gate, mechanism_of
from foveate.training.metrics import Diverged

__all__ = ["audit"]


@dataclass
class _Module:
    """An inserted module, and what was seen of it."""

    site: str
    spec: str
    verb: str
    outer: nn.Module  # with its gate
    module: Any
    precision: LowPrecision
    maps: MapStatistics = field(default_factory=MapStatistics)
    contribution: ContributionStatistics = field(default_factory=ContributionStatistics)
    shuffles: str | None = None  # what is exchanged between images; "map" where the output is a multiple of the input


def audit(
    model: nn.Module,
    data: Audited,
    *,
    limit: int | None = 1000,
    batch_size: int = 32,
    image_size: int | None = None,
    seed: int = 0,
    progress: bool | Callable[[int, int], None] = False,
) -> Audit:
    """Find out of each inserted module whether it does anything. The model is left as found.

    Each module is looked at alone, the others stay as they are: how far its map is from uniform and how much it
    differs between images, how large its contribution is, what becomes of the accuracy without it and with another
    image's map, what low precision leaves of the contribution, and its share of the time.

    The verdict follows from what becomes of the accuracy; the first of these rules that holds decides:

    1. harmful: without the module accuracy is better, beyond the 95% interval and with p < 0.05.
    2. works: without the module accuracy is worse, beyond the 95% interval and with p < 0.05; static, if in addition
       rule 4 holds.
    3. inert: no prediction of at least 300 changes without it; or none changes and its contribution is below a
       thousandth of its input, in each channel; or the interval of the difference lies within one percentage point of
       0, for at least 300 images.
    4. static: none of its maps' values varies by 1% between images, and another image's map changes nothing.
    5. unclear: anything else; more images may tell.

    Args:
        model: a classifier, a segmentation network or a detector, with a plan, trained: a fresh module has nothing to
            tell.
        data: what ``open_data``, ``open_segmentation`` or ``open_detection`` takes, of which the validation part is
            read; a part of a data set; or batches of normalised images (B, C, H, W) and labels (B,). With label maps
            the mIoU stands in the place of accuracy, with boxes the mAP; its intervals and p values are those of
            resampled images. The prediction of an image is the class of each of its pixels, or what mAP counts of its
            boxes. Images that are alone with their size are left out.
        limit: at most so many images, in proportion to the classes; None for all. They are kept in memory.
        batch_size: images in one pass.
        image_size: side of the images in pixels; without it the model's own.
        seed: of the choice of images and of who gets whose map.
        progress: show a bar; or a function that is called with the images done and those to do, counted in each pass.

    Returns:
        A row for each inserted module.

    Raises:
        FoveateError: the model carries no plan, or the data cannot be read or does not fit the model.
        Diverged: the model's scores are NaN or infinite, or a weight of a detector is.
    """
    model = unwrapped(model)
    if at_least(1, batch_size=batch_size) < 2:
        raise FoveateError(f"batch_size={batch_size}: an audit exchanges maps between images, give at least 2")
    modules = _inserted(model)
    loaded, judge = load_judged(data, model, limit=limit, image_size=image_size, seed=seed)
    passes = 1 + sum(2 if one.verb != "as head" else 0 for one in modules)
    with _bar(passes * len(loaded), progress) as advance:
        return _audit(model, modules, loaded, judge, batch_size, advance)


def _inserted(model: nn.Module) -> list[_Module]:
    record = record_of(model)
    names = shown_names(record)
    found = [(at, part(model, at.path)) for at in record.placed] if record else []
    modules = [
        _Module(names[at.path], str(at.spec), at.verb, outer, mechanism_of(outer), LowPrecision(outer))
        for at, outer in found
        if outer is not None
    ]
    if not modules:
        raise FoveateError("this model has no inserted attention to audit: insert a plan and train it first")
    return modules


def _audit(
    model: nn.Module,
    modules: list[_Module],
    loaded: LoadedImages | LoadedWhole,
    judge: Judge,
    size: int,
    advance: Callable[[int], None],
) -> Audit:
    run = AuditPasses(model, loaded, judge, size, advance)
    before = run.predictions([(one.outer, _watch(one, run)) for one in modules])
    judge.check(loaded.labels)
    broken = int((before.flatten(1) if before.ndim > 1 else before[:, None]).lt(0).all(1).sum())
    if broken:
        raise Diverged(
            f"the model's scores are NaN or infinite for {broken} of {len(before)} images: there is nothing to audit"
        )
    effects: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    for index, one in enumerate(modules):
        if one.verb == "as head":
            continue
        effects["off", index] = (run.predictions([(one.outer, _switch_off(one))]), before)
        if one.shuffles:
            effects["shuffled", index] = (run.predictions([(one.module, _shuffle(one.shuffles))]), before)
    judged = _effects(effects, judge)
    seconds, shares = run.times([one.outer for one in modules])
    rows = []
    for index, one in enumerate(modules):
        off, shuffled = judged.get(("off", index)), judged.get(("shuffled", index))
        rows.append(_row(one, off, shuffled, shares[index]))
    first = next(iter(loaded.batches(size, torch.device("cpu"))))[0]
    return Audit(tuple(rows), loaded.name, len(loaded), judge.score(before), seconds, len(first), judge.measure)


def _row(one: _Module, off: Effect | None, shuffled: Effect | None, share: float) -> ModuleAudit:
    varied = one.maps.variation()
    measures = Measures(
        off=off,
        shuffled=shuffled,
        shuffles=one.shuffles if shuffled else None,
        contribution=one.contribution.mean,
        contribution_channel=one.contribution.largest_channel,
        varies=statistics.fmean(varied) if varied else None,
        varies_most=max(one.maps.largest_variation(), default=None),
        constant=one.maps.constant,
    )
    verdict, reason = verdict_of(measures)
    kept = one.precision.result()
    return ModuleAudit(
        site=one.site,
        spec=one.spec,
        verb=one.verb,
        gate=float(one.outer.gate.detach()) if isinstance(one.outer, Gate) else None,
        maps=one.maps.count,
        entropy=_mean(one.maps.entropy),
        area=_mean(one.maps.area),
        **vars(measures),
        bf16=kept["bf16"],
        fp16=kept["fp16"],
        int8=kept["int8"],
        time=share,
        verdict=verdict,
        reason=reason,
    )


def _mean(values: list[float]) -> float | None:
    finite = [value for value in values if not math.isnan(value)]
    return statistics.fmean(finite) if finite else None


def _effects(pairs: dict[tuple[str, int], tuple[Tensor, Tensor]], judge: Judge) -> dict[tuple[str, int], Effect]:
    found = {key: judge.difference(after, before) for key, (after, before) in pairs.items()}
    corrected: dict[tuple[str, int], float] = {}
    for kind in ("off", "shuffled"):
        names = {f"{index}": p for (of, index), (_, p) in found.items() if of == kind}
        corrected |= {(kind, int(index)): p for index, p in holm(names).items()}
    return {
        key: Effect(found[key][0], corrected[key], judge.changed(after, before), len(before))
        for key, (after, before) in pairs.items()
    }


def _watch(one: _Module, run: AuditPasses) -> Callable[..., None]:
    """A hook that takes down what the module does, in the pass with nothing changed."""

    def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        given = inputs[0]
        if isinstance(given, Tensor) and len(given) != run.images:
            raise FoveateError(
                f"{one.site} is given {len(given)} feature maps for {run.images} images, such as one for each region: "
                "an audit exchanges maps between images; audit a plan that leaves it out"
            )
        if hasattr(one.module, "attend"):
            one.maps.see(own_maps(one.module, inputs), tuple(given.shape[2:]) if isinstance(given, Tensor) else ())
        if one.verb == "as head" or not isinstance(given, Tensor):
            return
        one.contribution.see(plain_of(one.verb, given, output), output)
        if one.verb == "as pool":
            return
        one.precision.range(given, output)
        if one.shuffles != "contribution":
            ungated = output if one.outer is one.module else one.module(given)
            one.shuffles = "map" if factor_of(one.module, given, ungated) is not None else "contribution"

    return hook


def _switch_off(one: _Module) -> Callable[..., Tensor]:
    """A hook that passes the module's input on; what the module does is measured in low precision on the way."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if one.verb != "as pool":
            one.precision.see(inputs[0], output)  # all that stands before it is as it was in the first pass
        return plain_of(one.verb, inputs[0], output)

    return hook


def _shuffle(what: str) -> Callable[..., Tensor]:
    """A hook: the map, or the contribution, of the image before in the batch; the batch is in random order."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        given = inputs[0]
        factor = factor_of(module, given, output) if what == "map" else None
        if factor is not None:
            return given * factor.roll(1, dims=0)
        return given + (output - given).roll(1, dims=0)

    return hook


@contextmanager
def _bar(total: int, progress: bool | Callable[[int, int], None]) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, or a caller's function: gives a function that moves it on by a number of images."""
    if callable(progress):
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        yield advance
        return
    with ProgressBar(progress) as shown:
        task = shown.task("auditing", total)
        yield lambda count: shown.advance(task, count)
