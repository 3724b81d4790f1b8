"""One switch for all fused operations: ``foveate.use_fused(False)``, or FOVEATE_FUSED=0 in the environment."""

from __future__ import annotations

import os

__all__ = ["enabled", "use_fused"]

_on = os.environ.get("FOVEATE_FUSED", "1").strip().lower() not in ("0", "false", "no", "off")


class _Previous(int):
    """The setting before: a truth value, and a context that brings it back."""

    def __enter__(self) -> _Previous:
        return self

    def __exit__(self, *_: object) -> None:
        use_fused(bool(self))

    def __repr__(self) -> str:
        return repr(bool(self))


def use_fused(on: bool = True) -> _Previous:
    """Let the mechanisms take fused operations where there are some, or not.

    Args:
        on: False: every mechanism computes its plain definition in PyTorch.

    Returns:
        The setting before, as a truth value. Used in a ``with`` statement it comes back at the end::

            foveate.use_fused(False)              # from here on
            with foveate.use_fused(False): ...    # in this block

    The environment variable ``FOVEATE_FUSED=0`` does the same from the start. The setting is one for all threads.
    """
    global _on
    previous, _on = _on, bool(on)
    return _Previous(previous)


def enabled() -> bool:
    """Whether fused operations may be used."""
    return _on
