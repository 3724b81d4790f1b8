"""Attention that starts without changing a prediction.

With `start="identity"` a gate of 0 stands around each module: the pretrained network predicts what it predicted, to
the last bit. With the module's own start the scores move before anything is trained.
"""

import sys

import torch
from matplotlib.figure import Figure

import foveate as fv

data = fv.open_data("elpv", limit=2)
model = fv.create_model("tf_efficientnet_lite0", pretrained=True)


def scores() -> torch.Tensor:
    """The probabilities of the 1,000 ImageNet classes for one solar cell."""
    (found,) = fv.predict(model, [data.val.load(0)])
    return torch.as_tensor(found.probabilities)


before = scores()
figure = Figure((8, 3.6), layout="constrained")
cells = figure.subplots(1, 2, sharey=True)
for cell, start in zip(cells, ("identity", "mechanism"), strict=True):
    fv.insert(model, "se after blocks.4.2; se after blocks.5.3", start=start, seed=0)
    after = scores()
    fv.remove(model)
    cell.loglog(before, after, ".")
    cell.set_title(f"start={start!r}: largest change {float((after - before).abs().max()):.2g}")
    cell.set_xlabel("probability of a class, plain network")
cells[0].set_ylabel("with attention")
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "start_as_the_network_was.png")
