"""The training loop: short, on Accelerate, and the same again after an interruption."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import TaskID
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from foveate.data.opening import open_data
from foveate.errors import FoveateError
from foveate.surgery.classifier import classifier_of
from foveate.surgery.insert import plan_of
from foveate.surgery.probe import eval_mode
from foveate.training.cache import FeatureCache
from foveate.training.classifier import adapt
from foveate.training.folder import RunFolder
from foveate.training.freeze import freeze_parameters
from foveate.training.guard import accelerated, kept_random, lent
from foveate.training.loaders import Batch, Order, mix, of_whole
from foveate.training.metrics import Diverged, Evaluation, measure, predict
from foveate.training.objective import Objective
from foveate.training.optim import check_optimiser, create_optimiser, learning_rate_factor, set_learning_rate
from foveate.training.progress import Report
from foveate.training.recipe import Recipe
from foveate.training.state import Position, read_state, save_state
from foveate.training.supply import Feed, Supply

if TYPE_CHECKING:
    from foveate.data.split import ImageData

__all__ = ["Fit", "fit"]


@dataclass(frozen=True, eq=False)
class Fit:
    """What a training run gave.

    Args:
        history: a row per epoch, with the columns of ``summary.csv``.
        evaluation: of the final weights on the validation images.
        seconds: wall time of the whole run, the parts before a ``resume`` included.
        images_per_second: training images per second of training steps.
        folder: the output folder, or None.
        recipe: the recipe.
    """

    history: tuple[dict[str, float], ...]
    evaluation: Evaluation
    seconds: float
    images_per_second: float
    folder: Path | None
    recipe: Recipe = field(repr=False)


def fit(
    model: nn.Module,
    data: ImageData | str | os.PathLike[str],
    recipe: Recipe | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
    cache: FeatureCache | None = None,
) -> Fit:
    """Train a classifier, in place.

    A classifier with another number of classes than the data is replaced. ``model.pretrained_cfg`` then says how
    images are prepared and what the classes are called. Everything else of the model (mode, gradients, device,
    ``requires_grad``, memory format) and the global random numbers are left as found; after an error the weights, too.

    Args:
        model: a classifier of RGB or grey images, with or without inserted attention.
        data: from ``open_data``, or what it opens.
        recipe: how to train; without it, the defaults.
        output: a folder for checkpoints and results, in timm's layout; without it nothing is written.
        resume: go on with the run that ``output`` holds, to the same weights, bit for bit on a CPU, as without the
            interruption; a finished run gives its result; without a run there, start.
        progress: show bars and a line per epoch on stderr.
        cache: to share prepared images and a frozen trunk's features among several calls.

    Returns:
        History, evaluation of the final weights, speed.

    Raises:
        FoveateError: recipe, model, data or folder do not fit each other, or an image cannot be read.
        Diverged: the loss or a weight is NaN or infinite; the last good checkpoint is kept.
    """
    recipe = recipe or Recipe()
    with Report(progress) as report, kept_random():
        ready = report.task("getting ready")
        check_optimiser(recipe.optimiser)
        data = open_data(data)
        _require_images(data)
        folder = RunFolder(output, resume=resume) if output is not None else None
        with accelerated(recipe.amp) as accelerator, lent(model, accelerator.device):
            preprocess = adapt(model, data.classes, recipe)
            supply = Supply(model, data, recipe, preprocess, report, FeatureCache() if cache is None else cache)
            with freeze_parameters(model, supply.frozen):
                loop = _Loop(model, data, recipe, supply, accelerator, report, folder)
                report.end(ready)
                return loop.run()


def _require_images(data: ImageData) -> None:
    for split, least in ((data.train, 2), (data.val, 1)):
        if len(split) < least:
            raise FoveateError(
                f"{data.name} has {len(split)} {split.name} images, and training needs at least {least}: add images"
            )


class _Loop:
    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        recipe: Recipe,
        supply: Supply,
        accelerator: Any,
        report: Report,
        folder: RunFolder | None,
    ) -> None:
        self.model, self.recipe, self.supply = model, recipe, supply
        self.accelerator, self.report, self.folder = accelerator, report, folder
        of_head = classifier_of(model) if recipe.head_learning_rate_scale != 1 else ()
        head = [parameter for name in of_head for parameter in model.get_submodule(name).parameters()]
        self.optimiser = create_optimiser(model, head, recipe)
        self.stepper = accelerator.prepare_optimizer(self.optimiser)
        self.ema = ModelEmaV3(model, decay=recipe.ema_decay) if recipe.ema_decay is not None else None
        self.modules = {"model": model, **({"ema": self.ema.module} if self.ema else {})}
        self.judged: nn.Module = self.ema.module if self.ema else model
        config = getattr(model, "pretrained_cfg", {})
        named = config.get("architecture") if isinstance(config, dict) else getattr(config, "architecture", None)
        self.described = {
            "model": named or type(model).__name__,
            "plan": str(plan_of(model) or ""),
            "recipe": recipe.to_dict(),
            "data": {"name": data.name, "fingerprint": data.fingerprint, "classes": list(data.classes)},
        }

    def run(self) -> Fit:
        """Train from where the run stands to its end."""
        recipe, folder, position = self.recipe, self.folder, Position()
        if folder is not None:
            if folder.state.exists():
                scaler = self.accelerator.scaler
                position = read_state(folder.state, self.modules, self.optimiser, self.described, scaler)
            elif folder.resume:
                self.report.line(f"{folder.path} holds no checkpoint to resume from: starting at the beginning")
            folder.write_args(self.described)
        self.seconds_before = position.seconds
        val, evaluation = self.supply.val(), None
        if position.epoch < recipe.epochs:
            start = (position.epoch, position.step)
            train = self.supply.train()
            order = Order(train.count, recipe.batch_size, recipe.seed, recipe.epochs, start)
            stream, done = train.batches(order), position.epoch * order.images_per_epoch + position.images
            bar = self.report.task("", order.images_per_epoch * recipe.epochs, done)
            while position.epoch < recipe.epochs:
                self.train_epoch(train, stream, position, order, bar)
                evaluation = self.end_epoch(position, val, order)
        evaluation = evaluation or self.evaluate(val)
        if self.ema is not None:
            self.model.load_state_dict(self.ema.module.state_dict())
        speeds = [row["images_per_second"] for row in position.history]
        return Fit(
            history=tuple(position.history),
            evaluation=evaluation,
            seconds=position.seconds,
            images_per_second=len(speeds) / sum(1 / speed for speed in speeds) if speeds else 0.0,
            folder=folder.path if folder is not None else None,
            recipe=recipe,
        )

    def train_epoch(self, train: Feed, stream: Iterator[Batch], position: Position, order: Order, bar: TaskID) -> None:
        """Do the steps of the epoch that are left."""
        recipe = self.recipe
        self.model.train()
        for name in self.supply.frozen.modules:
            self.model.get_submodule(name).eval()
        self.report.advance(bar, 0, f"epoch {position.epoch + 1}/{recipe.epochs}")
        began = time.perf_counter() - position.train_seconds
        for inputs, labels in islice(stream, order.steps_per_epoch - position.step):
            step = position.epoch * order.steps_per_epoch + position.step
            rate = set_learning_rate(self.optimiser, recipe, step, order.steps_per_epoch)
            # What a step draws (dropout) depends on the step alone, so there is no random state to keep for a resume.
            torch.manual_seed(mix(recipe.seed, "step", step))
            loss = self.step(train, inputs, labels)
            if not math.isfinite(loss):
                raise self.diverged(loss, position, rate)
            position.step += 1
            position.loss += loss * len(labels)
            position.images += len(labels)
            position.train_seconds = time.perf_counter() - began
            self.report.advance(bar, len(labels))
            if recipe.checkpoint_every and (step + 1) % recipe.checkpoint_every == 0:
                self.save_state(position)

    def step(self, train: Feed, inputs: Tensor, labels: Tensor) -> float:
        """One step of the optimiser, unless the loss is not finite; returns the loss."""
        recipe, accelerator = self.recipe, self.accelerator
        objective = Objective(self.model, cached=train.trunk is not None)
        try:
            with accelerator.autocast(), objective.images():
                scores = train.forward(self.model, inputs)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise FoveateError(
                "BatchNorm over a 1x1 map cannot train on a batch of 1: take batch_size=2 or more"
            ) from error
        loss = objective.loss(scores, labels, recipe.label_smoothing)
        value = loss.item()
        if math.isfinite(value):
            accelerator.backward(loss)
            if recipe.gradient_clip is not None:
                accelerator.clip_grad_norm_(self.model.parameters(), recipe.gradient_clip)
            self.stepper.step()
            self.stepper.zero_grad()
            if self.ema is not None:
                self.ema.update(self.model)
        return value

    def evaluate(self, val: Feed) -> Evaluation:
        """Measure the weights on the validation images."""
        batches = val.batches(of_whole(val.count, self.recipe.batch_size))
        with eval_mode(self.judged):
            shown = self.report.track(batches, "evaluating", val.count)
            return measure(*predict(lambda inputs: val.forward(self.judged, inputs), shown))

    def end_epoch(self, position: Position, val: Feed, order: Order) -> Evaluation:
        """Evaluate, write a row of history, and keep what is worth keeping."""
        began, folder = time.perf_counter(), self.folder
        evaluation = self.evaluate(val)
        last_step = (position.epoch + 1) * order.steps_per_epoch - 1
        best = max((row["eval_top1"] for row in position.history), default=-1.0)
        row = {
            "epoch": position.epoch,
            "train_loss": position.loss / position.images,
            "eval_loss": evaluation.loss,
            "eval_top1": evaluation.top1,
            "eval_top5": evaluation.top5,
            "lr": self.recipe.learning_rate * learning_rate_factor(self.recipe, last_step, order.steps_per_epoch),
            "eval_macro_f1": evaluation.macro_f1,
            "seconds": round(position.train_seconds + time.perf_counter() - began, 3),
            "images_per_second": round(position.images / position.train_seconds, 3),
        }
        position.end_epoch(row)
        if folder is not None:
            info = {**self.described, **row}
            if evaluation.top1 > best:
                folder.save_model("model_best", self.judged, info)
            folder.save_model("last", self.judged, info)
            folder.write_summary(position.history)
        # The state comes last: a run that is killed before it does this epoch again, to the same result.
        self.save_state(position)
        self.report.line(
            f"epoch {position.epoch}/{self.recipe.epochs}  train loss {row['train_loss']:.4f}  "
            f"eval loss {row['eval_loss']:.4f}  top-1 {row['eval_top1']:.4f}  macro-F1 {row['eval_macro_f1']:.4f}  "
            f"{row['images_per_second']:.0f} images/s  {row['seconds']:.0f} s"
        )
        return evaluation

    def save_state(self, position: Position) -> None:
        """Write the checkpoint that ``resume`` reads."""
        position.seconds = self.seconds_before + self.report.seconds
        if self.folder is not None:
            state, scaler = self.folder.state, self.accelerator.scaler
            save_state(state, self.modules, self.optimiser, position, self.described, scaler)

    def diverged(self, loss: float, position: Position, rate: float) -> Diverged:
        """The error for a loss that is not finite."""
        kept = f"; the last good checkpoint is kept in {self.folder.path}" if self.folder is not None else ""
        return Diverged(
            f"the loss is {loss} in epoch {position.epoch + 1}, step {position.step + 1}: take a learning rate lower "
            f"than {rate:g}, or gradient_clip=1{kept}"
        )
