"""8 bits with a look at the attention: measured, and kept where it matters and would be lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.exporters.contribution import LEAST_CORRELATION, Comparison, Contribution
from foveate.exporters.program import Program
from foveate.exporters.quantization.attention_nodes import AttentionNodes
from foveate.exporters.sample_images import full_batches
from foveate.surgery.record import part

__all__ = ["REMEDY", "Quantizer", "Reader", "predictions", "quantize_keeping"]

REMEDY = "it and the layers around it stay in 32 bits"
_BATCH = 16

Arrays = Sequence[np.ndarray[Any, Any] | None]
Reader = Callable[[np.ndarray[Any, Any]], tuple[np.ndarray[Any, Any], Arrays]]
"""Images -> logits, and for each site that was found the x and the out that are read there, one after the other; None
for what the runtime left no trace of."""

File = TypeVar("File")


@dataclass(frozen=True)
class Quantizer(Generic[File]):
    """A tool that quantizes, as this file needs it.

    Args:
        attention: each module in the graph.
        quantize: the file, with the modules at these sites kept in 32 bits.
        reader: the file, opened so that it gives what is read at each site; None for the graph in 32 bits.
    """

    attention: tuple[AttentionNodes, ...]
    quantize: Callable[[Collection[str]], File]
    reader: Callable[[File | None], Reader]


def quantize_keeping(program: Program, tool: Quantizer[File]) -> File:
    """A file in 8 bits; what is left of the attention in it is written into the program.

    ``keep="auto"`` keeps a module in 32 bits where two things are true: what it adds is lost in 8 bits, and to switch
    all attention off changes more predictions than 8 bits do.

    Args:
        program: with images to check with; ``contributions``, ``agreement_without`` and ``notes`` are set.
        tool: what quantizes.

    Raises:
        FoveateError: the tool cannot quantize the network.
    """
    keep, names = program.options.keep, [one.site.site for one in tool.attention if one.x]
    kept: Collection[str] = names if keep == "attention" else ()
    file = tool.quantize(kept)
    if not tool.attention:
        return file
    expected = predictions(program)
    without = _share(predictions(program, attention=False), expected)
    found, agreement = _measure(program, tool, file, expected)
    lost = [one for one in found if one.lost]
    matters = without < agreement
    if keep == "auto" and matters and lost:
        kept = [one.site for one in lost]
        file = tool.quantize(kept)
        before, (found, agreement_now) = found, _measure(program, tool, file, expected)
        program.notes.append(_kept(before, found, kept, agreement, agreement_now, without))
    else:
        program.notes.append(_left(found, lost, agreement, without, keep))
    program.contributions = tuple(one.with_remedy(REMEDY if one.site in kept else "") for one in found)
    program.agreement_without = without
    return file


def _measure(program: Program, tool: Quantizer[File], file: File, expected: Tensor) -> tuple[list[Contribution], float]:
    """What each module adds in a file beside the network, and how many predictions of the two are the same."""
    images, batch = _images(program), program.options.batch
    placed = [one for one in tool.attention if one.x]
    sums = [Comparison() for _ in placed]
    classes = []
    size = _BATCH if batch == "dynamic" else int(batch)
    reference, quantized = tool.reader(None), tool.reader(file)
    for given, count in full_batches(images, size):
        _, ours = reference(given)
        logits, theirs = quantized(given)
        classes.append(torch.from_numpy(logits[:count]).argmax(1))
        for n, one in enumerate(sums):
            pairs = (*ours[2 * n : 2 * n + 2], *theirs[2 * n : 2 * n + 2])
            if (arrays := [values[:count] for values in pairs if values is not None])[3:]:
                x, out, other_x, other_out = arrays
                one.add(x, out - x, other_out - other_x)
    measured = {one.site.site: each for one, each in zip(placed, sums, strict=True)}
    found = [_contribution(one, measured.get(one.site.site)) for one in tool.attention]
    return found, _share(torch.cat(classes), expected)


def _contribution(one: AttentionNodes, measured: Comparison | None) -> Contribution:
    site = one.site.site
    if measured is None:
        return Contribution(site, None, None, reason=one.reason)
    if not measured.count:
        return Contribution(site, None, None, reason="the runtime joined it with the layers around it")
    return measured.contribution(site)


def predictions(program: Program, *, attention: bool = True) -> Tensor:
    """The network's classes of the program's images, (N,); without attention each module gives back its input."""
    images = _images(program)
    modules = [] if attention else [part(program.network.network, site.module) for site in program.sites]
    with _switched_off([one for one in modules if one is not None]), torch.inference_mode():
        parts = [program.network(torch.from_numpy(images[n : n + _BATCH]))[0] for n in range(0, len(images), _BATCH)]
    return torch.cat(parts).argmax(1)


@contextlib.contextmanager
def _switched_off(modules: Sequence[nn.Module]) -> Iterator[None]:
    handles = [module.register_forward_hook(lambda _, inputs, __: inputs[0]) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _images(program: Program) -> np.ndarray[Any, Any]:
    if program.images is None:
        raise FoveateError("what 8 bits leave of the attention is measured on images, and the program has none")
    return program.images


def _share(some: Tensor, other: Tensor) -> float:
    return float((some == other).float().mean())


def _kept(
    before: Sequence[Contribution],
    after: Sequence[Contribution],
    kept: Collection[str],
    agreement: float,
    now: float,
    without: float,
) -> str:
    numbers = ", ".join(
        f"{old.site} {_number(old)} -> {_number(new)}"
        for old, new in zip(before, after, strict=True)
        if old.site in kept
    )
    return (
        f"attention kept: in 8 bits what it adds would be lost (correlation with the network's below "
        f"{LEAST_CORRELATION}), and the network needs it: switching it off changes {1 - without:.1%} of the "
        f"predictions, 8 bits {1 - agreement:.1%}. So {REMEDY}. Correlation: {numbers}; {1 - now:.1%} of the "
        "predictions change now"
    )


def _left(
    found: Sequence[Contribution], lost: Sequence[Contribution], agreement: float, without: float, keep: str
) -> str:
    """What is to be said where nothing was done."""
    if not lost:
        defined = [one.correlation for one in found if one.correlation is not None]
        if not defined:
            return "what the attention adds cannot be compared: " + "; ".join(
                f"at {one.site} {one.reason}" for one in found
            )
        return f"what the attention adds is kept: its correlation with the network's is {min(defined):.3f} or more"
    where = ", ".join(f"{one.site} {_number(one)}" for one in lost)
    if without >= agreement:
        return (
            f"what the attention adds lies below the quantization noise of this network: switching all of it off "
            f"changes {1 - without:.1%} of the predictions, 8 bits change {1 - agreement:.1%}. Correlation: {where}"
        )
    advice = "" if keep != "none" else "; keep='auto' would leave it and the layers around it in 32 bits"
    return (
        f"what the attention adds is LOST in 8 bits (correlation: {where}), and the network needs it: switching it off "
        f"changes {1 - without:.1%} of the predictions, 8 bits {1 - agreement:.1%}{advice}"
    )


def _number(one: Contribution) -> str:
    if one.correlation is not None:
        return f"{one.correlation:.3f}"
    return f"relative error {one.error:.3f}" if one.error is not None else "not defined"
