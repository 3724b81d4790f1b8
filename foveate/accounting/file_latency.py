"""Time of an exported file in its own runtime, in turns with another file or with a network in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from foveate.accounting.profiling.runners import FILE, BenchmarkConfig
from foveate.accounting.profiling.timer import interleaved
from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.preserve import preserve_state
from foveate.surgery.model_copy import copied

__all__ = ["TimedFile", "time_files"]


@runtime_checkable
class TimedFile(Protocol):
    """What an exported file offers to be timed."""

    @property
    def preprocess(self) -> Preprocess:
        """How images are prepared, their size above all."""

    @property
    def batch(self) -> int | None:
        """The number of images in a call, or None for any number."""

    def reopened(self, threads: int) -> TimedFile:
        """The same file, computing with so many threads."""

    def ready(self, images: Tensor) -> Callable[[], object]:
        """A function that runs the file once on these images, (B, C, H, W), normalised."""


def time_files(
    model: TimedFile | nn.Module,
    reference: TimedFile | nn.Module | None,
    batches: Sequence[int],
    threads: Sequence[int],
    rounds: int,
    warmup: int,
    seconds: float,
) -> list[tuple[BenchmarkConfig, list[tuple[float, ...]]]]:
    """Time a file beside a reference.

    Args:
        model: the file, or a network.
        reference: takes turns with it; None for none.
        batches: images of a call; of a file that takes a fixed number only this.
        threads: for both.
        rounds: see ``latency``, as for the rest.
        warmup: see there.
        seconds: see there.

    Returns:
        For each configuration the seconds of each, round by round.

    Raises:
        FoveateError: a file takes another number of images, or images of another size than the reference.
    """
    both = [each for each in (model, reference) if each is not None]
    files = [each for each in both if isinstance(each, TimedFile)]
    shapes = {(len(each.preprocess.mean), *each.preprocess.size) for each in files}
    if len(shapes) > 1:
        sizes = " and ".join("x".join(map(str, shape)) for shape in sorted(shapes))
        raise FoveateError(f"the two files take images of different shapes, {sizes}: export both with the same size")
    fixed = {each.batch for each in files if each.batch is not None}
    if len(fixed) > 1 or (fixed and set(batches) != fixed and tuple(batches) != (1,)):
        raise FoveateError(
            f"batch_size={list(batches)}: a file takes {' and '.join(map(str, sorted(fixed)))} images at a time: "
            "measure that, or export with batch='dynamic'"
        )
    found = []
    kept = torch.get_num_threads()
    try:
        for count in fixed or batches:
            images = torch.randn(count, *shapes.copy().pop(), generator=torch.Generator().manual_seed(0))
            for number in threads:
                torch.set_num_threads(number)
                calls = [_call(each, images, number) for each in both]
                setting = BenchmarkConfig(count, number, "float32", "contiguous", FILE)
                found.append((setting, interleaved(calls, rounds, warmup=warmup, seconds=seconds)))
    finally:
        torch.set_num_threads(kept)
    return found


def _call(model: TimedFile | nn.Module, images: Tensor, threads: int) -> Callable[[], object]:
    if isinstance(model, TimedFile):
        return model.reopened(threads).ready(images)
    with preserve_state(model):
        network = copied(model, data=True)

    def run() -> object:
        with torch.inference_mode():
            return network(images)

    return run
