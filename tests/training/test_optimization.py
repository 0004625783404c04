"""Adam and the schedules of its rate, each against a computation of its own."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from config import OptimizationConfig
from training.optimization import Optimization


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)).double()


def gradients(network: nn.Module, number: int) -> None:
    """The gradients of one batch, which follows from its number."""
    network.zero_grad()
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
    network(x).square().sum().backward()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_optimizer_is_adam_by_hand(layout):
    """Kingma & Ba (2015), Algorithm 1, with the paper's rate and moments; no decay of weights, no clipping."""
    network = small_network().to(memory_format=layout)
    optimization = Optimization(network, OptimizationConfig(), iterations=4)
    weights = [p.detach().numpy().copy() for p in network.parameters()]
    first, second = ([np.zeros_like(w) for w in weights] for _ in range(2))
    for number in range(4):
        gradients(network, number)
        grads = [p.grad.numpy().copy() for p in network.parameters()]
        norm = math.sqrt(sum((g**2).sum() for g in grads))
        assert float(optimization.norm()) == pytest.approx(norm, rel=1e-12)
        for k, g in enumerate(grads):
            first[k] = 0.9 * first[k] + 0.1 * g
            second[k] = 0.99 * second[k] + 0.01 * g**2
            m, v = first[k] / (1 - 0.9 ** (number + 1)), second[k] / (1 - 0.99 ** (number + 1))
            weights[k] = weights[k] - 1e-3 * m / (np.sqrt(v) + 1e-8)
        optimization.step(torch.tensor(False))
        for ours, expected in zip(network.parameters(), weights, strict=True):
            np.testing.assert_allclose(ours.detach().numpy(), expected, rtol=1e-6, atol=1e-7)


def test_steps_are_those_of_pytorch_s_adam_bit_for_bit():
    """With weights in channels_last, whose axes of size 1 may have any stride, and one that gets no gradient."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 1), nn.ConvTranspose2d(6, 1, 2), nn.PReLU(), nn.Linear(5, 3)
    ours = nn.ModuleList(layers).to(memory_format=torch.channels_last)
    theirs = copy.deepcopy(ours)
    optimization = Optimization(ours, OptimizationConfig(), 10)
    adam = torch.optim.Adam(theirs.parameters(), 1e-3, (0.9, 0.99), fused=True)
    for _ in range(3):
        for mine, other in list(zip(ours.parameters(), theirs.parameters(), strict=True))[:-1]:
            grad = torch.randn(mine.shape)
            mine.grad, other.grad = grad.clone(), grad.clone(memory_format=torch.preserve_format)
        optimization.step(torch.tensor(False))
        adam.step()
        assert all(parameter.grad is None for parameter in ours.parameters())
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=0)


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_the_shortest_cycle_has_a_rate(iterations):
    options = OptimizationConfig(lr=0.02, schedule="one_cycle", epochs=1)
    assert 0.02 / 25 <= Optimization(nn.Linear(1, 1), options, iterations).lr <= 0.02


def test_one_cycle_follows_its_cosines_also_over_skipped_steps():
    network = small_network()
    options = OptimizationConfig(lr=0.02, schedule="one_cycle", epochs=4)
    optimization = Optimization(network, options, iterations=5)
    peak, last = 0.3 * 20 - 1, 20 - 1
    for number in range(20):
        if number <= peak:
            low, high, share = 0.02 / 25, 0.02, number / peak
        else:
            low, high, share = 0.02, 0.02 / 25 / 1e4, (number - peak) / (last - peak)
        expected = low + (high - low) * (1 - math.cos(math.pi * share)) / 2
        assert optimization.lr == pytest.approx(expected, rel=1e-9)
        gradients(network, number)
        before = copy.deepcopy(network.state_dict())
        optimization.step(torch.tensor(number % 3 == 1))
        moved = any(not torch.equal(before[key], value) for key, value in network.state_dict().items())
        assert moved == (number % 3 != 1)


def test_a_weight_whose_storage_the_network_exchanges_is_trained():
    """As by `self.weight.data = self.weight.data.clamp(min=0)`, a usual constraint, in the forward pass."""
    networks = [small_network() for _ in range(2)]
    optimizations = [Optimization(network, OptimizationConfig(), 4) for network in networks]
    for number in range(3):
        for parameter in networks[0].parameters():
            parameter.data = parameter.data.clone()
        for network, optimization in zip(networks, optimizations, strict=True):
            gradients(network, number)
            optimization.step(torch.tensor(False))
    torch.testing.assert_close(networks[0].state_dict(), networks[1].state_dict(), rtol=0, atol=0)


def test_a_resumed_optimization_goes_on_bit_for_bit():
    options = OptimizationConfig(lr=0.01, schedule="one_cycle", epochs=3)
    results = []
    for interrupted in (False, True):
        network = small_network()
        optimization = Optimization(network, options, iterations=4)
        for number in range(12):
            if interrupted and number == 5:
                weights, states = copy.deepcopy((network.state_dict(), optimization.state_dict()))
                network = small_network()
                optimization = Optimization(network, options, iterations=4)
                network.load_state_dict(weights)
                optimization.load_state_dict(states)
            gradients(network, number)
            optimization.step(torch.tensor(False))
        results.append(network.state_dict())
    torch.testing.assert_close(*results, rtol=0, atol=0)
