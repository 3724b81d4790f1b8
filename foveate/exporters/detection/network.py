"""A copy of a detector with the input and the outputs of its file."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from foveate.dense import Detector
from foveate.dense.detection.fixed_outputs import fixed_objects
from foveate.exporters.metadata import describe
from foveate.exporters.options import ExportOptions
from foveate.exporters.program import AttentionSite, DeployableNetwork, Program, preprocess_for
from foveate.images import Preprocess
from foveate.networks.class_names import class_names
from foveate.preserve import preserve_state
from foveate.surgery.model_copy import copied, guarded
from foveate.surgery.record import record_of, unwrapped

__all__ = ["DeployableDetector", "prepare_detector"]


class DeployableDetector(DeployableNetwork):
    """A detector with what its file does before and after it.

    Args:
        network: of ``create_detector``.
        preprocess: its mean and standard deviation are a part of the file where it takes pixels.
        options: what was asked.
    """

    def __init__(self, network: nn.Module, preprocess: Preprocess, options: ExportOptions) -> None:
        super().__init__(network, preprocess, options)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """One image as the file takes it -> boxes (1, n, 4), scores (1, n), labels (1, n): see ``fixed_objects``."""
        if self.pixels:
            images = (images.permute(0, 3, 1, 2).to(torch.float32) / 255 - self.mean) / self.std
        return fixed_objects(cast(Detector, self.network), images)


def prepare_detector(model: Detector, options: ExportOptions, *, format_name: str) -> Program:
    """A copy of a detector, ready to be converted.

    Args:
        model: left as found.
        options: what was asked; of one image.
        format_name: for the description.

    Raises:
        FoveateError: the model cannot be copied.
    """
    preprocess = preprocess_for(model, options)
    channels, (height, width) = len(preprocess.mean), preprocess.size
    with preserve_state(model), guarded(model), torch.inference_mode(False), torch.no_grad():
        network = cast(Detector, copied(unwrapped(model), data=True).cpu().float().requires_grad_(False))
        deployable = DeployableDetector(network, preprocess, options).eval()
    shape: list[int | str] = [1, channels, height, width]
    if options.size == "dynamic":
        # Of a map of one position torch takes the sides for constants, and equal sides for one: the coarsest map is of
        # half the trunk's last one in R-CNNs, and of a sixteenth in SSDLite.
        coarsest = max(network.taps.strides) * (2 if network.decoder.levels > 2 else 16)
        height, width = 2 * coarsest + 32, 3 * coarsest + 64
        shape[2:] = ["height", "width"]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, channels, height, width, generator=generator)
    if options.input == "uint8":
        images = torch.randint(256, (1, height, width, channels), generator=generator, dtype=torch.uint8)
        shape = [shape[0], *shape[2:], shape[1]]
    metadata = describe(
        unwrapped(model),
        options,
        format_name=format_name,
        classes=class_names(unwrapped(model), model.num_classes),
        preprocess=preprocess,
        shape=tuple(shape),
        outputs=[
            {"name": "boxes", "axes": "b n 4"},
            {"name": "scores", "axes": "b n"},
            {"name": "labels", "axes": "b n", "classes": model.num_classes},
        ],
    ) | {"task": "detection"}
    record = record_of(network)
    placed = record.placed if record else ()
    parts = tuple(AttentionSite(at.site, at.path, at.spec.name) for at in placed)
    return Program(deployable, options, images, metadata, parts, parts=parts)
