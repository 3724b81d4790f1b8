"""The networks of this folder by name: the folder is the list, and each file registers its networks with timm.

A file calls timm's ``register_model`` as timm's own files do, so that ``timm.create_model`` builds them, too.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import timm

__all__ = ["names"]

for _file in pkgutil.iter_modules([str(Path(__file__).parent)]):
    importlib.import_module(f"foveate.networks.{_file.name}")


def names() -> tuple[str, ...]:
    """The networks that foveate adds to timm's, sorted.

    The presets, networks with a plan, are among them when ``foveate.surgery`` has been imported: it registers them.
    """
    own = (
        name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("foveate.networks.")
    )
    return tuple(sorted(own))
