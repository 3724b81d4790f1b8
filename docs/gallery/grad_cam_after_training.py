"""Grad-CAM of solar cells, after a short training.

Where in the picture does the evidence for the predicted class lie? The drawing names the prediction and the true class.
"""

import sys

import foveate as fv

data = fv.open_data("elpv", limit=96)
recipe = fv.Recipe(
    epochs=3,
    image_size=96,
    batch_size=16,
    augmentation="none",
    freeze="blocks.5.2",
    bn_momentum=0.1,
    head_init_scale=0.01,
)
model = fv.create_model("tf_efficientnet_lite0", pretrained=True)
fv.fit(model, data, recipe, progress=False)
broken = data.val.labels.index(data.classes.index("defective"))
found = fv.explain(model, [data.val.load(broken)], "gradcam")
found.draw(true="defective").save(sys.argv[1] if len(sys.argv) > 1 else "grad_cam_after_training.png")
