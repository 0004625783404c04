"""Losses of one's own and of libraries, against what they give by themselves; and what is refused."""

from __future__ import annotations

import pytest
import torch
from segmentation_models_pytorch import losses as smp
from torch import nn

from config import LossConfig
from losses import GuidedLoss, dice_loss, own_loss
from models import Output
from training.setup import training_loss
from utils import OptionError

HERE = "tests.helpers.own_code"
SMP = "segmentation_models_pytorch.losses"
CPU = torch.device("cpu")


def drawn() -> tuple[Output, torch.Tensor]:
    """Two maps of logits, and a target of which some pixels do not count."""
    torch.manual_seed(0)
    target = torch.randint(0, 3, (2, 16, 24))
    target[:, 3:7] = -100
    return Output([torch.randn(2, 3, 16, 24)], [torch.randn(2, 3, 16, 24)], [], []), target


@pytest.mark.parametrize(
    ("text", "library"),
    [
        (f"{SMP}:FocalLoss(mode='multiclass')", smp.FocalLoss("multiclass", ignore_index=-100)),
        (f"{SMP}:DiceLoss(mode='multiclass')", smp.DiceLoss("multiclass", ignore_index=-100)),
        (f"{SMP}:LovaszLoss(mode='multiclass')", smp.LovaszLoss("multiclass", ignore_index=-100)),
        ("torch.nn:CrossEntropyLoss(label_smoothing=0.1)", nn.CrossEntropyLoss(label_smoothing=0.1)),
        (f"{HERE}:Weighted(factor=2)", lambda x, t: 2 * nn.functional.cross_entropy(x, t, torch.tensor([1.0, 2, 3]))),
    ],
)  # fmt: skip
def test_it_replaces_the_cross_entropy_of_each_map(text, library):
    output, target = drawn()
    terms = training_loss(LossConfig(alpha=0.5, dice=0.25, loss=text), 3, CPU)(output, target)
    expected = sum(library(x, target) + 0.25 * dice_loss(x, target) for x in (output.raw[0], output.refined[0]))
    torch.testing.assert_close(terms.segmentation, expected)
    torch.testing.assert_close(terms.total, 0.5 * expected)


def test_it_gets_float32_and_int64_whatever_the_network_computes_in():
    output, target = drawn()
    seen = []

    def loss(logits, target):
        seen.append((logits.dtype, target.dtype))
        return nn.functional.cross_entropy(logits, target)

    half = Output.of_logits(output.refined[0].bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert GuidedLoss(loss=loss)(half, target.int()).total.dtype == torch.float32
    assert seen == [(torch.float32, torch.int64)]


def test_a_map_of_which_nothing_counts_adds_nothing():
    """The library's own value is NaN there."""
    target = torch.full((1, 8, 8), -100)
    logits = torch.randn(1, 3, 8, 8, requires_grad=True)
    assert nn.CrossEntropyLoss()(logits, target).isnan()
    total = training_loss(LossConfig(loss="torch.nn:CrossEntropyLoss"), 3, CPU)(Output.of_logits(logits), target).total
    total.backward()
    assert total == 0 and not logits.grad.any()


def test_a_loss_cannot_change_the_target_of_the_next_map():
    class Clears(nn.Module):
        def forward(self, logits, target):
            target[target < 0] = 0
            return nn.functional.cross_entropy(logits, target)

    output, target = drawn()
    before = target.clone()
    GuidedLoss(loss=Clears())(output, target)
    assert torch.equal(target, before)


def test_its_buffers_are_part_of_the_loss():
    loss = training_loss(LossConfig(loss=f"{HERE}:Weighted"), 4, CPU)
    assert dict(loss.named_buffers())["loss.weight"].tolist() == [1, 2, 3, 4]
    assert own_loss("", 4) is None


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("Unusable(fault='raises')", r"fails on logits \(2, 5, 32, 32\): .*: three \(.*own_code.py, line \d+\)$"),
        ("Unusable(fault='vector')", "must return a finite scalar"),
        ("Unusable(fault='number')", "must return a finite scalar"),
        ("Unusable(fault='infinite')", "must return a finite scalar"),
        ("Unusable(fault='constant')", "has no finite gradient"),
        ("Unusable(fault='flat')", "has no finite gradient"),
        ("Unusable(fault='ignored')", "must leave out the pixels whose target is -100"),
        ("Unusable(fault='weights')", "has weights of its own, which nothing would train"),
        ("Unusable(fault='changes')", "changes its buffers or numbers, which no checkpoint keeps"),
        ("Unusable(fault='counts')", "changes its buffers or numbers, which no checkpoint keeps"),
        ("Unusable", r"Unusable\(\) fails: TypeError: "),
        ("Unusable(fualt='raises')", r"Unusable does not take these arguments: got an unexpected keyword .*'fualt'"),
        ("NoModule", "has no class NoModule derived from torch.nn.Module"),
        ("Nothing", "has no class Nothing"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_with_is_one_line(loss, expected):
    with pytest.raises(OptionError, match=expected) as raised:
        training_loss(LossConfig(loss=f"{HERE}:{loss}"), 5, CPU)
    assert str(raised.value).startswith("loss ") and "\n" not in str(raised.value)


def test_any_number_of_classes_is_tried():
    for classes in (2, 255):
        training_loss(LossConfig(loss=f"{HERE}:Unusable(fault='')"), classes, CPU)
