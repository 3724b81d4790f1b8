"""``faithfulness``: which method's map says most about the prediction, measured on a data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from foveate.arguments import at_least
from foveate.errors import FoveateError, near
from foveate.explanations.attention import attention_maps, readers
from foveate.explanations.explain import METHODS, OF_A_CLASS
from foveate.explanations.layers import find_layer
from foveate.explanations.measures import drop, enlarged, iou, perturbation, pointing
from foveate.images import Preprocess
from foveate.model_info import device_and_dtype
from foveate.preserve import preserve_state
from foveate.scores import check_logits, predicted_classes
from foveate.studies.evaluation.faithfulness_result import Faithfulness
from foveate.studies.evaluation.in_memory import Data, LoadedImages, load_images, outputs_of
from foveate.surgery.record import unwrapped
from foveate.training.metrics import Diverged

__all__ = ["BASELINES", "MEASURES", "faithfulness"]

BASELINES = ("random", "centre")
MEASURES = ("insertion", "deletion", "drop", "increase", "pointing", "iou")
_GRID = 7  # positions of a random map along a side, as of the last feature map of most networks

Maps = Callable[[Tensor, Tensor], Tensor]  # images, classes -> (B, H, W)


def faithfulness(
    model: nn.Module | Mapping[str, nn.Module],
    data: Data,
    methods: Sequence[str] = ("gradcam", "gradcam++", "hirescam"),
    measures: Sequence[str] | None = None,
    *,
    masks: Tensor | None = None,
    boxes: Tensor | None = None,
    limit: int | None = 100,
    steps: int = 8,
    batch_size: int = 32,
    image_size: int | None = None,
    seed: int = 0,
) -> Faithfulness:
    """Measure how much the maps of several methods say about the prediction. The models are left as found.

    A random map and a Gaussian in the centre stand beside the methods: what is no better than these tells nothing.

    Args:
        model: a classifier, or several by name, such as the same network with several plans.
        data: what ``open_data`` takes, of which the validation part is read; a part of a data set; or batches of
            normalised images (B, C, H, W) and labels (B,).
        methods: of ``explain``; "attention" is the mean of all own maps, each summing to 1. Always for the class that
            the model predicts.
        measures: "insertion", "deletion", "drop", "increase"; with masks or boxes "pointing" and "iou" as well.
            Without a value all that the data allows.
        masks: (N, H, W) bool, where the object is in each image as the network sees it; N images in the order of
            the data.
        boxes: (N, 4) x0, y0, x1, y1 in such pixels, instead of masks.
        limit: at most so many images, in proportion to the classes; None for all.
        steps: into how many parts the pixels are divided for insertion and deletion.
        batch_size: images in one pass.
        image_size: side of the images in pixels; without it the model's own.
        seed: of the choice of images, the random maps and the intervals.

    Returns:
        The measures of each method and model, image by image.

    Raises:
        FoveateError: a method or a measure does not exist or does not fit a model, or the data cannot be
            read or has a class that a model does not know.
        Diverged: the model's scores are NaN or infinite.
    """
    models = dict(model) if isinstance(model, Mapping) else {"": model}
    models = {name: unwrapped(one) for name, one in models.items()}
    chosen = _checked(methods, measures, placed=masks is not None or boxes is not None)
    batch_size, steps = at_least(1, batch_size=batch_size), at_least(1, steps=steps)
    loaded = load_images(data, next(iter(models.values())), limit=limit, image_size=image_size, seed=seed)
    for network in models.values():
        outputs_of(network, loaded)  # each must know the classes of the data
    _masks(masks, boxes, loaded)  # before the first of them has run
    values: dict[tuple[str, str, str], Tensor] = {}
    for name, network in models.items():
        shown = loaded
        if loaded.source is not None and Preprocess.of(network, image_size) != loaded.source.preprocess:
            # The same images as this network is used to them: another mean, another size.
            shown = load_images(data, network, limit=limit, image_size=image_size, seed=seed)
        where = _masks(masks, boxes, shown)
        found = _of_model(network, shown, [*methods, *BASELINES], chosen, where, steps, batch_size, seed)
        values |= {(name, method, measure): numbers for (method, measure), numbers in found.items()}
    return Faithfulness(loaded.name, len(loaded), tuple(models), (*methods, *BASELINES), chosen, values, seed)


def _checked(methods: Sequence[str], measures: Sequence[str] | None, *, placed: bool) -> tuple[str, ...]:
    for method in methods:
        if method not in METHODS:
            raise FoveateError(f"no method is called {method!r}; {near(method, METHODS)}")
    if measures is None:
        return MEASURES if placed else MEASURES[:4]
    for measure in measures:
        if measure not in MEASURES:
            raise FoveateError(f"no measure is called {measure!r}; {near(measure, MEASURES)}")
        if measure in MEASURES[4:] and not placed:
            raise FoveateError(f"{measure} compares maps with the object's place: give masks= or boxes=")
    return tuple(measures)


def _masks(masks: Tensor | None, boxes: Tensor | None, loaded: LoadedImages) -> Tensor | None:
    """(N, H, W) bool, in the order in which the images are loaded."""
    height, width = loaded.inputs.shape[2:]
    if masks is None and boxes is not None:
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise FoveateError(f"boxes of shape {tuple(boxes.shape)}: give (N, 4), x0, y0, x1, y1 in pixels")
        x0, y0, x1, y1 = (side[:, None, None] for side in boxes.unbind(dim=1))
        rows, columns = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
        masks = (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)
    if masks is None:
        return None
    last = int(loaded.positions.max())
    if masks.ndim != 3 or len(masks) <= last or masks.shape[1:] != (height, width):
        raise FoveateError(
            f"masks of shape {tuple(masks.shape)}: give one of {height} x {width} pixels for each image of the data"
        )
    return masks[loaded.positions].bool()


def _of_model(
    model: nn.Module,
    loaded: LoadedImages,
    methods: Sequence[str],
    measures: Sequence[str],
    masks: Tensor | None,
    steps: int,
    batch_size: int,
    seed: int,
) -> dict[tuple[str, str], Tensor]:
    device, dtype = device_and_dtype(model)
    generator = torch.Generator().manual_seed(seed)
    first = next(loaded.batches(batch_size, device))[0].to(dtype)
    makers = {method: _maker(model, method, first, generator) for method in methods}
    found: dict[tuple[str, str], list[Tensor]] = {}
    start = 0

    def scores(images: Tensor) -> Tensor:
        with preserve_state(model, evaluation=True, no_grad=True):
            return torch.cat([check_logits(model(part.clone())).float() for part in torch.split(images, batch_size)])

    def probabilities(images: Tensor) -> Tensor:
        return scores(images).softmax(dim=1)

    for batch, _ in loaded.batches(batch_size, device):
        images = batch.to(dtype)
        logits = scores(images)
        if not logits.isfinite().all():
            raise Diverged("the model's scores are NaN or infinite: there is nothing to explain")
        classes = predicted_classes(logits)
        empty, blurred = torch.zeros_like(images), _blurred(images)
        # Of the pictures themselves, which no map changes.
        ends = [p.gather(1, classes[:, None])[:, 0] for p in (logits.softmax(1), *map(probabilities, (empty, blurred)))]
        inside = None if masks is None else masks[start : start + len(images)].to(images.device)
        start += len(images)
        for method, make in makers.items():
            maps = make(images, classes)
            new: dict[str, Tensor] = {}
            if "deletion" in measures:
                new["deletion"] = perturbation(probabilities, images, empty, maps, classes, steps, (ends[0], ends[1]))
            if "insertion" in measures:
                new["insertion"] = perturbation(
                    probabilities, blurred, images, maps, classes, steps, (ends[2], ends[0])
                )
            if {"drop", "increase"} & set(measures):
                new["drop"], new["increase"] = drop(probabilities, images, empty, maps, classes)
            if inside is not None:
                new["pointing"], new["iou"] = pointing(maps, inside), iou(maps, inside)
            for measure in measures:
                found.setdefault((method, measure), []).append(new[measure].double().cpu())
    return {key: torch.cat(parts) for key, parts in found.items()}


def _maker(model: nn.Module, method: str, first: Tensor, generator: torch.Generator) -> Maps:
    """A method as a function of images and classes that gives maps of the images' size."""
    height, width = first.shape[2:]
    if method == "random":
        return lambda images, _: enlarged(
            torch.rand(len(images), _GRID, _GRID, generator=generator).to(images.device), height, width
        )
    if method == "centre":
        rows = torch.linspace(-1, 1, height)[:, None].square() + torch.linspace(-1, 1, width).square()
        gaussian = (-2 * rows).exp()  # a standard deviation of half of the half side
        return lambda images, _: gaussian.to(images.device).expand(len(images), -1, -1)
    if method == "attention":
        return lambda images, classes: _own_map(model, images, classes)
    layer = find_layer(model, first)

    def make(images: Tensor, classes: Tensor) -> Tensor:
        _, found = OF_A_CLASS[method](model, images, layer, classes.tolist())
        return enlarged(found.values.to(images.device), height, width)

    return make


def _own_map(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """The mean of all own maps, each summing to 1 before it is enlarged; of maps by class those of the classes."""
    per_class = any(one.per_class for one in readers(model))
    _, maps, _ = attention_maps(model, images, classes.tolist() if per_class else None)
    # Of a module with a map for each class the first one is the class's own.
    first = {one.module: one for one in reversed(maps) if one.targets is not None}
    maps = [one for one in maps if one.targets is None or one is first[one.module]]
    if not maps:
        raise FoveateError("the attention of this model weighs channels and has no spatial map: leave it out")
    total = torch.zeros(len(images), *images.shape[2:])
    for one in maps:
        # A map of both signs, as of a dot product, has no share until its least value is 0.
        values = one.values - one.values.amin(dim=(1, 2), keepdim=True).clamp_max(0)
        sums = values.sum(dim=(1, 2), keepdim=True)
        share = torch.where(sums > 0, values / sums.clamp_min(1e-30) * values[0].numel(), 1.0)
        total += enlarged(share, images.shape[2], images.shape[3])
    return (total / len(maps)).to(images.device)


def _blurred(images: Tensor) -> Tensor:
    """Blurred so far that fine structure is gone: a Gaussian with a standard deviation of a sixteenth of the side."""
    from torchvision.transforms.v2 import functional as transform

    deviation = min(images.shape[2:]) / 16
    blurred: Tensor = transform.gaussian_blur(images, kernel_size=2 * math.ceil(2 * deviation) + 1, sigma=deviation)
    return blurred
