"""Spatial attention for convolutional networks: put it in, train it, look at it, and learn what it bought."""

import importlib
import sys
import types

import lazy_loader

__version__ = "0.1.0"

_get, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(f"module 'foveate' has no attribute {name!r}")
    arguments = importlib.import_module("foveate.arguments")
    if name not in __all__:
        raise arguments.no_attribute(name, __all__)
    found = _get(name)
    if isinstance(found, types.FunctionType):
        found = globals()[name] = arguments.checked_call(name, found)
    return found


if "timm" in sys.modules:  # then torch is there, too, and timm.create_model is to know our networks
    importlib.import_module("foveate.surgery")
