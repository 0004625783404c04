"""The semantic module: what the scales share, and what each has of its own."""

import copy

import pytest
import torch
from torch import nn

from models.semantic import SemanticModule

SIZES = {"quarter": [(8, 12)] * 4, "native": [(32, 32), (16, 16), (8, 8), (4, 4)]}


def of_scale(module, scale):
    """Encoder and decoder of one scale as plain layers, with its own batch normalization; the rest is shared."""
    parts = []
    for layers in (module.encoder, module.decoder):
        chosen = [layer[scale] if isinstance(layer, nn.ModuleList) else layer for layer in layers]
        parts.append(nn.Sequential(*chosen))
    return parts


@pytest.mark.parametrize("sizes", SIZES)
def test_each_scale_has_its_own_normalization(sizes):
    torch.manual_seed(0)
    module = SemanticModule(6, 4, norms=4).double()
    scales = [torch.randn(3, 6, *size, dtype=torch.float64) * (k + 1) + k for k, size in enumerate(SIZES[sizes])]
    for training in (True, False):
        by_hand = copy.deepcopy(module).train(training)
        latents, reconstructions = module.train(training)(scales)
        for k, x in enumerate(scales):
            encoder, decoder = of_scale(by_hand, k)
            latent = encoder(x)
            torch.testing.assert_close(latents[k], latent)
            torch.testing.assert_close(reconstructions[k], decoder(latent))
        running = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        expected = [buffer for buffer in by_hand.buffers() if buffer.is_floating_point()]
        torch.testing.assert_close(running, expected)


@pytest.mark.parametrize("norms", [0, 4])
def test_evaluation_is_as_training_only_with_its_own_normalization(norms):
    torch.manual_seed(0)
    module = SemanticModule(6, 4, norms).double().train()
    scales = [torch.randn(16, 6, 16, 16, dtype=torch.float64) * 3**k + 5 * k for k in range(4)]
    with torch.no_grad():
        for _ in range(200):  # until the running statistics stand still
            trained, _ = module(scales)
        evaluated, _ = module.eval()(scales)
    likeness = [(a - b).norm() / a.norm() for a, b in zip(trained, evaluated, strict=True)]
    assert (max(likeness) < 0.01) == bool(norms)
