"""Learning from a teacher's scores.

Hinton et al., Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import FoveateError, first_line
from foveate.images import Preprocess
from foveate.model_info import device_and_dtype
from foveate.networks.class_names import class_positions
from foveate.networks.create import create_model
from foveate.preserve import preserve_state
from foveate.surgery.saving.checkpoint import load
from foveate.training.recipes.recipe import Recipe

__all__ = ["Teacher", "is_saved", "open_teacher"]


def is_saved(teacher: str) -> bool:
    """Whether a recipe's ``teacher`` is a folder, and no model's name."""
    return os.sep in teacher or Path(teacher).is_dir()


class Teacher:
    """Scores of a trained model, and the loss that brings a student near to them.

    Args:
        model: the teacher, in eval mode.
        recipe: its ``distillation`` (share w of the loss) and ``temperature`` (T).
        preprocess: of the student: the teacher sees the student's images, normalised as it is used to.
        classes: of the data, in order. A teacher that carries class names may have more, and in another order.

    Raises:
        FoveateError: the teacher does not know a class, or cannot run on the student's images.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, preprocess: Preprocess, classes: tuple[str, ...]) -> None:
        self.model, self.share, self.temperature = model, recipe.distillation, recipe.temperature
        own = Preprocess.of(model, preprocess.size[0])
        if len(own.mean) != len(preprocess.mean):
            raise FoveateError(f"the teacher takes {len(own.mean)} channels and the student {len(preprocess.mean)}")
        device, self.dtype = device_and_dtype(model)
        shape = (1, -1, 1, 1)
        there, here = (torch.tensor([p.std, p.mean], device=device) for p in (own, preprocess))
        self._scale = (here[0] / there[0]).view(shape)
        self._shift = ((here[1] - there[1]) / there[0]).view(shape)
        self.columns: tuple[int, ...] | None = None
        try:
            given = self.scores(torch.zeros((2, len(own.mean), *preprocess.size), device=device))
        except Exception as error:
            raise FoveateError(f"the teacher cannot run on {preprocess.size} images: {first_line(error)}") from error
        if given.ndim != 2:
            raise FoveateError(f"the teacher gives {tuple(given.shape[1:])} for an image, not one score per class")
        try:
            self.columns = class_positions(model, classes, given.shape[1])
        except FoveateError as error:
            raise FoveateError(f"the teacher does not fit the data: {error}") from error

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """The teacher's scores (B, K) for images (B, C, H, W) as the student gets them, in the data's order."""
        given: Tensor = self.model((images * self._scale + self._shift).to(self.dtype))
        return given.float() if self.columns is None else given.float()[:, list(self.columns)]

    def loss(self, scores: Tensor, images: Tensor, other: Tensor) -> Tensor:
        """(1 - w) other + w T^2 KL(teacher at T || student at T), averaged over the batch.

        Args:
            scores: the student's (B, K).
            images: (B, C, H, W), as the student got them.
            other: the loss on the labels.
        """
        with torch.autocast(scores.device.type, enabled=False):
            student = F.log_softmax(scores.float() / self.temperature, dim=1)
            teacher = F.log_softmax(self.scores(images) / self.temperature, dim=1)
            divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return (1 - self.share) * other + self.share * self.temperature**2 * divergence


@contextlib.contextmanager
def open_teacher(
    model: nn.Module | None, recipe: Recipe, preprocess: Preprocess, classes: tuple[str, ...], device: torch.device
) -> Iterator[Teacher | None]:
    """The teacher that a run asks for, on the device; a given model is left as found.

    Args:
        model: the teacher itself, or None: the recipe's ``teacher``.
        recipe: names the teacher.
        preprocess: of the student.
        classes: of the data.
        device: of the training.

    Raises:
        FoveateError: there is no such model, or it does not fit the data.
    """
    if model is None and not recipe.teacher:
        yield None
        return
    if model is None:
        saved = is_saved(recipe.teacher)
        model = load(recipe.teacher) if saved else create_model(recipe.teacher, pretrained=True)
    home, _ = device_and_dtype(model)
    if home is None:
        raise FoveateError("the teacher has no parameters: give a trained model")
    try:
        with preserve_state(model.to(device), evaluation=True):
            yield Teacher(model, recipe, preprocess, classes)
    finally:
        model.to(home)
