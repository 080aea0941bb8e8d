"""Tests of translate, trainers, scripts, launchers, kohya, kohya_flags, lines and env_file."""

import itertools

import pytest

from sdjob.settings.diffusers_flags import UNSUPPORTED
from sdlaunch.convert import command_line, env_file, kohya, launchers
from sdlaunch.convert.kohya_flags import KOHYA_UNSUPPORTED
from sdlaunch.convert.lines import Flag
from sdlaunch.convert.scripts import SCRIPTS
from sdlaunch.convert.trainers import TRAINERS
from sdlaunch.convert.translate import Source, lines_of, lines_of_flag
from sdlaunch.settings import names, settings
from tests.sdjob.settings.test_diffusers_flags import FLAGS

# Of kohya's sd-scripts (train_network, train_db, fine_tune, sdxl_train), at 48d368fa, February 2026.
KOHYA_FLAGS = """
adaptive_noise_scale alpha_mask async_upload base_weights base_weights_multiplier block_lr blocks_to_swap
bucket_no_upscale bucket_reso_steps cache_info cache_latents cache_latents_to_disk cache_text_encoder_outputs
cache_text_encoder_outputs_to_disk caption_dropout_every_n_epochs caption_dropout_rate caption_extension
caption_extention caption_prefix caption_separator caption_suffix caption_tag_dropout_rate clip_skip color_aug
conditioning_data_dir cpu_offload_checkpointing dataset_class dataset_repeats ddp_gradient_as_bucket_view
ddp_static_graph ddp_timeout debiased_estimation_loss debug_dataset diffusers_xformers dim_from_weights
disable_mmap_load_safetensors dynamo_backend enable_bucket enable_wildcard face_crop_aug_range flip_aug fp8_base
fp8_base_unet full_bf16 full_fp16 fused_backward_pass fused_optimizer_groups gradient_accumulation_steps
gradient_checkpointing highvram huber_c huber_scale huber_schedule huggingface_path_in_repo huggingface_repo_id
huggingface_repo_type huggingface_repo_visibility huggingface_token in_json initial_epoch initial_step ip_noise_gamma
ip_noise_gamma_random_strength keep_tokens keep_tokens_separator learning_rate learning_rate_te learning_rate_te1
learning_rate_te2 log_config log_prefix log_tracker_config log_tracker_name log_with logging_dir logit_mean logit_std
loss_type lowram lr_decay_steps lr_scheduler lr_scheduler_args lr_scheduler_min_lr_ratio lr_scheduler_num_cycles
lr_scheduler_power lr_scheduler_timescale lr_scheduler_type lr_warmup_steps masked_loss max_bucket_reso
max_data_loader_n_workers max_grad_norm max_timestep max_token_length max_train_epochs max_train_steps
max_validation_steps mem_eff_attn min_bucket_reso min_snr_gamma min_timestep mixed_precision mode_scale
multires_noise_discount multires_noise_iterations network_alpha network_args network_dim network_dropout
network_module network_train_text_encoder_only network_train_unet_only network_weights no_half_vae no_metadata
no_token_padding noise_offset noise_offset_random_strength optimizer_args optimizer_type output_config output_dir
output_name persistent_data_loader_workers pretrained_model_name_or_path prior_loss_weight random_crop reg_data_dir
resize_interpolation resolution resume resume_from_huggingface sample_at_first sample_every_n_epochs
sample_every_n_steps sample_prompts sample_sampler save_every_n_epochs save_every_n_steps save_last_n_epochs
save_last_n_epochs_state save_last_n_steps save_last_n_steps_state save_model_as save_n_epoch_ratio save_precision
save_state save_state_on_train_end save_state_to_huggingface scale_v_pred_loss_like_noise_pred scale_weight_norms sdpa
secondary_separator seed shuffle_caption skip_cache_check skip_until_initial_step stop_text_encoder_training
text_encoder_batch_size text_encoder_lr token_warmup_min token_warmup_step tokenizer_cache_dir torch_compile
train_batch_size train_data_dir train_text_encoder training_comment unet_lr use_8bit_adam use_lion_optimizer
use_safetensors v2 v_parameterization v_pred_like_loss vae vae_batch_size validate_every_n_epochs
validate_every_n_steps validation_seed validation_split wandb_api_key wandb_run_name weighted_captions
weighting_scheme xformers zero_terminal_snr
num_repeats class_tokens image_dir metadata_file
"""
COLOSSAL_FLAGS = "externel_unet_path offload_optim_frac test_run plugin placement save_steps"


def converted(line, recipe=None):
    """Settings, lost flags and notes of a command line."""
    command = command_line.from_words(line.split(), SCRIPTS)
    flags = list(command.flags)
    if SCRIPTS[command.script].trainer == "kohya":
        flags, _ = kohya.prepared(flags)
    started = tuple(launchers.lines_of(command.launcher, command.launcher_flags))
    source = Source(f"{command.script}.py", SCRIPTS[command.script], tuple(flags), started)
    lines = env_file.settle(lines_of(source))
    return (
        {each.name: each.value for each in lines if each.name},
        [each.origin for each in lines if each.lost],
        [each.origin for each in lines if each.remark and not each.lost],
    )


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("train_text_to_image", FLAGS),
        ("train_dreambooth_colossalai", COLOSSAL_FLAGS),
        ("train_network", KOHYA_FLAGS),
    ],
)
def test_no_flag_is_dropped_and_every_flag_is_known(script, flags):
    """With a value that means something else, with one that switches off, and without any."""
    trainer = SCRIPTS[script].trainer
    for name, values in itertools.product(flags.split(), (("7",), ("0",), ())):
        flag = Flag(name, values)
        lines = [*lines_of_flag(flag, trainer)]
        if name != "scale_lr" or flag.is_off:  # a factor of lr
            assert lines, flag
        assert not any("that is known" in line.remark for line in lines), flag
        assert all(line.origin == str(flag) and (line.remark or line.name) for line in lines)
    known = TRAINERS[trainer]
    doubly = {*known.unsupported} & ({*known.rules} | {*known.renamed})
    assert doubly <= {"logging_dir", "dataset_name", "scale_lr", "hub_model_id"}


def test_an_unknown_flag_is_lost():
    found, lost, _ = converted("python train_dreambooth.py --bogus=3 --seed=1")
    assert lost == ["--bogus=3"] and found["seed"] == "1" and "bogus" not in found


def test_defaults_of_a_script_are_written_where_ours_differ():
    found, lost, _ = converted("python train_text_to_image.py --pretrained_model_name_or_path=m")
    assert found == {
        "recipe": "text_to_image",
        "model_name": "m",
        "NPROC_PER_NODE": "1",
        "mixed_precision": "no",
        "batch_size": "16",
        "epoch": "100",
        "lr": "1e-4",
    }
    assert lost == []
    found, _, _ = converted(
        "python train_text_to_image_lora_sdxl.py --lr_scheduler=cosine --max_train_steps=9"
    )
    assert (found["lr_warmup_steps"], found["lora_rank"], found["resolution"]) == ("500", "4", "1024")
    assert "epoch" not in found and found["num_train_step"] == "9"


# Of diffusers at 58eb52c080 and Colossal-AI at 4f9953be3: per device, passes, rate.
@pytest.mark.parametrize(
    ("script", "batch_size", "epoch", "lr"),
    [
        ("train_dreambooth", "4", "1", "5e-6"),
        ("train_dreambooth_lora", "4", "1", "5e-4"),
        ("train_dreambooth_lora_sdxl", "4", "1", "1e-4"),
        ("train_dreambooth_colossalai", "4", "1", "5e-6"),
        ("train_text_to_image_lora", "16", "100", "1e-4"),
        ("train_text_to_image_sdxl", "16", "100", "1e-4"),
    ],
)
def test_length_and_rate_of_a_script_without_flags(script, batch_size, epoch, lr):
    found, _, _ = converted(f"python {script}.py")
    assert (found["batch_size"], found["epoch"], found["lr"]) == (batch_size, epoch, lr)
    assert found.get("lora_rank") == ("4" if "lora" in script else None)
    assert found.get("resolution") == ("1024" if "xl" in script else None)


def test_the_precision_of_the_script_wins_over_the_launcher_s():
    found, lost, notes = converted(
        "accelerate launch --mixed_precision=no train_dreambooth.py --mixed_precision=fp16"
    )
    assert (found["mixed_precision"], lost, notes) == ("fp16", [], ["--mixed_precision=no"])
    assert (
        converted("accelerate launch --mixed_precision=bf16 train_dreambooth.py")[0]["mixed_precision"]
        == "bf16"
    )
    found, _, _ = converted("torchrun train_dreambooth_colossalai.py --plugin=gemini")
    assert found["mixed_precision"] == "fp16"


def test_defaults_of_a_script_s_optimizer_and_resizing():
    found, _, _ = converted("python train_dreambooth_colossalai.py")
    assert (found["adam_weight_decay"], found["image_interpolation_mode"]) == ("0", "bilinear")
    assert "adam_weight_decay" not in converted("python train_network.py --optimizer_type=AdamW8bit")[0]
    assert converted("python train_network.py --optimizer_type=Prodigy")[0]["adam_weight_decay"] == "0"
    line = "python train_network.py --optimizer_type=Prodigy --optimizer_args weight_decay=0.01"
    assert converted(line)[0]["adam_weight_decay"] == "0.01"


def test_of_a_flag_that_is_given_twice_the_last_counts():
    found, _, notes = converted("python train_dreambooth.py --seed=1 --seed=2")
    assert (found["seed"], notes) == ("2", ["--seed=1"])


def test_switches_of_settings_with_more_values_and_flags_without_a_value():
    found, lost, _ = converted(
        "python train_network.py --cache_latents --learning_rate --output_name --seed="
    )
    assert found["cache_latents"] == "memory"
    assert sorted(lost) == ["--learning_rate", "--seed="]
    assert "lr" not in found or found["lr"] == "2e-6"


def test_processes_and_nodes():
    found, lost, _ = converted(
        "accelerate launch --num_processes=16 --num_machines=2 --machine_rank=1 --main_process_ip=a "
        "--main_process_port=29501 --use_fsdp --fsdp_sharding_strategy=1 train_dreambooth.py"
    )
    assert {name: found[name] for name in ("NPROC_PER_NODE", "NNODES", "NODE_RANK", "MASTER_ADDR")} == {
        "NPROC_PER_NODE": "8",
        "NNODES": "2",
        "NODE_RANK": "1",
        "MASTER_ADDR": "a",
    }
    assert (found["plugin"], lost) == ("fsdp", ["--fsdp_sharding_strategy=1"])
    assert converted("accelerate launch train_dreambooth.py")[0]["NPROC_PER_NODE"] == "auto"
    assert converted("accelerate launch --num_processes=3 --num_machines=2 train_dreambooth.py")[1]
    found, lost, _ = converted(
        "colossalai run --nproc_per_node 4 --hostfile h train_dreambooth_colossalai.py"
    )
    assert (found["NPROC_PER_NODE"], lost) == ("4", [])
    assert converted("torchrun --bogus=1 train_dreambooth.py")[1] == ["--bogus=1"]


def test_a_vendor_s_accelerate_and_a_file_of_accelerate():
    found, _, _ = converted("accelerate launch --multi_gcu train_text_to_image_lora.py --use_sdp")
    assert (found["device"], found["launcher"], found["attention"]) == ("gcu", "accelerate", "sdpa")
    found, _, _ = converted("accelerate launch --config_file d.yaml train_text_to_image.py")
    assert (found["launcher"], found["accelerate_config"]) == ("accelerate", "d.yaml")
    assert not {"NPROC_PER_NODE", "mixed_precision"} & {*found}


def test_scale_lr_is_multiplied():
    line = "accelerate launch --num_processes=4 train_dreambooth.py --train_batch_size=2 --scale_lr"
    assert converted(f"{line} --learning_rate=1e-6 --gradient_accumulation_steps=3")[0]["lr"] == "2.4e-05"
    assert converted("accelerate launch train_dreambooth.py --scale_lr")[1] == ["--scale_lr"]


def test_paths_and_names():
    found, _, _ = converted(
        "python train_dreambooth.py --pretrained_model_name_or_path=CompVis/sd --instance_data_dir=/d/x --output_dir=/o"
    )
    assert (found["model_name"], found["offline"]) == ("CompVis/sd", "0")
    assert (found["DATASET_DIR"], found["OUTPUT_DIR"]) == ("/d/x", "/o")
    found, _, notes = converted(
        "python train_dreambooth.py --pretrained_model_name_or_path=./m/ --instance_data_dir=d --output_dir=out"
    )
    assert (found["model_name"], found["dataset_name"], "offline" in found) == ("m", "d", False)
    assert notes == ["--output_dir=out"]


def test_values_that_are_refused_or_that_an_env_file_cannot_hold_are_lost():
    command = [
        "python",
        "train_dreambooth.py",
        "--learning_rate=9",
        "--instance_prompt",
        '"a" # b',
        "--class_prompt=a\nb",
    ]
    read = command_line.from_words(command, SCRIPTS)
    source = Source("train_dreambooth.py", SCRIPTS["train_dreambooth"], read.flags)
    lines = env_file.settle(lines_of(source))
    assert [line.origin.partition("=")[0] for line in lines if line.lost] == [
        "--learning_rate",
        "--instance_prompt",
        "--class_prompt",
    ]
    text = env_file.render("train_dreambooth.py", lines)
    assert all(line.startswith("#") or "=" in line for line in text.splitlines() if line)


def test_no_secret_is_shown():
    text = env_file.render(
        "x", lines_of(Source("x", SCRIPTS["train_dreambooth"], (Flag("hub_token", ("hf_x1",)),)))
    )
    assert "hf_x1" not in text and "--hub_token=[redacted]" in text


def test_kohya_s_lora():
    found, lost, _ = converted(
        "accelerate launch --num_cpu_threads_per_process 1 train_network.py --network_module=networks.lora "
        "--network_dim=16 --unet_lr=1e-4 --learning_rate=5e-5 --optimizer_type=AdamW8bit --resolution=512,512 "
        "--optimizer_args weight_decay=0.1 betas=0.9,0.99 --max_train_epochs=10 --max_train_steps=5 --sdpa "
        "--dataset_repeats=3 --lr_scheduler=cosine --save_every_n_steps=50"
    )
    assert lost == []
    assert {
        name: found[name] for name in ("lora_rank", "lora_alpha", "lr", "text_encoder_lr", "optimizer")
    } == {
        "lora_rank": "16",
        "lora_alpha": "1",
        "lr": "1e-4",
        "text_encoder_lr": "5e-5",
        "optimizer": "AdamW8bit",
    }
    assert (found["adam_weight_decay"], found["adam_beta1"], found["adam_beta2"]) == ("0.1", "0.9", "0.99")
    assert (found["epoch"], "num_train_step" in found, found["checkpointing_steps"]) == ("30", False, "50")
    assert (found["attention"], found["resolution"], found["train_text_encoder"]) == ("sdpa", "512", "1")
    assert "proj_in" in found["lora_target_modules"] and found["center_crop"] == "1"


@pytest.mark.parametrize(
    "flags",
    [
        "--network_module=lycoris.kohya",
        "--network_args conv_dim=4",
        "--resolution=512,768",
        "--optimizer_type=Lion",
        "--optimizer_args momentum=0.9",
        "--clip_skip=2",
        "--loss_type=huber",
        "--resume=state",
        "--lr_warmup_steps=0.1 --max_train_epochs=2",
        "--caption_extension=.cap",
    ],
)
def test_what_kohya_alone_can_do_is_lost(flags):
    assert len(converted(f"python train_network.py {flags}")[1]) == 1


def test_a_warm_up_below_1_is_a_fraction():
    assert converted("python train_db.py --lr_warmup_steps=0.1 --max_train_steps=200 --lr_scheduler=linear")[
        0
    ]["lr_warmup_steps"] == ("20")


def test_remedies_are_sentences_and_name_settings_that_exist():
    for flag in (*UNSUPPORTED.values(), *KOHYA_UNSUPPORTED.values()):
        assert flag.remedy.endswith(".")
    for script in SCRIPTS.values():
        assert settings.read([*script.defaults.items()], {}).problems == ()
        assert all(names.lookup(name) for name in script.defaults)


def test_a_repository_of_the_hub_is_published_to():
    found, lost, notes = converted("python train_dreambooth.py --push_to_hub --hub_model_id=me/dog")
    assert (found["publish"], lost) == ("hub:me/dog", [])
    assert notes == ["--hub_model_id=me/dog", "--push_to_hub"]
    assert converted("python train_network.py --huggingface_repo_id=me/dog")[0]["publish"] == "hub:me/dog"
    assert "publish" not in converted("python train_dreambooth.py --push_to_hub --hub_model_id=dog")[0]
