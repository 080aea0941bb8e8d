"""The losses of a run's steps: their sum, for the mean of the whole run, and a mean for people who watch."""

from __future__ import annotations

import torch


class RunningMean:
    """An exponential mean without the bias of its first values: single losses of diffusion say little."""

    def __init__(self, decay: float = 0.9) -> None:
        self._decay = decay
        self._sum = self._weight = 0.0

    def add(self, value: float) -> float:
        """Takes in a value; gives the mean with it."""
        self._sum = self._decay * self._sum + (1 - self._decay) * value
        self._weight = self._decay * self._weight + (1 - self._decay)
        return self._sum / self._weight


class Losses:
    """Those of the steps since a state, still on the device, and the mean of the few that were read from it."""

    def __init__(self, device: torch.device, so_far: float | None) -> None:
        """`so_far`: the mean of the steps before, of a run that was resumed."""
        self.sum = torch.zeros((), device=device)  # of the steps since the last state
        self.last = torch.zeros((), device=device)
        self.last_applied = False
        self._mean = RunningMean()
        self.shown = (
            None if so_far is None else self._mean.add(so_far)
        )  # what people see; None: no loss is known

    def add(self, loss: torch.Tensor, *, applied: bool) -> None:
        """Takes in the loss [] of a step, without waiting for it."""
        self.sum += loss
        self.last, self.last_applied = loss, applied

    def logged(self, loss: float) -> None:
        """Takes in the loss of a step that was read from the device anyway."""
        self.shown = self._mean.add(loss)

    def begin_again(self) -> None:
        """After a state that holds the sum so far."""
        self.sum.zero_()
