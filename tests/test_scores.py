"""One rule for the class that scores name, whoever asks."""

import pytest
import torch
from torch import nn

import foveate as fv
from foveate.errors import FoveateError
from foveate.explanations.layers import chosen_classes
from foveate.scores import check_labels, check_logits, predicted_classes, top_classes
from foveate.training.metrics import measure


class Fixed(nn.Module):
    """Gives the same scores for every image."""

    def __init__(self, scores):
        super().__init__()
        self.body = nn.Conv2d(3, 3, 1)
        self.scores = scores

    def forward(self, x):
        return self.scores.expand(len(x), -1) + 0 * self.body(x).sum()


@pytest.mark.parametrize("count", [2, 3, 17, 1000])
def test_of_equal_scores_the_first_class_counts_everywhere(count):
    generator = torch.Generator().manual_seed(count)
    scores = torch.randint(0, 2, (64, count), generator=generator).float()
    first = torch.tensor([row.index(max(row)) for row in scores.tolist()])
    assert torch.equal(predicted_classes(scores), first)
    assert torch.equal(top_classes(scores, 5)[:, 0], first)
    assert torch.equal(measure(scores, torch.zeros(64, dtype=torch.int64)).predictions, first)
    assert torch.equal(chosen_classes(None, scores), first)


def test_explain_and_audit_take_the_class_that_evaluate_takes():
    # Softmax makes 1 of both, in float32: the logits differ all the same.
    scores = torch.tensor([[0.0, 200.0, 200.00002, -1.0]])
    model = fv.insert(Fixed(scores), "se after body")
    images, labels = torch.randn(4, 3, 8, 8), torch.full((4,), 2)
    assert measure(scores, torch.tensor([2])).top1 == 1
    found = fv.explain(model, images)
    assert found.predictions.tolist() == [2] * 4
    assert next(iter(found.top())) == "class 2"
    assert fv.audit(model, [(images, labels)]).accuracy == 100


def test_logits_and_labels_that_do_not_fit():
    for output in (torch.zeros(2, 1), torch.zeros(2, 3, 4), [1]):
        with pytest.raises(FoveateError, match="two classes or more, not"):
            check_logits(output)
    assert check_labels(torch.tensor([0, 2], dtype=torch.uint8), 3).dtype == torch.int64
    for labels, words in (
        (torch.tensor([0, -1, -1]), "2 of 3 images have a label outside 0..2, such as -1"),
        (torch.tensor([3]), "such as 3"),
        (torch.tensor([0.5]), "one class number for each image"),
        (torch.tensor([True]), "one class number for each image"),
        (torch.eye(3).long(), "one class number for each image"),
    ):
        with pytest.raises(FoveateError, match=words):
            check_labels(labels, 3)
