"""``explain``: images in, maps out, and the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from foveate.errors import FoveateError, near
from foveate.explanations.attention import attention_maps, readers
from foveate.explanations.cam import cam
from foveate.explanations.gradcam import gradcam
from foveate.explanations.gradcam_pp import gradcam_pp
from foveate.explanations.hirescam import hirescam
from foveate.explanations.layers import Layer, find_layer
from foveate.explanations.result import Explanation, Map
from foveate.explanations.sources import Images, OneImage
from foveate.networks.class_names import class_index, class_names
from foveate.progress import track
from foveate.scores import predicted_classes
from foveate.surgery.record import unwrapped

__all__ = ["METHODS", "OF_A_CLASS", "explain"]

OF_A_CLASS: dict[str, Callable[..., tuple[Tensor, Map]]] = {
    "cam": cam,
    "gradcam": gradcam,
    "gradcam++": gradcam_pp,
    "hirescam": hirescam,
}
METHODS = ("attention", *OF_A_CLASS)
Found = tuple[Tensor, list[Map], list[tuple[str, Tensor]]]


def explain(
    model: nn.Module,
    images: OneImage | Sequence[OneImage] | Tensor,
    method: str = "attention",
    *,
    target: int | str | Sequence[int | str] | None = None,
    layer: str | None = None,
    image_size: int | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> Explanation:
    """Show what a network looks at. The model, its gradients and the random state stay as they are.

    Args:
        model: a classifier that gives (B, classes) logits.
        images: a path, a PIL image, the bytes of an image file, or a list of these; or a normalised float tensor
            (B, C, H, W). A path is a file, a folder (the images in it and below), or a pattern such as "dogs/*.jpg".
        method: "attention": the attention modules' own maps. "gradcam", "gradcam++", "hirescam": of a class, by
            gradients; "cam": of a class, exactly, for networks that end in global average pooling and one linear layer.
        target: the class to explain, by index or by the name that the model gives it, or one for each image; without it
            the predicted class. For "attention" only where there is a map for each class.
        layer: the dotted name of the layer to look at; without it the last feature map. For methods with gradients.
        image_size: the side, in pixels, of what the network sees; without it the model's own.
        batch_size: images in one pass.
        progress: show a bar.

    Returns:
        The maps, the predictions and the pictures: ``.save("dog.png")`` draws them, ``.npz("dog.npz")`` keeps the
        numbers.

    Raises:
        FoveateError: the method, the layer or the class does not exist, an image cannot be read, the model has no
            attention to show or does not fit the method, or an option does not belong to the method.
    """
    if method not in METHODS:
        raise FoveateError(f"no method is called {method!r}; {near(method, METHODS)}")
    if batch_size < 1:
        raise FoveateError(f"batch_size={batch_size}: at least one image goes through at a time")
    model = unwrapped(model)  # hooks do not run inside what torch.compile wraps
    _check_options(model, method, target, layer)
    given = Images(model, images, image_size)
    classes = _one_for_each(model, target, len(given))
    look: Callable[[Tensor, list[int] | None], Found] | None = None
    parts: list[Found] = []
    pictures: list[Image.Image] = []
    for start in track(range(0, len(given), batch_size), "looking", progress):
        batch, shown = given.part(start, start + batch_size)
        look = look or _looker(model, method, batch, layer)
        parts.append(look(batch, classes and classes[start : start + batch_size]))
        pictures += shown
    logits = torch.cat([part[0].float().cpu() for part in parts])
    scores = logits.softmax(dim=1)
    predictions = predicted_classes(logits)
    probabilities = scores.gather(1, predictions[:, None])[:, 0]
    chosen = predictions if classes is None else torch.tensor(classes)
    maps = [_joined(same) for same in zip(*(part[1] for part in parts), strict=True)]
    if method != "attention":
        maps = [Map(one.name, one.values, one.module, chosen) for one in maps]
    channels = tuple(
        (min((name for name, _ in same), key=len), torch.cat([weights for _, weights in same]))
        for same in zip(*(part[2] for part in parts), strict=True)
    )
    targets = chosen if any(one.targets is not None for one in maps) else None
    labels = class_names(model, logits.shape[1])
    _require_names(target, labels, logits.shape[1])
    return Explanation(
        method=method,
        names=given.names,
        pictures=tuple(pictures),
        maps=tuple(maps),
        channels=channels,
        predictions=predictions,
        probabilities=probabilities,
        targets=targets,
        labels=labels,
        sources=given.files,
        scores=scores,
    )


def _require_names(target: object, labels: tuple[str, ...], count: int) -> None:
    """Refuse a class by name where the names that the model carries are not those of its outputs."""
    named = isinstance(target, str) or (
        isinstance(target, list | tuple) and any(isinstance(one, str) for one in target)
    )
    if named and not labels:
        raise FoveateError(
            f"target={target!r}: the model has {count} classes and carries another number of class names: give an index"
        )


def _check_options(model: nn.Module, method: str, target: object, layer: str | None) -> None:
    if layer is not None and method in ("attention", "cam"):
        what = "a module's own map" if method == "attention" else "CAM, which reads the last feature map"
        raise FoveateError(f"layer= does not change {what}: leave it out, or use method='gradcam'")
    if method == "attention" and target is not None and not any(one.per_class for one in readers(model)):
        raise FoveateError("target= does not change a module's own map: leave it out, or use method='gradcam'")


def _looker(
    model: nn.Module, method: str, first: Tensor, layer: str | None
) -> Callable[[Tensor, list[int] | None], Found]:
    """The method as a function of a batch and its classes."""
    if method == "attention":
        return lambda batch, classes: attention_maps(model, batch, classes)
    where: Layer = find_layer(model, first, layer)

    def look(batch: Tensor, classes: list[int] | None) -> Found:
        logits, found = OF_A_CLASS[method](model, batch, where, classes)
        return logits, [found], []

    return look


def _joined(same: tuple[Map, ...]) -> Map:
    """The parts of one map; a note of one part alone, such as "changes nothing", is left out."""
    name = min((one.name for one in same), key=len)
    targets = [one.targets for one in same if one.targets is not None]
    return Map(name, torch.cat([one.values for one in same]), same[0].module, torch.cat(targets) if targets else None)


def _one_for_each(
    model: nn.Module, target: int | str | Sequence[int | str] | Tensor | None, count: int
) -> list[int] | None:
    if target is None:
        return None
    if isinstance(target, Tensor):
        target = target.tolist()
    given = [target] * count if isinstance(target, int | str) else list(target)
    classes = [class_index(model, each) if isinstance(each, str) else each for each in given]
    if len(classes) != count or any(not isinstance(index, int) or isinstance(index, bool) for index in classes):
        raise FoveateError(
            f"target={target!r}: give one class, by index or name, or one for each of the {count} images"
        )
    return classes
