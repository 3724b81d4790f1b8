"""The fraction of a forward pass's time that each module takes, read off clocks in hooks."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from foveate.accounting.profiling.runners import BenchmarkConfig, device_of, dtype_of, random_images

__all__ = ["time_fractions"]


class _Clock:
    """The own time of each module in a pass: without that of the modules that it calls."""

    def __init__(self, model: nn.Module) -> None:
        self.device = device_of(model)
        self.own = {name: 0.0 for name, _ in model.named_modules()}
        self.running: list[tuple[str, float]] = []  # with the time at which its own clock went on
        for name, module in model.named_modules():
            # Around everything that belongs to the module, the hook that calls its attention included.
            module.register_forward_pre_hook(lambda _module, _args, name=name: self.enter(name), prepend=True)
            module.register_forward_hook(lambda _module, _args, _output: self.leave(), always_call=True)

    def enter(self, name: str) -> None:
        self._stop()
        self.running.append((name, self._now()))

    def leave(self) -> None:
        self._stop()
        self.running.pop()
        if self.running:
            self.running[-1] = self.running[-1][0], self._now()

    def read(self) -> dict[str, float]:
        """What was timed since it was read last."""
        found, self.own = self.own, dict.fromkeys(self.own, 0.0)
        return found

    def _stop(self) -> None:
        if self.running:
            name, since = self.running[-1]
            self.own[name] += self._now() - since

    def _now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()


def time_fractions(model: nn.Module, size: tuple[int, int, int], rounds: int = 7) -> dict[str, float]:
    """Time a network module by module, on one image.

    The hooks take a little time themselves, so the times are given as fractions of their sum. On an accelerator each
    module waits for the one before.

    Args:
        model: a copy in eval mode.
        size: (channels, height, width) of the image.
        rounds: passes, after one that is not timed; the median of each module's own time counts.

    Returns:
        For each module by dotted name the fraction of time of it and its parts, 0 to 1; "" is the whole model.

    Raises:
        FoveateError: the model has no data.
        Exception: whatever the model raises.
    """
    names = [name for name, _ in model.named_modules()]
    setting = BenchmarkConfig(1, torch.get_num_threads(), dtype_of(model), "contiguous", "eager")
    images = random_images(size, setting).to(device_of(model))
    clock, passes = _Clock(model), []
    with torch.inference_mode():
        for _ in range(rounds + 1):
            model(images)
            passes.append(clock.read())
    own = {name: statistics.median(found[name] for found in passes[1:]) for name in names}
    for name in reversed(names):  # parts stand behind what they are part of
        if name:
            own[name.rpartition(".")[0]] += own[name]
    whole = own[""]
    return {name: seconds / whole if whole else 0.0 for name, seconds in own.items()}
