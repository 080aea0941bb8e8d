"""What goes wrong with single steps and images while a run goes on: counted, named, and bounded."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from sdjob.problems import ExitCode, JobError, Problem
from sdjob.settings.run_spec import RunSpec
from sdtrain.data.images import too_many
from sdtrain.data.streams import StreamBatch
from sdtrain.reporting.progress import say
from sdtrain.runtime.distributed import World

_NAMED = 8
_STEADIER = {"fp16": "use mixed_precision=bf16 or no, ", "bf16": "use mixed_precision=no, "}


@dataclass(frozen=True)
class _Seen:
    """A batch of this rank: its loss [], still on the device, and the names of its images."""

    step: int
    loss: torch.Tensor
    names: tuple[str, ...]


class Incidents:
    """Losses that are no numbers, with their images; images that were passed over; sudden losses."""

    def __init__(self, spec: RunSpec, world: World, skipped_steps: int, bad_samples: Sequence[str]) -> None:
        self._spec, self._world = spec, world
        self.skipped_steps = skipped_steps
        self.bad_samples = tuple(bad_samples)  # of all ranks, as of the last `settle`
        self._met: dict[str, Problem] = {}  # by this rank since then
        self._seen: deque[_Seen] = deque(maxlen=1000)  # since the last loss that was looked at
        self._spikes = Spikes()

    def saw(self, step: int, batches: tuple[StreamBatch, ...], loss: torch.Tensor) -> None:
        """To be called for each batch; never waits for the device."""
        names = tuple(name for batch in batches for name in batch.names)
        self._seen.append(_Seen(step, loss, names))
        for problem in (problem for batch in batches for problem in batch.passed_over):
            if problem.subject not in self._met and problem.subject not in self.bad_samples:
                self._met[problem.subject] = problem
                say(f"passed over: {problem.subject}: {problem.found}")

    def skip(self, step: int) -> None:
        """Counts a step that is not applied since its loss is no number. Collective. Raises JobError (70)."""
        self.skipped_steps += 1
        what = f"the loss {self._culprits()}"
        if self.skipped_steps > self._spec.max_nan_steps:
            raise JobError(
                Problem(
                    int(ExitCode.TRAINING_FAILED),
                    "loss",
                    f"{self.skipped_steps} steps without one that is a number "
                    f"(max_nan_steps={self._spec.max_nan_steps}); in the last {what}",
                    self._remedy(),
                )
            )
        if self._world.is_main:
            say(f"step {step} is not applied: {what} ({self.skipped_steps} of {self._spec.max_nan_steps})")
        self._seen.clear()

    def check(self, loss: torch.Tensor, step: int) -> float:
        """A mean of losses over all ranks as a number. Collective. Raises JobError (70) where it is none."""
        value = float(loss)
        if not math.isfinite(value):
            raise self.diverged("loss", f"is {value} by step {step}; first it {self._culprits()}")
        self._seen.clear()
        return value

    def diverged(self, subject: str, found: str) -> JobError:
        return JobError(Problem(int(ExitCode.TRAINING_FAILED), subject, found, self._remedy()))

    def _remedy(self) -> str:
        steadier = _STEADIER.get(self._spec.mixed_precision, "")
        return f"Lower lr, {steadier}or check the data; the last checkpoint is from before."

    def logged(self, loss: float, step: int) -> None:
        """Says so where a loss is far from those before."""
        usual = self._spikes.usual(loss)
        if usual is not None and self._world.is_main:
            say(f"warning: the loss of step {step} is {loss:.4f}, those before were about {usual:.4f}")

    def settle(self) -> None:
        """Adds up the images that the ranks have passed over. Collective. Raises JobError (66) beyond the bound."""
        if not self._world.any(bool(self._met)):
            return
        met = {name: problem for share in self._world.gather(self._met) for name, problem in share.items()}
        self.bad_samples = tuple(sorted({*self.bad_samples, *met}))
        self._met.clear()
        if len(self.bad_samples) > self._spec.max_bad_samples:
            raise JobError([*met.values(), too_many(self.bad_samples, self._spec.max_bad_samples)])

    def _culprits(self) -> str:
        """ "was nan at step 3, with a.png, b.png": the first loss that is none. Collective."""
        mine = next((seen for seen in self._seen if not bool(seen.loss.isfinite())), None)
        found = (mine.step, float(mine.loss), mine.names) if mine else None
        firsts = [first for first in self._world.gather(found) if first]
        if not firsts:
            return "was in no single batch"
        step = min(first[0] for first in firsts)
        value = next(first[1] for first in firsts if first[0] == step)
        names = [name for first in firsts if first[0] == step for name in first[2]]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return f"was {value} at step {step}, with {', '.join(names[:_NAMED])}{more}"


@dataclass
class Spikes:
    """Notices a loss that lies far above those before: by six deviations of their running mean.

    In logarithms, since the loss of a single timestep already varies by a factor of a hundred.
    """

    decay: float = 0.95
    patience: int = 20  # losses before the first verdict
    _count: int = field(default=0, init=False)
    _mean: float = field(default=0.0, init=False)
    _square: float = field(default=0.0, init=False)

    def usual(self, loss: float) -> float | None:
        """Takes in a loss; the usual one where this one is a spike, else None."""
        value = math.log(max(loss, 1e-12))
        deviation = math.sqrt(max(self._square - self._mean**2, 1e-4))
        spike = self._count >= self.patience and value > self._mean + 6 * deviation
        usual = math.exp(self._mean)
        self._count += 1
        weight = max(1 / self._count, 1 - self.decay)
        self._mean += weight * (value - self._mean)
        self._square += weight * (value**2 - self._square)
        return usual if spike else None
