"""Folders of class folders."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

from foveate.data import ImageData, open_data
from foveate.errors import FoveateError

Plant = Callable[..., Path]


def where(data: ImageData, part: str) -> list[str]:
    return list(getattr(data, part).names)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "test", "Val"])
def test_train_and_val_folders(plant: Plant, val: str) -> None:
    root = plant({"train/cat": 3, "train/dog": 2, f"{val}/cat": 1, f"{val}/dog": 2})
    data = open_data(root)
    assert (data.name, data.classes, data.licence, data.bad) == ("pets", ("cat", "dog"), None, ())
    assert where(data, "train") == ["train/cat/0.jpg", "train/cat/1.jpg", "train/cat/2.jpg"] + [
        f"train/dog/{i}.jpg" for i in range(2)
    ]
    assert data.train.labels == (0, 0, 0, 1, 1)
    assert where(data, "val") == [f"{val}/cat/0.jpg", f"{val}/dog/0.jpg", f"{val}/dog/1.jpg"]
    assert data.val.labels == (0, 1, 1)
    assert data.note == f"split as the folders train/ and {val}/"


def test_val_comes_before_test(plant: Plant) -> None:
    data = open_data(plant({f"{part}/{kind}": 1 for part in ("train", "test", "val") for kind in "ab"}))
    assert where(data, "val") == ["val/a/0.jpg", "val/b/0.jpg"]
    assert "left out 2 files in test/, which is not used (test/a/0.jpg, test/b/0.jpg)" in data.note


def test_classes_and_labels_are_torchvisions(plant: Plant) -> None:
    root = plant({"train/b/deep/er": 2, "train/B": 2, "train/a": 1, "train/10": 1, "train/9": 1, "val/a": 1})
    data = open_data(root)
    theirs = ImageFolder(str(root / "train"))
    assert list(data.classes) == theirs.classes
    ours = {(os.path.realpath(path), label) for path, label in zip(data.train.sources, data.train.labels, strict=True)}
    assert ours == {(os.path.realpath(path), label) for path, label in theirs.samples}


def test_only_class_folders_are_split_by_seed_and_class(plant: Plant) -> None:
    root = plant({"cat": 50, "dog": 10, "emu": 2, "fox": 1})
    data = open_data(root, seed=3)
    assert [data.train.labels.count(label) for label in range(4)] == [40, 8, 1, 1]
    assert [data.val.labels.count(label) for label in range(4)] == [10, 2, 1, 0]
    assert not set(data.train.names) & set(data.val.names)
    assert len({*data.train.names, *data.val.names}) == 63
    assert "20% of each class drawn for validation with seed 3" in data.note
    assert open_data(root, seed=3) == data
    assert open_data(root, seed=4).val.names != data.val.names
    assert len(open_data(root, val_fraction=0.5).val) == 25 + 5 + 1


def test_train_without_val_is_split(plant: Plant) -> None:
    data = open_data(plant({"train/cat": 10, "train/dog": 10}))
    assert (data.classes, len(data.train), len(data.val)) == (("cat", "dog"), 16, 4)


def test_a_class_may_be_called_train(plant: Plant) -> None:
    assert open_data(plant({"car": 5, "plane": 5, "train": 5})).classes == ("car", "plane", "train")


def test_relative_and_moved_folders_are_the_same_data(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant({"a": 5, "b": 5})
    there = open_data(root)
    fingerprint = there.fingerprint
    monkeypatch.chdir(root)
    here = open_data(".")
    assert here == there
    monkeypatch.chdir("/")
    assert here.train.load(0).size == (12, 12)
    moved = root.rename(root.parent / "moved")
    assert open_data(moved).fingerprint == fingerprint


def test_validation_may_lack_a_class_and_indices_stay(plant: Plant) -> None:
    root = plant({"train/a": 2, "train/b": 2, "train/c": 2, "val/c": 3, "val/a": 0})
    data = open_data(root)
    assert data.val.labels == (2, 2, 2)
    assert "no validation image of: a, b" in data.note


def test_validation_class_unknown_to_training_is_an_error(plant: Plant) -> None:
    root = plant({"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/dgo": 1})
    with pytest.raises(FoveateError, match=r"class 'dgo' .* not in training: did you mean 'dog'"):
        open_data(root)


def test_empty_class_is_an_error_unless_allowed(plant: Plant) -> None:
    root = plant({"train/a": 2, "train/b": 0, "train/c": 2, "val/a": 1, "val/c": 1})
    with pytest.raises(FoveateError, match=r"class 'b' has no training image: .*allow_empty=True"):
        open_data(root)
    data = open_data(root, allow_empty=True)
    assert (data.classes, data.val.labels) == (("a", "b", "c"), (0, 2))


def test_links_never_count_an_image_twice(plant: Plant) -> None:
    root = plant({"cat": 3, "dog": 3})
    (root / "cat" / "loop").symlink_to(root)  # the whole set below cat
    (root / "cat" / "self").symlink_to(root / "cat")
    (root / "cat" / "dogs").symlink_to(root / "dog")  # dogs that would become cats
    (root / "cat" / "again.jpg").symlink_to(root / "cat" / "0.jpg")
    (root / "all").symlink_to(root)  # a class of everything
    (root / "a-dog").symlink_to(root / "dog")  # a second name of a class
    data = open_data(root)
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.val) == 6
    assert "left out 4 files that are links" in data.note


def test_link_to_the_training_folder_adds_nothing(plant: Plant) -> None:
    root = plant({"train/cat": 3, "train/dog": 3, "train": 2, "val/cat": 1})
    (root / "train" / "cat" / "up").symlink_to(root / "train")
    assert open_data(root).train.labels == (0, 0, 0, 1, 1, 1)


def test_links_to_images_elsewhere_are_followed(plant: Plant) -> None:
    elsewhere = plant({"more": 4}, root="elsewhere")
    root = plant({"cat": 3, "dog": 3})
    (elsewhere / "one.jpg").write_bytes((elsewhere / "more" / "0.jpg").read_bytes())
    (root / "cat" / "more").symlink_to(elsewhere / "more")
    (root / "dog" / "one.jpg").symlink_to(elsewhere / "one.jpg")
    data = open_data(root)
    assert {"cat/more/3.jpg", "dog/one.jpg"} < {*data.train.names, *data.val.names}
    assert len(data.train) + len(data.val) == 3 + 4 + 3 + 1


def test_one_file_in_two_classes_or_both_parts_is_an_error(plant: Plant) -> None:
    root = plant({"cat": 3, "dog": 3})
    (root / "dog" / "x.jpg").symlink_to(root / "cat" / "0.jpg")
    with pytest.raises(FoveateError, match=r"x\.jpg .*class dog.* is the same file as one in .*class cat"):
        open_data(root)
    root = plant({"train/cat": 2, "train/dog": 2}, root="leak")
    (root / "val").symlink_to(root / "train")
    with pytest.raises(FoveateError, match="is the same file as one in train, class cat"):
        open_data(root)


def test_link_to_nothing_is_named(plant: Plant) -> None:
    root = plant({"cat": 3, "dog": 3})
    (root / "dog" / "x.jpg").symlink_to(root / "gone.jpg")
    with pytest.raises(FoveateError, match=r"x\.jpg is a link to a file that does not exist"):
        open_data(root)
    data = open_data(root, on_bad_image="skip")
    assert (data.bad, len(data.train) + len(data.val)) == (("dog/x.jpg",), 6)


def test_hidden_and_other_files_are_left_out(plant: Plant) -> None:
    root = plant({"cat": 3, "dog": 3, ".cache": 2, "cat/.thumbnails": 2})
    (root / "cat" / ".0.jpg").write_bytes(b"")
    (root / "cat" / "notes.txt").write_text("notes")
    (root / "dog" / "Thumbs.db").write_text("")
    (root / "dog" / "0.jpg").rename(root / "dog" / "0.JPEG")
    data = open_data(root)
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.val) == 6
    assert "left out 2 files that are hidden or of the system (cat/.0.jpg, dog/Thumbs.db)" in data.note
    assert "left out 1 file without an image suffix (cat/notes.txt)" in data.note
    assert dict(data.unused)["in hidden folders and folders of the system"] == (
        *(".cache/0.jpg", ".cache/1.jpg"),
        *("cat/.thumbnails/0.jpg", "cat/.thumbnails/1.jpg"),
    )


def test_what_is_no_data_set_is_explained(plant: Plant) -> None:
    root = plant({"": 3})
    with pytest.raises(FoveateError, match=r"no class folders: put the images .* as in pets/cat/1\.jpg"):
        open_data(root)
    with pytest.raises(FoveateError, match=r"0\.jpg is a file"):
        open_data(root / "0.jpg")
    with pytest.raises(FoveateError, match="holds no image"):
        open_data(plant({"cat": 0, "dog": 0}, root="bare"))
    with pytest.raises(FoveateError, match="no train folder"):
        open_data(plant({"val/cat": 1, "test/cat": 1}, root="half"))
    with pytest.raises(FoveateError, match="has no validation image"):
        open_data(plant({"train/cat": 1, "train/dog": 1, "val/cat": 0}, root="blind"))
    with pytest.raises(FoveateError, match="no class has two images"):
        open_data(plant({"cat": 1, "dog": 1}, root="tiny"))


def test_one_folder_too_high_is_explained(plant: Plant) -> None:
    root = plant({"images/cat": 3, "images/dog": 3})
    with pytest.raises(FoveateError, match=f"only one class folder .* did you mean {root / 'images'}?"):
        open_data(root)


def test_missing_path_shows_near_names(plant: Plant) -> None:
    root = plant({"cat": 3, "dog": 3})
    for wrong in (root.parent / "pest", root.parent / "pest" / "train"):
        with pytest.raises(FoveateError, match=r"no data at .*did you mean 'pets'"):
            open_data(wrong)
    with pytest.raises(FoveateError, match="did you mean 'elpv'"):
        open_data("elvp")


# ---- layouts that are recognised, and those that are refused


@pytest.mark.parametrize(
    ("train", "val"),
    [
        *(("train", part) for part in ("dev", "eval", "validation", "Test", "holdout")),
        *(
            ("training", "val"),
            ("images_train", "images_val"),
            ("train_images", "test_images"),
            ("train2017", "val2017"),
        ),
        ("trainval", "test"),
    ],
)
def test_parts_by_the_names_that_people_use(plant: Plant, train: str, val: str) -> None:
    data = open_data(plant({f"{train}/a": 3, f"{train}/b": 2, f"{val}/a": 1, f"{val}/b": 1}))
    assert (data.classes, len(data.train), len(data.val)) == (("a", "b"), 5, 2)
    assert data.note == f"split as the folders {train}/ and {val}/"


def test_a_class_may_hold_a_parts_name(plant: Plant) -> None:
    assert open_data(plant({"train_station": 4, "test_tube": 4})).classes == ("test_tube", "train_station")
    assert open_data(plant({"train": 4, "test": 4, "car": 4}, root="plain")).classes == ("car", "test", "train")


def test_unknown_parts_are_refused(plant: Plant) -> None:
    root = plant({f"{part}/{kind}": 2 for part in ("left_half", "right_half") for kind in "abc"})
    with pytest.raises(
        FoveateError, match=r"left_half/ and right_half/ hold the same folders \(a, b, c\).*rename them"
    ):
        open_data(root)
    with pytest.raises(FoveateError, match="train and training, all for training"):
        open_data(plant({f"{part}/{kind}": 2 for part in ("train", "training", "val") for kind in "ab"}, root="two"))


@pytest.mark.parametrize(
    "folders",
    [
        ("images/training/x", "images/validation/x", "annotations/training", "annotations/validation"),  # ADE20K
        ("JPEGImages", "Annotations", "ImageSets/Main", "SegmentationClass"),  # VOC
        ("train/images", "train/labels", "val/images", "val/labels"),  # YOLO
        ("leftImg8bit/train/aachen", "gtFine/train/aachen"),  # Cityscapes
        ("imgs", "masks"),
    ],
)
def test_segmentation_and_detection_are_refused(plant: Plant, folders: tuple[str, ...]) -> None:
    with pytest.raises(FoveateError, match=r"/ beside .*/, as data for segmentation or detection"):
        open_data(plant(dict.fromkeys(folders, 2)))


def test_a_test_part_without_classes_is_counted(plant: Plant) -> None:
    data = open_data(plant({"train/a": 5, "train/b": 5, "test": 3}))
    assert (data.classes, len(data.train), len(data.val)) == (("a", "b"), 8, 2)
    assert data.note.startswith("no labelled validation part beside train/; 20% of each class drawn")
    assert data.unused == (("in test/, which is not used", ("test/0.jpg", "test/1.jpg", "test/2.jpg")),)


# ---- nothing is lost without a word


def test_every_file_is_used_or_counted(plant: Plant, tmp_path: Path) -> None:
    root = plant({"train/a": 3, "train/b": 3, "val/a": 2, "extra/a": 1, "__MACOSX/train/a": 2, "train/@eaDir/a": 1})
    for name in ("readme.txt", "train/.DS_Store", "train/a/raw.dng", "train/a/._0.jpg", "train/loose.jpg", "val/b.csv"):
        (root / name).write_bytes(b"x")
    (root / "train/a/again").symlink_to(root / "train/a")
    data = open_data(root, allow_empty=True)
    used = {*data.train.names, *data.val.names}
    left = [name for _, names in data.unused for name in names]
    every = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file() or path.is_symlink()}
    assert used | set(left) == every
    assert len(used) + len(left) == len(every)
    assert {reason: len(names) for reason, names in data.unused} == {
        "in hidden folders and folders of the system": 3,
        "of an image format that is not read": 1,
        "that are hidden or of the system": 2,
        "that are links to what is there already": 1,
        "in extra/, which is not used": 1,
        "beside the folders of the parts": 1,
        "beside the class folders, though they are images": 1,
        "beside the class folders": 1,
    }
    for reason, names in data.unused:
        assert f"left out {len(names)} file{'s' * (len(names) > 1)} {reason} ({names[0]}" in data.note


def test_accents_are_one_class_however_they_are_composed(plant: Plant) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    root = plant({f"train/{composed}": 2, "train/tea": 2, f"val/{apart}": 2})
    data = open_data(root)
    assert (data.classes, data.val.labels) == ((composed, "tea"), (0, 0))
    root = plant({f"train/{composed}": 2, f"train/{apart}": 3, "train/tea": 2, "val/tea": 2}, root="both")
    data = open_data(root)
    assert data.classes == (composed, "tea")
    assert data.train.labels == (0,) * 5 + (1,) * 2
    assert f"2 folders of train are called {composed}, one class" in data.note


def test_parts_without_class_folders_are_not_classes(plant: Plant) -> None:
    with pytest.raises(FoveateError, match="train has no class folders"):
        open_data(plant({"train": 3, "val": 3}))


def test_folders_inside_classes_may_be_called_alike(plant: Plant) -> None:
    data = open_data(plant({f"{kind}/{time}": 3 for kind in ("cat", "dog") for time in ("day", "night")}))
    assert (data.classes, len(data.train) + len(data.val)) == (("cat", "dog"), 12)
    for names in (("train", "batch2"), ("my_train_v2", "my_holdout_v2"), ("fold1", "fold2")):
        root = plant({f"{part}/{kind}": 2 for part in names for kind in ("cat", "dog")}, root=names[0] + "_set")
        with pytest.raises(FoveateError, match="hold the same folders"):
            open_data(root)


def test_parts_that_are_asked_for(plant: Plant) -> None:
    root = plant({"train/cat": 2, "train/dog": 3, "val/cat": 1, "val/emu": 2, "test/dog": 4, "extra/cat": 1})
    data = open_data(root, parts="train+val:test")
    assert data.classes == ("cat", "dog", "emu")
    assert (data.train.labels, data.val.labels) == ((0, 0, 1, 1, 1, 0, 2, 2), (1,) * 4)
    assert data.note.startswith(
        "split as the folders train/ and val/, and test/; left out 1 file in extra/, which is not"
    )
    with pytest.raises(FoveateError, match="has no part 'dev'"):
        open_data(root, parts="train:dev")
