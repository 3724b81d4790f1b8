"""A family of plans on a network: which sites its patterns mean."""

from __future__ import annotations

from torch import nn

from foveate.families.family import Family
from foveate.spec import Plan
from foveate.surgery.sites import list_sites, resolve
from foveate.surgery.trace import input_size_of, probe

__all__ = ["resolve_family"]


def resolve_family(
    model: nn.Module, family: str | Plan | Family, input_size: int | tuple[int, ...] | None = None
) -> Family:
    """A family with the names of a network's sites in the place of patterns such as ``block:replaceable``.

    Args:
        model: any network that ``sites`` takes; it is left as found. One that carries a plan is looked at without it.
        family: the notation, such as ``"ulsam(groups=1|4) replacing any of block:replaceable"``.
        input_size: the image size at which sites are looked for, as in ``sites``.

    Returns:
        A family whose plans can be counted and listed. Two patterns for one site are one alternative of it.

    Raises:
        FoveateError: the family cannot be read, a pattern means no site (the nearest are named), or the model cannot
            run on an image of this size.
    """
    read = Family.parse(family)
    size = input_size_of(model, input_size)
    traces, copied = probe(model, size, plain=True)
    listed = list_sites(copied, traces, size)
    return read.replaced(lambda pattern: resolve(pattern, listed, traces))
