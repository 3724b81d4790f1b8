"""What a network costs, what its plan adds and takes away, and the memory that training takes."""

from foveate.accounting.cost import Cost, ModuleCost, cost
from foveate.accounting.memory import training_memory

__all__ = ["Cost", "ModuleCost", "cost", "training_memory"]
