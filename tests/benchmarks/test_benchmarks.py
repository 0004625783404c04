"""The plain formulation of the benchmarks: other code for the same mathematics, so also a reference for ours."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from benchmarks import plain
from config import Config, EvaluationConfig
from data.folder import open_data
from inference.segmentation import segment_subjects
from losses import GuidedLoss
from metrics import dice, score_subject
from models import build_model
from training.device import Machine

SMALL = Config.of(backbone="resnet18", semantic_channels=16, variant="released")


def pair(config: Config):
    """Our network and the plain one with the same weights, their attention switched on, in float64."""
    torch.manual_seed(0)
    ours = build_model(config).double()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
    return ours, plain.make_plain(copy.deepcopy(ours))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_training_is_that_of_the_plain_formulation(variant):
    """Losses, gradients and running statistics of two steps, in float64 and channels_last."""
    ours, theirs = pair(SMALL.change(variant=variant))
    ours = ours.to(memory_format=torch.channels_last)
    image, target = torch.rand(2, 1, 64, 48, dtype=torch.float64), torch.randint(0, 5, (2, 64, 48))
    for _ in range(2):
        terms = GuidedLoss()(ours.train()(image), target)
        expected = plain.plain_loss(theirs.train()(image), target)
        torch.testing.assert_close(tuple(terms), expected, rtol=1e-9, atol=1e-12)
        terms.total.backward()
        expected[0].backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        largest = gradients[name].abs().max()
        assert (parameter.grad - gradients[name]).abs().max() <= 1e-9 * max(largest, 1), name
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, theirs.get_buffer(name), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_bfloat16_stays_near_float32():
    """Relative errors of losses and logits; the gradient errs no more than PyTorch's autocast of the plain network.

    The gradient at the start of training has no small bound: noise of 0.001 on the image moves it about as far.
    """
    ours, theirs = (model.float() for model in pair(SMALL))
    ours = ours.to(memory_format=torch.channels_last)
    image, target = torch.rand(2, 1, 48, 48), torch.randint(0, 5, (2, 48, 48))

    with torch.inference_mode():
        exact = theirs.eval()(image)
        with torch.autocast("cpu", torch.bfloat16):
            logits = ours.eval()(image)
    assert (logits - exact).norm() < 0.02 * exact.norm()

    def losses_and_gradient(model, criterion, bfloat16):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            terms = criterion(model.train()(image), target)
        terms[0].backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        return torch.stack(tuple(terms)).detach(), gradient

    losses, gradient = losses_and_gradient(ours, GuidedLoss(), True)
    assert losses.dtype == torch.float32
    expected, exact = losses_and_gradient(theirs, plain.plain_loss, False)
    _, usual = losses_and_gradient(theirs, plain.plain_loss, True)
    assert ((losses - expected).abs() < 0.02 * expected).all()
    assert (gradient - exact).norm() < 1.3 * (usual - exact).norm()


@pytest.mark.slow
def test_evaluation_is_that_of_the_plain_loop(make_data, tmp_path):
    data = open_data(make_data(numbers=(1, 2, 10)))
    ours, theirs = (model.float() for model in pair(SMALL))
    dataset = data.dataset("val")
    slices = [(image[None], target.numpy().astype(np.uint8)) for image, target in dataset]
    expected = plain.evaluate(theirs, {"2": slices}, 5, tmp_path)
    machine = Machine(torch.device("cpu"), dtype=torch.float32, workers=0)
    (volume,) = segment_subjects(ours, dataset, ["2"], EvaluationConfig(eval_batch_size=2), machine)
    # Between slices 2 and 10 there is nothing, in prediction and truth alike.
    assert volume.prediction.shape[0] == 10
    scores = [dice(volume.prediction == k, volume.target == k) for k in range(1, 5)]
    np.testing.assert_allclose(scores, expected["2"], rtol=0, atol=1e-3)  # a tie of two classes may fall either way


def test_scores_are_those_of_medpy_on_the_whole_volume():
    target = np.zeros((12, 40, 40), np.uint8)
    target[2:9, 5:20, 6:22], target[4:10, 25:35, 8:30] = 1, 2
    prediction = np.roll(target, (1, 2, -1), (0, 1, 2))
    ours = score_subject(prediction, target, ["background", "a", "b"], (5.0, 1.5, 1.5))
    for row, expected in zip(ours, plain.score(prediction, target, (1, 2), (5.0, 1.5, 1.5)), strict=True):
        for key, value in expected.items():
            assert row[key] == pytest.approx(value, abs=1e-9), key
