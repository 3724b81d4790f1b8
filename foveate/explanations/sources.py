"""What a user gives as images -> normalised batches, names and pictures, a part at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.image_files import files_of
from foveate.images import Preprocess, open_image
from foveate.model_info import device_and_dtype
from foveate.whole_images import WholeImage

__all__ = ["Images", "OneImage"]

OneImage = str | os.PathLike[str] | bytes | Image.Image


class Images:
    """The images of one call, opened when their part is asked for: a long list does not fill the memory.

    Args:
        model: says how images are prepared, and where they go.
        images: a path (a file, a folder, a pattern), a PIL image, bytes, or a list of these; or a tensor (B, C, H, W).
        image_size: side of what the network sees; without it the model's own.
        whole: nothing is cut off: ``image_size`` is the shorter side.
        for_boxes: the longer side is limited, as for detectors.
        divisor: of the height and the width that the network fills images up to, to the right and below; so are the
            pictures, for its maps are of all of it.

    Attributes:
        names: one for each image: the file's name without its ending, or "image".
        files: the whole path of each, or "image".
    """

    def __init__(
        self,
        model: nn.Module,
        images: object,
        image_size: int | None,
        *,
        whole: bool = False,
        for_boxes: bool = False,
        divisor: int = 1,
    ) -> None:
        self.divisor = divisor
        self.device, self.dtype = device_and_dtype(model)
        self.tensor: Tensor | None = None
        self.preprocess: Any = None  # of a tensor without pictures there is none
        if isinstance(images, Tensor):
            if image_size is not None:
                raise FoveateError("image_size= is for image files: a tensor is taken as it is; leave it out")
            _check_tensor(model, images)
            self.tensor, self.names = images.detach(), ("image",) * len(images)
            self.files = self.names
            if images.shape[1] in (1, 3):
                self.preprocess = Preprocess.of(model)
        else:
            given = list(images) if isinstance(images, Sequence) and not isinstance(images, str | bytes) else [images]
            self.sources: list[Any] = []
            for source in given:
                self.sources += files_of(source) if isinstance(source, str | os.PathLike) else [source]
            if not self.sources:
                raise FoveateError("there is no image to explain: the list is empty; give a path or a list of paths")
            self.names = tuple(source.stem if isinstance(source, Path) else "image" for source in self.sources)
            self.files = tuple(str(source) if isinstance(source, Path) else "image" for source in self.sources)
            if whole:
                self.preprocess = WholeImage.of(model, image_size, for_boxes=for_boxes)
            else:
                self.preprocess = Preprocess.of(model, image_size)
            self._first: tuple[str, torch.Size] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def part(self, start: int, stop: int) -> tuple[Tensor, tuple[Image.Image, ...]]:
        """Images start to stop: one batch on the model's device and in its dtype, and the pictures.

        Raises:
            FoveateError: an image cannot be read; its file is named.
        """
        if self.tensor is not None:
            batch = self.tensor[start:stop]
            shown = _pictures(self.preprocess, batch.float().cpu())
            return batch.to(self.device, self.dtype), tuple(map(self._filled_up, shown))
        opened = [open_image(source) for source in self.sources[start:stop]]
        prepared = [self.preprocess(image) for image in opened]
        for name, one in zip(self.files[start:stop], prepared, strict=True):
            self._first = self._first or (name, one.shape)
            if one.shape != self._first[1]:
                raise FoveateError(
                    f"{name} and {self._first[0]} have different proportions, so their maps have different sizes: "
                    "explain images of one shape at a time"
                )
        batch = torch.stack(prepared)
        return batch.to(self.device, self.dtype), tuple(
            self._filled_up(self.preprocess.view(image)) for image in opened
        )

    def _filled_up(self, picture: Image.Image) -> Image.Image:
        """A picture up to the size that the network fills it up to, in the mean colour, as normalised zeros are."""
        width, height = (-(-side // self.divisor) * self.divisor for side in picture.size)
        if (width, height) == picture.size:
            return picture
        mean = (self.preprocess.mean if self.preprocess is not None else (0.5,)) * 3
        red, green, blue = (round(255 * value) for value in mean[:3])
        whole = Image.new("RGB", (width, height), (red, green, blue))
        whole.paste(picture, (0, 0))
        return whole


def _check_tensor(model: nn.Module, images: Tensor) -> None:
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise FoveateError(
            f"cannot explain a {images.dtype} tensor of shape {tuple(images.shape)}: "
            "it must be normalised float (B, C, H, W); one image is image[None]"
        )
    # A sum is as finite as what it is of, unless it overflows, and ten times as quick.
    if not images.sum().isfinite() and not images.isfinite().all():
        raise FoveateError("cannot explain a tensor with NaN or infinite pixels: clean the images first")
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is not None and first.in_channels != images.shape[1]:
        raise FoveateError(f"the images have {images.shape[1]} channels, the model takes {first.in_channels}")


def _pictures(preprocess: Preprocess | WholeImage | None, batch: Tensor) -> tuple[Image.Image, ...]:
    """Normalised images as pictures: the normalisation undone for 1 or 3 channels, else their mean, stretched."""
    if preprocess is not None:
        mean, std = (255 * torch.tensor(values).view(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
        batch = torch.addcmul(mean, batch, std)
    else:
        batch = batch.mean(dim=1, keepdim=True)
        low, high = batch.amin(dim=(1, 2, 3), keepdim=True), batch.amax(dim=(1, 2, 3), keepdim=True)
        batch = (batch - low) * (255 / (high - low).clamp_min(1e-12))
    pixels = batch.round_().clamp_(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).movedim(1, -1)
    return tuple(Image.fromarray(image.contiguous().numpy()) for image in pixels)
