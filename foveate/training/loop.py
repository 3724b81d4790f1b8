"""A run from its first step, or the one where it was interrupted, to its end."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from foveate.io import state_digest
from foveate.kernels.waiting import SharedCores
from foveate.model_info import pretrained_config
from foveate.preserve import preserve_state
from foveate.surgery.insert import plan_of
from foveate.training.checkpoint import Position, read_choice, read_state, save_state
from foveate.training.context import RunContext
from foveate.training.fitted import Fit
from foveate.training.input.protocols import Loader, Pipeline
from foveate.training.input.sampler import Batch, Order, images_in
from foveate.training.metrics import Diverged
from foveate.training.optimizer import create_optimiser, learning_rate_factor, set_learning_rate
from foveate.training.speed.automatic import AUTO, choose, is_open
from foveate.training.tasks.task import Data, Task
from foveate.training.teacher.distillation import Teacher
from foveate.training.teacher.matching import match_replaced, pairs_of
from foveate.training.train_step import TrainStep

__all__ = ["Run"]

_LOOK_EVERY = 16  # steps between two looks at the losses on a GPU


class Run:
    """The epochs of one run: steps, evaluation, and what is kept.

    Args:
        model: adapted to the data, on its device.
        data: both splits.
        pipeline: the batches.
        task: what the model is trained for.
        context: recipe, processes, progress and folder.
        teacher: to learn from, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        pipeline: Pipeline,
        task: Task,
        context: RunContext,
        teacher: Teacher | None,
    ) -> None:
        self.model, self.pipeline, self.classes, self.teacher = model, pipeline, data.classes, teacher
        self.task, self.context, self.recipe, self.group = task, context, context.recipe, context.group
        self.bar, self.folder = context.bar, context.folder
        recipe, group = self.recipe, self.group
        of_head = task.head(model) if recipe.head_learning_rate_scale != 1 else ()
        head = [parameter for name in of_head for parameter in model.get_submodule(name).parameters()]
        self.optimiser = create_optimiser(model, head, recipe)
        self.prepared = group.accelerator.prepare_optimizer(self.optimiser)
        self.ema = ModelEmaV3(model, decay=recipe.ema_decay) if recipe.ema_decay is not None else None
        self.modules = {"model": model, **({"ema": self.ema.module} if self.ema else {})}
        self.judged: nn.Module = self.ema.module if self.ema else model
        self.cores = SharedCores()
        self.described = {
            "model": pretrained_config(model).get("architecture") or type(model).__name__,
            "plan": str(plan_of(model) or ""),
            "recipe": recipe.to_dict(),
            "data": {"name": data.name, "fingerprint": data.fingerprint, "classes": list(data.classes)},
            "processes": group.count,
            "teacher": state_digest(teacher.model.state_dict().items()) if teacher else "",
        }
        self.chosen: dict[str, str] = {}
        self.described |= {"chosen": self.chosen} if is_open(recipe) else {}

    def run(self) -> Fit[Any]:
        """Train from where the run stands to its end."""
        recipe, folder, group = self.recipe, self.folder, self.group
        position = self.begin()
        self.seconds_before = position.seconds
        val, evaluation = self.pipeline.val(), None
        until = min(recipe.epochs, self.context.until_epoch or recipe.epochs)
        if position.epoch < until:
            start = (position.epoch, position.step)
            train = self.pipeline.train()
            if recipe.matching_steps and start == (0, 0):
                self.match(train)
            sizes = {"accumulate": recipe.accumulate, "rank": group.rank, "processes": group.count}
            order = Order(train.count, recipe.batch_size, recipe.seed, recipe.epochs, start, **sizes)
            shared = (self.task, len(self.classes), self.ema, self.teacher)
            self.train_step = TrainStep(self.model, train, self.context, self.prepared, *shared)
            stream, done = iter(train.batches(order)), position.epoch * order.images_per_epoch + position.images
            stream = self.settle(stream, order)
            # What torch compiles has its number of threads written into it.
            fewer = recipe.threads == AUTO and self.train_step.device.type == "cpu" and not self.chosen.get("compile")
            self.cores = SharedCores(fewer_threads=fewer, say=self.bar.line)
            task = self.bar.task("", order.images_per_epoch * recipe.epochs, done)
            with self.cores:
                while position.epoch < until:
                    self.train_epoch(stream, position, order, task)
                    evaluation = self.end_epoch(position, val, order)
        evaluation = evaluation or self.evaluate(val)
        group.broadcast([self.judged])
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
            notes=self.task.notes(evaluation),
            chosen=self.chosen,
        )

    def match(self, train: Loader) -> None:
        """Bring attention in a block's place near to the block, before the first step."""
        pairs = pairs_of(self.model)
        for match in match_replaced(self.model, pairs, train, self.recipe) if pairs else ():
            self.bar.line(str(match))
        self.group.broadcast([self.model])
        if self.ema is not None:
            self.ema.set(self.model)

    def settle(self, stream: Iterator[Batch], order: Order) -> Iterator[Batch]:
        """Decide what the recipe leaves open, unless the run did so before; gives the same batches again."""
        if is_open(self.recipe) and not self.chosen:
            self.set_mode()
            stream, found = choose(self.recipe, self.train_step, stream, order, self.bar.line)
            self.chosen |= self.group.of_first(found)  # also in self.described
            if self.folder is not None:
                self.folder.write_args(self.described, self.recipe)
        if self.chosen:
            self.train_step.use(self.chosen["amp"], self.chosen["compile"])
        return stream

    def set_mode(self) -> None:
        """What is trained in training mode, what is frozen in evaluation mode."""
        self.model.train()
        for name in self.pipeline.frozen.modules:
            self.model.get_submodule(name).eval()

    def begin(self) -> Position:
        """Where the run stands, read from the folder; what the run is, written to it."""
        folder, position = self.folder, Position()
        digest = hashlib.sha256(json.dumps(self.described, sort_keys=True).encode()).hexdigest()
        has_state = folder is not None and folder.state.exists()
        self.group.check_equal("runs or output folders", f"{digest} {has_state}")
        if folder is not None:
            if has_state:
                self.chosen |= read_choice(folder.state)
                scaler = self.group.accelerator.scaler
                position = read_state(folder.state, self.modules, self.optimiser, self.described, scaler)
            elif folder.resume:
                self.bar.line(f"{folder.path} holds no checkpoint to resume from: starting at the beginning")
            self.group.wait()  # nobody writes before everybody has read
            folder.write_args(self.described, self.recipe)
        return position

    def train_epoch(self, stream: Iterator[Batch], position: Position, order: Order, task: int) -> None:
        """Do the steps of the epoch that are left."""
        recipe = self.recipe
        self.set_mode()
        self.bar.advance(task, 0, f"epoch {position.epoch + 1}/{recipe.epochs}")
        began = time.perf_counter() - position.train_seconds
        waiting: list[tuple[Tensor, int, float]] = []
        for at in range(position.step, order.steps_per_epoch):
            step = position.epoch * order.steps_per_epoch + at
            rate = set_learning_rate(self.optimiser, recipe, step, order.steps_per_epoch)
            loss = self.step(stream, order, position.epoch, at)
            waiting.append((loss, order.images(at), rate))
            save = recipe.checkpoint_every is not None and (step + 1) % recipe.checkpoint_every == 0
            if save or loss.device.type == "cpu" or len(waiting) == _LOOK_EVERY or at + 1 == order.steps_per_epoch:
                self.look(waiting, position, task)
                position.train_seconds = time.perf_counter() - began
            if save:
                self.save_state(position)

    def look(self, waiting: list[tuple[Tensor, int, float]], position: Position, task: int) -> None:
        """Account for steps that were done, and stop at the first loss that is not finite."""
        losses = torch.stack([loss.double() for loss, _, _ in waiting]).tolist()
        for loss, (_, images, rate) in zip(losses, waiting, strict=True):
            if not math.isfinite(loss):
                raise self.diverged(loss, position, rate)
            position.step += 1
            position.loss += loss * images
            position.images += images
            self.bar.advance(task, images)
        waiting.clear()

    def step(self, stream: Iterator[Batch], order: Order, epoch: int, at: int) -> Tensor:
        """One step of the optimiser; returns the loss ()."""
        self.cores.look("train")
        return self.train_step.step(stream, order, epoch, at)

    def evaluate(self, val: Loader) -> Any:
        """Measure the weights on the validation images, each process a share of them."""
        group = self.group
        group.broadcast([self.judged])  # BatchNorm's running statistics are each process's own
        batches = val.whole(self.recipe.batch_size, group.rank, group.count)
        with preserve_state(self.judged, evaluation=True):
            shown = self.bar.track(batches, "evaluating", -(-val.count // group.count), images_in)
            return self.task.evaluate(
                lambda inputs: self.scores(val, inputs),
                shown,
                lambda rows: group.gather(rows, val.count),
                self.classes,
            )

    def scores(self, val: Loader, inputs: Tensor) -> Any:
        """What the judged weights give for a batch of the validation images."""
        self.cores.look("evaluate")
        return val.forward(self.judged, inputs)

    def end_epoch(self, position: Position, val: Loader, order: Order) -> Any:
        """Evaluate where it is due, write a row of history, and keep what is worth keeping."""
        began, folder, task = time.perf_counter(), self.folder, self.task
        done = position.epoch + 1
        due = done % self.recipe.evaluate_every == 0 or done in (self.recipe.epochs, self.context.until_epoch)
        evaluation = self.evaluate(val) if due else None
        last_step = (position.epoch + 1) * order.steps_per_epoch - 1
        best = max((row[task.best] for row in position.history if task.best in row), default=-1.0)
        values = {
            "epoch": position.epoch,
            "train_loss": position.loss / position.images,
            **({} if evaluation is None else task.row(evaluation)),
            "lr": self.recipe.learning_rate * learning_rate_factor(self.recipe, last_step, order.steps_per_epoch),
            "seconds": round(position.train_seconds + time.perf_counter() - began, 3),
            "images_per_second": round(position.images / position.train_seconds, 3),
        }
        row = {name: values[name] for name in task.columns if name in values}
        position.end_epoch(row)
        if folder is not None:
            info = {**self.described, **row}
            if evaluation is not None and row[task.best] > best:
                folder.save_model("model_best", self.judged, info)
            folder.save_model("last", self.judged, info)
            folder.write_summary(position.history, task.columns)
            if evaluation is not None:
                folder.write_evaluation(evaluation.to_dict(self.classes))
        if self.group.accelerator.trackers:
            self.group.accelerator.log({key: value for key, value in row.items() if key != "epoch"}, row["epoch"])
        # The state comes last: a run that is killed before it does this epoch again, to the same result.
        self.save_state(position)
        lost = f"eval loss {row['eval_loss']:.4f}  " if "eval_loss" in row else ""
        judged = "" if evaluation is None else f"{lost}{task.line(row)}  "
        self.bar.line(
            f"epoch {position.epoch}/{self.recipe.epochs}  train loss {row['train_loss']:.4f}  {judged}"
            f"{row['images_per_second']:.0f} images/s  {row['seconds']:.0f} s"
        )
        return evaluation

    def save_state(self, position: Position) -> None:
        """Write the checkpoint that ``resume`` reads."""
        position.seconds = self.seconds_before + self.bar.seconds
        if self.folder is not None:
            scaler = self.group.accelerator.scaler
            self.folder.save_state(save_state, self.modules, self.optimiser, position, self.described, scaler)

    def diverged(self, loss: float, position: Position, rate: float) -> Diverged:
        """The error for a loss that is not finite."""
        kept = f"; the last good checkpoint is kept in {self.folder.path}" if self.folder is not None else ""
        return Diverged(
            f"the loss is {loss} in epoch {position.epoch + 1}, step {position.step + 1}: take a learning rate lower "
            f"than {rate:g}, or gradient_clip=1{kept}"
        )
