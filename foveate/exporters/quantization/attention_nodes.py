"""Where the attention is in an ONNX graph: the tensor that it reads, and the one that the next layer reads from it.

torch's exporter writes on each node the modules that it comes from; those of an attention module hold its name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.exporters.program import AttentionSite

if TYPE_CHECKING:
    import onnx

__all__ = ["AttentionNodes", "OnnxGraph", "Step", "find_attention"]

_SCOPES = "pkg.torch.onnx.name_scopes"
_NETWORK = "network"  # as DeployableNetwork calls it
_FOLLOWED = ("Relu", "Clip", "Transpose", "Identity")  # a quantizer joins these with the layer before them
_FLOATS = (1, 10)  # float32 and float16, as ONNX numbers them


class OnnxGraph:
    """Who makes and who reads each tensor of a graph.

    Args:
        model: its main graph is looked at.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: list[Any] = list(model.graph.node)
        self.initializers = {each.name: each for each in model.graph.initializer}
        self.outputs = [output.name for output in model.graph.output]
        self.producers: dict[str, Any] = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[Any]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.readers[name].append(node)
        values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
        self._types = {value.name: value.type.tensor_type for value in values}

    def scopes(self, node: Any) -> str:
        """The modules that a node comes from, as torch wrote them; an empty text where it wrote none."""
        return next((str(entry.value) for entry in node.metadata_props if entry.key == _SCOPES), "")

    def inside(self, module: str) -> list[Any]:
        """The nodes of one module of the network and of its parts."""
        return [node for node in self.nodes if f"'{_NETWORK}.{module}'" in self.scopes(node)]

    def outside(self) -> list[str]:
        """Nodes before and after the network: of the preparation of pixels, of probabilities, of maps."""
        towards = self.before(self.outputs[0])
        return [node.name for node in self.nodes if f"'{_NETWORK}'" not in self.scopes(node) or id(node) not in towards]

    def before(self, tensor: str) -> set[int]:
        """Ids of the nodes that a tensor is computed by."""
        found: set[int] = set()
        waiting = [tensor]
        while waiting:
            node = self.producers.get(waiting.pop())
            if node is not None and id(node) not in found:
                found.add(id(node))
                waiting += [name for name in node.input if name]
        return found

    def is_feature_map(self, tensor: str) -> bool:
        """Whether a tensor holds real numbers, with four axes as far as the graph says how many."""
        if tensor in self.initializers:
            return False
        kind = self._types.get(tensor)
        if kind is None:
            return True
        ranked = kind.HasField("shape")
        return kind.elem_type in _FLOATS and (not ranked or len(kind.shape.dim) == 4)

    def constant(self, tensor: str) -> np.ndarray[Any, Any]:
        """The value of an initializer."""
        from onnx import numpy_helper

        return np.asarray(numpy_helper.to_array(self.initializers[tensor]))


@dataclass(frozen=True)
class Step:
    """A layer without weights that stands between the attention and the next layer.

    Args:
        kind: "Relu", "Clip" or "Transpose".
        least: of a Clip.
        most: of a Clip.
        order: of a Transpose.
    """

    kind: str
    least: float = -np.inf
    most: float = np.inf
    order: tuple[int, ...] = ()

    def __call__(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """What it makes of an array."""
        if self.kind == "Transpose":
            return values.transpose(self.order)
        return values.clip(self.least, self.most)


@dataclass(frozen=True)
class AttentionNodes:
    """One attention module in a graph.

    Args:
        site: where it stands in the network.
        nodes: the names of its own nodes.
        x: the tensor that it reads; empty where it cannot be found.
        out: the tensor that it gives.
        read: the tensor that the next layer reads: ``out``, or what ``steps`` make of it.
        steps: layers without weights between the two.
        neighbours: the nodes that make x, and those that read x or ``read``.
        reason: why it cannot be found.
    """

    site: AttentionSite
    nodes: tuple[str, ...] = ()
    x: str = ""
    out: str = ""
    read: str = ""
    steps: tuple[Step, ...] = ()
    neighbours: tuple[str, ...] = field(default=(), repr=False)
    reason: str = ""


def find_attention(graph: OnnxGraph, sites: Sequence[AttentionSite]) -> tuple[AttentionNodes, ...]:
    """Each attention module in the graph; one that the converter joined with a neighbour says so in ``reason``.

    Args:
        graph: in 32 bit, as torch exported it.
        sites: of the network.
    """
    towards = graph.before(graph.outputs[0])
    return tuple(_find(graph, site, towards) for site in sites)


def _find(graph: OnnxGraph, site: AttentionSite, towards: set[int]) -> AttentionNodes:
    inside = [node for node in graph.inside(site.module) if id(node) in towards]
    ids, made = {id(node) for node in inside}, {name for node in inside for name in node.output}
    if not inside:
        return AttentionNodes(site, reason="it computes nothing")
    entering = [name for node in inside for name in node.input if name and name not in made]
    entering = [name for name in dict.fromkeys(entering) if graph.is_feature_map(name)]
    leaving = [
        name
        for node in inside
        for name in node.output
        if graph.is_feature_map(name) and any(id(one) in towards and id(one) not in ids for one in graph.readers[name])
    ]
    if len(entering) != 1 or not leaving:
        return AttentionNodes(site, reason="the converter joined it with the layers around it")
    x, out = entering[0], leaving[-1]
    read, steps, passed = _follow(graph, out)
    behind = [*passed, *(node for name in {x, out, read} for node in _past_layout(graph, name))]
    around = [*_before(graph, x), *behind]
    names = dict.fromkeys(node.name for node in around if id(node) not in ids)
    return AttentionNodes(
        site, tuple(node.name for node in inside), x, out, read, tuple(steps), neighbours=tuple(names)
    )


def _follow(graph: OnnxGraph, out: str) -> tuple[str, list[Step], list[Any]]:
    """The tensor that the next layer with weights reads, and what stands between."""
    steps, passed = [], []
    while len(graph.readers[out]) == 1 and graph.readers[out][0].op_type in _FOLLOWED and out not in graph.outputs:
        node = graph.readers[out][0]
        if node.op_type == "Transpose":
            steps.append(Step("Transpose", order=tuple(node.attribute[0].ints)))
        elif node.op_type == "Relu":
            steps.append(Step("Relu", least=0.0))
        elif node.op_type == "Clip":
            if any(name and name not in graph.initializers for name in node.input[1:3]):
                break
            limits = [float(graph.constant(name)) if name else None for name in node.input[1:3]]
            low, high = (*limits, None, None)[:2]
            steps.append(Step("Clip", -np.inf if low is None else low, np.inf if high is None else high))
        passed.append(node)
        out = node.output[0]
    return out, steps, passed


def _before(graph: OnnxGraph, tensor: str) -> list[Any]:
    """The node that makes a tensor, and those before it as long as they have no weights."""
    found = []
    while (node := graph.producers.get(tensor)) is not None:
        found.append(node)
        if node.op_type not in _FOLLOWED:
            break
        tensor = node.input[0]
    return found


def _past_layout(graph: OnnxGraph, tensor: str) -> list[Any]:
    """The nodes that read a tensor, and those behind a change of layout."""
    found = []
    for node in graph.readers[tensor]:
        found.append(node)
        if node.op_type in _FOLLOWED:
            found += _past_layout(graph, node.output[0])
    return found
