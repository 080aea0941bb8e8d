"""Anomalies of single steps and images: non-finite losses, loss spikes, images that cannot be used."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import torch

from sdjob.exit_codes import ExitCode
from sdjob.files import few
from sdjob.problems import JobError, Problem
from sdjob.settings.run_spec import RunSpec
from sdtrain.data.batch import Batch
from sdtrain.data.training_images import too_many
from sdtrain.reporting.metrics import RunningMean
from sdtrain.reporting.progress import say
from sdtrain.reporting.tracker import Tracker
from sdtrain.runtime.distributed import World

_MAX_NAMES = 8  # of images in a message
_MAX_BATCHES = 1000  # remembered, to name the one that went wrong
_NO_TRACKER = Tracker()
_STEADIER = {"fp16": "use mixed_precision=bf16 or no, ", "bf16": "use mixed_precision=no, "}


class Anomalies:
    """Counts skipped steps and bad images, names them in the log, and ends the run when there are too many."""

    def __init__(
        self,
        spec: RunSpec,
        world: World,
        skipped_steps: int,
        bad_samples: Sequence[str],
        tracker: Tracker = _NO_TRACKER,
    ) -> None:
        self._spec, self._world, self._tracker = spec, world, tracker
        self.skipped_steps = skipped_steps
        self.bad_samples = tuple(bad_samples)  # of all ranks, as of the last agreement
        self._new_bad_samples: dict[str, Problem] = {}  # of this rank, since then
        # Batches of this rank since the last finite loss: step, loss [] still on the device, names of the images.
        self._observed: deque[tuple[int, torch.Tensor, tuple[str, ...]]] = deque(maxlen=_MAX_BATCHES)
        self._spikes = Spikes()

    def observe(self, step: int, batch: Batch, loss: torch.Tensor) -> None:
        """Remember a batch, without waiting for the device."""
        self._observed.append((step, loss, batch.names))
        for problem in batch.skipped:
            if problem.subject not in self._new_bad_samples and problem.subject not in self.bad_samples:
                self._new_bad_samples[problem.subject] = problem
                say(f"skipped: {problem.subject}: {problem.found}")

    def skip_step(self, step: int) -> None:
        """Count a step that is not applied for its non-finite loss. Collective. Raises JobError (70)."""
        self.skipped_steps += 1
        first, allowed = self._first_non_finite(), self._spec.max_nan_steps
        if self.skipped_steps > allowed:
            found = f"{self.skipped_steps} steps had a non-finite loss (max_nan_steps={allowed}); the last {first}"
            raise self.diverged("loss", found)
        found = f"not applied: the loss {first} ({self.skipped_steps} of {allowed})"
        self._world.say(f"step {step} is {found}")
        self._tracker.event("skip", step, found)
        self._observed.clear()

    def finite(self, loss: torch.Tensor, step: int) -> float:
        """A mean loss of all ranks as a number. Collective. Raises JobError (70) if it is NaN or infinite."""
        value = float(loss)
        if not math.isfinite(value):
            raise self.diverged("loss", f"is {value} by step {step}; it {self._first_non_finite()}")
        self._observed.clear()
        return value

    def diverged(self, subject: str, found: str) -> JobError:
        steadier = _STEADIER.get(self._spec.mixed_precision, "")
        remedy = f"Lower lr, {steadier}or check the data; the last checkpoint is from before."
        return JobError(Problem(int(ExitCode.TRAINING_FAILED), subject, found, remedy))

    def warn_of_spike(self, loss: float, step: int) -> None:
        usual = self._spikes.usual(loss)
        if usual is not None:
            found = f"loss spike at step {step}: {loss:.4f}, recently about {usual:.4f}"
            self._world.say(f"warning: {found}")
            self._tracker.event("warning", step, found)

    def agree_on_bad_samples(self) -> None:
        """Merge the bad images of all ranks. Collective. Raises JobError (66) if there are too many."""
        if not self._world.any(bool(self._new_bad_samples)):
            return
        by_rank: list[dict[str, Problem]] = self._world.gather(self._new_bad_samples)
        problems = {name: problem for of_rank in by_rank for name, problem in of_rank.items()}
        self.bad_samples = tuple(sorted({*self.bad_samples, *problems}))
        self._new_bad_samples.clear()
        if len(self.bad_samples) > self._spec.max_bad_samples:
            raise JobError([*problems.values(), too_many(self.bad_samples, self._spec.max_bad_samples)])

    def _first_non_finite(self) -> str:
        """The first batch with a non-finite loss: "was nan at step 3, with a.png, b.png". Collective."""
        bad = ((step, float(loss), names) for step, loss, names in self._observed if not loss.isfinite())
        every = [first for first in self._world.gather(next(bad, None)) if first]
        if not every:
            return "was finite in every batch"
        step = min(step for step, _, _ in every)
        firsts = [(loss, names) for at, loss, names in every if at == step]
        names = [name for _, of_rank in firsts for name in of_rank]
        return f"was {firsts[0][0]} at step {step}, with {few(names, _MAX_NAMES)}"


class Spikes:
    """Detects a loss more than six standard deviations above the running mean.

    In logarithms, since the losses of single timesteps differ by a factor of a hundred.
    """

    _DECAY, _SIGMAS, _LEAST_SIGMA = 0.95, 6.0, 0.01
    _PATIENCE = 20  # losses before the first verdict

    def __init__(self) -> None:
        self._count = 0
        self._mean, self._square = RunningMean(self._DECAY), RunningMean(self._DECAY)

    def usual(self, loss: float) -> float | None:
        """Add a loss; returns the mean before it if it is a spike, else None."""
        value, mean = math.log(max(loss, 1e-12)), self._mean.value
        sigma = max(math.sqrt(max(self._square.value - mean**2, 0.0)), self._LEAST_SIGMA)
        is_spike = self._count >= self._PATIENCE and value > mean + self._SIGMAS * sigma
        self._count += 1
        self._mean.add(value)
        self._square.add(value**2)
        return math.exp(mean) if is_spike else None
