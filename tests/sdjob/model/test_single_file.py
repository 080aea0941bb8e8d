"""A model in one file is recognised from its header, or refused by name with a remedy."""

import json

import pytest

from sdjob.model import fit, kinds, prompts, vocabulary
from sdjob.model.pipeline import find_pipeline
from sdjob.problems import JobError
from tests.sdjob.model.test_pipeline import make, write
from tests.support.single import original_shapes, sparse

UNET = "model.diffusion_model."
CONTEXT = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
TAKE = "Take the whole checkpoint of Stable Diffusion 1.x, 2.x or XL base: U-Net, VAE and text encoder in one file."


@pytest.fixture(scope="module")
def headers():
    """Kind → the tensors of a published file."""
    return {kind.name[17:]: original_shapes(kind) for kind in kinds.KINDS}


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
    ("kind", "class_name", "parameters"),
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
def test_the_published_kinds(headers, tmp_path, kind, class_name, parameters):
    """The numbers of parameters are those of the published models."""
    said = {"modelspec.prediction_type": "epsilon"} if kind == "2.x" else {}
    found = look(sparse(tmp_path / "model.safetensors", headers[kind], **said))
    assert (found.class_name, found.prediction_type) == (class_name, "epsilon")
    assert found.single.blueprint.kind == f"Stable Diffusion {kind}"
    have = {name: part.num_parameters for name, part in found.parts.items() if part.weights}
    assert have == parameters
    assert found.parts["unet"].num_bytes == 2 * parameters["unet"]
    assert fit.problems(found) == fit.surplus(found) == []
    assert fit.native_resolution(found) == (1024 if kind == "XL" else 512)


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
def test_what_the_second_version_predicts(headers, tmp_path, more, metadata, setting, predicts):
    file = sparse(tmp_path / "model.safetensors", headers["2.x"] | more, **metadata)
    found = look(file, prediction_type=setting)
    assert found.prediction_type == found.parts["scheduler"].config["prediction_type"] == predicts
    assert fit.native_resolution(found) == (768 if predicts == "v_prediction" else 512)


def test_where_it_does_not_say_it_is_asked_for(headers, tmp_path):
    problem = only(sparse(tmp_path / "model.safetensors", headers["2.x"]), code=64)
    assert problem.subject == "prediction_type"
    assert problem.found.startswith(
        f"auto, and {tmp_path / 'model.safetensors'} does not say what it predicts"
    )
    assert "prediction_type=v_prediction for a model made for 768 pixels" in problem.remedy


def test_marks_of_xl_models_that_predict_the_velocity(headers, tmp_path):
    marks = {"v_pred": (0,), "ztsnr": (0,)}
    found = look(sparse(tmp_path / "model.safetensors", headers["XL"] | marks))
    scheduler = json.loads(found.single.blueprint.files["scheduler/scheduler_config.json"])
    assert scheduler["prediction_type"] == "v_prediction"
    assert (scheduler["rescale_betas_zero_snr"], scheduler["timestep_spacing"]) == (True, "trailing")


def test_an_average_is_ignored_with_a_note(headers, tmp_path):
    file = tmp_path / "model.safetensors"
    found = look(sparse(file, {**headers["1.x"], "model_ema.decay": (1,), "model_ema.out2bias": (4,)}))
    (note,) = found.single.notes
    assert note.startswith(f"{file}: 2 tensors of an average of the weights (model_ema.…) are ignored")
    assert look(sparse(file, headers["1.x"])).single.notes == ()


def test_names_of_clip_without_their_prefix(headers, tmp_path):
    bare = {name.replace("transformer.text_model.", "transformer."): s for name, s in headers["1.x"].items()}
    assert bare.keys() != headers["1.x"].keys()
    assert look(sparse(tmp_path / "model.safetensors", bare)).class_name == "StableDiffusionPipeline"


# --- what it is not ----------------------------------------------------------------------------------


def unet(**shapes):
    """The tensors by which a U-Net is told."""
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
            "takes 9 channels instead of 4 (an inpainting model), which this version does not",
        ),
        (unet(channels=8), "takes 8 channels instead of 4 (a model that edits images)"),
        (
            unet(**attends(1280, 4), **{"label_emb.0.0.weight": (1536, 2560)}),
            "is a refiner of Stable Diffusion XL",
        ),
        (unet(**attends(1024), **{"label_emb.0.0.weight": (1280, 2048)}), "is told more than a text (unCLIP"),
        ({**unet(), "edm_mean": (4,)}, "was made for a noise schedule of another kind (EDM)"),
        (
            unet(**attends(512)),
            "attends to texts of the width 512; known are 768 (Stable Diffusion 1.x), 1024",
        ),
        ({"lora_unet_x.lora_up.weight": (4, 2)}, "is a LoRA, not a model"),
        ({"unet.x.lora_A.weight": (4, 2)}, "is a LoRA, not a model"),
        ({"model.diffusion_model.double_blocks.0.x": (4,)}, "is a model of the FLUX kind"),
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
        ({"b": (1,), "a": (1,)}, "is no model of Stable Diffusion: it holds 2 tensors, such as a, b"),
    ],
)
def test_other_things_are_refused_by_name(tmp_path, tensors, found):
    file = sparse(tmp_path / "thing.safetensors", tensors)
    problem = only(file)
    assert problem.subject == str(file) and found in problem.found
    assert problem.remedy


def without(headers, *prefixes):
    return {name: shape for name, shape in headers.items() if not name.startswith(prefixes)}


@pytest.mark.parametrize(
    ("gone", "found"),
    [
        (("first_stage_model.", "cond_stage_model."), "holds no VAE and no text encoder"),
        (("first_stage_model.",), "holds no VAE"),
    ],
)
def test_parts_that_are_not_there(headers, tmp_path, gone, found):
    problem = only(sparse(tmp_path / "model.safetensors", without(headers["1.x"], *gone)))
    assert (problem.found, problem.remedy) == (found, TAKE)


def test_missing_tensors_are_named_as_in_the_file(headers, tmp_path):
    tensors = without(headers["1.x"], f"{UNET}output_blocks.11.1.transformer_blocks.0.ff.")
    problem = only(sparse(tmp_path / "model.safetensors", tensors))
    assert problem.found == (
        "lacks 4 tensors of the U-Net of Stable Diffusion 1.x, such as "
        f"{UNET}output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.bias, "
        f"{UNET}output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight, "
        f"{UNET}output_blocks.11.1.transformer_blocks.0.ff.net.2.bias and 1 more"
    )


def test_wrong_shapes_are_named_as_in_the_file(headers, tmp_path):
    wrong = {"cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49411, 768)}
    problem = only(sparse(tmp_path / "model.safetensors", headers["1.x"] | wrong))
    assert problem.found == (
        f"{next(iter(wrong))} is [49411, 768]; the text encoder of Stable Diffusion 1.x has [49408, 768], by vocab_size"
    )
    assert "single_file_config" in problem.remedy


def test_broken_files(headers, tmp_path):
    file = sparse(tmp_path / "model.safetensors", headers["1.x"])
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(size - 1)
    assert only(file).found == f"is truncated: {size - 1:,} bytes, expected {size:,}"
    write(file, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3438167536\n")
    assert "Git LFS pointer" in only(file).found
    write(file, b"<!DOCTYPE html><html>not found</html>")
    assert "is no safetensors file" in only(file).found


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"PK\x03\x04 and no more", "is no whole archive of torch"),
        (b"\x80\x02l\x00.", "a pickle of an old kind"),
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
    """A folder as people have it: a model, and what lies beside it."""
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


def test_a_configuration_of_ones_own_is_checked(headers, tmp_path):
    file = sparse(tmp_path / "model.safetensors", headers["1.x"])
    problem = only(file, single_file_config=str(tmp_path / "none"))
    assert (problem.subject, problem.found) == (str(tmp_path / "none/model_index.json"), "is missing")
    folder = make(tmp_path / "config")
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    (folder / "vae/config.json").unlink()
    assert only(file, single_file_config=str(folder)).subject == str(folder / "vae/config.json")


# --- its vocabulary ----------------------------------------------------------------------------------


def test_clips_vocabulary():
    """The numbers are those that OpenAI's tokenizer gives."""
    vocab = vocabulary.vocab(vocabulary.merges())
    words = ("a", "photo", "of", "a", "cat")
    assert [vocab[f"{word}</w>"] for word in words] == [320, 1125, 539, 320, 2368]
    assert (len(vocab), vocab["!"], vocab[vocabulary.BEGIN], vocab[vocabulary.END]) == (
        49408,
        0,
        49406,
        49407,
    )
    assert len(vocabulary.merges()) == 48894


def test_long_prompts_are_counted_with_it(headers, tmp_path):
    found = look(sparse(tmp_path / "model.safetensors", headers["1.x"]))
    fits, too_long = "a photo of a cat, " * 12 + "a b c", "a photo of a cat, " * 12 + "a b c d"
    assert prompts.too_long([fits, too_long], found) == [too_long]
