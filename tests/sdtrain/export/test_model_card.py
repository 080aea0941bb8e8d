"""The model card: true, loadable, and without anything of the machine that trained."""

import ast
import re

import yaml

from sdjob.formatting import visible
from sdjob.model.architectures import STABLE_DIFFUSION
from sdjob.settings.run_spec import RunSpec
from sdtrain.export import model_card

REPORT = {
    "num_examples": 7,
    "steps": 30,
    "global_batch_size": 8,
    "mean_loss": 0.12345,
    "versions": {"torch": "2.13.0"},
}


def rendered(samples=False, trained_parts=("unet",), **settings) -> str:
    paths = {
        "pretrained_model_name_or_path": "/mnt/model/sd-v1-4",
        "output_dir": "/output/secret-project",
        "instance_data_dir": "/mnt/dataset/my dog",
        "train_data_dir": "/mnt/dataset/pokemon",
        "cache_dir": "/home/somebody/cache",
    }
    spec = RunSpec(**{**paths, **settings})
    report = {**REPORT, "trained_parts": list(trained_parts)}
    return model_card.render(spec, STABLE_DIFFUSION, report, samples=samples)


def front_matter(text) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_it_tells_what_was_trained_on_what():
    text = rendered(instance_prompt='a "sks": dog | cat', learning_rate=1e-4, lora_rank=4)
    about = front_matter(text)
    assert about["base_model"] == "sd-v1-4"
    assert about["instance_prompt"] == 'a "sks": dog | cat'
    assert about["tags"] == ["stable-diffusion", "text-to-image", "lora", "dreambooth"]
    assert "rank 4" in text and "7 images" in text and "30 steps of 8" in text and "`my dog`" in text
    assert "webui/lora.safetensors" in text
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert settings == {"lr": 1e-4, "lora_rank": 4, "instance_prompt": 'a "sks": dog | cat'}


def test_it_names_the_parts_that_were_trained():
    one, two = ("unet", "text_encoder"), ("unet", "text_encoder", "text_encoder_2")
    assert "All weights of the U-Net of sd-v1-4, trained" in rendered()
    assert "U-Net of sd-v1-4 and its text encoder, trained" in rendered(trained_parts=one)
    assert "U-Net of sd-v1-4 and its text encoders, trained" in rendered(trained_parts=two)


def test_it_names_no_place_of_the_machine():
    private_files = {"vae": "/home/somebody/vae", "lora_weights": "/home/somebody/lora.safetensors"}
    resumed = "/output/secret-project/checkpoint/checkpoint-000002"
    text = rendered(recipe="text_to_image", resume=resumed, **private_files)
    for private in ("/mnt", "/output", "/home", "secret-project", "somebody"):
        assert private not in text
    assert "7 captioned images" in text and "`pokemon`" in text


def test_its_example_is_python_and_shows_the_samples_if_there_are_any():
    text = rendered(samples=True, validation_prompts=('a "red" cross',), export_single_file=True)
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert 'pipeline("a \\"red\\" cross")' in code
    assert "(samples.png)" in text and "webui/model.safetensors" in text
    assert "samples.png" not in rendered() and "webui" not in rendered()


HOSTILE = "a\n```\n# Owned\n---\nlicense: mit\n[x](http://evil) <img src=x> **b** \x1b[31m \u202e \x9b `c`"


def test_texts_of_others_are_nothing_but_text():
    text = rendered(
        instance_prompt=HOSTILE, instance_data_dir="/data/[a](b)`c`", validation_prompts=(HOSTILE,)
    )
    assert visible(text) == text
    about = front_matter(text)
    assert about["instance_prompt"] == HOSTILE and "license" not in about
    blocks = re.findall(r"^(`{3,})(\w+)\n(.*?)\n\1$", text, re.MULTILINE | re.DOTALL)
    assert [language for _, language, _ in blocks] == ["python", "yaml"]
    assert yaml.safe_load(blocks[1][2])["instance_prompt"] == HOSTILE
    prompts = [node.value for node in ast.walk(ast.parse(blocks[0][2])) if isinstance(node, ast.Constant)]
    assert HOSTILE in prompts
    prose = re.sub(r"^(`{3,}).*?^\1$", "", text.partition("\n---\n")[2], flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"(?<!\\)(?:\[x|\*\*b|<img)", prose) and "\n# Owned" not in prose


def test_the_base_model_by_its_name_on_the_hub_and_its_license(tmp_path):
    """From the hub's cache, our own downloads, or model_index.json; a license of the user's comes first."""
    for folder in ("hub/models--CompVis--sd-v1-4/snapshots/1b2c", "hub/model/CompVis--sd-v1-4"):
        assert (
            front_matter(rendered(pretrained_model_name_or_path=f"/x/{folder}"))["base_model"]
            == "CompVis/sd-v1-4"
        )
    (tmp_path / "model_index.json").write_text('{"_name_or_path": "stabilityai/sd-2"}')
    (tmp_path / "README.md").write_text("---\r\nlicense: openrail++\r\ntags: [a]\r\n---\r\n# Model\r\n")
    about = front_matter(rendered(pretrained_model_name_or_path=str(tmp_path)))
    assert (about["base_model"], about["license"]) == ("stabilityai/sd-2", "openrail++")
    given = rendered(pretrained_model_name_or_path=str(tmp_path), model_license="apache-2.0", lora_rank=2)
    assert front_matter(given)["license"] == "apache-2.0"
    assert 'DiffusionPipeline.from_pretrained("stabilityai/sd-2")' in given
    (tmp_path / "model_index.json").write_text('{"_name_or_path": "/home/somebody/sd"}')
    for broken in (
        "---\nlicense: [\n---\n",
        "---\nlicense: 'a: b'\n---\n",
        "no front matter",
        "---\n- a\n---\n",
    ):
        (tmp_path / "README.md").write_text(broken)
        about = front_matter(rendered(pretrained_model_name_or_path=str(tmp_path)))
        assert about["base_model"] == tmp_path.name and "license" not in about


def test_trigger_words():
    text = rendered(instance_prompt="a sks `dog`")
    assert "## Trigger words\n\nUse a sks \\`dog\\` in a prompt" in text
    assert "Trigger words" not in rendered(recipe="text_to_image")
