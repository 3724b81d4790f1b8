from __future__ import annotations

import csv
import gc
import io
import json
import random
import threading
import tracemalloc
import weakref

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import foveate as fv
from foveate.errors import FoveateError
from foveate.images import Preprocess, open_image
from foveate.prediction import result as results
from foveate.prediction.decoding import decoded
from foveate.prediction.inputs import Item
from foveate.prediction.result import distinct_labels


def plain_loop(net, images, batch_size=100):
    """Softmax of images on the network's own preparation."""
    preprocess = Preprocess.of(net)
    modes = [module.training for module in net.modules()]
    net.eval()
    with torch.no_grad():
        tensors = torch.stack([preprocess(open_image(image)) for image in images])
        found = torch.cat([net(part).softmax(dim=1) for part in tensors.split(batch_size)])
    for module, mode in zip(net.modules(), modes, strict=True):
        module.training = mode
    return found


def rows_of(found, **options):
    text = io.StringIO()
    found.write(text, **options)
    return list(csv.reader(io.StringIO(text.getvalue())))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_predictions_are_those_of_a_plain_loop_and_of_evaluate_to_the_last_bit(net, photos, batch_size, threads):
    files = sorted((photos / "val").rglob("*.png"))
    net.train()
    expected = plain_loop(net, files, batch_size)
    found = list(fv.predict(net, photos / "val", batch_size=batch_size, threads=threads))
    assert [one.path for one in found] == files
    assert [one.name for one in found] == list(map(str, files))
    assert torch.equal(torch.stack([one.probabilities for one in found]), expected)
    assert [one.index for one in found] == expected.argmax(1).tolist()
    assert [one.probability for one in found] == expected.max(1).values.tolist()
    evaluated = fv.evaluate(net, photos, batch_size=batch_size)
    by_name = {str(path): row for path, row in zip(files, expected, strict=True)}
    for source, row in zip(fv.open_data(photos).val.sources, evaluated.probabilities, strict=True):
        assert torch.equal(by_name[source], row)


def test_one_image_is_the_same_in_any_company(net, photos):
    files = sorted((photos / "val").rglob("*.png"))
    alone = torch.stack([next(iter(fv.predict(net, file))).probabilities for file in files])
    together = torch.stack([one.probabilities for one in fv.predict(net, files[::-1], batch_size=7)]).flip(0)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)


def test_every_kind_of_input_gives_the_same(net, photos):
    files = sorted((photos / "val" / "red").glob("*.png"))
    expected = [one.probabilities.tolist() for one in fv.predict(net, photos / "val" / "red")]
    kinds = {
        "list of paths": files,
        "strings": list(map(str, files)),
        "tuple": tuple(files),
        "pattern": str(photos / "val" / "r*" / "*.png"),
        "bytes": [file.read_bytes() for file in files],
        "pictures": [Image.open(file) for file in files],
        "generator": (file for file in files),
        "mixed": [files[0], files[1].read_bytes(), Image.open(files[2]), str(files[3])],
        "split": fv.open_data(photos).val.subset(range(8, 12)),  # blue, green, red
        "folders and files": [photos / "val" / "red"],
    }
    for kind, images in kinds.items():
        found = [one.probabilities.tolist() for one in fv.predict(net, images)]
        assert found == expected, kind
    names = [one.name for one in fv.predict(net, kinds["mixed"][:3])]
    assert names == [str(files[0]), "image 2", "image 3"]
    (one,) = fv.predict(net, files[0])
    assert (one.name, one.path) == (str(files[0]), files[0])
    (one,) = fv.predict(net, files[0].read_bytes())
    assert (one.name, one.path) == ("image 1", None)


def test_a_picture_that_its_owner_changes_is_seen_as_it_was(net, new_picture, tmp_path):
    # PIL's frames are one object that changes; so are the pictures of many a camera.
    frames = [new_picture(k, k % 3).quantize(32) for k in range(6)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:], disposal=2)
    with Image.open(tmp_path / "moving.gif") as moving:
        expected = plain_loop(net, [frame.convert("RGB") for frame in ImageSequence.Iterator(moving)])
    with Image.open(tmp_path / "moving.gif") as moving:
        found = list(fv.predict(net, ImageSequence.Iterator(moving), batch_size=4))
    assert len({tuple(row) for row in expected.tolist()}) == 6
    torch.testing.assert_close(torch.stack([one.probabilities for one in found]), expected, rtol=0, atol=1e-6)


def test_a_picture_in_memory_is_not_held_back(net, new_picture):
    asked = []

    def camera():
        for k in range(100):
            asked.append(k)
            yield new_picture(k, 0)

    stream = iter(fv.predict(net, camera(), batch_size=1))
    next(stream)
    assert asked == [0]


def test_bad_files_are_named_and_do_not_stop_the_run(net, photos, tmp_path, new_picture):
    good = [tmp_path / name for name in ("a.png", "c.png", "e/f.png")]
    (tmp_path / "e").mkdir()
    for k, path in enumerate(good):
        new_picture(k, k).save(path)
    (tmp_path / "b.png").write_bytes(b"no image at all")
    (tmp_path / "d.dng").write_bytes(b"raw")
    (tmp_path / "e" / "a.jpg").write_bytes(b"")
    (tmp_path / "e" / "z.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "notes.txt").write_text("not an image, and not meant as one")
    (tmp_path / ".hidden.png").write_bytes(b"macOS makes such files")
    found = fv.predict(net, tmp_path, batch_size=2)
    rows = list(found)
    assert [one.path for one in rows] == good
    assert [name for name, _ in found.bad] == [
        str(tmp_path / name) for name in ("b.png", "d.dng", "e/a.jpg", "e/z.png")
    ]
    for (_, reason), word in zip(
        found.bad, ("not an image", ".dng are not read", "empty", "does not exist"), strict=True
    ):
        assert word in reason
    # A bad file changes nothing for the others, not even how they are put in batches.
    assert torch.equal(torch.stack([one.probabilities for one in rows]), plain_loop(net, good, 2))
    with pytest.raises(FoveateError, match=r"b.png is not an image"):
        list(fv.predict(net, tmp_path, strict=True))
    listed = fv.predict(net, [good[0], tmp_path / "gone.png", tmp_path / "*.gone", photos / "train"])
    assert len(list(listed)) == 10
    assert [name for name, _ in listed.bad] == [str(tmp_path / "gone.png"), str(tmp_path / "*.gone")]


def test_nothing_predicted_is_an_error_and_stays_one(net, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    found = fv.predict(net, tmp_path)
    for _ in range(2):
        with pytest.raises(FoveateError, match=r"no image could be predicted: .*a.png is not an image.*1 more like it"):
            list(found)
    with pytest.raises(FoveateError, match="no image could be predicted"):
        fv.predict(net, tmp_path).to_csv(tmp_path / "p.csv")
    assert not list(tmp_path.glob("*.csv"))


def test_scores_that_are_not_finite_are_no_prediction(net, photos, new_picture):
    class Odd(type(net)):
        def forward(self, images):
            found = super().forward(images)
            return torch.where((images.mean((1, 2, 3)) > 0.5)[:, None], float("nan"), found)

    net.__class__ = Odd
    bright = Image.new("RGB", (20, 20), "white")
    found = fv.predict(net, [new_picture(0, 0), bright, new_picture(1, 1)])
    assert [one.name for one in found] == ["image 1", "image 3"]
    assert found.bad == (("image 2", "the model's scores for it are NaN or infinite"),)
    with pytest.raises(FoveateError, match="image 1: the model's scores for it are NaN"):
        list(fv.predict(net, bright, strict=True))


def test_the_model_is_left_as_found_between_any_two_predictions(net, photos):
    net.train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net[-1].weight.grad = gradient = torch.ones_like(net[-1].weight)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    numbers = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()

    def as_found():
        assert [module.training for module in net.modules()] == modes
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
        assert net[-1].weight.grad is gradient
        assert not net[0].weight.requires_grad
        assert torch.is_grad_enabled()
        assert torch.equal(torch.get_rng_state(), numbers[0])
        assert random.getstate() == numbers[1]
        assert (np.random.get_state()[1] == numbers[2]).all()

    stream = iter(fv.predict(net, photos / "val", batch_size=2))
    next(stream)
    as_found()
    next(stream)
    as_found()
    list(stream)
    as_found()
    with pytest.raises(IndexError):
        list(fv.predict(torch.nn.Sequential(net, torch.nn.Flatten(5)), photos / "val", image_size=16))
    as_found()


def test_top_and_labels(net, new_net, photos, caplog):
    file = photos / "val" / "red" / "0.png"
    (one,) = fv.predict(net, file)
    assert one.label == one.top[0][0]
    assert {label for label, _ in one.top} == {"red", "green", "blue"}
    assert [share for _, share in one.top] == sorted(one.probabilities.tolist(), reverse=True)
    (two,) = fv.predict(net, file, top=2)
    assert two.top == one.top[:2]
    assert str(two) == f"{file}: {two.top[0][0]} {two.top[0][1]:.1%}, {two.top[1][0]} {two.top[1][1]:.1%}"
    assert json.loads(json.dumps(two.to_dict())) == {
        "path": str(file), "prediction": two.label, "probability": two.probability, "top": dict(two.top)
    }  # fmt: skip
    numbered = fv.predict(new_net(names=None), file)
    assert numbered.labels == ("0", "1", "2")
    assert not numbered.named
    assert "carries no class names, so classes are numbers" in numbered._repr_html_()
    assert fv.predict(net, file).named


def test_labels_are_distinct():
    assert distinct_labels(None, 3) == ("0", "1", "2")
    assert distinct_labels(("a", "b"), 2) == ("a", "b")
    assert distinct_labels(("crane", "a", "crane"), 3) == ("crane (0)", "a", "crane (2)")
    assert distinct_labels(("path", "a"), 2) == ("path (0)", "a")
    assert len(set(distinct_labels(("a", "a", "a (0)"), 3))) == 3


def test_equal_scores_give_the_first_class(new_net, new_picture):
    net = new_net()
    torch.nn.init.zeros_(net[-1].weight)
    torch.nn.init.zeros_(net[-1].bias)
    (one,) = fv.predict(net, new_picture(0, 2))
    assert (one.label, [label for label, _ in one.top]) == ("red", ["red", "green", "blue"])


def test_csv_holds_every_probability_to_the_last_bit(net, photos, tmp_path):
    found = fv.predict(net, photos / "val")
    assert found.to_csv(tmp_path / "new" / "p.csv") == 12
    rows = list(csv.DictReader(io.StringIO((tmp_path / "new" / "p.csv").read_text())))
    assert list(rows[0]) == ["path", "prediction", "probability", "red", "green", "blue"]
    for one, row in zip(found, rows, strict=True):  # few enough to be read again
        assert (row["path"], row["prediction"]) == (one.name, one.label)
        values = [np.float32(row[label]) for label in ("red", "green", "blue")]
        assert torch.equal(torch.tensor(np.array(values)), one.probabilities)
        assert row["probability"] == row[one.label]


def test_csv_appears_whole_or_not_at_all(net, photos, tmp_path):
    place = tmp_path / "p.csv"
    place.write_text("old")

    def files():
        yield from sorted((photos / "val").rglob("*.png"))
        assert place.read_text() == "old"
        raise OSError(5, "the card was pulled out")

    with pytest.raises(FoveateError, match=r"the images ended after 12: .*the card was pulled out"):
        fv.predict(net, files()).to_csv(place)
    assert place.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.csv"]
    with pytest.raises(FoveateError, match="is a folder: name a file in it"):
        fv.predict(net, photos / "val").to_csv(tmp_path)


def test_hostile_names_in_csv(new_net, photos, tmp_path, new_picture):
    net = new_net(names=('=HYPERLINK("x")', "path", 'a,\n"b"'))
    hostile = tmp_path / "=1+1.png"
    new_picture(0, 0).save(hostile)
    rows = rows_of(fv.predict(net, hostile))
    assert rows[0] == ["path", "prediction", "probability", '\'=HYPERLINK("x")', "path (1)", 'a,\n"b"']
    assert len(rows) == 2


def test_small_results_can_be_read_again_and_large_ones_once(net, photos, monkeypatch):
    found = fv.predict(net, photos / "val")
    assert [one.name for one in found] == [one.name for one in found]
    monkeypatch.setattr(results, "_KEPT_BYTES", 3000)
    found = fv.predict(net, photos / "val")
    first = list(found)
    with pytest.raises(FoveateError, match="12 predictions were read and the first 3 are kept: call predict again"):
        list(found)
    assert len(first) == 12


def test_a_notebook_shows_the_first_and_loses_nothing(net, photos):
    found = fv.predict(net, photos / "val")
    assert repr(found) == "<Predictions: 0 images read, 0 bad>"
    page = found._repr_html_()
    assert page.count("<tr>") == 11
    assert "the first 10" in page
    assert len(list(found)) == 12
    hostile = fv.predict(net, (photos / "val" / "red" / "0.png").read_bytes())
    assert "image 1" in hostile._repr_html_()


def test_memory_does_not_grow_with_the_images(net, new_picture, monkeypatch):
    """Peak of Python's memory, and the pictures that are alive, for 60 and 600 pictures of a generator.

    What is measured is that nothing of an image stays: so 100,000 take what 600 do.
    """
    monkeypatch.setattr(results, "_KEPT_BYTES", 20_000)
    alive, most = set(), 0

    def camera(count):
        nonlocal most
        for k in range(count):
            frame = new_picture(k, k % 3)
            alive.add(k)
            weakref.finalize(frame, alive.discard, k)
            most = max(most, len(alive))
            yield frame
            del frame

    def peak(count):
        gc.collect()
        tracemalloc.start()
        number = sum(1 for _ in fv.predict(net, camera(count), batch_size=8))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert number == count
        return found

    peak(20)  # what is imported and cached the first time
    few, many = peak(60), peak(600)
    assert most <= 3
    assert many - few < 200_000  # bytes: 540 pictures more, of 1.4 kB each, their tensors and results would be 1 MB


def test_a_walk_through_a_folder_holds_no_list(net, photos, monkeypatch):
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda stream: opened.append(1) or real(stream))
    stream = iter(fv.predict(net, photos, batch_size=1, threads=1))
    next(stream)
    assert len(opened) < 12  # of 21
    stream.close()


def test_what_cannot_be_predicted_is_one_clear_line(net, photos, tmp_path):
    cases = [
        (lambda: fv.predict(net, tmp_path / "nowhere.png"), "no image .*nowhere.png"),
        (lambda: fv.predict(net, tmp_path), "holds no image"),
        (lambda: fv.predict(net, str(tmp_path / "*.jpg")), "no image matches"),
        (lambda: fv.predict(net, []), "the list is empty"),
        (lambda: fv.predict(net, fv.open_data(photos)), "name one, as data.val"),
        (lambda: fv.predict(net, torch.zeros(1, 3, 16, 16)), "not Tensor"),
        (lambda: fv.predict(net, np.zeros((16, 16, 3))), "not ndarray"),
        (lambda: fv.predict(net, 3), "not int"),
        (lambda: list(fv.predict(net, [photos / "val" / "red" / "0.png", 3])), "image 2 is a int"),
        (lambda: fv.predict(net, photos, top=0), "top=0: must be at least 1"),
        (lambda: fv.predict(net, photos, batch_size=0), "batch_size=0"),
        (lambda: fv.predict(net, photos, threads=0), "threads=0"),
        (lambda: fv.predict(tmp_path, photos), "no saved model"),
        (
            lambda: fv.predict(photos / "val" / "red" / "0.png", photos),
            "of no format that foveate exports .*onnx",
        ),
        (lambda: fv.predict(object(), photos), "not object"),
    ]
    for call, text in cases:
        with pytest.raises(FoveateError, match=text):
            call()
    with pytest.raises(FoveateError, match="two classes or more"):
        list(fv.predict(torch.nn.Conv2d(3, 3, 1), photos / "val" / "red", image_size=8))


def test_an_empty_generator_gives_nothing(net, tmp_path):
    assert list(fv.predict(net, iter(()))) == []
    assert fv.predict(net, iter(())).to_csv(tmp_path / "p.csv") == 0
    assert (tmp_path / "p.csv").read_text() == "path,prediction,probability\n"


class Exported:
    """The protocol, as an exported file of a fixed batch gives it."""

    def __init__(self, net, batch=None, classes=None):
        self.net, self.batch, self.classes = net.eval(), batch, classes
        self.preprocess = Preprocess.of(net)

    def logits(self, images):
        assert images.dtype == torch.float32
        assert self.batch in (None, len(images))
        with torch.no_grad():
            return self.net(images)


@pytest.mark.parametrize("batch", [None, 1, 5])
def test_whatever_has_the_protocol_is_predicted_and_evaluated(net, photos, batch):
    expected = list(fv.predict(net, photos / "val"))
    exported = Exported(net, batch, ("red", "green", "blue"))
    found = list(fv.predict(exported, photos / "val"))
    assert [one.label for one in found] == [one.label for one in expected]
    rows = [torch.stack([one.probabilities for one in each]) for each in (found, expected)]
    torch.testing.assert_close(*rows, rtol=0, atol=1e-6)
    ours, theirs = fv.evaluate(net, photos), fv.evaluate(exported, photos)
    assert (ours.top1, ours.classes) == (theirs.top1, theirs.classes)
    assert torch.equal(ours.confusion, theirs.confusion)
    with pytest.raises(FoveateError, match="image_size= is for networks: this Exported takes images of 16x16 pixels"):
        fv.predict(exported, photos, image_size=32)
    with pytest.raises(FoveateError, match="preprocess= is for networks"):
        fv.evaluate(exported, photos, preprocess=exported.preprocess)


def test_a_folder_that_was_saved_and_a_run(saved, photos):
    expected = [one.to_dict() for one in fv.predict(fv.load(saved), photos / "val" / "red")]
    assert {one["prediction"] for one in expected} <= {"red", "green", "blue"}
    for model in (saved, str(saved), saved.parent):  # a run's folder holds model_best/
        assert [one.to_dict() for one in fv.predict(model, photos / "val" / "red")] == expected
    assert fv.evaluate(saved.parent, photos).top1 == fv.evaluate(fv.load(saved), photos).top1


def test_grey_networks_and_pictures_of_other_modes(new_net, photos, tmp_path, new_picture):
    for k, mode in enumerate(("L", "RGBA", "P", "CMYK", "1", "LA")):
        image = new_picture(k, 0).convert("L" if mode == "LA" else "RGB").convert(mode)
        image.save(tmp_path / f"{k}.{'tif' if mode == 'CMYK' else 'png'}")
    for channels in (1, 3):
        net = new_net(channels=channels)
        found = fv.predict(net, tmp_path)
        rows = list(found)
        assert torch.equal(
            torch.stack([one.probabilities for one in rows]), plain_loop(net, [one.path for one in rows])
        )
        assert len(rows) == 6
        assert not found.bad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_networks_in_another_dtype(new_net, photos, dtype):
    expected = torch.stack([one.probabilities for one in fv.predict(new_net(), photos / "val")])
    found = torch.stack([one.probabilities for one in fv.predict(new_net().to(dtype), photos / "val")])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)


def test_a_stream_that_is_left_leaves_no_thread_at_work(net, photos):
    stream = iter(fv.predict(net, photos, batch_size=1, threads=2))
    next(stream)
    mine = [thread for thread in threading.enumerate() if thread.name.startswith("foveate-decode")]
    assert mine
    del stream
    gc.collect()
    for thread in mine:
        thread.join(60)
        assert not thread.is_alive()


def test_a_stream_may_be_closed_on_one_of_its_own_threads(net, new_picture):
    # As the collector does with one that was left: it runs on whichever thread asks for memory.
    go, errors = threading.Event(), []

    def close():
        go.wait(60)
        try:
            stream.close()
        except RuntimeError as error:  # cannot join current thread
            errors.append(error)
        done.set()
        return new_picture(1, 1)

    done = threading.Event()
    items = [Item("first", lambda: new_picture(0, 0)), Item("second", close), Item("third", lambda: new_picture(2, 2))]
    stream = decoded(items, Preprocess.of(net), ahead=1, threads=1)
    assert next(stream)[0].name == "first"
    go.set()
    assert done.wait(60)
    assert errors == []


@pytest.mark.slow(
    reason="it exports; tests/exporters compares files with networks in every run",
    guards=(
        "foveate/exporters/",
        "foveate/prediction/",
    ),
)
def test_an_exported_file_says_what_the_network_says(saved, photos, tmp_path):
    pytest.importorskip("onnxruntime")
    fv.export(fv.load(saved), "onnx", tmp_path, check=False, time=False)
    (file,) = tmp_path.glob("*.onnx")
    expected, found = (list(fv.predict(model, photos / "val")) for model in (saved, file))
    assert [one.label for one in found] == [one.label for one in expected]
    rows = [torch.stack([one.probabilities for one in each]) for each in (found, expected)]
    torch.testing.assert_close(*rows, rtol=0, atol=1e-4)
    assert torch.equal(fv.evaluate(file, photos).confusion, fv.evaluate(saved, photos).confusion)
