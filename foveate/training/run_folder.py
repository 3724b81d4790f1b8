"""The output folder of a run, laid out as timm lays it out, each file replaced in one step.

args.yaml              recipe, plan, model and data: what the run is
recipe.yaml            the recipe alone, to be used again
summary.csv            a line per epoch
evaluation.json        the last epoch's: every metric, each class, the confusion matrix
last/, model_best/     models that ``foveate.load`` opens
training.safetensors   everything that ``resume`` needs
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import yaml
from torch import nn

from foveate.errors import FoveateError
from foveate.io import csv_text, json_text, make_folder, remove_stale, write_atomically
from foveate.training.recipes.named import as_yaml
from foveate.training.recipes.recipe import Recipe

__all__ = ["RunFolder"]

STATE = "training.safetensors"
_OF_A_RUN = (STATE, "summary.csv", "last", "model_best")


class RunFolder:
    """The folder of one run.

    Args:
        path: made when it does not exist.
        resume: go on with a run that the folder holds; without one, start.
        writes: this process writes; of several, only one does.

    Raises:
        FoveateError: the path is a file, cannot be made, or holds a run and ``resume`` is False.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume: bool, writes: bool = True) -> None:
        self.path, self.resume, self.writes = Path(path), resume, writes
        if not writes:
            return
        make_folder(self.path)
        found = [name for name in _OF_A_RUN if (self.path / name).exists()]
        if found and not resume:
            raise FoveateError(
                f"{self.path} already holds a run ({', '.join(found)}): --resume continues it, or name another folder"
            )
        for part in (self.path, self.path / "last", self.path / "model_best"):
            remove_stale(part)

    @property
    def state(self) -> Path:
        """The file that ``resume`` reads."""
        return self.path / STATE

    def write_args(self, run: Mapping[str, object], recipe: Recipe) -> None:
        """Say what the run is, for people; and its recipe, for ``open_recipe``."""
        text = yaml.safe_dump(dict(run), sort_keys=False, allow_unicode=True)
        self._write("args.yaml", text)
        self._write("recipe.yaml", as_yaml(recipe))

    def _write(self, name: str, text: str) -> None:
        if self.writes:
            write_atomically(self.path / name, text)

    def save_state(self, save: Callable[..., None], *state: object) -> None:
        """Write the file that ``resume`` reads, by ``save(path, *state)``."""
        if self.writes:
            save(self.state, *state)

    def write_evaluation(self, found: Mapping[str, object]) -> None:
        """Write ``evaluation.json``."""
        self._write("evaluation.json", json_text(found) + "\n")

    def write_summary(self, history: Iterable[Mapping[str, float]], columns: tuple[str, ...]) -> None:
        """Write the whole ``summary.csv`` anew."""
        self._write("summary.csv", csv_text(list(history), columns))

    def save_model(self, name: str, model: nn.Module, info: Mapping[str, object]) -> None:
        """Keep a model as ``last`` or ``model_best``."""
        from foveate.surgery.saving.checkpoint import save

        if not self.writes:
            return
        save(model, self.path / name, info)
