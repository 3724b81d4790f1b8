"""What plans cost, all of a family at once.

A family is many plans in one line. Each is put into the same network, counted, and taken out again; the network is not
run, and nothing is trained.
"""

import sys

from matplotlib.figure import Figure

import foveate as fv

family = fv.Family.parse("se|cbam|bam|ulsam(groups=4)|identity after|replacing blocks.5.3")
model = fv.create_model("tf_efficientnet_lite0")
without = fv.cost(model)
figure = Figure((8, 4.5), layout="constrained")
axes = figure.subplots()
for plan in family:
    cost = fv.cost(fv.insert(model, plan))
    marker = "s" if "replacing" in str(plan) else "o"
    axes.plot(cost.macs / 1e6, cost.params / 1e6, marker, markersize=8, label=str(plan))
    fv.remove(model)
axes.plot(without.macs / 1e6, without.params / 1e6, "k*", markersize=12, label="without attention")
axes.set_xlabel("million MACs")
axes.set_ylabel("million parameters")
axes.legend(fontsize=8)
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "what_plans_cost.png")
