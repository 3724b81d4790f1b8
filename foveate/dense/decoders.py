"""What is read from a trunk's feature maps, by name: the checks of a network's parts, and its decoder."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from foveate.dense.taps import Taps
from foveate.errors import FoveateError, first_line, near
from foveate.spec import Spec

__all__ = ["build_decoder", "check_parts"]


def check_parts(kind: str, backbone: object, head: str | Spec, classes: object, decoders: Mapping[str, Any]) -> Spec:
    """The head that is meant, once the parts of a network are seen to be such.

    Args:
        kind: the task and what its networks are called: "segmentation segmenter".
        backbone: the trunk.
        head: name and options.
        classes: how many.
        decoders: the heads by name.

    Raises:
        FoveateError: there is no such head, the trunk is not a network, or there is no class.
    """
    task, network = kind.split()
    spec = Spec.parse(str(head))
    if spec.name not in decoders:
        raise FoveateError(f"no {task} head is called {spec.name!r}; {near(spec.name, decoders)}")
    if not isinstance(backbone, nn.Module):
        raise FoveateError(f"a {network}'s backbone is a network, not a {type(backbone).__name__}: build it first")
    if type(classes) is not int or classes < 1:
        raise FoveateError(f"classes={classes!r}: a {network} has 1 class or more")
    return spec


def build_decoder(spec: Spec, decoders: Mapping[str, Any], taps: Taps, classes: int) -> Any:
    """The decoder, a module.

    Args:
        spec: one of ``decoders``, with options.
        decoders: the heads by name.
        taps: the feature maps that it reads.
        classes: K.

    Raises:
        FoveateError: an option does not exist, or its value does not fit.
    """
    decoder = decoders[spec.name]
    parameters = inspect.signature(decoder).parameters.values()
    options = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for key in spec.kwargs:
        if key not in options:
            raise FoveateError(f"{spec.name} has no option {key!r}; {near(key, options)}")
    try:
        return decoder(taps.channels, taps.strides, classes, **spec.kwargs)
    except FoveateError as error:
        said = str(error)
        raise FoveateError(said if said.startswith(spec.name) else f"{spec.name}: {said}") from error
    except Exception as error:
        raise FoveateError(f"{spec} cannot be built: {first_line(error)}") from error
