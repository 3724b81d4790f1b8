"""What every format starts from: a copy of the network with the input, the outputs and the description of its file."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.errors import FoveateError, first_line
from foveate.exporters.contribution import Contribution
from foveate.exporters.map_outputs import Kept, MapOutput, map_outputs
from foveate.exporters.metadata import describe
from foveate.exporters.options import ExportOptions
from foveate.images import Preprocess
from foveate.io import JsonObject
from foveate.networks.class_names import class_names
from foveate.preserve import preserve_state
from foveate.scores import check_logits, pixel_scores
from foveate.surgery.model_copy import copied, guarded
from foveate.surgery.record import record_of, unwrapped
from foveate.surgery.trace import input_size_of

__all__ = [
    *("AttentionSite", "DeployableNetwork", "Program", "prepare", "preprocess_for", "quiet", "reason", "scores_of"),
    "where",
]


_LEAST_SIDE = 96  # three positions of stride 32


@dataclass(frozen=True)
class AttentionSite:
    """Where an attention module stands that gives a feature map like its input.

    Args:
        site: as the plan names it.
        module: the dotted name of the module that computes, in the network.
        mechanism: its name in the plan.
    """

    site: str
    module: str
    mechanism: str = ""


class DeployableNetwork(nn.Module):
    """The network with what its file does before and after it.

    Args:
        network: gives (B, K) logits, or scores (B, K, H, W) of pixels.
        preprocess: its mean and standard deviation are a part of the file where it takes pixels.
        options: what was asked.
        maps: more outputs.
    """

    def __init__(
        self, network: nn.Module, preprocess: Preprocess, options: ExportOptions, maps: Sequence[MapOutput] = ()
    ) -> None:
        super().__init__()
        self.network = network
        self.pixels, self.softmax, self.top = options.input == "uint8", options.softmax, options.top
        self.maps = list(maps)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, -1, 1, 1), persistent=False)
        self.dtype = torch.float32

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images as the file takes them -> its outputs, float32 but for class numbers."""
        if self.pixels:
            # As `Preprocess` computes it, so that the logits are equal to the last bit.
            images = (images.permute(0, 3, 1, 2).to(torch.float32) / 255 - self.mean) / self.std
        found: Kept = {}
        handles = [handle for one in self.maps for handle in one.watch(found)]
        try:
            logits = scores_of(self.network(images.to(self.dtype)))
        finally:
            for handle in handles:
                handle.remove()
        outputs = [logits.float()]
        if self.softmax or self.top:
            probabilities = logits.float().softmax(dim=1)
            outputs += [probabilities] if self.softmax else []
            outputs += list(probabilities.topk(self.top, dim=1)) if self.top else []
        return (*outputs, *(one.values(found, logits).float() for one in self.maps))

    def half_precision(self) -> DeployableNetwork:
        """Weights and activations in float16; what comes in and goes out stays as it was."""
        self.network.half()
        self.dtype = torch.float16
        return self


@dataclass
class Program:
    """Everything that a format needs to write a file.

    Args:
        network: the copy, on the CPU, in eval mode.
        options: what was asked, with what the format cannot do resolved.
        example: images as the file takes them.
        metadata: what the file is to say of itself.
        sites: where attention stands that gives a feature map like its input.
        parts: all that the plan put in: also pools and heads.
        calibration: batches as the file takes them, for int8.
        images: those that the file is checked with, as it takes them.
        notes: messages for the user.
        contributions: what is left of each attention module in the file, as the format measured it.
        agreement_without: share of the images whose class stays as it is without attention, as the format measured it.
    """

    network: DeployableNetwork
    options: ExportOptions
    example: Tensor
    metadata: JsonObject
    sites: tuple[AttentionSite, ...] = ()
    calibration: tuple[Tensor, ...] = ()
    images: np.ndarray[Any, Any] | None = None
    notes: list[str] = field(default_factory=list)
    contributions: tuple[Contribution, ...] = ()
    agreement_without: float | None = None
    parts: tuple[AttentionSite, ...] = ()

    @property
    def input_name(self) -> str:
        """What the input is called in the file."""
        return str(self.metadata["input"]["name"])

    @property
    def output_names(self) -> list[str]:
        """What the outputs are called, in order."""
        return [str(output["name"]) for output in self.metadata["outputs"]]

    def dynamic_shapes(self, most: int | None = None) -> tuple[dict[int, Any], ...] | None:
        """The input's dynamic axes for ``torch.export``.

        Args:
            most: the largest batch, for runtimes that plan their memory for it.
        """
        axes: dict[int, Any] = {}
        first = 1 if self.options.input == "uint8" else 2
        # torch finds out by itself what a network asks of its sides, and refuses where an axis is not free.
        free = torch.export.Dim.DYNAMIC
        if self.options.batch == "dynamic":
            axes[0] = free(min=1, max=most)
        if self.options.size == "dynamic":
            axes |= {first: free, first + 1: free}
        return (axes,) if axes else None

    def exported(self, most: int | None = None) -> torch.export.ExportedProgram:
        """The network as a graph of torch's operations.

        Raises:
            FoveateError: torch cannot follow the network; the message names the attention module that it stopped in.
        """
        try:
            with quiet(), torch.no_grad():
                return torch.export.export(
                    self.network, (self.example,), dynamic_shapes=self.dynamic_shapes(most), strict=False
                )
        except Exception as error:  # torch raises what it likes
            inside = where(str(error), self.parts)
            raise FoveateError(f"torch.export cannot follow the network{inside}: {reason(error)}") from error


def scores_of(output: object) -> Tensor:
    """What a network says of images, (B, K), or of their pixels, (B, K, H, W).

    Raises:
        FoveateError: it is neither.
    """
    is_pixels = isinstance(output, Mapping) or (isinstance(output, Tensor) and output.ndim == 4)
    return pixel_scores(output) if is_pixels else check_logits(output)


def where(text: str, sites: Sequence[AttentionSite]) -> str:
    """In which attention module an error or an operation is, if its text names one."""
    for site in sites:
        # A module's name is followed by another character than one of its own: layer1.1 is not in layer1.10.
        if re.search(rf"(?<![\w.]){re.escape(site.module)}(?!\w)", text.replace("network.", " ")):
            return f" in {site.mechanism} at {site.site}"
    return ""


def reason(error: Exception) -> str:
    """What went wrong, in one line: of the error that a converter wrapped into another."""
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    return first_line(cause) or first_line(error)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Converters warn and log of their own affairs; errors still come through."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def preprocess_for(model: nn.Module, options: ExportOptions) -> Preprocess:
    """How images are prepared for the file: as the model says, in the size that was asked for.

    Raises:
        FoveateError: the size does not exist, or the model takes neither grey nor colour pictures.
    """
    _, height, width = input_size_of(unwrapped(model), None if options.size == "dynamic" else options.size)
    return replace(Preprocess.of(unwrapped(model)), size=(height, width))


def prepare(
    model: nn.Module,
    options: ExportOptions,
    *,
    format_name: str,
    calibration: Sequence[Tensor] = (),
) -> Program:
    """A copy of a network, ready to be converted.

    Args:
        model: left as found.
        options: what was asked; a batch or a size that the format cannot have is the caller's to resolve.
        format_name: for the description.
        calibration: batches of images as the file takes them.

    Raises:
        FoveateError: the model is not a classifier, cannot be copied, or has no map that was asked for.
    """
    preprocess = preprocess_for(model, options)
    channels, (height, width) = len(preprocess.mean), preprocess.size
    with preserve_state(model), guarded(model), torch.inference_mode(False), torch.no_grad():
        network = copied(unwrapped(model), data=True).cpu().float().requires_grad_(False)
        count = 2 if options.batch == "dynamic" else int(options.batch)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(count, channels, height, width, generator=generator)
        logits = scores_of(network(images.clone()))
        pixels = logits.ndim == 4
        if pixels and options.size == "dynamic":
            # Of a map of one position torch takes the sides for constants, and equal sides for one.
            height, width = max(height, _LEAST_SIDE), max(width, _LEAST_SIDE) + 32
            images = torch.randn(count, channels, height, width, generator=generator)
        outputs = map_outputs(network, images, options.maps) if options.maps else []
        if options.top > logits.shape[1]:
            raise FoveateError(f"top={options.top}: the model has {logits.shape[1]} classes")
        deployable = DeployableNetwork(network, preprocess, options, outputs).eval()
        if options.input == "uint8":
            images = torch.randint(256, (count, height, width, channels), generator=generator, dtype=torch.uint8)
    shape: list[int | str] = list(images.shape)
    if options.batch == "dynamic":
        shape[0] = "batch"
    if options.size == "dynamic":
        at = 1 if options.input == "uint8" else 2
        shape[at : at + 2] = ["height", "width"]
    named = [{"name": "scores", "axes": "b k h w"} if pixels else {"name": "logits", "axes": "b k"}]
    named += [{"name": "probabilities", "axes": "b k"}] if options.softmax else []
    named += [{"name": name, "axes": "b n"} for name in ("top_probabilities", "top_classes")] if options.top else []
    described: list[JsonObject] = [*named]
    described += [{"name": one.name, "axes": one.axes, **one.description} for one in outputs]
    metadata = describe(
        unwrapped(model),
        options,
        format_name=format_name,
        classes=class_names(unwrapped(model), logits.shape[1]),
        preprocess=preprocess,
        shape=tuple(shape),
        outputs=described,
    )
    metadata |= {"task": "segmentation"} if pixels else {}
    record = record_of(network)
    placed = record.placed if record else ()
    parts = [AttentionSite(at.site, at.path, at.spec.name) for at in placed]
    sites = [part for part, at in zip(parts, placed, strict=True) if not at.verb.startswith("as ")]
    return Program(deployable, options, images, metadata, tuple(sites), tuple(calibration), parts=tuple(parts))
