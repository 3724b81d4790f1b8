from __future__ import annotations

import pytest
import torch

from foveate.classifier_protocol import Classifier, batched_logits
from foveate.errors import FoveateError
from foveate.images import Preprocess


class Sums:
    """Two scores of each image: its sum, and the number of images that came with it."""

    classes = ("dark", "bright")
    preprocess = Preprocess((4, 4), (0.5,) * 3, (0.5,) * 3)

    def __init__(self, batch=None, dtype=torch.float32):
        self.batch, self.dtype, self.calls = batch, dtype, []

    def logits(self, images):
        assert images.dtype == torch.float32
        self.calls.append(len(images))
        return torch.stack([images.sum((1, 2, 3)), torch.full((len(images),), float(len(images)))], 1).to(self.dtype)


def test_an_object_with_four_names_is_a_classifier():
    assert isinstance(Sums(), Classifier)
    assert not isinstance(torch.nn.Linear(2, 2), Classifier)


@pytest.mark.parametrize(("batch", "calls"), [(None, [5]), (1, [1] * 5), (2, [2] * 3), (8, [8])])
def test_a_fixed_batch_is_filled_up(batch, calls):
    images = torch.randn(5, 3, 4, 4)
    classifier = Sums(batch)
    found = batched_logits(classifier, images)
    assert classifier.calls == calls
    assert found.shape == (5, 2)
    torch.testing.assert_close(found[:, 0], images.sum((1, 2, 3)))


def test_scores_are_float32():
    assert batched_logits(Sums(dtype=torch.bfloat16), torch.randn(2, 3, 4, 4)).dtype == torch.float32


def test_what_is_not_scores_of_these_images_is_refused():
    class Wrong(Sums):
        def logits(self, images):
            return torch.zeros(1, 2)

    with pytest.raises(FoveateError, match="scores for 1 images and was given 3"):
        batched_logits(Wrong(), torch.randn(3, 3, 4, 4))
    Wrong.logits = lambda self, images: torch.zeros(3, 1)
    with pytest.raises(FoveateError, match="two classes or more"):
        batched_logits(Wrong(), torch.randn(3, 3, 4, 4))
