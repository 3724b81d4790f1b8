"""Saved and loaded models are the same models; what cannot be rebuilt is said, and a save that fails loses nothing."""

import copy
import errno
import hashlib
import json
import logging
import os
import resource
import signal
import struct
import time

import pytest
import safetensors.torch
import timm
import torch
from safetensors import safe_open
from timm.utils import freeze
from torch import nn
from torchvision import models

import foveate as fv
from foveate.errors import FoveateError
from foveate.surgery.saving import weights_file as files
from foveate.surgery.saving.checkpoint import LoadReport, load_report
from foveate.surgery.saving.structure import runs_as_described, structure_of


def header_of(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["foveate"])


def tensor_region(path):
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    return 8 + length


def test_the_loaded_model_is_the_saved_one(planned, folder, images):
    again = fv.load(folder)
    with torch.no_grad():
        assert torch.equal(again(images), planned(images))
    assert fv.plan_of(again) == fv.plan_of(planned)
    assert list(again.state_dict()) == list(planned.state_dict())
    assert not any(module.training for module in again.modules())
    assert fv.cost(again, 64) == fv.cost(planned, 64)
    assert fv.cost(again, 64).baseline == fv.cost(planned, 64).baseline
    assert fv.sites(again) == fv.sites(planned)


def test_the_weights_file_alone_is_enough_and_is_plain_safetensors(planned, folder, images):
    (folder / "config.json").unlink()
    assert torch.equal(fv.load(folder)(images), planned(images))
    state = safetensors.torch.load_file(folder / "model.safetensors")
    planned.load_state_dict(state, strict=True)


def test_saving_and_loading_leave_everything(planned, tmp_path, untouched):
    planned.train()
    with untouched(planned):
        fv.save(planned, tmp_path)
        fv.load(tmp_path)


def tensors_of(path):
    return path.read_bytes()[tensor_region(path) :]


def test_a_model_saved_twice_is_the_same(planned, tmp_path):
    one, other = (fv.save(planned, tmp_path / name) / "model.safetensors" for name in "ab")
    assert header_of(one) == header_of(other)
    assert tensors_of(one) == tensors_of(other)


def test_without_a_plan(resnet, tmp_path, images):
    again = fv.load(fv.save(resnet, tmp_path))
    assert fv.plan_of(again) is None
    assert torch.equal(again(images), resnet(images))


def test_preparation_and_info(resnet, tmp_path):
    resnet.pretrained_cfg = {
        **resnet.pretrained_cfg,
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "input_size": (3, 96, 80),
        "crop_pct": 1,
        "interpolation": "bilinear",
        "label_names": ("chat", "chien", "été"),
    }
    fv.save(resnet, tmp_path, {"top1": 0.5, "recipe": {"epochs": 2}})
    again = fv.load(tmp_path).pretrained_cfg
    for key in ("mean", "std", "input_size", "crop_pct", "interpolation", "label_names"):
        assert again[key] == resnet.pretrained_cfg[key], key
    assert again["architecture"] == "test_resnet"
    said = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert said["info"] == {"top1": 0.5, "recipe": {"epochs": 2}}
    assert said == header_of(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "squeezenet1_1"])
def test_torchvision(name, tmp_path, images):
    torch.manual_seed(0)
    model = fv.create_model(f"torchvision:{name}", num_classes=4).eval()
    site = fv.sites(model, 64)[0].name
    fv.insert(model, f"se after {site}", input_size=64)
    again = fv.load(fv.save(model, tmp_path))
    assert torch.equal(again(images), model(images))


def test_a_network_of_ones_own(blocks, make_blocks, tmp_path, images):
    fv.insert(blocks, "ulsam(groups=2) after stage1; se replacing stage2.2", input_size=32)
    fv.save(blocks, tmp_path)
    with pytest.raises(FoveateError, match=r"Blocks is not rebuilt by a name .* load\(folder, model\)"):
        fv.load(tmp_path)
    again = fv.load(tmp_path, make_blocks())
    assert torch.equal(again(images), blocks(images))


def test_a_network_that_takes_one_size_only(tmp_path):
    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 2)).eval()

    model, x = fv.insert(build(), "se after 0", input_size=16), torch.rand(2, 1, 16, 16)
    assert torch.equal(fv.load(fv.save(model, tmp_path), build())(x), model(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_come_back(dtype, planned, tmp_path, images):
    planned.to(dtype)
    again = fv.load(fv.save(planned, tmp_path))
    assert {p.dtype for p in again.parameters()} == {dtype}
    assert torch.equal(again(images.to(dtype)), planned(images.to(dtype)))


def test_options_that_change_the_network_come_back(tmp_path, images):
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=3, output_stride=8, global_pool="max", drop_path_rate=0.1).eval()
    again = fv.load(fv.save(model, tmp_path))
    assert torch.equal(again(images), model(images))


def test_features_only_comes_back(tmp_path, images):
    model = fv.create_model("mobilenetv3_small_050", features_only=True, out_indices=(1, 3)).eval()
    fv.insert(model, "se after blocks.1.1")
    again = fv.load(fv.save(model, tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(again(images), model(images), strict=True))


def test_options_that_a_file_may_not_hold_need_the_network(tmp_path, images):
    torch.manual_seed(0)
    model = fv.create_model("resnet10t", num_classes=3, act_layer=nn.SiLU).eval()
    fv.save(model, tmp_path)
    with pytest.raises(FoveateError, match=r"load\(folder, model\)"):
        fv.load(tmp_path)
    again = fv.load(tmp_path, fv.create_model("resnet10t", num_classes=3, act_layer=nn.SiLU))
    assert torch.equal(again(images), model(images))


@pytest.mark.parametrize("how", ["stride", "activation", "dilation"])
def test_a_network_that_was_changed_by_hand_is_not_rebuilt_wrongly(how, resnet, tmp_path):
    if how == "stride":
        resnet.layer3[0].conv2.stride = (1, 1)
    elif how == "activation":
        resnet.layer2[0].act1 = nn.GELU()
    else:
        resnet.layer1[0].conv1.dilation, resnet.layer1[0].conv1.padding = (2, 2), (2, 2)
    fv.save(resnet, tmp_path)
    with pytest.raises(FoveateError, match=r"was not built or run as test_resnet .* load\(folder, model\)"):
        fv.load(tmp_path)


CHANGES = {
    "window of a pool": lambda m: setattr(m.maxpool, "kernel_size", 2),
    "ceil_mode": lambda m: setattr(m.maxpool, "ceil_mode", True),
    "eps": lambda m: [setattr(n, "eps", 1e-3) for n in m.modules() if isinstance(n, nn.BatchNorm2d)],
    "padding_mode": lambda m: setattr(m.layer1[0].conv1, "padding_mode", "circular"),
    "groups": lambda m: setattr(m.layer1[0].conv1, "groups", 2),
}
SLOPES = {
    "negative_slope": (nn.LeakyReLU(0.01), lambda act: setattr(act, "negative_slope", 0.3)),
    "approximate": (nn.GELU(), lambda act: setattr(act, "approximate", "tanh")),
    "output_size": (nn.AdaptiveAvgPool2d(2), lambda pool: setattr(pool, "output_size", (3, 3))),
    "num_heads": (nn.MultiheadAttention(8, 2), lambda attention: setattr(attention, "num_heads", 4)),
    "eps of a layer norm": (nn.LayerNorm(8), lambda norm: setattr(norm, "eps", 1e-2)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_settings_changed_by_hand_are_noticed(change, resnet, tmp_path):
    CHANGES[change](resnet)
    fv.save(resnet, tmp_path)
    with pytest.raises(FoveateError, match=r"not built or run as test_resnet.*build the network and give it"):
        fv.load(tmp_path)
    assert not load_report(fv.load(tmp_path, strict=False)).structure
    assert load_report(fv.load(tmp_path, resnet)) == LoadReport()


@pytest.mark.parametrize("change", SLOPES)
def test_settings_of_layers_that_are_not_in_a_resnet(change):
    layer, alter = SLOPES[change]
    network, other = nn.Sequential(nn.Identity(), layer), nn.Sequential(nn.Identity(), copy.deepcopy(layer))
    alter(other[1])
    said = structure_of(network)
    assert runs_as_described(network, said)
    assert not runs_as_described(other, said)
    assert runs_as_described(other, {"structure": said["structure"]})  # of a file that was written before


def test_what_changes_no_prediction_does_not_count(resnet):
    said = structure_of(resnet)
    resnet.maxpool.return_indices = resnet.layer1[0].act1.inplace = False
    for module in resnet.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.01
    resnet.set_grad_checkpointing()
    freeze(resnet, ["bn1", "layer1"])
    assert runs_as_described(resnet.train(), said)
    assert runs_as_described(nn.SyncBatchNorm.convert_sync_batchnorm(resnet), said)


def test_frozen_batch_norms(planned, tmp_path, images):
    freeze(planned, ["bn1", "layer2"])
    again = fv.load(fv.save(planned, tmp_path))
    torch.testing.assert_close(again(images), planned(images), rtol=1e-4, atol=1e-4)


def test_a_compiled_or_wrapped_model_is_saved_as_it_is_inside(planned, tmp_path, images):
    wrapped = nn.DataParallel(torch.compile(planned, backend="eager"))
    assert torch.equal(fv.load(fv.save(wrapped, tmp_path))(images), planned(images))


def test_tied_weights(tmp_path):
    def build():
        model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1))
        model[1].weight = model[0].weight
        return model

    model, x = build(), torch.rand(1, 3, 8, 8)
    again = fv.load(fv.save(model, tmp_path), build().double())
    assert again[0].weight is again[1].weight
    assert torch.equal(again(x), model(x))


def test_a_model_with_other_state_than_tensors(tmp_path):
    class Odd(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

    with pytest.raises(FoveateError, match="cannot save Odd: _extra_state of its state is not a tensor"):
        fv.save(Odd(2, 2), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_remove_after_load(planned, folder, resnet, tmp_path):
    with pytest.raises(FoveateError, match=r"cannot put back 'layer1.0': a saved model does not hold"):
        fv.remove(fv.load(folder))
    again = fv.load(folder)
    other = copy.deepcopy(again)
    with pytest.raises(FoveateError):
        fv.remove(other)


def test_remove_after_load_without_replaced_blocks(tmp_path, resnet, images):
    expected = resnet(images)
    fv.insert(resnet, "se after layer2")
    again = fv.remove(fv.load(fv.save(resnet, tmp_path)))
    assert torch.equal(again(images), expected)


def test_a_model_given_to_load_is_left_as_found_on_error(blocks, make_blocks, tmp_path, untouched):
    fv.save(fv.insert(blocks, "se after stage1.0; ulsam replacing stage2.1"), tmp_path)
    other = make_blocks(classes=3)
    with untouched(other), pytest.raises(FoveateError, match="do not fit Blocks: missing none.* 'head"):
        fv.load(tmp_path, other)
    carrying = fv.insert(make_blocks(), "cbam after stage1")
    with untouched(carrying), pytest.raises(FoveateError, match="load takes the plain network, and this one carries"):
        fv.load(tmp_path, carrying)
    foreign = models.squeezenet1_1()
    with untouched(foreign), pytest.raises(FoveateError, match="no site 'stage1.0'"):
        fv.load(tmp_path, foreign)


def entries(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        safetensors.SafetensorError("I/O error: No space left on device"),
    ],
)
def test_a_save_that_fails_midway_leaves_the_old_model(error, planned, folder, monkeypatch):
    before = entries(folder)

    def fails(state, path, metadata):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(files, "save_file", fails)
    with pytest.raises(FoveateError, match="cannot write .*No space left on device; what was there is untouched"):
        fv.save(planned, folder, {"note": "second"})
    assert entries(folder) == before


def test_a_full_disk(planned, folder):
    """A real one: the process may write no file larger than 64 KB."""
    before, limits = entries(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
    try:
        with pytest.raises(FoveateError, match="cannot write .*; what was there is untouched"):
            fv.save(planned, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert entries(folder) == before


def test_temporaries_of_a_killed_process_go_away(planned, folder):
    stale, fresh = (folder / f".model.safetensors.00000000-{pid}-0.tmp" for pid in (111, 222))  # of another machine
    for path in (stale, fresh):
        path.write_bytes(b"half")
    os.utime(stale, (time.time() - 7200,) * 2)
    fv.save(planned, folder)
    assert not stale.exists()
    assert fresh.exists()  # it may belong to a process that is writing now


def test_a_place_that_cannot_be_written(planned, tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FoveateError, match="cannot make the folder"):
            fv.save(planned, place)
    assert (tmp_path / "file").read_text() == "mine"


def test_other_files_in_the_folder_stay(planned, folder):
    (folder / "notes.txt").write_text("mine")
    fv.save(planned, folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert {path.name for path in folder.iterdir()} == {"notes.txt", "config.json", "model.safetensors"}


# What was saved by older versions, and by name


def test_a_folder_of_the_first_version(tmp_path, images):
    """Written by hand as version 0.1.0 wrote it: this form is read for good."""
    torch.manual_seed(0)
    model = fv.insert(timm.create_model("test_resnet", num_classes=10), "se after layer2", seed=1).eval()
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    lines = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        if [*module.children()] or hasattr(module, "running_mean") or "foveate" in name:
            continue
        if not kind.startswith(("Identity", "Drop")):
            shape = [getattr(module, key, None) for key in ("stride", "padding", "dilation")]
            lines.append(f"{name} {kind} {shape}")
    config = {
        "library": "timm",
        "architecture": "test_resnet",
        "num_classes": 10,
        "in_chans": 3,
        "options": {},
        "structure": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "plan": "se after layer2",
        "plan_input_size": [3, 160, 160],
        "preparation": {"input_size": [3, 96, 96], "mean": [0.5, 0.5, 0.5], "crop_pct": 1.0},
        "foveate_version": "0.1.0",
        "info": {"top1": 0.5},
    }
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for key in sorted(state):
        digest.update(f"{key} {state[key].dtype} {tuple(state[key].shape)}".encode())
        digest.update(state[key].numpy().tobytes())
    config["sha256"] = digest.hexdigest()
    text = json.dumps(config, indent=2, ensure_ascii=False)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"format": "pt", "foveate": text})
    (tmp_path / "config.json").write_text(text + "\n")
    again = fv.load(tmp_path)
    assert torch.equal(again(images), model(images))
    assert str(fv.plan_of(again)) == "se after layer2"
    assert again.pretrained_cfg["input_size"] == (3, 96, 96)


def test_a_preset_of_the_paper(tmp_path):
    name = "mobilenetv1_050_ulsam_10"
    model = fv.create_model(name, num_classes=3).eval()
    again = fv.load(fv.save(model, tmp_path))
    assert fv.plan_of(again) == fv.plan_of(model)
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(again(x), model(x))


# What fits is loaded, where that is asked for


def test_a_model_that_fits_has_an_empty_report(folder, resnet):
    again = fv.load(folder)
    assert load_report(again) == LoadReport() == load_report(fv.load(folder, strict=False))
    assert str(load_report(again)) == "missing none (0), unexpected none (0), of another shape none (0)"
    assert load_report(resnet) is None


def test_what_fits_is_loaded_and_the_rest_is_said(blocks, make_blocks, tmp_path, images, caplog):
    blocks.pretrained_cfg = {"label_names": tuple("abcde"), "mean": (0.1, 0.2, 0.3)}
    fv.save(fv.insert(blocks, "se after stage1.0; ulsam replacing stage2.1"), tmp_path)
    other = make_blocks(classes=3)
    other.stem.bias = None
    other.extra = nn.Linear(2, 2)
    own = {key: tensor.clone() for key, tensor in other.state_dict().items()}
    with pytest.raises(FoveateError, match="do not fit Blocks") as caught:
        fv.load(tmp_path, other)
    said = (
        "missing 'extra.weight', 'extra.bias' (2), unexpected 'stem.bias' (1), "
        "of another shape 'head.bias', 'head.weight' (2)"
    )
    assert str(caught.value).endswith(said)
    with caplog.at_level(logging.WARNING, "foveate"):
        again = fv.load(tmp_path, other, strict=False)
    assert again is other
    report = load_report(again)
    assert report.missing == ("extra.weight", "extra.bias")
    assert report.unexpected == ("stem.bias",)
    assert set(report.mismatched) == {"head.weight", "head.bias"}
    assert report.structure
    (record,) = caplog.records
    assert record.getMessage().endswith(said)
    saved = blocks.state_dict()
    for key, tensor in again.state_dict().items():
        left = key.startswith(("head", "extra"))
        assert torch.equal(tensor, own[key] if left else saved[key]), key
    assert fv.plan_of(again) == fv.plan_of(blocks)
    assert again.pretrained_cfg == {"mean": (0.1, 0.2, 0.3)}  # the names were of other classes
    assert again(images).shape == (3, 3)


def test_a_long_report_is_one_short_line():
    report = LoadReport(missing=tuple(f"layer{i}" for i in range(100)), structure=False)
    assert str(report) == (
        "missing 'layer0', 'layer1', 'layer2', 'layer3' (100), unexpected none (0), of another shape none (0), "
        "and the network does not run as the saved one did"
    )


def test_a_network_that_was_changed_by_hand_can_be_had_all_the_same(resnet, tmp_path):
    resnet.layer3[0].conv2.stride = (1, 1)
    fv.save(resnet, tmp_path)
    again = fv.load(tmp_path, strict=False)
    assert not load_report(again).structure
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), resnet.state_dict().values(), strict=True)
    )


def test_damage_is_refused_even_so(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(FoveateError, match="is damaged"):
        fv.load(folder, strict=False)
