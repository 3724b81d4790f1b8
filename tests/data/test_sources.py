"""Tar files and other libraries' data sets, and the one decode rule over every kind of source."""

from __future__ import annotations

import io
import pickle
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from foveate.data import open_data
from foveate.data.sources import Piece, Row
from foveate.errors import FoveateError
from foveate.images import open_image


def encoded(kind: str) -> bytes:
    """Pictures that a careless reader gets wrong."""
    rng, stream = np.random.default_rng(0), io.BytesIO()
    noise = rng.integers(0, 256, (9, 14, 3), dtype=np.uint8)
    if kind == "exif":
        image = Image.fromarray(noise)
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(stream, "JPEG", exif=exif)
    elif kind == "cmyk":
        Image.fromarray(noise).convert("CMYK").save(stream, "JPEG")
    elif kind == "alpha":
        Image.fromarray(np.dstack([noise, noise[..., 0]]), "RGBA").save(stream, "PNG")
    elif kind == "16 bit":
        Image.fromarray(rng.integers(0, 65536, (9, 14), dtype=np.uint16)).save(stream, "PNG")
    else:
        Image.fromarray(noise).quantize(8).save(stream, "PNG")
    return stream.getvalue()


KINDS = ("exif", "cmyk", "alpha", "16 bit", "palette")


def shard(path: Path, samples: dict[str, bytes]) -> Path:
    """A tar file of these members."""
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w") as tar:
        for name, content in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


class FakeRows:
    """What a Hugging Face data set is to a reader."""

    def __init__(self, images: list[bytes], labels: list[int], decode: bool = True) -> None:
        self.images, self.labels, self.decode = images, labels, decode
        image, label = type("Image", (), {}), type("ClassLabel", (), {"names": ["cat", "dog"]})
        self.features = {"image": image(), "label": label(), "id": object()}
        self.info = types.SimpleNamespace(license="CC0")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, at):
        if isinstance(at, str):
            return list(self.labels)
        assert not self.decode, "the library must not decode"
        return {"image": {"bytes": self.images[at], "path": None}, "label": self.labels[at]}

    def select_columns(self, names: list[str]) -> FakeRows:
        assert names == ["image"]
        return self

    def cast_column(self, name: str, feature) -> FakeRows:
        assert name == "image"
        return FakeRows(self.images, self.labels, feature.decode)


@pytest.fixture
def hugging_face(monkeypatch):
    """A module called datasets; its data sets by name."""
    module, held = types.ModuleType("datasets"), {}

    def load_dataset(name, configuration=None):
        if name not in held:
            raise RuntimeError(f"Dataset '{name}' doesn't exist\nsecond line")
        return held[name]

    module.load_dataset, module.Image = load_dataset, lambda decode: types.SimpleNamespace(decode=decode)
    module.load_from_disk = lambda path: held[Path(path).name]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return held


@pytest.mark.parametrize("kind", KINDS)
def test_one_decode_rule_for_every_source(kind, tmp_path, hugging_face):
    content = encoded(kind)
    suffix = "png" if content[:1] == b"\x89" else "jpg"
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            path = tmp_path / "folder" / part / name / f"0.{suffix}"
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
        pq_path = tmp_path / "parquet" / f"{part}.parquet"
        pq_path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": [content, content], "label": [0, 1]}), pq_path)
        members = {f"{at}.{suffix}": content for at in range(2)} | {f"{at}.cls": b"%d" % at for at in range(2)}
        shard(tmp_path / "tars" / f"{part}-000.tar", members)
    hugging_face["me/pets"] = {part: FakeRows([content] * 2, [0, 1]) for part in ("train", "test")}
    expected = open_image(content)
    for source in (tmp_path / "folder", tmp_path / "parquet", tmp_path / "tars", "hf:me/pets"):
        data = open_data(source)
        for split in (data.train, data.val):
            assert split.labels == (0, 1)
            for index in range(2):
                image = split.load(index)
                assert image.mode == "RGB"
                assert (image.size, image.tobytes()) == (expected.size, expected.tobytes()), source


# ---- tar files


def test_shards_are_divided_by_name_and_read_in_place(tmp_path, picture):
    for number in range(2):
        names = {f"a/{number}{k}.jpg": picture(10 * number + k) for k in range(3)}
        labels = {f"a/{number}{k}.cls": b"fox\n" if k else b"owl" for k in range(3)}
        shard(tmp_path / "set" / f"train-{number}.tar", {**names, **labels, "a/notes.txt": b"x"})
    shard(tmp_path / "set" / "val_0.tar", {"0.png": picture(5, "PNG"), "0.cls": b"owl"})
    shard(tmp_path / "set" / "extra.tar", {"0.png": picture(5, "PNG"), "0.cls": b"owl"})
    data = open_data(tmp_path / "set")
    assert data.classes == ("fox", "owl")
    assert (len(data.train), len(data.val)) == (6, 1)
    assert data.train.labels == (1, 0, 0, 1, 0, 0)
    assert data.train.load(1).tobytes() == open_image(picture(1)).tobytes()
    assert data.train.names[0] == "train-0.tar/a/00.jpg"
    assert data.note.startswith("split by file names: 2 train, 1 val files; left out 2 files without an image")
    assert data.note.endswith("left out 1 file whose names do not say which part they are (extra.tar)")
    assert isinstance(data.train.sources[0], Piece)
    assert pickle.loads(pickle.dumps(data)) == data  # noqa: S301 - as for a worker process that is spawned
    assert open_data(tmp_path / "set").fingerprint == data.fingerprint


def test_one_tar_is_divided_with_the_seed_and_classes_are_named(tmp_path, picture):
    members = {f"{k}.jpg": picture(k) for k in range(20)} | {f"{k}.cls": b"%d" % (k % 2) for k in range(20)}
    path = shard(tmp_path / "all.tar", members)
    data = open_data(path, val_fraction=0.3)
    assert (len(data.train), len(data.val), data.classes) == (14, 6, ("0", "1"))
    (tmp_path / "classes.txt").write_text("even\nodd\n")
    assert open_data(path).classes == ("even", "odd")


def test_faults_of_tar_files(tmp_path, picture):
    with pytest.raises(FoveateError, match=r"the sample '1' has no label \(.cls\) \(1 such"):
        open_data(shard(tmp_path / "a.tar", {"0.jpg": b"x", "0.cls": b"0", "1.jpg": b"x"}))
    with pytest.raises(FoveateError, match="the sample '2' has no image"):
        open_data(shard(tmp_path / "b.tar", {"0.jpg": b"x", "0.cls": b"0", "2.cls": b"1"}))
    (tmp_path / "c.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(FoveateError, match="is not a plain tar file"):
        open_data(tmp_path / "c.tar")
    members = {f"{k}.jpg": picture(k) for k in range(4)} | {f"{k}.cls": b"%d" % (k % 2) for k in range(4)}
    whole = shard(tmp_path / "d.tar", members)
    data = open_data(whole)
    whole.write_bytes(whole.read_bytes()[:600])
    with pytest.raises(FoveateError, match="shorter than when it was opened"):
        [data.train.load(index) for index in range(len(data.train))]
    members["3.jpg"] = b"text"
    with pytest.raises(FoveateError, match=r"e.tar/3.jpg is not an image"):
        open_data(shard(tmp_path / "e.tar", members))
    outside = shard(tmp_path / "f.tar", {"../../0.jpg": picture(), "../../0.cls": b"0", "1.jpg": b"", "1.cls": b"1"})
    with pytest.raises(FoveateError):
        open_data(outside)
    assert not (tmp_path.parent / "0.jpg").exists()


def samples(picture, *keys):
    return {f"{k}.jpg": picture(ord(k)) for k in keys} | {f"{k}.cls": b"%d" % (ord(k) % 2) for k in keys}


def test_the_part_may_stand_anywhere_in_a_tars_name(tmp_path, picture):
    for number in range(2):
        shard(tmp_path / "set" / f"birds-train-00{number}.tar", samples(picture, *"abcd"))
    shard(tmp_path / "set" / "birds-validation-00.tar", samples(picture, *"ab"))
    data = open_data(tmp_path / "set")
    assert (len(data.train), len(data.val)) == (8, 2)
    assert data.note == "split by file names: 2 train, 1 val files"
    (tmp_path / "set" / "birds-validation-00.tar").rename(tmp_path / "set" / "birds-second-00.tar")
    with pytest.raises(FoveateError, match=r"birds-second-00\.tar: these names do not say which part"):
        open_data(tmp_path / "set")
    shard(tmp_path / "odd" / "birds-first-00.tar", samples(picture, *"ab"))
    shard(tmp_path / "odd" / "birds-second-00.tar", samples(picture, *"ab"))
    with pytest.raises(FoveateError, match="these names do not say which part"):
        open_data(tmp_path / "odd")


def test_two_files_under_one_key_are_refused(tmp_path, picture):
    whole = samples(picture, *"abcd")
    with pytest.raises(FoveateError, match=r"two images have the key 'a'.* the second of them a\.png"):
        open_data(shard(tmp_path / "a.tar", {**whole, "a.png": picture(1, "PNG")}))
    with pytest.raises(FoveateError, match=r"two labels have the key 'b'.* the second of them b\.CLS"):
        open_data(shard(tmp_path / "b.tar", {**whole, "b.CLS": b"1"}))


def test_what_is_not_used_of_a_tar_is_counted(tmp_path, picture):
    whole = samples(picture, *"abcdef")
    more = {"__MACOSX/a.jpg": b"x", "._a.jpg": b"x", "a.json": b"{}", "g.jpg": picture(9), "g.cls": b"-1"}
    shard(tmp_path / "set" / "all.tar", whole | more)
    (tmp_path / "set" / "notes.md").write_text("notes")
    data = open_data(tmp_path / "set")
    assert (data.classes, len(data.train) + len(data.val)) == (("0", "1"), 6)
    assert dict(data.unused) == {
        "that are not tar files": ("notes.md",),
        "that are hidden or of the system": ("all.tar/__MACOSX/a.jpg", "all.tar/._a.jpg"),
        "without an image suffix or .cls": ("all.tar/a.json",),
        "without a class (a label below 0)": ("all.tar/g.jpg",),
    }
    assert all(f"left out {len(names)} file" in data.note for _, names in data.unused)


# ---- other libraries


def test_without_the_library_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FoveateError, match="hf:NAME needs the package datasets: pip install datasets"):
        open_data("hf:me/pets")


def test_hugging_face(hugging_face, picture, tmp_path):
    images = [picture(k) for k in range(10)]
    hugging_face["me/pets"] = {"train": FakeRows(images, [0, 1] * 5), "extra": FakeRows([], [])}
    data = open_data("hf:me/pets")
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.val), data.licence) == (8, 2, "CC0")
    index = int(data.train.names[3].rpartition(" ")[2])
    assert data.train.load(3).tobytes() == open_image(images[index]).tobytes()
    (tmp_path / "kept").mkdir()
    hugging_face["kept"] = hugging_face["me/pets"]["train"]
    kept = open_data(f"hf:{tmp_path / 'kept'}")
    assert (len(kept.train), kept.name) == (8, "hf:kept")
    (tmp_path / "other/kept").mkdir(parents=True)
    assert open_data(f"hf:{tmp_path / 'other/kept'}").fingerprint == kept.fingerprint
    other = [picture(90), *images[1:]]  # the same names and labels
    hugging_face["me/pets"] = {"train": FakeRows(other, [0, 1] * 5)}
    assert open_data("hf:me/pets").fingerprint != data.fingerprint
    hugging_face["me/pets"] = {"train": FakeRows(images, [0, 1] * 5)}
    assert open_data("hf:me/pets").fingerprint == data.fingerprint
    with pytest.raises(
        FoveateError, match="hf:me/cats could not be downloaded or opened: Dataset 'me/cats' doesn't exi"
    ):
        open_data("hf:me/cats")
    rows = FakeRows(images, [0, 1] * 5)
    del rows.features["label"]
    hugging_face["bare"] = {"train": rows}
    with pytest.raises(FoveateError, match="hf:bare has no label column"):
        open_data("hf:bare")
    hugging_face["some"] = {"train": FakeRows(images, [0, -1, 1, 0, 1] * 2), "test": FakeRows(images, [-1] * 10)}
    data = open_data("hf:some")
    assert (len(data.train), len(data.val), data.classes) == (6, 2, ("cat", "dog"))
    ((reason, names),) = data.unused
    assert reason == "without a class (a label below 0)"
    assert (len(names), names[:2]) == (12, ("hf:some train row 1", "hf:some train row 6"))
    assert "left out 12 rows without a class (a label below 0) (hf:some train row 1, " in data.note
    wrong = FakeRows(images, [0, 5] * 5)
    hugging_face["test"] = {"train": wrong}
    with pytest.raises(FoveateError, match="hf:test train row 1: its label is not a class of training"):
        open_data("hf:test")


def test_torchvision(tmp_path, monkeypatch):
    from torchvision import datasets

    class Tiny(datasets.FakeData):
        def __init__(self, root, train=True, download=False):
            super().__init__(30 if train else 12, (3, 8, 8), 3)
            assert Path(root) == tmp_path
            self.targets, self.classes = [int(self[k][1]) for k in range(len(self))], ["x", "y", "z"]

    monkeypatch.setattr(datasets, "CIFAR10", Tiny)
    data = open_data(f"torchvision:CIFAR10:{tmp_path}")
    assert (len(data.train), len(data.val), data.classes) == (30, 12, ("x", "y", "z"))
    assert data.train.load(4).tobytes() == Tiny(tmp_path)[4][0].tobytes()
    assert isinstance(data.train.sources[0], Row)
    assert data.fingerprint == open_data(f"torchvision:CIFAR10:{tmp_path}").fingerprint

    class Other(Tiny):  # the same names and labels
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return (image.rotate(90) if index == 7 else image), label

    monkeypatch.setattr(datasets, "CIFAR10", Other)
    assert open_data(f"torchvision:CIFAR10:{tmp_path}").fingerprint != data.fingerprint
    monkeypatch.setattr("foveate.data.split._LOOKED_AT", 1000)  # bytes: six images of each part
    asked, read = [], Row.read
    monkeypatch.setattr(Row, "read", lambda row: asked.append(row.index) or read(row))
    bounded = open_data(f"torchvision:CIFAR10:{tmp_path}").fingerprint
    assert len(asked) == 12
    assert open_data(f"torchvision:CIFAR10:{tmp_path}").fingerprint == bounded
    monkeypatch.undo()
    with pytest.raises(FoveateError, match="torchvision has no data set 'CIFAR11': did you mean 'CIFAR10'"):
        open_data("torchvision:CIFAR11")

    class Broken:
        def __init__(self, root, split, download=False):
            raise RuntimeError("Dataset not found or corrupted.")

    monkeypatch.setattr(datasets, "SVHN", Broken)
    with pytest.raises(FoveateError, match="torchvision:SVHN could not be downloaded: Dataset not found"):
        open_data("torchvision:SVHN")

    class Damaged:
        def __init__(self, root, train=True, download=False):
            raise OSError("<urlopen error [Errno -2] Name or service not known>" if download else "Wrong checksum")

    monkeypatch.setattr(datasets, "MNIST", Damaged)
    (tmp_path / "MNIST").mkdir()
    with pytest.raises(FoveateError) as error:
        open_data(f"torchvision:MNIST:{tmp_path}")
    assert str(error.value) == (
        f"torchvision:MNIST is not in {tmp_path}, or not whole: Wrong checksum (there: MNIST); it could not be "
        "downloaded: <urlopen error [Errno -2] Name or service not known>"
    )
