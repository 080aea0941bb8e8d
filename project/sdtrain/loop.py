"""The step loop. It knows recipes and strategies only by their protocols."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from sdjob.output import starts
from sdjob.protocol import TRAINING
from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures.base import Parts
from sdtrain.checkpoint.background import Saver
from sdtrain.checkpoint.checkpoint import TrainState
from sdtrain.data.batch import Batch
from sdtrain.data.loader import loader
from sdtrain.data.sampling import generator
from sdtrain.model import attention
from sdtrain.model.compilation import CompileTime, LossFunction
from sdtrain.objective.diffusion import loss_of, noised
from sdtrain.optim.lr_schedule import schedule
from sdtrain.reporting.anomalies import Anomalies
from sdtrain.reporting.metrics import Losses, StepMetrics
from sdtrain.reporting.progress import Progress
from sdtrain.reporting.report import Outcome, TimedStep
from sdtrain.reporting.stopwatch import Stopwatch
from sdtrain.runtime import devices
from sdtrain.runtime.stop import Stopped, StopVote
from sdtrain.strategies.base import Strategy
from sdtrain.training import Training
from sdtrain.validation import validation

Batches = Iterator[Batch]  # of this rank, on its device


@dataclass(frozen=True)
class StepResult:
    """The outcome of an optimizer step on this rank, still on the device: mean loss [], gradient norm []."""

    loss: torch.Tensor
    grad_norm: torch.Tensor
    learning_rate: float
    applied: bool = True


def gradients(
    strategy: Strategy, parts: Parts, spec: RunSpec, batches: Batches, loss_of: LossFunction = loss_of
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """The forward and backward passes of one optimizer step; yields each batch with its loss []."""
    count = spec.gradient_accumulation_steps
    for number in range(1, count + 1):
        given = next(batches)
        batch = noised(parts, given, spec)
        # Around the backward pass too, which recomputes checkpointed activations.
        with strategy.accumulate(last=number == count), attention.chosen(spec.attention):
            with strategy.autocast():
                loss = loss_of(strategy.model, batch)
            strategy.backward(loss / count)
        yield given, loss.detach()


def optimizer_step(
    training: Training, batches: Batches, factor: float, step: int, anomalies: Anomalies
) -> StepResult:
    """One optimizer step: `gradient_accumulation_steps` batches, then one update.

    Never waits for the device, except with on_nan=skip, where all ranks skip a non-finite loss together.
    """
    spec, strategy = training.spec, training.strategy
    total = torch.zeros((), device=training.world.device)
    for batch, loss in gradients(strategy, training.parts, spec, batches, training.loss_of):
        anomalies.observe(step, batch, loss)
        total += loss / spec.gradient_accumulation_steps
    rate = spec.learning_rate * factor
    if spec.on_nan == "skip" and training.world.any(not bool(total.isfinite())):
        strategy.discard()
        anomalies.skip_step(step)
        return StepResult(torch.zeros_like(total), torch.zeros_like(total), rate, applied=False)
    grad_norm = strategy.step(factor)
    if training.ema:
        training.ema.update(strategy.masters())
    return StepResult(total, grad_norm, rate)


def train_steps(training: Training, state: TrainState) -> Outcome:
    """Train from a state to the last step, with logs, checkpoints and validation on the way. Collective.

    Raises Stopped when asked to stop (the state is saved), JobError when the loss is NaN or infinite.
    """
    spec, world = training.spec, training.world
    first, last = state.step, spec.max_train_steps
    progress = Progress(TRAINING, last, done=first, shown=world.is_main, steps=True)
    with Saver(training.context, training.tracker) as saver:
        loop = _Loop(training, state, progress, saver)
        with loop.compile_time.measured(spec, loop.watch.paused):
            for step in range(first + 1, last + 1):
                loop.advance(step)
    return loop.outcome(first)


class _Loop:
    """The loop between two steps. `state` is that of the last checkpoint. Every method is collective."""

    def __init__(self, training: Training, state: TrainState, progress: Progress, saver: Saver) -> None:
        spec, world = training.spec, training.world
        bad_samples = {*state.bad_samples, *training.examples.bad_samples}
        skip_steps = max(0, min(spec.skip_steps, spec.max_train_steps - state.step - 1))
        self.training, self.state, self.progress, self.saver = training, state, progress, saver
        self.factor = schedule(spec)
        self.batches = loader(
            training.examples,
            training.shape,
            world.rank,
            state.samples_seen,
            spec.max_train_steps - state.step,
            workers=spec.dataloader_num_workers,
            device=world.device,
        )
        self.losses = Losses(world.device, state.mean_loss)
        self.anomalies = Anomalies(spec, world, state.skipped_steps, sorted(bad_samples), training.tracker)
        self.stop_vote = StopVote(world)
        self.timed_step: TimedStep | None = None
        self.watch, self.compile_time = Stopwatch(world.device, skip_steps), CompileTime()

    def advance(self, step: int) -> None:
        """One step, and whatever is due after it."""
        training, spec = self.training, self.training.spec
        result = self._step(step)
        self.losses.add(result.loss, applied=result.applied)
        self.watch.step()
        if result.applied and (step % spec.logging_steps == 0 or step in (1, spec.max_train_steps)):
            self._log(step, result)
        mean_loss = "" if self.losses.shown is None else f"mean loss {self.losses.shown:.4f}  "
        self.progress.show(step, f"{mean_loss}lr {result.learning_rate:.1e}")
        is_last = step == spec.max_train_steps
        stopping = self.stop_vote.stops(bool(training.context.stop) or self.saver.failed, is_last=is_last)
        if stopping or is_last or step % spec.checkpointing_steps == 0:
            with self._paused():
                self._save(step, background=spec.background_save and not stopping and not is_last)
        if stopping:
            raise Stopped(step)
        if validation.is_due(training, step):
            with self._paused():
                self._validate(step)

    def _step(self, step: int) -> StepResult:
        """The optimizer step; `timed_step` alone waits for the device before and after."""
        training = self.training
        timed = step == training.spec.timed_step
        start = devices.clock(training.world.device) if timed else 0.0
        if training.spec.lora_dropout:  # from global random numbers: a resume must find those of its step
            seeded = generator(training.spec.seed, step, training.world.rank, "dropout")
            torch.manual_seed(seeded.initial_seed())
        result = optimizer_step(training, self.batches, self.factor(step - 1), step, self.anomalies)
        if timed:
            seconds = devices.clock(training.world.device) - start
            loss = float(training.world.mean(result.loss))
            self.timed_step = TimedStep(step, seconds, loss, training.spec.reference_loss)
        return result

    def _log(self, step: int, result: StepResult) -> None:
        """Log the metrics of a step; its loss is the mean over all ranks and batches."""
        training, world, anomalies = self.training, self.training.world, self.anomalies
        mean, grad_norm = world.mean(torch.stack([result.loss.float(), result.grad_norm.float()]))
        loss = anomalies.finite(mean, step)
        anomalies.warn_of_spike(loss, step)
        anomalies.agree_on_bad_samples()
        self.losses.log(loss)
        rate = self.watch.steps_per_second
        training.tracker.log(
            StepMetrics(
                step,
                loss=loss,
                learning_rate=result.learning_rate,
                grad_norm=float(grad_norm),
                epoch=self._samples_seen(step) / training.num_examples,
                skipped_steps=anomalies.skipped_steps or None,
                images_per_second=rate * training.shape.global_batch if rate else None,
                peak_memory_gib=devices.peak_memory(world.device) / 2**30,
            )
        )

    def _save(self, step: int, *, background: bool) -> None:
        training = self.training
        self._update_state(step)
        # Before the checkpoint, so that a kill after it loses no metrics of steps that are not repeated.
        training.tracker.flush()
        at = starts.now(training.context.layout)
        state = replace(self.state, spent=self.state.spent.and_this_start(training.world.size, at))
        self.saver.save(state, training.strategy, training.ema_shards, background=background)

    def _update_state(self, step: int) -> None:
        """Bring the state forward to `step`; raises JobError if it must not be saved."""
        training, state, losses, anomalies = self.training, self.state, self.losses, self.anomalies
        total = anomalies.finite(training.world.mean(losses.sum), step)
        last = state.loss
        if losses.last_applied:
            last = anomalies.finite(training.world.mean(losses.last), step)
        anomalies.agree_on_bad_samples()
        # A gradient that overflows spoils the weights while the loss of its step is still finite.
        weights = training.strategy.masters().values()
        if training.world.any(not all(bool(weight.sum().isfinite()) for weight in weights)):
            raise anomalies.diverged("weights", f"hold NaN or infinite values after step {step}")
        losses.reset()
        self.state = replace(
            state,
            step=step,
            samples_seen=self._samples_seen(step),
            global_batch=training.shape.global_batch,
            loss=last,
            loss_sum=state.loss_sum + total,
            skipped_steps=anomalies.skipped_steps,
            bad_samples=anomalies.bad_samples,
        )

    def _validate(self, step: int) -> None:
        try:
            validation.validate(self.training, step)
        except Stopped:
            if self.state.step < step:
                self._save(step, background=False)
            raise

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Exclude checkpoints and validation from the measured speed."""
        with self.watch.paused(), self.progress.paused():
            yield

    def _samples_seen(self, step: int) -> int:
        return self.state.samples_seen + (step - self.state.step) * self.training.shape.global_batch

    def outcome(self, first_step: int) -> Outcome:
        """The result of the steps after `first_step`."""
        self.watch.pause()
        return Outcome(
            state=self.state,
            first_step=first_step,
            steps_per_second=self.watch.steps_per_second,
            skip_steps=self.watch.skip_steps,
            timed_step=self.timed_step,
            compile_seconds=self.compile_time.seconds,
        )
