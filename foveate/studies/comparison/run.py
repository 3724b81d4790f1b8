"""One run of a grid: what it is, where it is kept, and its result.

A run's folder is named by the plan, the seed and a hash over everything that decides its result: network, plan, recipe,
data. Another recipe or other data are therefore other runs, in other folders. What does not decide the result (the
number of workers, how often a checkpoint is written) is not in the hash.

result.json               the scores, the cost, where and how long; it is written last: a run that has it is finished
predictions.safetensors   predictions and labels of every validation image, (N,) each; of segmentation its counts, of
                          detection its boxes
attempt.N/                what ``fit`` writes; N is the number of the claim that finished it
claim.N                   who worked on it
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from foveate.accounting.cost import Cost
from foveate.errors import FoveateError
from foveate.io import JsonObject, state_digest, write_atomically
from foveate.model_info import attributes_of
from foveate.studies.comparison.measure import Measure
from foveate.training.recipes.recipe import Recipe

__all__ = ["Networks", "Run", "RunResult", "digest_of", "read_result", "scores_of", "write_result"]

_BEFORE = {"classifier": "by name", "matching_steps": 0, "threads": "all"}
_FREE = ("workers", "checkpoint_every", "evaluate_every")
_RESULT, _PREDICTIONS = "result{}.json", "predictions{}.safetensors"


@dataclass(frozen=True)
class Run:
    """Everything that decides a run's result.

    Args:
        network: a name and whether its ImageNet weights are taken, or a digest of structure and weights.
        plan: in the notation, or "none".
        start: as in ``insert``.
        recipe: with the run's seed.
        data: the data set's fingerprint.
        code: a digest of the user's own code in network, plan and teacher; None where all is foveate's, timm's and
            torch's.
        teacher: a digest of structure and weights of a teacher from a folder, in the place of the folder's name.
    """

    network: str
    plan: str
    start: str | None
    recipe: Recipe
    data: str
    code: str | None = None
    teacher: str | None = None

    @property
    def identity(self) -> JsonObject:
        """The run as plain values, which the hash is over."""
        recipe = {key: value for key, value in self.recipe.to_dict().items() if key not in _FREE}
        if self.teacher is not None:
            recipe["teacher"] = self.teacher
        for name, before in _BEFORE.items():
            if recipe[name] == before:
                del recipe[name]  # as runs were described before there was a choice
        found = {"network": self.network, "plan": self.plan, "start": self.start, "recipe": recipe, "data": self.data}
        return found if self.code is None else found | {"code": self.code}

    @property
    def name(self) -> str:
        """Of its folder: words, seed, hash."""
        words = re.sub(r"[^A-Za-z0-9.]+", "_", self.plan).strip("_")[:60]
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        return f"{words}-seed{self.recipe.seed}-{digest[:12]}"


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a run gave.

    Args:
        scores: every number of its evaluation, by the name that it has there; empty when it diverged.
        cost: of the trained network at the recipe's image size.
        predictions: (N, ...), what the measure keeps of each validation image: its class, int32.
        labels: (N,) int32, the true classes; of segmentation (0,), of detection (N, K), its objects of each class.
        seconds: wall time of the training.
        images_per_second: training images per second of training steps.
        made_with: versions, machine, threads.
        diverged: why the run broke off, or None.
        folder: what ``fit`` wrote, or None.
    """

    scores: Mapping[str, float]
    cost: Cost
    predictions: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    seconds: float
    images_per_second: float
    made_with: Mapping[str, str]
    diverged: str | None = None
    folder: Path | None = None


def scores_of(evaluation: Any, measure: Measure) -> dict[str, float]:
    """Every number of an evaluation, whatever numbers it has; shares in percent."""
    found = {f.name: getattr(evaluation, f.name) for f in dataclasses.fields(evaluation)}
    numbers = {name: value for name, value in found.items() if isinstance(value, float | int)}
    return {name: 100 * value if measure.in_percent(name) else float(value) for name, value in numbers.items()}


def digest_of(model: nn.Module) -> str:
    """SHA-256 in hex over a network's structure, what its modules hold, its parameters and its buffers.

    What modules hold are their attributes, such as rates, strides and timm's description of the images. Which
    parameters are frozen is in it, too; what the methods of torch's, timm's and foveate's classes do is not.
    """
    structure = re.sub(r" at 0x[0-9a-f]+", "", repr(model))
    tensors = model.state_dict()
    for name, module in model.named_modules():
        structure += f" {name} {attributes_of(module)}"
        tensors |= {f"{name}.{key}": buffer for key, buffer in module.named_buffers(recurse=False)}
    structure += f" {[name for name, parameter in model.named_parameters() if not parameter.requires_grad]}"
    return state_digest(tensors.items(), header=structure)


def _files(folder: Path, until_epoch: int | None) -> tuple[Path, Path]:
    """Where a result and its predictions are; those of a paused run have the number of epochs in their names."""
    part = "" if until_epoch is None else f".{until_epoch}"
    return folder / _RESULT.format(part), folder / _PREDICTIONS.format(part)


def write_result(folder: Path, run: Run, result: RunResult, until_epoch: int | None = None) -> None:
    """Keep a result; the file that says that the run is finished, or paused, is written last.

    Raises:
        FoveateError: the folder cannot be written.
    """
    tensors = save_tensors({"predictions": result.predictions, "labels": result.labels})
    written, predictions = _files(folder, until_epoch)
    write_atomically(predictions, tensors)
    cost = {f.name: v for f in dataclasses.fields(Cost) if type(v := getattr(result.cost, f.name)) is int}
    content = {
        "run": run.identity,
        "scores": dict(result.scores),
        "cost": cost,
        "seconds": result.seconds,
        "images_per_second": result.images_per_second,
        "made_with": dict(result.made_with),
        "diverged": result.diverged,
        "folder": result.folder.name if result.folder else None,
        "predictions_sha256": hashlib.sha256(tensors).hexdigest(),
    }
    write_atomically(written, json.dumps(content, indent=1).encode())


def read_result(folder: Path, until_epoch: int | None = None) -> RunResult | None:
    """A finished run's result, or that of its pause after so many epochs; None when it is not so far.

    Raises:
        FoveateError: the files are damaged; the message says what to delete.
    """
    file, predictions = _files(folder, until_epoch)
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FoveateError(f"cannot read {file}: {error.strerror or error}") from error
    try:
        content = json.loads(text)
        raw = predictions.read_bytes()
        if hashlib.sha256(raw).hexdigest() != content["predictions_sha256"]:
            raise ValueError("its predictions are not those that were written")
        tensors = load_tensors(raw)
        names = {f.name for f in dataclasses.fields(Cost)}
        return RunResult(
            content["scores"],
            Cost(**{name: value for name, value in content["cost"].items() if name in names}),
            tensors["predictions"],
            tensors["labels"],
            content["seconds"],
            content["images_per_second"],
            content["made_with"],
            content["diverged"],
            folder / content["folder"] if content["folder"] else None,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        damage = f"the result in {folder} is damaged ({type(error).__name__}: {error})"
        raise FoveateError(f"{damage}: delete {file}, and the run is finished anew") from error


class Networks(Mapping[str, nn.Module]):
    """For each label the trained network of the first seed, read from its folder when it is first asked for.

    A run that was taken from a table of finished runs has no weights: its label is in ``absent`` and is not iterated
    over, and who asks for its network gets a FoveateError.

    Args:
        readers: for each label what reads its network.
        absent: the labels whose network is not there.
    """

    def __init__(self, readers: Mapping[str, Callable[[], nn.Module]], absent: Collection[str] = ()) -> None:
        self._readers, self.absent = readers, tuple(absent)

    def __getitem__(self, label: str) -> nn.Module:
        return self._readers[label]()

    def __iter__(self) -> Iterator[str]:
        return (label for label in self._readers if label not in self.absent)

    def __contains__(self, label: object) -> bool:
        return label in self._readers and label not in self.absent

    def __len__(self) -> int:
        return len(self._readers) - len(self.absent)
