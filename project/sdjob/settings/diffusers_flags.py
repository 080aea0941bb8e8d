"""Flags of the diffusers example scripts that have no counterpart here, and what to do instead.

The other flags of these scripts are settings, or aliases of settings (run_spec.py). Worker and launcher read both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sdjob.problems import Problem, bad_setting
from sdjob.settings.fields import OFF, ON


@dataclass(frozen=True)
class Unsupported:
    """What to do instead of a flag, and the values that are accepted because they ask for what happens anyway."""

    remedy: str
    accepted: tuple[str, ...] = ()  # in lower case
    is_switch: bool = False  # takes no value
    in_environment: bool = True  # a variable of this name, in lower case, is meant for a trainer
    keeps_result: bool = False  # without the flag the same weights come out


def _switch(remedy: str, *accepted: str, keeps_result: bool = False) -> Unsupported:
    return Unsupported(remedy, (*OFF, *accepted), is_switch=True, keeps_result=keeps_result)


def _always(what: str) -> Unsupported:
    """A switch for what is done in any case."""
    return _switch(what, *ON, keeps_result=True)


_UPLOAD = "Set publish=hub:USER/NAME for bash train.sh, or call bash train.sh publish to=hub:USER/NAME."
_DOWNLOAD = (
    "Download it first: hf download NAME --revision=REVISION --local-dir=FOLDER, and set the model to FOLDER."
)
_TIMESTEPS = "Remove it: timesteps are sampled uniformly; snr_gamma=5 weights their losses."
_PRODIGY = "Remove it: optimizer=prodigy always corrects the bias and safeguards the warm-up."
_DREAM = "Remove it: DREAM is not implemented; snr_gamma=5 weights the loss by timestep."
_OTHER_MODELS = "Remove it: only DeepFloyd IF, which is not supported, uses it."

UNSUPPORTED: Mapping[str, Unsupported] = {
    "scale_lr": _switch(
        "Multiply lr yourself by gradient_accumulation_steps × batch_size × processes; the plan shows them."
    ),
    "push_to_hub": _switch(_UPLOAD, keeps_result=True),
    "hub_token": Unsupported(
        "Remove it, and set the variable HF_TOKEN where a download needs it.", keeps_result=True
    ),
    "hub_model_id": Unsupported(_UPLOAD, keeps_result=True),
    "logging_dir": Unsupported(
        "Remove it: event files are written to tensorboard/ of the output folder.",
        ("logs",),
        in_environment=False,
        keeps_result=True,
    ),
    "local_rank": Unsupported(
        "Remove it: torchrun sets LOCAL_RANK in the environment.",
        ("-1",),
        in_environment=False,
        keeps_result=True,
    ),
    "revision": Unsupported(_DOWNLOAD, in_environment=False),
    "non_ema_revision": Unsupported(_DOWNLOAD),
    "variant": Unsupported(
        "Remove it: plain weights are read where a folder has them, otherwise its variant.",
        in_environment=False,
        keeps_result=True,
    ),
    "tokenizer_name": Unsupported("Remove it: the tokenizer is that of the model's folder tokenizer."),
    "tokenizer_max_length": Unsupported("Use max_token_length=75, 150 or 225.", ("77",)),
    "text_encoder_use_attention_mask": _switch(_OTHER_MODELS),
    "skip_save_text_encoder": _switch(_OTHER_MODELS, keeps_result=True),
    "class_labels_conditioning": Unsupported(_OTHER_MODELS),
    "validation_images": Unsupported(_OTHER_MODELS, keeps_result=True),
    "validation_scheduler": Unsupported(
        "Remove it: samples are generated with the scheduler in the model's folder scheduler.",
        keeps_result=True,
    ),
    "validation_epochs": Unsupported(
        "Use validation_steps=N; the plan shows the steps per epoch.", keeps_result=True
    ),
    "dataset_name": Unsupported(
        "Set the recipe's flag, train_data_dir or instance_data_dir, to a folder; "
        "bash train.sh also finds, and with offline=0 downloads, a dataset by name."
    ),
    "dataset_config_name": Unsupported("Mount only the files of that configuration."),
    "max_train_samples": Unsupported(
        "Give a dataset of that many images, or hold the others out: validation_split."
    ),
    "repeats": Unsupported(
        "Set num_train_step, or epoch times this number: an epoch sees each image once.",
        ("1",),
        in_environment=False,
    ),
    "prior_generation_precision": Unsupported(
        "Remove it: class images are generated in mixed_precision.", keeps_result=True
    ),
    "adam_weight_decay_text_encoder": Unsupported(
        "Remove it: adam_weight_decay applies to all trained parts."
    ),
    "prodigy_beta3": Unsupported("Remove it: optimizer=prodigy uses the square root of adam_beta2."),
    "prodigy_decouple": Unsupported(_PRODIGY, ON),
    "prodigy_use_bias_correction": Unsupported(_PRODIGY, ON),
    "prodigy_safeguard_warmup": Unsupported(_PRODIGY, ON),
    "output_kohya_format": _always("Remove it: a LoRA is always exported in kohya's format too."),
    "set_grads_to_none": _always("Remove it: gradients are always released after a step."),
    "foreach_ema": _always("Remove it: the EMA is always updated in one pass."),
    "offload_ema": _switch(
        "Remove it: the EMA stays on the device; plugin=fsdp divides it among the processes.",
        keeps_result=True,
    ),
    "enable_npu_flash_attention": _switch(
        "Remove it: attention=auto uses the kernels of the device.", keeps_result=True
    ),
    "debug_loss": _switch("Use logging_steps=1, which logs the loss of each step.", keeps_result=True),
    "do_edm_style_training": _switch(
        "Remove it: models are trained to predict what they predict, epsilon or v_prediction."
    ),
    "dream_training": _switch(_DREAM),
    "dream_detail_preservation": Unsupported(_DREAM, ("1", "1.0")),
    "timestep_bias_strategy": Unsupported(_TIMESTEPS, ("none",)),
    **{
        f"timestep_bias_{name}": Unsupported(_TIMESTEPS) for name in ("begin", "end", "multiplier", "portion")
    },
}


def problems(given: Iterable[tuple[str, str, str]]) -> list[Problem]:
    """What to do instead of these flags: (name, value, where). A value may be a token: none is shown."""
    return [
        bad_setting(name, f"a flag of the diffusers examples, not supported here ({where})", flag.remedy)
        for name, value, where in given
        if value.strip().lower() not in (flag := UNSUPPORTED[name]).accepted
    ]
