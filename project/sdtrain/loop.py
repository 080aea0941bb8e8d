"""The one step loop. It knows recipes and strategies only by their protocols."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from sdjob.settings.optimizers import OPTIMIZERS
from sdjob.settings.plugins import PLUGINS
from sdtrain.checkpoint.background import Saver
from sdtrain.checkpoint.checkpoint import TrainState
from sdtrain.context import Training
from sdtrain.data.sampling import prolonged
from sdtrain.data.streams import StreamBatch, loader
from sdtrain.model import attention
from sdtrain.objective.diffusion import loss_of, noised
from sdtrain.optim.lr_schedule import schedule
from sdtrain.reporting.anomalies import Incidents
from sdtrain.reporting.metrics import Losses, StepMetrics
from sdtrain.reporting.progress import Progress, say
from sdtrain.reporting.report import Outcome, Stopwatch, TimedStep
from sdtrain.runtime import devices, host_memory
from sdtrain.runtime.stop import Stopped
from sdtrain.validation import validation


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step gave on this rank, still on the device: mean loss [], gradient norm []."""

    loss: torch.Tensor
    grad_norm: torch.Tensor
    learning_rate: float
    applied: bool = True


def optimizer_step(
    training: Training,
    batches: Iterator[tuple[StreamBatch, ...]],
    factor: float,
    step: int,
    incidents: Incidents,
) -> StepResult:
    """One optimizer step: `accumulation` batches, then one update.

    Never waits for the device, unless steps are skipped whose loss is no number: on all ranks alike.
    """
    micro_batches = training.shape.accumulation
    total = torch.zeros((), device=training.world.device)
    for micro in range(micro_batches):
        given = next(batches)
        batch = noised(training.parts, given, training.spec)
        last = micro == micro_batches - 1
        # Around the backward pass too, where checkpointed activations are computed again.
        with training.strategy.accumulate(last), attention.chosen(training.spec.attention):
            with training.strategy.autocast():
                loss = loss_of(training.strategy.model, batch)
            training.strategy.backward(loss / micro_batches)
        incidents.saw(step, given, loss.detach())
        total += loss.detach() / micro_batches
    rate = training.spec.learning_rate * factor
    if training.spec.on_nan == "skip" and training.world.any(not bool(total.isfinite())):
        training.strategy.discard()
        incidents.skip(step)
        return StepResult(torch.zeros_like(total), torch.zeros_like(total), rate, applied=False)
    grad_norm = training.strategy.step(factor)
    if training.ema:
        training.ema.update(training.strategy.masters())
    return StepResult(total, grad_norm, rate)


def train_steps(training: Training, state: TrainState) -> tuple[TrainState, Outcome]:
    """From a state to the last step: logs, checkpoints and samples on the way. Collective.

    Raises Stopped when asked to stop (the state is saved), JobError when the loss is no number.
    """
    spec, world = training.spec, training.world
    first, last = state.step, spec.max_train_steps
    watch = Stopwatch(world.device, max(0, min(spec.skip_steps, last - first - 1)))
    factor, batches, losses = schedule(spec), _batches(training, state), Losses(world.device, _mean(state))
    bad_samples = {*state.bad_samples, *training.examples.bad_samples}
    incidents = Incidents(spec, world, state.skipped_steps, sorted(bad_samples))
    timed: TimedStep | None = None
    with (
        Progress("step", last, done=first, shown=world.is_main) as progress,
        Saver(training.layout, world, spec.checkpoints_total_limit) as saver,
    ):
        watch.go_on()
        for step in range(first + 1, last + 1):
            began = devices.clock(world.device) if step == spec.timed_step else None
            result = optimizer_step(training, batches, factor(step - 1), step, incidents)
            if began is not None:
                seconds = devices.clock(world.device) - began
                timed = TimedStep(step, seconds, float(world.mean(result.loss)), spec.reference_loss)
            losses.add(result.loss, applied=result.applied)
            watch.step()
            if result.applied and (step % spec.logging_steps == 0 or step in (1, last)):
                losses.logged(_log(training, state, step, result, watch, incidents))
            loss = "" if losses.shown is None else f"mean loss {losses.shown:.4f}  "
            progress.show(step, f"{loss}lr {result.learning_rate:.1e}")
            stopping = world.any(bool(training.stop) or saver.failed)
            if stopping or step == last or step % spec.checkpointing_steps == 0:
                with watch.paused(), progress.paused():
                    state = _reached(training, state, step, losses, incidents)
                    to_save = replace(state, spent=state.spent.and_this_start(world.size))
                    save(
                        training, saver, to_save, beside=spec.background_save and not stopping and step < last
                    )
            if stopping:
                raise Stopped(step)
            if _validation_is_due(training, step):
                with watch.paused(), progress.paused():
                    try:
                        validation.validate(training, step)
                    except Stopped:
                        if state.step < step:
                            state = _reached(training, state, step, losses, incidents)
                            save(training, saver, state, beside=False)
                        raise
    watch.pause()
    return state, _outcome(training, first, state, watch, timed)


def _batches(training: Training, state: TrainState) -> Iterator[tuple[StreamBatch, ...]]:
    """This rank's batches from a state to the last step."""
    spec, world = training.spec, training.world
    return loader(
        training.examples.after(state.past),
        training.shape,
        world.rank,
        state.place,
        spec.max_train_steps - state.step,
        workers=spec.dataloader_num_workers,
        pin_memory=world.device.type == "cuda",
    )


def _mean(state: TrainState) -> float | None:
    """The mean loss up to a state, of the steps that were applied; None: there are none."""
    applied = state.step - state.skipped_steps
    return state.loss_sum / applied if applied else None


def _outcome(
    training: Training, first: int, state: TrainState, watch: Stopwatch, timed: TimedStep | None
) -> Outcome:
    """The result of the steps from `first` to a state."""
    return Outcome(
        first_step=first,
        last_step=state.step,
        final_loss=state.loss if math.isfinite(state.loss) else None,
        mean_loss=_mean(state),
        skipped_steps=state.skipped_steps,
        bad_samples=state.bad_samples,
        spent_before=state.spent,
        steps_per_second=watch.steps_per_second,
        skip_steps=watch.skip_steps,
        timed_step=timed,
        num_examples=training.num_examples,
    )


def _place(training: Training, state: TrainState, step: int) -> int:
    """Of the stream of samples, after a step that follows a state."""
    return state.place + (step - state.step) * training.shape.global_batch


def _reached(
    training: Training, state: TrainState, step: int, losses: Losses, incidents: Incidents
) -> TrainState:
    """The state after `step`, with the losses since the last one; raises if it must not be saved. Collective."""
    mean = training.world.mean
    total = incidents.check(mean(losses.sum), step)
    last = incidents.check(mean(losses.last), step) if losses.last_applied else state.loss
    incidents.settle()
    _check_weights(training, step, incidents)
    losses.begin_again()
    return replace(
        state,
        step=step,
        place=_place(training, state, step),
        past=prolonged(state.past, step - state.step, training.shape.global_batch),
        loss=last,
        loss_sum=state.loss_sum + total,
        skipped_steps=incidents.skipped_steps,
        bad_samples=incidents.bad_samples,
    )


def _validation_is_due(training: Training, step: int) -> bool:
    """Between the first validation, before training, and the last, when the result is in place."""
    every, last = training.spec.validation_steps, training.spec.max_train_steps
    wanted = training.spec.validation_prompts or training.held_out
    return bool(wanted and every) and step % every == 0 and step != last


def save(training: Training, saver: Saver, state: TrainState, *, beside: bool) -> None:
    """A whole checkpoint of this state; `beside`: from a copy, while the run goes on, if it may. Collective."""
    # Before the checkpoint: whoever is killed after it has lost no figure of the steps that are not repeated.
    training.tracker.flush()
    average = training.ema.shares if training.ema else None
    if beside and _has_room_to_copy(training):
        saver.save_beside(state, training.strategy.snapshot(average))
    else:
        saver.save(state, lambda folder: training.strategy.save(folder, average))


def _has_room_to_copy(training: Training) -> bool:
    """Whether every host has memory for copies of what its ranks save, and of the weights once more. Collective."""
    spec, world = training.spec, training.world
    weights = sum(master.numel() * master.element_size() for master in training.strategy.masters().values())
    copies = 2 + OPTIMIZERS[spec.optimizer].state_bytes / 4 + (1 if training.ema else 0)
    saves = world.is_main or PLUGINS[spec.plugin].shards
    host = world.rank - world.local_rank  # by its first rank
    asked = world.gather((host, copies * weights if saves else 0))
    needed = sum(size for where, size in asked if where == host)
    short = world.local_rank == 0 and host_memory.available() < needed
    if short:
        say(f"the host's memory has no room for a copy of {needed / 1e9:.1f} GB: saving without one")
    return not world.any(short)


def _log(
    training: Training,
    state: TrainState,
    step: int,
    result: StepResult,
    watch: Stopwatch,
    incidents: Incidents,
) -> float:
    """Logs the metrics of a step; gives its loss, the mean over all ranks and batches. Collective."""
    world = training.world
    loss, grad_norm = world.mean(torch.stack([result.loss.float(), result.grad_norm.float()]))
    value = incidents.check(loss, step)
    incidents.logged(value, step)
    incidents.settle()
    rate = watch.steps_per_second
    metrics = StepMetrics(
        step,
        loss=value,
        learning_rate=result.learning_rate,
        grad_norm=float(grad_norm),
        epoch=_place(training, state, step) / training.num_examples,
        skipped_steps=incidents.skipped_steps or None,
        images_per_second=rate * training.shape.global_batch if rate else None,
        peak_memory_gib=devices.peak_memory(world.device) / 2**30,
    )
    training.tracker.log(metrics)
    return value


def _check_weights(training: Training, step: int, incidents: Incidents) -> None:
    """A gradient that overflows spoils the weights while the loss of its step is still a number. Collective."""
    weights = training.strategy.masters().values()
    if training.world.any(not all(bool(weight.isfinite().all()) for weight in weights)):
        raise incidents.diverged("weights", f"hold values that are no numbers after step {step}")
