"""Every flag of the diffusers example scripts is understood: a setting, an alias, or one with a remedy."""

import pytest

from sdjob.problems import JobError
from sdjob.settings import flags
from sdjob.settings.diffusers_flags import UNSUPPORTED
from sdjob.settings.fields import targets
from sdjob.settings.run_spec import RunSpec

# Of train_dreambooth, train_text_to_image, and their LoRA and XL scripts; diffusers at 58eb52c080, August 2026.
FLAGS = """
adam_beta1 adam_beta2 adam_epsilon adam_weight_decay adam_weight_decay_text_encoder allow_tf32 cache_dir
caption_column center_crop checkpointing_steps checkpoints_total_limit class_data_dir
class_labels_conditioning class_prompt dataloader_num_workers dataset_config_name dataset_name debug_loss
do_edm_style_training dream_detail_preservation dream_training enable_npu_flash_attention
enable_xformers_memory_efficient_attention foreach_ema gradient_accumulation_steps gradient_checkpointing
hub_model_id hub_token image_column image_interpolation_mode input_perturbation instance_data_dir
instance_prompt learning_rate local_rank logging_dir lora_dropout lr_num_cycles lr_power lr_scheduler
lr_warmup_steps max_grad_norm max_train_samples max_train_steps mixed_precision noise_offset
non_ema_revision num_class_images num_train_epochs num_validation_images offload_ema offset_noise optimizer
output_dir output_kohya_format pre_compute_text_embeddings prediction_type pretrained_model_name_or_path
pretrained_vae_model_name_or_path prior_generation_precision prior_loss_weight prodigy_beta3
prodigy_decouple prodigy_safeguard_warmup prodigy_use_bias_correction proportion_empty_prompts push_to_hub
random_flip rank repeats report_to resolution resume_from_checkpoint revision sample_batch_size scale_lr
seed set_grads_to_none skip_save_text_encoder snr_gamma text_encoder_lr text_encoder_use_attention_mask
timestep_bias_begin timestep_bias_end timestep_bias_multiplier timestep_bias_portion timestep_bias_strategy
tokenizer_max_length tokenizer_name tracker_project_name train_batch_size train_data_dir train_text_encoder
use_8bit_adam use_dora use_ema validation_epochs validation_images validation_prompt validation_prompts
validation_scheduler validation_steps variant with_prior_preservation
"""
PATHS = ["--pretrained_model_name_or_path=m", "--output_dir=o"]


def parse(line: str) -> RunSpec:
    return flags.parse([*PATHS, *line.split()])


def test_every_flag_is_a_setting_or_has_a_remedy():
    known = {*targets(RunSpec), *UNSUPPORTED}
    assert [flag for flag in FLAGS.split() if flag not in known] == []
    assert targets(RunSpec).keys() & UNSUPPORTED.keys() == set()
    assert set(UNSUPPORTED) <= set(FLAGS.split())
    assert all(flag.remedy.endswith(".") for flag in UNSUPPORTED.values())


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_each_flag_without_a_counterpart_is_answered_and_accepted_values_are_not(name):
    flag = UNSUPPORTED[name]
    with pytest.raises(JobError) as caught:
        parse(f"--{name}" if flag.is_switch and "true" not in flag.accepted else f"--{name} hf_x")
    (problem,) = caught.value.problems
    assert (problem.code, problem.subject, problem.remedy) == (64, name, flag.remedy)
    assert "hf_x" not in problem.found
    for value in flag.accepted:
        assert parse(f"--{name}={value}") == parse("")


# Arguments in the style of these scripts' documentation → the settings that differ from a plain run.
@pytest.mark.parametrize(
    ("line", "values"),
    [
        (
            "--train_data_dir=d --use_ema --center_crop --random_flip --train_batch_size=4 --mixed_precision no "
            "--lr_scheduler constant_with_warmup --lr_warmup_steps 5 --report_to=tensorboard --report_to all",
            {
                "train_data_dir": "d",
                "use_ema": True,
                "center_crop": True,
                "random_flip": True,
                "train_batch_size": 4,
                "mixed_precision": "no",
                "lr_scheduler": "constant_with_warmup",
                "lr_warmup_steps": 5,
                "report_to": ("all",),
            },
        ),
        (
            "--use_8bit_adam --enable_xformers_memory_efficient_attention --set_grads_to_none --rank 4 "
            "--snr_gamma=5.0 --seed=0 --resume_from_checkpoint latest --offset_noise --learning_rate 1e-4",
            {
                "optimizer": "adamw8bit",
                "attention": "xformers",
                "lora_rank": 4,
                "snr_gamma": 5.0,
                "seed": 0,
                "noise_offset": 0.1,
                "learning_rate": 1e-4,
            },
        ),
        ("--resume_from_checkpoint checkpoint-500", {"resume": "checkpoint-500"}),
        ("--validation_prompt=sks", {"validation_prompts": ("sks",)}),
        (
            "--validation_prompts a b --validation_prompts c --seed 1",
            {"validation_prompts": ("a", "b", "c"), "seed": 1},
        ),
        ("--pre_compute_text_embeddings", {"cache_text_embeddings": "memory"}),
        (
            "--with-prior-preservation true --prior-loss-weight=0.5",
            {"with_prior_preservation": True, "prior_loss_weight": 0.5},
        ),
        ("--lr 1e-4 --learning_rate=0.0001 --batch_size 2", {"learning_rate": 1e-4, "train_batch_size": 2}),
        ("--seed 1 --seed 2", {"seed": 2}),
        ("--optimizer=Prodigy --prodigy_decouple=True", {"optimizer": "prodigy", "learning_rate": 1.0}),
        ("--flash_attention 0", {"attention": "math"}),
    ],
)
def test_a_command_line_of_these_scripts(line, values):
    plain = RunSpec(pretrained_model_name_or_path="m", output_dir="o").model_dump()
    spec = parse(line).model_dump()
    if "learning_rate" not in values:
        spec["learning_rate"] = plain["learning_rate"]  # a LoRA has a preset
    assert {name: value for name, value in spec.items() if value != plain[name]} == values


def test_every_mistake_is_reported_at_once():
    with pytest.raises(JobError) as caught:
        parse(
            "--lr=1e-4 --learning_rate=1e-5 --push_to_hub --report_to comet --seed=-1 --use_8bit_adam --optimizer adamw"
        )
    assert [problem.subject for problem in caught.value.problems] == [
        "lr",
        "optimizer",
        "push_to_hub",
        "report_to",
        "seed",
    ]
