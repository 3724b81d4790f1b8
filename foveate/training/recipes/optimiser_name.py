"""Which optimisers there are: timm's that the loop can drive."""

from __future__ import annotations

from foveate.errors import FoveateError, near

__all__ = ["check_optimiser"]


def check_optimiser(name: str) -> None:
    """Make sure that timm has an optimiser of this name, and that the loop can drive it.

    Raises:
        FoveateError: it has none (the nearest names are shown), or it needs second derivatives.
    """
    import timm.optim  # a recipe is read without torch

    names = timm.optim.list_optimizers()
    if name not in names:
        raise FoveateError(f"no optimiser is called {name!r}; {near(name, names)}")
    if timm.optim.get_optimizer_info(name).second_order:
        raise FoveateError(f"the optimiser {name!r} needs second derivatives, which fit does not make: take 'adamw'")
