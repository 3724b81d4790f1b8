from __future__ import annotations

import pytest
import torch

import foveate as fv
from foveate.data import Split
from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.model_info import update_pretrained_config
from foveate.prediction.evaluate import evaluate


@pytest.fixture(scope="module")
def data(photos):
    return fv.open_data(photos)


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_leaves_the_model_as_found(training, data, new_net):
    model = new_net().train(training)
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    found = evaluate(model, data.val, image_size=16, batch_size=4)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert found.probabilities.shape == (12, 3)
    assert [found.classes[label] for label in found.labels] == [data.classes[label] for label in data.val.labels]
    again = evaluate(model, data.val, image_size=16, batch_size=12)
    torch.testing.assert_close(again.probabilities, found.probabilities)


def test_evaluate_needs_images(new_net):
    with pytest.raises(FoveateError, match="no image"):
        evaluate(new_net(), Split("val", (), (), ()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_in_another_dtype(dtype, data, new_net):
    model = new_net()
    expected = evaluate(model, data.val, image_size=16)
    found = evaluate(model.to(dtype), data.val, image_size=16)
    torch.testing.assert_close(found.probabilities, expected.probabilities, atol=0.05, rtol=0)


def test_evaluate_takes_what_fit_takes(data, photos, new_net, tmp_path):
    model = new_net()
    expected = evaluate(model, data.val)
    for given in (data, photos, str(photos)):
        assert torch.equal(evaluate(model, given).probabilities, expected.probabilities)
    with pytest.raises(FoveateError, match="no data at .*nowhere"):
        evaluate(model, tmp_path / "nowhere")
    with pytest.raises(FoveateError, match="not int"):
        evaluate(model, 3)
    with pytest.raises(FoveateError, match="part 'tests': there are: val, train, all"):
        evaluate(model, data, part="tests")
    with pytest.raises(FoveateError, match="batch_size=0"):
        evaluate(model, data, batch_size=0)
    with pytest.raises(FoveateError, match="workers=-1: must be at least 0"):
        evaluate(model, data, workers=-1)


def test_parts(data, photos, new_net):
    net = new_net()
    val, train, both = (evaluate(net, photos, part=part) for part in ("val", "train", "all"))
    assert torch.equal(train.probabilities, evaluate(net, data.train).probabilities)
    assert [len(found.labels) for found in (val, train, both)] == [12, 9, 21]
    assert both.top1 * 21 == pytest.approx(val.top1 * 12 + train.top1 * 9)


def test_metrics_are_counted_by_hand(data, new_net):
    net = new_net()
    found = evaluate(net, data)
    with torch.no_grad():
        images = torch.stack([Preprocess.of(net)(data.val.load(k)) for k in range(len(data.val))])
        scores = net.eval()(images)
    names = ("red", "green", "blue")
    right = torch.tensor([names.index(data.classes[label]) for label in data.val.labels])
    assert torch.equal(found.labels, right)
    assert torch.equal(found.predictions, scores.argmax(1))
    assert found.classes == names
    assert found.top1 == (scores.argmax(1) == right).double().mean().item()
    assert found.loss == pytest.approx(torch.nn.functional.cross_entropy(scores, right).item(), rel=1e-6)
    assert int(found.confusion.sum()) == 12
    rows = found.per_class()
    for label, row in enumerate(rows):
        hits = int(((found.predictions == label) & (right == label)).sum())
        assert row["images"] == 4
        assert row["recall"] == pytest.approx(hits / 4)
        assert row["precision"] == pytest.approx(hits / max(1, int((found.predictions == label).sum())))


def test_data_of_one_class(photos, new_net, new_picture, tmp_path):
    net = new_net()
    for k in range(5):
        (tmp_path / "blue").mkdir(exist_ok=True)
        new_picture(k, 2).convert("L" if k % 2 else "RGB").resize((7 + k, 50)).save(tmp_path / "blue" / f"{k}.png")
    found = evaluate(net, tmp_path, part="all")
    assert found.labels.tolist() == [2] * 5
    assert found.probabilities.shape == (5, 3)
    assert found.top5 == 1.0
    assert [row["images"] for row in found.per_class()] == [0, 0, 5]
    with pytest.raises(FoveateError, match="only one class folder"):
        fv.open_data(tmp_path)  # to train on
    with pytest.raises(FoveateError, match="no class folders"):
        evaluate(net, tmp_path / "blue")
    with pytest.raises(FoveateError, match="min_classes 0: must be at least 1"):
        fv.open_data(tmp_path, min_classes=0)


def test_data_of_other_classes_is_one_clear_line(photos, new_net):
    with pytest.raises(
        FoveateError, match=r"the model's classes \(cat, dog, cow\) do not hold all of the data's \(blue"
    ):
        evaluate(new_net(names=("cat", "dog", "cow")), photos)
    with pytest.raises(FoveateError, match="the model has 4 classes without names and the data has 3"):
        evaluate(new_net(4, names=None), photos)
    assert evaluate(new_net(names=None), photos).classes == ("blue", "green", "red")  # as many: the data's own
    more = evaluate(new_net(4, names=("red", "black", "blue", "green")), photos)
    assert set(more.labels.tolist()) == {0, 2, 3}


def test_the_words_of_imagenet_are_names_for_any_classifier(new_net, new_picture, tmp_path):
    for name in ("n02123045", "tiger_cat"):
        (tmp_path / name).mkdir()
        for k in range(2):
            new_picture(k, 0).save(tmp_path / name / f"{k}.png")
    net = new_net(1000, names=None)
    with pytest.raises(FoveateError, match="1000 classes without names"):
        evaluate(net, tmp_path)
    update_pretrained_config(net, {"tag": "ra_in1k"})
    expected = evaluate(net, tmp_path, part="all")
    assert sorted(set(expected.labels.tolist())) == [281, 282]

    class File:
        """An exported file that knows ImageNet's names, and nothing of timm."""

        preprocess, batch, classes = Preprocess.of(net), 1, expected.classes

        def logits(self, images):
            with torch.no_grad():
                return net.eval()(images)

    assert torch.equal(evaluate(File(), tmp_path, part="all").labels, expected.labels)
