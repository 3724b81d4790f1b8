"""The progress bar on stderr."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

__all__ = ["ProgressBar", "track"]

logger = logging.getLogger("foveate")
T = TypeVar("T")


class ProgressBar:
    """Bars on stderr with images per second and the time left, to be used in a ``with``.

    Args:
        show: without it nothing is written, and rich is not imported.
    """

    def __init__(self, show: bool) -> None:
        self.show = show
        self._began = time.perf_counter()
        self._bars: Any = None  # rich's, which is imported only to be shown
        if show:
            from rich import progress
            from rich.console import Console
            from rich.text import Text

            class Speed(progress.ProgressColumn):
                def render(self, task: progress.Task) -> Text:
                    speed = task.finished_speed or task.speed
                    return Text(f"{speed:.0f} images/s" if speed else "", style="progress.data.speed")

            columns = progress.BarColumn(), progress.MofNCompleteColumn(), Speed(), progress.TimeRemainingColumn()
            description = progress.TextColumn("{task.description}", markup=False)
            self._bars = progress.Progress(description, *columns, console=Console(stderr=True), transient=True)

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    @property
    def seconds(self) -> float:
        """Wall time since the bar was made."""
        return time.perf_counter() - self._began

    def line(self, text: str) -> None:
        """Write one line above the bars, and to the logger "foveate" at level INFO, shown or not."""
        logger.info(text)
        if self._bars:
            self._bars.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def task(self, description: str, total: int | None = None, done: int = 0) -> int:
        """Start a bar of a number of images (None: not known yet), of which some are done; gives its number."""
        return int(self._bars.add_task(description, total=total, completed=done)) if self._bars else 0

    def advance(self, task: int, images: int, description: str | None = None) -> None:
        """Move a bar on by some images."""
        if self._bars:
            self._bars.update(task, advance=images, description=description)

    def end(self, task: int) -> None:
        """Remove a bar."""
        if self._bars:
            self._bars.remove_task(task)

    def track(
        self, parts: Iterable[T], description: str, total: int, size: Callable[[T], int] = lambda _: 1
    ) -> Iterator[T]:
        """Pass parts on, with a bar that is there as long as they last; each is ``size`` of it forward."""
        task = self.task(description, total)
        try:
            for part in parts:
                yield part
                self.advance(task, size(part))
        finally:
            self.end(task)


def track(parts: Sequence[T], description: str, show: bool) -> Iterator[T]:
    """The parts of a sequence, with a bar where there are several and one is wanted."""
    with ProgressBar(show and len(parts) > 1) as bar:
        yield from bar.track(parts, description, len(parts))
