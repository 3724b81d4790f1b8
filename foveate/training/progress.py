"""What the user sees while training: a bar with images per second and the time left, and a line per epoch."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from foveate.training.input.sampler import Batch

__all__ = ["Report"]

logger = logging.getLogger("foveate")


class _ImagesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.0f} images/s" if speed else "", style="progress.data.speed")


class Report:
    """Progress bars on stderr, to be used in a ``with``.

    Args:
        show: without it nothing is written; lines go to the logger "foveate" at level INFO either way.
    """

    def __init__(self, show: bool) -> None:
        self.show = show
        self._began = time.perf_counter()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _ImagesPerSecond(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not show,
            transient=True,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @property
    def seconds(self) -> float:
        """Wall time since the report was made."""
        return time.perf_counter() - self._began

    def line(self, text: str) -> None:
        """Write one line above the bars."""
        logger.info(text)
        if self.show:
            self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def task(self, description: str, images: int | None = None, done: int = 0) -> TaskID:
        """Start a bar of a number of images (None: not known yet), of which some are done."""
        return self._progress.add_task(description, total=images, completed=done)

    def advance(self, task: TaskID, images: int, description: str | None = None) -> None:
        """Move a bar on by some images."""
        self._progress.update(task, advance=images, description=description)

    def end(self, task: TaskID) -> None:
        """Take a bar away."""
        self._progress.remove_task(task)

    def track(self, batches: Iterable[Batch], description: str, images: int) -> Iterator[Batch]:
        """Pass batches on, with a bar that is there as long as they last."""
        task = self.task(description, images)
        try:
            for batch in batches:
                yield batch
                self.advance(task, len(batch[1]))
        finally:
            self.end(task)
