"""Parts of different models, and resolutions below the model's own, are named with their configs."""

import json
from pathlib import Path

import pytest

from sdjob.model import part_compatibility
from sdjob.model.architectures import STABLE_DIFFUSION, STABLE_DIFFUSION_XL
from sdjob.model.pipeline import PipelineFolder, find_pipeline
from sdjob.settings.run_spec import RunSpec
from tests.support.pipeline import VOCAB, make_fitting, reconfigure


@pytest.fixture
def folder(tmp_path):
    return make_fitting(tmp_path / "model")


def found(folder):
    return find_pipeline(folder, None, allow_pickle=True)


def test_parts_of_one_model(folder):
    assert part_compatibility.problems(found(folder)) == []


@pytest.mark.parametrize(
    ("part", "values", "found_unet", "found_other"),
    [
        (
            "unet",
            {"cross_attention_dim": 6},
            "cross_attention_dim=6",
            "text_encoder/config.json hidden_size=4",
        ),
        (
            "text_encoder",
            {"hidden_size": 8},
            "cross_attention_dim=4",
            "text_encoder/config.json hidden_size=8",
        ),
        ("vae", {"latent_channels": 8}, "in_channels=4", "vae/config.json latent_channels=8"),
    ],
)
def test_a_part_of_another_model(folder, part, values, found_unet, found_other):
    reconfigure(folder, part, **values)
    (problem,) = part_compatibility.problems(found(folder))
    assert (problem.code, problem.found) == (66, f"unet/config.json has {found_unet}, and {found_other}")
    assert problem.remedy == "Take all parts of the pipeline from one model."


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (
            VOCAB | {"b": 10},
            "has token ids up to 10, and the embedding in text_encoder/model.safetensors 10 rows",
        ),
        ({"a": 0, "<|startoftext|>": 2}, "does not hold <|endoftext|>"),
    ],
)
def test_a_vocabulary_that_the_text_encoder_cannot_use(folder, vocabulary, message):
    (folder / "tokenizer/vocab.json").write_text(json.dumps(vocabulary))
    (problem,) = part_compatibility.problems(found(folder))
    assert (problem.subject, problem.found) == (str(folder / "tokenizer/vocab.json"), message)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("added_tokens.json", {"<sks>": 10}),
        ("tokenizer.json", {"model": {"vocab": VOCAB}, "added_tokens": [{"id": 10, "content": "<sks>"}]}),
    ],
)
def test_an_added_token_that_the_embedding_has_no_row_for(folder, file, content):
    """As after a textual inversion whose text encoder was not copied with it."""
    (folder / "tokenizer" / file).write_text(json.dumps(content))
    (problem,) = part_compatibility.problems(found(folder))
    assert (
        problem.found == "has token ids up to 10, and the embedding in text_encoder/model.safetensors 10 rows"
    )
    assert (problem.code, problem.subject) == (66, str(folder / "tokenizer" / file))
    content = {"<sks>": 9} if file.startswith("added") else {"model": {"vocab": VOCAB}}
    (folder / "tokenizer" / file).write_text(json.dumps(content))
    assert part_compatibility.problems(found(folder)) == []


@pytest.mark.parametrize(
    ("size", "resolution", "warns"), [(96, 128, True), (96, 192, False), (None, 64, False)]
)
def test_smaller_images_than_the_model_was_made_for(folder, size, resolution, warns):
    """This VAE halves an image once: 96 latents are 192 pixels."""
    reconfigure(folder, "unet", sample_size=size)
    warnings = part_compatibility.low_resolution(found(folder), resolution)
    assert [warning.split(":")[0] for warning in warnings] == ["resolution"] * warns
    assert all("made for 192 pixels" in warning for warning in warnings)


# --- settings ----------------------------------------------------------------------------------------


def model(prediction_type, class_name=STABLE_DIFFUSION.class_name):
    return PipelineFolder(Path("/m"), class_name, prediction_type, {})


def judged(values, model):
    spec = RunSpec(pretrained_model_name_or_path="/m", output_dir="/o", **values)
    return list(part_compatibility.setting_problems(spec, model))


def test_zero_terminal_snr_needs_v_prediction():
    (problem,) = judged({"rescale_betas_zero_snr": True}, model("epsilon"))
    assert (problem.code, problem.subject) == (64, "rescale_betas_zero_snr")
    assert judged({"rescale_betas_zero_snr": True}, model("v_prediction")) == []
    assert judged({"snr_gamma": 5.0}, model("epsilon")) == []


def test_min_snr_weights_need_a_model_that_predicts_epsilon_or_v():
    for prediction_type in ("epsilon", "v_prediction"):
        assert judged({"snr_gamma": 5.0}, model(prediction_type)) == []
    (problem,) = judged({"snr_gamma": 5.0}, model("flow"))
    assert (problem.code, problem.subject) == (64, "snr_gamma")
    assert judged({}, model("flow")) == []


def test_stable_diffusion_xl_is_trained_with_the_same_settings():
    for values in (
        {"train_text_encoder": True, "max_token_length": 150},
        {"cache_text_embeddings": "memory", "export_single_file": True},
    ):
        assert judged(values, model("epsilon", STABLE_DIFFUSION_XL.class_name)) == []


@pytest.mark.parametrize(
    ("values", "subject"),
    [
        ({"prediction_type": "v_prediction"}, "prediction_type"),
        ({"single_file_config": "/somewhere"}, "single_file_config"),
    ],
)
def test_settings_of_single_files_are_refused_for_a_folder(values, subject):
    (problem,) = judged(values, model("epsilon"))
    assert (problem.code, problem.subject) == (64, subject)
    assert judged({"prediction_type": "epsilon"}, model("epsilon")) == []
