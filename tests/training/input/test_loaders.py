from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from foveate.data import ImageData, Split
from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.progress import ProgressBar
from foveate.training.input.image_cache import decode
from foveate.training.input.loaders import Augment, Held, Source
from foveate.training.input.sampler import Order, mix, of_whole

SIZE = Preprocess((12, 16), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@pytest.mark.parametrize(("count", "batch_size"), [(26, 8), (25, 8), (24, 8), (7, 1), (2, 2), (3, 5), (17, 4)])
def test_an_epoch_is_every_image_once(count, batch_size):
    order = Order(count, batch_size, 0, 3)
    batches = list(order)
    assert len(batches) == 3 * order.steps_per_epoch
    for epoch in range(3):
        seen = [where for batch in batches for where in batch if where[0] == epoch]
        assert len(seen) == len(set(seen)) == order.images_per_epoch >= count - 1
        assert {index for _, index in seen} <= set(range(count))
    if batch_size > 1:
        assert all(len(batch) > 1 for batch in batches)


def test_the_image_left_out_changes():
    order = Order(9, 8, 0, 20)
    left = [set(range(9)) - {index for _, index in batch} for batch in order]
    assert len({min(one) for one in left}) > 3


def test_order_depends_on_seed_and_epoch_and_goes_on_anywhere():
    whole = list(Order(26, 8, 5, 3))
    assert whole == list(Order(26, 8, 5, 3))
    assert whole != list(Order(26, 8, 6, 3))
    orders = [[i for batch in whole for e, i in batch if e == epoch] for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]
    for epoch, step in itertools.product(range(3), range(5)):
        assert list(Order(26, 8, 5, 3, (epoch, step))) == whole[4 * epoch + step :]


def test_mix_spreads():
    values = [mix(seed, epoch, index) for seed in range(10) for epoch in range(10) for index in range(10)]
    assert len(set(values)) == 1000
    assert min(values) >= 0
    assert max(values) < 2**63
    assert 400 < sum(value & 1 for value in values) < 600
    assert mix(1, 23) != mix(12, 3)


@pytest.mark.parametrize("augmentation", ["none", "flip", "standard", "randaugment"])
def test_batches_do_not_depend_on_workers_nor_on_the_global_random_numbers(augmentation, data: ImageData):
    found = []
    for workers, seed in ((0, 1), (2, 2)):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        stream = Source(data.train, "", SIZE, workers).stream(Augment(augmentation, 3))
        found.append(list(stream(Order(26, 8, 0, 2))))
        assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
        assert one[0].dtype == torch.uint8
        assert one[0].shape[1:] == (3, 12, 16)


@pytest.mark.parametrize("mean", [(0.5, 0.4, 0.3), (0.4,)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_crops_made_in_threads_are_torchvisions(data: ImageData, mean, interpolation, monkeypatch):
    preprocess = Preprocess((12, 16), mean, mean, interpolation=interpolation)
    source, order = Source(data.train, "", preprocess), list(Order(26, 8, 0, 3))
    decoded = decode(data.train, None, 1 << 20, ProgressBar(False))
    made = list(source.stream(Augment("standard", 3))(order))
    for threads in (1, 2, 20):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        state = torch.get_rng_state()
        stream = source.stream(Augment("standard", 3), decoded)
        assert stream.crops is not None
        for one, other in zip(stream(order), made, strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("augmentation", ["flip", "standard", "randaugment"])
def test_augmentation_changes_with_the_epoch(augmentation, data: ImageData):
    stream = Source(data.train, "", SIZE).stream(Augment(augmentation))
    indices = range(8)
    first, second = stream([[(epoch, index) for index in indices] for epoch in (0, 1)])
    assert not torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_flip_flips_about_half_and_memory_gives_the_same_as_the_stream(data: ImageData):
    source = Source(data.train, "", SIZE)
    order = list(Order(26, 8, 0, 2))
    plain = torch.cat([pixels for pixels, _ in source.stream()(of_whole(26, 8))])
    held = Held(plain[None], data.train.labels, 7, flip=True)
    two_views = Held(torch.stack([plain, plain.flip(-1)]), data.train.labels, 7, flip=True)
    counts: Counter[bool] = Counter()
    for where, *batches in zip(
        order, source.stream(Augment("flip", 7))(order), held(order), two_views(order), strict=True
    ):
        for pixels, labels in batches:
            assert torch.equal(pixels, batches[0][0])
            assert labels.tolist() == [data.train.label(index) for _, index in where]
        for (_, index), picture in zip(where, batches[0][0], strict=True):
            flipped = torch.equal(picture, plain[index].flip(-1))
            assert flipped or torch.equal(picture, plain[index])
            counts[flipped] += 1
    assert min(counts[True], counts[False]) > 10


@pytest.mark.parametrize("mean", [(0.5, 0.4, 0.3), (0.4,)])
def test_batches_are_normalised_as_preprocess_does(mean, data: ImageData):
    preprocess = Preprocess((12, 16), mean, tuple(m / 2 for m in mean))
    source = Source(data.train, "", preprocess)
    pixels, _ = next(source.stream()(of_whole(26, 5)))
    expected = torch.stack([preprocess(data.train.load(index)) for index in range(5)])
    torch.testing.assert_close(source.normalised(pixels, torch.device("cpu")), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_one_line_that_names_it(workers, data: ImageData):
    split = data.train
    broken = Split("train", (*split.sources[:5], split.sources[5][:60]), split.labels[:6], split.names[:6])
    with pytest.raises(FoveateError) as error:
        list(Source(broken, "", SIZE, workers).stream()(of_whole(6, 2)))
    assert "train/5.png" in str(error.value)
    assert "\n" not in str(error.value)


class Deadly(Split):
    def load(self, index: int, at_least: int | None = None):
        import os

        os._exit(1)


@pytest.mark.filterwarnings("ignore")
def test_a_dead_worker_is_a_clear_error(data: ImageData):
    split = data.train
    deadly = Deadly("train", split.sources, split.labels, split.names)
    with pytest.raises(FoveateError, match="try workers=0"):
        list(Source(deadly, "", SIZE, 1).stream()(of_whole(6, 2)))
