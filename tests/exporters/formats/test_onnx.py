"""ONNX: how long the graph is."""

import pytest

import foveate as fv

pytestmark = pytest.mark.slow(
    reason="two exports for the length of a graph",
    guards=(
        "foveate/exporters/",
        "foveate/attention/",
    ),
)

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def test_groups_do_not_make_the_graph_longer(network, tmp_path):
    """ULSAM's subspaces are computed together: a file with 16 has the nodes of a file with one."""
    kinds = []
    for groups in (1, 16):
        model = network(f"ulsam(groups={groups}) after layer3")
        made = fv.export(model, "onnx", tmp_path / f"{groups}.onnx", size=64, images=1, check=False)
        kinds.append([node.op_type for node in onnx.load(made.path).graph.node])
    assert kinds[0] == kinds[1]
