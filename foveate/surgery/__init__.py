"""Where attention can go, putting it in, taking it out, and keeping the result.

Importing this room registers with timm the presets and the entry point by which timm builds saved models.
"""

from foveate.networks import create_model
from foveate.surgery.presets import PRESETS
from foveate.surgery.saving.timm_entrypoint import foveate_planned

# ``create_model`` stands here, too: asked for from here, it knows the presets, which are networks with a plan.
__all__ = ["PRESETS", "create_model", "foveate_planned"]
