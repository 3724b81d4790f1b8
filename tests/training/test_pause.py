"""A fit that pauses after some epochs and goes on later ends as one that did not pause."""

import pytest
import timm
import torch

import foveate as fv
from foveate.errors import FoveateError

RECIPE = fv.Recipe(epochs=3, batch_size=8, image_size=32, learning_rate=1e-3, ema_decay=0.9)


def network():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=2)


def test_paused_and_gone_on_with_it_is_the_same(folder, tmp_path):
    whole, paused = network(), network()
    expected = fv.fit(whole, folder, RECIPE, progress=False)
    first = fv.fit(paused, folder, RECIPE, output=tmp_path / "run", until_epoch=1, progress=False)
    assert [row["epoch"] for row in first.history] == [0]
    assert first.history[0]["train_loss"] == expected.history[0]["train_loss"]
    again = fv.fit(network(), folder, RECIPE, output=tmp_path / "run", resume=True, until_epoch=1, progress=False)
    assert again.evaluation.loss == first.evaluation.loss  # nothing is trained
    other = network()
    last = fv.fit(other, folder, RECIPE, output=tmp_path / "run", resume=True, until_epoch=9, progress=False)
    assert len(last.history) == 3
    assert last.evaluation.loss == expected.evaluation.loss
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), whole.parameters(), strict=True))


def test_a_pause_needs_a_folder_and_an_epoch(folder, tmp_path):
    for options in ({"until_epoch": 1}, {"until_epoch": 0, "output": tmp_path}):
        with pytest.raises(
            FoveateError, match="until_epoch=. pauses a run after at least one epoch, and needs an output"
        ):
            fv.fit(network(), folder, RECIPE, progress=False, **options)
