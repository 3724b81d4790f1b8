from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foveate.data import ImageData, Split
from foveate.errors import FoveateError
from foveate.training.metrics import Diverged, evaluate, measure


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8), st.integers(1, 40))
def test_metrics_are_their_definitions(seed, classes, count):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    found = measure(logits, labels)
    probabilities = logits.double().softmax(1)
    predictions = logits.argmax(1)
    assert found.predictions.tolist() == predictions.tolist()
    assert found.labels.tolist() == labels.tolist()
    torch.testing.assert_close(found.probabilities.double(), probabilities, rtol=1e-4, atol=1e-6)
    assert found.loss == pytest.approx(-probabilities[range(count), labels].log().mean().item(), rel=1e-4)
    assert found.top1 == pytest.approx((predictions == labels).double().mean().item(), abs=1e-6)
    best = logits.topk(min(5, classes), dim=1).indices
    assert found.top5 == pytest.approx((best == labels[:, None]).any(1).double().mean().item(), abs=1e-6)
    scores = []
    for label in range(classes):
        hits = ((predictions == label) & (labels == label)).sum().item()
        total = (predictions == label).sum().item() + (labels == label).sum().item()
        scores += [2 * hits / total] if total else []
    assert found.macro_f1 == pytest.approx(sum(scores) / len(scores), abs=1e-5)
    confidence, error = probabilities.max(1).values, 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            right = (predictions == labels)[inside].double().mean()
            error += inside.double().mean().item() * abs(right - confidence[inside].mean()).item()
    assert found.ece == pytest.approx(error, abs=1e-4)


def test_errors():
    with pytest.raises(Diverged) as error:
        measure(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), torch.tensor([0, 1]))
    assert error.value.exit_code == 3
    assert "1 of 2 images" in str(error.value)
    with pytest.raises(FoveateError, match=r"1 of 3 images have a label outside 0..1, such as 2"):
        measure(torch.zeros(3, 2), torch.tensor([0, 2, 1]))
    with pytest.raises(FoveateError, match="such as -1"):
        measure(torch.zeros(3, 2), torch.tensor([0, -1, 1]))
    with pytest.raises(FoveateError, match="needs two classes or more, and this model has 1"):
        measure(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(FoveateError, match="one class number for each image"):
        measure(torch.zeros(3, 2), torch.zeros(3, 2))


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_leaves_the_model_as_found(training, data: ImageData, new_net):
    model: nn.Module = new_net().train(training)
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    found = evaluate(model, data.val, image_size=16, batch_size=4)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert found.probabilities.shape == (9, 3)
    assert found.labels.tolist() == list(data.val.labels)
    again = evaluate(model, data.val, image_size=16, batch_size=9)
    torch.testing.assert_close(again.probabilities, found.probabilities)


def test_evaluate_needs_images(new_net):
    with pytest.raises(FoveateError, match="no image"):
        evaluate(new_net(), Split("val", (), (), ()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_in_another_dtype(dtype, data: ImageData, new_net):
    model = new_net()
    expected = evaluate(model, data.val, image_size=16)
    found = evaluate(model.to(dtype), data.val, image_size=16)
    torch.testing.assert_close(found.probabilities, expected.probabilities, atol=0.05, rtol=0)


def test_evaluate_takes_what_fit_takes(data, new_net, tmp_path):
    model = new_net()
    expected = evaluate(model, data.val)
    assert torch.equal(evaluate(model, data).probabilities, expected.probabilities)
    for part, split in (("train", data.train), ("val", data.val)):
        for index, label in enumerate(split.labels):
            folder = tmp_path / part / data.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            split.load(index).save(folder / f"{index:03d}.png")
    for folder in (tmp_path, str(tmp_path)):
        found = evaluate(model, folder)
        assert found.top1 == expected.top1
        assert len(found.labels) == len(data.val)
    with pytest.raises(FoveateError, match="no data at .*nowhere"):
        evaluate(model, tmp_path / "nowhere")
    with pytest.raises(FoveateError, match="not int"):
        evaluate(model, 3)
