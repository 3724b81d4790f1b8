"""A network made ready to be timed: moved, converted, compiled or exported, as a function that runs it once."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError, first_line, near
from foveate.model_info import device_and_dtype
from foveate.surgery.hosting import compiled_for_itself

__all__ = [
    "BACKENDS",
    "DTYPES",
    "FILE",
    "MEMORY_FORMATS",
    "BenchmarkConfig",
    "device_of",
    "dtype_of",
    "exported",
    "random_images",
    "ready",
    "session",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
BACKENDS = ("eager", "compile", "onnxruntime")
FILE = "file"  # an exported file in its own runtime
INPUT = "images"
MOST_THREADS = 1024
"""More than any CPU has; where the system refuses to start so many, the process would end without a word."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """How a network is run.

    Args:
        batch_size: images of a call.
        threads: of the CPU.
        dtype: of ``DTYPES``.
        memory_format: of ``MEMORY_FORMATS``.
        backend: of ``BACKENDS``, or ``FILE``.

    Raises:
        FoveateError: one of them does not exist, or they do not go together.
    """

    batch_size: int
    threads: int
    dtype: str
    memory_format: str
    backend: str

    def __post_init__(self) -> None:
        for name in ("batch_size", "threads"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise FoveateError(f"{name}={value!r}: write a whole number of at least 1")
        if self.threads > MOST_THREADS:
            raise FoveateError(f"threads={self.threads}: at most {MOST_THREADS} are started")
        for name, exist in (("dtype", DTYPES), ("memory_format", MEMORY_FORMATS), ("backend", (*BACKENDS, FILE))):
            value = getattr(self, name)
            if value not in exist:
                raise FoveateError(f"{name}={value!r} does not exist; {near(str(value), exist)}")
        if self.backend == "onnxruntime" and (self.dtype, self.memory_format) != ("float32", "contiguous"):
            raise FoveateError(
                f"onnxruntime is measured in float32 and contiguous, not {self.dtype} and {self.memory_format}: "
                "it has a layout of its own, and few of its CPU kernels take another dtype"
            )


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are; the CPU for one without.

    Raises:
        FoveateError: they have no data.
    """
    device, _ = device_and_dtype(model)
    if device.type == "meta":
        raise FoveateError(f"{type(model).__name__} has shapes and no data (device meta): there is nothing to time")
    return device


def dtype_of(model: nn.Module) -> str:
    """The name of a model's own dtype; float32 for one without weights.

    Raises:
        FoveateError: it is none of ``DTYPES``.
    """
    _, own = device_and_dtype(model)
    name = str(own).removeprefix("torch.")
    if name not in DTYPES:
        raise FoveateError(f"a network in {name} is not measured: give dtype, one of {', '.join(DTYPES)}")
    return name


@contextlib.contextmanager
def ready(
    model: nn.Module, size: tuple[int, int, int], setting: BenchmarkConfig, folder: Path
) -> Iterator[Callable[[], object]]:
    """A function that runs a network once on random images, and returns when it is done.

    Args:
        model: a copy in eval mode, which is converted in place.
        size: (channels, height, width) of the images.
        setting: how to run it. The number of threads is the caller's to set.
        folder: of this network alone, for what is exported.

    Raises:
        FoveateError: onnxruntime is missing, or the network cannot be compiled or exported.
    """
    if setting.backend == "onnxruntime":
        yield session(exported(model, size, setting, folder), random_images(size, setting), setting.threads)
        return
    device = device_of(model)
    images = random_images(size, setting).to(device)
    model.to(DTYPES[setting.dtype]).to(memory_format=MEMORY_FORMATS[setting.memory_format])
    if setting.backend == "eager":
        yield _done(model, images)
        return
    with compiled_for_itself(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = _done(torch.compile(model, dynamic=False), images)
        try:
            run()
        except Exception as error:
            raise FoveateError(f"{type(model).__name__} cannot be compiled: {first_line(error)}") from error
        yield run


def random_images(size: tuple[int, int, int], setting: BenchmarkConfig) -> Tensor:
    """The same random images each time, (B, C, H, W), as a setting wants them, on the CPU."""
    images = torch.randn(setting.batch_size, *size, generator=torch.Generator().manual_seed(0))
    return images.to(DTYPES[setting.dtype]).contiguous(memory_format=MEMORY_FORMATS[setting.memory_format])


def _done(model: Callable[[Tensor], object], images: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            output = model(images)
        if images.device.type != "cpu":
            torch.accelerator.synchronize(images.device)
        return output

    return run


def exported(model: nn.Module, size: tuple[int, int, int], setting: BenchmarkConfig, folder: Path) -> Path:
    """The ONNX file of a network for one batch size; it is written where the folder has none.

    Args:
        model: a copy in eval mode, which is moved to the CPU.
        size: (channels, height, width) of the images.
        setting: its batch size counts.
        folder: of this network alone.

    Raises:
        FoveateError: onnx or onnxscript is missing, or the network cannot be exported.
    """
    _needs("onnx", "onnxscript")
    file = folder / f"{setting.batch_size}.onnx"
    if file.exists():
        return file
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            images = random_images(size, setting)
            torch.onnx.export(model.cpu(), (images,), file, dynamo=True, verbose=False, input_names=[INPUT])
    except Exception as error:
        reason = first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        raise FoveateError(f"{type(model).__name__} cannot be exported to ONNX: {reason}") from error
    return file


def session(file: Path, images: Tensor, threads: int) -> Callable[[], object]:
    """A function that runs an ONNX file once, on the CPU.

    Raises:
        FoveateError: onnxruntime is missing, or does not take the file.
    """
    _needs("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    try:
        opened = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise FoveateError(f"onnxruntime does not take the network: {first_line(error)}") from error
    array = images.numpy()
    return lambda: opened.run(None, {INPUT: array})


def _needs(*packages: str) -> None:
    for package in packages:
        try:
            __import__(package)
        except ImportError as error:
            raise FoveateError(
                f"backend='onnxruntime' needs the package {package}: pip install onnx onnxscript onnxruntime"
            ) from error
