"""One rule for decoding and preparing an image, wherever it comes from.

A picture from a folder, from a Parquet row, from the command line or from memory passes through :func:`open_image`,
so that training, validation and explanation see the same pixels. :class:`Preprocess` then makes the tensor that a
network was trained to expect.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image, ImageOps

from foveate.arguments import at_least
from foveate.errors import FoveateError, near
from foveate.image_formats import MAX_PIXELS, NOT_READ, SUFFIXES, check_size, naming, open_file, undecoded
from foveate.model_info import pretrained_config

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_PIXELS", "NOT_READ", "SUFFIXES", "Preprocess", "open_image", "pixels_of"]

_INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")


def open_image(
    source: str | os.PathLike[str] | bytes | Image.Image,
    *,
    max_pixels: int = MAX_PIXELS,
    at_least: int | None = None,
    name: str | None = None,
) -> Image.Image:
    """Decode a picture into 8 bit RGB by the one rule of foveate.

    The EXIF orientation is applied; transparency (RGBA, LA, a palette or a transparent colour) is flattened on white;
    CMYK, palettes and grey become RGB; an animation gives its first frame; colour profiles are not applied. Grey of
    more than 8 bit is rescaled, not clipped: 16 bit maps 65535 to 255; 32 bit integers do the same where they lie in
    0..65535; floats in 0..1 are multiplied by 255 and floats in 0..255 are kept; any other range is stretched from
    its own least to its own greatest value.

    Args:
        source: a path, an encoded file's bytes, or a PIL image (which is left as found).
        max_pixels: the most pixels to decode; read from the header, before any memory is taken for them.
        at_least: lets a large JPEG be decoded at 1/2, 1/4 or 1/8 of its size, which is several times faster, as long
            as both sides keep at least this many pixels. The result is a smaller picture of the same scene; other
            formats ignore it.
        name: what errors call the image. By default the path, or ``image of N bytes``.

    Returns:
        A new RGB image of the picture's own size (after orientation), independent of the source.

    Raises:
        FoveateError: the file is missing, empty, not an image, truncated or damaged, has more than ``max_pixels``
            pixels, or holds values that are not finite. The message names the file.
    """
    if isinstance(source, Image.Image):
        return _decode(source, max_pixels, None, name or f"image of {source.width}x{source.height} pixels")
    if isinstance(source, bytes):
        name = name or f"image of {len(source)} bytes"
        stream: BinaryIO = io.BytesIO(source)
    elif isinstance(source, str | os.PathLike):
        name = name or os.fspath(source)
        stream = open_file(Path(source), name)
    else:
        raise FoveateError(f"an image is a path, bytes or a PIL image, not {type(source).__name__}")
    with undecoded(stream, max_pixels, name) as image:
        return _decode(image, max_pixels, at_least, name)


def _decode(image: Image.Image, max_pixels: int, at_least: int | None, name: str) -> Image.Image:
    """Decode an opened image and bring it to 8 bit RGB."""
    check_size(image, max_pixels, name)
    with naming(name):
        if at_least is not None:
            image.draft(None, (max(1, at_least), max(1, at_least)))
        image.load()
        image = _upright(image)
        if image.mode.startswith("I") or image.mode == "F":
            image = _eight_bit(image, name)
    try:
        if image.has_transparency_data:
            image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except (ValueError, KeyError) as error:
        raise FoveateError(f"{name} has the colour mode {image.mode}, which cannot become RGB: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; a damaged EXIF block says nothing about which way is up."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - EXIF is free-form and often broken; the pixels are sound
        return image.copy()


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    """Rescale grey of 16 or 32 bit to 8 bit."""
    import numpy as np

    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise FoveateError(f"{name} holds values that are not finite (NaN or infinity)")
    low, high = 0.0, 65535.0
    least, greatest = float(values.min()), float(values.max())
    if image.mode == "F":
        high = 1.0 if greatest <= 1.0 else 255.0
    if least < low or greatest > high:
        low, high = least, greatest
    scaled = np.round((values - low) * 255.0 / (high - low if high > low else 1.0))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled[values == transparent] = 255.0
    return Image.fromarray(scaled.astype(np.uint8))


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Preparation of an image at evaluation time: resize, centre crop, tensor, normalise.

    For square sizes it is timm's own evaluation transform, pixel for pixel. The shorter side is resized to
    ``size / crop_pct`` (for a size that is not square: the smallest picture that covers it), then the centre is cut
    out.

    Args:
        size: height and width of the network's input, in pixels.
        mean: per channel, of values in 0..1; one value means a network that takes grey pictures.
        std: per channel, as many as ``mean``.
        interpolation: a name of :class:`torchvision.transforms.InterpolationMode`, such as ``bicubic``.
        crop_pct: the part of the resized side that the crop keeps, in (0, 1].

    Raises:
        FoveateError: a value outside these limits.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise FoveateError(f"image size {self.size}: height and width must be at least 1 pixel")
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise FoveateError(f"mean {self.mean} and std {self.std}: give 3 values each, or 1 each for grey")
        if min(self.std) <= 0:
            raise FoveateError(f"std {self.std}: every value must be greater than 0")
        if not 0 < self.crop_pct <= 1:
            raise FoveateError(f"crop_pct {self.crop_pct}: must be greater than 0 and at most 1")
        if self.interpolation not in _INTERPOLATIONS:
            raise FoveateError(f"interpolation {self.interpolation!r}: {near(self.interpolation, _INTERPOLATIONS)}")

    @classmethod
    def of(cls, model: torch.nn.Module, image_size: int | None = None) -> Preprocess:
        """Read from a model how its images are prepared.

        Args:
            model: its ``pretrained_cfg`` (timm's) is read. What is missing there, or all of it, falls back to 224
                pixels, bicubic, crop 0.875 and ImageNet's mean and standard deviation.
            image_size: side of a square input in pixels, instead of the model's own.

        Returns:
            The preparation. A model whose first convolution takes one channel gets grey pictures, normalised by the
            average of mean and std.

        Raises:
            FoveateError: the model's first convolution takes neither 1 nor 3 channels, or the size is not a number
                of pixels.
        """
        from timm.data import resolve_data_config

        config = pretrained_config(model)
        # `model` keeps timm's check quiet when the dictionary is empty; it has no configuration of its own then.
        data = resolve_data_config(pretrained_cfg=config, model=model)
        mean, std = tuple(map(float, data["mean"])), tuple(map(float, data["std"]))
        channels = _input_channels(model)
        if channels == 1:
            mean, std = (math.fsum(mean) / len(mean),), (math.fsum(std) / len(std),)
        elif channels != 3:
            raise FoveateError(
                f"the model takes {channels} channels and pictures have 3 (or 1 as grey): "
                "build it with in_chans=3, for example timm.create_model(name, in_chans=3)"
            )
        height, width = data["input_size"][-2:] if image_size is None else (at_least(1, image_size=image_size),) * 2
        return cls((height, width), mean, std, data["interpolation"], float(data["crop_pct"]))

    def view(self, image: Image.Image) -> Image.Image:
        """Resize and crop, still a picture: what the network sees, for overlays to be drawn on.

        Args:
            image: any PIL image; it is brought to RGB by :func:`open_image`.

        Returns:
            RGB image of ``size``.
        """
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as transform

        image = open_image(image)
        # Towards the smaller whole number on both sides, as timm and torchvision do: the results are then equal.
        height, width = (math.floor(side / self.crop_pct) for side in self.size)
        if image.height * width <= image.width * height:
            width = max(width, int(height * image.width / image.height))
        else:
            height = max(height, int(width * image.height / image.width))
        picture = transform.resize(image, [height, width], InterpolationMode(self.interpolation))
        cropped: Image.Image = transform.center_crop(picture, list(self.size))
        return cropped

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Prepare one image.

        Args:
            image: any PIL image.

        Returns:
            Normalised float32 tensor (3, H, W), or (1, H, W) where ``mean`` has one value.
        """
        import torch
        from torchvision.transforms.v2 import functional as transform

        picture = self.view(image)
        if len(self.mean) == 1:
            picture = picture.convert("L")
        tensor = transform.to_dtype(transform.pil_to_tensor(picture), torch.float32, scale=True)
        normalised: torch.Tensor = transform.normalize(tensor, list(self.mean), list(self.std))
        return normalised


def pixels_of(image: Image.Image, preprocess: Preprocess) -> torch.Tensor:
    """A picture of the network's size as uint8 (3, H, W), or (1, H, W) for a network that takes grey."""
    from torchvision.transforms.v2 import functional as transform

    pixels: torch.Tensor = transform.pil_to_tensor(image.convert("L") if len(preprocess.mean) == 1 else image)
    return pixels


def _input_channels(model: torch.nn.Module) -> int:
    """Channels that the first convolution takes; 3 for a model without one."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            return module.in_channels
    return 3
