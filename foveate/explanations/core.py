"""``explain``: images in, maps out, and the model as it was."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from foveate.errors import FoveateError, near
from foveate.explanations.attention import attention_maps
from foveate.explanations.gradcam import check_logits, gradcam, last_feature_map
from foveate.explanations.result import Explanation, Map
from foveate.images import Preprocess, open_image

__all__ = ["METHODS", "explain"]

METHODS = ("attention", "gradcam")
AT_ONCE = 8  # images per forward pass, so that a long list does not fill the memory

OneImage = str | os.PathLike[str] | bytes | Image.Image
Found = tuple[Any, list[Map], list[tuple[str, Tensor]]]


def explain(
    model: nn.Module,
    images: OneImage | Sequence[OneImage] | Tensor,
    method: str = "attention",
    *,
    target: int | Sequence[int] | None = None,
    layer: str | None = None,
    image_size: int | None = None,
) -> Explanation:
    """Show what a network looks at. The model, its gradients and the random state stay as they are.

    Args:
        model: a classifier that gives (B, classes) logits.
        images: a path, a PIL image, the bytes of an image file, or a list of these; or a normalised float tensor
            (B, C, H, W).
        method: "attention": the inserted mechanisms' own maps. "gradcam": Grad-CAM of Selvaraju et al. 2017.
        target: the class to explain, by index, or one for each image; without it the predicted class. For "gradcam".
        layer: the dotted name of the layer to look at; without it the last feature map. For "gradcam".
        image_size: the side, in pixels, of what the network sees; without it the model's own.

    Returns:
        The maps, the predictions and the pictures: ``.save("dog.png")`` draws them, ``.npz("dog.npz")`` keeps the
        numbers.

    Raises:
        FoveateError: the method, the layer or the class does not exist, an image cannot be read, the model has no
            inserted attention to show, or an option does not belong to the method.
    """
    if method not in METHODS:
        raise FoveateError(f"no method is called {method!r}; {near(method, METHODS)}")
    if method == "attention" and (target is not None or layer is not None):
        word = "layer" if target is None else "target"
        raise FoveateError(f"{word}= does not change a mechanism's own map: leave it out, or use method='gradcam'")
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps: hooks do not run inside the wrapper
    batch, names, pictures = _prepare(model, images, image_size)
    classes = _one_for_each(target, len(batch))
    look = _looker(model, method, batch, classes, layer)
    parts = [look(start) for start in range(0, len(batch), AT_ONCE)]
    maps = tuple(
        Map(same[0].name, torch.cat([found.values for found in same]), same[0].module)
        for same in zip(*(part[1] for part in parts), strict=True)
    )
    channels = tuple(
        (same[0][0], torch.cat([weights for _, weights in same]))
        for same in zip(*(part[2] for part in parts), strict=True)
    )
    logits = torch.cat([check_logits(part[0]).float().cpu() for part in parts])
    probabilities, predictions = logits.softmax(dim=1).max(dim=1)
    targets = None
    if method == "gradcam":
        targets = predictions if classes is None else torch.tensor(classes)
    labels = _labels(model, logits.shape[1])
    return Explanation(method, names, pictures, maps, channels, predictions, probabilities, targets, labels)


def _looker(
    model: nn.Module, method: str, batch: Tensor, classes: list[int] | None, layer: str | None
) -> Callable[[int], Found]:
    """The method as a function of the first index of a part of the batch."""
    if method == "attention":
        return lambda start: attention_maps(model, batch[start : start + AT_ONCE])
    where = layer if layer is not None else last_feature_map(model, batch[:1])

    def look(start: int) -> Found:
        part = slice(start, start + AT_ONCE)
        logits, found = gradcam(model, batch[part], classes and classes[part], where)
        return logits, [found], []

    return look


def _prepare(model: nn.Module, images: Any, image_size: int | None) -> tuple[Tensor, tuple[str, ...], tuple[Any, ...]]:
    """The images as one batch on the model's device, with names and pictures."""
    if isinstance(images, Tensor):
        if image_size is not None:
            raise FoveateError("image_size= is for image files: a tensor is taken as it is; leave it out")
        _check_tensor(model, images)
        batch = images.detach()
        pictures = _pictures(model, batch.float().cpu())
        names: list[str] = ["image"] * len(batch)
    else:
        sources = list(images) if isinstance(images, Sequence) and not isinstance(images, str | bytes) else [images]
        if not sources:
            raise FoveateError("there is no image to explain: the list is empty; give a path or a list of paths")
        preprocess = Preprocess.of(model, image_size)
        opened = [open_image(source) for source in sources]
        batch = torch.stack([preprocess(image) for image in opened])
        pictures = tuple(preprocess.view(image) for image in opened)
        names = [Path(source).stem if isinstance(source, str | os.PathLike) else "image" for source in sources]
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return batch.to(like.device, like.dtype), tuple(names), pictures


def _check_tensor(model: nn.Module, images: Tensor) -> None:
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise FoveateError(
            f"cannot explain a {images.dtype} tensor of shape {tuple(images.shape)}: "
            "it must be normalised float (B, C, H, W); one image is image[None]"
        )
    if not images.isfinite().all():
        raise FoveateError("cannot explain a tensor with NaN or infinite pixels: clean the images first")
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is not None and first.in_channels != images.shape[1]:
        raise FoveateError(f"the images have {images.shape[1]} channels, the model takes {first.in_channels}")


def _pictures(model: nn.Module, batch: Tensor) -> tuple[Image.Image, ...]:
    """Normalised images as pictures: the normalisation undone for 1 or 3 channels, else their mean, stretched."""
    if batch.shape[1] in (1, 3):
        preprocess = Preprocess.of(model)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
        batch = batch * std + mean
    else:
        batch = batch.mean(dim=1, keepdim=True)
        low, high = batch.amin(dim=(1, 2, 3), keepdim=True), batch.amax(dim=(1, 2, 3), keepdim=True)
        batch = (batch - low) / (high - low).clamp_min(1e-12)
    pixels = (batch.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).movedim(1, -1)
    return tuple(Image.fromarray(image.contiguous().numpy()) for image in pixels)


def _one_for_each(target: Any, count: int) -> list[int] | None:
    if target is None:
        return None
    if isinstance(target, Tensor):
        target = target.tolist()
    classes = [target] * count if isinstance(target, int) else list(target)
    if len(classes) != count or any(not isinstance(index, int) or isinstance(index, bool) for index in classes):
        raise FoveateError(f"target={target!r}: give one class index, or one for each of the {count} images")
    return classes


def _labels(model: nn.Module, count: int) -> tuple[str, ...]:
    """The names of the classes, from the model's own words, or ImageNet's for weights that timm marks so."""
    config = getattr(model, "pretrained_cfg", None)
    config = config if isinstance(config, dict) else {}
    names = config.get("label_names") or ()
    if not names and count == 1000 and re.search(r"in1k\b", str(config.get("tag", ""))):
        from timm.data import ImageNetInfo

        names = [text.split(",")[0] for text in ImageNetInfo("imagenet-1k").label_descriptions()]
    return tuple(map(str, names)) if len(names) == count else ()
