"""float16 and its loss scale, against PyTorch's GradScaler."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from config import OptimizationConfig
from tests.helpers.runs import read_csv, run, same_result
from training.checkpoint import load_checkpoint
from training.device import choose_dtype, without_denormals
from training.epoch import BROKEN, SKIPPED, agree
from training.optimization import LossScale, Optimization


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), max_size=30), st.integers(1, 5))
def test_the_scale_is_that_of_the_gradscaler(overflows, patience):
    """As long as it is above 1, below which ours does not fall."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=patience)
    scaler.scale(torch.zeros(()))  # which sets it up
    ours = LossScale(torch.device("cpu"))
    ours.PATIENCE = patience
    ours.factor.fill_(2.0**40)
    for overflow in overflows:
        scaler._per_optimizer_states[0] = {"found_inf_per_device": {"cpu": torch.tensor(float(overflow))}}
        scaler.update()
        ours.update(torch.tensor(overflow))
        assert float(ours.factor) == scaler.get_scale()


def test_the_scale_does_not_fall_below_one():
    scale = LossScale(torch.device("cpu"))
    for _ in range(40):
        scale.update(torch.tensor(True))
    assert float(scale.factor) == 1


def test_weights_are_those_of_the_gradscaler():
    """Also over an iteration whose gradients overflow, and the moments of Adam with them."""
    torch.manual_seed(0)
    ours = nn.Linear(3, 2)
    theirs = copy.deepcopy(ours)
    optimization = Optimization(ours, OptimizationConfig(), 10, torch.float16)
    adam = torch.optim.Adam(theirs.parameters(), 1e-3, (0.9, 0.99), fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=LossScale.FIRST)
    for iteration in range(6):
        x = torch.rand(4, 3) * (torch.inf if iteration == 2 else 1)
        loss = ours(x).square().mean()
        optimization.backward(loss)
        skip = ~optimization.norm().isfinite()
        optimization.step(skip)
        scaler.scale(theirs(x).square().mean()).backward()
        scaler.step(adam)
        scaler.update()
        adam.zero_grad()
        assert float(optimization.scale.factor) == scaler.get_scale()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)
    states = (optimizer.state_dict()["state"] for optimizer in (optimization.optimizer, adam))
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("own", "scaled_too_far", "skipped", "broken"),
    [
        ((1.0, 1.0, 2.0), True, 0, 0),
        ((1.0, 1.0, torch.inf), True, 1, 0),  # the scale may be what overflowed
        ((1.0, 1.0, torch.inf), False, 1, 1),
        ((torch.nan, 1.0, 2.0), True, 1, 1),  # the loss is not scaled
        ((1.0, torch.inf, torch.nan), False, 1, 1),
    ],
)
def test_what_counts_as_broken(own, scaled_too_far, skipped, broken):
    outcome = agree(torch.tensor(own), torch.tensor(scaled_too_far), stop=False)
    assert (outcome[SKIPPED], outcome[BROKEN]) == (skipped, broken)


@pytest.mark.slow
def test_a_run_in_float16_goes_on_bit_for_bit(make_data, tmp_path, tiny):
    """Its first iterations overflow at a scale of 2^16 or not; the scale is in the checkpoint."""
    data = make_data({"train": ["1", "2"], "val": ["3"], "test": ["4"]}, numbers=(1, 2, 3))
    straight = run(data, tmp_path / "straight", "--amp", "fp16")
    for epochs in ("1", "2", "3"):
        run(data, tmp_path / "resumed", "--amp", "fp16", "--epochs", epochs)
    same_result(straight, tmp_path / "resumed")
    scale = load_checkpoint(straight / "last.pt")["optimization"]["scale"]
    assert scale["factor"] >= 1 and scale["good"] <= 9
    assert all(float(row["total"]) > 0 for row in read_csv(straight / "log.csv"))


def test_what_auto_chooses(monkeypatch):
    cuda, cpu = torch.device("cuda", 1), torch.device("cpu")
    asked = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext(asked.append(device)))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert choose_dtype("auto", cuda) == torch.float16  # T4
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert choose_dtype("auto", cuda) == torch.float32  # GTX 1080
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert choose_dtype("auto", cuda) == torch.bfloat16  # A100
    assert asked == [cuda] * 3  # is_bf16_supported is about the current GPU
    for supported, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda supported=supported: supported)
        assert choose_dtype("auto", cpu) == dtype
    assert choose_dtype("fp16", cpu) == torch.float16
    assert choose_dtype("off", cuda) == torch.float32


def test_numbers_below_1e_38_count_as_0_within():
    """1e-40 is no normal number of float32 (IEEE 754)."""
    number = torch.full((8,), 1e-20)
    with without_denormals():
        assert (number * number).eq(0).all()
    assert (number * number).gt(0).all()
