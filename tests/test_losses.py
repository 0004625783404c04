"""The guided loss and the Dice loss, each against a computation of its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from losses import GuidedLoss, dice_loss
from models.network import Output


def random_output(steps: int = 3, scales: int = 4) -> tuple[Output, torch.Tensor]:
    """Logits, latents and reconstructions of a network with so many steps, and a target; float64."""
    torch.manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    raw = [draw(2, 3, 8, 8) for _ in range(scales)]
    refined = [draw(2, 3, 8, 8) for _ in range(scales)]
    latents = [[draw(2, 5, 2, 2) for _ in range(scales)] for _ in range(steps)]
    reconstructions = [(draw(2, 6, 4, 4), draw(2, 6, 4, 4)) for _ in range(scales * steps)]
    return Output(raw, refined, latents, reconstructions), torch.randint(0, 3, (2, 8, 8))


def test_the_terms_by_their_equations():
    """Eq. 7 over successive steps at each scale, Eq. 6 over all inputs, Eq. 10 with its weights; sums by hand."""
    output, target = random_output()
    terms = GuidedLoss(2.0, 3.0, 5.0)(output, target)
    segmentation = 0.0
    for logits in output.raw + output.refined:
        p = logits.softmax(1).gather(1, target[:, None])
        segmentation -= float(p.log().mean())
    guided = 0.0
    for step in (0, 1):
        for scale in range(4):
            guided += float(((output.latents[step][scale] - output.latents[step + 1][scale]) ** 2).mean())
    reconstruction = sum(float(((a - b) ** 2).mean()) for a, b in output.reconstructions)
    assert float(terms.segmentation) == pytest.approx(segmentation, rel=1e-12)
    assert float(terms.guided) == pytest.approx(guided, rel=1e-12)
    assert float(terms.reconstruction) == pytest.approx(reconstruction, rel=1e-12)
    assert float(terms.total) == pytest.approx(2 * segmentation + 3 * guided + 5 * reconstruction, rel=1e-12)


def test_ignored_pixels_do_not_count():
    output, target = random_output()
    target[:, 4:] = -100
    cropped = 0.0
    for logits in output.raw + output.refined:
        cropped -= logits.log_softmax(1)[:, :, :4].gather(1, target[:, None, :4]).mean()
    torch.testing.assert_close(GuidedLoss()(output, target).segmentation, cropped)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(2, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_dice_loss_equals_the_formula_pixel_by_pixel(batch, classes, height, width, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (batch, classes, height, width))
    target = rng.choice([-100, *range(classes)], (batch, height, width))
    scores = []
    for k in range(1, classes):
        both = predicted = true = 0.0
        for b, row, column in zip(*np.nonzero(target >= 0), strict=True):
            weights = [math.exp(value) for value in logits[b, :, row, column]]
            p = weights[k] / sum(weights)
            t = float(target[b, row, column] == k)
            both, predicted, true = both + p * t, predicted + p, true + t
        scores.append((2 * both + 1) / (predicted + true + 1))
    ours = dice_loss(torch.from_numpy(logits), torch.from_numpy(target))
    assert float(ours) == pytest.approx(1 - sum(scores) / len(scores), rel=1e-12)


def test_dice_enters_the_segmentation_term():
    output, target = random_output()
    parts = [nn.functional.cross_entropy(x, target) + 0.7 * dice_loss(x, target) for x in output.raw + output.refined]
    torch.testing.assert_close(GuidedLoss(dice=0.7)(output, target).segmentation, sum(parts))


def test_sums_of_the_dice_loss_run_over_processes():
    """Two halves of a batch, each with what the other adds, have the loss of the whole."""
    output, target = random_output()
    logits = output.raw[0]
    seen: list[torch.Tensor] = []
    dice_loss(logits[1:], target[1:], all_reduce=lambda sums: seen.append(sums) or sums)
    half = dice_loss(logits[:1], target[:1], all_reduce=lambda sums: sums + seen[0])
    torch.testing.assert_close(half, dice_loss(logits, target))


def test_whatever_a_network_returns():
    output, target = random_output()
    maps = output.refined
    expected = sum(torch.nn.functional.cross_entropy(logits, target) for logits in maps)
    for returned in (maps, tuple(maps), Output.of_logits(*maps)):
        torch.testing.assert_close(GuidedLoss()(returned, target).total, expected)
    torch.testing.assert_close(GuidedLoss()(maps[0], target).total, torch.nn.functional.cross_entropy(maps[0], target))


@pytest.mark.parametrize("returned", [[], {"out": torch.randn(2, 3, 8, 8)}, None, [None]])
def test_what_is_no_output_is_refused(returned):
    with pytest.raises(ValueError, match="must be an Output"):
        GuidedLoss()(returned, torch.zeros(2, 8, 8, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int32])
def test_targets_of_any_whole_numbers(dtype):
    logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 2, (2, 8, 8))
    loss = GuidedLoss(dice=1.0)
    assert loss(logits, target.to(dtype)).total == loss(logits, target).total
    assert dice_loss(logits, target.to(dtype)) == dice_loss(logits, target)


def test_the_dice_loss_sums_half_precisions_in_float32():
    logits, target = torch.randn(1, 3, 300, 300), torch.randint(0, 3, (1, 300, 300))
    assert dice_loss(logits.half(), target) == pytest.approx(float(dice_loss(logits, target)), abs=1e-4)


WRONG = {
    "probabilities as the target": ((2, 3, 8, 8), torch.full((2, 8, 8), 0.9), "whole numbers"),
    "one-hot target": ((2, 3, 8, 8), torch.ones(2, 3, 8, 8, dtype=torch.long), r"must be \(B, H, W\)"),
    "target with a channel": ((2, 2, 8, 8), torch.ones(2, 1, 8, 8, dtype=torch.long), r"must be \(B, H, W\)"),
    "one target for two images": ((2, 3, 8, 8), torch.ones(1, 8, 8, dtype=torch.long), r"must be \(B, H, W\)"),
    "one channel, for a sigmoid": ((2, 1, 8, 8), torch.ones(2, 8, 8, dtype=torch.long), "two classes"),
    "volumes": ((2, 3, 4, 8, 8), torch.ones(2, 4, 8, 8, dtype=torch.long), r"must be \(B, classes, H, W\)"),
    "a side rounded down": ((2, 3, 16, 16), torch.ones(2, 33, 33, dtype=torch.long), "16 x 16.*33 x 33"),
    "a third of the size": ((2, 3, 11, 11), torch.ones(2, 33, 33, dtype=torch.long), "11 x 11.*33 x 33"),
    "different strides": ((2, 3, 8, 4), torch.ones(2, 16, 16, dtype=torch.long), "8 x 4.*16 x 16"),
    "more than a pixel": ((2, 3, 16, 16), torch.ones(2, 8, 8, dtype=torch.long), "16 x 16.*8 x 8"),
}


@pytest.mark.parametrize(("shape", "target", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused(shape, target, message):
    logits = torch.randn(shape)
    with pytest.raises(ValueError, match=message):
        GuidedLoss()(logits, target)
    with pytest.raises(ValueError, match=r"must be|whole numbers"):
        dice_loss(logits, target)
