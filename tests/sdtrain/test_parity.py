"""The worker against the reference: the same losses, gradient norms and weights, in fp32.

Tolerances over one step and several: losses 1e-5, gradient norms 1e-4 relative; weights as `assert_same_weights` says.
"""

from functools import partial

import pytest
from prodigyopt import Prodigy
from safetensors.torch import load_file
from transformers.optimization import Adafactor

from tests.sdtrain import reference
from tests.sdtrain.reference import Images
from tests.support.worker import assert_same_weights, losses, scalars

SEED, LR, SIDE = 7, 1e-3, 32
OPTIMIZERS = {
    "adafactor": partial(Adafactor, scale_parameter=False, relative_step=False, weight_decay=1e-2),
    "prodigy": partial(Prodigy, weight_decay=1e-2, use_bias_correction=True, safeguard_warmup=True),
}
PROMPT, CLASS = "a photo of sks cross", "a photo of a cross"
LONG = " ".join(f"{PROMPT} on a {ground} ground" for ground in ("white", "grey", "black", "beige") * 3)

CASES = {
    "text_to_image": {},
    "v": {"v": True},
    "batch": {"train_batch_size": 2},
    "accumulation": {"gradient_accumulation_steps": 3},
    "clipped": {"max_grad_norm": 0.05},
    "unclipped": {"max_grad_norm": 0},
    "ema": {"use_ema": True, "ema_decay": 0.5},
    "weight_decay": {"adam_weight_decay": 0.5},
    "dreambooth": {"recipe": "dreambooth"},
    "dreambooth_v": {"recipe": "dreambooth", "v": True},
    "prior": {"recipe": "dreambooth", "prior_loss_weight": 0.3, "train_batch_size": 2},
    "lora": {"lora_rank": 3, "lora_alpha": 6},
    "lora_clipped": {"lora_rank": 3, "max_grad_norm": 0.01},
    "lora_ema": {"lora_rank": 2, "use_ema": True, "ema_decay": 0.5},
    "lora_prior": {"recipe": "dreambooth", "prior_loss_weight": 0.3, "lora_rank": 2},
    "min_snr": {"snr_gamma": 5.0},
    "min_snr_v": {"snr_gamma": 0.5, "v": True},
    "min_snr_prior": {
        "recipe": "dreambooth",
        "prior_loss_weight": 0.3,
        "train_batch_size": 2,
        "snr_gamma": 0.7,
    },
    "zero_snr": {"v": True, "rescale_betas_zero_snr": True, "snr_gamma": 5.0},
    "noise": {"noise_offset": 0.1, "input_perturbation": 0.2},
    "empty_prompts": {"proportion_empty_prompts": 0.5, "train_batch_size": 2},
    "text_encoder": {"train_text_encoder": True, "text_encoder_lr": 3e-4},
    "text_encoder_same_rate": {"recipe": "dreambooth", "train_text_encoder": True, "max_grad_norm": 0.05},
    "text_encoder_accumulation": {
        "train_text_encoder": True,
        "text_encoder_lr": 2e-3,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "use_ema": True,
        "ema_decay": 0.5,
    },
    "text_encoder_lora": {
        "train_text_encoder": True,
        "text_encoder_lr": 3e-4,
        "lora_rank": 2,
        "lora_alpha": 4,
        "gradient_checkpointing": True,
    },
    "long_captions": {"recipe": "dreambooth", "instance_prompt": LONG, "max_token_length": 225},
    "long_captions_text_encoder": {
        "recipe": "dreambooth",
        "instance_prompt": LONG,
        "max_token_length": 150,
        "train_text_encoder": True,
        "train_batch_size": 2,
    },
    "xl": {"xl": True, "train_batch_size": 2},
    "xl_text_encoders": {
        "xl": True,
        "train_text_encoder": True,
        "text_encoder_lr": 3e-4,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "use_ema": True,
        "ema_decay": 0.5,
    },
    "xl_lora": {
        "xl": True,
        "train_text_encoder": True,
        "lora_rank": 2,
        "lora_alpha": 4,
        "text_encoder_lr": 2e-3,
        "max_grad_norm": 0.01,
    },
    "xl_long_captions": {
        "xl": True,
        "recipe": "dreambooth",
        "instance_prompt": LONG,
        "max_token_length": 150,
        "train_text_encoder": True,
        "train_batch_size": 2,
    },
    "adafactor": {"optimizer": "adafactor", "max_grad_norm": 0, "train_text_encoder": True},
    "prodigy": {"optimizer": "prodigy", "learning_rate": 1.0, "lora_rank": 2, "train_text_encoder": True},
    "everything": {
        "recipe": "dreambooth",
        "v": True,
        "prior_loss_weight": 2.0,
        "gradient_accumulation_steps": 2,
        "train_batch_size": 2,
        "max_grad_norm": 0.1,
        "use_ema": True,
        "ema_decay": 0.7,
        "snr_gamma": 5.0,
        "noise_offset": 0.05,
        "input_perturbation": 0.1,
        "rescale_betas_zero_snr": True,
        "proportion_empty_prompts": 0.3,
    },
}


# Also covered by other cases.
LONG_FORMS = ("min_snr", "min_snr_v", "text_encoder_same_rate", "long_captions", "lora_ema", "dreambooth_v")
SHORT = {name: 3 for name in CASES if name.startswith("xl")}
STEPS = [
    pytest.param(name, SHORT.get(name, 10), marks=[pytest.mark.long] if name in LONG_FORMS else [])
    for name in CASES
] + [pytest.param(name, 1) for name in ("text_encoder", "everything", "xl_text_encoders")]


@pytest.mark.parametrize(("name", "steps"), STEPS)
def test_steps(name, steps, train, eps_model, v_model, xl_model, captioned, instance, of_class):
    case = dict(CASES[name])
    model = v_model if case.pop("v", False) else xl_model if case.pop("xl", False) else eps_model
    if case.get("recipe") == "dreambooth":
        case.setdefault("instance_prompt", PROMPT)
        streams = [Images.read("instance", instance, SIDE, case["instance_prompt"])]
    else:
        streams = [Images.read("captioned", captioned, SIDE)]
    if "prior_loss_weight" in case:
        streams.append(Images.read("class", of_class, SIDE, CLASS, case["prior_loss_weight"]))
        case |= {"with_prior_preservation": True, "class_prompt": CLASS, "class_data_dir": of_class}
        case["num_class_images"] = len(streams[1].pixels)
    rank = case.get("lora_rank", 0)
    rate = case.pop("learning_rate", LR)
    wanted = reference.train(
        model,
        streams,
        steps=steps,
        seed=SEED,
        lr=rate,
        batch=case.get("train_batch_size", 1),
        accumulation=case.get("gradient_accumulation_steps", 1),
        max_grad_norm=case.get("max_grad_norm", 1.0) or float("inf"),
        weight_decay=case.get("adam_weight_decay", 1e-2),
        ema_decay=case.get("ema_decay"),
        lora_rank=rank,
        lora_alpha=case.get("lora_alpha", rank),
        snr_gamma=case.get("snr_gamma"),
        noise_offset=case.get("noise_offset", 0.0),
        input_perturbation=case.get("input_perturbation", 0.0),
        zero_snr=case.get("rescale_betas_zero_snr", False),
        empty_prompts=case.get("proportion_empty_prompts", 0.0),
        text_encoder_lr=case.get("text_encoder_lr", rate) if case.get("train_text_encoder") else None,
        chunks=case.get("max_token_length", 75) // 75,
        optimizer_of=OPTIMIZERS.get(case.get("optimizer")),
    )
    output = train(
        pretrained_model_name_or_path=model,
        resolution=SIDE,
        seed=SEED,
        learning_rate=rate,
        max_train_steps=steps,
        **case,
    )
    assert losses(output) == pytest.approx(wanted.losses, rel=1e-5)
    norms = scalars(output)["train/grad_norm"]
    assert [norms[step + 1] for step in range(steps)] == pytest.approx(wanted.grad_norms, rel=1e-4)
    if rank:
        found = load_file(output / "checkpoint/pytorch_lora_weights.safetensors")
        weights = {key(name): weight for name, weight in wanted.weights.items()}
    else:
        found = full_weights(output / "checkpoint", wanted.weights)
        weights = {flat(name): weight for name, weight in wanted.weights.items()}
    # The gradient of a key's bias is zero (softmax does not see it): rounding alone moves it, at Adam's full rate.
    found, weights = (
        {name: weight for name, weight in state.items() if not name.endswith("k_proj.bias")}
        for state in (found, weights)
    )
    assert_same_weights(found, weights, LR * steps)
    for part in {name.split(".")[0] for name in weights if not rank}:  # the weights did move
        assert movement(model, weights, part) > 0.2 * LR * steps * (1 if part == "unet" else 0.3)


FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "text_encoder_2": "text_encoder_2/model.safetensors",
}


def full_weights(folder, wanted) -> dict:
    """The weights of a pipeline's trained parts, by part and name."""
    parts = {name.split(".")[0] for name in wanted}
    return {
        flat(f"{part}.{name}"): weight
        for part in parts
        for name, weight in load_file(folder / FILES[part]).items()
    }


def flat(name: str) -> str:
    """Of transformers' two text encoders one has the level `text_model`, and the other had it once."""
    return name.replace(".text_model.", ".")


def movement(model, weights, part) -> float:
    """The largest change of a weight."""
    before = full_weights(model, [part])
    return max((weights[name] - before[name]).abs().max().item() for name in weights if name in before)


def key(parameter: str) -> str:
    """The name of an adapter's weight in a file of diffusers' layout."""
    part, _, name = flat(parameter).partition(".")
    return f"{part}.{'' if part == 'unet' else 'text_model.'}{name.replace('.default.', '.')}"
