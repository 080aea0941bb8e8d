"""RunSpec: every setting of a training run, once, with its help, unit, range and spellings.

The flags of `python -m sdtrain` are the field names, which are those of the diffusers example scripts
wherever these have one. The parser, the help, the documentation and the presets are generated from here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sdjob.settings import choices, optimizers
from sdjob.settings.fields import (
    AboveZero,
    Amount,
    Count,
    Fraction,
    Positive,
    Rate,
    Setting,
    Text,
    Whole,
    any_case,
    comma_list,
    switch,
    text_list,
)
from sdjob.settings.optimizers import OPTIMIZERS
from sdjob.settings.recipes import RECIPES, RecipeFacts


class RunSpec(BaseModel):
    """The whole description of a run, as the worker gets it. Frozen; invalid values raise ValidationError."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    # --- job -----------------------------------------------------------------------------------------
    recipe: Annotated[
        choices.Recipe, Setting("job", "what is trained: a subject, or captioned images", core=True)
    ] = "dreambooth"
    pretrained_model_name_or_path: Annotated[
        Text,
        Setting(
            "job",
            "diffusers pipeline folder, or single-file checkpoint, to start from",
            flag_only=True,
            core=True,
        ),
    ]
    output_dir: Annotated[
        Text, Setting("job", "folder that receives everything that the run writes", flag_only=True, core=True)
    ]
    seed: Annotated[
        Annotated[Whole, Field(ge=0, lt=2**32)],
        Setting("job", "seed of order, crops, noise, timesteps, class images and samples", core=True),
    ] = 42

    train_text_encoder: Annotated[
        bool, Setting("job", "train the text encoder too (of Stable Diffusion XL: both)")
    ] = False
    prediction_type: Annotated[
        choices.Prediction,
        Setting(
            "job",
            "what a single-file checkpoint predicts; auto: as its header or its architecture says",
            aliases=(switch("v_parameterization", on="v_prediction", off="epsilon"),),
            values=choices.PREDICTIONS,
        ),
    ] = "auto"
    single_file_config: Annotated[
        Text | None,
        Setting(
            "job",
            "for a single-file checkpoint: diffusers folder with its configurations, tokenizer and scheduler "
            "(without weights); empty: the standard ones of its architecture",
        ),
    ] = None

    # --- data ----------------------------------------------------------------------------------------
    instance_data_dir: Annotated[
        str | None, Setting("data", "DreamBooth: folder with the images of the subject", flag_only=True)
    ] = None
    train_data_dir: Annotated[
        str | None, Setting("data", "text-to-image: the captioned dataset", flag_only=True)
    ] = None
    concepts_list: Annotated[
        Text | None,
        Setting("data", "DreamBooth: YAML file with a list of subjects, instead of DATASET_DIR and prompts"),
    ] = None
    class_data_dir: Annotated[
        str | None,
        Setting("data", "images of the class, read only; empty: generated below the output folder"),
    ] = None
    image_column: Annotated[Text, Setting("data", "column that holds the images")] = "image"
    caption_column: Annotated[Text, Setting("data", "column that holds the captions")] = "text"
    resolution: Annotated[
        Annotated[Whole, Field(ge=32, le=4096, multiple_of=8)],
        Setting("data", "side of the training images", unit="pixels, a multiple of 8", core=True),
    ] = 512
    center_crop: Annotated[bool, Setting("data", "crop the centre instead of a random position")] = False
    aspect_ratio_buckets: Annotated[
        bool,
        Setting(
            "data",
            "keep about the aspect ratio of each image, in batches of one shape, instead of square crops",
            aliases=("enable_bucket",),
        ),
    ] = False
    bucket_reso_steps: Annotated[
        Annotated[Whole, Field(ge=8, le=1024, multiple_of=8)],
        Setting("data", "sides of buckets are multiples of this", unit="pixels, a multiple of 8"),
    ] = 64
    random_flip: Annotated[bool, Setting("data", "mirror half of the images")] = False
    image_interpolation_mode: Annotated[
        Literal["lanczos", "bicubic", "bilinear", "box", "nearest"],
        Setting("data", "how images are resized"),
    ] = "lanczos"
    verify_images: Annotated[
        Literal["sample", "all", "none"],
        Setting("data", "which images are decoded once before training starts"),
    ] = "sample"
    bad_samples: Annotated[
        Literal["stop", "skip"],
        Setting(
            "data", "unreadable images: stop, or skip (the next image of the dataset is the replacement)"
        ),
    ] = "stop"
    max_bad_samples: Annotated[
        Positive, Setting("data", "bad_samples=skip: more unreadable images than this stop the run")
    ] = 10
    dataloader_num_workers: Annotated[
        Annotated[Whole, Field(ge=0, le=256)], Setting("data", "loader processes per training process")
    ] = 2
    cache_dir: Annotated[
        str | None,
        Setting(
            "data",
            "folder for converted datasets and for caches on disk; empty: the user's cache folder, "
            "and the output folder",
        ),
    ] = None
    cache_latents: Annotated[
        choices.Caching,
        Setting(
            "data",
            "encode each image once, and keep its latent posterior: no, memory, disk",
            values=choices.CACHING,
        ),
    ] = "no"
    cache_text_embeddings: Annotated[
        choices.Caching,
        Setting(
            "data",
            "encode each prompt once: no, memory, disk",
            values=choices.CACHING,
            aliases=("cache_text_encoder_outputs",),
        ),
    ] = "no"

    # --- prompts -------------------------------------------------------------------------------------
    instance_prompt: Annotated[
        Text, Setting("prompts", "DreamBooth: prompt of the subject, with a rare word as its name")
    ] = "a photo of sks dog"
    class_prompt: Annotated[str | None, Setting("prompts", "DreamBooth: prompt of the subject's class")] = (
        None
    )
    max_token_length: Annotated[
        Annotated[Whole, Field(ge=75, le=225, multiple_of=75)],
        Setting(
            "prompts",
            "tokens of a prompt that are used; above 75 in chunks of 75, also for generated images",
            unit="75, 150 or 225",
        ),
    ] = 75
    with_prior_preservation: Annotated[
        bool, Setting("prompts", "DreamBooth: train on images of the class too, so that the model keeps it")
    ] = False
    prior_loss_weight: Annotated[Amount, Setting("prompts", "weight of the prior loss")] = 1.0
    num_class_images: Annotated[
        Positive, Setting("prompts", "class images to use; missing ones are generated once")
    ] = 100
    sample_batch_size: Annotated[
        Positive,
        Setting("prompts", "images generated at once (class images and samples)", unit="per device"),
    ] = 4

    # --- batch and length ----------------------------------------------------------------------------
    train_batch_size: Annotated[
        Positive,
        Setting(
            "length",
            "batch size",
            unit="images per device",
            name="batch_size",
            aliases=("batchsize",),
            core=True,
        ),
    ] = 1
    gradient_accumulation_steps: Annotated[
        Positive, Setting("length", "batches per optimizer step", core=True)
    ] = 1
    max_train_steps: Annotated[
        Positive,
        Setting(
            "length",
            "optimizer steps of the whole run, including those before a resume",
            name="num_train_step",
            aliases=("num_train_steps", "max_steps"),
            core=True,
        ),
    ] = 400
    num_train_epochs: Annotated[
        Positive | None,
        Setting(
            "length",
            "passes over the dataset; used if num_train_step is not set",
            name="epoch",
            aliases=("num_epochs", "num_epoch", "max_train_epochs"),
        ),
    ] = None

    # --- optimizer -----------------------------------------------------------------------------------
    optimizer: Annotated[
        choices.Optimizer,
        Setting(
            "optimizer",
            optimizers.HELP,
            values=any_case(*OPTIMIZERS, **{name: facts.spellings for name, facts in OPTIMIZERS.items()}),
            aliases=(switch("use_8bit_adam", on="adamw8bit", off="adamw"),),
        ),
    ] = "adamw"
    learning_rate: Annotated[
        Rate,
        Setting(
            "optimizer",
            "learning rate after warm-up, not scaled by batch size or processes",
            name="lr",
            core=True,
        ),
    ] = 5e-6
    text_encoder_lr: Annotated[
        Rate | None,
        Setting(
            "optimizer",
            "learning rate of the text encoder; empty: lr",
            aliases=("text_encoder_learning_rate",),
        ),
    ] = None
    lr_scheduler: Annotated[choices.Schedule, Setting("optimizer", "schedule of the learning rate")] = (
        "constant"
    )
    lr_num_cycles: Annotated[Positive, Setting("optimizer", "cosine_with_restarts: number of cycles")] = 1
    lr_power: Annotated[Amount, Setting("optimizer", "polynomial: the power; 1: linear")] = 1.0
    lr_warmup_steps: Annotated[Count, Setting("optimizer", "warm-up", unit="optimizer steps")] = 0
    adam_beta1: Annotated[Fraction, Setting("optimizer", "AdamW's beta1")] = 0.9
    adam_beta2: Annotated[Fraction, Setting("optimizer", "AdamW's beta2")] = 0.999
    adam_weight_decay: Annotated[Amount, Setting("optimizer", "AdamW's weight decay")] = 1e-2
    adam_epsilon: Annotated[AboveZero, Setting("optimizer", "AdamW's epsilon")] = 1e-8
    max_grad_norm: Annotated[
        Amount, Setting("optimizer", "norm to which gradients are clipped; 0: not clipped")
    ] = 1.0

    # --- objective -----------------------------------------------------------------------------------
    snr_gamma: Annotated[
        AboveZero | None,
        Setting(
            "objective",
            "gamma of min-SNR weighting of the loss, usually 5; empty: equal weights",
            aliases=("min_snr_gamma",),
        ),
    ] = None
    noise_offset: Annotated[
        Amount, Setting("objective", "fraction of the noise that is constant over a channel, such as 0.05")
    ] = 0.0
    input_perturbation: Annotated[
        Amount, Setting("objective", "extra noise in the input of the network only, such as 0.1")
    ] = 0.0
    rescale_betas_zero_snr: Annotated[
        bool,
        Setting(
            "objective",
            "noise schedule that ends in pure noise: zero terminal SNR (v-prediction only)",
            aliases=("zero_terminal_snr",),
        ),
    ] = False
    proportion_empty_prompts: Annotated[
        Annotated[float, Field(ge=0, le=1)],
        Setting(
            "objective",
            "fraction of the prompts that are left empty, for guidance, such as 0.1",
            aliases=("caption_dropout", "caption_dropout_rate"),
        ),
    ] = 0.0

    on_nan: Annotated[
        Literal["stop", "skip"],
        Setting("optimizer", "NaN or infinite loss: stop, or skip (the step is applied on no process)"),
    ] = "stop"
    max_nan_steps: Annotated[
        Positive, Setting("optimizer", "on_nan=skip: more skipped steps than this stop the run")
    ] = 10

    # --- strategy ------------------------------------------------------------------------------------
    plugin: Annotated[choices.Plugin, Setting("strategy", "parallel strategy", core=True)] = "torch_ddp"
    placement: Annotated[
        Literal["cuda", "cpu", "auto"],
        Setting(
            "strategy", "gemini: where parameters and optimizer state are kept", aliases=("placement_policy",)
        ),
    ] = "cuda"
    zero_stage: Annotated[
        Annotated[Whole, Field(ge=1, le=2)],
        Setting("strategy", "low_level_zero: 1 shards masters and optimizer state, 2 the gradients too"),
    ] = 1
    reshard_after_forward: Annotated[bool, Setting("strategy", "fsdp: 1 is ZeRO-3, 0 is ZeRO-2")] = True
    cpu_offload: Annotated[
        bool, Setting("strategy", "fsdp, low_level_zero: optimizer state in the memory of the host")
    ] = False
    mixed_precision: Annotated[
        choices.Precision,
        Setting(
            "strategy",
            "type of the computation; trainable weights stay fp32",
            aliases=("precision",),
            values=choices.PRECISIONS,
            core=True,
        ),
    ] = "auto"
    gradient_checkpointing: Annotated[
        bool, Setting("strategy", "recompute activations: less memory, about a quarter more computation")
    ] = False
    attention: Annotated[
        choices.Attention,
        Setting(
            "strategy",
            "attention backend; auto: PyTorch chooses",
            aliases=(
                switch("flash_attention", on="flash", off="math"),
                switch("flash_attn", on="flash", off="math"),
                switch("use_flash_attn", on="flash", off="math"),
                switch("use_flash_attention", on="flash", off="math"),
                switch("use_sdp", on="sdpa", off="math"),
                switch("use_xformers", on="xformers", off="auto"),
                switch("enable_xformers_memory_efficient_attention", on="xformers", off="auto"),
            ),
        ),
    ] = "auto"
    device: Annotated[
        choices.Device,
        Setting(
            "strategy",
            f"device type: {', '.join(choices.DEVICES)}",
            core=True,
            values=any_case(*choices.DEVICES, cuda=("gpu",)),
        ),
    ] = "auto"
    allow_tf32: Annotated[bool, Setting("strategy", "TF32 matrix products on NVIDIA devices")] = False

    # --- EMA and LoRA --------------------------------------------------------------------------------
    use_ema: Annotated[bool, Setting("ema and lora", "keep an EMA of the weights, and export it")] = False
    ema_decay: Annotated[Fraction, Setting("ema and lora", "largest decay of the EMA")] = 0.9999
    lora_rank: Annotated[
        Annotated[Whole, Field(ge=0, le=1024)],
        Setting("ema and lora", "above 0: train a LoRA of this rank instead of the weights themselves"),
    ] = 0
    lora_alpha: Annotated[
        AboveZero | None,
        Setting("ema and lora", "LoRA's scale is alpha / rank; empty: alpha = rank"),
    ] = None
    lora_target_modules: Annotated[
        tuple[str, ...],
        BeforeValidator(comma_list),
        Setting(
            "ema and lora",
            "layers of the denoiser that get a LoRA; empty: its attention, such as to_k,to_q,to_v,to_out.0",
            unit="names, separated by commas",
        ),
    ] = ()

    # --- checkpoints ---------------------------------------------------------------------------------
    checkpointing_steps: Annotated[
        Positive,
        Setting(
            "checkpoints",
            "a checkpoint every so many steps, and at the end",
            unit="optimizer steps",
            aliases=("save_steps",),
        ),
    ] = 500
    checkpoints_total_limit: Annotated[
        Positive | None, Setting("checkpoints", "checkpoints to keep; empty: all")
    ] = None
    background_save: Annotated[
        bool,
        Setting(
            "checkpoints", "write checkpoints during the next steps, from a copy in the memory of the host"
        ),
    ] = True
    resume: Annotated[
        Text,
        Setting(
            "checkpoints",
            "auto: from the newest complete checkpoint, if any; never; must; or the folder of a checkpoint",
            aliases=("resume_from_checkpoint",),
            values=any_case("auto", "never", "must", auto=("latest",)),
        ),
    ] = "auto"
    allow_pickle: Annotated[
        bool, Setting("checkpoints", "load weights that exist only as pickles (they can run code)")
    ] = False

    # --- result --------------------------------------------------------------------------------------
    export_dtype: Annotated[
        Literal["fp32", "fp16", "bf16"],
        Setting(
            "result",
            "type of the weights in the result",
            aliases=("save_precision",),
            values=choices.EXPORTED,
        ),
    ] = "fp32"
    export_single_file: Annotated[
        bool, Setting("result", "write the pipeline as one file for WebUI too: webui/model.safetensors")
    ] = False

    # --- validation ----------------------------------------------------------------------------------
    validation_prompts: Annotated[
        tuple[str, ...],
        BeforeValidator(text_list),
        Setting(
            "validation",
            "prompts of images generated before, during and after training",
            unit="one prompt, or a JSON list",
            aliases=("validation_prompt",),
        ),
    ] = ()
    num_validation_images: Annotated[Positive, Setting("validation", "images per validation prompt")] = 4
    validation_steps: Annotated[
        Count,
        Setting(
            "validation", "validation every so many steps; 0: only before and after", unit="optimizer steps"
        ),
    ] = 0
    validation_data_dir: Annotated[
        str | None,
        Setting("validation", "held-out images, captioned like the dataset, for a validation loss"),
    ] = None
    validation_split: Annotated[
        Fraction,
        Setting("validation", "fraction of the dataset that is held out instead, such as 0.1; 0: none"),
    ] = 0.0
    max_validation_samples: Annotated[
        Positive,
        Setting("validation", "held-out images to use: the first of the folder, or a sample of the fraction"),
    ] = 256
    num_inference_steps: Annotated[
        Positive, Setting("validation", "denoising steps of a generated image")
    ] = 25
    guidance_scale: Annotated[Amount, Setting("validation", "guidance of generated images")] = 7.5

    # --- logging -------------------------------------------------------------------------------------
    logging_steps: Annotated[
        Positive, Setting("logging", "scalars every so many steps; 1: every step", unit="optimizer steps")
    ] = 10
    skip_steps: Annotated[
        Count, Setting("logging", "first steps excluded from the measured speed", unit="optimizer steps")
    ] = 10
    timed_step: Annotated[
        Count,
        Setting("logging", "step whose own time and loss are in the report; 0: none", unit="optimizer steps"),
    ] = 0
    reference_loss: Annotated[
        Amount | None, Setting("logging", "published loss of that step, shown next to it in the report")
    ] = None

    @property
    def recipe_facts(self) -> RecipeFacts:
        return RECIPES[self.recipe]

    @property
    def data_dir(self) -> str | None:
        """The folder of the dataset of the recipe."""
        folder: str | None = getattr(self, self.recipe_facts.data_setting)
        return folder

    @property
    def prompt_chunks(self) -> int:
        """Chunks of 75 tokens that a prompt is encoded in."""
        return self.max_token_length // 75

    @property
    def lora_scale_alpha(self) -> float:
        return self.lora_alpha if self.lora_alpha is not None else float(self.lora_rank)
