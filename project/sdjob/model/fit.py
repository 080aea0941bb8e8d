"""Whether the parts of a pipeline fit their configs and each other: from headers only, nothing is loaded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sdjob.files import few, read_json, shown
from sdjob.model import shapes
from sdjob.model.pipeline import Part, PipelineFolder
from sdjob.model.shapes import Config, Expected
from sdjob.model.weights import Tensor
from sdjob.problems import Problem, bad_input

_EXPECTED: Mapping[str, Callable[[Config], dict[str, Expected] | None]] = {
    "unet": shapes.unet,
    "vae": shapes.vae,
    "text_encoder": shapes.text_encoder,
    "text_encoder_2": shapes.text_encoder_2,
}
# Buffers are no weights.
_BUFFERS = ("embeddings.position_ids",)
_ONE_MODEL = (
    "copy config.json and weights of one and the same model into this folder (save_pretrained writes both)"
)
_MARKS = ("<|startoftext|>", "<|endoftext|>")  # without which CLIP's tokenizer encodes no prompt
_MATCHING = "take all parts of the pipeline from one model"


def problems(model: PipelineFolder) -> list[Problem]:
    """Every tensor that is missing or has another shape than its config says, and parts that do not match."""
    found = [problem for name in _known(model) for problem in _against_config(model.parts[name], name)]
    return [*found, *_between_parts(model)]


def surplus(model: PipelineFolder) -> list[str]:
    """A sentence for each part with tensors that its config does not know: they are ignored when it is loaded."""
    sentences = []
    for name in _known(model):
        part = model.parts[name]
        expected = _expected(part, name)
        unknown = sorted(_tensors(part).keys() - expected.keys()) if expected else []
        if unknown:
            sentences.append(
                f"{shown(part.folder)}: {len(unknown)} tensors that config.json has no place for are ignored, "
                f"such as {few(unknown, 2)}"
            )
    return sentences


def _known(model: PipelineFolder) -> list[str]:
    return [name for name in _EXPECTED if name in model.parts]


def _expected(part: Part, name: str) -> dict[str, Expected]:
    """Empty where nothing can be said: of pickles, and of layouts that are not known."""
    return (_EXPECTED[name](part.config) or {}) if part.tensors else {}


def _tensors(part: Part) -> dict[str, Tensor]:
    """The tensors of a part by the names of today."""
    return {
        new: tensor
        for name, tensor in part.tensors.items()
        if (new := shapes.todays_name(name)) not in _BUFFERS
    }


def _against_config(part: Part, name: str) -> Iterator[Problem]:
    expected, tensors = _expected(part, name), _tensors(part)
    if missing := sorted(expected.keys() - tensors.keys()):
        unknown = sorted(tensors.keys() - expected.keys())
        others = (
            f", and holds {len(unknown)} that it does not know, such as {few(unknown, 2)}" if unknown else ""
        )
        yield bad_input(
            shown(part.weights[0] if len(part.weights) == 1 else part.folder),
            f"lacks {len(missing)} of the {len(expected)} tensors that {part.folder.name}/config.json asks for, "
            f"such as {few(missing, 3)}{others}",
            _ONE_MODEL,
        )
    wrong: dict[str, list[str]] = defaultdict(list)  # key of the config → tensors
    for tensor_name, want in expected.items():
        if tensor_name in tensors and tensors[tensor_name].shape != want.shape:
            wrong[want.key].append(tensor_name)
    for key, names in wrong.items():
        first = names[0]
        more = f" ({len(names) - 1} more tensors differ)" if len(names) > 1 else ""
        yield bad_input(
            shown(tensors[first].file),
            f"{first} is {_shape(tensors[first].shape)}; {part.folder.name}/config.json says "
            f"{_shape(expected[first].shape)}, by {key}={_value(part.config, key)}{more}",
            _ONE_MODEL,
        )


def _between_parts(model: PipelineFolder) -> Iterator[Problem]:
    """What one part hands to the next: latents to the U-Net, hidden states to its attention, token ids."""
    denoiser, vae = model.denoiser.config, model.parts["vae"].config
    texts = list(model.architecture.text_encoders)
    text = model.parts[texts[0]].config
    widths = [
        model.parts[name].config.get("hidden_size", shapes.TEXT_DEFAULTS["hidden_size"]) for name in texts
    ]
    width = sum(widths) if all(isinstance(one, int) for one in widths) else widths[0]  # side by side
    pairs = (
        (
            "in_channels",
            denoiser.get("in_channels", 4),
            "vae",
            "latent_channels",
            vae.get("latent_channels", 4),
        ),
        (
            "cross_attention_dim",
            denoiser.get("cross_attention_dim", 1280),
            " and ".join(texts),
            "hidden_size",
            width,
        ),
    )
    for key, have, other, other_key, want in pairs:
        if isinstance(have, int) and have != want:
            name = model.architecture.denoiser
            found = f"{name}/config.json has {key}={have}, and {other}/config.json {other_key}={want}"
            yield bad_input(shown(model.path), found, _MATCHING)
    yield from _tokens(model, text.get("vocab_size", shapes.TEXT_DEFAULTS["vocab_size"]))


def _tokens(model: PipelineFolder, vocab_size: Any) -> Iterator[Problem]:
    """A token id beyond the embedding table ends in a device-side assert that names nothing."""
    path = model.parts["tokenizer"].folder / "vocab.json"
    if not path.is_file() or not isinstance(vocab_size, int):
        return
    vocabulary = read_json(path)
    if missing := [mark for mark in _MARKS if mark not in vocabulary]:
        remedy = "copy the tokenizer of the pipeline again (save_pretrained writes all of it)"
        yield bad_input(shown(path), f"does not hold {' and '.join(missing)}", remedy)
    largest = max((number for number in vocabulary.values() if isinstance(number, int)), default=0)
    if largest >= vocab_size:
        yield bad_input(
            shown(path),
            f"has token ids up to {largest}, and text_encoder/config.json vocab_size={vocab_size}",
            _MATCHING,
        )


def native_resolution(model: PipelineFolder) -> int | None:
    """The side of the images that the U-Net was made for; None where its config does not say."""
    size = model.denoiser.config.get("sample_size")
    return size * latent_factor(model) if isinstance(size, int) and size > 0 else None


def latent_factor(model: PipelineFolder) -> int:
    """Pixels a side of a latent: the VAE halves the image between its blocks."""
    widths = model.parts["vae"].config.get("block_out_channels")
    return int(2 ** (len(widths) - 1)) if isinstance(widths, list) and widths else 1


def too_small(model: PipelineFolder, resolution: int) -> list[str]:
    """A sentence where a model is trained on smaller images than it was made for."""
    native = native_resolution(model)
    if native is None or resolution >= native:
        return []
    return [
        f"resolution: {resolution}, and this {model.prediction_type} model was made for {native} pixels; "
        f"it forgets how to draw them: use resolution={native}, or a model made for {resolution}"
    ]


def _shape(shape: tuple[int, ...]) -> str:
    return str(list(shape))


def _value(config: Config, key: str) -> Any:
    return config.get(key, "its default")
