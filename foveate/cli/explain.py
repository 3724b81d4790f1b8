"""The command ``foveate explain``."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

import foveate as fv
from foveate.cli.options import ModelOptions, open_network, say_random
from foveate.cli.process.stopping import kept, when_stopped
from foveate.errors import printable
from foveate.io import JsonObject

__all__ = ["explain"]

_SHARE = "probability"


def explain(
    model: str,
    images: Annotated[list[Path], Parameter(consume_multiple=True)],
    *,
    method: Literal["attention", "cam", "gradcam", "gradcam++", "hirescam"] = "attention",
    target: int | str | None = None,
    layer: str | None = None,
    region: str | None = None,
    window: int | None = None,
    box: int | str | None = None,
    head: int | str | None = None,
    rollout: bool = False,
    pretrained: bool = False,
    plan: str | None = None,
    image_size: int | None = None,
    batch_size: int = 8,
    cells: bool = False,
    output: Path | None = None,
    npz: Path | None = None,
    json: bool = False,
) -> None:
    """Show what a network looks at, drawn over the images.

    Example: `foveate explain runs/mine dog.jpg --method gradcam --target dog`

    Args:
        model: a folder that foveate saved, a timm model, or torchvision:NAME.
        images: image files, folders (the images in them and below), or patterns in quotes such as "dogs/*.jpg".
        method: "attention" shows the mechanisms' own maps, the others what speaks for a class.
        target: the class, by index or name; without it the predicted one.
        layer: the layer for the methods with gradients; without it the last feature map. For the attention of a vision
            transformer a block, as blocks.5.
        region: of a segmentation network, the pixels that are explained: "predicted" as the target, the whole "image",
            or a .png file that is not black where they are.
        window: of a segmentation network, the side in pixels of windows that a large image is seen in.
        box: of a detector, the box whose score is explained: its number in the order of the scores, counted from 1,
            or "all"; without it the best one, with a target the best one of that class.
        head: of a vision transformer's attention, the number of a head, counted from 1, or "mean"; without it each.
        rollout: of a vision transformer's attention, through all blocks.
        pretrained: with a model's name, use its ImageNet weights.
        plan: attention to insert first.
        image_size: side of what the network sees, in pixels; without it the model's own.
        batch_size: images in one pass.
        cells: draw each value of a map as a cell of one colour, as the network has it, not smoothed.
        output: a .png file for one image, or a folder; without it "explained", and with --npz alone no drawing.
        npz: write the maps and predictions as numbers to this .npz file.
        json: print predictions and files as JSON.
    """
    network = open_network(ModelOptions(model, pretrained=pretrained, plan=plan), image_size)
    found = fv.explain(
        network,
        list(images),
        method,
        target=target,
        layer=layer,
        image_size=image_size,
        batch_size=batch_size,
        progress=True,
        region=_mask(region),
        window=window,
        box=box,
        head=head,
        rollout=rollout,
    )
    say_random(model, pretrained=pretrained)
    when_stopped(lambda: kept(output or npz or Path("explained")))
    files = [found.npz(npz)] if npz is not None else []
    if output is not None or npz is None:
        files += found.save(output or "explained", progress=True, smooth=not cells)
    share = "score" if found.objects else _SHARE if found.masks is None else "share_of_pixels"
    rows: list[JsonObject] = [
        {"image": str(image), "prediction": found.label(int(index)), share: float(probability)}
        for image, index, probability in zip(found.sources, found.predictions, found.probabilities, strict=True)
    ]
    if json:
        print(json_format.dumps({"predictions": rows, "files": [str(file) for file in files]}, indent=2))
        return
    for line in rows:
        of = {_SHARE: "", "score": " of the best object"}.get(share, " of the pixels")
        print(printable(f"{line['image']}: {line['prediction']} ({line[share]:.0%}{of})"))
    print(printable(f"written: {', '.join(map(str, files[:3]))}{' ...' if len(files) > 3 else ''}"))


def _mask(region: str | None) -> Any:
    """The region, or the mask in a picture of this name."""
    if region is None or not region.lower().endswith(".png"):
        return region
    import numpy as np
    from PIL import Image

    try:
        fv.open_image(region)  # refuses what is damaged or too large
        with Image.open(region) as opened:
            return np.asarray(opened.convert("L")) > 0
    except (OSError, fv.FoveateError) as error:
        raise fv.FoveateError(f"--region {region}: the picture cannot be read ({error})") from error
