"""Generated images: the same for the same prompt and seed, whoever draws them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image, ImageDraw

from sdjob.model.pipeline import find_pipeline
from sdtrain import generate
from sdtrain.generate import Drawing
from sdtrain.model import load
from sdtrain.runtime.stop import StopRequest

NO_STOP = StopRequest(None)
HOW = Drawing(resolution=32, inference_steps=2, guidance_scale=3.0, batch_size=2)


@pytest.fixture(scope="module")
def parts(eps_model):
    source = find_pipeline(eps_model, None, allow_pickle=False)
    return load.load(source, "no", torch.device("cpu"), allow_pickle=False)


@pytest.fixture(scope="module")
def xl_parts(xl_model):
    source = find_pipeline(xl_model, None, allow_pickle=False)
    return load.load(source, "no", torch.device("cpu"), allow_pickle=False)


def distance(one: Image.Image, other: Image.Image) -> int:
    from PIL import ImageChops

    return max(high for _, high in ImageChops.difference(one, other).getextrema())


def test_a_image_depends_on_prompt_and_seed_alone(parts):
    first, second, third = generate.generate(parts, ["a", "b", "a"], [1, 1, 2], HOW)
    (alone,) = generate.generate(parts, ["b"], [1], HOW)
    assert distance(alone, second) <= 1  # rounding of a batch of another size
    assert distance(first, second) > 1 < distance(first, third)


def test_prompts_mean_what_they_mean_to_the_pipeline(parts):
    pipeline = StableDiffusionPipeline(
        parts.vae, parts.text_encoder, parts.tokenizer, parts.unet, parts.sampler, None, None
    )
    (wanted,) = pipeline(
        "a red cross",
        height=32,
        width=32,
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(1),
    ).images
    (found,) = generate.generate(parts, ["a red cross"], [1], HOW)
    assert distance(found, wanted) == 0


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("prompt", ["a red cross", ""])
def test_prompts_mean_what_they_mean_to_the_pipeline_of_xl(xl_parts, prompt, zeros):
    """With its two ways of drawing without a negative prompt: zeros, or the empty prompt encoded."""
    parts = replace(xl_parts, zeros_for_empty_prompt=zeros)
    pipeline = StableDiffusionXLPipeline(
        parts.vae,
        parts.text_encoder,
        parts.text_encoder_2,
        parts.tokenizer,
        parts.tokenizer_2,
        parts.unet,
        parts.sampler,
        force_zeros_for_empty_prompt=zeros,
    )
    given = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 3.0}
    (wanted,) = pipeline(prompt, generator=torch.Generator().manual_seed(1), **given).images
    (found,) = generate.generate(parts, [prompt], [1], HOW)
    assert distance(found, wanted) == 0


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_the_end_of_a_long_prompt_counts_where_it_is_encoded_in_chunks(parts, xl_parts, kind):
    parts = {"sd": parts, "xl": xl_parts}[kind]
    prompts = [f"{'a red cross ' * 40}{ending}" for ending in ("on a black ground", "on a white ground")]
    cut = list(generate.generate(parts, prompts, [1, 1], HOW))
    assert distance(*cut) == 0
    whole = list(generate.generate(parts, prompts, [1, 1], replace(HOW, prompt_chunks=3)))
    assert distance(*whole) > 0


def test_drawing_leaves_the_network_as_it_was(parts):
    parts.unet.train()
    list(generate.generate(parts, ["a"], [1], HOW))
    assert parts.unet.training
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    parts.unet.eval()
    list(generate.generate(parts, ["a"], [1], HOW))
    assert not parts.unet.training


def test_drawing_does_not_move_the_global_random_state(parts):
    state = torch.random.get_rng_state()
    list(generate.generate(parts, ["a"], [1], HOW))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_shares_of_the_ranks_together_are_the_whole(parts, tmp_path):
    for rank in (0, 1):
        generate.draw_samples(
            parts, ("a", "b", "c"), 1, 5, HOW, tmp_path / "two", slice(rank, None, 2), NO_STOP
        )
    generate.draw_samples(parts, ("a", "b", "c"), 1, 5, HOW, tmp_path / "one", slice(0, None, 1), NO_STOP)
    for name in ("prompt00-00.png", "prompt01-00.png", "prompt02-00.png"):
        assert distance(Image.open(tmp_path / "one" / name), Image.open(tmp_path / "two" / name)) <= 1


def test_grid(tmp_path):
    columns = {}
    for column, title in enumerate(("before", "after")):
        folder = columns[title] = tmp_path / title
        folder.mkdir()
        for prompt in (0, 1):
            for number in (0, 1, 2):
                colour = (100 * column, 100 * prompt, 100 * number)
                Image.new("RGB", (80, 80), colour).save(folder / generate.image_name(prompt, number))
    sheet = generate.grid(columns, ("a", "b"), 3)
    assert sheet.size == (2 * 3 * 80 + 8, 16 + 2 * (16 + 80))
    for column in (0, 1):
        for prompt in (0, 1):
            for number in (0, 1, 2):
                left, top = column * (3 * 80 + 8) + number * 80, 16 + prompt * 96 + 16
                assert sheet.getpixel((left + 40, top + 40)) == (100 * column, 100 * prompt, 100 * number)


def test_a_label_ends_with_its_column(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / generate.image_name(0, 0))
    long = generate.grid(
        {"before": tmp_path, "after": tmp_path}, ("a red cross on a white ground\nand more",), 1
    )
    pixels = np.asarray(long.convert("L"))[16:32]
    assert (pixels[:, 64:72] == 255).all()  # between the columns
    assert (pixels[:, :64] == pixels[:, 72:136]).all() and (pixels[:, :64] < 200).any()


def test_labels_are_whole_or_end_in_dots_or_are_numbers():
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    assert generate._label(pen, "a cross", 3, 60) == "a cross"
    assert generate._label(pen, "圆", 3, 60) == "prompt 3"
    cut = generate._label(pen, "a red cross on a white ground", 3, 60)
    assert cut.startswith("a red") and cut.endswith("...") and 40 < pen.textlength(cut) <= 60
