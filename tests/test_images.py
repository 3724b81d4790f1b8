"""The decode rule and the preparation of an image."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features
from timm.data import create_transform

from foveate.errors import FoveateError
from foveate.images import MAX_PIXELS, Preprocess, open_image

MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "RGBa", "La"]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(width: int, height: int) -> Image.Image:
    return noise(7, 5).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():  # such files exist, however Pillow will write them in future
        warnings.filterwarnings("ignore", "Saving I mode images as PNG", DeprecationWarning)
        image.save(stream, form, **options)
    return stream.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def png_header(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that says it is as large as asked."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    empty = b"IDAT" + zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in (chunk, empty, b"IEND")
    )


# ---- colour modes


@pytest.mark.parametrize("mode", [*MODES, "I;16", "I;16L", "I;16B"])
def test_every_mode_becomes_rgb_of_the_same_size(mode: str) -> None:
    image = open_image(Image.new(mode, (5, 4)))
    assert (image.mode, image.size, type(image)) == ("RGB", (5, 4), Image.Image)


@given(
    mode=st.sampled_from(MODES),
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    form=st.sampled_from(["PNG", "TIFF"]),
)
@settings(max_examples=60, deadline=None)
def test_rule_is_the_same_for_memory_and_file_and_applies_once(mode: str, width: int, height: int, form: str) -> None:
    image = noise(width, height).convert("L" if mode in ("La", "PA") else "RGB")
    image = image.convert("LA").convert(mode) if mode in ("La", "PA") else _converted(image, mode)
    once = open_image(image)
    assert once.size == (width, height)
    assert open_image(once).tobytes() == once.tobytes()
    try:
        data = encoded(image, form)
    except (OSError, KeyError):
        return  # the format cannot hold this mode
    with Image.open(io.BytesIO(data)) as again:
        if again.mode == mode:
            assert open_image(data).tobytes() == once.tobytes()


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if mode == "RGBa":
        return image.convert("RGBA").convert(mode)
    if mode in ("I", "F"):
        return image.convert("L").convert(mode)
    return Image.new(mode, image.size, 0) if mode == "LAB" else image.convert(mode)


def test_transparency_is_flattened_on_white() -> None:
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    half.putpixel((1, 0), (0, 0, 0, 0))
    for form in ("PNG", "WEBP", "TIFF"):
        image = open_image(encoded(half, form, **({"lossless": True} if form == "WEBP" else {})))
        assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)], form
    half.putpixel((1, 0), (0, 0, 0, 51))
    assert open_image(half).getpixel((1, 0)) == (204, 204, 204)
    assert open_image(half.convert("LA")).getpixel((1, 0)) == (204, 204, 204)


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_transparent_palette_entry_becomes_white(form: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    result = open_image(encoded(image, form, transparency=0))
    assert [result.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 100, 50)]


def test_transparent_colour_of_rgb_and_16_bit_grey_becomes_white() -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    assert open_image(encoded(image, "PNG", transparency=(1, 2, 3))).getpixel((0, 0)) == (255, 255, 255)
    grey = Image.fromarray(np.array([[0, 257]], dtype=np.uint16))
    result = open_image(encoded(grey, "PNG", transparency=0))
    assert [result.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (1, 1, 1)]


def test_cmyk_jpeg_keeps_its_colours() -> None:
    image = smooth(64, 48)
    result = open_image(encoded(image.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(pixels(result) - pixels(image)).mean() < 4


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data).getpixel((0, 0)) == (255, 0, 0)


# ---- more than 8 bit


@pytest.mark.parametrize(("form", "kind"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2"), ("PPM", "<u2")])
def test_16_bit_grey_is_rescaled_not_clipped(form: str, kind: str) -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=kind)
    mode = "I;16B" if kind == ">u2" else "I;16"
    image = Image.frombytes(mode, (4, 1), values.tobytes())
    assert pixels(open_image(encoded(image, form)))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (np.int32, [0, 257, 65535], [0, 1, 255]),
        (np.int32, [-100, 0, 100], [0, 128, 255]),
        (np.int32, [0, 500_000, 1_000_000], [0, 128, 255]),
        (np.float32, [0.0, 0.2, 1.0], [0, 51, 255]),
        (np.float32, [0.0, 51.0, 255.0], [0, 51, 255]),
        (np.float32, [-1.0, 0.0, 1.0], [0, 128, 255]),
        (np.float32, [-7.0, -7.0, -7.0], [0, 0, 0]),
    ],
)
def test_32_bit_grey_follows_the_written_rule(kind: type, values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], dtype=kind))
    for source in (image, encoded(image, "TIFF")):
        assert pixels(open_image(source))[0, :, 1].tolist() == expected


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    image = Image.fromarray(np.array([[0.0, value]], dtype=np.float32))
    with pytest.raises(FoveateError, match=r"^x\.tif holds values that are not finite"):
        open_image(encoded(image, "TIFF"), name="x.tif")


# ---- orientation


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_everywhere(form: str, orientation: int, tmp_path: Path) -> None:
    upright = smooth(24, 16)
    array = np.asarray(upright)
    # How a camera stores the upright scene (EXIF 2.3, tag 274).
    stored = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.transpose(1, 0, 2),
        6: np.rot90(array, 1),
        7: np.rot90(array, 2).transpose(1, 0, 2),
        8: np.rot90(array, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}}.get(form, {})
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), form, exif=exif, **options)
    file = tmp_path / "image"
    file.write_bytes(data)
    with Image.open(file) as opened:
        results = [open_image(data), open_image(file), open_image(str(file)), open_image(opened)]
    for result in results:
        assert result.size == upright.size
        assert np.abs(pixels(result) - pixels(upright)).max() <= (12 if form == "JPEG" else 0)
        assert open_image(result).tobytes() == result.tobytes()


def test_broken_exif_does_not_spoil_the_picture() -> None:
    image = smooth(24, 16)
    data = encoded(image, "WEBP", lossless=True, exif=b"not exif at all")
    assert open_image(data).tobytes() == image.tobytes()


# ---- limits


@pytest.mark.parametrize("side", [8_001, 12_000, 30_000])
def test_too_large_a_header_is_refused_without_a_warning(side: int) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(FoveateError, match=r"^big\.png is .*pixels"):
            open_image(png_header(side, side), name="big.png")
    assert not caught


def test_limit_is_the_callers(tmp_path: Path) -> None:
    assert MAX_PIXELS == 64_000_000
    assert open_image(noise(10, 10), max_pixels=100).size == (10, 10)
    file = tmp_path / "a.png"
    noise(10, 10).save(file)
    for source in (file, noise(10, 10), file.read_bytes()):
        with pytest.raises(FoveateError, match="10x10, more than 99 pixels"):
            open_image(source, max_pixels=99)


def test_warning_filters_are_left_as_found_by_many_threads() -> None:
    data = encoded(noise(8, 8), "PNG")
    before = list(warnings.filters)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns as often as can be
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: open_image(data), range(400)))
    finally:
        sys.setswitchinterval(interval)
    assert warnings.filters == before


# ---- damage


@given(form=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP"]), kept=st.floats(0.0, 0.9), progressive=st.booleans())
@settings(max_examples=80, deadline=None)
def test_truncated_image_is_named(form: str, kept: float, progressive: bool) -> None:
    data = encoded(noise(40, 30), form, **({"progressive": progressive} if form == "JPEG" else {}))
    part = data[: int(len(data) * kept)]
    for at_least in (None, 1):
        with pytest.raises(FoveateError, match=r"^dog\.jpg (is|has) "):
            open_image(part, name="dog.jpg", at_least=at_least)
    with pytest.raises(FoveateError, match=f"^image of {len(part)} bytes is "):
        open_image(part)


@given(
    form=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
)
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_give_an_image_or_one_clear_line(form: str, changes: list[tuple[float, int]]) -> None:
    data = bytearray(encoded(noise(20, 15), form))
    for place, value in changes:
        data[int(place * place * len(data))] = value  # headers are hit more often than pixels
    try:
        image = open_image(bytes(data), name="x", max_pixels=1_000_000)
    except FoveateError as error:
        outcome = str(error)
    else:
        outcome = f"x {image.mode}"
    assert outcome.startswith("x ")
    assert "\n" not in outcome


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FoveateError):
        open_image(b"\0" + data)


def test_file_errors_name_the_file(tmp_path: Path) -> None:
    noise(8, 8).save(tmp_path / "dog.png")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("this is not a picture")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    for name, words in {
        "empty.jpg": "is empty",
        "text.jpg": "is not an image",
        "link.jpg": "is a link to a file that does not exist",
        ".": "is a folder",
        "dgo.png": "did you mean 'dog.png'",
        "none/dog.png": "there are none",
    }.items():
        path = tmp_path / name
        with pytest.raises(FoveateError, match=words) as caught:
            open_image(path)
        assert str(path) in str(caught.value)
    with pytest.raises(FoveateError, match="image of 0 bytes is empty"):
        open_image(b"")
    with pytest.raises(FoveateError, match="not ndarray"):
        open_image(np.zeros((2, 2)))  # type: ignore[arg-type]


def test_the_callers_image_is_left_as_found() -> None:
    exif = Image.Exif()
    exif[274] = 6
    with Image.open(io.BytesIO(encoded(noise(6, 4).convert("RGBA"), "PNG", exif=exif))) as image:
        before = image.copy()
        result = open_image(image)
        assert (image.mode, image.size, image.tobytes()) == (before.mode, before.size, before.tobytes())
        assert image.getexif()[274] == 6
    plain = noise(6, 4)
    open_image(plain).putpixel((0, 0), (1, 2, 3))
    assert plain.tobytes() == noise(6, 4).tobytes()
    assert result.size == (4, 6)


# ---- reduced decoding


@given(width=st.integers(1, 400), height=st.integers(1, 400), at_least=st.integers(1, 200))
@settings(max_examples=40, deadline=None)
def test_reduced_jpeg_keeps_both_sides_and_the_scene(width: int, height: int, at_least: int) -> None:
    image = smooth(width, height)
    data = encoded(image, "JPEG", quality=95, subsampling=0)
    reduced = open_image(data, at_least=at_least)
    assert min(reduced.size) >= min(at_least, width, height)
    factor = min(width // at_least, height // at_least)
    scale = max([s for s in (1, 2, 4, 8) if s <= factor], default=1)
    assert reduced.size == (-(-width // scale), -(-height // scale))
    if min(image.size) >= 64:
        expected = image.reduce(scale) if scale > 1 else image  # the last pixel stands for what is left over
        assert np.abs(pixels(reduced) - pixels(expected)).mean() < 8


def test_reduced_decoding_leaves_other_formats_alone() -> None:
    assert open_image(encoded(noise(64, 64), "PNG"), at_least=8).size == (64, 64)


# ---- preparation


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (97, 64), (64, 64), (20, 37), (1, 1), (1000, 9)])
@pytest.mark.parametrize(
    ("side", "crop", "interpolation"), [(64, 0.875, "bicubic"), (57, 0.95, "bilinear"), (32, 1.0, "nearest")]
)
def test_square_preparation_is_timms(size: tuple[int, int], side: int, crop: float, interpolation: str) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    theirs = create_transform((3, side, side), interpolation=interpolation, mean=mean, std=std, crop_pct=crop)
    ours = Preprocess((side, side), mean, std, interpolation, crop)
    image = noise(*size)
    torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=1e-6)


@given(
    width=st.integers(1, 120), height=st.integers(1, 120), wide=st.integers(1, 60), high=st.integers(1, 60),
    crop=st.floats(0.3, 1.0),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_crop_is_always_inside_the_picture(width: int, height: int, wide: int, high: int, crop: float) -> None:
    prepare = Preprocess((high, wide), (0.5,) * 3, (0.5,) * 3, "bilinear", crop)
    white = Image.new("RGB", (width, height), "white")
    assert prepare.view(white).size == (wide, high)
    tensor = prepare(white)
    assert (tensor.shape, tensor.dtype) == ((3, high, wide), torch.float32)
    assert tensor.min() == tensor.max() == 1.0  # a border of black padding would be -1


def test_tensor_is_the_view_normalised() -> None:
    prepare = Preprocess((24, 32), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), crop_pct=0.9)
    image = noise(70, 50)
    seen = torch.from_numpy(np.array(prepare.view(image))).permute(2, 0, 1) / 255
    expected = (seen - torch.tensor(prepare.mean)[:, None, None]) / torch.tensor(prepare.std)[:, None, None]
    torch.testing.assert_close(prepare(image), expected)


def test_preparation_flattens_and_turns_like_open_image() -> None:
    prepare = Preprocess((16, 16), (0.5,) * 3, (0.5,) * 3)
    assert prepare(Image.new("LA", (20, 20))).min() == 1.0
    assert prepare.view(Image.new("I;16", (20, 30))).mode == "RGB"


def test_one_channel_means_grey() -> None:
    prepare = Preprocess((16, 16), (0.5,), (0.25,))
    tensor = prepare(Image.new("RGB", (16, 16), (255, 0, 0)))
    assert tensor.shape == (1, 16, 16)
    torch.testing.assert_close(tensor, torch.full((1, 16, 16), (76 / 255 - 0.5) / 0.25))


def test_of_reads_timms_configuration() -> None:
    lite = timm.create_model("tf_efficientnet_lite0")
    assert Preprocess.of(lite) == Preprocess((224, 224), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.875)
    assert Preprocess.of(lite, 128) == Preprocess((128, 128), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.875)
    grey = Preprocess.of(timm.create_model("resnet18", in_chans=1))
    assert grey.mean == (pytest.approx(0.449),)
    assert grey.std == (pytest.approx(0.226),)


def test_of_falls_back_to_imagenet() -> None:
    expected = Preprocess((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.875)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    assert Preprocess.of(model) == expected
    model.pretrained_cfg = {"mean": None, "input_size": (3, 32, 48)}  # type: ignore[assignment]
    assert Preprocess.of(model) == Preprocess((32, 48), expected.mean, expected.std, "bicubic", 0.875)
    model.pretrained_cfg = SimpleNamespace(std=(1, 1, 1))  # type: ignore[assignment]
    assert Preprocess.of(model).std == (1.0, 1.0, 1.0)
    assert Preprocess.of(torch.nn.Linear(3, 3)) == expected


def test_of_says_when_channels_do_not_fit() -> None:
    with pytest.raises(FoveateError, match="takes 4 channels and pictures have 3"):
        Preprocess.of(torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": (0, 3)}, "at least 1 pixel"),
        ({"mean": (0.5,)}, "give 3 values each"),
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, "give 3 values each"),
        ({"std": (1.0, 0.0, 1.0)}, "greater than 0"),
        ({"crop_pct": 1.5}, "at most 1"),
        ({"interpolation": "bicubik"}, "did you mean 'bicubic'"),
    ],
)
def test_wrong_preparation_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(FoveateError, match=words):
        Preprocess(**{"size": (8, 8), "mean": (0.5,) * 3, "std": (1.0,) * 3} | change)  # type: ignore[arg-type]


def test_importing_the_rule_costs_no_torch() -> None:
    code = "import sys, foveate.images; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'timm')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- HEIC and AVIF

# The first bytes of a HEIC file: what says that it is one.
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)


def test_heic_without_its_reader_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(HEIC)
    with pytest.raises(FoveateError, match=r"a\.heic is a HEIC image: pip install 'foveate\[heic\]' to read it"):
        open_image(tmp_path / "a.heic")
    with pytest.raises(FoveateError, match="is a HEIC image"):
        open_image(HEIC)


def test_heic_is_never_left_out_of_a_folder(monkeypatch, tmp_path):
    from foveate.data import check_data, open_data

    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8), (number * 40, 0, 0)).save(tmp_path / name / f"{number}.png")
            (tmp_path / name / f"{number}.HEIC").write_bytes(HEIC)
    with pytest.raises(FoveateError, match=r"HEIC is a HEIC image: pip install .* \(and 7 more like it\)"):
        open_data(tmp_path)
    data = open_data(tmp_path, on_bad_image="skip")
    assert len(data.bad) == 8
    assert len(data.train) + len(data.val) == 8
    assert "left out 8 images that cannot be read" in data.note
    found = check_data(tmp_path)
    assert len(found.bad) == 8
    assert not found.sound


def test_heic_is_read_with_its_reader():
    heif = pytest.importorskip("pillow_heif")
    picture = Image.linear_gradient("L").convert("RGB").resize((64, 48))
    stream = io.BytesIO()
    heif.from_pillow(picture).save(stream, quality=95)
    opened = open_image(stream.getvalue())
    assert (opened.size, opened.mode) == ((64, 48), "RGB")
    difference = np.abs(np.asarray(opened, dtype=float) - np.asarray(picture, dtype=float))
    assert difference.mean() < 3


def test_avif_is_read_by_pillow(monkeypatch):
    if "avif" not in features.modules or not features.check("avif"):
        pytest.skip("this Pillow is built without AVIF")
    picture, stream = Image.linear_gradient("L").convert("RGB").resize((64, 48)), io.BytesIO()
    picture.save(stream, "AVIF", quality=95)
    assert np.abs(np.asarray(open_image(stream.getvalue()), dtype=float) - np.asarray(picture, dtype=float)).mean() < 3
    monkeypatch.setattr("foveate.image_formats.features.check", lambda _: False)
    with pytest.raises(FoveateError, match="is an AVIF image, which this Pillow cannot read"):
        open_image(stream.getvalue())
