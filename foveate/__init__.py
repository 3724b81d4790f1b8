"""Spatial attention for convolutional networks: put it in, train it, look at it, and learn what it bought."""

import importlib
import sys

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

if "timm" in sys.modules:  # then torch is there, too, and timm.create_model is to know our networks
    importlib.import_module("foveate.surgery")
