"""Training a classifier: everything is checked first, then a run goes from its step to its end."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.model_info import device_and_dtype
from foveate.preserve import preserve_state
from foveate.progress import ProgressBar
from foveate.training.context import RunContext
from foveate.training.distributed import ProcessGroup, accelerated, rank_and_count
from foveate.training.fitted import Fit
from foveate.training.freeze import freeze_parameters
from foveate.training.input.feature_cache import FeatureCache
from foveate.training.loop import Run
from foveate.training.recipes.optimiser_name import check_optimiser
from foveate.training.recipes.recipe import Recipe
from foveate.training.restore import memory_advice, restored_afterwards, synchronised
from foveate.training.run_folder import RunFolder
from foveate.training.speed.automatic import AUTO
from foveate.training.tasks.choose import AnyData, open_for_task
from foveate.training.tasks.task import Data
from foveate.training.teacher.distillation import open_teacher

if TYPE_CHECKING:
    from foveate.data.detection import DetectionData
    from foveate.data.segmentation import SegmentationData
    from foveate.data.split import ImageData
    from foveate.training.tasks.detection_metrics import DetectionEvaluation
    from foveate.training.tasks.segmentation_metrics import SegmentationEvaluation

__all__ = ["Fit", "fit"]

logger = logging.getLogger("foveate")


class _Options(TypedDict, total=False):
    output: str | os.PathLike[str] | None
    resume: bool
    until_epoch: int | None
    progress: bool
    cache: FeatureCache | None
    teacher: nn.Module | None
    tracker: Any  # of Accelerate's, or its name
    timeout_seconds: float


@overload
def fit(
    model: nn.Module, data: SegmentationData, recipe: Recipe | None = None, **options: Unpack[_Options]
) -> Fit[SegmentationEvaluation]: ...


@overload
def fit(
    model: nn.Module, data: DetectionData, recipe: Recipe | None = None, **options: Unpack[_Options]
) -> Fit[DetectionEvaluation]: ...


@overload
def fit(
    model: nn.Module,
    data: ImageData | str | os.PathLike[str],
    recipe: Recipe | None = None,
    **options: Unpack[_Options],
) -> Fit: ...


def fit(
    model: nn.Module,
    data: AnyData,
    recipe: Recipe | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    until_epoch: int | None = None,
    progress: bool = True,
    cache: FeatureCache | None = None,
    teacher: nn.Module | None = None,
    tracker: Any = None,
    timeout_seconds: float = 600,
) -> Fit[Any]:
    """Train a classifier, on images with label maps a segmentation network, on images with boxes a detector, in place.

    A classifier of other classes than the data is replaced, unless the recipe's ``classifier`` says otherwise; where
    the model carries class names, classes are told apart by name. ``model.pretrained_cfg`` then says how
    images are prepared and what the classes are called. Everything else of the model (mode, gradients, device,
    ``requires_grad``, memory format) and the global random numbers are left as found; after an error the weights, too.

    In a program that torchrun started, the processes train one model together: each step on ``batch_size`` images of
    every process, with the mean gradient over all of them.

    Args:
        model: a classifier of RGB or grey images, or a network of ``create_segmenter`` or ``create_detector``; with or
            without inserted attention.
        data: from ``open_data``, ``open_segmentation`` or ``open_detection``, or what they open: a folder of images
            beside label maps is for segmentation, one of images with boxes for detection.
        recipe: how to train; without it, the defaults.
        output: a folder for checkpoints and results, in timm's layout; without it nothing is written.
        resume: go on with the run that ``output`` holds, to the same weights, bit for bit on a CPU, as without the
            interruption; a finished run gives its result; without a run there, start.
        until_epoch: pause after so many of the recipe's epochs, to go on later with ``resume``; the learning rate
            follows the whole recipe. The result is that of the weights at the pause.
        progress: show bars and a line per epoch on stderr.
        cache: to share prepared images and a frozen trunk's features among several calls.
        teacher: a trained model to learn from, instead of the recipe's ``teacher``; left as found.
        tracker: log each epoch by one of Accelerate's trackers, such as "tensorboard", which must be installed.
        timeout_seconds: with several processes, how long one waits for another before it gives up.

    Returns:
        History, evaluation of the final weights, speed.

    Raises:
        FoveateError: recipe, model, data or folder do not fit each other, or an image cannot be read.
        Diverged: the loss or a weight is NaN or infinite; the last good checkpoint is kept.
        OutOfMemory: there is not enough memory for a step.
        ProcessLost: another process of the run has ended or hangs.
    """
    recipe = recipe or Recipe()
    if until_epoch is not None and (until_epoch < 1 or output is None):
        raise FoveateError(
            f"until_epoch={until_epoch} pauses a run after at least one epoch, and needs an output folder"
        )
    rank = rank_and_count()[0]
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    with (
        ProgressBar(progress and rank == 0) as bar,
        preserve_state(devices=gpus),
        memory_advice(recipe.batch_size),
    ):
        ready = bar.task("getting ready")
        check_optimiser(recipe.optimiser)
        opened, task = open_for_task(data, model)
        task.check(recipe, teacher is not None or bool(recipe.teacher))
        _require_images(opened)
        _require_float32(model)
        folder = RunFolder(output, resume=resume, writes=rank == 0) if output is not None else None
        options = {"timeout_seconds": timeout_seconds, "tracker": tracker, "folder": output}
        amp = "no" if recipe.amp == AUTO else recipe.amp
        with accelerated(amp, **options) as accelerator, restored_afterwards(model, accelerator.device):
            group = ProcessGroup(accelerator)
            context = RunContext(recipe, group, bar, FeatureCache() if cache is None else cache, folder, until_epoch)
            _announce(context)
            preprocess = task.adapt(model, opened, recipe, bar.line)
            group.broadcast([model])
            pipeline = task.pipeline(model, opened, preprocess, context)
            with (
                freeze_parameters(model, pipeline.frozen),
                open_teacher(teacher, recipe, preprocess, opened.classes, accelerator.device) as opened_teacher,
                _synchronised(model, context),
            ):
                run = Run(model, opened, pipeline, task, context, opened_teacher)
                bar.end(ready)
                with _tracked(accelerator, tracker, run.described):
                    found = run.run()
    for note in found.notes if rank == 0 else ():  # below the bars
        logger.warning("%s", note)
    return found


def _require_images(data: Data) -> None:
    for split, least in ((data.train, 2), (data.val, 1)):
        if len(split) < least:
            raise FoveateError(
                f"{data.name} has {len(split)} {split.name} images, and training needs at least {least}: add images"
            )


def _require_float32(model: nn.Module) -> None:
    dtype = device_and_dtype(model)[1]
    if dtype != torch.float32:
        raise FoveateError(
            f"the model is in {str(dtype).removeprefix('torch.')}, and fit trains weights in float32: give "
            "model.float(); with amp='bf16' the steps compute in bfloat16"
        )


def _announce(context: RunContext) -> None:
    recipe, group, bar = context.recipe, context.group, context.bar
    changes = " ".join(f"{name}={value!r}" for name, value in recipe.changes().items())
    bar.line(f"recipe: {changes or 'the defaults'}")
    if group.count > 1:
        images = recipe.batch_size * recipe.accumulate * group.count
        kind = "all processes" if recipe.sync_bn else "each process"
        bar.line(
            f"{group.count} processes on {group.accelerator.device.type}, {images} images in a step, mean gradient, "
            f"BatchNorm over the images of {kind}"
        )


def _synchronised(model: nn.Module, context: RunContext) -> contextlib.AbstractContextManager[None]:
    if not context.recipe.sync_bn or context.group.count == 1:
        return contextlib.nullcontext()
    if context.group.accelerator.device.type != "cuda":
        raise FoveateError("sync_bn works between GPUs only: take sync_bn=False")
    return synchronised(model)


@contextlib.contextmanager
def _tracked(accelerator: Any, tracker: Any, run: dict[str, Any]) -> Iterator[None]:
    if tracker is None:
        yield
        return
    named = {"model": run["model"], "plan": run["plan"], "data": run["data"]["name"], **run["recipe"]}
    accelerator.init_trackers("foveate", config={key: value for key, value in named.items() if value is not None})
    try:
        yield
    finally:
        for one in accelerator.trackers:
            one.finish()
