"""How gradients become weights: Adam and the schedule of its rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from config import Config


class Optimization:
    """Adam on the weights of `network`.

    Args:
        network: the network, not what distributes it over processes.
        config: lr, betas, schedule, plateau_epochs, plateau_factor, epochs.
        steps: in an epoch.
    """

    def __init__(self, network: nn.Module, config: Config, steps: int) -> None:
        self.parameters = list(network.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, config.lr, config.betas, fused=True)
        self.each_step = config.schedule == "one_cycle"
        if self.each_step:
            self.schedule = OneCycleLR(self.optimizer, config.lr, config.epochs * steps, cycle_momentum=False)
        else:
            # PyTorch lowers the rate after more than `patience` bad epochs, the paper after 50; eps would keep small
            # rates from falling.
            self.schedule = ReduceLROnPlateau(
                self.optimizer, "max", config.plateau_factor, config.plateau_epochs - 1, 0.0, "abs", eps=0.0
            )

    @property
    def lr(self) -> float:
        """The rate of the next step."""
        return self.optimizer.param_groups[0]["lr"]

    def norm(self) -> Tensor:
        """Norm of the gradient of all weights, a scalar."""
        return torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def step(self, skip: bool) -> None:
        """One step with the gradients that the weights have; `skip`: only the rate goes on."""
        if not skip:
            self.optimizer.step()
        if self.each_step:
            self.schedule.step()
        self.optimizer.zero_grad()  # frees the gradients, so that the next forward pass has their memory

    def end_epoch(self, score: float) -> None:
        """Tell the validation's score, of which more is better."""
        if not self.each_step:
            self.schedule.step(score)

    def state_dict(self) -> dict[str, Any]:
        """What an interrupted run needs to go on, besides the weights."""
        return {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.optimizer.load_state_dict(states["optimizer"])
        self.schedule.load_state_dict(states["schedule"])
