"""Pictures decoded on threads while the network computes, in their order, a few ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from foveate.errors import FoveateError
from foveate.images import Preprocess, pixels_of
from foveate.prediction.inputs import Item

__all__ = ["decoded"]

Outcome = Tensor | FoveateError


def decoded(
    items: Iterable[Item], preprocess: Preprocess, ahead: int, threads: int | None = None
) -> Generator[tuple[Item, Outcome], None, None]:
    """Each item with its pixels, uint8 (C, H, W), or with the error that says why there are none.

    The items are asked for in the caller's thread; Pillow decodes and resizes outside Python's lock.

    Args:
        items: in their order.
        preprocess: resizes and crops.
        ahead: how many are decoded, or being decoded, before they are asked for: the memory that it takes.
        threads: how many decode; without it one for each core, at most 4.
    """
    pending: deque[tuple[Item, Future[Outcome]]] = deque()
    pool = ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1), "foveate-decode")
    try:
        for item in items:
            if item.changeable:
                future: Future[Outcome] = Future()
                future.set_result(_pixels(item, preprocess))
            else:
                future = pool.submit(_pixels, item, preprocess)
            pending.append((item, future))
            # What is decoded already is passed on at once: a camera's pictures are not held back.
            while pending and (len(pending) > ahead or pending[0][0].changeable):
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
    finally:
        # Without waiting: a stream that was left may be closed by the collector on one of these very threads.
        pool.shutdown(wait=False, cancel_futures=True)


def _pixels(item: Item, preprocess: Preprocess) -> Outcome:
    try:
        return pixels_of(preprocess.view(item.load()), preprocess)
    except FoveateError as error:
        return error
