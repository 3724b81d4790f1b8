"""Saved models as Hugging Face's and timm's conventions want them: the same models, and one clear line when not."""

import builtins
import errno
import json
import re
import shutil
import subprocess
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, errors
from torch import nn

import foveate as fv
import foveate.attention._timm
from foveate.errors import FoveateError
from foveate.surgery.saving import hub
from foveate.surgery.saving import weights_file as files
from foveate.surgery.saving.hub import from_pretrained, push_to_hub, save_pretrained
from foveate.surgery.saving.model_card import model_card


def reset(model):
    model.reset_classifier(7)


CASES = {
    "plain": ("test_resnet", {}, "", None),
    "after": ("test_resnet", {}, "se after layer2; cbam(start='identity') after layer3", None),
    "replacing": ("test_resnet", {}, "ulsam(groups=2) replacing layer1.0", None),
    "pool": ("test_resnet", {}, "gap as pool", None),
    "pool for each class": ("test_resnet", {}, "attention_pool(classes=5) as pool", None),
    "head": ("test_resnet", {}, "ltpa as head", None),
    "mobilenet": ("mobilenetv2_035", {"global_pool": "max"}, "se after blocks.5", None),
    "torchvision": ("torchvision:shufflenet_v2_x0_5", {}, "se after stage2", None),
    "plain torchvision": ("torchvision:squeezenet1_1", {}, "", None),
    "reset": ("test_resnet", {}, "", reset),
    "reset with a plan": ("test_resnet", {}, "se after layer2", reset),
    "gray": ("test_resnet", {"in_chans": 1}, "", None),
    "gray with a plan": ("test_resnet", {"in_chans": 1}, "se after layer2", None),
    "features": ("test_resnet", {"features_only": True, "out_indices": (1, 3)}, "", None),
    "of foveate": ("nin_cifar", {}, "", None),
}


def make(name="test_resnet", options=None, plan="se after layer2", change=None):
    torch.manual_seed(0)
    classes = {} if options and "features_only" in options else {"num_classes": 5}
    model = fv.create_model(name, **classes, **(options or {}))
    if plan:
        fv.insert(model, plan, input_size=64, seed=3)
    if change:
        change(model)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("gate"):
                parameter.fill_(0.3)
    return model.eval()


def picture_of(model, channels=3):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        found = model(torch.rand(2, channels, 64, 64, generator=generator))
    return found if isinstance(found, list | tuple) else [found]


def same(one, other, channels=3):
    pairs = zip(picture_of(one, channels), picture_of(other, channels), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def written(folder):
    return json.loads((folder / "config.json").read_text("utf-8"))


def entries(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    return save_pretrained(make(), tmp_path_factory.mktemp("kept"))


@pytest.fixture
def folder(kept, tmp_path):
    return Path(shutil.copytree(kept, tmp_path / "kept"))


@pytest.mark.parametrize("case", CASES)
def test_every_way_back_gives_the_same_model(case, tmp_path):
    model = make(*CASES[case])
    channels = CASES[case][1].get("in_chans", 3)
    save_pretrained(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "SHA256SUMS",
        "config.json",
        "model.safetensors",
    }
    for again in (from_pretrained(tmp_path), timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()):
        assert same(again, model, channels)
        assert fv.plan_of(again) == fv.plan_of(model)
        assert list(again.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("case", ["replacing", "torchvision", "reset with a plan", "head"])
def test_what_timm_built_can_be_saved_and_loaded_again(case, tmp_path):
    model = make(*CASES[case])
    save_pretrained(model, tmp_path / "one")
    again = timm.create_model(f"local-dir:{tmp_path / 'one'}", pretrained=True)
    save_pretrained(again, tmp_path / "two")
    # timm says 3 x 224 x 224 of a torchvision network, which says nothing.
    for name in ("config.json", "README.md") if case != "torchvision" else ():
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()
    assert fv.plan_of(again) == fv.plan_of(model)
    assert same(from_pretrained(tmp_path / "two"), model)


def test_a_plain_network_needs_no_foveate(tmp_path, run_forked):
    model = make(plan="", change=reset)
    save_pretrained(model, tmp_path)
    assert written(tmp_path)["architecture"] == "test_resnet"
    code = (
        "import sys; sys.modules['foveate'] = None\n"
        "import timm, torch\n"
        f"model = timm.create_model('local-dir:{tmp_path}', pretrained=True).eval()\n"
        "x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))\n"
        f"torch.save(model(x).detach(), '{tmp_path}/out')\n"
    )
    (done,) = run_forked(code)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(
        torch.load(tmp_path / "out", weights_only=True), picture_of(model)[0], rtol=1e-4, atol=1e-5
    )  # another process, with another number of threads


def test_timm_gets_how_images_are_prepared(tmp_path):
    for plan in ("", "se after layer2"):
        model = make(plan=plan)
        model.pretrained_cfg |= {
            "mean": (0.1, 0.2, 0.3),
            "input_size": (3, 96, 80),
            "label_names": ("a", "b", "c", "d", "é"),
            "crop_pct": 1.0,
            "test_input_size": (3, 999, 999),
            "label_offset": 1,
        }
        folder = save_pretrained(model, tmp_path / (plan or "plain"))
        again = timm.create_model(f"local-dir:{folder}", pretrained=True)
        data = timm.data.resolve_data_config(model=again, use_test_size=True)
        assert data["input_size"] == (3, 96, 80) or data["input_size"] == [3, 96, 80]
        assert list(data["mean"]) == [0.1, 0.2, 0.3]
        assert data["crop_pct"] == 1.0
        assert list(again.pretrained_cfg["label_names"]) == ["a", "b", "c", "d", "é"]
        again = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3)
        if plan:  # timm itself keeps the names
            assert "label_names" not in again.pretrained_cfg or again.pretrained_cfg["label_names"] is None


def test_timm_adapts_to_other_classes_and_channels(folder):
    model = make()
    again = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3, in_chans=1, drop_rate=0.5)
    assert again.eval()(torch.rand(2, 1, 64, 64)).shape == (2, 3)
    assert again.drop_rate == 0.5
    own, theirs = model.state_dict(), again.state_dict()
    for key, tensor in theirs.items():
        if key == "conv1.0.weight":
            assert torch.allclose(tensor, own[key].sum(1, keepdim=True))
        elif not key.startswith("fc."):
            assert torch.equal(tensor, own[key]), key


def test_timm_without_the_weights(folder):
    again = timm.create_model(f"local-dir:{folder}")
    assert list(again.state_dict()) == list(make().state_dict())
    assert fv.plan_of(again) == fv.plan_of(make())
    assert not same(again.eval(), make())
    assert timm.create_model(f"local-dir:{folder}").training


def test_a_block_that_the_plan_replaced_is_not_at_hand(tmp_path):
    save_pretrained(make(*CASES["replacing"]), tmp_path)
    with pytest.raises(FoveateError, match=r"cannot put back 'layer1.0'"):
        fv.remove(timm.create_model(f"local-dir:{tmp_path}", pretrained=True))


def test_a_head_belongs_to_its_classes(tmp_path):
    save_pretrained(make(*CASES["head"]), tmp_path)
    with pytest.raises(FoveateError, match=r"do not fit .* of another shape 'fc.foveate.*\(\d\)$"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3)


def test_the_entry_by_itself():
    with pytest.raises(FoveateError, match=r"foveate_planned builds what was saved: timm.create_model\('local-dir:"):
        timm.create_model("foveate_planned")
    with pytest.raises(FoveateError, match="has weights in a folder or repository only"):
        timm.create_model("foveate_planned", pretrained=True, network="test_resnet")
    with pytest.raises(FoveateError, match=r"takes no drop_rates=0.1; did you mean 'drop_rate'"):
        timm.create_model("foveate_planned", network="test_resnet", drop_rates=0.1)


def test_the_entry_leaves_the_random_numbers_of_the_mechanisms_alone(folder):
    def build(**options):
        torch.manual_seed(5)
        timm.create_model("test_resnet", **options)
        return torch.rand(1)

    expected = build(num_classes=5)
    torch.manual_seed(5)
    timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("damage", ["weights", "config", "neither"])
def test_damage_is_noticed_by_timms_way_too(damage, folder):
    name = {"weights": "model.safetensors", "config": "config.json"}.get(damage)
    if name:
        content = bytearray((folder / name).read_bytes())
        content[-3] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises((FoveateError, json.JSONDecodeError)):
            timm.create_model(f"local-dir:{folder}", pretrained=True)
    else:
        timm.create_model(f"local-dir:{folder}", pretrained=True)


HOSTILE = [
    {"network": "hf-hub:x/y"},
    {"network": "local-dir:/tmp"},
    {"network": "../../etc/passwd"},
    {"network": "__import__('os').mkdir('MARKER')"},
    {"network": "foveate_planned"},
    {"network": "torchvision:get_model"},
    {"network": ["test_resnet"]},
    {"network": "resnet10t"},
    {"plan": "__import__('os').mkdir('MARKER')"},
    {"plan": "timm:os.system after layer2"},
    {"plan": 3},
    {"plan": ["se after layer2"]},
    {"plan": "se after layer3"},
    {"plan": ""},
    {"plan_input_size": ["a", "b", "c"]},
    {"plan_input_size": [3, 10**9, 10**9]},
    {"num_classes": "10"},
    {"checkpoint": "MARKER"},
    {"act_layer": "MARKER"},
    {"global_pool": {"a": 1}},
    {"pretrained_strict": False},
]


@pytest.mark.parametrize("changes", HOSTILE, ids=str)
def test_a_hostile_config_is_refused_and_executes_nothing(changes, folder, tmp_path, monkeypatch):
    config = written(folder)
    config["model_args"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "SHA256SUMS").unlink()  # the writer could make it anew

    def forbidden(*args, **kwargs):
        raise AssertionError("the file was executed, or fetched something")

    for name in ("eval", "exec"):
        monkeypatch.setattr(builtins, name, forbidden)
    monkeypatch.setattr("socket.socket.connect", forbidden)
    monkeypatch.setattr("torch.load", forbidden)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FoveateError) as caught:
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert not (tmp_path / "MARKER").exists()


def test_how_images_are_prepared_is_checked(folder):
    config = written(folder)
    config["pretrained_cfg"]["mean"] = "abc"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(FoveateError, match="mean='abc' says nothing of how images are prepared"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


# The hub


@pytest.fixture
def served(folder, monkeypatch):
    """A hub with one repository, ``me/dogs``; what was asked of it."""
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        return str(folder)

    def hf_hub_download(name, filename, **options):
        asked.append((name, {"filename": filename, **options}))
        return str(folder / filename)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", hf_hub_download)
    return asked


def test_from_the_hub(served):
    again = from_pretrained("me/dogs", revision="v1", token=False, local_files_only=True)
    assert same(again, make())
    (name, options), *more = served
    assert (name, options["revision"]) == ("me/dogs", "v1")
    assert (options["token"], options["local_files_only"]) == (False, True)
    assert options["allow_patterns"] == ["model.safetensors", "config.json", "SHA256SUMS"]
    assert not more


def test_from_the_hub_by_timm(served, tmp_path, monkeypatch):
    (tmp_path / "me/dogs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)  # a folder of that name is not what hf-hub: means
    again = timm.create_model("hf-hub:me/dogs@v1", pretrained=True)
    assert same(again.eval(), make())
    assert [(name, options["revision"]) for name, options in served] == [("me/dogs", "v1")] * 2


def test_a_folder_comes_first(folder, served, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert same(from_pretrained("kept"), make())
    assert not served
    for named in ("kept", folder):
        with pytest.raises(FoveateError, match="revision='v1' is for a repository of the hub, and .*kept is a folder"):
            from_pretrained(named, revision="v1")


def not_found(name):
    said = f"404 Client Error.\n\nRepository Not Found for {name}"
    return errors.RepositoryNotFoundError(said, response=MagicMock())


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (not_found("me/cats"), "404 Client Error"),
        (errors.LocalEntryNotFoundError("Cannot find the files\nAnd more"), "Cannot find the files$"),
        (ConnectionError("no route"), "no route"),
        (errors.GatedRepoError("gated", response=MagicMock()), "gated"),
    ],
)
def test_a_hub_that_gives_nothing(error, says, monkeypatch):
    def fails(*args, **options):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fails)
    with pytest.raises(
        FoveateError, match=f"no folder is called 'me/cats', and the Hugging Face hub does not give it.*{says}"
    ) as caught:
        from_pretrained("me/cats", revision="v2")
    assert "\n" not in str(caught.value)
    assert "at revision 'v2'" in str(caught.value)


def test_the_real_hub_functions_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("it asked the network"))
    with pytest.raises(
        FoveateError, match="no folder is called 'me/cats', and the Hugging Face hub does not give it: "
    ):
        from_pretrained("me/cats", cache_dir=tmp_path, local_files_only=True)
    for no_name in ("./nowhere", "/no/where/at/all", "a/b/c", str(tmp_path / "new"), tmp_path / "new"):
        with pytest.raises(
            FoveateError, match=r"no saved model in .*model.safetensors is missing \(there: no such folder\)"
        ):
            from_pretrained(no_name)


def test_weights_of_others(tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(FoveateError, match="was not written by foveate.save"):
        from_pretrained(tmp_path)


# The model card


def test_the_card_says_what_the_hub_wants_to_know(tmp_path):
    model = make(plan="se after layer2; ulsam replacing layer1.0")
    model.pretrained_cfg["label_names"] = tuple("abcde")
    cost = fv.cost(model, 64)
    save_pretrained(
        model,
        tmp_path,
        metrics={"accuracy": torch.tensor(0.9375), "f1": 1},
        dataset="Solar cells, ELPV",
        license="apache-2.0",
        cost=cost,
        sections={"Training": "Two epochs."},
        info={"epochs": 2},
    )
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "foveate"
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.tags == ["foveate", "timm", "attention"]
    results = card.data.eval_results
    assert [(r.metric_type, r.metric_value, r.dataset_name, r.dataset_type) for r in results] == [
        ("accuracy", 0.9375, "Solar cells, ELPV", "solar-cells-elpv"),
        ("f1", 1.0, "Solar cells, ELPV", "solar-cells-elpv"),
    ]
    headings = re.findall(r"^## (.*)$", card.text, re.MULTILINE)
    assert headings == ["Plan", "Cost", "Results", "Images", "Training", "Loading"]
    assert f"```\n{fv.plan_of(model)}\n```" in card.text
    for said in (
        str(cost),
        "| accuracy | 0.9375 |",
        "Two epochs.",
        "`test_resnet` of timm, 5 classes",
        "a, b, c, d, e",
    ):
        assert said in card.text, said
    assert written(tmp_path)["foveate"]["info"] == {"epochs": 2}


def test_the_card_of_a_plain_network_says_no_more_than_is_known():
    card = model_card(make(plan=""))
    assert card.data.license is None
    assert card.data.eval_results is None
    assert "attention" not in card.data.tags
    assert re.findall(r"^## (.*)$", card.text, re.MULTILINE) == ["Images", "Loading"]
    assert "import foveate\n" not in card.text
    assert model_card(make(*CASES["features"])).data.pipeline_tag == "image-feature-extraction"
    assert "import foveate  #" in model_card(make(*CASES["of foveate"])).text


def test_the_code_of_the_card_runs(served):
    card = model_card(make())
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    fv.from_pretrained = from_pretrained  # until the facade has it
    try:
        found = {}
        exec(code.replace("NAME OR FOLDER", "me/dogs").replace("NAME", "me/dogs"), found)  # noqa: S102
    finally:
        del fv.from_pretrained
    assert same(found["model"].eval(), make())


DENSE = {
    "segmenter": (
        lambda trunk, **options: fv.create_segmenter(trunk, "lraspp(width=8)", **options),
        "image-segmentation",
        "the head `lraspp(width=8)` on `test_resnet` of timm, 3 classes. It gives each pixel a class.",
    ),
    "detector": (
        lambda trunk, **options: fv.create_detector(trunk, "ssdlite", **options),
        "object-detection",
        "the head `ssdlite` on `test_resnet` of timm, 3 classes. It finds objects: boxes, each with a class.",
    ),
}


@pytest.mark.parametrize("plan", ["", "se after layer2"])
@pytest.mark.parametrize("case", DENSE)
def test_the_card_of_a_network_that_is_no_classifier(case, plan, tmp_path):
    create, task, says = DENSE[case]
    model = create("test_resnet", classes=("a", "b", "c"))
    if plan:
        fv.insert(model, plan.replace("layer2", "backbone.layer2"), input_size=64)
    save_pretrained(model, tmp_path, metrics={"quality": 0.5}, dataset="x")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == card.data.eval_results[0].task_type == task
    assert says in card.text
    assert "classification" not in card.content
    assert "timm." not in card.text
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    found = {}
    exec(code.replace("NAME OR FOLDER", str(tmp_path)), found)  # noqa: S102
    again = found["model"]
    assert type(again) is type(model)
    assert fv.plan_of(again) == fv.plan_of(model)
    assert all(torch.equal(one, model.state_dict()[key]) for key, one in again.state_dict().items())
    assert written(tmp_path).keys() == {"architecture", "foveate"}
    with pytest.raises(RuntimeError, match="Unknown model"):  # and not the trunk with a classifier
        timm.create_model(f"local-dir:{tmp_path}")


@pytest.mark.parametrize("case", DENSE)
def test_the_task_of_a_dense_network_of_ones_own(case):
    create, task, _ = DENSE[case]
    assert model_card(create(timm.create_model("test_resnet"), classes=2)).data.pipeline_tag == task


@pytest.mark.parametrize(
    ("metrics", "dataset", "says"),
    [
        ({"accuracy": 0.9}, None, "what were accuracy measured on"),
        ({"accuracy": float("nan")}, "dogs", "accuracy=nan is not a finite number"),
        ({"accuracy": "good"}, "dogs", "accuracy='good' is not a finite number"),
        ({"accuracy": None}, "dogs", "accuracy=None is not a finite number"),
    ],
)
def test_metrics_that_say_nothing(metrics, dataset, says, tmp_path):
    with pytest.raises(FoveateError, match=says):
        save_pretrained(make(), tmp_path / "new", metrics=metrics, dataset=dataset)
    assert not (tmp_path / "new").exists()


# What is written, and how


def test_saving_leaves_the_model_and_takes_off_what_is_around_it(tmp_path, untouched):
    model = make().train()
    with untouched(model):
        save_pretrained(model, tmp_path)
    save_pretrained(nn.DataParallel(torch.compile(model, backend="eager")), tmp_path / "wrapped")
    assert (tmp_path / "wrapped/config.json").read_text() == (tmp_path / "config.json").read_text()
    assert (tmp_path / "wrapped/README.md").read_text() == (tmp_path / "README.md").read_text()


def test_a_network_of_ones_own(blocks, make_blocks, tmp_path, images):
    fv.insert(blocks, "se after stage1", input_size=32)
    save_pretrained(blocks, tmp_path)
    with pytest.raises(FoveateError, match=r"Blocks is not rebuilt by a name"):
        from_pretrained(tmp_path)
    assert torch.equal(from_pretrained(tmp_path, make_blocks())(images), blocks(images))
    with pytest.raises(RuntimeError, match=r"Unknown model \(Blocks\)"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert 'fv.from_pretrained("NAME OR FOLDER", network)' in (tmp_path / "README.md").read_text()


def test_sums_are_those_of_the_command(folder):
    found = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["config.json:", "OK", "model.safetensors:", "OK"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_what_the_sums_do_not_list_is_refused(name, folder):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with pytest.raises(FoveateError, match=f"{name} is damaged, edited or missing: it is not what SHA256SUMS"):
        from_pretrained(folder)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"0000  config.json\n", b"a b c\n" * 1000])
def test_sums_that_are_none(content, folder):
    (folder / "SHA256SUMS").write_bytes(content)
    with pytest.raises(FoveateError, match="config.json is damaged, edited or missing"):
        fv.load(folder)


def test_what_may_go_or_be_edited(folder):
    (folder / "README.md").write_text("edited on the hub")
    assert same(from_pretrained(folder), make())
    (folder / "config.json").unlink()
    with pytest.raises(FoveateError, match="config.json is damaged, edited or missing"):
        from_pretrained(folder)
    (folder / "SHA256SUMS").unlink()
    assert same(from_pretrained(folder), make())


def test_a_plain_save_takes_the_sums_of_the_old_model_away(folder):
    model = make(plan="cbam after layer3")
    (folder / "notes.txt").write_text("mine")
    fv.save(model, folder)
    assert not (folder / "SHA256SUMS").exists()
    assert same(fv.load(folder), model)
    assert (folder / "notes.txt").read_text() == "mine"
    save_pretrained(make(), folder)
    assert same(fv.load(folder), make())


def test_a_save_that_fails_midway_leaves_the_old_model(folder, monkeypatch):
    before = entries(folder)

    def fails(state, path, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "save_file", fails)
    with pytest.raises(FoveateError, match="cannot write .*No space left on device; what was there is untouched"):
        save_pretrained(make(plan=""), folder)
    assert entries(folder) == before


def test_a_save_that_is_cut_off_between_two_files_leaves_a_model(folder, monkeypatch):
    replace = Path.replace

    def killed(self, target):
        if Path(target).name == "model.safetensors":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(make(plan=""), folder)
    assert same(fv.load(folder), make())


# Pushing, and huggingface_hub's mixin


class Api:
    """What is asked of the hub."""

    pushed = None

    def __init__(self, token=None, **options):
        self.token = token

    def create_repo(self, repo_id, *, private, exist_ok):
        if repo_id == "not/mine":
            raise not_found(repo_id)
        type(self).pushed = {"made": (repo_id, private, self.token)}
        return type("Repo", (), {"repo_id": repo_id})

    def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
        self.pushed.update(files=entries(Path(folder_path)), said=(revision, commit_message))
        return f"https://hub.invalid/{repo_id}/commit/1"


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(Api, "pushed", None)
    return Api


def test_pushing(api, tmp_path):
    address = push_to_hub(make(), "me/dogs", private=True, token=False, revision="v1", license="mit")
    assert address == "https://hub.invalid/me/dogs/commit/1"
    assert api.pushed["made"] == ("me/dogs", True, False)
    assert api.pushed["said"] == ("v1", "Add model")
    files = api.pushed["files"]
    assert set(files) == {"README.md", "SHA256SUMS", "config.json", "model.safetensors"}
    assert b"license: mit" in files["README.md"]
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    assert same(from_pretrained(tmp_path), make())


def test_a_push_that_fails(api):
    with pytest.raises(FoveateError, match=r"the Hugging Face hub does not take 'not/mine': 404 Client Error\.$"):
        push_to_hub(make(), "not/mine")
    with pytest.raises(FoveateError, match="what were accuracy measured on"):
        push_to_hub(make(), "me/dogs", metrics={"accuracy": 1})
    assert api.pushed is None  # not even a repository was made


def test_no_name_for_a_repository(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("it asked the network"))
    with pytest.raises(FoveateError, match="the Hugging Face hub does not take 'no/na/me': "):
        push_to_hub(make(), "no/na/me")


class Dogs(nn.Module, PyTorchModelHubMixin):
    """As the page shows: a class of one's own, with the mixin as it is."""

    def __init__(self, network="test_resnet", plan="se after layer2", classes=5):
        super().__init__()
        self.network = fv.insert(timm.create_model(network, num_classes=classes), plan)

    def forward(self, x):
        return self.network(x)


def test_the_mixin_as_it_is_for_a_class_of_ones_own(tmp_path):
    dogs = Dogs(plan="cbam after layer3", classes=4).eval()
    dogs.save_pretrained(tmp_path)
    again = Dogs.from_pretrained(tmp_path, strict=True).eval()  # huggingface-hub 0.34 leaves it in training mode
    assert same(again, dogs)
    assert fv.plan_of(again.network) == fv.plan_of(dogs.network)
