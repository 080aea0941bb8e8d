"""Tests of single_file, torch_zip and locate: a model in one file is recognised from its header, or refused by name."""

import json
from dataclasses import replace

import pytest

from sdjob.model import architectures, part_compatibility, single_file
from sdjob.model.architectures import STABLE_DIFFUSION_XL
from sdjob.model.pipeline import find_pipeline
from sdjob.problems import JobError
from tests.sdjob.model.test_pipeline import make, write
from tests.support.single import CONFIGS, SD_1, SD_2, SD_XL, original_shapes, sparse

UNET = "model.diffusion_model."
CONTEXT = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
WHOLE = (
    "Use a whole checkpoint of Stable Diffusion 1.x, 2.x or XL base: U-Net, VAE and text encoder in one file."
)


@pytest.fixture(scope="module")
def headers():
    """Type → the tensors of a published file."""
    return {"1.x": original_shapes(SD_1), "2.x": original_shapes(SD_2), "XL": original_shapes(SD_XL)}


def look(path, **settings):
    return find_pipeline(path, None, **{"allow_pickle": False, **settings})


def only(path, code=66, **settings):
    with pytest.raises(JobError) as caught:
        look(path, **settings)
    (problem,) = caught.value.problems
    assert problem.code == code
    return problem


# --- what it is --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "class_name", "parameters"),
    [
        (
            "1.x",
            "StableDiffusionPipeline",
            {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
        ),
        (
            "2.x",
            "StableDiffusionPipeline",
            {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
        ),
        (
            "XL",
            "StableDiffusionXLPipeline",
            {
                "unet": 2_567_463_684,
                "vae": 83_653_863,
                "text_encoder": 123_060_480,
                "text_encoder_2": 694_659_840,
            },
        ),
    ],
)
def test_the_published_types(headers, tmp_path, model_type, class_name, parameters):
    """The numbers of parameters are those of the published models."""
    said = {"modelspec.prediction_type": "epsilon"} if model_type == "2.x" else {}
    found = look(sparse(tmp_path / "model.safetensors", headers[model_type], **said))
    assert (found.class_name, found.prediction_type) == (class_name, "epsilon")
    assert found.single.title == f"Stable Diffusion {model_type}"
    have = {name: part.num_parameters for name, part in found.parts.items() if part.weights}
    assert have == parameters
    assert found.parts["unet"].num_bytes == 2 * parameters["unet"]
    assert part_compatibility.problems(found) == []
    assert found.native_resolution == (1024 if model_type == "XL" else 512)


@pytest.mark.parametrize(
    ("more", "metadata", "setting", "predicts"),
    [
        ({}, {}, "v_prediction", "v_prediction"),
        ({}, {"modelspec.prediction_type": "v"}, "auto", "v_prediction"),
        ({}, {"modelspec.predict_key": "v"}, "auto", "v_prediction"),
        ({}, {"modelspec.architecture": "stable-diffusion-v2-512"}, "auto", "epsilon"),
        ({"v_pred": (0,)}, {}, "auto", "v_prediction"),
        ({"v_pred": (0,)}, {"modelspec.prediction_type": "v"}, "epsilon", "epsilon"),
    ],
)
def test_prediction_types_of_the_second_version(headers, tmp_path, more, metadata, setting, predicts):
    file = sparse(tmp_path / "model.safetensors", headers["2.x"] | more, **metadata)
    found = look(file, prediction_type=setting)
    assert found.prediction_type == found.parts["scheduler"].config["prediction_type"] == predicts
    assert found.native_resolution == (768 if predicts == "v_prediction" else 512)


def test_an_unknown_prediction_type_is_asked_for(headers, tmp_path):
    problem = only(sparse(tmp_path / "model.safetensors", headers["2.x"]), code=64)
    assert problem.subject == "prediction_type"
    assert problem.found.startswith(
        f"auto, and {tmp_path / 'model.safetensors'} does not state what it predicts"
    )
    assert "prediction_type=v_prediction for a model trained at 768 pixels" in problem.remedy


def test_marks_of_v_prediction_and_zero_snr(headers, tmp_path):
    marks = {"v_pred": (0,), "ztsnr": (0,)}
    found = look(sparse(tmp_path / "model.safetensors", headers["XL"] | marks))
    scheduler = found.parts["scheduler"].config
    assert scheduler["prediction_type"] == "v_prediction"
    assert (scheduler["rescale_betas_zero_snr"], scheduler["timestep_spacing"]) == (True, "trailing")


def test_ema_tensors_are_ignored_with_a_note(headers, tmp_path):
    file = tmp_path / "model.safetensors"
    found = look(sparse(file, {**headers["1.x"], "model_ema.decay": (1,), "model_ema.out2bias": (4,)}))
    (note,) = found.single.warnings
    assert note.startswith(f"{file}: 2 EMA tensors (model_ema.…) are ignored")
    assert look(sparse(file, headers["1.x"])).single.warnings == []


def test_names_of_clip_without_their_prefix(headers, tmp_path):
    bare = {name.replace("transformer.text_model.", "transformer."): s for name, s in headers["1.x"].items()}
    assert bare.keys() != headers["1.x"].keys()
    assert look(sparse(tmp_path / "model.safetensors", bare)).class_name == "StableDiffusionPipeline"


# --- what it is not ----------------------------------------------------------------------------------


def unet(**shapes):
    """The tensors by which a U-Net is recognised."""
    return {f"{UNET}input_blocks.0.0.weight": (320, shapes.pop("channels", 4), 3, 3)} | {
        f"{UNET}{name}": shape for name, shape in shapes.items()
    }


def attends(width, block=1):
    return {f"input_blocks.{block}.1.transformer_blocks.0.attn2.to_k.weight": (320, width)}


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        (
            unet(channels=9),
            "has a U-Net with 9 input channels instead of 4 (an inpainting model), which this version does not",
        ),
        (unet(channels=8), "with 8 input channels instead of 4 (a model that edits images)"),
        (
            unet(**attends(1280, 4), **{"label_emb.0.0.weight": (1536, 2560)}),
            "is a refiner of Stable Diffusion XL",
        ),
        (
            unet(**attends(1024), **{"label_emb.0.0.weight": (1280, 2048)}),
            "with conditioning other than text (unCLIP",
        ),
        ({**unet(), "edm_mean": (4,)}, "was trained with an EDM noise schedule"),
        (
            unet(**attends(512)),
            "has a U-Net for text of width 512; supported are 768 (Stable Diffusion 1.x), 1024",
        ),
        ({"lora_unet_x.lora_up.weight": (4, 2)}, "is a LoRA, not a model"),
        ({"unet.x.lora_A.weight": (4, 2)}, "is a LoRA, not a model"),
        ({"model.diffusion_model.double_blocks.0.x": (4,)}, "is a FLUX model"),
        ({"model.diffusion_model.joint_blocks.0.x": (4,)}, "is a model of Stable Diffusion 3"),
        ({"control_model.x": (4,), "first_stage_model.x": (4,)}, "is a ControlNet"),
        ({"emb_params": (4, 768)}, "is a textual inversion, not a model"),
        ({"first_stage_model.decoder.conv_in.weight": (4,)}, "holds only a VAE"),
        ({"decoder.mid.block_1.conv1.weight": (4,)}, "holds only a VAE"),
        (
            {"down_blocks.0.resnets.0.time_emb_proj.weight": (4,)},
            "holds only a U-Net, in the layout of diffusers",
        ),
        ({"text_model.final_layer_norm.bias": (4,)}, "holds only a text encoder"),
        ({"b": (1,), "a": (1,)}, "is not a model of Stable Diffusion: it holds 2 tensors, such as a, b"),
    ],
)
def test_other_content_is_refused_by_name(tmp_path, tensors, found):
    file = sparse(tmp_path / "thing.safetensors", tensors)
    problem = only(file)
    assert problem.subject == str(file) and found in problem.found
    assert problem.remedy


def without(headers, *prefixes):
    return {name: shape for name, shape in headers.items() if not name.startswith(prefixes)}


@pytest.mark.parametrize(
    ("gone", "found"),
    [
        (("first_stage_model.", "cond_stage_model."), ["holds no VAE", "holds no text encoder"]),
        (("first_stage_model.",), ["holds no VAE"]),
    ],
)
def test_missing_parts(headers, tmp_path, gone, found):
    file = sparse(tmp_path / "model.safetensors", without(headers["1.x"], *gone))
    with pytest.raises(JobError) as caught:
        find_pipeline(file, None, allow_pickle=False)
    assert [(problem.found, problem.remedy) for problem in caught.value.problems] == [
        (each, WHOLE) for each in found
    ]


def test_an_architecture_made_from_another_has_its_layout(headers, tmp_path, monkeypatch):
    path = sparse(tmp_path / "m.safetensors", headers["XL"])
    changed = replace(STABLE_DIFFUSION_XL, title="Another XL")
    monkeypatch.setitem(architectures.ARCHITECTURE_FACTS, changed.class_name, changed)
    assert look(path).parts["text_encoder_2"].tensors.keys() >= {"text_projection.weight"}


def test_an_architecture_without_single_files_is_refused(headers, tmp_path, monkeypatch):
    path = sparse(tmp_path / "m.safetensors", headers["XL"])
    changed = replace(STABLE_DIFFUSION_XL, title="Another XL", original_layout=None)
    monkeypatch.setitem(architectures.ARCHITECTURE_FACTS, changed.class_name, changed)
    assert "reads Another XL only from a diffusers folder" in only(path).found


def test_broken_files(headers, tmp_path):
    file = sparse(tmp_path / "model.safetensors", headers["1.x"])
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(size - 1)
    assert only(file).found == f"is truncated: {size - 1:,} bytes, expected {size:,}"
    write(file, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3438167536\n")
    assert "Git LFS pointer" in only(file).found
    write(file, b"<!DOCTYPE html><html>not found</html>")
    assert "is not a safetensors file" in only(file).found


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"PK\x03\x04 and no more", "is not a complete archive of torch.save"),
        (b"\x80\x02l\x00.", "a pickle in torch's old format"),
    ],
)
def test_pickles_need_permission_and_must_be_whole(tmp_path, content, found):
    file = write(tmp_path / "model.ckpt", content)
    problem = only(file)
    assert problem.found == "is a pickle, which can run code when it is loaded"
    assert "allow_pickle=1" in problem.remedy and ".safetensors" in problem.remedy
    assert found in only(file, allow_pickle=True).found


# --- where it is -------------------------------------------------------------------------------------


@pytest.fixture
def shelf(headers, tmp_path):
    """A typical folder: a model, and other files alongside it."""
    sparse(tmp_path / "shelf/dreamy.safetensors", headers["1.x"])
    sparse(tmp_path / "shelf/vae-ft-mse.safetensors", {"encoder.mid.attn_1.k.bias": (4,)})
    sparse(tmp_path / "shelf/more_details.safetensors", {"lora_te_x.lora_up.weight": (4, 4)})
    write(tmp_path / "shelf/dreamy.preview.png", b"x")
    write(tmp_path / "shelf/bad-hands.pt", b"x")
    return tmp_path / "shelf"


def test_the_model_among_other_files(shelf):
    assert look(shelf).path == shelf / "dreamy.safetensors"
    assert look(shelf.parent).path == shelf / "dreamy.safetensors"
    found = find_pipeline(shelf.parent, "shelf/dreamy.safetensors", allow_pickle=False)
    assert found.path == shelf / "dreamy.safetensors"


def test_several_models_need_a_name(shelf):
    (shelf / "other.safetensors").hardlink_to(shelf / "dreamy.safetensors")
    problem = only(shelf)
    assert problem.found == "holds 2 models: dreamy.safetensors, other.safetensors"
    assert problem.remedy == "Set model_name to one of them, for example model_name=dreamy.safetensors."
    found = find_pipeline(shelf, "other.safetensors", allow_pickle=False)
    assert found.path == shelf / "other.safetensors"
    with pytest.raises(JobError, match=r"holds bad-hands\.pt, dreamy\.safetensors, more_det"):
        find_pipeline(shelf, "othre.safetensors", allow_pickle=False)


def test_a_folder_without_any_model_says_what_is_there(shelf):
    (shelf / "dreamy.safetensors").unlink()
    with pytest.raises(JobError) as caught:
        look(shelf)
    assert [problem.found for problem in caught.value.problems] == [
        "is a LoRA, not a model",
        "holds only a VAE",
    ]


def test_a_pipeline_folder_comes_first(shelf):
    assert look(make(shelf / "sd-v1-4").parent).path == shelf / "sd-v1-4"


def test_the_users_configs_are_checked(headers, tmp_path):
    file = sparse(tmp_path / "model.safetensors", headers["1.x"])
    problem = only(file, single_file_config=str(tmp_path / "none"))
    assert (problem.subject, problem.found) == (str(tmp_path / "none/model_index.json"), "is missing")
    folder = make(tmp_path / "config")
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    (folder / "vae/config.json").unlink()
    assert only(file, single_file_config=str(folder)).subject == str(folder / "vae/config.json")


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in CONFIGS.glob("*/model_index.json")))
def test_the_committed_configs_are_those_of_a_type(folder):
    """They state the prediction of their type; the scheduler has every key that a file may change, in its place."""
    assert folder in {name for model_type in single_file.TYPES for name in model_type.configs.values()}
    scheduler = json.loads((CONFIGS / folder / "scheduler/scheduler_config.json").read_text())
    v_prediction = folder == "stable_diffusion_2"
    assert scheduler["prediction_type"] == ("v_prediction" if v_prediction else "epsilon")
    assert {"rescale_betas_zero_snr", "timestep_spacing"} <= scheduler.keys()
