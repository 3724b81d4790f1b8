"""Networks by name: timm's, torchvision's, and real weights that come as packages."""

from foveate.networks.create import Origin, create_model, origin_of

__all__ = ["Origin", "create_model", "origin_of"]
