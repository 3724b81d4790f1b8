"""Where attention can go, and how large the maps are there.

`fv.sites` lists the stages and blocks of a network in its order. Early maps are large and have few channels: attention
over positions costs most there. Blocks that keep the shape can also be replaced.
"""

import sys

from matplotlib.figure import Figure

import foveate as fv

sites = [site for site in fv.sites(fv.create_model("tf_efficientnet_lite0")) if site.kind == "block"]
figure = Figure((8, 4), layout="constrained")
pixels, channels = figure.subplots(2, 1, sharex=True)
names = [site.name.removeprefix("blocks.") for site in sites]
colours = ["#00796b" if site.replaceable else "#90a4ae" for site in sites]
pixels.bar(names, [site.height * site.width for site in sites], color=colours)
pixels.set_yscale("log")
pixels.set_ylabel("positions of the map")
channels.bar(names, [site.channels for site in sites], color=colours)
channels.set_ylabel("channels")
channels.set_xlabel("block (green: keeps the shape, so that attention can take its place)")
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "where_attention_can_go.png")
