"""What the page does, without the page: networks by name, one image at a time, within limits."""

from __future__ import annotations

import collections
import functools
import re
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import torch
from PIL import Image
from torch import nn

import foveate as fv
from foveate.errors import FoveateError, near
from foveate.web.look import Look, asked

__all__ = ["METHODS", "Explorer", "Limits"]

METHODS = ("attention", "gradcam", "gradcam++", "hirescam", "cam")
_NAME = re.compile(r"(torchvision:)?[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")  # of a network: no path looks like this
_KEPT = 4  # networks at a time
_COST = (
    ("parameters", "params", 1e6, "M"),
    ("MACs", "macs", 1e6, "M"),
    ("element operations", "element_ops", 1e6, "M"),
    ("bytes moved", "bytes_moved", 1e6, "MB"),
    ("activations in training", "activation_bytes_training", 1e6, "MB"),
)


@dataclass(frozen=True)
class Limits:
    """What is taken from a visitor.

    Args:
        file_bytes: of an uploaded file.
        pixels: of an image, read from its header before anything is decoded.
        side: pixels that both sides of a large JPEG keep at least: it is decoded smaller, which is faster.
    """

    file_bytes: int = 10_000_000
    pixels: int = 24_000_000
    side: int = 512

    def __post_init__(self) -> None:
        for name, most in (("bytes of a file", self.file_bytes), ("pixels of an image", self.pixels)):
            if not most >= 1:
                raise FoveateError(f"at most {most} {name}: nothing could be shown; give a limit of 1 or more")


class Explorer:
    """Networks and what they look at. Safe to call from several threads; one call works at a time.

    Args:
        saved: label -> folder of a saved model, as the owner of the server named them. No visitor names a folder.
        data: a data set for audits, as ``open_data`` takes it; None for no audits.
        pretrained: give timm's and torchvision's networks their ImageNet weights.
        limits: of uploads.
    """

    def __init__(
        self,
        saved: Mapping[str, str] | None = None,
        *,
        data: str | None = None,
        pretrained: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self.saved, self.data, self.pretrained = dict(saved or {}), data, pretrained
        self.limits = limits or Limits()
        self._networks: collections.OrderedDict[tuple[str, str | None], nn.Module] = collections.OrderedDict()
        self._audits: dict[tuple[str, str | None], fv.Audit] = {}
        self._lock = threading.RLock()

    def own_plan(self, name: str) -> str:
        """The plan that a saved model carries, as text; "" for other networks."""
        name = name.strip()
        plan = fv.plan_of(self.network(name)) if name in self.saved else None
        return str(plan or "")

    @property
    def accepted(self) -> str:
        """Which images are taken, in a sentence."""
        most, pixels = self.limits.file_bytes / 1e6, self.limits.pixels / 1e6
        return f"JPEG, PNG, WebP and others, at most {most:g} MB and {pixels:g} megapixels"

    @functools.cached_property
    def opened(self) -> fv.ImageData | fv.SegmentationData | fv.DetectionData | None:
        """The owner's data, without what is damaged: a visitor cannot mend it."""
        if self.data is None:
            return None
        if fv.find_segmentation(self.data):
            return fv.open_segmentation(self.data)
        if fv.find_detection(self.data):
            return fv.open_detection(self.data, on_bad_image="skip")
        return fv.open_data(self.data, on_bad_image="skip")

    @property
    def left_out(self) -> str:
        """What is left out of the owner's data, in a sentence; "" where nothing is."""
        bad = getattr(self.opened, "bad", ())
        what = "images or objects" if isinstance(self.opened, fv.DetectionData) else "images"
        return f"damaged {what} that are left out: {len(bad)}; foveate data check lists them" if bad else ""

    def examples(self, count: int = 4) -> list[tuple[Image.Image, str]]:
        """Some of the owner's validation images, spread evenly, with their true classes; none without data."""
        if self.opened is None:
            return []
        val: Any = self.opened.val
        of_classes = isinstance(self.opened, fv.ImageData)
        names = [self.opened.classes[label] for label in val.labels] if of_classes else val.names
        count = min(count, len(val))
        chosen = [int((k + 0.5) * len(val) / count) for k in range(count)]
        return [(val.load(index).convert("RGB"), PurePath(str(names[index])).name) for index in chosen]

    def classes(self, name: str) -> tuple[str, ...]:
        """The names of a saved model's classes, as far as it carries them."""
        if name.strip() not in self.saved:
            return ()
        config = getattr(self.network(name), "pretrained_cfg", None) or {}
        return tuple(map(str, config.get("label_names") or ()))

    def network(self, name: str, plan: str | None = None) -> nn.Module:
        """A network with a plan, kept for the next call.

        Args:
            name: a label of ``saved``, or a name of timm's or ``torchvision:NAME``.
            plan: attention to insert, in place of what a saved model carries; "" for none; None for the network as it
                is.

        Raises:
            FoveateError: there is no such network, the plan does not fit it, or a saved model's own plan cannot be
                taken off, because it replaced blocks that were not saved.
        """
        name, plan = name.strip(), "" if plan is None and name.strip() not in self.saved else plan
        plan = plan if plan is None else plan.strip()
        with self._lock:
            if (name, plan) not in self._networks:
                self._networks[name, plan] = self._build(name, plan)
                while len(self._networks) > _KEPT:
                    self._networks.popitem(last=False)
            self._networks.move_to_end((name, plan))
            return self._networks[name, plan]

    def _build(self, name: str, plan: str | None) -> nn.Module:
        if name in self.saved:
            network = fv.load(self.saved[name])
        elif _NAME.fullmatch(name):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                network = fv.create_model(name, pretrained=self.pretrained)
        else:
            known = f"; {near(name, self.saved)}" if self.saved else ""
            raise FoveateError(f"{name!r} is not the name of a network: write one of timm's or torchvision:NAME{known}")
        own = str(fv.plan_of(network) or "")
        if plan is not None and plan != own:
            fv.remove(network)
            if plan:
                fv.insert(network, plan, seed=0)
        return network.eval()

    def image(self, data: bytes | None) -> Image.Image:
        """Decode an upload.

        Raises:
            FoveateError: there is none, it is too large, or it is not an image.
        """
        if not data:
            what = "the file is empty" if data is not None else "there is no image yet"
            raise FoveateError(f"{what}: choose an image ({self.accepted})")
        if len(data) > self.limits.file_bytes:
            most = self.limits.file_bytes / 1e6
            raise FoveateError(f"the file has {len(data) / 1e6:.1f} MB; at most {most:g} are taken")
        return fv.open_image(data, max_pixels=self.limits.pixels, at_least=self.limits.side, name="the file")

    def look(
        self, data: bytes | None, name: str, plan: str | None = None, method: str = "attention", what: str = ""
    ) -> Look:
        """Show an image to a network.

        Args:
            data: the bytes of an image file.
            name: of the network.
            plan: as in ``network``.
            method: one of ``METHODS``.
            what: what is explained: a class by name or index, of a detector "box 3" or "all boxes"; "" for what is
                predicted. A module's own map depends on none of these.

        Raises:
            FoveateError: the image, the network, the plan, the method or the class is not there or does not fit.
        """
        picture = self.image(data)
        with self._lock:
            network = self.network(name, plan)
            notes = []
            if name not in self.saved and not self.pretrained:
                notes.append(
                    "The weights are random: the prediction means nothing, the maps are the untrained network's."
                )
            elif plan and plan.strip() != self.own_plan(name):
                notes.append("The attention that the plan put in is untrained.")
            elif plan is not None and not plan.strip() and self.own_plan(name):
                notes.append("The model is shown without its attention; its other weights were trained with it.")
            if method == "attention":
                seen = self._own_maps(network, picture)
                if seen is not None:
                    if what:
                        notes.append("Its own maps are the same for all classes.")
                    return Look(seen, " ".join(notes))
                method = "gradcam"
                notes.append("The network has no attention to show: this is Grad-CAM.")
            return Look(fv.explain(network, picture, method, **asked(what, self.classes(name))), " ".join(notes))

    @staticmethod
    def _own_maps(network: nn.Module, picture: Image.Image) -> fv.Explanation | None:
        """The maps of its attention; None where it has none, which Grad-CAM does without."""
        try:
            return fv.explain(network, picture, "attention")
        except FoveateError:
            return None

    def costs(self, name: str, plan: str | None = None) -> list[list[str]]:
        """A table: what is counted, the network, the same without its plan, the difference."""
        with self._lock:
            found = fv.cost(self.network(name, plan))
        rows = []
        for words, attribute, unit, short in _COST:
            now, plain = (getattr(one, attribute) / unit for one in (found, found.baseline or found))
            change = f"{now - plain:+,.3f} {short}" if now != plain else "0"
            rows.append([words, f"{now:,.3f} {short}", f"{plain:,.3f} {short}", change])
        return rows

    def audit(
        self,
        name: str,
        plan: str | None = None,
        *,
        images: int = 500,
        progress: bool | Callable[[int, int], None] = False,
    ) -> fv.Audit:
        """Whether each inserted attention does anything, on the owner's data.

        Args:
            name: of the network.
            plan: as in ``network``.
            images: at most so many.
            progress: as in ``fv.audit``.

        Raises:
            FoveateError: the server was started without data, or the network carries no attention.
        """
        if self.opened is None:
            raise FoveateError("an audit needs images with labels: start with foveate serve MODEL --data FOLDER")
        with self._lock:
            key = name.strip(), plan if plan is None else plan.strip()
            if key not in self._audits:
                self._audits[key] = fv.audit(self.network(*key), self.opened, limit=images, progress=progress)
            return self._audits[key]

    def export(self, name: str, plan: str | None = None) -> tuple[str, str]:
        """The network as an ONNX file, checked against the network: its path, and what was checked.

        Raises:
            FoveateError: the packages are missing, or the file does not do what the network does.
        """
        with self._lock:
            folder = tempfile.mkdtemp(prefix="foveate-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)  # at the server's end, too
            found = fv.export(self.network(name, plan), "onnx", folder, data=self.opened, images=32)
        return str(found.path), str(found).replace(f"{folder}/", "")
