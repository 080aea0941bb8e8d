"""Tests of pipeline and weights: a pipeline folder is recognised, or refused with everything that is
wrong with it.
"""

import json
import pickle
import zipfile
from pathlib import Path

import pytest

from sdjob.model import torch_zip
from sdjob.model.pipeline import find_pipeline
from sdjob.problems import JobError
from tests.sdjob.unprivileged import problems_as_user

CLASSES = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "PNDMScheduler"],
}
UNET = "unet/diffusion_pytorch_model.safetensors"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3438167536\n"


def safetensors(**shapes) -> bytes:
    """A safetensors file of fp16 tensors, and an index buffer that is no parameter."""
    header, position = {"__metadata__": {"format": "pt"}}, 0
    for name, count in shapes.items():
        header[name] = {"dtype": "F16", "shape": [count, 2], "data_offsets": [position, position + 4 * count]}
        position += 4 * count
    header["position_ids"] = {"dtype": "I64", "shape": [1], "data_offsets": [position, position + 8]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(position + 8)


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def make(folder: Path, **scheduler) -> Path:
    write(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline", **CLASSES})
    write(folder / "unet/config.json", {"in_channels": 4})
    write(folder / "vae/config.json", {"latent_channels": 4})
    write(folder / "text_encoder/config.json", {})
    write(folder / "scheduler/scheduler_config.json", scheduler)
    write(folder / "tokenizer/vocab.json", {"a": 0})
    write(folder / "tokenizer/merges.txt", "#version: 0.2\n")
    write(folder / UNET, safetensors(a=10, b=5))
    write(folder / "vae/diffusion_pytorch_model.safetensors", safetensors(a=3))
    write(folder / "text_encoder/model.safetensors", safetensors(a=2))
    return folder


@pytest.fixture
def pipeline(tmp_path):
    return make(tmp_path / "stable-diffusion-v1-4")


def problems(root, name=None, allow_pickle=False):
    with pytest.raises(JobError) as caught:
        find_pipeline(Path(root), name, allow_pickle=allow_pickle)
    assert {problem.code for problem in caught.value.problems} == {66}
    return caught.value.problems


def only(root, name=None, **options):
    (problem,) = problems(root, name, **options)
    return problem


def test_a_whole_pipeline(pipeline):
    found = find_pipeline(pipeline, None, allow_pickle=False)
    assert (found.path, found.class_name, found.prediction_type) == (
        pipeline,
        "StableDiffusionPipeline",
        "epsilon",
    )
    assert list(found.parts) == list(CLASSES)
    unet = found.parts["unet"]
    assert unet.class_name == "UNet2DConditionModel" and unet.folder == pipeline / "unet"
    assert unet.weights == (pipeline / UNET,)
    assert (unet.num_parameters, unet.num_bytes, unet.variant) == (30, 68, None)
    assert found.parts["tokenizer"].weights == ()


def test_where_it_is_found(tmp_path, pipeline):
    for root, name in (
        (tmp_path, None),
        (tmp_path, "stable-diffusion-v1-4"),
        (tmp_path / "elsewhere", str(pipeline)),
        (pipeline, None),
    ):
        assert find_pipeline(root, name, allow_pickle=False).path == pipeline


def test_several_pipelines_need_a_name(tmp_path, pipeline):
    other = make(tmp_path / "ünïcode name", prediction_type="v_prediction")
    problem = only(tmp_path)
    assert "stable-diffusion-v1-4, ünïcode name" in problem.found
    assert "model_name=stable-diffusion-v1-4" in problem.remedy
    found = find_pipeline(tmp_path, other.name, allow_pickle=False)
    assert found.prediction_type == "v_prediction"


def test_wrong_names_and_mounts(tmp_path, pipeline):
    problem = only(tmp_path, "stable-difusion")
    assert "does not exist" in problem.found and "stable-diffusion-v1-4" in problem.found
    assert "model_name" in problem.remedy
    assert "does not exist" in only(tmp_path / "nothing").found
    (tmp_path / "empty").mkdir()
    assert "is empty" in only(tmp_path / "empty").found
    write(tmp_path / "photos/a.jpg", "x")
    assert "no model (a folder with model_index.json, or one .safetensors" in only(tmp_path / "photos").found
    assert "1 .jpg" in only(tmp_path / "photos").found


def test_neighbours_do_not_matter(tmp_path, pipeline):
    write(tmp_path / "README.md", "hello")
    write(tmp_path / "images/a.png", "x")
    write(tmp_path / ".cache/model_index.json", "{}")
    assert find_pipeline(tmp_path, None, allow_pickle=False).path == pipeline


@pytest.mark.parametrize(
    "name", ["StableDiffusionXLImg2ImgPipeline", "StableDiffusionInpaintPipeline", "FluxPipeline", "LDM"]
)
def test_other_pipelines_are_named(pipeline, name):
    write(pipeline / "model_index.json", {"_class_name": name, **CLASSES})
    problem = only(pipeline)
    assert name in problem.found and "does not train" in problem.found


def test_inpainting_unet_is_named(pipeline):
    write(pipeline / "unet/config.json", {"in_channels": 9})
    assert "9 input channels" in only(pipeline).found and "inpainting" in only(pipeline).found


def test_other_classes_and_targets_are_named(pipeline):
    index = {**CLASSES, "vae": ["diffusers", "AutoencoderTiny"], "_class_name": "StableDiffusionPipeline"}
    write(pipeline / "model_index.json", index)
    write(pipeline / "scheduler/scheduler_config.json", {"prediction_type": "sample"})
    found = sorted(problem.found for problem in problems(pipeline))
    assert len(found) == 2
    assert "AutoencoderTiny" in found[0] and "'sample'" in found[1]


def test_everything_missing_is_reported_at_once(pipeline):
    (pipeline / "unet/config.json").unlink()
    (pipeline / "vae/diffusion_pytorch_model.safetensors").unlink()
    (pipeline / "tokenizer/merges.txt").unlink()
    (pipeline / "scheduler/scheduler_config.json").unlink()
    (pipeline / "text_encoder/model.safetensors").unlink()
    (pipeline / "text_encoder/config.json").unlink()
    (pipeline / "text_encoder").rmdir()
    assert [Path(problem.subject).relative_to(pipeline).as_posix() for problem in problems(pipeline)] == [
        "scheduler/scheduler_config.json",
        "text_encoder",
        "tokenizer",
        "unet/config.json",
        "vae",
    ]


def test_missing_and_broken_index(pipeline):
    (pipeline / "model_index.json").unlink()
    problem = only(pipeline.parent)
    assert problem.subject == str(pipeline / "model_index.json") and problem.found == "is missing"
    write(pipeline / "model_index.json", "{ not json")
    assert "not readable JSON" in only(pipeline).found
    write(pipeline / "model_index.json", [])
    assert "not readable JSON" in only(pipeline).found
    write(pipeline / "model_index.json", {"_class_name": "StableDiffusionPipeline"})
    assert len(problems(pipeline)) == 5


def _described(text, name="a"):
    """A file with this description of one tensor."""
    header = f'{{"{name}":{{{text}}}}}'.encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda data: data[:-1], "is truncated: {less} bytes, expected {size}"),
        (lambda data: data + b"x", "is longer than its header says: {more} bytes, expected {size}"),
        (lambda data: data[:20], "is truncated: 20 bytes, its header alone takes"),
        (lambda data: b"", "is empty (0 bytes)"),
        (lambda data: LFS.encode(), "is a Git LFS pointer"),
        (lambda data: b"<html><body>404 not found</body></html>", "is not a safetensors file"),
        (lambda data: data.replace(b'"shape": [10, 2]', b'"shape": [10, 3]'), "bytes of its shape"),
        (lambda data: data.replace(b"[0, 40]", b"[4, 44]"), "a starts at 4, expected 0"),
        (lambda data: data.replace(b'{"__meta', b'["__meta'), "has a damaged header"),
        (lambda data: data.replace(b'"shape": [10, 2]', b'"shape":[-10,-2]'), "a has the shape -10, -2"),
        (lambda data: data.replace(b'"shape": [10, 2]', b'"shape": [1e999]'), "has a damaged header"),
        (lambda data: data.replace(b"[0, 40]", b'["", 0]'), "has a damaged header"),
        (lambda data: data.replace(b'"F16"', b'["X"]'), "has a damaged header"),
        (lambda data: _described('"dtype":"X","shape":[1],"data_offsets":["0","4"]'), "a damaged header"),
        (
            lambda data: _described(f'"dtype":"X","shape":[1],"data_offsets":[0,{"9" * 4300}]'),
            "a damaged header",
        ),
        (lambda data: _described("", name="a" * 1001), "the name of a tensor has 1,001 characters"),
        (lambda data: (17 << 20).to_bytes(8, "little") + bytes(17 << 20), "is not a safetensors file"),
    ],
)
def test_broken_weights_are_named(pipeline, change, found):
    data = (pipeline / UNET).read_bytes()
    broken = change(data)
    assert broken != data
    (pipeline / UNET).write_bytes(broken)
    problem = only(pipeline)
    assert problem.subject == str(pipeline / UNET)
    assert found.format(size=len(data), less=len(data) - 1, more=len(data) + 1) in problem.found


def test_lfs_pointers_elsewhere(pipeline):
    write(pipeline / "tokenizer/vocab.json", LFS)
    problem = only(pipeline)
    assert "LFS" in problem.found and "git lfs pull" in problem.remedy


def test_fp16_variant_is_used_where_it_is_the_only_one(pipeline):
    fp16 = (pipeline / UNET).rename(pipeline / "unet/diffusion_pytorch_model.fp16.safetensors")
    part = find_pipeline(pipeline, None, allow_pickle=False).parts["unet"]
    assert (part.weights, part.variant) == ((fp16,), "fp16")
    write(pipeline / UNET, safetensors(a=1))
    assert find_pipeline(pipeline, None, allow_pickle=False).parts["unet"].variant is None
    (pipeline / UNET).rename(pipeline / "unet/diffusion_pytorch_model.non_ema.safetensors")
    assert "fp16, non_ema" in only(pipeline).found


def test_pickles_need_permission(pipeline):
    (pipeline / UNET).unlink()
    weights = pipeline / "unet/diffusion_pytorch_model.bin"
    with zipfile.ZipFile(weights, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(4000))
    problem = only(pipeline)
    assert problem.subject == str(weights) and "allow_pickle=1" in problem.remedy
    part = find_pipeline(pipeline, None, allow_pickle=True).parts["unet"]
    assert part.pickled and part.weights == (weights,) and 1000 <= part.num_parameters < 1200


def test_a_pickle_in_the_format_before_the_archive_is_refused(pipeline):
    """Nobody knows what it calls until torch refuses it, when the job has started."""
    (pipeline / UNET).unlink()
    weights = pipeline / "unet/diffusion_pytorch_model.bin"
    weights.write_bytes(pickle.dumps({"weight": Code()}, protocol=2))
    problem = only(pipeline, allow_pickle=True)
    assert problem.subject == str(weights) and "old format" in problem.found
    assert "torch 1.6" in problem.remedy


def test_safetensors_are_preferred_to_pickles(pipeline):
    write(pipeline / "unet/diffusion_pytorch_model.bin", b"x")
    assert not find_pipeline(pipeline, None, allow_pickle=True).parts["unet"].pickled


@pytest.mark.parametrize(
    ("index", "shard", "variant"),
    [
        ("{stem}.safetensors.index.json", "{stem}-0000{n}-of-00002.safetensors", None),
        ("{stem}.safetensors.index.fp16.json", "{stem}.fp16-0000{n}-of-00002.safetensors", "fp16"),
    ],
)
def test_sharded_weights(pipeline, index, shard, variant):
    stem = "diffusion_pytorch_model"
    (pipeline / UNET).unlink()
    first, second = (shard.format(stem=stem, n=n) for n in (1, 2))
    weight_map = {"a": first, "b": second}
    write(pipeline / "unet" / index.format(stem=stem), {"weight_map": weight_map})
    write(pipeline / "unet" / first, safetensors(a=10))
    problem = only(pipeline)
    assert problem.subject == str(pipeline / "unet" / second) and problem.found == "is missing"
    write(pipeline / "unet" / second, safetensors(c=5))
    assert "lacks b" in only(pipeline).found
    write(pipeline / "unet" / second, safetensors(b=5))
    part = find_pipeline(pipeline, None, allow_pickle=False).parts["unet"]
    assert [path.name for path in part.weights] == [first, second]
    assert (part.num_parameters, part.variant) == (30, variant)


def test_an_index_does_not_reach_outside_its_folder(pipeline):
    (pipeline / UNET).unlink()
    write(pipeline / (UNET + ".index.json"), {"weight_map": {"a": "../vae/x.safetensors"}})
    assert "not an index" in only(pipeline).found


def test_unreadable_files_are_problems(pipeline):
    hidden = ("unet", "vae/config.json", "text_encoder/model.safetensors")
    for name in hidden:
        (pipeline / name).chmod(0o000)
    found = problems_as_user(lambda: find_pipeline(pipeline, None, allow_pickle=False), pipeline)
    (pipeline / "unet").chmod(0o755)
    assert sorted(found) == sorted(str(pipeline / name) for name in hidden)
    assert all("permission denied" in text for text in found.values())


def test_a_closed_pipeline_folder_is_named(pipeline):
    pipeline.chmod(0o000)
    found = problems_as_user(lambda: find_pipeline(pipeline.parent, None, allow_pickle=False), pipeline)
    pipeline.chmod(0o755)
    assert "permission denied" in found[str(pipeline)]


@pytest.mark.parametrize(
    ("config", "index", "what"),
    [
        ("FlowMatchEulerDiscreteScheduler", None, "is a FlowMatchEulerDiscreteScheduler, for flow matching"),
        ("DDIMScheduler", "FlowMatchHeunDiscreteScheduler", "is a FlowMatchHeunDiscreteScheduler, for flow"),
        ("EDMEulerScheduler", None, "is a EDMEulerScheduler"),
        ("MyScheduler", None, "is a MyScheduler"),
    ],
)
def test_a_scheduler_that_is_not_trained_with_is_named(pipeline, config, index, what):
    write(pipeline / "scheduler/scheduler_config.json", {"_class_name": config})
    entries = json.loads((pipeline / "model_index.json").read_text())
    write(pipeline / "model_index.json", entries | {"scheduler": ["diffusers", index or config]})
    (problem,) = problems(pipeline)
    assert (problem.code, problem.subject) == (66, str(pipeline / "scheduler"))
    assert problem.found.startswith(what)
    assert "DDPMScheduler, DDIMScheduler" in problem.remedy


def test_a_sampler_made_for_flow_matching_by_its_config(pipeline):
    config = {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}
    write(pipeline / "scheduler/scheduler_config.json", config)
    assert "for flow matching" in problems(pipeline)[0].found


# --- a model folder is data ---------------------------------------------------------------------------


def changed(pipeline: Path, **entries) -> Path:
    """The pipeline, with other entries in its index."""
    index = json.loads((pipeline / "model_index.json").read_text())
    write(pipeline / "model_index.json", {**index, **entries})
    return pipeline


@pytest.mark.parametrize(
    ("name", "entry", "found"),
    [
        ("../../private", ["diffusers", "AutoencoderKL"], "names the component ../../private, which"),
        ("/etc", ["diffusers", "AutoencoderKL"], "names the component /etc, which"),
        ("helper", ["diffusers", "AutoencoderKL"], "names the component helper, which"),
        ("\x1b[2J", ["diffusers", "AutoencoderKL"], r"names the component '\x1b[2J', which"),
        ("vae", ["my_module", "AutoencoderKL"], "takes vae from my_module, which is not diffusers"),
        (
            "safety_checker",
            ["os", "x"],
            "takes safety_checker from os, which is not transformers or diffusers or",
        ),
        (
            "feature_extractor",
            [["transformers"], "x"],
            "takes feature_extractor from ['transformers'], which is",
        ),
    ],
)
def test_a_foreign_component_or_library_is_refused(pipeline, name, entry, found):
    problem = only(changed(pipeline, **{name: entry}))
    assert problem.subject == f"{pipeline}/model_index.json" and problem.found.startswith(found)


def test_what_a_pipeline_may_have_and_what_it_says_it_has_not_are_no_problem(pipeline):
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    extractor = ["transformers", "CLIPImageProcessor"]
    absent = {"image_encoder": [None, None], "other": [None, None], "requires_safety_checker": True}
    find_pipeline(
        changed(pipeline, safety_checker=checker, feature_extractor=extractor, **absent),
        None,
        allow_pickle=False,
    )


@pytest.mark.parametrize(
    ("file", "content", "found"),
    [
        ("text_encoder/adapter_config.json", {"base_model_name_or_path": "/etc"}, "holds the adapter of another model"),
        ("unet/adapter_config.json", {}, "holds the adapter of another model"),
        ("text_encoder/config.json", {"model_type": "bert"}, "is a bert by its config, not CLIP"),
        ("unet/config.json", {"in_channels": 4, "quantization_config": {"bits": 4}}, "is quantized, and cannot"),
        ("unet/config.json", {"in_channels": 4, "layers_per_block": 10**9}, "has layers_per_block=10"),
        ("unet/config.json", {"in_channels": 4, "transformer_layers_per_block": [1, [1, 1e99]]}, "has transformer_l"),
        ("unet/config.json", {"in_channels": 4, "cross_attention_dim": 1e99}, "has cross_attention_dim=1e+99"),
        ("unet/config.json", {"norm_eps": float("nan")}, "is not readable JSON (NaN is not a finite number"),
        ("vae/config.json", {"block_out_channels": -1}, "has block_out_channels=-1, not a list of numbers"),
        ("vae/config.json", {"block_out_channels": [10**4000]}, "has block_out_channels=["),
        ("vae/config.json", {"block_out_channels": [1] * 1001}, "has block_out_channels=["),
        ("text_encoder/config.json", {"num_hidden_layers": 1001}, "has num_hidden_layers=1001, not at most 1,000"),
        ("tokenizer/tokenizer_config.json", {"tokenizer_class": "T5Tokenizer"}, "is a T5Tokenizer by its config"),
        ("tokenizer/tokenizer.json", {"model": {"type": "Unigram"}}, "is not a tokenizer of CLIP (BPE)"),
        ("tokenizer/tokenizer.json", {"model": 1}, "is not a tokenizer of CLIP (BPE)"),
    ],
)  # fmt: skip
def test_a_part_that_loads_as_something_else_is_refused(pipeline, file, content, found):
    write(pipeline / file, content)
    assert only(pipeline).found.startswith(found)


class Code:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize("large", [False, True])
def test_an_allowed_pickle_that_calls_what_no_weights_need_is_refused(pipeline, monkeypatch, capsys, large):
    (pipeline / UNET).unlink()
    with zipfile.ZipFile(pipeline / "unet/diffusion_pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": Code()}))
    if large:
        monkeypatch.setattr(torch_zip, "_MAX_PICKLE", 10)
    found = only(pipeline, allow_pickle=True).found
    assert (
        "data.pkl has more than 10 bytes" if large else "calls builtins.print, which no weights need"
    ) in found
    assert capsys.readouterr().out == ""
