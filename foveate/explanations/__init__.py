"""What a network looks at: one file per method, each (model, images) -> maps; one picture of them."""

from __future__ import annotations

from foveate.explanations.core import METHODS, explain
from foveate.explanations.result import Explanation, Map

__all__ = ["METHODS", "Explanation", "Map", "explain"]
