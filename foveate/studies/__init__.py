"""Studies on top of everything else: comparisons, evaluations, the papers' tables, their reports, the demonstration."""
