"""Rules that hold for every form of data set, and the sequences themselves."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from foveate.data import ImageData, Split, open_data
from foveate.errors import FoveateError

Plant = Callable[..., Path]


class Sides(Dataset):  # type: ignore[type-arg]
    """The width of each image: enough to make a worker decode."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> int:
        return self.split.load(index).width


def spoil(file: Path, picture: Callable[..., bytes]) -> None:
    data = picture(1, side=60)
    file.write_bytes(data[: len(data) * 2 // 3])


def test_split_is_a_sequence(plant: Plant) -> None:
    data = open_data(plant({"train/a": 2, "train/b": 1, "val/a": 1}))
    pairs = list(data.train)
    assert [label for _, label in pairs] == [data.train.label(i) for i in range(3)] == [0, 0, 1]
    assert all(image.mode == "RGB" for image, _ in pairs)
    assert data.train[-1][1] == 1
    with pytest.raises(IndexError):
        data.train[3]
    part = data.train.subset([2, 0])
    assert (part.names, part.labels, part.name) == (("train/b/0.jpg", "train/a/0.jpg"), (1, 0), "train")
    assert part.load(1).tobytes() == data.train.load(0).tobytes()
    assert "3 training and 1 validation images" in repr(data)
    assert pickle.loads(pickle.dumps(data)) == data  # noqa: S301 - as for a worker process that is spawned


def test_open_data_passes_image_data_through(plant: Plant) -> None:
    data = open_data(plant({"a": 10, "b": 10}))
    assert open_data(data, seed=9, val_fraction=0.7) is data
    assert len(open_data(data, limit=4).train) == 4


# ---- bad images


def test_stop_finds_at_once_what_is_no_image(plant: Plant) -> None:
    root = plant({"train/a": 3, "train/b": 3, "val/a": 2})
    (root / "val" / "a" / "1.jpg").write_text("text as an image")
    with pytest.raises(FoveateError, match=r"val/a/1\.jpg is not an image .*; on_bad_image='skip' leaves"):
        open_data(root)
    (root / "train" / "b" / "0.jpg").write_bytes(b"")
    with pytest.raises(FoveateError, match=r"train/b/0\.jpg is empty .* \(and 1 more like it\)"):
        open_data(root)


@pytest.mark.parametrize("workers", [0, 2])
def test_stop_names_a_truncated_image_when_it_is_loaded(
    plant: Plant, picture: Callable[..., bytes], workers: int
) -> None:
    root = plant({"train/a": 3, "train/b": 3, "val/a": 2})
    spoil(root / "train" / "b" / "1.jpg", picture)
    data = open_data(root)
    loader = DataLoader(Sides(data.train), num_workers=workers)
    with pytest.raises(FoveateError, match=r"train/b/1\.jpg is damaged: image file is truncated") as caught:
        list(loader)
    traceback.clear_frames(caught.tb)  # they hold the workers, which the garbage collector ends after ten seconds


def test_errors_survive_pickling() -> None:
    error = FoveateError("a.jpg is damaged")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (type(again), str(again)) == (FoveateError, "a.jpg is damaged")


def test_skip_leaves_bad_images_out_and_lists_them(plant: Plant, picture: Callable[..., bytes]) -> None:
    root = plant({"train/a": 300, "train/b": 300, "val/a": 3})
    spoil(root / "train" / "a" / "7.jpg", picture)
    (root / "train" / "b" / "299.jpg").write_bytes(b"")
    (root / "val" / "a" / "2.jpg").write_text("text")
    data = open_data(root, on_bad_image="skip")
    assert data.bad == ("train/a/7.jpg", "train/b/299.jpg", "val/a/2.jpg")
    assert (len(data.train), len(data.val)) == (598, 2)
    assert not {*data.train.names, *data.val.names} & set(data.bad)
    assert data.note.endswith("left out 3 images that cannot be read")
    assert all(width == 12 for width in Sides(data.train))
    assert open_data(plant({"a": 5, "b": 5}, root="good"), on_bad_image="skip").bad == ()


def test_skip_keeps_the_seeded_split_of_the_good_images(plant: Plant, picture: Callable[..., bytes]) -> None:
    root = plant({"a": 20, "b": 20})
    before = open_data(root)
    spoil(root / "a" / "3.jpg", picture)
    after = open_data(root, on_bad_image="skip")
    assert set(after.train.names) == set(before.train.names) - {"a/3.jpg"}
    assert set(after.val.names) == set(before.val.names) - {"a/3.jpg"}


def test_skip_does_not_hide_an_empty_class(plant: Plant, picture: Callable[..., bytes]) -> None:
    root = plant({"train/a": 3, "train/b": 1, "val/a": 2})
    spoil(root / "train" / "b" / "0.jpg", picture)
    with pytest.raises(
        FoveateError, match="class 'b' has no training image after those that cannot be read were left out"
    ):
        open_data(root, on_bad_image="skip")
    assert len(open_data(root, on_bad_image="skip", allow_empty=True).train) == 3
    for file in (root / "val" / "a").iterdir():
        file.write_bytes(b"")
    with pytest.raises(FoveateError, match="no validation image can be read"):
        open_data(root, on_bad_image="skip", allow_empty=True)


# ---- limit


def test_limit_is_stratified_seeded_and_nested(plant: Plant) -> None:
    root = plant({"train/a": 60, "train/b": 30, "train/c": 1, "val/a": 10, "val/b": 10})
    data = open_data(root, limit=31)
    counts = [data.train.labels.count(label) for label in range(3)]
    assert counts[2] == 1
    assert abs(counts[0] - 20) <= 1
    assert sum(counts) == 31
    assert (len(data.val), data.val.labels) == (20, (0,) * 10 + (1,) * 10)
    assert "at most 31 images of each part drawn with seed 0" in data.note
    assert set(open_data(root, limit=12).train.names) < set(data.train.names)
    assert open_data(root, limit=31) == data
    assert open_data(root, limit=31, seed=1).train.names != data.train.names
    assert open_data(root, limit=1000) == open_data(root)
    assert set(open_data(root, limit=3).train.labels) == {0, 1, 2}


def test_limit_below_the_number_of_classes_is_refused(plant: Plant) -> None:
    with pytest.raises(FoveateError, match="limit 2: pets has 3 classes"):
        open_data(plant({"a": 5, "b": 5, "c": 5}), limit=2)


def test_bad_images_outside_the_limit_do_not_matter(plant: Plant) -> None:
    root = plant({"train/a": 30, "train/b": 30, "val/a": 3})
    chosen = set(open_data(root, limit=4).train.names)
    for number in range(30):
        if f"train/a/{number}.jpg" not in chosen:
            (root / "train" / "a" / f"{number}.jpg").write_bytes(b"")
    assert set(open_data(root, limit=4).train.names) == chosen


# ---- arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"on_bad_image": "skp"}, "did you mean 'skip'"),
        ({"val_fraction": 0.0}, "val_fraction 0.0"),
        ({"val_fraction": 1.0}, "val_fraction 1.0"),
        ({"limit": 0}, "limit 0"),
    ],
)
def test_arguments_out_of_range_are_refused(plant: Plant, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(FoveateError, match=words):
        open_data(plant({"a": 5, "b": 5}), **arguments)  # type: ignore[arg-type]


def test_other_types_are_refused() -> None:
    with pytest.raises(FoveateError, match="not list"):
        open_data(["a", "b"])  # type: ignore[arg-type]


# ---- fingerprint


def test_fingerprint_changes_with_the_data_only(plant: Plant, picture: Callable[..., bytes]) -> None:
    root = plant({"train/a": 3, "train/b": 3, "val/a": 2})
    data = open_data(root)
    assert len(data.fingerprint) == 64
    assert open_data(root, seed=5, on_bad_image="skip").fingerprint == data.fingerprint

    def other(**parts: object) -> ImageData:
        return replace(data, **parts)  # type: ignore[arg-type]

    train = data.train
    changed = [
        other(classes=("a", "c")),
        other(train=data.val, val=data.train),
        other(train=train.subset([1, 0, 2, 3, 4, 5])),
        other(train=train.subset(range(5))),
        other(train=replace(train, labels=(1, *train.labels[1:]))),
        other(train=replace(train, names=("train/a/9.jpg", *train.names[1:]))),
    ]
    (root / "train" / "a" / "0.jpg").write_bytes(picture(0, side=40))
    fingerprints = {data.fingerprint, open_data(root).fingerprint, *(each.fingerprint for each in changed)}
    assert len(fingerprints) == len(changed) + 2
    assert other(name="moved", note="else").fingerprint == open_data(root).fingerprint


def test_fingerprint_names_a_file_that_has_gone(plant: Plant) -> None:
    root = plant({"a": 5, "b": 5})
    data = open_data(root)
    Path(str(data.val.sources[0])).unlink()
    with pytest.raises(FoveateError, match=str(data.val.sources[0])):
        _ = data.fingerprint
