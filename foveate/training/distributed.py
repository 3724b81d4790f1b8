"""One process or several, through Accelerate: who is who, and what they send each other.

Gradients are added up by one flat message after the backward pass, not by DistributedDataParallel: a compact network's
gradients are a few megabytes, the sum is the exact mean over the images of the whole step even where the processes'
shares differ in size, and networks with parts that a step does not use need no special case. The price is that the
message does not overlap with the backward pass.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError, first_line, near

__all__ = ["ProcessGroup", "ProcessLost", "accelerated", "rank_and_count"]


class ProcessLost(FoveateError):
    """Another process of the run has died, or did not answer in time."""

    exit_code = 4


def rank_and_count() -> tuple[int, int]:
    """This process's number and how many there are, as the launcher (torchrun) says; (0, 1) without one."""
    try:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError as error:
        raise FoveateError(f"RANK and WORLD_SIZE must be whole numbers: start with torchrun ({error})") from error


class ProcessGroup:
    """The processes of a run, seen from one of them.

    Args:
        accelerator: Accelerate's.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.rank: int = accelerator.process_index
        self.count: int = accelerator.num_processes
        self.main = self.rank == 0

    @contextlib.contextmanager
    def _communicating(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ProcessLost(
                f"another of the {self.count} processes has ended or hangs ({first_line(error)[:200]}); resume=True "
                "goes on from the last checkpoint"
            ) from error

    def all_reduce(self, parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
        """Add up the gradients of all processes, in place.

        A parameter without a gradient in every process stays without; in some, it counts as 0 there.

        Args:
            parameters: that require a gradient.
            loss: () this process's share of the loss.

        Returns:
            () the sum of all losses.
        """
        if self.count == 1:
            return loss
        own = list(parameters)
        has = torch.tensor([float(p.grad is not None) for p in own], dtype=torch.float64, device=loss.device)
        message = torch.cat([loss.detach().double().reshape(1), has])
        with self._communicating():
            torch.distributed.all_reduce(message)
        used = [p for p, flag in zip(own, message[1:].tolist(), strict=True) if flag]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for dtype in {p.dtype for p in used}:
            gradients = [p.grad for p in used if p.dtype == dtype and p.grad is not None]
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            with self._communicating():
                torch.distributed.all_reduce(flat)
            for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view(gradient.shape))
        return message[0]

    def broadcast(self, modules: Iterable[nn.Module]) -> None:
        """Give every process the parameters and buffers of process 0."""
        if self.count == 1:
            return
        for module in modules:
            for tensor in module.state_dict().values():
                # A copy with plain strides: the tensor itself may have its channels last.
                sent = tensor.detach().clone(memory_format=torch.contiguous_format)
                with self._communicating():
                    torch.distributed.broadcast(sent, 0)
                tensor.copy_(sent)

    def gather(self, rows: Tensor, total: int) -> Tensor:
        """Rows of all processes, in the order of the whole, without the padding that equal shares need.

        Args:
            rows: (M, ...) this process's rows: numbers rank, rank + count, rank + 2 count, ... of the whole.
            total: rows of the whole, N.

        Returns:
            (N, ...).
        """
        if self.count == 1:
            return rows
        most = -(-total // self.count)
        padded = torch.zeros((most, *rows.shape[1:]), dtype=rows.dtype, device=self.accelerator.device)
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        with self._communicating():
            torch.distributed.all_gather(parts, padded)
        return torch.stack(parts, dim=1).flatten(0, 1)[:total].to(rows.device)

    def check_equal(self, what: str, value: str) -> None:
        """Make sure that every process has the same value.

        Raises:
            FoveateError: one has another.
        """
        if self.count == 1:
            return
        from accelerate.utils import gather_object

        with self._communicating():
            values = gather_object([value])
        if len(set(values)) > 1:
            raise FoveateError(
                f"the {self.count} processes have different {what}: give all of them the same model, data, options and "
                "(shared) folders"
            )

    def of_first(self, value: dict[str, str]) -> dict[str, str]:
        """The value that process 0 has."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        with self._communicating():
            found: list[dict[str, str]] = broadcast_object_list([value])
        return found[0]

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            with self._communicating():
                self.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The first process of each machine goes ahead; the others follow when it is through."""
        first = self.accelerator.is_local_main_process
        if not first:
            self.wait()
        yield
        if first:
            self.wait()


@contextlib.contextmanager
def accelerated(
    precision: str,
    *,
    timeout_seconds: float = 600,
    tracker: object = None,
    folder: str | os.PathLike[str] | None = None,
) -> Iterator[Any]:
    """An ``Accelerator``; Accelerate's global state is removed afterwards unless it was there before.

    Args:
        precision: as ``Recipe.amp``.
        timeout_seconds: after which a process that waits for another gives up.
        tracker: a name that Accelerate knows, or one of its trackers.
        folder: for the trackers that write files.

    Raises:
        FoveateError: the device cannot do this precision, the tracker is not installed, the processes cannot reach
            each other, or the program uses Accelerate itself with another precision.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState, is_initialized
    from accelerate.utils import InitProcessGroupKwargs

    if not timeout_seconds > 0:
        raise FoveateError(f"timeout_seconds={timeout_seconds} must be more than 0")
    processes = rank_and_count()[1]
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if processes > 1 and missing:
        raise FoveateError(f"{processes} processes need {missing[0]} to find each other: start them with torchrun")
    found, found_partial = is_initialized(), bool(PartialState._shared_state)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    options: dict[str, Any] = {}
    if processes > 1:
        # On a CPU, Accelerate ignores a launcher unless it is made to stay there: each process would train alone.
        options["cpu"] = device is None or device.type == "mps"
        options["kwargs_handlers"] = [InitProcessGroupKwargs(timeout=timedelta(seconds=timeout_seconds))]
    if tracker is not None:
        options |= {"log_with": _checked(tracker), "project_dir": os.fspath(folder or ".")}
    try:
        accelerator = _made(lambda: Accelerator(mixed_precision=precision, **options), precision, processes)
        if accelerator.num_processes != processes:
            raise FoveateError(
                f"the launcher started {processes} processes and Accelerate sees {accelerator.num_processes}: start "
                "with torchrun, and do not use Accelerate before fit"
            )
        yield accelerator
    finally:
        if not found:
            if processes > 1 and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            AcceleratorState._reset_state(reset_partial_state=not found_partial)


def _made(make: Callable[[], Any], precision: str, processes: int) -> Any:
    try:
        accelerator = make()
    except (ValueError, ImportError) as error:
        raise FoveateError(f"amp={precision!r} is not possible here: {first_line(error)}; take amp='no'") from error
    except RuntimeError as error:  # torch.distributed's errors
        if processes == 1:
            raise
        raise ProcessLost(f"the {processes} processes did not find each other: {first_line(error)[:200]}") from error
    if precision != "no" and not accelerator.native_amp:  # on a CPU, Accelerate takes fp16 and does nothing
        device = accelerator.device.type
        raise FoveateError(f"amp={precision!r} is not possible here: a {device} does not train with it; take amp='no'")
    return accelerator


def _checked(tracker: object) -> object:
    """A tracker that is there: Accelerate would go on without a missing one."""
    from accelerate.tracking import GeneralTracker, get_available_trackers
    from accelerate.utils import LoggerType

    if isinstance(tracker, GeneralTracker):
        return tracker
    known = [str(kind.value) for kind in LoggerType if kind.value != "all"]
    if tracker not in known:
        raise FoveateError(f"no tracker is called {tracker!r}: {near(str(tracker), known)}")
    installed = [str(getattr(kind, "value", kind)) for kind in get_available_trackers()]
    if tracker not in installed:
        raise FoveateError(f"the tracker {tracker!r} is not installed: pip install {tracker}, or leave it out")
    return tracker
