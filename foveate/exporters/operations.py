"""Which operation a converter stopped at, and which part of the plan brings it: for messages that help."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.exporters.program import AttentionSite, Program, quiet, reason

__all__ = ["converting", "operations_of_export", "operations_of_trace", "refusal", "traced"]

T = TypeVar("T")


class Operation(NamedTuple):
    """One operation of a network.

    Args:
        name: without its library.
        module: the dotted name of the module that calls it.
        node: its name in the graph, where converters name it.
    """

    name: str
    module: str
    node: str = ""


def converting(
    program: Program,
    title: str,
    exported: torch.export.ExportedProgram,
    convert: Callable[[Any], T],
    alone: Callable[[Any], Any] | None = None,
) -> T:
    """Run a converter on a graph of torch's; what it raises becomes one line.

    Args:
        program: what is converted.
        title: of the format.
        exported: the graph, as ``Program.exported`` gives it.
        convert: graph -> whatever the converter makes of it.
        alone: the same for a part of the network, to find the one that stops it where no operation is named.

    Raises:
        FoveateError: the converter stopped; the message names the operation and the part of the plan that brings it.
    """
    try:
        with quiet(), torch.no_grad():
            return convert(exported)
    except FoveateError:
        raise
    except Exception as error:  # each converter raises what it likes
        raise refusal(program, title, error, operations_of_export(exported), alone) from error


def refusal(
    program: Program,
    title: str,
    error: Exception,
    operations: Sequence[Operation],
    alone: Callable[[Any], Any] | None = None,
) -> FoveateError:
    """The line that says what a format cannot hold.

    Args:
        program: what is converted.
        title: of the format.
        error: what the converter said.
        operations: of the network.
        alone: the converter, to be tried with each part of the plan where the error names no operation.
    """
    text = _all_of(error)
    named = {operation.name for operation in operations if _names(text, operation.name)}
    # The first node in the text is the one that the converter stopped at, those behind it are its inputs.
    nodes = {f"%{operation.node}": operation for operation in operations if operation.node}
    stopped = next((nodes[word] for word in re.findall(r"%\w+", text) if word in nodes), None)
    if stopped:
        operations = [stopped]
    operation = stopped.name if stopped else max(named, key=len, default="")
    found = [part for part in program.parts if operation and _holds(part, operation, operations)]
    if not operation and alone is not None:
        found = _alone(program, alone)
    whose = f" in {' and '.join(f'{part.mechanism} at {part.site}' for part in found)}" if found else ""
    what = f"has no form for the operation {operation!r}{whose}" if operation else f"cannot hold the network{whose}"
    why, advice = reason(error)[:300], "; take that part out, or another format" if found else ""
    # Where the operation is known, a line that does not speak of it is the converter's own affair.
    said = f": {why}" if not operation or operation in why else ""
    return FoveateError(f"{title} {what}{said}{advice}")


def traced(program: Program) -> Any:
    """The network as torch.jit.trace writes it down, for converters that do not take torch.export's graphs."""
    trace: Callable[..., Any] = torch.jit.trace
    with quiet(), torch.no_grad():
        return trace(program.network, (program.example,), check_trace=False)


def operations_of_trace(graph: torch.Graph) -> list[Operation]:
    """The operations of a graph that torch.jit.trace wrote down."""
    found = []
    for node in graph.nodes():
        scope = node.scopeName().rpartition("/")[2].removeprefix("__module.").removeprefix("network.")
        found.append(Operation(node.kind().rpartition("::")[2], scope))
    return found


def operations_of_export(exported: torch.export.ExportedProgram) -> list[Operation]:
    """Those of the graph; and of the smaller set that converters turn it into, whose nodes they name."""
    with quiet(), torch.no_grad():
        decomposed = exported.run_decompositions().graph
    nodes = [(node, False) for node in exported.graph.nodes] + [(node, True) for node in decomposed.nodes]
    found = []
    for node, named in nodes:
        if node.op == "call_function":
            stack = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
            name = str(getattr(node.target, "_opname", getattr(node.target, "__name__", node.target)))
            module = stack[-1].removeprefix("network.") if stack else ""
            found.append(Operation(name, module, node.name if named else ""))
    return found


def _all_of(error: BaseException) -> str:
    """What an error says, and those that it came from."""
    chain = [error]
    while (inner := chain[-1].__cause__) is not None and inner not in chain:
        chain.append(inner)
    return " ".join(map(str, chain))


def _names(text: str, operation: str) -> bool:
    """Whether an operation's name stands in a text: quoted, or behind its library's name."""
    return re.search(rf"(?:\baten[.:]+|\bnode |[‘'\"`]){re.escape(operation)}(?!\w)", text) is not None


def _holds(part: AttentionSite, operation: str, operations: Sequence[Operation]) -> bool:
    within = f"{part.module}."
    return any(each.name == operation and f"{each.module}.".startswith(within) for each in operations)


def _alone(program: Program, convert: Callable[[Any], Any]) -> list[AttentionSite]:
    """The first part of the plan that the converter does not take by itself either."""
    network = program.network.network
    for part in program.parts:
        module, given = network.get_submodule(part.module), _inputs(program, part)
        if given is None:
            continue
        try:
            with quiet(), torch.no_grad():
                convert(torch.export.export(module, given, strict=False))
        except Exception:  # noqa: BLE001 - each converter raises what it likes
            return [part]
    return []


def _inputs(program: Program, part: AttentionSite) -> tuple[Any, ...] | None:
    """What a part gets when the network runs."""
    seen: list[tuple[Any, ...]] = []

    def watch(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs)

    handle = program.network.network.get_submodule(part.module).register_forward_pre_hook(watch)
    try:
        with torch.no_grad():
            program.network(program.example)
    finally:
        handle.remove()
    return seen[0] if seen else None
