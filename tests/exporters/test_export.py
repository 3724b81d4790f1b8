"""Every mechanism, pool and head of the registry as ONNX and .pt2; a file that differs from the network is not kept."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import foveate as fv
from foveate.data.split import Split
from foveate.errors import FoveateError
from foveate.exporters import export as export_module
from foveate.exporters.format import format_names
from foveate.exporters.formats.onnx import Onnx
from foveate.exporters.options import ExportOptions
from foveate.exporters.verify import _compare_output
from foveate.images import Preprocess
from foveate.registry import names

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIZE = 64
PLAN = "ulsam(groups=4) after layer3; cbam after layer2; se after layer1"


@pytest.fixture(scope="module")
def network(randomised):
    """(plan) -> a network with it, whose attention does something."""

    def build(plan="", classes=5):
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=classes).eval()
        return randomised(fv.insert(model, plan, input_size=SIZE) if plan else model)

    return build


@pytest.fixture(scope="module")
def model(network):
    return network(PLAN)


@pytest.fixture(scope="module")
def everywhere(blocks, randomised):
    """One network with every mechanism, each after a block of its own."""
    return randomised(blocks([*names("attention"), "sparse(causal=True)", "ulsam(groups=8)"]))


AXES = [("onnx", {"size": "dynamic"}), ("onnx", {"size": SIZE, "batch": 1}), ("pt2", {"size": SIZE})]


@pytest.mark.slow(
    reason="three files of a network with every mechanism, half a minute",
    guards=("foveate/exporters/", "foveate/attention/", "foveate/kernels/", "foveate/surgery/"),
)
@pytest.mark.parametrize("form, axes", AXES, ids=str)
def test_every_mechanism(everywhere, form, axes, tmp_path):
    made = fv.export(everywhere, form, tmp_path, images=3, time=False, **axes)
    assert made.difference < 1e-4, made
    assert all(check.passed for check in made.checks), made


@pytest.mark.slow(
    reason="two files of a network with every head and pool, twenty seconds",
    guards=("foveate/exporters/", "foveate/heads/", "foveate/pooling/", "foveate/surgery/", "constraints.txt"),
)
@pytest.mark.parametrize("form", ["onnx", "pt2"])
@pytest.mark.parametrize("end", [f"{n} as head" for n in names("heads")] + [f"{n} as pool" for n in names("pooling")])
def test_heads_and_pools(network, end, form, tmp_path):
    size = "dynamic" if form == "onnx" else SIZE
    made = fv.export(network(end), form, tmp_path, size=size, images=3, time=False)
    assert made.difference < 1e-5, made


def test_it_is_left_as_found(model, tmp_path):
    model.train()
    state, numbers = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    hooks = {name: len(module._forward_hooks) for name, module in model.named_modules()}
    fv.export(model, "onnx", tmp_path, size=SIZE, batch=1, maps=("cam", "attention"), images=2, time=False)
    assert model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), numbers)
    assert {name: len(module._forward_hooks) for name, module in model.named_modules()} == hooks
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.eval()


@pytest.fixture(scope="module")
def complete(model, folder, tmp_path_factory):
    """A file with everything: pixels in, probabilities, classes and maps out, checked on a data set."""
    place = tmp_path_factory.mktemp("complete")
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": ["left", "right", "up", "down", "none"]}
    return fv.export(
        *(model, "onnx", place / "net.onnx"),
        size=SIZE,
        data=folder,
        maps=("cam", "attention"),
        input="uint8",
        softmax=True,
        top=2,
    )


def test_pixels_give_the_same_logits(model, complete, folder):
    """The normalisation in the file is that of the model's own preparation, on a picture of another size."""
    prepare = Preprocess.of(model, SIZE)
    paths = sorted((folder / "val" / "left").iterdir())[:3]
    pictures = [Image.open(path) for path in paths]
    pixels = np.stack([np.asarray(prepare.view(picture)) for picture in pictures])
    with torch.no_grad():
        expected = model(torch.stack([prepare(picture) for picture in pictures]))
    opened = complete.open()
    outputs = dict(zip((each["name"] for each in opened.metadata["outputs"]), opened.run(pixels), strict=True))
    assert np.abs(outputs["logits"] - expected.numpy()).max() < 1e-5
    assert np.allclose(outputs["probabilities"].sum(axis=1), 1, atol=1e-5)
    assert (outputs["top_classes"][:, 0] == expected.argmax(1).numpy()).all()
    # The same through the door that `predict` uses: normalised images.
    again = opened.logits(torch.stack([prepare(picture) for picture in pictures]))
    assert torch.equal(again, torch.from_numpy(outputs["logits"]))
    assert opened.classes == ("left", "right", "up", "down", "none")
    assert opened.preprocess == prepare
    assert opened.batch is None


def test_maps_are_those_of_explain(model, complete, folder):
    paths = [str(path) for path in sorted((folder / "val" / "right").iterdir())[:2]]
    pixels = np.stack([np.asarray(Preprocess.of(model, SIZE).view(Image.open(path))) for path in paths])
    opened = complete.open()
    described = opened.metadata["outputs"]
    outputs = {each["name"]: value for each, value in zip(described, opened.run(pixels), strict=True)}
    cam = fv.explain(model, paths, "cam", image_size=SIZE).maps[0].values.numpy()
    assert np.abs(outputs["cam"] - cam).max() < 1e-4 * max(1, np.abs(cam).max())
    own = fv.explain(model, paths, "attention", image_size=SIZE).maps
    sites = {each["site"]: each["name"] for each in described if each["name"].startswith("attention")}
    assert set(sites) == {found.module for found in own} == {"layer3", "layer2"}
    for site, name in sites.items():
        planes = np.stack([found.values.numpy() for found in own if found.module == site], axis=1)
        assert outputs[name].shape == planes.shape
        assert np.abs(outputs[name] - planes).max() < 1e-4


@pytest.mark.parametrize("size", [120, "dynamic"])
def test_maps_of_several_sizes_lie_where_they_are_in_the_image(size, tmp_path):
    """Those of Learn to Pay Attention, 15, 8 and 4 wide: nearest neighbours would move them."""
    torch.manual_seed(0)
    model = fv.insert(fv.create_model("resnet10t", num_classes=3).eval(), "ltpa as head", input_size=120)
    x = torch.randn(2, 3, 120, 120)
    made = fv.export(model, "onnx", tmp_path, size=size, batch=2, maps="attention", images=2, time=False)
    opened = made.open()
    names = [each["name"] for each in opened.metadata["outputs"]]
    found = torch.from_numpy(opened.run(x.numpy())[names.index("attention_0")])
    own = [each.values for each in fv.explain(model, x, "attention").maps]
    assert [plane.shape[1:] for plane in own] == [(15, 15), (8, 8), (4, 4)]
    for plane, exported in zip(own, found.unbind(1), strict=True):
        expected = torch.nn.functional.interpolate(plane[:, None], (15, 15), mode="bilinear", align_corners=False)
        assert (exported - expected[:, 0]).abs().max() < 1e-5
        rows = torch.arange(15) + 0.5  # the middle of the mass, in shares of the height
        cells = torch.arange(plane.shape[1]) + 0.5
        there = (exported.sum(2) * rows).sum(1) / exported.sum((1, 2)) / 15
        here = (plane.sum(2) * cells).sum(1) / plane.sum((1, 2)) / plane.shape[1]
        assert (there - here).abs().max() < 0.02


def test_what_it_says_of_itself(model, complete):
    """Everything that a program needs is in the file alone, and nothing was lost on the way."""
    texts = {entry.key: entry.value for entry in onnx.load(complete.path).metadata_props}
    found = {key.removeprefix("foveate."): json.loads(text) for key, text in texts.items()}
    assert found == complete.metadata
    assert found["plan"] == str(fv.plan_of(model))
    assert found["input"]["shape"] == ["batch", SIZE, SIZE, 3]
    assert len(found["weights_sha256"]) == 64
    assert [
        axis.dim_param or axis.dim_value for axis in onnx.load(complete.path).graph.input[0].type.tensor_type.shape.dim
    ] == [*("batch", SIZE, SIZE, 3)]
    assert {check.name for check in complete.checks} >= {
        "operations",
        "metadata",
        "batch of 1",
        "batch of 3",
        "logits",
        "cam",
    }
    assert complete.agreement == 1
    assert "<table>" in complete._repr_html_()
    assert json.loads(json.dumps(complete.to_dict()))["agreement"] == 1


def test_top1_is_counted_by_class_names(model, complete, folder):
    """The data has two of the model's five classes; labels are compared by name."""
    assert complete.network_top1 is not None
    assert complete.top1 == complete.network_top1
    evaluation = fv.evaluate(model, fv.open_data(folder).val, image_size=SIZE)
    assert complete.top1 == pytest.approx(evaluation.top1)


def test_half_precision(model, tmp_path):
    options = {"size": SIZE, "batch": 1, "images": 4, "time": False}
    half = fv.export(model, "onnx", tmp_path, precision="fp16", **options)
    whole = fv.export(model, "onnx", tmp_path, **options)
    assert half.megabytes < 0.7 * whole.megabytes
    assert 0 < half.difference < 3e-2
    assert half.path != whole.path


def test_fixed_batch(model, tmp_path):
    made = fv.export(model, "onnx", tmp_path, batch=4, size=(SIZE, 96), images=6, time=True)
    opened = made.open()
    assert opened.batch == 4
    assert made.metadata["input"]["shape"] == [4, 3, SIZE, 96]
    assert made.milliseconds > 0
    assert made.network_milliseconds > 0


class Broken(Onnx):
    """Writes a file with one weight changed; the same network is converted once."""

    written = None

    def convert(self, program, path):
        if self.written:
            path.write_bytes(self.written)
            return
        super().convert(program, path)
        found = onnx.load(path)
        weight = max(found.graph.initializer, key=lambda each: len(each.raw_data))
        values = onnx.numpy_helper.to_array(weight).copy()
        values.reshape(-1)[:50] += 1
        weight.raw_data = values.tobytes()
        onnx.save(found, path)
        self.written = path.read_bytes()


def test_a_file_that_differs_is_not_kept(model, tmp_path, monkeypatch):
    broken = Broken()
    monkeypatch.setattr(export_module, "find_format", lambda name: broken)
    with pytest.raises(FoveateError, match="does not do what the network does.*logits"):
        fv.export(model, "onnx", tmp_path / "new", size=SIZE, images=3, time=False)
    assert not list((tmp_path / "new").iterdir())
    kept = fv.export(model, "onnx", tmp_path / "new", size=SIZE, images=3, time=False, keep_failed=True)
    assert kept.path == tmp_path / "new" / "failed" / "test_resnet_fp32.onnx"
    assert [path.name for path in (tmp_path / "new").rglob("*")] == ["failed", kept.path.name]
    assert any("FAILED" in note for note in kept.notes)
    options = {"size": SIZE, "images": 3, "time": False, "keep_failed": True, "overwrite": True}
    monkeypatch.setattr("foveate.exporters.table.find_format", lambda name: broken)
    (row,) = fv.export_all(model, ["onnx"], tmp_path / "new", options=options).rows
    assert (row.status, row.exported.path) == ("failed", kept.path)
    assert "logits" in row.reason


class Full(Onnx):
    """There is no space."""

    def convert(self, program, path):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")


def test_a_full_disk(model, tmp_path, monkeypatch):
    (tmp_path / "net.onnx").write_text("mine")
    monkeypatch.setattr(export_module, "find_format", lambda name: Full())
    with pytest.raises(FoveateError, match="No space left"):
        fv.export(model, "onnx", tmp_path / "net.onnx", size=SIZE, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert (tmp_path / "net.onnx").read_text() == "mine"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"format": "onx"}, "did you mean 'onnx'"),
        ({"precision": "fp8"}, "precision='fp8' is not known"),
        ({"format": "pt2", "precision": "int8"}, "pt2 is written in"),
        ({"maps": ("atention",)}, "did you mean 'attention'"),
        ({"maps": "gradcam"}, "maps='gradcam' is not known"),
        ({"input": "bytes"}, "input='bytes'"),
        ({"batch": 0}, "batch=0"),
        ({"size": "large"}, "size='large'"),
        ({"size": (32, 0)}, "size="),
        ({"top": 9}, "top=9: the model has 5 classes"),
        ({"images": 0}, "images=0"),
        ({"output": "net.tflite"}, "ends in .onnx"),
        ({"data": "no/such/folder"}, "no/such/folder"),
    ],
)
def test_bad_requests(model, tmp_path, options, message):
    given = {"format": "onnx", "output": tmp_path / "out", "size": SIZE, "images": 2, "time": False, **options}
    if isinstance(given["output"], str):
        given["output"] = tmp_path / given["output"]
    with pytest.raises(FoveateError, match=message) as caught:
        fv.export(model, given.pop("format"), given.pop("output"), **given)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.onnx"))


# Another kind of value for each option that is not a switch, and what is kept of it.
KINDS = [
    ("maps", ["cam", "cam"], ("cam",)),
    ("maps", "cam", ("cam",)),
    ("batch", np.int64(2), 2),
    ("size", [64, 96], (64, 96)),
    ("size", [64], 64),
    ("size", torch.Size((64, 96)), (64, 96)),
    ("size", np.array([64, 96]), (64, 96)),
    ("size", np.int64(64), 64),
    ("top", np.int32(2), 2),
    ("python", Path("python3"), "python3"),
]


@pytest.mark.parametrize("name, given, kept", KINDS)
def test_options_of_other_kinds_are_the_same_options(name, given, kept):
    found = ExportOptions(**{name: given})
    assert getattr(found, name) == kept
    assert type(getattr(found, name)) is type(kept)
    assert hash(found) == hash(ExportOptions(**{name: kept}))


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ExportOptions) if field.name != "softmax"])
def test_what_no_option_can_be_is_one_line(name):
    usual = getattr(ExportOptions(), name)
    for given in (None, 1.5, -1, True, (), [[1]], [None], object(), np.array([1.5, 2]), "no such word"):
        allowed = usual if not isinstance(given, str) or name != "python" else given
        if type(given) is type(allowed) and given == allowed:
            continue
        with pytest.raises(FoveateError, match=f"^{name}=") as caught:
            ExportOptions(**{name: given})
        assert "\n" not in str(caught.value)


def test_a_size_in_a_list_and_numbers_of_numpys(network, folder, tmp_path):
    model, asked = network(classes=2), {"size": [64, 96], "batch": np.int64(1), "images": np.int64(2)}
    made = fv.export(model, "pt2", tmp_path, data=folder, time=False, **asked)
    assert made.metadata["input"]["shape"] == [1, 3, 64, 96]
    with pytest.raises(FoveateError, match="^images='2': a file is checked with 1 image"):
        fv.export(model, "pt2", tmp_path, images="2")


def test_one_format_and_one_precision_need_no_list(model, tmp_path):
    (row,) = fv.export_all(model, "pt2", tmp_path, precisions="fp32", options={"size": SIZE, "check": False}).rows
    assert row.exported


def test_data_of_other_classes(network, model, folder, tmp_path):
    other = network(classes=3)
    with pytest.raises(FoveateError, match="3 classes without names and the data has 2"):
        fv.export(other, "onnx", tmp_path, data=folder, size=SIZE)


def test_an_existing_file_stays(model, tmp_path):
    (tmp_path / "test_resnet_fp32.onnx").write_text("mine")
    with pytest.raises(FoveateError, match="is there already"):
        fv.export(model, "onnx", tmp_path, size=SIZE)
    assert (tmp_path / "test_resnet_fp32.onnx").read_text() == "mine"


def test_an_existing_example_stays(model, tmp_path):
    """It is looked for before anything is computed."""
    (tmp_path / "net_pt2_example.py").write_text("mine")
    with pytest.raises(FoveateError, match="net_pt2_example.py is there already"):
        fv.export(model, "pt2", tmp_path / "net.pt2", size=SIZE, images=2, batch=1, example=True, time=False)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
    found = fv.export(
        model, "pt2", tmp_path / "net.pt2", size=SIZE, images=2, batch=1, example=True, time=False, overwrite=True
    )
    assert found.example == tmp_path / "net_pt2_example.py"
    assert repr("net.pt2") in found.example.read_text()
    assert str(found.example) in str(found)


def test_images_are_decoded_once_for_all_formats(network, folder, tmp_path, monkeypatch):
    model = network(classes=2)
    loaded, load = [], Split.load
    monkeypatch.setattr(Split, "load", lambda self, index, *rest: loaded.append(index) or load(self, index, *rest))
    options = {"size": SIZE, "images": 4, "time": False, "batch": 1}
    table = fv.export_all(model, ["onnx", "pt2"], tmp_path, precisions=["fp32", "fp16"], data=folder, options=options)
    assert [row.status for row in table.rows] == ["ok"] * 4
    assert len(loaded) == len(set(loaded)) > 0


def test_maps_that_do_not_exist(network, tmp_path):
    with pytest.raises(FoveateError, match="no inserted attention has a spatial map"):
        fv.export(network("se after layer2"), "onnx", tmp_path, size=SIZE, maps="attention")
    with pytest.raises(FoveateError, match="cam needs global average pooling"):
        fv.export(network("attention_pool as pool"), "onnx", tmp_path, size=SIZE, maps="cam")


class Eigen(torch.nn.Module):
    """An operation without a form in ONNX."""

    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return x * torch.linalg.svdvals(x.flatten(2))[:, :1, None, None]


def test_an_operation_that_no_format_has(network, tmp_path, monkeypatch):
    monkeypatch.setattr("foveate.registry._REGISTERED", {})
    fv.register("eigen", Eigen)
    with pytest.raises(FoveateError, match="ONNX.*svd.* in eigen at layer2") as caught:
        fv.export(network("eigen after layer2"), "onnx", tmp_path, size=SIZE)
    assert "\n" not in str(caught.value)


def test_files_from_elsewhere(tmp_path):
    torch.onnx.export(
        torch.nn.Conv2d(3, 4, 1).eval(), (torch.randn(1, 3, 8, 8),), tmp_path / "a.onnx", dynamo=True, verbose=False
    )
    with pytest.raises(FoveateError, match="was not exported by foveate"):
        fv.open_exported(tmp_path / "a.onnx")
    (tmp_path / "b.onnx").write_bytes(b"not a model")
    with pytest.raises(FoveateError, match="cannot be opened by onnxruntime"):
        fv.open_exported(tmp_path / "b.onnx")
    (tmp_path / "c.pt2").write_bytes(b"not a model")
    with pytest.raises(FoveateError, match="cannot be opened as a .pt2 file"):
        fv.open_exported(tmp_path / "c.pt2")
    with pytest.raises(FoveateError, match="there is no file.*b.onnx"):
        fv.open_exported(tmp_path / "bb.onnx")
    with pytest.raises(FoveateError, match="is not an exported network"):
        fv.open_exported(tmp_path / "model.h5")


@pytest.mark.parametrize("name", format_names())
def test_a_missing_package_is_one_line(name, model, tmp_path, monkeypatch):
    """Every format that needs packages says how to install them."""
    monkeypatch.setattr("foveate.exporters.format.importlib.util.find_spec", lambda module: None)
    form = export_module.find_format(name)
    if form.requires:
        with pytest.raises(FoveateError, match=f"{name} needs .*: pip install"):
            fv.export(model, name, tmp_path, size=SIZE)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_map_is_compared_by_its_own_largest_value(precision):
    """The values of a softmax over a whole map are small; zeros in their place are not within a limit."""
    program = SimpleNamespace(options=SimpleNamespace(precision=precision))
    expected = torch.randn(2, 1, 14, 14).flatten(2).softmax(-1).reshape(2, 1, 14, 14)
    same = torch.ones(2, dtype=torch.bool)
    for given, passed in ((expected, True), (expected * 1.00001, True), (expected * 1.1, False), (0 * expected, False)):
        (check,) = _compare_output(program, "attention_0", given.numpy(), expected, same)
        assert check.passed is passed, given
    nothing = torch.zeros(2, 1, 3, 3)
    assert _compare_output(program, "cam", nothing.numpy(), nothing, same)[0].passed
    few = torch.full((2, 4), 1e-6)  # of probabilities the limit is absolute
    assert _compare_output(program, "top_probabilities", 2 * few.numpy(), few, same)[0].passed


def double(_module, *given):
    values = given[-1]
    return tuple(2 * part for part in values) if isinstance(values, tuple) else 2 * values


def in_place(_module, _args, output):
    output.mul_(2)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    ("place", "hook", "before"),
    [
        ("fc", double, False),
        ("layer2.0", double, False),
        ("layer2.0", double, True),
        ("layer3", in_place, False),
        ("", double, False),
    ],
)
def test_hooks_that_take_part_are_refused(network, place, hook, before, check, tmp_path):
    model = network(PLAN).train()
    module = model.get_submodule(place)
    handle = (module.register_forward_pre_hook if before else module.register_forward_hook)(hook)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    held = {name: list(module._forward_hooks.values()) for name, module in model.named_modules()}
    torch.manual_seed(5)
    name, what = place or "ResNet", "takes" if before else "gives"
    with pytest.raises(FoveateError, match=f"a hook of your own on '{name}' changes what it {what}.*remove the hook"):
        fv.export(model, "pt2", tmp_path, size=SIZE, time=False, check=check)
    assert torch.initial_seed() == 5
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))
    assert all(module.training for module in model.modules())
    assert {name: list(module._forward_hooks.values()) for name, module in model.named_modules()} == held
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert not list(tmp_path.iterdir())
    handle.remove()
    assert fv.export(model, "pt2", tmp_path, size=SIZE, time=False, images=2).path.exists()


def test_hooks_that_watch_are_no_obstacle(network, tmp_path):
    model, seen = network(PLAN), []
    model.layer2.register_forward_hook(lambda _module, _args, output: seen.append(tuple(output.shape)))
    model.layer3.register_forward_hook(lambda _module, _args, output: output)
    model.layer1.register_forward_pre_hook(lambda _module, args, kwargs: (args, kwargs), with_kwargs=True)
    model.fc.register_forward_hook(lambda _module, _args, _kwargs, output: output.clone(), with_kwargs=True)
    model.register_forward_hook(lambda _module, _args, output: seen.append(output.shape))
    made = fv.export(nn.DataParallel(model), "pt2", tmp_path, size=SIZE, time=False, images=2)
    assert made.path.exists()
    assert len(seen) == 2


def test_a_hook_on_what_is_around_the_network_is_refused(network, tmp_path):
    whole = nn.DataParallel(network())
    whole.register_forward_hook(double)
    with pytest.raises(FoveateError, match="a hook of your own on 'DataParallel' changes what it gives"):
        fv.export(whole, "pt2", tmp_path, size=SIZE, time=False)


def test_a_hook_that_raises(network, tmp_path):
    model = network()
    model.fc.register_forward_hook(lambda _module, _args, output: output.nothing)
    with pytest.raises(FoveateError, match="ResNet does not run with hooks of your own: .*nothing"):
        fv.export(model, "pt2", tmp_path, size=SIZE, time=False)
