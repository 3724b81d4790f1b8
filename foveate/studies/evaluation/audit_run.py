"""Many forward passes over the same images, with hooks that change a module or watch it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foveate.model_info import device_and_dtype
from foveate.preserve import preserve_state
from foveate.scores import check_logits, predicted_classes
from foveate.studies.evaluation.in_memory import LoadedImages

__all__ = ["Run", "bar"]

_TIMED = 5  # forward passes whose median time counts


class Run:
    """Forward passes over all images, with hooks, on the caller's model."""

    def __init__(self, model: nn.Module, loaded: LoadedImages, size: int, advance: Callable[[int], None]) -> None:
        self.model, self.loaded, self.size, self.advance = model, loaded, size, advance
        self.device, self.dtype = device_and_dtype(model)
        self.classes = 0

    def predictions(self, hooked: list[tuple[nn.Module, Callable[..., Any]]]) -> Tensor:
        """(N,) the predicted classes; -1, not a class, where a score is NaN or infinite."""
        found = []
        with preserve_state(self.model, evaluation=True, no_grad=True) as hooks:
            hooks += [module.register_forward_hook(hook) for module, hook in hooked]
            for images, _ in self.loaded.batches(self.size, self.device):
                logits = check_logits(self.model(images.to(self.dtype).clone()))
                self.classes = logits.shape[1]
                classes = torch.where(logits.isfinite().all(dim=1), predicted_classes(logits), -1)
                found.append(classes.cpu())
                self.advance(len(images))
        return torch.cat(found)

    def times(self, modules: list[nn.Module]) -> tuple[float, list[float]]:
        """Seconds of one pass over the first batch, and each module's share: medians."""
        images = next(self.loaded.batches(self.size, self.device))[0].to(self.dtype)
        began: dict[int, float] = {}
        shares: list[list[float]] = [[] for _ in modules]
        totals: list[float] = []
        inside = [0.0] * len(modules)

        def stop(index: int) -> Callable[..., None]:
            def hook(*_: object) -> None:
                inside[index] += self._now() - began[index]

            return hook

        def start(index: int) -> Callable[..., None]:
            def hook(*_: object) -> None:
                began[index] = self._now()

            return hook

        with preserve_state(self.model, evaluation=True, no_grad=True) as hooks:
            for index, module in enumerate(modules):
                hooks.append(module.register_forward_pre_hook(start(index)))
                hooks.append(module.register_forward_hook(stop(index)))
            for turn in range(_TIMED + 1):
                inside[:] = [0.0] * len(modules)
                given = images.clone()
                begin = self._now()
                self.model(given)
                total = self._now() - begin
                if turn:  # the first one warms up
                    totals.append(total)
                    for index, seconds in enumerate(inside):
                        shares[index].append(seconds / total)
        return statistics.median(totals), [statistics.median(share) for share in shares]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@contextmanager
def bar(total: int, progress: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr: gives a function that moves it on by a number of images."""
    if not progress:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("auditing", total=total)
        yield lambda count: shown.advance(task, count)
