"""Images and label maps in tables: Parquet files and data sets of Hugging Face give the same as a folder."""

from __future__ import annotations

import copy
import io
import json
import sys
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.data.libraries import EncodedImages
from foveate.data.segmentation import check_segmentation, find_segmentation, open_segmentation
from foveate.errors import FoveateError

SIZE = (12, 18)  # height, width


def encoded(values, kind="PNG"):
    content = io.BytesIO()
    Image.fromarray(values).save(content, kind)
    return content.getvalue()


def pairs(count, seed=0):
    """Encoded images, encoded label maps and the numbers in them."""
    random = np.random.default_rng(seed)
    maps = [random.integers(0, 3, SIZE).astype(np.uint8) for _ in range(count)]
    for one in maps:
        one[0, 0] = 255
    images = [encoded((one[..., None].astype(np.uint8) * 80).repeat(3, 2)) for one in maps]
    return images, [encoded(one) for one in maps], maps


ImageFeature = type("Image", (types.SimpleNamespace,), {})  # its name says what it is


class FakeRows:
    """What a part of a Hugging Face data set is to a reader."""

    def __init__(self, columns, decode=frozenset()):
        self.columns, self.decode = columns, decode
        kinds = {name: ImageFeature() for name, values in columns.items() if isinstance(values[0], bytes)}
        self.features = {name: kinds.get(name, object()) for name in columns}
        self.info = types.SimpleNamespace(license="CC0")

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def select_columns(self, names):
        return FakeRows({name: self.columns[name] for name in names}, self.decode)

    def cast_column(self, name, feature):
        assert not feature.decode
        return FakeRows(self.columns, self.decode | {name})

    def __getitem__(self, at):
        pictures = {name for name, kind in self.features.items() if isinstance(kind, ImageFeature)}
        assert pictures <= self.decode, "the library must not decode"
        return {name: {"bytes": values[at], "path": None} for name, values in self.columns.items()}


@pytest.fixture
def hub(monkeypatch):
    module, held = types.ModuleType("datasets"), {}
    module.load_dataset = lambda name, configuration=None: held[name]
    module.load_from_disk = lambda path: held[Path(path).name]
    module.Image = lambda decode: types.SimpleNamespace(decode=decode)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return held


def parquet(file, images, maps, names=("image", "label"), **more):
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = (images, maps)[: len(names)]
    pictures = [[{"bytes": one, "path": None} for one in column] for column in columns]
    pq.write_table(pa.table(dict(zip(names, pictures, strict=True)) | more), file)
    return file


def same(data, train, val):
    for split, maps in ((data.train, train), (data.val, val)):
        assert len(split) == len(maps)
        for (image, classes), values in zip(split, maps, strict=True):
            assert np.array_equal(np.asarray(classes), values)
            assert image.size == SIZE[::-1]
            assert np.array_equal(np.asarray(image)[..., 0], values.astype(np.uint8) * 80)


def test_parquet_and_the_hub_give_the_images_and_the_numbers(tmp_path, hub):
    images, encoded_maps, maps = pairs(7)
    train, val = slice(0, 5), slice(5, 7)
    folder = tmp_path / "street"
    parquet(folder / "data/train-00000-of-00002.parquet", images[:3], encoded_maps[:3], scene=[0, 1, 0])
    parquet(folder / "data/train-00001-of-00002.parquet", images[3:5], encoded_maps[3:5], scene=[0, 1])
    parquet(folder / "data/validation-00000-of-00001.parquet", images[val], encoded_maps[val], scene=[0, 1])
    parts = {"train": train, "validation": val}
    hub["me/street"] = {
        part: FakeRows({"pixel_values": images[of], "annotation": encoded_maps[of], "scene": [0] * len(maps[of])})
        for part, of in parts.items()
    }
    for source, columns in ((folder, "image and label"), ("hf:me/street", "pixel_values and annotation")):
        assert find_segmentation(source)
        data = open_segmentation(source)
        same(data, maps[train], maps[val])
        assert data.classes == ("0", "1", "2")
        assert f"layout: the columns {columns}; split as the" in data.note
        assert data.fingerprint == open_segmentation(source).fingerprint
        assert check_segmentation(data).sound
        assert open_segmentation(source, classes=["sky", "road", "car"]).classes == ("sky", "road", "car")
        if source is folder:
            same(copy.deepcopy(data), maps[train], maps[val])
    assert (data.name, data.licence) == ("hf:me/street", "CC0")
    assert data.train.names[:2] == ("train row 0", "train row 1")

    (folder / "id2label.json").write_text(json.dumps({"0": "sky", "1": "road", "2": "car"}))
    named = open_segmentation(folder)
    assert named.classes == ("sky", "road", "car")
    (folder / "dataset.json").write_text(json.dumps({"class_names": ["void", "road", "car"], "licence": "CC0"}))
    other = open_segmentation(folder)
    assert (other.classes, other.licence) == (("road", "car"), "CC0")
    assert named.fingerprint != other.fingerprint
    alone = open_segmentation(folder / "data/train-00000-of-00002.parquet")
    assert (len(alone.train), len(alone.val)) == (2, 1)
    assert "1 of 3 images drawn for validation with seed 0" in alone.note
    with pytest.raises(FoveateError, match="has no part 'tset'"):
        open_segmentation(folder, val_part="tset")


def test_a_folder_that_was_saved_to_disk(tmp_path, hub):
    images, encoded_maps, maps = pairs(5)
    hub["kept"] = FakeRows({"image": images, "mask": encoded_maps})
    for place in ("one", "two"):
        (tmp_path / place / "kept").mkdir(parents=True)
        (tmp_path / place / "kept/id2label.json").write_text('{"0": "a", "1": "b", "2": "c"}')
    one, two = (open_segmentation(f"hf:{tmp_path / place / 'kept'}") for place in ("one", "two"))
    assert one.classes == ("a", "b", "c")
    assert one.fingerprint == two.fingerprint
    assert one.name == "hf:kept"
    assert len(one.train) + len(one.val) == len(maps)
    hub["kept"] = {
        "train": FakeRows({"image": images, "mask": encoded_maps}),
        "test": FakeRows({"image": images, "id": [1] * 5}),  # given out without label maps
    }
    assert "1 of 5 images drawn" in open_segmentation(f"hf:{tmp_path / 'one/kept'}").note


def test_what_holds_no_label_maps_stays_what_it_was(tmp_path, hub):
    images, _, _ = pairs(6)
    classes = tmp_path / "classes"
    parquet(classes / "train.parquet", images[:4], [], names=("image",), label=[0, 1, 0, 1])
    parquet(classes / "test.parquet", images[4:], [], names=("image",), label=[0, 1])
    assert not find_segmentation(classes)
    assert len(fv.open_data(classes).train) == 4
    with pytest.raises(FoveateError, match="holds no images beside label maps"):
        open_segmentation(classes)
    hub["me/pets"] = {"train": FakeRows({"image": images, "label": [0, 1] * 3})}
    assert not find_segmentation("hf:me/pets")
    assert not find_segmentation("hf:me/unknown")
    with pytest.raises(FoveateError, match=r"hf:me/pets has no column of images beside one of label maps"):
        open_segmentation("hf:me/pets")
    with pytest.raises(FoveateError, match="hf:me/unknown could not be downloaded or opened"):
        open_segmentation("hf:me/unknown")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    assert not find_segmentation(tmp_path / "broken.parquet")
    sys.modules["datasets"] = None
    assert not find_segmentation("hf:me/street")
    with pytest.raises(FoveateError, match="hf:NAME needs the package datasets: pip install datasets"):
        open_segmentation("hf:me/street")


def test_every_fault_of_a_row_is_named(tmp_path, hub):
    images, encoded_maps, maps = pairs(4)
    wide = np.zeros((5, 6), np.uint8)
    faults = {
        "train.parquet row 1 is 6x5 pixels and its image 18x12": encoded(wide),
        "train.parquet row 1: a label map is a PNG .* what JPEG stores": encoded(maps[1], "JPEG"),
        "train.parquet row 1 is not an image": b"text",
        "train.parquet row 1: the column 'label' must hold encoded bytes": None,
        "train.parquet row 1 holds colours": images[1],
    }
    for words, content in faults.items():
        parquet(tmp_path / "train.parquet", images, [encoded_maps[0], content, *encoded_maps[2:]])
        with pytest.raises(FoveateError, match=words):
            open_segmentation(tmp_path, val_fraction=0.25)
    parquet(tmp_path / "train.parquet", images, encoded_maps)
    data = open_segmentation(tmp_path, classes=["a", "b"], val_fraction=0.25)
    assert all(
        "holds the number 2 in" in reason and "train.parquet row" in reason
        for _, reason in check_segmentation(data).bad
    )
    assert len(check_segmentation(data).bad) == 4
    hub["me/street"] = {"train": FakeRows({"image": images, "label": [*encoded_maps[:3], encoded(wide)]})}
    with pytest.raises(FoveateError, match="the label map train row 3 is 6x5 pixels and its image 18x12"):
        open_segmentation("hf:me/street")
    (tmp_path / "id2label.json").write_text('{"sky": 0}')
    with pytest.raises(FoveateError, match="id2label.json must hold an object from number to name"):
        open_segmentation(tmp_path)


def test_a_network_learns_from_a_table(tmp_path):
    images, encoded_maps, _ = pairs(6)
    parquet(tmp_path / "train.parquet", images[:4], encoded_maps[:4])
    parquet(tmp_path / "val.parquet", images[4:], encoded_maps[4:])
    torch.manual_seed(0)
    model = fv.create_segmenter("test_efficientnet", classes=("0", "1", "2"))
    recipe = fv.Recipe(epochs=1, batch_size=2, image_size=32)
    found = fv.fit(model, tmp_path, recipe, progress=False).evaluation
    assert found.miou == pytest.approx(fv.evaluate(model, tmp_path).miou)


def test_label_maps_that_lie_beside_the_table_are_part_of_the_fingerprint(tmp_path, hub, monkeypatch):
    images, encoded_maps, _ = pairs(4)
    hub["me/street"] = {"train": FakeRows({"image": images, "label": encoded_maps})}
    for kind, contents in (("image", images), ("label", encoded_maps)):
        for n, content in enumerate(contents):
            (tmp_path / f"{kind}{n}.png").write_bytes(content)
    monkeypatch.setattr(EncodedImages, "__getitem__", lambda self, n: str(tmp_path / f"{self.column}{n}.png"))
    before = open_segmentation("hf:me/street").fingerprint
    (tmp_path / "label2.png").write_bytes(encoded(np.ones(SIZE, np.uint8)))
    assert open_segmentation("hf:me/street").fingerprint != before
