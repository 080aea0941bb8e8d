"""A model in one file becomes a folder with the same weights, completely or not at all."""

import os
import shutil
import time

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from sdjob.model.key_names import current_name, original_tensors
from sdjob.model.pipeline import find_pipeline
from sdjob.problems import JobError
from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures import ddpm
from sdtrain.export import export, webui
from sdtrain.model import convert, load
from sdtrain.model.tokenize import tokenize
from sdtrain.runtime.stop import Stopped, StopRequest
from tests.support import single
from tests.support.worker import alone, snapshot

NEVER = StopRequest(None)


def written(model, folder, **settings):
    """The model as one file, as a run exports it that trained nothing."""
    spec = RunSpec(
        pretrained_model_name_or_path=str(model), output_dir="o", export_single_file=True, **settings
    )
    source = find_pipeline(model, None, allow_pickle=False)
    parts = load.load(source, "no", torch.device("cpu"), allow_pickle=False)
    weights = load.trainable(load.make_trainable(parts, spec))
    export.export(folder, source, parts, {name: w.detach() for name, w in weights.items()}, spec)
    return folder / export.WEBUI_MODEL


@pytest.fixture(params=["v_model", "xl_model"])
def base(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Model folder → the same in one file; made once."""
    made = {}

    def of(model):
        if model not in made:
            made[model] = written(model, tmp_path_factory.mktemp("single") / "out")
        return made[model]

    return of


def looked(file, model, **settings):
    return find_pipeline(file, None, **{"allow_pickle": False, "single_file_config": str(model), **settings})


def converted(file, model, output, *, stop=NEVER, **settings):
    spec = RunSpec(pretrained_model_name_or_path=str(file), output_dir=str(output))
    return convert.as_folder(looked(file, model, **settings), spec, alone(), stop)


def weights_of(pipeline):
    return {
        f"{name}.{current_name(key)}": weight
        for name, part in pipeline.parts.items()
        for path in part.weights
        for key, weight in load_file(path).items()
    }


def same(found, wanted):
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def test_there_and_back(base, files, tmp_path):
    """All weights are the same, bit by bit; so are configuration, tokenizer and noise schedule."""
    folder = converted(files(base), base, tmp_path)
    same(weights_of(folder), weights_of(find_pipeline(base, None, allow_pickle=False)))
    kinds_of_files = ("config.json", "vocab.json", "merges.txt", "tokenizer.json")
    before = {name: hash_ for name, hash_ in snapshot(base).items() if name.endswith(kinds_of_files)}
    after = snapshot(folder.path)
    assert {name: after[name] for name in before} == before
    assert folder.prediction_type == find_pipeline(base, None, allow_pickle=False).prediction_type


def test_a_link_in_the_place_of_the_cache_is_not_written_through(base, files, tmp_path):
    """`export` and `generate` convert, too, without the checks of a run."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "output").mkdir()
    (tmp_path / "output/cache").symlink_to(tmp_path / "mine")
    with pytest.raises(JobError) as caught:
        converted(files(base), base, tmp_path / "output")
    assert caught.value.code == 73 and list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize("in_one_file", [False, True])
def test_another_vae_than_that_of_the_file(base, files, tmp_path, in_one_file):
    other = shutil.copytree(base / "vae", tmp_path / "other")
    file = other / "diffusion_pytorch_model.safetensors"
    weights = {name: 2 * weight for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    vae = other
    if in_one_file:
        config = find_pipeline(base, None, allow_pickle=False).parts["vae"].config
        names = original_tensors("stable-diffusion", "vae", config, weights)
        vae = tmp_path / "vae.safetensors"
        save_file(webui.original(names, weights), vae)
    folder = converted(files(base), base, tmp_path / "output", vae=str(vae))
    again = converted(files(base), base, tmp_path / "output", vae=str(vae))
    assert again == folder and folder.parts["vae"].folder.is_dir()
    wanted = weights_of(find_pipeline(base, None, allow_pickle=False))
    wanted |= {f"vae.{current_name(name)}": weight for name, weight in weights.items()}
    same(weights_of(folder), wanted)


def test_the_layout_is_that_of_others_who_read_it(base, files):
    """diffusers' own reader finds the same weights."""
    kind = StableDiffusionXLPipeline if "xl" in str(base) else StableDiffusionPipeline
    found = kind.from_single_file(files(base), config=str(base), local_files_only=True)
    wanted = kind.from_pretrained(base)
    for name in ("unet", "vae", "text_encoder", *(["text_encoder_2"] if "xl" in str(base) else [])):
        same(getattr(found, name).state_dict(), getattr(wanted, name).state_dict())


def test_what_the_file_says_of_itself(base, files):
    with safe_open(files(base), "pt") as file:
        said, marks = file.metadata(), {"v_pred", "ztsnr"} & set(file.keys())
    v_model = "xl" not in str(base)
    assert said["modelspec.architecture"] == (
        "stable-diffusion-v1" if v_model else "stable-diffusion-xl-v1-base"
    )
    assert said["modelspec.prediction_type"] == ("v" if v_model else "epsilon")
    assert (said["modelspec.title"], said["modelspec.resolution"]) == ("Fine-tuned model", "64x64")
    assert marks == ({"v_pred"} if v_model else set())


def test_older_names_of_the_vae_are_written_as_the_original_has_them(v_model, files, tmp_path):
    model = shutil.copytree(v_model, tmp_path / "model")
    path = model / "vae/diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, weight in load_file(path).items():
        for today, then in old.items():
            name = name.replace(f"attentions.0.{today}.", f"attentions.0.{then}.")
        weights[name] = weight
    save_file(weights, path, metadata={"format": "pt"})
    assert any("proj_attn" in name for name in weights)
    same(load_file(written(model, tmp_path / "out")), load_file(files(v_model)))


def test_half_precision_stays_as_it_is(v_model, tmp_path):
    file = written(v_model, tmp_path / "out", export_dtype="fp16")
    found = weights_of(converted(file, v_model, tmp_path))
    wanted = weights_of(find_pipeline(v_model, None, allow_pickle=False))
    same(found, {name: weight.half() for name, weight in wanted.items()})


class Callback:
    """Something of a training program, which is not here when the file is read."""


def test_a_pickle_gives_the_same_without_running_anything(xl_model, files, tmp_path):
    state = load_file(files(xl_model))
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": state, "global_step": 3, "callbacks": {Callback: Callback()}}, file)
    before, after = (looked(path, xl_model, allow_pickle=True) for path in (files(xl_model), file))
    counts = [{name: part.num_parameters for name, part in each.parts.items()} for each in (before, after)]
    assert counts[0] == counts[1]
    found = converted(file, xl_model, tmp_path, allow_pickle=True)
    same(weights_of(found), weights_of(find_pipeline(xl_model, None, allow_pickle=False)))


class Shout:
    def __reduce__(self):
        return print, ("this must not be run",)


def test_a_pickle_that_would_run_something(xl_model, files, tmp_path, capsys):
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": load_file(files(xl_model)), "more": Shout()}, file)
    assert converted(file, xl_model, tmp_path, allow_pickle=True).class_name == "StableDiffusionXLPipeline"
    assert "this must not be run" not in capsys.readouterr().out


def test_it_is_made_once_and_again_where_it_is_damaged(v_model, files, tmp_path, monkeypatch, capsys):
    folder = converted(files(v_model), v_model, tmp_path)
    assert folder.path.parent == tmp_path / "cache"
    assert list(folder.path.parent.iterdir()) == [folder.path]
    assert "converting model.safetensors" in capsys.readouterr().out
    assert converted(files(v_model), v_model, tmp_path).path == folder.path
    assert "converting" not in capsys.readouterr().out
    before = snapshot(folder.path)
    (folder.path / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"x")
    assert snapshot(converted(files(v_model), v_model, tmp_path).path) == before
    elsewhere = shutil.copy(files(v_model), tmp_path / "renamed.safetensors")
    assert converted(elsewhere, v_model, tmp_path).path == folder.path


def test_another_file_and_another_prediction_are_another_folder(v_model, files, tmp_path):
    folder = converted(files(v_model), v_model, tmp_path)
    content = bytearray(files(v_model).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "other.safetensors").write_bytes(content)
    assert converted(tmp_path / "other.safetensors", v_model, tmp_path).path != folder.path
    epsilon = converted(files(v_model), v_model, tmp_path, prediction_type="epsilon")
    assert (epsilon.prediction_type, folder.prediction_type) == ("epsilon", "v_prediction")
    assert epsilon.path != folder.path


def test_what_killed_attempts_have_left_goes(v_model, files, tmp_path):
    """But not what somebody else may be writing at this moment."""
    folder = converted(files(v_model), v_model, tmp_path).path
    shutil.rmtree(folder)
    for name, age in (("old", 3600), ("new", 0)):
        left = folder.with_name(f".{folder.name}.{name}.tmp")
        (left / "unet").mkdir(parents=True)
        for path in (left / "unet", left):
            os.utime(path, (time.time() - age,) * 2)
    converted(files(v_model), v_model, tmp_path)
    assert sorted(path.name for path in folder.parent.iterdir()) == [
        f".{folder.name}.new.tmp",
        folder.name,
    ]


def test_two_jobs_that_convert_at_once(v_model, files, tmp_path, monkeypatch):
    """The second one leaves the folder as it is: the other job may be reading it."""
    read = convert.read_weights
    first = []

    def overtaken(path):
        if not first:
            first.append(None)
            folder = converted(files(v_model), v_model, tmp_path).path
            first[0] = (folder, folder.stat().st_ino)
        return read(path)

    monkeypatch.setattr(convert, "read_weights", overtaken)
    found = converted(files(v_model), v_model, tmp_path)
    assert (found.path, found.path.stat().st_ino) == first[0]
    assert list(found.path.parent.iterdir()) == [found.path]


def test_a_full_disk_leaves_nothing(v_model, files, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "save_file", full)
    with pytest.raises(JobError) as caught:
        converted(files(v_model), v_model, tmp_path)
    (problem,) = caught.value.problems
    assert problem.code == 73 and "No space left" in problem.found and "cache_dir" in problem.remedy
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_stop_leaves_nothing(v_model, files, tmp_path):
    stop = tmp_path / "stop"
    with pytest.MonkeyPatch.context() as patch:
        save = convert.save_file

        def stopped(*given, **more):
            stop.touch()
            save(*given, **more)

        patch.setattr(convert, "save_file", stopped)
        with pytest.raises(Stopped):
            converted(files(v_model), v_model, tmp_path, stop=StopRequest(stop))
    assert list((tmp_path / "cache").iterdir()) == []


def test_names_of_clip_without_their_prefix(v_model, files, tmp_path):
    weights = load_file(files(v_model))
    bare = {name.replace("transformer.text_model.", "transformer."): w for name, w in weights.items()}
    assert bare.keys() != weights.keys()
    file = tmp_path / "bare.safetensors"
    save_file(bare, file)
    same(
        weights_of(converted(file, v_model, tmp_path)),
        weights_of(converted(files(v_model), v_model, tmp_path)),
    )


@pytest.mark.parametrize(
    ("model", "scheduler", "paddings"),
    [
        (single.SD_1, "DDIMScheduler", [49407]),
        (single.SD_2, "DDIMScheduler", [0]),
        (single.SD_XL, "EulerDiscreteScheduler", [49407, 0]),
    ],
)
def test_configs_and_tokenizers_of_the_published_types(model, scheduler, paddings, tmp_path):
    """transformers and diffusers read them as OpenAI's vocabulary and the published noise schedule."""
    marks = {"v_pred": (0,), "ztsnr": (0,)}
    file = single.sparse(tmp_path / "model.safetensors", {**single.original_shapes(model), **marks})
    found = find_pipeline(file, None, allow_pickle=False)
    folder = tmp_path / "folder"
    folder.mkdir()
    convert.write_configs(found.single, found.parts, folder)
    for name, padding in zip(("tokenizer", "tokenizer_2"), paddings, strict=False):
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder=name, local_files_only=True)
        assert len(tokenizer) == 49408
        (ids,) = tokenize(tokenizer, ["a photo of a cat"]).flatten(1).tolist()
        assert ids[:7] == [49406, 320, 1125, 539, 320, 2368, 49407] and len(ids) == 77
        assert set(ids[7:]) == {padding}
    schedule = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    assert schedule.config.prediction_type == "v_prediction" and schedule.alphas_cumprod[-1] == 0
    sampler = ddpm._sampler(folder / "scheduler", zero_snr=False)
    assert type(sampler).__name__ == scheduler and sampler.config.rescale_betas_zero_snr
    plain = DDPMScheduler.from_pretrained(single.CONFIGS / model, subfolder="scheduler")
    torch.testing.assert_close(plain.betas[[0, -1]], torch.tensor([0.00085, 0.012]))
