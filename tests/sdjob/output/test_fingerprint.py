"""What a checkpoint remembers of its run: all that must not change, and nothing that may."""

import json
import os
import shutil
from pathlib import Path

import datasets
import pytest

from sdjob.dataset.detect import find_dataset
from sdjob.model.pipeline import find_pipeline
from sdjob.output.fingerprint import data_identity, differences, fingerprint, model_identity
from sdjob.settings.run_spec import RunSpec


def facts(**settings) -> dict[str, str]:
    spec = RunSpec(**{"pretrained_model_name_or_path": "m", "output_dir": "o", **settings})
    return fingerprint(spec, "model", "data")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"recipe": "text_to_image"}, "recipe"),
        ({"seed": 1}, "seed"),
        ({"use_ema": True}, "use_ema"),
        ({"lora_rank": 4}, "lora_rank"),
        ({"train_text_encoder": True}, "train_text_encoder"),
        ({"optimizer": "adafactor"}, "optimizer"),
        ({"max_token_length": 150}, "max_token_length"),
        ({"aspect_ratio_buckets": True}, "aspect_ratio_buckets"),
        ({"instance_prompt": "a photo of zzz"}, "instance_prompt"),
        ({"with_prior_preservation": True, "class_prompt": "x"}, "with_prior_preservation"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_must_not_change(change, name):
    before, after = facts(), facts(**change)
    assert before.get(name) != after.get(name)


def test_lora_shape_must_not_change():
    shapes = [
        {"lora_rank": 4},
        {"lora_rank": 4, "lora_alpha": 8},
        {"lora_rank": 4, "lora_target_modules": ("to_q",)},
    ]
    assert len({facts(**shape)["lora_rank"] for shape in shapes}) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"max_train_steps": 9},
        {"learning_rate": 1e-3},
        {"train_batch_size": 2},
        {"gradient_accumulation_steps": 2},
        {"output_dir": "elsewhere"},
        {"checkpointing_steps": 1},
        {"device": "cpu"},
        {"dataloader_num_workers": 0},
        {"snr_gamma": 5.0},
        {"text_encoder_lr": 1e-6},
        {"noise_offset": 0.1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_may_change(change):
    assert facts(**change) == facts()


def test_other_images_of_the_class_are_other_data():
    prior = RunSpec(
        pretrained_model_name_or_path="m", output_dir="o", with_prior_preservation=True, class_prompt="x"
    )
    runs = [fingerprint(prior, "model", "data", identity) for identity in ("", "one", "other")]
    assert len({facts["class_data_dir"] for facts in runs}) == 3
    more = prior.model_copy(update={"num_class_images": 7})
    assert fingerprint(more, "model", "data")["num_class_images"] != runs[0]["num_class_images"]


def test_every_difference_to_a_checkpoint_is_a_problem():
    found = {"recipe": "dreambooth", "seed": "7", "lora_rank": "none"}
    wanted = {"recipe": "dreambooth", "seed": "8", "use_ema": "True"}
    problems = differences(found, wanted, Path("checkpoint-000002"))
    assert {problem.code for problem in problems} == {64}
    assert {problem.subject: problem.found for problem in problems} == {
        "seed": "8 now, 7 in checkpoint-000002",
        "use_ema": "True now, nothing in checkpoint-000002",
        "lora_rank": "nothing now, none in checkpoint-000002",
    }
    assert differences(found, dict(found), Path()) == []


def identity(folder, captions=True) -> str:
    return data_identity(
        find_dataset(folder, None, captions=captions, image_column="image", caption_column="text")
    )


def test_data_may_move_but_not_change(captioned, tmp_path):
    moved = shutil.copytree(captioned, tmp_path / "moved")
    assert identity(moved) == identity(captioned)
    (moved / "5.png").unlink()
    rows = (moved / "metadata.jsonl").read_text().splitlines()
    (moved / "metadata.jsonl").write_text("\n".join(rows[:5]) + "\n")
    assert identity(moved) != identity(captioned)


def test_another_caption_is_other_data(captioned, tmp_path):
    moved = shutil.copytree(captioned, tmp_path / "moved")
    rows = [json.loads(line) for line in (moved / "metadata.jsonl").read_text().splitlines()]
    rows[0]["text"] = "something else altogether"
    (moved / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    assert identity(moved) != identity(captioned)


def test_a_saved_dataset_may_move_but_not_change(tmp_path):
    def save(name: str, words: list[str]) -> Path:
        images = [{"path": None, "bytes": b"image"}] * len(words)
        rows = {"image": images, "text": words}
        features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / name)
        return tmp_path / name

    one = save("one", ["a", "b"])
    assert identity(shutil.copytree(one, tmp_path / "elsewhere")) == identity(one)
    assert identity(save("other", ["a", "a much longer caption" * 9])) != identity(one)


def model_of(folder) -> str:
    return model_identity(find_pipeline(folder, None, allow_pickle=False))


def test_model_may_move_but_not_change(eps_model, v_model, tmp_path):
    moved = shutil.copytree(eps_model, tmp_path / "moved")
    assert model_of(moved) == model_of(eps_model) != model_of(v_model)
    os.utime(moved / "unet/diffusion_pytorch_model.safetensors", (0, 0))
    assert model_of(moved) == model_of(eps_model)
    with (moved / "vae/diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\x01\x02\x03\x04")
    assert model_of(moved) != model_of(eps_model)


def test_checkpoints_of_an_earlier_version_are_recognised(tmp_path):
    """Version 0.1 wrote other words around the same identities; a prompt is compared as it was written."""
    wanted = facts(with_prior_preservation=True, class_prompt="a picture", instance_prompt="a picture of sks")
    earlier = {**wanted, "dataset_name": "data set data", "class_data_dir": "generated pictures"}
    assert differences(earlier, wanted, tmp_path) == []
    assert [
        problem.subject
        for problem in differences({**earlier, "dataset_name": "data set x"}, wanted, tmp_path)
    ] == ["dataset_name"]
