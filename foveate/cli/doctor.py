"""The command ``foveate doctor``."""

from __future__ import annotations

import json as json_format

import foveate as fv

__all__ = ["doctor"]


def doctor(*, json: bool = False) -> None:
    """Show what a bug report needs: versions, kernels in use and why not, threads, GPU, compiler, extras.

    It always answers, with exit code 0: what is broken or missing is a line that says what, and what to do.

    Example: `foveate doctor`

    Args:
        json: print JSON.
    """
    found = fv.doctor()
    print(json_format.dumps(found.as_dict(), indent=2) if json else found)
