from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import FoveateError
from foveate.training.metrics import Diverged, measure


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


def test_saturated_confidences_lie_in_the_last_bin():
    logits = torch.tensor([[200.0, 0.0]] * 3 + [[3.0, 0.0]])  # confidences of exactly 1 and of .953
    found = measure(logits, torch.tensor([0, 0, 1, 0]))
    assert found.probabilities[0, 0] == 1
    assert found.ece == pytest.approx(abs(3 / 4 - (3 + float(found.probabilities[3, 0])) / 4), abs=1e-6)


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


def test_confusion_as_a_picture(tmp_path):
    logits = torch.eye(3)[[0, 0, 1, 2]] * 5
    found = replace(measure(logits, torch.tensor([0, 1, 1, 1])), classes=("$x^", "a\nb\udce9", "$x^$犬"))
    for name in ("c.png", "c.svg", "deep/c.pdf"):
        assert found.draw_confusion(tmp_path / name).stat().st_size > 1000
    shapes = {found.draw_confusion(tmp_path / "c.png").read_bytes()}
    other = replace(measure(logits, torch.tensor([0, 0, 0, 1])), classes=("a", "b", "c"))
    assert other.draw_confusion(tmp_path / "c.png").read_bytes() not in shapes
    svg = (tmp_path / "c.svg").read_text()
    assert "4 images, 50.0% right" in svg
    with pytest.raises(FoveateError, match=r"end the name in .png, .svg or .pdf"):
        found.draw_confusion(tmp_path / "c.txt")
    many = measure(torch.eye(70), torch.arange(70))
    assert many.draw_confusion(tmp_path / "many.png").exists()


def test_per_class_as_csv_and_in_a_notebook(tmp_path):
    found = replace(measure(torch.eye(3)[[0, 0, 1, 2]], torch.tensor([0, 1, 1, 1])), classes=("a", "b", "=c"))
    lines = found.to_csv(tmp_path / "c.csv").read_text().splitlines()
    assert lines[0] == "class,images,recall,precision,f1"
    assert lines[1].startswith("a,1,1.0,0.5,0.66")
    assert lines[2].startswith("b,3,0.33")
    assert lines[3] == "'=c,0,0.0,0.0,0.0"
    assert '<td style="text-align: right">50.00%</td>' in found._repr_html_()
