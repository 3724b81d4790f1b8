import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.explanations.explain import explain
from foveate.explanations.layers import find_layer
from foveate.surgery.insert import insert


def features(model, images, layer="body"):
    kept = []
    hook = model.get_submodule(layer).register_forward_hook(lambda m, a, out: kept.append(out.detach().clone()))
    model.eval()
    with torch.no_grad():
        model(images)
    hook.remove()
    return kept[0]


@pytest.mark.parametrize("target", [0, 4, [3, 1, 2]])
def test_is_cam_on_a_network_with_pooling_and_one_linear_layer(model, images, target):
    # CAM = sum_k w_k^c A_k (Zhou et al. 2016); the pooling makes the gradient w / N, so N * Grad-CAM = relu(CAM).
    maps = features(model, images)
    classes = [target] * 3 if isinstance(target, int) else target
    cam = torch.einsum("bk,bkhw->bhw", model.head.weight[classes].detach(), maps)
    found = explain(model, images, "gradcam", target=target)
    places = maps.shape[-2:].numel()
    assert found.maps[0].values.shape == maps[:, 0].shape
    torch.testing.assert_close(places * found.maps[0].values, F.relu(cam), atol=1e-6, rtol=0)
    assert found.maps[0].values.max() > 0
    assert found.targets.tolist() == classes


def test_definition_at_an_inner_layer(model, images):
    found = explain(model, images, "gradcam", layer="stem", target=2)
    leaf = features(model, images, "stem").requires_grad_()
    logits = model.head(model.pool(model.body(leaf.clone())).flatten(1))
    (gradient,) = torch.autograd.grad(logits[:, 2].sum(), leaf)
    expected = F.relu((gradient.mean((2, 3), keepdim=True) * leaf.detach()).sum(1))
    torch.testing.assert_close(found.maps[0].values, expected, atol=1e-7, rtol=1e-5)


def test_the_predicted_class_is_the_default(model, images):
    found = explain(model, images, "gradcam")
    again = explain(model, images, "gradcam", target=found.predictions.tolist())
    assert torch.equal(found.targets, found.predictions)
    assert torch.equal(found.maps[0].values, again.maps[0].values)


def test_frozen_model_gives_the_same_map(model, images):
    free = explain(model, images, "gradcam").maps[0].values
    model.requires_grad_(False)
    assert torch.equal(explain(model, images, "gradcam").maps[0].values, free)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_works_inside_any_mode_of_autograd(model, images, around):
    expected = explain(model, images, "gradcam").maps[0].values
    with around():
        assert torch.equal(explain(model, images * 1, "gradcam").maps[0].values, expected)


def test_an_operation_in_place_after_the_layer_does_not_spoil_it(model, images):
    assert isinstance(model.body[2], nn.ReLU)
    assert model.body[2].inplace
    found = explain(model, images, "gradcam", layer="body.1", target=1).maps[0].values
    model.body[2].inplace = False
    torch.testing.assert_close(explain(model, images, "gradcam", layer="body.1", target=1).maps[0].values, found)


def test_each_image_is_explained_alone(model):
    images = torch.randn(11, 3, 32, 32)
    together = explain(model, images, "gradcam").maps[0].values
    alone = torch.cat([explain(model, image[None], "gradcam").maps[0].values for image in images])
    torch.testing.assert_close(together, alone)


def test_find_layer(model, images):
    assert find_layer(model, images).name == "body"
    model.body.append(nn.MaxPool2d(2))
    model.body.append(nn.Identity())
    assert find_layer(model, images).name == "body"
    insert(model, "ulsam after body.2")
    assert find_layer(model, images).name == "body"
    with pytest.raises(FoveateError, match="no layer of this model gives"):
        find_layer(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 40, 4)), images)


def test_timm_network_looks_before_its_pooling():
    import timm

    model = timm.create_model("mobilenetv2_035", num_classes=7)
    found = explain(model, torch.randn(1, 3, 64, 64), "gradcam")
    assert found.maps[0].module == "bn2"
    assert found.maps[0].values.shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("boby", "no layer is called 'boby'; did you mean 'body'"),
        ("", "no layer is called ''"),
        ("head", r"'head' gives \(3, 5\)"),
        ("pool", r"'pool' gives \(3, 12, 1, 1\)"),
        ("unused", "'unused' does not run"),
    ],
)
def test_a_layer_that_cannot_be_explained(model, images, layer, words):
    with pytest.raises(FoveateError, match=words):
        explain(model, images, "gradcam", layer=layer)


def test_a_layer_without_part_in_the_logits(model, images):
    original = model.forward
    model.forward = lambda x: (model.unused(x), original(x))[1]
    with pytest.raises(FoveateError, match="do not depend on layer 'unused'"):
        explain(model, images, "gradcam", layer="unused")
    model.requires_grad_(False)
    with pytest.raises(FoveateError, match="do not depend on layer 'unused'"):
        explain(model, images, "gradcam", layer="unused")


@pytest.mark.parametrize(
    ("target", "words"),
    [(5, "target=5: the model has 5 classes"), (-1, "target=-1"), ([0, 1], "one for each of the 3"), (True, "True")],
)
def test_a_target_that_does_not_exist(model, images, target, words):
    with pytest.raises(FoveateError, match=words):
        explain(model, images, "gradcam", target=target)


@pytest.mark.parametrize("head", [nn.Linear(12, 1), nn.Unflatten(1, (3, 4))])
def test_not_a_classifier(model, images, head):
    model.head = head
    with pytest.raises(FoveateError, match="logits"):
        explain(model, images, "gradcam")
