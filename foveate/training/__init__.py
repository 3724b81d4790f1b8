"""Training: the recipe, the loop, the cache of a frozen trunk, and the metrics.

Lazy, as the facade is: ``foveate.training.Recipe`` can be read without torch.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
