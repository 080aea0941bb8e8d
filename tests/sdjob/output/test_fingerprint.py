"""What a checkpoint remembers of its run: all that must not change, and nothing that may."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from sdjob.dataset.concepts import Concept
from sdjob.model.architectures import STABLE_DIFFUSION
from sdjob.model.pipeline import find_pipeline
from sdjob.output.fingerprint import (
    data_identity,
    differences,
    facts_of,
    fingerprint,
    model_content,
    model_facts,
)
from sdjob.settings.run_spec import RunSpec
from tests.support.datasets import PNG, find, jsonl, parquet, table, write_image


def spec_of(**settings) -> RunSpec:
    return RunSpec(**{"pretrained_model_name_or_path": "m", "output_dir": "o", **settings})


def facts(**settings) -> dict[str, str]:
    return fingerprint(spec_of(**settings), STABLE_DIFFUSION, "data")


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
        ({"validation_split": 0.2}, "validation_split"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_must_not_change(change, name):
    before, after = facts(), facts(**change)
    assert before.get(name) != after.get(name)


def test_trained_layers_read_as_in_earlier_checkpoints():
    default = facts(lora_rank=4)
    assert default["lora_rank"] == "LoRA of rank 4, alpha 4, on to_k, to_q, to_v, to_out.0"
    assert default == facts(lora_rank=4, lora_target_modules=("to_k", "to_q", "to_v", "to_out.0"))
    assert facts()["lora_rank"] == "the whole U-Net"


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
    runs = [fingerprint(prior, STABLE_DIFFUSION, "data", identity) for identity in ("", "one", "other")]
    assert len({facts["class_data_dir"] for facts in runs}) == 3
    more = prior.model_copy(update={"num_class_images": 7})
    assert fingerprint(more, STABLE_DIFFUSION, "data")["num_class_images"] != runs[0]["num_class_images"]


def test_every_difference_to_a_checkpoint_is_a_problem():
    found = {"recipe": "dreambooth", "seed": "7", "lora_rank": "none"}
    wanted = {"recipe": "dreambooth", "seed": "8", "use_ema": "True"}
    problems = differences(found, wanted, Path("checkpoint-000002"))
    assert {problem.code for problem in problems} == {64}
    assert all("OUTPUT_DIR (or resume=never)" in problem.remedy for problem in problems)
    assert {problem.subject: problem.found for problem in problems} == {
        "seed": "8 now, 7 in checkpoint-000002",
        "use_ema": "True now, nothing in checkpoint-000002",
        "lora_rank": "nothing now, none in checkpoint-000002",
    }
    assert differences(found, dict(found), Path()) == []


def identity(folder, captions=True) -> str:
    return data_identity(find(folder, captions=captions))


def test_data_may_move_but_not_change(captioned, tmp_path):
    moved = shutil.copytree(captioned, tmp_path / "moved")
    assert identity(moved) == identity(captioned)
    (moved / "5.png").unlink()
    rows = (moved / "metadata.jsonl").read_text().splitlines()
    (moved / "metadata.jsonl").write_text("\n".join(rows[:5]) + "\n")
    assert identity(moved) != identity(captioned)


def test_another_caption_in_the_metadata_is_other_data(captioned, tmp_path):
    """Also one of the same length."""
    moved = shutil.copytree(captioned, tmp_path / "moved")
    rows = [json.loads(line) for line in (moved / "metadata.jsonl").read_text().splitlines()]
    rows[0]["text"] = rows[0]["text"].swapcase()
    (moved / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    assert identity(moved) != identity(captioned)


@pytest.fixture
def folder(tmp_path):
    """Two images, each with a caption in a text file."""
    for name in ("a", "b"):
        write_image(tmp_path / "folder" / f"{name}.png")
        (tmp_path / "folder" / f"{name}.txt").write_text("a caption")
    return tmp_path / "folder"


def test_each_part_of_a_folder_is_part_of_its_identity(folder):
    def after(name: str, change) -> str:
        path = folder / name
        content = path.read_bytes()
        change(path)
        found = identity(folder)
        path.write_bytes(content)
        return found

    seen = [
        identity(folder),
        identity(folder, captions=False),
        after("b.txt", lambda path: path.write_text("a longer caption")),
        after("a.txt", lambda path: path.write_text("a longer caption")),
        after("b.png", lambda path: path.write_bytes(PNG + b"more")),
        after("a.png", lambda path: path.write_bytes(PNG + b"more")),
    ]
    assert len(set(seen)) == len(seen)
    assert identity(folder) == seen[0]
    for suffix in ("png", "txt"):
        (folder / f"b.{suffix}").rename(folder / f"c.{suffix}")
    assert identity(folder) not in seen


def test_text_files_do_not_matter_where_captions_are_not_used(folder):
    before = identity(folder, captions=False)
    (folder / "a.txt").write_text("a longer caption")
    assert identity(folder, captions=False) == before


def test_the_columns_of_a_table_are_part_of_its_identity(tmp_path):
    parquet(tmp_path / "a.parquet", table(2, other=["x", "y"], image2=[PNG, PNG]))
    columns = [{}, {"caption_column": "other"}, {"image_column": "image2"}, {"captions": False}]
    assert len({data_identity(find(tmp_path, **each)) for each in columns}) == 4


def test_the_number_of_rows_and_the_format_are_part_of_the_identity(folder):
    info = find(folder)
    variants = [info, replace(info, num_examples=3), replace(info, format=replace(info.format, name="other"))]
    assert len(set(map(data_identity, variants))) == 3


def test_a_dataset_has_the_identity_that_version_0_1_gave_it(folder, tmp_path):
    """Or its checkpoints could not be continued."""
    images = len(PNG)
    text = f"folder/2/image/.txta.png/{images}\n9\nb.png/{images}\n9\n"
    assert identity(folder) == hashlib.sha256(text.encode()).hexdigest()[:16]
    jsonl(folder, {"file_name": "a.png", "text": "x"})
    text = f"metadata/1/file_name/texta.png/{images}\n" + (folder / "metadata.jsonl").read_text()
    assert identity(folder) == hashlib.sha256(text.encode()).hexdigest()[:16]


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
    return model_facts(find_pipeline(folder, None, allow_pickle=False))["model_name"]


def test_model_may_move_but_not_change(eps_model, v_model, tmp_path):
    moved = shutil.copytree(eps_model, tmp_path / "moved")
    assert model_of(moved) == model_of(eps_model) != model_of(v_model)
    assert len(model_of(moved)) == len("model ") + 16  # as in checkpoints
    os.utime(moved / "unet/diffusion_pytorch_model.safetensors", (0, 0))
    assert model_of(moved) == model_of(eps_model)
    with (moved / "vae/diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\x01\x02\x03\x04")
    assert model_of(moved) != model_of(eps_model)


@pytest.mark.parametrize(
    "path",
    [
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ],
)
def test_every_part_of_a_model_is_part_of_its_identity(eps_model, tmp_path, path):
    changed = shutil.copytree(eps_model, tmp_path / "changed")
    model = find_pipeline(changed, None, allow_pickle=False)
    content = (changed / path).read_bytes()
    identities = {model_facts(model)["model_name"]}
    for other in (
        bytes([content[0] ^ 1]) + content[1:],
        content[:-1] + bytes([content[-1] ^ 1]),
        content + b"\0",
    ):
        (changed / path).write_bytes(other)
        identities.add(model_facts(model)["model_name"])
    assert len(identities) == 4


def test_the_identities_of_model_and_data_are_facts(captioned):
    found = facts_of(
        spec_of(), STABLE_DIFFUSION, {"model_name": "model 0123"}, [find(captioned), find(captioned)], []
    )
    data = identity(captioned)
    assert (found["model_name"], found["dataset_name"]) == ("model 0123", f"dataset {data}+{data}")


def test_the_subjects_of_a_list_are_facts(captioned, tmp_path):
    def facts_with(times=1, **changes) -> dict[str, str]:
        entry = {"instance_data_dir": str(captioned), "instance_prompt": "a", "class_prompt": "b", **changes}
        listed = spec_of(concepts_list=str(tmp_path / "concepts.yaml"))
        return facts_of(listed, STABLE_DIFFUSION, {}, [], [Concept(**entry)] * times)

    changes = [{}, {"instance_prompt": "x"}, {"class_prompt": "x"}, {"weight": 2.0}]
    assert len({facts_with(**change)["concepts_list"] for change in changes}) == 4
    assert facts_with() == facts_with(instance_data_dir="elsewhere")  # its images are compared instead
    assert facts_with(times=2)["concepts_list"] == "; ".join([facts_with()["concepts_list"]] * 2)


def test_given_images_of_the_class_are_facts(folder):
    prior = spec_of(with_prior_preservation=True, class_prompt="x")

    def class_data(*folders) -> str:
        concepts = [
            Concept(instance_data_dir="i", instance_prompt="a", class_data_dir=each) for each in folders
        ]
        return facts_of(prior, STABLE_DIFFUSION, {}, [], concepts)["class_data_dir"]

    given = identity(folder, captions=False)
    assert class_data(None) == "generated images"
    assert class_data(str(folder)) == f"images {given}"
    assert class_data(str(folder), str(folder)) == f"images {given}+{given}"
    unused = [Concept(instance_data_dir="i", instance_prompt="a", class_data_dir=str(folder))]
    assert "class_data_dir" not in facts_of(spec_of(), STABLE_DIFFUSION, {}, [], unused)
    (folder / "a.png").write_bytes(PNG + b"more")
    assert class_data(str(folder)) != f"images {given}"


def test_checkpoints_of_an_earlier_version_are_recognised(tmp_path):
    """Version 0.1 wrote other words around the same identities; a prompt is compared as it was written."""
    wanted = facts(with_prior_preservation=True, class_prompt="a picture", instance_prompt="a picture of sks")
    earlier = {**wanted, "dataset_name": "data set data", "class_data_dir": "generated pictures"}
    assert differences(earlier, wanted, tmp_path) == []
    assert [
        problem.subject
        for problem in differences({**earlier, "dataset_name": "data set x"}, wanted, tmp_path)
    ] == ["dataset_name"]


def test_the_facts_as_they_are_written_into_checkpoints():
    """Checkpoints of this version must be recognised by later ones: each name and text is part of the format."""
    common = {
        "dataset_name": "dataset data",
        "train_text_encoder": "False",
        "optimizer": "adamw",
        "max_token_length": "75",
        "use_ema": "False",
        "aspect_ratio_buckets": "False",
        "rescale_betas_zero_snr": "False",
    }
    settings = {
        "recipe": "text_to_image",
        "lora_rank": 4,
        "lora_alpha": 8,
        "validation_split": 0.25,
        "seed": 3,
    }
    assert facts(**settings) == common | {
        "recipe": "text_to_image",
        "lora_rank": "LoRA of rank 4, alpha 8, on to_k, to_q, to_v, to_out.0",
        "seed": "3",
        "validation_split": "0.25",
    }
    subject = common | {
        "recipe": "dreambooth",
        "lora_rank": "the whole U-Net",
        "seed": "42",
        "instance_prompt": "'a sks dog'",
    }
    assert facts(instance_prompt="a sks dog") == subject | {"with_prior_preservation": "without"}
    prior = {"with_prior_preservation": True, "class_prompt": "a dog", "num_class_images": 7}
    assert facts(instance_prompt="a sks dog", **prior) == subject | {
        "with_prior_preservation": "with prior preservation of 'a dog'",
        "class_data_dir": "generated images",
        "num_class_images": "7",
    }
    given = fingerprint(spec_of(**prior), STABLE_DIFFUSION, "data", "0123")
    assert given["class_data_dir"] == "images 0123"


def test_the_content_of_a_model_is_more_than_its_identity(eps_model, tmp_path):
    """What is generated depends on the tokenizer, and on weights between head and tail."""
    changed = shutil.copytree(eps_model, tmp_path / "changed")
    model = find_pipeline(changed, None, allow_pickle=False)
    before = model_content(model)
    os.utime(changed / "unet/diffusion_pytorch_model.safetensors", (0, 0))
    assert model_content(model) == before
    (changed / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    assert model_content(model) != before


@pytest.mark.parametrize("name", ["merges.txt", "vocab.json", "tokenizer_config.json", "added_tokens.json"])
def test_another_tokenizer_is_another_model_to_a_run(eps_model, tmp_path, name):
    """Earlier checkpoints, which do not record it, are continued as before."""
    changed = shutil.copytree(eps_model, tmp_path / "changed")
    model = find_pipeline(changed, None, allow_pickle=False)
    before = model_facts(model)
    os.utime(changed / "tokenizer/vocab.json", (0, 0))
    assert model_facts(model) == before == model_facts(find_pipeline(eps_model, None, allow_pickle=False))
    (changed / "tokenizer" / name).write_text('{"a": 1}')
    after = model_facts(model)
    assert after["model_name"] == before["model_name"]
    (problem,) = differences(before, after, tmp_path)
    assert (problem.code, problem.subject) == (64, "model_name")
    assert problem.found.startswith("tokenizer ")
    assert differences({"model_name": before["model_name"]}, after, tmp_path) == []


def test_a_replaced_table_of_the_same_size_is_another_dataset(tmp_path):
    """Checkpoints that do not record the content of a table are continued as before."""

    def facts(caption):
        path = parquet(tmp_path / "a.parquet", table(2, text=[caption, "x"]), compression="none")
        return path.stat().st_size, facts_of(spec_of(), STABLE_DIFFUSION, {}, [find(tmp_path)], [])

    (size, first), (other_size, other) = facts("first"), facts("other")
    assert size == other_size and first["dataset_name"] == other["dataset_name"]
    assert differences(first, facts("first")[1], tmp_path) == []
    (problem,) = differences(first, other, tmp_path)
    assert problem.subject == "dataset_name" and problem.code == 64 and "content " in problem.found
    earlier = {name: text for name, text in first.items() if name != "dataset_content"}
    assert differences(earlier, other, tmp_path) == []
