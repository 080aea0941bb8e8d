"""Train a small CLIP text encoder until its output says plainly what a caption says, then freezes it."""

from __future__ import annotations

import random
from string import ascii_lowercase

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import trange
from transformers import CLIPTextModel, CLIPTokenizer

from sddemo.scene_captions import Caption, random_caption
from sddemo.scenes import COLOURS, GROUNDS, SHAPES, random_scene
from sddemo.tiny_pipeline import text_config

STEPS, BATCH = 500, 64
HIDDEN = 64
LONGEST = 20  # every caption has ended by this token; from here on the causal encoder has seen it all
ANSWERS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "ground": tuple(GROUNDS),
    "stranger": tuple(ascii_lowercase),  # its first letter: strangers must stay apart for DreamBooth
}


def tokenise(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token numbers [n, 77]."""
    tokens: Tensor = tokenizer(
        texts,
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids
    return tokens


def embed(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Frozen text embeddings [n, 77, HIDDEN]."""
    with torch.no_grad():
        return torch.cat(
            [encoder(part).last_hidden_state for part in torch.split(tokenise(tokenizer, texts), 256)]
        )


def answers(captions: list[Caption]) -> dict[str, Tensor]:
    """The right class [n] of each question; the last class is "it does not say"."""

    def number(question: str, caption: Caption) -> int:
        said = getattr(caption, question)
        options = ANSWERS[question]
        return len(options) if said is None else options.index(said[0] if question == "stranger" else said)

    return {
        question: torch.tensor([number(question, caption) for caption in captions]) for question in ANSWERS
    }


def train_text_encoder(tokenizer: CLIPTokenizer, seed: int) -> CLIPTextModel:
    """Train an encoder with linear heads, which are thrown away."""
    rng = random.Random(seed)
    encoder = CLIPTextModel(text_config(tokenizer, hidden=HIDDEN, layers=2, heads=4))
    heads = nn.ModuleDict(
        {question: nn.Linear(HIDDEN, len(options) + 1) for question, options in ANSWERS.items()}
    )
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01, fused=True)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=50, num_training_steps=STEPS)
    progress = trange(STEPS, desc="text encoder")
    for _ in progress:
        captions = [random_caption(random_scene(rng), rng) for _ in range(BATCH)]
        tokens = tokenise(tokenizer, [caption.text for caption in captions])
        hidden = encoder(tokens).last_hidden_state[:, LONGEST:]
        losses = [
            # [n, classes, tokens] and [n, tokens]
            cross_entropy(heads[question](hidden).transpose(1, 2), right[:, None].expand(-1, hidden.shape[1]))
            for question, right in answers(captions).items()
        ]
        loss = torch.stack(losses).sum()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress.set_postfix(loss=loss.item())
    return encoder.eval().requires_grad_(False)
