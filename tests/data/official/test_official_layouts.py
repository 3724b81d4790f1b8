"""Six data sets in the layout of their authors, with the authors' split; the lists are small and made up."""

import numpy as np
import pytest
from scipy import io

from foveate.data import open_data
from foveate.errors import FoveateError


@pytest.fixture
def put(tmp_path, picture):
    """Write files below a folder: text, bytes, or None for a picture."""

    def write(folder, files):
        for number, (name, content) in enumerate(files.items()):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number) if content is None else content.encode())
        return tmp_path / folder

    return write


def rows_of(split, classes):
    return [(name.rpartition("/")[2], classes[label]) for name, label in zip(split.names, split.labels, strict=True)]


BIRDS = {
    "images/001.Albatross/a.jpg": None,
    "images/001.Albatross/b.jpg": None,
    "images/002.Cardinal/c.jpg": None,
    "images/002.Cardinal/d.jpg": None,
    "images.txt": "1 001.Albatross/a.jpg\n2 001.Albatross/b.jpg\n3 002.Cardinal/c.jpg\n4 002.Cardinal/d.jpg\n",
    "image_class_labels.txt": "1 1\n2 1\n3 2\n4 2\n",
    "classes.txt": "1 001.Albatross\n2 002.Cardinal\n",
    "train_test_split.txt": "1 0\n2 1\n3 1\n4 0\n",
}
FOOD = {f"images/{kind}/{n}.jpg": None for kind in ("pie", "ramen") for n in range(2)} | {
    "meta/train.txt": "pie/1\nramen/0\n",
    "meta/test.txt": "pie/0\nramen/1\n",
    "meta/classes.txt": "pie\nramen\n",
}
PETS = {f"images/{kind}_{n}.jpg": None for kind in ("Maine_Coon", "pug") for n in (1, 2)} | {
    "annotations/trainval.txt": "Maine_Coon_2 1 1 1\npug_1 2 2 1\n",
    "annotations/test.txt": "# a comment\nMaine_Coon_1 1 1 1\npug_2 2 2 1\n",
    "annotations/trimaps/pug_1.png": None,
}
AIRCRAFT = {f"data/images/000{n}.jpg": None for n in range(6)} | {
    "data/variants.txt": "707-320\nA380 plus\n",
    "data/images_variant_train.txt": "0001 A380 plus\n0000 707-320\n",
    "data/images_variant_val.txt": "0002 707-320\n0003 A380 plus\n",
    "data/images_variant_test.txt": "0004 707-320\n0005 A380 plus\n",
}


def test_birds(put):
    data = open_data(put("CUB_200_2011", BIRDS))
    assert (data.name, data.classes) == ("CUB-200-2011", ("001.Albatross", "002.Cardinal"))
    assert rows_of(data.train, data.classes) == [("b.jpg", "001.Albatross"), ("c.jpg", "002.Cardinal")]
    assert rows_of(data.val, data.classes) == [("a.jpg", "001.Albatross"), ("d.jpg", "002.Cardinal")]
    assert data.note == "CUB-200-2011 in its official layout, split as train_test_split.txt"
    assert data.train.load(0).size == (12, 12)


def test_one_folder_above(put):
    root = put("birds/CUB_200_2011", BIRDS).parent
    assert open_data(root).name == "CUB-200-2011"
    (root / "__MACOSX").mkdir()
    assert open_data(root).name == "CUB-200-2011"


def test_food(put):
    data = open_data(put("food-101", FOOD))
    assert rows_of(data.train, data.classes) == [("1.jpg", "pie"), ("0.jpg", "ramen")]
    assert rows_of(data.val, data.classes) == [("0.jpg", "pie"), ("1.jpg", "ramen")]


def test_pets_are_not_refused_as_segmentation(put):
    data = open_data(put("oxford-iiit-pet", PETS))
    assert data.classes == ("Maine_Coon", "pug")
    assert rows_of(data.val, data.classes) == [("Maine_Coon_1.jpg", "Maine_Coon"), ("pug_2.jpg", "pug")]


def test_aircraft_and_a_part_that_is_not_used(put):
    data = open_data(put("fgvc-aircraft-2013b", AIRCRAFT))
    assert rows_of(data.train, data.classes) == [("0001.jpg", "A380 plus"), ("0000.jpg", "707-320")]
    assert rows_of(data.val, data.classes) == [("0002.jpg", "707-320"), ("0003.jpg", "A380 plus")]
    assert data.unused == (("of a part that is not used", ("images/0004.jpg", "images/0005.jpg")),)
    assert "left out 2 images of a part that is not used (images/0004.jpg, images/0005.jpg)" in data.note


def test_flowers(put):
    root = put("flowers", {f"jpg/image_0000{n}.jpg": None for n in range(1, 7)})
    io.savemat(root / "imagelabels.mat", {"labels": np.array([[2, 1, 1, 2, 1, 2]], dtype=np.uint8)})
    parts = {"trnid": [[3, 1]], "valid": [[2, 4]], "tstid": [[5, 6]]}
    io.savemat(root / "setid.mat", {key: np.array(value, dtype=np.uint16) for key, value in parts.items()})
    data = open_data(root)
    assert data.classes == ("1", "2")
    assert rows_of(data.train, data.classes) == [("image_00003.jpg", "1"), ("image_00001.jpg", "2")]
    assert rows_of(data.val, data.classes) == [("image_00002.jpg", "1"), ("image_00004.jpg", "2")]
    assert len(data.unused[0][1]) == 2
    joined = open_data(root, parts="train+val:test")
    assert rows_of(joined.train, data.classes) == rows_of(data.train, data.classes) + rows_of(data.val, data.classes)
    assert rows_of(joined.val, data.classes) == [("image_00005.jpg", "1"), ("image_00006.jpg", "2")]
    assert joined.unused == ()
    assert "of these train+val:test" in joined.note
    (root / "setid.mat").write_bytes(b"not MATLAB")
    with pytest.raises(FoveateError, match=r"setid\.mat is damaged or holds no 'trnid'"):
        open_data(root)


@pytest.mark.parametrize("where", ["", "lists/"])
def test_dogs(put, where):
    names = [f"{kind}/{n}.jpg" for kind in ("n02085620-Chihuahua", "n02110958-pug") for n in range(2)]
    root = put("dogs", {f"Images/{name}": None for name in names} | {f"{where}readme": "x", "Annotation/x": "x"})
    for part, chosen in (("train", names[::2]), ("test", names[1::2])):
        cells = np.empty((len(chosen), 1), dtype=object)
        cells[:, 0] = chosen
        io.savemat(root / f"{where}{part}_list.mat", {"file_list": cells})
    data = open_data(root)
    assert data.classes == ("n02085620-Chihuahua", "n02110958-pug")
    assert [name for name, _ in rows_of(data.train, data.classes)] == ["0.jpg", "0.jpg"]
    assert [name for name, _ in rows_of(data.val, data.classes)] == ["1.jpg", "1.jpg"]


def test_without_scipy_one_line_says_so(put, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    root = put("flowers", {"jpg/image_00001.jpg": None, "imagelabels.mat": "x", "setid.mat": "x"})
    with pytest.raises(FoveateError, match=r"imagelabels\.mat is a MATLAB file: pip install scipy to read"):
        open_data(root)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"images.txt": "1 ../../secret.jpg\n2 001.Albatross/b.jpg\n3 x\n4 y\n"}, r"secret.jpg, which lies outside"),
        ({"image_class_labels.txt": "1 1\n2 1\n3 2\n"}, "list other images"),
        ({"image_class_labels.txt": "1 1\n2 1\n3 2\n4 7\n"}, "a class that classes.txt lacks"),
        ({"classes.txt": "1 a\n1 b\n"}, "classes.txt line 2"),
        ({"images.txt": "1 001.Albatross/gone.jpg\n2 x.jpg\n3 y.jpg\n4 z.jpg\n"}, "no image .*jpg"),
    ],
)
def test_lists_that_contradict_are_refused(put, changed, words):
    with pytest.raises(FoveateError, match=words):
        open_data(put("birds", BIRDS | changed))
