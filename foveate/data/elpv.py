"""Solar cells: 2,624 electroluminescence images of the ELPV data set, from the package ``elpv-dataset``.

Buerhop-Lutz et al., "A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence Imagery",
EU PVSEC 2018, https://doi.org/10.4229/35thEUPVSEC20182018-5CV.3.15; Deitsch et al., "Automatic classification of
defective photovoltaic module cells in electroluminescence images", Solar Energy 185, 2019.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

from foveate.data.division import spread
from foveate.data.split import ImageData, Split
from foveate.errors import FoveateError

__all__ = ["LICENCE", "read_elpv"]

LICENCE = (
    "ELPV data set: CC BY-NC-SA 4.0, for non-commercial use only. "
    "Cite Buerhop-Lutz et al., EU PVSEC 2018, and Deitsch et al., Solar Energy 185, 2019."
)
BLOCK = 60
"""Cells of a block: the 2,624 cells come from 44 modules, most of them of 60 cells."""


def read_elpv(seed: int, val_fraction: float) -> ImageData:
    """Read the solar cells: ``functional``, or ``defective`` where the defect probability is above 0.5.

    Neighbouring cells come from the same module and look alike, and the package does not say from which. A random
    split would put neighbours on both sides and flatter the network. So blocks of 60 cells in file order, begun anew
    where the kind of panel changes, go to one side as a whole; validation gets evenly spread blocks, because
    the file order runs from modules with many defects to modules with few.

    Args:
        seed: shifts which blocks are for validation.
        val_fraction: part of the blocks that is for validation.

    Returns:
        The data set, with its licence.

    Raises:
        FoveateError: the package is not installed, or its files are not as expected.
    """
    package = importlib.util.find_spec("elpv_dataset")
    if package is None or package.origin is None:
        raise FoveateError("the data set elpv is not installed: pip install 'foveate[demo]'")
    folder = Path(package.origin).parent / "data"
    sources, labels, blocks = [], [], []
    kind_before, block, filled = "", -1, 0
    try:
        for line in (folder / "labels.csv").read_text("utf-8").splitlines():
            name, probability, kind, *_ = line.split()  # 1.0.0 has a split of its own behind them, 1.0.0.post1 none
            if kind != kind_before or filled == BLOCK:
                kind_before, block, filled = kind, block + 1, 0
            filled += 1
            sources.append(name)
            labels.append(int(float(probability) > 0.5))
            blocks.append(block)
    except (OSError, ValueError) as error:
        raise FoveateError(f"the data set elpv is damaged: {error}: reinstall elpv-dataset") from error
    first, second = spread(blocks, val_fraction, seed)
    paths = tuple(str(folder / name) for name in sources)
    whole = Split("train", paths, tuple(labels), tuple(sources))
    val = replace(whole.subset(second), name="val")
    count = len({blocks[index] for index in second})
    note = (
        f"{count} of {block + 1} blocks of up to {BLOCK} neighbouring cells for validation, evenly spread over the "
        f"file order, seed {seed}; the package does not say which cells share a module"
    )
    return ImageData("elpv", ("functional", "defective"), whole.subset(first), val, LICENCE, note)
