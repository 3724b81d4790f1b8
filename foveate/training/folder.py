"""The output folder of a run, laid out as timm lays it out, each file replaced in one step.

args.yaml              recipe, plan, model and data: what the run is
summary.csv            a line per epoch
last/, model_best/     models that ``foveate.load`` opens
training.safetensors   everything that ``resume`` needs
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from torch import nn

from foveate.errors import FoveateError

__all__ = ["COLUMNS", "RunFolder", "write_atomically"]

COLUMNS = (
    "epoch",
    "train_loss",
    "eval_loss",
    "eval_top1",
    "eval_top5",
    "lr",
    "eval_macro_f1",
    "seconds",
    "images_per_second",
)
STATE = "training.safetensors"
_OF_A_RUN = (STATE, "summary.csv", "last", "model_best")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at every moment it is either the old one or the new one, whole, and on the disk.

    Raises:
        FoveateError: it cannot be written; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise FoveateError(f"cannot write {path}: {error.strerror or error}; what was there is untouched") from error
    finally:
        temporary.unlink(missing_ok=True)


class RunFolder:
    """The folder of one run.

    Args:
        path: made when it does not exist.
        resume: go on with a run that the folder holds; without one, start.

    Raises:
        FoveateError: the path is a file, cannot be made, or holds a run and ``resume`` is False.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume: bool) -> None:
        self.path, self.resume = Path(path), resume
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise FoveateError(f"the output {self.path} is a file: name a folder") from None
        except OSError as error:
            raise FoveateError(f"cannot make the output folder {self.path}: {error.strerror or error}") from error
        held = [name for name in _OF_A_RUN if (self.path / name).exists()]
        if held and not resume:
            raise FoveateError(
                f"{self.path} already holds a run ({', '.join(held)}): --resume continues it, or name another folder"
            )
        for stale in [*self.path.glob(".*.tmp"), *self.path.glob("*/.*.tmp")]:
            stale.unlink(missing_ok=True)

    @property
    def state(self) -> Path:
        """The file that ``resume`` reads."""
        return self.path / STATE

    def write_args(self, run: Mapping[str, Any]) -> None:
        """Say what the run is, for people."""
        text = yaml.safe_dump(dict(run), sort_keys=False, allow_unicode=True)
        write_atomically(self.path / "args.yaml", text.encode())

    def write_summary(self, history: Iterable[Mapping[str, float]]) -> None:
        """Write the whole ``summary.csv`` anew."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        write_atomically(self.path / "summary.csv", text.getvalue().encode())

    def save_model(self, name: str, model: nn.Module, info: Mapping[str, object]) -> None:
        """Keep a model as ``last`` or ``model_best``."""
        from foveate.surgery.checkpoint import save

        save(model, self.path / name, info)
