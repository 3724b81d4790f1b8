"""What a format of files is: how a network becomes one, and how one is run."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from foveate.errors import FoveateError, near
from foveate.exporters.options import INPUTS, ExportOptions
from foveate.io import JsonObject

if TYPE_CHECKING:
    from foveate.exporters.program import Program

__all__ = ["Arrays", "Format", "Session", "find_format", "format_names", "format_of_file"]

_FOLDER = "foveate.exporters.formats"
Arrays = tuple[NDArray[np.generic], ...]


class Session(ABC):
    """A file, opened in its own runtime.

    Attributes:
        metadata: what the file says of itself, as ``foveate.exporters.metadata`` wrote it.
    """

    metadata: JsonObject

    @abstractmethod
    def run(self, images: NDArray[np.generic]) -> Arrays:
        """Give images to the network.

        Args:
            images: in the layout and type that the metadata names, as many as it takes.

        Returns:
            Its outputs in the order of the metadata.

        Raises:
            FoveateError: the runtime does not take them.
        """


class Format(ABC):
    """One format. It is a class without state: a file of its own in ``formats`` is all that a new format needs.

    Attributes:
        name: as the user writes it.
        suffix: of the file that is named first; a format may write others beside it.
        requires: module to import -> distribution to install.
        extra: of foveate's own that brings them; None where the user's own environment must hold them.
        precisions: those that it can be written in.
        inputs: what it can take: "float", "uint8".
        dynamic_batch: whether one file takes any number of images.
        dynamic_size: whether one file takes images of any size.
        holds_detectors: whether a detector with its non-maximum suppression can be written.
        largest_batch: the most images that one file takes at a time; None where there is no such limit.
        example: Python that opens ``FILE``, and makes ``logits`` (K,) of ``images``, and the classes' ``names``.
        example_requires: the distributions that it imports, beside numpy and Pillow.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    requires: ClassVar[Mapping[str, str]] = {}
    extra: ClassVar[str | None] = "export"
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    dynamic_batch: ClassVar[bool] = True
    dynamic_size: ClassVar[bool] = True
    inputs: ClassVar[tuple[str, ...]] = INPUTS
    holds_detectors: ClassVar[bool] = False
    largest_batch: ClassVar[int | None] = None
    example: ClassVar[str]
    example_requires: ClassVar[tuple[str, ...]]

    def check_options(self, options: ExportOptions) -> None:
        """Make sure that a file of this format can be what was asked, before anything is computed.

        Raises:
            FoveateError: it cannot.
        """
        if options.precision not in self.precisions:
            raise FoveateError(f"{self.name} is written in {', '.join(self.precisions)}, not in {options.precision}")
        if options.size == "dynamic" and not self.dynamic_size:
            raise FoveateError(f"{self.name} takes images of one size: give size=, or leave it out for the model's own")
        if options.input not in self.inputs:
            raise FoveateError(
                f"{self.name} does not take input={options.input!r}: leave it out, and prepare the images as the "
                "file's metadata says"
            )
        if options.batch != "dynamic" and self.largest_batch and options.batch > self.largest_batch:
            most = "1 image" if self.largest_batch == 1 else f"{self.largest_batch} images"
            raise FoveateError(f"batch={options.batch}: {self.name} takes {most} at a time at most")

    @abstractmethod
    def convert(self, program: Program, path: Path) -> None:
        """Write the network.

        Args:
            program: the network with all that is known of it.
            path: of the file, in a folder of its own; files beside it are kept, too.

        Raises:
            FoveateError: the format cannot hold this network.
        """

    @abstractmethod
    def open(self, path: Path, threads: int | None = None) -> Session:
        """Open a file of this format.

        Args:
            path: of the file that ``convert`` wrote.
            threads: to compute with; None for the runtime's own choice.

        Raises:
            FoveateError: it is not such a file.
        """

    def foreign_operations(self, path: Path) -> tuple[str, ...]:
        """Operations in a file that its runtime does not know, such as ``aten::`` ones that a converter left."""
        del path
        return ()

    def other_sessions(self, path: Path, threads: int | None = None) -> Mapping[str, Session]:
        """Other ways in which the runtime may compute a file, by what they are called, such as its own default."""
        del path, threads
        return {}

    def runs_here(self) -> str:
        """Why files of this format cannot be run on this machine; an empty text where they can."""
        return ""

    def missing(self) -> tuple[str, ...]:
        """Distributions that are to be installed first."""
        return tuple(sorted({d for module, d in self.requires.items() if importlib.util.find_spec(module) is None}))

    def check_installed(self) -> None:
        """Make sure that what the format needs is installed.

        Raises:
            FoveateError: it is not; the message says how to install it.
        """
        missing = self.missing()
        if missing:
            how = f"'foveate[{self.extra}]'" if self.extra else " ".join(missing)
            raise FoveateError(f"{self.name} needs {', '.join(missing)}: pip install {how}")


def format_names() -> tuple[str, ...]:
    """Every format, by the files in the folder."""
    package = importlib.import_module(_FOLDER)
    return tuple(sorted(info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_")))


def find_format(name: str) -> Format:
    """The format of this name.

    Raises:
        FoveateError: there is none.
    """
    if name not in format_names():
        raise FoveateError(f"there is no export format {name!r}; {near(name, format_names())}")
    module = importlib.import_module(f"{_FOLDER}.{name}")
    made: Callable[[], Format] = getattr(module, module.__all__[0])
    return made()


def format_of_file(path: Path) -> Format | None:
    """The format that a file is of, by its suffix; None for any other file."""
    for name in format_names():
        found = find_format(name)
        if path.name.endswith(found.suffix):
            return found
    return None
