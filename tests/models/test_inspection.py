"""What a network says of its refinement, against the plain formulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from config import Config
from models import build_model
from models.inspection import inspect
from models.multi_scale import SCALES


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "fine_decoder"), [("paper", False), ("released", False), ("paper", True)])
def test_maps_are_those_of_the_plain_formulation(variant, fine_decoder):
    """Attention against a row of the N x N map that the plain formulation computes; predictions against the logits."""
    torch.manual_seed(0)
    model = build_model(Config.of(backbone="resnet18", variant=variant, fine_decoder=fine_decoder)).eval()
    image, point = torch.rand(1, 1, 50, 70), (21, 37)
    seen = {}
    layer = model.steps[1].position[2][1]
    layer.register_forward_hook(lambda module, inputs, output: seen.setdefault("x", inputs[0]))
    found = inspect(model, image, point)
    assert all(not module._forward_hooks for module in model.modules() if module is not layer)
    with torch.no_grad():
        np.testing.assert_array_equal(found.refined[-1], model(image).argmax(1)[0])
        q, k = layer.query(seen["x"]).flatten(2), layer.key(seen["x"]).flatten(2)
        whole = (q.mT @ k).softmax(-1)[0]
        height, width = seen["x"].shape[-2:]
        expected = whole[point[0] // 4 * width + point[1] // 4].reshape(height, width)[:13, :18]
    torch.testing.assert_close(found.steps[1].attention[2], expected)
    assert [len(part) for step in found.steps for part in step] == [SCALES] * 6
    assert all(part.shape == (13, 18) for step in found.steps for maps in step for part in maps)
    assert [len(found.raw), len(found.refined)] == [SCALES + 1] * 2
    # In train mode the network gives raw maps and reconstructions itself; batch normalization is fixed for that.
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    with torch.no_grad():
        output = model(image)
    for scale in range(SCALES):
        np.testing.assert_array_equal(found.raw[scale], output.raw[scale].argmax(1)[0])
        magnitude = output.reconstructions[SCALES + scale][1].abs().mean(1)[0]
        torch.testing.assert_close(found.steps[1].reconstruction[scale], magnitude[:13, :18])


@pytest.mark.slow
def test_maps_of_native_scales():
    """Keys are means over squares; each scale has maps of its own resolution, without the padding."""
    torch.manual_seed(0)
    model = build_model(Config.of(backbone="resnet18", scales="native", key_pooling=2)).eval()
    image, point, seen = torch.rand(1, 1, 50, 70), (21, 37), {}
    layer = model.steps[1].position[0][1]
    layer.register_forward_hook(lambda module, inputs, output: seen.setdefault("x", inputs[0]))
    found = inspect(model, image, point)
    x = seen["x"]
    pooled = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-2, -1))
    with torch.no_grad():
        np.testing.assert_array_equal(found.refined[-1], model(image).argmax(1)[0])
        weights = (layer.query(x).flatten(2).mT @ layer.key(pooled).flatten(2)).softmax(-1)[0]
    expected = weights[point[0] // 4 * x.shape[3] + point[1] // 4].reshape(pooled.shape[-2:])
    torch.testing.assert_close(found.steps[1].attention[0], expected[:7, :9])
    assert [tuple(part.shape) for part in found.steps[1].guide] == [(13, 18), (7, 9), (4, 5), (2, 3)]
    assert [len(found.raw), len(found.refined)] == [SCALES + 1] * 2


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"guidance": False}, [4, 0, 0]),
        ({"encoder_decoder": False}, [4, 0, 4]),
        ({"position_attention": False}, [0, 4, 4]),
        ({"deep_supervision": False}, [4, 4, 4]),
    ],
)
def test_ablations_have_the_maps_of_their_parts(options, parts):
    model = build_model(Config.of(backbone="resnet18", steps=1, **options))
    found = inspect(model, torch.rand(1, 1, 48, 48), (3, 4))
    assert [len(part) for part in found.steps[0]] == parts
    assert len(found.raw) == (0 if "deep_supervision" in options else 5)


def test_networks_that_do_not_refine_have_no_maps():
    assert inspect(build_model(Config.of(model="daf", backbone="resnet18")), torch.rand(1, 1, 48, 48), (3, 4)) is None
