"""Studies on top of everything else: plans side by side, the report, the demonstration."""

from foveate.studies.compared import Comparison, Row, read_comparison
from foveate.studies.comparison import compare
from foveate.studies.demonstration import demo
from foveate.studies.summary import report

__all__ = ["Comparison", "Row", "compare", "demo", "read_comparison", "report"]
