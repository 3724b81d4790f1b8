"""Studies on top of everything else: plans side by side, the report, the demonstration."""

from foveate.studies.comparison import Comparison, Row, compare
from foveate.studies.demonstration import demo
from foveate.studies.summary import report

__all__ = ["Comparison", "Row", "compare", "demo", "report"]
