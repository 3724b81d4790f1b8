"""What low precision leaves of a contribution, where it is known by hand."""

import pytest
import torch
from torch import nn

from foveate.studies.evaluation.low_precision import PRECISIONS, LowPrecision


class Apply(nn.Module):
    """output = function(x)."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def survival(function, *batches):
    measured = LowPrecision(Apply(function))
    for x in batches:
        measured.range(x, function(x))
    for x in batches:
        measured.see(x, function(x))
    return measured.result()


def features(seed=0, scale=1.0):
    return scale * torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(seed)).relu()


def test_it_erases_a_small_contribution():
    strong, weak = (survival(lambda x, gain=gain: x * gain, features()) for gain in (1.5, 1 + 1e-4))
    for name in PRECISIONS:
        assert strong[name].correlation > 0.99
        assert strong[name].changed > 0.9
        assert strong[name].norm_ratio == pytest.approx(1, abs=0.02)
        assert strong[name].relative_error < 0.05
    assert (weak["bf16"].changed, weak["bf16"].correlation, weak["bf16"].norm_ratio) == (0, 0, 0)
    assert weak["bf16"].relative_error == 1
    assert weak["fp16"].changed < 0.5
    assert weak["int8"].changed < 0.05


def test_a_contribution_that_is_the_same_everywhere_is_kept_though_it_has_no_pattern():
    found = survival(lambda x: x + 0.5, features())
    for name in PRECISIONS:
        assert found[name].correlation is None
        assert found[name].norm_ratio == pytest.approx(1, abs=0.01)
        assert found[name].relative_error < 0.05


def test_no_contribution_leaves_nothing_to_keep():
    for of in survival(lambda x: x, features()).values():
        assert (of.correlation, of.norm_ratio, of.relative_error, of.changed) == (None, None, None, 0)


def test_the_grid_of_int8_is_that_of_all_images():
    small, large = features(0), 50 - features(1, scale=50)  # the least value is in one batch, another in the other

    def function(x):
        return 1.02 * x - 0.5

    together = survival(function, torch.cat([small, large]))["int8"]
    for order in ([small, large], [large, small], [small[:1], large, small[1:]]):
        apart = survival(function, *order)["int8"]
        for name in ("correlation", "norm_ratio", "relative_error", "changed"):
            assert getattr(apart, name) == pytest.approx(getattr(together, name))
    # By hand: a grid from the least to the largest value of inputs and outputs.
    x = torch.cat([small, large])
    least, largest = (float(f(torch.stack([x, function(x)]))) for f in (torch.min, torch.max))
    step = (largest - least) / 255
    codes = [((values - least) / step).round() for values in (x, function(x))]
    exact, moved = function(x) - x, (codes[1] - codes[0]) * step
    assert together.norm_ratio == pytest.approx(float(moved.norm() / exact.norm()), rel=1e-4)
    assert together.relative_error == pytest.approx(float((moved - exact).norm() / exact.norm()), rel=1e-4)
    assert together.correlation == pytest.approx(
        float(torch.corrcoef(torch.stack([moved.flatten(), exact.flatten()]))[0, 1]), rel=1e-4
    )


def test_what_overflows_is_counted_and_left_out():
    x = torch.full((2, 4, 4, 4), 100.0)
    x[0] = 1.0
    found = survival(lambda x: x * 1000, x)
    assert found["fp16"].overflow == 0.5
    assert found["fp16"].norm_ratio == pytest.approx(1, abs=0.01)
    assert found["bf16"].overflow == found["int8"].overflow == 0


def test_a_module_that_cannot_run_so_has_no_number():
    def function(x):
        if x.dtype == torch.float16:
            raise RuntimeError("not implemented for 'Half'")
        return 2 * x

    found = survival(function, features())
    assert found["fp16"] is None
    assert found["bf16"].norm_ratio == pytest.approx(1, abs=1e-3)


def test_a_model_in_bfloat16_is_compared_with_float32():
    class Times(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(1 + 1e-4))

        def forward(self, x):
            return x * self.gain

    module = Times().bfloat16()
    with torch.no_grad():
        module.gain.fill_(1 + 2**-7)
        x = features().bfloat16()
        measured = LowPrecision(module)
        measured.range(x, module(x))
        measured.see(x, module(x))
    assert 0 < measured.result()["bf16"].relative_error < 1
    assert measured.result()["fp16"].relative_error < 0.1


def test_large_batches_are_summed_in_parts(monkeypatch):
    whole = survival(lambda x: 1.1 * x, features())
    monkeypatch.setattr("foveate.studies.evaluation.low_precision._AT_ONCE", 300)  # one image at a time
    for name, of in survival(lambda x: 1.1 * x, features()).items():
        assert of.relative_error == pytest.approx(whole[name].relative_error)
        assert of.correlation == pytest.approx(whole[name].correlation)
