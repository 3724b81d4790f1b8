"""Other forms of ULSAM, and controls, for the questions g and j of docs/reports/evidence.md.

    paper      out_n = F_n + A_n * F_n, where A_n sums to one: a feature changes by 1/(hw) of itself on average
    mean_one   out_n = F_n + hw A_n * F_n
    gain       out_n = F_n + gain_n hw A_n * F_n, where gain_n is learned and begins at zero
    sigmoid    out_n = F_n + sigmoid(scores_n) * F_n, without the ReLU before it, which would leave no weight under 1/2
    uniform    out = F + F / (hw): the paper's form with all weights equal; nothing is learned
    twice      out = 2 F: mean_one with all weights equal; nothing is learned
    affine     out = scale_c F_c + shift_c for each channel c: learned, begins as the identity, not spatial

Importing this file registers ``ulsam_form(form="...", groups=4)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.attention.ulsam import ULSAM
from foveate.errors import FoveateError
from foveate.kernels.ulsam.reference import reweight
from foveate.registry import register

FORMS = ("mean_one", "gain", "sigmoid", "uniform", "twice", "affine")


@register("ulsam_form")
class ULSAMForm(nn.Module):
    """ULSAM's map in another form, or a control.

    Args:
        channels: of x.
        form: see above.
        groups: subspaces, as ULSAM's.

    Raises:
        FoveateError: there is no such form.
    """

    map_axes = "b g h w"

    def __init__(self, channels: int, *, form: str = "mean_one", groups: int = 4) -> None:
        super().__init__()
        if form not in FORMS:
            raise FoveateError(f"ulsam_form has no form {form!r}; there are {', '.join(FORMS)}")
        self.form, self.groups = form, groups
        if form == "affine":
            self.scale = nn.Parameter(torch.ones(channels))
            self.shift = nn.Parameter(torch.zeros(channels))
        elif form not in ("uniform", "twice"):
            self.ulsam = ULSAM(channels, groups=groups)
        if form == "gain":
            self.gain = nn.Parameter(torch.zeros(groups))

    def attend(self, x: Tensor) -> Tensor:
        """The weights of the features, (B, g, h, w)."""
        shape = (x.shape[0], self.groups, *x.shape[2:])
        if self.form in ("uniform", "twice", "affine"):
            return x.new_full(shape, 1.0 if self.form == "twice" else 1 / (shape[2] * shape[3]))
        if self.form == "sigmoid":
            own = self.ulsam
            hidden = F.max_pool2d(F.relu(own.bn_dws(own.conv_dws(x))), kernel_size=3, stride=1, padding=1)
            return own.bn_point(own.conv_point(hidden)).sigmoid()
        weights = self.ulsam.attend(x) * (shape[2] * shape[3])
        return weights * self.gain[:, None, None] if self.form == "gain" else weights

    def forward(self, x: Tensor) -> Tensor:
        """x + A * x, subspace by subspace; scale * x + shift for ``affine``."""
        if self.form == "affine":
            return x * self.scale[:, None, None] + self.shift[:, None, None]
        return reweight(x, self.attend(x))
