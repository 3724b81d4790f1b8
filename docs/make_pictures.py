"""Draw the pictures of README.md and docs/: each mechanism's own map of one photograph, after a short training.

    pip install --no-deps scikit-image
    python docs/make_pictures.py --data imagewoof2_128sq            # all, about half an hour on one core
    python docs/make_pictures.py --data imagewoof2_128sq se cbam    # some

The photograph is scikit-image's "chelsea", by Stefan van der Walt, CC0. The network is EfficientNet-Lite0 with the
ImageNet weights of the extra ``demo``. A mechanism that was just inserted has random weights, so it is trained first,
with all layers behind it; what stands before it is frozen. The data is Imagewoof (ten breeds of dogs; any folder
that ``foveate.open_data`` reads will do). Its photographs are from ImageNet: the weights have seen them, and the
accuracy that is printed is not a result. What was trained is kept in ``--runs`` and not trained again.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import foveate as fv
from foveate import registry
from foveate.explanations.overlay import colours, is_uniform
from foveate.images import Preprocess, open_image
from foveate.training.input.feature_cache import FeatureCache

OUTPUT = Path(__file__).parent / "images"
# Behind the end of a block this network's features have a standard deviation of about 6, and a softmax over products of
# them is one place and no more. Behind an activation they have 0.8.
MODEL, SITE, FROZEN = "tf_efficientnet_lite0", "blocks.5.0.bn1", "blocks.4.2"
RECIPE = fv.Recipe(
    epochs=4,
    learning_rate=1e-3,
    image_size=192,
    batch_size=16,
    augmentation="none",
    freeze=FROZEN,
    bn_momentum=0.1,
    head_init_scale=0.01,
)
# With AdamW the products of these grow, at a rate of 2e-4 as well, until each place looks at one place only.
SGD = RECIPE.with_(optimiser="sgd", learning_rate=0.01)
WITH_SGD = ("danet", "non_local", "position", "sparse")
TRAIN, VALIDATE = 600, 200  # images

# NAME -> plan, for every mechanism whose ``map_axes`` ``panels`` knows.
PLANS = {name: f"{name} after {SITE}" for name in registry.names() if hasattr(registry.find(name), "attend")} | {
    "danet": f"danet(residual='once') after {SITE}",
}
# Places of the photograph that look, as shares of its height and width.
LOOKS = {"eye": (0.35, 0.34), "nose": (0.86, 0.65), "right edge": (0.72, 0.96)}
AXES_WITH_Q = {"b q h w": tuple(LOOKS), "b k q h w": ("nose",)}


@dataclass(frozen=True)
class Panel:
    """One cell.

    Args:
        title: above it.
        values: a map (h, w), weights (c,) that become bars, or all pairs of channels (c, c).
        look: the place that looks, in ``LOOKS``.
        pairs: the values are all pairs of channels.
        pattern: places that are 0 are left out by the mechanism.
    """

    title: str
    values: Tensor
    look: str | None = None
    pairs: bool = False
    pattern: bool = False


def trained(name: str, data: fv.ImageData, cache: FeatureCache, runs: Path) -> nn.Module:
    """The network with one mechanism, trained, or as an earlier run left it."""
    model = fv.create_model(MODEL, pretrained=True)
    fv.insert(model, PLANS[name], seed=RECIPE.seed)
    recipe = SGD if name in WITH_SGD else RECIPE
    found = fv.fit(model, data, recipe, output=runs / name, resume=True, progress=False, cache=cache)
    print(f"{name}: {found.evaluation.top1:.3f} of {len(data.val)} images right, {found.seconds:.0f} s")
    return model


def own_map(model: nn.Module, images: Tensor) -> tuple[Tensor, str]:
    """What the mechanism's ``attend`` gives for the input that it gets, without the batch, and its axes."""
    module = next(iter(fv.attentions(model).values()))
    found = []
    hook = module.register_forward_pre_hook(lambda mechanism, args: found.append(mechanism.attend(*args)))
    model.eval()
    with torch.no_grad():
        model(images)
    hook.remove()
    values = found[0][-1] if isinstance(found[0], tuple) else found[0]  # a head has a map for each level: the coarsest
    return values[0], str(module.map_axes)


def panels(values: Tensor, axes: str) -> list[Panel]:
    """What to draw of a map whose axes are ``axes``, the batch left out."""
    if axes == "b c":
        return [Panel(f"{len(values)} channels", values)]
    if axes == "b q c":
        taken = Panel("how much each channel is taken, mean", values.mean(dim=0))
        return [Panel("pairs of channels", values, pairs=True), taken]
    if axes == "b c h w":
        return [Panel("mean over channels", values.mean(dim=0)), Panel("mean over positions", values.mean(dim=(1, 2)))]
    if axes in AXES_WITH_Q:
        heads = values[None] if axes == "b q h w" else values[[0, -1]]
        words = [""] if axes == "b q h w" else [f", head {n}/{len(values)}" for n in (1, len(values))]
        found = [(head, word, look) for look in AXES_WITH_Q[axes] for head, word in zip(heads, words, strict=True)]
        return [
            Panel(f"from the {look}{word}", head[place(look, *head.shape[1:])], look, pattern="k" in axes)
            for head, word, look in found
        ]
    maps = values.reshape(-1, *values.shape[-2:])
    return [
        Panel(f"map {n} of {len(maps)}" if len(maps) > 1 else "its map", maps[n - 1]) for n in (1, 2, 3)[: len(maps)]
    ]


def place(look: str, height: int, width: int) -> int:
    """The number, in raster order, of the place that looks."""
    down, right = LOOKS[look]
    return int(down * height) * width + int(right * width)


def scale(panel: Panel) -> str:
    """How far from even the numbers are, in units of their mean: for a softmax over places, of the uniform value."""
    values = panel.values
    seen = values[values > 0] if panel.pattern else values.flatten()
    unit = "uniform" if abs(float(values.sum()) - 1) < 1e-3 else f"mean {seen.mean():.2g}"
    if is_uniform(seen[None]):
        return unit
    low, high = (float(value / seen.mean()) for value in (seen.min(), seen.max()))
    over = f"\nover {len(seen)} places" if len(seen) < values.numel() else ""
    return f"{number(low)} to {number(high)} × {unit}{over}"


def number(ratio: float) -> str:
    """Two digits of a ratio."""
    return "<0.01" if ratio < 0.01 else f"{ratio:.2g}" if ratio < 10 else f"{ratio:.0f}"


def draw(picture: Image.Image, found: Sequence[Panel]) -> Image.Image:
    """The photograph, and the panels beside it."""
    shares = [2.0 if panel.values.ndim == 1 else 1.0 for panel in found]
    figure = Figure((1.75 * (1 + sum(shares)), 2.3), dpi=100, layout="constrained")
    photograph, *cells = figure.subplots(1, 1 + len(found), width_ratios=[1.0, *shares])
    photograph.imshow(picture)
    photograph.set_title("photograph", fontsize=9)
    for cell, panel in zip(cells, found, strict=True):
        cell.set_title(panel.title, fontsize=9)
        if panel.values.ndim == 1:
            cell.stairs(panel.values.tolist(), fill=True, color="#782882")
            cell.tick_params(labelsize=8)
            cell.spines[["top", "right"]].set_visible(False)
            cell.set_xlabel(f"channel; {scale(panel)}", fontsize=8)
            continue
        if panel.pairs:
            small = F.adaptive_max_pool2d(panel.values[None], 112)[0]  # so that a single pair is seen
            cell.imshow(small, cmap="inferno", vmin=0, vmax=1)
            cell.set_xlabel(f"{len(panel.values)} channels each way", fontsize=8)
            continue
        cell.imshow(colours(picture, panel.values))
        cell.set_xlabel(scale(panel), fontsize=8)
        if panel.look is not None:
            down, right = LOOKS[panel.look]
            for axes in (cell, photograph):
                axes.plot(right * picture.width, down * picture.height, "o", ms=6, mfc="none", mec="white", mew=1.5)
    for cell, panel in zip([photograph, *cells], [None, *found], strict=True):
        if panel is None or panel.values.ndim == 2:
            cell.set_xticks([])
            cell.set_yticks([])
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return Image.open(png).convert("RGB")


def save(picture: Image.Image, name: str, shades: int = 96) -> None:
    """Write a PNG file with few colours: a third of the bytes, and hardly a difference to the eye."""
    OUTPUT.mkdir(exist_ok=True)
    few = picture.quantize(shades, Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE)
    few.save(OUTPUT / name, optimize=True)


def photograph() -> Path:
    """The cat."""
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise SystemExit("scikit-image, which holds the photograph, is not installed")
    return Path(package.origin).parent / "data" / "chelsea.png"


def main() -> None:
    """Train what is asked for, and draw it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(PLANS)}, or gradcam; without a name all")
    parser.add_argument("--data", help="a folder with Imagewoof, or the like")
    parser.add_argument("--runs", default="runs/pictures", type=Path, help="where what was trained is kept")
    arguments = parser.parse_args()
    names = arguments.names or ["gradcam", *PLANS]
    cat = photograph()
    if "gradcam" in names:
        found = fv.explain(fv.create_model(MODEL, pretrained=True), cat, "gradcam")
        save(found.draw(), "chelsea_gradcam.png", shades=256)
    names = [name for name in names if name != "gradcam"]
    if not names:
        return
    if arguments.data is None:
        raise SystemExit("--data: name the folder of images to train on")
    data = fv.open_data(arguments.data, limit=TRAIN, seed=RECIPE.seed)
    data = replace(data, val=data.val.subset(range(VALIDATE)))
    cache = FeatureCache()
    for name in names:
        model = trained(name, data, cache, arguments.runs)
        preprocess, image = Preprocess.of(model), open_image(cat)
        values, axes = own_map(model, preprocess(image)[None])
        save(draw(preprocess.view(image), panels(values, axes)), f"{name}.png")


if __name__ == "__main__":
    main()
