"""Images in, files out."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from foveate.errors import FoveateError
from foveate.explanations.explain import METHODS, explain
from foveate.images import Preprocess
from foveate.surgery.insert import insert


@pytest.fixture
def attentive(model):
    return insert(model, "ulsam(groups=2) after body; se after stem")


def png_of(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_every_kind_of_image_is_the_same(attentive, photo, tmp_path):
    file = tmp_path / "a dog.png"
    photo.save(file)
    sources = [file, str(file), photo, png_of(photo)]
    found = explain(attentive, sources)
    assert found.names == ("a dog", "a dog", "image", "image")
    for values in (m.values for m in found.maps):
        assert all(torch.equal(values[0], other) for other in values)
    for source in sources:
        single = explain(attentive, source)
        torch.testing.assert_close(single.maps[0].values[0], found.maps[0].values[0])
        assert len(single.pictures) == 1


def test_pictures_are_what_the_network_saw(attentive, photo):
    from_file = explain(attentive, photo).pictures[0]
    assert from_file.size == (32, 32)
    tensor = Preprocess.of(attentive)(photo)[None]
    again = explain(attentive, tensor)
    difference = np.asarray(from_file, dtype=int) - np.asarray(again.pictures[0], dtype=int)
    assert abs(difference).max() <= 1
    assert torch.equal(again.maps[0].values, explain(attentive, photo).maps[0].values)


def test_image_size(attentive, photo):
    found = explain(attentive, photo, image_size=64)
    assert found.pictures[0].size == (64, 64)
    assert found.maps[0].values.shape == (1, 16, 16)


def test_grey_and_many_channels(model):
    for channels in (1, 5):
        model.stem[0] = nn.Conv2d(channels, 8, 3, 2, 1)
        found = explain(model, torch.randn(2, channels, 32, 32), "gradcam")
        assert found.pictures[1].mode == "RGB"
        low, high = found.pictures[1].convert("L").getextrema()
        assert low < high


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_the_models_own_dtype(attentive, images, dtype, method):
    found = explain(attentive.to(dtype), images, method)
    assert found.maps[0].values.dtype == torch.float32
    assert found.probabilities.dtype == torch.float32


def test_labels(model, images):
    found = explain(model, images, "gradcam")
    assert found.label(int(found.predictions[0])) == f"breed {int(found.predictions[0])}"
    model.pretrained_cfg["label_names"] = ["too", "few"]
    assert explain(model, images, "gradcam").label(4) == "class 4"
    del model.pretrained_cfg
    assert explain(model, images, "gradcam").labels == ()


def test_labels_of_imagenet_only_where_timm_says_so(model, images):
    model.head = nn.Linear(12, 1000)
    del model.pretrained_cfg["label_names"]
    assert explain(model, images, "gradcam").labels == ()
    model.pretrained_cfg["tag"] = "ra4_e3600_r224_in1k"
    assert explain(model, images, "gradcam").label(258) == "Samoyed"


def test_more_images_than_go_through_at_once(attentive):
    images = torch.randn(19, 3, 32, 32)
    found = explain(attentive, images)
    assert len(found.pictures) == len(found.names) == 19
    assert found.predictions.shape == found.probabilities.shape == (19,)
    assert found.maps[1].values.shape == (19, 8, 8)
    assert found.channels[0][1].shape == (19, 8)
    torch.testing.assert_close(found.maps[1].values[18], explain(attentive, images[18:]).maps[1].values[0])


def test_one_image(attentive, photo, tmp_path):
    found = explain(attentive, photo)
    for asked, written in (("new/dog.png", "new/dog.png"), ("dog", "dog/001_image.png"), ("", "001_image.png")):
        assert found.save(tmp_path / asked) == (tmp_path / written,)
        with Image.open(tmp_path / written) as drawn:
            assert drawn.format == "PNG"
            assert drawn.mode == "RGB"


def test_several_images(attentive, photo, tmp_path):
    for name in ("b", "a"):
        photo.save(tmp_path / f"{name}.png")
    found = explain(attentive, [tmp_path / "b.png", tmp_path / "a.png", tmp_path / "b.png"])
    files = found.save(tmp_path / "drawn")
    assert [file.name for file in files] == ["001_b.png", "002_a.png", "003_b.png"]
    assert sorted(file.name for file in (tmp_path / "drawn").iterdir()) == [file.name for file in files]


@pytest.mark.parametrize(("name", "words"), [("x.jpg", "PNG files"), ("x.PNG", "3 images to one file")])
def test_a_file_name_that_does_not_fit(attentive, images, tmp_path, name, words):
    with pytest.raises(FoveateError, match=words):
        explain(attentive, images).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(attentive, photo, tmp_path):
    (tmp_path / "taken").write_text("mine")
    found = explain(attentive, photo)
    for write in (lambda: found.save(tmp_path / "taken" / "x.png"), lambda: found.npz(tmp_path / "taken" / "x.npz")):
        with pytest.raises(FoveateError, match="cannot make the folder .*taken"):
            write()
    assert (tmp_path / "taken").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_numbers(attentive, images, tmp_path):
    found = explain(attentive, images)
    with np.load(found.npz(tmp_path / "x.npz"), allow_pickle=False) as arrays:
        assert set(arrays) == {
            *(f"map: body subspace {n}/2" for n in (1, 2)),
            *("channels: stem", "predictions", "probabilities", "names", "labels", "method"),
        }
        np.testing.assert_array_equal(arrays["map: body subspace 2/2"], found.maps[1].values)
        np.testing.assert_array_equal(arrays["channels: stem"], found.channels[0][1])
        assert tuple(arrays["labels"]) == found.labels
        assert arrays["method"] == "attention"
    with np.load(explain(attentive, images, "gradcam", target=3).npz(tmp_path / "y.npz")) as arrays:
        assert arrays["targets"].tolist() == [3, 3, 3]
    with pytest.raises(FoveateError, match="end the name in .npz"):
        found.npz(tmp_path / "x.txt")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "grad-cam"}, "no method is called 'grad-cam'; did you mean 'gradcam'"),
        ({"target": 1}, "target= does not change"),
        ({"layer": "body"}, "layer= does not change"),
        ({"image_size": 64}, "image_size= is for image files"),
    ],
)
def test_options_that_do_not_fit(attentive, images, options, words):
    with pytest.raises(FoveateError, match=words):
        explain(attentive, images, **options)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "the list is empty"),
        ("missing.png", "missing.png"),
        (b"not an image", "12 bytes"),
        (torch.zeros(3, 32, 32), r"image\[None\]"),
        (torch.zeros(0, 3, 32, 32), "cannot explain"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "torch.uint8"),
        (torch.full((1, 3, 32, 32), torch.nan), "NaN"),
        (torch.zeros(1, 4, 32, 32), "4 channels, the model takes 3"),
    ],
)
def test_images_that_cannot_be_explained(attentive, images, words):
    with pytest.raises(FoveateError, match=words):
        explain(attentive, images)


def test_no_such_image(attentive, photo):
    with pytest.raises(FoveateError, match="no image 1: the explanation holds 1"):
        explain(attentive, photo).draw(1)


def test_top_gives_the_largest_probabilities(model, photo):
    found = explain(model, photo, "gradcam")
    top = found.top()
    assert list(top.values()) == sorted(top.values(), reverse=True)
    assert next(iter(top)) == found.label(int(found.predictions[0]))
    assert next(iter(top.values())) == float(found.probabilities[0])
    assert len(found.top(most=1)) == 1


def test_overlay_goes_from_the_grey_image_to_the_map(model, photo):
    found = explain(model, photo, "gradcam")
    picture = found.pictures[0]
    assert found.overlay(opacity=0.0).tobytes() == picture.convert("L").convert("RGB").tobytes()
    assert found.overlay(opacity=1.0).tobytes() != found.overlay(opacity=0.5).tobytes()
    assert found.overlay().size == picture.size


@pytest.mark.parametrize(
    ("given", "words"), [({"number": 9}, "no map 9"), ({"index": 1}, "image 1"), ({"opacity": 2}, "opacity=2")]
)
def test_overlay_of_what_is_not_there(model, photo, given, words):
    with pytest.raises(FoveateError, match=words):
        explain(model, photo, "gradcam").overlay(**given)


IMAGES = 2
ONE_FOR_ALL = [3, np.int64(3), np.array(3), torch.tensor(3)]
FOR_EACH = [np.array([3, 4]), torch.tensor([3, 4]), [np.int64(3), torch.tensor(4)], (3, np.int8(4)), range(3, 5)]


@pytest.mark.parametrize("target", [*ONE_FOR_ALL, *FOR_EACH], ids=repr)
def test_a_class_is_any_whole_number_and_an_array_one_for_each_image(attentive, images, target):
    found = explain(attentive, images[:IMAGES], "gradcam", target=target)
    assert found.targets.tolist() == ([3, 4] if any(target is one for one in FOR_EACH) else [3, 3])


def test_numbers_of_numpys_are_numbers(attentive):
    picture = Image.new("RGB", (64, 64))
    found = explain(attentive, picture, "gradcam", image_size=np.int64(64), batch_size=np.int64(1))
    assert len(found.pictures) == 1


SLIPS = {
    "target": [
        1.5,
        object(),
        {},
        {1, 2},
        np.array([[1, 2]]),
        np.array([1.0, 2.0]),
        True,
        [True, False],
        (),
        np.bool_(1),
    ],
    "layer": [5, ["body"], object()],
    "batch_size": ["2", None, 0, 1.5, True],
    "image_size": [(64, 96), "64", 0, 1.5, [64]],
    "method": [5, None, ["gradcam"]],
}


@pytest.mark.parametrize("name, given", [(name, given) for name, several in SLIPS.items() for given in several])
def test_slips_are_one_line_that_names_the_argument(attentive, name, given):
    pictures = [Image.new("RGB", (64, 64))] * IMAGES
    words = "no method is called" if name == "method" else f"{name}="
    with pytest.raises(FoveateError, match=f"^{words}") as caught:
        explain(attentive, pictures, **({"method": "gradcam"} | {name: given}))
    assert "\n" not in str(caught.value)
