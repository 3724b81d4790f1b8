"""What the parts of a run share."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.progress import ProgressBar
from foveate.training.distributed import ProcessGroup
from foveate.training.input.feature_cache import FeatureCache
from foveate.training.recipes.recipe import Recipe
from foveate.training.run_folder import RunFolder

__all__ = ["RunContext"]


@dataclass(frozen=True)
class RunContext:
    """How a run trains, on which processes, what it shows and where it writes.

    Args:
        recipe: how to train.
        group: the processes of the run.
        bar: shows the progress.
        cache: of decoded images and of a frozen trunk's features.
        folder: for checkpoints and results, or None.
        until_epoch: pause after so many of the recipe's epochs; None: train to the end.
    """

    recipe: Recipe
    group: ProcessGroup
    bar: ProgressBar
    cache: FeatureCache
    folder: RunFolder | None
    until_epoch: int | None = None
