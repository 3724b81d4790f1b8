"""What could mean two things is refused: numbers of classes, names of files, images of both parts."""

import io
import json
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import foveate as fv
from foveate.data.parts import lines_of_names
from foveate.errors import FoveateError


def picture(seed=0, size=(40, 30)):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def parquet(file, names, labels):
    """As Hugging Face writes it, with the names of the classes in the schema."""
    table = pa.table({"image": [picture(n) for n in range(len(labels))], "label": labels})
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), file)


def test_a_number_stands_for_one_class_in_both_parts(tmp_path):
    parquet(tmp_path / "train.parquet", ["cat", "dog"], [0, 1, 0, 1])
    parquet(tmp_path / "test.parquet", ["dog", "cat"], [1, 0, 1, 0])
    with pytest.raises(FoveateError, match="the label 0 is 'cat' in training and 'dog' in validation"):
        fv.open_data(tmp_path)
    parquet(tmp_path / "test.parquet", ["cat", "dog", "horse"], [1, 0, 1, 0])  # more classes are no other order
    assert fv.open_data(tmp_path).val.labels == (1, 0, 1, 0)


def shards(file, labels):
    with tarfile.open(file, "w") as tar:
        for n, label in enumerate(labels):
            for name, content in ((f"{n}.png", picture(n)), (f"{n}.cls", str(label).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    "names, labels, expected",
    [
        (["one", "two", "three"], [0, 1, 2, 0, 1, 2], (0, 1, 2, 0, 1, 2)),
        (["b", "a", "c"], ["a", "b", "c", "a", "b", "c"], (1, 0, 2, 1, 0, 2)),
        (["1", "2", "3"], [0, 1, 2, 0, 1, 2], (0, 1, 2, 0, 1, 2)),  # there is no class 0
        (["10", "20", "30"], [10, 20, 30, 10, 20, 30], (0, 1, 2, 0, 1, 2)),
        (["0", "1", "2"], [0, 1, 2, 0, 1, 2], (0, 1, 2, 0, 1, 2)),
        (sorted(map(str, range(12))), [*range(12)] * 2, None),
        (["3", "2", "1", "0"], [0, 1, 2, 3] * 2, None),
    ],
)
def test_labels_of_tar_files_are_numbers_or_names(names, labels, expected, tmp_path):
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n\n")
    shards(tmp_path / "train-0.tar", labels)
    shards(tmp_path / "val-0.tar", labels)
    if expected is None:
        with pytest.raises(FoveateError, match="a label may be either"):
            fv.open_data(tmp_path)
    else:
        data = fv.open_data(tmp_path)
        assert data.classes == tuple(names)
        assert data.train.labels == data.val.labels == expected


def test_names_in_a_file(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("void\nroad\n \n", "utf-8-sig")
    assert lines_of_names(file) == ["void", "road"]
    file.write_text("void\n\nroad\n")
    with pytest.raises(FoveateError, match="line 2 is empty"):
        lines_of_names(file)
    file.write_text("a\nb\na\n")
    shards(tmp_path / "train-0.tar", ["a", "b", "a", "b"])
    with pytest.raises(FoveateError, match="names 'a' twice"):
        fv.open_data(tmp_path)
    file.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(FoveateError, match="cannot be read"):
        lines_of_names(file)


@pytest.fixture
def maps(tmp_path):
    """images/ and annotations/ without parts."""
    for folder in ("images", "annotations"):
        (tmp_path / folder).mkdir()
    for n in range(4):
        (tmp_path / f"images/{n}.png").write_bytes(picture(n))
        Image.fromarray(np.full((30, 40), n % 2, np.uint8)).save(tmp_path / f"annotations/{n}.png")
    (tmp_path / "classes.txt").write_text("void\nroad\nsky\n", "utf-8-sig")
    return tmp_path


def test_label_maps(maps):
    assert fv.open_segmentation(maps).classes == ("road", "sky")  # void does not count, whatever stands before it
    (maps / "images/2.jpg").write_bytes(picture(9))
    with pytest.raises(FoveateError, match=r"2\.jpg and .*2\.png are both called '2'"):
        fv.open_segmentation(maps)


def voc(root, train, val):
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    box = "<xmin>1</xmin><ymin>2</ymin><xmax>20</xmax><ymax>20</ymax>"
    for name in {*train, *val}:
        (root / f"JPEGImages/{name}.jpg").write_bytes(picture())
        Image.fromarray(np.eye(30, 40, dtype=np.uint8)).save(root / f"SegmentationClass/{name}.png")
        (root / f"Annotations/{name}.xml").write_text(
            f"<annotation><object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"
        )
    for part, names in (("train", train), ("val", val)):
        for kind in ("Main", "Segmentation"):
            (root / f"ImageSets/{kind}/{part}.txt").write_text("\n".join(names))


@pytest.mark.parametrize("opening", [fv.open_detection, fv.open_segmentation], ids=["boxes", "label maps"])
def test_an_image_is_in_one_part(opening, tmp_path):
    voc(tmp_path, ["a", "b"], ["c"])
    assert len(opening(tmp_path).val) == 1
    voc(tmp_path, ["a", "b"], ["a", "b", "c"])
    with pytest.raises(FoveateError, match=r"a\.jpg is in the training and in the validation part, and 1 more are"):
        opening(tmp_path)
    voc(tmp_path, ["a", "b"], ["c"])
    (tmp_path / "JPEGImages/c.jpg").unlink()
    os.link(tmp_path / "JPEGImages/a.jpg", tmp_path / "JPEGImages/c.jpg")
    with pytest.raises(FoveateError, match="are one file, which is in the training and in the validation part"):
        opening(tmp_path)


def test_two_images_of_one_annotation(tmp_path):
    voc(tmp_path, ["a", "b"], ["c"])
    (tmp_path / "JPEGImages/more").mkdir()
    (tmp_path / "JPEGImages/more/a.png").write_bytes(picture(3))
    with pytest.raises(FoveateError, match="are both called 'a'"):
        fv.open_detection(tmp_path)


def test_a_box_that_has_no_area_in_32_bits_is_named(tmp_path):
    for n in range(4):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
    sides = [[1, 2, 10, 10], [39.9999999, 5, 0.5, 20], [5, 5, 10, 10], [3, 3, 9, 9]]
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in range(4)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": box, "iscrowd": 0} for n, box in enumerate(sides)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "_annotations.coco.json").write_text(json.dumps(content))
    with pytest.raises(FoveateError, match="has no area within the image of 40x30 pixels"):
        fv.open_detection(tmp_path)
    data = fv.open_detection(tmp_path, on_bad_image="skip")
    assert len(data.bad) == 1
    for part in (data.train, data.val):
        for objects in part.objects:
            assert (objects.boxes[:, 2:] > objects.boxes[:, :2]).all()
