"""Damaged, foreign and hostile files are refused with one line, and nothing in them is executed."""

import builtins
import json
import os
import pickle
import struct

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

import foveate as fv
import foveate.attention._timm
from foveate.errors import FoveateError
from foveate.surgery.saving import weights_file as files


def header_of(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["foveate"])


def rewrite(path, sign=True, **changes):
    """The same file with another description, with a valid digest of it: what a hostile writer could make."""
    state = safetensors.torch.load_file(path)
    config = {**header_of(path), **changes}
    if sign:
        config["sha256"] = files._digest(state, config)
    safetensors.torch.save_file(state, path, {"format": "pt", "foveate": json.dumps(config)})


def tensor_region(path):
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    return 8 + length


@pytest.mark.parametrize("place", [0.0, 0.3, 0.999])
def test_a_flipped_bit_in_a_tensor_is_refused(place, folder):
    path = folder / "model.safetensors"
    content, start = bytearray(path.read_bytes()), tensor_region(path)
    content[start + int(place * (len(content) - start - 1))] ^= 1
    path.write_bytes(content)
    with pytest.raises(FoveateError, match="is damaged: what it holds does not have the SHA-256"):
        fv.load(folder)


def test_any_flipped_bit_of_the_header_is_refused(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    start = tensor_region(path)
    for position in [*range(8), *range(8, start, max(1, start // 150))]:
        content = bytearray(whole)
        content[position] ^= 2
        path.write_bytes(content)
        try:
            fv.load(folder)
        except FoveateError as error:
            assert "\n" not in str(error)
        else:
            pytest.fail(
                f"byte {position} of {start} was changed unnoticed: {bytes(whole[position - 20 : position + 20])}"
            )


@pytest.mark.parametrize("word", [b'"format"', b'"pt"'])
def test_a_flipped_bit_of_the_format_is_refused(word, folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[content.index(word) + 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(FoveateError, match="damaged"):
        fv.load(folder)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_a_truncated_file_is_refused(keep, folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FoveateError, match="not a safetensors file that can be read") as caught:
        fv.load(folder)
    assert "\n" not in str(caught.value)


class Bomb:
    """What a malicious pickle looks like: unpickling makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not weights at all",
        b"\x08\x00\x00\x00\x00\x00\x00\x00[[[[[[[[",
        struct.pack("<Q", 2**60) + b"{}",
        b"\xff" * 64,
    ],
    ids=["empty", "text", "no json", "huge header", "bytes"],
)
def test_what_is_no_safetensors_file_is_refused(content, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(FoveateError, match="not a safetensors file that can be read") as caught:
        fv.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_renamed_pickle_is_not_executed(tmp_path):
    marker = str(tmp_path / "executed")
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(FoveateError, match="not a safetensors file"):
        fv.load(tmp_path)
    torch.save({"weight": Bomb(marker)}, tmp_path / "model.safetensors")
    with pytest.raises(FoveateError, match="not a safetensors file"):
        fv.load(tmp_path)
    assert not os.path.exists(marker)  # noqa: PTH110


def test_deeply_nested_description(folder):
    path = folder / "model.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, {"foveate": "[" * 100_000})
    with pytest.raises(FoveateError, match="not a safetensors file that can be read"):
        fv.load(folder)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"foveate": "3"}, {"foveate": "[]"}])
def test_weights_of_others_are_told_apart(metadata, tmp_path, resnet):
    safetensors.torch.save_file(resnet.state_dict(), tmp_path / "model.safetensors", metadata)
    with pytest.raises(FoveateError, match="was not written by foveate.save"):
        fv.load(tmp_path)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(FoveateError, match=r"model.safetensors is missing \(there: no such folder\)"):
        fv.load(tmp_path / "nowhere")
    with pytest.raises(FoveateError, match=r"\(there: nothing\)"):
        fv.load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FoveateError, match=r"\(there: pytorch_model.bin\)"):
        fv.load(tmp_path)
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(FoveateError, match="is missing"):
        fv.load(tmp_path)


HOSTILE = [
    {"architecture": "hf-hub:x/y"},
    {"architecture": "local-dir:/tmp"},
    {"architecture": "test_resnet.hf-hub:x/y"},
    {"architecture": "../../etc/passwd"},
    {"architecture": "__import__('os').mkdir('MARKER')"},
    {"architecture": "resnet18"},
    {"architecture": None},
    {"architecture": ["test_resnet"]},
    {"library": "os"},
    {"library": "torchvision", "architecture": "fasterrcnn_resnet50_fpn"},
    {"library": "torchvision", "architecture": "get_model"},
    {"plan": "__import__('os').mkdir('MARKER')"},
    {"plan": "se(reduction=__import__('os').mkdir('MARKER')) after layer2"},
    {"plan": "os.mkdir after layer2"},
    {"plan": "torch.nn.Linear after layer2"},
    {"plan": "timm:create_conv2d after layer2"},
    {"plan": "timm:os.system after layer2"},
    {"plan": 3},
    {"plan": ["se after layer2"]},
    {"plan": "se after layer2"},
    {"plan": "(" * 10_000},
    {"plan_input_size": ["a"]},
    {"plan_input_size": [10**9, 10**9]},
    {"num_classes": 10**12},
    {"num_classes": -1},
    {"num_classes": "10"},
    {"in_chans": 10**9},
    {"in_chans": [3]},
    {"options": {"pretrained": True}},
    {"options": {"checkpoint_path": "MARKER"}},
    {"options": {"pretrained_cfg": {"file": "MARKER"}}},
    {"options": {"global_pool": {"a": 1}}},
    {"options": {"output_stride": 3}},
    {"options": [1]},
    {"structure": "0"},
    {"preparation": 3},
    {"preparation": {"mean": "abc"}},
    {"preparation": {"label_names": [1, 2]}},
    {"preparation": {"input_size": {"a": 1}}},
]


@pytest.mark.parametrize("changes", HOSTILE, ids=str)
def test_a_hostile_description_is_refused_and_executes_nothing(changes, folder, tmp_path, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("the file was executed, or fetched something")

    for name in ("eval", "exec"):
        monkeypatch.setattr(builtins, name, forbidden)
    monkeypatch.setattr("socket.socket.connect", forbidden)
    monkeypatch.setattr("torch.load", forbidden)
    monkeypatch.chdir(tmp_path)
    rewrite(folder / "model.safetensors", **changes)
    with pytest.raises(FoveateError) as caught:
        fv.load(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert not (tmp_path / "MARKER").exists()


def test_an_edited_config_is_not_believed(planned, folder, images):
    (folder / "config.json").write_text('{"architecture": "hf-hub:x/y", "plan": "__import__"}')
    assert torch.equal(fv.load(folder)(images), planned(images))


def test_an_edited_description_without_its_digest_is_refused(folder):
    rewrite(folder / "model.safetensors", sign=False, plan="se after layer2")
    with pytest.raises(FoveateError, match="is damaged"):
        fv.load(folder)


def test_a_mechanism_that_is_not_registered_here(folder):
    rewrite(folder / "model.safetensors", plan="my_own after layer2")
    with pytest.raises(FoveateError, match="no mechanism is called 'my_own'"):
        fv.load(folder)
