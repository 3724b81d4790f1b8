"""torch.compile in training: when the compiled network runs, and what is known of an earlier compilation.

Only full batches of a training step run compiled: another number of images, or evaluation mode, would be another
compilation, of half a minute and more. What torch compiled is kept in its own cache folder and found again by every
later run of the same network; beside it is noted, in a few numbers, how long that took and what it gave.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError, first_line, near
from foveate.io import write_atomically
from foveate.surgery.hosting import compiled_for_itself
from foveate.surgery.insert import plan_of
from foveate.training.freeze import Frozen
from foveate.training.speed.products import with_products

__all__ = ["CompiledCalls", "Measured", "check_backend", "describe", "read_measured", "write_measured"]

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def check_backend(backend: str) -> None:
    """Make sure that torch.compile has a backend.

    Raises:
        FoveateError: it has none of this name.
    """
    known = torch._dynamo.list_backends(exclude_tags=())
    if backend not in known:
        raise FoveateError(f"torch.compile has no backend {backend!r}: {near(backend, known)}")


class CompiledCalls:
    """Lets a model run compiled, call by call.

    Args:
        model: whose calls they are.
        backend: of torch.compile; "" never compiles.
        images: how many a call has that runs compiled.

    Raises:
        FoveateError: torch has no such backend.
    """

    def __init__(self, model: nn.Module, backend: str, images: int) -> None:
        self.model, self.images, self.backend = model, images, backend
        self._call: Any = None
        if backend:
            check_backend(backend)
            takes = with_products if backend == "inductor" else backend
            self._call = torch.compile(model._call_impl, backend=takes, dynamic=False)

    @contextlib.contextmanager
    def on(self, images: int) -> Iterator[None]:
        """Inside, the model runs compiled if it gets so many images; outside it is as it was.

        Raises:
            FoveateError: it cannot be compiled.
        """
        if self._call is None or images != self.images:
            yield
            return
        from torch._dynamo.exc import TorchDynamoException

        before = self.model._compiled_call_impl
        self.model._compiled_call_impl = self._call
        try:
            with compiled_for_itself():
                yield
        except TorchDynamoException as error:
            raise FoveateError(
                f"compile={self.backend!r} fails for {type(self.model).__name__}: {first_line(error)}; take compile=''"
            ) from error
        finally:
            self.model._compiled_call_impl = before


@dataclass(frozen=True)
class Measured:
    """What is known of a network that was compiled.

    Args:
        compile_seconds: of the last compilation, until the first step was done.
        warm: whether torch's cache had it already at that time.
        eager_seconds: of a step without compilation, measured then.
        compiled_seconds: of a compiled step.
    """

    compile_seconds: float
    warm: bool
    eager_seconds: float
    compiled_seconds: float

    def __post_init__(self) -> None:
        numbers = (self.compile_seconds, self.eager_seconds, self.compiled_seconds)
        if not all(type(number) in (int, float) and math.isfinite(number) and number > 0 for number in numbers):
            raise ValueError(f"no seconds: {numbers}")

    @property
    def speedup(self) -> float:
        """How many times faster a compiled step is."""
        return self.eager_seconds / self.compiled_seconds


def describe(model: nn.Module, inputs: Tensor, trunk: Frozen | None, *settings: object) -> str:
    """SHA-256 in hex of what a compilation depends on.

    Args:
        model: its structure and plan count, and its weights do not.
        inputs: shape, type and device count.
        trunk: what is left out of the network.
        settings: whatever else counts.
    """
    structure = _ADDRESS.sub("", repr(model))
    given = (tuple(inputs.shape), inputs.dtype, inputs.device.type, trunk and trunk.cut)
    learns = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    plan, machine = str(plan_of(model) or ""), (torch.__version__, torch.get_num_threads())
    form = "with products"  # a note of a compilation with convolutions says nothing about this one
    return hashlib.sha256(repr((structure, plan, learns, given, machine, form, settings)).encode()).hexdigest()


def _file(key: str) -> Path:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()) / "foveate" / f"{key}.json"


def read_measured(key: str) -> Measured | None:
    """What an earlier run noted; None where there is nothing, or nothing that can be read."""
    try:
        return Measured(**json.loads(_file(key).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_measured(key: str, found: Measured) -> None:
    """Note what was measured, for later runs; a folder that cannot be written stops nothing."""
    with contextlib.suppress(OSError, FoveateError):
        file = _file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(asdict(found)).encode())
