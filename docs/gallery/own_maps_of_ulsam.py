"""The own maps of ULSAM, one for each group of channels.

Explanations such as Grad-CAM are computed from outside; an attention module has maps of its own. Each cell shows one:
where that part of the channels is taken from. After so short a training some maps are
still uniform, and the drawing says so.
"""

import sys

import foveate as fv

data = fv.open_data("elpv", limit=96)
recipe = fv.Recipe(
    epochs=3,
    image_size=128,
    batch_size=16,
    augmentation="none",
    freeze="blocks.5.2",
    bn_momentum=0.1,
    head_init_scale=0.01,
)
model = fv.create_model("tf_efficientnet_lite0", pretrained=True)
fv.insert(model, "ulsam(groups=4) after blocks.5.3", seed=0)
fv.fit(model, data, recipe, progress=False)
broken = data.val.labels.index(data.classes.index("defective"))
found = fv.explain(model, [data.val.load(broken)], "attention")
found.draw(true="defective").save(sys.argv[1] if len(sys.argv) > 1 else "own_maps_of_ulsam.png")
