"""The curves of a short training.

The end of a pretrained network learns to tell broken solar cells from whole ones. What stands before `blocks.5.2` is
frozen, and its features are computed once. This is far too little for a verdict: `fv.compare` says how
much would be needed.
"""

import sys

from matplotlib.figure import Figure

import foveate as fv

data = fv.open_data("elpv", limit=96)
recipe = fv.Recipe(
    epochs=4,
    image_size=96,
    batch_size=16,
    augmentation="none",
    freeze="blocks.5.2",
    bn_momentum=0.1,
    head_init_scale=0.01,
)
cache = fv.FeatureCache()
figure = Figure((8, 3.6), layout="constrained")
loss, accuracy = figure.subplots(1, 2)
for plan in ("none", "ulsam(groups=4) after blocks.5.3"):
    model = fv.create_model("tf_efficientnet_lite0", pretrained=True)
    if plan != "none":
        fv.insert(model, plan, start="identity", seed=0)
    found = fv.fit(model, data, recipe, cache=cache, progress=False)
    epochs = range(1, len(found.history) + 1)
    (line,) = loss.plot(epochs, [row["train_loss"] for row in found.history], "--")
    loss.plot(epochs, [row["eval_loss"] for row in found.history], color=line.get_color())
    accuracy.plot(epochs, [100 * row["eval_top1"] for row in found.history], color=line.get_color(), label=plan)
loss.set_ylabel("loss (dashed: training)")
accuracy.set_ylabel("validation accuracy, per cent")
for axes in (loss, accuracy):
    axes.set_xlabel("epoch")
    axes.set_xticks(list(epochs))
accuracy.legend(fontsize=8)
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "training_curves.png")
