"""The network that a user gave to be counted or measured."""

from __future__ import annotations

import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.surgery.record import unwrapped

__all__ = ["network_in"]


def network_in(given: object) -> nn.Module:
    """The network, out of what ``torch.compile`` and data parallelism put around it.

    Raises:
        FoveateError: it is no network, but perhaps the name of one.
    """
    if isinstance(given, nn.Module):
        return given if isinstance(given, torch.jit.ScriptModule) else unwrapped(given)
    hint = f": foveate.create_model({given!r}) makes one" if isinstance(given, str) else ""
    raise FoveateError(f"a network (torch.nn.Module) is wanted, not a {type(given).__name__}{hint}")
