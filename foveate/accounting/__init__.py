"""What a network costs, and what its plan adds and takes away."""

from foveate.accounting.cost import Cost, cost

__all__ = ["Cost", "cost"]
