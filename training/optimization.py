"""How gradients become weights: Adam and the schedule of its rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from config import OptimizationConfig


class Optimization:
    """Adam on the weights of `network`.

    Args:
        network: the network, not what distributes it over processes.
        options: rate, moments, schedule and its length.
        iterations: in an epoch.
    """

    def __init__(self, network: nn.Module, options: OptimizationConfig, iterations: int) -> None:
        self.parameters = list(network.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, options.lr, options.betas, fused=True)
        self.per_iteration = options.schedule == "one_cycle"
        if self.per_iteration:
            total = options.epochs * iterations
            self.schedule = OneCycleLR(self.optimizer, options.lr, total, cycle_momentum=False)
        else:
            # PyTorch lowers the rate after more than `patience` bad epochs, the paper after 50; eps would keep small
            # rates from falling.
            self.schedule = ReduceLROnPlateau(
                self.optimizer, "max", options.plateau_factor, options.plateau_epochs - 1, 0.0, "abs", eps=0.0
            )

    @property
    def lr(self) -> float:
        """The rate of the next iteration."""
        return self.optimizer.param_groups[0]["lr"]

    def norm(self) -> Tensor:
        """Norm of the gradient of all weights, a scalar."""
        return torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def step(self, skip: bool) -> None:
        """Change the weights by the gradients that they have; with `skip`, only the rate goes on."""
        if not skip:
            self.optimizer.step()
        if self.per_iteration:
            self.schedule.step()
        self.optimizer.zero_grad()  # frees the gradients, so that the next forward pass has their memory

    def end_epoch(self, score: float) -> None:
        """Tell the validation's score, of which more is better."""
        if not self.per_iteration:
            self.schedule.step(score)

    def state_dict(self) -> dict[str, Any]:
        """What an interrupted run needs to go on, besides the weights."""
        return {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.optimizer.load_state_dict(states["optimizer"])
        self.schedule.load_state_dict(states["schedule"])
