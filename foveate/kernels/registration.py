"""Operations are registered with torch; with a torch that cannot, the plain definitions serve, and one line says so."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

import torch

__all__ = ["library", "registering", "unregistered"]

logger = logging.getLogger("foveate")

unregistered: dict[str, str] = {}
"""Family of operations -> why this torch does not have them."""


def library() -> torch.library.Library:
    """A part of torch's namespace ``foveate``; what it registers lasts as long as it does."""
    make: Callable[[str, str], torch.library.Library] = torch.library.Library  # torch does not annotate it
    return make("foveate", "FRAGMENT")


@contextlib.contextmanager
def registering(family: str) -> Iterator[None]:
    """Around all that registers a family's operations. After a failure none of them is ever chosen.

    Args:
        family: as in ``dispatch.choose``.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the interface is torch's, and a later one may fail in any way
        if family not in unregistered:
            detail = next(iter(str(error).splitlines()), "") or type(error).__name__
            unregistered[family] = f"torch {torch.__version__} does not register the operations: {detail}"
            logger.info("no fused operations for %s, the plain ones serve: %s", family, unregistered[family])
