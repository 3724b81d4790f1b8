"""Parquet files of encoded images."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foveate.data import open_data
from foveate.errors import FoveateError

Rows = Callable[..., Path]
OTHER = "left out 1 row of the part other, which is not used (all.parquet row 4)"


def test_train_and_test_files_with_class_names(rows: Rows, describe: Callable[..., None], picture: Any) -> None:
    folder = rows("train.parquet", [1, 0, 1, 2, 0]).parent
    rows("test.parquet", [2, 0])
    describe(name="Animals", class_names=["cat", "dog", "emu"], licence="CC0")
    data = open_data(folder)
    assert (data.name, data.classes, data.licence) == ("Animals", ("cat", "dog", "emu"), "CC0")
    assert (data.train.labels, data.val.labels) == ((1, 0, 1, 2, 0), (2, 0))
    assert data.train.names[4] == "train.parquet row 4"
    assert data.train.sources[4] == picture(4)
    assert data.train.load(4).size == (12, 12)
    assert data.note == "split as the files train.parquet and test.parquet"


def test_label_numbers_are_the_names_where_there_are_none(rows: Rows) -> None:
    folder = rows("train.parquet", [7, 10, 2, 7]).parent
    rows("val.parquet", [10])
    data = open_data(folder)
    assert data.classes == ("2", "7", "10")
    assert (data.train.labels, data.val.labels) == ((1, 2, 0, 1), (2,))


def test_text_labels(rows: Rows, describe: Callable[..., None]) -> None:
    folder = rows("train.parquet", ["dog", "cat", "dog"]).parent
    rows("val.parquet", ["cat"])
    assert open_data(folder).classes == ("cat", "dog")
    describe(class_names=["dog", "cat"])
    assert open_data(folder).train.labels == (0, 1, 0)


def test_one_file_with_a_split_column(rows: Rows) -> None:
    file = rows("all.parquet", [0, 1, 0, 1, 1], split=["train", "val", "val", "train", "other"])
    for source in (file, file.parent):
        data = open_data(source)
        assert (data.train.names, data.val.names) == (
            ("all.parquet row 0", "all.parquet row 3"),
            ("all.parquet row 1", "all.parquet row 2"),
        )
        assert data.note == f"split by the column 'split': train and val; {OTHER}"


@pytest.mark.parametrize("columns", [{}, {"split": ["train"] * 40}])
def test_one_file_without_a_split_is_split_by_seed(rows: Rows, columns: dict[str, Any]) -> None:
    file = rows("all.parquet", [0, 1] * 20, **columns)
    data = open_data(file, seed=1)
    assert (len(data.train), sorted(data.val.labels)) == (32, [0] * 4 + [1] * 4)
    assert open_data(file, seed=2).val.names != data.val.names


def test_images_as_hugging_face_writes_them(rows: Rows, picture: Any) -> None:
    image = [{"bytes": picture(i), "path": f"{i}.jpg"} for i in range(10)]
    data = open_data(rows("all.parquet", [0, 1] * 5, image=image))
    assert data.train.load(0).size == (12, 12)


def test_order_across_row_groups_is_kept(rows: Rows, picture: Any) -> None:
    folder = rows("train.parquet", [i % 3 for i in range(23)]).parent
    rows("test.parquet", [0])
    data = open_data(folder)
    assert data.train.sources == tuple(picture(i) for i in range(23))
    assert data.train.labels == tuple(i % 3 for i in range(23))


def test_bad_rows_are_named(rows: Rows, picture: Any) -> None:
    images = [picture(i, side=40) for i in range(6)]
    images[2], images[4] = b"", images[4][: len(images[4]) // 2]
    folder = rows("train.parquet", [0, 1] * 3, image=images).parent
    rows("test.parquet", [0, 1])
    with pytest.raises(FoveateError, match=r"^train\.parquet row 2 is empty"):
        open_data(folder)
    data = open_data(folder, on_bad_image="skip")
    assert data.bad == ("train.parquet row 2", "train.parquet row 4")
    assert len(data.train) == 4


@pytest.mark.parametrize(
    ("labels", "columns", "words"),
    [
        ([0, None], {}, "row 1: the label must be a whole number or text, not a missing value"),
        ([0.5, 1.0], {}, "row 0: the label must be a whole number or text, not float"),
        ([0, 1], {"image": [b"x", None]}, "row 1: the image must be encoded bytes, not a missing value"),
        ([0, 1], {"image": ["a.jpg", "b.jpg"]}, "row 0: the image must be encoded bytes, not str"),
        ([0, 1], {"split": ["left", "right"]}, "column 'split' says left, right"),
    ],
)
def test_wrong_columns_are_explained(rows: Rows, labels: list[Any], columns: dict[str, Any], words: str) -> None:
    with pytest.raises(FoveateError, match=words):
        open_data(rows("all.parquet", labels, **columns))


def test_missing_column_shows_near_names(rows: Rows) -> None:
    file = rows("all.parquet", [0, 1])
    pq.write_table(pa.table({"file": [b""], "labels": [0]}), file)
    with pytest.raises(FoveateError, match="has no column 'image': there are: file, labels"):
        open_data(file)
    pq.write_table(pa.table({"image": [b""], "labels": [0]}), file)
    with pytest.raises(FoveateError, match="has no column 'label': did you mean 'labels'"):
        open_data(file)


def test_labels_must_be_classes(rows: Rows, describe: Callable[..., None]) -> None:
    folder = rows("train.parquet", [0, 1]).parent
    rows("test.parquet", [0, 2])
    with pytest.raises(FoveateError, match=r"test\.parquet row 1: label 2 is not a class: there are: 0, 1"):
        open_data(folder)
    describe(class_names=["cat"])
    with pytest.raises(FoveateError, match=r"train\.parquet row 1: label 1 is not a class"):
        open_data(folder)
    describe(class_names=["cat", "dog", "emu"])
    with pytest.raises(FoveateError, match="class 'emu' has no training image"):
        open_data(folder)
    assert open_data(folder, allow_empty=True).val.labels == (0, 2)


@pytest.mark.parametrize("names", ["cat", ["cat", "cat"], [1, 2]])
def test_wrong_class_names_are_explained(rows: Rows, describe: Callable[..., None], names: Any) -> None:
    file = rows("all.parquet", [0, 1] * 4)
    describe(class_names=names)
    with pytest.raises(FoveateError, match="class_names must be a list of distinct names"):
        open_data(file)


def test_wrong_files_are_explained(rows: Rows, tmp_path: Path) -> None:
    folder = rows("a.parquet", [0, 1]).parent
    rows("b.parquet", [0, 1])
    with pytest.raises(FoveateError, match=r"holds a\.parquet, b\.parquet: rename"):
        open_data(folder)
    for content in ("not parquet", ""):
        (tmp_path / "text.parquet").write_text(content)
        with pytest.raises(FoveateError, match=r"text\.parquet is not a Parquet file"):
            open_data(tmp_path / "text.parquet")
    file = rows("c.parquet", [0, 1] * 4, folder="other")
    (file.parent / "dataset.json").write_text("{")
    with pytest.raises(FoveateError, match=r"dataset\.json cannot be read"):
        open_data(file)


def test_a_table_beside_class_folders_is_not_the_data(plant: Any, rows: Rows) -> None:
    root = plant({"cat": 5, "dog": 5}, root="set")
    rows("metadata.parquet", [0, 1])
    assert open_data(root).classes == ("cat", "dog")


def test_thirteen_thousand_rows_open_quickly(rows: Rows, picture: Any) -> None:
    one = picture(0, side=60)
    folder = rows("train.parquet", [i % 10 for i in range(9025)], image=[one] * 9025).parent
    rows("test.parquet", [i % 10 for i in range(3929)], image=[one] * 3929)
    start = time.process_time()  # of the processor: other work on the machine does not count
    assert len(open_data(folder).train) == 9025
    assert time.process_time() - start < 1


# ---- as Hugging Face keeps it


def hub(rows: Rows, name: str, labels: list[Any], folder: str = "hub/data", **columns: Any) -> Path:
    """A file with the schema that ``datasets`` writes."""
    file = rows(f"{name}.parquet", labels, folder=folder, **columns)
    table = pq.read_table(file).rename_columns(["img", "fine_label", *columns])
    features = {
        "img": {"_type": "Image"},
        "fine_label": {"names": ["ant", "bee", "cow"], "_type": "ClassLabel"},
    }
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), file)
    return file


def test_files_of_the_hub(rows: Rows) -> None:
    for number in range(2):
        hub(rows, f"train-0000{number}-of-00002", [2, 0, 1])
    folder = hub(rows, "test-00000-of-00001", [1, 2]).parent
    for source in (folder, folder.parent):
        data = open_data(source)
        assert data.classes == ("ant", "bee", "cow")
        assert (data.train.labels, data.val.labels) == ((2, 0, 1) * 2, (1, 2))
        assert data.note == (
            "split as the files train-00000-of-00002.parquet to train-00001-of-00002.parquet and "
            "test-00000-of-00001.parquet"
        )
    assert data.train.names[3] == "train-00001-of-00002.parquet row 0"


def test_shards_without_a_part(rows: Rows) -> None:
    for number in range(2):
        folder = rows(f"birds-0000{number}-of-00002.parquet", [0, 1] * 10).parent
    data = open_data(folder)
    assert (len(data.train), len(data.val)) == (32, 8)


def test_a_label_below_0_is_not_a_class(rows: Rows) -> None:
    hub(rows, "train", [0, -1, 1, 2, 0, 1, 2])
    hub(rows, "validation", [-1, 2, -1])
    folder = hub(rows, "test", [-1, -1]).parent
    data = open_data(folder)
    assert (data.classes, data.train.labels, data.val.labels) == (("ant", "bee", "cow"), (0, 1, 2, 0, 1, 2), (2,))
    names = dict(data.unused)["without a class (a label below 0)"]
    assert dict(data.unused)["of a part that is not used"] == ("test.parquet",)
    assert sorted(names) == ["train.parquet row 1", "validation.parquet row 0", "validation.parquet row 2"]
    assert "left out 3 rows without a class (a label below 0) (" in data.note
    (folder / "validation.parquet").unlink()
    data = open_data(folder)  # the test part has no labels at all, as on the hub
    assert len(data.train) + len(data.val) == 6
    assert "no labelled validation file" in data.note


def test_a_file_that_is_not_used_is_counted(rows: Rows) -> None:
    for part in ("train", "val", "test", "extra"):
        folder = rows(f"{part}.parquet", [0, 1]).parent
    data = open_data(folder)
    assert data.unused == (("of a part that is not used", ("test.parquet", "extra.parquet")),)
    assert data.note.endswith("; left out 2 files of a part that is not used (test.parquet, extra.parquet)")


def test_parts_that_are_asked_for(rows: Rows) -> None:
    folder = rows("train.parquet", [0, 1, 0]).parent
    rows("val.parquet", [1, 1])
    rows("test.parquet", [1, 0, 0, 1])
    data = open_data(folder, parts="train+val:test")
    assert (data.train.labels, data.val.labels) == ((0, 1, 0, 1, 1), (1, 0, 0, 1))
    assert data.train.names[3] == "val.parquet row 0"
    assert data.note == "split as the files train.parquet and val.parquet, and test.parquet"
    other = open_data(folder, parts="test:validation")
    assert (len(other.train), other.val.labels) == (4, (1, 1))
    assert "left out 1 file of a part that is not used (train.parquet)" in other.note
    assert open_data(folder).fingerprint != data.fingerprint
    single = rows("all.parquet", [0, 1, 1, 0, 1], folder="one", split=["train", "train", "val", "test", "val"])
    data = open_data(single, parts="train+val:test")
    assert (data.train.labels, data.val.labels) == ((0, 1, 1, 1), (0,))
    assert "train and val, and test" in data.note
    whole = rows("rows.parquet", [0, 1] * 5, folder="whole")
    for source, parts, message in (
        (folder, "train", "write the parts to train on, a colon"),
        (folder, "train+train:test", "write the parts to train on, a colon"),
        (folder, "train:test+val", "there is no part 'test.val'"),
        (folder, "trian:test", "did you mean 'train'"),
        (folder, "train:dev", "has no part 'dev' .*; it has train, val, test"),
        (whole, "train:test", "has no parts to choose from"),
        (open_data(folder), "train:test", "the data are open already"),
        ("elpv", "train:test", "the parts of elpv cannot be chosen"),
    ):
        with pytest.raises(FoveateError, match=message):
            open_data(source, parts=parts)
