"""Where attention can go, putting it in, taking it out, and keeping the result."""

from foveate.networks import create_model
from foveate.surgery.checkpoint import load, save
from foveate.surgery.insert import attentions, insert, plan_of, remove
from foveate.surgery.planned import foveate_planned
from foveate.surgery.presets import PRESETS
from foveate.surgery.sites import Site, sites

# ``create_model`` stands here, too: asked for from here, it knows the presets, which are networks with a plan.
# Importing ``foveate_planned`` registers it with timm, which builds saved models by it.
__all__ = [
    "PRESETS",
    "Site",
    "attentions",
    "create_model",
    "foveate_planned",
    "insert",
    "load",
    "plan_of",
    "remove",
    "save",
    "sites",
]
