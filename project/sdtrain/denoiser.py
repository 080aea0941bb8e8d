"""What a run trains, as one module, so that a parallel strategy wraps or shards one thing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

UNET, TEXT_ENCODER = "unet", "text_encoder"


class Denoiser(nn.Module):
    """The U-Net, and before it the text encoder where that is trained as well.

    The trained parameters are named `unet.…` and `text_encoder.…`, in checkpoints too.
    """

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel | None = None) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(
        self,
        noisy_latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: torch.Tensor,
        added: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """noise_pred [B, C, h, w] from noisy latents [B, C, h, w] and timesteps [B].

        conditioning: encoder_hidden_states [B, tokens, width], or token ids [B, chunks, 77] where the
        text encoder is trained. added: what is added to the embedding of the timesteps, where that is conditioned.
        """
        hidden = conditioning if self.text_encoder is None else encode(self.text_encoder, conditioning)
        noise_pred: torch.Tensor = self.unet(
            noisy_latents, timesteps, hidden, added_cond_kwargs=added, return_dict=False
        )[0]
        return noise_pred


def encode(text_encoder: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Token ids [B, chunks, 77] → encoder_hidden_states [B, chunks × 77, width], each chunk by itself."""
    hidden: torch.Tensor = text_encoder(tokens.flatten(0, 1))[0]
    return hidden.reshape(len(tokens), -1, hidden.shape[-1])


def part_of(state: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    """The weights of one part by their names within it."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}
