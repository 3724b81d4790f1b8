"""Networks by name: timm's, torchvision's, those that foveate adds, and real weights that come as packages."""

from foveate.networks.create import Origin, create_model, origin_of
from foveate.networks.registration import names

__all__ = ["Origin", "create_model", "names", "origin_of"]
