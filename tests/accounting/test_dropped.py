"""What a plan took out."""

import timm
import torch

import foveate as fv


def model():
    with torch.device("meta"):
        return timm.create_model("mobilenetv2_100")


def test_each_replaced_block_with_its_parameters_and_macs():
    planned = fv.insert(model(), "ulsam(groups=4) replacing blocks.4.1, blocks.5.2; se after blocks.5.1")
    first, second = fv.dropped(planned)
    # 96 -> 576 -> 96 on 14 x 14 and 160 -> 960 -> 160 on 7 x 7: expansion, depthwise 3x3, projection, batch norms
    assert (first.name, first.kind) == ("blocks.4.1", "InvertedResidual")
    assert (second.name, second.kind) == ("blocks.5.2", "InvertedResidual")
    assert first.params == 2 * 96 * 576 + 9 * 576 + 2 * (576 + 576 + 96)
    assert first.macs == (2 * 96 * 576 + 9 * 576) * 14 * 14
    assert second.params == 2 * 160 * 960 + 9 * 960 + 2 * (960 + 960 + 160)
    assert second.macs == (2 * 160 * 960 + 9 * 960) * 7 * 7


def test_what_came_less_what_went_is_the_plans_cost():
    planned = fv.insert(model(), "ulsam(groups=4) replacing blocks.4.1, blocks.4.2")
    found = fv.cost(planned)
    added = [row for row in found.modules if row.change == "added" and row.name.endswith(".foveate")]
    gone = fv.dropped(planned)
    assert len(added) == len(gone) == 2
    for name in ("params", "macs"):
        change = sum(getattr(row, name) for row in added) - sum(getattr(row, name) for row in gone)
        assert change == getattr(found, name) - getattr(found.baseline, name)


def test_of_a_compiled_network():
    planned = fv.insert(model(), "ulsam(groups=4) replacing blocks.4.1")
    assert fv.dropped(torch.compile(planned)) == fv.dropped(planned) != ()


def test_nothing_without_a_replacement():
    assert fv.dropped(model()) == ()
    assert fv.dropped(fv.insert(model(), "se after blocks.5.2")) == ()


def test_a_classifier_that_a_head_replaced():
    planned = fv.insert(model(), "ltpa as head")
    (row,) = fv.dropped(planned)
    assert (row.name, row.params, row.macs) == ("classifier", 1280 * 1000 + 1000, 1280 * 1000)
