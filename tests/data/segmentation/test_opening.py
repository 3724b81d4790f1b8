from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from foveate.data import open_data
from foveate.data.segmentation import IGNORE, SegmentationData, find_segmentation, open_segmentation
from foveate.data.segmentation.label_map import read_values
from foveate.errors import FoveateError


def values(split, index=0):
    return np.asarray(split.target(index))


def test_parts_and_names(plain):
    data = open_segmentation(plain)
    assert data.classes == ("sky", "road", "tree")
    assert (len(data.train), len(data.val)) == (3, 2)
    assert data.val.names == ("val/0", "val/1")
    assert "split as the folders train/ and val/" in data.note
    image, target = data.train[1]
    assert image.size == target.size == (16, 12)
    assert image.mode == "RGB"
    assert set(np.unique(values(data.train, 1))) == {0, 1, 2, IGNORE}
    raw = np.asarray(Image.open(plain / "annotations/train/1.png"))
    assert np.array_equal(values(data.train, 1) == IGNORE, raw == 3)
    assert len(open_segmentation(plain, val_part="test").val) == 1
    with pytest.raises(FoveateError, match=r"no part 'tests'.*test"):
        open_segmentation(plain, val_part="tests")


def test_names_from_the_description_and_from_the_caller(plain):
    (plain / "dataset.json").write_text(json.dumps({"class_names": ["a", "b", "c", "d"], "licence": "CC0"}))
    data = open_segmentation(plain, ignore=(0,))
    assert (data.classes, data.licence) == (("b", "c", "d"), "CC0")
    assert open_segmentation(plain, classes=["x", "y", "z", "w"]).classes == ("x", "y", "z", "w")
    (plain / "dataset.json").write_text("{")
    with pytest.raises(FoveateError, match="class names"):
        open_segmentation(plain)


def test_the_callers_names_decide_what_does_not_count(plain):
    named = open_segmentation(plain, classes=["x", "Void", "z", "w"])  # the folder calls 3 unlabelled
    assert named.classes == ("x", "z", "w")
    raw = np.asarray(Image.open(plain / "annotations/train/1.png"))
    assert values(named.train, 1).tolist() == np.array([0, IGNORE, 1, 2])[raw].tolist()
    with pytest.raises(FoveateError, match="give a list of at most 255 names"):
        open_segmentation(plain, classes=[0, 1, 2, 3])


def test_without_names_the_numbers_are_the_classes(plain):
    (plain / "classes.txt").unlink()
    data = open_segmentation(plain, ignore=(1,))
    assert data.classes == ("0", "2", "3")
    assert "numbers in the training label maps" in data.note


def test_without_parts_a_seeded_split(tmp_path, write_pair):
    for n in range(10):
        write_pair(tmp_path / f"images/{n}.png", tmp_path / f"masks/{n}.png", n, (0, 1))
    data, again = open_segmentation(tmp_path), open_segmentation(tmp_path)
    assert (len(data.train), len(data.val)) == (8, 2)
    assert data.fingerprint == again.fingerprint != open_segmentation(tmp_path, seed=1).fingerprint
    assert not set(data.train.names) & set(data.val.names)
    assert len(open_segmentation(data, limit=3).train) == 3


def test_ade20k(tmp_path, write_pair):
    for part in ("training", "validation"):
        write_pair(tmp_path / f"images/{part}/a.jpg", tmp_path / f"annotations/{part}/a.png", 0, (0, 1, 150))
    rows = "".join(f"{n}\t0.1\t1\t1\t0\tthing {n}, other\n" for n in range(1, 151))
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n" + rows)
    data = open_segmentation(tmp_path)
    assert len(data.classes) == 150
    assert data.classes[149] == "thing 150"
    assert set(np.unique(values(data.val))) == {0, 149, IGNORE}
    named = open_segmentation(tmp_path, classes=["nothing", *(f"a {n}" for n in range(1, 151))])
    assert (len(named.classes), named.classes[0]) == (150, "a 1")  # 0 is none in this layout, whatever it is called


def test_pascal_voc(tmp_path, write_pair):
    for name in "ab":
        write_pair(tmp_path / f"JPEGImages/{name}.jpg", tmp_path / f"SegmentationClass/{name}.png", 0, (0, 20, 255))
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    with pytest.raises(FoveateError, match=r"val\.txt is missing"):
        open_segmentation(tmp_path)
    (lists / "val.txt").write_text("b\n")
    data = open_segmentation(tmp_path)
    assert (len(data.classes), data.classes[20], data.val.names) == (21, "tvmonitor", ("b",))
    assert set(np.unique(values(data.train))) == {0, 20, IGNORE}


def test_cityscapes(tmp_path, write_pair):
    for part in ("train", "val"):
        image = tmp_path / f"leftImg8bit/{part}/ulm/x_leftImg8bit.png"
        write_pair(image, tmp_path / f"gtFine/{part}/ulm/x_gtFine_labelIds.png", 0, (0, 7, 33, 6))
    data = open_segmentation(tmp_path)
    assert (len(data.classes), data.classes[0], data.classes[18]) == (19, "road", "bicycle")
    assert set(np.unique(values(data.train))) == {0, 18, IGNORE}


def test_what_is_wrong_is_named(plain, write_pair):
    write_pair(plain / "images/train/9.jpg", plain / "annotations/train/9.png", 9, (0, 7))
    data = open_segmentation(plain)
    with pytest.raises(FoveateError, match=r"9\.png holds the number 7 in \d+ pixels"):
        data.train.target(3)
    Image.new("L", (5, 5)).save(plain / "annotations/train/9.png")
    with pytest.raises(FoveateError, match=r"9\.png is 5x5 pixels and its image 16x12"):
        open_segmentation(plain)
    with pytest.raises(FoveateError, match=r"9\.png is 5x5 pixels"):  # changed since
        data.train.target(3)
    Image.new("RGB", (16, 12)).save(plain / "annotations/train/9.png")
    with pytest.raises(FoveateError, match=r"9\.png holds colours"):
        open_segmentation(plain).train.target(3)
    (plain / "annotations/train/9.png").unlink()
    ((reason, names),) = open_segmentation(plain).unused
    assert (reason, names) == ("without a partner of the same name", ("train/9",))


def test_a_rotated_photograph_fits_its_label_map(plain):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 16)).save(plain / "images/train/0.jpg", exif=exif)
    data = open_segmentation(plain)
    assert data.train.sizes[0] == (12, 16)
    assert data.train.load(0).size == (16, 12)


def png(numbers, bits, kind):
    """A PNG of so many bits for each pixel, grey (0) or with a palette (3)."""
    height, width = numbers.shape
    packed = [np.unpackbits(row[:, None].astype(np.uint8), 1)[:, 8 - bits :].ravel() for row in numbers]
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in packed)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))]
    chunks += [(b"PLTE", bytes(3 * 2**bits))] if kind == 3 else []
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(numbers, bits):
    """A grey TIFF of so many bits for each pixel, not compressed."""
    height, width = numbers.shape
    packed = [np.unpackbits(row[:, None].astype(np.uint8), 1)[:, 8 - bits :].ravel() for row in numbers]
    rows = b"".join(np.packbits(row).tobytes() for row in packed)
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(rows)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(rows)) + rows + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_numbers_of_a_label_map_are_those_in_its_file(bits, tmp_path):
    numbers = np.random.default_rng(bits).integers(0, 2**bits, (6, 13))
    numbers[0, :2] = 0, 2**bits - 1
    files = {"grey.png": png(numbers, bits, 0), "palette.png": png(numbers, bits, 3), "grey.tif": tiff(numbers, bits)}
    for name, content in files.items():
        assert read_values(content, name).tolist() == numbers.tolist(), name
        (tmp_path / name).write_bytes(content)
        assert read_values(str(tmp_path / name)).tolist() == numbers.tolist(), name


def test_found_or_not(plain, tmp_path_factory):
    assert find_segmentation(plain)
    other = tmp_path_factory.mktemp("none")
    assert not find_segmentation(other)
    assert not find_segmentation("elpv")
    (other / "images").mkdir()
    (other / "annotations").mkdir()
    (other / "annotations/a.xml").write_text("<boxes/>")
    assert not find_segmentation(other)
    with pytest.raises(FoveateError, match="no images beside label maps"):
        open_segmentation(other)
    with pytest.raises(FoveateError, match="open_segmentation"):
        open_data(plain)
    assert isinstance(open_segmentation(plain), SegmentationData)
