"""Time and memory of a network, beside another that takes turns with it in the same process."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from foveate.accounting.counting.forward import network_of
from foveate.accounting.environment.machine import processor
from foveate.accounting.file_latency import TimedFile, time_files
from foveate.accounting.latency_result import Latency, Timing
from foveate.accounting.profiling.peak_memory import measured_peak
from foveate.accounting.profiling.runners import BenchmarkConfig, device_of, dtype_of, ready
from foveate.accounting.profiling.timer import Quantiles, interleaved
from foveate.errors import FoveateError, first_line
from foveate.preserve import preserve_state
from foveate.surgery.apply import undo
from foveate.surgery.insert import plan_of
from foveate.surgery.model_copy import copied
from foveate.surgery.trace import input_size_of

__all__ = ["Latency", "Timing", "latency"]

Value = TypeVar("Value", int, str)
PLAIN = "the network without its plan"


def latency(
    model: nn.Module | TimedFile,
    input_size: int | tuple[int, ...] | None = None,
    *,
    reference: nn.Module | TimedFile | None = None,
    batch_size: int | Sequence[int] = 1,
    threads: int | Sequence[int] | None = None,
    dtype: str | Sequence[str] | None = None,
    memory_format: str | Sequence[str] = "contiguous",
    backend: str | Sequence[str] = "eager",
    rounds: int = 30,
    warmup: int = 3,
    seconds: float = 60.0,
    memory: bool = True,
) -> Latency:
    """Time a forward pass in eval mode, in turns with a reference, and measure its peak memory.

    Several values of an option are measured one after the other, each with every value of the others. Copies are
    measured, on random images and without hooks of the user's own.

    Args:
        model: left as found; of one that ``torch.compile`` wraps, the network inside is measured. Or a file that
            ``open_exported`` opened: it runs in its own runtime, on images of its own size; memory is not measured,
            and ``input_size``, ``dtype``, ``memory_format`` and ``backend`` are refused.
        input_size: a side, (height, width) or (channels, height, width) in pixels; without it the model's own.
        reference: a network that takes the same images; without it the model without its plan; a model without a plan
            is then measured alone.
        batch_size: images of a call.
        threads: of the CPU; without it as many as torch now has.
        dtype: ``float32``, ``bfloat16`` or ``float16``; without it the model's own.
        memory_format: ``contiguous`` or ``channels_last``.
        backend: ``eager``, ``compile`` (``torch.compile``) or ``onnxruntime`` (exported; on the CPU).
        rounds: how often each is timed.
        warmup: rounds before, which are not timed; compiling is never timed.
        seconds: of a setting: no round begins later, but three are run at least.
        memory: measure the peak, too: on the CPU the resident set of a fresh process, once for each batch size, dtype,
            memory format and backend; on CUDA what torch's allocator says.

    Returns:
        A timing for each combination of settings.

    Raises:
        FoveateError: an option does not exist or is given for an exported file, which leaves it no choice, a package is
            missing, or a network cannot run so.
    """
    _check(rounds, warmup, seconds)
    if isinstance(model, TimedFile) or isinstance(reference, TimedFile):
        _check_file(input_size, dtype, memory_format, backend)
        counts, numbers = _several(batch_size), _several(torch.get_num_threads() if threads is None else threads)
        files = time_files(model, reference, counts, numbers, rounds, warmup, seconds)
        name = "" if reference is None else _called(reference)
        found_timings = tuple(_timing(setting, found, []) for setting, found in files)
        return Latency(found_timings, name, processor(), f"torch {torch.__version__}", (f"measured: {_called(model)}",))
    model, reference = network_of(model), None if reference is None else network_of(reference)
    settings = [
        BenchmarkConfig(*values)
        for values in itertools.product(
            _several(batch_size),
            _several(torch.get_num_threads() if threads is None else threads),
            _several(dtype_of(model) if dtype is None else dtype),
            _several(memory_format),
            _several(backend),
        )
    ]
    size = input_size_of(model, input_size)
    peaks: dict[BenchmarkConfig, list[int | None]] = {}
    notes: list[str] = []
    timings = []
    with _as_found(device_of(model)), tempfile.TemporaryDirectory() as folder:
        networks = _Networks(model, reference, Path(folder))
        for setting in settings:
            found = networks.timed(size, setting, rounds, warmup, seconds)
            alike = replace(setting, threads=settings[0].threads)
            if memory and alike not in peaks:
                peaks[alike] = networks.peaks(size, alike, notes)
            timings.append(_timing(setting, found, peaks.get(alike, [])))
    name = PLAIN if reference is None else type(reference).__name__
    backends = {setting.backend for setting in settings}
    return Latency(
        tuple(timings),
        name if networks.second else "",
        _device(model),
        _versions(backends),
        tuple(dict.fromkeys(notes)),
    )


def _called(model: object) -> str:
    return repr(model) if isinstance(model, TimedFile) else type(model).__name__


def _check(rounds: int, warmup: int, seconds: float) -> None:
    for name, value, least in (("rounds", rounds, 1), ("warmup", warmup, 0)):
        if type(value) is not int or value < least:
            raise FoveateError(f"{name}={value!r}: write a whole number of at least {least}")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise FoveateError(f"seconds={seconds!r}: write a number of seconds above 0")


def _check_file(
    input_size: object, dtype: object, memory_format: str | Sequence[str], backend: str | Sequence[str]
) -> None:
    """What a file does not leave open."""
    given = {
        f"input_size={input_size!r}": input_size is not None,
        f"dtype={dtype!r}": dtype is not None,
        f"memory_format={memory_format!r}": _several(memory_format) != ("contiguous",),
        f"backend={backend!r}": _several(backend) != ("eager",),
    }
    for text, is_given in given.items():
        if is_given:
            raise FoveateError(
                f"{text}: an exported file, and what takes turns with it, runs as it was exported, on images of its "
                "own size: leave it out, or export with other options"
            )


class _Networks:
    """The networks that are measured: the model and, where there is one, the reference."""

    def __init__(self, model: nn.Module, reference: nn.Module | None, folder: Path) -> None:
        self.model, self.reference = model, reference
        self.second = reference is not None or plan_of(model) is not None
        other = PLAIN if reference is None else f"the reference, {type(reference).__name__},"
        self.names = [type(model).__name__, other][: 1 + self.second]
        self.folders = [folder / "model", folder / "reference"]
        for own in self.folders:
            own.mkdir()

    def copy(self, which: int) -> nn.Module:
        """Of the model (0) or of the reference (1)."""
        if which and self.reference is not None:
            return copied(self.reference, data=True)
        copy = copied(self.model, data=True)
        return undo(copy) if which else copy

    def timed(
        self, size: tuple[int, int, int], setting: BenchmarkConfig, rounds: int, warmup: int, seconds: float
    ) -> list[tuple[float, ...]]:
        torch.set_num_threads(setting.threads)
        with contextlib.ExitStack() as stack:
            calls = [self._call(which, size, setting, stack) for which in range(len(self.names))]
            return interleaved(calls, rounds, warmup=warmup, seconds=seconds)

    def _call(
        self, which: int, size: tuple[int, int, int], setting: BenchmarkConfig, stack: contextlib.ExitStack
    ) -> Callable[[], object]:
        """A function that runs one of the networks once; whatever goes wrong, the error says in which."""

        def refused(do: Callable[[], object]) -> Any:
            try:
                return do()
            except FoveateError:
                raise
            except Exception as error:
                images = "an image" if setting.batch_size == 1 else f"{setting.batch_size} images"
                channels, height, width = size
                raise FoveateError(
                    f"cannot run {self.names[which]} on {images} of {channels} x {height} x {width} "
                    f"(channels x height x width) in {setting.dtype}: {first_line(error)}"
                ) from error

        run = refused(lambda: stack.enter_context(ready(self.copy(which), size, setting, self.folders[which])))
        return lambda: refused(run)

    def peaks(self, size: tuple[int, int, int], setting: BenchmarkConfig, notes: list[str]) -> list[int | None]:
        found: list[int | None] = []
        for which in range(len(self.names)):
            try:
                found.append(measured_peak(self.copy(which), size, setting, self.folders[which]))
            except FoveateError as error:
                notes.append(str(error))
                found.append(None)
        return found


def _several(values: Value | Sequence[Value]) -> tuple[Value, ...]:
    several = (values,) if isinstance(values, str) or not isinstance(values, Iterable) else tuple(values)
    if not several:
        raise FoveateError("an option of latency is an empty list: give at least one value, or leave it out")
    return several


def _timing(setting: BenchmarkConfig, found: list[tuple[float, ...]], peaks: Sequence[int | None]) -> Timing:
    own, *others = (Quantiles.of(column) for column in zip(*found, strict=True))
    peaks = [*peaks, None, None]
    if not others:
        return Timing(setting, own, peak_bytes=peaks[0])
    ratio = Quantiles.of([one / other for one, other in found])
    return Timing(setting, own, others[0], ratio, peaks[0], peaks[1])


@contextlib.contextmanager
def _as_found(device: torch.device) -> Iterator[None]:
    """The caller's threads and random numbers again, whatever happens."""
    threads = torch.get_num_threads()
    try:
        with preserve_state(devices=[device]):
            yield
    finally:
        torch.set_num_threads(threads)


def _device(model: nn.Module) -> str:
    device = device_of(model)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor()


def _versions(backends: set[str]) -> str:
    found = [f"torch {torch.__version__}"]
    if "onnxruntime" in backends:
        import onnxruntime

        found.append(f"onnxruntime {onnxruntime.__version__}")
    return ", ".join(found)
