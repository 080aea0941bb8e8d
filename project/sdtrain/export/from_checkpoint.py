"""`python -m sdtrain.export.from_checkpoint`: the result of a step checkpoint, as the end of its run leaves it.

For the launcher's `export`: in one process, on the CPU, without training.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from sdjob import writing
from sdjob.exit_codes import ExitCode
from sdjob.files import shown
from sdjob.model import memory_estimate, trainable
from sdjob.model.pipeline import PipelineFolder, find_of
from sdjob.output import fingerprint, run_settings
from sdjob.output.layout import defect_of
from sdjob.problems import JobError, bad_input
from sdjob.settings import flags
from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures.base import Parts
from sdtrain.checkpoint import state_io
from sdtrain.checkpoint.checkpoint import read_state
from sdtrain.export import export, model_card
from sdtrain.model import convert, load
from sdtrain.reporting.report import versions
from sdtrain.runtime import errors
from sdtrain.runtime.devices import DEVICE_TYPES
from sdtrain.runtime.distributed import World
from sdtrain.runtime.stop import StopRequest


def main(arguments: Sequence[str]) -> int:
    """Export what a command line names; returns its exit code."""
    parser = argparse.ArgumentParser("python -m sdtrain.export.from_checkpoint", allow_abbrev=False)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("to", type=Path)
    parser.add_argument("--weights", choices=run_settings.WEIGHTS, required=True)
    options, settings = parser.parse_known_args(arguments)
    try:
        spec = flags.parse(settings)
        write_result(options.checkpoint, options.to, spec, ema=options.weights == "ema")
    except Exception as error:
        return errors.reported(error)
    print(f"exported {options.checkpoint} to {options.to}")
    return int(ExitCode.FINISHED)


def write_result(checkpoint: Path, folder: Path, spec: RunSpec, *, ema: bool) -> None:
    """Pipeline or LoRA in all layouts that the settings ask for, with a model card. Raises JobError (66, 73)."""
    model = base_model(spec)
    check_base(checkpoint, model)
    # Trained weights are fp32 in any case; frozen ones are copied from their files, and only need room here.
    parts, weights = trained(checkpoint, model, spec, "bf16", torch.device("cpu"), ema=ema)
    writing.make_folder(folder, Path(spec.output_dir))
    export.export(folder, model, parts, weights, spec)
    state = read_state(checkpoint)
    values = {
        "steps": state.step,
        "mean_loss": state.mean_loss,
        "global_batch_size": state.global_batch,
        "trained_parts": trainable.parts(spec, model),
        "num_examples": None,
        "versions": versions(),
    }
    as_written = spec.model_copy(update={"use_ema": ema})
    card = model_card.render(as_written, parts.architecture.facts, values, samples=False)
    writing.write_text(folder / model_card.FILE, card)


def base_model(spec: RunSpec) -> PipelineFolder:
    """The model that a run started from, as a folder. Raises JobError (66, 73)."""
    alone = World(0, 0, 1, DEVICE_TYPES["cpu"], torch.device("cpu"))
    return convert.as_folder(find_of(spec), spec, alone, StopRequest(None))


def check_base(checkpoint: Path, model: PipelineFolder) -> None:
    """Raise JobError (66) unless the checkpoint is whole, and was trained on this model: its weights fit no other."""
    largest = memory_estimate.largest_checkpoint(model)
    if defect := defect_of(checkpoint, hashes=True, largest=largest):
        raise JobError(bad_input(shown(checkpoint), defect, "name another checkpoint of the run"))
    recorded = read_state(checkpoint).fingerprint
    if any(recorded.get(name, fact) != fact for name, fact in fingerprint.model_facts(model).items()):
        found = f"is not the model that {checkpoint.name} was trained on: its files differ"
        raise JobError(bad_input(shown(model.path), found, "name the model that the run started from"))


def trained(
    checkpoint: Path, model: PipelineFolder, spec: RunSpec, precision: str, device: torch.device, *, ema: bool
) -> tuple[Parts, dict[str, torch.Tensor]]:
    """The model with the weights of a step checkpoint, whole or sharded, and these by name, fp32."""
    parts = load.load(
        model,
        precision,
        device,
        allow_pickle=spec.allow_pickle,
        lora=bool(spec.lora_rank),
        train_text_encoder=spec.train_text_encoder,
        zero_snr=spec.rescale_betas_zero_snr,
    )
    spec = spec.model_copy(update={"lora_weights": None})  # it need not be there any more
    weights = {name: weight.data for name, weight in load.trainable(load.make_trainable(parts, spec)).items()}
    state_io.read_weights(checkpoint, weights, ema=ema)
    return parts, weights


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
