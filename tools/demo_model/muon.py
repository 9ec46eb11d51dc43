"""The optimiser: Muon for matrices, Adam for everything else.

Muon (https://kellerjordan.github.io/posts/muon/) makes the momentum of a matrix orthogonal before it is added, so that
rare directions are learnt as fast as common ones: on this little compute it is what makes words reach the picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch


class MuonAndAdam:
    """One step of both; convolutions count as matrices of their output channels.

    Args:
        matrices: Learnt by Muon, at an update size like Adam's (0.2 per element), so that one learning rate fits both.
        others: Learnt by Adam: biases, norms, embeddings, first and last layers.
    """

    def __init__(
        self,
        matrices: Iterable[torch.nn.Parameter],
        others: Iterable[torch.nn.Parameter],
        *,
        rate: float,
        adam_rate: float,
        betas: tuple[float, float] = (0.9, 0.98),
        momentum: float = 0.95,
        decay: float = 0.02,
    ) -> None:
        self.adam = torch.optim.Adam(others, lr=adam_rate, betas=betas)
        self.rate, self.adam_rate, self.momentum, self.decay = rate, adam_rate, momentum, decay
        # Of equal shape, to be made orthogonal in one go.
        self.groups: dict[tuple[int, int], list[torch.nn.Parameter]] = {}
        for parameter in matrices:
            shape = (parameter.shape[0], parameter[0].numel())
            self.groups.setdefault((min(shape), max(shape)), []).append(parameter)
        self.averages = [torch.zeros_like(p) for group in self.groups.values() for p in group]

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Move all parameters along their gradients; `scale` is the schedule's share of the learning rates."""
        for settings in self.adam.param_groups:
            settings["lr"] = self.adam_rate * scale
        self.adam.step()
        averages = iter(self.averages)
        for (_, longer), parameters in self.groups.items():
            updates = []
            for parameter in parameters:
                average = next(averages)
                average.lerp_(parameter.grad, 1 - self.momentum)
                update = parameter.grad.lerp(average, self.momentum).flatten(1)
                updates.append(update if update.shape[0] <= update.shape[1] else update.T)
            changes = orthogonal(torch.stack(updates)) * (0.2 * math.sqrt(longer) * self.rate * scale)
            for parameter, change in zip(parameters, changes, strict=True):
                flat = parameter.shape[0] <= parameter[0].numel()
                parameter.mul_(1 - self.decay * self.rate * scale)
                parameter.sub_((change if flat else change.T).reshape(parameter.shape))

    def state_dict(self) -> dict[str, Any]:
        return {"adam": self.adam.state_dict(), "averages": self.averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state["adam"])
        for mine, saved in zip(self.averages, state["averages"], strict=True):
            mine.copy_(saved)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Return the nearest matrices with all singular values near one, by Newton-Schulz: (count, shorter, longer)."""
    # Half precision is enough for a direction, and five times as fast on a CPU that has it.
    x = matrices.to(torch.bfloat16)
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x.to(matrices.dtype)
