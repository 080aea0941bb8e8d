"""RunSpec: every setting of a training run, once, with its help, unit, range and spellings.

The flags of `python -m sdtrain` are the field names, which are those of the diffusers example scripts
wherever these have one. The parser, the help, the documentation and the presets are generated from here.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sdjob.settings import choices, optimizers
from sdjob.settings.fields import (
    OFF,
    ON,
    AboveZero,
    Alias,
    Amount,
    CommaList,
    Count,
    DataPath,
    Fraction,
    Positive,
    Rate,
    Text,
    TextList,
    Whole,
    any_case,
    lower_list,
    setting,
    switch,
)
from sdjob.settings.optimizers import OPTIMIZERS
from sdjob.settings.recipes import RECIPES, RecipeFacts

_job = partial(setting, "job")
_data = partial(setting, "data")
_prompts = partial(setting, "prompts")
_length = partial(setting, "length")
_optimizer = partial(setting, "optimizer")
_objective = partial(setting, "objective")
_strategy = partial(setting, "strategy")
_ema_and_lora = partial(setting, "ema and lora")
_checkpoints = partial(setting, "checkpoints")
_result = partial(setting, "result")
_validation = partial(setting, "validation")
_logging = partial(setting, "logging")


class RunSpec(BaseModel):
    """The whole description of a run, as the worker gets it. Frozen; invalid values raise ValidationError."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    recipe: choices.Recipe = _job("dreambooth", "what is trained: a subject, or captioned images", core=True)
    pretrained_model_name_or_path: Text = _job(
        ..., "diffusers pipeline folder, or single-file checkpoint, to start from", flag_only=True, core=True
    )
    output_dir: Text = _job(
        ..., "folder that receives everything that the run writes", flag_only=True, core=True
    )
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = _job(
        42, "seed of order, crops, noise, timesteps, class images and samples", core=True
    )
    train_text_encoder: bool = _job(False, "train the text encoder too (of Stable Diffusion XL: both)")
    prediction_type: choices.Prediction = _job(
        "auto",
        "what a single-file checkpoint predicts; auto: as its header or its architecture says",
        aliases=(switch("v_parameterization", on="v_prediction", off="epsilon"),),
        values=choices.PREDICTIONS,
    )
    single_file_config: Text | None = _job(
        None,
        "for a single-file checkpoint: diffusers folder with its configurations, tokenizer and scheduler "
        "(without weights); empty: the standard ones of its architecture",
    )
    vae: Text | None = _job(
        None,
        "VAE to use instead of the model's own: a diffusers folder or one file, below MODEL_DIR or absolute",
        aliases=("vae_name_or_path", "pretrained_vae_model_name_or_path"),
    )

    instance_data_dir: str | None = _data(
        None, "DreamBooth: folder with the images of the subject", flag_only=True
    )
    train_data_dir: str | None = _data(None, "text-to-image: the captioned dataset", flag_only=True)
    concepts_list: DataPath | None = _data(
        None, "DreamBooth: YAML file with a list of subjects, instead of DATASET_DIR and prompts"
    )
    class_data_dir: str | None = _data(
        None, "images of the class, read only; empty: generated below the output folder"
    )
    dataset_split: Text | None = _data(
        None, "split to train on; empty: train, or what is not named as a test or validation split"
    )
    image_column: Text = _data("image", "column that holds the images")
    caption_column: Text = _data("text", "column that holds the captions")
    resolution: Annotated[Whole, Field(ge=32, le=4096, multiple_of=8)] = _data(
        512, "side of the training images", unit="pixels, a multiple of 8", core=True
    )
    center_crop: bool = _data(False, "crop the centre instead of a random position")
    aspect_ratio_buckets: bool = _data(
        False,
        "keep about the aspect ratio of each image, in batches of one shape, instead of square crops",
        aliases=("enable_bucket",),
    )
    bucket_reso_steps: Annotated[Whole, Field(ge=8, le=1024, multiple_of=8)] = _data(
        64, "sides of buckets are multiples of this", unit="pixels, a multiple of 8"
    )
    random_flip: bool = _data(False, "mirror half of the images")
    image_interpolation_mode: Literal["lanczos", "bicubic", "bilinear", "box", "nearest"] = _data(
        "lanczos", "how images are resized"
    )
    verify_images: Literal["sample", "all", "none"] = _data(
        "sample", "which images are decoded once before training starts"
    )
    bad_samples: Literal["stop", "skip"] = _data(
        "stop", "unreadable images: stop, or skip (the next image of the dataset is the replacement)"
    )
    max_bad_samples: Positive = _data(10, "bad_samples=skip: more unreadable images than this stop the run")
    dataloader_num_workers: Annotated[Whole, Field(ge=0, le=256)] = _data(
        2, "loader processes per training process"
    )
    cache_dir: str | None = _data(
        None,
        "folder for converted datasets and for caches on disk; empty: the user's cache folder, "
        "and the output folder",
    )
    cache_latents: choices.Caching = _data(
        "auto",
        "encode each image once, before training, and keep its latent posterior: auto, no, memory, disk; "
        "auto: where crops are fixed and it pays and fits",
        values=choices.CACHING,
    )
    cache_text_embeddings: choices.Caching = _data(
        "auto",
        "encode each prompt once, before training: auto, no, memory, disk; auto: where it pays and fits",
        values=choices.CACHING,
        aliases=(
            switch("cache_text_encoder_outputs", on="memory", off="no"),
            switch("pre_compute_text_embeddings", on="memory", off="no"),
        ),
    )

    instance_prompt: Text = _prompts(
        "a photo of sks dog", "DreamBooth: prompt of the subject, with a rare word as its name"
    )
    class_prompt: str | None = _prompts(None, "DreamBooth: prompt of the subject's class")
    max_token_length: Annotated[Whole, Field(ge=75, le=225, multiple_of=75)] = _prompts(
        75,
        "tokens of a prompt that are used; above 75 in chunks of 75, also for generated images",
        unit="75, 150 or 225",
    )
    with_prior_preservation: bool = _prompts(
        False, "DreamBooth: train on images of the class too, so that the model keeps it"
    )
    prior_loss_weight: Amount = _prompts(1.0, "weight of the prior loss")
    num_class_images: Positive = _prompts(100, "class images to use; missing ones are generated once")
    sample_batch_size: Positive = _prompts(
        4, "images generated at once (class images and samples)", unit="per device"
    )

    train_batch_size: Positive = _length(
        1, "batch size", unit="images per device", name="batch_size", aliases=("batchsize",), core=True
    )
    gradient_accumulation_steps: Positive = _length(1, "batches per optimizer step", core=True)
    max_train_steps: Positive = _length(
        400,
        "optimizer steps of the whole run, including those before a resume",
        name="num_train_step",
        aliases=("num_train_steps", "max_steps"),
        core=True,
    )
    num_train_epochs: Positive | None = _length(
        None,
        "passes over the dataset; used if num_train_step is not set",
        name="epoch",
        aliases=("num_epochs", "num_epoch", "max_train_epochs"),
    )

    optimizer: choices.Optimizer = _optimizer(
        "adamw",
        optimizers.HELP,
        values=any_case(*OPTIMIZERS, **{name: facts.spellings for name, facts in OPTIMIZERS.items()}),
        aliases=(switch("use_8bit_adam", on="adamw8bit", off="adamw"),),
    )
    learning_rate: Rate = _optimizer(
        5e-6, "learning rate after warm-up, not scaled by batch size or processes", name="lr", core=True
    )
    text_encoder_lr: Rate | None = _optimizer(
        None, "learning rate of the text encoder; empty: lr", aliases=("text_encoder_learning_rate",)
    )
    lr_scheduler: choices.Schedule = _optimizer("constant", "schedule of the learning rate")
    lr_num_cycles: Positive = _optimizer(1, "cosine_with_restarts: number of cycles")
    lr_power: Amount = _optimizer(1.0, "polynomial: the power; 1: linear")
    lr_warmup_steps: Count = _optimizer(0, "warm-up", unit="optimizer steps")
    adam_beta1: Fraction = _optimizer(0.9, "AdamW's beta1")
    adam_beta2: Fraction = _optimizer(0.999, "AdamW's beta2")
    adam_weight_decay: Amount = _optimizer(1e-2, "AdamW's weight decay")
    adam_epsilon: AboveZero = _optimizer(1e-8, "AdamW's epsilon")
    max_grad_norm: Amount = _optimizer(1.0, "norm to which gradients are clipped; 0: not clipped")

    snr_gamma: AboveZero | None = _objective(
        None,
        "gamma of min-SNR weighting of the loss, usually 5; empty: equal weights",
        aliases=("min_snr_gamma",),
    )
    noise_offset: Amount = _objective(
        0.0,
        "fraction of the noise that is constant over a channel, such as 0.05",
        aliases=(switch("offset_noise", on="0.1", off="0"),),
    )
    input_perturbation: Amount = _objective(0.0, "extra noise in the input of the network only, such as 0.1")
    rescale_betas_zero_snr: bool = _objective(
        False,
        "noise schedule that ends in pure noise: zero terminal SNR (v-prediction only)",
        aliases=("zero_terminal_snr",),
    )
    proportion_empty_prompts: Annotated[float, Field(ge=0, le=1)] = _objective(
        0.0,
        "fraction of the prompts that are left empty, for guidance, such as 0.1",
        aliases=("caption_dropout", "caption_dropout_rate"),
    )

    on_nan: Literal["stop", "skip"] = _optimizer(
        "stop", "NaN or infinite loss: stop, or skip (the step is applied on no process)"
    )
    max_nan_steps: Positive = _optimizer(10, "on_nan=skip: more skipped steps than this stop the run")

    plugin: choices.Plugin = _strategy("torch_ddp", "parallel strategy", core=True)
    placement: Literal["cuda", "cpu", "auto"] = _strategy(
        "cuda", "gemini: where parameters and optimizer state are kept", aliases=("placement_policy",)
    )
    zero_stage: Annotated[Whole, Field(ge=1, le=2)] = _strategy(
        1, "low_level_zero: 1 shards masters and optimizer state, 2 the gradients too"
    )
    reshard_after_forward: bool = _strategy(True, "fsdp: 1 is ZeRO-3, 0 is ZeRO-2")
    cpu_offload: bool = _strategy(False, "fsdp, low_level_zero: optimizer state in the memory of the host")
    mixed_precision: choices.Precision = _strategy(
        "auto",
        "type of the computation; trainable weights stay fp32",
        aliases=("precision",),
        values=choices.PRECISIONS,
        core=True,
    )
    weights_dtype: choices.WeightsDtype = _strategy(
        "auto",
        "none, torch_ddp: type of the weights that the model computes with, next to the fp32 weights that are "
        "trained; auto: bf16 with mixed_precision=bf16 on a device, not for a LoRA",
        values=choices.WEIGHTS_DTYPES,
    )
    reduce_dtype: choices.ReduceDtype = _strategy(
        "fp32",
        "torch_ddp: type in which gradients are summed over the processes; bf16: half of the traffic",
        values=choices.REDUCE_DTYPES,
    )
    gradient_checkpointing: bool = _strategy(
        False, "recompute activations: less memory, about a quarter more computation"
    )
    attention: choices.Attention = _strategy(
        "auto",
        "attention backend; auto: PyTorch chooses; several, such as cudnn,flash,math: the first that takes the "
        "sizes of a layer",
        aliases=(
            switch("flash_attention", on="flash", off="math"),
            switch("flash_attn", on="flash", off="math"),
            switch("use_flash_attn", on="flash", off="math"),
            switch("use_flash_attention", on="flash", off="math"),
            switch("use_sdp", on="sdpa", off="math"),
            switch("use_xformers", on="xformers", off="auto"),
            switch("enable_xformers_memory_efficient_attention", on="xformers", off="auto"),
        ),
    )
    compile: choices.Compile = _strategy(
        "auto",
        "torch.compile of the training forward pass: whole, with its loss; blocks, each by itself; off",
        values=any_case("auto", "off", "whole", "blocks", off=OFF, auto=ON),
        aliases=("torch_compile",),
    )
    compile_mode: choices.CompileMode = _strategy("default", "mode of torch.compile")
    device: choices.Device = _strategy(
        "auto",
        f"device type: {', '.join(choices.DEVICES)}",
        core=True,
        values=any_case(*choices.DEVICES, cuda=("gpu",)),
    )
    allow_tf32: bool = _strategy(True, "TF32 matrix products and convolutions in fp32 on NVIDIA devices")

    use_ema: bool = _ema_and_lora(False, "keep an EMA of the weights, and export it")
    ema_decay: Fraction = _ema_and_lora(0.9999, "largest decay of the EMA")
    lora_rank: Annotated[Whole, Field(ge=0, le=1024)] = _ema_and_lora(
        0,
        "above 0: train a LoRA of this rank instead of the weights themselves",
        aliases=(Alias("rank", flag_only=True),),
    )
    lora_alpha: AboveZero | None = _ema_and_lora(None, "LoRA's scale is alpha / rank; empty: alpha = rank")
    lora_target_modules: CommaList = _ema_and_lora(
        (),
        "layers of the denoiser that get a LoRA; empty: its attention, such as to_k,to_q,to_v,to_out.0",
        unit="names, separated by commas",
    )
    lora_weights: Text | None = _ema_and_lora(
        None,
        "LoRA to start from, of rank lora_rank: a .safetensors file in either layout, or the folder of a result",
    )
    lora_dropout: Fraction = _ema_and_lora(0.0, "fraction of a LoRA's inputs that are dropped in training")
    use_dora: bool = _ema_and_lora(False, "train a DoRA: a LoRA with a magnitude for each output")
    use_rslora: bool = _ema_and_lora(False, "rank-stabilized LoRA: the scale is alpha / √rank")

    checkpointing_steps: Positive = _checkpoints(
        500,
        "a checkpoint every so many steps, and at the end",
        unit="optimizer steps",
        aliases=("save_steps",),
    )
    checkpoints_total_limit: Positive | None = _checkpoints(None, "checkpoints to keep; empty: all")
    background_save: bool = _checkpoints(
        True, "write checkpoints during the next steps, from a copy in the memory of the host"
    )
    resume: Text = _checkpoints(
        "auto",
        "auto: from the newest complete checkpoint, if any; never; must; or a checkpoint, by its name or folder",
        aliases=("resume_from_checkpoint",),
        values=any_case("auto", "never", "must", auto=("latest",)),
    )
    allow_pickle: bool = _checkpoints(False, "load weights that exist only as pickles (they can run code)")

    export_dtype: Literal["fp32", "fp16", "bf16"] = _result(
        "fp32", "type of the weights in the result", aliases=("save_precision",), values=choices.EXPORTED
    )
    model_license: Text | None = _result(
        None,
        "license in the model card of the result, such as creativeml-openrail-m; empty: the one that the README.md of "
        "the base model names",
    )
    export_single_file: bool = _result(
        False, "write the pipeline as one file for WebUI too: webui/model.safetensors"
    )

    validation_prompts: TextList = _validation(
        (),
        "prompts of images generated before, during and after training",
        unit="one prompt, or a JSON list",
        aliases=("validation_prompt",),
    )
    num_validation_images: Positive = _validation(4, "images per validation prompt")
    validation_steps: Count = _validation(
        0, "validation every so many steps; 0: only before and after", unit="optimizer steps"
    )
    validation_data_dir: str | None = _validation(
        None, "held-out images, captioned like the dataset, for a validation loss"
    )
    validation_split: Fraction = _validation(
        0.0, "fraction of the dataset that is held out instead, such as 0.1; 0: none"
    )
    max_validation_samples: Positive = _validation(
        256, "held-out images to use: the first of the folder, or a sample of the fraction"
    )
    num_inference_steps: Positive = _validation(25, "denoising steps of a generated image")
    guidance_scale: Amount = _validation(7.5, "guidance of generated images")

    logging_steps: Positive = _logging(
        10, "scalars every so many steps; 1: every step", unit="optimizer steps"
    )
    report_to: Annotated[tuple[choices.Destination, ...], BeforeValidator(lower_list)] = _logging(
        ("tensorboard",),
        "trackers that get metrics and images besides metrics.jsonl: "
        f"tensorboard, {', '.join(choices.TRACKERS)}; "
        "all: those that are installed; none",
        unit="names, separated by commas",
    )
    tracker_project_name: Text = _logging(
        "stable-diffusion", "project, or experiment, of the trackers besides TensorBoard"
    )
    skip_steps: Count = _logging(10, "first steps excluded from the measured speed", unit="optimizer steps")
    timed_step: Count = _logging(
        0, "step whose own time and loss are in the report; 0: none", unit="optimizer steps"
    )
    reference_loss: Amount | None = _logging(
        None, "published loss of that step, shown next to it in the report"
    )

    @property
    def recipe_facts(self) -> RecipeFacts:
        return RECIPES[self.recipe]

    @property
    def data_dir(self) -> str | None:
        folder: str | None = getattr(self, self.recipe_facts.data_setting)
        return folder

    @property
    def prompt_chunks(self) -> int:
        """Chunks of 75 tokens that a prompt is encoded in."""
        return self.max_token_length // 75

    @property
    def lora_scale_alpha(self) -> float:
        return self.lora_alpha if self.lora_alpha is not None else float(self.lora_rank)

    @property
    def lora_scale(self) -> float:
        """What the product of a LoRA's matrices is multiplied by."""
        return self.lora_scale_alpha / (math.sqrt(self.lora_rank) if self.use_rslora else self.lora_rank)
