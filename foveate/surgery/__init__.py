"""Where attention can go, putting it in, taking it out, and keeping the result."""

from foveate.surgery.checkpoint import load, save
from foveate.surgery.insert import attentions, insert, plan_of, remove
from foveate.surgery.sites import Site, sites

__all__ = ["Site", "attentions", "insert", "load", "plan_of", "remove", "save", "sites"]
