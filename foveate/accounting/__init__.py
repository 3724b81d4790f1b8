"""What a network costs, what its plan adds and takes away, the memory of training, and time beside a reference."""

from foveate.accounting.cost import Cost, ModuleCost, cost
from foveate.accounting.dropped import dropped
from foveate.accounting.latency import Latency, latency
from foveate.accounting.memory import training_memory

__all__ = ["Cost", "Latency", "ModuleCost", "cost", "dropped", "latency", "training_memory"]
