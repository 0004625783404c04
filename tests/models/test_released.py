"""The network and the loss against what the released code computes in float64 (tests/reference, see its docstring)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from losses import GuidedLoss
from models import load_released

pytestmark = pytest.mark.slow
REFERENCE = Path(__file__).parents[1] / "reference"


@pytest.fixture(scope="module")
def reference():
    return dict(np.load(REFERENCE / "released_forward.npz"))


@pytest.fixture(scope="module")
def state_dict():
    spec = importlib.util.spec_from_file_location("released_weights", REFERENCE / "released_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.released_state_dict("dev:")


def relative_error(ours: torch.Tensor, reference: np.ndarray) -> float:
    return float(np.abs(ours.detach().numpy() - reference).max() / np.abs(reference).max())


def test_eval_logits(state_dict, reference):
    model = load_released(state_dict)
    with torch.inference_mode():
        logits = model(torch.from_numpy(reference["image"]))
    assert logits.dtype == torch.float64
    assert relative_error(logits, reference["eval_logits"]) < 1e-9


def test_train_logits_loss_and_gradient(state_dict, reference):
    model = load_released(state_dict).train()
    output = model(torch.from_numpy(reference["image"]))
    logits = torch.stack([*output.raw, *output.refined])
    assert relative_error(logits, reference["train_logits"]) < 2**-23  # the reference is stored in float32

    target = torch.from_numpy(reference["target"])
    ce = [torch.nn.functional.cross_entropy(x, target.long()).item() for x in logits]
    np.testing.assert_allclose(ce, reference["ce"], rtol=1e-9)
    first, second = output.latents
    guided = [torch.mean((a - b) ** 2).item() for a, b in zip(first[::-1], second[::-1], strict=True)]
    np.testing.assert_allclose(guided, reference["guided"], rtol=1e-9)
    reconstruction = [torch.mean((a - b) ** 2).item() for a, b in output.reconstructions]
    np.testing.assert_allclose(reconstruction, reference["reconstruction"], rtol=1e-9)

    terms = GuidedLoss()(output, target)
    np.testing.assert_allclose(terms.segmentation.item(), reference["ce"].sum(), rtol=1e-9)
    np.testing.assert_allclose(terms.guided.item(), reference["guided"].sum(), rtol=1e-9)
    np.testing.assert_allclose(terms.reconstruction.item(), reference["reconstruction"].sum(), rtol=1e-9)
    np.testing.assert_allclose(terms.total.item(), reference["total"], rtol=1e-9)
    terms.total.backward()
    assert relative_error(model.backbone.stem[0].weight.grad, reference["grad_resnext_layer0_conv"]) < 1e-9


def test_running_statistics_meet_the_coarsest_scale_first(state_dict):
    """The released code calls the semantic module of a step at scale 4 first, at scale 1 last."""
    step = load_released(state_dict).train().steps[0]
    generator = torch.Generator().manual_seed(0)
    scales = [torch.randn(2, 128, 8, 8, dtype=torch.float64, generator=generator) + k for k in range(4)]
    convolution, norm = step.semantic.encoder[:2]
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    for x in (scales[3], scales[2], scales[1], scales[0]):
        values = convolution(x).transpose(0, 1).flatten(1)
        mean = 0.9 * mean + 0.1 * values.mean(1)
        variance = 0.9 * variance + 0.1 * values.var(1)
    step(scales)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)


def test_parameters_are_the_released_ones_without_the_unused(state_dict):
    model = load_released(state_dict)
    assert sum(parameter.numel() for parameter in model.parameters()) == 104_511_475 - 955_412


def test_weights_are_copies(state_dict):
    key = "resnext.layer0.0.weight"
    before = state_dict[key].clone()
    with torch.no_grad():
        load_released(state_dict).backbone.stem[0].weight.zero_()
    assert torch.equal(state_dict[key], before)


@pytest.mark.parametrize("key", ["resnext.layer0.0.weight", "conv_sem_2_4.bias", "pam_attention_1_1.attn.3.gamma"])
def test_missing_key_is_refused(state_dict, key):
    incomplete = {name: value for name, value in state_dict.items() if name != key}
    with pytest.raises(ValueError, match="not a state dict of the released network"):
        load_released(incomplete)


@pytest.mark.parametrize("key", ["unheard.of", "cam_attention_1_1.attn.9.weight", "module.predict1.weight"])
def test_unknown_key_is_refused(state_dict, key):
    with pytest.raises(ValueError, match="not a state dict of the released network"):
        load_released(state_dict | {key: torch.zeros(1)})
