"""How gradients become weights: Adam and the schedule of its rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from config import OptimizationConfig
from training.checkpoint import check_tensor

# What of a schedule changes while it goes on.
PROGRESS = ("last_epoch", "best", "num_bad_epochs", "cooldown_counter", "_step_count")


class LossScale:
    """What the loss is multiplied by, so that float16 holds its gradients (Micikevicius et al., 2018).

    It halves when gradients overflow and doubles after 2,000 iterations without, all on the device, by the rules of
    PyTorch's GradScaler.
    """

    FIRST, PATIENCE = 2.0**16, 2000

    def __init__(self, device: torch.device) -> None:
        self.factor = torch.tensor(self.FIRST, device=device)
        self.good = torch.zeros((), device=device)
        """Iterations since it has changed."""

    def update(self, overflow: Tensor) -> None:
        """After an iteration whose gradients did, or did not, overflow (a boolean scalar)."""
        grows = ~overflow & (self.good + 1 >= self.PATIENCE)
        changed = torch.where(overflow, self.factor / 2, torch.where(grows, self.factor * 2, self.factor))
        self.factor.copy_(changed.clamp(min=1))
        self.good.copy_(torch.where(overflow | grows, 0, self.good + 1))

    def state_dict(self) -> dict[str, Tensor]:
        """Its two numbers."""
        return {"factor": self.factor, "good": self.good}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        self.factor.copy_(state["factor"])
        self.good.copy_(state["good"])


class Optimization:
    """Adam on the weights of `network`.

    Args:
        network: the network, not what distributes it over processes.
        options: rate, moments, schedule and its length.
        iterations: in an epoch.
        dtype: what the network computes in; with float16 the loss is scaled.
    """

    def __init__(
        self,
        network: nn.Module,
        options: OptimizationConfig,
        iterations: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.parameters = list(network.parameters())
        # Adam on the CPU copies gradients that are not contiguous, as in channels_last, which takes longer than what it
        # computes. So it sees the weights with their axes in the order of the memory.
        self.axes = [sorted(range(p.ndim), key=p.stride, reverse=True) for p in self.parameters]
        self.weights = [p.detach().permute(axes) for p, axes in zip(self.parameters, self.axes, strict=True)]
        self.options = options
        self.optimizer = torch.optim.Adam(self.weights, options.lr, options.betas, fused=True)
        self.scale = LossScale(self.parameters[0].device) if dtype == torch.float16 else None
        self.per_iteration = options.schedule == "one_cycle"
        if self.per_iteration:
            total = max(2, options.epochs * iterations)  # of a single iteration, PyTorch takes the last rate, about 0
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
        """Norm of the gradient of all weights, times the loss scale, a scalar."""
        return torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def backward(self, loss: Tensor) -> None:
        """The gradients of a loss, times the loss scale."""
        if self.scale is not None:
            loss = loss * self.scale.factor
        loss.backward()

    def scaled_too_far(self) -> bool | Tensor:
        """Whether gradients that are not finite may be those of the loss scale alone, a boolean scalar."""
        return False if self.scale is None else self.scale.factor > 1

    def step(self, skip: Tensor) -> None:
        """Change the weights by the gradients that they have; where `skip`, a boolean scalar, only the rate goes on.

        The device decides: fused Adam takes `found_inf`, as PyTorch's GradScaler gives it, and leaves everything as it
        was where that is not 0.
        """
        for weight, parameter, axes in zip(self.weights, self.parameters, self.axes, strict=True):
            weight.data = parameter.detach().permute(axes)  # a forward pass may exchange its storage
            weight.grad = None if parameter.grad is None else parameter.grad.permute(axes)
            parameter.grad = None
        self.optimizer.found_inf = skip.float()
        if self.scale is not None:
            self.optimizer.grad_scale = self.scale.factor  # by which the gradients are divided
        self.optimizer.step()
        if self.scale is not None:
            self.scale.update(skip)
        if self.per_iteration:
            self.schedule.step()
        self.optimizer.zero_grad()  # frees the gradients, so that the next forward pass has their memory

    def end_epoch(self, score: float) -> None:
        """Tell the validation's score, of which more is better."""
        if not self.per_iteration:
            self.schedule.step(score)

    def state_dict(self) -> dict[str, Any]:
        """What an interrupted run needs to go on, besides the weights."""
        states = {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}
        if self.scale is not None:
            states["scale"] = self.scale.state_dict()
        return states

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """The inverse of `state_dict`, which takes over how far the training is; its options stay what they are.

        Raises ValueError, or what comes of values of other kinds, for states of another training.
        """
        own, stored = self.optimizer.state_dict(), states["optimizer"]
        (options,), (before,) = own["param_groups"], stored["param_groups"]
        if before["params"] != options["params"] or not _is_number(before["lr"]) or before["lr"] < 0:
            raise ValueError("the optimizer is not that of this training")
        self._check_moments(stored["state"])
        schedule = {name: states["schedule"][name] for name in PROGRESS if name in states["schedule"]}
        done, most = schedule["last_epoch"], getattr(self.schedule, "total_steps", math.inf)
        if not all(map(_is_number, schedule.values())) or type(done) is not int or not 0 <= done <= most:
            raise ValueError("the schedule of the learning rate is not that of this training")
        options["lr"] = before["lr"]
        self.optimizer.load_state_dict(own | {"state": stored["state"]})
        self.schedule.load_state_dict(schedule | {"_last_lr": [self.lr]})
        if self.scale is not None and "scale" in states:  # --amp auto has none on another kind of device
            self.scale.load_state_dict(states["scale"])

    def _check_moments(self, state: dict[int, dict[str, Tensor]]) -> None:
        for index, moments in state.items():
            weight = self.weights[index]
            if moments.keys() != {"step", "exp_avg", "exp_avg_sq"}:
                raise ValueError(f"the optimizer's moments of weight {index} are incomplete")
            for name, value in moments.items():
                check_tensor(f"{name} of weight {index}", value, torch.tensor(0.0) if name == "step" else weight)
                if name != "exp_avg" and (value < 0).any():
                    raise ValueError(f"{name} of weight {index} is below 0")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and value == value and value != math.inf
