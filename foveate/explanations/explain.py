"""``explain``: images in, maps out, and the model as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from foveate.arguments import at_least, plain_values, whole_number
from foveate.dense import Detector, Segmenter
from foveate.errors import FoveateError, near
from foveate.explanations.attention import readers
from foveate.explanations.dense.detection import Boxes
from foveate.explanations.dense.objects import ImageObjects
from foveate.explanations.dense.segmentation import Region
from foveate.explanations.layers import Layer
from foveate.explanations.looking import METHODS, OF_A_CLASS, Found, Looker
from foveate.explanations.result import Explanation, Map
from foveate.explanations.sources import Images, OneImage
from foveate.explanations.transformers.maps import TokenMaps
from foveate.explanations.transformers.networks import transformer_of
from foveate.kernels.waiting import SharedCores
from foveate.networks.class_names import class_index, class_names
from foveate.progress import track
from foveate.scores import predicted_classes
from foveate.surgery.record import unwrapped

__all__ = ["METHODS", "OF_A_CLASS", "explain"]


def explain(
    model: nn.Module,
    images: OneImage | Sequence[OneImage] | Tensor,
    method: str = "attention",
    *,
    target: int | str | Sequence[int | str] | Tensor | None = None,
    layer: str | None = None,
    image_size: int | None = None,
    batch_size: int = 8,
    progress: bool = False,
    region: Any = None,
    window: int | None = None,
    box: int | str | Sequence[int] | None = None,
    head: int | str | None = None,
    rollout: bool = False,
) -> Explanation:
    """Show what a network looks at. The model, its gradients and the random state stay as they are.

    Args:
        model: a classifier that gives (B, classes) logits, or a network of ``create_segmenter`` or ``create_detector``.
        images: a path, a PIL image, the bytes of an image file, or a list of these; or a normalised float tensor
            (B, C, H, W). A path is a file, a folder (the images in it and below), or a pattern such as "dogs/*.jpg".
        method: "attention": the attention modules' own maps; of a vision transformer where its class token looks, or,
            where its classifier reads the patches, how much each of them is looked at. "gradcam", "gradcam++",
            "hirescam": of a class, by gradients; "cam": of a class, exactly, for networks that end in global average
            pooling and one linear layer.
        target: the class to explain, by index or by the name that the model gives it, or one for each image, in a list,
            an array or a tensor; without it the predicted class, of segmentation that of most pixels, of detection that
            of the best box. For "attention" only where there is a map for each class.
        layer: the dotted name of the layer to look at. For methods with gradients; without it the last feature map, of
            segmentation that of the trunk, of a vision transformer what enters the last block's attention. For the
            "attention" of a vision transformer a block, as "blocks.5"; without it the last one.
        image_size: the side, in pixels, of what the network sees; without it the model's own.
        batch_size: images in one pass.
        progress: show a bar.
        region: of segmentation, the pixels whose scores of the class are summed, and so explained (Seg-Grad-CAM):
            "predicted", those that are predicted as the class; "image", all; or a mask (H, W), a tensor or array, or
            one for each image.
        window: of segmentation, the side in pixels of windows that an image is seen in, as ``predict`` takes it: for
            images that are larger than what the network was trained on. Maps are then as large as the image.
        box: of detection, the box whose score is explained: its number in the order of the scores, counted from 1, or
            one for each image; "all", the sum over those with a score of 0.5 or more. Without it the best one, with
            ``target`` the best one of that class.
        head: of a vision transformer's "attention", the number of a head, counted from 1, or "mean"; without it each.
        rollout: of a vision transformer's "attention", through all blocks up to ``layer`` instead of in one.

    Returns:
        The maps, the predictions and the pictures: ``.save("dog.png")`` draws them, ``.npz("dog.npz")`` keeps the
        numbers.

    Raises:
        FoveateError: the method, the layer or the class does not exist, an image cannot be read, the model has no
            attention to show or does not fit the method, or an option does not belong to the method.
    """
    if method not in METHODS:
        raise FoveateError(f"no method is called {method!r}; {near(str(method), METHODS)}")
    if not isinstance(layer, str | None):
        raise FoveateError(f"layer={layer!r}: give the dotted name of a layer, as in model.named_modules()")
    batch_size = at_least(1, batch_size=batch_size)
    target, box, head, window = map(plain_values, (target, box, head, window))
    model = unwrapped(model)  # hooks do not run inside what torch.compile wraps
    wanted = TokenMaps(layer if method == "attention" else None, head, rollout)
    _check_options(model, method, target, layer, wanted)
    pixels, objects = isinstance(model, Segmenter), isinstance(model, Detector)
    if method == "cam" and (pixels or objects):
        what = "segmentation network" if pixels else "detector"
        raise FoveateError(f"cam is for classifiers: of a {what} use method='gradcam'")
    if region is not None and not (pixels and method in OF_A_CLASS):
        raise FoveateError("region= is for the gradients of a segmentation network (create_segmenter): leave it out")
    if window is not None and not pixels:
        raise FoveateError("window= is for segmentation networks (create_segmenter): leave it out")
    if box is not None and not (objects and method in OF_A_CLASS):
        raise FoveateError("box= is for the gradients of a detector (create_detector): leave it out")
    divisor = int(model.decoder.divisor) if isinstance(model, Detector) else 1
    given = Images(model, images, image_size, whole=pixels or objects, for_boxes=objects, divisor=divisor)
    classes = _one_for_each(model, target, len(given))
    looker = Looker(
        model,
        method,
        layer,
        given.names,
        wanted,
        Region(region, len(given)) if pixels else None,
        Boxes(box, target is not None, len(given)) if objects else None,
        window,
    )
    where: Layer | None = None
    parts: list[Found] = []
    pictures: list[Image.Image] = []
    with SharedCores() as cores:
        for start in track(range(0, len(given), batch_size), "looking", progress):
            cores.look()
            batch, shown = given.part(start, start + batch_size)
            where = where if parts else looker.where(batch)
            parts.append(looker.look(batch, where, classes and classes[start : start + batch_size], start))
            pictures += shown
    scores = torch.cat([part.scores.float().cpu() for part in parts])
    predictions = predicted_classes(scores)
    scores = scores if pixels or objects else scores.softmax(dim=1)
    probabilities = scores.gather(1, predictions[:, None])[:, 0]
    chosen: Tensor | None = predictions if classes is None else torch.tensor(classes)
    detected = tuple(one for part in parts for one in part.objects)
    if objects:
        predictions = torch.where(probabilities > 0, predictions, -1)  # of an image without an object
        chosen = _classes_of(detected)
    maps = [_joined(same) for same in zip(*(part.maps for part in parts), strict=True)]
    if method != "attention":
        maps = [Map(one.name, one.values, one.module, chosen) for one in maps]
    channels = tuple(
        (min((name for name, _ in same), key=len), torch.cat([weights for _, weights in same]))
        for same in zip(*(part.channels for part in parts), strict=True)
    )
    targets = chosen if any(one.targets is not None for one in maps) else None
    labels = class_names(model, scores.shape[1])
    _require_names(target, labels, scores.shape[1])
    masks = [part.masks for part in parts if part.masks is not None]
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
        masks=torch.cat(masks) if masks else None,
        objects=detected,
    )


def _classes_of(objects: Sequence[ImageObjects]) -> Tensor | None:
    """The class of what is explained in each image; None where it is not one class everywhere."""
    of_images = [set(one.classes[list(one.explained)].tolist()) for one in objects]
    return torch.tensor([one.pop() for one in of_images]) if all(len(one) == 1 for one in of_images) else None


def _require_names(target: object, labels: tuple[str, ...], count: int) -> None:
    """Refuse a class by name where the names that the model carries are not those of its outputs."""
    named = isinstance(target, str) or (
        isinstance(target, list | tuple) and any(isinstance(one, str) for one in target)
    )
    if named and not labels:
        raise FoveateError(
            f"target={target!r}: the model has {count} classes and carries another number of class names: give an index"
        )


def _check_options(model: nn.Module, method: str, target: object, layer: str | None, wanted: TokenMaps) -> None:
    transformer = transformer_of(model) if wanted.given else None
    if layer is not None and (method == "cam" or (method == "attention" and transformer is None)):
        what = "a module's own map" if method == "attention" else "CAM, which reads the last feature map"
        raise FoveateError(f"layer= does not change {what}: leave it out, or use method='gradcam'")
    if wanted.given:
        if method != "attention" or transformer is None:
            option = "rollout=" if wanted.head is None else "head="
            raise FoveateError(
                f"{option} is for the attention of a vision transformer (method='attention'): leave it out"
            )
        wanted.check(transformer)
    if method == "attention" and target is not None and not any(one.per_class for one in readers(model)):
        raise FoveateError("target= does not change a module's own map: leave it out, or use method='gradcam'")


def _joined(same: tuple[Map, ...]) -> Map:
    """The parts of one map; a note of one part alone, such as "changes nothing", is left out."""
    name = min((one.name for one in same), key=len)
    targets = [one.targets for one in same if one.targets is not None]
    return Map(name, torch.cat([one.values for one in same]), same[0].module, torch.cat(targets) if targets else None)


def _one_for_each(model: nn.Module, target: Any, count: int) -> list[int] | None:
    if target is None:
        return None
    given = target if isinstance(target, Sequence) and not isinstance(target, str) else [target] * count
    found = [class_index(model, each) if isinstance(each, str) else whole_number(each) for each in given]
    classes = [index for index in found if index is not None]
    if not len(given) == len(classes) == count:
        raise FoveateError(
            f"target={target!r}: give one class, by index or name, or one for each of the {count} images"
        )
    return classes
